"""The quota in Redis or Valkey: for the workers of many hosts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import secrets
import socket
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import attrs

from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.codec import dump, load_bucket, load_remembered
from braze_sends.stores.redis_clients import make, opened, place_of
from braze_sends.stores.redis_errors import in_words
from braze_sends.stores.store import MEMORY, STATE_KEPT, Transaction, steady

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.connection import AbstractConnection

    from braze_sends.stores.redis_clients import Client

T = TypeVar("T")

#: Seconds for one command, and for all tries of a transaction that others are faster than.
COMMAND_TIMEOUT, CONTENTION_TIMEOUT = 5.0, 20.0
#: Seconds by which an assumed time may be behind the server's clock. So much earlier than its owner
#: others may take a lease for expired, so it is far less than a lease's grace.
BEHIND = 0.1
#: Seconds in a second by which the server's clock may be slower than ours.
DRIFT = 1e-4
#: Seconds between two tries of a step whose keys are on two nodes of a cluster.
SLOT_MOVES = (0.1, 0.2, 0.4, 0.8, 1.6)

# Compares what a process assumes with what is true. If all of it holds, the new state is kept, if
# there is one, and the reply is the time alone. Else nothing is written, and the reply is what is
# true, which saves asking for it.
#
# The revision is random and not counted, so that a Redis that was restarted empty, or from an old
# dump, cannot come to the same one again. Each write has a new one. A command that is retried
# because its reply was lost finds its own revision and is content.
#
# A server that was restarted from an old dump, and a replica that was behind, have lost writes.
# Each has another run_id than the one that the record was kept on. The count shows a record that
# was set back on a server that lives on. An older release sets neither, and leaves both as they
# are. INFO may be forbidden to the user, or renamed: then the run_id is empty, and the one kept
# stays.
#
# KEYS: the state, then the pairs. ARGV: the revision, the run_id and the time assumed; the seconds
# by which that may be behind, or '' if it was read with the revision; the new revision or '', state
# and count; the milliseconds to keep state and memories; then for each pair what is assumed to be
# remembered, and what to remember, or ''.
_STEP = """
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
local time = redis.call('TIME')
local kept = redis.call('HMGET', KEYS[1], 'revision', 'state', 'server', 'count')
local revision, new = kept[1] or '', ARGV[5]
if new ~= '' and revision == new then return time end
local holds = revision == ARGV[1] and server == ARGV[2]
if ARGV[4] ~= '' then
  local behind = time[1] + time[2] / 1e6 - ARGV[3]
  holds = holds and behind >= 0 and behind <= tonumber(ARGV[4])
end
local count = tonumber(kept[4] or '0') or 0
local found = {time[1], time[2], revision, kept[2] or '', server, kept[3] or '', count}
for i = 2, #KEYS do
  found[i + 6] = redis.call('GET', KEYS[i]) or ''
  holds = holds and found[i + 6] == ARGV[2 * i + 6]
end
if not holds then return found end
if new ~= '' then
  redis.call('HSET', KEYS[1], 'revision', new, 'state', ARGV[6], 'count', ARGV[7])
  if server ~= '' then redis.call('HSET', KEYS[1], 'server', server) end
  redis.call('PEXPIRE', KEYS[1], ARGV[8])
  for i = 2, #KEYS do
    local memory = ARGV[2 * i + 7]
    if memory ~= '' then redis.call('SET', KEYS[i], memory, 'PX', ARGV[9]) end
  end
