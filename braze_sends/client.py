"""``SendsClient``: one create from top to bottom.

A create is a *flight*: it runs in a task of its own, so that callers come and go. Callers that ask
for the same pair share a flight; a flight that nobody waits for any more is called off if its
request has not left, and otherwise runs to the end of its attempt, since aborting it would waste
the slot and the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import inspect
import logging
import os
import random
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Final

import aiohttp
import attrs

from braze_sends import headers, protocol, retry
from braze_sends.batch import Batch, Outcome
from braze_sends.errors import (
    APIResponseError,
    BrazeSendsError,
    ConfigurationError,
    QuotaExhaustedError,
    RateLimitError,
    StoreError,
)
from braze_sends.headers import AnswerHeaders
from braze_sends.models import CreateSendId, QuotaStatus, RateLimit, SendId
from braze_sends.quota.bucket import Answer, Ask, Grant, Window
from braze_sends.quota.limiter import Limiter, Patience
from braze_sends.quota.store import MemoryStore, Remembered, Store, open_store
from braze_sends.settings import Settings, checked_count, checked_wait
from braze_sends.transport import Exchange, Transport, checked_timeout

log = logging.getLogger("braze_sends")


class _Unset:
    def __repr__(self) -> str:
        return "…"


UNSET: Final = _Unset()

#: A pair, the wait and the headroom: calls that share them share a flight.
_Terms = tuple[str, float | None, int]


def new_send_id() -> str:
    """A send ID that nobody has used: 32 hexadecimal digits of a random UUID."""
    return uuid.uuid4().hex


@attrs.define(eq=False)
class _Flight:
    """One create under way.

    Attributes:
        ask: what the limiter is asked; its ``attempt`` counts.
        spent: whether an attempt of this call was, or may have been, counted.
        refusal: what the last 429 means.
        keeps_lease: whether its token is kept for a further attempt.
        exchange: the request that is out.
        callers: how many wait for the result.
    """

    request: CreateSendId
    ask: Ask
    patience: Patience
    spent: bool | None = False
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


class SendsClient:
    """Creates Braze send IDs, and keeps the quota that they cost.

    Nothing is opened or sent before the first create. Usable from any number of tasks of one event
    loop, and from another loop after the first has ended.

    Args:
        api_key: a REST API key with the permission ``sends.id.create``; else ``BRAZE_API_KEY``.
        base_url: an instance (``"US-01"``) or an https URL (http for loopback alone); else
            ``BRAZE_BASE_URL``.
        workspace: names the quota in the store; by default derived from the URL and a digest of
            the key. Name it where several keys of one workspace are in use.
        store: where the quota lives: a ``Store``, or a URL (``memory://``, ``sqlite:///quota.db``,
            ``redis://host/0``); else ``BRAZE_SENDS_STORE``; else memory of its own. A store that
            is passed is not closed.
        session: your own ``aiohttp.ClientSession`` with its proxies, TLS and tracing; it is not
            closed. Its loop is the one that the client can be used from.
        timeout: seconds for one attempt, more than 0, or an ``aiohttp.ClientTimeout`` (5 minutes
            in all if it sets no total).
        max_retries: attempts after the first, 0 or more.
        max_rate_limit_wait: seconds that one call may wait for quota, all its waits together; 0
            never waits, ``None`` waits for ever. A wait known to be longer raises at once.
        daily_limit: your own cap, 0 or more: never more than this created through the store in a
            window. ``None``: what Braze allows.
        send_id_factory: names a send when the caller does not, so that a retry repeats the same
            pair. ``None``: Braze names it, and an attempt with an unknown outcome is not repeated.

    Raises:
        ConfigurationError: an argument is unusable; the message says what to do.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        workspace: str | None = None,
        store: Store | str | None = None,
        session: aiohttp.ClientSession | None = None,
        timeout: float | aiohttp.ClientTimeout = 10.0,
        max_retries: int = 2,
        max_rate_limit_wait: float | None = 30.0,
        daily_limit: int | None = None,
        send_id_factory: Callable[[], str] | None = new_send_id,
    ) -> None:
        self._settings = Settings.of(
            os.environ,
            api_key=api_key,
            base_url=base_url,
            workspace=workspace,
            max_retries=max_retries,
            max_rate_limit_wait=max_rate_limit_wait,
            daily_limit=daily_limit,
            send_id_factory=send_id_factory,
        )
        store = os.environ.get("BRAZE_SENDS_STORE") or None if store is None else store
        self._owns_store = store is None or isinstance(store, str)
        if isinstance(store, str):
            store = open_store(store)
        elif store is not None and not isinstance(store, Store):
            raise ConfigurationError(f"store must be a Store or a URL, not {type(store).__name__}")
        self._store: Store = MemoryStore() if store is None else store
        self._transport = Transport(
            self._settings.base_url, self._settings.api_key, checked_timeout(timeout), session
        )
        self._flights: dict[_Terms, _Flight] = {}
        self._flying: set[_Flight] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter_of_loop: Limiter | None = None
        self._rate_limit: RateLimit | None = None
        self._closed = False

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"<SendsClient base_url={settings.base_url!r} workspace={settings.workspace!r} "
            f"store={self._store!r}{' closed' if self._closed else ''}>"
        )

    async def __aenter__(self) -> SendsClient:
        self._limiter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def rate_limit(self) -> RateLimit | None:
        """The rate-limit headers that this client saw last, or ``None``."""
        return self._rate_limit

    async def create_send_id(
        self,
        campaign_id: str,
        send_id: str | None = None,
        *,
        max_rate_limit_wait: float | _Unset | None = UNSET,
        headroom: int = 0,
    ) -> SendId:
        """Create a send ID; a pair that exists already is returned and costs nothing.

        Cancelling this call before its request has left leaves no trace. Afterwards the request
        runs to its end without you, and what it created is remembered.

        Args:
            campaign_id: the campaign's API identifier.
            send_id: your name for the send, ASCII, 1 to 64 characters; ``None`` for a new one.
            max_rate_limit_wait: seconds, instead of the client's own.
            headroom: slots to leave untouched for others, 0 or more.

        Returns:
            the send ID, with the number of attempts and the rate limit that Braze told.

        Raises:
            ConfigurationError: an ID cannot be valid; nothing was sent.
            QuotaExhaustedError: no quota within the wait allowed.
            StoreError: the quota's store cannot be used; nothing was sent.
            APIConnectionError: no answer came, after all retries.
            APIStatusError: Braze said no, or went on failing.
            APIResponseValidationError: a 2xx without a usable send ID.

        https://www.braze.com/docs/api/endpoints/messaging/send_messages/post_create_send_ids/
        """
        limiter = self._limiter()
        request = self._named(campaign_id, send_id)
        wait = self._wait(max_rate_limit_wait)
        checked_count("headroom", headroom)
        pair = None if request.send_id is None else _digest(request)
        # Who waits for the same on the same terms shares a flight; on others, the limiter sees to
        # it that a pair is one request.
        key = (pair or uuid.uuid4().hex, wait, headroom)
        flight = self._flights.get(key)
        if flight is None:
            ask = Ask(
                lease=uuid.uuid4().hex,
                attempt=0,
                pair=pair,
                timeout=self._transport.seconds,
                headroom=headroom,
                cap=self._settings.daily_limit,
                campaign=request.campaign_id,
            )
            flight = _Flight(request, ask, Patience(float("inf") if wait is None else wait))
            self._take_off(flight, key, limiter)
        return await self._join(flight, key)

    async def create_send_ids(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        *,
        concurrency: int = 8,
        on_outcome: Callable[[Outcome], object] | None = None,
        max_rate_limit_wait: float | _Unset | None = UNSET,
        headroom: int = 0,
    ) -> list[Outcome]:
        """Create many send IDs; no failure hides another's result.

        A pair that is asked for twice is sent once. When the quota has ended, the rest is told so
        at once, but for what exists already. An error that is not this package's own, raised by
        ``requests`` or ``on_outcome``, ends the batch as cancelling it does, and is raised.

        Cancelling calls off what has not been sent, and waits for what has, one attempt's timeout
        at most; cancelled once more, it waits no longer, and the client goes on by itself.

        Args:
            requests: any iterable or async iterable, of any length; taken as it is needed.
            concurrency: how many are in work at a time, 1 or more.
            on_outcome: called with each outcome as it comes. Nothing new begins before it returns.
            max_rate_limit_wait: seconds that each may wait for quota, instead of the client's own.
            headroom: slots to leave untouched for others, 0 or more.

        Returns:
            an outcome for each request, in their order.

        Raises:
            ConfigurationError: an argument is unusable; nothing was sent.
        """
        if on_outcome is not None and (
            not callable(on_outcome) or inspect.iscoroutinefunction(on_outcome)
        ):
            raise ConfigurationError(
                "on_outcome must be a plain function; to await something for each outcome, "
                "take iter_send_ids"
            )
        found: list[Outcome | None] = []
        outcomes = self._outcomes(requests, concurrency, max_rate_limit_wait, headroom)
        async with contextlib.aclosing(outcomes):
            async for place, outcome in outcomes:
                found.extend([None] * (place + 1 - len(found)))
                found[place] = outcome
                if on_outcome is not None:
                    on_outcome(outcome)
        return [outcome for outcome in found if outcome is not None]

    def iter_send_ids(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        *,
        concurrency: int = 8,
        max_rate_limit_wait: float | _Unset | None = UNSET,
        headroom: int = 0,
    ) -> AsyncGenerator[Outcome, None]:
        """Create many send IDs, and give the outcomes as they come, in whatever order.

        As ``create_send_ids``, but nothing is kept, so that it may run for ever. Nothing new
        begins while an outcome that has come has not been asked for. To leave the loop before
        its end, put it into ``contextlib.aclosing``.

        Args:
            requests: as for ``create_send_ids``.
            concurrency: how many are in work at a time, 1 or more.
            max_rate_limit_wait: seconds that each may wait for quota, instead of the client's own.
            headroom: slots to leave untouched for others, 0 or more.

        Raises:
            ConfigurationError: an argument is unusable; nothing was sent.
        """
        outcomes = self._outcomes(requests, concurrency, max_rate_limit_wait, headroom)

        async def unnumbered() -> AsyncGenerator[Outcome, None]:
            async with contextlib.aclosing(outcomes):
                async for _, outcome in outcomes:
                    yield outcome

        return unnumbered()

    async def find_send_id(self, campaign_id: str, send_id: str) -> SendId | None:
        """The send ID of a pair that was created through the store; asks nothing of Braze.

        Returns:
            it, ``reused``; or ``None``: it was not, or longer ago than 30 days, or nobody knows.

        Raises:
            ConfigurationError: an ID cannot be valid.
            StoreError: the store cannot be used.
        """
        request = protocol.check_request(CreateSendId(campaign_id, send_id))
        memory = await self._limiter().recall(_digest(request))
        return None if memory is None else _reused(request, memory)

    async def quota(self) -> QuotaStatus:
        """The quota as the store knows it; asks nothing of Braze.

        Raises:
            StoreError: the store cannot be used.
        """
        return await self._limiter().status(self._settings.daily_limit)

    async def forget_quota(self) -> None:
        """Forget what Braze's headers said, and start over with one careful request.

        For when Braze has raised the limit of a day that is used up. What is in flight or in
        doubt is not forgotten.

        Raises:
            StoreError: the store cannot be used.
        """
        await self._limiter().forget()

    async def close(self) -> None:
        """Call off what has not been sent, wait for what has, and close what was opened.

        Takes at most one attempt's timeout. Idempotent.
        """
        self._closed = True
        limiter = self._limiter_of_loop
        if limiter is not None and self._loop is asyncio.get_running_loop():
            for flight in list(self._flights.values()):
                flight.closing = True
                flight.call_off()
            if self._flying:
                await asyncio.wait({flight.task for flight in self._flying})
            await limiter.drain()
            await self._transport.close()
        if self._owns_store:
            await self._store.close()

    # --- batches ---------------------------------------------------------------------------------

    def _outcomes(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        concurrency: int,
        max_rate_limit_wait: float | _Unset | None,
        headroom: int,
    ) -> AsyncGenerator[tuple[int, Outcome], None]:
        self._limiter()
        if not isinstance(requests, Iterable | AsyncIterable):
            raise ConfigurationError(
                f"requests must be an iterable of CreateSendId, not {type(requests).__name__}"
            )
        if checked_count("concurrency", concurrency) < 1:
            raise ConfigurationError("concurrency must be 1 or more")
        wait = self._wait(max_rate_limit_wait)
        batch = Batch(self.create_send_id, self._settled, wait, checked_count("headroom", headroom))
        return batch.outcomes(requests, concurrency)

    async def _settled(self) -> None:
        """Wait for what nobody waits for any more: undone if it was not sent, else settled."""
        left = {flight.task for flight in self._flying if not flight.callers}
        if left:
            await asyncio.wait(left)

    def _wait(self, seconds: float | _Unset | None) -> float | None:
        if isinstance(seconds, _Unset):
            return self._settings.max_rate_limit_wait
        return checked_wait(seconds)

    # --- flights ---------------------------------------------------------------------------------

    def _limiter(self) -> Limiter:
        """The limiter of the running loop; the client moves on from a loop that has ended."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ConfigurationError("this client is closed; make a new one")
        if self._limiter_of_loop is None or self._loop is not loop:
            if self._loop is not None:
                if self._loop.is_running():
                    raise ConfigurationError(
                        "this client is in use by another running event loop; make one for each"
                    )
                if self._transport.borrows_session:
                    raise ConfigurationError(
                        "the session passed to this client belongs to an event loop that has ended"
                    )
            self._flights.clear()
            self._flying.clear()
            self._transport.detach()
            self._loop = loop
            self._limiter_of_loop = Limiter.of(self._store, self._settings.workspace)
        return self._limiter_of_loop

    def _named(self, campaign_id: str, send_id: str | None) -> CreateSendId:
        factory = self._settings.send_id_factory
        request = protocol.check_request(CreateSendId(campaign_id, send_id))
        if send_id is None and factory is not None:
            request = protocol.check_request(CreateSendId(campaign_id, factory()))
            if request.send_id is None:
                raise ConfigurationError("send_id_factory returned None", campaign_id=campaign_id)
        return request

    def _take_off(self, flight: _Flight, key: _Terms, limiter: Limiter) -> None:
        flight.task = asyncio.create_task(self._create(flight, limiter))
        self._flights[key] = flight
        self._flying.add(flight)

        def landed(task: asyncio.Task[SendId]) -> None:
            self._flying.discard(flight)
            if self._flights.get(key) is flight:
                del self._flights[key]
            if not task.cancelled() and (error := task.exception()) and not flight.callers:
                log.info("create failed unattended", extra={"error": type(error).__name__})

        flight.task.add_done_callback(landed)

    async def _join(self, flight: _Flight, key: _Terms) -> SendId:
        flight.callers += 1
        try:
            return await asyncio.shield(flight.task)
        except asyncio.CancelledError:
            ours = asyncio.current_task()
            if flight.closing and flight.task.cancelled() and ours and not ours.cancelling():
                raise ConfigurationError(
                    "the client was closed while the create waited",
                    quota_spent=None if flight.patience.in_doubt else False,
                    campaign_id=flight.request.campaign_id,
                    send_id=flight.request.send_id,
                ) from None
            raise
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.task.done():
                flight.call_off()
                if flight.exchange is None or not flight.exchange.sent:
                    self._flights.pop(key, None)

    async def _create(self, flight: _Flight, limiter: Limiter) -> SendId:
        try:
            retrying = retry.retrying(
                self._settings.max_retries, lambda error: self._may_repeat(flight, error)
            )
            return await retrying(self._attempt, flight, limiter)
        except BrazeSendsError as error:
            told = error
            if flight.refusal is not None and isinstance(
                error, RateLimitError | QuotaExhaustedError
            ):
                told = flight.refusal
            told.campaign_id = flight.request.campaign_id
            told.send_id = flight.request.send_id
            if flight.patience.in_doubt or flight.spent is None:
                told.quota_spent = None  # of the whole call, not of its last attempt
            raise told from None
        finally:
            if flight.keeps_lease:
                await self._quietly(limiter.close(flight.ask))

    def _may_repeat(self, flight: _Flight, error: BrazeSendsError) -> bool:
        """Whether a transient error is worth another attempt to those who wait."""
        if flight.closing or not flight.callers or not retry.is_safe(error):
            return False
        # No silent sleep for hours: a pause that Braze asks for is bounded as a wait for quota is.
        if isinstance(error, APIResponseError) and not isinstance(error, RateLimitError):
            flight.patience.left -= error.retry_after or 0.0
        return flight.patience.left >= 0

    async def _attempt(self, flight: _Flight, limiter: Limiter) -> SendId:
        """One lease, one request, one answer."""
        request, key = flight.request, self._settings.api_key
        flight.ask = ask = attrs.evolve(flight.ask, attempt=flight.ask.attempt + 1)
        held = await limiter.acquire(ask, flight.patience)
        if isinstance(held, Remembered):
            send = _reused(request, held)
            return attrs.evolve(send, attempts=max(0, flight.ask.attempt - 1))
        exchange = flight.exchange = Exchange(held.deadline)
        try:
            reply = await self._transport.send(protocol.build_body(request), exchange)
        except BaseException:
            # Called off before the first byte; or the loop is ending, and takes the answer with it.
            lost = Answer(spent=None if exchange.sent else False, in_doubt=exchange.sent)
            memory = Remembered(None) if exchange.sent else None
            await self._quietly(limiter.finish(ask, held.grant, lost, memory=memory))
            raise
        told = headers.read(reply.headers, time.time(), key.scrub)
        self._rate_limit = told.rate_limit or self._rate_limit
        settle = functools.partial(self._settle, flight, limiter, held.grant, told)
        try:
            send = protocol.parse_response(request, reply, told, key)
        except BrazeSendsError as error:
            if not (flight.patience.in_doubt and protocol.says_it_exists(error)):
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
        flight: _Flight,
        limiter: Limiter,
        grant: Grant,
        told: AnswerHeaders,
        outcome: SendId | BrazeSendsError,
    ) -> None:
        """Tell the limiter how an attempt ended, and remember what became of the pair."""
        keep, memory = False, None
        if isinstance(outcome, SendId):
            spent: bool | None = None if outcome.queued else True
            in_doubt = outcome.queued
            memory = Remembered(outcome.send_id, outcome.queued, outcome.request_id)
        else:
            spent = outcome.quota_spent
            in_doubt = protocol.leaves_pair_in_doubt(outcome)
            memory = Remembered(None) if in_doubt else None
            keep = retry.is_transient(outcome)
            flight.patience.in_doubt |= in_doubt
            flight.patience.undoubted &= not in_doubt
            flight.spent = None if spent is None else flight.spent
        refused = isinstance(outcome, RateLimitError)
        if isinstance(outcome, RateLimitError):
            flight.refusal = protocol.exhausted(outcome, told, time.time())
        window = None
        if (limit := told.rate_limit) is not None:
            window = Window(limit.limit, limit.used, limit.resets_at.timestamp())
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
        flight.keeps_lease = keep and not refused
        await self._quietly(
            limiter.finish(flight.ask, grant, answer, memory=memory, keep=flight.keeps_lease)
        )
        flight.exchange = None

    async def _quietly(self, settling: Coroutine[Any, Any, None]) -> None:
        """Settle; what was created is returned, and what went wrong is told, even if this fails.

        The store then takes the attempt for one in doubt, when the lease's deadline has passed.
        """
        try:
            await settling
        except StoreError as error:
            log.warning("settling failed", extra={"error": str(error)})


def _digest(request: CreateSendId) -> str:
    """A short name for a pair; a send ID has no NUL."""
    text = f"{request.campaign_id}\0{request.send_id}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _reused(request: CreateSendId, memory: Remembered) -> SendId:
    return SendId(
        campaign_id=request.campaign_id,
        send_id=str(memory.send_id),
        queued=memory.queued,
        reused=True,
        attempts=0,
        request_id=memory.request_id,
    )
