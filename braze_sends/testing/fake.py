"""Braze on a loopback socket: a real HTTP server, for tests and for trying things out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from email.utils import formatdate
from http import HTTPStatus
from types import TracebackType
from typing import Any, Literal, Self

import attrs
from aiohttp import web

from braze_sends.quota.limiter import Limiter
from braze_sends.stores.memory import MemoryStore
from braze_sends.stores.store import steady
from braze_sends.testing.model import (
    ANALYTICS_PATH,
    MAX_BODY,
    RATE_LIMIT_HEADERS,
    BrazeModel,
    Reply,
)

# The path to Braze is CDN, proxy, app; these come from something before the app.
_EDGE = frozenset({502, 503, 504})

_SPOILT = {"blank": ("", "", ""), "garbled": ("abc", "-5", "")}

#: Seconds into a window to which ``end_window`` moves the clock. A client may leave out the reset
#: second, since Braze can refuse in it.
_INTO_WINDOW = 1.5

#: Seconds between two looks at an event that another thread sets.
_LOOK = 0.005

#: The most requests, and bytes of a body, that a failed assertion lists.
_LISTED, _SHOWN = 20, 120


@attrs.frozen(kw_only=True)
class Fault:
    """What goes wrong with one request. In this order: delay, effect, stall, answer.

    Attributes:
        status: answer with this status *instead* of handling the request: nothing is created or
            counted, unless ``commit``. 502, 503 and 504 look like the edge in front of Braze: an
            HTML body, no rate-limit headers, no request ID.
        body: replaces the body of the answer. One that begins with ``<`` is sent as HTML and
            makes the answer look like the edge's, whatever its status.
        headers: what becomes of the rate-limit headers: present but ``"blank"``, ``"missing"``,
            or ``"garbled"``. A mapping replaces and adds headers of any name; its ``None`` takes
            one away.
        drop: cut the connection and give no answer: ``"before"`` the request was handled, or
            ``"after"``, when the pair has been created and counted.
        delay: seconds before the request is handled, or an ``asyncio.Event`` or
            ``threading.Event`` to wait for. The request is handled even if the client has gone by
            then, as Braze would.
        stall: seconds before the answer, when the request has been handled, or an event to wait
            for.
        commit: with ``status``: the pair is created and counted all the same.
    """

    status: int | None = None
    body: bytes | str | None = None
    headers: Literal["blank", "missing", "garbled"] | Mapping[str, str | None] | None = None
    drop: Literal["before", "after"] | None = None
    delay: float | asyncio.Event | threading.Event = 0.0
    stall: float | asyncio.Event | threading.Event = 0.0
    commit: bool = False


@attrs.define(eq=False, on_setattr=attrs.setters.frozen)
class Request:
    """A request that has arrived. Frozen, but for the status that is still to come.

    Attributes:
        method: the HTTP method.
        path: the path without a query.
        headers: the headers, without ``Authorization``.
        authorized: whether it carried the good key.
        body: the body as it was sent; of one over 1 MiB the first 1 MiB and a byte.
        at: when it arrived, seconds since the epoch by Braze's clock.
        status: the status of its answer; ``None`` if there is none yet, or if it was dropped.
    """

    method: str
    path: str
    headers: Mapping[str, str] = attrs.field(repr=False)
    authorized: bool
    body: bytes
    at: float
    status: int | None = attrs.field(default=None, on_setattr=attrs.setters.NO_OP)


class FakeBraze:
    """An emulator of Braze's ``POST /sends/id/create`` and ``GET /sends/data_series`` on a real
    socket, for ``with`` or ``async with``.

    ``with`` runs it in a thread of its own, so that it also answers while the caller's thread
    waits. ``async with`` runs it on the running event loop. It can be constructed outside of an
    event loop, and is entered once.

    Any HTTP client can talk to it. Its windows are those of the wall clock, so a day's quota ends
    at 00:00 UTC; ``window`` or :meth:`end_window` makes that sooner.

    Every method and attribute can be used from any thread. ``fault_for`` and ``latency`` are called
    in the thread of the emulator.

    Args:
        host: the address to listen on.
        port: the port to listen on, 0 for a free one.
        latency: see below. All other arguments are those of the model, and explained there.

    Attributes:
        base_url: where it listens, without a trailing slash; empty before it does. If it listens on
            all addresses, this is the one of loopback.
        store: a quota store for the clients under test. Its clock is the one that
            :meth:`end_window` moves, so a client with this store notices that the window ended.
        model: the endpoint behind the socket, with all its state and its readings of what Braze
            leaves open (see :class:`braze_sends.testing.model.BrazeModel`).
        requests: every request in the order of arrival.
        fault_for: a rule that is asked for the fault of a request when :meth:`script` has nothing
            left for it, or ``None``.
        latency: seconds between handling a request and answering it, or a function that gives
            them, for jitter. Assign it at any time.
        clock_offset: seconds by which Braze's clock is ahead of this machine's. Assign it at any
            time.
        peak_in_flight: the most requests that have been under way at once.
    """

    def __init__(
        self,
        *,
        api_key: str = "test-key",
        daily_limit: int = 100,
        window: float = 86400.0,
        counts: Literal["pairs", "requests"] = "pairs",
        duplicate: Literal[201, 400] = 201,
        counts_errors: bool = False,
        headers_on_429: bool = True,
        shows: Literal["own", "general"] = "own",
        campaigns: frozenset[str] | None = None,
        latency: float | Callable[[], float] = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.model = BrazeModel(
            api_key=api_key,
            daily_limit=daily_limit,
            window=window,
            counts=counts,
            duplicate=duplicate,
            counts_errors=counts_errors,
            headers_on_429=headers_on_429,
            shows=shows,
            campaigns=campaigns,
        )
        self.base_url = ""
        self.requests: list[Request] = []
        self.fault_for: Callable[[Request], Fault | None] | None = None
        self.latency = latency
        self.clock_offset = 0.0
        self.peak_in_flight = 0
        self.store = MemoryStore(clock=self._steady, wall=lambda: self.now)
        self._lock = threading.Lock()  # held while the model is used
        self._thread: threading.Thread | None = None
        self._script: deque[Fault | None] = deque()
        self._handlers: set[asyncio.Task[Any]] = set()
        self._host = host
        self._port = port

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        app.on_shutdown.append(self._cancel)
        # No access log: it is of no use in a test, and what is not written cannot leak.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        port = self._runner.addresses[0][1]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104  # compared
        self.base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    def __enter__(self) -> Self:
        started: Future[Callable[[], object]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="FakeBraze", daemon=True
        )
        self._thread.start()
        self._stop = started.result()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._thread is not None  # noqa: S101  # ``__enter__`` came before
        self._stop()
        self._thread.join()

    async def _serve(self, started: Future[Callable[[], object]]) -> None:
        """Run in the thread until what ``started`` gives is called."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self.__aenter__()
        except Exception as error:
            started.set_exception(error)
            return
        started.set_result(lambda: loop.call_soon_threadsafe(stopped.set))
        await stopped.wait()
        await self.__aexit__(None, None, None)

    @property
    def created(self) -> list[tuple[str, str]]:
        """The pairs ``(campaign_id, send_id)`` that exist by now, in the order of creation."""
        return self.model.created.copy()

    @property
    def refused(self) -> int:
        """Requests answered 429 because the window was used up; scripted ones do not count."""
        return self.model.refused

    @property
    def remaining(self) -> int:
        """Slots that are left in the current window."""
        with self._lock:
            return self.model.remaining(self._now())

    @property
    def daily_limit(self) -> int:
        """Slots of a window. Assign it at any time; it takes effect at once."""
        return self.model.daily_limit

    @daily_limit.setter
    def daily_limit(self, limit: int) -> None:
        self.model.daily_limit = limit

    @property
    def now(self) -> float:
        """The time by Braze's clock, seconds since the epoch."""
        return self._now() + self.model.skip

    @property
    def in_flight(self) -> int:
        """Requests that are under way."""
        return len(self._handlers)

    def spend(self, n: int) -> None:
        """Let other users of the workspace take ``n`` slots, or what is left if that is less."""
        with self._lock:
            self.model.spend(n, self._now())

    def end_window(self) -> None:
        """End the current window: the clocks of Braze and of ``store`` jump into the next one.

        They jump to 1.5 seconds after its beginning, or to the middle of a window that is shorter
        than 3 seconds. Creates that wait for quota in ``store`` go on. A client with another store
        goes by its own clock: once it has seen the quota used up, it asks nothing until the time
        of the reset has come.
        """
        with self._lock:
            self.model.end_window(self._now())
            self.model.skip += min(_INTO_WINDOW, self.model.window / 2)
        Limiter.clock_moved(self.store)

    def script(self, *faults: Fault | None) -> None:
        """Queue faults. Each request to come uses up one, ``None`` being none for that one."""
        self._script.extend(faults)

    def assert_created(self, campaign_id: str, *send_ids: str) -> None:
        """Assert that a campaign has these send IDs, in any order, and no others.

        Args:
            campaign_id: the campaign. Those of other campaigns do not matter.
            send_ids: its send IDs; none to assert that it has none.

        Raises:
            AssertionError: it has others. The message lists what is missing, what was created,
                how many requests were refused, and the last 20 requests.
        """
        __tracebackhide__ = True  # pytest shows the line of the test
        created = self.created
        found = [send_id for campaign, send_id in created if campaign == campaign_id]
        if set(found) == set(send_ids):
            return
        requests = self.requests.copy()
        asked = [_told(request) for request in requests[-_LISTED:]]
        if len(requests) > _LISTED:
            asked.insert(0, f"({len(requests) - _LISTED} earlier ones)")
        lines = [
            f"the send IDs of campaign {campaign_id!r} are not the expected ones",
            f"missing: {_listed(send_id for send_id in send_ids if send_id not in found)}",
            f"not expected: {_listed(send_id for send_id in found if send_id not in send_ids)}",
            f"created: {_listed(created)}",
            f"refused, because the quota was used up: {self.refused}",
            f"asked: {len(requests)}",
            *(f"  {request}" for request in asked),
        ]
        raise AssertionError("\n  ".join(lines))

    def _now(self) -> float:
        return time.time() + self.clock_offset

    def _steady(self) -> float:
        return steady() + self.model.skip

    async def _cancel(self, _app: web.Application) -> None:
        # Else a request that stalls would hold up the end of ``async with``.
        for task in self._handlers:
            task.cancel()

    async def _handle(self, incoming: web.Request) -> web.Response:
        # aiohttp runs one task for each connection, and its requests one after the other.
        task = incoming.task
        self._handlers.add(task)
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            return await self._respond(incoming)
        finally:
            self._handlers.discard(task)

    async def _respond(self, incoming: web.Request) -> web.Response:
        # Not ``read()``, which answers 413 in aiohttp's words, and unseen by the model.
        try:
            body = await incoming.content.readexactly(MAX_BODY + 1)
        except asyncio.IncompleteReadError as whole:
            body = whole.partial
        headers = dict(incoming.headers)
        shown = {name: text for name, text in headers.items() if name.lower() != "authorization"}
        good = incoming.headers.get("Authorization") == f"Bearer {self.model.api_key}"
        request = Request(incoming.method, incoming.path, shown, good, body, self.now)
        self.requests.append(request)
        fault = self._next_fault(request) or Fault()

        await self._passed(fault.delay)
        if fault.drop == "before":
            return _cut(incoming)
        with self._lock:
            now = self._now()
            if fault.status is None or fault.commit:
                target = request.path
                if query := incoming.rel_url.raw_query_string:
                    target += f"?{query}"
                reply = self.model.handle(request.method, target, headers, body, now)
            if fault.status is not None:
                general = request.path == ANALYTICS_PATH
                reply = self.model.answer(fault.status, now, general=general)
        latency = self.latency() if callable(self.latency) else self.latency
        await asyncio.sleep(latency)
        await self._passed(fault.stall)
        if fault.drop == "after":
            return _cut(incoming)
        # Of the moment of answering, as a proxy in front of the app writes it.
        reply.headers["Date"] = formatdate(self.now, usegmt=True)
        reply = _spoil(reply, fault)
        request.status = reply.status
        return web.Response(status=reply.status, headers=reply.headers, body=reply.body)

    def _next_fault(self, request: Request) -> Fault | None:
        if self._script:
            return self._script.popleft()
        return self.fault_for(request) if self.fault_for is not None else None

    async def _passed(self, pause: float | asyncio.Event | threading.Event) -> None:
        if isinstance(pause, float | int):
            await asyncio.sleep(pause)
        elif isinstance(pause, asyncio.Event) and self._thread is None:
            await pause.wait()
        else:
            # Whoever sets it is in another thread, and does not wake this event loop.
            while not pause.is_set():  # noqa: ASYNC110
                await asyncio.sleep(_LOOK)


