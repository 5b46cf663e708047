"""Many creates: at most so many at a time, whatever becomes of each.

**What must hold.** Each request has exactly one outcome. No create begins while an outcome that is
ready has not been taken, so a caller who writes each one down loses at most those under way. A
create that only waits for its pair, which is under way elsewhere, takes no place of another. When a
batch ends, in whatever way, none of its tasks is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
)
from copy import copy
from typing import Any, Final, Protocol

import attrs

from braze_sends.create import Creates, Policy, Terms
from braze_sends.errors import (
    APIConnectionError,
    APIResponseError,
    BrazeSendsError,
    ConfigurationError,
    QuotaExhaustedError,
    RateLimitError,
)
from braze_sends.models import CreateSendId, SendId
from braze_sends.protocol import check_request
from braze_sends.quota.rule.ledger import NO_LIMIT

_END: Final = object()


@attrs.frozen
class Outcome:
    """What became of one request of a batch: a ``result`` or an ``error``.

    Attributes:
        request: what was asked for, as it was given. If its ``send_id`` is ``None``, the name is in
            ``result.send_id`` or ``error.send_id``.
        result: the send ID, or ``None``.
        error: why there is none, or ``None``; its ``quota_spent`` tells whether a slot is gone.
    """

    request: CreateSendId
    result: SendId | None = None
    error: BrazeSendsError | None = None


class CreateCall(Protocol):
    """Creates one send ID on these terms, and names the send where ``request`` does not."""

    async def __call__(
        self, request: CreateSendId, wait: float | None, headroom: int, policy: Policy
    ) -> SendId: ...


@attrs.define(eq=False)
class Batch:
    """A batch under way.

    Attributes:
        create: makes one.
        creates: those of the client that ``create`` is of.
        policy: how each attempt is made.
        max_rate_limit_wait: seconds that each may wait for quota, besides the pauses, see
            ``_ask_past_pauses``; ``None`` for ever.
        headroom: slots to leave untouched.
        failed: the errors of named pairs that were sent and failed. They are not sent again; nor is
            what was created, since the client remembers that.
        asked: how many creates are under way on the same terms.
        stirred: done when ``_pair_waits`` may have changed.
        ended: the error with which the quota ended, and the loop's time until which it is told to
            the rest.
        place: that of the request, from 0, whose outcome was given last.
        asking: creates under way, those that wait for quota too.
        idle: set while there are none.
        turn: lets one create at a time ask again after the quota was said to have ended.
    """

    create: CreateCall
    creates: Creates
    max_rate_limit_wait: float | None
    headroom: int
    policy: Policy
    failed: dict[CreateSendId, BrazeSendsError] = attrs.field(init=False, factory=dict)
    ended: tuple[QuotaExhaustedError, float] | None = attrs.field(init=False, default=None)
    place: int = attrs.field(init=False, default=-1)
    asking: int = attrs.field(init=False, default=0)
    idle: asyncio.Event = attrs.field(init=False, factory=asyncio.Event)
    turn: asyncio.Lock = attrs.field(init=False, factory=asyncio.Lock)
    asked: Counter[Terms] = attrs.field(init=False, factory=Counter)
    stirred: asyncio.Future[None] = attrs.field(init=False, factory=lambda: _future())

    @property
    def grace(self) -> float:
        """Seconds that an attempt may take."""
        return self.policy.seconds

    async def outcomes(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        concurrency: int,
    ) -> AsyncGenerator[Outcome, None]:
        """Outcomes as they come; ``place`` tells whose.

        Closed or cancelled, it cancels what is under way, and waits for what was sent. An error
        that is not ours is raised after what is under way, which has ``grace`` seconds for that.
        """
        source = aiter(requests) if isinstance(requests, AsyncIterable) else iter(requests)
        working: dict[asyncio.Task[Outcome], int] = {}
        # The next request may take its time to come, and holds up none that is here.
        coming: asyncio.Task[object] | None = None
        count, more = 0, True
        broken: BaseException | None = None
        until = math.inf
        self.creates.on_pair_waits.add(self._stir)
        try:
            while True:
                if self.stirred.done():
                    self.stirred = _future()
                if more and coming is None and len(working) - self._pair_waits() < concurrency:
                    coming = asyncio.create_task(_next(source))
                under_way: list[asyncio.Task[Any]] = [*working, coming] if coming else [*working]
                if not under_way or _now() >= until:
                    break
                await asyncio.wait(
                    [*under_way, self.stirred],
                    timeout=None if broken is None else until - _now(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                done = [task for task in under_way if task.done()]
                if broken is None and (broken := _first_error(done)) is not None:
                    # What is under way may end, since it may be known nowhere else; not for ever.
                    more, until = False, _now() + self.grace
                for work in [work for work in working if work.done()]:
                    self.place = working.pop(work)
                    if _error_of(work) is None:
                        yield work.result()
                if coming is None or done != [coming]:
                    continue  # nothing begins before these have been taken
                came, coming = coming, None
                if more and (request := came.result()) is not _END:
                    working[asyncio.create_task(self._outcome(request))] = count
                    count += 1
                else:
                    more = False
            if broken is not None:
                raise broken
        finally:
            self.creates.on_pair_waits.discard(self._stir)
            left: list[asyncio.Task[Any]] = [*working, coming] if coming else [*working]
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)
                for task in left:
                    _error_of(task)  # seen
                await self.creates.settled(self.grace)

    def _stir(self) -> None:
        if not self.stirred.done():
            self.stirred.set_result(None)

    def _pair_waits(self) -> int:
        """How many different creates of ours wait only for their own pair to end elsewhere."""
        return len({create.terms for create in self.creates.pair_waits} & self.asked.keys())

    async def _outcome(self, request: object) -> Outcome:
        if not isinstance(request, CreateSendId):
            problem = f"a request must be a CreateSendId, not {type(request).__name__}"
            return Outcome(request, error=ConfigurationError(problem))  # type: ignore[arg-type]  # as it was given
        try:
            return await self._create(check_request(request))
        except BrazeSendsError as error:
            return Outcome(request, error=error)

    async def _create(self, request: CreateSendId) -> Outcome:
        try:
            return await self._ask_past_pauses(request, self.max_rate_limit_wait)
        except QuotaExhaustedError as error:
            if not _may_repeat(request, error):
                raise
            if not self.asking:
                self._end(error)
                raise
        # What else is under way may leave a slot, and tells when to come back.
        async with self.turn:
            if self.ended is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.idle.wait(), self.grace)
            try:
                return await self._ask_past_pauses(request, 0.0)
            except QuotaExhaustedError as error:
                self._end(error)
                raise

    async def _ask_past_pauses(self, request: CreateSendId, wait: float | None) -> Outcome:
        """Ask, and ask again after a pause, until the pauses together are longer than ``grace``.

        After a 429 of another limit than the day's, all creates pause for some seconds, though
        slots are free. That is not the end of the quota.
        """
        left = self.grace
        refused = wait is None or wait >= self.grace  # then the create waits for pauses itself
        while True:
            pause = 0.0
            try:
                return await self._ask(request, wait)
            except RateLimitError as error:
                if refused or not _may_repeat(request, error):
                    raise
                self.failed.pop(request, None)
                refused = True  # asking again tells how long the pause is
            except QuotaExhaustedError as error:
                free = error.remaining is None or error.remaining > self.headroom
                pause = math.inf if error.retry_after is None else error.retry_after
                left -= pause
                if not free or left < 0 or not _may_repeat(request, error):
                    raise
            wait = 0.0
            await asyncio.sleep(pause)

    def _end(self, error: QuotaExhaustedError) -> None:
        left = math.inf if error.retry_after is None else error.retry_after
        self.ended = error, _now() + left

    async def _ask(self, request: CreateSendId, wait: float | None) -> Outcome:
        if failure := self.failed.get(request):
            return Outcome(request, error=failure)
        if self.ended is not None and _now() < self.ended[1]:
            return await self._without_quota(request, *self.ended)
        self.asking += 1
        self.idle.clear()
        try:
            send = await self._send(request, wait, self.headroom)
        except (APIConnectionError, APIResponseError) as error:
            if request.send_id is not None:
                self.failed[request] = error
            raise
        finally:
            self.asking -= 1
            if not self.asking:
                self.idle.set()
        return Outcome(request, send)

    async def _without_quota(
        self, request: CreateSendId, ended: QuotaExhaustedError, until: float
    ) -> Outcome:
        """What is remembered, or costs nothing since it may exist already; else how it ended."""
        try:
            send = await self._send(request, 0.0, NO_LIMIT)  # more headroom than any limit has
        except QuotaExhaustedError as error:
            told = copy(ended)
            if ended.retry_after is not None:
                told.retry_after = max(0.0, until - _now())
            told.campaign_id, told.send_id = error.campaign_id, error.send_id
            told.quota_spent = error.quota_spent
            return Outcome(request, error=told)
        return Outcome(request, send)

    async def _send(self, request: CreateSendId, wait: float | None, headroom: int) -> SendId:
        terms = request, wait, headroom, self.policy
        self.asked[terms] += 1
        try:
            return await self.create(*terms)
        finally:
            self.asked[terms] -= 1
            if not self.asked[terms]:
                del self.asked[terms]


def _may_repeat(request: CreateSendId, error: BrazeSendsError) -> bool:
    """Whether asking again creates no second send: a request without a name gets another one."""
    return request.send_id is not None or error.quota_spent is False


def _first_error(done: list[asyncio.Task[Any]]) -> BaseException | None:
    return next((error for task in done if (error := _error_of(task)) is not None), None)


def _error_of(task: asyncio.Task[Any]) -> BaseException | None:
    """What a task ended with; requests may have waited for something that was cancelled."""
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _next(source: Iterator[object] | AsyncIterator[object]) -> object:
    try:
        return next(source) if isinstance(source, Iterator) else await anext(source)
    except (StopIteration, StopAsyncIteration):
        return _END
