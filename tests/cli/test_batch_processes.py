"""A batch as its users meet it: a terminal, signals, ``kill -9``, days that pass, large files."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pty
import random
import re
import signal
import struct
import sys
import termios
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from braze_sends.cli.progress import FRAME, LOOK
from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import KEY, Gate, Process, Redirected, Start
from tests.clocks import NOON, SharedClock, pass_time
from tests.servers import DAY
from tests.waiting import PATIENCE, wait_until


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own."""
    monkeypatch.chdir(tmp_path)


def calendar(rows: int, pairs: int | None = None) -> list[tuple[str, str]]:
    """Write ``calendar.csv``; the pairs in it, in their order."""
    names = [("letters", f"issue-{n % (pairs or rows)}") for n in range(rows)]
    text = "".join(f"{campaign},{send}\n" for campaign, send in names)
    Path("calendar.csv").write_text(f"campaign_id,send_id\n{text}")
    return names[:pairs]


def written() -> list[tuple[str, str]]:
    """The pairs that have a whole line."""
    if not (path := Path("sends.jsonl")).exists():
        return []
    whole = path.read_text().rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines() if line]
    return [(line["campaign_id"], line["send_id"]) for line in lines]


#: Seconds after which a killed batch's leases have ended: an attempt's timeout and five more.
LEASE = 16.0
BATCH = ("batch", "calendar.csv", "--output", "sends.jsonl", "--store", "sqlite:///quota.db")


# --- a terminal ----------------------------------------------------------------------------------


class Terminal:
    """A pseudo-terminal of 80 columns, and all that was shown on it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._shown: list[bytes] = []
        self._reader = threading.Thread(target=self._read)

    def streams(self) -> dict[str, Any]:
        return {
            **dict.fromkeys(("stdin", "stdout", "stderr"), self.theirs),
            "start_new_session": True,
        }

    def started(self) -> None:
        os.close(self.theirs)
        self._reader.start()

    def _read(self) -> None:
        try:
            while data := os.read(self.ours, 65536):
                self._shown.append(data)
        except OSError:
            pass  # Linux: the other end is closed

    @property
    def shown(self) -> str:
        return b"".join(self._shown).decode(errors="replace")  # a character may be half read

    @property
    def words(self) -> str:
        """What is shown, without colours and the like."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.shown)

    def close(self) -> None:
        self._reader.join(PATIENCE)
        os.close(self.ours)


def test_340_rows_on_a_quota_of_100_in_a_terminal(
    start: Start, fake: FakeBraze, gate: Gate, clock: SharedClock
) -> None:
    """Four days pass: 100, 100, 100 and 40 are created, nothing over quota, the lines complete and
    in order; the bar tells the rate, what is left, and the wait."""
    fake.daily_limit = 100
    fake.fault_for = lambda request: Fault(delay=gate.event) if len(fake.requests) == 50 else None
    pairs = calendar(340)
    terminal = Terminal()
    batch = start(*BATCH, "--wait", env={"TERM": "xterm-256color"}, **terminal.streams())
    terminal.started()
    wait_until(lambda: len(fake.requests) == 50 and len(written()) == 49)
    clock.advance(FRAME)
    wait_until(lambda: re.search(r" 49/340 .*, 51 of 100 left, resets in ", terminal.words))
    gate.open()

    def has(lines: int) -> bool:
        return len(written()) == lines

    for day in (1, 2, 3):
        wait_until(functools.partial(has, 100 * day))
        pass_time(clock, "batch", LOOK)
        clock.set(NOON + day * DAY)
    code = batch.wait()
    terminal.close()

    assert 0 == code, terminal.shown
    assert pairs == written() == fake.created
    assert [100, 100, 100, 40] == list(fake.model.created_by_window.values())
    assert (340, 0) == (len(fake.requests), fake.refused)
    assert re.search(r" 49/340 [0-9.]+/s, 51 of 100 left, resets in 12 h 0 min\r", terminal.words)
    for rows in (100, 200, 300):
        assert f" {rows}/340 waiting, 0 of 100 left, resets in 11 h 59 min\r" in terminal.words
    assert terminal.words.endswith("340 rows: 340 created\r\n")
    assert max(map(len, re.split(r"[\r\n]", terminal.words))) <= 80
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")
    assert KEY not in terminal.shown


