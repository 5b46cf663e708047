"""Many creates in one call: in virtual time, and against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from braze_sends import (
    APITimeoutError,
    BadRequestError,
    ConfigurationError,
    CreateSendId,
    MemoryStore,
    Outcome,
    QuotaExhaustedError,
    RateLimitError,
    SendId,
    SendsClient,
)
from braze_sends.errors import span
from braze_sends.protocol import pair_digest
from braze_sends.quota.line import Held, WaitBudget
from braze_sends.quota.rule.messages import Ask
from braze_sends.testing import FakeBraze, Fault
from braze_sends.testing.model import Reply
from tests.waiting import PATIENCE, until
from tests.world import (
    KEY,
    LOST,
    MIDNIGHT,
    MORNING,
    UNANSWERED,
    Fate,
    World,
    gather,
    many,
    play,
)


def rows(*names: object) -> list[CreateSendId]:
    return [CreateSendId("campaign", f"s{name}") for name in names]


def client_of(fake: FakeBraze, **options: Any) -> SendsClient:
    """A client that does not give up because the machine is busy."""
    options = {"timeout": PATIENCE, "max_rate_limit_wait": PATIENCE} | options
    return SendsClient(KEY, base_url=fake.base_url, **options)


def created(outcomes: list[Outcome]) -> list[str]:
    return [outcome.result.send_id for outcome in outcomes if outcome.result]


# --- outcomes ------------------------------------------------------------------------------------


def test_outcomes_are_in_the_order_of_the_requests() -> None:
    """Though the answers come in another."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(latency=0.1 + (7 * n % 10) / 10)
        came: list[Outcome] = []
        outcomes = await world.client().create_send_ids(rows(*range(50)), on_outcome=came.append)
        assert rows(*range(50)) == [outcome.request for outcome in outcomes]
        assert [f"s{n}" for n in range(50)] == created(outcomes)
        assert came != outcomes
        assert sorted(created(outcomes)) == sorted(created(came))

    play(schedule)


def test_a_batch_without_requests_does_nothing() -> None:
    """Nothing asked for, nothing done."""

    async def schedule(world: World) -> None:
        assert [] == await world.client().create_send_ids([])
        assert [] == [outcome async for outcome in world.client().iter_send_ids(iter(()))]

    play(schedule)


async def test_a_failure_hides_no_result(fake: FakeBraze, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals, failures and requests that cannot be valid stand beside what was created."""
    asked: list[Any] = [*rows(0, 1, 2), CreateSendId("campaign", "ü"), "s4", *rows(5)]
    asked.append(CreateSendId("campaign", []))  # type: ignore[arg-type]  # as an untyped caller may
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)
    fake.script(None, Fault(status=400), Fault(status=503))
    async with client_of(fake) as braze:
        outcomes = await braze.create_send_ids(asked, concurrency=1)
    kinds = [type(outcome.error) for outcome in outcomes]
    none, wrong = type(None), ConfigurationError
    assert [none, BadRequestError, none, wrong, wrong, none, wrong] == kinds
    assert ["s0", "s2", "s5"] == created(outcomes)
    assert all(outcome.request is request for outcome, request in zip(outcomes, asked, strict=True))
    assert "a request must be a CreateSendId, not str" == str(outcomes[4].error)


def test_the_same_pair_is_sent_once() -> None:
    """Side by side, one after the other, and also when it fails."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(
            latency=0.3 if send_id == "s0" else 0.1, status=418 if send_id == "s1" else None
        )
        outcomes = await world.client(max_retries=0).create_send_ids(
            rows(*(n % 3 for n in range(60))), concurrency=2
        )
        assert ["s0", "s1", "s2"] == sorted(world.asked)
        assert [True, False, True] * 20 == [outcome.result is not None for outcome in outcomes]
        assert 1 == len({id(outcome.error) for outcome in outcomes if outcome.error})

    play(schedule)


def test_sends_without_a_name_are_each_their_own() -> None:
    """No name, nothing to fold; also when they fail."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(status=418 if n < 2 else None)
        outcomes = await world.client(max_retries=0).create_send_ids(
            [CreateSendId("campaign")] * 4, concurrency=1
        )
        assert [False, False, True, True] == [o.result is not None for o in outcomes]
        assert 4 == len(set(world.asked))

    play(schedule)


# --- laziness and backpressure -------------------------------------------------------------------


def test_requests_are_taken_as_they_are_needed() -> None:
    """At most ``concurrency`` are in work, and one more has been taken."""

    async def schedule(world: World) -> None:
        taken = 0

        def endless() -> Iterator[CreateSendId]:
            nonlocal taken
            for taken in itertools.count(1):
                yield CreateSendId("campaign", f"s{taken}")

        outcomes = world.client().iter_send_ids(endless(), concurrency=5)
        async with contextlib.aclosing(outcomes):
            done = 0
            async for outcome in outcomes:
                assert outcome.result is not None
                done += 1
                assert taken <= done + 5
                if done == 40:
                    break

    play(schedule)


def test_a_batch_has_no_more_than_concurrency_under_way() -> None:
    """Counted where the requests arrive."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, s: Fate(latency=0.1)
        peak = track(world)
        await world.client().create_send_ids(rows(*range(60)), concurrency=7)
        assert [7] == peak

    play(schedule)


