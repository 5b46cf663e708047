"""Many requests, most of them remembered: memory stays flat."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from braze_sends import CreateSendId, Outcome, SendsClient, SQLiteStore
from braze_sends.protocol import pair_digest
from braze_sends.stores.store import Remembered, Transaction
from braze_sends.testing import FakeBraze
from tests.waiting import PATIENCE
from tests.world import KEY

PAIRS, NEW, FEW = 5_000, 50, 1_000


def requests(count: int) -> Iterator[CreateSendId]:
    for n in range(count):
        yield CreateSendId("campaign", f"s{7 * n % PAIRS}")


def peak() -> float:
    """Memory that this process has had at most, in MiB."""
    # Not ru_maxrss, which begins with what the parent had.
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) / 1024


def fresh(text: str | None) -> str:
    return "".join(list(text or ""))


async def measure(path: str, many: int, listed: bool) -> dict[str, float]:
    async with (
        FakeBraze(api_key=KEY) as fake,
        SendsClient(KEY, base_url=fake.base_url, store=f"sqlite:///{path}", workspace="w") as braze,
    ):
        outcomes: list[Outcome] = []

        async def run(count: int) -> float:
            if listed:
                outcomes[:] = await braze.create_send_ids(requests(count))
            else:
                made = 0
                async for outcome in braze.iter_send_ids(requests(count)):
                    made += outcome.result is not None
                assert count == made
            return peak()

        few, most = await run(FEW), await run(many)
        # As large a list once more, with strings of its own, to know how large it is.
        copies = [
            Outcome(
                attrs.evolve(outcome.request, send_id=fresh(outcome.request.send_id)),
                outcome.result and attrs.evolve(outcome.result, send_id=fresh(str(outcome.result))),
            )
            for outcome in outcomes
        ]
        assert outcomes == copies
        return {"few": few, "many": most, "list": peak() - most, "requests": len(fake.requests)}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("many", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_the_memory_of_a_batch_does_not_grow_with_its_rows(tmp_path: Path, many: int) -> None:
    """Many rows take what 1,000 take, within 20 %, but for the list of outcomes."""
    workers = []
    for listed in (False, True):
        path = tmp_path / f"{listed}.db"
        asyncio.run(seed(path))
        command = [sys.executable, "-m", __name__, str(path), str(many), "listed" if listed else ""]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE))
    iterated, listed_ = (json.loads(worker.communicate(timeout=PATIENCE)[0]) for worker in workers)

    assert NEW == iterated["requests"] == listed_["requests"]
    assert iterated["many"] <= 1.2 * iterated["few"], iterated
    assert listed_["many"] - listed_["list"] <= 1.2 * listed_["few"], listed_


async def seed(path: Path) -> None:
    """A store that remembers all pairs but some."""

    def remember(transaction: Transaction) -> None:
        for n in range(NEW, PAIRS):
            pair = pair_digest(CreateSendId("campaign", f"s{n}")).hex()
            transaction.pairs[pair] = Remembered(f"s{n}")

    store = SQLiteStore(path)
    await store.transact("w", [], remember)
    await store.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2]), bool(sys.argv[3])))))  # noqa: T201  # to its parent
