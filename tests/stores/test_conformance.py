"""The stores of the package keep to what every store must."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from braze_sends import MemoryStore
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores import optimistic, postgres, redis
from braze_sends.stores.postgres import PostgresStore
from braze_sends.stores.redis import RedisStore
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.stores.store import Store
from braze_sends.testing.store_conformance import FULL, StoreConformance
from tests.servers import RedisServer, cluster_url
from tests.waiting import PATIENCE


class TestMemoryStore(StoreConformance):
    """Shared by being the same object."""

    # It is changed in place: to copy a state with many leases would cost more than all else.
    test_a_change_that_raises_leaves_nothing_behind = None  # type: ignore[assignment]

    @pytest.fixture(autouse=True)
    def _store(self) -> None:
        self.store = MemoryStore()

    async def open(self) -> Store:
        return self.store


class TestSQLiteStore(StoreConformance):
    """Two connections to one file."""

    @pytest.fixture(autouse=True)
    def _path(self, tmp_path: Path) -> None:
        self.path = tmp_path / "quota.db"

    async def open(self) -> Store:
        return SQLiteStore(self.path)


class TestRedisStore(StoreConformance):
    """Two clients of one server."""

    @pytest.fixture(autouse=True)
    def _url(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = redis_url
        # No server is too slow.
        monkeypatch.setattr(redis, "COMMAND_TIMEOUT", PATIENCE)
        monkeypatch.setattr(optimistic, "CONTENTION_TIMEOUT", PATIENCE)

    async def open(self) -> Store:
        return RedisStore(self.url)


class TestRedisStoreOnACluster(StoreConformance):
    """Two clients of three nodes."""

    @pytest.fixture(autouse=True)
    def _url(self, cluster: list[RedisServer], monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = cluster_url(cluster)
        monkeypatch.setattr(redis, "COMMAND_TIMEOUT", PATIENCE)
        monkeypatch.setattr(optimistic, "CONTENTION_TIMEOUT", PATIENCE)

    async def open(self) -> Store:
        return RedisStore(self.url)


class TestRedisStoreOnAnApplicationsClient(StoreConformance):
    """Which decodes replies, and tries nothing again. The suite opens and closes stores, so each
    has the same client, which lives on."""

    # A client belongs to one loop, and a second loop is told so.
    test_a_second_event_loop_can_use_it = None  # type: ignore[assignment]

    @pytest_asyncio.fixture(autouse=True)
    async def _client(self, redis_url: str) -> AsyncIterator[None]:
        once = Retry(NoBackoff(), 0)
        async with Redis.from_url(redis_url, decode_responses=True, retry=once) as self.client:
            yield

    async def open(self) -> Store:
        return RedisStore(client=self.client)


class TestPostgresStore(StoreConformance):
    """Two users of one database."""

    @pytest.fixture(autouse=True)
    def _url(self, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = postgres_url
        monkeypatch.setattr(postgres, "CONNECT_TIMEOUT", int(PATIENCE))
        monkeypatch.setattr(postgres, "STATEMENT_TIMEOUT", PATIENCE)
        monkeypatch.setattr(optimistic, "CONTENTION_TIMEOUT", PATIENCE)

    async def open(self) -> Store:
        return PostgresStore(self.url)


@pytest.mark.parametrize(
    "field",
    [field for field in attrs.fields(Bucket) if field.init],
    ids=lambda field: field.name,
)
def test_the_full_bucket_is_full(field: attrs.Attribute[object]) -> None:
    """A field that had its default could be lost, and nobody would see it."""
    default = getattr(Bucket(offset=0.0), field.name)
    assert default != getattr(FULL, field.name)
