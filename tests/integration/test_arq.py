"""The arq example, with a real Redis, two workers and signals.

arq needs an older redis-py than Celery, so it has an environment of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from braze_sends.testing import FakeBraze
from tests.integration.apps import EXAMPLES, environment, started
from tests.integration.load import CAMPAIGN, LOOK, each_created_once
from tests.servers import RedisServer
from tests.waiting import until

pytestmark = pytest.mark.integration

WORKER = ["arq", "arq_worker.WorkerSettings"]


@pytest.fixture
def arq(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example, imported into this process, which puts jobs into the queue."""
    with RedisServer() as broker:
        monkeypatch.setenv("ARQ_REDIS_URL", broker.url)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        module = importlib.reload(importlib.import_module("arq_worker"))
        yield module


async def test_two_arq_workers_create_the_quota_and_put_off_the_rest(
    arq: Any, fake: FakeBraze, store_url: str, tmp_path: Path
) -> None:
    """400 jobs make 100 send IDs, and 300 wait in the queue until the window ends."""
    env = environment(fake.base_url, store_url)
    with (
        started(WORKER, tmp_path / "one.log", env) as one,
        started(WORKER, tmp_path / "two.log", env) as two,
    ):
        pool = await pool_of(arq)
        begun = time.time()
        await enqueued(arq, pool, range(400))
        queue = Queue(pool)
        await queue.rests(done=100, waiting=300, since=begun)

        assert (100, 0) == (len(fake.created), fake.refused), one.text() + two.text()
        assert all("create" in worker.text() for worker in (one, two)), "one worker did it all"
        job = await pool.enqueue_job("health")
        assert {"ok": True, "remaining": 0} == await job.result(timeout=60)
        await pool.aclose()


async def test_an_arq_worker_stopped_at_work_loses_nothing_and_repeats_nothing(
    arq: Any, fake: FakeBraze, store_url: str, tmp_path: Path
) -> None:
    """SIGTERM ends it when its jobs are done; the next worker does the others, each once."""
    fake.daily_limit, fake.latency = 100_000, 0.05
    env = environment(fake.base_url, store_url)
    pool = await pool_of(arq)
    await enqueued(arq, pool, range(120))
    queue = Queue(pool)
    with started(WORKER, tmp_path / "first.log", env) as worker:
        await until(lambda: len(fake.created) >= 20)
        worker.send(signal.SIGTERM)
        await until(worker.ended)
        assert await queue.done() == len(fake.created) < 120, worker.text()

    with started(WORKER, tmp_path / "second.log", env):
        await queue.rests(done=120, waiting=0, since=0)
    await pool.aclose()
    await each_created_once(fake, store_url, 120)


async def pool_of(arq: Any) -> Any:
    """A way into the queue of the arq example."""
    return await importlib.import_module("arq").create_pool(arq.REDIS)


async def enqueued(arq: Any, pool: Any, numbers: range) -> None:
    for n in numbers:
        await arq.enqueue(pool, CAMPAIGN, f"v{n}")


class Queue:
    """What arq keeps in Redis."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def done(self) -> int:
        """Jobs that have a result."""
        return len(await self._pool.keys("arq:result:*"))

    async def rests(self, done: int, waiting: int, since: float) -> None:
        """Wait until so many jobs have a result, and so many wait to be tried again later."""
        while True:
            later = await self._pool.zcount("arq:queue", (since + 5) * 1000, "+inf")
            all_waiting = await self._pool.zcard("arq:queue")
            at_work = await self._pool.keys("arq:in-progress:*")
            if (done, waiting, waiting) == (await self.done(), later, all_waiting) and not at_work:
                return
            await asyncio.sleep(LOOK)