def test_a_request_that_takes_its_time_holds_up_nobody() -> None:
    """Outcomes come while an async iterable is silent for an hour."""

    async def schedule(world: World) -> None:
        async def slow() -> AsyncIterator[CreateSendId]:
            for n in range(3):
                yield CreateSendId("campaign", f"s{n}")
                await asyncio.sleep(3600)

        started = world.loop.time()
        came = [
            round(world.loop.time() - started)
            async for outcome in world.client().iter_send_ids(slow())
        ]
        assert [0, 3600, 7200] == came

    play(schedule)


def test_nothing_begins_before_each_outcome_has_been_taken() -> None:
    """Who writes outcomes down is never behind by more than what is under way."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(latency=0.1 + n % 3 / 10)
        client, taken = world.client(), 0
        async for _ in client.iter_send_ids(rows(*range(30)), concurrency=3):
            taken += 1
            begun = len(world.asked)
            await asyncio.sleep(10)  # all that is under way ends meanwhile
            assert len(world.asked) <= max(begun, 3)
            assert len(world.asked) <= taken + 2
        assert 30 == taken

    play(schedule)


def test_a_request_that_came_late_waits_until_each_outcome_has_been_taken() -> None:
    """It came while an outcome was dealt with, and another outcome did too: that goes first."""

    async def schedule(world: World) -> None:
        async def source() -> AsyncIterator[CreateSendId]:
            for row in rows(0, 1):
                yield row
            await asyncio.sleep(5)
            for row in rows(2):
                yield row

        await world.client().create_send_id("campaign", "first")
        world.fate = lambda n, send_id: Fate(latency=4 if send_id == "s1" else 0.1)
        asked = []
        async for _ in world.client(store=world.clients[0]._store).iter_send_ids(source()):
            await asyncio.sleep(10)
            asked.append(len(world.asked))
        assert [3, 3, 4] == asked

    play(schedule)


# --- the quota's end -----------------------------------------------------------------------------


def test_when_the_quota_ends_the_rest_is_told_at_once() -> None:
    """340 requests on a quota of 100: 100 are made, 240 are told when to come back."""

    async def schedule(world: World) -> None:
        outcomes = await world.client().create_send_ids(rows(*range(340)))
        errors = [outcome.error for outcome in outcomes[100:]]
        assert [f"s{n}" for n in range(100)] == created(outcomes)
        assert all(isinstance(error, QuotaExhaustedError) for error in errors)
        assert [f"s{n}" for n in range(100, 340)] == [error.send_id for error in errors if error]
        assert {"campaign"} == {error.campaign_id for error in errors if error}
        for error in errors:
            assert isinstance(error, QuotaExhaustedError)
            assert (False, 100, 0) == (error.quota_spent, error.limit, error.remaining)
            assert error.resets_at is not None
            assert MIDNIGHT == error.resets_at.timestamp()
            assert error.retry_after is not None
            assert abs(MIDNIGHT + 1 - world.now() - error.retry_after) < 1
        assert (100, 0) == (len(world.asked), world.over)

    play(schedule)


def test_what_exists_is_found_after_the_quota_has_ended() -> None:
    """Those rows cost nothing, so they are no failures."""

    async def schedule(world: World) -> None:
        client = world.client()
        await client.create_send_ids(rows(*range(10)))
        outcomes = await client.create_send_ids([*rows(*range(10, 130)), *rows(*range(10))])
        assert 90 == len(created(outcomes[:120]))
        assert all(outcome.result and outcome.result.reused for outcome in outcomes[120:])
        assert (100, 0) == (len(world.asked), world.over)

    play(schedule)


def test_a_pair_in_doubt_is_still_told_as_such_after_the_quota_has_ended() -> None:
    """``quota_spent`` does not say no where nobody knows."""

    async def schedule(world: World) -> None:
        store = world.store()
        world.fate = lambda n, send_id: UNANSWERED
        client = world.client(store=store, max_retries=0, timeout=1.0)
        with pytest.raises(APITimeoutError):
            await client.create_send_id("campaign", "s0")
        world.fate = lambda n, send_id: Fate()
        world.model.spend(99, world.now())
        outcomes = await world.client(store=store).create_send_ids(rows(1, 2, 0), concurrency=1)
        errors = [outcome.error for outcome in outcomes]
        assert all(isinstance(error, QuotaExhaustedError) for error in errors)
        assert [False, False, None] == [error.quota_spent for error in errors if error]
        assert ["s0", "s1"] == world.asked

    play(schedule)


def test_a_stream_goes_on_when_the_quota_is_back() -> None:
    """The end of the quota is for as long as it was said to be."""

    async def schedule(world: World) -> None:
        async def stream() -> AsyncIterator[CreateSendId]:
            for n in range(120):
                yield CreateSendId("campaign", f"s{n}")
            await asyncio.sleep(16 * 3600)  # from nine in the morning over midnight
            for n in range(120, 140):
                yield CreateSendId("campaign", f"s{n}")

        outcomes = await world.client().create_send_ids(stream())
        made = [outcome.result is not None for outcome in outcomes]
        assert [True] * 100 + [False] * 20 + [True] * 20 == made
        assert 0 == world.over

    play(schedule)


def test_an_unlimited_wait_creates_all_requests() -> None:
    """340 on a quota of 100 take until the fourth day."""

    async def schedule(world: World) -> None:
        outcomes = await world.client().create_send_ids(rows(*range(340)), max_rate_limit_wait=None)
        assert 340 == len(created(outcomes))
        assert [100, 100, 100, 40] == list(world.model.created_by_window.values())
        assert 0 == world.over

    play(schedule)


def test_the_end_is_told_as_it_is_now() -> None:
    """Long after the end was met, the words and the number count from when they are told."""

    async def schedule(world: World) -> None:
        async def source() -> AsyncIterator[CreateSendId]:
            for request in rows(1, 2, 3):
                yield request
                await asyncio.sleep(3600)

        client = world.client(daily_limit=1, max_rate_limit_wait=0)
        _, first, second = await client.create_send_ids(source())
        for told, hours in ((first.error, 1), (second.error, 2)):
            assert isinstance(told, QuotaExhaustedError)
            left = MIDNIGHT + 1 - MORNING - hours * 3600
            assert told.retry_after == pytest.approx(left, abs=2)
            assert told.retry_after is not None
            assert f"; come back in {span(told.retry_after)} (the quota resets " in str(told)

    play(schedule)


def test_what_is_under_way_may_leave_a_slot() -> None:
    """The end is told when nothing of the batch is out: no slot is left, and the time is right."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(refused=send_id in ("s5", "s6", "s7"))
        client = world.client(max_retries=0, daily_limit=8, max_rate_limit_wait=0)
        outcomes = await client.create_send_ids(rows(*range(20)), concurrency=8)
        assert 8 == len(created(outcomes))
        ends = [o.error for o in outcomes if isinstance(o.error, QuotaExhaustedError)]
        assert 9 == len(ends)
        for error in ends:
            assert error.retry_after is not None
            assert abs(MIDNIGHT + 1 - world.now() - error.retry_after) < 1

    play(schedule)


