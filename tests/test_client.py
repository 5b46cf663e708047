"""``SendsClient`` over real sockets: what a user of it sees."""

from __future__ import annotations

import asyncio
import gc
import inspect
import warnings
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from braze_sends import (
    UNSET,
    APIConnectionError,
    APIResponseValidationError,
    APITimeoutError,
    BrazeSendsError,
    ConfigurationError,
    InternalServerError,
    MemoryStore,
    QuotaExhaustedError,
    RateLimitError,
    SendId,
    SendsClient,
    StoreError,
    Unset,
    new_send_id,
)
from braze_sends.quota.limiter import LONGEST_OUTAGE
from braze_sends.stores.store import Transaction
from braze_sends.testing import FakeBraze, Fault
from braze_sends.testing.model import RATE_LIMIT_HEADERS
from tests.conftest import StoppedClock
from tests.servers import braze as emulator
from tests.servers import free_port, running
from tests.waiting import PATIENCE, until
from tests.world import KEY, Fate, World, play


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)


@pytest.fixture
def long_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """No retry within a test."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 1e6)


def client_of(fake: FakeBraze, **options: Any) -> SendsClient:
    """A client that does not give up because the machine is busy."""
    options = {"timeout": PATIENCE, "max_rate_limit_wait": PATIENCE} | options
    return SendsClient(KEY, base_url=fake.base_url, **options)


def held(fake: FakeBraze) -> asyncio.Event:
    """The next request is handled at once, and answered when the event is set."""
    answer = asyncio.Event()
    fake.script(Fault(stall=answer))
    return answer


async def test_a_send_id_is_created(fake: FakeBraze) -> None:
    """The answer's numbers come with it, and ``str`` gives the send ID."""
    async with client_of(fake) as braze:
        send = await braze.create_send_id("campaign", "story-1")
        assert [("campaign", "story-1")] == fake.created
        assert ("story-1", False, False, 1) == (
            str(send),
            send.queued,
            send.reused,
            send.attempts,
        )
        assert send.rate_limit == braze.rate_limit
        assert (100, 99) == (send.rate_limit.limit, send.rate_limit.remaining)  # type: ignore[union-attr]
        assert send.request_id
        status = await braze.quota()
        assert (100, 99, 0, 0, True) == (
            status.limit,
            status.remaining,
            status.in_flight,
            status.unconfirmed,
            status.known,
        )


async def test_500_tasks_on_a_quota_of_100_create_exactly_100(fake: FakeBraze) -> None:
    """Exactly 100 are created, 400 raise ``QuotaExhaustedError``, and no answer is a 429."""
    async with client_of(fake) as braze:
        results = await asyncio.gather(
            *(braze.create_send_id("campaign", f"s{n}") for n in range(500)),
            return_exceptions=True,
        )
        kinds = Counter(type(result) for result in results)
        assert {SendId: 100, QuotaExhaustedError: 400} == kinds
        assert (100, 100, 0) == (len(fake.created), len(fake.requests), fake.refused)
        error = next(result for result in results if isinstance(result, QuotaExhaustedError))
        assert (100, 0, False) == (error.limit, error.remaining, error.quota_spent)
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 86_402
        assert (await braze.quota()).resets_at == error.resets_at


async def test_a_response_lost_after_the_create_makes_one_pair(
    fake: FakeBraze, no_backoff: None
) -> None:
    """The repeat asks for the same pair."""
    fake.script(Fault(drop="after"))
    async with client_of(fake) as braze:
        send = await braze.create_send_id("campaign")
        assert [("campaign", send.send_id)] == fake.created
        assert 2 == send.attempts == len(fake.requests)


async def test_a_pair_in_flight_is_one_request(fake: FakeBraze) -> None:
    """Its callers get the same result, also those who joined one that was cancelled."""
    answer = held(fake)
    async with client_of(fake) as braze:
        first, second, third = (
            asyncio.create_task(braze.create_send_id("campaign", "pair")) for _ in range(3)
        )
        await until(lambda: fake.created)
        first.cancel()
        await until(first.cancelled)
        answer.set()
        assert "pair" == str(await second)
        assert (await second) is (await third)
        assert 1 == len(fake.requests)
        first, second = (
            asyncio.create_task(braze.create_send_id("campaign", "other")) for _ in range(2)
        )
        await asyncio.sleep(0)
        first.cancel()  # before anything was sent
        assert "other" == str(await second)
        assert first.cancelled()


