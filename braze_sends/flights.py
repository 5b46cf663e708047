"""One create from top to bottom.

A create is a *flight*: it runs in a task of its own, so that callers come and go. Callers that ask
for the same pair share a flight; a flight that nobody waits for any more is called off if its
request has not left, and otherwise runs to the end of its attempt, since aborting it would waste
the slot and the truth.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

import attrs

from braze_sends import headers, protocol, retry
from braze_sends.errors import (
    APIResponseError,
    BrazeSendsError,
    ConfigurationError,
    QuotaExhaustedError,
    RateLimitError,
    StoreError,
)
from braze_sends.headers import AnswerHeaders
from braze_sends.models import CreateSendId, RateLimit, SendId
from braze_sends.quota.limiter import Limiter, WaitBudget
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reading
from braze_sends.settings import Settings
from braze_sends.stores.store import Remembered
from braze_sends.transport import Exchange, Transport

log = logging.getLogger("braze_sends")

#: A pair, the wait and the headroom: calls that share them share a flight.
_Terms = tuple[str, float | None, int]
#: The same, by the request and not by the pair's digest.
Terms = tuple[CreateSendId, float | None, int]


@attrs.define(eq=False)
class Flight:
    """One create under way.

    Attributes:
        request: the pair to create.
        ask: what the limiter is asked; its ``attempt`` counts.
        budget: what is left of the wait for quota.
        terms: what its callers asked for.
        refusal: what the last 429 means.
        keeps_lease: whether its token is kept for a further attempt.
        exchange: the request that is out.
        callers: how many wait for the result.
        closing: whether the client is being closed.
        task: what runs it.
    """

    request: CreateSendId
    ask: Ask
    budget: WaitBudget
    terms: Terms
    refusal: BrazeSendsError | None = None
    keeps_lease: bool = False
    exchange: Exchange | None = None
    callers: int = 0
    closing: bool = False
    task: asyncio.Task[SendId] = attrs.field(init=False)

    def call_off(self) -> None:
        """Stop, unless a request has left."""
        if self.exchange is None or not self.exchange.sent:
            if self.exchange is not None:
                self.exchange.called_off = True
            self.task.cancel()


class Flights:
    """The flights of one client in one event loop.

    Attributes:
        limiter: what gives them their tokens.
        flying: those that have not landed.
        rate_limit: the rate-limit headers that were seen last.
        pair_waits: those that wait only for their own pair, which is under way elsewhere.
        on_pair_waits: called when ``pair_waits`` changes, or one of these gets another caller.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        limiter: Limiter,
        rate_limit: RateLimit | None,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self.limiter = limiter
        self.rate_limit = rate_limit
        self.flying: set[Flight] = set()
        self.pair_waits: set[Flight] = set()
        self.on_pair_waits: set[Callable[[], None]] = set()
        self._by_terms: dict[_Terms, Flight] = {}

    async def create(self, request: CreateSendId, wait: float | None, headroom: int) -> SendId:
        """Create a send ID, or share the flight that is under way for it."""
        pair = None if request.send_id is None else protocol.pair_digest(request).hex()
        # Who waits for the same on the same terms shares a flight; on others, the limiter sees to
        # it that a pair is one request.
        key = (pair or uuid.uuid4().hex, wait, headroom)
        flight = self._by_terms.get(key)
        if flight is None:
            ask = Ask(
                lease=uuid.uuid4().hex,
                attempt=0,
                pair=pair,
                timeout=self._transport.seconds,
                headroom=headroom,
                own_limit=self._settings.daily_limit,
                campaign=request.campaign_id,
            )
            budget = WaitBudget(math.inf if wait is None else wait)
            flight = Flight(request, ask, budget, (request, wait, headroom))
            budget.on_pair_wait = functools.partial(self._note_pair_wait, flight)
            self._take_off(flight, key)
        elif flight in self.pair_waits:
            self._tell_pair_waits()
        return await self._join(flight, key)

    async def settled(self) -> None:
        """Wait for what nobody waits for any more: undone if it was not sent, else settled.

        One attempt's timeout at most: somebody may join one, whose wait is then for them.
        """
        left = [flight for flight in self.flying if not flight.callers]
        await _landed(left, self._transport.seconds)

    async def close(self) -> None:
        """Call off what has not been sent, and wait for what has."""
        for flight in self.flying:
            flight.closing = True
            flight.call_off()
        await _landed([*self.flying])

    def _note_pair_wait(self, flight: Flight, waits: bool) -> None:
        if waits != (flight in self.pair_waits):
            self.pair_waits ^= {flight}
            self._tell_pair_waits()

    def _tell_pair_waits(self) -> None:
        for tell in self.on_pair_waits:
            tell()

    def _take_off(self, flight: Flight, key: _Terms) -> None:
        flight.task = asyncio.create_task(self._create(flight))
        self._by_terms[key] = flight
        self.flying.add(flight)

        def landed(task: asyncio.Task[SendId]) -> None:
            self.flying.discard(flight)
            self.pair_waits.discard(flight)
            if self._by_terms.get(key) is flight:
                del self._by_terms[key]
            if not task.cancelled() and (error := task.exception()) and not flight.callers:
                log.info("create failed unattended", extra={"error": type(error).__name__})

        flight.task.add_done_callback(landed)

    async def _join(self, flight: Flight, key: _Terms) -> SendId:
        flight.callers += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if flight.closing and flight.task.cancelled() and ours and not ours.cancelling():
                raise ConfigurationError(
                    "the client was closed while the create waited",
                    quota_spent=None if flight.budget.in_doubt else False,
                    campaign_id=flight.request.campaign_id,
                    send_id=flight.request.send_id,
                ) from None
            raise
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.task.done():
                flight.call_off()
                if flight.exchange is None or not flight.exchange.sent:
                    self._by_terms.pop(key, None)

    async def _create(self, flight: Flight) -> SendId:
        try:
            retrying = retry.retrying(
                self._settings.max_retries,
                lambda error: self._may_repeat(flight, error),
                for_ever=flight.budget.left == math.inf,
            )
            return await retrying(self._attempt, flight)
        except BrazeSendsError as error:
            told = error
            if flight.refusal is not None and isinstance(
                error, RateLimitError | QuotaExhaustedError
            ):
                told = flight.refusal
            told.campaign_id = flight.request.campaign_id
            told.send_id = flight.request.send_id
            if flight.budget.in_doubt:
                told.quota_spent = None  # of the whole call, not of its last attempt
            raise told from None
        finally:
            if flight.keeps_lease:
                await self._quietly(self.limiter.close(flight.ask))

    def _may_repeat(self, flight: Flight, error: BrazeSendsError) -> bool:
        """Whether a transient error is worth another attempt to those who wait.

        The pause that Braze asks for is taken from their budget.
        """
        if flight.closing or not flight.callers or not retry.is_safe(error):
            return False
        # No silent sleep for hours: a pause that Braze asks for is bounded as a wait for quota is.
        if isinstance(error, APIResponseError) and not isinstance(error, RateLimitError):
            flight.budget.left -= error.retry_after or 0.0
        return flight.budget.left >= 0

    async def _attempt(self, flight: Flight) -> SendId:
        """One lease, one request, one answer."""
        request, key = flight.request, self._settings.api_key
        flight.ask = ask = attrs.evolve(flight.ask, attempt=flight.ask.attempt + 1)
        held = await self.limiter.acquire(ask, flight.budget)
        if isinstance(held, Remembered):
            send = reused(request, held)
            return attrs.evolve(send, attempts=max(0, flight.ask.attempt - 1))
        exchange = flight.exchange = Exchange(held.deadline, held.ahead)
        try:
            reply = await self._transport.send(protocol.build_body(request), exchange)
        except BaseException:
            # Called off before the first byte; or the loop is ending, and takes the answer with it.
            lost = Answer(spent=None if exchange.sent else False, in_doubt=exchange.sent)
            await self._quietly(self.limiter.finish(ask, held.grant, lost))
            raise
        told = headers.read(reply.headers, time.time(), key.scrub)
        self.rate_limit = told.rate_limit or self.rate_limit
        settle = functools.partial(self._settle, flight, held.grant, told)
        try:
            send = protocol.parse_response(request, reply, told, key)
        except BrazeSendsError as error:
            if not (flight.budget.in_doubt and protocol.says_it_exists(error)):
                await settle(error)
                raise
            send = SendId(
                request.campaign_id,
                str(request.send_id),
                request_id=told.request_id,
                rate_limit=told.rate_limit,
            )
        send = attrs.evolve(send, attempts=ask.attempt)
        await settle(send)
        return send

    async def _settle(
        self,
        flight: Flight,
        grant: Grant,
        told: AnswerHeaders,
        outcome: SendId | BrazeSendsError,
    ) -> None:
        """Tell the limiter how an attempt ended, and remember what became of the pair."""
        keep, created = False, None
        if isinstance(outcome, SendId):
            spent: bool | None = None if outcome.queued else True
            in_doubt = outcome.queued
            created = Remembered(outcome.send_id, outcome.queued, outcome.request_id)
        else:
            spent = outcome.quota_spent
            in_doubt = protocol.leaves_pair_in_doubt(outcome)
            keep = retry.is_transient(outcome)
            flight.budget.in_doubt |= in_doubt
            flight.budget.undoubted &= not in_doubt
        refused = isinstance(outcome, RateLimitError)
        if isinstance(outcome, RateLimitError):
            flight.refusal = protocol.exhausted(outcome, told, time.time())
        window = None
        if (limit := told.rate_limit) is not None:
            window = Reading(limit.limit, limit.used, limit.resets_at.timestamp())
        answer = Answer(
            spent=spent,
            in_doubt=in_doubt,
            window=window,
            date=told.date,
            refused=refused,
            from_edge=isinstance(outcome, RateLimitError) and outcome.from_edge,
            retry_after=told.retry_after,
            jitter=random.random(),
        )
        flight.keeps_lease = keep
        await self._quietly(
            self.limiter.finish(flight.ask, grant, answer, created=created, keep=keep)
        )
        flight.exchange = None

    async def _quietly(self, settling: Coroutine[Any, Any, None]) -> None:
        """Settle; what was created is returned, and what went wrong is told, even if this fails.

        The store then takes the attempt for one in doubt, when the lease's deadline has passed.
        """
        try:
            await settling
        except StoreError as error:
            log.warning("settling failed: %s", error)


async def _landed(flights: list[Flight], timeout: float | None = None) -> None:  # noqa: ASYNC109
    if flights:
        await asyncio.wait([flight.task for flight in flights], timeout=timeout)


def reused(request: CreateSendId, memory: Remembered) -> SendId:
    """What is remembered of a pair, as a result."""
    return SendId(
        campaign_id=request.campaign_id,
        send_id=str(memory.send_id),
        queued=memory.queued,
        reused=True,
        attempts=0,
        request_id=memory.request_id,
    )
