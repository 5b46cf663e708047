"""The transcript of the documentation, run in a shell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "batch.md"

#: Seconds of the emulator's day. It begins with the clock's.
WINDOW = 5


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


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
def test_the_transcript_is_true(tmp_path: Path) -> None:
    """What each command shows is what it shows."""
    bin_folder = Path(sys.executable).parent
    shell = subprocess.Popen(
        ["bash", "--noprofile", "--norc"],
        cwd=tmp_path,
        env={"PATH": f"{bin_folder}:{os.environ['PATH']}", "LANG": "C.UTF-8", "TZ": "UTC"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        encoding="utf-8",
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    try:
        for command, shown in steps():
            if any("rows, " in line for line in shown):
                # In the morning, when even who is cautious takes the day before for over.
                time.sleep(WINDOW + 1.0 - time.time() % WINDOW)
            shell.stdin.write(f"{command}\ncode=$?; echo END; (exit $code)\n")
            shell.stdin.flush()
            lines = list[str]()
            while (line := shell.stdout.readline()) != "END\n":
                assert line, f"the shell has ended, after {lines}"
                lines.append(line.rstrip())
            told = f"$ {command}\n" + "\n".join(lines)
            assert len(shown) == len(lines), told
            for expected, line in zip(shown, lines, strict=True):
                assert agree(expected, line), told
    finally:
        os.killpg(shell.pid, 9)
        shell.wait()
        shell.stdin.close()
        shell.stdout.close()
