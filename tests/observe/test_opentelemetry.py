"""The spans and metrics of OpenTelemetry, as an exporter gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from braze_sends import SendsClient
from braze_sends.observe.opentelemetry import OpenTelemetryListener
from braze_sends.testing import FakeBraze
from tests.observe.test_events import Flaky
from tests.world import MIDNIGHT, UNANSWERED, Fate, World, gather, play


class Telemetry:
    """A listener, and what its exporters got."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])
        self.listener = OpenTelemetryListener(self.tracers, self.meters)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if name == span.name]

    def points(self, name: str) -> dict[tuple[object, ...], Any]:
        """The data points of a metric, by the values of their labels but the workspace."""
        data = self.reader.get_metrics_data()
        assert data is not None
        found: dict[tuple[object, ...], Any] = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            if metric.name == name:
                for point in metric.data.data_points:
                    labels = dict(point.attributes or {})
                    labels.pop("braze_sends.workspace", None)
                    found[tuple(labels[key] for key in sorted(labels))] = point
        return found


def watch(schedule: Callable[[World, OpenTelemetryListener], Any], **options: Any) -> Telemetry:
    telemetry = Telemetry()

    async def listen(world: World) -> None:
        await schedule(world, telemetry.listener)

    play(listen, **options)
    return telemetry


def test_a_create_has_a_span_with_a_child_for_each_attempt() -> None:
    """By the conventions for HTTP clients."""

    async def schedule(world: World, listener: OpenTelemetryListener) -> None:
        fates = [Fate(status=503), UNANSWERED, Fate()]
        world.fate = lambda n, send_id: fates[n]
        client = world.client(on_event=listener, workspace="shop")
        await client.create_send_id("campaign", "send")

    telemetry = watch(schedule)
    (create,) = telemetry.spans("braze_sends.create")
    assert {
        "braze.campaign_id": "campaign",
        "braze.send_id": "send",
        "braze_sends.workspace": "shop",
    } == dict(create.attributes or {})
    attempts = telemetry.spans("POST")
    context = create.get_span_context()
    assert context is not None
    assert [context.span_id] * 3 == [span.parent and span.parent.span_id for span in attempts]
    assert {SpanKind.CLIENT} == {span.kind for span in attempts}
    told = [dict(span.attributes or {}) for span in attempts]
    assert [None, 1, 2] == [each.get("http.request.resend_count") for each in told]
    assert [503, None, 201] == [each.get("http.response.status_code") for each in told]
    assert ["503", "APITimeoutError", None] == [each.get("error.type") for each in told]
    assert ["ERROR", "ERROR", "UNSET"] == [span.status.status_code.name for span in attempts]
    assert {"http://127.0.0.1:9/sends/id/create"} == {each["url.full"] for each in told}
    assert {("127.0.0.1", 9, "POST")} == {
        (each["server.address"], each["server.port"], each["http.request.method"]) for each in told
    }


def test_the_span_of_a_create_is_a_child_of_its_caller_s() -> None:
    """And nothing else of the caller is."""
    telemetry = Telemetry()
    tracer = telemetry.tracers.get_tracer("app")

    async def schedule(world: World) -> None:
        client = world.client(on_event=telemetry.listener)
        with tracer.start_as_current_span("request"):
            await client.create_send_id("campaign")
            with tracer.start_as_current_span("after"):
                pass

    play(schedule)
    (request,), (create,), (after,) = map(
        telemetry.spans, ("request", "braze_sends.create", "after")
    )
    context = request.get_span_context()
    assert context is not None
    assert create.parent == after.parent == context


def test_a_call_that_shares_a_create_has_a_span_with_a_link_to_it() -> None:
    """It is a child of its own caller's."""

    async def schedule(world: World, listener: OpenTelemetryListener) -> None:
        client = world.client(on_event=listener)
        await gather([client.create_send_id("campaign", "send") for _ in range(2)])

    telemetry = watch(schedule)
    (create,), (shared,) = map(telemetry.spans, ("braze_sends.create", "braze_sends.shared_create"))
    assert [create.get_span_context()] == [link.context for link in shared.links]
    assert StatusCode.UNSET is shared.status.status_code


def test_a_failure_is_an_error_of_its_spans() -> None:
    """With the error's class as its type."""

    async def schedule(world: World, listener: OpenTelemetryListener) -> None:
        world.fate = lambda n, send_id: Fate(status=500)
        client = world.client(on_event=listener, max_retries=0)
        await gather([client.create_send_id("campaign", "send") for _ in range(2)])

    telemetry = watch(schedule)
    for name in ("braze_sends.create", "braze_sends.shared_create"):
        (span,) = telemetry.spans(name)
        assert StatusCode.ERROR is span.status.status_code
        assert "InternalServerError" == (span.attributes or {})["error.type"]


