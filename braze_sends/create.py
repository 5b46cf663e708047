"""One create from top to bottom.

A create runs in a task of its own, so that callers come and go. Callers that ask for the same on
the same terms share one (*single flight*). A create that nobody waits for any more is called off if
its request has not left, and otherwise runs to the end of its attempt, since aborting it would
waste the slot and the truth.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import random
import secrets
import time
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
from braze_sends.models import CreateSendId, RateLimit, SendId
from braze_sends.quota.limiter import Limiter
from braze_sends.quota.line import WaitBudget
from braze_sends.quota.rule.messages import Answer, Ask
from braze_sends.retry import retry
from braze_sends.settings import Settings
from braze_sends.stores.store import Remembered
from braze_sends.transport import Exchange, Transport, total_of
from braze_sends.verdict import Verdict, judge

log = logging.getLogger("braze_sends")


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


#: A request, the wait, the headroom and the policy: calls that share them share a create.
Terms = tuple[CreateSendId, float | None, int, Policy]


@attrs.define(eq=False)
class Create:
    """One create under way.

    Attributes:
        request: the pair to create.
        ask: what the limiter is asked; its ``attempt`` counts.
        budget: what is left of the wait for quota.
        terms: what its callers asked for.
        refusal: what the last 429 means to the caller.
        keeps_lease: whether its token is kept for a further attempt.
        exchange: the request that is out.
        callers: what those who wait for the result await.
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
    callers: set[asyncio.Future[SendId]] = attrs.field(factory=set)
    closing: bool = False
    task: asyncio.Task[None] = attrs.field(init=False)

    def call_off(self) -> bool:
        """Stop, unless a request has left; whether it stops."""
        if self.exchange is not None and self.exchange.sent:
            return False
        if self.exchange is not None:
            self.exchange.called_off = True
        self.task.cancel()
        return True


