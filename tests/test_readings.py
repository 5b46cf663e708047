"""The promises under each combination of the readings of the vendor's open questions."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from braze_sends import SendId
from braze_sends.quota.rule.window import ASSUMED_LIMIT
from tests.world import LOST, REFUSED, UNANSWERED, Fate, World, failed, gather, made, many, play

READINGS = [
    {"counts": counts, "duplicate": duplicate, "counts_errors": errors, "headers_on_429": headers}
    for counts, duplicate, errors, headers in itertools.product(
        ("pairs", "requests"), (201, 400), (False, True), (True, False)
    )
]


def _name(readings: dict[str, Any]) -> str:
    return "-".join(f"{value}" for value in readings.values())


@pytest.mark.parametrize("readings", READINGS, ids=_name)
def test_a_lone_workspace_is_filled_and_never_over(readings: dict[str, Any]) -> None:
    """150 gathered with jittered answers: exactly 100 created, no 429."""

    async def schedule(world: World) -> None:
        jitter = random.Random(7)
        world.fate = lambda n, s: Fate(latency=jitter.uniform(0.05, 2))
        results = await gather(many(world.client(), range(150)))
        assert (100, 100, 0) == (made(results), len(world.created), world.over)

    play(schedule, **readings)


@pytest.mark.parametrize("readings", READINGS, ids=_name)
def test_faults_lose_no_id_and_draw_no_429_but_for_repeats(readings: dict[str, Any]) -> None:
    """Every fourth request gets lost somewhere: what was created was returned, or is in doubt."""

    async def schedule(world: World) -> None:
        dice = random.Random(11)
        faults = [LOST, UNANSWERED, REFUSED, Fate(breaks=True), Fate(status=502)]

        def fate(n: int, send_id: str) -> Fate:
            return dice.choice(faults) if dice.random() < 0.25 else Fate(latency=dice.random())

        world.fate = fate
        client = world.client()
        results = await gather(many(client, range(120), max_rate_limit_wait=300))
        repeats = len(world.asked) - len(set(world.asked))
        assert world.over <= repeats
        returned = {result.send_id for result in results if isinstance(result, SendId)}
        denied = {error.send_id for error in failed(results) if error.quota_spent is False}
        assert set() == returned - set(world.created)
        assert set() == denied & set(world.created)
        # Later, in peace, whoever asks again gets what exists, and the rest of the day is there.
        world.fate = lambda n, s: Fate()
        again = await gather(many(client, range(120), max_rate_limit_wait=300))
        kept = {result.send_id for result in again if isinstance(result, SendId)}
        assert len(world.created) == len(set(world.created)) <= ASSUMED_LIMIT
        told = {error.send_id: error.quota_spent for error in failed(again)}
        assert {None} >= {told[send_id] for send_id in set(world.created) - kept}
        duplicates_cost = readings["duplicate"] == 400 and readings["counts_errors"]
        if readings["counts"] == "pairs" and not duplicates_cost:
            assert ASSUMED_LIMIT == len(world.created)
            # After a 429 all wait for the reset, also who would ask for what exists.
            assert set(world.created) == kept or world.over

    play(schedule, **readings)


@pytest.mark.parametrize("readings", READINGS, ids=_name)
def test_a_lost_answer_makes_one_pair(readings: dict[str, Any]) -> None:
    """The response is lost after the create; the repeat is answered 201 or 400: one send ID."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, s: UNANSWERED if n == 0 else Fate()
        send = await world.client().create_send_id("campaign", "pair")
        assert ("pair", False, 2) == (send.send_id, send.reused, send.attempts)
        assert ["pair"] == world.created

    play(schedule, **readings)
