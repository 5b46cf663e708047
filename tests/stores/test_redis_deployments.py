"""Every way in which people run Redis, on real servers: an application's own client, a cluster
whose slots move, sentinels that fail over, users with few permissions, and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest
import pytest_asyncio
from redis import Redis as SyncRedis
from redis import exceptions
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ResponseError

from braze_sends import ConfigurationError, QuotaExhaustedError, SendId, StoreError, open_store
from braze_sends.stores import optimistic
from braze_sends.stores import redis as module
from braze_sends.stores.redis import RedisStore
from braze_sends.stores.redis_clients import make
from braze_sends.stores.redis_errors import in_words
from braze_sends.stores.store import Remembered
from braze_sends.testing import FakeBraze
from braze_sends.testing.store_conformance import increment, look, new_workspace, remembers
from tests.servers import RedisServer, SentinelServer, cluster_url, free_port
from tests.stores.test_redis import CUT_BEFORE, REPLY_LOST, Fate, Proxy, client_of, create, held
from tests.waiting import PATIENCE, until, wait_until

#: A key and its certificate for 127.0.0.1 and localhost.
CERTIFICATE = Path(__file__).parents[1] / "cli" / "certificates" / "good.pem"


@pytest.fixture
def workspace() -> str:
    return new_workspace()


@pytest.fixture(autouse=True)
def _no_server_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMAND_TIMEOUT", PATIENCE)
    monkeypatch.setattr(optimistic, "CONTENTION_TIMEOUT", 10 * PATIENCE)
    monkeypatch.setattr("redis.backoff.ExponentialBackoff", lambda **_: NoBackoff())


@pytest_asyncio.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url) as proxy:
        yield proxy


def once() -> Retry:
    """Nothing is tried again."""
    return Retry(NoBackoff(), 0)


# --- an application's own client ---


@pytest.mark.parametrize("decode", [True, False], ids=["decoded", "bytes"])
async def test_an_applications_client_is_used_and_stays_open(
    fake: FakeBraze, redis_url: str, decode: bool
) -> None:
    """Closing the store closes nothing of the application's."""
    async with Redis.from_url(redis_url, decode_responses=decode) as redis:
        store = RedisStore(client=redis)
        async with client_of(fake, store=store) as braze:
            assert all(isinstance(result, SendId) for result in await create(braze, range(5)))
            assert all(send.reused for send in await create(braze, range(5)))
        await store.close()
        pool: Any = redis.connection_pool
        assert not pool._in_use_connections
        assert any(connection.is_connected for connection in pool._available_connections)
        assert await redis.ping()


async def test_a_client_of_another_encoding_keeps_the_same_records(
    redis_url: str, workspace: str
) -> None:
    """A store that a URL opened reads what the application's Latin-1 client has kept."""
    async with Redis.from_url(redis_url, encoding="latin-1", decode_responses=True) as redis:
        store, other = RedisStore(client=redis), RedisStore(redis_url)
        await store.transact(workspace, [], remembers({"pär": Remembered("story")}))
        assert {"pär": Remembered("story")} == (await look(other, workspace, ["pär"])).pairs
        await other.close()


@pytest.mark.parametrize("retries", [1, 3, -1], ids=["once", "thrice", "for ever"])
@pytest.mark.parametrize("lost", [REPLY_LOST, CUT_BEFORE], ids=["reply", "command"])
async def test_a_clients_own_retries_count_nothing_twice(
    proxy: Proxy, workspace: str, retries: int, lost: Fate
) -> None:
    """A step that ran, and whose reply was lost, finds its own revision when it is repeated."""
    retry = Retry(NoBackoff(), retries)
    async with Redis.from_url(proxy.url, retry=retry) as redis:
        store = RedisStore(client=redis)
        await store.transact(workspace, [], increment)
        proxy.scripts = 0
        proxy.fate = lambda n: lost if n == 0 else Fate()
        assert 2 == await store.transact(workspace, [], increment)
        assert 2 == proxy.scripts
        assert 2 == (await look(store, workspace)).bucket.created


