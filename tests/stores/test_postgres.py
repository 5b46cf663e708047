"""The quota in a real PostgreSQL: its tables, lost answers, cut connections, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import attrs
import psycopg
import pytest
import pytest_asyncio
from psycopg.errors import SerializationFailure
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from braze_sends import (
    ConfigurationError,
    PostgresStore,
    SendId,
    SendsClient,
    StoreError,
    open_store,
)
from braze_sends.stores import optimistic
from braze_sends.stores import postgres as module
from braze_sends.stores.store import MEMORY, STATE_KEPT, Remembered, Transaction, steady
from braze_sends.testing import FakeBraze, Fault
from braze_sends.testing.store_conformance import increment, look, new_workspace, remembers
from tests.servers import PostgresServer, free_port
from tests.waiting import PATIENCE, until, wait_until
from tests.world import KEY

Server = psycopg.AsyncConnection[Any]


@pytest.fixture
def workspace() -> str:
    return new_workspace()


@pytest.fixture(autouse=True)
def _no_server_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test lets time jump."""
    monkeypatch.setattr(module, "CONNECT_TIMEOUT", int(PATIENCE))
    monkeypatch.setattr(module, "STATEMENT_TIMEOUT", PATIENCE)
    monkeypatch.setattr(optimistic, "CONTENTION_TIMEOUT", 10 * PATIENCE)


@pytest_asyncio.fixture
async def server(postgres_url: str) -> AsyncIterator[Server]:
    """A look at the database that is not the store's."""
    async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as server:
        yield server


@pytest_asyncio.fixture
async def opened(postgres_url: str) -> AsyncIterator[Callable[..., PostgresStore]]:
    """Makes stores, which are closed at the end."""
    async with contextlib.AsyncExitStack() as stack:

        def opened(url: str = postgres_url, **options: Any) -> PostgresStore:
            store = PostgresStore(**({"url": url} | options))
            stack.push_async_callback(store.close)
            return store

        yield opened


@pytest_asyncio.fixture
async def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the loop's time jump ahead by so many seconds."""
    loop = asyncio.get_running_loop()
    real, ahead = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: real() + sum(ahead))
    return ahead.append


def client_of(fake: FakeBraze, **options: Any) -> SendsClient:
    options = {"max_rate_limit_wait": 0, "timeout": PATIENCE} | options
    return SendsClient(KEY, base_url=fake.base_url, **options)


async def create(client: SendsClient, names: Collection[object]) -> list[Any]:
    return await asyncio.gather(
        *(client.create_send_id("campaign", f"s{name}") for name in names), return_exceptions=True
    )


async def kill(server: Server, name: str) -> None:
    """End the sessions of an application."""
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE "
    assert await value(server, f"{query} application_name = %s", name[:63])


async def value(server: Server, query: Any, *values: Any) -> Any:
    row = await (await server.execute(query, values)).fetchone()
    return row and row[0]


# --- a network that can be disturbed ---


@attrs.frozen
class Fate:
    """What happens to one statement of the store.

    Attributes:
        arrives: whether the server gets it.
        answered: whether its answer comes back; else the connection is cut.
        silent: the answer is lost, and the connection stays.
        delay: an event to wait for before the answer goes on.
    """

    arrives: bool = True
    answered: bool = True
    silent: bool = False
    delay: asyncio.Event | None = None


CUT_BEFORE = Fate(arrives=False, answered=False)
ANSWER_LOST = Fate(answered=False)
NO_ANSWER = Fate(silent=True)


class Proxy:
    """Stands between a store and its server.

    https://www.postgresql.org/docs/current/protocol-message-formats.html

    Attributes:
        fate: what happens to the store's statement number ``n`` (from 0).
        statements: how many came by; what a connection begins with is not one.
        silence: called when an answer is kept back for good.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.fate: Callable[[int], Fate] = lambda n: Fate()
        self.statements = 0
        self.silence: Callable[[], Awaitable[None]] | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        place = f"{self._target.username}@127.0.0.1:{port}"
        self.url = urlunsplit(
            self._target._replace(netloc=place, query="sslmode=disable&gssencmode=disable")
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await until(lambda: not self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.hostname, self._target.port
        server_reader, server_writer = await asyncio.open_connection(host, port)
        self._writers.add(writer)
        try:
            length = await reader.readexactly(4)
            server_writer.write(length + await reader.readexactly(int.from_bytes(length) - 4))
            writer.write(await _messages(server_reader, b"Z"))
            while True:
                statement = await _messages(reader, b"SX")
                fate, self.statements = self.fate(self.statements), self.statements + 1
                if fate.arrives:
                    server_writer.write(statement)
                    answer = await _messages(server_reader, b"Z")
                if fate.delay is not None:
                    await fate.delay.wait()
                if not fate.answered:
                    return
                if not fate.silent:
                    writer.write(answer)
                elif self.silence is not None:
                    await self.silence()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for one in (writer, server_writer):
                one.close()
            self._writers.discard(writer)


async def _messages(reader: asyncio.StreamReader, last: bytes) -> bytes:
    """Messages up to one of the kinds ``last``."""
    read = b""
    while True:
        kind, length = await reader.readexactly(1), await reader.readexactly(4)
        read += kind + length + await reader.readexactly(int.from_bytes(length) - 4)
        if kind == b"X":
            raise OSError("the client is going")
        if kind in last:
            return read


@pytest_asyncio.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(postgres_url) as proxy:
        yield proxy


# --- tables ---


async def test_migrating_again_changes_nothing(
    blank_url: str, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """The version is told, and what is kept stays."""
    store = opened(blank_url)
    assert module.VERSION == await store.migrate()
    assert 1 == await store.transact(workspace, [], increment)
    assert module.VERSION == await store.migrate()
    assert 2 == await store.transact(workspace, [], increment)


async def test_several_processes_may_migrate_at_once(
    blank_url: str, opened: Callable[..., PostgresStore]
) -> None:
    """Each is told the version, and none fails."""
    stores = [opened(blank_url) for _ in range(6)]
    versions = await asyncio.gather(*(store.migrate() for store in stores))
    assert {module.VERSION} == {*versions}


async def test_several_may_migrate_under_any_isolation(
    blank_url: str, opened: Callable[..., PostgresStore]
) -> None:
    """Also where the database's transactions see its state as it was at their begin."""
    url = f"{blank_url}?options=-cdefault_transaction_isolation%3Dserializable"
    versions = await asyncio.gather(*(opened(url).migrate() for _ in range(6)))
    assert {module.VERSION} == {*versions}


