"""``SendsClient`` without ``await``: for Django views, Flask, Celery, scripts and notebooks.

::

    from braze_sends.sync import SendsClient

    with SendsClient() as braze:
        send = braze.create_send_id("campaign-id")

It has no rule of its own. An async client does the work, in an event loop that runs in one
background thread. Any number of threads may use it at once.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import contextlib
import copy
import os
import threading
import weakref
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import Future
from datetime import datetime
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
import attrs

from braze_sends import client as asynchronous
from braze_sends.batch import Outcome
from braze_sends.client import new_send_id
from braze_sends.errors import ConfigurationError
from braze_sends.listeners import Listener
from braze_sends.models import Check, CreateSendId, Ping, QuotaStatus, RateLimit, SendId
from braze_sends.settings import UNSET, Unset
from braze_sends.stores import sqlite  # noqa: F401  # before our hooks of forks, see below
from braze_sends.stores.store import Store

if TYPE_CHECKING:
    from braze_sends.analytics import SendAnalytics

__all__ = ["SendsClient"]

T = TypeVar("T")

#: Seconds that a fork waits for a loop to come to rest; a loop that does not is stuck in foreign
#: code, such as a ``send_id_factory``.
LONGEST_REST = 5.0

_END: Final = object()


class SendsClient:
    """Creates Braze send IDs, and keeps the quota that they cost, from code without asyncio.

    Any number of threads may share a client. Nothing is opened or started before its first call.
    In ``async def`` code use ``braze_sends.SendsClient``: a call here blocks the thread.

    After a fork the child may go on with the client: its first call there starts a thread of its
    own. The child has a copy of a memory store, and from then on counts for itself; processes
    share a quota through another store.

    A client that nobody closed is closed when the interpreter exits: what has not been sent is
    called off, also in other threads, and what has is waited for, one attempt's timeout at most.

    Args:
        session: refused, because an ``aiohttp.ClientSession`` belongs to the event loop of its
            maker.
        send_id_factory: as for ``braze_sends.SendsClient``, and called in the client's thread.
        on_event: as for ``braze_sends.SendsClient``, and called in the client's thread.

    All other arguments are those of ``braze_sends.SendsClient``.

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
            if session is not None:
                raise ConfigurationError(
                    "the synchronous client takes no session, because a session belongs to the "
                    "event loop of its maker; leave it out, or use braze_sends.SendsClient"
                )
            self._client = asynchronous.SendsClient(
                api_key,
                base_url=base_url,
                workspace=workspace,
                store=store,
                timeout=timeout,
                max_retries=max_retries,
                max_rate_limit_wait=max_rate_limit_wait,
                daily_limit=daily_limit,
                send_id_factory=send_id_factory,
                on_event=on_event,
                allow_http_host=allow_http_host,
                default_headers=default_headers,
                user_agent=user_agent,
            )
        finally:
            del api_key  # some tools print the locals of a traceback
        self._parent: SendsClient | None = None
        self._options: dict[str, Any] = {}
        self._closed = False
        self._thread: _LoopThread | None = None

    def __repr__(self) -> str:
        if not hasattr(self, "_thread"):
            return "<sync SendsClient that was not made: an argument is unusable>"
        return repr(self._client).replace("<", "<sync ", 1)

    def __reduce__(self) -> Any:
        raise TypeError("a client is not to be pickled or copied; make one in each process")

    def __enter__(self) -> SendsClient:
        self._call(lambda client: client.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """The URL of the Braze instance."""
        return self._client.base_url

    @property
    def instance(self) -> str | None:
        """The name of the Braze instance, such as ``"US-01"``; ``None`` for any other URL."""
        return self._client.instance

    @property
    def proxy(self) -> str | None:
        """The proxy of ``HTTPS_PROXY``; see ``braze_sends.SendsClient.proxy``."""
        return self._client.proxy

    @property
    def rate_limit(self) -> RateLimit | None:
        """The rate-limit headers that this client saw last, or ``None``."""
        return self._client.rate_limit

    def create_send_id(
        self,
        campaign_id: str,
        send_id: str | None = None,
        *,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,
        max_rate_limit_wait: float | Unset | None = UNSET,
        headroom: int | Unset = UNSET,
    ) -> SendId:
        """Create a send ID; see ``braze_sends.SendsClient.create_send_id``.

        Ctrl-C raises ``KeyboardInterrupt`` at once, and does what cancelling does: a request that
        has not left never leaves, and one that has left runs to its end.
        """
        return self._call(
            lambda client: client.create_send_id(
                campaign_id,
                send_id,
                timeout=timeout,
                max_rate_limit_wait=max_rate_limit_wait,
                headroom=headroom,
            )
        )

    def create_send_ids(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        *,
        concurrency: int = 8,
        on_outcome: Callable[[Outcome], object] | None = None,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,
        max_rate_limit_wait: float | Unset | None = UNSET,
        headroom: int | Unset = UNSET,
    ) -> list[Outcome]:
        """Create many send IDs; see ``braze_sends.SendsClient.create_send_ids``.

        ``requests`` is consumed and ``on_outcome`` called in the caller's thread; an async iterable
        is consumed in the client's.
        """
        options = concurrency, timeout, max_rate_limit_wait, headroom

        async def check(client: asynchronous.SendsClient) -> None:
            await client.create_send_ids((), on_outcome=on_outcome)

        self._call(check)
        found: list[Outcome | None] = []
        with contextlib.closing(self._checked_outcomes(requests, *options)) as outcomes:
            for place, outcome in outcomes:
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
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,
        max_rate_limit_wait: float | Unset | None = UNSET,
        headroom: int | Unset = UNSET,
    ) -> Generator[Outcome, None, None]:
        """Create many send IDs, and give the outcomes as they come, in whatever order.

        See ``braze_sends.SendsClient.iter_send_ids``. ``requests`` is consumed in the caller's
        thread while it waits for the next outcome; an async iterable is consumed in the client's
        thread. To leave the loop before its end, put the generator into ``contextlib.closing``:
        closing it calls off what has not been sent, and waits for what has.
        """
        outcomes = self._checked_outcomes(
            requests, concurrency, timeout, max_rate_limit_wait, headroom
        )
        return _without_places(outcomes)

    def with_options(
        self,
        *,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,
        max_retries: int | Unset = UNSET,
        max_rate_limit_wait: float | Unset | None = UNSET,
        headroom: int | Unset = UNSET,
        daily_limit: int | Unset | None = UNSET,
    ) -> SendsClient:
        """The same client with other options; see ``braze_sends.SendsClient.with_options``."""
        given = {
            "timeout": timeout,
            "max_retries": max_retries,
            "max_rate_limit_wait": max_rate_limit_wait,
            "headroom": headroom,
            "daily_limit": daily_limit,
        }
        options = self._options | {
            name: value for name, value in given.items() if value is not UNSET
        }
        self._client.with_options(**options)  # checks them
        view = object.__new__(SendsClient)
        vars(view).update(vars(self), _parent=self._parent or self, _options=options)
        return view

    def find_send_id(self, campaign_id: str, send_id: str) -> SendId | None:
        """The send ID of a pair that was created through the store; asks nothing of Braze.

        See ``braze_sends.SendsClient.find_send_id``.
        """
        return self._call(lambda client: client.find_send_id(campaign_id, send_id))

    def send_analytics(
        self,
        campaign_id: str,
        send_id: str,
        *,
        length: int = 14,
        ending_at: datetime | None = None,
        timeout: float | aiohttp.ClientTimeout | Unset = UNSET,
    ) -> SendAnalytics:
        """What came of a send, day by day; see ``braze_sends.SendsClient.send_analytics``."""
        return self._call(
            lambda client: client.send_analytics(
                campaign_id, send_id, length=length, ending_at=ending_at, timeout=timeout
            )
        )

    def quota(self) -> QuotaStatus:
        """The quota as the store knows it; see ``braze_sends.SendsClient.quota``."""
        return self._call(lambda client: client.quota())

    def forget_quota(self) -> None:
        """Forget what Braze's headers said; see ``braze_sends.SendsClient.forget_quota``."""
        self._call(lambda client: client.forget_quota())

    def ping(self) -> Ping:
        """Whether the instance can be reached; see ``braze_sends.SendsClient.ping``."""
        return self._call(lambda client: client.ping())

    def check(self) -> Check:
        """Whether the store can be read; see ``braze_sends.SendsClient.check``."""
        return self._call(lambda client: client.check())

    def close(self) -> None:
        """Call off what has not been sent, wait for what has, and end the client's thread.

        Takes at most one attempt's timeout, and what the store takes. Idempotent. Calls that wait
        in other threads raise ``ConfigurationError``, whose ``quota_spent`` tells. A client that
        ``with_options`` gave ends nothing but itself.
        """
        if self._parent is not None:
            self._closed = True
            return
        with _lock:
            thread = self._running()
            thread.end()
        if thread.is_here:
            thread.ended.result()

    def _running(self) -> _LoopThread:
        """The client's thread; it is started by the first call, and anew in a fork.

        Raises:
            ConfigurationError: the caller is in that thread; or ``with_options`` gave the client,
                and it is closed.
        """
        if self._closed:
            raise ConfigurationError("this client is closed; make a new one")
        if self._parent is not None:
            return self._parent._running()  # noqa: SLF001  # its own class
        with _lock:
            thread = self._thread
            if thread is None or not (thread.is_here or thread.ending):
                if thread is not None:
                    self._client = _for_another_loop(self._client)
                thread = self._thread = _LoopThread(self._client)
                # Without this, a client that is dropped would leave its thread behind.
                weakref.finalize(self, thread.end).atexit = False
            thread.refuse_itself()
            return thread

    def _call(self, call: Callable[[asynchronous.SendsClient], Coroutine[Any, Any, T]]) -> T:
        future = self._running().start(lambda client: call(self._view(client)))
        try:
            return _result(future)
        except BaseException:
            future.cancel()
            raise

    def _view(self, client: asynchronous.SendsClient) -> asynchronous.SendsClient:
        return client.with_options(**self._options) if self._options else client

    def _checked_outcomes(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        concurrency: int,
        timeout: float | aiohttp.ClientTimeout | Unset,
        max_rate_limit_wait: float | Unset | None,
        headroom: int | Unset,
    ) -> Generator[tuple[int, Outcome], None, None]:
        async def check(client: asynchronous.SendsClient) -> None:
            client.iter_send_ids(
                requests,
                concurrency=concurrency,
                timeout=timeout,
                max_rate_limit_wait=max_rate_limit_wait,
                headroom=headroom,
            )

        self._call(check)
        return self._outcomes(requests, concurrency, timeout, max_rate_limit_wait, headroom)

    def _outcomes(
        self,
        requests: Iterable[CreateSendId] | AsyncIterable[CreateSendId],
        concurrency: int,
        timeout: float | aiohttp.ClientTimeout | Unset,
        max_rate_limit_wait: float | Unset | None,
        headroom: int | Unset,
    ) -> Generator[tuple[int, Outcome], None, None]:
        """The place and the outcome of each request.

        The batch runs in the client's thread. It tells this one over a queue when it needs the next
        request, when an outcome has come, and when it has ended.
        """
        told: SimpleQueue[_Wanted | _Came | Future[None]] = SimpleQueue()
        plain = not isinstance(requests, AsyncIterable)
        items = iter(requests) if isinstance(requests, Iterable) and plain else iter(())
        source = _Pulled(told) if plain else requests
        tasks: list[asyncio.Task[Any]] = []
        thread = self._running()

        async def run(client: asynchronous.SendsClient) -> None:
            tasks.append(thread.keep_this_task())
            batch = self._view(client)._batch(  # noqa: SLF001  # its ``place``
                source, concurrency, timeout, max_rate_limit_wait, headroom
            )
            async with contextlib.aclosing(batch.outcomes(source, concurrency)) as outcomes:
                async for outcome in outcomes:
                    came = _Came(batch.place, outcome)
                    told.put(came)
                    await asyncio.wrap_future(came.taken)

        async def gone(client: asynchronous.SendsClient) -> None:
            await asyncio.gather(*tasks, return_exceptions=True)

        future = thread.start(run)
        try:
            future.add_done_callback(told.put)
            while not isinstance(one := told.get(), Future):
                if isinstance(one, _Wanted):
                    one.take(items)
                    continue
                yield one.place, one.outcome
                if not thread.is_here:
                    raise ConfigurationError(
                        "this iterator belongs to the process that forked; call iter_send_ids "
                        "again in this one"
                    )
                _let(one.taken, lambda: None)
            _result(future)
        finally:
            if thread.is_here and not future.done():
                future.cancel()
                # Refused in the client's own thread, where the garbage collector may come by.
                with contextlib.suppress(ConfigurationError):
                    self._call(gone)