async def test_a_client_without_retries_loses_no_send(fake: FakeBraze, proxy: Proxy) -> None:
    """The store repeats a step once by itself, so the quota is used up and not overrun."""
    fake.daily_limit = 20
    async with (
        Redis.from_url(proxy.url, retry=once()) as redis,
        client_of(fake, store=RedisStore(client=redis)) as braze,
    ):
        proxy.fate = lambda n: REPLY_LOST if n % 3 == 1 else Fate()
        results = await create(braze, range(30))
        assert 20 == sum(isinstance(result, SendId) for result in results)
        assert (20, 0) == (len(fake.created), fake.refused)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step may be as slow as a busy machine makes it."""
    monkeypatch.setattr(optimistic, "BEHIND", 3600.0)


@pytest.mark.usefixtures("patient")
async def test_a_lone_create_on_an_applications_client_takes_two_round_trips(
    fake: FakeBraze, proxy: Proxy
) -> None:
    """One to reserve, one to settle, as with a URL."""
    async with (
        Redis.from_url(proxy.url) as redis,
        client_of(fake, store=RedisStore(client=redis)) as braze,
    ):
        await create(braze, [0])
        proxy.scripts = 0
        await create(braze, [1])
        assert 2 == proxy.scripts


def test_a_client_stays_in_the_loop_that_uses_it(redis_url: str, workspace: str) -> None:
    """Another loop is told so, and may use the client once the first loop is closed."""
    redis = Redis.from_url(redis_url)
    store = RedisStore(client=redis)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        assert 1 == first.run(store.transact(workspace, [], increment))
        with pytest.raises(StoreError, match="belongs to another event loop: give each loop"):
            second.run(store.transact(workspace, [], increment))
        first.run(redis.aclose())
        first.close()
        assert 2 == second.run(store.transact(workspace, [], increment))
        second.run(redis.aclose())


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the application left a connection open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_whose_connections_belong_to_a_closed_loop_is_told(
    redis_url: str, workspace: str
) -> None:
    """As a ``StoreError``, and not as asyncio's error."""
    store = RedisStore(client=Redis.from_url(redis_url))
    asyncio.run(store.transact(workspace, [], increment))
    with pytest.raises(StoreError, match="belongs to another event loop: give each loop"):
        asyncio.run(store.transact(workspace, [], increment))
    del store
    gc.collect()  # so that no other test is told


