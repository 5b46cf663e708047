"""More creates than the quota has, in one rush over a bad line; then both sides' books."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import attrs

from braze_sends.client import SendsClient
from braze_sends.errors import BrazeSendsError, QuotaExhaustedError
from braze_sends.models import QuotaStatus, SendId
from braze_sends.stores.memory import MemoryStore
from braze_sends.testing.fake import FakeBraze, Fault

__all__ = ["FAULTS", "Books", "Plan", "disagreements", "run"]

Pair = tuple[str, str]

CAMPAIGN: Final = "demo-campaign"

#: What goes wrong, each twice. All of it early, while slots are left: a repeat or a probe that
#: meets a used-up quota may rightly be refused, and the demo claims that no request is.
FAULTS: Final[Mapping[str, Callable[[float], Fault]]] = {
    "created, then the connection is cut": lambda _: Fault(drop="after"),
    "the connection is cut before": lambda _: Fault(drop="before"),
    "503 Service Unavailable": lambda _: Fault(status=503),
    "502 with HTML, from the edge": lambda _: Fault(status=502),
    "504 from the edge, but created": lambda _: Fault(status=504, commit=True),
    "created, answered after the timeout": lambda timeout: Fault(stall=3 * timeout),
    "created after the timeout": lambda timeout: Fault(delay=1.5 * timeout),
    "created, rate-limit headers blank": lambda _: Fault(headers="blank"),
    "created, rate-limit headers garbled": lambda _: Fault(headers="garbled"),
}


@attrs.frozen(kw_only=True)
class Plan:
    """The size of a demo.

    Attributes:
        limit: slots of the quota.
        pairs: send IDs that are asked for.
        twice: how many of them are asked for twice at once, and once more in the end.
        rush: the time in which all are asked for, seconds. Those that come late find slots taken
            by doubts, and have to wait until these are cleared.
        timeout: seconds for one attempt. A doubt is charged three times as long, so this sets
            how long the demo takes.
        latency: the longest that an answer takes without a fault, seconds.
    """

    limit: int = 100
    pairs: int = 130
    twice: int = 10
    rush: float = 0.8
    timeout: float = 0.5
    latency: float = 0.15


@attrs.frozen(kw_only=True)
class Books:
    """What the client's callers were told, and what the emulator wrote down.

    Attributes:
        told: the outcome of every call of the rush.
        again: the outcomes of asking once more for what exists.
        quota: the client's view in the end.
        created, requests, over_quota, left: the emulator's view in the end.
        ended: when that was, by the emulator's clock.
    """

    told: Sequence[tuple[Pair, SendId | BrazeSendsError]]
    again: Sequence[SendId | BrazeSendsError]
    quota: QuotaStatus
    created: Sequence[Pair]
    requests: int
    over_quota: int
    left: int
    ended: datetime

    @property
    def sends(self) -> dict[Pair, SendId]:
        """What the client holds for created, by the pair that was asked for."""
        return {pair: told for pair, told in self.told if isinstance(told, SendId)}

    @property
    def refused(self) -> list[BrazeSendsError]:
        """The errors."""
        return [told for _, told in self.told if not isinstance(told, SendId)]

    @property
    def attempts(self) -> int:
        """Requests that the client made. Two calls for one pair share theirs."""
        return sum(send.attempts for send in self.sends.values())


async def run(plan: Plan, progress: Callable[[SendId | BrazeSendsError], None]) -> Books:
    """Create more send IDs than the quota has, in one rush, and return both sides' books."""
    fake = FakeBraze(
        api_key="demo-key",
        daily_limit=plan.limit,
        latency=lambda: random.uniform(0, plan.latency),
    )
    # By its clock the demo begins at noon, so that no day ends while it runs.
    fake.clock_offset = 43_200.0 - time.time() % 86_400.0
    faults = [make(plan.timeout) for make in FAULTS.values()] * 2
    random.shuffle(faults)
    fake.script(None, *faults)
    async with (
        fake,
        SendsClient(
            "demo-key",
            base_url=fake.base_url,
            store=MemoryStore(),  # never the one that BRAZE_SENDS_STORE names
            timeout=plan.timeout,
            max_retries=8,
            max_rate_limit_wait=20.0,  # until the doubts are cleared, and no longer
        ) as braze,
    ):

        async def ask(pair: Pair, delay: float = 0.0) -> SendId | BrazeSendsError:
            await asyncio.sleep(delay)
            try:
                told: SendId | BrazeSendsError = await braze.create_send_id(*pair)
            except BrazeSendsError as error:
                told = error
            progress(told)
            return told

        pairs = [(CAMPAIGN, f"story-{n}") for n in range(plan.pairs)]
        delays = [plan.rush * n / plan.pairs for n in range(plan.pairs)]
        calls = pairs + pairs[: plan.twice]
        told = await asyncio.gather(*map(ask, calls, delays + delays[: plan.twice]))
        again = await asyncio.gather(*map(ask, pairs[: plan.twice]))
        return Books(
            told=list(zip(calls, told, strict=True)),
            again=again,
            quota=await braze.quota(),
            created=fake.created,
            requests=len(fake.requests),
            over_quota=fake.refused,
            left=fake.remaining,
            ended=datetime.fromtimestamp(fake.now, UTC),
        )


def disagreements(plan: Plan, books: Books) -> list[str]:
    """What the emulator's record and the client's belief differ in; empty if all is well."""
    created, sends = Counter(books.created), books.sends
    wanted = min(plan.limit, plan.pairs)
    found: dict[str, Sequence[object]] = {
        "created, but the client does not know": sorted(created.keys() - sends.keys()),
        "held for created, but the emulator has none": sorted(sends.keys() - created.keys()),
        "created twice": [pair for pair, times in created.items() if times > 1],
        "answered with another pair": [
            pair for pair, send in sends.items() if (send.campaign_id, send.send_id) != pair
        ],
        "failed, not for want of quota": [
            str(error) for error in books.refused if not isinstance(error, QuotaExhaustedError)
        ],
        "refused without a time to come back": [
            str(error)
            for error in books.refused
            if isinstance(error, QuotaExhaustedError) and error.retry_after is None
        ],
        "created before, but asked of Braze again": [
            str(told) for told in books.again if not (isinstance(told, SendId) and told.reused)
        ],
        "answers over quota": [books.over_quota] * (books.over_quota > 0),
        "slots not used": [wanted - len(created)] * (wanted > len(created)),
        "slots left, by the client and by the emulator": [books.quota.remaining, books.left]
        * (books.quota.remaining != books.left),
    }
    return [f"{what}: {', '.join(map(str, which))}" for what, which in found.items() if which]
