"""The quota on a real server: lost replies, cut connections, restarts, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import attrs
import pytest
import pytest_asyncio
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.backoff import NoBackoff
from redis.exceptions import TimeoutError as TimedOut

from braze_sends import ConfigurationError, SendId, SendsClient, StoreError, open_store
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.messages import Grant
from braze_sends.stores import optimistic
from braze_sends.stores import redis as module
from braze_sends.stores.redis import RedisStore
from braze_sends.stores.store import MEMORY, STATE_KEPT, Remembered, Transaction, steady
from braze_sends.testing import FakeBraze, Fault
from braze_sends.testing.store_conformance import increment, look, new_workspace, remembers
from tests.servers import RedisServer, free_port
from tests.waiting import PATIENCE, until, wait_until
from tests.world import KEY

T = TypeVar("T")


@pytest.fixture
def workspace() -> str:
    return new_workspace()


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    monkeypatch.setattr("redis.backoff.ExponentialBackoff", lambda **_: NoBackoff())


@pytest_asyncio.fixture
async def server(redis_url: str) -> AsyncIterator[Redis]:
    """A look at the server that is not the store's."""
    async with Redis.from_url(redis_url) as server:
        yield server


@pytest.fixture(autouse=True)
def _no_server_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test lets time jump."""
    monkeypatch.setattr(module, "COMMAND_TIMEOUT", PATIENCE)
    monkeypatch.setattr(optimistic, "CONTENTION_TIMEOUT", 10 * PATIENCE)


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


async def turns(count: int) -> None:
    """Let the loop turn so often."""
    for _ in range(count):
        await asyncio.sleep(0)


def held(fake: FakeBraze) -> asyncio.Event:
    """Requests from now on are handled at once, and answered when the event is set."""
    answer = asyncio.Event()
    fake.fault_for = lambda request: Fault(stall=answer)
    return answer


async def create(client: SendsClient, names: Collection[object]) -> list[Any]:
    return await asyncio.gather(
        *(client.create_send_id("campaign", f"s{name}") for name in names), return_exceptions=True
    )


# --- a network that can be disturbed ---


@attrs.frozen
class Fate:
    """What happens to one command of the store.

    Attributes:
        arrives: whether the server gets it.
        answered: whether its reply comes back; else the connection is cut.
        silent: the reply is lost, and the connection stays.
        delay: seconds before the reply goes on, or an event to wait for.
    """

    arrives: bool = True
    answered: bool = True
    silent: bool = False
    delay: float | asyncio.Event = 0.0


CUT_BEFORE = Fate(arrives=False, answered=False)
REPLY_LOST = Fate(answered=False)
NO_REPLY = Fate(silent=True)


class Proxy:
    """Stands between a store and its server.

    Attributes:
        fate: what happens to the store's command number ``n`` (from 0).
        scripts: how many commands of the store came by; what a connection begins with is not one.
        silence: called when a reply is kept back for good.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.fate: Callable[[int], Fate] = lambda n: Fate()
        self.scripts = 0
        self.silence: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
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
            while True:
                command = await _value(reader)
                fate = Fate()
                if b"EVALSHA" in command[:40]:
                    fate, self.scripts = self.fate(self.scripts), self.scripts + 1
                if fate.arrives:
                    server_writer.write(command)
                    reply = await _value(server_reader)
                if isinstance(fate.delay, asyncio.Event):
                    await fate.delay.wait()
                else:
                    await asyncio.sleep(fate.delay)
                if not fate.answered:
                    return
                if not fate.silent:
                    writer.write(reply)
                elif self.silence is not None:
                    await self.silence()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for one in (writer, server_writer):
                one.close()
            self._writers.discard(writer)


async def _value(reader: asyncio.StreamReader) -> bytes:
    """One value of the protocol, as it is: a command, or a reply.

    https://redis.io/docs/latest/develop/reference/protocol-spec/
    """
    line = await reader.readuntil(b"\r\n")
    kind, number = line[:1], line[1:-2]
    if kind in b"$!=":
        return line + (await reader.readexactly(int(number) + 2) if number != b"-1" else b"")
    parts = {b"*": 1, b"~": 1, b"%": 2}.get(kind, 0) * int(number if kind in b"*~%" else 0)
    return line + b"".join([await _value(reader) for _ in range(parts)])


@pytest_asyncio.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url) as proxy:
        yield proxy


# --- what is kept there ---