async def test_an_error_of_the_change_about_a_loop_is_passed_on(
    redis_url: str, workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``RuntimeError`` that is not the application's client's is not put in other words."""

    async def fails(*_: Any) -> list[bytes]:
        raise RuntimeError("the loop is odd")

    monkeypatch.setattr(module, "_run", fails)
    store = RedisStore(redis_url)
    with pytest.raises(RuntimeError, match="the loop is odd"):
        await store.transact(workspace, [], increment)
    await store.close()


@pytest.mark.parametrize("arguments", [{}, {"url": "redis://h/0", "client": Redis()}])
def test_a_store_needs_either_a_url_or_a_client(arguments: dict[str, Any]) -> None:
    """Not both, and not neither."""
    with pytest.raises(ConfigurationError, match="either a URL or client=, and not both"):
        RedisStore(**arguments)


@pytest.mark.parametrize("client", [SyncRedis(), "redis://sesame@h/0", 7])
def test_what_is_no_client_of_asyncio_is_refused(client: Any) -> None:
    """The message names what is accepted."""
    with pytest.raises(ConfigurationError, match=r"client of redis\.asyncio: Redis, R") as caught:
        RedisStore(client=client)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("client", "name"),
    [
        (Redis(host="h", port=7000, db=3, password="sesame"), "redis://h:7000/3"),
        (Redis(unix_socket_path="/run/r.sock"), "unix:///run/r.sock"),
        (RedisCluster(host="h", port=7000, password="sesame"), "redis+cluster://h:7000"),
        (Sentinel([("h", 1)]).master_for("quota"), "redis+sentinel:///quota"),  # type: ignore[no-untyped-call]  # theirs
    ],
)
def test_the_repr_names_where_a_client_connects_to(client: Any, name: str) -> None:
    """Without its password."""
    assert f"RedisStore({name!r})" == repr(RedisStore(client=client))


async def test_a_client_whose_user_may_not_run_info_is_refused(
    redis_url: str, workspace: str
) -> None:
    """Nothing would show that a replica which lacks writes has taken over."""
    async with Redis.from_url(redis_url) as server:
        await server.acl_setuser(
            "careful",
            enabled=True,
            passwords=["+sesame"],
            keys=["*"],
            categories=["+@all", "-@dangerous"],
        )
    async with Redis.from_url(redis_url, username="careful", password="sesame") as redis:
        store = RedisStore(client=redis)
        with pytest.raises(StoreError, match="allow the user to run INFO"):
            await store.transact(workspace, [], increment)


# --- a cluster ---


class Slot:
    """The slot of a workspace, and the nodes that it can be moved between."""

    def __init__(self, workspace: str, nodes: list[Any], ports: list[int]) -> None:
        self.number = key_slot(f"braze_sends:{{{workspace}}}:quota".encode())
        self._nodes, self._ports = nodes, ports

    async def begin(self) -> tuple[int, int]:
        """Open the move to the next node; from where and to where it goes."""
        source = await self._owner()
        target = (source + 1) % len(self._nodes)
        ids = [await node.execute_command("CLUSTER", "MYID") for node in self._nodes]
        await self._set(target, "IMPORTING", ids[source])
        await self._set(source, "MIGRATING", ids[target])
        return source, target

    async def move_keys(self, source: int, target: int, *keys: bytes) -> None:
        """Move keys; all that there are by default."""
        node = self._nodes[source]
        found = keys or await node.execute_command("CLUSTER", "GETKEYSINSLOT", self.number, 1000)
        if found:
            await node.migrate("127.0.0.1", self._ports[target], list(found), 0, 60_000)

    async def end(self, source: int, target: int) -> None:
        """Tell every node who has the slot, the new owner first."""
        while await self._nodes[source].execute_command("CLUSTER", "COUNTKEYSINSLOT", self.number):
            await self.move_keys(source, target)
        owner = await self._nodes[target].execute_command("CLUSTER", "MYID")
        for n in sorted(range(len(self._nodes)), key=lambda n: n != target):
            await self._set(n, "NODE", owner)

    async def _set(self, node: int, *state: Any) -> None:
        await self._nodes[node].execute_command("CLUSTER", "SETSLOT", self.number, *state)

    async def _owner(self) -> int:
        for first, last, (_, port, *_), *_ in await self._nodes[0].execute_command(
            "CLUSTER", "SLOTS", NEVER_DECODE=True
        ):
            if first <= self.number <= last:
                return self._ports.index(port)
        raise AssertionError


@pytest_asyncio.fixture
async def slot(cluster: list[RedisServer], workspace: str) -> AsyncIterator[Slot]:
    async with AsyncExitStack() as stack:
        nodes: list[Any] = [
            await stack.enter_async_context(Redis.from_url(node.url)) for node in cluster
        ]
        for node in nodes:  # as the server gives it, whatever the release of redis-py
            node.response_callbacks.clear()
        yield Slot(workspace, nodes, [node.port for node in cluster])


async def test_a_slot_that_moves_while_creates_run_costs_nothing(
    fake: FakeBraze,
    cluster: list[RedisServer],
    workspace: str,
    slot: Slot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From node to node and on: the quota is used up and not overrun, and no send is lost."""
    monkeypatch.setattr(module, "SLOT_MOVES", (0.01,) * 10_000)  # the machine may be slow
    fake.daily_limit = 60
    url = cluster_url(cluster)
    plain, steps = module._run, 0

    async def counted(*arguments: Any) -> list[bytes]:
        nonlocal steps
        steps += 1
        return await plain(*arguments)

    monkeypatch.setattr(module, "_run", counted)
    async with (
        client_of(fake, store=url, workspace=workspace) as one,
        client_of(fake, store=url, workspace=workspace) as other,
    ):
        results = await create(one, ["first"])
        for n in range(10):
            creates = [
                create(one, range(8 * n, 8 * n + 4)),
                create(other, range(8 * n + 4, 8 * n + 8)),
            ]
            if n % 2:  # the creates begin while neither node has all keys
                way, begun = await slot.begin(), steps
                await slot.move_keys(*way)
                running = asyncio.gather(*creates)
                await until(lambda begun=begun: steps >= begun + 2)  # type: ignore[misc]  # at once
            else:  # the slot moves while a request is on its way
                sent, answer = len(fake.requests), held(fake)
                running = asyncio.gather(*creates)
                await until(lambda sent=sent, run=running: len(fake.requests) > sent or run.done())  # type: ignore[misc]  # at once
                way = await slot.begin()
                await slot.move_keys(*way)
                answer.set()
            await slot.end(*way)
            for some in await running:
                results += some
        sends = [result for result in results if isinstance(result, SendId)]
        others = [result for result in results if not isinstance(result, SendId)]
        assert all(isinstance(result, QuotaExhaustedError) for result in others), others
        assert (60, 60, 0) == (len(sends), len(fake.created), fake.refused)
        again = await create(other, [str(send)[1:] for send in sends])
        assert all(send.reused for send in again)
        status = await one.quota()
        assert (0, 0, 0) == (status.remaining, status.in_flight, status.unconfirmed)
    assert (60, 0) == (len(fake.created), fake.refused)


async def test_a_slot_that_stays_half_moved_is_told_and_heals(
    cluster: list[RedisServer], workspace: str, slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While neither node has all keys, nothing is kept; after the move the store goes on."""
    monkeypatch.setattr(module, "SLOT_MOVES", (0.0,))
    store = RedisStore(cluster_url(cluster))
    await store.transact(workspace, [], remembers({"pair": Remembered("story")}))
    assert 1 == await store.transact(workspace, [], increment)
    way = await slot.begin()
    await slot.move_keys(*way, f"braze_sends:{{{workspace}}}:quota".encode())
    with pytest.raises(StoreError, match="moving this workspace's slot for too long"):
        await store.transact(workspace, ["pair"], increment)
    assert 2 == await store.transact(workspace, [], increment)  # ASK leads to the state
    await slot.end(*way)
    assert 3 == await store.transact(workspace, ["pair"], increment)
    await store.close()


async def test_a_state_on_another_node_is_not_believed(
    cluster: list[RedisServer], workspace: str, slot: Slot
) -> None:
    """A node that took over may lack writes, so one careful request goes first."""
    store = RedisStore(cluster_url(cluster))

    def known(transaction: Any) -> None:
        transaction.bucket.known = True

    await store.transact(workspace, [], known)
    assert (await look(store, workspace)).bucket.known
    way = await slot.begin()
    await slot.end(*way)
    assert not (await look(store, workspace)).bucket.known
    await store.close()


@pytest.mark.usefixtures("patient")
async def test_a_lone_create_on_a_cluster_takes_two_round_trips(
    fake: FakeBraze,
    cluster: list[RedisServer],
    workspace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One to reserve, one to settle, as on one server."""
    execute, commands = ClusterNode.execute_command, list[str]()

    async def counted(node: ClusterNode, *arguments: Any, **options: Any) -> Any:
        commands.append(arguments[0])
        return await execute(node, *arguments, **options)

    async with client_of(fake, store=cluster_url(cluster), workspace=workspace) as braze:
        await create(braze, [0])
        monkeypatch.setattr(ClusterNode, "execute_command", counted)
        await create(braze, [1])
        assert ["EVALSHA", "EVALSHA"] == commands


async def test_an_applications_cluster_client_is_used_and_stays_open(
    fake: FakeBraze, cluster: list[RedisServer], workspace: str
) -> None:
    """With ``decode_responses``, too."""
    redis = RedisCluster(host="127.0.0.1", port=cluster[0].port, decode_responses=True)
    async with redis:
        store = RedisStore(client=redis)
        async with client_of(fake, store=store, workspace=workspace) as braze:
            assert all(isinstance(result, SendId) for result in await create(braze, range(5)))
        await store.close()
        assert await redis.ping()


def test_loops_that_take_turns_on_a_cluster_leave_no_connection_open(
    cluster: list[RedisServer], workspace: str
) -> None:
    """When a store moves on to another loop, the sockets of those that do not run are closed."""

    def connections() -> int:
        total = 0
        for node in cluster:
            with SyncRedis.from_url(node.url) as look:
                total += len(look.client_list()) - 1
        return total

    before, store = connections(), RedisStore(cluster_url(cluster))
    runners = [asyncio.Runner() for _ in range(3)]
    for n, runner in enumerate(runners * 2):
        assert n + 1 == runner.run(store.transact(workspace, [], increment))
    opened = connections() - before
    runners[2].run(store.close())
    wait_until(lambda: connections() <= before)
    assert opened <= 6

    async def others_end() -> None:
        await until(lambda: len(asyncio.all_tasks()) == 1)

    for runner in runners:
        runner.run(others_end())
        runner.close()


# --- sentinels ---


@attrs.frozen
class Watched:
    """A master, its replica, and the sentinel that watches them."""

    master: RedisServer
    replica: RedisServer
    sentinel: SentinelServer

    @property
    def url(self) -> str:
        """Of the master that the sentinel names; the first address is nobody's."""
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/quota/0"

    def stop_replication(self) -> None:
        """What the master takes in from now on does not reach the replica.

        The replica's process is stopped before its connection is cut, so it cannot come back.
        """
        with (
            SyncRedis.from_url(self.master.url) as master,
            SyncRedis.from_url(self.replica.url) as replica,
        ):
            sent = master.info("replication")["master_repl_offset"]
            wait_until(lambda: sent <= replica.info("replication")["slave_repl_offset"])
            self.replica.freeze(True)
            master.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def fail_over(self) -> None:
        """Kill the master; the sentinel makes the replica the new one."""
        self.master.stop()
        self.replica.freeze(False)
        with SyncRedis.from_url(self.sentinel.url) as sentinel:

            def accepted() -> bool:
                try:
                    sentinel.execute_command("SENTINEL", "FAILOVER", "quota")
                except ResponseError:  # it has not seen the replica again yet
                    return False
                return True

            wait_until(accepted)
            port = self.replica.port
            wait_until(lambda: port == sentinel.sentinel_masters()["quota"]["port"])


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        homes = [tmp_path / "master", tmp_path / "replica"]  # a replica writes what it is sent
        for home in homes:
            home.mkdir()
        at_once = ["--repl-diskless-sync-delay", "0"]
        master = stack.enter_context(RedisServer(None, homes[0], at_once))
        follow = ["--replicaof", "127.0.0.1", str(master.port)]
        replica = stack.enter_context(RedisServer(None, homes[1], follow))
        with SyncRedis.from_url(replica.url) as look:
            wait_until(lambda: look.info("replication")["master_link_status"] == "up")
        sentinel = stack.enter_context(SentinelServer(master, tmp_path))
        with SyncRedis.from_url(sentinel.url) as look:
            wait_until(lambda: look.execute_command("SENTINEL", "REPLICAS", "quota"))
        yield Watched(master, replica, sentinel)


@pytest.mark.parametrize("kind", ["URL, lives on", "URL, is new", "client"])
async def test_a_failover_that_loses_writes_overruns_nothing(
    fake: FakeBraze, watched: Watched, kind: str
) -> None:
    """The new master has 10 of 90 creates: one careful request tells of the others."""
    async with AsyncExitStack() as stack:
        store: str | RedisStore = watched.url
        if kind == "client":
            sentinel = Sentinel([("127.0.0.1", watched.sentinel.port)])  # type: ignore[no-untyped-call]  # theirs
            for one in sentinel.sentinels:
                stack.push_async_callback(one.aclose)
            redis = sentinel.master_for("quota", decode_responses=True)
            stack.push_async_callback(redis.aclose)
            store = RedisStore(client=redis)
        braze = await stack.enter_async_context(client_of(fake, store=store))
        assert all(isinstance(result, SendId) for result in await create(braze, range(10)))
        watched.stop_replication()
        assert all(isinstance(result, SendId) for result in await create(braze, range(10, 90)))
        await asyncio.to_thread(watched.fail_over)
        if kind == "URL, is new":
            braze = await stack.enter_async_context(client_of(fake, store=store))
        results = await create(braze, range(100, 220))
        assert 10 == sum(isinstance(result, SendId) for result in results)
        assert (100, 0) == (len(fake.created), fake.refused)
        assert all(send.reused for send in await create(braze, range(10)))
        status = await braze.quota()
        assert (100, 0, 0) == (status.limit, status.remaining, status.in_flight)


async def test_a_failover_that_loses_nothing_loses_no_pair(
    fake: FakeBraze, watched: Watched
) -> None:
    """While no master is there, ``StoreError``; then the store goes on by itself."""
    async with client_of(fake, store=watched.url) as braze:
        sends = await create(braze, range(20))
        watched.stop_replication()
        watched.master.stop()
        for error in await create(braze, ["in between"]):
            assert isinstance(error, StoreError)
            assert False is error.quota_spent
        await asyncio.to_thread(watched.fail_over)
        assert all(send.reused for send in await create(braze, range(20)))
        assert all(isinstance(send, SendId) for send in [*sends, *await create(braze, ["after"])])
    assert (21, 0) == (len(fake.created), fake.refused)


# --- permissions ---

DOCS = Path(__file__).parents[2] / "docs" / "stores.md"


def documented(wanted: str) -> list[str]:
    """The rules of the user that the documentation gives for ``wanted``."""
    lines = DOCS.read_text().splitlines()
    (rules,) = [
        line.removeprefix("ACL SETUSER quota ").partition("  # ")[0].split()
        for line in lines
        if line.startswith("ACL SETUSER quota ") and line.endswith(f"# {wanted}")
    ]
    return [rule.replace(">PASSWORD", ">sesame") for rule in rules]


async def uses_it_all(fake: FakeBraze, store: RedisStore) -> None:
    """Whatever a client does with a store."""
    async with client_of(fake, store=store) as braze:
        assert all(isinstance(result, SendId) for result in await create(braze, range(5)))
        assert all(send.reused for send in await create(braze, range(5)))
        assert 95 == (await braze.quota()).remaining
    await store.close()


def add_user(url: str, rules: list[str]) -> None:
    with SyncRedis.from_url(url) as server:
        server.execute_command("ACL", "SETUSER", "quota", *rules)


@pytest.mark.parametrize("kind", ["URL", "client"])
async def test_the_documented_permissions_suffice_for_one_server(
    fake: FakeBraze, redis_url: str, kind: str
) -> None:
    """Commands and keys, exactly as the documentation gives them."""
    add_user(redis_url, documented("one server, or a Sentinel master"))
    url = redis_url.replace("redis://", "redis://quota:sesame@")
    if kind == "URL":
        await uses_it_all(fake, RedisStore(url))
        return
    async with Redis.from_url(url) as redis:
        await uses_it_all(fake, RedisStore(client=redis))


async def test_the_documented_permissions_suffice_for_a_cluster(
    fake: FakeBraze, cluster: list[RedisServer]
) -> None:
    """On each of its nodes."""
    for node in cluster:
        add_user(node.url, documented("a cluster, on each node"))
    await uses_it_all(fake, RedisStore(cluster_url(cluster).replace("://", "://quota:sesame@")))


async def test_the_documented_permissions_suffice_for_a_sentinel_master(
    fake: FakeBraze, watched: Watched
) -> None:
    """On the master and its replica; the sentinels ask for no user."""
    for server in (watched.master, watched.replica):
        add_user(server.url, documented("one server, or a Sentinel master"))
    await uses_it_all(fake, RedisStore(watched.url.replace("://", "://quota:sesame@")))


@pytest.mark.parametrize(
    "rule",
    [
        "resetkeys",
        *("-eval", "-evalsha", "-time", "-hmget", "-hset", "-pexpire", "-get", "-set"),
    ],
)
async def test_each_documented_permission_is_needed(
    redis_url: str, workspace: str, rule: str
) -> None:
    """Without it, the message names what is forbidden and where to look."""
    add_user(redis_url, [*documented("one server, or a Sentinel master"), rule])
    store = RedisStore(redis_url.replace("redis://", "redis://quota:sesame@"))
    with SyncRedis.from_url(redis_url) as server:
        server.script_flush()
    with pytest.raises(StoreError, match=r"lacks a permission .* docs/stores\.md lists the "):
        await store.transact(workspace, ["pair"], remembers({"pair": Remembered("story")}))
    await store.close()


# --- errors in our words ---


async def told(url: str) -> str:
    """What the store says when it cannot use ``url``."""
    store = RedisStore(url)
    with pytest.raises(StoreError) as caught:
        await store.transact("w", [], increment)
    await store.close()
    shown = "".join(traceback.format_exception(caught.value))
    assert "sesame" not in shown
    assert None is caught.value.__cause__ is caught.value.__context__
    text = str(caught.value)
    assert text.startswith(f"{store!r}".removeprefix("RedisStore('").removesuffix("')") + ": ")
    return text


async def test_a_password_that_is_missing_wrong_or_in_vain_is_told(redis_url: str) -> None:
    """With what to do about it, for each way to a server."""
    port = urlsplit(redis_url).port
    with_one = f"redis://:sesame@127.0.0.1:{port}/0"
    assert "wrong user name or password" in await told(with_one.replace(":sesame", "u:sesame"))
    with SyncRedis.from_url(redis_url) as server:
        server.config_set("requirepass", "open")
    try:
        assert "the server asks for a password: give one" in await told(redis_url)
        cluster = f"redis+cluster://127.0.0.1:{port}"
        assert "the server asks for a password: give one" in await told(cluster)
        assert "wrong user name or password: check both" in await told(with_one)
    finally:
        with SyncRedis.from_url(redis_url, password="open") as server:
            server.config_set("requirepass", "")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://127.0.0.1:{port}/0", "cannot reach Redis at 127.0.0.1:{port} (connection ref"),
        ("redis://localhost:{port}/0", "cannot reach Redis at localhost:{port} (connection ref"),
        ("redis+cluster://127.0.0.1:{port}", "at 127.0.0.1:{port} (connection refused): check"),
        ("redis+sentinel://:sesame@127.0.0.1:{port}/quota/0", "cannot reach the sentinels, or no"),
        ("unix:///nowhere/redis.sock", "(no such file): check that the server runs, and the path"),
    ],
)
async def test_a_server_that_cannot_be_reached_is_told(url: str, words: str) -> None:
    """By its address, with the reason and what to check."""
    port = free_port()
    assert words.format(port=port) in await told(url.format(port=port))