def test_no_colour(start: Start, fake: FakeBraze) -> None:
    """``NO_COLOR`` leaves a bar without any."""
    calendar(1)
    terminal = Terminal()
    env = {"TERM": "xterm-256color", "NO_COLOR": "1"}
    batch = start(*BATCH, env=env, **terminal.streams())
    terminal.started()
    code = batch.wait()
    terminal.close()

    assert 0 == code
    assert "1/1" in terminal.shown
    assert [] == re.findall(r"\x1b\[[0-9;]*m", terminal.shown)


def test_what_is_closed_is_no_trouble(redirected: Redirected, fake: FakeBraze) -> None:
    """Nothing to read is an empty file, and what cannot be told is not."""
    fake.daily_limit = 100
    pairs = calendar(3)

    assert 0 == redirected("2>&-", *BATCH).returncode
    assert pairs == fake.created == written()
    Path("sends.jsonl").unlink()
    assert 0 == redirected(">&-", *BATCH).returncode
    assert pairs == fake.created == written()
    empty = redirected("<&-", "batch", "-")
    assert (2, True) == (empty.returncode, "error: standard input is empty" in empty.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="has no /dev/full")
def test_standard_error_that_is_full(redirected: Redirected, fake: FakeBraze) -> None:
    """A batch whose standard error takes nothing loses no line."""
    fake.daily_limit = 100
    pairs = calendar(40)

    assert 0 == redirected("2>/dev/full", *BATCH).returncode
    assert pairs == fake.created == written()


def test_a_reader_of_standard_error_that_has_gone(
    start: Start, fake: FakeBraze, gate: Gate
) -> None:
    """A batch goes on when nobody reads its progress any more, as after ``2>&1 | head -n 1``."""
    fake.daily_limit = 100
    fake.fault_for = lambda request: Fault(delay=gate.event) if len(fake.requests) > 4 else None
    pairs = calendar(40)
    batch = start(*BATCH)
    assert batch.stderr is not None
    first = batch.stderr.readline()
    batch.stderr.close()
    gate.open()

    assert (0, "4 of 40 rows, 96 of 100 left\n") == (batch.wait(), first)
    assert pairs == fake.created == written()


@pytest.mark.parametrize(("number", "name"), [(1, "output"), (2, "error")])
def test_an_output_that_is_a_standard_stream_too(
    redirected: Redirected, fake: FakeBraze, number: int, name: str
) -> None:
    """Each would overwrite what the other has written, so nothing is sent."""
    calendar(3)
    args = ("batch", "calendar.csv", "--output", "file", "--json")
    ended = redirected(f"{number}>file", *args)
    told = ended.stderr + Path("file").read_text() + ended.stdout

    assert (1, []) == (ended.returncode, fake.requests)
    assert f"file is where standard {name} goes" in told


@pytest.mark.skipif(sys.platform != "linux", reason="has no /dev/full")
def test_a_summary_that_cannot_be_written(redirected: Redirected, fake: FakeBraze) -> None:
    """Is an error in one line; the lines are there."""
    fake.daily_limit = 100
    pairs = calendar(3)
    ended = redirected(">/dev/full", *BATCH, "--json", "--quiet")

    assert (1, "error: standard output cannot be written: No space left on device\n") == (
        ended.returncode,
        ended.stderr,
    )
    assert pairs == written()


def test_another_limit_of_braze_does_not_end_a_batch(
    start: Start, fake: FakeBraze, clock: SharedClock
) -> None:
    """A batch goes on when the pause after a 429 is over, where slots of the day are left."""
    pairs = calendar(6)
    fake.daily_limit = 100
    fake.script(None, None, Fault(status=429))
    batch = start(*BATCH, "--quiet", "--timeout", "1000")
    wait_until(lambda: has_ended(batch, clock))

    assert ("", "", 0) == (*batch.communicate(), batch.returncode)
    assert pairs == written() == fake.created