async def test_a_created_pair_is_remembered(fake: FakeBraze) -> None:
    """Asked again it is ``reused``: no request, no quota, also when nothing is left."""
    async with client_of(fake) as braze:
        first = await braze.create_send_id("campaign", "pair")
        fake.spend(99)
        await braze.forget_quota()
        again = await braze.create_send_id("campaign", "pair", max_rate_limit_wait=0)
        assert (True, 0, first.request_id) == (again.reused, again.attempts, again.request_id)
        assert 1 == len(fake.requests)


async def test_clients_that_share_a_store_share_the_quota_and_the_pairs(fake: FakeBraze) -> None:
    """100 between them, no 429, and a pair asked of both is one request."""
    store = MemoryStore()
    async with client_of(fake, store=store) as one, client_of(fake, store=store) as two:
        pairs = await asyncio.gather(
            one.create_send_id("campaign", "pair"), two.create_send_id("campaign", "pair")
        )
        assert {False, True} == {send.reused for send in pairs}
        results = await asyncio.gather(
            *(
                client.create_send_id("campaign", f"{n}{name}")
                for n in range(80)
                for name, client in (("a", one), ("b", two))
            ),
            return_exceptions=True,
        )
        assert 99 == sum(isinstance(result, SendId) for result in results)
        assert (100, 0) == (len(fake.created), fake.refused)


async def test_a_workspace_never_delays_another(fake: FakeBraze) -> None:
    """One that is used up does not hold up one that has its whole day."""
    store = MemoryStore()
    async with (
        client_of(fake, store=store, workspace="A", daily_limit=0) as a,
        client_of(fake, store=store, workspace="B") as b,
    ):
        waits = asyncio.create_task(a.create_send_id("campaign", max_rate_limit_wait=None))
        assert isinstance(await b.create_send_id("campaign"), SendId)
        with pytest.raises(QuotaExhaustedError):
            await waits  # an own limit of 0 would never let it through


async def test_an_own_limit_holds_whatever_braze_allows(fake: FakeBraze, no_backoff: None) -> None:
    """``daily_limit=3``: three are created, also when an answer got lost on the way."""
    fake.script(None, Fault(drop="after"))
    async with client_of(fake, daily_limit=3) as braze:
        results = await asyncio.gather(
            *(braze.create_send_id("campaign") for _ in range(5)), return_exceptions=True
        )
        assert (3, 3) == (len(fake.created), (await braze.quota()).limit)
        assert 3 == sum(isinstance(result, SendId) for result in results)


async def test_headroom_leaves_the_last_slots_untouched(fake: FakeBraze) -> None:
    """``headroom=99`` makes one and not two; urgent work still gets through."""
    async with client_of(fake) as braze:
        results = await asyncio.gather(
            *(braze.create_send_id("campaign", headroom=99) for _ in range(2)),
            return_exceptions=True,
        )
        assert 1 == sum(isinstance(result, SendId) for result in results)
        assert isinstance(await braze.create_send_id("campaign"), SendId)
        with pytest.raises(QuotaExhaustedError) as caught:
            await braze.create_send_id("campaign", headroom=100, max_rate_limit_wait=None)
        assert 98 == caught.value.remaining


async def test_a_raised_limit_is_taken_up(fake: FakeBraze) -> None:
    """In the middle of a window, and after ``forget_quota`` when it was used up."""
    fake.daily_limit = 5
    async with client_of(fake, max_rate_limit_wait=0) as braze:
        for n in range(3):
            await braze.create_send_id("campaign", f"a{n}")
        fake.daily_limit = 7
        for n in range(4):
            await braze.create_send_id("campaign", f"b{n}")
        fake.daily_limit = 150
        with pytest.raises(QuotaExhaustedError):
            await braze.create_send_id("campaign")
        await braze.forget_quota()
        fake.spend(130)
        results = await asyncio.gather(
            *(braze.create_send_id("campaign") for _ in range(20)), return_exceptions=True
        )
        assert 13 == sum(isinstance(result, SendId) for result in results)
        assert 0 == fake.refused


async def test_other_users_of_the_workspace_are_seen(fake: FakeBraze) -> None:
    """97 spent elsewhere: the first answer tells, and 3 are created without a 429."""
    fake.spend(97)
    async with client_of(fake) as braze:
        results = await asyncio.gather(
            *(braze.create_send_id("campaign") for _ in range(10)), return_exceptions=True
        )
        assert 3 == sum(isinstance(result, SendId) for result in results)
        assert 0 == fake.refused


