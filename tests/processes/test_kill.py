"""``kill -9`` of a worker at any moment, on each store."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import attrs
import pytest

from braze_sends.testing import FakeBraze
from braze_sends.testing.fake import Fault
from tests.processes.timekeeper import Timekeeper
from tests.processes.worker import Job, made, names

QUOTA = 30
#: Of an attempt, by default; and after how much of it Braze has counted what it will count.
TIMEOUT, RIPE = 10.0, 30.0
#: How many requests of a worker have arrived when it is killed, one round after the other.
MOMENTS = (0, 1, 2, 4, 7)


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, 21))]
)
async def test_a_worker_may_be_killed_at_any_moment(
    timekeeper: Timekeeper, store_url: str, tmp_path: Path, part: int
) -> None:
    """Nothing over the quota, no ID lost, no token missing, and no pair created twice."""
    struck = 0
    for number, moment in enumerate(MOMENTS):
        url = store_url
        if url.startswith("sqlite"):
            url = f"sqlite:///{tmp_path / f'round{number}.db'}"
        chance = random.Random(part * len(MOMENTS) + number)
        struck += await play(timekeeper, chance, url, moment)
    assert struck


async def play(timekeeper: Timekeeper, chance: random.Random, store_url: str, moment: int) -> bool:
    """One round; whether the worker was at work when it was killed."""
    async with AsyncExitStack() as stack:
        fake = timekeeper.braze(daily_limit=QUOTA, duplicate=chance.choice([201, 400]))
        fake.latency = lambda: chance.uniform(0.0, 0.06)
        fake.fault_for = lambda request: (
            # Counted late: past their attempt's end, and some past their lease's.
            Fault(delay=chance.uniform(0.0, RIPE - 1))
            if chance.random() < (0.3 if name_of(request.body).startswith("w0-") else 0.05)
            else None
        )
        await stack.enter_async_context(fake)
        job = Job(
            base_url=fake.base_url,
            store=store_url,
            workspace=uuid.uuid4().hex,
            names=(),
            at_once=chance.choice([3, 20]),
        )
        crew = [
            await stack.enter_async_context(timekeeper.worker())
            for _ in range(chance.choice([2, 3]))
        ]
        wanted: list[str] = []
        for n, worker in enumerate(crew):
            pairs = names(f"w{n}-", chance.randint(8, 16))
            wanted += pairs
            worker.begin(attrs.evolve(job, names=pairs))
        await timekeeper.until(lambda: sent(fake) >= moment or not crew[0].at_work)
        # By the clock no time passes now; in the code that runs, any line may be reached.
        await asyncio.get_running_loop().run_in_executor(None, time.sleep, chance.uniform(0, 0.03))
        struck = crew[0].at_work
        await timekeeper.kill(crew[0])
        for worker in crew[1:]:
            await timekeeper.ends(worker)

        given = {name for worker in crew for name in worker.made}
        assert len(fake.created) <= QUOTA
        assert given <= created(fake)

        # Past all deadlines, and three timeouts after the last attempt began.
        await timekeeper.passes(RIPE + 0.1)
        last, fake.fault_for = crew[-1], None
        asked = len(fake.requests)
        await timekeeper.do(last, attrs.evolve(job, names=("probe",)))
        assert last.quota is not None
        assert (0, fake.remaining) == (last.quota.in_flight, last.quota.remaining)
        if len(fake.requests) > asked:
            assert 0 == last.quota.unconfirmed

        # The same pairs again: those that are missing are created, and those known not asked for.
        before, asked = created(fake), len(fake.requests)
        again = await timekeeper.do(last, attrs.evolve(job, names=tuple(wanted)))
        assert given <= {*made(again)} <= created(fake)
        assert not given & {name_of(body) for body in bodies(fake)[asked:]}
        assert {outcome.name for outcome in again if outcome.reused} <= before
        assert min(QUOTA, len({*wanted, "probe"})) == len(fake.created)
        assert QUOTA - len(fake.created) == fake.remaining
        refused_only_as_allowed(fake)
        return struck


def sent(fake: FakeBraze) -> int:
    """How many requests of the worker that is to die have arrived."""
    return sum(name_of(request.body).startswith("w0-") for request in fake.requests)


def refused_only_as_allowed(fake: FakeBraze) -> None:
    """429s for the repeats of lost attempts alone, and for one probe for unconfirmed slots."""
    asked: Counter[str] = Counter()
    probes = 0
    for request in fake.requests:
        name = name_of(request.body)
        asked[name] += 1
        if request.status == 429 and asked[name] == 1:
            probes += 1
            # A slot ripens from when its lease began: before its request arrived here, by less
            # than an attempt may take.
            passed = request.at - fake.requests[0].at
            assert passed >= RIPE - TIMEOUT, "no slot was ripe to be asked for"
    assert probes <= 1
    assert fake.refused <= probes + len(fake.requests) - len(asked)


def created(fake: FakeBraze) -> set[str]:
    return {name for _, name in fake.created}


def bodies(fake: FakeBraze) -> list[bytes]:
    return [request.body for request in fake.requests]


def name_of(body: bytes) -> str:
    return str(json.loads(body)["send_id"])
