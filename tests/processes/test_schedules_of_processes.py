"""The schedules that need several processes, each named by what must be seen.

Real processes, really stopped and killed; their time is the timekeeper's.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from braze_sends.quota.rule.ledger import LEASE_GRACE
from braze_sends.testing import FakeBraze
from braze_sends.testing.fake import Fault, Request
from tests.processes.timekeeper import MIDNIGHT, Timekeeper
from tests.processes.worker import Job, errors, made, names
from tests.servers import free_port

#: Seconds after which a lease is nobody's: its attempt's timeout, and the grace.
LEASE = 10 + LEASE_GRACE


def of(fake: FakeBraze, store_url: str, **options: Any) -> Job:
    """A job that does nothing yet, in a workspace of its own."""
    return Job(
        base_url=fake.base_url,
        store=store_url,
        workspace=uuid.uuid4().hex,
        names=(),
        options=options,
    )


def first(count: int, fault: Fault) -> Callable[[Request], Fault | None]:
    """A rule by which the first ``count`` requests meet ``fault``."""
    left = iter(range(count))
    return lambda request: fault if next(left, None) is not None else None


async def test_a_killed_probe_does_not_hold_up_another_process(
    store_url: str, timekeeper: Timekeeper
) -> None:
    """Cold start: the probe's process is killed, 50 wait in the other, and 50 are made when the
    probe's lease has run out."""
    async with (
        timekeeper.braze() as fake,
        timekeeper.worker() as dying,
        timekeeper.worker() as other,
    ):
        job = of(fake, store_url)
        fake.fault_for = first(1, Fault(stall=3600))
        dying.begin(attrs.evolve(job, names=("probe",)))
        await timekeeper.until(lambda: 1 == len(fake.requests))
        began = timekeeper.clock()
        other.begin(attrs.evolve(job, names=names("s", 50)))
        await timekeeper.kill(dying)
        assert 50 == len(made(await timekeeper.ends(other)))
        assert timekeeper.clock() - began < LEASE + 5
        assert (51, 51, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_the_leases_of_a_killed_process_are_usable_again(
    store_url: str, timekeeper: Timekeeper
) -> None:
    """It holds 99 and has sent 8; the other wants 300, and gets all that is left, 91, in
    a minute."""
    async with (
        timekeeper.braze() as fake,
        timekeeper.worker() as dying,
        timekeeper.worker() as other,
    ):
        job = of(fake, store_url, max_rate_limit_wait=60)
        assert ["first"] == made(await timekeeper.do(other, attrs.evolve(job, names=("first",))))

        def kill_at_the_eighth(request: Request) -> Fault:
            if 9 == len(fake.requests):
                dying.kill()
                fake.fault_for = None
            return Fault(stall=3600)

        fake.fault_for = kill_at_the_eighth
        dying.begin(attrs.evolve(job, names=names("d", 99), connections=8))
        await timekeeper.until(lambda: dying.ended)
        outcomes = await timekeeper.do(other, attrs.evolve(job, names=names("s", 300)))
        assert (91, {"QuotaExhaustedError"}) == (len(made(outcomes)), errors(outcomes))
        assert (100, 100, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_a_process_stopped_in_its_backoff_does_not_send_on_a_lease_that_is_gone(
    store_url: str, timekeeper: Timekeeper
) -> None:
    """99 used; it is stopped between two attempts, the other takes the slot: 1 sent, not 2."""
    async with (
        timekeeper.braze() as late,
        timekeeper.worker() as stopped,
        timekeeper.worker() as other,
    ):
        late.spend(98)
        job = of(late, store_url)
        port = free_port()
        assert ["first"] == made(await timekeeper.do(other, attrs.evolve(job, names=("first",))))
        refused = attrs.evolve(job, base_url=f"http://127.0.0.1:{port}", names=("stopped",))
        stopped.begin(attrs.evolve(refused, backoff=1.0))
        await timekeeper.until(lambda: "backs off" in stopped.words)
        stopped.stop()
        assert ["other"] == made(await timekeeper.do(other, attrs.evolve(job, names=("other",))))
        # Braze is there by now.
        async with timekeeper.braze(port=port) as again:
            again.model = late.model
            stopped.resume()
            outcomes = await timekeeper.ends(stopped)
        assert ["QuotaExhaustedError"] == [outcome.error for outcome in outcomes]
        assert (0, 2, 0) == (len(again.requests), len(late.created), late.refused)


async def test_a_process_stopped_before_its_first_byte_does_not_send_on_a_lease_that_is_gone(
    store_url: str, timekeeper: Timekeeper
) -> None:
    """99 used; it is stopped with a lease in hand, the other takes the slot: 1 sent, not 2."""
    async with (
        timekeeper.braze() as fake,
        timekeeper.worker() as stopped,
        timekeeper.worker() as other,
    ):
        fake.spend(98)
        job = of(fake, store_url, max_rate_limit_wait=None)
        assert ["first"] == made(await timekeeper.do(other, attrs.evolve(job, names=("first",))))
        hasty = attrs.evolve(job, options={}, names=("stopped",), hold=0.05)
        stopped.begin(hasty)
        await timekeeper.until(lambda: "holds" in stopped.words)
        stopped.stop()
        assert ["other"] == made(await timekeeper.do(other, attrs.evolve(job, names=("other",))))
        stopped.resume()
        outcomes = await timekeeper.ends(stopped)
        assert {"QuotaExhaustedError"} == errors(outcomes)
        assert [False] == [outcome.quota_spent for outcome in outcomes]
        assert (2, 2, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_tokens_that_one_process_could_not_use_reach_another_soon(
    store_url: str, timekeeper: Timekeeper
) -> None:
    """Its 99 leases are all refused a connection; 99 who wait in the other are made in seconds."""
    async with (
        timekeeper.braze() as fake,
        timekeeper.worker() as refused,
        timekeeper.worker() as other,
    ):
        job = of(fake, store_url)
        assert ["first"] == made(await timekeeper.do(other, attrs.evolve(job, names=("first",))))
        nowhere = attrs.evolve(
            job,
            base_url=f"http://127.0.0.1:{free_port()}",
            names=names("r", 99),
            backoff=0.3,
        )
        refused.begin(nowhere)
        await timekeeper.until(lambda: "backs off" in refused.words)
        began = timekeeper.clock()
        served = await timekeeper.do(other, attrs.evolve(job, names=names("s", 99)))
        assert 99 == len(made(served))
        assert timekeeper.clock() - began < 10
        assert {"APIConnectionError"} == errors(await timekeeper.ends(refused))
        assert (100, 100, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_two_processes_start_in_about_the_time_of_one(
    store_url: str, timekeeper: Timekeeper
) -> None:
    """Cold start, 20 creates in each, all well: 40 created, and not after 30 s."""
    async with (
        timekeeper.braze(latency=0.05) as fake,
        timekeeper.worker() as one,
        timekeeper.worker() as two,
    ):
        job = of(fake, store_url)
        began = timekeeper.clock()
        one.begin(attrs.evolve(job, names=names("a", 20)))
        two.begin(attrs.evolve(job, names=names("b", 20)))
        told = [await timekeeper.ends(one), await timekeeper.ends(two)]
        assert timekeeper.clock() - began < 2
        assert [20, 20] == [len(made(outcomes)) for outcomes in told]
        assert (40, 40, 0) == (len(fake.created), len(fake.requests), fake.refused)


async def test_pairs_of_a_killed_process_are_made_by_another_and_none_twice(
    store_url: str, timekeeper: Timekeeper
) -> None:
    """10 sent and counted, then killed; the other is asked for the same 10 and gives them."""
    async with (
        timekeeper.braze() as fake,
        timekeeper.worker() as dying,
        timekeeper.worker() as other,
    ):
        job = of(fake, store_url)
        pairs = names("s", 10)
        assert ["first"] == made(await timekeeper.do(other, attrs.evolve(job, names=("first",))))
        fake.fault_for = first(10, Fault(stall=3600))
        dying.begin(attrs.evolve(job, names=pairs))
        await timekeeper.until(lambda: 11 == len(fake.created))
        await timekeeper.kill(dying)
        assert {*pairs} == {*made(await timekeeper.do(other, attrs.evolve(job, names=pairs)))}
        assert (11, 0, 89) == (len(fake.created), fake.refused, fake.remaining)
        assert other.quota is not None
        assert 0 == other.quota.in_flight
        # What the lost attempts may have cost is cleared by a later answer.
        assert 89 == other.quota.remaining + other.quota.unconfirmed


@pytest.mark.parametrize("clock", [-40.0, 40.0])
async def test_a_process_whose_clock_is_off_waits_for_the_true_reset(
    store_url: str, clock: float, timekeeper: Timekeeper
) -> None:
    """Used up and persisted; another, 40 s off, asks before the reset: made just after it."""
    timekeeper.clock.set(MIDNIGHT - 20)
    async with timekeeper.braze(daily_limit=5) as fake:
        job = of(fake, store_url)
        async with timekeeper.worker() as before:
            job = attrs.evolve(job, names=names("a", 5), clock=-clock)
            assert 5 == len(made(await timekeeper.do(before, job)))
        async with timekeeper.worker() as after:
            asked = attrs.evolve(job, names=names("b", 5), clock=clock)
            assert 5 == len(made(await timekeeper.do(after, asked)))
        assert 1 <= fake.requests[5].at - MIDNIGHT < 4
        assert (10, 10, 0) == (len(fake.created), len(fake.requests), fake.refused)
