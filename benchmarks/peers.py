"""Other ways to do the same: the create by hand, and the limiters on PyPI."""

from __future__ import annotations

import asyncio
import importlib
import itertools
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import aiohttp
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from benchmarks.server import key

Create = Callable[[], Awaitable[object]]

#: The packages that are compared.
PACKAGES = ("aiohttp", "tenacity", "aiolimiter", "limits", "throttled-py", "pyrate-limiter")
#: More than any measurement takes from a limiter.
PLENTY = 10_000_000


def versions() -> list[str]:
    """The name and version of each peer that is installed."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def session() -> aiohttp.ClientSession:
    """One for all sides, so that none of them pays for opening connections.

    As many connections as requests, which is what ``SendsClient`` opens for itself too.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=600)
    return aiohttp.ClientSession(connector=connector)


def bare(session: aiohttp.ClientSession, url: str) -> Create:
    """A create with aiohttp alone."""
    authorization = f"Bearer {key()}"
    numbers = itertools.count()

    async def create() -> object:
        async with session.post(
            f"{url}/sends/id/create",
            json={"campaign_id": "campaign", "send_id": f"story-{next(numbers)}"},
            headers={"Authorization": authorization},
        ) as response:
            response.raise_for_status()
            return (await response.json())["send_id"]

    return create


def with_tenacity(session: aiohttp.ClientSession, url: str) -> Create:
    """A create with aiohttp, retried by tenacity as its documentation shows."""
    return retry(
        stop=stop_after_attempt(3),
        wait=wait_random_exponential(multiplier=1, max=60),
        retry=retry_if_exception_type((aiohttp.ClientError, TimeoutError)),
        reraise=True,
    )(bare(session, url))


def limiters() -> dict[str, Callable[[], Awaitable[object]]]:
    """One acquire of each limiter that is installed, in memory, with plenty left."""
    found = {}
    for name, make in LIMITERS.items():
        try:
            found[name] = make()
        except ImportError:
            continue
    return found


def parked_on_aiolimiter() -> Callable[[], Awaitable[object]] | None:
    """An acquire that waits for hours."""
    try:
        aiolimiter = importlib.import_module("aiolimiter")
    except ImportError:
        return None
    limiter = aiolimiter.AsyncLimiter(1, 86_400)
    acquire: Create = limiter.acquire
    return acquire


# Imported by name, since each may be missing: then the others are measured without it.


def _aiolimiter() -> Callable[[], Awaitable[object]]:
    limiter = importlib.import_module("aiolimiter").AsyncLimiter(PLENTY, 86_400)

    async def acquire() -> None:
        async with limiter:
            pass

    return acquire


def _limits() -> Callable[[], Awaitable[object]]:
    limits = importlib.import_module("limits")
    aio = importlib.import_module("limits.aio")
    limiter = aio.strategies.FixedWindowRateLimiter(aio.storage.MemoryStorage())
    rate = limits.RateLimitItemPerDay(PLENTY)
    return lambda: _checked(limiter.hit(rate, "workspace"))


def _throttled() -> Callable[[], Awaitable[object]]:
    throttled = importlib.import_module("throttled.asyncio")
    limiter = throttled.Throttled(
        key="workspace",
        using="fixed_window",
        quota=throttled.per_day(PLENTY),
        store=throttled.MemoryStore(),
    )

    async def acquire() -> None:
        _check(not (await limiter.limit()).limited)

    return acquire


def _pyrate() -> Callable[[], Awaitable[object]]:
    pyrate = importlib.import_module("pyrate_limiter")
    limiter = pyrate.Limiter(pyrate.Rate(PLENTY, pyrate.Duration.DAY))
    return lambda: _checked(limiter.try_acquire_async("workspace"))


async def _checked(acquired: Awaitable[Any]) -> None:
    _check(await acquired)


def _check(acquired: bool) -> None:
    if not acquired:
        raise RuntimeError("a limiter with plenty left refused")


#: What makes an acquire of each.
LIMITERS = {
    "aiolimiter": _aiolimiter,
    "limits": _limits,
    "throttled-py": _throttled,
    "pyrate-limiter": _pyrate,
}


async def gathered(create: Create, size: int) -> None:
    """``size`` creates at once."""
    await asyncio.gather(*(create() for _ in range(size)))


async def in_turn(create: Create, size: int) -> None:
    """``size`` creates, one after another."""
    for _ in range(size):
        await create()
