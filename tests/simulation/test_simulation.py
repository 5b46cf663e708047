"""The simulated days that run in the gate, the many of the long session, and seeds that failed."""

from __future__ import annotations

import logging
import os

import pytest

from tests.simulation.judge import Findings
from tests.simulation.mixes import MIXES
from tests.simulation.world import DAYS, run


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the client logs of a store that fails is no news here."""
    monkeypatch.setattr(logging.getLogger("braze_sends"), "disabled", True)


def findings(mix: str, seeds: range) -> list[tuple[int, tuple[str, str]]]:
    """What was violated, with the seed that shows it."""
    found = []
    for seed in seeds:
        judged: Findings = run(seed, MIXES[mix]).judge.found
        found += [(seed, violation) for violation in judged.violations]
    return found


@pytest.mark.parametrize("mix", MIXES)
def test_the_promises_hold_on_some_days_of_each_mix(mix: str) -> None:
    """Nothing is violated on fixed days of a mix: 300 in all."""
    assert [] == findings(mix, range(300 // DAYS // len(MIXES) + 1))


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("mix", MIXES)
def test_the_promises_hold_on_ten_thousand_days(mix: str, part: int) -> None:
    """Nothing is violated on these days, or on others, whose first ``SIMULATION_FIRST`` names."""
    count = 10_000 // DAYS // len(MIXES) // 8 + 1
    first = int(os.environ.get("SIMULATION_FIRST", "1000")) + part * count
    assert [] == findings(mix, range(first, first + count))


@pytest.mark.parametrize(
    ("mix", "seed"),
    [
        # Two answers of Braze's general limit in a row were believed, and a burst went out.
        ("foreign", 3),
        # A Date 15 s ahead, once, moved the window's end at once.
        ("dates", 8),
        # A success without headers was asked about, though what was created shows it was counted.
        ("garbled", 2),
        # A pair whose first answer was lost counted twice against the client's own limit.
        ("own limit", 19),
        # The repeat of a create that the last window counted was taken for a create of this one.
        ("garbled", 200_179),
        # The same, where the repeat's answer had no headers.
        ("garbled", 300_058),
        # A create counted before midnight and answered after it took from the next own limit.
        ("own sleep", 200_020),
        # The repeat had no headers, and no answer came after it.
        ("garbled", 700_202),
        # A pair that another process had created was looked up no more before it was refused.
        ("own limit", 700_169),
        # A pair under way, whose settling the store had lost, was refused behind others.
        ("store", 700_041),
    ],
)
def test_the_promises_hold_on_a_day_that_once_failed(mix: str, seed: int) -> None:
    """Each of these days had a violation before the rule was mended."""
    assert [] == findings(mix, range(seed, seed + 1))


def test_a_seed_gives_the_same_day_again() -> None:
    """Its timeline, to the last line."""
    first, second = (run(5, MIXES["chaos"], keeps=True).timeline for _ in range(2))
    assert first == second
    assert first
