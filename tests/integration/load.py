"""Visitors of a web server: each wants a send ID of its own."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import aiohttp
import attrs

from braze_sends import SendsClient
from braze_sends.testing import FakeBraze
from tests.waiting import PATIENCE
from tests.world import KEY

CAMPAIGN = "campaign"
#: Seconds between two looks at what another process keeps.
LOOK = 0.05


@attrs.frozen
class Answer:
    """What a visitor got: a status, or ``None`` if the connection gave none."""

    send_id: str
    status: int | None
    retry_after: str | None = None
    body: Any = None


@attrs.define
class Load:
    """Visitors at work.

    Attributes:
        url: where the server is.
        answers: what they got, in the order of arrival.
        keep_alive: whether visitors keep their connections.
    """

    url: str
    keep_alive: bool = False
    answers: list[Answer] = attrs.Factory(list)

    async def ask(self, send_ids: Iterable[str], visitors: int) -> None:
        """Ask for each, by so many visitors at a time, until there are no more."""
        connector = aiohttp.TCPConnector(limit=0, force_close=not self.keep_alive)
        timeout = aiohttp.ClientTimeout(PATIENCE)
        rest = iter(send_ids)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def visitor() -> None:
                for send_id in rest:
                    self.answers.append(await self._answer(session, send_id))
                    if self.answers[-1].status is None:
                        await asyncio.sleep(0.01)  # as a browser would, before the next attempt

            async with asyncio.TaskGroup() as tasks:
                for _ in range(visitors):
                    tasks.create_task(visitor())

    async def _answer(self, session: aiohttp.ClientSession, send_id: str) -> Answer:
        try:
            async with session.post(f"{self.url}/sends/{CAMPAIGN}/{send_id}") as answer:
                told_json = answer.content_type == "application/json"
                body = await (answer.json() if told_json else answer.text())
                return Answer(send_id, answer.status, answer.headers.get("Retry-After"), body)
        except (aiohttp.ClientError, OSError):
            return Answer(send_id, None)

    def created(self) -> set[str]:
        """The send IDs that 2xx answers named."""
        return {answer.body["send_id"] for answer in self.answers if answer.status == 201}

    def refused(self) -> set[str]:
        """The send IDs to which the application answered that nothing was spent."""
        return {
            answer.send_id
            for answer in self.answers
            if isinstance(answer.body, dict) and answer.body.get("quota_spent") is False
        }

    def cut_off(self) -> set[str]:
        """The send IDs to which the server itself, and not the application, answered 500."""
        return {
            answer.send_id
            for answer in self.answers
            if (answer.status, answer.body) == (500, "Internal Server Error")
        }

    def statuses(self) -> Counter[int | None]:
        """How many answers there were of each status."""
        return Counter(answer.status for answer in self.answers)


def until_set(stop: asyncio.Event) -> Iterable[str]:
    """Send IDs without end, until ``stop`` is set."""
    return itertools.takewhile(lambda _: not stop.is_set(), map("v{}".format, itertools.count()))


async def each_created_once(fake: FakeBraze, store_url: str, count: int) -> None:
    """So many requests, as many send IDs, and the store knows them all."""
    created = {send_id for _, send_id in fake.created}
    assert (count, count, 0) == (len(created), len(fake.requests), fake.refused)
    async with SendsClient(KEY, base_url=fake.base_url, store=store_url) as braze:
        found = await asyncio.gather(*(braze.find_send_id(CAMPAIGN, name) for name in created))
        quota = await braze.quota()
    assert None not in found
    assert (count, 0, 0) == (quota.used, quota.in_flight, quota.unconfirmed)
