"""What a batch says while it runs, in virtual time."""

from __future__ import annotations

import asyncio
import io
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from braze_sends import QuotaStatus, RateLimit, StoreError
from braze_sends.cli.common import finish
from braze_sends.cli.progress import Progress
from braze_sends.testing import run_virtual
from tests.clocks import NOON


class Braze:
    """Tells one quota after the other, the last one again and again."""

    def __init__(self, *told: QuotaStatus | StoreError) -> None:
        self.told = list(told)
        self.asked = 0

    async def quota(self) -> QuotaStatus:
        self.asked += 1
        status = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(status, StoreError):
            raise status
        return status


def resets(hours: float) -> datetime:
    return datetime.fromtimestamp(NOON, UTC) + timedelta(hours=hours)


def used_up(hours: float = 5) -> QuotaStatus:
    return QuotaStatus(100, 0, 0, 0, resets(hours), True)


NOTHING = QuotaStatus(100, 100, 0, 0, None, False)


class Terminal:
    """Standard error is a terminal while this is entered; what it shows, without colours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = io.StringIO()
        self.out.isatty = lambda: True  # type: ignore[method-assign]
        self.patch = monkeypatch

    def __enter__(self) -> Terminal:
        self.patch.setattr(sys, "stderr", self.out)
        self.patch.setenv("TERM", "xterm")
        self.patch.setenv("COLUMNS", "80")
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()

    def __str__(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.out.getvalue())


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """A terminal; in the end the bar is gone, and the cursor back."""
    terminal = Terminal(monkeypatch)
    yield terminal
    assert terminal.out.getvalue().endswith("\n\x1b[?25h\r\x1b[1A\x1b[2K")


def watch(progress: Progress, *told: Any, seconds: float = 3.5) -> Braze:
    """Let a progress watch for some seconds."""
    braze = Braze(*told)

    async def main() -> None:
        with progress:
            watching = asyncio.create_task(progress.watch(braze))  # type: ignore[arg-type]
            await asyncio.sleep(seconds)
            watching.cancel()

    run_virtual(main())
    return braze


def test_a_bar_tells_rate_quota_and_reset(terminal: Terminal) -> None:
    """As the last answer told them."""
    with terminal:
        progress = Progress(340, 10, quiet=False, headroom=0)
        progress.advance(RateLimit(100, 62, resets(7)))
        watch(progress, NOTHING)

    assert "11/340 0.0/s, 62 of 100 left, resets in 7 h 0 min" in str(terminal)


@pytest.mark.parametrize(
    ("headroom", "remaining", "done"),
    [(0, 62, "Tue 24 Nov"), (0, 0, "Wed 25 Nov"), (50, 62, "Sat 28 Nov"), (None, 62, None)],
)
def test_a_wide_bar_that_waits_tells_when_the_file_is_done(
    terminal: Terminal,
    headroom: int | None,
    remaining: int,
    done: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each day takes as much as the limit leaves to this batch, the first what is left of it."""
    with terminal:
        monkeypatch.setenv("COLUMNS", "140")
        progress = Progress(340, 10, quiet=False, headroom=headroom)
        progress.advance(RateLimit(100, remaining, resets(12)))
        watch(progress, NOTHING)

    found = re.search(r"resets in 12 h 0 min(?:, done about (\w+ \d+ \w+) \d\d:00)?", str(terminal))
    assert found is not None
    assert done == found[1]


