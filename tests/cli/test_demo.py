"""The demo: it passes if the books agree, and really fails if they do not."""

from __future__ import annotations

import asyncio
import functools
import io
import selectors
import time
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import attrs
import pytest
from rich.console import Console
from typer.testing import CliRunner

from braze_sends import (
    BrazeSendsError,
    InternalServerError,
    MemoryStore,
    QuotaExhaustedError,
    QuotaStatus,
    SendId,
)
from braze_sends.cli import demo
from braze_sends.cli.app import app
from braze_sends.testing.demo import Books, Plan, disagreements
from tests.clocks import NOON

PLAN = Plan(limit=2, pairs=3, twice=1)
A, B, C = (("c", name) for name in "abc")
REFUSED = QuotaExhaustedError("none left", retry_after=5.0)
GOOD = Books(
    told=[(A, SendId(*A)), (B, SendId(*B, attempts=2)), (C, REFUSED), (A, SendId(*A))],
    again=[SendId(*A, reused=True, attempts=0)],
    quota=QuotaStatus(2, 0, 0, 0, datetime(2026, 11, 23, tzinfo=UTC), True),
    created=[A, B],
    requests=3,
    over_quota=0,
    left=0,
    ended=datetime(2026, 11, 22, 12, tzinfo=UTC),
)


class IdleSelector(selectors.DefaultSelector):
    """Lets time pass where client and server, in one event loop, both wait for it to.

    Args:
        now: the time at first, epoch seconds.
    """

    def __init__(self, now: float) -> None:
        super().__init__()
        self.now = now

    def time(self) -> float:
        """The time of the loop, the stores, the client and the emulator."""
        return self.now

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Loopback takes no time, but for what the kernel has put off.
        ready = super().select(0 if timeout == 0 else 0.002)
        if not ready and timeout is not None:
            self.now += timeout
        return ready


@pytest.fixture
def idle() -> Iterator[IdleSelector]:
    """The demo takes as long as what it waits for, however slow the machine is."""
    selector = IdleSelector(NOON)

    def new_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop(selector)
        loop.time = selector.time  # type: ignore[method-assign]
        loop._clock_resolution = 1e-6  # type: ignore[attr-defined]  # of a time of this size
        return loop

    store = functools.partial(MemoryStore, clock=selector.time, wall=selector.time)
    # Not the test's ``monkeypatch``, which ends after the clock that stands there now.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.events, "new_event_loop", new_loop)
        patch.setattr(time, "time", selector.time)
        patch.setattr("braze_sends.testing.demo.MemoryStore", store)
        yield selector


@pytest.mark.parametrize("hour", [0.0, 11.9999])
def test_demo_uses_every_slot_and_no_more(idle: IdleSelector, hour: float) -> None:
    """Over a line with every fault, all slots are used, the rest is refused, the books agree; also
    if it begins just before midnight."""
    idle.now += 3600.0 * hour
    out = io.StringIO()
    plan = Plan(limit=30, pairs=36, twice=3)
    demo.show(plan, Console(file=out, width=80))
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]

    assert idle.now > NOON + 3600.0 * hour + plan.rush
    assert "created 30 30" in lines
    assert "refused 6" in lines
    assert "asked for again later, reused 3" in lines
    assert "answers over quota (429) 0" in lines
    assert lines[-1].endswith("the emulator's record agrees with what the client believes.")
    assert not {c for c in out.getvalue() if unicodedata.category(c) == "Cc"} - {"\n"}


def test_good_books_agree() -> None:
    """Nothing is found where both sides tell the same."""
    assert [] == disagreements(PLAN, GOOD)
    assert (3, 3) == (GOOD.attempts, GOOD.requests)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"created": [A, B, C]}, "created, but the client does not know: ('c', 'c')"),
        ({"created": [A]}, "held for created, but the emulator has none: ('c', 'b')"),
        ({"created": [A, B, B]}, "created twice: ('c', 'b')"),
        (
            {"told": [(A, SendId(*A)), (B, SendId(*A)), (C, REFUSED)]},
            "answered with another pair: ('c', 'b')",
        ),
        (
            {"told": [*GOOD.told, (C, InternalServerError("no", status_code=503))]},
            "failed, not for want of quota: 503: no",
        ),
        (
            {"told": [*GOOD.told, (C, QuotaExhaustedError("none left"))]},
            "refused without a time to come back: none left",
        ),
        ({"again": [SendId(*A)]}, "created before, but asked of Braze again: a"),
        (
            {"again": [REFUSED]},
            "created before, but asked of Braze again: none left; come back in 5 s",
        ),
        ({"over_quota": 1}, "answers over quota: 1"),
        ({"created": [A], "told": [(A, SendId(*A))]}, "slots not used: 1"),
        ({"left": 1}, "slots left, by the client and by the emulator: 0, 1"),
    ],
)
def test_books_that_disagree(changes: dict[str, Any], found: str) -> None:
    """Whatever one side has and the other has not is found, by name."""
    assert found in disagreements(PLAN, attrs.evolve(GOOD, **changes))


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Books], None]:
    """Have the demo find given books."""

    def can(books: Books) -> None:
        async def run(plan: Plan, progress: Callable[[SendId | BrazeSendsError], None]) -> Books:
            for _, told in books.told:
                progress(told)
            return books

        monkeypatch.setattr(demo, "run", run)

    return can


def test_demo_fails_if_the_books_disagree(canned: Callable[[Books], None]) -> None:
    """A demo whose books disagree says in what, and is exit code 1."""
    canned(attrs.evolve(GOOD, over_quota=1))
    result = CliRunner().invoke(app, ["demo"])

    assert 1 == result.exit_code
    assert "error: answers over quota: 1\n" in result.stdout
    assert "agrees" not in result.stdout


def test_demo_shows_its_progress_on_a_terminal(canned: Callable[[Books], None]) -> None:
    """A terminal gets a bar that ends with the numbers of created and refused."""
    canned(GOOD)
    out = io.StringIO()
    demo.show(PLAN, Console(file=out, force_terminal=True, color_system=None, width=80))

    assert "2 created 1 refused" in out.getvalue()
    told = "The refused may come back when the emulator's day ends, in 12 h 0 min."
    assert told in out.getvalue()


def test_nobody_refused(canned: Callable[[Books], None]) -> None:
    """Where nobody was refused, nobody is told to come back."""
    canned(attrs.evolve(GOOD, told=GOOD.told[:2]))
    out = io.StringIO()
    demo.show(PLAN, Console(file=out))

    assert "come back" not in out.getvalue()
