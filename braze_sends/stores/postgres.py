"""The quota in PostgreSQL: for the workers of many hosts that share a database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import attrs

from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores import optimistic
from braze_sends.stores.optimistic import NOTHING, Records, Seen
from braze_sends.stores.store import MEMORY, STATE_KEPT, Transaction

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Error
    from psycopg_pool import AsyncConnectionPool

    Connection: TypeAlias = AsyncConnection[Any]

T = TypeVar("T")

#: Seconds to connect, and for one statement.
CONNECT_TIMEOUT, STATEMENT_TIMEOUT = 5, 5.0
#: Seconds by which the server's clock may be behind the record's last time, as after a failover.
#: Within that, time stands still until the clock has come so far.
SAME_CLOCK = 60.0
#: Connections that one event loop opens at most; a client needs one at a time.
MOST_CONNECTIONS = 4
#: Pairs that expired and are deleted with a write, at most.
FORGOTTEN_AT_ONCE = 100

#: Statement ``n`` brings the tables from version ``n`` to the next.
#
# The function compares what a process assumes with what is true. If all of it holds, the new state
# is kept, if there is one, and the answer is short. Else nothing is written, and the answer is what
# is true, which saves asking for it. The revision is random and not counted, so that a database
# that was set back cannot come to the same one again. Each write has a new one. A call that is made
# again because its answer was lost finds its own revision and is content.
#
# A write holds the lock of the workspace's row until the function returns, and never while a
# process thinks. ``clock_timestamp()`` is read after that; ``now()`` would be the begin of the
# transaction. Pairs of any workspace that have expired are deleted with what is remembered, but
# those that are locked are left, so that nobody waits for another workspace.
_MIGRATIONS: Final = (
    # The state is written at each step. Room in each page lets PostgreSQL keep it there.
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
    CREATE FUNCTION braze_sends_step(
        of_workspace text, asked text[], absent text[],
        assumed text, assumed_server text, assumed_time double precision,
        most_behind double precision, same_clock double precision,
        new_revision text, new_state text, new_writes bigint,
        new_pairs text[], new_memories text[], new_expires double precision, most_forgotten integer,
        OUT held boolean, OUT its_version integer, OUT its_time double precision, OUT fell boolean,
        OUT its_server text, OUT its_revision text, OUT its_state text, OUT kept_on text,
        OUT its_writes bigint, OUT moment double precision, OUT memories text[]
    ) LANGUAGE plpgsql AS $$
    DECLARE
        kept braze_sends_quota;
        clock double precision;
    BEGIN
        IF new_revision = '' THEN
            SELECT * INTO kept FROM braze_sends_quota AS q WHERE q.workspace = of_workspace;
        ELSE
            SELECT * INTO kept FROM braze_sends_quota AS q WHERE q.workspace = of_workspace
            FOR UPDATE;
        END IF;
        clock := extract(epoch FROM clock_timestamp());
        fell := coalesce(NOT kept.moment - clock <= same_clock, false);
        its_time := CASE WHEN fell THEN clock ELSE greatest(clock, kept.moment) END;
        its_revision := coalesce(kept.revision, '');
        held := true;
        IF new_revision <> '' AND its_revision = new_revision THEN RETURN; END IF;
        its_server := extract(epoch FROM pg_postmaster_start_time())::text;
        held := its_revision = assumed AND its_server = assumed_server
            AND (most_behind IS NULL OR its_time - assumed_time BETWEEN 0 AND most_behind)
            AND NOT EXISTS (
                SELECT FROM braze_sends_pair AS p
                WHERE p.workspace = of_workspace AND p.pair = ANY(absent) AND p.expires > clock
            );
        IF held AND new_revision <> '' THEN
            IF assumed = '' THEN
                INSERT INTO braze_sends_quota AS q
                VALUES (of_workspace, new_revision, new_state, its_server, new_writes, assumed_time)
                ON CONFLICT DO NOTHING;
                held := FOUND;
            ELSE
                UPDATE braze_sends_quota AS q
                SET revision = new_revision, state = new_state, server = its_server,
                    writes = new_writes, moment = assumed_time
                WHERE q.workspace = of_workspace;
            END IF;
            IF held AND cardinality(new_pairs) > 0 THEN
                INSERT INTO braze_sends_pair AS p
                SELECT of_workspace, n.pair, n.memory, new_expires
                FROM unnest(new_pairs, new_memories) AS n (pair, memory)
                ON CONFLICT ON CONSTRAINT braze_sends_pair_pkey
                DO UPDATE SET memory = excluded.memory, expires = excluded.expires;
                DELETE FROM braze_sends_pair AS p WHERE p.ctid = ANY(ARRAY(
                    SELECT old.ctid FROM braze_sends_pair AS old WHERE old.expires <= clock
                    LIMIT most_forgotten FOR UPDATE SKIP LOCKED
                ));
            END IF;
        END IF;
        IF held THEN RETURN; END IF;
        -- Another process may have written meanwhile, so all of it is read once more, at one time.
        SELECT
            coalesce(q.revision, ''), coalesce(q.state, ''), coalesce(q.server, ''),
            coalesce(q.writes, 0), coalesce(q.moment, clock),
            (SELECT max(s.version) FROM braze_sends_schema AS s),
            ARRAY(
                SELECT ARRAY[p.pair, p.memory] FROM braze_sends_pair AS p
                WHERE p.workspace = of_workspace AND p.pair = ANY(asked) AND p.expires > clock
            )
        INTO its_revision, its_state, kept_on, its_writes, moment, its_version, memories
        FROM (SELECT) AS one LEFT JOIN braze_sends_quota AS q ON q.workspace = of_workspace;
        IF NOT fell THEN its_time := greatest(its_time, moment); END IF;
    END $$;
    """,
)
#: The version of the tables that this release knows.
VERSION: Final = len(_MIGRATIONS)
#: Lets one process at a time migrate: an advisory lock's number, which nobody else uses.
_MIGRATING: Final = 7_061_973_215_119_114

