"""The quota in Redis or Valkey: for the workers of many hosts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

import attrs

from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores import optimistic
from braze_sends.stores.optimistic import Records, Seen
from braze_sends.stores.redis_clients import make, opened, place_of
from braze_sends.stores.redis_errors import in_words
from braze_sends.stores.store import MEMORY, STATE_KEPT, Transaction

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.connection import AbstractConnection

    from braze_sends.stores.redis_clients import Client

T = TypeVar("T")

#: Seconds for one command.
COMMAND_TIMEOUT = 5.0
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
        self._records = Records()

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
            async with asyncio.timeout(optimistic.CONTENTION_TIMEOUT) as limit:
                client = await self._client()
                steps = _Steps(client, workspace, limit, self._name, self._records, self._step)
                return await self._records.transact(workspace, pairs, change, steps)
        except TimeoutError as error:
            words = "too slow, or too many at once"
            if self._records.reached == (0.0, 0.0):  # no server has ever answered
                words = in_words(error)
        except (RedisError, RedisClusterException, OSError) as error:
            words = in_words(error)
        # Not from that error: it may repeat a command, with the password in it.
        raise StoreError(f"{self._name}: {words}")

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


@attrs.define(eq=False)
class _Steps:
    """See ``optimistic.Steps``.

    Attributes:
        limit: ends the transaction.
        name: of the store, for errors.
        send: sends one step.
        opened: how many connections had been opened before the try.
    """

    client: _Client
    workspace: str
    limit: asyncio.Timeout
    name: str
    records: Records
    send: Callable[[Client, str, list[str], list[Any]], Awaitable[list[bytes]]]
    opened: int = 0

    def begin(self) -> None:
        # A timeout cancels, and that may be lost: on Python 3.11 asyncio.wait_for, by which
        # redis-py reads, swallows a cancellation that comes together with the reply.
        # https://github.com/python/cpython/issues/86296
        when = self.limit.when()
        if when is not None and asyncio.get_running_loop().time() >= when:
            raise TimeoutError
        self.opened = self.client.connections.opened

    def may_be_old(self, bucket: Bucket, seen: Seen, *, set_back: bool) -> bool:
        if not seen.server and not self.client.watched:
            # Nothing would show that another server has taken over, which may lack writes.
            raise StoreError(
                f"{self.name}: the server does not tell its run_id: allow the user to run "
                "INFO (ACL SETUSER … +info)"
            )
        if seen.server or set_back:
            return set_back or seen.server != seen.kept_on
        # It does not tell who it is. After each new connection it may be another one, or restarted.
        # What another process has come to doubt is left alone, so that only one request goes first.
        fresh = self.client.believed.get(self.workspace) != self.opened
        return fresh and (bucket.known or bucket.probes > 1)

    def kept(self) -> None:
        self.client.believed[self.workspace] = self.opened

    async def step(
        self, pairs: list[str], seen: Seen, left: Seen, remembered: Mapping[str, str]
    ) -> tuple[bool, Seen]:
        behind = optimistic.BEHIND if seen.assumed else ""
        arguments = [seen.revision, seen.server, seen.now, behind]
        arguments += ["", "", 0] if left is seen else [left.revision, left.state, left.count]
        arguments += [int(STATE_KEPT * 1000), int(MEMORY * 1000)]
        for pair in pairs:
            arguments += [seen.memories.get(pair, ""), remembered.get(pair, "")]
        async with self.client.turn:
            reply = await self.send(self.client.redis, self.workspace, pairs, arguments)
        seconds, microseconds, *found = reply
        clock = int(seconds) + int(microseconds) / 1e6
        self.records.heard(clock, seen.now)
        if not found:
            return True, attrs.evolve(seen, now=clock, assumed=False)
        revision, state, server, kept_on, count, *texts = found
        memories = {pair: text for pair, text in zip(pairs, texts, strict=True) if text}
        return False, Seen(revision, state, server, kept_on, int(count), clock, False, memories)


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