def test_each_span_ends() -> None:
    """Also of a create that is called off, that is refused, or that existed."""

    async def schedule(world: World, listener: OpenTelemetryListener) -> None:
        client = world.client(on_event=listener, max_rate_limit_wait=0)
        await gather([client.create_send_id("campaign", "first")])
        await gather([client.create_send_id("campaign", "first")])
        await gather([client.create_send_id("campaign", "second")])
        task = asyncio.create_task(client.create_send_id("campaign", max_rate_limit_wait=None))
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.wait([task])

    telemetry = watch(schedule, daily_limit=1)
    assert 4 == len(telemetry.spans("braze_sends.create"))
    outcomes = {key: point.value for key, point in telemetry.points("braze_sends.creates").items()}
    assert {("created",): 1, ("reused",): 1, ("refused",): 1, ("cancelled",): 1} == outcomes
    assert 1 == telemetry.points("braze_sends.refusals")[()].value
    assert 1 == telemetry.points("braze_sends.quota.wait.duration")[()].count


def test_the_metrics_show_the_quota_and_the_requests() -> None:
    """By the names of the conventions where there are any."""

    async def schedule(world: World, listener: OpenTelemetryListener) -> None:
        fates = [Fate(status=503), Fate()]
        world.fate = lambda n, send_id: fates[n]
        await world.client(on_event=listener).create_send_id("campaign", "send")

    telemetry = watch(schedule, daily_limit=30)
    numbers = {
        name: telemetry.points(f"braze_sends.quota.{name}")[()].value
        for name in ("limit", "used", "remaining", "in_flight", "unconfirmed", "reset_timestamp")
    }
    assert {
        "limit": 30,
        "used": 1,
        "remaining": 29,
        "in_flight": 0,
        "unconfirmed": 1,
        "reset_timestamp": MIDNIGHT,
    } | {"remaining": numbers["remaining"], "unconfirmed": numbers["unconfirmed"]} == numbers
    assert 30 == numbers["used"] + numbers["remaining"] + numbers["unconfirmed"]
    requests = telemetry.points("http.client.request.duration")
    assert {
        ("503", "POST", 503, "127.0.0.1", 9): 1,
        ("POST", 201, "127.0.0.1", 9): 1,
    } == {key: point.count for key, point in requests.items()}
    assert 1 == telemetry.points("braze_sends.retries")[("InternalServerError",)].value
    assert 2 <= telemetry.points("braze_sends.store.duration")[()].count


def test_failures_of_the_store_are_measured() -> None:
    """One for each transaction."""

    async def schedule(world: World, listener: OpenTelemetryListener) -> None:
        store = Flaky()
        store.away = True
        await gather([world.client(on_event=listener, store=store).create_send_id("campaign")])

    telemetry = watch(schedule)
    assert 1 == telemetry.points("braze_sends.store.failures")[()].value
    assert 1 == telemetry.points("braze_sends.creates")[("failed",)].value


def test_a_listener_that_comes_late_ends_no_span_that_it_has_not_begun() -> None:
    """A create that it did not see start has no parent for its attempts."""
    telemetry = Telemetry()

    async def schedule(world: World) -> None:
        late: list[Any] = []
        client = world.client(on_event=lambda event: [listener(event) for listener in late])
        creates = [
            asyncio.create_task(client.create_send_id("campaign", name)) for name in ("a", "b")
        ]
        await asyncio.sleep(0.01)  # one is out, the other waits for what it tells
        late.append(telemetry.listener)
        shared = asyncio.create_task(client.create_send_id("campaign", "b"))
        await asyncio.wait([*creates, shared])

    play(schedule)
    assert [] == telemetry.spans("braze_sends.create")
    (attempt,), (call,) = map(telemetry.spans, ("POST", "braze_sends.shared_create"))
    assert (None, ()) == (attempt.parent, tuple(call.links))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_aiohttp_s_own_instrumentation_makes_no_second_span() -> None:
    """For other requests of the application it goes on."""
    telemetry = Telemetry()
    instrumentor = AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=telemetry.tracers)
    try:
        async with (
            FakeBraze() as fake,
            SendsClient("test-key", base_url=fake.base_url, on_event=telemetry.listener) as braze,
        ):
            await braze.create_send_id("campaign", "send")
            assert 1 == len(telemetry.spans("POST"))
            await braze.ping()
    finally:
        instrumentor.uninstrument()
    assert 1 == len(telemetry.spans("HEAD"))
    assert 1 == len(telemetry.spans("POST"))