def has_ended(batch: Process, clock: SharedClock) -> bool:
    """Whether a batch has ended; else some time passes for it."""
    clock.advance(0.05)
    return batch.poll() is not None


def test_when_nothing_says_when_to_come_back(
    start: Start, fake: FakeBraze, clock: SharedClock
) -> None:
    """A row that is refused again after the pause, without a time, ends a batch with code 75."""
    calendar(1)
    fake.script(*[Fault(status=429, headers="missing")] * 2)
    batch = start(*BATCH, "--timeout", "1000")
    wait_until(lambda: has_ended(batch, clock))
    _, err = batch.communicate()

    assert (75, 2) == (batch.returncode, len(fake.requests))
    assert "1 left; come back later: the same command goes on from here\n" in err


# --- signals -------------------------------------------------------------------------------------


def said(batch: Process, beginning: str) -> str:
    """The next line on standard error that begins so."""
    assert batch.stderr is not None
    while not (line := batch.stderr.readline()).startswith(beginning):
        assert line, f"standard error has ended without {beginning!r}"
    return line


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_lets_the_request_end_that_is_under_way(
    start: Start, fake: FakeBraze, gate: Gate, stop: signal.Signals
) -> None:
    """Exit code 130; its line is there, and nothing after it; a rerun does the rest."""
    calendar(4)
    fake.daily_limit = 100
    fake.script(None, Fault(stall=gate.event))
    batch = start(*BATCH)
    wait_until(lambda: len(fake.requests) == 2)
    batch.send_signal(stop)
    line = said(batch, "stopping: ")
    gate.open()
    out, err = batch.communicate()

    assert (130, "") == (batch.returncode, out)
    assert "stopping: what is under way may end; Ctrl-C once more ends it at once\n" == line
    assert 2 == len(fake.created) == len(written()) == len(fake.requests)
    assert "\n2 left: the same command goes on from here\n  braze-sends batch calendar.csv " in err
    assert 0 == start(*BATCH).wait()
    assert fake.created == written()
    assert 4 == len(fake.requests)


def test_where_sigint_is_ignored_sigterm_stops_it(
    start: Start, fake: FakeBraze, gate: Gate
) -> None:
    """A batch that was started with SIGINT ignored goes on after it, and stops at SIGTERM."""
    calendar(4)
    fake.daily_limit = 100

    def interrupt(request: object) -> Fault | None:
        if len(fake.requests) == 1:
            batch.send_signal(signal.SIGINT)
        return Fault(stall=gate.event) if len(fake.requests) == 2 else None

    fake.fault_for = interrupt
    batch = start(*BATCH, no_sigint=True)
    wait_until(lambda: len(fake.requests) == 2)
    batch.send_signal(signal.SIGTERM)
    said(batch, "stopping: ")
    gate.open()

    assert 130 == batch.wait()
    assert 2 == len(fake.created) == len(written()) == len(fake.requests)


def test_interrupted_twice_it_ends_at_once(
    start: Start, fake: FakeBraze, gate: Gate, clock: SharedClock
) -> None:
    """The rerun asks again for what was under way, which costs nothing more."""
    calendar(3)
    fake.daily_limit = 100
    fake.script(Fault(stall=gate.event))  # it is never opened, and no timeout passes
    batch = start(*BATCH)
    wait_until(lambda: len(fake.requests) == 1)
    batch.send_signal(signal.SIGINT)
    said(batch, "stopping: ")
    batch.send_signal(signal.SIGINT)

    assert 130 == batch.wait()
    assert [] == written()
    clock.advance(LEASE)
    assert 0 == start(*BATCH).wait()
    assert 3 == len(set(fake.created)) == len(fake.created)
    assert (4, fake.created) == (len(fake.requests), written())


def test_a_wait_for_quota_ends_at_ctrl_c(start: Start, fake: FakeBraze, clock: SharedClock) -> None:
    """Nothing is under way, so it ends, though the quota is never back."""
    calendar(3)
    batch = start(*BATCH, "--wait")
    wait_until(lambda: len(written()) == 2)
    clock.advance(LOOK)
    said(batch, "waiting for quota: it resets ")
    batch.send_signal(signal.SIGINT)

    assert 130 == batch.wait()
    assert (2, 2) == (len(fake.requests), len(written()))


