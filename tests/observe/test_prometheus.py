"""The Prometheus metrics, as they are scraped."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from braze_sends.observe.prometheus import PrometheusListener
from tests.observe.test_events import Flaky
from tests.world import MIDNIGHT, UNANSWERED, Fate, World, gather, many, play

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"


def scraped(schedule: Callable[[World, PrometheusListener], Any], **options: Any) -> Any:
    """The value of a metric of the workspace ``shop`` after a schedule."""
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)

    async def listen(world: World) -> None:
        await schedule(world, listener)

    play(listen, **options)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"braze_sends_{name}", {"workspace": "shop", **labels})

    return value


def test_the_gauges_show_the_quota() -> None:
    """As Braze's headers told it last."""

    async def schedule(world: World, metrics: PrometheusListener) -> None:
        await gather(many(world.client(on_event=metrics, workspace="shop"), range(3)))

    value = scraped(schedule, daily_limit=30)
    assert (30, 3, 27, 0, 0) == tuple(
        value(f"quota_{name}")
        for name in ("limit", "used", "remaining", "in_flight", "unconfirmed")
    )
    assert MIDNIGHT == value("quota_reset_timestamp_seconds")


def test_an_end_of_the_window_that_is_not_known_is_no_number() -> None:
    """No alert compares with it."""

    async def schedule(world: World, metrics: PrometheusListener) -> None:
        world.fate = lambda n, send_id: UNANSWERED
        client = world.client(on_event=metrics, workspace="shop", max_retries=0)
        await gather([client.create_send_id("campaign")])

    value = scraped(schedule)
    assert 1 == value("quota_unconfirmed")
    assert math.isnan(value("quota_reset_timestamp_seconds"))
    assert (1, 1) == (
        value("attempts_total", status="none"),
        value("creates_total", outcome="failed"),
    )


def test_the_counters_count_creates_attempts_retries_and_refusals() -> None:
    """Each create once, by its outcome."""

    async def schedule(world: World, metrics: PrometheusListener) -> None:
        fates = {0: Fate(status=503)}
        world.fate = lambda n, send_id: fates.get(n, Fate())
        client = world.client(on_event=metrics, workspace="shop", max_rate_limit_wait=5)
        await gather(many(client, [1]))
        await gather(many(client, [1, 2, 3]))
        waits = client.create_send_id("campaign", max_rate_limit_wait=None)
        task = world.loop.create_task(waits)
        await asyncio.sleep(7)
        task.cancel()
        await gather([task])  # type: ignore[list-item]

    value = scraped(schedule, daily_limit=3)
    outcomes = ("created", "reused", "refused", "failed", "cancelled")
    assert [2, 1, 1, None, 1] == [value("creates_total", outcome=outcome) for outcome in outcomes]
    assert (2, 1) == tuple(value("attempts_total", status=status) for status in ("201", "503"))
    assert 1 == value("retries_total", reason="InternalServerError")
    assert 1 == value("refusals_total")
    assert 3 == value("request_seconds_count")
    assert 7 == pytest.approx(value("quota_wait_seconds_sum"), abs=3)
    assert value("store_seconds_count") > 3


def test_failures_of_the_store_are_counted() -> None:
    """One for each transaction that failed."""

    async def schedule(world: World, metrics: PrometheusListener) -> None:
        store = Flaky()
        store.away = True
        client = world.client(on_event=metrics, workspace="shop", store=store)
        await gather([client.create_send_id("campaign")])

    value = scraped(schedule)
    assert (1, 1) == (value("store_failures_total"), value("creates_total", outcome="failed"))


def test_no_label_names_a_send_or_a_campaign() -> None:
    """A label with many values makes a time series for each."""
    registry = CollectorRegistry()
    listener = PrometheusListener(registry)

    async def schedule(world: World) -> None:
        client = world.client(on_event=listener, workspace="shop")
        await client.create_send_id("the-campaign", "the-send")

    play(schedule)
    text = generate_latest(registry).decode()
    assert "braze_sends_creates_total" in text
    assert "the-campaign" not in text
    assert "the-send" not in text


def test_metrics_registered_twice_are_refused() -> None:
    """One listener serves all clients."""
    registry = CollectorRegistry()
    PrometheusListener(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        PrometheusListener(registry)


WORKER = """
import sys
from prometheus_client import CollectorRegistry
from braze_sends.observe.prometheus import PrometheusListener
from tests.world import World, play, many, gather
listener = PrometheusListener(CollectorRegistry())
async def schedule(world):
    await gather(many(world.client(on_event=listener, workspace="shop"), range(int(sys.argv[1]))))
play(schedule)
"""


@pytest.mark.process
def test_several_processes_are_scraped_as_one(tmp_path: Path) -> None:
    """Counters add up; a gauge is that of the process that set it last."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for creates in ("2", "5"):
        subprocess.run([sys.executable, "-c", WORKER, creates], check=True, env=environment)
    collect = (
        "from prometheus_client import CollectorRegistry, multiprocess, generate_latest\\n"
        "registry = CollectorRegistry()\\n"
        "multiprocess.MultiProcessCollector(registry)\\n"
        "print(generate_latest(registry).decode())"
    ).replace("\\n", "\n")
    text = subprocess.run(
        [sys.executable, "-c", collect], check=True, env=environment, capture_output=True, text=True
    ).stdout
    assert 'braze_sends_creates_total{outcome="created",workspace="shop"} 7.0' in text
    assert 'braze_sends_quota_used{workspace="shop"} 5.0' in text


# --- alerts and the dashboard --------------------------------------------------------------------


def exported() -> set[str]:
    """The names of all series."""
    registry = CollectorRegistry()
    PrometheusListener(registry)
    names = set()
    for metric in registry.collect():
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
        names |= {metric.name + end for end in ends[metric.type]}
    return names


def used(expression: str) -> set[str]:
    return set(re.findall(r"\bbraze_sends_\w+", expression))


def test_each_alert_is_about_metrics_that_exist_and_says_what_to_do() -> None:
    """A rule on a metric that nobody exports never fires."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) >= 5
    for rule in rules:
        assert set() < used(rule["expr"]) <= exported(), rule["alert"]
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


def test_each_panel_of_the_dashboard_is_about_metrics_that_exist() -> None:
    """And each metric but the bare sums is in one."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = set().union(*map(used, expressions))
    assert shown <= exported()
    missing = {name for name in exported() - shown if not name.endswith(("_sum", "_count"))}
    assert set() == missing
