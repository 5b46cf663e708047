"""The quota in PostgreSQL: for the workers of many hosts that share a database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import attrs

from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.codec import dump, load_bucket, load_remembered
from braze_sends.stores.store import MEMORY, STATE_KEPT, Remembered, Transaction

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Error
    from psycopg_pool import AsyncConnectionPool

    Connection: TypeAlias = AsyncConnection[Any]

T = TypeVar("T")

#: Seconds to connect, for one statement, and for all tries of a transaction that others are faster
#: than.
CONNECT_TIMEOUT, STATEMENT_TIMEOUT, CONTENTION_TIMEOUT = 5, 5.0, 20.0
#: Seconds by which the server's clock may be behind the record's last time, as after a failover.
#: Within that, time stands still until the clock has come so far.
SAME_CLOCK = 60.0
#: Connections that one event loop opens at most; a client needs one at a time.
MOST_CONNECTIONS = 4
#: Pairs that expired and are deleted with a write, at most.
FORGOTTEN_AT_ONCE = 100

#: Statement ``n`` brings the tables from version ``n`` to the next.
_MIGRATIONS: Final = (
    # The state is written at each step. Room in each page lets PostgreSQL reuse it there.
    """
    CREATE TABLE braze_sends_quota (
        workspace text PRIMARY KEY, revision text NOT NULL, state text NOT NULL,
        server text NOT NULL, writes bigint NOT NULL, moment double precision NOT NULL
    ) WITH (fillfactor = 50);
    CREATE TABLE braze_sends_pair (
        workspace text NOT NULL, pair text NOT NULL, memory text NOT NULL,
        expires double precision NOT NULL, PRIMARY KEY (workspace, pair)
    );
    CREATE INDEX braze_sends_pair_expires ON braze_sends_pair (expires);
    """,
)
#: The version of the tables that this release knows.
VERSION: Final = len(_MIGRATIONS)
#: Lets one process at a time migrate: an advisory lock's number, which nobody else uses.
_MIGRATING: Final = 7_061_973_215_119_114

# All of it is one statement, so it sees one moment. The clock is read when it runs: ``now()`` would
# be the begin of a transaction that the application may have open.
_LOAD = """
SELECT (SELECT max(version) FROM braze_sends_schema), clock,
    extract(epoch FROM pg_postmaster_start_time())::text, revision, state, server, writes, moment,
    (
        SELECT array_agg(ARRAY[pair, memory]) FROM braze_sends_pair AS known
        WHERE known.workspace = %(workspace)s::text AND pair = ANY(%(pairs)s::text[])
            AND expires > clock
    )
