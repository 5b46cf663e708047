"""One create from top to bottom.

A create runs in a task of its own, so that callers come and go. Callers that ask for the same on
the same terms share one create (*single flight*). When the last caller leaves, the create is
called off, unless its request is on its way. Then the create runs to the end of its attempt:
aborting the request would waste the slot, and nobody would learn what became of the send.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import secrets
import time
import typing
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import attrs

from braze_sends import headers, protocol
from braze_sends.errors import (
    BrazeSendsError,
    ConfigurationError,
    QuotaExhaustedError,
    StoreError,
)
from braze_sends.listeners import Listeners
from braze_sends.models import CreateSendId, RateLimit, SendId
from braze_sends.quota.limiter import Limiter
from braze_sends.quota.line import WaitBudget
from braze_sends.quota.rule.messages import Answer, Ask
from braze_sends.retry import retry
from braze_sends.settings import Settings
from braze_sends.stores.store import Remembered
from braze_sends.transport import Exchange, Transport, total_of
from braze_sends.verdict import Verdict, judge

if typing.TYPE_CHECKING:
    from braze_sends.reports import Reports


@attrs.frozen(cache_hash=True)
class Policy:
    """How the attempts of a create are made.

    Attributes:
        timeout: of one attempt.
        max_retries: attempts after the first.
        daily_limit: the caller's own limit, or ``None``.
    """

    timeout: aiohttp.ClientTimeout
    max_retries: int
    daily_limit: int | None

    @property
    def seconds(self) -> float:
        """The longest that one attempt can take."""
        return total_of(self.timeout)


#: The request, the wait, the headroom and the policy. Calls with equal terms share one create.
Terms = tuple[CreateSendId, float | None, int, Policy]


@attrs.define(eq=False)
class Create:
    """One create under way.

    Attributes:
        request: the pair to create.
        ask: the question to the limiter. ``ask.attempt`` numbers the attempts, also an attempt that
            only waited for quota.
        budget: what is left of the wait for quota.
        terms: what its callers asked for.
        started: loop time.
        watched: whether somebody wants to hear of each of its steps. Failures and retries are told
            all the same: the log may want those alone.
        attempts: how many requests were made.
        refusal: the error that the last 429 means to the caller, or ``None``.
        keeps_lease: whether its lease stays open for a further attempt.
        exchange: the request of the attempt under way, ``None`` between two attempts.
        callers: one future for each caller, who awaits it.
        closing: whether the client is being closed.
        task: the task that runs the create.
    """

    request: CreateSendId
    ask: Ask
    budget: WaitBudget
    terms: Terms
    started: float
    watched: bool = False
    attempts: int = 0
    refusal: BrazeSendsError | None = None
    keeps_lease: bool = False
    exchange: Exchange | None = None
    callers: set[asyncio.Future[SendId]] = attrs.field(factory=set)
    closing: bool = False
    task: asyncio.Task[None] = attrs.field(init=False)

    def call_off(self) -> bool:
        """Stop the create, unless a request is on its way. Returns whether the create stops."""
        if self.exchange is not None and self.exchange.sent:
            return False
        if self.exchange is not None:
            self.exchange.called_off = True
        self.task.cancel()
        return True


class Creates:
    """The creates of one client in one event loop.

    Attributes:
        limiter: gives the creates their leases.
        rate_limit: the rate-limit headers that were seen last.
        running: the creates that have not ended.
        pair_waits: the creates that wait only until another create of the same pair has ended, on
            other terms or in another process.
        on_pair_waits: functions that are called when ``pair_waits`` changes, and when a create in
            ``pair_waits`` gets another caller.
    """

    def __init__(
        self,
        settings: Settings,
        transport: Transport,
        limiter: Limiter,
        rate_limit: RateLimit | None,
        listeners: Listeners,
    ) -> None:
        self._settings = settings
        self._transport = transport
        self.limiter = limiter
        self.rate_limit = rate_limit
        self._listeners = listeners
        limiter.audience.add(listeners)
        self.running: set[Create] = set()
        self.pair_waits: set[Create] = set()
        self.on_pair_waits: set[Callable[[], None]] = set()
        self._by_terms: dict[Terms, Create] = {}

    @functools.cached_property
    def _reports(self) -> Reports:
        # Imported when something is told, since most programs listen to nothing.
        from braze_sends.reports import Reports

        url = self._settings.base_url + protocol.PATH
        return Reports(self._listeners, self._settings.workspace, url)

    # --- callers ---------------------------------------------------------------------------------

    async def create(
        self, request: CreateSendId, wait: float | None, headroom: int, policy: Policy
    ) -> SendId:
        """Create a send ID, or share the create that is under way for it."""
        terms = request, wait, headroom, policy
        # Calls on other terms get a create of their own: the limiter lets one create of a pair send
        # at a time. Nobody shares a create whose send Braze is to name.
        create = None if request.send_id is None else self._by_terms.get(terms)
        if create is None:
            return await self._wait(self._start(terms))
        if create in self.pair_waits:
            self._tell_pair_waits()
        return await self._join(create)

    async def settled(self, seconds: float) -> None:
        """Wait for the end of the creates that have no caller any more.

        Args:
            seconds: the longest wait: the timeout of the caller's own attempts. A new caller may
                join such a create, which then goes on for that caller; and another call's attempt
                may take longer.
        """
        left = [create for create in self.running if not create.callers]
        await _ended(left, seconds)

    async def close(self) -> None:
        """Call off what has not been sent, and wait for what has."""
        for create in self.running:
            create.closing = True
            create.call_off()
        await _ended([*self.running])
        self.limiter.audience.remove(self._listeners)

    def _start(self, terms: Terms) -> Create:
        request, wait, headroom, policy = terms
        ask = Ask(
            lease=secrets.token_hex(16),
            attempt=1,
            pair=None if request.send_id is None else protocol.pair_digest(request).hex(),
            timeout=policy.seconds,
            headroom=headroom,
            own_limit=policy.daily_limit,
            campaign=request.campaign_id,
        )
        budget = WaitBudget(math.inf if wait is None else wait)
        started = asyncio.get_running_loop().time()
        create = Create(request, ask, budget, terms, started)
        budget.on_pair_wait = functools.partial(self._note_pair_wait, create)
        if self._listeners.want(logging.DEBUG):
            create.watched = True
            budget.on_wait = functools.partial(self._reports.waits, create)
            self._reports.started(create)
        create.task = asyncio.create_task(self._run(create))
        create.task.add_done_callback(functools.partial(self._end, create))
        if request.send_id is not None:
            self._by_terms[terms] = create
        self.running.add(create)
        return create

    def _end(self, create: Create, task: asyncio.Task[None]) -> None:
        self.running.discard(create)
        if create.watched and task.cancelled():
            self._reports.cancelled(create)
        for caller in create.callers:
            caller.cancel()  # the create was called off, or the loop is ending

    def _forget(self, create: Create) -> None:
        """Let no further call join the create."""
        if self._by_terms.get(create.terms) is create:
            del self._by_terms[create.terms]

    async def _join(self, create: Create) -> SendId:
        """Share a create that is under way."""
        if not create.watched:
            return await self._wait(create)
        with self._reports.joined(create):
            return await self._wait(create)

    async def _wait(self, create: Create) -> SendId:
        """Wait for the result, as one of the callers. The last caller who leaves early calls the
        create off."""
        caller: asyncio.Future[SendId] = asyncio.get_running_loop().create_future()
        create.callers.add(caller)
        try:
            return await caller
        except asyncio.CancelledError:
            # Nobody cancelled our own task: ``close`` has ended the create, and so the future.
            ours = asyncio.current_task()
            if create.closing and ours and not ours.cancelling():
                raise ConfigurationError(
                    "the client was closed while the create waited",
                    quota_spent=None if create.budget.in_doubt else False,
                    campaign_id=create.request.campaign_id,
                    send_id=create.request.send_id,
                ) from None
            raise
        finally:
            create.callers.discard(caller)
            if not create.callers and not create.task.done() and create.call_off():
                self._forget(create)

    def _note_pair_wait(self, create: Create, waits: bool) -> None:
        if waits:
            self.pair_waits.add(create)
        else:
            self.pair_waits.discard(create)
        self._tell_pair_waits()

    def _tell_pair_waits(self) -> None:
        for tell in self.on_pair_waits:
            tell()

    # --- the create ------------------------------------------------------------------------------

    async def _run(self, create: Create) -> None:
        """Run a create, and give its callers the outcome.

        A caller awaits a future of its own, and so wakes one turn of the loop earlier than by
        awaiting the task.
        """
        outcome: SendId | Exception
        try:
            outcome = await self._outcome(create)
        except Exception as error:
            outcome = error
        self._forget(create)
        for caller in create.callers:
            if caller.done():
                continue
            if isinstance(outcome, SendId):
                caller.set_result(outcome)
            else:
                caller.set_exception(outcome)
        if create.watched or isinstance(outcome, Exception):
            self._reports.ended(create, outcome)

    async def _outcome(self, create: Create) -> SendId:
        try:
            verdict = await self._attempt(create)
            if verdict.transient:
                verdict = await retry(
                    verdict,
                    functools.partial(self._attempt_again, create),
                    create.terms[3].max_retries,
                    functools.partial(self._may_repeat, create),
                    functools.partial(self._reports.retry, create),
                    for_ever=create.budget.left == math.inf,
                )
        except BrazeSendsError as error:  # no verdict: nothing was sent in this attempt
            final = error
            if isinstance(error, QuotaExhaustedError) and create.refusal is not None:
                final = create.refusal  # Braze's own 429 says more than the wait that followed
            final.campaign_id = create.request.campaign_id
            final.send_id = create.request.send_id
            if create.budget.in_doubt:
                final.quota_spent = None
            raise final from None
        finally:
            if create.keeps_lease:
                await self._quietly(create, self.limiter.close(create.ask))
        if isinstance(verdict.outcome, BrazeSendsError):
            raise verdict.outcome
        return verdict.outcome

    def _may_repeat(self, create: Create, verdict: Verdict) -> bool:
        """Whether another attempt is safe, and within the budget of the callers.

        The pause that Braze asks for is subtracted from the budget here, so that no call sleeps
        silently for hours.
        """
        if create.closing or not create.callers or not verdict.safe:
            return False
        create.budget.left -= verdict.retry_after or 0.0
        return create.budget.left >= 0

    async def _attempt_again(self, create: Create) -> Verdict:
        create.ask = attrs.evolve(create.ask, attempt=create.ask.attempt + 1)
        return await self._attempt(create)

    async def _attempt(self, create: Create) -> Verdict:
        """Make one attempt: get a lease, send one request, judge the answer, settle the lease.

        If the store remembers the pair, no request is sent.
        """
        request, key = create.request, self._settings.api_key
        ask = create.ask
        held = await self.limiter.acquire(ask, create.budget)
        if isinstance(held, Remembered):
            send = reused(request, held, attempts=ask.attempt - 1)
            return Verdict(send, Answer(spent=False))
        timeout = create.terms[3].timeout
        exchange = create.exchange = Exchange(held.deadline, held.ahead, timeout=timeout)
        create.attempts += 1
        started = asyncio.get_running_loop().time()
        if create.watched:
            self._reports.attempt_started(create)
        try:
            reply = await self._transport.send(protocol.build_body(request), exchange)
        except BaseException as error:
            # The create was called off before the first byte, or the session cannot be used. Or
            # the loop is ending, and the answer is lost.
            lost = Answer(spent=None if exchange.sent else False, in_doubt=exchange.sent)
            if create.watched:
                self._reports.attempt_broke_off(create, started, error, lost)
            await self._quietly(create, self.limiter.finish(ask, held.grant, lost))
            raise
        told = headers.read(reply.headers, time.time(), key.scrub)
        self.rate_limit = told.rate_limit or self.rate_limit
        verdict = judge(
            request,
            reply,
            told,
            key,
            attempt=ask.attempt,
            in_doubt=create.budget.in_doubt,
            now=time.time(),
            jitter=random.random(),
        )
        if isinstance(verdict.outcome, BrazeSendsError):
            if verdict.answer.in_doubt:
                # A doubt of the pair may be this attempt's from now on, see ``WaitBudget``.
                create.budget.in_doubt, create.budget.undoubted = True, False
            if verdict.answer.refused:
                create.refusal = verdict.outcome
        create.keeps_lease = verdict.transient
        if create.watched:
            self._reports.attempt_ended(create, started, reply, told, verdict)
        await self._quietly(
            create,
            self.limiter.finish(
                ask, held.grant, verdict.answer, created=verdict.created, keep=verdict.transient
            ),
        )
        create.exchange = None
        return verdict

    async def _quietly(self, create: Create, settling: Coroutine[Any, Any, None]) -> None:
        """Settle an attempt, or its lease, with the store. A failure of the store is reported, not
        raised: the caller gets the result of the attempt all the same.

        After such a failure the lease stays open until its deadline. The rule then takes an attempt
        that was not settled for one in doubt.
        """
        try:
            await settling
        except StoreError as error:
            self._reports.settling_failed(create, error)


async def _ended(creates: list[Create], timeout: float | None = None) -> None:  # noqa: ASYNC109
    if creates:
        await asyncio.wait([create.task for create in creates], timeout=timeout)


def reused(request: CreateSendId, memory: Remembered, attempts: int = 0) -> SendId:
    """The result for a pair that the store remembers, and whose send ID exists."""
    return SendId(
        campaign_id=request.campaign_id,
        send_id=str(memory.send_id),
        queued=memory.queued,
        reused=True,
        attempts=attempts,
        request_id=memory.request_id,
    )