async def test_an_unnamed_send_is_not_repeated_when_its_outcome_is_unknown(
    fake: FakeBraze,
) -> None:
    """With ``send_id_factory=None`` a repeat could create a second one."""
    fake.script(Fault(drop="after"), Fault(status=503))
    async with client_of(fake, send_id_factory=None) as braze:
        with pytest.raises(APIConnectionError) as caught:
            await braze.create_send_id("campaign")
        assert (None, None, "campaign") == (
            caught.value.quota_spent,
            caught.value.send_id,
            caught.value.campaign_id,
        )
        assert 1 == len(fake.requests)
        with pytest.raises(InternalServerError):
            await braze.create_send_id("campaign")
        send = await braze.create_send_id("campaign")
        assert ("campaign", send.send_id) == fake.created[-1]


async def test_names_come_from_the_factory(fake: FakeBraze) -> None:
    """One that gives no valid name is refused, and nothing is sent."""
    async with client_of(fake, send_id_factory=lambda: "named") as braze:
        assert "named" == str(await braze.create_send_id("campaign"))
    for bad in (None, "", "ä", 7):
        async with client_of(fake, send_id_factory=lambda bad=bad: bad) as braze:
            with pytest.raises(ConfigurationError):
                await braze.create_send_id("campaign")
    assert 1 == len(fake.requests)
    assert new_send_id() != new_send_id()


@pytest.mark.parametrize(
    ("call", "options"),
    [
        (("",), {}),
        (("c", "x" * 65), {}),
        (("c", 7), {}),
        (("c",), {"headroom": -1}),
        (("c",), {"timeout": 0}),
        (("c",), {"timeout": None}),
        (("c",), {"timeout": 3601}),
        (("c",), {"headroom": True}),
        (("c",), {"max_rate_limit_wait": -1}),
        (("c",), {"max_rate_limit_wait": "soon"}),
    ],
)
async def test_bad_arguments_send_nothing(
    fake: FakeBraze, call: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """They raise ``ConfigurationError``, and ``quota_spent`` is ``False``."""
    async with client_of(fake) as braze:
        with pytest.raises(ConfigurationError) as caught:
            await braze.create_send_id(*call, **options)
        assert False is caught.value.quota_spent
        assert [] == fake.requests


async def test_a_create_that_braze_queued_is_told_and_remembered(fake: FakeBraze) -> None:
    """202 without a send ID: the name that was asked for, ``queued``."""
    fake.script(Fault(status=202, body='{"message":"queued"}'))
    async with client_of(fake) as braze:
        send = await braze.create_send_id("campaign", "pair")
        again = await braze.create_send_id("campaign", "pair")
        assert ("pair", True, False) == (send.send_id, send.queued, send.reused)
        assert ("pair", True, True) == (again.send_id, again.queued, again.reused)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_transient_statuses_are_retried(
    fake: FakeBraze, status: int, no_backoff: None
) -> None:
    """The third attempt succeeds."""
    fake.script(Fault(status=status), Fault(status=status))
    async with client_of(fake) as braze:
        assert 3 == (await braze.create_send_id("campaign")).attempts


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415])
async def test_verdicts_are_not_retried(fake: FakeBraze, status: int) -> None:
    """One request, and the typed error."""
    fake.script(Fault(status=status))
    async with client_of(fake) as braze:
        with pytest.raises(BrazeSendsError) as caught:
            await braze.create_send_id("campaign")
        assert status == caught.value.status_code  # type: ignore[attr-defined]
        assert 1 == len(fake.requests)


async def test_a_page_of_the_edge_in_a_2xx_is_retried(fake: FakeBraze, no_backoff: None) -> None:
    """It is not Braze's answer, and the pair is ours to repeat."""
    fake.script(Fault(status=200, body="<html>maintenance</html>"))
    async with client_of(fake) as braze:
        assert 2 == (await braze.create_send_id("campaign")).attempts


async def test_a_body_that_breaks_the_contract_is_not_retried(fake: FakeBraze) -> None:
    """Braze's own JSON without a send ID: a typed error, and the pair is in doubt."""
    fake.script(Fault(status=201, body='{"message":"success","send_id":null}'))
    async with client_of(fake) as braze:
        with pytest.raises(APIResponseValidationError) as caught:
            await braze.create_send_id("campaign", "pair")
        assert (None, "pair") == (caught.value.quota_spent, caught.value.send_id)
        assert 1 == len(fake.requests)
        assert "pair" == str(await braze.create_send_id("campaign", "pair"))


