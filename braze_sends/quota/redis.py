"""The quota in Redis or Valkey: for the workers of many hosts."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncGenerator, Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlsplit

from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.quota.bucket import Bucket
from braze_sends.quota.codec import dump, load_bucket, load_remembered
from braze_sends.quota.store import MEMORY, STATE_KEPT, Transaction

if TYPE_CHECKING:
    from redis.asyncio import Redis

T = TypeVar("T")

#: Seconds for one command, and for all tries of a transaction that others are faster than.
COMMAND_TIMEOUT, CONTENTION_TIMEOUT = 5.0, 20.0

# Reads; or, given a new revision, compares and sets. The revision is random and not counted, so
# that a Redis that was restarted empty, or from an old dump, cannot come to the same one again. A
# command that is retried because its reply was lost finds its own revision and is content. A
# conflict hands back the state, which saves asking for it.
#
# KEYS: the state, then the pairs looked at. ARGV: the revision expected, the new one or '', the
# state, milliseconds to keep state and memories, then for each pair what to remember, or ''.
_STEP = """
local revision = redis.call('HGET', KEYS[1], 'revision') or ''
if ARGV[2] ~= '' and (revision == ARGV[1] or revision == ARGV[2]) then
  if revision ~= ARGV[2] then
    redis.call('HSET', KEYS[1], 'revision', ARGV[2], 'state', ARGV[3])
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    for i = 2, #KEYS do
      if ARGV[i + 4] ~= '' then redis.call('SET', KEYS[i], ARGV[i + 4], 'PX', ARGV[5]) end
    end
  end
  return {}
end
local time = redis.call('TIME')
local found = {time[1], time[2], revision, redis.call('HGET', KEYS[1], 'state') or ''}
for i = 2, #KEYS do found[i + 3] = redis.call('GET', KEYS[i]) or '' end
return found
"""


class RedisStore:
    """The quota on a Redis or Valkey server that many hosts share.

    Its clock is the server's, so a host whose clock is off hurts nobody. Commands are retried, and
    a lost reply never counts twice. All keys of a workspace share a hash tag, so that a cluster
    keeps them together; the client itself talks to one server and follows no redirections.
    Nothing is opened before the first transaction.

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
        self._own: AsyncGenerator[Redis] | None = None
        self._redis: Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

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
            async with asyncio.timeout(CONTENTION_TIMEOUT):
                return await self._transact(await self._connected(), workspace, pairs, change)
        except TimeoutError:
            raise StoreError(f"{self._name}: too slow, or too many at once") from None
        except (RedisError, OSError) as error:
            raise StoreError(f"{self._name}: {error}") from error

    async def _transact(
        self,
        redis: Redis,
        workspace: str,
        pairs: Collection[str],
        change: Callable[[Transaction], T],
    ) -> T:
        asked = list(pairs)
        found = await self._step(redis, workspace, asked, ["", "", "", 0, 0, *[""] * len(asked)])
        tries = 0
        while True:
            seconds, microseconds, revision, state, *memories = found
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
            untouched, before = dump(transaction.bucket), dict(transaction.pairs)
            result = change(transaction)
            if dump(transaction.bucket) == untouched and transaction.pairs == before:
                return result
            # Others may have come to be in doubt meanwhile; they are looked at from now on.
            asked += transaction.pairs.keys() - set(asked)
            remembered = [
                ""
                if (memory := transaction.pairs.get(pair)) in (None, before.get(pair))
                else dump(memory)
                for pair in asked
            ]
            kept = [int(STATE_KEPT * 1000), int(MEMORY * 1000)]
            new = secrets.token_hex(8)
            found = await self._step(
                redis,
                workspace,
                asked,
                [revision, new, dump(transaction.bucket), *kept, *remembered],
            )
            if not found:
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

    async def _connected(self) -> Redis:
        loop = asyncio.get_running_loop()
        if self._redis is None or self._loop is not loop:
            self._own = _own_redis(self._url)
            self._redis, self._loop = await anext(self._own), loop
        return self._redis

    async def close(self) -> None:
        """Close the connections; they are opened again if need be."""
        from redis.exceptions import RedisError

        own, self._own, self._redis = self._own, None, None
        if own is not None and self._loop is asyncio.get_running_loop():
            # A server that does not let go in time is let go all the same.
            with contextlib.suppress(RedisError, OSError):
                await own.aclose()


async def _own_redis(url: str) -> AsyncGenerator[Redis]:
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
    )
    try:
        yield redis
    finally:
        await redis.aclose()
