"""Who waits, who is woken, and what cancellation does in the middle of a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TypeVar

import attrs
import pytest

from braze_sends import MemoryStore, StoreError
from braze_sends.quota.limiter import Limiter
from braze_sends.quota.line import Held, WaitBudget
from braze_sends.quota.rule.ledger import LEASE_GRACE
from braze_sends.quota.rule.messages import Answer, Ask, Reading
from braze_sends.stores.store import Remembered, Transaction
from braze_sends.testing import run_virtual

T = TypeVar("T")


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_a_clock_that_fails_is_told_by_each_call(error: type[Exception]) -> None:
    """The store in memory runs in place, and its clock may be the caller's own."""

    def broken() -> float:
        raise error

    async def main() -> None:
        limiter = Limiter.of(MemoryStore(clock=broken), "w")
        with pytest.raises(StoreError, match=error.__name__):
            await asyncio.wait_for(limiter.acquire(ask("a"), WaitBudget(5.0)), 1)
        with pytest.raises(StoreError, match=error.__name__):
            await limiter.status(None)
        assert [] == limiter.waiting

    run_virtual(main())


async def test_a_lease_that_comes_with_a_cancellation_is_given_back() -> None:
    """What it waited for is there, but it is cancelled before it sees that."""
    limiter = Limiter.of(MemoryStore(), "w")
    held = await limiter.acquire(ask("first"), WaitBudget(5.0))
    assert isinstance(held, Held)
    waits = asyncio.create_task(limiter.acquire(ask("second"), WaitBudget(5.0)))
    await asyncio.sleep(0)
    assert 1 == len(limiter.waiting)
    await limiter.finish(ask("first"), held.grant, Answer(spent=False))
    assert [] == limiter.waiting
    waits.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waits
    assert 0 == (await limiter.status(None)).in_flight


class GatedStore(MemoryStore):
    """Its transactions take effect at once; their replies wait for the gate."""

    shared = True

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(clock=loop.time, wall=lambda: 1e9 + loop.time())
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.times: list[float] = []

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        self.times.append(asyncio.get_running_loop().time())
        result = await super().transact(workspace, pairs, change)
        await self.gate.wait()
        if self.error:
            raise self.error
        return result


def ask(name: str, own_limit: int | None = None) -> Ask:
    return Ask(name, 1, f"pair-{name}", 10.0, own_limit=own_limit)


