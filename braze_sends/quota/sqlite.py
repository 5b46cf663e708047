"""The quota in an SQLite file: for the workers of one host, and over restarts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.quota.bucket import Bucket
from braze_sends.quota.codec import dump, load_bucket, load_remembered
from braze_sends.quota.store import MEMORY, STATE_KEPT, Remembered, Transaction

T = TypeVar("T")

#: Seconds to wait for another process's write; 64 that wake at once come close to 5.
BUSY_TIMEOUT = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS clock (boot TEXT PRIMARY KEY, origin REAL NOT NULL);
CREATE TABLE IF NOT EXISTS quota (
    workspace TEXT PRIMARY KEY, state TEXT NOT NULL, expires REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS pair (
    workspace TEXT, pair TEXT, memory TEXT NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (workspace, pair)
);
CREATE INDEX IF NOT EXISTS pair_expires ON pair (expires);
"""


class SQLiteStore:
    """The quota in a file that the processes of one host share.

    A transaction that changes nothing only reads. All of SQLite happens in a thread of its own, so
    the event loop goes on while another process holds the write lock. The file is opened by the
    first transaction, and again after a fork.

    Args:
        path: the file; it is created, readable by its owner alone. Not on a network file system,
            whose locks SQLite cannot trust: https://www.sqlite.org/faq.html#q5
        clock: a steady clock that all processes of the host share, in seconds.
        wall: the wall clock, in epoch seconds.
    """

    shared = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(path)
        if not str(path) or str(path) == ":memory:":
            raise ConfigurationError("SQLiteStore needs a file; for memory take a MemoryStore")
        self._clock = clock
        self._wall = wall
        self._file: _File | None = None

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self._path)!r})"

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """See ``Store.transact``.

        Raises:
            StoreError: the file is damaged, read-only, full, or locked for 30 s.
        """
        if self._file is None or self._file.pid != os.getpid():
            # The thread of its parent is not there in a fork.
            self._file = _File(self._path, self._clock, self._wall)
        file = self._file
        try:
            return await asyncio.get_running_loop().run_in_executor(
                file.thread, file.transact, workspace, pairs, change
            )
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}; {_advice(error)}") from error
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}; {_ADVICE['']}") from error

    async def close(self) -> None:
        """Close the file; it is opened again if need be."""
        file, self._file = self._file, None
        if file is not None and file.pid == os.getpid():
            await asyncio.get_running_loop().run_in_executor(file.thread, file.close)
            file.thread.shutdown(wait=False)


class _File:
    """An open file. All but ``__init__`` runs in its thread."""

    def __init__(self, path: Path, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.pid = os.getpid()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="braze_sends-sqlite")
        self._path, self._clock, self._wall = path, clock, wall
        self._origin = 0.0
        self._connection: sqlite3.Connection | None = None

        self.lock = threading.Lock()
        _files.add(self)

    def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        with self.lock:
            return self._transact(self._connection or self._open(), workspace, pairs, change)

    def _transact(
        self,
        connection: sqlite3.Connection,
        workspace: str,
        pairs: Collection[str],
        change: Callable[[Transaction], T],
    ) -> T:
        transaction = self._read(connection, workspace, pairs)
        untouched, before = dump(transaction.bucket), dict(transaction.pairs)
        result = change(transaction)
        if dump(transaction.bucket) == untouched and transaction.pairs == before:
            return result
        # Only now a write lock; and what was read before it may be old.
        connection.execute("BEGIN IMMEDIATE")
        try:
            transaction = self._read(connection, workspace, pairs)
            before = dict(transaction.pairs)
            result = change(transaction)
            self._write(connection, workspace, transaction, before)
            connection.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back by itself.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        return result

    def _read(
        self, connection: sqlite3.Connection, workspace: str, pairs: Collection[str]
    ) -> Transaction:
        now = self._clock() + self._origin
        row = connection.execute(
            "SELECT state FROM quota WHERE workspace = ?", (workspace,)
        ).fetchone()
        bucket = load_bucket(row[0]) if row else Bucket(offset=self._wall() - now)
        memories: dict[str, Remembered] = {}
        for pair in pairs:
            found = connection.execute(
                "SELECT memory FROM pair WHERE workspace = ? AND pair = ? AND expires > ?",
                (workspace, pair, now),
            ).fetchone()
            if found:
                memories[pair] = load_remembered(found[0])
        return Transaction(now, bucket, memories)

    def _write(
        self,
        connection: sqlite3.Connection,
        workspace: str,
        transaction: Transaction,
        before: dict[str, Remembered],
    ) -> None:
        now = transaction.now
        connection.execute(
            "INSERT OR REPLACE INTO quota VALUES (?, ?, ?)",
            (workspace, dump(transaction.bucket), now + STATE_KEPT),
        )
        connection.executemany(
            "INSERT OR REPLACE INTO pair VALUES (?, ?, ?, ?)",
            [
                (workspace, pair, dump(memory), now + MEMORY)
                for pair, memory in transaction.pairs.items()
                if before.get(pair) != memory
            ],
        )
        connection.execute("DELETE FROM pair WHERE expires <= ?", (now,))
        connection.execute("DELETE FROM quota WHERE expires <= ?", (now,))

    def _open(self) -> sqlite3.Connection:
        # Created with its mode before SQLite sees it; the -wal and -shm files take after it.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            self._write_ahead(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
            # The steady clock counts from the host's start; what it reads then is kept, so that
            # times go on over a restart, and all processes of one start agree.
            connection.execute(
                "INSERT OR IGNORE INTO clock VALUES (?, ?)",
                (_boot(), self._wall() - self._clock()),
            )
            (self._origin,) = connection.execute(
                "SELECT origin FROM clock WHERE boot = ?", (_boot(),)
            ).fetchone()
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._finalizer = weakref.finalize(self, connection.close)
        return connection

    def _write_ahead(self, connection: sqlite3.Connection) -> None:
        # Changing the mode asks for the file alone, and does not wait for it by itself.
        end = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.01)
            else:
                return

    def close(self) -> None:
        with self.lock:
            self.close_connection()

    def close_connection(self) -> None:
        if self._connection is not None:
            self._finalizer()
            self._connection = None


# No connection may cross a fork: SQLite notes in memory which locks its process holds, and the
# child would count on those of its parent. https://www.sqlite.org/howtocorrupt.html section 2.6
_files: weakref.WeakSet[_File] = weakref.WeakSet()
_held: list[_File] = []


def _before_fork() -> None:
    for file in list(_files):
        file.lock.acquire()  # a transaction under way ends first
        file.close_connection()
        _held.append(file)


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()


with contextlib.suppress(AttributeError):  # Windows has no forks
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )


def _boot() -> str:
    """Names this start of the host, as far as it can be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Where there is no such file: the moment of the start, by the wall clock, to ten minutes.
        return f"{(time.time() - time.monotonic()) // 600:.0f}"


_ADVICE = {
    "readonly": "make the file and its folder writable",
    "full": "free some space",
    "locked": "another program holds its lock; end that",
    "not a database": "it is damaged or no database; stop all workers and move it away",
    "malformed": "it is damaged; stop all workers and move it away",
    "": "check that its folder exists and is writable",
}


def _advice(error: sqlite3.Error) -> str:
    return next(advice for words, advice in _ADVICE.items() if words in str(error))