FROM (SELECT extract(epoch FROM clock_timestamp())::double precision AS clock) AS time
LEFT JOIN braze_sends_quota AS kept ON kept.workspace = %(workspace)s::text
"""

# Compares and sets: nothing is written if another process has written since the record was loaded.
# Each write has a revision of its own, which is random and not counted, so that a database that was
# set back cannot come to the same one again. The lock of the workspace's row is held only while
# this statement runs.
_KEEP = """
WITH kept AS (
    INSERT INTO braze_sends_quota AS old (workspace, revision, state, server, writes, moment)
    SELECT %(workspace)s::text, %(new)s::text, %(state)s::text, %(server)s::text,
        %(writes)s::bigint, %(now)s::double precision
    WHERE %(revision)s::text = ''
        OR EXISTS (SELECT FROM braze_sends_quota WHERE workspace = %(workspace)s::text)
    ON CONFLICT (workspace) DO UPDATE SET revision = excluded.revision, state = excluded.state,
        server = excluded.server, writes = excluded.writes, moment = excluded.moment
    WHERE old.revision = %(revision)s::text
    RETURNING 1
)
"""
_KEEP_STATE = f"{_KEEP} SELECT count(*) FROM kept"
# What others delete at this moment is left to them, so that nobody waits for another workspace.
_KEEP_ALL = f"""
{_KEEP}, remembered AS (
    INSERT INTO braze_sends_pair (workspace, pair, memory, expires)
    SELECT %(workspace)s::text, pair, memory, %(expires)s::double precision
    FROM unnest(%(pairs)s::text[], %(memories)s::text[]) AS new (pair, memory)
    WHERE EXISTS (SELECT FROM kept)
    ON CONFLICT (workspace, pair)
    DO UPDATE SET memory = excluded.memory, expires = excluded.expires
), forgotten AS (
    DELETE FROM braze_sends_pair WHERE EXISTS (SELECT FROM kept) AND ctid = ANY(ARRAY(
        SELECT ctid FROM braze_sends_pair
        WHERE expires <= %(now)s::double precision
            AND NOT (workspace = %(workspace)s::text AND pair = ANY(%(pairs)s::text[]))
        LIMIT {FORGOTTEN_AT_ONCE} FOR UPDATE SKIP LOCKED
    ))
)
SELECT count(*) FROM kept
"""


@attrs.frozen
class _Seen:
    """A workspace's record, as it was loaded.

    Attributes:
        now: the store's time, seconds.
        server: names the start of the server that has it.
        revision: names the record; empty if there is none.
        state: the bucket as text; empty if there is none, or it says nothing any more.
        kept_on: the server that it was kept on.
        count: how often it was written.
        clock_fell: whether the server's clock is far behind the record's time.
        memories: what is remembered of the pairs asked for, as text.
    """

    now: float
    server: str
    revision: str
    state: str
    kept_on: str
    count: int
    clock_fell: bool
    memories: dict[str, str]


class PostgresStore:
    """The quota in a PostgreSQL database that many hosts share.

    Its clock is the server's, so a host whose clock is off hurts nobody. ``migrate``, or the
    command ``braze-sends store migrate``, makes its tables. No statement is prepared and no lock
    outlives its statement, so a proxy such as PgBouncer may stand between, in transaction mode too.
    Nothing is opened before the first transaction. A lost connection is replaced.

    Args:
        url: ``postgresql://user:password@host:5432/database``, with the parameters that libpq
            knows, such as ``?sslmode=verify-full``. At most four connections are open for each
            event loop.
        pool: the application's own ``psycopg_pool.AsyncConnectionPool`` in place of a URL. The
            application opens and closes it.

    Raises:
        ConfigurationError: the extra ``postgres`` is not installed, the URL cannot be used, or
            there is not exactly one of ``url`` and ``pool``.
    """

    shared = True

    def __init__(
        self, url: str | None = None, *, pool: AsyncConnectionPool[Any] | None = None
    ) -> None:
        if (url is None) == (pool is None):
            raise ConfigurationError("PostgresStore needs either a postgresql:// URL or a pool")
        try:
            import psycopg  # noqa: F401  # whether it is there
        except ImportError:
            raise ConfigurationError(
                "PostgresStore needs the psycopg package: pip install 'braze_sends[postgres]'"
            ) from None
        self._connections: _Own | _Theirs
        if pool is not None:
            self._connections, self._name = _Theirs(pool), "PostgreSQL"
        else:
            self._connections = _Own(url)
            self._name = self._connections.name
        # The highest count that was seen of each workspace's record.
        self._counts: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"PostgresStore({self._name!r})"

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """See ``Store.transact``.

        Raises:
            StoreError: the database cannot be reached or used, its tables are missing or of
                another version, or others are always first for 20 s.
        """
        with self._told():
            return await self._transact(workspace, list(pairs), change)

    async def _transact(
        self, workspace: str, pairs: list[str], change: Callable[[Transaction], T]
    ) -> T:
        loop = asyncio.get_running_loop()
        end, tries = loop.time() + CONTENTION_TIMEOUT, 0
        # What the tries so far would have returned, by the revision that each was to be kept as.
        ours: dict[str, T] = {}
        while True:
            seen = await self._load(workspace, pairs)
            if seen.revision in ours:  # it was kept, and the answer was lost
                self._counts[workspace] = seen.count
                return ours[seen.revision]
            transaction = self._begin(workspace, seen)
            untouched, before = dump(transaction.bucket), dict(transaction.pairs)
            result = change(transaction)
            state = dump(transaction.bucket)
            if state == untouched and transaction.pairs == before:
                self._counts[workspace] = max(self._counts.get(workspace, 0), seen.count)
                return result
            new = secrets.token_hex(8)
            ours[new] = result
            remembered = {
                pair: dump(memory)
                for pair, memory in transaction.pairs.items()
                if memory != before.get(pair)
            }
            if await self._keep(workspace, seen, new, state, remembered):
                return result
            if loop.time() >= end:
                raise StoreError(f"{self._name}: too many processes write at once; try again later")
            tries = min(tries + 1, 6)
            await asyncio.sleep(random.uniform(0, 0.001 * 2**tries))

    def _begin(self, workspace: str, seen: _Seen) -> Transaction:
        # The server's clock is taken for UTC until a Date of Braze's corrects it.
        bucket = load_bucket(seen.state) if seen.state else Bucket(offset=0.0)
        # A server that was restarted, a replica that took over, and a database that was set back
        # may all have lost what was kept after this state.
        set_back = seen.count < self._counts.get(workspace, 0)
        if seen.state and (seen.server != seen.kept_on or set_back or seen.clock_fell):
            bucket.distrust(seen.now)
        pairs: dict[str, Remembered] = {
            pair: load_remembered(memory) for pair, memory in seen.memories.items()
        }
        return Transaction(seen.now, bucket, pairs)

    async def _load(self, workspace: str, pairs: list[str]) -> _Seen:
        row = await self._ask(_LOAD, {"workspace": workspace, "pairs": pairs})
        version, clock, server, revision, state, kept_on, writes, moment, memories = row
        self._check(version)
        now, fell = clock, False
        if revision is not None:
            fell = not moment - clock <= SAME_CLOCK
            now = clock if fell else max(clock, moment)
            if moment + STATE_KEPT <= now:
                state = ""
        found = dict(memories or ())
        return _Seen(
            now, server, revision or "", state or "", kept_on or "", writes or 0, fell, found
        )

    async def _keep(
        self, workspace: str, seen: _Seen, new: str, state: str, remembered: dict[str, str]
    ) -> bool:
        """Whether nobody has written since ``seen``, and so the new state was kept."""
        from psycopg.errors import DeadlockDetected, SerializationFailure

        count = max(seen.count, self._counts.get(workspace, 0)) + 1
        values = {
            "workspace": workspace,
            "revision": seen.revision,
            "new": new,
            "state": state,
            "server": seen.server,
            "writes": count,
            "now": seen.now,
        }
        if remembered:
            values["expires"] = seen.now + MEMORY
            values["pairs"], values["memories"] = [*remembered], [*remembered.values()]
        try:
            (kept,) = await self._ask(_KEEP_ALL if remembered else _KEEP_STATE, values)
        except (SerializationFailure, DeadlockDetected):
            return False  # it waited for somebody who was first
        if kept:
            self._counts[workspace] = count
        return bool(kept)

    async def _ask(self, query: str, values: dict[str, Any]) -> Any:
        """The answer to one statement, which is sent again if its connection is lost.

        The connection may have been lost long before, and be replaced only now. A step that was
        taken although its answer was lost is not taken twice: its revision is no longer the one
        that it asks for.
        """
        from psycopg import Error

        try:
            async with self._connections.one(fresh=False) as connection:
                return await _answer(connection, query, values)
        except Error as error:
            if not _is_lost(error):
                raise
        async with self._connections.one(fresh=True) as connection:
            return await _answer(connection, query, values)

    def _check(self, version: int | None) -> None:
        if version == VERSION:
            return
        if version is not None and version > VERSION:
            raise StoreError(
                f"{self._name}: its tables have version {version}, made by braze-sends store "
                f"migrate of a newer release; this one knows {VERSION}: upgrade braze_sends here"
            )
        raise StoreError(f"{self._name}: its tables are not up to date; {_MIGRATE}")

    async def migrate(self) -> int:
        """Create the tables, or bring those of an older release up to date.

        Does nothing if they are. Several processes may migrate at once. The tables are made in the
        first schema of the connection's ``search_path``.

        Returns:
            the version that the tables have now.

        Raises:
            StoreError: the database cannot be reached, the user may not create tables, or the
                tables are of a newer release.
        """
        with self._told():
            async with self._connections.one(fresh=True) as connection:
                # The lock is waited for until whoever migrates is done.
                with _time_limit(connection, CONTENTION_TIMEOUT):
                    async with connection.transaction():
                        return await self._migrate(connection)

    async def _migrate(self, connection: Connection) -> int:
        async def value(query: str, *values: Any) -> Any:
            cursor = connection.cursor(row_factory=_tuple_row())
            await cursor.execute(query, values, prepare=False)
            return (await cursor.fetchone() or (None,))[0]

        await connection.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        await value("SELECT pg_advisory_xact_lock(%s)", _MIGRATING)
        version = 0
        if await value("SELECT to_regclass('braze_sends_schema')") is None:
            await connection.execute("CREATE TABLE braze_sends_schema (version integer NOT NULL)")
        else:
            version = await value("SELECT max(version) FROM braze_sends_schema") or 0
        for migration in _MIGRATIONS[version:]:
            version += 1
            await connection.execute(migration)
            await connection.execute("INSERT INTO braze_sends_schema VALUES (%s)", (version,))
        self._check(version)
        return version

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the driver, in our words."""
        from psycopg import Error

        try:
            yield
        except Error as error:
            raise StoreError(f"{self._name}: {_words(error)}") from error
        except _Unreached as error:
            # Not the driver's error itself, which would show what the URL says.
            raise StoreError(f"{self._name}: {error}") from None

    async def close(self) -> None:
        """Close the connections, but not a pool of the application; they are opened again if need
        be."""
        await self._connections.close()


