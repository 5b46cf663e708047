"""The transcript of the documentation, run in a shell."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from braze_sends.cli.progress import LOOK
from tests.clocks import VARIABLE, SharedClock, pass_time
from tests.waiting import PATIENCE, wait_until

PAGE = Path(__file__).parents[2] / "docs" / "batch.md"

ROOT = PAGE.parents[1]

#: Seconds of the emulator's day, which begins with the clock's; and those that are night.
WINDOW, MORNING = 5.0, 1.5


def steps() -> Iterator[tuple[str, list[str]]]:
    """Each command of the page, and the lines that it shows."""
    command, shown = "", list[str]()
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, shown
                command, shown = line[2:], []
            else:
                shown.append(line)
    yield command, shown


def agree(shown: str, line: str) -> bool:
    """Whether a line is the one shown, in which ``…`` stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, shown.split("…"))), line) is not None


class Shell:
    """A shell with a ``braze-sends`` that goes by the test's clock.

    Args:
        folder: where it is.
        clock: the clock.
    """

    def __init__(self, folder: Path, clock: SharedClock) -> None:
        command = folder / "bin" / "braze-sends"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.clocks "$@"\n')
        command.chmod(0o700)
        self._clock, self._folder = clock, folder
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env={
                "PATH": f"{command.parent}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                VARIABLE: str(clock.path),
                "LANG": "C.UTF-8",
                "TZ": "UTC",
                "XDG_CONFIG_HOME": str(folder),  # without profiles
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
        )

    def run(self, command: str, days: int) -> list[str]:
        """Run a command that waits for so many days; the lines that it shows."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{command}\ncode=$?; echo END; (exit $code)\n")
        stdin.flush()
        lines = list[str]()
        if days:
            waiting = threading.Thread(target=self._let_days_pass, args=(days,))
            waiting.start()
        while (line := stdout.readline()) != "END\n":
            assert line, f"the shell has ended, after {lines}"
            lines.append(line.rstrip())
        if days:
            waiting.join(PATIENCE)
        return lines

    def sleep(self) -> None:
        """Until the next morning, when even who is cautious takes the day before for over."""
        self._clock.set((self._clock() // WINDOW + 1) * WINDOW + MORNING)

    def _let_days_pass(self, days: int) -> None:
        """Each when its rows are written, and the batch has said that it waits."""
        output = self._folder / "sends.jsonl"
        before = output.read_bytes().count(b"\n")

        def used_up(day: int) -> bool:
            return output.read_bytes().count(b"\n") == before + 100 * day

        for day in range(1, days + 1):
            wait_until(functools.partial(used_up, day))
            pass_time(self._clock, "batch", LOOK)
            self.sleep()

    def end(self) -> None:
        """With all that it has started."""
        os.killpg(self._process.pid, 9)
        self._process.communicate(timeout=PATIENCE)


@pytest.mark.process
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_the_transcript_is_true(tmp_path: Path, clock: SharedClock) -> None:
    """Each command of the transcript in docs/batch.md shows what the page says."""
    shell = Shell(tmp_path, clock)
    try:
        for command, shown in steps():
            if any("rows, " in line for line in shown):
                shell.sleep()
            days = sum(line.startswith("waiting for quota: ") for line in shown)
            lines = shell.run(command, days)
            told = f"$ {command}\n" + "\n".join(lines)
            assert len(shown) == len(lines), told
            for expected, line in zip(shown, lines, strict=True):
                assert agree(expected, line), told
    finally:
        shell.end()
