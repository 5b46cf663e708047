"""What every store must keep to: tests to run on a store of your own.

Needs pytest and pytest-asyncio with ``asyncio_mode = "auto"``. In a test module::

    class TestMyStore(StoreConformance):
        async def open(self) -> Store:
            return MyStore("my-server")

Each test takes a workspace that nobody else uses, so that a server need not be emptied.
"""

# ruff: noqa: S101  # assert is how pytest tests
# ruff: noqa: SIM300  # the expected value comes first

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from copy import copy
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import attrs

from braze_sends.client import SendsClient
from braze_sends.errors import QuotaExhaustedError
from braze_sends.models import SendId
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.history import History
from braze_sends.quota.rule.window import DAY
from braze_sends.stores.store import Remembered, Store, Transaction
from braze_sends.testing.fake import FakeBraze


def filled(hint: Any, numbers: Iterator[int]) -> Any:
    """A value of the type ``hint``, each number in it another one."""
    (kind, *_) = [one for one in get_args(hint) if one is not NoneType] or [hint]
    if get_origin(hint) is dict:
        _, kind = get_args(hint)
        return {f"name-{next(numbers)}": filled(kind, numbers) for _ in range(3)}
    if attrs.has(kind):
        hints = get_type_hints(kind)
        fields = [field.name for field in attrs.fields(kind) if field.init]
        return kind(**{name: filled(hints[name], numbers) for name in fields})
    number = next(numbers)
    # The fraction is such as a clock gives.
    values = {bool: True, int: number, float: 1e9 + number + 0.123456, str: f"ä {{}} \" ' {number}"}
    return values[kind]


#: No field has its default, and each has a value that the rule could come to.
FULL: Bucket = attrs.evolve(
    filled(Bucket, itertools.count(1000)),
    refusals=7,
    history=History({"2026-11-22T05": {"ä {} \" ' 1": 1, "2": 2}, "2026-11-22T06": {"": 3}}),
)

MEMORIES = {
    "created": Remembered("story-1"),
    "queued": Remembered("story-2", queued=True),
    "answered": Remembered("% {} \" '", request_id="0f1e"),
    "in doubt": Remembered(None),
}


class Refused(Exception):  # noqa: N818  # a test's own, no error of the library
    """Raised by a change."""


