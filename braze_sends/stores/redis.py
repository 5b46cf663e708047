"""The quota in Redis or Valkey: for the workers of many hosts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import attrs

from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.codec import dump, load_bucket, load_remembered
from braze_sends.stores.store import MEMORY, STATE_KEPT, Transaction

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.connection import AbstractConnection

T = TypeVar("T")

#: Seconds for one command, and for all tries of a transaction that others are faster than.
COMMAND_TIMEOUT, CONTENTION_TIMEOUT = 5.0, 20.0

# Reads; or, given a new revision, compares and sets. The revision is random and not counted, so
# that a Redis that was restarted empty, or from an old dump, cannot come to the same one again. A
# command that is retried because its reply was lost finds its own revision and is content. A
# conflict hands back the state, which saves asking for it.
#
# A server that was restarted from an old dump, and a replica that was behind, have lost writes.
# Each has another run_id than the one that the record was kept on. The count shows a record that
# was set back on a server that lives on. An older release sets neither, and leaves both as they
# are. INFO may be forbidden to the user, or renamed: then the run_id is empty, and the one kept
# stays.
#
# KEYS: the state, then the pairs looked at. ARGV: the revision expected, the new one or '', the
# state, milliseconds to keep state and memories, the run_id expected, the new count, then for each
# pair what to remember, or ''.
_STEP = """
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
local kept = redis.call('HMGET', KEYS[1], 'revision', 'state', 'server', 'count')
local revision = kept[1] or ''
if ARGV[2] ~= '' and (revision == ARGV[2] or revision == ARGV[1] and server == ARGV[6]) then
  if revision ~= ARGV[2] then
    redis.call('HSET', KEYS[1], 'revision', ARGV[2], 'state', ARGV[3], 'count', ARGV[7])
    if server ~= '' then redis.call('HSET', KEYS[1], 'server', server) end
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    for i = 2, #KEYS do
      if ARGV[i + 6] ~= '' then redis.call('SET', KEYS[i], ARGV[i + 6], 'PX', ARGV[5]) end
    end
  end
  return {}