@attrs.frozen(eq=False)
class _Wanted:
    """The batch needs a request."""

    item: Future[object] = attrs.field(factory=Future)

    def take(self, items: Iterator[object]) -> None:
        """Take the next one, in the caller's thread."""
        _let(self.item, lambda: next(items, _END))


@attrs.frozen(eq=False)
class _Came:
    """An outcome has come; until it is taken, nothing begins."""

    place: int
    outcome: Outcome
    taken: Future[None] = attrs.field(factory=Future)


@attrs.frozen(eq=False)
class _Pulled:
    """The caller's requests as the batch sees them."""

    told: SimpleQueue[Any]

    def __aiter__(self) -> AsyncIterator[CreateSendId]:
        return self

    async def __anext__(self) -> CreateSendId:
        wanted = _Wanted()
        self.told.put(wanted)
        item = await asyncio.wrap_future(wanted.item)
        if item is _END:
            raise StopAsyncIteration
        return item  # type: ignore[return-value]  # the batch checks it


class _LoopThread:
    """The thread in which a client's event loop runs, until the client is closed in it.

    Attributes:
        ending: whether it takes no more calls.
        ended: done when the client is closed and the loop too.
    """

    def __init__(self, client: asynchronous.SendsClient) -> None:
        self._client = client
        self._pid = os.getpid()
        self.ending = False
        self.ended: Future[None] = Future()
        self._end = asyncio.Event()
        self._kept: set[asyncio.Task[Any]] = set()
        # Not the loop of the caller's thread, which in a notebook has one of its own.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        # A daemon, because Python waits for all others before it exits.
        self._thread = threading.Thread(target=self._run, name="braze_sends", daemon=True)
        _threads.add(self)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether it was started by this process; a fork has no threads of its parent."""
        return self._pid == os.getpid()

    def refuse_itself(self) -> None:
        """Raise in this thread, which would wait for itself for ever.

        Raises:
            ConfigurationError: the caller is in this thread.
        """
        if threading.current_thread() is self._thread:
            raise ConfigurationError(
                "send_id_factory and async iterables run in the client's own thread and cannot "
                "call it; use braze_sends.SendsClient there"
            )

    def start(
        self, call: Callable[[asynchronous.SendsClient], Coroutine[Any, Any, T]]
    ) -> Future[T]:
        """Begin a call.

        Raises:
            ConfigurationError: the client is closed.
        """
        with _lock:
            if self.ending:
                raise ConfigurationError("this client is closed; make a new one")
            return asyncio.run_coroutine_threadsafe(call(self._client), self._loop)

    def keep_this_task(self) -> asyncio.Task[Any]:
        """The running task. A fork that drops the rest of a batch does not destroy its task."""
        task = asyncio.current_task(self._loop)
        assert task is not None  # noqa: S101  # it is called by a task
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)
        return task

    def end(self) -> None:
        """Begin to close the client. Takes no lock: the garbage collector may call it anywhere."""
        self.ending = True
        if self.is_here:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._end.set)

    def rest(self, resumed: threading.Event) -> None:
        """Bring the loop to rest between two steps, until ``resumed``."""
        resting: Future[None] = Future()

        def rest() -> None:
            resting.set_result(None)
            resumed.wait()

        with contextlib.suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(rest)
            concurrent.futures.wait(
                [resting, self.ended], LONGEST_REST, concurrent.futures.FIRST_COMPLETED
            )

    def _run(self) -> None:
        try:
            with self._runner:
                self._runner.run(self._main())
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)
        finally:
            _threads.discard(self)

    async def _main(self) -> None:
        await self._end.wait()
        await self._client.close()


def _without_places(
    placed: Generator[tuple[int, Outcome], None, None],
) -> Generator[Outcome, None, None]:
    with contextlib.closing(placed):
        for _, outcome in placed:
            yield outcome


def _let(future: Future[Any], make: Callable[[], object]) -> None:
    """Give the result, unless nobody waits for it any more."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(make())
    except Exception as error:
        future.set_exception(error)


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise ConfigurationError(
            "the client was closed while the call waited", quota_spent=None
        ) from None


