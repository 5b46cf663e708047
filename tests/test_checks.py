"""What a program can check before it creates anything: IDs, the way to Braze, and the store."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import pytest

from braze_sends import (
    ConfigurationError,
    CreateSendId,
    MemoryStore,
    SendsClient,
    StoreError,
    check_store,
)
from braze_sends.stores.check import SCRATCH
from braze_sends.stores.store import Transaction
from tests.servers import braze as emulator
from tests.servers import free_port

T = TypeVar("T")


def test_a_request_checks_itself() -> None:
    """``check`` gives back a request that is fit to be sent, and says why another is not."""
    request = CreateSendId("campaign", "story")

    assert request is request.check()
    with pytest.raises(ConfigurationError, match=r"^send_id must be ASCII"):
        CreateSendId("campaign", "störy").check()


@pytest.mark.parametrize(
    ("base_url", "url", "instance"),
    [
        ("us-01", "https://rest.iad-01.braze.com", "US-01"),
        ("https://REST.fra-01.braze.eu/", "https://REST.fra-01.braze.eu", "EU-01"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9", None),
    ],
)
def test_a_client_tells_its_instance(base_url: str, url: str, instance: str | None) -> None:
    """As a URL, and by name if Braze's documentation has one."""
    client = SendsClient("key", base_url=base_url)

    assert (url, instance) == (client.base_url, client.instance)
    assert url in repr(client)


async def test_a_ping_costs_nothing() -> None:
    """It is one ``HEAD`` without the key, and tells the status and the server's time."""
    async with emulator(api_key="key") as fake:
        async with SendsClient("key", base_url=fake.base_url) as client:
            ping = await client.ping()
        sent = [(request.method, request.path, request.authorized) for request in fake.requests]

    assert [("HEAD", "/", False)] == sent
    assert (404, None, False, None) == (ping.status_code, ping.error, ping.cached, ping.tls)
    assert ping.date is not None
    assert abs(ping.date.timestamp() - fake.now) < 3600


async def test_a_ping_that_is_not_answered_tells_why() -> None:
    """Why no answer came is in the result."""
    async with SendsClient("key", base_url=f"http://127.0.0.1:{free_port()}") as client:
        ping = await client.ping()

    assert (None, None) == (ping.status_code, ping.date)
    assert isinstance(ping.error, OSError)


async def test_a_closed_client_does_not_ping() -> None:
    """As it creates nothing."""
    client = SendsClient("key", base_url="US-01")
    await client.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await client.ping()


class Forgetful(MemoryStore):
    """A store that keeps nothing."""

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """Each time there is a new record."""
        return await MemoryStore().transact(workspace, pairs, change)


async def test_a_check_of_a_store_writes_and_reads_it() -> None:
    """What was written is taken back, and a store that forgets is told."""
    store = MemoryStore()
    await check_store(store)

    assert {} == await store.transact(SCRATCH, (), lambda found: found.bucket.leases)
    with pytest.raises(StoreError, match="not there when read"):
        await check_store(Forgetful())


async def test_the_health_of_a_client_is_read_without_asking_braze() -> None:
    """``check`` tells the quota, first unknown and then known, and sends no request."""
    async with (
        emulator(api_key="key") as fake,
        SendsClient("key", base_url=fake.base_url) as client,
    ):
        before = await client.check()
        assert before.quota is not None
        assert (True, None, False) == (before.ok, before.error, before.quota.known)

        await client.create_send_id("campaign", "story")
        after = await client.check()
        assert after.quota is not None
        assert (True, True, 99) == (after.ok, after.quota.known, after.quota.remaining)
        assert 1 == len(fake.requests)


async def test_the_health_of_a_client_whose_quota_is_used_up_is_good() -> None:
    """Another process could not create more, so nobody should replace this one."""
    async with (
        emulator(api_key="key", daily_limit=1) as fake,
        SendsClient("key", base_url=fake.base_url) as client,
    ):
        await client.create_send_id("campaign", "story")
        check = await client.check()

    assert check.quota is not None
    assert (True, 0) == (check.ok, check.quota.remaining)


async def test_the_health_of_a_client_without_its_store_is_told_and_not_raised(
    tmp_path: Path,
) -> None:
    """``check`` holds the text of the error, and no numbers."""
    store = f"sqlite:///{tmp_path / 'missing' / 'quota.db'}"
    async with SendsClient("key", base_url="http://127.0.0.1:9", store=store) as client:
        check = await client.check()
        with pytest.raises(StoreError) as caught:
            await client.quota()

    assert (False, None, str(caught.value)) == (check.ok, check.quota, check.error)


async def test_a_closed_client_has_no_health() -> None:
    """To ask for it is a mistake of the program."""
    client = SendsClient("key", base_url="http://127.0.0.1:9")
    await client.close()

    with pytest.raises(ConfigurationError, match="closed"):
        await client.check()
