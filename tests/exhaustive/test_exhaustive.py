"""The rule in every interleaving of a few creates.

Each walk prints what it has seen: ``python -m pytest tests/exhaustive -m long -s``. A violation is
printed step by step; ``print(replay(scope, steps))`` prints it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.messages import Answer
from tests.exhaustive.search import Walked, kind, replay, shrunk, walk
from tests.exhaustive.world import Scope, Step

APART = ((0, "p"), (1, "q"), (0, "r"), (1, "s"))
TOGETHER = ((0, "p"), (0, "q"), (0, "r"), (0, "s"))
SHARED = ((0, "p"), (1, "p"), (0, "q"), (1, "r"))
NAMELESS = ((0, ""), (1, ""), (0, ""), (1, ""))
TIGHT = Scope(APART[:2], limit=1)

#: Walked by default: some seconds of one core at most. Each with the number of faults.
SMALL = {
    "all is well": (Scope(APART), 0),
    "the limit is lower than assumed": (Scope(APART, assumed=4), 0),
    "a limit of one": (TIGHT, 1),
    "a pair that both want": (Scope(SHARED[:2], limit=1), 1),
    "nameless sends": (Scope(NAMELESS[:3], limit=1), 1),
    "one client in one window": (Scope(TOGETHER[:3], windows=1), 1),
}

#: Walked by ``nox -s long``: five minutes of one core, all together.
LARGE = {
    "two clients": (Scope(APART), 1),
    "one client": (Scope(TOGETHER), 1),
    "a pair that both want": (Scope(SHARED), 1),
    "nameless sends": (Scope(NAMELESS), 1),
    "requests are counted": (Scope(APART, counts="requests"), 1),
    "an own limit": (Scope(APART, limit=3, own_limit=2), 1),
    "a limit of one, two faults": (TIGHT, 2),
    "three creates, a limit of one, two faults": (Scope(APART[:3], limit=1), 2),
    "three creates in one window, two faults": (Scope(APART[:3], windows=1), 2),
}

#: What does not hold and is known: the message, where, and the steps.
KNOWN: dict[str, tuple[Scope, tuple[Step, ...]]] = {
    # Attempt 2 repeats a pair that exists. Its success comes without headers, so the rule counts a
    # slot that Braze did not take, and nobody asks whether it did before the window ends.
    "create 1 waits, though Braze has a slot, after a repeat without headers": (
        Scope(APART[:2], windows=1),
        (
            ("ask", "0"),
            ("ask", "1"),
            ("arrive", "0a.1"),
            ("tell", "0a.1", "5xx", "again"),
            ("ask", "0"),
            ("arrive", "0a.2"),
            ("tell", "0a.2", "bare"),
            ("look", "1"),
            ("wait",),
            ("look", "1"),
            ("wait",),
        ),
    ),
}


def walked(scope: Scope, faults: int) -> Walked:
    """Walk, print what was seen, and fail with the timeline of a violation that nobody knows."""
    seen = walk(scope, faults, violations=5)
    what = f"{len(scope.creates)} creates, limit {scope.limit}, {faults} faults"
    sys.stdout.write(f"\n{what}: {seen}\n")
    for found in seen.found:
        if kind(found.message) not in map(kind, KNOWN):
            shortest = shrunk(scope, found)
            pytest.fail(f"{replay(scope, shortest.steps)}\n{shortest.steps}", pytrace=False)
    return seen


@pytest.mark.parametrize(("scope", "faults"), SMALL.values(), ids=SMALL)
def test_the_promises_hold_in_every_interleaving(scope: Scope, faults: int) -> None:
    """A few creates, every order of requests, answers and time, and a fault anywhere."""
    assert walked(scope, faults).whole


@pytest.mark.long
@pytest.mark.parametrize(("scope", "faults"), LARGE.values(), ids=LARGE)
def test_the_promises_hold_in_every_interleaving_of_more(scope: Scope, faults: int) -> None:
    """Four creates with a fault anywhere, and three with two faults."""
    assert walked(scope, faults).whole


@pytest.mark.parametrize("message", KNOWN)
def test_a_known_violation_occurs(message: str) -> None:
    """A violation that no longer occurs is taken from the list."""
    scope, steps = KNOWN[message]
    assert replay(scope, steps).endswith(f"VIOLATION: {message}")


def _told(change: Callable[[Answer], Answer]) -> Callable[[pytest.MonkeyPatch], None]:
    """The bucket takes in another answer than the one that came."""
    finish = Bucket.finish

    def changed(
        bucket: Bucket, ask: Any, grant: Any, answer: Answer, now: float, *, keep: bool = False
    ) -> None:
        finish(bucket, ask, grant, change(answer), now, keep=keep)

    return lambda patch: patch.setattr(Bucket, "finish", changed)


def _without_doubt(answer: Answer) -> Answer:
    return attrs.evolve(answer, spent=False) if answer.spent is None else answer


def _without_bare_success(answer: Answer) -> Answer:
    return attrs.evolve(answer, spent=False) if answer.window is None else answer


WRONG: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "an unconfirmed slot is ripe after one timeout": lambda patch: patch.setattr(
        "braze_sends.quota.rule.ledger.RIPE_TIMEOUTS", 1
    ),
    "a lost answer leaves no doubt": _told(_without_doubt),
    "a success without headers takes no slot": _told(_without_bare_success),
    "deadlines and window ends are not looked at": lambda patch: patch.setattr(
        Bucket, "advance", lambda bucket, now: None
    ),
    "a window never ends": lambda patch: patch.setattr(
        "braze_sends.quota.rule.window.RESET_MARGIN", 1e9
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_walk_finds_what_is_wrong(
    wrong: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule with a deliberate fault is caught by a walk of a second."""
    wrong(monkeypatch)
    assert walk(TIGHT, 1).found
