"""The schedules that broke a first draft of the quota rule, each named by what must be seen.

All on a virtual clock, over ``BrazeModel``. "Lone" means that nobody else uses the workspace.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping

import pytest

from braze_sends import (
    APIConnectionError,
    APITimeoutError,
    BadRequestError,
    BrazeSendsError,
    PermissionDeniedError,
    QuotaExhaustedError,
    RateLimitError,
    SendId,
)
from braze_sends.testing.model import Reply
from tests.world import (
    BARE,
    LOST,
    MIDNIGHT,
    REFUSED,
    UNANSWERED,
    Fate,
    World,
    exhausted,
    failed,
    gather,
    made,
    many,
    play,
)


@pytest.mark.parametrize("outage", [Fate(status=502, counted_after=math.inf), LOST])
def test_an_outage_does_not_cost_the_day(outage: Fate) -> None:
    """Bare 502s, or timeouts, for 50 s under 40 creates; then all 100 slots can be used."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, s: outage if world.loop.time() < 50 else Fate()
        client = world.client()
        first = [asyncio.create_task(create) for create in many(client, range(40))]
        await asyncio.sleep(100)
        early = await asyncio.gather(*first, return_exceptions=True)
        results = await gather(many(client, range(100, 200), max_rate_limit_wait=120))
        assert 100 == len(world.created)
        assert 100 == made(early) + made(results)
        assert 0 == world.over

    play(schedule)


@pytest.mark.parametrize(("arrived", "over"), [(False, 0), (True, 1)])
def test_slots_of_cancelled_callers_are_used_unless_their_requests_arrived(
    arrived: bool, over: int
) -> None:
    """97 created, 3 cancelled after sending: 100 in the end, and at most one 429, a probe's."""

    async def schedule(world: World) -> None:
        client = world.client()
        assert 97 == made(await gather(many(client, range(97))))
        world.fate = lambda n, s: UNANSWERED if arrived else LOST
        tasks = [asyncio.create_task(create) for create in many(client, "abc")]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        world.fate = lambda n, s: Fate()
        results = await gather(many(client, "xyz", max_rate_limit_wait=60))
        assert 100 == len(world.created)
        assert (0 if arrived else 3) == made(results)
        assert world.over <= over

    play(schedule)


def test_an_answer_to_a_later_request_does_not_free_the_slot_of_one_not_yet_counted() -> None:
    """97 used: A is cancelled 5 ms after sending, B is answered before A is counted."""

    async def schedule(world: World) -> None:
        client = world.client()
        await gather(many(client, range(97)))
        world.fate = lambda n, s: Fate(counted_after=2, latency=8) if s == "sA" else Fate()
        a = asyncio.create_task(client.create_send_id("campaign", "sA"))
        await asyncio.sleep(0.005)
        a.cancel()
        assert isinstance(await client.create_send_id("campaign", "sB"), SendId)
        assert 1 == (await client.quota()).remaining
        await gather(many(client, "CDE", max_rate_limit_wait=0))
        await asyncio.sleep(20)
        assert (100, 0) == (len(world.created), world.over)

    play(schedule)


def test_a_504_stays_unconfirmed_until_braze_must_be_done_with_it() -> None:
    """Its create is counted 12 s later, and an answer comes in between."""

    async def schedule(world: World) -> None:
        client = world.client(max_retries=0)
        await gather(many(client, range(97)))
        world.fate = lambda n, s: Fate(status=504, counted_after=12) if s == "sA" else Fate()
        with pytest.raises(BrazeSendsError) as caught:
            await client.create_send_id("campaign", "sA")
        assert None is caught.value.quota_spent
        await client.create_send_id("campaign", "sB")
        assert (1, 1) == ((await client.quota()).remaining, (await client.quota()).unconfirmed)
        await gather(many(client, "CDE", max_rate_limit_wait=0))
        await asyncio.sleep(20)
        assert (100, 0) == (len(world.created), world.over)

    play(schedule)


@pytest.mark.parametrize(
    "second", [REFUSED, Fate(status=429, counted_after=math.inf), Fate(status=403)]
)
def test_a_lost_attempt_stays_unconfirmed_whatever_refuses_the_next_one(second: Fate) -> None:
    """Attempt 1 is counted and unanswered; its slot stays, whether or not attempt 2 cost one."""

    async def schedule(world: World) -> None:
        client = world.client()
        await client.create_send_id("campaign", "first")
        world.fate = lambda n, s: UNANSWERED if n == 1 else second
        with pytest.raises(BrazeSendsError) as caught:
            await client.create_send_id("campaign", "lost")
        assert None is caught.value.quota_spent
        assert ("campaign", "lost") == (caught.value.campaign_id, caught.value.send_id)
        assert 1 == (await client.quota()).unconfirmed

    play(schedule)