def test_the_end_of_the_quota_costs_no_rush() -> None:
    """Each of 130 in work asks again once at most, and nearly all only for what exists already."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(latency=0.1 + n % 7 / 10)
        client, asked, for_quota = world.client(max_rate_limit_wait=0), 0, 0
        creates = client._creates()
        create = creates.create

        async def counted(request: Any, wait: Any, headroom: int, policy: Any) -> Any:
            nonlocal asked, for_quota
            asked += 1
            for_quota += headroom == 0
            return await create(request, wait, headroom, policy)

        creates.create = counted  # type: ignore[method-assign]
        outcomes = await client.create_send_ids(rows(*range(150)), concurrency=130)
        assert (20, 0) == (len(created(outcomes)), world.over)
        assert 150 <= asked <= 300
        assert for_quota < 150

    play(schedule, daily_limit=20)


def test_the_end_is_told_though_others_take_long() -> None:
    """One attempt's timeout is waited for them, and no longer."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: UNANSWERED if send_id == "s0" else Fate()
        client = world.client(max_rate_limit_wait=0, daily_limit=2)
        started, came = world.loop.time(), {}
        async for outcome in client.iter_send_ids(rows(1, 0, 2), concurrency=2):
            came[outcome.request.send_id] = round(world.loop.time() - started)
        assert (0, 10) == (came["s1"], came["s2"])
        assert came["s0"] > 20

    play(schedule)


# --- pauses after another limit's 429 ------------------------------------------------------------