def _for_another_loop(client: asynchronous.SendsClient) -> asynchronous.SendsClient:
    """The client for a fork. It touches nothing that is open, since the parent goes on with it."""
    fresh = copy.copy(client)
    fresh._transport = copy.copy(client._transport)  # noqa: SLF001
    fresh._loop = None  # noqa: SLF001
    return fresh


# --- forks and the interpreter's exit -------------------------------------------------------------

# Held while a thread starts and while a call begins, and over a fork. A finalizer may come by in
# the midst of that, so the thread that holds it may take it again.
_lock = threading.RLock()
_threads: set[_LoopThread] = set()
_resumed: list[threading.Event] = []


def _before_fork() -> None:
    # At rest a loop holds no lock, and no record is half written, so the fork can use its copy.
    _lock.acquire()
    for thread in list(_threads):
        if thread.is_here and threading.current_thread() is not thread._thread:  # noqa: SLF001
            _resumed.append(resumed := threading.Event())
            thread.rest(resumed)


def _after_in_parent() -> None:
    while _resumed:
        _resumed.pop().set()
    _lock.release()


def _after_in_child() -> None:
    _resumed.clear()  # their locks may be held by threads that are not here
    _lock.release()


def _at_exit() -> None:
    here = [thread for thread in list(_threads) if thread.is_here]
    with _lock:
        for thread in here:
            thread.end()
    concurrent.futures.wait([thread.ended for thread in here])


# These hooks run in reverse order before a fork. The loops have to rest before those of SQLiteStore
# hold its files, else a loop opens another file meanwhile. Windows has no forks.
getattr(os, "register_at_fork", lambda **hooks: None)(
    before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
)
# ``atexit`` comes too late: no thread pool takes anything then, and SQLiteStore and DNS need one.
# These hooks run in reverse order, so the one of thread pools, set by its import, comes after ours.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