@pytest.mark.parametrize("name", ["plain", "rest.iad-01.braze.com:0f1e", "{a}b", "}{", "ä{ü}"])
async def test_keys_expire_and_stay_together(redis_url: str, server: Redis, name: str) -> None:
    """All of a workspace are in one slot of a cluster, and each has its time to live."""
    workspace = f"{name} {new_workspace()}"
    store = RedisStore(redis_url)
    await store.transact(workspace, [], increment)
    await store.transact(workspace, [], remembers({"p{0}": Remembered("a"), "q": Remembered(None)}))
    suffix = workspace.rpartition("-")[2]
    keys = sorted([key async for key in server.scan_iter(f"*{suffix}*", count=1000)])
    assert 3 == len(keys)
    assert [b":pair:p{0}", b":pair:q", b":quota"] == [key.partition(b"}")[2] for key in keys]
    assert 1 == len({key.partition(b"{")[2].partition(b"}")[0] for key in keys})
    for key, seconds in zip(keys, [MEMORY, MEMORY, STATE_KEPT], strict=True):
        assert 1000 * (seconds - PATIENCE) < await server.pttl(key) <= 1000 * seconds
    await store.close()


async def test_each_change_lets_the_state_live_anew(
    redis_url: str, server: Redis, workspace: str
) -> None:
    """And what is remembered only when it is remembered anew."""
    store, soon = RedisStore(redis_url), int(1000 * PATIENCE)
    await store.transact(workspace, [], remembers({"pair": Remembered(None)}))
    state, pair = (f"braze_sends:{{{workspace}}}:{kind}" for kind in ("quota", "pair:pair"))
    for key in (state, pair):
        await server.pexpire(key, soon)
    await look(store, workspace, ["pair"])
    assert 0 < await server.pttl(state) <= soon
    await store.transact(workspace, ["pair"], increment)
    assert STATE_KEPT * 1000 - soon < await server.pttl(state)
    assert 0 < await server.pttl(pair) <= soon
    await store.transact(workspace, ["pair"], remembers({"pair": Remembered("story")}))
    assert MEMORY * 1000 - soon < await server.pttl(pair)
    await store.close()


@pytest.mark.parametrize(
    ("damage", "kind"),
    [(("hset", "quota", "state", "{"), "bucket"), (("set", "pair:pair", "x"), "remembered")],
)
async def test_a_damaged_text_is_told(
    redis_url: str, server: Redis, workspace: str, damage: tuple[str, ...], kind: str
) -> None:
    """Once deleted, the quota starts over."""
    store = RedisStore(redis_url)
    await store.transact(workspace, [], remembers({"pair": Remembered("story")}))
    command, name, *arguments = damage
    await getattr(server, command)(f"braze_sends:{{{workspace}}}:{name}", *arguments)
    await store.close()
    store = RedisStore(redis_url)  # one that has not seen it whole
    with pytest.raises(StoreError, match=f"holds a damaged {kind}: delete it there"):
        await store.transact(workspace, ["pair"], increment)
    await server.delete(f"braze_sends:{{{workspace}}}:{name}")
    assert 1 == await store.transact(workspace, ["pair"], increment)
    await store.close()


async def test_a_key_of_another_kind_is_told(redis_url: str, server: Redis, workspace: str) -> None:
    """With what the server says of it."""
    store = RedisStore(redis_url)
    await server.set(f"braze_sends:{{{workspace}}}:quota", "theirs", ex=int(PATIENCE))
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await store.transact(workspace, [], increment)
    await store.close()


async def test_what_changes_nothing_is_not_written(proxy: Proxy, workspace: str) -> None:
    """It costs one round trip, and a change, too."""
    store = RedisStore(proxy.url)
    await store.transact(workspace, [], increment)  # which loads the script, too
    proxy.scripts = 0
    await look(store, workspace, ["pair"])
    assert 1 == proxy.scripts
    await store.transact(workspace, ["pair"], increment)
    assert 2 == proxy.scripts
    await store.close()


# --- what is assumed, and checked ---


async def test_another_process_that_wrote_is_seen(
    redis_url: str, proxy: Proxy, workspace: str
) -> None:
    """By who changes something, at the second try, and by who only looks, in one round trip."""
    store, other = RedisStore(proxy.url), RedisStore(redis_url)
    await store.transact(workspace, [], increment)
    assert 2 == await other.transact(workspace, [], increment)
    proxy.scripts = 0
    assert 3 == await store.transact(workspace, [], increment)
    assert 2 == proxy.scripts
    assert 4 == await other.transact(workspace, [], increment)
    assert 4 == (await look(store, workspace)).bucket.created
    assert 3 == proxy.scripts
    await store.close()
    await other.close()


@pytest.mark.parametrize("asked", [["pair"], []], ids=["asked for", "not asked for"])
async def test_a_pair_that_is_remembered_is_seen(
    redis_url: str, workspace: str, asked: list[str]
) -> None:
    """Though the state is the one that was assumed, and the pair was not asked for before."""
    store, other = RedisStore(redis_url), RedisStore(redis_url)
    await other.transact(workspace, [], remembers({"pair": Remembered("story")}))
    await store.transact(workspace, [], increment)

    def change(transaction: Transaction) -> Remembered:
        increment(transaction)
        return transaction.pairs.setdefault("pair", Remembered(None))

    assert Remembered("story") == await store.transact(workspace, asked, change)
    found = await look(other, workspace, ["pair"])
    assert (2, {"pair": Remembered("story")}) == (found.bucket.created, found.pairs)
    await store.close()
    await other.close()