def test_a_lowered_limit_holds_though_an_older_answer_comes_later() -> None:
    """100 becomes 60 at 51 used; the answer from before arrives last; a burst draws no 429."""

    async def schedule(world: World) -> None:
        client = world.client()
        await gather(many(client, range(50)))
        world.fate = lambda n, s: Fate(latency={"sold": 4, "snew": 2}.get(s, 0.1), counted_after={
            "sold": 0.5, "snew": 1.5}.get(s))  # fmt: skip
        old, new = (asyncio.create_task(create) for create in many(client, ["new", "old"]))
        await asyncio.sleep(1)
        world.model.daily_limit = 60
        await asyncio.gather(old, new)
        results = await gather(many(client, range(100, 200)))
        assert (60, 8, 0) == (len(world.created), made(results), world.over)

    play(schedule)


def test_one_answer_from_another_window_is_mended_by_the_next() -> None:
    """A reset four windows ahead, from a bucket that looks fresh: still 100, and 0 over."""

    async def schedule(world: World) -> None:
        far = {
            "X-Ratelimit-Limit": "100",
            "X-Ratelimit-Remaining": "99",
            "X-Ratelimit-Reset": str(int(world.now() // 3600 + 5) * 3600),
        }
        world.fate = lambda n, s: Fate(headers=far if n == 51 else None)
        client = world.client()
        for n in range(52):
            await client.create_send_id("campaign", f"a{n}")
        results = await gather(many(client, range(150)))
        assert (100, 48, 0) == (len(world.created), made(results), world.over)

    play(schedule, window=3600)


@pytest.mark.parametrize("third", [0, 1, 2])
@pytest.mark.parametrize("gathered", [True, False])
def test_answers_that_show_another_bucket_do_not_count(third: int, gathered: bool) -> None:
    """Every third answer shows 250,000 an hour: 100 created, 0 over."""

    async def schedule(world: World) -> None:
        hour = {
            "X-Ratelimit-Limit": "250000",
            "X-Ratelimit-Remaining": "249990",
            "X-Ratelimit-Reset": str(int(world.now() // 3600 + 1) * 3600),
        }
        world.fate = lambda n, s: Fate(
            headers=hour if n % 3 == third else None, latency=random.Random(n).uniform(0.05, 0.2)
        )
        client = world.client()
        if gathered:
            await gather(many(client, range(150), max_rate_limit_wait=60))
        else:
            for n in range(150):
                await gather(many(client, [n], max_rate_limit_wait=60))
        assert (100, 0) == (len(world.created), world.over)

    play(schedule)


def test_without_headers_each_window_has_its_100() -> None:
    """No headers ever: 100 in each of two windows, not 100 in all."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, s: Fate(headers=BARE)
        client = world.client()
        first = await gather(many(client, range(150), max_rate_limit_wait=0))
        assert (100, 50) == (made(first), exhausted(first))
        assert world.loop.time() < 2  # and not one after another
        await asyncio.sleep(86_400 + 60)
        second = await gather(many(client, range(200, 350), max_rate_limit_wait=0))
        assert (100, 0) == (made(second), world.over)

    play(schedule)


def test_a_pair_that_hangs_at_the_start_does_not_hold_up_the_rest() -> None:
    """Cold start, 50 gathered, the first hangs on each attempt: 49 made, soon."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, s: LOST if s == "s0" else Fate()
        client = world.client()
        tasks = [asyncio.create_task(create) for create in many(client, range(50))]
        await asyncio.sleep(15)
        assert 49 == sum(task.done() for task in tasks)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert 49 == made(results)
        assert isinstance(results[0], APITimeoutError)

    play(schedule)


def test_waiting_for_the_probe_is_no_wait_for_quota() -> None:
    """Cold start, 50 gathered, ``max_rate_limit_wait=0``: 50 made."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=0)
        assert 50 == made(await gather(many(client, range(50))))

    play(schedule)


@pytest.mark.parametrize("wanted", [20, 60])
def test_every_call_ends_though_braze_hangs_for_everybody(wanted: int) -> None:
    """Cold start, waits without limit: errors, and no call that waits for ever."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, s: LOST
        client = world.client(max_rate_limit_wait=None)
        results = await gather(many(client, range(wanted)))
        assert wanted == sum(isinstance(result, APITimeoutError) for result in results)

    play(schedule)


def test_urgent_callers_pass_bulk_work_that_waits_for_its_headroom() -> None:
    """80 used: bulk with a headroom of 20 waits at the head, and urgent calls are served."""

    async def schedule(world: World) -> None:
        client = world.client()
        await gather(many(client, range(80)))
        bulk = asyncio.create_task(
            client.create_send_id("campaign", "bulk", headroom=20, max_rate_limit_wait=None)
        )
        await asyncio.sleep(1)
        assert 20 == made(await gather(many(client, range(100, 130), max_rate_limit_wait=0)))
        assert not bulk.done()
        assert "bulk" == str(await bulk)
        assert world.now() > MIDNIGHT

    play(schedule)


def test_a_429_of_another_limiter_is_a_pause_and_not_the_end_of_the_day() -> None:
    """It carries our headers with slots left: everybody backs off, and all is created."""

    async def schedule(world: World) -> None:
        client = world.client()
        await gather(many(client, range(10)))
        left = {"X-Ratelimit-Limit": "100", "X-Ratelimit-Remaining": "90",
                "X-Ratelimit-Reset": str(int(MIDNIGHT))}  # fmt: skip
        world.model.daily_limit, paused_at = 0, world.loop.time()
        world.fate = lambda n, s: Fate(headers=left)
        tasks = [asyncio.create_task(create) for create in many(client, range(100, 120))]
        await asyncio.sleep(0.5)
        assert len(world.asked) <= 10 + 20
        world.model.daily_limit, world.fate = 100, lambda n, s: Fate()
        assert 20 == made(await asyncio.gather(*tasks))
        assert 1 <= world.loop.time() - paused_at < 10

    play(schedule)


def test_bare_429s_draw_a_handful_of_requests() -> None:
    """60 gathered against 429s that say nothing: not 180 requests, and every call ends."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, s: Fate(status=429, counted_after=math.inf)
        results = await gather(many(world.client(), range(60)))
        assert len(world.asked) <= 6
        assert {RateLimitError, QuotaExhaustedError} == {type(result) for result in results}
        assert {False} == {error.quota_spent for error in failed(results)}
        assert world.loop.time() < 60

    play(schedule)


def test_counted_400s_are_never_denied() -> None:
    """Requests count, 400s too, without headers: 0 over, and ``quota_spent`` no wrong False."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, s: Fate(headers=BARE)
        client = world.client(max_rate_limit_wait=0)
        bad = [client.create_send_id("unknown", f"b{n}") for n in range(60)]
        results = await gather([*bad, *many(client, range(80))])
        refused = [result for result in results if isinstance(result, BadRequestError)]
        assert {None} == {error.quota_spent for error in refused}
        assert 100 == len(refused) + made(results) == world.model.used
        assert 0 == world.over

    play(schedule, counts="requests", campaigns=frozenset({"campaign"}))


def test_requests_that_broke_before_the_reset_stay_unconfirmed_after_it() -> None:
    """20 break 3.5 s before the reset and are counted 5 s after it; 120 wanted between: 0 over."""

    async def schedule(world: World) -> None:
        client = world.client(max_retries=0)
        await client.create_send_id("campaign", "first")
        await asyncio.sleep(MIDNIGHT - 3.5 - world.now())
        world.fate = lambda n, s: Fate(breaks=True, counted_after=8.5)
        await gather(many(client, range(20)))
        world.fate = lambda n, s: Fate()
        await asyncio.sleep(MIDNIGHT + 2 - world.now())
        results = await gather(many(client, range(100, 220), max_rate_limit_wait=0))
        assert 80 == made(results)
        await asyncio.sleep(30)
        assert 0 == world.over

    play(schedule)


def test_a_pair_that_an_earlier_call_left_in_doubt_stays_so_when_a_later_one_is_refused() -> None:
    """Call 1 for a pair is counted and unanswered; call 2 is refused a connection."""

    async def schedule(world: World) -> None:
        client = world.client(max_retries=0)
        world.fate = lambda n, s: UNANSWERED
        with pytest.raises(APITimeoutError):
            await client.create_send_id("campaign", "pair")
        world.fate = lambda n, s: REFUSED
        with pytest.raises(APIConnectionError) as caught:
            await client.create_send_id("campaign", "pair")
        assert None is caught.value.quota_spent
        assert 1 == (await client.quota()).unconfirmed
        await asyncio.sleep(2 * 86_400)  # past its window
        with pytest.raises(APIConnectionError) as caught:
            await client.create_send_id("campaign", "pair")
        assert None is caught.value.quota_spent

    play(schedule)


def test_a_400_to_a_repeat_is_success_only_if_it_says_that_the_send_exists() -> None:
    """The pair exists: its ID is returned. The campaign is unknown: an error, not denied."""

    async def schedule(world: World) -> None:
        client = world.client()
        world.fate = lambda n, s: UNANSWERED if n in (0, 2) else Fate()
        send = await client.create_send_id("campaign", "pair")
        assert ("pair", 2, 1) == (send.send_id, send.attempts, len(world.created))
        with pytest.raises(BadRequestError) as caught:
            await client.create_send_id("unknown", "pair")
        assert None is caught.value.quota_spent

    play(schedule, duplicate=400, campaigns=frozenset({"campaign"}))


@pytest.mark.parametrize("clock_error", [-40.0, 40.0])
def test_a_clock_that_is_off_does_not_matter_at_the_reset(clock_error: float) -> None:
    """Used up, then asked around the reset by a clock 40 s off: created just after it, 0 over."""

    async def schedule(world: World) -> None:
        client = world.client(clock_error=clock_error)
        await gather(many(client, range(100)))
        await asyncio.sleep(MIDNIGHT - 20 - world.now())
        await client.create_send_id("campaign", "next")
        assert 1 <= world.now() - MIDNIGHT < 3
        assert 0 == world.over

    play(schedule)


def test_a_window_that_opens_late_draws_two_refusals_and_not_eight() -> None:
    """429s with the old reset until 6 s after it; 50 wait: all made, two requests over at most."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=60)
        await gather(many(client, range(100)))
        await asyncio.sleep(MIDNIGHT - 5 - world.now())
        model = world.model

        def opens_late(
            method: str, path: str, headers: Mapping[str, str], body: bytes, now: float
        ) -> Reply:
            if not MIDNIGHT <= now < MIDNIGHT + 6:
                return model.handle(method, path, headers, body, now)
            reply = model.handle(method, path, headers, body, MIDNIGHT - 1)
            reply.headers["Date"] = model.answer(429, now).headers["Date"]
            return reply

        world.handle = opens_late
        results = await gather(many(client, range(200, 250)))
        assert 50 == made(results)
        assert 1 <= model.refused <= 2

    play(schedule)


def test_short_windows_are_filled_one_after_another() -> None:
    """Windows of 4 s, limit 20, 70 waiting: 20, 20, 20, 10."""

    async def schedule(world: World) -> None:
        results = await gather(many(world.client(), range(70)))
        assert 70 == made(results)
        assert [20, 20, 20, 10] == list(world.model.created_by_window.values())
        assert 0 == world.over

    play(schedule, window=4, daily_limit=20)


def test_forgetting_the_quota_keeps_what_is_in_flight() -> None:
    """40 slow requests out, 150 wanted: at most 1 over."""

    async def schedule(world: World) -> None:
        client = world.client()
        await client.create_send_id("campaign", "first")
        world.fate = lambda n, s: Fate(latency=random.Random(n).uniform(1, 8))
        slow = [asyncio.create_task(create) for create in many(client, range(40))]
        await asyncio.sleep(0.5)
        await client.forget_quota()
        results = await gather(many(client, range(100, 250)))
        await asyncio.gather(*slow)
        assert (100, 59) == (len(world.created), made(results))
        assert world.over <= 1

    play(schedule)


def test_an_answer_of_the_old_window_is_ignored_in_the_new_one() -> None:
    """It was slow over the reset, and says that little is left."""

    async def schedule(world: World) -> None:
        client = world.client()
        await gather(many(client, range(90)))
        await asyncio.sleep(MIDNIGHT - 2 - world.now())
        world.fate = lambda n, s: Fate(latency=8, counted_after=0.1) if s == "sold" else Fate()
        old = asyncio.create_task(client.create_send_id("campaign", "sold"))
        await asyncio.sleep(4)
        assert isinstance(await client.create_send_id("campaign", "new"), SendId)
        await old
        assert 99 == (await client.quota()).remaining
        assert 99 == made(await gather(many(client, range(200, 320), max_rate_limit_wait=0)))
        assert 0 == world.over

    play(schedule)


def test_a_403_of_the_edge_is_surely_not_spent() -> None:
    """Refused without being looked at: the slot comes back."""

    async def schedule(world: World) -> None:
        client = world.client()
        world.fate = lambda n, s: Fate(status=403, counted_after=math.inf)
        with pytest.raises(PermissionDeniedError) as caught:
            await client.create_send_id("campaign", "pair")
        assert False is caught.value.quota_spent
        assert 0 == (await client.quota()).unconfirmed

    play(schedule)


def test_a_limit_raised_in_mid_window_is_used_the_same_day() -> None:
    """Three of five created, then raised to twelve: of twenty asked at once the rest is made."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=5)
        await gather(many(client, range(3)))
        world.model.daily_limit = 12
        assert 9 == made(await gather(many(client, range(100, 120))))
        assert (12, 0) == (len(world.created), world.over)

    play(schedule, daily_limit=5)


def test_headers_that_always_show_another_bucket_cost_one_probe() -> None:
    """250,000 an hour in each answer, and 100 a day all the same: 100 made, one 429."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=0)
        results = await gather(many(client, range(500)))
        assert (100, 400) == (made(results), len(failed(results)))
        assert (100, 1) == (len(world.created), world.over)

    play(schedule, shows="general")
