"""The rule under any schedule that hypothesis can think of."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.quota.machine import BucketMachine, assume


@pytest.mark.parametrize("schedules", [80, pytest.param(1000, marks=pytest.mark.long)])
def test_the_promises_hold_under_any_schedule(
    schedules: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No unexcused 429 for a lone client, every token accounted for, and nobody waits for ever."""
    assume(monkeypatch)
    run_state_machine_as_test(
        BucketMachine,
        settings=settings(
            max_examples=schedules,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