async def test_the_end_of_a_loop_does_not_lose_an_operation() -> None:
    """The task of a transaction is cancelled in the middle: it is run again."""
    store = GatedStore()
    limiter = Limiter.of(store, "w")
    store.gate.clear()
    status = asyncio.create_task(limiter.status(None))
    lease = asyncio.create_task(limiter.acquire(ask("a"), WaitBudget(0)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert limiter._committing is not None
    limiter._committing.cancel()
    store.gate.set()
    assert 1 == (await status).in_flight
    assert isinstance(await lease, Held)
    assert 2 == len(store.times)


@pytest.mark.parametrize("error", [None, StoreError("down")])
async def test_cancelling_in_the_middle_of_a_transaction_leaks_nothing(
    error: StoreError | None,
) -> None:
    """A lease that was granted meanwhile is given back; an operation takes place all the same."""
    store = GatedStore()
    limiter = Limiter.of(store, "w")
    store.gate.clear()
    tasks: list[asyncio.Task[object]] = [
        asyncio.create_task(limiter.acquire(ask("granted"), WaitBudget(0))),
        asyncio.create_task(limiter.acquire(ask("waits"), WaitBudget(0))),
        asyncio.create_task(limiter.status(None)),
    ]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    store.error = error
    store.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    store.error = None
    assert 0 == (await limiter.status(None)).in_flight
    assert [] == limiter.waiting


async def test_each_who_waits_is_told_of_its_own_failure() -> None:
    """An error names a pair, so that no two may share one."""
    store = GatedStore()
    store.error = StoreError("down")
    limiter = Limiter.of(store, "w")
    first, second = await asyncio.gather(
        limiter.acquire(ask("a"), WaitBudget(0)),
        limiter.acquire(ask("b"), WaitBudget(0)),
        return_exceptions=True,
    )
    assert isinstance(first, StoreError)
    assert isinstance(second, StoreError)
    assert first is not second


def test_a_pair_whose_owner_died_is_remembered_in_doubt() -> None:
    """By whoever looks after its deadline."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        budget = WaitBudget(0)
        assert isinstance(await limiter.acquire(ask("a"), budget), Held)
        assert not budget.in_doubt
        await asyncio.sleep(10.0 + LEASE_GRACE)
        assert 1 == (await limiter.status(None)).unconfirmed
        again = attrs.evolve(ask("b"), pair="pair-a")
        assert isinstance(await limiter.acquire(again, budget := WaitBudget(0)), Held)
        assert budget.in_doubt

    run_virtual(main())


KNOWN = Remembered("s")
LOST = Answer(spent=None, in_doubt=True)


@pytest.mark.parametrize("who_is_late", ["the one whose answer was lost", "the one who created it"])
def test_what_is_known_of_a_pair_outlives_every_doubt(who_is_late: str) -> None:
    """Two attempts for it, the first past its lease: once it is known, no doubt covers it up."""

    async def main() -> None:
        limiter = Limiter.of(GatedStore(), "w")
        first, again = ask("first"), attrs.evolve(ask("again"), pair="pair-first")
        stopped = await limiter.acquire(first, WaitBudget(0))
        assert isinstance(stopped, Held)
        await asyncio.sleep(10.0 + LEASE_GRACE)
        repeat = await limiter.acquire(again, WaitBudget(0))
        assert isinstance(repeat, Held)
        success = Answer(spent=True)
        if who_is_late == "the one who created it":
            # The other one dies while its attempt is under way.
            await limiter.finish(first, stopped.grant, success, created=KNOWN)
        else:
            await limiter.finish(again, repeat.grant, success, created=KNOWN)
            await limiter.finish(first, stopped.grant, LOST)
        await asyncio.sleep(60.0)
        third = await limiter.acquire(ask("third"), WaitBudget(0))
        assert isinstance(third, Held)
        counted = Answer(True, window=Reading(100, 3, 1e9 + 3600))
        await limiter.finish(ask("third"), third.grant, counted)

        assert 0 == (await limiter.status(None)).unconfirmed
        assert KNOWN == await limiter.recall("pair-first")
        assert KNOWN == await limiter.acquire(attrs.evolve(again, lease="fourth"), WaitBudget(0))

    run_virtual(main())


@pytest.mark.parametrize(
    ("away", "reset", "budget", "ends"),
    [(50, 300, 4000, None), (90, 300, 4000, 80), (50, 28, 30, 30)],
)
def test_a_store_that_is_away_for_a_moment_ends_no_wait(
    away: float, reset: float, budget: float, ends: float | None
) -> None:
    """A wait for quota goes on for a minute of it, if it has the budget; a new ask fails."""

    async def main() -> None:
        store, loop = GatedStore(), asyncio.get_running_loop()
        limiter = Limiter.of(store, "w")
        held = await limiter.acquire(ask("first"), WaitBudget(0))
        assert isinstance(held, Held)
        answer = Answer(True, window=Reading(100, 100, 1e9 + reset))
        await limiter.finish(ask("first"), held.grant, answer)
        waits = asyncio.create_task(limiter.acquire(ask("a"), WaitBudget(budget)))
        ended: list[float] = []
        waits.add_done_callback(lambda _: ended.append(loop.time()))
        await asyncio.sleep(20)
        store.error = StoreError("down")
        gone = loop.time()
        with pytest.raises(StoreError):
            await limiter.acquire(ask("new"), WaitBudget(4000))
        assert not waits.done()
        await asyncio.sleep(away)
        store.error = None
        if ends is None:
            assert isinstance(await waits, Held)
            assert 301 <= loop.time() < 302
        else:
            assert isinstance(waits.exception(), StoreError)
            assert ends <= ended[0] < ends + 6
            assert [] == limiter.waiting
        looks = [time for time in store.times if gone <= time < gone + away]
        assert len(looks) < 20

    run_virtual(main())


def test_outages_are_counted_one_by_one() -> None:
    """A store that was back in between may be away for a minute again."""

    async def main() -> None:
        store = GatedStore()
        limiter = Limiter.of(store, "w")
        held = await limiter.acquire(ask("first"), WaitBudget(0))
        assert isinstance(held, Held)
        answer = Answer(True, window=Reading(100, 100, 1e9 + 300))
        await limiter.finish(ask("first"), held.grant, answer)
        waits = asyncio.create_task(limiter.acquire(ask("a"), WaitBudget(4000)))
        for _ in range(3):
            await asyncio.sleep(10)
            store.error = StoreError("down")
            await asyncio.sleep(40)
            store.error = None
        assert isinstance(await waits, Held)

    run_virtual(main())


def test_a_grant_whose_reply_was_lost_is_no_longer_ours_than_the_store_says() -> None:
    """The store counts from the transaction that granted it, not from the one that tells."""

    async def main() -> None:
        store, loop = GatedStore(), asyncio.get_running_loop()
        limiter = Limiter.of(store, "w")
        held = await limiter.acquire(ask("first"), WaitBudget(0))
        assert isinstance(held, Held)
        answer = Answer(True, window=Reading(100, 100, 1e9 + 5))
        await limiter.finish(ask("first"), held.grant, answer)
        waits = asyncio.create_task(limiter.acquire(ask("a"), WaitBudget(60)))
        await asyncio.sleep(5)
        store.error = StoreError("the reply was lost")
        await asyncio.sleep(8)
        store.error = None
        held = await waits
        assert isinstance(held, Held)
        assert held.grant.begun < loop.time() - 4
        assert held.grant.begun + 10.0 + LEASE_GRACE == pytest.approx(held.deadline)

    run_virtual(main())


def test_who_waits_on_a_shared_store_looks_again_ever_more_seldom() -> None:
    """After 0.25 s, doubling to 5 s; and no more when nobody waits."""

    async def main() -> None:
        store = GatedStore()
        limiter = Limiter.of(store, "w")
        held = await limiter.acquire(ask("first"), WaitBudget(0))
        assert isinstance(held, Held)
        answer = Answer(True, window=Reading(100, 100, 1e9 + 3600))
        await limiter.finish(ask("first"), held.grant, answer)
        store.times.clear()
        waits = asyncio.create_task(limiter.acquire(ask("a"), WaitBudget(4000)))
        await asyncio.sleep(20)
        gaps = [b - a for a, b in zip(store.times, store.times[1:], strict=False)]
        assert [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0] == pytest.approx(gaps)
        waits.cancel()
        await asyncio.sleep(10)
        looks = len(store.times)
        await asyncio.sleep(100)
        assert looks == len(store.times)

    run_virtual(main())


def test_a_waiter_of_another_process_is_served_when_a_token_comes_back() -> None:
    """It looks again, and finds it; all its waits together count against its budget."""

    async def main() -> None:
        store = GatedStore()
        here = Limiter.of(store, "w")
        there = Limiter(store, "w", asyncio.get_running_loop())
        held = await here.acquire(ask("here", own_limit=1), WaitBudget(0))
        assert isinstance(held, Held)
        budget = WaitBudget(2.0)
        waits = asyncio.create_task(there.acquire(ask("there"), budget))
        await asyncio.sleep(0.5)
        await here.finish(ask("here"), held.grant, Answer(True, window=Reading(9, 9, 1e9 + 1.0)))
        held = await waits
        assert isinstance(held, Held)
        # The probe's end is no wait for quota; the rest of the window is.
        assert 0 < 2.0 - budget.left < 1.6

    run_virtual(main())
