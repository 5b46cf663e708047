"""Eight workers want four times the quota, over and over, on one store."""

from __future__ import annotations

import asyncio
import random
import uuid
from contextlib import AsyncExitStack

import attrs

from tests.processes.worker import Job, Worker, braze, errors, made, names

WORKERS, TASKS, QUOTA = 8, 50, 100


async def play(
    store_url: str, rounds: int, at_once: int, latency: tuple[float, float]
) -> list[list[int]]:
    """How many each worker created in each round, in none of which one was over the quota."""
    shares = []
    async with AsyncExitStack() as stack:
        crew = [await stack.enter_async_context(Worker()) for _ in range(WORKERS)]
        nothing = Job(base_url="http://127.0.0.1:9", store=store_url, names=())
        await asyncio.gather(*(worker.do(nothing) for worker in crew))  # all have started
        for _ in range(rounds):
            async with braze(daily_limit=QUOTA, latency=lambda: random.uniform(*latency)) as fake:
                job = Job(
                    base_url=fake.base_url,
                    store=store_url,
                    workspace=uuid.uuid4().hex,
                    names=("first",),
                    at_once=at_once,
                    look=0.05,
                )
                # The state is known, so that none has the head start of a canary.
                assert ["first"] == made(await crew[0].do(job))
                outcomes = await asyncio.gather(
                    *(
                        worker.do(attrs.evolve(job, names=names(f"w{n}-", TASKS)))
                        for n, worker in enumerate(crew)
                    )
                )
                given = [name for told in outcomes for name in made(told)]
                assert {name for _, name in fake.created} == {"first", *given}
                assert (QUOTA, QUOTA) == (len(fake.created), len(fake.requests))
                assert (QUOTA - 1, 0) == (len(given), fake.refused)
                assert {"QuotaExhaustedError"} == set().union(*map(errors, outcomes))
                shares.append([len(made(told)) for told in outcomes])
    return shares


async def test_together_they_create_the_quota_and_draw_no_429(store_url: str) -> None:
    """All tasks at once: exactly 100 created in each round, and not one request more."""
    shares = await play(store_url, 20, TASKS, (0.0, 0.05))
    assert [QUOTA - 1] * 20 == [sum(share) for share in shares]


async def test_no_worker_starves(store_url: str) -> None:
    """Three tasks at once in each worker: each gets some of the quota in every round."""
    shares = await play(store_url, 10, 3, (0.1, 0.2))
    assert 1 <= min(min(share) for share in shares)
