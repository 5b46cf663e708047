"""What many tests share: no settings from outside, Braze on loopback, and answers without it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import signal
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import pytest_asyncio
from aiohttp import ClientResponse
from aioresponses import aioresponses
from hypothesis import settings

from braze_sends import PostgresStore
from braze_sends.stores import optimistic, postgres
from braze_sends.testing import FakeBraze
from tests.servers import PostgresServer, RedisServer, braze, redis_cluster
from tests.world import KEY

# How long an example takes says more about the machine than about the code.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


#: What aiohttp 3.14 asks for beside what aioresponses 0.7.9 passes; older ones do not know it.
_MORE = {"stream_writer"} & {*inspect.signature(ClientResponse).parameters}


class _Response(ClientResponse):
    """What aioresponses 0.7.9 makes of an answer, fit for the aiohttp that is installed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {name: Mock(output_size=0) for name in _MORE})


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("BRAZE_API_KEY", "BRAZE_BASE_URL", "BRAZE_SENDS_ALLOW_HTTP_HOST", "BRAZE_SENDS_STORE")
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    for name in (*ours, *proxies, *map(str.lower, proxies)):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def answers() -> Iterator[aioresponses]:
    """Scripted answers to aiohttp's client; nothing goes over the network."""
    with patch("aioresponses.core.ClientResponse", _Response), aioresponses() as mock:
        yield mock


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeBraze]:
    """Braze on loopback, with the key of the tests."""
    async with braze(api_key=KEY) as fake:
        yield fake


class StoppedClock:
    """Time of an event loop that passes only in ``advance``. Call it for the time, in seconds."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass; what is due by then runs when the test next awaits something."""
        self.now += seconds


@pytest_asyncio.fixture
async def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    """The running loop's time stands still: no timeout passes before the test says so."""
    loop = asyncio.get_running_loop()
    clock = StoppedClock(loop.time())
    monkeypatch.setattr(loop, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """SIGINT as in a terminal, for this process and those that it starts: where the tests run in
    the background (``nohup``, some CI), it is ignored, and Python then has no handler for it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def redis_url() -> Iterator[str]:
    """A real Redis server: the one that ``REDIS_URL`` names, else the test's own.

    The one that is named is shared by tests: give each client a workspace of its own, or a URL.
    """
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    with RedisServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def _postgres_url() -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        url = os.environ.get("POSTGRES_URL")
        url = url or stack.enter_context(PostgresServer()).url
        asyncio.run(migrated(url))
        yield url


async def migrated(url: str) -> None:
    """Make the tables, however busy the machine is."""
    store = PostgresStore(url)
    with (
        patch.object(postgres, "CONNECT_TIMEOUT", 300),
        patch.object(optimistic, "CONTENTION_TIMEOUT", 300.0),
    ):
        await store.migrate()
    await store.close()


@pytest.fixture
def postgres_url(_postgres_url: str) -> str:
    """A real PostgreSQL database with the tables: the one that ``POSTGRES_URL`` names, else one on
    a server that the tests of this process share.

    Give each client a workspace of its own, or a URL.
    """
    return _postgres_url


@pytest.fixture
def blank_url(postgres_url: str) -> Iterator[str]:
    """A database without tables."""
    name = f"blank_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_url, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield urlunsplit(urlsplit(postgres_url)._replace(path=name))
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "redis", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a shared store: an SQLite file, then a Redis server, then a PostgreSQL server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'quota.db'}"
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """A real cluster of three nodes, of the tests of a file: each takes a workspace of its own."""
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


#: A test that uses one of these starts processes.
_STARTS_PROCESSES = {"start", "redirected", "redis_url", "cluster", "postgres_url"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start processes."""
    for item in items:
        uses = _STARTS_PROCESSES & {*getattr(item, "fixturenames", ())}
        store = getattr(getattr(item, "callspec", None), "params", {}).get("store_url")
        if uses or store in ("redis", "postgres") or "processes" in item.path.parts:
            item.add_marker("process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure tells how to have it again: the order, and what chance gave."""
    report = yield
    if report.failed:
        seed = item.config.getoption("randomly_seed", None)
        report.sections.append(("to repeat", f"pytest --randomly-seed={seed} '{item.nodeid}'"))
    return report
