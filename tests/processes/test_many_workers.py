"""Eight workers want four times the quota, over and over, on one store."""

from __future__ import annotations

import random
import uuid
from contextlib import AsyncExitStack

import attrs
import pytest

from tests.processes.timekeeper import Timekeeper
from tests.processes.worker import Job, errors, made, names

WORKERS, TASKS, QUOTA = 8, 50, 100


async def play(
    timekeeper: Timekeeper,
    store_url: str,
    rounds: int,
    at_once: int,
    latency: tuple[float, float],
) -> list[list[int]]:
    """How many each worker created in each round, in none of which one was over the quota."""
    shares = []
    async with AsyncExitStack() as stack:
        crew = [await stack.enter_async_context(timekeeper.worker()) for _ in range(WORKERS)]
        for _ in range(rounds):
            fake = timekeeper.braze(daily_limit=QUOTA, latency=lambda: random.uniform(*latency))
            async with fake:
                job = Job(
                    base_url=fake.base_url,
                    store=store_url,
                    workspace=uuid.uuid4().hex,
                    names=("first",),
                    at_once=at_once,
                )
                # The state is known, so that none has the head start of a probe.
                assert ["first"] == made(await timekeeper.do(crew[0], job))
                told = [len(worker.outcomes) for worker in crew]
                for n, worker in enumerate(crew):
                    worker.begin(attrs.evolve(job, names=names(f"w{n}-", TASKS)))
                outcomes = [
                    (await timekeeper.ends(worker))[before:]
                    for worker, before in zip(crew, told, strict=True)
                ]
                given = [name for told in outcomes for name in made(told)]
                assert {name for _, name in fake.created} == {"first", *given}
                assert (QUOTA, QUOTA) == (len(fake.created), len(fake.requests))
                assert (QUOTA - 1, 0) == (len(given), fake.refused)
                assert {"QuotaExhaustedError"} == set().union(*map(errors, outcomes))
                shares.append([len(made(told)) for told in outcomes])
    return shares


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.long)])
async def test_together_they_create_the_quota_and_draw_no_429(
    timekeeper: Timekeeper, store_url: str, rounds: int
) -> None:
    """All tasks at once: exactly 100 created in each round, not one request more, and some of them
    by each worker."""
    shares = await play(timekeeper, store_url, rounds, TASKS, (0.0, 0.05))
    print(shares)  # noqa: T201  # shown where it fails
    assert [QUOTA - 1] * rounds == [sum(share) for share in shares]
    assert 1 <= min(min(share) for share in shares)


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.long)])
async def test_no_worker_starves(timekeeper: Timekeeper, store_url: str, rounds: int) -> None:
    """Three tasks at once in each worker: each gets some of the quota in every round."""
    shares = await play(timekeeper, store_url, rounds, 3, (0.1, 0.2))
    assert 1 <= min(min(share) for share in shares)
