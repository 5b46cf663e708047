"""The limiter without requests: acquire and finish, with few and with many leases open."""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks import peers
from benchmarks.measure import Row, Section, Work, alternate, cost, ratio
from benchmarks.server import BELIEVED, FAR

Acquire = Callable[[], Awaitable[Any]]
Finish = Callable[[Any], Awaitable[None]]


def new_limiter() -> tuple[Acquire, Finish]:
    """A limiter in memory: what takes a lease, and what settles it as a success.

    The only place of the benchmarks that knows how the package does it inside.
    """
    from braze_sends import MemoryStore
    from braze_sends.quota.limiter import Limiter
    from braze_sends.quota.line import WaitBudget
    from braze_sends.quota.rule.messages import Answer, Ask, Reading
    from braze_sends.stores.store import Remembered

    store = MemoryStore()
    limiter = Limiter.of(store, "workspace")
    numbers, used = itertools.count(), itertools.count(1)
    reset = time.time() + 43_200

    async def acquire() -> Any:
        name = str(next(numbers))
        ask = Ask(name, 1, f"pair-{name}", 3_000.0)
        return ask, await limiter.acquire(ask, WaitBudget(0.0))

    async def finish(lease: Any) -> None:
        ask, held = lease
        answer = Answer(True, window=Reading(FAR, next(used), reset))
        await limiter.finish(ask, held.grant, answer, created=Remembered(ask.pair))

    return acquire, finish


async def ready_limiter() -> tuple[Acquire, Finish]:
    """``new_limiter()``, when it knows that there is plenty."""
    acquire, finish = new_limiter()
    for _ in range(BELIEVED):
        await finish(await acquire())
    return acquire, finish


async def alone() -> Section:
    """Acquire and finish, beside limiters that have no finish."""
    acquire, finish = await ready_limiter()

    async def cycle() -> None:
        await finish(await acquire())

    operations = 500
    sides = {"braze_sends, acquire and finish": cycle} | {
        f"{name}, acquire": each for name, each in peers.limiters().items()
    }
    works: dict[str, Work] = {
        name: functools.partial(peers.in_turn, each, operations) for name, each in sides.items()
    }
    found = await alternate(works, rounds=15, operations=operations)
    ours = found["braze_sends, acquire and finish"].cpu
    rows = [
        Row(name, cost(samples.cpu), "" if samples.cpu is ours else ratio(ours, samples.cpu))
        for name, samples in found.items()
    ]
    missing = set(peers.LIMITERS) - set(peers.limiters())
    return Section(
        "The limiter alone",
        ("limiter, in memory", "CPU", "braze_sends beside it"),
        rows,
        [f"Not installed, so not measured: {', '.join(sorted(missing))}."] if missing else [],
    )


async def open_leases() -> Section:
    """Finish one of n leases."""
    sizes, operations = (100, 5_000, 50_000), 10
    sides: dict[str, Work] = {}
    refills: list[Work] = []
    for size in sizes:
        acquire, finish = await ready_limiter()
        leases = list(await asyncio.gather(*(acquire() for _ in range(size))))
        sides[str(size)] = functools.partial(_finish, finish, leases, operations)
        refills.append(functools.partial(_refill, acquire, leases, size))

    async def refill() -> None:
        for each in refills:
            await each()

    found = await alternate(sides, rounds=9, operations=operations, between=refill)
    few = found[str(sizes[0])].cpu
    rows = [
        Row(
            f"{size:,}",
            cost(found[str(size)].cpu),
            "" if size == sizes[0] else ratio(found[str(size)].cpu, few),
        )
        for size in sizes
    ]
    return Section("One finish", ("open leases", "CPU", "beside 100"), rows)


async def _finish(finish: Finish, leases: list[Any], count: int) -> None:
    for _ in range(count):
        await finish(leases.pop())


async def _refill(acquire: Acquire, leases: list[Any], size: int) -> None:
    missing = size - len(leases)
    leases += await asyncio.gather(*(acquire() for _ in range(missing)))