# --- connections ---------------------------------------------------------------------------------


class _Unreached(Exception):
    """No connection came to be."""


class _Own:
    """Connections of the store's own.

    A connection of psycopg that is idle belongs to no event loop, so whichever loop needs one next
    takes it. In a fork those of the parent are left alone.
    """

    def __init__(self, url: Any) -> None:
        self._parts, self.name = _parts(url)
        self._idle = _Idle()
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._turns = weakref.WeakKeyDictionary()
        weakref.finalize(self, _Idle.drop, self._idle)

    @contextlib.asynccontextmanager
    async def one(self, *, fresh: bool) -> AsyncIterator[Connection]:
        loop = asyncio.get_running_loop()
        async with self._turns.setdefault(loop, asyncio.Semaphore(MOST_CONNECTIONS)):
            idle = self._idle
            if fresh:
                idle.drop()
            connection = idle.take() or await self._opened()
            try:
                yield connection
            except BaseException:
                # Nobody knows what is still under way there.
                connection.pgconn.finish()
                raise
            idle.put(connection)

    async def _opened(self) -> Connection:
        from psycopg import AsyncConnection, Error

        options: dict[str, Any] = {
            "connect_timeout": CONNECT_TIMEOUT,
            **self._parts,
            "client_encoding": "utf8",
        }
        try:
            return await AsyncConnection.connect(**options, autocommit=True)
        except (Error, OSError, UnicodeError) as error:
            told = " ".join(str(error).split())
            for secret in ("password", "sslpassword"):
                if value := self._parts.get(secret):
                    told = told.replace(value, "***")
            raise _Unreached(
                f"cannot connect: {told}; check that the server is up, and that this host and user "
                "may use the database"
            ) from None

    async def close(self) -> None:
        self._idle.drop()