def _listed(things: Iterable[object]) -> str:
    return ", ".join(map(repr, things)) or "nothing"


def _told(request: Request) -> str:
    """One line on a request."""
    body = request.body[:_SHOWN].decode(errors="replace")
    more = "…" if len(request.body) > _SHOWN else ""
    outcome = "no answer" if request.status is None else f"status {request.status}"
    key = "" if request.authorized else ", not the key of this emulator"
    return f"{request.method} {request.path} {body!r}{more}: {outcome}{key}"


def _cut(incoming: web.Request) -> web.Response:
    if incoming.transport is not None:
        incoming.transport.abort()
    # aiohttp wants something to send, finds the connection gone, and lets it be.
    return web.Response()


def _spoil(reply: Reply, fault: Fault) -> Reply:
    body, headers = reply.body, reply.headers
    if fault.status in _EDGE:
        title = f"{reply.status} {HTTPStatus(reply.status).phrase}"
        body = f"<html><body><h1>{title}</h1></body></html>".encode()
    if fault.body is not None:
        body = fault.body.encode() if isinstance(fault.body, str) else fault.body
    html = body.startswith(b"<")
    if html or fault.status in _EDGE:
        content_type = "text/html" if html else "application/json"
        headers = {"Content-Type": content_type, "Date": headers["Date"]}

    if isinstance(fault.headers, Mapping):
        given = {name.lower() for name in fault.headers}
        headers = {name: text for name, text in headers.items() if name.lower() not in given}
        headers |= {name: text for name, text in fault.headers.items() if text is not None}
    elif fault.headers is not None:
        headers = {name: text for name, text in headers.items() if name not in RATE_LIMIT_HEADERS}
        # No row for "missing": nothing takes their place.
        headers |= dict(zip(RATE_LIMIT_HEADERS, _SPOILT.get(fault.headers, ()), strict=False))
    return Reply(reply.status, headers, body)
