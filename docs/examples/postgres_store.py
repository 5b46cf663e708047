"""The quota in PostgreSQL: a store of one's own, with asyncpg."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias, TypeVar

import asyncpg

from braze_sends import StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.codec import dump, load_bucket, load_remembered
from braze_sends.stores.store import MEMORY, Transaction

T = TypeVar("T")

#: To be run once, with your other migrations.
SCHEMA = """
CREATE TABLE IF NOT EXISTS braze_quota (workspace text PRIMARY KEY, state text NOT NULL);
CREATE TABLE IF NOT EXISTS braze_pair (
    workspace text, pair text, memory text NOT NULL, expires double precision NOT NULL,
    PRIMARY KEY (workspace, pair)
);
CREATE INDEX IF NOT EXISTS braze_pair_expires ON braze_pair (workspace, expires);
"""

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class PostgresStore:
    """The quota in a PostgreSQL database that many hosts share.

    A connection for each transaction: the limiter groups them, so that they are few, and nothing
    is left open over forks and event loops.

    Args:
        dsn: ``postgresql://user:password@host/database``.
    """

    shared = True

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def __repr__(self) -> str:
        return "PostgresStore()"  # the DSN may hold a password

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """See ``Store.transact``."""
        try:
            connection = await asyncpg.connect(self._dsn, timeout=5, command_timeout=30)
            try:
                return await _transact(connection, workspace, pairs, change)
            finally:
                await connection.close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise StoreError(f"PostgreSQL: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """Nothing is open between transactions."""


async def _transact(
    connection: Connection,
    workspace: str,
    pairs: Collection[str],
    change: Callable[[Transaction], T],
) -> T:
    # Most who wait look and change nothing: without a lock, they do not wait for each other.
    transaction = await _read(connection, workspace, pairs)
    untouched, before = dump(transaction.bucket), dict(transaction.pairs)
    result = change(transaction)
    if dump(transaction.bucket) == untouched and transaction.pairs == before:
        return result
    # Leaving the block commits, and an exception rolls back: what `change` raises, too.
    async with connection.transaction():
        # A row that is not there cannot be locked.
        await connection.execute(
            "INSERT INTO braze_quota VALUES ($1, '') ON CONFLICT DO NOTHING", workspace
        )
        await connection.execute(
            "SELECT FROM braze_quota WHERE workspace = $1 FOR UPDATE", workspace
        )
        transaction = await _read(connection, workspace, pairs)
        before = dict(transaction.pairs)
        result = change(transaction)
        await connection.execute(
            "UPDATE braze_quota SET state = $2 WHERE workspace = $1",
            workspace,
            dump(transaction.bucket),
        )
        expires = transaction.now + MEMORY
        await connection.executemany(
            "INSERT INTO braze_pair VALUES ($1, $2, $3, $4) ON CONFLICT (workspace, pair) "
            "DO UPDATE SET memory = excluded.memory, expires = excluded.expires",
            [
                (workspace, pair, dump(memory), expires)
                for pair, memory in transaction.pairs.items()
                if before.get(pair) != memory
            ],
        )
        # Only of this workspace, whose lock is held: no deadlock with another's.
        await connection.execute(
            "DELETE FROM braze_pair WHERE workspace = $1 AND expires <= $2",
            workspace,
            transaction.now,
        )
    return result


async def _read(connection: Connection, workspace: str, pairs: Collection[str]) -> Transaction:
    # Not `now()`, which is when the transaction began: it may have waited for the lock since.
    now = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    state = await connection.fetchval(
        "SELECT state FROM braze_quota WHERE workspace = $1", workspace
    )
    rows = await connection.fetch(
        "SELECT pair, memory FROM braze_pair "
        "WHERE workspace = $1 AND pair = ANY($2) AND expires > $3",
        workspace,
        list(pairs),
        now,
    )
    return Transaction(
        now=now,
        # The server's clock is taken for UTC until a Date of Braze's corrects it.
        bucket=load_bucket(state) if state else Bucket(offset=0.0),
        pairs={row["pair"]: load_remembered(row["memory"]) for row in rows},
    )
