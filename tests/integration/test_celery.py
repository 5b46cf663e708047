"""The Celery example, with a real broker, prefork processes and signals."""

from __future__ import annotations

import asyncio
import importlib
import json
import signal
from collections import Counter
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

WORKER = ["celery", "-A", "celery_app", "worker", "--concurrency=4", "--loglevel=INFO"]


@pytest.fixture
def celery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example, imported into this process, which puts tasks into the queue."""
    with RedisServer() as broker:
        monkeypatch.setenv("CELERY_BROKER_URL", broker.url)
        monkeypatch.syspath_prepend(str(EXAMPLES))
        module = importlib.reload(importlib.import_module("celery_app"))
        yield module
        module.app.close()


async def test_celery_processes_create_the_quota_and_put_off_the_rest(
    celery: Any, fake: FakeBraze, store_url: str, tmp_path: Path
) -> None:
    """400 tasks make 100 send IDs, and 300 wait to be tried again."""
    env = environment(fake.base_url, store_url)
    with started(WORKER, tmp_path / "celery.log", env) as worker:
        tasks = await submitted(celery, range(400))
        states = await settled(celery, tasks, {"SUCCESS", "RETRY"})

        assert {"SUCCESS": 100, "RETRY": 300} == states, worker.text()
        assert (100, 0) == (len(fake.created), fake.refused)
        healthy = await asyncio.to_thread(lambda: celery.health.delay().get(timeout=60))
        assert {"ok": True, "remaining": 0} == healthy


async def test_a_celery_worker_stopped_at_work_loses_nothing_and_repeats_nothing(
    celery: Any, fake: FakeBraze, store_url: str, tmp_path: Path
) -> None:
    """SIGTERM ends it when its tasks are done; the next worker does the others, each once."""
    fake.daily_limit, fake.latency = 100_000, 0.05
    env = environment(fake.base_url, store_url)
    tasks = await submitted(celery, range(120))
    with started(WORKER, tmp_path / "first.log", env) as worker:
        await until(lambda: len(fake.created) >= 20)
        worker.send(signal.SIGTERM)
        await until(worker.ended)
        done = await states_of(celery, tasks)
        assert done["SUCCESS"] == len(fake.created) < 120, worker.text()

    with started(WORKER, tmp_path / "second.log", env) as worker:
        assert {"SUCCESS": 120} == await settled(celery, tasks, {"SUCCESS"}), worker.text()
    await each_created_once(fake, store_url, 120)


async def submitted(celery: Any, numbers: range) -> list[str]:
    """The IDs of new tasks."""
    return await asyncio.to_thread(
        lambda: [celery.create.delay(CAMPAIGN, f"v{n}").id for n in numbers]
    )


async def states_of(celery: Any, tasks: list[str]) -> Counter[str]:
    """How many tasks are in which state."""
    keys = [f"celery-task-meta-{task}" for task in tasks]
    told = await asyncio.to_thread(celery.app.backend.client.mget, keys)
    return Counter(json.loads(text)["status"] if text else "PENDING" for text in told)


async def settled(celery: Any, tasks: list[str], ends: set[str]) -> Counter[str]:
    """Wait until each task is in one of these states; how many are in which."""
    while not {*(states := await states_of(celery, tasks))} <= ends:
        await asyncio.sleep(LOOK)
    return states
