"""Braze, the network and time, in one virtual event loop: what the schedules are played in."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import attrs

from braze_sends import BrazeSendsError, MemoryStore, QuotaExhaustedError, SendId, SendsClient
from braze_sends.protocol import PATH, NoReply, Reply
from braze_sends.testing import run_virtual
from braze_sends.testing.model import RATE_LIMIT_HEADERS, BrazeModel
from braze_sends.transport import Exchange, NotSentError, total_of

T = TypeVar("T")

KEY = "7f3d1c9e-key-of-the-tests"
MORNING = datetime(2026, 11, 21, 9, tzinfo=UTC).timestamp()
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC).timestamp()

Result = SendId | BaseException


@attrs.frozen(kw_only=True)
class Fate:
    """What happens to one request.

    Attributes:
        refused: the connection is; nothing was sent.
        latency: seconds from the first byte to the answer; half of it lies before Braze.
        counted_after: seconds until Braze handles it, whatever the answer; ``None``: half the
            latency; infinite: never.
        answer: whether an answer comes; otherwise the attempt's timeout passes.
        breaks: the connection breaks where the answer would come.
        status: an answer of the edge, without headers, in place of Braze's.
        headers: what stands in place of the rate-limit headers; ``None`` for Braze's own.
    """

    refused: bool = False
    latency: float = 0.1
    counted_after: float | None = None
    answer: bool = True
    breaks: bool = False
    status: int | None = None
    headers: dict[str, str] | None = None


LOST = Fate(answer=False, counted_after=float("inf"))  # never arrives
UNANSWERED = Fate(answer=False)  # arrives; its answer does not
REFUSED = Fate(refused=True)
BARE: dict[str, str] = {}


class World:
    """One workspace, seen by one process.

    Attributes:
        model: Braze.
        handle: how it handles a request.
        fate: what happens to request number ``n`` (from 0) for a send ID.
        asked: the send IDs of all requests that left, in order.
        answers: the statuses that came back.
    """

    def __init__(self, *, start: float = MORNING, **readings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.start = start - self.loop.time()
        self.model = BrazeModel(api_key=KEY, **readings)
        self.handle = self.model.handle
        self.fate: Callable[[int, str], Fate] = lambda n, send_id: Fate()
        self.asked: list[str] = []
        self.answers: Counter[int] = Counter()
        self.clients: list[SendsClient] = []

    def now(self) -> float:
        """Braze's clock, epoch seconds."""
        return self.start + self.loop.time()

    def store(self, clock_error: float = 0.0) -> MemoryStore:
        """A store whose wall clock is ahead by ``clock_error`` seconds."""
        return MemoryStore(clock=self.loop.time, wall=lambda: self.now() + clock_error)

    def client(self, *, clock_error: float = 0.0, **options: Any) -> SendsClient:
        options.setdefault("store", self.store(clock_error))
        client = SendsClient(KEY, base_url="http://127.0.0.1:9", **options)
        client._transport = _Wire(self, client._transport.seconds)  # type: ignore[assignment]
        self.clients.append(client)
        return client

    @property
    def over(self) -> int:
        """Requests that Braze refused for want of quota."""
        return self.model.refused

    @property
    def created(self) -> list[str]:
        return [send_id for _, send_id in self.model.created]


class _Wire:
    """Stands in for ``Transport``."""

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.seconds = world, seconds

    async def send(self, body: bytes, exchange: Exchange) -> Reply | NoReply:
        world = self.world
        send_id = json.loads(body).get("send_id", "")
        fate = world.fate(len(world.asked), send_id)
        await asyncio.sleep(0)
        if fate.refused:
            return NoReply("refused", sent=False)
        try:
            exchange.start()
        except NotSentError as error:
            return NoReply(str(error), sent=False)
        world.asked.append(send_id)
        replies: list[Any] = []

        def handle() -> None:
            headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
            replies.append(world.handle("POST", PATH, headers, body, world.now()))

        counted_after = fate.latency / 2 if fate.counted_after is None else fate.counted_after
        if counted_after < float("inf"):
            world.loop.call_later(counted_after, handle)
        seconds = self.seconds if exchange.timeout is None else total_of(exchange.timeout)
        if not fate.answer or fate.latency >= seconds:
            await asyncio.sleep(seconds)
            return NoReply("no answer", sent=True, timed_out=True)
        await asyncio.sleep(fate.latency)
        if fate.breaks:
            return NoReply("connection reset", sent=True)
        if fate.status is not None:
            world.answers[fate.status] += 1
            return Reply(fate.status, {"content-type": "text/html"}, b"<p>the edge</p>")
        reply = replies[0]
        world.answers[reply.status] += 1
        headers = dict(reply.headers)
        if fate.headers is not None:
            headers = {k: v for k, v in headers.items() if k not in RATE_LIMIT_HEADERS}
            headers |= fate.headers
        return Reply(reply.status, {k.lower(): v for k, v in headers.items()}, reply.body)

    def detach(self) -> None:
        pass

    async def close(self) -> None:
        pass

    borrows_session = False


def play(
    schedule: Callable[[World], Coroutine[Any, Any, T]], *, start: float = MORNING, **readings: Any
) -> T:
    """Run a schedule to its end, and see that nothing was left behind."""
    random.seed(13)  # of the jitter in backoffs

    async def main() -> T:
        world = World(start=start, **readings)
        result = await schedule(world)
        for client in world.clients:
            await client.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert set() == left
        return result

    return run_virtual(main())


async def gather(creates: Iterable[Coroutine[Any, Any, SendId]]) -> list[Result]:
    return await asyncio.gather(*creates, return_exceptions=True)


def many(client: SendsClient, names: Iterable[object], **options: Any) -> list[Any]:
    return [client.create_send_id("campaign", f"s{name}", **options) for name in names]


def made(results: Iterable[Result]) -> int:
    return sum(isinstance(result, SendId) for result in results)


def exhausted(results: Iterable[Result]) -> int:
    return sum(isinstance(result, QuotaExhaustedError) for result in results)


def failed(results: Iterable[Result]) -> list[BrazeSendsError]:
    """The errors among them, all of which must be ours."""
    errors = [result for result in results if not isinstance(result, SendId)]
    assert all(isinstance(error, BrazeSendsError) for error in errors), errors
    return [error for error in errors if isinstance(error, BrazeSendsError)]