class StoreConformance(abc.ABC):
    """Subclass it as ``Test…``, and give it ``open``."""

    @abc.abstractmethod
    async def open(self) -> Store:
        """A store on the same record each time it is called within a test; it will be closed."""
        ...

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[Store, Store]]:
        """Two stores on one record, as two processes have them."""
        first, second = await self.open(), await self.open()
        try:
            yield first, second
        finally:
            await first.close()
            await second.close()

    async def test_it_is_a_store(self) -> None:
        """It has what the limiter needs, and says whether others may change the record too."""
        async with self.opened() as (store, _):
            assert isinstance(store, Store)
            assert isinstance(store.shared, bool)

    async def test_a_workspace_begins_with_a_new_bucket(self) -> None:
        """Its offset aside, which is a guess at Braze's clock, all has its default."""
        async with self.opened() as (store, _):
            found = await look(store, new_workspace())
            assert Bucket(offset=found.bucket.offset) == found.bucket
            assert {} == found.pairs

    async def test_what_a_change_leaves_is_kept(self) -> None:
        """Every field of it, to the last digit, and a second store sees it."""
        workspace = new_workspace()
        async with self.opened() as (store, other):
            await store.transact(workspace, [], becomes(FULL, MEMORIES))
            for reader in (store, other):
                found = await look(reader, workspace, MEMORIES)
                assert FULL == found.bucket
                assert MEMORIES == found.pairs
                assert list(FULL.leases) == list(found.bucket.leases)

    async def test_what_is_kept_can_be_changed_again(self) -> None:
        """Down to the defaults, by another store."""
        workspace = new_workspace()
        plain = Bucket(offset=0.5)
        memory = {"in doubt": Remembered("story-4")}
        async with self.opened() as (store, other):
            await store.transact(workspace, [], becomes(FULL, MEMORIES))
            await other.transact(workspace, ["in doubt"], becomes(plain, memory))
            found = await look(store, workspace, MEMORIES)
            assert plain == found.bucket
            assert MEMORIES | memory == found.pairs

    async def test_what_the_change_returned_is_returned(self) -> None:
        """Of the run that was kept, whether it changed anything or not."""
        workspace = new_workspace()
        async with self.opened() as (store, other):
            assert [1, 2, 3] == [
                await store.transact(workspace, [], increment),
                await other.transact(workspace, [], increment),
                await store.transact(workspace, [], increment),
            ]
            result = object()
            assert result is await other.transact(workspace, [], lambda transaction: result)

    async def test_a_change_that_raises_leaves_nothing_behind(self) -> None:
        """Its error is passed on, and the store goes on."""
        workspace = new_workspace()

        def fail(transaction: Transaction) -> None:
            becomes(FULL, MEMORIES)(transaction)
            raise Refused

        async with self.opened() as (store, other):
            assert 1 == await store.transact(workspace, [], increment)
            error: Exception | None = None
            try:
                await store.transact(workspace, [], fail)
            except Refused as caught:
                error = caught
            assert error is not None
            for reader in (store, other):
                found = await look(reader, workspace, MEMORIES)
                assert Bucket(offset=found.bucket.offset, created=1) == found.bucket
                assert {} == found.pairs
            assert 2 == await store.transact(workspace, [], increment)

    async def test_workspaces_do_not_mix(self) -> None:
        """Whatever their names are made of."""
        name = new_workspace()
        names = [name, name.upper(), name + " ", name + "{x}", "{" + name + "}", name + "%_*'\":ä"]
        async with self.opened() as (store, other):
            for n, workspace in enumerate(names):
                memory = {"pair": Remembered(f"story-{n}")}
                await store.transact(workspace, [], becomes(Bucket(offset=n, used=n), memory))
            for n, workspace in enumerate(names):
                found = await look(other, workspace, ["pair"])
                assert n == found.bucket.used
                assert {"pair": Remembered(f"story-{n}")} == found.pairs

    async def test_the_pairs_asked_for_are_given(self) -> None:
        """Those that are known, and no others."""
        workspace = new_workspace()
        async with self.opened() as (store, other):
            await store.transact(workspace, [], remembers(MEMORIES))
            for reader in (store, other):
                assert {} == (await look(reader, workspace)).pairs
                found = await look(reader, workspace, {"queued", "in doubt", "unheard of"})
                assert {name: MEMORIES[name] for name in ("queued", "in doubt")} == found.pairs

    async def test_a_pair_can_be_set_without_having_been_asked_for(self) -> None:
        """As one that has come to be in doubt meanwhile; it covers what was there."""
        workspace = new_workspace()
        async with self.opened() as (store, other):
            await store.transact(workspace, ["a"], remembers({"b": Remembered(None)}))
            await other.transact(workspace, ["a"], remembers({"b": Remembered("story")}))
            found = await look(store, workspace, ["a", "b"])
            assert {"b": Remembered("story")} == found.pairs

    async def test_concurrent_transactions_lose_no_update(self) -> None:
        """50 at once, from two stores; each sees another state."""
        workspace = new_workspace()
        async with self.opened() as (store, other):
            results = await asyncio.gather(
                *(one.transact(workspace, [], increment) for one in (store, other) * 25)
            )
            assert list(range(1, 51)) == sorted(results)
            assert 50 == (await look(store, workspace)).bucket.created

    async def test_the_clock_is_one_and_does_not_go_back(self) -> None:
        """Two stores that take turns see times in order, as far apart as the transactions were."""
        workspace = new_workspace()
        times, began, ended = [], [], []
        async with self.opened() as (store, other):
            for one in (store, other) * 10:
                began.append(time.monotonic())
                times.append((await look(one, workspace)).now)
                ended.append(time.monotonic())
        assert sorted(times) == times
        for n, gap in enumerate(after - before for before, after in itertools.pairwise(times)):
            # To a second, however long a transaction takes.
            assert began[n + 1] - ended[n] - 1.0 < gap < ended[n + 1] - began[n] + 1.0

    async def test_a_closed_store_opens_again(self) -> None:
        """``close`` may come before anything was opened, and twice."""
        workspace = new_workspace()
        async with self.opened() as (store, _):
            await store.close()
            assert 1 == await store.transact(workspace, [], increment)
            await store.close()
            await store.close()
            assert 2 == await store.transact(workspace, [], increment)

    def test_a_second_event_loop_can_use_it(self) -> None:
        """After the first has ended, whether the store was closed in that or not."""
        workspace = new_workspace()

        async def use(store: Store | None, close: bool) -> tuple[Store, int]:
            store = store or await self.open()
            created = await store.transact(workspace, [], increment)
            if close:
                await store.close()
            return store, created

        store, first = asyncio.run(use(None, close=False))
        _, second = asyncio.run(use(store, close=True))
        _, third = asyncio.run(use(store, close=True))
        assert (1, 2, 3) == (first, second, third)

    async def test_two_clients_keep_to_one_quota(self) -> None:
        """All of it is used, and nothing is refused."""
        workspace = new_workspace()
        async with (
            FakeBraze(daily_limit=20) as fake,
            self.opened() as (store, other),
            client_of(fake, workspace, store) as here,
            client_of(fake, workspace, other) as there,
        ):
            fake.clock_offset = DAY / 2 - time.time() % DAY  # noon: no window ends meanwhile
            results = await asyncio.gather(
                *(
                    # An answer that is on its way may free a slot that seemed taken.
                    client.create_send_id("campaign", f"story-{n}", max_rate_limit_wait=60)
                    for n, client in enumerate([here, there] * 15)
                ),
                return_exceptions=True,
            )
            assert 20 == sum(isinstance(result, SendId) for result in results)
            assert 10 == sum(isinstance(result, QuotaExhaustedError) for result in results)
            assert (20, 0) == (len(fake.created), fake.refused)
            for client in (here, there):
                status = await client.quota()
                assert (20, 0, 0, 0) == (
                    status.limit,
                    status.remaining,
                    status.in_flight,
                    status.unconfirmed,
                )