@pytest.mark.parametrize("kind", ["", "+cluster"])
async def test_a_host_that_has_no_address_is_told(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """By its name."""

    async def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unknown)
    words = "cannot find the host of nowhere.invalid:6379 (name not found): check the host name"
    assert words in await told(f"redis{kind}://:sesame@nowhere.invalid")


async def test_a_server_of_another_kind_than_the_url_says_is_told(
    redis_url: str, cluster: list[RedisServer], watched: Watched
) -> None:
    """With the scheme that fits it."""
    port = urlsplit(redis_url).port
    assert "is no cluster: use redis://" in await told(f"redis+cluster://127.0.0.1:{port}")
    assert "no sentinel answers at this port" in await told(f"redis+sentinel://127.0.0.1:{port}/q")
    places = [await _moved(node.url) for node in cluster]
    assert 2 == places.count(True)
    assert "read-only replica: name the primary" in await told(watched.replica.url)
    other = f"redis+sentinel://127.0.0.1:{watched.sentinel.port}/other/0"
    assert "the sentinels know no running master of that name" in await told(other)


async def _moved(url: str) -> bool:
    """Whether a node says that the slot is another's."""
    store = RedisStore(url)
    try:
        await store.transact("w", [], increment)
    except StoreError as error:
        assert "is a node of a cluster: use redis+cluster:// in place" in str(error)  # noqa: PT017
        return True
    finally:
        await store.close()
    return False