# --- kill -9 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_row_in_flight_at_a_kill_keeps_no_other_waiting(
    start: Start, fake: FakeBraze, gate: Gate, clock: SharedClock, concurrency: int
) -> None:
    """Other rows go on while the leases of a killed batch run, and its rows are not lost."""
    pairs = calendar(9)
    fake.daily_limit = 20
    fake.fault_for = lambda request: Fault(stall=gate.event) if len(fake.requests) > 1 else None
    killed = start(*BATCH, "--quiet", "--concurrency", f"{concurrency}")
    wait_until(lambda: len(fake.requests) == 1 + concurrency and len(written()) == 1)
    killed.kill()
    killed.wait()
    fake.fault_for = None
    rerun = start(*BATCH, "--quiet", "--concurrency", f"{concurrency}")
    wait_until(lambda: len(written()) == 9 - concurrency)  # while the clock stands still
    first = written()
    clock.advance(LEASE)
    ended = rerun.communicate(), rerun.returncode

    assert {pairs[0], *pairs[1 + concurrency :]} == {*first}
    assert (("", ""), 0) == ended
    assert Counter(pairs) == Counter(written()) == Counter(fake.created)
    gate.open()


@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.long)])
def test_killed_at_any_moment_every_row_is_there_once(
    start: Start, fake: FakeBraze, gate: Gate, clock: SharedClock, kills: int
) -> None:
    """On the emulator and in the output, whatever the moment was: before the first request, amid
    one that was or was not handled, or between two."""
    fake.daily_limit = 10_000
    rows = 20 * kills
    pairs = calendar(rows)

    def killed(after: int, hang: Fault) -> None:
        """Run it, and kill it when so many requests have arrived; it gets a few more at most."""
        arrived, last = 0, after + random.randrange(1, 4)

        def fault_for(request: object) -> Fault | None:
            nonlocal arrived
            arrived += 1
            return hang if arrived >= last else None

        fake.fault_for = fault_for
        batch = start(*BATCH, "--quiet")
        wait_until(lambda: arrived >= after or batch.poll() is not None)
        batch.kill()
        assert batch.wait() in (-signal.SIGKILL, 75)
        clock.advance(LEASE)

    hangs = [Fault(delay=gate.event), Fault(stall=gate.event)]
    killed(12, hangs[0])
    for _ in range(kills - 1):
        killed(random.randrange(12), random.choice(hangs))
    assert 10 <= len(written()) < rows
    fake.fault_for = None
    gate.open()
    # At the hundredth row a limit above 100 is not known to be ours before all doubts are settled.
    while 75 == (last := start(*BATCH, "--quiet")).wait():
        clock.advance(LEASE)

    assert ("", "", 0) == (*last.communicate(), last.returncode)
    assert Counter(pairs) == Counter(written())
    assert (Counter(pairs), 0) == (Counter(fake.created), fake.refused)


def test_a_killed_run_leaves_a_csv_that_the_next_one_brings_up_to_date(
    start: Start, fake: FakeBraze, gate: Gate, clock: SharedClock
) -> None:
    """The lines that were written are beside it, so nothing is created twice."""
    fake.daily_limit = 100
    pairs = calendar(4)
    command = ("batch", "calendar.csv", "--output", "sends.csv", "--store", "sqlite:///quota.db")
    fake.fault_for = lambda request: Fault(delay=gate.event) if len(fake.requests) == 3 else None
    batch = start(*command)
    wait_until(lambda: len(fake.requests) == 3)
    batch.kill()
    batch.wait()
    assert not Path("sends.csv").exists()
    assert 2 == len(Path("sends.csv.jsonl").read_text().splitlines())
    gate.open()
    fake.fault_for = None
    clock.advance(60)  # the lease of the third row has run out

    again = start(*command)
    again.communicate()
    rows = Path("sends.csv").read_text("utf-8-sig").splitlines()[1:]
    assert 0 == again.returncode
    assert sorted(pairs) == sorted((row.split(",")[0], row.split(",")[1]) for row in rows)
    assert sorted(pairs) == sorted(fake.created)