def answer_429(world: World, *numbers: int, **headers: str) -> None:
    """Requests of these numbers, from 0, meet another limit than the day's."""
    handle = world.handle
    seen = itertools.count()

    def handle_or_refuse(*args: Any) -> Reply:
        if next(seen) not in numbers:
            return handle(*args)
        reply = world.model.answer(429, world.now())
        return Reply(429, reply.headers | headers, reply.body)

    world.handle = handle_or_refuse  # type: ignore[assignment]  # the same arguments


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "3"}])
@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("options", "headroom", "slots"), [({}, 0, 100), ({"daily_limit": 50}, 0, 50), ({}, 20, 80)]
)
def test_a_short_pause_is_not_the_end_of_the_quota(
    options: dict[str, int], headroom: int, slots: int, concurrency: int, headers: dict[str, str]
) -> None:
    """A batch that waits for no quota waits for the end of a pause, and uses every slot."""

    async def schedule(world: World) -> None:
        answer_429(world, 4, 30, **headers)
        client = world.client(max_rate_limit_wait=0, **options)
        started = world.loop.time()
        outcomes = await client.create_send_ids(
            rows(*range(120)), concurrency=concurrency, headroom=headroom
        )
        assert [f"s{n}" for n in range(slots)] == sorted(created(outcomes), key=by_number)
        assert (slots + 2, 0) == (len(world.asked), world.over)
        assert world.loop.time() - started < 30
        for outcome in outcomes[slots:]:
            assert isinstance(outcome.error, QuotaExhaustedError)
            assert headroom == outcome.error.remaining

    play(schedule)


def by_number(send_id: str) -> int:
    return int(send_id[1:])


def test_in_a_pause_of_another_process_a_batch_goes_on_after_it() -> None:
    """A batch that begins in a pause waits for its end."""

    async def schedule(world: World) -> None:
        store = world.store()
        answer_429(world, 1)
        other = world.client(store=store, max_rate_limit_wait=0)
        results = await gather(many(other, (1, 2)))
        assert [SendId, RateLimitError] == [type(result) for result in results]
        client = world.client(store=store, max_rate_limit_wait=0)
        assert 9 == len(created(await client.create_send_ids(rows(*range(10, 19)))))

    play(schedule)


@pytest.mark.parametrize(("options", "headroom"), [({"daily_limit": 2}, 0), ({}, 98)])
def test_a_used_up_quota_is_the_end_though_there_is_a_pause(
    options: dict[str, int], headroom: int
) -> None:
    """A batch waits for no pause after which no slot is free for it."""

    async def schedule(world: World) -> None:
        store = world.store()
        client = world.client(store=store, max_rate_limit_wait=0, **options)
        assert 2 == len(created(await client.create_send_ids(rows(0, 1))))
        answer_429(world, 0)
        with pytest.raises(RateLimitError):
            await world.client(store=store, max_rate_limit_wait=0).create_send_id("campaign", "x")
        started = world.loop.time()
        outcomes = await client.create_send_ids(rows(*range(2, 30)), headroom=headroom)
        assert started == world.loop.time()
        assert {QuotaExhaustedError} == {type(outcome.error) for outcome in outcomes}
        assert {headroom} == {getattr(outcome.error, "remaining", None) for outcome in outcomes}

    play(schedule)


def test_a_long_pause_ends_a_batch() -> None:
    """A pause that is longer than an attempt's timeout is told at once, with its end."""

    async def schedule(world: World) -> None:
        answer_429(world, 2, **{"Retry-After": "60"})
        started = world.loop.time()
        client = world.client(max_rate_limit_wait=0)
        outcomes = await client.create_send_ids(rows(*range(20)), concurrency=1)
        assert ["s0", "s1"] == created(outcomes)
        assert world.loop.time() - started < 1
        for outcome in outcomes[2:]:
            assert isinstance(outcome.error, QuotaExhaustedError)
            assert outcome.error.retry_after == pytest.approx(63, abs=4)

    play(schedule)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "2"}])
@pytest.mark.parametrize("concurrency", [1, 8, 130])
def test_answers_that_are_always_429_end_a_batch(concurrency: int, headers: dict[str, str]) -> None:
    """A batch of any length ends after a few pauses if each is followed by another 429."""

    async def schedule(world: World) -> None:
        answer_429(world, *range(1000), **headers)
        started = world.loop.time()
        client = world.client(max_rate_limit_wait=0)
        outcomes = await client.create_send_ids(rows(*range(300)), concurrency=concurrency)
        assert [] == created(outcomes)
        assert world.loop.time() - started < 60
        assert len(world.asked) < 20

    play(schedule, headers_on_429=False)


@pytest.mark.parametrize("pause", ["3", "60"])
@pytest.mark.parametrize("others", [[], rows(0)])
def test_a_row_without_a_name_that_is_in_doubt_is_not_asked_for_again(
    others: list[CreateSendId], pause: str
) -> None:
    """A row that may exist, and would get another name, makes no second send."""

    async def schedule(world: World) -> None:
        client = world.client(max_rate_limit_wait=0)
        await client.create_send_id("campaign", "first")
        world.fate = lambda n, send_id: (
            Fate(latency=9, counted_after=0.0) if send_id == "s0" else Fate(breaks=n == 1)
        )
        answer_429(world, 1 + len(others), **{"Retry-After": pause})
        outcome, *_ = await client.create_send_ids([CreateSendId("campaign"), *others])
        assert isinstance(outcome.error, QuotaExhaustedError)
        assert None is outcome.error.quota_spent
        assert {"first", str(outcome.error.send_id), *(o.send_id for o in others)} == {*world.asked}

    play(schedule)


