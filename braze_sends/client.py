"""``SendsClient``: the object that a user holds. ``create.py`` has the course of one create."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from copy import copy
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import aiohttp
import attrs

from braze_sends import protocol
from braze_sends.batch import Batch, Outcome
from braze_sends.create import Creates, Policy, reused
from braze_sends.errors import ConfigurationError, StoreError
from braze_sends.listeners import Listener, Listeners, checked_listeners
from braze_sends.models import Check, CreateSendId, Ping, QuotaStatus, RateLimit, SendId
from braze_sends.quota.limiter import Limiter
from braze_sends.settings import INSTANCES, UNSET, Settings, Unset, checked_count, checked_wait
from braze_sends.stores.memory import MemoryStore
from braze_sends.stores.store import Store
from braze_sends.stores.urls import open_store
from braze_sends.transport import Transport, checked_timeout

if TYPE_CHECKING:
    from braze_sends.analytics import SendAnalytics


def _running_loop() -> asyncio.AbstractEventLoop:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(
            "SendsClient needs asyncio, and no event loop of asyncio runs here; under trio or "
            "curio use trio-asyncio, or anyio with the asyncio backend"
        ) from None


def new_send_id() -> str:
    """A send ID that nobody has used: 32 hexadecimal digits of a random UUID."""
    return uuid.uuid4().hex


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
            ``redis://host/0``, ``postgresql://host/database``); else ``BRAZE_SENDS_STORE``; else
            memory of its own. A store that is passed is not closed.
        session: your own ``aiohttp.ClientSession`` with its proxies, TLS and tracing. The client
            does not close the session, and can be used from the loop of the session alone.
        timeout: seconds for one attempt, more than 0 and at most 3,600, or an
            ``aiohttp.ClientTimeout`` (5 minutes in all if it sets no total).
        max_retries: attempts after the first, 0 or more.
        max_rate_limit_wait: seconds that one call may wait for quota, all its waits together; 0
            never waits, ``None`` waits for ever. A call that would have to wait longer raises at
            once, if that is known.
        daily_limit: your own limit, 0 or more. Once so many sends were created through the store in
            a window, this client creates no more in the window. ``None``: what Braze allows.
        send_id_factory: names a send when the caller does not, so that a retry repeats the same
            pair. ``None``: Braze names it, and an attempt with an unknown outcome is not repeated.
        on_event: a function, or several, called with each event, see ``braze_sends.events``. They
            are called in the event loop and never awaited. One that raises is logged once, and
            harms no create.
        allow_http_host: the bare name of one host, besides loopback, to which ``base_url`` may be
            plain http, for an emulator in a network of your own; else
            ``BRAZE_SENDS_ALLOW_HTTP_HOST``; else none. The API key travels to it unencrypted, so
            use a key that is made up. A host of Braze is refused.
        default_headers: headers to send besides, for a gateway on the way to Braze. Those that
            the client sets itself, such as ``Authorization`` and ``Content-Type``, are refused.
        user_agent: your program, such as ``"newsroom/3.1"``, in printable ASCII. It is appended to
            the ``User-Agent``, which is the client's own, or that of the ``session`` if it has one.

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
        on_event: Listener | Iterable[Listener] | None = None,
        allow_http_host: str | None = None,
        default_headers: Mapping[str, str] | None = None,
        user_agent: str | None = None,
    ) -> None:
        try:
            self._settings = Settings.of(
                os.environ,
                api_key=api_key,
                base_url=base_url,
                workspace=workspace,
                max_retries=max_retries,
                max_rate_limit_wait=max_rate_limit_wait,
                daily_limit=daily_limit,
                send_id_factory=send_id_factory,
                allow_http_host=allow_http_host,
                default_headers=default_headers,
                user_agent=user_agent,
            )
        except ConfigurationError as error:
            # The frames inside ``Settings.of`` hold the key and the environment: they are cut off.
            raise error.with_traceback(None) from None
        finally:
            del api_key  # some tools print the locals of a traceback
        store = os.environ.get("BRAZE_SENDS_STORE") or None if store is None else store
        self._owns_store = store is None or isinstance(store, str)
        if isinstance(store, str):
            store = open_store(store)
        elif store is not None and not isinstance(store, Store):
            raise ConfigurationError(f"store must be a Store or a URL, not {type(store).__name__}")
        self._store: Store = MemoryStore() if store is None else store
        limit = checked_timeout(timeout)
        self._transport = Transport(
            self._settings.base_url,
            self._settings.api_key,
            limit,
            session,
            default_headers=self._settings.default_headers,
            user_agent=self._settings.user_agent,
        )
        self._listeners = Listeners(checked_listeners(on_event))
        self._policy = Policy(limit, self._settings.max_retries, self._settings.daily_limit)
        self._max_wait = self._settings.max_rate_limit_wait
        self._headroom = 0
        self._parent: SendsClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._creates_of_loop: Creates | None = None
        self._closed = False

    def __repr__(self) -> str:
        if not hasattr(self, "_closed"):
            return "<SendsClient that was not made: an argument is unusable>"
        settings = self._settings
        return (
            f"<SendsClient base_url={settings.base_url!r} workspace={settings.workspace!r} "
            f"store={self._store!r}{' closed' if self._closed else ''}>"
        )

    async def __aenter__(self) -> SendsClient:
        self._creates()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def base_url(self) -> str:
        """The URL of the Braze instance."""
        return self._settings.base_url

    @property
    def instance(self) -> str | None:
        """The name of the Braze instance, such as ``"US-01"``; ``None`` for any other URL."""
        names = {url: name for name, url in INSTANCES.items()}
        return names.get(self._settings.base_url.lower())

    @property
    def proxy(self) -> str | None:
        """The proxy of ``HTTPS_PROXY`` that requests go through, without its credentials.

        ``None``: there is none, or the session is your own.
        """
        return self._transport.proxy

    @property
    def rate_limit(self) -> RateLimit | None:
        """The rate-limit headers that this client saw last, or ``None``."""
        if self._parent is not None:
            return self._parent.rate_limit
        return None if self._creates_of_loop is None else self._creates_of_loop.rate_limit

    async def create_send_id(
        self,
        campaign_id: str,
        send_id: str | None = None,
        *,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,  # noqa: ASYNC109
        max_rate_limit_wait: float | Unset | None = UNSET,
        headroom: int | Unset = UNSET,
    ) -> SendId:
        """Create a send ID.

        A pair that was created through this store in the last 30 days comes back as ``reused``:
        no request, no quota. Braze does not document how it answers a pair that exists at Braze,
        but is not in the store.

        If you cancel this call before its request has left, no trace stays. If you cancel the call
        later, the request runs to its end without you, and the store remembers the send ID.

        Args:
            campaign_id: the campaign's API identifier.
            send_id: your name for the send, ASCII, 1 to 64 characters; ``None`` for a new one.
            timeout: seconds for one attempt, as for the client. Left out: the client's own.
            max_rate_limit_wait: seconds, 0 or more, that this call may wait for quota; 0 never
                waits, ``None`` waits for ever. Left out: the client's own.
            headroom: slots to leave untouched for others, 0 or more. While nothing is known of the
                quota, one request may go in spite of the headroom: its answer tells the limit. Left
                out: 0, or what ``with_options`` set.

        Returns:
            the send ID, with the number of attempts and the rate limit that Braze told.

        Raises:
            ConfigurationError: an argument is unusable, or another running loop uses the client;
                nothing was sent. Or the client was closed while this call waited; then
                ``quota_spent`` tells whether a slot is gone.
            QuotaExhaustedError: no quota within the wait allowed.
            StoreError: the quota's store cannot be used; nothing was sent.
            APIConnectionError: no answer came, after all retries.
            APIStatusError: Braze said no, or went on failing.
            APIResponseValidationError: a 2xx without a usable send ID.

        https://www.braze.com/docs/api/endpoints/messaging/send_messages/post_create_send_ids/
        """
        terms = self._terms(timeout, max_rate_limit_wait, headroom)
        return await self._create(CreateSendId(campaign_id, send_id), *terms)

    async def create_send_ids(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        *,
        concurrency: int = 8,
        on_outcome: Callable[[Outcome], object] | None = None,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,  # noqa: ASYNC109
        max_rate_limit_wait: float | Unset | None = UNSET,
        headroom: int | Unset = UNSET,
    ) -> list[Outcome]:
        """Create many send IDs; no failure hides another's result.

        A pair that is asked for twice is sent once. When the quota has ended, the rest is told so
        at once, but for what exists already. A pause after a 429 of another limit is not the end
        of the quota: if slots are free, each request waits for it, even with
        ``max_rate_limit_wait=0``, up to one attempt's timeout. An error of ``requests`` ends the
        batch: it is raised when what is under way has ended, after one attempt's timeout at most.
        One of ``on_outcome`` ends it as cancelling does. Then no list is returned, and what had
        come until then was told to ``on_outcome`` alone.

        Cancelling calls off what has not been sent, and waits for what has, one attempt's timeout
        at most; cancelled once more, it waits no longer, and the client goes on by itself.

        Args:
            requests: any iterable or async iterable, of any length; taken as it is needed.
            concurrency: how many are in work at a time, 1 or more.
            on_outcome: called with each outcome as it comes. Nothing new begins before it returns.
            timeout: seconds for one attempt of each. Left out: the client's own.
            max_rate_limit_wait: seconds, 0 or more, that each may wait for quota; ``None`` for
                ever. Left out: the client's own.
            headroom: slots to leave untouched for others, 0 or more. Left out: 0, or what
                ``with_options`` set.

        Returns:
            an outcome for each request, in their order.

        Raises:
            ConfigurationError: an argument is unusable; nothing was sent.
            Exception: whatever ``requests``, ``on_outcome`` or ``send_id_factory`` raises.
        """
        if on_outcome is not None and (
            not callable(on_outcome)
            or inspect.iscoroutinefunction(on_outcome)
            or inspect.iscoroutinefunction(type(on_outcome).__call__)
        ):
            raise ConfigurationError(
                "on_outcome must be a plain function; to await something for each outcome, "
                "take iter_send_ids"
            )
        found: list[Outcome | None] = []
        batch = self._batch(requests, concurrency, timeout, max_rate_limit_wait, headroom)
        async with contextlib.aclosing(batch.outcomes(requests, concurrency)) as outcomes:
            async for outcome in outcomes:
                found.extend([None] * (batch.place + 1 - len(found)))
                found[batch.place] = outcome
                if on_outcome is not None:
                    on_outcome(outcome)
        return [outcome for outcome in found if outcome is not None]

    def iter_send_ids(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        *,
        concurrency: int = 8,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,
        max_rate_limit_wait: float | Unset | None = UNSET,
        headroom: int | Unset = UNSET,
    ) -> AsyncGenerator[Outcome, None]:
        """Create many send IDs, and give the outcomes as they come, in whatever order.

        As ``create_send_ids``, but outcomes are not kept, so that it may run for ever. The error of
        a named pair that failed is, and the pair is not sent again by this iterator: to try again,
        call ``create_send_id``, or start another. Nothing new begins while an outcome that has come
        has not been asked for. To leave the loop before its end, put it into
        ``contextlib.aclosing``.

        Args:
            requests: as for ``create_send_ids``.
            concurrency: how many are in work at a time, 1 or more. A create that only waits until
                its pair is no longer under way in another process does not count. It counts again
                when it is sent, so more than ``concurrency`` may be in work for a moment.
            timeout: seconds for one attempt of each. Left out: the client's own.
            max_rate_limit_wait: seconds, 0 or more, that each may wait for quota; ``None`` for
                ever. Left out: the client's own.
            headroom: slots to leave untouched for others, 0 or more. Left out: 0, or what
                ``with_options`` set.

        Raises:
            ConfigurationError: an argument is unusable; nothing was sent.
        """
        batch = self._batch(requests, concurrency, timeout, max_rate_limit_wait, headroom)
        return batch.outcomes(requests, concurrency)

    def with_options(
        self,
        *,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        max_rate_limit_wait: float | Unset | None = UNSET,
        headroom: int | Unset = UNSET,
        daily_limit: int | Unset | None = UNSET,
    ) -> SendsClient:
        """The same client with other options: ``urgent = braze.with_options(timeout=3)``.

        It costs nothing, and shares all that the client has: session, store, quota, and creates
        under way. Calls for the same pair share one create if all their options are the same. What
        a call is given goes before these options. Closing it, or leaving its ``async with``, ends
        nothing but itself: what it began goes on, and the client stays open. It ends with the
        client.

        Args:
            timeout: seconds for one attempt, or an ``aiohttp.ClientTimeout``, as for the client.
            max_retries: attempts after the first, 0 or more.
            max_rate_limit_wait: seconds that one call may wait for quota, 0 or more; ``None`` for
                ever.
            headroom: slots that its calls leave untouched for others, 0 or more.
            daily_limit: your own limit, 0 or more: a call creates nothing if this many were
                created through the store in the window. ``None``: what Braze allows.

        Raises:
            ConfigurationError: an argument is unusable.
        """
        wait, room, policy = self._terms(timeout, max_rate_limit_wait, headroom)
        if max_retries is not UNSET:
            policy = attrs.evolve(policy, max_retries=checked_count("max_retries", max_retries))
        if daily_limit is not UNSET:
            limit = None if daily_limit is None else checked_count("daily_limit", daily_limit)
            policy = attrs.evolve(policy, daily_limit=limit)
        view = copy(self)
        parent = self._parent or self
        vars(view).update(_parent=parent, _policy=policy, _max_wait=wait, _headroom=room)
        return view

    async def find_send_id(self, campaign_id: str, send_id: str) -> SendId | None:
        """The send ID of a pair that was created through the store; asks nothing of Braze.

        Returns:
            the send ID, marked as ``reused``, or ``None`` if it was not created, if that is longer
            ago than 30 days, or if nobody knows.

        Raises:
            ConfigurationError: an ID cannot be valid.
            StoreError: the store cannot be used.
        """
        request = protocol.check_request(CreateSendId(campaign_id, send_id))
        pair = protocol.pair_digest(request).hex()
        memory = await self._creates().limiter.recall(pair)
        return None if memory is None else reused(request, memory)

    async def send_analytics(
        self,
        campaign_id: str,
        send_id: str,
        *,
        length: int = 14,
        ending_at: datetime | None = None,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,  # noqa: ASYNC109
    ) -> SendAnalytics:
        """What came of a send, day by day: messages by channel, opens, clicks, conversions.

        Costs no slot, and reads and writes nothing in the store: Braze counts these requests in a
        limit of 250,000 an hour. The API key needs the permission ``sends.data_series``. Braze
        keeps the numbers for 14 days after the send. It does not document its answer for a send
        ID that was created and never used.

        A failure that may pass (no answer, 429, 5xx) is repeated ``max_retries`` times. Waits that
        Braze asks for take ``max_rate_limit_wait`` at most; an error that asks for more is raised
        at once. ``with_options`` sets both for some calls.

        Args:
            campaign_id: the campaign's API identifier.
            send_id: the send identifier.
            length: days before ``ending_at``, 1 to 100.
            ending_at: when the series ends, with a time zone; ``None`` for now.
            timeout: seconds for one attempt, as for the client. Left out: the client's own.

        Raises:
            ConfigurationError: an argument is unusable, another running loop uses the client, or
                the client was closed.
            APIConnectionError: no answer came, after all retries.
            APIStatusError: Braze said no, or went on failing. A 429 is a ``RateLimitError`` here,
                never a ``QuotaExhaustedError``: it tells nothing about creates.
            APIResponseValidationError: a 2xx whose body is not what Braze documents.

        https://www.braze.com/docs/api/endpoints/export/campaigns/get_send_analytics/
        """
        # Imported when used, since most programs only create.
        from braze_sends import analytics
        from braze_sends.reads import Question, ask

        request = protocol.check_request(CreateSendId(campaign_id, send_id))
        query = analytics.query_of(request, length, ending_at)
        wait, _, policy = self._terms(timeout, UNSET, UNSET)
        self._creates()  # a view that was closed asks nothing
        parse = partial(analytics.parse, request)
        return await ask(
            Question(request, analytics.PATH, analytics.PERMISSION, query, parse),
            self._open_transport,
            self._settings.api_key,
            policy.timeout,
            policy.max_retries,
            wait,
        )

    async def quota(self) -> QuotaStatus:
        """The quota as the store knows it; asks nothing of Braze.

        Raises:
            StoreError: the store cannot be used.
        """
        return await self._creates().limiter.status(self._policy.daily_limit)

    async def forget_quota(self) -> None:
        """Forget what Braze's headers said, and start over with one careful request.

        For when Braze has raised the limit of a day that is used up. What is in flight or in
        doubt is not forgotten.

        Raises:
            StoreError: the store cannot be used.
        """
        await self._creates().limiter.forget()

    async def ping(self) -> Ping:
        """Whether the instance can be reached: one ``HEAD /`` without the key; costs no quota.

        Goes the way that a create would go, with its session and timeout. Does not raise what
        keeps the answer from coming: that is in the result.
        """
        self._creates()
        return await self._transport.ping(self._policy.timeout)

    async def check(self) -> Check:
        """Whether the store can be read, and the quota, for a health endpoint; costs no quota.

        Asks nothing of Braze, reads the store and writes nothing, so that it may be called often.
        Does not raise what keeps the store from being read: that is in the result. Takes as long
        as the store takes to answer or to give up.

        Raises:
            ConfigurationError: the client was closed, or another running loop uses it.
        """
        try:
            return Check(await self.quota())
        except StoreError as error:
            return Check(None, str(error))

    async def close(self) -> None:
        """Call off what has not been sent, wait for what has, and close what was opened.

        Takes at most one attempt's timeout, and what the store takes. Idempotent. A client that
        ``with_options`` gave ends nothing but itself.
        """
        self._closed = True
        if self._parent is not None:
            return
        creates = self._creates_of_loop
        if creates is not None and self._loop is asyncio.get_running_loop():
            await creates.close()
            await creates.limiter.drain()
            await self._transport.close()
        if self._owns_store:
            await self._store.close()

    def _open_transport(self) -> Transport:
        """The transport, unless the client was closed."""
        (self._parent or self)._creates()  # noqa: SLF001  # its own class
        return self._transport

    def _batch(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        concurrency: int,
        timeout: float | aiohttp.ClientTimeout | Unset,
        max_rate_limit_wait: float | Unset | None,
        headroom: int | Unset,
    ) -> Batch:
        creates = self._creates()
        if not isinstance(requests, Iterable | AsyncIterable):
            raise ConfigurationError(
                f"requests must be an iterable of CreateSendId, not {type(requests).__name__}"
            )
        if checked_count("concurrency", concurrency) < 1:
            raise ConfigurationError("concurrency must be 1 or more")
        wait, room, policy = self._terms(timeout, max_rate_limit_wait, headroom)
        return Batch(self._create, creates, wait, room, policy)

    def _terms(
        self,
        timeout: float | aiohttp.ClientTimeout | Unset,
        max_rate_limit_wait: float | Unset | None,
        headroom: int | Unset,
    ) -> tuple[float | None, int, Policy]:
        """What holds for one call: what it was given, and for the rest what the client was."""
        policy, wait, room = self._policy, self._max_wait, self._headroom
        if timeout is not UNSET:
            policy = attrs.evolve(policy, timeout=checked_timeout(timeout))
        if max_rate_limit_wait is not UNSET:
            wait = checked_wait(max_rate_limit_wait)
        if headroom is not UNSET:
            room = checked_count("headroom", headroom)
        return wait, room, policy

    def _creates(self) -> Creates:
        """The creates of the running loop. After a loop has ended, the next loop gets new ones."""
        loop = _running_loop()
        if self._closed:
            raise ConfigurationError("this client is closed; make a new one")
        if self._parent is not None:
            return self._parent._creates()  # noqa: SLF001  # its own class
        if self._creates_of_loop is None or self._loop is not loop:
            if self._loop is not None:
                if self._loop.is_running():
                    raise ConfigurationError(
                        "this client is in use by another running event loop; make one for each"
                    )
                if self._transport.borrows_session:
                    raise ConfigurationError(
                        "the session passed to this client belongs to an event loop that has "
                        "ended; make the session and the client in the loop that uses them"
                    )
            self._transport.detach()
            limiter = Limiter.of(self._store, self._settings.workspace)
            self._creates_of_loop = Creates(
                self._settings, self._transport, limiter, self.rate_limit, self._listeners
            )
            self._loop = loop
        return self._creates_of_loop

    async def _create(
        self, request: CreateSendId, wait: float | None, headroom: int, policy: Policy
    ) -> SendId:
        creates = self._creates()
        return await creates.create(self._named(request), wait, headroom, policy)

    def _named(self, request: CreateSendId) -> CreateSendId:
        """The request, checked. ``send_id_factory`` names the send where the caller does not."""
        factory, campaign_id = self._settings.send_id_factory, request.campaign_id
        protocol.check_request(request)
        if request.send_id is None and factory is not None:
            request = protocol.check_request(CreateSendId(campaign_id, factory()))
            if request.send_id is None:
                raise ConfigurationError(
                    "send_id_factory returned None; it must return the send ID as a string",
                    campaign_id=campaign_id,
                )
        return request
