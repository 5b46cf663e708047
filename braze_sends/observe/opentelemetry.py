"""OpenTelemetry spans and metrics. Needs the extra ``opentelemetry``.

::

    telemetry = OpenTelemetryListener()
    braze = SendsClient(on_event=telemetry)

Names follow the semantic conventions for HTTP clients,
https://opentelemetry.io/docs/specs/semconv/http/.
"""

from __future__ import annotations

from contextvars import Token
from typing import Any
from urllib.parse import urlsplit

import attrs
from opentelemetry import context, metrics, trace
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY as SUPPRESS_HTTP
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from braze_sends.events import (
    AttemptEnded,
    AttemptStarted,
    CreateCancelled,
    CreateEvent,
    CreateFailed,
    CreateJoined,
    CreateLeft,
    CreateReused,
    CreateStarted,
    CreateSucceeded,
    Event,
    QuotaLearnt,
    QuotaRefused,
    QuotaWaitEnded,
    RetryScheduled,
    StoreFailed,
    StoreUsed,
)

_NAME = "braze_sends"


@attrs.frozen
class _Attempt:
    span: Span
    attributes: dict[str, Any]
    token: Token[context.Context]


class OpenTelemetryListener:
    """One span for each create, with a child for each attempt; and metrics.

    A call that shares a create under way has a span of its own, with a link to that of the create.
    While a request is out, ``opentelemetry-instrumentation-aiohttp-client`` makes no second span.

    Args:
        tracer_provider: by default the global one.
        meter_provider: by default the global one.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
        self._creates: dict[str, Span] = {}
        self._calls: dict[int, Span] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._request = meter.create_histogram("http.client.request.duration", "s")
        self._wait = meter.create_histogram("braze_sends.quota.wait.duration", "s")
        self._store = meter.create_histogram("braze_sends.store.duration", "s")
        self._ended = meter.create_counter("braze_sends.creates", "{create}")
        self._retries = meter.create_counter("braze_sends.retries", "{retry}")
        self._refusals = meter.create_counter("braze_sends.refusals", "{create}")
        self._store_failures = meter.create_counter("braze_sends.store.failures", "{failure}")
        self._limit = meter.create_gauge("braze_sends.quota.limit", "{send}")
        self._used = meter.create_gauge("braze_sends.quota.used", "{send}")
        self._remaining = meter.create_gauge("braze_sends.quota.remaining", "{send}")
        self._in_flight = meter.create_gauge("braze_sends.quota.in_flight", "{create}")
        self._unconfirmed = meter.create_gauge("braze_sends.quota.unconfirmed", "{attempt}")
        self._reset = meter.create_gauge("braze_sends.quota.reset_timestamp", "s")

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        if isinstance(event, CreateEvent):
            self._trace(event)
        self._measure(event)

    # --- spans -----------------------------------------------------------------------------------

    def _trace(self, event: CreateEvent) -> None:
        match event:
            case CreateStarted():
                self._creates[event.create] = self._tracer.start_span(
                    "braze_sends.create", attributes=_about(event)
                )
            case CreateJoined():
                create = self._creates.get(event.create)
                self._calls[event.caller] = self._tracer.start_span(
                    "braze_sends.shared_create",
                    attributes=_about(event),
                    links=[] if create is None else [Link(create.get_span_context())],
                )
            case CreateLeft():
                _end(self._calls.pop(event.caller, None), event.reason)
            case AttemptStarted():
                self._start_attempt(event)
            case AttemptEnded():
                self._end_attempt(event)
            case CreateSucceeded() | CreateReused() | CreateCancelled():
                _end(self._creates.pop(event.create, None))
            case CreateFailed():
                _end(self._creates.pop(event.create, None), event.reason)
            case _:
                pass

    def _start_attempt(self, event: AttemptStarted) -> None:
        url = urlsplit(event.url)
        attributes: dict[str, Any] = {
            "http.request.method": "POST",
            "server.address": url.hostname or "",
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }
        about: dict[str, Any] = {"url.full": event.url}
        if event.attempt > 1:
            about["http.request.resend_count"] = event.attempt - 1
        create = self._creates.get(event.create)
        parent = None if create is None else trace.set_span_in_context(create)
        span = self._tracer.start_span(
            "POST", context=parent, kind=SpanKind.CLIENT, attributes=attributes | about
        )
        within = context.set_value(SUPPRESS_HTTP, True, trace.set_span_in_context(span))
        self._attempts[event.create] = _Attempt(span, attributes, context.attach(within))

    def _end_attempt(self, event: AttemptEnded) -> None:
        attempt = self._attempts.pop(event.create, None)
        if attempt is None:
            return
        context.detach(attempt.token)
        attributes = dict(attempt.attributes)
        failed = event.reason
        if event.status is not None:
            attributes["http.response.status_code"] = event.status
            failed = failed and str(event.status)  # stands for the error, where there is one
        if failed is not None:
            attributes["error.type"] = failed
        if event.request_id is not None:
            attempt.span.set_attribute("braze.request_id", event.request_id)
        attempt.span.set_attributes(attributes)
        _end(attempt.span, failed)
        self._request.record(event.seconds, attributes)

    # --- metrics ---------------------------------------------------------------------------------

    def _measure(self, event: Event) -> None:
        labels = {"braze_sends.workspace": event.workspace}
        match event:
            case QuotaLearnt():
                self._limit.set(event.limit, labels)
                self._used.set(event.used, labels)
                self._remaining.set(event.remaining, labels)
                self._in_flight.set(event.in_flight, labels)
                self._unconfirmed.set(event.unconfirmed, labels)
                if event.resets_at is not None:
                    self._reset.set(event.resets_at.timestamp(), labels)
            case StoreUsed():
                self._store.record(event.seconds, labels)
            case CreateSucceeded():
                self._ended.add(1, labels | {"braze_sends.outcome": "created"})
            case CreateReused():
                self._ended.add(1, labels | {"braze_sends.outcome": "reused"})
            case CreateCancelled():
                self._ended.add(1, labels | {"braze_sends.outcome": "cancelled"})
            case CreateFailed():
                refused = event.reason == "QuotaExhaustedError"
                outcome = "refused" if refused else "failed"
                self._ended.add(1, labels | {"braze_sends.outcome": outcome})
            case RetryScheduled():
                self._retries.add(1, labels | {"error.type": event.reason})
            case QuotaRefused():
                self._refusals.add(1, labels)
            case QuotaWaitEnded():
                self._wait.record(event.seconds, labels)
            case StoreFailed():
                self._store_failures.add(1, labels)
            case _:
                pass


def _about(event: CreateEvent) -> dict[str, str]:
    about = {"braze.campaign_id": event.campaign_id, "braze_sends.workspace": event.workspace}
    return about if event.send_id is None else about | {"braze.send_id": event.send_id}


def _end(span: Span | None, reason: str | None = None) -> None:
    if span is None:
        return
    if reason is not None:
        span.set_attribute("error.type", reason)
        span.set_status(Status(StatusCode.ERROR))
    span.end()