# --- pairs that are under way elsewhere ----------------------------------------------------------


async def leave_in_flight(world: World, store: MemoryStore, *names: object) -> None:
    """As a process does that is killed: leases for these pairs that nobody ends."""
    await world.client(store=store).create_send_id("campaign", "first")
    limiter = world.clients[-1]._creates().limiter
    for request in rows(*names):
        pair = pair_digest(request).hex()
        ask = Ask(f"killed-{request.send_id}", 1, pair, timeout=10.0)
        assert isinstance(await limiter.acquire(ask, WaitBudget(0.0)), Held)


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("wait", [0, 30, None])
def test_rows_of_a_killed_process_keep_no_other_waiting(
    wait: float | None, concurrency: int
) -> None:
    """Eight rows wait until the leases of a killed process have ended; the others go on."""

    async def schedule(world: World) -> None:
        store = world.store()
        await leave_in_flight(world, store, *range(8))
        world.fate = lambda n, send_id: Fate(latency=0.1)
        peak = track(world)
        started, came = world.loop.time(), dict[str, float]()
        client = world.client(store=store)
        async for outcome in client.iter_send_ids(
            rows(*range(30)), concurrency=concurrency, max_rate_limit_wait=wait
        ):
            assert outcome.result is not None
            came[outcome.result.send_id] = world.loop.time() - started
            if len(came) == 22:
                assert concurrency == peak[0]
        assert [f"s{n}" for n in range(8, 30)] == sorted(list(came)[:22], key=by_number)
        assert max(list(came.values())[:22]) < 5
        assert 15 <= min(came[f"s{n}"] for n in range(8))
        assert peak[0] <= max(8, concurrency) + concurrency
        creates = client._creates()
        assert (set(), set()) == (creates.pair_waits, creates.on_pair_waits)

    play(schedule)


def track(world: World) -> list[int]:
    """How many requests were out at a time, at most."""
    out, peak, fate = [0], [0], world.fate

    def tracked(n: int, send_id: str) -> Fate:
        out[0] += 1
        peak[0] = max(peak[0], out[0])
        ends = fate(n, send_id)
        world.loop.call_later(ends.latency, answered)
        return ends

    def answered() -> None:
        out[0] -= 1

    world.fate = tracked
    return peak


def test_a_create_counts_again_when_its_wait_is_over() -> None:
    """No row begins beside one that has waited for its pair and is sent now, at concurrency 1."""

    async def schedule(world: World) -> None:
        store, taken = world.store(), 0
        await leave_in_flight(world, store, 0)

        async def source() -> AsyncIterator[CreateSendId]:
            nonlocal taken
            yield rows(0)[0]
            await asyncio.sleep(14)
            for taken in itertools.count(1):
                yield CreateSendId("campaign", f"s{taken}")

        begun: dict[str, float] = {}

        def fate(n: int, send_id: str) -> Fate:
            begun[send_id] = world.loop.time()
            return Fate(latency=9)

        world.fate = fate
        client = world.client(store=store)
        async with contextlib.aclosing(client.iter_send_ids(source(), concurrency=1)) as outcomes:
            came = [(await anext(outcomes)).request.send_id for _ in range(4)]
        assert ["s1", "s0", "s2", "s3"] == came
        assert begun["s0"] < begun["s1"] + 9  # the wait was over beside another request
        assert begun["s2"] == pytest.approx(begun["s0"] + 9, abs=0.1)
        assert begun["s3"] == pytest.approx(begun["s2"] + 9, abs=0.1)
        assert taken <= 5

    play(schedule)


def test_the_same_row_many_times_makes_room_once() -> None:
    """Rows of one pair that is under way elsewhere are not all taken, however many there are."""

    async def schedule(world: World) -> None:
        store, taken = world.store(), 0
        await leave_in_flight(world, store, 0)

        def source() -> Iterator[CreateSendId]:
            nonlocal taken
            for row in rows(0) * 1000:
                taken += 1
                yield row

        batch = asyncio.create_task(
            world.client(store=store).create_send_ids(source(), concurrency=4)
        )
        await asyncio.sleep(10)
        assert taken <= 6
        outcomes = await batch
        assert 1000 == len(created(outcomes))
        assert 2 == len(world.asked)

    play(schedule)


def test_a_row_for_which_somebody_waits_already_keeps_no_other_waiting() -> None:
    """A create that joins one which waits for its pair makes room as that one would."""

    async def schedule(world: World) -> None:
        store = world.store()
        await leave_in_flight(world, store, 0)
        client = world.client(store=store)
        other = asyncio.create_task(client.create_send_id("campaign", "s0"))
        await asyncio.sleep(1)
        came = [
            outcome.request.send_id
            async for outcome in client.iter_send_ids(rows(0, 1, 2), concurrency=1)
        ]
        assert (["s1", "s2", "s0"], "s0") == (came, (await other).send_id)

    play(schedule)


