"""The clients of redis-py that a URL means: one server, a cluster, or the master of sentinels."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.connection import AbstractConnection

    Client: TypeAlias = Redis | RedisCluster

_PORTS = {"cluster": 6379, "sentinel": 26379}


async def opened(
    url: str,
    connected: Callable[[AbstractConnection], Coroutine[Any, Any, None]],
    timeout: float,  # noqa: ASYNC109  # of the client's, not of this function
) -> AsyncGenerator[Client]:
    """The client that ``url`` means. It is closed when this generator is.

    Args:
        url: see ``RedisStore``.
        connected: called for each new connection, which it completes.
        timeout: seconds for one command.
    """
    # An async generator, since asyncio closes those that are open when a loop ends.
    async with contextlib.AsyncExitStack() as stack:
        clients = make(url, connected, timeout)
        for client in clients:
            stack.push_async_callback(_close, client)
        yield clients[0]


def make(
    url: str,
    connected: Callable[[AbstractConnection], Coroutine[Any, Any, None]] | None = None,
    timeout: float = 1.0,
) -> list[Client]:
    """The client that ``url`` means, then the clients by which it finds its server. None connects.

    Raises:
        ValueError, TypeError, AttributeError: the URL cannot be used.
    """
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import ExponentialBackoff
    from redis.exceptions import ConnectionError as Unconnected
    from redis.exceptions import TimeoutError as TimedOut

    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
        "retry_on_error": [Unconnected, TimedOut, OSError],
    }
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if not kind:
        return [Redis.from_url(url, redis_connect_func=connected, **options)]
    user, at, hosts = parts.netloc.rpartition("@")
    nodes = [_address(host, _PORTS[kind]) for host in hosts.split(",")]
    options |= _options(f"{scheme}://{user}{at}{nodes[0][0]}?{parts.query}")
    if kind == "cluster":
        if parts.path not in ("", "/", "/0"):
            raise ValueError("a cluster has no other database than 0")
        return [_cluster(nodes, options, connected)]
    service, _, db = parts.path.strip("/").partition("/")
    if not service:
        raise ValueError("no service")
    options |= {"db": int(db or 0), "redis_connect_func": connected}
    return _sentinel(nodes, unquote(service), options)


def _address(text: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("no host")
    return parts.hostname, parts.port or default


def _options(url: str) -> dict[str, Any]:
    """What a URL of one server says, but for where it is."""
    from redis.asyncio.connection import SSLConnection, parse_url

    options: dict[str, Any] = {**parse_url(url)}
    if options.pop("connection_class", None) is SSLConnection:
        options["ssl"] = True
    del options["host"]
    return options


def _cluster(
    nodes: list[tuple[str, int]],
    options: dict[str, Any],
    connected: Callable[[AbstractConnection], Coroutine[Any, Any, None]] | None,
) -> RedisCluster:
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.exceptions import RedisClusterException

    try:
        cluster = RedisCluster(startup_nodes=[ClusterNode(*node) for node in nodes], **options)
    except RedisClusterException:
        raise ValueError("not for a cluster") from None
    # It has no parameter for that. Nodes that it finds take the options from the first of these.
    known = cluster.nodes_manager.startup_nodes.values()
    for kept in (cluster.connection_kwargs, *(node.connection_kwargs for node in known)):
        kept["redis_connect_func"] = connected
    return cluster


def _sentinel(nodes: list[tuple[str, int]], service: str, options: dict[str, Any]) -> list[Client]:
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import NoBackoff

    # The user and password are the server's. Whoever asks the sentinels asks again by itself.
    shared = {
        name: value
        for name, value in options.items()
        if name.startswith(("socket_", "ssl")) or name == "redis_connect_func"
    }
    once = Retry(NoBackoff(), 0)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # theirs
        nodes, sentinel_kwargs=shared | {"retry": once}, **options
    )
    return [sentinel.master_for(service), *sentinel.sentinels]


async def _close(client: Client) -> None:
    from redis.asyncio import Redis

    await client.aclose()
    if not isinstance(client, Redis):
        # After an error of one connection the others are left open.
        for node in [*client.get_nodes(), *client.nodes_manager.startup_nodes.values()]:
            await node.disconnect()


def place_of(client: Client) -> str:
    """Where an application's client connects to, as a URL without user, password and options."""
    from redis.asyncio import Redis
    from redis.asyncio.sentinel import SentinelConnectionPool

    if not isinstance(client, Redis):
        nodes = client.nodes_manager.startup_nodes
        return f"redis+cluster://{','.join(nodes)}"
    pool = client.connection_pool
    if isinstance(pool, SentinelConnectionPool):
        return f"redis+sentinel:///{pool.service_name}"
    options = pool.connection_kwargs
    if "path" in options:
        return f"unix://{options['path']}"
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    return f"redis://{host}:{port}/{options.get('db') or 0}"