async def test_missing_tables_are_told(
    blank_url: str, opened: Callable[..., PostgresStore]
) -> None:
    """With the command that makes them; then the same store works."""
    store = opened(blank_url)
    with pytest.raises(StoreError, match="run braze-sends store migrate"):
        await store.transact("w", [], increment)
    await store.migrate()
    assert 1 == await store.transact("w", [], increment)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE braze_sends_schema SET version = 99", "newer release; this one knows"),
        ("DELETE FROM braze_sends_schema", "not up to date; run braze-sends store migrate"),
    ],
)
async def test_tables_of_another_version_are_told(
    blank_url: str, opened: Callable[..., PostgresStore], statement: Any, told: str
) -> None:
    """Nothing is read from them or written to them."""
    store = opened(blank_url)
    await store.migrate()
    async with await psycopg.AsyncConnection.connect(blank_url) as server:
        await server.execute(statement)
    with pytest.raises(StoreError, match=told):
        await store.transact("w", [], increment)


async def test_tables_of_a_newer_release_are_not_migrated(
    blank_url: str, opened: Callable[..., PostgresStore]
) -> None:
    """They stay as they are."""
    store = opened(blank_url)
    await store.migrate()
    async with await psycopg.AsyncConnection.connect(blank_url) as server:
        await server.execute("UPDATE braze_sends_schema SET version = 99")
    with pytest.raises(StoreError, match="upgrade braze_sends here"):
        await store.migrate()


GRANTS = """
GRANT SELECT ON braze_sends_schema TO {0};
GRANT SELECT, INSERT, UPDATE, DELETE ON braze_sends_quota, braze_sends_pair TO {0};
"""


