"""Whole creates: alone, gathered, on a tight limit, and those that exist already."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import peers, server
from benchmarks.measure import Row, Samples, Section, Work, alternate, cost, ratio
from braze_sends import CreateSendId, SendsClient, Store


@contextlib.asynccontextmanager
async def client(
    session: aiohttp.ClientSession,
    url: str,
    limit: int = server.FAR,
    *,
    store: Store | str = "memory://",
    **options: Any,
) -> AsyncIterator[tuple[SendsClient, peers.Create]]:
    """A client of a new workspace, and its create of a new pair.

    Without a ``limit`` it knows already that there is plenty. It believes in more than the usual
    100 when a create beyond these has succeeded.
    """
    numbers = itertools.count()
    async with SendsClient(
        server.key(limit), base_url=url, session=session, store=store, timeout=300, **options
    ) as braze:

        async def create() -> object:
            return (await braze.create_send_id("campaign", f"story-{next(numbers)}")).send_id

        if limit == server.FAR:
            await peers.in_turn(create, server.BELIEVED)
        yield braze, create


async def alone_and_gathered() -> Section:
    """One create at a time, and many at once, with plenty of quota."""
    rows = []
    with server.running() as url:
        async with peers.session() as session, client(session, url) as (_, ours):
            creates = {
                "aiohttp": peers.bare(session, url),
                "aiohttp and tenacity": peers.with_tenacity(session, url),
                "braze_sends": ours,
            }
            for size, rounds in ((1, 21), (10, 21), (100, 15), (1_000, 7)):
                repeat = max(1, 100 // size)
                sides = {name: _batches(each, size, repeat) for name, each in creates.items()}
                found = await alternate(sides, rounds=rounds, operations=size * repeat)
                rows += _beside(found, _how_many(size), "aiohttp")
    return Section("One create", ("creates at once", "CPU for each", "beside aiohttp"), rows)


async def tight() -> Section:
    """As many at once as the limit has; each round with a new client and a new workspace."""
    sizes = (100, 5_000)
    with server.running() as url:
        async with peers.session() as session:
            plain = peers.bare(session, url)
            await peers.gathered(plain, max(sizes))  # opens the connections

            async def ours(size: int) -> None:
                async with client(session, url, limit=size) as (_, create):
                    await peers.gathered(create, size)

            found: dict[str, Samples] = {}
            for name, work in (
                ("aiohttp", functools.partial(peers.gathered, plain)),
                ("braze_sends", ours),
            ):
                sides: dict[str, Work] = {}
                for size in sizes:
                    sides[str(size)] = functools.partial(
                        _repeated, functools.partial(work, size), max(sizes) // size
                    )
                samples = await alternate(sides, rounds=3, operations=max(sizes))
                found |= {f"{name} {size}": samples[str(size)] for size in sizes}
    rows = []
    for name in ("aiohttp", "braze_sends"):
        few, many = (found[f"{name} {size}"].cpu for size in sizes)
        rows.append(Row(f"{name}, 100 on a limit of 100", cost(few)))
        rows.append(Row(f"{name}, 5,000 on a limit of 5,000", cost(many), ratio(many, few)))
    return Section(
        "The whole limit at once", ("creates at once", "CPU for each", "beside 100"), rows
    )


async def remembered(folder: Path) -> Section:
    """Rows of a batch whose pairs exist already."""
    size = 500
    sides, rows = {}, []
    with server.running() as url:
        async with peers.session() as session, contextlib.AsyncExitStack() as stack:
            for name, store in (("memory", "memory://"), ("SQLite", f"sqlite:///{folder}/rows.db")):
                braze, _ = await stack.enter_async_context(client(session, url, store=store))
                requests = [CreateSendId("campaign", f"row-{n}") for n in range(size)]
                await braze.create_send_ids(requests, concurrency=size)
                sides[name] = functools.partial(_read_all, braze, requests)
            found = await alternate(sides, rounds=9, operations=size)
    for name, samples in found.items():
        rows.append(Row(f"iter_send_ids, {name}", cost(samples.cpu)))
    return Section("A row that exists already", ("store", "CPU for each", ""), rows)


async def _read_all(braze: SendsClient, requests: list[CreateSendId]) -> None:
    async with contextlib.aclosing(braze.iter_send_ids(requests)) as outcomes:
        async for outcome in outcomes:
            if outcome.result is None or not outcome.result.reused:
                raise RuntimeError(f"not remembered: {outcome}")


def _batches(create: peers.Create, size: int, repeat: int) -> Work:
    if size == 1:
        return functools.partial(peers.in_turn, create, repeat)
    return functools.partial(_repeated, functools.partial(peers.gathered, create, size), repeat)


async def _repeated(work: Work, repeat: int) -> None:
    for _ in range(repeat):
        await work()


def _how_many(size: int) -> str:
    return "1, one after another" if size == 1 else f"{size:,} gathered"


def _beside(found: dict[str, Samples], label: str, base: str) -> list[Row]:
    return [
        Row(
            f"{label}: {name}",
            cost(samples.cpu),
            "" if name == base else ratio(samples.cpu, found[base].cpu),
        )
        for name, samples in found.items()
    ]