@pytest.mark.parametrize("off", [-3600.0, -1.0, 1.0, 3600.0])
async def test_a_clock_that_jumped_is_read_again(
    proxy: Proxy, server: Redis, workspace: str, monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    """The server's, or ours: a transaction never has a time that the server's clock has not."""

    async def clock() -> float:
        seconds, microseconds = await server.time()
        return float(seconds + microseconds / 1e6)

    store = RedisStore(proxy.url)
    await store.transact(workspace, [], increment)
    monkeypatch.setattr(optimistic, "steady", lambda: steady() + off)
    for trips in (2, 1):
        proxy.scripts, times = 0, list[float]()

        def change(transaction: Transaction, times: list[float] = times) -> None:
            times.append(transaction.now)
            increment(transaction)

        before = await clock()
        await store.transact(workspace, [], change)
        assert before - optimistic.BEHIND <= times[-1] <= await clock()
        assert trips == proxy.scripts
    await store.close()


async def test_a_late_reply_does_not_set_the_clock_back(proxy: Proxy, workspace: str) -> None:
    """It was on its way for long, so it tells less than what is known."""
    store = RedisStore(proxy.url)
    await store.transact(workspace, [], increment)
    before, began = store._records.now(), steady()
    proxy.fate = lambda n: Fate(delay=0.05)
    await store.transact(workspace, [], increment)
    passed = steady() - began
    assert store._records.now() - before >= passed * (1 - optimistic.DRIFT) - 1e-6
    await store.close()


async def test_who_only_looks_sees_the_servers_time(
    server: Redis, redis_url: str, workspace: str
) -> None:
    """Not the one that was assumed, which may be behind."""
    store = RedisStore(redis_url)
    await store.transact(workspace, [], increment)
    clock, at = store._records.reached
    store._records.reached = clock - optimistic.BEHIND / 2, at
    seconds, microseconds = await server.time()
    assert seconds + microseconds / 1e6 <= (await look(store, workspace)).now
    await store.close()


async def test_a_process_that_was_idle_takes_one_round_trip(proxy: Proxy, workspace: str) -> None:
    """Ten minutes, in which our clock went ahead of the server's as far as clocks do."""
    store = RedisStore(proxy.url)
    await store.transact(workspace, [], increment)
    clock, at = store._records.reached
    store._records.reached = clock - 600, at - 600 * (1 + optimistic.DRIFT / 2)
    proxy.scripts = 0
    assert 2 == await store.transact(workspace, [], increment)
    assert 1 == proxy.scripts
    await store.close()


async def test_a_server_that_is_far_away_takes_what_it_must(
    proxy: Proxy, workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two round trips, where each takes longer than its clock may be behind."""
    monkeypatch.setattr(optimistic, "BEHIND", 0.0)
    store = RedisStore(proxy.url)
    await store.transact(workspace, [], increment)
    proxy.scripts = 0
    assert 2 == await store.transact(workspace, [], increment)
    assert 2 == proxy.scripts
    await store.close()


@pytest.mark.usefixtures("no_backoff")
@pytest.mark.parametrize("may_ask", [True, False], ids=["INFO", "no INFO"])
async def test_a_snapshot_of_the_state_that_was_assumed_is_not_believed(
    tmp_path: Path, workspace: str, may_ask: bool
) -> None:
    """What others have written after it is lost, and the revision is the one that was seen."""
    with RedisServer(folder=tmp_path) as redis:
        url = redis.url if may_ask else await without_info(redis.url)
        store, other = RedisStore(url), RedisStore(url)
        await store.transact(workspace, [], knows)
        async with Redis.from_url(redis.url) as server:
            await server.save()
        await other.transact(workspace, [], increment)
        await restarted(redis)
        if not may_ask:
            await without_info(redis.url)

        def change(transaction: Transaction) -> bool:
            transaction.bucket.used += 1
            return transaction.bucket.known

        assert not await store.transact(workspace, [], change)
        found = (await look(other, workspace)).bucket
        assert (False, 4) == (found.known, found.used)
        await store.close()
        await other.close()


async def test_a_record_that_was_deleted_begins_anew(
    server: Redis, redis_url: str, workspace: str
) -> None:
    """What a process has seen of it is not written back."""
    store = RedisStore(redis_url)
    assert [1, 2] == [await store.transact(workspace, [], increment) for _ in range(2)]
    await server.delete(f"braze_sends:{{{workspace}}}:quota")
    assert 1 == await store.transact(workspace, [], increment)
    await store.close()


async def test_a_server_that_forgot_the_script_is_given_it_again(
    server: Redis, redis_url: str, workspace: str
) -> None:
    """``SCRIPT FLUSH``: the step is taken once."""
    store = RedisStore(redis_url)
    for n in (1, 2, 3):
        assert n == await store.transact(workspace, [], increment)
        await server.script_flush()
    await store.close()


async def test_a_change_that_raises_with_what_is_old_is_tried_again(
    redis_url: str, workspace: str
) -> None:
    """Its error is passed on only if it raises with what is true, too."""
    store, other = RedisStore(redis_url), RedisStore(redis_url)
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
    await store.close()
    await other.close()


# --- a network that loses things ---


async def test_a_command_whose_reply_was_lost_counts_once(proxy: Proxy, workspace: str) -> None:
    """It is sent again, and finds its own revision."""
    store = RedisStore(proxy.url)
    await store.transact(workspace, [], increment)
    proxy.scripts = 0
    runs = []

    def change(transaction: Transaction) -> int:
        runs.append(transaction.now)
        return increment(transaction)

    proxy.fate = lambda n: REPLY_LOST if n == 0 else Fate()
    assert 2 == await store.transact(workspace, [], change)
    assert (2, 1) == (proxy.scripts, len(runs))
    assert 2 == (await look(store, workspace)).bucket.created
    await store.close()


async def test_a_change_that_came_between_is_not_overwritten(
    redis_url: str, proxy: Proxy, workspace: str
) -> None:
    """A command that is sent again after another's change is a conflict: it runs anew."""
    store, other = RedisStore(proxy.url), RedisStore(redis_url)
    await store.transact(workspace, [], increment)
    proxy.scripts = 0
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
    await until(lambda: proxy.scripts == 1)
    await other.transact(workspace, [], theirs)
    cut.set()
    assert 11 == await task
    assert [(0, []), (10, ["theirs"])] == seen
    found = await look(other, workspace, ["mine", "theirs"])
    assert {"mine": Remembered(None), "theirs": Remembered("story")} == found.pairs
    await store.close()
    await other.close()


DISTURBANCES: dict[str, Callable[[int], Fate]] = {
    "replies are lost": lambda n: REPLY_LOST if n % 3 == 1 else Fate(),
    "connections are cut": lambda n: CUT_BEFORE if n % 3 == 1 else Fate(),
    "both": lambda n: {1: CUT_BEFORE, 3: REPLY_LOST}.get(n % 5, Fate()),
    "no reply comes": lambda n: NO_REPLY if n % 6 == 1 else Fate(),
    "replies are late": lambda n: Fate(delay=n % 3 / 100),
}


class Spared(RedisStore):
    """Has no transaction under way while ``jumping`` is held."""

    jumping: asyncio.Lock

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        async with self.jumping:
            return await super().transact(workspace, pairs, change)


@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.usefixtures("no_backoff")
async def test_a_bad_network_costs_no_slot_and_no_send(
    fake: FakeBraze,
    redis_url: str,
    proxy: Proxy,
    disturbance: str,
    jump: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two clients, 30 creates, a quota of 20: 20 are created, and the numbers are right."""
    # Nobody waits for the other's share: time jumps, and a wait would be over at once.
    monkeypatch.setattr("braze_sends.quota.rule.share.PRESENT", 0.0)
    fake.daily_limit = 20
    proxy.fate = DISTURBANCES[disturbance]
    stores = RedisStore(proxy.url), Spared(redis_url)
    stores[1].jumping = asyncio.Lock()

    async def time_out() -> None:
        async with stores[1].jumping:
            await turns(20)  # until the store waits for the reply
            jump(PATIENCE)
            await turns(3)

    proxy.silence = time_out
    async with (
        client_of(fake, store=stores[0], timeout=3600) as bad,
        client_of(fake, store=stores[1], timeout=3600) as good,
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
    for store in stores:
        await store.close()


async def test_a_server_that_pauses_is_waited_for(
    fake: FakeBraze, proxy: Proxy, server: Redis
) -> None:
    """``CLIENT PAUSE``, as in a failover: nothing is sent in it, and all goes on after it."""
    fake.daily_limit = 10
    async with client_of(fake, store=proxy.url) as braze:
        await create(braze, [0])
        before = proxy.scripts
        await server.client_pause(int(1000 * PATIENCE), all=False)
        creates = asyncio.create_task(create(braze, range(1, 15)))
        await until(lambda: before < proxy.scripts)
        await server.ping()
        assert (1, False) == (len(fake.requests), creates.done())
        await server.client_unpause()
        assert 9 == sum(isinstance(result, SendId) for result in await creates)
        assert (10, 0) == (len(fake.created), fake.refused)


# --- a server that goes away ---


async def test_a_server_restarted_empty_is_filled_again(fake: FakeBraze) -> None:
    """In the middle of a burst: one careful request tells what the server forgot."""
    fake.daily_limit = 20
    with RedisServer() as redis:
        async with client_of(fake, store=redis.url) as braze:
            await create(braze, [0])
            answer = held(fake)
            burst = asyncio.create_task(create(braze, range(1, 9)))
            await until(lambda: 9 == len(fake.created))
            redis.stop()
            redis.start()
            answer.set()
            assert all(isinstance(result, SendId) for result in await burst)
            results = await create(braze, range(9, 40))
            assert 11 == sum(isinstance(result, SendId) for result in results)
            assert (20, 0) == (len(fake.created), fake.refused)
            status = await braze.quota()
            assert (20, 0, 0, 0) == (
                status.limit,
                status.remaining,
                status.in_flight,
                status.unconfirmed,
            )


@pytest.mark.usefixtures("no_backoff")
async def test_a_server_that_is_down_lets_nothing_be_sent(fake: FakeBraze) -> None:
    """``StoreError``, soon; it heals by itself when the server is back."""
    redis = RedisServer(port := free_port())
    async with client_of(fake, store=(url := f"redis://127.0.0.1:{port}/0")) as braze:
        for error in await create(braze, range(3)):
            assert isinstance(error, StoreError)
            assert False is error.quota_spent
            assert f"{url}: " in str(error)
        with pytest.raises(StoreError):
            await braze.quota()
        assert [] == fake.requests
        with redis:
            assert all(isinstance(result, SendId) for result in await create(braze, range(3)))
        with pytest.raises(StoreError):
            await braze.create_send_id("campaign", "after")
        assert 3 == len(fake.requests)


@pytest.mark.usefixtures("no_backoff")
async def test_a_server_that_goes_down_after_sending_costs_no_send(
    fake: FakeBraze, caplog: pytest.LogCaptureFixture
) -> None:
    """What was created is returned, and what could not be kept is logged."""
    answer = held(fake)
    with RedisServer() as redis:
        async with client_of(fake, store=redis.url) as braze:
            burst = asyncio.create_task(create(braze, [0]))
            await until(lambda: fake.created)
            redis.stop()
            answer.set()
            assert ["s0"] == [str(send) for send in await burst]
    record = caplog.records[-1]
    assert record.message.startswith("settling failed ")
    assert f"message={redis.url}" in record.message


async def test_a_state_that_is_never_left_alone_is_told(
    redis_url: str,
    workspace: str,
    monkeypatch: pytest.MonkeyPatch,
    jump: Callable[[float], None],
) -> None:
    """Others are always first: after the time allowed, ``StoreError``."""
    store, other = RedisStore(redis_url), RedisStore(redis_url)
    await other.transact(workspace, [], increment)
    plain, steps = store._step, itertools.count()

    async def late(*arguments: Any) -> list[bytes]:
        await other.transact(workspace, [], increment)
        if 5 == next(steps):
            jump(optimistic.CONTENTION_TIMEOUT)
            await asyncio.Event().wait()
        return await plain(*arguments)

    monkeypatch.setattr(store, "_step", late)
    with pytest.raises(StoreError, match="too slow, or too many at once"):
        await store.transact(workspace, [], increment)
    await store.close()
    await other.close()


async def test_nothing_is_kept_past_the_time_allowed(
    redis_url: str,
    workspace: str,
    monkeypatch: pytest.MonkeyPatch,
    jump: Callable[[float], None],
) -> None:
    """Though the timeout's cancellation was lost, as ``asyncio.wait_for`` of Python 3.11 may do."""
    store, other = RedisStore(redis_url), RedisStore(redis_url)
    plain = store._step

    async def swallows(*arguments: Any) -> list[bytes]:
        found = await plain(*arguments)
        jump(optimistic.CONTENTION_TIMEOUT)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return found

    monkeypatch.setattr(store, "_step", swallows)
    with pytest.raises(StoreError, match="too slow, or too many at once"):
        await store.transact(workspace, [], increment)
    assert 0 == (await look(other, workspace)).bucket.created
    await store.close()
    await other.close()


async def test_a_connection_that_does_not_close_in_time_is_let_go(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a store raises nothing, and the store opens again."""

    close = Redis.aclose

    async def stuck(self: Redis) -> None:
        await close(self)
        raise TimedOut("Timed out closing connection after 5.0")

    store = RedisStore(redis_url)
    await store.transact("w", [], increment)
    with monkeypatch.context() as patch:
        patch.setattr(Redis, "aclose", stuck)
        await store.close()
    assert 2 == await store.transact("w", [], increment)
    await store.close()


# --- a state that is old ---


async def restarted(redis: RedisServer) -> None:
    """``kill -9``, and start from the snapshot."""
    redis.stop()
    redis.start()


@pytest.mark.parametrize("client", ["lives on", "is new"])
@pytest.mark.parametrize("may_ask", [True, False], ids=["INFO", "no INFO"])
async def test_a_server_restarted_from_an_old_snapshot_is_not_believed(
    fake: FakeBraze, tmp_path: Path, client: str, may_ask: bool
) -> None:
    """One careful request tells what the snapshot lacks, also where ``INFO`` is forbidden."""
    with RedisServer(folder=tmp_path) as redis:
        async with AsyncExitStack() as stack:
            url = redis.url if may_ask else await without_info(redis.url)
            braze = await stack.enter_async_context(client_of(fake, store=url))
            await create(braze, range(10))
            async with Redis.from_url(redis.url) as server:
                await server.save()
            assert 80 == sum(isinstance(one, SendId) for one in await create(braze, range(10, 90)))
            await restarted(redis)
            if not may_ask:
                await without_info(redis.url)
            if client == "is new":
                braze = await stack.enter_async_context(client_of(fake, store=url))
            results = await create(braze, range(100, 220))
            assert 10 == sum(isinstance(result, SendId) for result in results)
            assert (100, 0) == (len(fake.created), fake.refused)


async def without_info(url: str) -> str:
    """The URL of a user to whom ``INFO`` is forbidden."""
    async with Redis.from_url(url) as server:
        await server.acl_setuser(
            "careful",
            enabled=True,
            passwords=["+sesame"],
            keys=["*"],
            categories=["+@all", "-@dangerous"],
        )
    return url.replace("redis://", "redis://careful:sesame@")


async def test_the_own_limit_holds_over_a_server_that_lost_writes(
    fake: FakeBraze, tmp_path: Path
) -> None:
    """What Braze counts beyond the snapshot may have been ours."""
    with RedisServer(folder=tmp_path) as redis:
        async with client_of(fake, store=redis.url, daily_limit=50) as braze:
            await create(braze, range(10))
            async with Redis.from_url(redis.url) as server:
                await server.save()
            await create(braze, range(10, 40))
            await restarted(redis)
            await create(braze, range(100, 160))
            assert (50, 0) == (len(fake.created), fake.refused)


def knows(transaction: Transaction) -> None:
    """A state that is believed."""
    transaction.bucket.used, transaction.bucket.known = 3, True
    transaction.bucket.probes = 4


async def distrusts(store: RedisStore, workspace: str) -> bool:
    """Whether the store gives a state that is not believed."""
    transaction = await look(store, workspace)
    assert 3 == transaction.bucket.used
    if transaction.bucket.known:
        return False
    assert (1, transaction.now) == (transaction.bucket.probes, transaction.bucket.unknown_since)
    return True


async def test_only_the_first_to_see_an_old_state_distrusts_it(
    server: Redis, redis_url: str, workspace: str
) -> None:
    """Once that is kept, all others go by it; reading alone keeps nothing."""
    stores = RedisStore(redis_url), RedisStore(redis_url)
    key = f"braze_sends:{{{workspace}}}:quota"
    await stores[0].transact(workspace, [], knows)
    assert not await distrusts(stores[1], workspace)
    await server.hset(key, mapping={"server": "0f1e", "revision": "2d"})
    assert [True] * 3 == [await distrusts(stores[n], workspace) for n in (0, 1, 0)]
    await stores[0].transact(workspace, [], increment)
    kept = (await look(stores[0], workspace)).bucket
    assert not kept.known
    assert kept == (await look(stores[1], workspace)).bucket
    for store in stores:
        await store.close()


async def test_a_record_of_an_older_release_is_distrusted_once(
    server: Redis, redis_url: str, workspace: str
) -> None:
    """It does not say which server it was kept on; what an older release does later is believed."""
    store, key = RedisStore(redis_url), f"braze_sends:{{{workspace}}}:quota"
    state = '{"offset":0,"used":3,"known":true,"canaries":4}'
    await server.hset(key, mapping={"revision": "0f", "state": state})
    assert await distrusts(store, workspace)
    await store.transact(workspace, [], knows)
    await server.hset(key, mapping={"revision": "1e", "state": state})
    assert not await distrusts(store, workspace)
    await store.close()


@pytest.mark.parametrize("count", ["1", "a word"])
async def test_a_record_that_was_set_back_is_distrusted(
    server: Redis, redis_url: str, workspace: str, count: str
) -> None:
    """On a server that lives on, by a process that has seen a later one."""
    store, other = RedisStore(redis_url), RedisStore(redis_url)
    key = f"braze_sends:{{{workspace}}}:quota"
    for _ in range(5):
        await store.transact(workspace, [], knows)
        await store.transact(workspace, [], increment)
    await server.hset(key, "count", count)
    await other.transact(workspace, [], increment)  # which cannot see it
    assert await distrusts(store, workspace)
    await store.transact(workspace, [], knows)
    assert not await distrusts(store, workspace)
    await store.close()
    await other.close()


async def test_a_state_of_another_server_is_not_overwritten_unseen(
    server: Redis, redis_url: str, workspace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover meanwhile is a conflict, though the revision is the same."""
    store = RedisStore(redis_url)
    await store.transact(workspace, [], knows)
    plain, runs = store._step, list[float]()

    async def failed_over(
        redis: Redis, workspace: str, pairs: list[str], values: list[Any]
    ) -> list[bytes]:
        if len(runs) == 1:
            values = [values[0], "run_id of the master", *values[2:]]
        return await plain(redis, workspace, pairs, values)

    def change(transaction: Transaction) -> None:
        runs.append(transaction.now)
        increment(transaction)

    monkeypatch.setattr(store, "_step", failed_over)
    await store.transact(workspace, [], change)
    assert 2 == len(runs)
    await store.close()


async def test_a_record_seen_without_info_leaves_it_to_others_to_distrust(
    server: Redis, redis_url: str, workspace: str
) -> None:
    """A user to whom ``INFO`` is forbidden keeps no other server's name beside the state."""
    url = await without_info(redis_url)
    store, careful = RedisStore(redis_url), RedisStore(url)
    await store.transact(workspace, [], knows)
    assert await distrusts(careful, workspace)  # a connection that is new
    await careful.transact(workspace, [], knows)
    assert not await distrusts(careful, workspace)
    assert not await distrusts(store, workspace)
    await server.acl_deluser("careful")
    for one in (store, careful):
        await one.close()


async def test_of_two_that_must_not_ask_info_one_goes_first(redis_url: str, workspace: str) -> None:
    """A new process leaves a state that another distrusts as it is, and waits for its request."""
    url = await without_info(redis_url)
    store, other = RedisStore(url), RedisStore(url)
    await store.transact(workspace, [], knows)
    assert await distrusts(other, workspace)
    await other.transact(workspace, [], increment)
    kept = (await look(other, workspace)).bucket
    assert not kept.known
    third = RedisStore(url)
    assert kept == (await look(third, workspace)).bucket
    for one in (store, other, third):
        await one.close()


# --- clocks ---


async def test_a_host_whose_clock_is_off_hurts_nobody(
    fake: FakeBraze, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five minutes: the clock is the server's, and Braze's ``Date`` corrects that."""
    fake.daily_limit = 8
    stores = RedisStore(redis_url), RedisStore(redis_url)
    async with client_of(fake, store=stores[0]) as right, client_of(fake, store=stores[1]) as wrong:
        await create(right, [0])
        expected = (await right.quota()).resets_at
        for n, off in enumerate((300.0, -300.0)):
            clock = SimpleNamespace(time=lambda off=off: time.time() + off)
            monkeypatch.setattr("braze_sends.create.time", clock)
            await create(wrong, [f"{n}a", f"{n}b"])
            assert expected == (await wrong.quota()).resets_at == (await right.quota()).resets_at
            assert 7 - 2 * (n + 1) == (await right.quota()).remaining
        results = await create(wrong, range(10, 20))
        assert 3 == sum(isinstance(result, SendId) for result in results)
        assert (8, 0) == (len(fake.created), fake.refused)
        before = time.time()
        found = await look(stores[1], wrong._settings.workspace)
        assert before - 1 < found.now < time.time() + 1
        # Far from five minutes, however long an answer took, whose Date is older by that.
        assert abs(found.now + found.bucket.offset - fake.now) < 100
    for store in stores:
        await store.close()


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "up"),
    [
        ("redis://user:sesame@127.0.0.1:{port}/0", True),
        ("redis://user:sesame@127.0.0.1:{port}/0", False),
        ("redis://:sesame@127.0.0.1:{port}", False),
        ("redis://127.0.0.1:{port}/0?password=sesame", False),
        ("unix://user:sesame@/nowhere/redis.sock", False),
        ("redis://:{port}/sesame@127.0.0.1/0", False),  # a slash, not quoted
    ],
)
@pytest.mark.usefixtures("no_backoff")
async def test_no_password_is_shown(url: str, up: bool, redis_url: str) -> None:
    """In no repr, message or traceback; whether the server is down, or has no such user."""
    port = urlsplit(redis_url).port if up else free_port()
    store = open_store(url.format(port=port))
    with pytest.raises(StoreError) as caught:
        await store.transact("w", [], increment)
    shown = [repr(store), repr(caught.value), *traceback.format_exception(caught.value)]
    shown.append(repr(SendsClient(KEY, base_url="US-01", store=store)))
    assert "sesame" not in "".join(shown)
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://sesame@host",
        "",
        7,
        "redis://host:sesame/0",
        "redis://h?socket_timeout=sesame",
        "redis://h?sesame=1",
    ],
)
def test_a_bad_url_is_refused(url: Any) -> None:
    """The message shows nothing of it."""
    with pytest.raises(ConfigurationError, match="needs a redis://, rediss:// or unix:// URL") as c:
        RedisStore(url)
    assert "sesame" not in "".join(traceback.format_exception(c.value))


def test_the_extra_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where redis is not installed, the message says how to."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'braze_sends\[redis\]'"):
        open_store("redis://127.0.0.1/0")


def test_the_repr_names_the_server() -> None:
    """For debugging."""
    store = RedisStore("rediss://user:sesame@example.com:6380/3?ssl_cert_reqs=none")
    assert "RedisStore('rediss://example.com:6380/3')" == repr(store)


# --- loops ---

LEFT_OPEN = """
import asyncio, gc, logging, sys
from braze_sends.stores.redis import RedisStore
from braze_sends.testing.store_conformance import increment, new_workspace

# On a busy machine, asyncio's debug mode would tell of slow steps.
logging.getLogger("asyncio").addFilter(lambda record: not record.msg.startswith("Executing "))
store, workspace = RedisStore(sys.argv[1]), new_workspace()
print(asyncio.run(store.transact(workspace, [], increment)))
gc.collect()
print(asyncio.run(store.transact(workspace, [], increment)))
asyncio.run(store.close())  # not in the loop that opened it
gc.collect()
print(asyncio.run(store.transact(workspace, [], increment)))
del store
gc.collect()
"""


def test_a_store_may_be_left_open(redis_url: str) -> None:
    """From loop to loop, and to the end of the process: no warning."""
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", LEFT_OPEN, redis_url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ["1", "2", "3"] == (done.stdout + done.stderr).splitlines()


def connections(url: str) -> int:
    """How many the server has, this look aside."""
    with SyncRedis.from_url(url) as server:
        return len(server.client_list()) - 1


def test_loops_that_take_turns_leave_one_connection_open(redis_url: str, workspace: str) -> None:
    """When a store moves on to another loop, the sockets of those that do not run are closed."""
    before, store = connections(redis_url), RedisStore(redis_url)
    runners = [asyncio.Runner() for _ in range(6)]
    for n, runner in enumerate(runners * 2):
        assert n + 1 == runner.run(store.transact(workspace, [], increment))
    wait_until(lambda: before + 1 == connections(redis_url))
    runners[0].run(store.close())  # not the loop that has it
    wait_until(lambda: before == connections(redis_url))

    async def others_end() -> None:
        await until(lambda: len(asyncio.all_tasks()) == 1)

    for runner in runners:
        runner.run(others_end())
        runner.close()


def test_loops_of_several_threads_share_a_store(redis_url: str, workspace: str) -> None:
    """At once, without harm to each other, and closing it closes the connections of them all."""
    before, store = connections(redis_url), RedisStore(redis_url)
    loops = [asyncio.new_event_loop() for _ in range(4)]
    threads = [threading.Thread(target=loop.run_forever) for loop in loops]
    for thread in threads:
        thread.start()

    async def several() -> list[int]:
        return [await store.transact(workspace, [], increment) for _ in range(5)]

    runs = [asyncio.run_coroutine_threadsafe(several(), loop) for loop in loops * 3]
    assert [*range(1, 61)] == sorted(n for run in runs for n in run.result(PATIENCE))
    asyncio.run_coroutine_threadsafe(store.close(), loops[0]).result(PATIENCE)
    wait_until(lambda: before == connections(redis_url))
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
        proxy.scripts = 0
        arrived: list[int] = []
        fake.fault_for = lambda request: arrived.append(proxy.scripts)
        await create(braze, [1])
        assert [1] == arrived
        assert 2 == proxy.scripts
        await create(braze, [1])
        assert 3 == proxy.scripts


class Counting(RedisStore):
    """Counts transactions, and what they grant."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.counts: Counter[str] = Counter()
        self.reserving = 0

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        result = await super().transact(workspace, pairs, change)
        self.counts["transactions"] += 1
        decisions = getattr(result, "decisions", {})
        grants = sum(isinstance(one, Grant) for one in decisions.values())
        self.counts["grants"] += grants
        if grants:
            self.reserving = self.counts["transactions"]
        return result


@pytest.mark.parametrize("tasks", [100, pytest.param(400, marks=pytest.mark.long)])
async def test_a_burst_reserves_in_a_handful_of_transactions(
    fake: FakeBraze, redis_url: str, tasks: int
) -> None:
    """All that ask at once do in a few, and all whose answers come at once settle in a few."""
    fake.daily_limit = 5000
    store = Counting(redis_url)
    async with client_of(fake, store=store) as braze:
        # A limit above 100 is believed when a create beyond 100 has succeeded.
        warm = await create(braze, [f"warm{n}" for n in range(101)])
        store.counts.clear()
        answers = held(fake)
        burst = asyncio.create_task(create(braze, range(tasks)))
        await until(lambda: tasks + len(warm) == len(fake.created))
        assert tasks == store.counts["grants"]
        assert store.reserving <= 10
        answers.set()
        assert all(isinstance(result, SendId) for result in await burst)
        assert store.counts["transactions"] < tasks / 3
    assert (tasks + len(warm), 0) == (len(fake.created), fake.refused)
    assert isinstance((await look(store, braze._settings.workspace)).bucket, Bucket)
    await store.close()