end
return time
"""
_STEP_SHA = hashlib.sha1(_STEP.encode(), usedforsecurity=False).hexdigest()


@attrs.frozen
class _Seen:
    """A workspace's record, as a try of a transaction goes by it.

    Attributes:
        revision: names it; empty if there is none.
        state: the bucket as text.
        server: the run_id of the server that has it, or empty.
        kept_on: that of the server that it was kept on.
        count: how often it was written.
        now: the server's clock, seconds.
        memories: what is remembered of the pairs asked for, as text.
        assumed: whether the server has still to be asked if all of this is so.
    """

    revision: bytes | str = ""
    state: bytes | str = ""
    server: bytes | str = ""
    kept_on: bytes | str = ""
    count: int = 0
    now: float = 0.0
    memories: dict[str, bytes] = attrs.field(factory=dict)
    assumed: bool = False


#: Never holds, since its time is long past: a step that assumes it only asks.
_NOTHING = _Seen(assumed=True)


@attrs.define(eq=False)
class _Connections:
    """What is known of the connections of one event loop.

    Attributes:
        opened: how many were opened so far.
        alive: those that are still there.
    """

    opened: int = 0
    alive: weakref.WeakSet[AbstractConnection] = attrs.field(factory=weakref.WeakSet)

    async def connected(self, connection: AbstractConnection) -> None:
        """Called when one has been opened."""
        await connection.on_connect()
        self.opened += 1
        self.alive.add(connection)


@attrs.define(eq=False)
class _Client:
    """The connections of one event loop. They do not refer to it, so that once it is dropped,
    ``own`` is closed by its loop.

    Attributes:
        redis: opens and uses them.
        own: closes them when it is closed; ``None`` if they are the application's.
        connections: what is known of them.
        watched: whether each new server means a new connection that is counted. So it is neither
            with an application's client nor in a cluster, where a replica may be known already.
        turn: held for a step. In a cluster one step goes at a time: when redis-py looks up the
            nodes anew, it cuts the connections that other commands are using, and it sends ASKING
            and the command after it on two connections if it has two.
        believed: on a server that does not tell its run_id, for each workspace how many had been
            opened when its record was last kept here.
    """

    redis: Client
    own: AsyncGenerator[Client] | None
    connections: _Connections
    watched: bool
    turn: AbstractAsyncContextManager[None] = attrs.field(factory=contextlib.nullcontext)
    believed: dict[str, int] = attrs.field(factory=dict)

    def hang_up(self) -> None:
        """Close the connections of a loop that does not run, as far as the server is concerned."""
        for connection in list(self.connections.alive):
            writer: Any = getattr(connection, "_writer", None)
            # TypeError: uvloop's sockets cannot do it. AttributeError: it is closed already.
            with contextlib.suppress(OSError, TypeError, AttributeError):
                writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class RedisStore:
    """The quota on a Redis or Valkey server, cluster or Sentinel master that many hosts share.

    Its clock is the server's, so a host whose clock is off hurts nobody. Commands are retried, and
    a lost reply never counts twice. All keys of a workspace share a hash tag, so that a cluster
    keeps them on one node. Nothing is opened before the first transaction.

    With a URL, each event loop has connections of its own. They are closed when the loop ends, by
    ``close``, and if the loop does not run while another one begins to use the store.

    With ``client``, the store uses the application's client and never closes it. A client belongs
    to the event loop that uses it first; a transaction in another loop raises ``StoreError`` unless
    the first loop is closed.

    Args:
        url: ``redis://user:password@host:6379/0`` or ``unix:///path`` for one server,
            ``redis+cluster://host:6379,host:6379`` for a cluster,
            ``redis+sentinel://host:26379,host:26379/service/0`` for the master that sentinels
            name. ``rediss…`` in place of ``redis…`` for TLS. Options of redis-py may follow a
            ``?``.
        client: in place of ``url``, a ``redis.asyncio`` client: ``Redis``, ``RedisCluster``, or
            what ``Sentinel.master_for`` returns. Its pool, TLS, credentials, timeouts and retries
            are used as they are, and ``decode_responses`` may be set. Its user must be allowed to
            run ``INFO``.

    Raises:
        ConfigurationError: the extra ``redis`` is not installed, the URL cannot be used, or not
            exactly one of ``url`` and ``client`` is given.
    """

    shared = True

    def __init__(
        self, url: str | None = None, *, client: Redis | RedisCluster | None = None
    ) -> None:
        try:
            from redis.asyncio import Redis, RedisCluster
        except ImportError:
            raise ConfigurationError(
                "RedisStore needs the redis package: pip install 'braze_sends[redis]'"
            ) from None
        if (url is None) == (client is None):
            raise ConfigurationError("RedisStore needs either a URL or client=, and not both")
        self._url, self._given = url, client
        if url is not None:
            self._name = _usable(url)
        elif isinstance(client, Redis | RedisCluster):
            self._name = place_of(client)
        else:
            raise ConfigurationError(
                "RedisStore needs a client of redis.asyncio: Redis, RedisCluster, or what "
                "Sentinel.master_for returns"
            )
        self._clients: dict[asyncio.AbstractEventLoop, _Client] = {}
        self._lock = threading.Lock()
        # The highest count that was seen of each workspace's record.
        self._counts: dict[str, int] = {}
        # What was last seen of each workspace's record.
        self._seen: dict[str, _Seen] = {}
        # What the server's clock had reached when ``steady`` showed the second number.
        self._reached = 0.0, 0.0

    def __repr__(self) -> str:
        return f"RedisStore({self._name!r})"

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """See ``Store.transact``.

        Raises:
            StoreError: the server cannot be reached or used, or does not let this in for 20 s.
        """
        from redis.exceptions import RedisClusterException, RedisError

        try:
            async with asyncio.timeout(CONTENTION_TIMEOUT) as limit:
                return await self._transact(limit, await self._client(), workspace, pairs, change)
        except TimeoutError as error:
            words = "too slow, or too many at once"
            if self._reached == (0.0, 0.0):  # no server has ever answered
                words = in_words(error)
        except (RedisError, RedisClusterException, OSError) as error:
            words = in_words(error)
        # Not from that error: it may repeat a command, with the password in it.
        raise StoreError(f"{self._name}: {words}")

    async def _transact(
        self,
        limit: asyncio.Timeout,
        client: _Client,
        workspace: str,
        pairs: Collection[str],
        change: Callable[[Transaction], T],
    ) -> T:
        asked, tries = list(pairs), 0
        # Most likely nobody else has written since. So the first try goes by what was last seen,
        # and as if nothing were remembered of the pairs. The step that is to keep what it leaves
        # checks that. If it leaves all as it was, such a step asks, and a second try goes by that.
        seen = self._last_seen(workspace) or await self._look(client, workspace, asked)
        while True:
            _check(limit)
            opened = client.connections.opened
            try:
                transaction = self._begin(client, workspace, seen)
                untouched, before = dump(transaction.bucket), dict(transaction.pairs)
                result = change(transaction)
            except Exception:
                if not seen.assumed:
                    raise  # else it may not with what is true
                seen = await self._look(client, workspace, asked)
                continue
            left = seen
            if (state := dump(transaction.bucket)) != untouched or transaction.pairs != before:
                left = attrs.evolve(
                    seen,
                    revision=secrets.token_hex(8),
                    state=state,
                    kept_on=seen.server or seen.kept_on,
                    count=max(seen.count, self._counts.get(workspace, 0)) + 1,
                )
            elif not seen.assumed:
                self._saw(workspace, seen)
                return result
            # Others may have come to be in doubt meanwhile; they are looked at from now on.
            asked += transaction.pairs.keys() - set(asked)
            remembered = {
                pair: dump(memory)
                for pair, memory in transaction.pairs.items()
                if memory != before.get(pair)
            }
            holds, found = await self._ask(client, workspace, asked, seen, left, remembered)
            if holds and left is not seen:
                client.believed[workspace] = opened
                self._saw(workspace, left)
                return result
            if not seen.assumed:
                tries = min(tries + 1, 6)
                await asyncio.sleep(random.uniform(0, 0.001 * 2**tries))
            seen = found

    def _begin(self, client: _Client, workspace: str, seen: _Seen) -> Transaction:
        if not seen.server and not client.watched:
            # Nothing would show that another server has taken over, which may lack writes.
            raise StoreError(
                f"{self._name}: the server does not tell its run_id: allow the user to run INFO "
                "(ACL SETUSER … +info)"
            )
        # The server's clock is taken for UTC until a Date of Braze's corrects it.
        bucket = load_bucket(seen.state) if seen.state else Bucket(offset=0.0)
        set_back = seen.count < self._counts.get(workspace, 0)
        fresh = client.believed.get(workspace) != client.connections.opened
        if seen.state and _may_be_old(bucket, seen.server, seen.kept_on, set_back, fresh=fresh):
            bucket.distrust(seen.now)
        pairs = {pair: load_remembered(memory) for pair, memory in seen.memories.items()}
        return Transaction(seen.now, bucket, pairs)

    async def _look(self, client: _Client, workspace: str, pairs: list[str]) -> _Seen:
        return (await self._ask(client, workspace, pairs, _NOTHING, _NOTHING, {}))[1]

    async def _ask(
        self,
        client: _Client,
        workspace: str,
        pairs: list[str],
        seen: _Seen,
        left: _Seen,
        remembered: dict[str, str],
    ) -> tuple[bool, _Seen]:
        """Keep what a try ``left`` of what it had ``seen``, if that holds.

        Returns:
            whether it holds, and what was there before the step.
        """
        arguments = [seen.revision, seen.server, seen.now, BEHIND if seen.assumed else ""]
        arguments += ["", "", 0] if left is seen else [left.revision, left.state, left.count]
        arguments += [int(STATE_KEPT * 1000), int(MEMORY * 1000)]
        for pair in pairs:
            arguments += [seen.memories.get(pair, ""), remembered.get(pair, "")]
        async with client.turn:
            reply = await self._step(client.redis, workspace, pairs, arguments)
        seconds, microseconds, *found = reply
        clock = int(seconds) + int(microseconds) / 1e6
        with self._lock:
            # A reply that took long tells less than is known, unless the clock was set back.
            if clock < seen.now or clock > self._now():
                self._reached = clock, steady()
        if not found:
            return True, attrs.evolve(seen, now=clock, assumed=False)
        revision, state, server, kept_on, count, *texts = found
        memories = {pair: text for pair, text in zip(pairs, texts, strict=True) if text}
        return False, _Seen(revision, state, server, kept_on, int(count), clock, memories)

    def _saw(self, workspace: str, seen: _Seen) -> None:
        self._counts[workspace] = max(self._counts.get(workspace, 0), seen.count)
        # A server that does not tell its run_id may be restarted before the next step, unseen.
        if seen.server:
            self._seen[workspace] = attrs.evolve(seen, memories={})

    def _last_seen(self, workspace: str) -> _Seen | None:
        seen = self._seen.get(workspace)
        return seen and attrs.evolve(seen, now=self._now(), assumed=True)

    def _now(self) -> float:
        """What the server's clock has reached: behind it by a reply's way, and never ahead."""
        clock, at = self._reached
        return clock + (steady() - at) * (1 - DRIFT)

    async def _step(
        self, redis: Client, workspace: str, pairs: list[str], arguments: list[Any]
    ) -> list[bytes]:
        from redis.exceptions import ClusterError
        from redis.exceptions import ConnectionError as Unconnected
        from redis.exceptions import TimeoutError as TimedOut

        tag = "braze_sends:{" + quote(workspace, safe="") + "}"
        keys = [f"{tag}:quota", *(f"{tag}:pair:{pair}" for pair in pairs)]
        # As bytes, whatever encoding the client has.
        texts = [one if isinstance(one, bytes) else str(one).encode() for one in keys + arguments]
        pauses, again = iter(SLOT_MOVES), self._given is not None
        while True:
            try:
                return await _run(redis, len(keys), texts)
            except (Unconnected, TimedOut):
                # An application's client may try nothing again, and only the reply may be lost.
                if not again:
                    raise
                again = False
            except ClusterError as error:
                # The slot moves, and neither node has all of its keys: redis-py follows MOVED, ASK
                # and TRYAGAIN so often, and gives up. Its other errors are subclasses.
                if type(error) is not ClusterError or (pause := next(pauses, None)) is None:
                    raise
                await asyncio.sleep(pause)
            except RuntimeError as error:
                # What asyncio says of a connection that another loop has opened.
                if self._given is None or "loop" not in str(error):
                    raise
                raise StoreError(_OTHER_LOOP.format(self._name)) from None

    async def _client(self) -> _Client:
        loop = asyncio.get_running_loop()
        with self._lock:
            if (client := self._clients.get(loop)) is not None:
                return client
            if self._given is not None:
                if not all(one.is_closed() for one in self._clients):
                    raise StoreError(_OTHER_LOOP.format(self._name))
                client = _client_of(self._given, None, _Connections())
                self._clients = {loop: client}
                return client
            for other in [one for one in self._clients if not one.is_running()]:
                self._clients.pop(other).hang_up()
        client = await _opened(str(self._url))
        with self._lock:
            return self._clients.setdefault(loop, client)

    async def close(self) -> None:
        """Close the connections, unless they are the application's; they are opened again if need
        be."""
        with self._lock:
            clients, self._clients = self._clients, {}
        own = clients.pop(asyncio.get_running_loop(), None)
        for loop, client in clients.items():
            # It may end at this moment; then it closes them itself.
            with contextlib.suppress(RuntimeError):
                if loop.is_running():
                    loop.call_soon_threadsafe(_close_in, loop, client)
                else:
                    client.hang_up()
        if own is not None:
            await _closed(own)


_OTHER_LOOP = (
    "{}: the client that RedisStore was given belongs to another event loop: give each loop a "
    "store and a client of its own, or give RedisStore a URL"
)


def _usable(url: str) -> str:
    """The URL without user, password and options.

    Raises:
        ConfigurationError: it cannot be used.
    """
    try:
        # Makes a connection without connecting: so an unknown option is told here.
        for client in make(url):
            if (pool := getattr(client, "connection_pool", None)) is not None:
                pool.make_connection()
        parts = urlsplit(url)
    except (ValueError, AttributeError, TypeError, KeyError):
        raise ConfigurationError(
            "RedisStore needs a redis://, rediss:// or unix:// URL, or "
            "redis+cluster://host:port,host:port, or redis+sentinel://host:port,host:port/service/db"
        ) from None
    # One with a slash in its password has that in the path.
    return f"{parts.scheme}://{(parts.netloc + parts.path).rpartition('@')[2]}"


def _may_be_old(
    bucket: Bucket, server: bytes | str, kept_on: bytes | str, set_back: bool, *, fresh: bool
) -> bool:
    """Whether the server may have lost what was kept after this state."""
    if server or set_back:
        return set_back or server != kept_on
    # It does not tell who it is. After each new connection it may be another one, or restarted.
    # What another process has come to doubt is left alone, so that only one request goes first.
    return fresh and (bucket.known or bucket.probes > 1)


def _check(limit: asyncio.Timeout) -> None:
    # A timeout cancels, and that may be lost: on Python 3.11 asyncio.wait_for, by which redis-py
    # reads, swallows a cancellation that comes together with the reply.
    # https://github.com/python/cpython/issues/86296
    when = limit.when()
    if when is not None and asyncio.get_running_loop().time() >= when:
        raise TimeoutError


def _close_in(loop: asyncio.AbstractEventLoop, client: _Client) -> None:
    closing = loop.create_task(_closed(client))
    _closing.add(closing)  # a loop does not hold its tasks
    closing.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()


async def _closed(client: _Client) -> None:
    from redis.exceptions import RedisError

    if client.own is None:
        return
    # A server that does not let go in time is let go all the same.
    with contextlib.suppress(RedisError, OSError):
        await client.own.aclose()


async def _opened(url: str) -> _Client:
    connections = _Connections()
    own = opened(url, connections.connected, COMMAND_TIMEOUT)
    return _client_of(await anext(own), own, connections)


def _client_of(
    redis: Client, own: AsyncGenerator[Client] | None, connections: _Connections
) -> _Client:
    from redis.asyncio import RedisCluster

    if isinstance(redis, RedisCluster):
        return _Client(redis, own, connections, watched=False, turn=asyncio.Lock())
    return _Client(redis, own, connections, watched=own is not None)


async def _run(redis: Client, keys: int, texts: list[bytes]) -> list[bytes]:
    """Run the step. It may run twice if a reply is lost, which does no harm."""
    from redis.exceptions import NoScriptError

    try:
        found: list[bytes] = await redis.execute_command(
            "EVALSHA", _STEP_SHA, keys, *texts, NEVER_DECODE=True
        )
    except NoScriptError:
        found = await redis.execute_command("EVAL", _STEP.encode(), keys, *texts, NEVER_DECODE=True)
    return found