async def test_a_429_that_says_when_to_come_back_is_an_exhausted_quota(fake: FakeBraze) -> None:
    """Used up elsewhere between two creates: the error carries the numbers, and no second 429."""
    async with client_of(fake) as braze:
        await braze.create_send_id("campaign")
        fake.spend(99)
        with pytest.raises(QuotaExhaustedError) as caught:
            await braze.create_send_id("campaign", "pair")
        assert (100, 0, False, "pair") == (
            caught.value.limit,
            caught.value.remaining,
            caught.value.quota_spent,
            caught.value.send_id,
        )
        with pytest.raises(QuotaExhaustedError):
            await braze.create_send_id("campaign", "pair")
        assert (2, 1) == (len(fake.requests), fake.refused)


async def test_a_429_whose_retry_after_outlasts_the_wait_budget_raises_at_once(
    fake: FakeBraze,
) -> None:
    """``Retry-After: 7`` is longer than the 5 s that it may wait."""
    bare = dict.fromkeys(RATE_LIMIT_HEADERS)
    fake.script(Fault(status=429, headers={**bare, "Retry-After": "7"}))
    async with client_of(fake, max_rate_limit_wait=5) as braze:
        with pytest.raises(QuotaExhaustedError) as caught:
            await braze.create_send_id("campaign")
        assert (7, None) == (caught.value.retry_after, caught.value.resets_at)
        assert 1 == len(fake.requests)


async def test_a_bare_429_is_a_rate_limit_error(fake: FakeBraze) -> None:
    """Nothing says when to come back; ``max_rate_limit_wait=0`` does not wait for the backoff."""
    fake.script(Fault(status=429, body="Too Many Requests", headers="missing"))
    store = MemoryStore(clock=lambda: 0.0)  # the backoff does not end meanwhile
    async with client_of(fake, store=store, max_rate_limit_wait=0) as braze:
        with pytest.raises(RateLimitError) as caught:
            await braze.create_send_id("campaign")
        assert (429, False) == (caught.value.status_code, caught.value.quota_spent)
        with pytest.raises(QuotaExhaustedError) as blocked:
            await braze.create_send_id("campaign")
        assert blocked.value.retry_after is not None
        assert 1 == len(fake.requests)


async def test_a_pause_that_braze_asks_for_is_bounded(fake: FakeBraze) -> None:
    """503 with ``Retry-After: 3600`` is not slept through."""
    fake.script(Fault(status=503, headers={"Retry-After": "3600"}))
    async with client_of(fake) as braze:
        with pytest.raises(InternalServerError) as caught:
            await braze.create_send_id("campaign")
        assert 3600 == caught.value.retry_after
        assert 1 == len(fake.requests)


# --- cancellation ---