@attrs.define(eq=False)
class _Idle:
    """Open connections that nobody uses at the moment, and the process that opened them."""

    connections: list[Connection] = attrs.field(factory=list)
    pid: int = attrs.field(factory=os.getpid)

    def take(self) -> Connection | None:
        self._leave_to_parent()
        with contextlib.suppress(IndexError):
            return self.connections.pop()
        return None

    def put(self, connection: Connection) -> None:
        self.connections.append(connection)

    def drop(self) -> None:
        """Close them all."""
        while (connection := self.take()) is not None:
            connection.pgconn.finish()

    def _leave_to_parent(self) -> None:
        if self.pid != os.getpid():
            # Closing them would end the parent's sessions.
            _of_parents.extend(self.connections)
            self.connections, self.pid = [], os.getpid()


#: Kept, since psycopg warns of an open connection that is dropped.
_of_parents: list[Connection] = []


class _Theirs:
    """The application's pool."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    @contextlib.asynccontextmanager
    async def one(self, *, fresh: bool) -> AsyncIterator[Connection]:
        if fresh:
            await self._pool.check()  # replaces those that were lost
        async with self._pool.connection() as connection:
            # Else each statement would begin a transaction, and end it, in round trips of its own.
            autocommit = connection.autocommit
            await connection.set_autocommit(True)
            try:
                yield connection
            finally:
                if not connection.closed:
                    await connection.set_autocommit(autocommit)

    async def close(self) -> None:
        """It is not ours."""


async def _answer(connection: Connection, query: str, values: dict[str, Any]) -> Any:
    with _time_limit(connection, STATEMENT_TIMEOUT):
        # Bound with the statement and not prepared: one round trip, which any proxy can pass on.
        cursor = connection.cursor(row_factory=_tuple_row())
        await cursor.execute(query, values, prepare=False)
        return await cursor.fetchone()


def _tuple_row() -> Any:
    from psycopg.rows import tuple_row

    return tuple_row


@contextlib.contextmanager
def _time_limit(connection: Connection, seconds: float) -> Iterator[None]:
    """Hang up after ``seconds``, which ends what is under way with an error of the driver.

    Cancelling would not do: psycopg then asks the server to end the statement and waits for it,
    and a server that is gone never answers.
    """
    timer = asyncio.get_running_loop().call_later(seconds, _hang_up, connection)
    try:
        yield
    finally:
        timer.cancel()


def _hang_up(connection: Connection) -> None:
    with contextlib.suppress(OSError):
        line = socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        with line:
            line.shutdown(socket.SHUT_RDWR)


# --- words ---------------------------------------------------------------------------------------

_MIGRATE: Final = "run braze-sends store migrate, or await store.migrate()"
_LOST: Final = "the connection was lost; the next use opens another, once the server is up"
#: What to do, by the beginning of the error's code.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_ADVICE: Final = {
    "42P01": _MIGRATE,
    "42703": _MIGRATE,
    "42501": "grant what the documentation of the store lists",
    "25006": "name the primary server, or add target_session_attrs=read-write to the URL",
    "53": "free what the server is short of",
    "57": "try again when the server is up",
    "08": "try again when the server is up",
    "22": "use text that the encoding of the database can hold",
    "": "see the log of the server",
}


def _words(error: Error) -> str:
    code, told = error.sqlstate, error.diag.message_primary
    if code is None or told is None:  # not of the server
        return _LOST if _is_lost(error) else " ".join(str(error).split())
    return f"{told}; " + next(advice for start, advice in _ADVICE.items() if code.startswith(start))


def _is_lost(error: Error) -> bool:
    """Whether another connection may do better: the server or a proxy ended this one, or it leads
    to a server that is no longer the primary one."""
    from psycopg import OperationalError

    if error.sqlstate is None:
        return type(error) is OperationalError  # a pool's own errors derive from it
    return error.sqlstate.startswith(("08", "57", "25006"))


def _parts(url: Any) -> tuple[dict[str, Any], str]:
    """What ``url`` says, and how the server is shown, without what may be a password."""
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        if not url.startswith(("postgresql://", "postgres://")):
            raise ValueError
        parts = conninfo_to_dict(url)
        host, port, database = (str(parts.get(key, "")) for key in ("host", "port", "dbname"))
        # A password with such a character in it, not quoted, would end up in one of these.
        if "@" in host + database or "=" in database or not (port + "0").replace(",", "").isdigit():
            raise ValueError
    except (ProgrammingError, ValueError, AttributeError):
        raise ConfigurationError(
            "PostgresStore needs a postgresql://user:password@host:5432/database URL with "
            "parameters that libpq knows; in a password write @ as %40, / as %2F, : as %3A"
        ) from None
    return parts, f"postgresql://{host}{port and ':' + port}/{database}"
