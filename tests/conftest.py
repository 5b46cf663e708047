"""What many tests share: no settings from outside, Braze on loopback, and answers without it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import pytest_asyncio
from aiohttp import ClientResponse
from aioresponses import aioresponses
from hypothesis import settings

from braze_sends.testing import FakeBraze
from tests.servers import RedisServer
from tests.world import KEY

# How long an example takes says more about the machine than about the code.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


class _Response(ClientResponse):
    """What aioresponses 0.7.9 makes of an answer, with the argument that aiohttp 3.14 asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, stream_writer=Mock(output_size=0), **kwargs)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BRAZE_API_KEY", "BRAZE_BASE_URL", "BRAZE_SENDS_STORE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def answers() -> Iterator[aioresponses]:
    """Scripted answers to aiohttp's client; nothing goes over the network."""
    with patch("aioresponses.core.ClientResponse", _Response), aioresponses() as mock:
        yield mock


@pytest_asyncio.fixture
async def fake() -> AsyncIterator[FakeBraze]:
    """Braze on loopback, with the key of the tests."""
    async with FakeBraze(api_key=KEY) as fake:
        yield fake


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Redis server: the one that ``REDIS_URL`` names, else one of our own."""
    if url := os.environ.get("REDIS_URL"):
        yield url
        return
    with RedisServer() as server:
        yield server.url


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a shared store: an SQLite file of its own, then the Redis server.

    The server is shared by the tests: give each client a workspace of its own, or a base URL.
    """
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'quota.db'}"
    return str(request.getfixturevalue("redis_url"))
