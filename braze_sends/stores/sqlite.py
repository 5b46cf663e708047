"""The quota in an SQLite file: for the workers of one host, and over restarts."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.codec import FAR, dump, load_bucket, load_remembered
from braze_sends.stores.store import MEMORY, STATE_KEPT, Remembered, Transaction, steady

T = TypeVar("T")

log = logging.getLogger("braze_sends")

#: Seconds to wait for another process's write; 64 that wake at once come close to 5.
BUSY_TIMEOUT = 30.0
#: Seconds of that wait after which the log tells it.
TOLD_AFTER = 1.0
#: Seconds by which a clock may differ from the file's before it is taken for another clock.
SAME_CLOCK = 60.0
#: So often a file may be replaced by another one in the middle of a transaction.
_REPLACED_AT_MOST = 10

# The table ``file`` has one row: which file it was written to, how often, and what the time and the
# wall clock were then. An older release does not know it, and leaves it as it is; the other tables
# have to stay as they are, since it fills their rows without naming columns.
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
CREATE TABLE IF NOT EXISTS file (
    id INTEGER PRIMARY KEY CHECK (id = 0), inode TEXT NOT NULL, writes INTEGER NOT NULL,
    time REAL NOT NULL, wall REAL NOT NULL
);
"""


class SQLiteStore:
    """The quota in a file that the processes of one host share.

    A transaction that changes nothing only reads. All of SQLite happens in a thread of its own, so
    the event loop goes on while another process holds the write lock. The file is opened by the
    first transaction, and again after a fork, or when it was deleted or replaced.

    Args:
        path: the file; it is created, readable by its owner alone. Not on a network file system,
            whose locks SQLite cannot trust: https://www.sqlite.org/faq.html#q5
        clock: a steady clock that all processes of the host share, in seconds; it counts the time
            that the host sleeps.
        wall: the wall clock, in epoch seconds.
    """

    shared = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(path)
        if not str(path) or str(path) == ":memory:":
            raise ConfigurationError("SQLiteStore needs a file; for memory take a MemoryStore")
        self._clock = clock
        self._wall = wall
        self._absolute: Path | None = None
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
        try:
            if self._absolute is None:
                self._absolute = self._path.absolute()  # the process may go to another folder
            if self._file is None or self._file.pid != os.getpid():
                # The thread of its parent is not there in a fork.
                self._file = _File(self._absolute, self._clock, self._wall)
            file = self._file
            return await asyncio.get_running_loop().run_in_executor(
                file.thread, file.transact, workspace, pairs, change
            )
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}; {_advice(error)}") from error
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror}; {_advice_for(error)}") from error

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
        self._identity: os.stat_result | None = None
        self._writes = 0  # the most that was seen in the file
        self.lock = threading.Lock()
        _files.add(self)

    def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        with self.lock:
            for _ in range(_REPLACED_AT_MOST):
                # Looked at before, since what was deleted says nothing any more, and afterwards,
                # since what was granted is known to nobody if the file has gone meanwhile.
                with contextlib.suppress(_Replaced):
                    connection = self._connection
                    if connection is None or not self._is_there():
                        connection = self._open()
                    result, wrote = self._transact(connection, workspace, pairs, change)
                    if not wrote or self._is_there():
                        return result
                self.close_connection()
        raise StoreError(
            f"{self._path}: the file is replaced again and again; end the program that "
            "writes it, and use a file of its own for the quota"
        )

    def _is_there(self) -> bool:
        if self._identity is None:
            return False
        try:
            return os.path.samestat(self._identity, os.stat(self._path))
        except OSError:
            return False  # opening it anew tells why

    def _transact(
        self,
        connection: sqlite3.Connection,
        workspace: str,
        pairs: Collection[str],
        change: Callable[[Transaction], T],
    ) -> tuple[T, bool]:
        transaction = self._read(connection, workspace, pairs)
        untouched, before = dump(transaction.bucket), dict(transaction.pairs)
        result = change(transaction)
        if dump(transaction.bucket) == untouched and transaction.pairs == before:
            return result, False
        # Only now a write lock; and what was read before it may be old.
        with self._locked(connection):
            transaction = self._read(connection, workspace, pairs)
            before = dict(transaction.pairs)
            result = change(transaction)
            self._write(connection, workspace, transaction, before)
        self._writes += 1
        return result, True

    def _read(
        self, connection: sqlite3.Connection, workspace: str, pairs: Collection[str]
    ) -> Transaction:
        now = self._now(connection)
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

    def _now(self, connection: sqlite3.Connection) -> float:
        try:
            writes, time = connection.execute("SELECT writes, time FROM file").fetchone()
        except (sqlite3.OperationalError, TypeError) as error:
            if "no such table" in str(error) or isinstance(error, TypeError):
                raise _Replaced from None  # its content, by that of an older release
            raise
        if _checked(writes) < self._writes:
            raise _Replaced  # its content, by an older one
        self._writes = writes
        clock = self._clock()
        # Time never goes back; from here it goes on by our own clock.
        self._origin = max(self._origin, _checked(time) - clock)
        return clock + self._origin

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
        connection.execute(
            "UPDATE file SET writes = writes + 1, time = ?, wall = ?", (now, self._wall())
        )

    def _open(self) -> sqlite3.Connection:
        self.close_connection()
        self._create()
        identity = os.stat(self._path)
        connection = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            self._write_ahead(connection)
            connection.execute("PRAGMA synchronous = FULL")
            with self._locked(connection):
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                self._take_over(connection, identity)
        except BaseException:
            connection.close()
            raise
        self._connection, self._identity = connection, identity
        self._finalizer = weakref.finalize(self, connection.close)
        if not self._is_there():
            raise _Replaced
        return connection

    def _create(self) -> None:
        # With its mode before SQLite sees it; the -wal and -shm files take after it. A file that is
        # there is not opened here: closing it would give up the locks that other connections of
        # this process have on it. https://www.sqlite.org/howtocorrupt.html section 2.2
        try:
            path = os.path.realpath(self._path)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            problem = errno.EISDIR if self._path.is_dir() else errno.EACCES
            if problem == errno.EISDIR or not os.access(self._path, os.R_OK | os.W_OK):
                raise OSError(problem, os.strerror(problem)) from None

    def _take_over(self, connection: sqlite3.Connection, identity: os.stat_result) -> None:
        """Agree on the time with those who had the file before; doubt what a copy says."""
        row = connection.execute("SELECT inode, writes, time, wall FROM file").fetchone()
        clock, wall = self._clock(), self._wall()
        now = clock + self._start(connection, clock, wall)
        if row is not None:
            inode, writes, time, wall_then = row[0], *map(_checked, row[1:])
            passed = max(0.0, wall - wall_then)
            # A clock that says something else is not the one that the others have. Then we begin
            # by the wall clock and go on by our own, so that one wrong clock moves no other's time.
            if not time <= now <= time + passed + SAME_CLOCK:
                now = time + passed
        self._origin = now - clock
        self._keep_start(connection, clock)
        # A backup that was put in its place is another file, or was written less often.
        if row is not None and inode == str(identity.st_ino) and writes >= self._writes:
            return
        for workspace, state in connection.execute("SELECT workspace, state FROM quota").fetchall():
            with contextlib.suppress(StoreError):  # which whoever needs it will be told
                bucket = load_bucket(state)
                bucket.distrust(now)
                connection.execute(
                    "UPDATE quota SET state = ? WHERE workspace = ?", (dump(bucket), workspace)
                )
        writes = max(self._writes, 0 if row is None else writes) + 1
        connection.execute(
            "INSERT OR REPLACE INTO file VALUES (0, ?, ?, ?, ?)",
            (str(identity.st_ino), writes, now, wall),
        )

    def _start(self, connection: sqlite3.Connection, clock: float, wall: float) -> float:
        """The time when our clock was zero.

        The steady clock counts from the host's start; what the time was then is kept, so that times
        go on over a restart, and all processes of one start agree.
        """
        rows = connection.execute("SELECT boot, origin FROM clock").fetchall()
        origins: dict[str, float] = {boot: _checked(origin) for boot, origin in rows}
        if self._clock is not steady:
            return origins.get(_boot(time.monotonic), wall - clock)
        if (origin := origins.get(_boot(steady) + _SLEEP)) is not None:
            return origin
        # An older release goes by time.monotonic(), which may not count sleep. At this moment it
        # and we agree; from the next sleep on it is behind.
        if (origin := origins.get(_boot(time.monotonic))) is not None:
            return origin + time.monotonic() - clock
        return wall - clock

    def _keep_start(self, connection: sqlite3.Connection, clock: float) -> None:
        starts = [(_boot(time.monotonic), self._origin)]
        if self._clock is steady:
            # For us, and for an older release that comes later.
            starts = [
                (_boot(steady) + _SLEEP, self._origin),
                (_boot(time.monotonic), self._origin + clock - time.monotonic()),
            ]
        connection.executemany("INSERT OR IGNORE INTO clock VALUES (?, ?)", starts)

    @contextlib.contextmanager
    def _locked(self, connection: sqlite3.Connection) -> Iterator[None]:
        """The write lock; what was written is kept, or none of it."""
        self._begin(connection)
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back by itself.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _begin(self, connection: sqlite3.Connection) -> None:
        """Take the write lock; a wait for it that is not short is told in the log."""
        shortly = min(TOLD_AFTER, BUSY_TIMEOUT)
        _limit_wait(connection, shortly)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or shortly == BUSY_TIMEOUT:
                raise
            log.warning(
                "%s: another program holds its lock; waiting for it, up to %.0f s",
                self._path,
                BUSY_TIMEOUT,
            )
            _limit_wait(connection, BUSY_TIMEOUT - shortly)
            connection.execute("BEGIN IMMEDIATE")
        finally:
            _limit_wait(connection, BUSY_TIMEOUT)

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