class Creates:
    """The creates of one client in one event loop.

    Attributes:
        limiter: what gives them their tokens.
        rate_limit: the rate-limit headers that were seen last.
        running: those that have not ended.
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
        self.running: set[Create] = set()
        self.pair_waits: set[Create] = set()
        self.on_pair_waits: set[Callable[[], None]] = set()
        self._by_terms: dict[Terms, Create] = {}

    # --- callers ---------------------------------------------------------------------------------

    async def create(
        self, request: CreateSendId, wait: float | None, headroom: int, policy: Policy
    ) -> SendId:
        """Create a send ID, or share the create that is under way for it."""
        terms = request, wait, headroom, policy
        # On other terms, the limiter sees to it that a pair is one request; one that Braze is to
        # name is shared by nobody.
        create = None if request.send_id is None else self._by_terms.get(terms)
        if create is None:
            create = self._start(terms)
        elif create in self.pair_waits:
            self._tell_pair_waits()
        return await self._join(create)

    async def settled(self, seconds: float) -> None:
        """Wait for what nobody waits for any more: undone if it was not sent, else settled.

        So many seconds at most, which is the timeout of the caller's own attempts: somebody may
        join one, whose wait is then for them, and another call's may take longer.
        """
        left = [create for create in self.running if not create.callers]
        await _ended(left, seconds)

    async def close(self) -> None:
        """Call off what has not been sent, and wait for what has."""
        for create in self.running:
            create.closing = True
            create.call_off()
        await _ended([*self.running])

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
        create = Create(request, ask, WaitBudget(math.inf if wait is None else wait), terms)
        create.budget.on_pair_wait = functools.partial(self._note_pair_wait, create)
        create.task = asyncio.create_task(self._tell(create))
        create.task.add_done_callback(functools.partial(self._end, create))
        if request.send_id is not None:
            self._by_terms[terms] = create
        self.running.add(create)
        return create

    def _end(self, create: Create, task: asyncio.Task[None]) -> None:
        self.running.discard(create)
        for caller in create.callers:
            caller.cancel()  # the create was called off, or the loop is ending

    def _forget(self, create: Create) -> None:
        """Let nobody join it any more."""
        if self._by_terms.get(create.terms) is create:
            del self._by_terms[create.terms]

    async def _join(self, create: Create) -> SendId:
        caller: asyncio.Future[SendId] = asyncio.get_running_loop().create_future()
        create.callers.add(caller)
        try:
            return await caller
        except asyncio.CancelledError:
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

    async def _tell(self, create: Create) -> None:
        """Run a create, and tell its callers, who wake one turn of the loop earlier than they would
        by its task."""
        outcome: SendId | Exception
        try:
            outcome = await self._run(create)
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
        if isinstance(outcome, Exception) and not create.callers:
            log.info("create failed unattended", extra={"error": type(outcome).__name__})

    async def _run(self, create: Create) -> SendId:
        try:
            verdict = await self._attempt(create)
            if verdict.transient:
                verdict = await retry(
                    verdict,
                    functools.partial(self._attempt_again, create),
                    create.terms[3].max_retries,
                    functools.partial(self._may_repeat, create),
                    for_ever=create.budget.left == math.inf,
                )
        except BrazeSendsError as error:  # no verdict: nothing was sent in this attempt
            told = error
            if isinstance(error, QuotaExhaustedError) and create.refusal is not None:
                told = create.refusal
            told.campaign_id = create.request.campaign_id
            told.send_id = create.request.send_id
            if create.budget.in_doubt:
                told.quota_spent = None
            raise told from None
        finally:
            if create.keeps_lease:
                await self._quietly(self.limiter.close(create.ask))
        if isinstance(verdict.outcome, BrazeSendsError):
            raise verdict.outcome
        return verdict.outcome

    def _may_repeat(self, create: Create, verdict: Verdict) -> bool:
        """Whether another attempt is safe, and worth it to those who wait.

        The pause that Braze asks for is taken from their budget: no silent sleep for hours.
        """
        if create.closing or not create.callers or not verdict.safe:
            return False
        create.budget.left -= verdict.retry_after or 0.0
        return create.budget.left >= 0

    async def _attempt_again(self, create: Create) -> Verdict:
        create.ask = attrs.evolve(create.ask, attempt=create.ask.attempt + 1)
        return await self._attempt(create)

    async def _attempt(self, create: Create) -> Verdict:
        """One grant, one request, one answer."""
        request, key = create.request, self._settings.api_key
        ask = create.ask
        held = await self.limiter.acquire(ask, create.budget)
        if isinstance(held, Remembered):
            send = reused(request, held, attempts=ask.attempt - 1)
            return Verdict(send, Answer(spent=False))
        timeout = create.terms[3].timeout
        exchange = create.exchange = Exchange(held.deadline, held.ahead, timeout=timeout)
        try:
            reply = await self._transport.send(protocol.build_body(request), exchange)
        except BaseException:
            # Called off before the first byte; or the loop is ending, and takes the answer with it.
            lost = Answer(spent=None if exchange.sent else False, in_doubt=exchange.sent)
            await self._quietly(self.limiter.finish(ask, held.grant, lost))
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
                create.budget.in_doubt, create.budget.undoubted = True, False
            if verdict.answer.refused:
                create.refusal = verdict.outcome
        create.keeps_lease = verdict.transient
        await self._quietly(
            self.limiter.finish(
                ask, held.grant, verdict.answer, created=verdict.created, keep=verdict.transient
            )
        )
        create.exchange = None
        return verdict

    async def _quietly(self, settling: Coroutine[Any, Any, None]) -> None:
        """Settle; what was created is returned, and what went wrong is told, even if this fails.

        The store then takes the attempt for one in doubt, when the lease's deadline has passed.
        """
        try:
            await settling
        except StoreError as error:
            log.warning("settling failed: %s", error)


async def _ended(creates: list[Create], timeout: float | None = None) -> None:  # noqa: ASYNC109
    if creates:
        await asyncio.wait([create.task for create in creates], timeout=timeout)


def reused(request: CreateSendId, memory: Remembered, attempts: int = 0) -> SendId:
    """What is remembered of a pair, as a result."""
    return SendId(
        campaign_id=request.campaign_id,
        send_id=str(memory.send_id),
        queued=memory.queued,
        reused=True,
        attempts=attempts,
        request_id=memory.request_id,
    )
