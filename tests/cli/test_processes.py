"""The program as its users meet it: real processes, pipes, signals and a terminal."""

from __future__ import annotations

import os
import pty
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from braze_sends.testing import FakeBraze
from tests.cli.conftest import KEY, ROOT, Process, Redirected, Start
from tests.waiting import wait_until


def ended(process: Process, input: str | None = None) -> tuple[int, str, str]:  # noqa: A002  # as in communicate
    """Exit code, stdout and stderr of a process that ends; no traceback, no key."""
    out, err = process.communicate(input)
    assert "Traceback" not in err
    assert KEY not in out + err
    return process.returncode, out, err


@pytest.mark.parametrize("real_time", [True, False])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_emulator_and_create(start: Start, stop: signal.Signals, real_time: bool) -> None:
    """A script can start the emulator, read its URL, use it, and stop it."""
    emulator = start("emulator", "--daily-limit", "1", "--api-key", "made-up", real_time=real_time)
    assert emulator.stdout is not None
    url = emulator.stdout.readline().rstrip("\n")
    env = {"BRAZE_API_KEY": "made-up", "BRAZE_BASE_URL": url}
    created, refused, quota = (
        start("create", "c", "--send-id", "s", env=env),
        start("create", "c", "--send-id", "t", "--api-key-file", "-", "--base-url", url),
        start("quota", env=env),
    )
    outcomes = {ended(created)[0], ended(refused, "made-up\n")[0]}
    known = ended(quota)
    emulator.send_signal(stop)
    code, rest, err = ended(emulator)

    assert {0, 75} == outcomes
    assert (0, "") == (known[0], known[2])
    assert (0, "") == (code, rest)
    assert err.endswith("2 requests, 1 created, 1 over quota\n")


def test_emulator_where_sigint_is_ignored(start: Start) -> None:
    """An emulator that was started with SIGINT ignored goes on after it, and ends by SIGTERM."""
    emulator = start("emulator", "--api-key", "made-up", no_sigint=True)
    assert emulator.stdout is not None
    url = emulator.stdout.readline().rstrip("\n")
    emulator.send_signal(signal.SIGINT)
    env = {"BRAZE_API_KEY": "made-up", "BRAZE_BASE_URL": url}
    code, created, _ = ended(start("create", "c", "--send-id", "s", env=env))
    emulator.send_signal(signal.SIGTERM)

    assert (0, "s\n") == (code, created)
    assert (0, "") == ended(emulator)[:2]


FULL = "error: standard output cannot be written: No space left on device"


@pytest.mark.skipif(sys.platform != "linux", reason="has no /dev/full")
@pytest.mark.parametrize(
    "args",
    [
        ("quota",),
        ("quota", "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("demo",),
        ("emulator",),
        ("batch", "rows.csv", "--dry-run"),
        ("create", "", "--json"),  # an error is printed too
    ],
)
def test_output_that_cannot_be_written_is_an_error(
    redirected: Redirected,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
) -> None:
    """In one line, for every command."""
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("campaign_id,send_id\nc,s\n")
    ended = redirected(">/dev/full", *args)

    assert (1, f"{FULL}\n") == (ended.returncode, ended.stderr)


@pytest.mark.parametrize("args", [[], ["--json"]])
def test_a_send_id_that_cannot_be_printed_is_told(
    redirected: Redirected, fake: FakeBraze, args: list[str]
) -> None:
    """It has cost a slot, and its name is known nowhere else."""
    ended = redirected(">&-", "create", "c", *args)

    ((_, name),) = fake.created
    told = "error: standard output cannot be written: it is closed; created: c, "
    assert (1, f"{told}{name}\n") == (ended.returncode, ended.stderr)


def test_ctrl_c_ends_a_wait_for_quota(start: Start, fake: FakeBraze) -> None:
    """Ctrl-C ends a create that waits for the next window."""
    fake.daily_limit = 0
    create = start("create", "c", "--send-id", "story-1", "--max-wait", "inf")
    wait_until(lambda: fake.refused)
    create.send_signal(signal.SIGINT)
    code, out, err = ended(create)

    assert (130, "") == (code, out)
    assert (
        "stopping: what is under way may end; Ctrl-C once more ends it at once\n"
        "interrupted; to ask for the same send again, pass --send-id story-1\n"
    ) == err


@pytest.mark.parametrize(
    "module", ["braze_sends.cli.app", "braze_sends.client", "aiohttp", "typer", "rich.console"]
)
def test_ctrl_c_while_modules_are_imported(start: Start, tmp_path: Path, module: str) -> None:
    """Ctrl-C before a command has begun ends it with exit code 130 and without a word."""
    (tmp_path / "sitecustomize.py").write_text(AT_AN_IMPORT)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {"PYTHONPATH": path, "INTERRUPT_AT": module}
    command = start("create", "c", "--store", "memory://", real_time=True, env=env)

    assert (130, "", "") == ended(command)


#: Interrupts its own process when the module that ``INTERRUPT_AT`` names is about to be imported.
AT_AN_IMPORT = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
"""


def test_ctrl_c_ends_a_demo(start: Start) -> None:
    """Ctrl-C ends the demo."""
    # In real time, since what is under way ends when its emulator answers.
    demo = start("demo", real_time=True)
    assert demo.stdout is not None
    assert demo.stdout.readline().startswith("Asking an emulator")
    demo.send_signal(signal.SIGINT)

    assert 130 == ended(demo)[0]


def test_prompt_hides_the_key(start: Start, fake: FakeBraze) -> None:
    """On a terminal the key is asked for, and not shown while it is typed."""
    ours, theirs = pty.openpty()
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stderr"), theirs)
    # A session of its own has no other terminal than this one.
    create = start("create", "c", env={"BRAZE_API_KEY": None}, start_new_session=True, **streams)
    os.close(theirs)
    shown = b""
    while b"Braze API key: " not in shown:
        shown += os.read(ours, 1024)
    os.write(ours, f"{KEY}\n".encode())
    out, _ = create.communicate()
    try:
        while more := os.read(ours, 1024):
            shown += more
    except OSError:
        pass  # Linux: the other end is closed
    os.close(ours)

    assert 0 == create.returncode
    assert [("c", out.strip())] == fake.created
    assert b"created, 1 of 2 left until " in shown
    assert KEY.encode() not in shown