@pytest_asyncio.fixture
async def careful_url(blank_url: str) -> AsyncIterator[str]:
    """A user of a migrated database who has no rights."""
    name = f"careful_{secrets.token_hex(8)}"
    store = PostgresStore(blank_url)
    await store.migrate()
    await store.close()
    async with await psycopg.AsyncConnection.connect(blank_url, autocommit=True) as server:
        await server.execute(f"CREATE ROLE {name} LOGIN")
        yield blank_url.replace("postgres@", f"{name}@")
        await server.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_the_documented_grants_suffice(
    careful_url: str, blank_url: str, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """Without them the error names the documentation; with them all but new tables works."""
    store, user = opened(careful_url), str(urlsplit(careful_url).username)
    with pytest.raises(StoreError, match=r"permission denied .* grant what the documentation"):
        await store.transact(workspace, ["pair"], increment)
    async with await psycopg.AsyncConnection.connect(blank_url) as server:
        await server.execute(GRANTS.format(user))
    await store.transact(workspace, ["pair"], remembers({"pair": Remembered("story")}))
    await store.transact(workspace, ["pair"], increment)
    assert module.VERSION == await store.migrate()


async def test_a_user_who_may_not_make_tables_is_told(
    blank_url: str, careful_url: str, opened: Callable[..., PostgresStore]
) -> None:
    """When the tables are missing; nothing is left half made."""
    async with await psycopg.AsyncConnection.connect(blank_url) as server:
        await server.execute("DROP TABLE braze_sends_schema")
    with pytest.raises(StoreError, match="permission denied for schema"):
        await opened(careful_url).migrate()


async def test_the_tables_may_be_in_a_schema_of_their_own(
    blank_url: str, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """The one that the URL names."""
    async with await psycopg.AsyncConnection.connect(blank_url, autocommit=True) as server:
        await server.execute("CREATE SCHEMA apart")
        store = opened(f"{blank_url}?options=-csearch_path%3Dapart")
        await store.migrate()
        assert 1 == await store.transact(workspace, [], increment)
        assert 1 == await value(server, "SELECT count(*) FROM apart.braze_sends_quota")


# --- what is kept there ---


async def test_what_expired_is_deleted_with_what_is_remembered(
    blank_url: str, opened: Callable[..., PostgresStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all workspaces, some at a time, and not what somebody else has locked."""
    monkeypatch.setattr(module, "FORGOTTEN_AT_ONCE", 2)
    store = opened(blank_url)
    await store.migrate()
    for n in range(5):
        await store.transact(f"w{n}", [], remembers({"pair": Remembered("story")}))
    async with await psycopg.AsyncConnection.connect(blank_url, autocommit=True) as server:
        await server.execute("UPDATE braze_sends_pair SET expires = 1")
        assert {} == (await look(store, "w0", ["pair"])).pairs
        async with server.transaction():
            await server.execute(
                "SELECT FROM braze_sends_pair WHERE workspace IN ('w1', 'w2', 'w3') FOR UPDATE"
            )
            await store.transact("w9", [], remembers({"new": Remembered("story")}))
        left = "SELECT array_agg(workspace ORDER BY workspace) FROM braze_sends_pair"
        assert ["w1", "w2", "w3", "w9"] == await value(server, left)
        await store.transact("w9", [], remembers({"newer": Remembered("story")}))
        await store.transact("w9", [], remembers({"newest": Remembered("story")}))
        assert ["w9"] * 3 == await value(server, left)
        expires = await value(server, "SELECT min(expires) FROM braze_sends_pair")
        assert abs(expires - time.time() - MEMORY) < PATIENCE


async def test_a_pair_that_expired_can_be_remembered_anew(
    server: Server, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """It takes the place of what was known."""
    store = opened()
    await store.transact(workspace, [], remembers({"pair": Remembered("old")}))
    await server.execute(
        "UPDATE braze_sends_pair SET expires = 1 WHERE workspace = %s", [workspace]
    )
    await store.transact(workspace, ["pair"], remembers({"pair": Remembered("new")}))
    assert {"pair": Remembered("new")} == (await look(store, workspace, ["pair"])).pairs


async def test_a_state_that_nobody_touched_for_four_days_says_nothing(
    server: Server, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """The workspace begins anew."""
    await opened().transact(workspace, [], increment)
    update = "UPDATE braze_sends_quota SET moment = moment - %s WHERE workspace = %s"
    await server.execute(update, [STATE_KEPT - PATIENCE, workspace])
    assert 1 == (await look(opened(), workspace)).bucket.created
    await server.execute(update, [PATIENCE, workspace])
    assert 1 == await opened().transact(workspace, [], increment)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("UPDATE braze_sends_quota SET state = '{' WHERE workspace = %s", "bucket"),
        ("UPDATE braze_sends_pair SET memory = 'x' WHERE workspace = %s", "remembered"),
    ],
)
async def test_a_damaged_text_is_told(
    server: Server,
    opened: Callable[..., PostgresStore],
    workspace: str,
    damage: Any,
    kind: str,
) -> None:
    """Once deleted, the quota starts over."""
    await opened().transact(workspace, [], remembers({"pair": Remembered("story")}))
    await server.execute(damage, [workspace])
    store = opened()  # one that has not seen it whole
    with pytest.raises(StoreError, match=f"holds a damaged {kind}: delete it there"):
        await store.transact(workspace, ["pair"], increment)
    await server.execute("DELETE FROM braze_sends_quota WHERE workspace = %s", [workspace])
    await server.execute("DELETE FROM braze_sends_pair WHERE workspace = %s", [workspace])
    assert 1 == await store.transact(workspace, ["pair"], increment)


async def test_a_text_that_the_database_cannot_hold_is_told(
    opened: Callable[..., PostgresStore],
) -> None:
    """A zero character, say."""
    with pytest.raises(StoreError, match="NUL"):
        await opened().transact("w\0", [], increment)


# --- what is assumed, and checked ---


async def test_a_step_takes_one_round_trip(
    proxy: Proxy, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """Whether it changes something or not; what changes nothing is not written."""
    store = opened(proxy.url)
    await store.transact(workspace, [], increment)
    proxy.statements = 0
    await look(store, workspace, ["pair"])
    assert 1 == proxy.statements
    await store.transact(workspace, ["pair"], increment)
    assert 2 == proxy.statements


async def test_another_process_that_wrote_is_seen(
    proxy: Proxy, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """By who changes something, at the second try, and by who only looks, in one round trip."""
    store, other = opened(proxy.url), opened()
    await store.transact(workspace, [], increment)
    assert 2 == await other.transact(workspace, [], increment)
    proxy.statements = 0
    assert 3 == await store.transact(workspace, [], increment)
    assert 2 == proxy.statements
    assert 4 == await other.transact(workspace, [], increment)
    assert 4 == (await look(store, workspace)).bucket.created
    assert 3 == proxy.statements


@pytest.mark.parametrize("new", [False, True], ids=["has seen the state", "has seen nothing"])
@pytest.mark.parametrize("asked", [["pair"], []], ids=["asked for", "not asked for"])
async def test_a_pair_that_is_remembered_is_seen(
    opened: Callable[..., PostgresStore], workspace: str, asked: list[str], new: bool
) -> None:
    """Though the state is the one that was assumed, and the pair was not asked for before."""
    store, other = opened(), opened()
    await other.transact(workspace, [], remembers({"pair": Remembered("story")}))
    await other.transact(workspace, [], increment)
    if not new:
        await look(store, workspace)

    def doubt(transaction: Transaction) -> Remembered:
        increment(transaction)
        return transaction.pairs.setdefault("pair", Remembered(None))

    assert Remembered("story") == await store.transact(workspace, asked, doubt)
    found = await look(other, workspace, ["pair"])
    assert (2, {"pair": Remembered("story")}) == (found.bucket.created, found.pairs)


@pytest.mark.parametrize("off", [-3600.0, -1.0, 1.0, 3600.0])
async def test_a_clock_that_jumped_is_read_again(
    proxy: Proxy,
    server: Server,
    opened: Callable[..., PostgresStore],
    workspace: str,
    monkeypatch: pytest.MonkeyPatch,
    off: float,
) -> None:
    """A transaction never has a time that the server's clock has not."""
    clock = "SELECT extract(epoch FROM clock_timestamp())::double precision"
    store = opened(proxy.url)
    await store.transact(workspace, [], increment)
    monkeypatch.setattr(optimistic, "steady", lambda: steady() + off)
    for trips in (2, 1):
        proxy.statements, times = 0, list[float]()

        def change(transaction: Transaction, times: list[float] = times) -> None:
            times.append(transaction.now)
            increment(transaction)

        before = await value(server, clock)
        await store.transact(workspace, [], change)
        assert before - optimistic.BEHIND <= times[-1] <= await value(server, clock)
        assert trips == proxy.statements


async def test_a_late_answer_does_not_set_the_clock_back(
    proxy: Proxy, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """It was on its way for long, so it tells less than what is known."""
    store = opened(proxy.url)
    await store.transact(workspace, [], increment)
    before, began = store._records.now(), steady()
    proxy.fate = lambda n: Fate(delay=late)
    late = asyncio.Event()
    step = asyncio.create_task(store.transact(workspace, [], increment))
    await until(lambda: steady() > began + 0.02)
    late.set()
    await step
    passed = steady() - began
    assert store._records.now() - before >= passed * (1 - optimistic.DRIFT) - 1e-6


async def test_who_only_looks_sees_the_servers_time(
    server: Server, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """Not the one that was assumed, which may be behind."""
    store = opened()
    await store.transact(workspace, [], increment)
    clock, at = store._records.reached
    store._records.reached = clock - optimistic.BEHIND / 2, at
    told = await value(server, "SELECT extract(epoch FROM clock_timestamp())::double precision")
    assert told <= (await look(store, workspace)).now


async def test_a_server_that_is_far_away_takes_what_it_must(
    proxy: Proxy,
    opened: Callable[..., PostgresStore],
    workspace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two round trips, where each takes longer than its clock may be behind."""
    monkeypatch.setattr(optimistic, "BEHIND", 0.0)
    store = opened(proxy.url)
    await store.transact(workspace, [], increment)
    proxy.statements = 0
    assert 2 == await store.transact(workspace, [], increment)
    assert 2 == proxy.statements


async def test_a_record_that_was_deleted_begins_anew(
    server: Server, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """What a process has seen of it is not written back."""
    store = opened()
    assert [1, 2] == [await store.transact(workspace, [], increment) for _ in range(2)]
    await server.execute("DELETE FROM braze_sends_quota WHERE workspace = %s", [workspace])
    assert 1 == await store.transact(workspace, [], increment)


async def test_a_change_that_raises_with_what_is_old_is_tried_again(
    opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """Its error is passed on only if it raises with what is true, too."""
    store, other = opened(), opened()
    await store.transact(workspace, [], increment)

    def at_least(count: int) -> Callable[[Transaction], int]:
        def change(transaction: Transaction) -> int:
            if transaction.bucket.created < count:
                transaction.bucket.created = 100
                raise LookupError
            return increment(transaction)

        return change

    with pytest.raises(LookupError):
        await store.transact(workspace, [], at_least(2))
    await other.transact(workspace, [], increment)
    assert 3 == await store.transact(workspace, [], at_least(2))


async def test_of_two_who_make_a_record_at_once_one_is_first(
    server: Server, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """The other waits for the row, and goes by what it holds."""
    store = opened()
    await look(store, workspace)
    async with server.transaction():
        await server.execute(
            "INSERT INTO braze_sends_quota VALUES (%s, 'theirs', '{\"offset\":0,\"created\":7}', "
            "extract(epoch FROM pg_postmaster_start_time())::text, 1, 1)",
            [workspace],
        )
        await server.execute(
            "UPDATE braze_sends_quota SET moment = extract(epoch FROM clock_timestamp()) "
            "WHERE workspace = %s",
            [workspace],
        )
        task = asyncio.create_task(store.transact(workspace, [], increment))
        await blocked(server)
    assert 8 == await task


async def blocked(server: Server) -> None:
    """Until somebody waits for a lock that ``server`` holds."""
    mine, loop = await value(server, "SELECT pg_backend_pid()"), asyncio.get_running_loop()
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid)) "
        "AND datname = current_database()"
    )
    end = loop.time() + PATIENCE
    while not await value(server, query, mine):
        assert loop.time() < end


async def test_no_update_is_lost_under_any_isolation(
    postgres_url: str, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """Also where a transaction that was not first is refused by the server."""
    url = f"{postgres_url}?options=-cdefault_transaction_isolation%3Dserializable"
    stores = [opened(url) for _ in range(4)] * 5
    results = await asyncio.gather(*(store.transact(workspace, [], increment) for store in stores))
    assert [*range(1, 21)] == sorted(results)


async def test_a_step_that_the_server_refused_for_anothers_is_taken_again(
    opened: Callable[..., PostgresStore], workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes by what the other left."""
    store, other = opened(), opened()
    await store.transact(workspace, [], increment)
    plain, steps = store._ask, itertools.count()

    async def refused(query: str, values: dict[str, Any]) -> Any:
        if next(steps) > 0:
            return await plain(query, values)
        await other.transact(workspace, [], increment)
        raise SerializationFailure

    monkeypatch.setattr(store, "_ask", refused)
    assert 3 == await store.transact(workspace, [], increment)


async def test_a_state_that_is_never_left_alone_is_told(
    opened: Callable[..., PostgresStore], workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are always first: after the time allowed, ``StoreError``."""
    store, other = opened(), opened()
    plain, steps = store._ask, itertools.count()

    async def late(query: str, values: dict[str, Any]) -> Any:
        if next(steps) == 5:
            monkeypatch.setattr(optimistic, "CONTENTION_TIMEOUT", 0.0)
            assert 5 == (await look(other, workspace)).bucket.created
        await other.transact(workspace, [], increment)
        return await plain(query, values)

    monkeypatch.setattr(store, "_ask", late)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: float(next(steps) > 5) * 1e9)
    with pytest.raises(StoreError, match="too many processes write at once"):
        await store.transact(workspace, [], increment)


# --- a network that loses things ---


async def test_a_step_whose_answer_was_lost_counts_once(
    proxy: Proxy, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """It is sent again, and finds its own revision."""
    store = opened(proxy.url)
    await store.transact(workspace, [], increment)
    proxy.statements, runs = 0, []

    def change(transaction: Transaction) -> int:
        runs.append(transaction.now)
        return increment(transaction)

    proxy.fate = lambda n: ANSWER_LOST if n == 0 else Fate()
    assert 2 == await store.transact(workspace, [], change)
    assert (2, 1) == (proxy.statements, len(runs))
    assert 2 == (await look(store, workspace)).bucket.created


async def test_who_comes_between_is_not_overwritten(
    proxy: Proxy, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """A step that is sent again after another's change is a conflict: it runs anew."""
    store, other = opened(proxy.url), opened()
    await store.transact(workspace, [], increment)
    proxy.statements = 0
    seen: list[tuple[int, list[str]]] = []

    def change(transaction: Transaction) -> int:
        seen.append((transaction.bucket.used, sorted(transaction.pairs)))
        transaction.bucket.used += 1
        transaction.pairs.setdefault("mine", Remembered(None))
        return transaction.bucket.used

    def theirs(transaction: Transaction) -> None:
        transaction.bucket.used += 10
        transaction.pairs["theirs"] = Remembered("story")

    cut = asyncio.Event()
    proxy.fate = lambda n: attrs.evolve(CUT_BEFORE, delay=cut) if n == 0 else Fate()
    task = asyncio.create_task(store.transact(workspace, ["theirs"], change))
    await until(lambda: proxy.statements == 1)
    await other.transact(workspace, [], theirs)
    cut.set()
    assert 11 == await task
    assert [(0, []), (10, ["theirs"])] == seen
    found = await look(other, workspace, ["mine", "theirs"])
    assert {"mine": Remembered(None), "theirs": Remembered("story")} == found.pairs


async def test_an_answer_that_never_comes_is_given_up(
    proxy: Proxy,
    opened: Callable[..., PostgresStore],
    workspace: str,
    jump: Callable[[float], None],
) -> None:
    """The step is sent again over another connection, and counts once."""
    store = opened(proxy.url)
    await store.transact(workspace, [], increment)
    proxy.statements = 0

    async def time_out() -> None:
        jump(PATIENCE)

    proxy.fate = lambda n: NO_ANSWER if n == 0 else Fate()
    proxy.silence = time_out
    assert 2 == await store.transact(workspace, [], increment)
    assert 2 == (await look(store, workspace)).bucket.created


DISTURBANCES: dict[str, Callable[[int], Fate]] = {
    "answers are lost": lambda n: ANSWER_LOST if n % 3 == 1 else Fate(),
    "connections are cut": lambda n: CUT_BEFORE if n % 3 == 1 else Fate(),
    "both": lambda n: {1: CUT_BEFORE, 3: ANSWER_LOST}.get(n % 5, Fate()),
}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
async def test_a_bad_network_costs_no_slot_and_no_send(
    fake: FakeBraze,
    proxy: Proxy,
    opened: Callable[..., PostgresStore],
    disturbance: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two clients, 30 creates, a quota of 20: 20 are created, and the numbers are right."""
    # Nobody waits for the other's share, which would take seconds.
    monkeypatch.setattr("braze_sends.quota.rule.share.PRESENT", 0.0)
    fake.daily_limit = 20
    proxy.fate = DISTURBANCES[disturbance]
    async with (
        client_of(fake, store=opened(proxy.url), max_rate_limit_wait=60) as bad,
        client_of(fake, store=opened(), max_rate_limit_wait=60) as good,
    ):
        results = await asyncio.gather(create(bad, range(15)), create(good, range(15, 30)))
        sends = [send for sends in results for send in sends if isinstance(send, SendId)]
        assert (20, 20, 0) == (len(sends), len(fake.created), fake.refused)
        assert {send_id for _, send_id in fake.created} == {str(send) for send in sends}
        for client in (bad, good):
            status = await client.quota()
            assert (0, 0, 0) == (status.remaining, status.in_flight, status.unconfirmed)
        again = await create(bad, [str(send)[1:] for send in sends])
        assert all(send.reused for send in again)
    assert (20, 0) == (len(fake.created), fake.refused)


async def test_connections_that_were_killed_are_replaced(
    server: Server, postgres_url: str, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """All at once: the next use is told nothing of it."""
    store = opened(f"{postgres_url}?application_name={workspace}")
    await asyncio.gather(*(store.transact(workspace, [], increment) for _ in range(8)))
    await kill(server, workspace)
    assert 9 == await store.transact(workspace, [], increment)


async def test_a_create_that_is_cancelled_leaves_the_store_usable(
    server: Server, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """Its statement is ended on the server, and its connection is not used again."""
    store = opened()
    await store.transact(workspace, [], increment)
    async with server.transaction():
        await server.execute(
            "SELECT FROM braze_sends_quota WHERE workspace = %s FOR UPDATE", [workspace]
        )
        task = asyncio.create_task(store.transact(workspace, [], increment))
        await blocked(server)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert 2 == await store.transact(workspace, [], increment)


async def test_at_most_four_connections_are_opened_by_a_loop(
    server: Server, postgres_url: str, opened: Callable[..., PostgresStore]
) -> None:
    """However many transactions are under way."""
    store = opened(f"{postgres_url}?application_name={(name := new_workspace())}")
    await asyncio.gather(*(store.transact(f"{name}{n}", [], increment) for n in range(40)))
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
    assert 1 <= await value(server, query, name[:63]) <= module.MOST_CONNECTIONS


# --- a server that goes away ---


async def test_a_server_that_is_down_lets_nothing_be_sent(fake: FakeBraze) -> None:
    """``StoreError``, soon; it heals by itself when the server is back, and doubts what it has."""
    fake.daily_limit = 20
    with PostgresServer() as postgres:
        store = PostgresStore(postgres.url)
        await store.migrate()
        async with client_of(fake, store=store) as braze:
            assert all(isinstance(result, SendId) for result in await create(braze, range(3)))
            postgres.stop()
            for error in await create(braze, ["down"]):
                assert isinstance(error, StoreError)
                assert False is error.quota_spent
                assert "cannot connect: " in str(error)
            assert 3 == len(fake.requests)
            postgres.start()
            answer = asyncio.Event()
            fake.fault_for = lambda request: Fault(stall=answer)
            burst = asyncio.create_task(create(braze, range(3, 40)))
            await until(lambda: 4 == len(fake.requests))
            assert not burst.done()  # one careful request goes first
            answer.set()
            assert 17 == sum(isinstance(result, SendId) for result in await burst)
            assert (20, 0) == (len(fake.created), fake.refused)
        await store.close()


@pytest.mark.parametrize("client", ["lives on", "is new"])
async def test_a_server_restored_from_an_old_copy_is_not_believed(
    fake: FakeBraze, client: str
) -> None:
    """One careful request tells what the copy lacks; a replica that was behind is the same."""
    with PostgresServer() as postgres:
        data, copy = postgres.folder / "data", postgres.folder / "copy"
        store = PostgresStore(postgres.url)
        await store.migrate()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            braze = await stack.enter_async_context(client_of(fake, store=store))
            await create(braze, range(10))
            postgres.stop()
            subprocess.run(["cp", "-a", data, copy], check=True)  # noqa: ASYNC221  # nobody waits
            postgres.start()
            assert 80 == sum(isinstance(one, SendId) for one in await create(braze, range(10, 90)))
            postgres.stop()
            shutil.rmtree(data)
            copy.rename(data)
            postgres.start()
            if client == "is new":
                braze = await stack.enter_async_context(client_of(fake, store=postgres.url))
            results = await create(braze, range(100, 220))
            assert 10 == sum(isinstance(result, SendId) for result in results)
            assert (100, 0) == (len(fake.created), fake.refused)


async def test_a_server_that_goes_down_after_sending_costs_no_send(
    fake: FakeBraze, caplog: pytest.LogCaptureFixture
) -> None:
    """What was created is returned, and what could not be kept is logged."""
    answer = asyncio.Event()
    fake.fault_for = lambda request: Fault(stall=answer)
    with PostgresServer() as postgres:
        store = PostgresStore(postgres.url)
        await store.migrate()
        async with client_of(fake, store=store) as braze:
            burst = asyncio.create_task(create(braze, [0]))
            await until(lambda: fake.created)
            postgres.stop()
            answer.set()
            assert ["s0"] == [str(send) for send in await burst]
        await store.close()
    record = caplog.records[-1]
    assert record.message.startswith("settling failed ")
    assert f"message={store._name}: cannot connect" in record.message


async def test_a_server_that_only_reads_is_told(
    postgres_url: str, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """As a standby does, or the primary server that was, after a failover."""
    store = opened(f"{postgres_url}?options=-cdefault_transaction_read_only%3Don")
    await look(store, workspace)
    with pytest.raises(StoreError, match="read-only transaction; name the primary server"):
        await store.transact(workspace, [], increment)


def knows(transaction: Transaction) -> None:
    """A state that is believed."""
    transaction.bucket.used, transaction.bucket.known = 3, True
    transaction.bucket.probes = 4


async def doubts(store: PostgresStore, workspace: str) -> bool:
    """Whether the store gives a state that is not believed."""
    transaction = await look(store, workspace)
    assert 3 == transaction.bucket.used
    if transaction.bucket.known:
        return False
    assert (1, transaction.now) == (transaction.bucket.probes, transaction.bucket.unknown_since)
    return True


async def test_only_the_first_to_see_an_old_state_doubts_it(
    server: Server, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """A state of another server, as after a failover. Once the doubt is kept, all go by it."""
    stores = opened(), opened()
    await stores[0].transact(workspace, [], knows)
    assert not await doubts(stores[1], workspace)
    await server.execute(
        "UPDATE braze_sends_quota SET server = 'another', revision = '2d' WHERE workspace = %s",
        [workspace],
    )
    assert [True] * 3 == [await doubts(stores[n], workspace) for n in (0, 1, 0)]
    await stores[0].transact(workspace, [], increment)
    kept = (await look(stores[0], workspace)).bucket
    assert not kept.known
    assert kept == (await look(stores[1], workspace)).bucket


async def test_a_state_of_another_server_is_not_overwritten_unseen(
    opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """A failover meanwhile is a conflict, though the revision is the same."""
    store = opened()
    await store.transact(workspace, [], knows)
    store._records.seen[workspace] = attrs.evolve(
        store._records.seen[workspace], server="the server before"
    )
    runs = []

    def change(transaction: Transaction) -> None:
        runs.append(transaction.now)
        increment(transaction)

    await store.transact(workspace, [], change)
    assert 2 == len(runs)


async def test_a_record_that_was_set_back_is_doubted(
    server: Server, opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """A dump that was restored on a server that lives on, seen by who has seen a later state."""
    store, other = opened(), opened()
    for _ in range(5):
        await store.transact(workspace, [], knows)
        await store.transact(workspace, [], increment)
    await server.execute(
        "UPDATE braze_sends_quota SET writes = 1, revision = '2d' WHERE workspace = %s",
        [workspace],
    )
    await other.transact(workspace, [], increment)  # which cannot see it
    assert await doubts(store, workspace)
    await store.transact(workspace, [], knows)
    assert not await doubts(store, workspace)


@pytest.mark.parametrize(
    ("ahead", "doubted"), [(50.0, False), (3600.0, True), ("Infinity", True), ("NaN", True)]
)
async def test_a_clock_that_is_behind_the_record_does_not_set_the_time_back_far(
    server: Server,
    opened: Callable[..., PostgresStore],
    workspace: str,
    ahead: float | str,
    doubted: bool,
) -> None:
    """As after a failover: within a minute time stands still; else it is the clock's, and the
    state is doubted."""
    store = opened()
    await store.transact(workspace, [], knows)
    moment = await value(
        server,
        "UPDATE braze_sends_quota SET moment = extract(epoch FROM clock_timestamp()) + %s::float8 "
        "WHERE workspace = %s RETURNING moment",
        ahead,
        workspace,
    )
    store = opened()
    now = (await look(store, workspace)).now
    assert doubted is await doubts(store, workspace)
    if doubted:
        assert abs(now - time.time()) < 1000
    else:
        assert moment == now
    await store.transact(workspace, [], increment)
    assert doubted is not (await look(store, workspace)).bucket.known
    assert now <= (await look(store, workspace)).now < now + PATIENCE
    await store.transact(workspace, [], knows)
    assert (await look(store, workspace)).bucket.known  # it was doubted once


# --- an application's own pool ---


@pytest_asyncio.fixture
async def pool(postgres_url: str, workspace: str) -> AsyncIterator[AsyncConnectionPool[Any]]:
    """One that has its own ways."""
    url = f"{postgres_url}?application_name={workspace}"
    options = {"row_factory": dict_row}
    async with AsyncConnectionPool(
        url, min_size=1, max_size=3, open=False, timeout=PATIENCE, kwargs=options
    ) as pool:
        yield pool


async def test_a_pool_of_the_application_is_used_and_left_open(
    pool: AsyncConnectionPool[Any], opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """Its connections are given back as they were."""
    store = PostgresStore(pool=pool)
    assert "PostgresStore('PostgreSQL')" == repr(store)
    assert module.VERSION == await store.migrate()
    results = await asyncio.gather(*(store.transact(workspace, [], increment) for _ in range(20)))
    assert [*range(1, 21)] == sorted(results)
    assert 20 == (await look(opened(), workspace)).bucket.created
    await store.close()
    async with pool.connection() as connection:
        assert not connection.autocommit
        assert {"one": 1} == await (await connection.execute("SELECT 1 AS one")).fetchone()


async def test_lost_connections_of_a_pool_are_replaced(
    pool: AsyncConnectionPool[Any], server: Server, workspace: str
) -> None:
    """The next use is told nothing of it."""
    store = PostgresStore(pool=pool)
    await asyncio.gather(*(store.transact(workspace, [], increment) for _ in range(8)))
    await kill(server, workspace)
    assert 9 == await store.transact(workspace, [], increment)


async def test_a_pool_that_is_closed_is_told(
    pool: AsyncConnectionPool[Any], workspace: str
) -> None:
    """In the pool's own words."""
    await pool.close()
    with pytest.raises(StoreError, match=r"pool .* is already closed"):
        await PostgresStore(pool=pool).transact(workspace, [], increment)


def test_a_store_has_either_a_url_or_a_pool(pool: AsyncConnectionPool[Any]) -> None:
    """Neither and both are refused."""
    for options in ({}, {"url": "postgresql://h/d", "pool": pool}):
        with pytest.raises(ConfigurationError, match="either a postgresql:// URL or a pool"):
            PostgresStore(**options)  # type: ignore[arg-type]


# --- URLs ---


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:sesame@127.0.0.1:{port}/db",
        "postgres://user:sesame@127.0.0.1:{port}/db?connect_timeout=2",
        "postgresql://127.0.0.1:{port}/db?user=u&password=sesame",
        "postgresql://user:sesame@/db?host=/nowhere/sesame",
    ],
)
async def test_no_password_is_shown(url: str) -> None:
    """In no repr, message or traceback, where no server answers."""
    store = open_store(url.format(port=free_port()))
    with pytest.raises(StoreError) as caught:
        await store.transact("w", [], increment)
    shown = [repr(store), repr(caught.value), *traceback.format_exception(caught.value)]
    shown.append(repr(SendsClient(KEY, base_url="US-01", store=store)))
    assert "sesame" not in "".join(shown).replace("/nowhere/sesame", "")
    await store.close()


async def test_a_user_who_is_not_known_is_told(postgres_url: str) -> None:
    """By name, without the password."""
    store = open_store(postgres_url.replace("postgres@", "nobody:sesame@"))
    with pytest.raises(StoreError, match=r'cannot connect: .*role "nobody" does not exist') as c:
        await store.transact("w", [], increment)
    assert "sesame" not in "".join(traceback.format_exception(c.value))


@pytest.mark.parametrize(
    "url",
    [
        "http://sesame@host",
        "",
        7,
        "postgresql://host:sesame/0",
        "postgresql://host/db?sesame=1",
        "postgresql://user:open@sesame@host/db",
        "postgresql://user:open/sesame@host/db",
        "postgresql://user:1234/sesame@host/db",
        "postgresql://host/password=sesame",
        "postgresql://us%zzer:sesame@host/db",
    ],
)
def test_a_bad_url_is_refused(url: Any) -> None:
    """The message shows nothing of it, and says how to write a password."""
    with pytest.raises(ConfigurationError, match="in a password write @ as %40") as c:
        PostgresStore(url)
    assert "sesame" not in "".join(traceback.format_exception(c.value))


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgresql+psycopg", "postgres+x"])
def test_a_url_that_names_a_driver_is_refused(scheme: str) -> None:
    """With the spelling that works."""
    with pytest.raises(ConfigurationError, match=r"leave out \+") as caught:
        open_store(f"{scheme}://user:sesame@host/db")
    assert "sesame" not in str(caught.value)


def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where psycopg is not installed, the message says how to."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'braze_sends\[postgres\]'"):
        open_store("postgresql://127.0.0.1/db")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://user:sesame@example.com:6432/app?sslmode=require", "example.com:6432/app"),
        ("postgres://a:1,b:2/app", "a,b:1,2/app"),
        ("postgresql:///app?host=/run/postgresql", "/run/postgresql/app"),
        ("postgresql://", "/"),
    ],
)
def test_the_repr_names_the_server(url: str, name: str) -> None:
    """For debugging."""
    assert f"PostgresStore('postgresql://{name}')" == repr(PostgresStore(url))


# --- loops and processes ---

LEFT_OPEN = """
import asyncio, gc, logging, os, sys
from braze_sends import PostgresStore
from braze_sends.stores import postgres
from braze_sends.testing.store_conformance import increment, new_workspace

# On a busy machine, asyncio's debug mode would tell of slow steps.
logging.getLogger("asyncio").addFilter(lambda record: not record.msg.startswith("Executing "))
postgres.CONNECT_TIMEOUT = postgres.STATEMENT_TIMEOUT = 300
store, workspace = PostgresStore(sys.argv[1]), new_workspace()
print(asyncio.run(store.transact(workspace, [], increment)), flush=True)
gc.collect()
child = os.fork()
print(asyncio.run(store.transact(workspace, [], increment)) > 1, flush=True)
gc.collect()
if child:
    os.waitpid(child, 0)
    print(asyncio.run(store.transact(workspace, [], increment)), flush=True)
    if len(sys.argv) > 2:
        asyncio.run(store.close())  # not in the loop that opened it
    else:
        del store
    gc.collect()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
@pytest.mark.parametrize("end", [[], ["close"]], ids=["left open", "closed"])
def test_a_store_may_be_left_open(postgres_url: str, end: list[str]) -> None:
    """From loop to loop, in a fork, and to the end of the process: no warning, and no session of
    the parent is ended by the child."""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", LEFT_OPEN, postgres_url, *end]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ["1", "True", "True", "4"] == (done.stdout + done.stderr).splitlines()


async def test_a_fork_opens_connections_of_its_own(
    opened: Callable[..., PostgresStore], workspace: str
) -> None:
    """What it closes does not reach the server: the session goes on for who else has it open."""
    store = opened()
    await store.transact(workspace, [], increment)
    idle = store._connections._idle  # type: ignore[union-attr]  # it is the store's own
    (connection,) = idle.connections
    with socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as parents:
        idle.pid = -1
        assert 2 == await store.transact(workspace, [], increment)
        assert connection.closed
        parents.setblocking(False)
        with pytest.raises(BlockingIOError):  # the server has neither answered nor hung up
            parents.recv(1)


def sessions(url: str, name: str) -> int:
    """How many of an application the server has."""
    with psycopg.connect(url) as server:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s"
        row = server.execute(query, [name]).fetchone()
        return int(row[0]) if row else 0


def test_loops_that_take_turns_share_one_connection(postgres_url: str, workspace: str) -> None:
    """It belongs to no loop, and any loop may close it."""
    store = PostgresStore(f"{postgres_url}?application_name={workspace}")
    runners = [asyncio.Runner() for _ in range(6)]
    for n, runner in enumerate(runners * 2):
        assert n + 1 == runner.run(store.transact(workspace, [], increment))
    assert 1 == sessions(postgres_url, workspace)
    runners[0].run(store.close())
    wait_until(lambda: not sessions(postgres_url, workspace))
    for runner in runners:
        runner.close()


def test_loops_of_several_threads_share_a_store(postgres_url: str, workspace: str) -> None:
    """At once, without harm to each other, and closing it closes the connections of them all."""
    store = PostgresStore(f"{postgres_url}?application_name={workspace}")
    loops = [asyncio.new_event_loop() for _ in range(4)]
    threads = [threading.Thread(target=loop.run_forever) for loop in loops]
    for thread in threads:
        thread.start()

    async def several() -> list[int]:
        return [await store.transact(workspace, [], increment) for _ in range(5)]

    runs = [asyncio.run_coroutine_threadsafe(several(), loop) for loop in loops * 3]
    assert [*range(1, 61)] == sorted(n for run in runs for n in run.result(PATIENCE))
    asyncio.run_coroutine_threadsafe(store.close(), loops[0]).result(PATIENCE)
    wait_until(lambda: not sessions(postgres_url, workspace))
    for loop, thread in zip(loops, threads, strict=True):
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# --- what it costs ---


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may be as slow as a busy machine makes it."""
    monkeypatch.setattr(optimistic, "BEHIND", 3600.0)


@pytest.mark.usefixtures("patient")
async def test_a_lone_create_takes_two_round_trips(fake: FakeBraze, proxy: Proxy) -> None:
    """One to reserve, one to settle; none of them while the request is out."""
    async with client_of(fake, store=proxy.url) as braze:
        await create(braze, [0])
        proxy.statements = 0
        arrived: list[int] = []
        fake.fault_for = lambda request: arrived.append(proxy.statements)
        await create(braze, [1])
        assert [1] == arrived
        assert 2 == proxy.statements
        await create(braze, [1])
        assert 3 == proxy.statements
