"""The schedules that need several processes, each named by what must be seen.

Real processes, really stopped and killed. Those that are to die or to be late have short times;
those that must not time out, whatever the machine is doing, have the usual ones.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from braze_sends.testing import FakeBraze
from braze_sends.testing.fake import Fault, Request
from tests.processes.worker import Job, Worker, braze, errors, made, names, until
from tests.servers import free_port

#: Of an attempt of a worker that is to die, and what its lease is allowed beyond that.
TIMEOUT, GRACE = 0.5, 0.1


def of(fake: FakeBraze, store_url: str, **options: Any) -> Job:
    """A job that does nothing yet, in a workspace of its own."""
    return Job(
        base_url=fake.base_url,
        store=store_url,
        workspace=uuid.uuid4().hex,
        names=(),
        options=options,
    )


def doomed(job: Job, send_ids: tuple[str, ...], **hooks: Any) -> Job:
    """The job of a worker that is to die or to be late."""
    options = {**job.options, "timeout": TIMEOUT}
    return attrs.evolve(job, names=send_ids, options=options, grace=GRACE, **hooks)


def first(count: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """A rule by which the first ``count`` requests meet ``fault``."""
    left = iter(range(count))
    return lambda request: fault if next(left, None) is not None else None


async def test_a_killed_canary_does_not_hold_up_another_process(store_url: str) -> None:
    """Cold start: the canary's process is killed, 50 wait in the other, and 50 are made."""
    async with braze() as fake, Worker() as dying, Worker() as other:
        job = of(fake, store_url)
        fake.fault_for = first(1, Fault(stall=20))
        dying.begin(doomed(job, ("canary",)))
        await until(lambda: 1 == len(fake.requests))
        other.begin(attrs.evolve(job, names=names("s", 50)))
        dying.kill()
        assert 50 == len(made(await other.end()))
        assert (51, 51, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_the_leases_of_a_killed_process_are_usable_again(store_url: str) -> None:
    """It holds 99 and has sent 8; the other wants 300, and gets all that is left: 91."""
    async with braze() as fake, Worker() as dying, Worker() as other:
        job = of(fake, store_url, max_rate_limit_wait=20)
        assert ["first"] == made(await other.do(attrs.evolve(job, names=("first",))))

        def kill_at_the_eighth(request: Request) -> Fault:
            if 9 == len(fake.requests):
                dying.kill()
                fake.fault_for = None
            return Fault(stall=20)

        fake.fault_for = kill_at_the_eighth
        dying.begin(doomed(job, names("d", 99), connections=8))
        await until(lambda: dying.ended)
        outcomes = await other.do(attrs.evolve(job, names=names("s", 300)))
        assert (91, {"QuotaExhaustedError"}) == (len(made(outcomes)), errors(outcomes))
        assert (100, 100, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_a_process_stopped_in_its_backoff_does_not_send_on_a_lease_that_is_gone(
    store_url: str,
) -> None:
    """99 used; it is stopped between two attempts, the other takes the slot: 1 sent, not 2."""
    port = free_port()
    async with braze(port=port) as late, Worker() as stopped, Worker() as other:
        late.spend(98)
        job = of(late, store_url)
        assert ["first"] == made(await other.do(attrs.evolve(job, names=("first",))))
        refused = attrs.evolve(job, base_url=f"http://127.0.0.1:{free_port()}")
        stopped.begin(doomed(refused, ("stopped",), backoff=0.05))
        await stopped.tells("backs off")
        stopped.stop()
        assert ["other"] == made(await other.do(attrs.evolve(job, names=("other",))))
        # Braze is there by now.
        async with FakeBraze(port=int(refused.base_url.rpartition(":")[2])) as again:
            again.model, again.clock_offset = late.model, late.clock_offset
            stopped.resume()
            outcomes = await stopped.end()
        assert ["QuotaExhaustedError"] == [outcome.error for outcome in outcomes]
        assert (0, 2, 0) == (len(again.requests), len(late.created), late.refused)


async def test_a_process_stopped_before_its_first_byte_does_not_send_on_a_lease_that_is_gone(
    store_url: str,
) -> None:
    """99 used; it is stopped with a lease in hand, the other takes the slot: 1 sent, not 2."""
    async with braze() as fake, Worker() as stopped, Worker() as other:
        fake.spend(98)
        job = of(fake, store_url)
        assert ["first"] == made(await other.do(attrs.evolve(job, names=("first",))))
        stopped.begin(doomed(job, ("stopped",), hold=0.05))
        await stopped.tells("holds")
        stopped.stop()
        assert ["other"] == made(await other.do(attrs.evolve(job, names=("other",))))
        stopped.resume()
        outcomes = await stopped.end()
        assert {"QuotaExhaustedError"} == errors(outcomes)
        assert [False] == [outcome.quota_spent for outcome in outcomes]
        assert (2, 2, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_tokens_that_one_process_could_not_use_reach_another_soon(store_url: str) -> None:
    """Its 99 leases are all refused a connection; 99 who wait in the other are made in seconds."""
    async with braze() as fake, Worker() as refused, Worker() as other:
        job = of(fake, store_url)
        assert ["first"] == made(await other.do(attrs.evolve(job, names=("first",))))
        nowhere = attrs.evolve(
            job,
            base_url=f"http://127.0.0.1:{free_port()}",
            names=names("r", 99),
            backoff=0.3,
        )
        refused.begin(nowhere)
        await refused.tells("backs off")
        began = time.monotonic()
        assert 99 == len(made(await other.do(attrs.evolve(job, names=names("s", 99)))))
        assert time.monotonic() - began < 10
        assert {"APIConnectionError"} == errors(await refused.end())
        assert (100, 100, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_two_processes_start_in_about_the_time_of_one(store_url: str) -> None:
    """Cold start, 20 creates in each, all well: 40 created, and not after 30 s."""
    async with braze(latency=0.05) as fake, Worker() as one, Worker() as two:
        job = of(fake, store_url)
        began = time.monotonic()
        outcomes = await asyncio.gather(
            one.do(attrs.evolve(job, names=names("a", 20))),
            two.do(attrs.evolve(job, names=names("b", 20))),
        )
        assert time.monotonic() - began < 5
        assert [20, 20] == [len(made(told)) for told in outcomes]
        assert (40, 40, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_pairs_of_a_killed_process_are_made_by_another_and_none_twice(
    store_url: str,
) -> None:
    """10 sent and counted, then killed; the other is asked for the same 10 and gives them."""
    async with braze() as fake, Worker() as dying, Worker() as other:
        job = of(fake, store_url)
        pairs = names("s", 10)
        assert ["first"] == made(await other.do(attrs.evolve(job, names=("first",))))
        fake.fault_for = first(10, Fault(stall=20))
        dying.begin(doomed(job, pairs))
        await until(lambda: 11 == len(fake.created))
        dying.kill()
        assert {*pairs} == {*made(await other.do(attrs.evolve(job, names=pairs)))}
        assert (11, 0, 89) == (len(fake.created), fake.refused, fake.remaining)
        assert other.quota is not None
        assert 0 == other.quota.in_flight
        # What the lost attempts may have cost is cleared by a later answer.
        assert 89 == other.quota.remaining + other.quota.unconfirmed


@pytest.mark.parametrize("clock", [-40.0, 40.0])
async def test_a_process_whose_clock_is_off_waits_for_the_true_reset(
    store_url: str, clock: float
) -> None:
    """Used up and persisted; another, 40 s off, asks before the reset: made just after it."""
    async with braze(before_midnight=2.5, daily_limit=5) as fake:
        job = of(fake, store_url)
        async with Worker() as before:
            filled = await before.do(attrs.evolve(job, names=names("a", 5), clock=-clock))
            assert 5 == len(made(filled))
        assert fake.now % 86_400 > 43_200, "the machine took seconds for five creates"
        async with Worker() as after:
            asked = await after.do(attrs.evolve(job, names=names("b", 5), clock=clock))
        assert 5 == len(made(asked))
        assert 1 <= fake.requests[5].at % 86_400 < 4
        assert (10, 10, 0) == (len(fake.created), len(fake.requests), fake.refused)
