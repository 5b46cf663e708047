"""A batch as its users meet it: a terminal, signals, ``kill -9``, days that pass, large files."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from braze_sends.testing import FakeBraze
from tests.cli.conftest import KEY, Redirected, Start

Emulator = Callable[..., tuple[dict[str, str], Callable[[], str]]]


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
    lines = map(json.loads, Path("sends.jsonl").read_text().splitlines())
    return [(line["campaign_id"], line["send_id"]) for line in lines]


BATCH = ("batch", "calendar.csv", "--output", "sends.jsonl", "--store", "sqlite:///quota.db")


@pytest.fixture
def emulator(start: Start) -> Emulator:
    """Start an emulator in a process of its own; what it says in the end."""

    def emulator(*args: str) -> tuple[dict[str, str], Callable[[], str]]:
        process = start("emulator", "--api-key", KEY, *args)
        assert process.stdout is not None
        env = {"BRAZE_BASE_URL": process.stdout.readline().rstrip("\n")}

        def stop() -> str:
            process.send_signal(signal.SIGTERM)
            return process.communicate(timeout=20)[1].splitlines()[-1]

        return env, stop

    return emulator


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
        return b"".join(self._shown).decode()

    def close(self) -> None:
        self._reader.join(5)
        os.close(self.ours)


def test_340_rows_on_a_quota_of_100_in_a_terminal(start: Start, emulator: Emulator) -> None:
    """Four windows pass: all is created, nothing over quota, the lines complete and in order."""
    pairs = calendar(340)
    env, stop = emulator("--window", "5")
    terminal = Terminal()
    batch = start(*BATCH, "--wait", env={**env, "TERM": "xterm-256color"}, **terminal.streams())
    terminal.started()
    code = batch.wait(120)
    terminal.close()

    assert 0 == code, terminal.shown
    assert pairs == written()
    assert stop().endswith("340 requests, 340 created, 0 over quota")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.shown)
    # Windows are aligned to the clock: the first one may end before its 100 are used.
    assert re.search(r" \d+/340 waiting, 0 of 100 left, resets in \d+ s\r", shown)
    assert re.search(r"\d/340 [0-9.]+/s, \d+ of 100 left, resets in \d+ s\r", shown)
    assert shown.endswith("340 rows: 340 created\r\n")
    assert max(map(len, re.split(r"[\r\n]", shown))) <= 80
    assert terminal.shown.rindex("\x1b[?25h") > terminal.shown.rindex("\x1b[?25l")
    assert KEY not in terminal.shown


def test_no_colour(start: Start, fake: FakeBraze) -> None:
    """``NO_COLOR`` leaves a bar without any."""
    calendar(1)
    terminal = Terminal()
    env = {"TERM": "xterm-256color", "NO_COLOR": "1"}
    batch = start(*BATCH, env=env, **terminal.streams())
    terminal.started()
    code = batch.wait(20)
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
@pytest.mark.parametrize("reader", ["head", "full"])
def test_whoever_listens_the_batch_goes_on(
    environ: dict[str, str | None], fake: FakeBraze, reader: str
) -> None:
    """A terminal or a pipe that has gone costs no line."""
    fake.daily_limit, fake.latency = 100, 0.002
    pairs = calendar(40)
    env = {name: value for name, value in {**os.environ, **environ}.items() if value is not None}
    command = '"$0" "$@" 2>/dev/full' if reader == "full" else '("$0" "$@" 2>&1 >&3; echo $? >code)'
    pipe = "" if reader == "full" else " 3>/dev/null | head -n 1"
    subprocess.run(
        ["sh", "-c", command + pipe, sys.executable, "-m", "braze_sends.cli", *BATCH],
        env=env,
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=30,
    )

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


# --- signals -------------------------------------------------------------------------------------


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_lets_the_request_end_that_is_under_way(
    start: Start, fake: FakeBraze, stop: signal.Signals
) -> None:
    """Exit code 130; its line is there, and nothing after it; a rerun does the rest."""
    calendar(4)
    fake.daily_limit, fake.latency = 100, 0.5
    batch = start(*BATCH)
    wait_until(lambda: len(fake.requests) == 2)
    batch.send_signal(stop)
    out, err = batch.communicate(timeout=20)

    assert (130, "") == (batch.returncode, out)
    assert 2 == len(fake.created) == len(written()) == len(fake.requests)
    assert "stopping: what is under way may end; Ctrl-C once more ends it at once\n" in err
    assert err.endswith("2 left: the same command goes on from here\n")
    fake.latency = 0.0
    assert 0 == start(*BATCH).wait(20)
    assert fake.created == written()
    assert 4 == len(fake.requests)


def test_interrupted_twice_it_ends_at_once(start: Start, fake: FakeBraze) -> None:
    """The rerun asks again for what was under way, which costs nothing more."""
    calendar(3)
    fake.daily_limit, fake.latency = 100, 3600.0
    batch = start(*BATCH, "--timeout", "1")
    wait_until(lambda: len(fake.requests) == 1)
    batch.send_signal(signal.SIGINT)
    assert batch.stderr is not None
    assert batch.stderr.readline().startswith("stopping: ")
    batch.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert 130 == batch.wait(20)
    assert time.monotonic() - started < 0.9
    fake.latency = 0.0
    assert 0 == start(*BATCH).wait(30)
    assert 3 == len(set(fake.created)) == len(fake.created)
    assert fake.created == written()


def test_a_wait_for_quota_ends_at_ctrl_c(start: Start, fake: FakeBraze) -> None:
    """Nothing is under way, so it ends at once."""
    calendar(3)
    batch = start(*BATCH, "--wait")
    assert batch.stderr is not None
    while not (line := batch.stderr.readline()).startswith("waiting for quota: it resets "):
        assert line
    batch.send_signal(signal.SIGINT)

    assert 130 == batch.wait(20)
    assert (2, 2) == (len(fake.requests), len(written()))


# --- kill -9 -------------------------------------------------------------------------------------


def test_killed_30_times_every_row_is_there_once(start: Start, emulator: Emulator) -> None:
    """On the emulator and in the output, whatever the moment was."""
    pairs = calendar(800)
    env, stop = emulator("--daily-limit", "10000", "--latency", "0.01")
    for _ in range(30):
        batch = start(*BATCH, "--timeout", "0.5", "--quiet", env=env)
        time.sleep(
            random.uniform(0.2, 1.7)
        )  # it starts, sends, or waits for what the last one held
        batch.kill()
        assert -signal.SIGKILL == batch.wait(10)
    assert 30 < len(written()) < len(pairs)
    code = start(*BATCH, "--timeout", "0.5", "--quiet", env=env).wait(60)

    assert 0 == code
    assert Counter(pairs) == Counter(written())
    last = stop()
    assert ", 800 created, 0 over quota" in last