end
local time = redis.call('TIME')
local count = tonumber(kept[4] or '0') or 0
local found = {time[1], time[2], revision, kept[2] or '', server, kept[3] or '', count}
for i = 2, #KEYS do found[i + 6] = redis.call('GET', KEYS[i]) or '' end
return found
"""


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
        own: closes them when it is closed.
        connections: what is known of them.
        believed: on a server that does not tell its run_id, for each workspace how many had been
            opened when its record was last kept here.
    """

    redis: Redis
    own: AsyncGenerator[Redis]
    connections: _Connections
    believed: dict[str, int] = attrs.field(factory=dict)

    def hang_up(self) -> None:
        """Close the connections of a loop that does not run, as far as the server is concerned."""
        for connection in list(self.connections.alive):
            writer = getattr(connection, "_writer", None)
            # TypeError: uvloop's sockets cannot do it.
            if writer is not None:
                with contextlib.suppress(OSError, TypeError, AttributeError):
                    writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class RedisStore:
    """The quota on a Redis or Valkey server that many hosts share.

    Its clock is the server's, so a host whose clock is off hurts nobody. Commands are retried, and
    a lost reply never counts twice. All keys of a workspace share a hash tag, so that a cluster
    keeps them together; the client itself talks to one server and follows no redirections.
    Nothing is opened before the first transaction. Each event loop has connections of its own.
    They are closed when the loop ends, by ``close``, and if the loop does not run while another one
    begins to use the store.

    Args:
        url: ``redis://host:6379/0``, ``rediss://…`` for TLS, or ``unix:///path``.

    Raises:
        ConfigurationError: the extra ``redis`` is not installed, or the URL cannot be used.
    """

    shared = True

    def __init__(self, url: str) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError:
            raise ConfigurationError(
                "RedisStore needs the redis package: pip install 'braze_sends[redis]'"
            ) from None
        try:
            parts = urlsplit(url)
            # Makes a connection without connecting: so an unknown option is told here.
            Redis.from_url(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]  # theirs
        except (ValueError, AttributeError, TypeError):
            raise ConfigurationError(
                "RedisStore needs a redis://, rediss:// or unix:// URL"
            ) from None
        self._url = url
        # Without what may be a password; one with a slash in it ends up in the path.
        self._name = f"{parts.scheme}://{(parts.netloc + parts.path).rpartition('@')[2]}"
        self._clients: dict[asyncio.AbstractEventLoop, _Client] = {}
        self._lock = threading.Lock()
        # The highest count that was seen of each workspace's record.
        self._counts: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"RedisStore({self._name!r})"

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """See ``Store.transact``.

        Raises:
            StoreError: the server cannot be reached, or does not let this in for 20 s.
        """
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(CONTENTION_TIMEOUT) as limit:
                return await self._transact(limit, await self._client(), workspace, pairs, change)
        except TimeoutError:
            raise StoreError(f"{self._name}: too slow, or too many at once") from None
        except (RedisError, OSError) as error:
            raise StoreError(f"{self._name}: {error}") from error

    async def _transact(
        self,
        limit: asyncio.Timeout,
        client: _Client,
        workspace: str,
        pairs: Collection[str],
        change: Callable[[Transaction], T],
    ) -> T:
        redis, asked = client.redis, list(pairs)
        nothing = ["", "", "", 0, 0, "", 0, *[""] * len(asked)]
        found = await self._step(redis, workspace, asked, nothing)
        tries = 0
        while True:
            _check(limit)
            seconds, microseconds, revision, state, server, kept_on, count, *memories = found
            transaction = Transaction(
                now=int(seconds) + int(microseconds) / 1e6,
                # The server's clock is taken for UTC until a Date of Braze's corrects it.
                bucket=load_bucket(state) if state else Bucket(offset=0.0),
                pairs={
                    pair: load_remembered(memory)
                    for pair, memory in zip(asked, memories, strict=False)
                    if memory
                },
            )
            bucket, seen = transaction.bucket, self._counts.get(workspace, 0)
            opened = client.connections.opened
            fresh = client.believed.get(workspace) != opened
            if state and _may_be_old(bucket, server, kept_on, int(count) < seen, fresh=fresh):
                bucket.distrust(transaction.now)
            untouched, before = dump(bucket), dict(transaction.pairs)
            result = change(transaction)
            if dump(bucket) == untouched and transaction.pairs == before:
                self._counts[workspace] = max(seen, int(count))
                return result
            # Others may have come to be in doubt meanwhile; they are looked at from now on.
            asked += transaction.pairs.keys() - set(asked)
            remembered = [
                ""
                if (memory := transaction.pairs.get(pair)) in (None, before.get(pair))
                else dump(memory)
                for pair in asked
            ]
            kept = [int(STATE_KEPT * 1000), int(MEMORY * 1000), server]
            new, next_count = secrets.token_hex(8), max(seen, int(count)) + 1
            found = await self._step(
                redis,
                workspace,
                asked,
                [revision, new, dump(bucket), *kept, next_count, *remembered],
            )
            if not found:
                self._counts[workspace] = max(next_count, self._counts.get(workspace, 0))
                client.believed[workspace] = opened
                return result
            tries = min(tries + 1, 6)
            await asyncio.sleep(random.uniform(0, 0.001 * 2**tries))

    async def _step(
        self, redis: Redis, workspace: str, pairs: list[str], arguments: list[Any]
    ) -> list[bytes]:
        tag = "braze_sends:{" + quote(workspace, safe="") + "}"
        keys = [f"{tag}:quota", *(f"{tag}:pair:{pair}" for pair in pairs)]
        found: list[bytes] = await redis.register_script(_STEP)(keys=keys, args=arguments)
        return found

    async def _client(self) -> _Client:
        loop = asyncio.get_running_loop()
        with self._lock:
            client = self._clients.get(loop)
            if client is None:
                for other in [one for one in self._clients if not one.is_running()]:
                    self._clients.pop(other).hang_up()
        if client is None:
            client = await _opened(self._url)
            with self._lock:
                client = self._clients.setdefault(loop, client)
        return client

    async def close(self) -> None:
        """Close the connections; they are opened again if need be."""
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


def _may_be_old(
    bucket: Bucket, server: bytes, kept_on: bytes, set_back: bool, *, fresh: bool
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

    # A server that does not let go in time is let go all the same.
    with contextlib.suppress(RedisError, OSError):
        await client.own.aclose()


async def _opened(url: str) -> _Client:
    connections = _Connections()
    own = _own_redis(url, connections.connected)
    return _Client(await anext(own), own, connections)


async def _own_redis(
    url: str, connected: Callable[[AbstractConnection], Coroutine[Any, Any, None]]
) -> AsyncGenerator[Redis]:
    # An async generator, since asyncio closes those that are open when a loop ends.
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import ExponentialBackoff
    from redis.exceptions import ConnectionError as Unconnected
    from redis.exceptions import TimeoutError as TimedOut

    redis = Redis.from_url(
        url,
        socket_timeout=COMMAND_TIMEOUT,
        socket_connect_timeout=COMMAND_TIMEOUT,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
        retry_on_error=[Unconnected, TimedOut, OSError],
        redis_connect_func=connected,
    )
    try:
        yield redis
    finally:
        await redis.aclose()