def test_a_bar_does_not_tell_when_a_file_is_done_that_ends_today(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor when no day leaves a slot."""
    with terminal:
        monkeypatch.setenv("COLUMNS", "140")
        progress = Progress(40, 10, quiet=False, headroom=0)
        progress.advance(RateLimit(100, 62, resets(12)))
        watch(progress, NOTHING)

    assert "resets in 12 h" in str(terminal)
    assert "done" not in str(terminal)
    assert finish(9, limit=5, remaining=5, headroom=5, resets_at=resets(1)) is None


def test_a_bar_before_anything_is_known(terminal: Terminal) -> None:
    """It has the rate alone."""
    with terminal:
        watch(Progress(340, 0, quiet=False, headroom=0), NOTHING)

    assert " 0/340 0.0/s\r" in str(terminal)


def test_a_bar_that_waits_says_so(terminal: Terminal) -> None:
    """Where the quota is used up, for all but the headroom."""
    status = QuotaStatus(100, 20, 0, 0, resets(5), True)
    with terminal:
        watch(Progress(340, 80, quiet=False, headroom=20), status)

    assert "80/340 waiting, 20 of 100 left, resets in 5 h 0 min" in str(terminal)


def test_a_bar_tells_what_is_waited_for(terminal: Terminal) -> None:
    """Such as a row that a killed run had in flight, until its lease ends."""
    status = QuotaStatus(100, 91, 1, 0, resets(5), True)
    with terminal:
        progress = Progress(340, 8, quiet=False, headroom=None)
        watch(progress, status)
        with progress:
            progress.advance(None)

    assert " 8/340 waiting for 1 in flight, 91 of 100 left, resets in 5 h 0 min\r" in str(terminal)
    assert "waiting" not in str(terminal).rsplit("9/340", 1)[1]


def test_a_bar_that_moves_tells_its_rate(terminal: Terminal) -> None:
    """Though something is in flight at each look."""
    status = QuotaStatus(100, 91, 1, 0, resets(5), True)
    with terminal:
        progress = Progress(340, 8, quiet=False, headroom=None)

        async def main() -> None:
            with progress:
                watching = asyncio.create_task(progress.watch(Braze(status)))  # type: ignore[arg-type]
                for _ in range(40):
                    await asyncio.sleep(0.1)
                    progress.advance(None)
                watching.cancel()

        run_virtual(main())

    assert "waiting" not in str(terminal).partition(" 12/340")[2]


def test_a_limit_of_ones_own_is_what_is_shown(terminal: Terminal) -> None:
    """Answers tell Braze's."""
    with terminal:
        progress = Progress(340, 10, quiet=False, headroom=None, capped=True)
        progress.advance(RateLimit(100, 62, resets(7)))
        watch(progress, QuotaStatus(10, 7, 0, 0, resets(7), True))

    assert "11/340 0.0/s, 7 of 10 left, resets in 7 h 0 min" in str(terminal)
    assert "of 100" not in str(terminal)


def test_a_row_that_is_decided_ends_the_wait(terminal: Terminal) -> None:
    """Even the last frame, which is drawn as the bar goes, tells what its answer told."""
    with terminal:
        progress = Progress(2, 0, quiet=False, headroom=0)
        watch(progress, used_up())
        with progress:
            progress.advance(RateLimit(100, 99, resets(24)))

    assert "waiting, 0 of 100 left" in str(terminal)
    last = str(terminal).rsplit("1/2", 1)[1]
    assert "waiting" not in last
    assert ", 99 of 100 left, resets in 24 h 0 min" in last


def test_lines_stand_above_the_bar(terminal: Terminal) -> None:
    """Without control characters, and else as they are."""
    with terminal, Progress(340, 0, quiet=False, headroom=0) as progress:
        progress.say("failed: [red] :heart: \x1b[2J " + 100 * "x")

    assert f"failed: [red] :heart: \ufffd[2J {100 * 'x'}\n" in str(terminal)


def test_piped_a_wait_is_told_once_for_each_window(capsys: pytest.CaptureFixture[str]) -> None:
    """In a line, with the time of the reset."""
    first, second = used_up(5), used_up(29)
    watch(Progress(340, 0, quiet=False, headroom=0), NOTHING, first, first, second)
    lines = capsys.readouterr().err.splitlines()

    assert 2 == len(lines)
    assert lines[0].startswith("waiting for quota: it resets ")
    assert lines[0].endswith(", in 5 h 0 min")
    assert lines[1].endswith(", in 29 h 0 min")


def test_what_is_under_way_may_still_free_a_slot(capsys: pytest.CaptureFixture[str]) -> None:
    """So that is no wait for the reset yet."""
    status = QuotaStatus(100, 0, 1, 0, resets(5), True)
    watch(Progress(340, 0, quiet=False, headroom=0), status)

    assert "" == capsys.readouterr().err


def test_a_store_that_fails_for_a_moment_is_asked_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The creates meet the same failure, and tell it."""
    braze = watch(Progress(340, 0, quiet=False, headroom=0), StoreError("gone"), used_up())

    assert 4 == braze.asked
    assert capsys.readouterr().err.startswith("waiting for quota: ")


def test_quiet_it_asks_nothing_and_says_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    """No bar, no lines of progress; but what went wrong."""
    progress = Progress(1, 0, quiet=True, headroom=0)
    braze = watch(progress, used_up())
    progress.advance(None)
    progress.say("failed")

    assert (0, "failed\n") == (braze.asked, capsys.readouterr().err)


def test_an_answer_without_headers_leaves_what_was_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And before any was known, nothing is told of it."""
    progress = Progress(3, 0, quiet=False, headroom=0)
    progress.advance(None)
    progress.advance(RateLimit(100, 98, resets(5)))
    progress.advance(None)

    assert [
        "1 of 3 rows",
        "2 of 3 rows, 98 of 100 left",
        "3 of 3 rows, 98 of 100 left",
    ] == capsys.readouterr().err.splitlines()
