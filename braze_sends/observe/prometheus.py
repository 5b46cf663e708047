"""Prometheus metrics. Needs the extra ``prometheus``.

::

    metrics = PrometheusListener()
    braze = SendsClient(on_event=metrics)

Works in the multiprocess mode of ``prometheus_client`` too, as under gunicorn.
"""

from __future__ import annotations

import functools
import math

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from braze_sends.events import (
    AttemptEnded,
    CreateCancelled,
    CreateFailed,
    CreateReused,
    CreateSucceeded,
    Event,
    QuotaLearnt,
    QuotaRefused,
    QuotaWaitEnded,
    RetryScheduled,
    StoreFailed,
    StoreUsed,
)

#: Upper bounds of the waits for quota, in seconds: from a moment to a day.
_WAITS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 3600, 21_600, 86_400)


class PrometheusListener:
    """Keeps the metrics of all clients that it is passed to. Make one for a registry.

    Every metric has the label ``workspace``. None has a label with a send ID or a campaign.

    Args:
        registry: where the metrics are registered; by default that of ``prometheus_client``.

    Raises:
        ValueError: the registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        # In multiprocess mode a gauge is that of the process that set it last: the quota is one.
        gauge = functools.partial(
            Gauge, labelnames=("workspace",), registry=registry, multiprocess_mode="mostrecent"
        )
        counter = functools.partial(Counter, registry=registry)
        histogram = functools.partial(Histogram, labelnames=("workspace",), registry=registry)
        self._limit = gauge("braze_sends_quota_limit", "Sends that a window allows")
        self._used = gauge("braze_sends_quota_used", "Sends that Braze has counted in the window")
        self._remaining = gauge("braze_sends_quota_remaining", "Slots that are free")
        self._in_flight = gauge("braze_sends_quota_in_flight", "Creates under way")
        self._unconfirmed = gauge(
            "braze_sends_quota_unconfirmed", "Attempts of which nobody knows if Braze counted them"
        )
        # A moment and not a number of seconds, which would be old when it is read.
        # https://prometheus.io/docs/practices/instrumentation/#timestamps-not-time-since
        self._reset = gauge(
            "braze_sends_quota_reset_timestamp_seconds", "When the window ends, NaN if not known"
        )
        self._creates = counter(
            "braze_sends_creates",
            "Creates that have ended: created, reused, refused, failed or cancelled",
            labelnames=("workspace", "outcome"),
        )
        self._attempts = counter(
            "braze_sends_attempts",
            "Requests that have ended, by HTTP status; none without an answer",
            labelnames=("workspace", "status"),
        )
        self._retries = counter(
            "braze_sends_retries",
            "Further attempts, by the error of the one before",
            labelnames=("workspace", "reason"),
        )
        self._refusals = counter(
            "braze_sends_refusals", "Creates for which no quota was left", labelnames=("workspace",)
        )
        self._store_failures = counter(
            "braze_sends_store_failures", "Transactions that failed", labelnames=("workspace",)
        )
        self._wait = histogram(
            "braze_sends_quota_wait_seconds", "Waits for quota", buckets=(*_WAITS, math.inf)
        )
        self._request = histogram("braze_sends_request_seconds", "Requests to Braze")
        self._store = histogram("braze_sends_store_seconds", "Transactions of the store")

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        workspace = event.workspace
        match event:
            case QuotaLearnt():
                self._limit.labels(workspace).set(event.limit)
                self._used.labels(workspace).set(event.used)
                self._remaining.labels(workspace).set(event.remaining)
                self._in_flight.labels(workspace).set(event.in_flight)
                self._unconfirmed.labels(workspace).set(event.unconfirmed)
                ends = math.nan if event.resets_at is None else event.resets_at.timestamp()
                self._reset.labels(workspace).set(ends)
            case StoreUsed():
                self._store.labels(workspace).observe(event.seconds)
            case AttemptEnded():
                status = "none" if event.status is None else str(event.status)
                self._attempts.labels(workspace, status).inc()
                self._request.labels(workspace).observe(event.seconds)
            case CreateSucceeded():
                self._creates.labels(workspace, "created").inc()
            case CreateReused():
                self._creates.labels(workspace, "reused").inc()
            case CreateCancelled():
                self._creates.labels(workspace, "cancelled").inc()
            case CreateFailed(reason="QuotaExhaustedError"):
                self._creates.labels(workspace, "refused").inc()
            case CreateFailed():
                self._creates.labels(workspace, "failed").inc()
            case RetryScheduled():
                self._retries.labels(workspace, event.reason).inc()
            case QuotaRefused():
                self._refusals.labels(workspace).inc()
            case QuotaWaitEnded():
                self._wait.labels(workspace).observe(event.seconds)
            case StoreFailed():
                self._store_failures.labels(workspace).inc()
            case _:
                pass
