"""An emulator that a command can talk to, and ways to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from braze_sends.cli.app import app
from braze_sends.testing import FakeBraze
from tests.servers import braze, running

KEY = "s3cr3t-key-of-mine"

Run = Callable[..., Result]
Start = Callable[..., "subprocess.Popen[str]"]
Redirected = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment says how a terminal is to be dealt with."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Iterator[FakeBraze]:
    """An emulator with two slots, in a thread of its own, since commands run their own loops."""
    fake = braze(api_key=KEY, daily_limit=2)
    with running(fake):
        yield fake


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


@pytest.fixture
def start(environ: dict[str, str | None]) -> Iterator[Start]:
    """Start a command as a process of its own."""
    started = []

    def start(*args: str, **options: Any) -> subprocess.Popen[str]:
        env = {**os.environ, **environ, **options.pop("env", {})}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(  # our own program
            [sys.executable, "-m", "braze_sends.cli", *args],
            env={name: value for name, value in env.items() if value is not None},
            text=True,
            **(pipes | options),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.fixture
def redirected(environ: dict[str, str | None]) -> Redirected:
    """Run a command to its end, with streams that a shell redirects, such as ``2>&-``."""
    env = {name: value for name, value in {**os.environ, **environ}.items() if value is not None}

    def redirected(how: str, *args: str) -> subprocess.CompletedProcess[str]:
        shell = ["sh", "-c", f'exec "$0" "$@" {how}']
        command = [*shell, sys.executable, "-m", "braze_sends.cli", *args]
        ended = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=20, check=False
        )
        assert "Traceback" not in ended.stderr
        assert KEY not in ended.stdout + ended.stderr
        return ended

    return redirected