def test_nothing_begins_beside_a_wait_for_a_pair_before_each_outcome_has_been_taken() -> None:
    """Who writes outcomes down is never behind by more than what is under way."""

    async def schedule(world: World) -> None:
        store = world.store()
        await leave_in_flight(world, store, 0)
        taken = 0
        async for outcome in world.client(store=store).iter_send_ids(
            rows(*range(6)), concurrency=1
        ):
            assert outcome.result is not None
            taken += 1
            await asyncio.sleep(1)
            assert taken == len(world.asked) - 1
        assert 6 == taken

    play(schedule)


def test_a_batch_cancelled_while_a_row_waits_for_its_pair_leaves_nothing() -> None:
    """A batch that is cancelled then ends at once, and keeps no hold on the client."""

    async def schedule(world: World) -> None:
        store = world.store()
        await leave_in_flight(world, store, 0, 1)
        client = world.client(store=store)
        batch = asyncio.create_task(client.create_send_ids(rows(0, 1), concurrency=1))
        await asyncio.sleep(1)
        creates = client._creates()
        assert (2, 1) == (len(creates.pair_waits), len(creates.on_pair_waits))
        started = world.loop.time()
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert started == world.loop.time()
        assert (set(), set(), set()) == (
            creates.running,
            creates.pair_waits,
            creates.on_pair_waits,
        )

    play(schedule)


# --- waits without end ---------------------------------------------------------------------------


def test_who_waits_for_ever_outlasts_answers_that_do_not_say_how_long() -> None:
    """A 429 without headers is no failure then, however many come."""

    async def schedule(world: World) -> None:
        world.model.spend(100, world.now())
        client = world.client(max_rate_limit_wait=None)
        send = await client.create_send_id("campaign", "s0")
        assert send.attempts > 100
        assert MIDNIGHT < world.now() < MIDNIGHT + 100
        assert [1] == list(world.model.created_by_window.values())

    play(schedule, headers_on_429=False)


def test_headroom_is_left() -> None:
    """Bulk work stops before the slots of others."""

    async def schedule(world: World) -> None:
        outcomes = await world.client().create_send_ids(rows(*range(120)), headroom=20)
        assert 80 == len(created(outcomes))

    play(schedule)


def test_a_quota_that_will_never_be_there_is_told_without_a_time() -> None:
    """Nothing says when to come back, so each is told the same, without one."""

    async def schedule(world: World) -> None:
        outcomes = await world.client(daily_limit=0).create_send_ids(rows(1, 2, 3), concurrency=1)
        for outcome in outcomes:
            assert isinstance(outcome.error, QuotaExhaustedError)
            assert None is outcome.error.retry_after
        assert [] == world.asked

    play(schedule)


# --- ends that are not the end -------------------------------------------------------------------


async def test_a_batch_cancelled_at_any_moment_leaves_no_task_and_no_trace(fake: FakeBraze) -> None:
    """What was sent is remembered and settled, what was not gave its slot back."""
    fake.daily_limit = 1000
    made: set[int] = set()
    async with client_of(fake, store=MemoryStore()) as braze:
        await braze.create_send_id("campaign", "first")
        for turns in itertools.count(0, 2):
            asked = rows(*(f"{turns}-{n}" for n in range(4)))
            batch = asyncio.create_task(braze.create_send_ids(asked, concurrency=3))
            for _ in range(turns):
                await asyncio.sleep(0)
            if batch.done():
                break
            batch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await batch
            assert [] == tasks_of_ours()
            status = await braze.quota()
            assert (0, 0) == (status.in_flight, status.unconfirmed)
            assert fake.remaining == status.remaining
            remembered = [request for request in asked if await found(braze, request)]
            assert [r for r in asked if (r.campaign_id, r.send_id) in fake.created] == remembered
            made.add(len(remembered))
    assert {0, 3, 4} <= made


async def found(braze: SendsClient, request: CreateSendId) -> bool:
    return await braze.find_send_id(request.campaign_id, str(request.send_id)) is not None


def tasks_of_ours() -> list[str]:
    codes = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()]
    files = [Path(code.co_filename) for code in codes if code is not None]
    return [file.name for file in files if file.parent.name in ("braze_sends", "quota")]


