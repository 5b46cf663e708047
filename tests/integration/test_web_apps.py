"""The web examples under uvicorn and gunicorn, with real processes, sockets and signals."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from braze_sends import SendsClient
from braze_sends.testing import FakeBraze
from tests.integration.apps import APPS, Process, environment, served
from tests.integration.load import CAMPAIGN, Load, until_set
from tests.servers import NOON
from tests.waiting import until
from tests.world import KEY

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("default::pytest.PytestUnraisableExceptionWarning"),
]

#: What a test measured, for ``--junitxml=FILE -o junit_family=xunit1``.
Record = Callable[[str, object], None]
each_app = pytest.mark.parametrize("name", APPS)


@each_app
async def test_four_workers_create_the_quota_and_refuse_the_rest(
    name: str, fake: FakeBraze, store_url: str, tmp_path: Path
) -> None:
    """400 visitors get 100 send IDs and 300 answers that say when to come back."""
    env = environment(fake.base_url, store_url)
    with served(APPS[name], tmp_path, env) as server:
        await ready(server, 4)
        before = len(server.text())
        load = Load(server.url)
        await load.ask((f"v{n}" for n in range(400)), visitors=40)

        assert {201: 100, 503: 300} == load.statuses(), server.text()
        assert (100, 0) == (len(fake.created), fake.refused)
        assert load.created() == {send_id for _, send_id in fake.created}
        refused = [answer for answer in load.answers if answer.status == 503]
        assert {False} == {answer.body["quota_spent"] for answer in refused}
        # When the window ends, by a clock that is a second off at most; or sooner, where the last
        # slots were still under way.
        waits = {int(answer.retry_after or 0) for answer in refused}
        assert 1 <= min(waits)
        assert NOON - 600 < max(waits) <= NOON + 2
        assert (200, {"ok": True, "remaining": 0}) == await health(server)
        assert 422 == await status_of(server, "x" * 65)
        assert len(server.served_by(before)) > 1, "one worker did it all"


@each_app
async def test_a_server_stopped_under_load_gives_no_false_answer(
    name: str, fake: FakeBraze, store_url: str, tmp_path: Path, record_property: Record
) -> None:
    """SIGTERM ends it; each send ID that it answered exists, and the store knows all others."""
    fake.daily_limit, fake.latency = 100_000, 0.02
    env = environment(fake.base_url, store_url)
    with served(APPS[name], tmp_path, env) as server:
        await ready(server, 4)
        load, stop = Load(server.url, keep_alive=True), asyncio.Event()
        visitors = asyncio.create_task(load.ask(until_set(stop), visitors=20))
        await until(lambda: len(load.answers) >= 100)

        server.send(signal.SIGTERM)
        await until(server.ended)
        stop.set()
        await visitors

    record_property("answers", f"{load.statuses()}, {len(fake.created)} created")
    # uvicorn cuts off what is under way on a connection that is still busy after the time it gives,
    # and goes on to serve that connection when the client has been closed.
    statuses = load.statuses()
    assert {*statuses} <= {201, 500, None}, server.text()
    assert statuses[500] == len(load.cut_off()) + len(load.refused())
    await books_agree(fake, load, store_url)


@pytest.mark.parametrize("name", ["fastapi", "aiohttp", "django"])
async def test_a_server_is_reloaded_ten_times_under_load(
    name: str, fake: FakeBraze, tmp_path: Path, record_property: Record
) -> None:
    """Each SIGHUP puts new workers in place of all old ones, and the books agree."""
    fake.daily_limit, fake.latency = 100_000, 0.02
    store_url = f"sqlite:///{tmp_path / 'quota.db'}"
    env = environment(fake.base_url, store_url)
    with served(APPS[name], tmp_path, env, 2) as server:
        await ready(server, 2)
        load, stop = Load(server.url), asyncio.Event()
        visitors = asyncio.create_task(load.ask(until_set(stop), visitors=4))
        for _ in range(10):
            before, answers = server.workers(), len(load.answers)
            server.send(signal.SIGHUP)
            await until(lambda: len(server.workers()) == 2 and not server.workers() & before)  # noqa: B023
            await until(lambda: len(load.answers) > answers + 10)  # noqa: B023
        stop.set()
        await visitors
        server.send(signal.SIGTERM)
        await until(server.ended)

    record_property("answers", f"{load.statuses()}, {len(fake.created)} created")
    assert {*load.statuses()} <= {201, None}, server.text()
    await books_agree(fake, load, store_url)


@each_app
async def test_a_server_without_its_store_says_so(
    name: str, fake: FakeBraze, tmp_path: Path
) -> None:
    """Its health is 503, and so is the answer to a visitor, for whom nothing was sent."""
    env = environment(fake.base_url, f"sqlite:///{tmp_path / 'missing' / 'quota.db'}")
    with served(APPS[name], tmp_path, env, 1) as server:
        await until_listens(server)
        assert (503, {"ok": False, "remaining": None}) == await health(server)
        assert 503 == await status_of(server, "v1")
        assert [] == fake.requests


async def books_agree(fake: FakeBraze, load: Load, store_url: str) -> None:
    """What visitors were told, what Braze has, and what the store knows are the same."""
    created = {send_id for _, send_id in fake.created}
    assert load.created() <= created
    assert not load.refused() & created
    assert 0 == fake.refused
    async with SendsClient(KEY, base_url=fake.base_url, store=store_url) as braze:
        found = await asyncio.gather(*(braze.find_send_id(CAMPAIGN, name) for name in created))
        quota = await braze.quota()
    assert None not in found
    assert (len(created), 0, 0) == (quota.used, quota.in_flight, quota.unconfirmed)


async def ready(server: Process, workers: int) -> None:
    """Wait until so many workers have each answered."""
    await until_listens(server)
    while len(server.served_by()) < workers:
        assert {(200, True)} == {
            (status, told["ok"])
            for status, told in await asyncio.gather(*(health(server) for _ in range(8)))
        }


async def until_listens(server: Process) -> None:
    """Wait until the server answers."""
    while True:
        assert not server.ended(), server.text()
        try:
            await health(server)
        except (aiohttp.ClientError, OSError):
            await asyncio.sleep(0.02)
        else:
            return


async def health(server: Process) -> tuple[int, Any]:
    async with aiohttp.request("GET", f"{server.url}/health") as answer:
        return answer.status, json.loads(await answer.text())


async def status_of(server: Process, send_id: str) -> int:
    async with aiohttp.request("POST", f"{server.url}/sends/{CAMPAIGN}/{send_id}") as answer:
        return answer.status