@pytest_asyncio.fixture
async def tls(redis_url: str) -> AsyncIterator[int]:
    """The port of a proxy that speaks TLS, in front of the server."""
    target = urlsplit(redis_url)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(forward(reader, outer), forward(inner, writer))

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_tls_works_with_the_servers_ca(fake: FakeBraze, tls: int) -> None:
    """By ``rediss://``."""
    await uses_it_all(fake, RedisStore(f"rediss://localhost:{tls}/0?ssl_ca_certs={CERTIFICATE}"))


async def test_tls_that_does_not_fit_is_told(tls: int) -> None:
    """A certificate that is not trusted, and no TLS where the server expects it."""
    unverified = await told(f"rediss://:sesame@127.0.0.1:{tls}/0")
    assert f"certificate of 127.0.0.1:{tls} is not accepted (self-signed" in unverified
    assert "name the server's CA with ?ssl_ca_certs=" in unverified
    assert "expects TLS (rediss://)" in await told(f"redis://:sesame@127.0.0.1:{tls}/0")


async def test_tls_to_a_port_that_does_not_speak_it_is_told(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis waits for the end of a line, so the time runs out: the message asks about TLS."""
    monkeypatch.setattr(optimistic, "CONTENTION_TIMEOUT", 0.2)
    words = await told(redis_url.replace("redis://", "rediss://"))
    assert "no answer in time" in words or "cannot speak TLS with" in words
    assert "TLS" in words


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (exceptions.OutOfMemoryError("command not allowed"), "the server's memory is full"),
        (exceptions.BusyLoadingError("Redis is loading"), "loading its data after a start: try"),
        (exceptions.MaxConnectionsError(), "all connections of the client are in use"),
        (exceptions.ConnectionError("max number of clients reached"), "raise its maxclients"),
        (exceptions.ClusterDownError("The cluster is down"), "not complete (The cluster is down)"),
        (exceptions.ResponseError("DENIED Redis is running in protected mode"), "protected mode"),
        (exceptions.ConnectionError("Too odd"), "cannot reach Redis at the server (Too odd)"),
        (
            exceptions.AuthenticationError(
                "AUTH <password> called without any password configured for the default user."
            ),
            "the server asks for no password, but one was given",
        ),
        (
            exceptions.ResponseError(
                "ERR Error running script: The user executing the script can't run this command"
            ),
            "the user lacks a permission",
        ),
        (
            raised(
                exceptions.ConnectionError("Error 1 connecting to h:1. [SSL: WRONG_VERSION]"),
                ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"),
            ),
            "cannot speak TLS with h:1: check that this port expects TLS",
        ),
        (
            raised(exceptions.ConnectionError("x"), ssl.SSLCertVerificationError("y")),
            "is not accepted (it does not verify)",
        ),
        (exceptions.ResponseError(), "ResponseError"),
        (exceptions.ResponseError("WRONGTYPE Operation against a key"), "WRONGTYPE Operation"),
    ],
)
def test_an_error_is_told_in_words_that_say_what_to_do(error: Exception, words: str) -> None:
    """What is not known is told in the server's words."""
    assert words in in_words(error)


def test_a_password_that_a_server_repeats_is_not_shown() -> None:
    """An old server repeats the arguments of a command that it does not know."""
    repeated = "unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `u`, `sesame`, "
    assert "unknown command `HELLO`" == in_words(exceptions.ResponseError(repeated))


# --- URLs ---


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://user:sesame@",
        "redis+cluster://h:7000,:sesame@/3",
        "redis+cluster://h:7000,h:x",
        "redis+cluster://h:7000/3",
        "redis+cluster://h:7000?db=3",
        "redis+cluster://h:7000?sesame=1",
        "redis+sentinel://h:26379",
        "redis+sentinel://h:26379/",
        "redis+sentinel://h:26379/quota/sesame",
        "redis+sentinel://h:26379/quota/0?sesame=1",
        "redis+sesame://h",
    ],
)
def test_a_bad_url_of_several_servers_is_refused(url: str) -> None:
    """The message shows nothing of it, and what a good one looks like."""
    with pytest.raises(ConfigurationError, match=r"redis\+sentinel://host:port,host") as caught:
        RedisStore(url)
    assert "sesame" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis+cluster://u:sesame@h:7000,[::1]/?protocol=3", "redis+cluster://h:7000,[::1]/"),
        ("rediss+cluster://:sesame@h", "rediss+cluster://h"),
        ("redis+sentinel://u:sesame@h,i:5/quota/3", "redis+sentinel://h,i:5/quota/3"),
        ("rediss+sentinel://h/quota?ssl_cert_reqs=none", "rediss+sentinel://h/quota"),
    ],
)
def test_the_repr_names_the_servers(url: str, name: str) -> None:
    """Without user, password and options."""
    assert f"RedisStore({name!r})" == repr(open_store(url))