def _checked(number: Any) -> Any:
    if isinstance(number, int | float) and abs(number) < FAR:
        return number
    raise StoreError(
        "the store holds a damaged time: stop all workers and move the file away, and the quota "
        "starts over with one careful request"
    )


def _limit_wait(connection: sqlite3.Connection, seconds: float) -> None:
    """Let the next lock be waited for so long."""
    connection.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")


class _Replaced(Exception):  # noqa: N818  # no error: the transaction begins again
    """The file, or all that is in it, is another one."""


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


#: Of the name of a start, where the clock counts sleep.
_SLEEP = " and sleep"


def _boot(clock: Callable[[], float]) -> str:
    """Names this start of the host, as far as it can be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Where there is no such file: the moment of the start, by the wall clock, to ten minutes.
        return f"{(time.time() - clock()) // 600:.0f}"


_ADVICE = {
    "readonly": "make the file and its folder writable",
    "full": "free some space",
    "disk I/O": "free some space, and see whether the disk is well",
    "locked": "another program holds its lock; end that program, which lsof shows",
    "not a database": "it is damaged or no database; stop all workers and move it away",
    "malformed": "it is damaged; stop all workers and move it away",
    "": "check that its folder exists and is writable",
}
_WRITABLE, _SPACE, _FILES = _ADVICE["readonly"], _ADVICE["full"], "let fewer files be open at once"
_ADVICE_FOR = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EACCES: _WRITABLE,
    errno.EPERM: _WRITABLE,
    errno.EROFS: _WRITABLE,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.EIO: _ADVICE["disk I/O"],
}


def _advice(error: sqlite3.Error) -> str:
    return next(advice for words, advice in _ADVICE.items() if words in str(error))


def _advice_for(error: OSError) -> str:
    return _ADVICE_FOR.get(error.errno or 0, _ADVICE[""])
