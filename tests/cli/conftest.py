"""An emulator that a command can talk to, ways to run a command, and the clock that it goes by."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from braze_sends import MemoryStore, SQLiteStore
from braze_sends.cli.app import app
from braze_sends.testing import FakeBraze
from tests.clocks import VARIABLE, ClockLoop, SharedClock
from tests.servers import braze, running
from tests.waiting import PATIENCE

KEY = "s3cr3t-key-of-mine"
ROOT = Path(__file__).parents[2]

Run = Callable[..., Result]
Start = Callable[..., "Process"]
Redirected = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing in the environment says how a terminal is to be dealt with; no file has profiles."""
    monkeypatch.delenv("BRAZE_SENDS_PROFILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def clock(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SharedClock]:
    """The clock of commands and of the emulator: it shows noon until the test moves it.

    The commands of this process go by it, and those that ``start`` starts: their wall clock, their
    event loop and their stores.
    """
    path = tmp_path_factory.mktemp("clock") / "clock"
    # Not the test's ``monkeypatch``, which some tests undo in between.
    with SharedClock(path) as clock, pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", clock)
        patch.setattr(asyncio.events, "new_event_loop", lambda: ClockLoop(clock))
        for store in (MemoryStore, SQLiteStore):
            defaults: Any = store.__init__.__kwdefaults__  # bound at import
            patch.setitem(defaults, "clock", clock)
            patch.setitem(defaults, "wall", clock)
        yield clock


@pytest.fixture
def served() -> Iterator[tuple[FakeBraze, asyncio.AbstractEventLoop]]:
    """An emulator with two slots, in a thread of its own, and its event loop."""
    fake = braze(api_key=KEY, daily_limit=2)
    with running(fake) as loop:
        yield fake, loop


@pytest.fixture
def fake(served: tuple[FakeBraze, asyncio.AbstractEventLoop]) -> FakeBraze:
    """The emulator, in a thread of its own, since commands run their own loops."""
    return served[0]


class Gate:
    """What ``Fault(delay=gate.event)`` or ``Fault(stall=gate.event)`` waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.event = asyncio.Event()

    def open(self) -> None:
        """Let the emulator go on. From any thread."""
        self._loop.call_soon_threadsafe(self.event.set)


@pytest.fixture
def gate(served: tuple[FakeBraze, asyncio.AbstractEventLoop]) -> Gate:
    """A gate of the emulator, closed at first."""
    return Gate(served[1])


@pytest.fixture
def environ(fake: FakeBraze) -> dict[str, str | None]:
    """What points a command to the emulator."""
    return {
        "BRAZE_API_KEY": KEY,
        "BRAZE_BASE_URL": fake.base_url,
        "BRAZE_SENDS_STORE": None,
    }


@pytest.fixture
def run(environ: dict[str, str | None]) -> Run:
    """Run a command in this process; whatever it says, the key is not in it."""

    def run(*args: str, **options: Any) -> Result:
        env = environ | options.pop("env", {})
        result = CliRunner(env=env).invoke(app, args, **options)
        assert KEY not in result.output
        assert "Traceback" not in result.output
        return result

    return run


class Process(subprocess.Popen[str]):
    """A command in a process of its own."""

    told: tuple[str | None, str | None] = (None, None)

    def communicate(
        self,
        input: str | None = None,  # noqa: A002  # as of Popen
        timeout: float | None = PATIENCE,
    ) -> tuple[str, str]:
        """As of ``Popen``; what was read is kept for ``end``."""
        self.told = super().communicate(input, timeout)
        return self.told[0] or "", self.told[1] or ""

    def wait(self, timeout: float | None = PATIENCE) -> int:
        """As of ``Popen``."""
        return super().wait(timeout)

    def end(self) -> None:
        """Kill it if it runs, and print what became of it, for a test that fails."""
        running = self.poll() is None
        self.kill()
        code = self.wait()
        print(f"$ {self.args!r}: {'killed by the fixture' if running else f'exit code {code}'}")  # noqa: T201
        pipes = {"stdout": self.stdout, "stderr": self.stderr}
        for (name, pipe), told in zip(pipes.items(), self.told, strict=True):
            left = pipe.read() if pipe is not None and not pipe.closed else told
            print(f"{name}: {left!r}")  # noqa: T201
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def start(environ: dict[str, str | None], clock: SharedClock) -> Iterator[Start]:
    """Start a command as a process of its own.

    It goes by the test's clock, so that no timeout passes because the machine is busy; with
    ``real_time=True`` by the machine's. With ``no_sigint=True`` it starts with SIGINT ignored, as
    with ``nohup`` or behind the ``&`` of a script.
    """
    started: list[Process] = []

    def start(
        *args: str, real_time: bool = False, no_sigint: bool = False, **options: Any
    ) -> Process:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {VARIABLE: str(clock.path), "PYTHONPATH": path}
        env = {**os.environ, **environ, **ours, **options.pop("env", {})}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        module = "braze_sends.cli" if real_time else "tests.clocks"
        shell = ["sh", "-c", 'trap "" INT; exec "$0" "$@"'] if no_sigint else []
        process = Process(  # our own program
            [*shell, sys.executable, "-m", module, *args],
            env={name: value for name, value in env.items() if value is not None},
            text=True,
            **(pipes | options),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.end()


@pytest.fixture
def redirected(environ: dict[str, str | None]) -> Redirected:
    """Run a command to its end, with streams that a shell redirects, such as ``2>&-``."""
    env = {name: value for name, value in {**os.environ, **environ}.items() if value is not None}

    def redirected(how: str, *args: str) -> subprocess.CompletedProcess[str]:
        shell = ["sh", "-c", f'exec "$0" "$@" {how}']
        command = [*shell, sys.executable, "-m", "braze_sends.cli", *args]
        ended = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        print(f"$ {' '.join(args)} {how}: exit code {ended.returncode}\n{ended.stderr}")  # noqa: T201
        assert "Traceback" not in ended.stderr
        assert KEY not in ended.stdout + ended.stderr
        return ended

    return redirected