def test_a_url_gives_its_options_to_each_connection() -> None:
    """The user and password go to the servers and not to the sentinels; TLS goes to both."""
    url = "rediss+sentinel://u:sesame@h,i:5/quota/3?ssl_cert_reqs=none&socket_timeout=7"
    master, *sentinels = (client.connection_pool.make_connection() for client in make(url))  # type: ignore[union-attr]  # no cluster
    assert ("u", "sesame", 3, 7.0) == (
        master.username,
        master.password,
        master.db,
        master.socket_timeout,
    )
    assert [("h", 26379), ("i", 5)] == [(one.host, one.port) for one in sentinels]
    assert all(one.password is None and one.socket_timeout == 7.0 for one in sentinels)
    assert all(hasattr(one, "ssl_context") for one in (master, *sentinels))
    (cluster,) = make("rediss+cluster://u:sesame@h:7000,i?ssl_cert_reqs=none")
    nodes = cluster.nodes_manager.startup_nodes.values()  # type: ignore[union-attr]  # a cluster
    assert [("h", 7000), ("i", 6379)] == [(node.host, node.port) for node in nodes]
    for node in nodes:
        connection: Any = node.acquire_connection()
        assert ("u", "sesame") == (connection.username, connection.password)
        assert hasattr(connection, "ssl_context")
