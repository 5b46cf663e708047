"""Many creates: at most so many at a time, whatever becomes of each.

**What must hold.** Each request has one outcome, and none hides another. A create begins only when
every outcome before it has been taken, so that who writes them down as they come loses none.
However a batch ends, no task of it is left.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
)
from copy import copy
from typing import Any, Final, Protocol

import attrs

from braze_sends.errors import (
    APIConnectionError,
    APIResponseError,
    BrazeSendsError,
    ConfigurationError,
    QuotaExhaustedError,
)
from braze_sends.models import CreateSendId, SendId
from braze_sends.protocol import check_request
from braze_sends.quota.bucket import NO_CAP

_END: Final = object()


@attrs.frozen
class Outcome:
    """What became of one request of a batch: a ``result`` or an ``error``.

    Attributes:
        request: what was asked for, as it was given.
        result: the send ID, or ``None``.
        error: why there is none, or ``None``; its ``quota_spent`` tells whether a slot is gone.
    """

    request: CreateSendId
    result: SendId | None = None
    error: BrazeSendsError | None = None


class Create(Protocol):
    """``SendsClient.create_send_id``."""

    async def __call__(
        self,
        campaign_id: str,
        send_id: str | None,
        *,
        max_rate_limit_wait: float | None,
        headroom: int,
    ) -> SendId: ...


@attrs.define(eq=False)
class Batch:
    """A batch under way.

    Attributes:
        create: makes one.
        settled: waits for what was cancelled.
        max_rate_limit_wait: seconds that each may wait for quota; ``None`` for ever.
        headroom: slots to leave untouched.
        failed: how pairs that were sent have failed. They are not sent again; nor is what was
            created, since the client remembers that.
        ended: how the quota ended, and until when, on the loop's clock, it will be gone.
    """

    create: Create
    settled: Callable[[], Awaitable[None]]
    max_rate_limit_wait: float | None
    headroom: int
    failed: dict[CreateSendId, BrazeSendsError] = attrs.field(init=False, factory=dict)
    ended: tuple[QuotaExhaustedError, float] | None = attrs.field(init=False, default=None)

    async def outcomes(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        concurrency: int,
    ) -> AsyncGenerator[tuple[int, Outcome], None]:
        """Outcomes as they come, each with the place of its request, from 0.

        Closed or cancelled, it cancels what is under way, and waits for what was sent.
        """
        source = aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
        working: dict[asyncio.Task[Outcome], int] = {}
        # The next request may take its time to come, and holds up none that is here.
        coming: asyncio.Task[object] | None = None
        count, broken, more = 0, None, True
        try:
            while True:
                if more and coming is None and len(working) < concurrency:
                    coming = asyncio.create_task(_next(source))
                under_way: list[asyncio.Task[Any]] = [*working, coming] if coming else [*working]
                if not under_way:
                    break
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                done = [work for work in working if work.done()]
                for work in done:
                    number = working.pop(work)
                    if error := work.exception():  # not one of ours
                        broken, more = broken or error, False
                    else:
                        yield number, work.result()
                if done or coming is None:
                    continue  # nothing begins before these have been taken
                came, coming = coming, None
                if error := came.exception():
                    broken, more = broken or error, False
                elif (request := came.result()) is _END:
                    more = False
                elif more:
                    working[asyncio.create_task(self._outcome(request))] = count
                    count += 1
            if broken is not None:
                raise broken
        finally:
            left: list[asyncio.Task[Any]] = [*working, coming] if coming else [*working]
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
                await self.settled()

    async def _outcome(self, request: object) -> Outcome:
        if not isinstance(request, CreateSendId):
            problem = f"a request must be a CreateSendId, not {type(request).__name__}"
            return Outcome(request, error=ConfigurationError(problem))  # type: ignore[arg-type]  # as it was given
        try:
            if failure := self.failed.get(check_request(request)):
                return Outcome(request, error=failure)
            if self.ended is not None and _now() < self.ended[1]:
                return await self._without_quota(request, *self.ended)
            return Outcome(request, await self._create(request))
        except BrazeSendsError as error:
            return Outcome(request, error=error)

    async def _create(self, request: CreateSendId) -> SendId:
        try:
            return await self.create(
                request.campaign_id,
                request.send_id,
                max_rate_limit_wait=self.max_rate_limit_wait,
                headroom=self.headroom,
            )
        except QuotaExhaustedError as error:
            left = math.inf if error.retry_after is None else error.retry_after
            self.ended = error, _now() + left
            raise
        except (APIConnectionError, APIResponseError) as error:
            if request.send_id is not None:
                self.failed[request] = error
            raise

    async def _without_quota(
        self, request: CreateSendId, ended: QuotaExhaustedError, until: float
    ) -> Outcome:
        """What is remembered, or costs nothing since it may exist already; else how it ended."""
        try:
            # More headroom than any limit has.
            send = await self.create(
                request.campaign_id, request.send_id, max_rate_limit_wait=0.0, headroom=NO_CAP
            )
        except QuotaExhaustedError as error:
            told = copy(ended)
            if ended.retry_after is not None:
                told.retry_after = max(0.0, until - _now())
            told.campaign_id, told.send_id = error.campaign_id, error.send_id
            told.quota_spent = error.quota_spent
            return Outcome(request, error=told)
        return Outcome(request, send)


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _next(source: Iterator[object] | AsyncIterator[object]) -> object:
    try:
        return next(source) if isinstance(source, Iterator) else await anext(source)
    except (StopIteration, StopAsyncIteration):
        return _END