async def test_requests_that_fail_as_they_are_cancelled_leave_no_complaint(fake: FakeBraze) -> None:
    """Their error comes too late for anybody, and the loop does not complain of it."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))

    async def source() -> AsyncIterator[CreateSendId]:
        yield CreateSendId("campaign", "s")
        try:
            await asyncio.sleep(3600)
        finally:
            raise RuntimeError("the cursor is gone")

    async with client_of(fake) as braze:
        batch = asyncio.create_task(braze.create_send_ids(source()))
        await until(lambda: fake.created)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
    gc.collect()
    assert [] == complaints


def test_a_cancelled_batch_does_not_wait_for_what_somebody_else_has_joined() -> None:
    """One attempt's timeout at most, though the other waits for quota until midnight."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: LOST if n == 1 else Fate()
        client = world.client(timeout=3, max_rate_limit_wait=None)
        await client.create_send_id("campaign", "first")
        batch = asyncio.create_task(client.create_send_ids(rows(1)))
        await asyncio.sleep(1)
        batch.cancel()
        await asyncio.sleep(0.01)
        world.model.spend(99, world.now())
        other = asyncio.create_task(client.create_send_id("campaign", "s1"))
        cancelled = world.now()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert world.now() - cancelled <= 3
        assert "s1" == (await other).send_id

    play(schedule)


async def test_a_batch_cancelled_twice_waits_no_longer(fake: FakeBraze) -> None:
    """The request runs on, as that of any cancelled create does."""
    handled = asyncio.Event()
    fake.script(Fault(delay=handled))
    async with client_of(fake) as braze:
        batch = asyncio.create_task(braze.create_send_ids(rows(0)))
        await until(lambda: fake.requests)
        batch.cancel()
        (create,) = braze._creates().running
        await until(lambda: not create.callers)
        assert not batch.done()
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert [] == fake.created
        handled.set()
    assert [("campaign", "s0")] == fake.created


async def test_a_batch_left_before_its_end_settles_what_was_sent(fake: FakeBraze) -> None:
    """``aclosing`` waits for what was sent."""
    answer = asyncio.Event()
    fake.fault_for = lambda request: Fault(stall=answer) if len(fake.requests) > 1 else None
    async with client_of(fake) as braze:
        async with contextlib.aclosing(braze.iter_send_ids(rows(*range(9)), concurrency=3)) as many:
            async for outcome in many:
                assert outcome.result is not None
                await until(lambda: 3 == len(fake.created))
                asyncio.get_running_loop().call_soon(answer.set)
                break
        assert answer.is_set()
        assert 3 == len(fake.created) == 100 - (await braze.quota()).remaining
        assert (0, set()) == ((await braze.quota()).in_flight, braze._creates().running)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_requests_that_break_off_end_a_batch_when_the_rest_is_done(asynchronous: bool) -> None:
    """Their error is raised; the outcomes before it have come."""

    async def schedule(world: World) -> None:
        def broken() -> Iterator[CreateSendId]:
            yield from rows(0, 1, 2)
            raise LookupError("the calendar broke off")

        async def broken_too() -> AsyncIterator[CreateSendId]:
            for row in broken():
                yield row

        came: list[Outcome] = []
        with pytest.raises(LookupError, match="the calendar broke off"):
            await world.client().create_send_ids(
                broken_too() if asynchronous else broken(), on_outcome=came.append
            )
        assert ["s0", "s1", "s2"] == sorted(created(came))

    play(schedule)


def test_a_name_that_cannot_be_made_ends_a_batch_when_the_rest_is_done() -> None:
    """An error of the caller's own factory is not an outcome, and hides none."""

    async def schedule(world: World) -> None:
        names = iter(["a", "b"])

        def factory() -> str:
            for name in names:
                return name
            raise LookupError("no more names")

        came: list[Outcome] = []
        with pytest.raises(LookupError, match="no more names"):
            await world.client(send_id_factory=factory).create_send_ids(
                [CreateSendId("campaign")] * 9, on_outcome=came.append
            )
        assert ["a", "b"] == sorted(created(came))

    play(schedule)


def test_an_error_of_the_requests_is_not_held_back_by_a_wait() -> None:
    """Who waits for quota is called off after an attempt's timeout."""

    async def schedule(world: World) -> None:
        async def broken() -> AsyncIterator[CreateSendId]:
            for row in rows(*range(103)):
                yield row
            await asyncio.sleep(60)
            raise LookupError("the calendar broke off")

        started = world.loop.time()
        with pytest.raises(LookupError, match="the calendar broke off"):
            await world.client().create_send_ids(broken(), max_rate_limit_wait=None)
        assert 70 <= world.loop.time() - started < 72
        assert 100 == len(world.asked)

    play(schedule)


def test_a_name_that_cannot_be_made_is_not_held_back_by_silent_requests() -> None:
    """Nor is that."""

    async def schedule(world: World) -> None:
        async def silent() -> AsyncIterator[CreateSendId]:
            yield CreateSendId("campaign")
            await asyncio.sleep(1e6)

        def factory() -> str:
            raise LookupError("no names")

        with pytest.raises(LookupError, match="no names"):
            await world.client(send_id_factory=factory).create_send_ids(silent())
        assert world.loop.time() < 100

    play(schedule)


