"""The examples as processes: a server with its workers, its log, and the signals that it gets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.servers import free_port
from tests.waiting import PATIENCE
from tests.world import KEY

EXAMPLES = Path(__file__).parents[2] / "examples"


@attrs.frozen
class App:
    """How an example is served.

    Attributes:
        name: the framework.
        command: a module and its arguments, after ``python -m``.
        logs: options that write a line ``pid=N`` for each request.
        bind: the option that takes the port.
    """

    name: str
    command: tuple[str, ...]
    logs: tuple[str, ...]
    bind: str


#: Not forever for keep-alive connections, and not just five seconds for a worker on a busy machine.
PATIENT = ("--timeout-graceful-shutdown=10", "--timeout-worker-healthcheck=120")
UVICORN = ("--log-config", "uvicorn.json")
GUNICORN = ("--access-logfile", "-", "--access-logformat")
#: Seconds that gunicorn gives to keep-alive connections; and no socket in the home directory.
GRACE = ("--graceful-timeout", "60", "--no-control-socket")
APPS = {
    app.name: app
    for app in (
        App("fastapi", ("uvicorn", "fastapi_app:app", *PATIENT), UVICORN, "--port={}"),
        App("litestar", ("uvicorn", "litestar_app:app", *PATIENT), UVICORN, "--port={}"),
        App(
            "aiohttp",
            ("gunicorn", "aiohttp_app:make_app", "-k", "aiohttp.GunicornWebWorker", *GRACE),
            (*GUNICORN, "pid=%P"),
            "--bind=127.0.0.1:{}",
        ),
        App(
            "django",
            ("gunicorn", "django_app:app", "-k", "asgi", *GRACE),
            (*GUNICORN, "pid=%(p)s"),
            "--bind=127.0.0.1:{}",
        ),
    )
}

_BEGUN = re.compile(r"(?:Started server process \[|Booting worker with pid: )(\d+)")
_ENDED = re.compile(r"(?:Finished server process \[|Worker exiting \(pid: )(\d+)")
_SERVED = re.compile(r"pid=<?(\d+)")


@attrs.define
class Process:
    """A process of an example, and what it has written.

    Attributes:
        process: the process that was started; its workers are its children.
        log: what they all write.
        url: where it listens, if it does.
    """

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def text(self) -> str:
        """The log."""
        return self.log.read_text(errors="replace")

    def workers(self) -> set[int]:
        """The workers of a web server that have begun and not ended, by their PIDs."""
        text = self.text()
        return {*map(int, _BEGUN.findall(text))} - {*map(int, _ENDED.findall(text))}

    def served_by(self, since: int = 0) -> set[int]:
        """The workers that answered requests; those logged at or after a place in the log."""
        return {*map(int, _SERVED.findall(self.text(), since))}

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started, as an operator does."""
        self.process.send_signal(number)

    def ended(self) -> bool:
        """Whether it has; not what its exit code is, in which servers differ."""
        return self.process.poll() is not None


def environment(base_url: str, store: str) -> dict[str, str]:
    """What the examples are configured by."""
    names = {"BRAZE_API_KEY": KEY, "BRAZE_BASE_URL": base_url, "BRAZE_SENDS_STORE": store}
    return os.environ | names | {"PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def started(command: list[str], log: Path, env: dict[str, str]) -> Iterator[Process]:
    """Run ``python -m command`` in the folder of the examples; at the end it is killed."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=EXAMPLES,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it started can be killed with it
        )
    try:
        yield Process(process, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


@contextlib.contextmanager
def served(
    app: App, folder: Path, env: dict[str, str], workers: int = 4, *options: str
) -> Iterator[Process]:
    """Run a web server; the caller waits until it answers."""
    (folder / "uvicorn.json").write_text(json.dumps(_log_config()))
    port = free_port()
    logs = [str(folder / part) if part.endswith(".json") else part for part in app.logs]
    command = [*app.command, f"--workers={workers}", app.bind.format(port), *logs, *options]
    with started(command, folder / f"{app.name}.log", env) as process:
        process.url = f"http://127.0.0.1:{port}"
        yield process


def _log_config() -> dict[str, object]:
    # Handlers of its own for each logger, since a framework may put others in place of the root's.
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"access": {"format": "pid=%(process)d"}},
        "handlers": {
            "plain": {"class": "logging.StreamHandler"},
            "access": {"class": "logging.StreamHandler", "formatter": "access"},
        },
        "loggers": {
            "uvicorn": {"handlers": ["plain"], "level": "INFO", "propagate": False},
            "uvicorn.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
        },
    }