_STEP: Final = """
SELECT * FROM braze_sends_step(
    %(workspace)s::text, %(asked)s::text[], %(absent)s::text[],
    %(revision)s::text, %(server)s::text, %(now)s::double precision,
    %(behind)s::double precision, %(same_clock)s::double precision,
    %(new)s::text, %(state)s::text, %(count)s::bigint,
    %(pairs)s::text[], %(memories)s::text[], %(expires)s::double precision, %(forgotten)s::integer
)
"""


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
        self._records = Records()

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
            end = asyncio.get_running_loop().time() + optimistic.CONTENTION_TIMEOUT
            steps = _Steps(workspace, end, self._name, self._records, self._ask)
            return await self._records.transact(workspace, pairs, change, steps)

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
                with _time_limit(connection, optimistic.CONTENTION_TIMEOUT):
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
        _check(self._name, version)
        return version

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the driver, in our words."""
        from psycopg import Error

        try:
            yield
        except Error as error:
            raise StoreError(f"{self._name}: {_words(error)}") from error
        except _UnreachedError as error:
            # Not the driver's error itself, which would show what the URL says.
            raise StoreError(f"{self._name}: {error}") from None

    async def close(self) -> None:
        """Close the connections, but not a pool of the application; they are opened again if need
        be."""
        await self._connections.close()


@attrs.frozen(eq=False)
class _Steps:
    """See ``optimistic.Steps``.

    Attributes:
        end: loop time past which nothing is tried any more.
        name: of the store, for errors.
        ask: sends one statement.
    """

    workspace: str
    end: float
    name: str
    records: Records
    ask: Callable[[str, dict[str, Any]], Awaitable[Any]]

    def begin(self) -> None:
        if asyncio.get_running_loop().time() >= self.end:
            raise StoreError(f"{self.name}: too many processes write at once; try again later")

    def may_be_old(self, bucket: Bucket, seen: Seen, *, set_back: bool) -> bool:
        # A server that was restarted, a replica that took over, and a database that was set back
        # may all have lost what was kept after this state.
        return seen.server != seen.kept_on or set_back or seen.fell

    def kept(self) -> None:
        pass

    async def step(
        self, pairs: list[str], seen: Seen, left: Seen, remembered: Mapping[str, str]
    ) -> tuple[bool, Seen]:
        from psycopg.errors import DeadlockDetected, SerializationFailure

        same = left is seen
        values = {
            "workspace": self.workspace,
            "asked": pairs,
            "absent": [pair for pair in pairs if pair not in seen.memories],
            "revision": seen.revision,
            "server": seen.server,
            "now": seen.now,
            "behind": optimistic.BEHIND if seen.assumed else None,
            "same_clock": SAME_CLOCK,
            "new": "" if same else left.revision,
            "state": "" if same else left.state,
            "count": left.count,
            "pairs": [*remembered],
            "memories": [*remembered.values()],
            "expires": seen.now + MEMORY,
            "forgotten": FORGOTTEN_AT_ONCE,
        }
        try:
            row = await self.ask(_STEP, values)
        except (SerializationFailure, DeadlockDetected):  # somebody else was first
            return False, (await self.step(pairs, NOTHING, NOTHING, {}))[1]
        held, version, now, fell, server, revision, state, kept_on, count, moment, memories = row
        self.records.heard(now, seen.now)
        if held:
            return True, attrs.evolve(seen, now=now, assumed=False)
        _check(self.name, version)
        if moment + STATE_KEPT <= now:
            state = ""  # it says nothing any more
        return False, Seen(revision, state, server, kept_on, count, now, fell, dict(memories))


def _check(name: str, version: int | None) -> None:
    if version == VERSION:
        return
    if version is not None and version > VERSION:
        raise StoreError(
            f"{name}: its tables have version {version}, made by braze-sends store "
            f"migrate of a newer release; this one knows {VERSION}: upgrade braze_sends here"
        )
    raise StoreError(f"{name}: its tables are not up to date; {_MIGRATE}")


# --- connections ---------------------------------------------------------------------------------


class _UnreachedError(Exception):
    """No connection came to be."""


class _Own:
    """Connections of the store's own.

    A connection of psycopg that is idle belongs to no event loop, so whichever loop needs one next
    takes it. A fork has connections of its own.
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
            raise _UnreachedError(
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
            # What closing sends would end the parent's sessions, so it must not reach the server.
            nowhere = os.open(os.devnull, os.O_RDWR)
            for connection in self.connections:
                os.dup2(nowhere, connection.fileno())
                connection.pgconn.finish()
            os.close(nowhere)
            self.connections, self.pid = [], os.getpid()


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
    "42883": _MIGRATE,
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
