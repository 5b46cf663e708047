"""Callers that wait for quota: what they cost those who do not wait, and the memory they take."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import statistics
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import peers, server
from benchmarks.creates import client
from benchmarks.measure import Row, Section, Work, alternate, cost, ratio
from benchmarks.redis_server import running as redis_running
from braze_sends import SendsClient


async def urgent(folder: Path, *, full: bool) -> Section:
    """One urgent create while n others wait."""
    sizes = (0, 100, 1_000, 10_000, *([100_000] if full else []))
    rows: list[Row] = []
    remarks: list[str] = []
    with server.running() as url, redis_running() as redis:
        async with peers.session() as session:
            for name, store in (
                ("memory", "memory://"),
                ("SQLite", f"sqlite:///{folder}/parked"),
                ("Redis", redis),
            ):
                if store is None:
                    remarks.append("Redis was left out: there is no server to start.")
                    continue
                rows += await _beside_nobody(session, url, name, store, sizes)
    return Section(
        "One create while others wait",
        ("store, how many wait", "CPU of one create", "beside 0 who wait"),
        rows,
        remarks,
    )


async def _beside_nobody(
    session: aiohttp.ClientSession, url: str, name: str, store: str, sizes: tuple[int, ...]
) -> list[Row]:
    rows: list[Row] = []
    nobody = 0.0
    calm = None if name == "memory" else _calm
    operations, rounds = 20, 7
    # In turns with the fewest who wait. Beside thousands, their looks at a shared store would fall
    # into the time of nobody's side. As many creates are one sample for all sizes: the first after
    # a collection of garbage finds cold caches, whoever waits.
    for together in (sizes[:2], *((size,) for size in sizes[2:])):
        sides: dict[str, Work] = {}
        async with contextlib.AsyncExitStack() as stack:
            for size in together:
                braze, create = await stack.enter_async_context(
                    client(session, url, store=_own(store, f"{name}-{size}"))
                )
                await park(stack, braze, create, size)
                sides[f"{size:,}"] = functools.partial(peers.in_turn, create, operations)
            found = await alternate(sides, rounds=rounds, operations=operations, between=calm)
        for label, samples in found.items():
            nobody = nobody or statistics.median(samples.cpu)
            beside = "" if label == "0" else ratio(samples.cpu, [nobody] * rounds)
            rows.append(Row(f"{name}, {label}", cost(samples.cpu), beside))
    return rows


async def _calm() -> None:
    # Those who wait on a shared store look at it from time to time, first 0.25 s after a create.
    await asyncio.sleep(0.4)


def _own(store: str, name: str) -> str:
    # The workspaces of a Redis have keys of their own; a SQLite file is locked as a whole.
    return f"{store}-{name}.db" if store.startswith("sqlite") else store


async def park(
    stack: contextlib.AsyncExitStack, braze: SendsClient, create: peers.Create, size: int
) -> None:
    """Let ``size`` callers wait: they leave more slots to others than there are."""
    numbers = itertools.count()
    tasks = [
        asyncio.create_task(
            braze.create_send_id(
                "campaign",
                f"parked-{next(numbers)}",
                max_rate_limit_wait=None,
                headroom=server.FAR - 1,
            )
        )
        for _ in range(size)
    ]
    stack.push_async_callback(_ended, tasks)
    await asyncio.sleep(0)
    await create()  # comes after them in the queue, so they have all been looked at


async def _ended(tasks: list[asyncio.Task[Any]]) -> None:
    waited = not any(task.done() for task in tasks)
    await _cancelled(tasks)
    if not waited:
        raise RuntimeError("not all have waited to the end")


async def _cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def memory() -> Section:
    """The memory of one caller that waits."""
    size = 2_000
    loop = asyncio.get_running_loop()
    kinds: dict[str, Callable[[], Awaitable[Any]] | None] = {
        "a task that waits for a future": loop.create_future,
        "aiolimiter": peers.parked_on_aiolimiter(),
    }
    sizes: dict[str, float] = {}
    for name, wait in kinds.items():
        if wait is not None:
            sizes[name] = await _kilobytes(functools.partial(_tasks, wait), size)
    with server.running() as url:
        async with peers.session() as session, client(session, url) as (braze, create):
            sizes["braze_sends"] = await _kilobytes(
                lambda stack, count: park(stack, braze, create, count), size
            )
    base = next(iter(sizes.values()))
    rows = [
        Row(name, f"{each:.2f} kB", "" if each is base else f"{each / base:.1f}")
        for name, each in sizes.items()
    ]
    return Section("The memory of a caller that waits", ("", "memory", "beside a future"), rows)


async def _tasks(wait: Callable[[], Awaitable[Any]], stack: Any, size: int) -> None:
    async def one() -> None:
        await wait()

    tasks = [asyncio.create_task(one()) for _ in range(size)]
    stack.push_async_callback(_cancelled, tasks)
    for _ in range(3):
        await asyncio.sleep(0)


async def _kilobytes(
    start: Callable[[contextlib.AsyncExitStack, int], Awaitable[None]], size: int
) -> float:
    async with contextlib.AsyncExitStack() as stack:
        await start(stack, 10)  # what is made once for all
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await start(stack, size)
            gc.collect()
            return (tracemalloc.get_traced_memory()[0] - before) / size / 1000
        finally:
            tracemalloc.stop()