def test_requests_that_wait_for_what_is_cancelled_end_a_batch() -> None:
    """As any error of theirs does: what is under way is told first."""

    async def source() -> AsyncIterator[CreateSendId]:
        for request in rows(1, 2, 3):
            yield request
        helper = asyncio.create_task(asyncio.sleep(3600))
        helper.cancel()
        await helper

    async def schedule(world: World) -> None:
        told: list[Outcome] = []
        with pytest.raises(asyncio.CancelledError):
            await world.client().create_send_ids(source(), on_outcome=told.append)
        assert ["s1", "s2", "s3"] == sorted(created(told))

    play(schedule)


def test_an_on_outcome_that_raises_ends_a_batch() -> None:
    """As cancelling it does: what was sent settles."""

    def on_outcome(outcome: Outcome) -> None:
        raise LookupError("the disk is full")

    async def schedule(world: World) -> None:
        client = world.client()
        await client.create_send_id("campaign", "first")
        world.fate = lambda n, send_id: Fate(latency=n / 10)
        with pytest.raises(LookupError, match="the disk is full"):
            await client.create_send_ids(rows(*range(50)), on_outcome=on_outcome, concurrency=3)
        assert 4 == len(world.asked) == len(world.created)
        status = await client.quota()
        assert (96, 0, 0) == (status.remaining, status.in_flight, status.unconfirmed)

    play(schedule)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "options"),
    [
        ("concurrency must be 1 or more", {"concurrency": 0}),
        ("concurrency must be an integer", {"concurrency": True}),
        ("concurrency must be an integer", {"concurrency": "8"}),
        ("headroom must be an integer", {"headroom": -1}),
        ("max_rate_limit_wait must be", {"max_rate_limit_wait": float("nan")}),
        ("requests must be an iterable of CreateSendId, not NoneType", {"requests": None}),
    ],
)
async def test_arguments_are_checked(
    fake: FakeBraze, problem: str, options: dict[str, Any]
) -> None:
    """Before anything is taken or sent."""
    options = {"requests": rows(0)} | options
    async with client_of(fake) as braze:
        with pytest.raises(ConfigurationError, match=problem):
            await braze.create_send_ids(**options)
        with pytest.raises(ConfigurationError, match=problem):
            braze.iter_send_ids(**options)
    assert [] == fake.requests


async def test_on_outcome_is_a_plain_function(fake: FakeBraze) -> None:
    """A coroutine function would never be awaited."""

    async def on_outcome(outcome: Outcome) -> None: ...

    class Sink:
        async def __call__(self, outcome: Outcome) -> None: ...

    async with client_of(fake) as braze:
        for wrong in (on_outcome, Sink(), 5):
            with pytest.raises(ConfigurationError, match="take iter_send_ids"):
                await braze.create_send_ids(rows(0), on_outcome=wrong)  # type: ignore[arg-type]
    assert [] == fake.requests


async def test_a_closed_client_takes_no_batch(fake: FakeBraze) -> None:
    """It says so at once."""
    braze = client_of(fake)
    await braze.close()
    with pytest.raises(ConfigurationError, match="closed"):
        await braze.create_send_ids(rows(0))
    with pytest.raises(ConfigurationError, match="closed"):
        braze.iter_send_ids(rows(0))


async def test_closing_the_client_ends_a_batch(fake: FakeBraze) -> None:
    """What was sent has its result, what was not says that the client was closed."""
    answer = asyncio.Event()
    fake.script(Fault(stall=answer))
    async with client_of(fake) as braze:
        batch = asyncio.create_task(braze.create_send_ids(rows(*range(9)), concurrency=3))
        await until(lambda: fake.created)
        closing = asyncio.create_task(braze.close())
        await until(lambda: braze._closed)
        assert not closing.done()
        answer.set()
        await closing
        outcomes = await batch
    assert ["s0"] == created(outcomes)
    assert all("closed" in str(outcome.error) for outcome in outcomes[1:])


# --- what is remembered --------------------------------------------------------------------------


async def test_a_pair_that_exists_is_found(fake: FakeBraze) -> None:
    """Without a request; one that does not, or may not, is not."""
    fake.script(None, Fault(drop="after"))
    async with client_of(fake, max_retries=0) as braze:
        send = await braze.create_send_id("campaign", "s0")
        await braze.create_send_ids(rows(1))
        asked = len(fake.requests)
        same = await braze.find_send_id("campaign", "s0")
        assert same is not None
        assert (send.send_id, True, 0) == (same.send_id, same.reused, same.attempts)
        assert send.request_id == same.request_id
        assert None is await braze.find_send_id("campaign", "s1")
        assert None is await braze.find_send_id("campaign", "s2")
        with pytest.raises(ConfigurationError, match="ASCII"):
            await braze.find_send_id("campaign", "ü")
        assert asked == len(fake.requests)
