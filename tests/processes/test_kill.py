"""``kill -9`` of a worker at any moment, a hundred times on each store."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import attrs

from braze_sends.testing import FakeBraze
from braze_sends.testing.fake import Fault
from tests.processes.worker import Job, Worker, braze, made, names

ROUNDS, ABREAST, QUOTA = 100, 8, 30
#: Of an attempt, long for an answer that takes 60 ms at most; and for its lease beyond that.
TIMEOUT, GRACE = 0.5, 0.2
RIPE = 3 * TIMEOUT


@attrs.define
class Tally:
    """What the rounds came to.

    Attributes:
        rounds: those that were played to the end.
        lost: pairs that were created, and whose caller died before it was told.
    """

    rounds: int = 0
    lost: int = 0


async def test_a_worker_may_be_killed_at_any_moment(store_url: str, tmp_path: Path) -> None:
    """Nothing over the quota, no ID lost, no token missing, and no pair created twice."""
    seeds = iter(range(ROUNDS))
    tally = Tally()

    async def play_on() -> None:
        for seed in seeds:
            url = store_url
            if url.startswith("sqlite"):
                url = f"sqlite:///{tmp_path / f'round{seed}.db'}"
            await play(random.Random(seed), url, tally)

    await asyncio.gather(*(play_on() for _ in range(ABREAST)))
    assert ROUNDS == tally.rounds
    assert ROUNDS // 4 < tally.lost  # the kills did strike


async def play(chance: random.Random, store_url: str, tally: Tally) -> None:
    """One round."""
    async with AsyncExitStack() as stack:
        fake = braze(daily_limit=QUOTA, duplicate=chance.choice([201, 400]))
        fake.latency = lambda: random.uniform(0.0, 0.06)
        fake.fault_for = lambda request: (
            # Counted late: past their attempt's end, and some past their lease's.
            Fault(delay=random.uniform(0.0, RIPE - 0.5))
            if random.random() < (0.3 if name_of(request.body).startswith("w0-") else 0.05)
            else None
        )
        await stack.enter_async_context(fake)
        job = Job(
            base_url=fake.base_url,
            store=store_url,
            workspace=uuid.uuid4().hex,
            names=(),
            at_once=chance.choice([3, 20]),
            look=0.05,
            grace=GRACE,
            options={"timeout": TIMEOUT, "max_rate_limit_wait": 1.5},
        )
        crew = [await stack.enter_async_context(Worker()) for _ in range(chance.choice([2, 3]))]
        await asyncio.gather(*(worker.do(job) for worker in crew))  # all have started
        wanted: list[str] = []
        for n, worker in enumerate(crew):
            pairs = names(f"w{n}-", chance.randint(8, 16))
            wanted += pairs
            worker.begin(attrs.evolve(job, names=pairs))
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        crew[0].kill()
        for worker in crew[1:]:
            await worker.end()

        given = {name for worker in crew for name in worker.made}
        assert len(fake.created) <= QUOTA
        assert given <= created(fake)
        tally.lost += len(created(fake) - given)

        # Past all deadlines, and three timeouts after the last attempt began.
        await asyncio.sleep(RIPE + 0.1)
        last, fake.fault_for = crew[-1], None
        asked = len(fake.requests)
        await last.do(attrs.evolve(job, names=("probe",)))
        assert last.quota is not None
        assert (0, fake.remaining) == (last.quota.in_flight, last.quota.remaining)
        if len(fake.requests) > asked:
            assert 0 == last.quota.unconfirmed

        # The same pairs again: those that are missing are created, and those known not asked for.
        before, asked = created(fake), len(fake.requests)
        again = await last.do(attrs.evolve(job, names=tuple(wanted)))
        assert given <= {*made(again)} <= created(fake)
        assert not given & {name_of(body) for body in bodies(fake)[asked:]}
        assert {outcome.name for outcome in again if outcome.reused} <= before
        assert min(QUOTA, len({*wanted, "probe"})) == len(fake.created)
        assert QUOTA - len(fake.created) == fake.remaining
        refused_only_as_allowed(fake)
        tally.rounds += 1


def refused_only_as_allowed(fake: FakeBraze) -> None:
    """429s for the repeats of lost attempts alone, and for a canary that asks after doubts."""
    asked: Counter[str] = Counter()
    canaries = 0
    for request in fake.requests:
        name = name_of(request.body)
        asked[name] += 1
        if request.status == 429 and asked[name] == 1:
            canaries += 1
            # A doubt ripens from when its lease began: before its request arrived here, by less
            # than an attempt may take.
            passed = request.at - fake.requests[0].at
            assert passed >= RIPE - TIMEOUT, "no doubt was ripe to be asked for"
    # A second where this machine was so busy that a late request was counted past three timeouts.
    assert canaries <= 2
    assert fake.refused <= canaries + len(fake.requests) - len(asked)


def created(fake: FakeBraze) -> set[str]:
    return {name for _, name in fake.created}


def bodies(fake: FakeBraze) -> list[bytes]:
    return [request.body for request in fake.requests]


def name_of(body: bytes) -> str:
    return str(json.loads(body)["send_id"])