def new_workspace() -> str:
    """One that nobody has used."""
    return f"conformance-{uuid.uuid4().hex}"


def increment(transaction: Transaction) -> int:
    """Count in the state, and say how far."""
    transaction.bucket.created += 1
    return transaction.bucket.created


def becomes(bucket: Bucket, memories: dict[str, Remembered]) -> Callable[[Transaction], None]:
    """A change that leaves ``bucket``, and remembers."""

    def change(transaction: Transaction) -> None:
        for field in attrs.fields(Bucket):
            # The state is the store's own; what it is compared with stays ours.
            setattr(transaction.bucket, field.name, copy(getattr(bucket, field.name)))
        remembers(memories)(transaction)

    return change


def remembers(memories: dict[str, Remembered]) -> Callable[[Transaction], None]:
    """A change that leaves the state as it is, and remembers."""

    def change(transaction: Transaction) -> None:
        transaction.pairs.update(memories)

    return change


async def look(store: Store, workspace: str, pairs: Collection[str] = ()) -> Transaction:
    """A copy of what a transaction sees."""

    def change(transaction: Transaction) -> Transaction:
        bucket = attrs.evolve(
            transaction.bucket,
            leases=dict(transaction.bucket.leases),
            unconfirmed=dict(transaction.bucket.unconfirmed),
        )
        return Transaction(transaction.now, bucket, dict(transaction.pairs))

    return await store.transact(workspace, pairs, change)


def client_of(fake: FakeBraze, workspace: str, store: Store) -> SendsClient:
    """One of several processes' clients."""
    return SendsClient(
        fake.model.api_key,
        base_url=fake.base_url,
        workspace=workspace,
        store=store,
        max_rate_limit_wait=0,
    )