async def test_a_create_cancelled_before_sending_leaves_no_trace(fake: FakeBraze) -> None:
    """At every turn of the loop up to the first byte."""
    async with client_of(fake) as braze:
        turns, sent = 0, False
        while not sent:
            task = asyncio.create_task(braze.create_send_id("campaign", f"s{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not braze._creates().running)
            sent = bool(fake.requests)
            status = await braze.quota()
            assert 0 == status.in_flight
            if not sent:
                assert 0 == status.unconfirmed
                assert (100, []) == (status.remaining, fake.created)
            turns += 1
        assert turns > 5
        assert (99, 1) == ((await braze.quota()).remaining, len(fake.created))


async def test_a_create_cancelled_after_sending_is_created_and_remembered(fake: FakeBraze) -> None:
    """``close`` waits for it; asking again gives the ID without a request."""
    store, answer = MemoryStore(), held(fake)
    async with client_of(fake, store=store) as braze:
        task = asyncio.create_task(braze.create_send_id("campaign", "pair"))
        await until(lambda: fake.created)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        closing = asyncio.create_task(braze.close())
        await until(lambda: braze._closed)
        assert not closing.done()
        answer.set()
        await closing
    async with client_of(fake, store=store) as braze:
        assert True is (await braze.create_send_id("campaign", "pair")).reused
        assert (0, 99) == ((await braze.quota()).unconfirmed, (await braze.quota()).remaining)
    assert 1 == len(fake.requests)


@pytest.mark.usefixtures("long_backoff")
async def test_a_create_cancelled_in_a_backoff_gives_the_token_back(fake: FakeBraze) -> None:
    """Only the unconfirmed slot of its attempt stays."""
    fake.script(Fault(drop="after"))
    async with client_of(fake) as braze:
        task = asyncio.create_task(braze.create_send_id("campaign", "pair"))
        await until(lambda: fake.created)
        create = next(iter(braze._creates().running))
        await until(lambda: create.keeps_lease and create.exchange is None)
        task.cancel()
        await until(lambda: not braze._creates().running)
        status = await braze.quota()
        assert (0, 1) == (status.in_flight, status.unconfirmed)


async def test_a_cancelled_create_that_fails_is_not_retried(
    fake: FakeBraze, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for it; the failure is logged without its details."""
    caplog.set_level("INFO", "braze_sends")
    answer = asyncio.Event()
    fake.script(Fault(status=503, stall=answer))
    async with client_of(fake) as braze:
        task = asyncio.create_task(braze.create_send_id("campaign", "pair"))
        await until(lambda: fake.requests)
        task.cancel()
        await until(task.cancelled)
        answer.set()
        await until(lambda: not braze._creates().running)
    assert 1 == len(fake.requests)
    (record,) = caplog.records
    assert record.message.startswith("create failed ")
    assert "unattended=True" in record.message


async def test_a_timeout_around_the_call_ends_it(
    fake: FakeBraze, stopped_clock: StoppedClock
) -> None:
    """``asyncio.timeout`` frees the caller at once, and the request is settled behind it."""
    answer = held(fake)

    async def create(braze: SendsClient) -> SendId:
        async with asyncio.timeout(5):
            return await braze.create_send_id("campaign", "pair")

    async with client_of(fake) as braze:
        task = asyncio.create_task(create(braze))
        await until(lambda: fake.created)
        stopped_clock.advance(5)
        with pytest.raises(TimeoutError):
            await task
        answer.set()
        assert "pair" == str(await braze.create_send_id("campaign", "pair"))
    assert 1 == len(fake.requests)


async def test_a_waiting_call_can_be_cancelled(fake: FakeBraze) -> None:
    """Those behind it in the queue are served all the same."""
    fake.daily_limit, answer = 1, held(fake)
    async with client_of(fake) as braze:
        first, second, third = (
            asyncio.create_task(braze.create_send_id("campaign", f"s{n}")) for n in range(3)
        )
        await until(lambda: fake.created)
        second.cancel()
        answer.set()
        await first
        with pytest.raises(QuotaExhaustedError):
            await third
        assert second.cancelled()


# --- close and loops ---


async def test_close_ends_what_waits_and_waits_for_what_was_sent(fake: FakeBraze) -> None:
    """The sent one is returned, the waiting one raises, and a closed client says so."""
    fake.daily_limit, answer = 1, held(fake)
    braze = client_of(fake)
    sent, waiting = (asyncio.create_task(braze.create_send_id("campaign")) for _ in range(2))
    await until(lambda: fake.created)
    closing = asyncio.create_task(braze.close())
    with pytest.raises(ConfigurationError, match="closed") as caught:
        await waiting
    assert not closing.done()
    answer.set()
    await closing
    await braze.close()
    assert isinstance(await sent, SendId)
    assert False is caught.value.quota_spent
    with pytest.raises(ConfigurationError, match="closed"):
        await braze.create_send_id("campaign")
    assert "closed" in repr(braze)


@pytest.mark.usefixtures("long_backoff")
async def test_close_in_a_backoff_tells_that_the_pair_is_in_doubt(fake: FakeBraze) -> None:
    """The attempt before it may have been counted."""
    fake.script(Fault(drop="after"))
    braze = client_of(fake)
    task = asyncio.create_task(braze.create_send_id("campaign", "pair"))
    await until(lambda: fake.created)
    create = next(iter(braze._creates().running))
    await until(lambda: create.budget.in_doubt and create.exchange is None)
    await braze.close()
    with pytest.raises(ConfigurationError) as caught:
        await task
    assert (None, "pair") == (caught.value.quota_spent, caught.value.send_id)


def test_a_second_event_loop_works_and_leaves_no_warning() -> None:
    """``asyncio.run`` twice with one client that nobody closes: no "Unclosed" anywhere."""

    async def create(braze: SendsClient, port: int) -> SendId:
        async with emulator(api_key=KEY, port=port):
            return await braze.create_send_id("campaign")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        port = free_port()
        braze = SendsClient(KEY, base_url=f"http://127.0.0.1:{port}")
        assert isinstance(asyncio.run(create(braze, port)), SendId)
        assert isinstance(asyncio.run(create(braze, port)), SendId)
        del braze
        gc.collect()


def test_the_end_of_a_loop_leaves_a_slot_unconfirmed_and_none_lost() -> None:
    """The loop ends while a request is out: its slot is unconfirmed, and the next loop goes on."""
    with running(fake := emulator(api_key=KEY)):
        held(fake)
        braze = client_of(fake, store=MemoryStore())

        async def leave() -> None:
            tasks = [asyncio.create_task(braze.create_send_id("campaign", s)) for s in "ab"]
            await until(lambda: fake.created)
            assert not any(task.done() for task in tasks)

        async def look() -> tuple[int, int]:
            status = await braze.quota()
            return status.in_flight, status.unconfirmed

        asyncio.run(leave())
        assert (0, 1) == asyncio.run(look())


async def test_a_session_with_credentials_of_its_own_is_refused(fake: FakeBraze) -> None:
    """aiohttp would not send the key beside them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since aiohttp 3.14
        session = aiohttp.ClientSession(auth=aiohttp.BasicAuth("user", "password"))
    async with session:
        with pytest.raises(ConfigurationError, match="credentials") as caught:
            client_of(fake, session=session)
        assert "password" not in str(caught.value)


async def test_another_running_loop_is_refused(fake: FakeBraze) -> None:
    """A client in use by a loop in another thread raises a clear error, and does not hang."""
    async with client_of(fake) as braze:
        with pytest.raises(ConfigurationError, match="another running event loop"):
            await asyncio.to_thread(asyncio.run, braze.quota())


def test_a_session_of_an_ended_loop_is_refused() -> None:
    """The user's own session lives in one loop."""
    kept: list[SendsClient] = []

    async def first() -> None:
        async with aiohttp.ClientSession() as session:
            kept.append(SendsClient(KEY, base_url="http://127.0.0.1:9", session=session))
            await kept[0].quota()

    asyncio.run(first())
    with pytest.raises(ConfigurationError, match="loop that has ended"):
        asyncio.run(_awaited(kept[0].quota()))


def test_close_in_a_later_loop_is_harmless() -> None:
    """What the first loop had is gone with it."""
    braze = SendsClient(KEY, base_url="http://127.0.0.1:9")
    asyncio.run(_awaited(braze.quota()))
    asyncio.run(braze.close())
    assert "closed" in repr(braze)


def test_the_signature_is_readable() -> None:
    """An option of one call that is left out shows as an ellipsis, and its type has a name."""
    signature = str(inspect.signature(SendsClient.create_send_id))
    assert "max_rate_limit_wait: 'float | Unset | None' = …" in signature
    assert isinstance(UNSET, Unset)


async def test_a_client_takes_all_it_needs_from_the_environment(
    fake: FakeBraze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``BRAZE_SENDS_STORE``, ``BRAZE_API_KEY``, ``BRAZE_BASE_URL``."""
    path = tmp_path / "quota.db"
    monkeypatch.setenv("BRAZE_SENDS_STORE", f"sqlite:///{path}")
    monkeypatch.setenv("BRAZE_API_KEY", KEY)
    monkeypatch.setenv("BRAZE_BASE_URL", fake.base_url + "/")
    async with SendsClient() as braze:
        assert isinstance(await braze.create_send_id("campaign"), SendId)
    assert path.exists()


# --- a store that fails ---


class BrokenStore(MemoryStore):
    """Fails while ``broken`` is set."""

    broken: Exception | None = None

    async def transact(self, *args: Any) -> Any:
        if self.broken:
            raise self.broken
        return await super().transact(*args)


@pytest.mark.parametrize("error", [StoreError("down"), OSError("disk")])
async def test_a_store_that_is_down_before_sending_sends_nothing(
    fake: FakeBraze, error: Exception
) -> None:
    """``StoreError``; it heals by itself when the store is back."""
    store = BrokenStore()
    async with client_of(fake, store=store) as braze:
        store.broken = error
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                await braze.create_send_id("campaign", "pair")
            assert False is caught.value.quota_spent
        with pytest.raises(StoreError):
            await braze.quota()
        assert [] == fake.requests
        store.broken = None
        assert isinstance(await braze.create_send_id("campaign", "pair"), SendId)


async def test_a_store_that_is_down_after_sending_loses_no_id(
    fake: FakeBraze, caplog: pytest.LogCaptureFixture
) -> None:
    """What was created is returned, and the failure is logged."""
    store, answer = BrokenStore(), held(fake)
    async with client_of(fake, store=store) as braze:
        task = asyncio.create_task(braze.create_send_id("campaign", "pair"))
        await until(lambda: fake.created)
        store.broken = StoreError("down")
        answer.set()
        assert "pair" == str(await task)
        told = [record.event for record in caplog.records]  # type: ignore[attr-defined]  # an extra
        assert ["store failed", "settling failed"] == told
        assert "message=down" in caplog.text


def test_waiters_are_told_that_the_store_is_down() -> None:
    """They do not wait for a store that has been away for too long."""

    async def schedule(world: World) -> None:
        store = BrokenStore(clock=world.loop.time, wall=world.now)
        braze = world.client(store=store, max_rate_limit_wait=None)
        await braze.create_send_id("campaign")
        waiting = asyncio.create_task(braze.create_send_id("campaign"))
        await asyncio.sleep(10)
        store.broken = StoreError("down")
        with pytest.raises(StoreError):
            await braze.quota()
        gone = world.loop.time()
        with pytest.raises(StoreError):
            await waiting
        assert LONGEST_OUTAGE <= world.loop.time() - gone < 2 * LONGEST_OUTAGE
        store.broken = None

    play(schedule, daily_limit=1)


async def test_a_store_may_run_a_change_again(fake: FakeBraze) -> None:
    """A reply that got lost, or a retried command, never counts twice."""

    class Twice(MemoryStore):
        async def transact(self, workspace: str, pairs: Any, change: Any) -> Any:
            await super().transact(workspace, pairs, change)
            await asyncio.sleep(0)
            return await super().transact(workspace, pairs, change)

    async with client_of(fake, store=Twice(), max_rate_limit_wait=0) as braze:
        results = await asyncio.gather(
            *(braze.create_send_id("campaign", f"s{n}") for n in range(120)),
            return_exceptions=True,
        )
        assert 100 == sum(isinstance(result, SendId) for result in results)
        assert (100, 0) == (len(fake.created), fake.refused)
        status = await braze.quota()
        assert (0, 0, 0) == (status.remaining, status.in_flight, status.unconfirmed)


def test_a_slow_store_is_asked_in_groups() -> None:
    """What gathers while a transaction is under way goes together in the next one."""

    class Slow(MemoryStore):
        shared = True
        transactions = 0

        async def transact(self, workspace: str, pairs: Any, change: Any) -> Any:
            self.transactions += 1
            await asyncio.sleep(0.01)
            return await super().transact(workspace, pairs, change)

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: Fate(latency=0.1 + n / 1000)  # one answer after the other
        store = Slow(clock=world.loop.time, wall=world.now)
        braze = world.client(store=store)
        await braze.create_send_id("campaign")
        before = store.transactions
        await asyncio.gather(*(braze.create_send_id("campaign") for _ in range(200)))
        assert 201 == len(world.created)
        # 0.2 s of answers, each of which would take two of its own.
        assert store.transactions - before < 40
        alone = store.transactions
        await braze.create_send_id("campaign")
        assert store.transactions - alone <= 3

    play(schedule, daily_limit=1000)


async def _awaited(what: Awaitable[Any]) -> Any:
    return await what


def test_transactions_are_values() -> None:
    """A store author sees what is in one."""
    assert {"now", "bucket", "pairs"} == set(Transaction.__slots__) - {"__weakref__"}


async def test_timeouts_are_told_apart(fake: FakeBraze, stopped_clock: StoppedClock) -> None:
    """No answer within the timeout is both an ``APITimeoutError`` and a ``TimeoutError``."""
    held(fake)
    async with client_of(fake, timeout=5, max_retries=0) as braze:
        task = asyncio.create_task(braze.create_send_id("campaign"))
        await until(lambda: fake.created)
        stopped_clock.advance(10)  # aiohttp rounds up
        with pytest.raises(TimeoutError) as caught:
            await task
        assert isinstance(caught.value, APITimeoutError)
        assert None is caught.value.quota_spent
