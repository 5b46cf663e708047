"""What listeners hear of creates, of the quota and of the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from braze_sends import (
    APIConnectionError,
    AuthenticationError,
    BrazeSendsError,
    ConfigurationError,
    MemoryStore,
    QuotaExhaustedError,
    StoreError,
    events,
)
from braze_sends.events import (
    AttemptEnded,
    AttemptStarted,
    ClockCorrected,
    CreateCancelled,
    CreateEvent,
    CreateFailed,
    CreateJoined,
    CreateLeft,
    CreateReused,
    CreateStarted,
    CreateSucceeded,
    DoubtCleared,
    DoubtOpened,
    Event,
    HeadersNotBelieved,
    LimitChanged,
    QuotaLearnt,
    QuotaRefused,
    QuotaWaitBegun,
    QuotaWaitEnded,
    RetryScheduled,
    SettlingFailed,
    StoreFailed,
    StoreRecovered,
    StoreUsed,
    WindowEnded,
)
from tests.world import KEY, MIDNIGHT, UNANSWERED, Fate, World, gather, many, play


class Heard(list[Event]):
    """A listener that keeps what it hears."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, *kinds: type[Any]) -> list[Any]:
        return [event for event in self if isinstance(event, kinds)]

    def of_creates(self) -> list[type[Event]]:
        return [type(event) for event in self.of(CreateEvent)]


def hear(schedule: Callable[[World, Heard], Any], **options: Any) -> Heard:
    """What is heard while a schedule is played."""
    heard = Heard()

    async def listen(world: World) -> None:
        await schedule(world, heard)

    play(listen, **options)
    return heard


# --- creates -------------------------------------------------------------------------------------


def test_a_create_is_told_from_its_start_to_its_end() -> None:
    """All events of it carry the same names."""

    async def schedule(world: World, heard: Heard) -> None:
        await world.client(on_event=heard, workspace="shop").create_send_id("campaign", "send")

    heard = hear(schedule)
    assert [CreateStarted, AttemptStarted, AttemptEnded, CreateSucceeded] == heard.of_creates()
    told = {(e.workspace, e.campaign_id, e.send_id) for e in heard.of(CreateEvent)}
    assert {("shop", "campaign", "send")} == told
    assert 1 == len({event.create for event in heard.of(CreateEvent)})
    (started,), (ended,), (made,) = (
        heard.of(kind) for kind in (AttemptStarted, AttemptEnded, CreateSucceeded)
    )
    assert (1, "http://127.0.0.1:9/sends/id/create") == (started.attempt, started.url)
    assert (1, 201, None, True) == (ended.attempt, ended.status, ended.reason, ended.quota_spent)
    assert 0.1 == pytest.approx(ended.seconds)
    assert (1, False) == (made.attempts, made.queued)
    assert ended.request_id == made.request_id is not None


def test_a_create_that_meets_a_503_and_a_lost_answer_tells_three_attempts() -> None:
    """And why, and after how long, each further one is made."""

    async def schedule(world: World, heard: Heard) -> None:
        fates = [Fate(status=503), UNANSWERED, Fate()]
        world.fate = lambda n, send_id: fates[n]
        await world.client(on_event=heard).create_send_id("campaign", "send")

    heard = hear(schedule)
    attempts = heard.of(AttemptEnded)
    assert [(1, 503), (2, None), (3, 201)] == [(e.attempt, e.status) for e in attempts]
    assert ["InternalServerError", "APITimeoutError", None] == [e.reason for e in attempts]
    assert [None, None, True] == [e.quota_spent for e in attempts]
    retries = heard.of(RetryScheduled)
    assert [(2, "InternalServerError"), (3, "APITimeoutError")] == [
        (e.attempt, e.reason) for e in retries
    ]
    assert all(0 <= event.seconds <= 1 for event in retries)
    assert [3] == [event.attempts for event in heard.of(CreateSucceeded)]


def test_a_pair_that_exists_is_told_as_reused() -> None:
    """Without an attempt."""

    async def schedule(world: World, heard: Heard) -> None:
        store = world.store()
        await world.client(store=store).create_send_id("campaign", "send")
        await world.client(store=store, on_event=heard).create_send_id("campaign", "send")

    assert [CreateStarted, CreateReused] == hear(schedule).of_creates()


def test_a_failure_tells_what_it_cost() -> None:
    """The error's class, the status, and whether a slot is gone."""

    async def schedule(world: World, heard: Heard) -> None:
        world.fate = lambda n, send_id: UNANSWERED
        with pytest.raises(APIConnectionError):
            await world.client(on_event=heard, max_retries=0).create_send_id("campaign", "send")

    (failed,) = hear(schedule).of(CreateFailed)
    assert ("APITimeoutError", None, 1, None) == (
        failed.reason,
        failed.status,
        failed.attempts,
        failed.quota_spent,
    )
    assert 10.0 == pytest.approx(failed.seconds)


def test_a_refusal_for_quota_is_told_with_its_numbers() -> None:
    """Nothing was sent."""

    async def schedule(world: World, heard: Heard) -> None:
        store = world.store()
        await gather(many(world.client(store=store), range(3)))
        with pytest.raises(QuotaExhaustedError):
            await world.client(store=store, on_event=heard).create_send_id("campaign", "send")

    heard = hear(schedule, daily_limit=3)
    assert [CreateStarted, QuotaRefused, CreateFailed] == heard.of_creates()
    (refused,) = heard.of(QuotaRefused)
    assert (3, 0) == (refused.limit, refused.remaining)
    assert MIDNIGHT == refused.resets_at.timestamp()


def test_a_429_is_told_as_a_rate_limit_error() -> None:
    """Though the caller is told when to come back."""

    async def schedule(world: World, heard: Heard) -> None:
        await gather(many(world.client(), range(3)))  # of another store
        with pytest.raises(BrazeSendsError):
            await world.client(on_event=heard, max_rate_limit_wait=0).create_send_id("campaign")

    heard = hear(schedule, daily_limit=3)
    assert [(429, "RateLimitError")] == [(e.status, e.reason) for e in heard.of(AttemptEnded)]


def test_a_wait_for_quota_is_told_with_its_length() -> None:
    """It ends with the window."""

    async def schedule(world: World, heard: Heard) -> None:
        client = world.client(on_event=heard, max_rate_limit_wait=None)
        await gather(many(client, range(2)))

    heard = hear(schedule, daily_limit=1, start=MIDNIGHT - 60)
    assert 2 == len(heard.of(CreateSucceeded))
    (longest,) = (e for e in heard.of(QuotaWaitEnded) if e.seconds > 50)
    assert 60 == pytest.approx(longest.seconds, abs=5)
    begun = {event.create for event in heard.of(QuotaWaitBegun)}
    assert begun == {event.create for event in heard.of(QuotaWaitEnded)}


def test_a_create_that_is_served_at_once_does_not_wait() -> None:
    """Nor does one that is refused at once."""

    async def schedule(world: World, heard: Heard) -> None:
        client = world.client(on_event=heard, max_rate_limit_wait=0)
        await client.create_send_id("campaign")
        await gather([client.create_send_id("campaign")])

    heard = hear(schedule, daily_limit=1)
    assert 1 == len(heard.of(QuotaRefused))
    assert [] == heard.of(QuotaWaitBegun, QuotaWaitEnded)


def test_a_call_that_shares_a_create_is_told() -> None:
    """From when it comes until it has the result."""

    async def schedule(world: World, heard: Heard) -> None:
        client = world.client(on_event=heard)
        await gather([client.create_send_id("campaign", "send") for _ in range(2)])

    heard = hear(schedule)
    (joined,), (left,) = heard.of(CreateJoined), heard.of(CreateLeft)
    assert (joined.create, joined.caller, None) == (left.create, left.caller, left.reason)
    assert [1, 1] == [len(heard.of(kind)) for kind in (CreateStarted, CreateSucceeded)]


def test_a_sharing_call_that_is_cancelled_is_told_as_left() -> None:
    """The create goes on for the other."""

    async def schedule(world: World, heard: Heard) -> None:
        client = world.client(on_event=heard)
        first = asyncio.create_task(client.create_send_id("campaign", "send"))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(client.create_send_id("campaign", "send"))
        await asyncio.sleep(0.01)
        second.cancel()
        await first

    heard = hear(schedule)
    assert ["CancelledError"] == [event.reason for event in heard.of(CreateLeft)]
    assert 1 == len(heard.of(CreateSucceeded))


def test_a_create_that_is_called_off_is_told_as_cancelled() -> None:
    """It waited for quota; no request had left."""

    async def schedule(world: World, heard: Heard) -> None:
        client = world.client(on_event=heard, max_rate_limit_wait=None)
        await client.create_send_id("campaign", "first")
        task = asyncio.create_task(client.create_send_id("campaign", "second"))
        await asyncio.sleep(7)
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0)

    heard = hear(schedule, daily_limit=1)
    (cancelled,), (waited,) = heard.of(CreateCancelled), heard.of(QuotaWaitEnded)
    assert ("second", 7.0, 7.0) == (cancelled.send_id, cancelled.seconds, waited.seconds)


def test_a_request_that_is_cut_off_by_the_end_of_its_loop_is_told() -> None:
    """Whether it was counted is not known."""

    async def schedule(world: World, heard: Heard) -> None:
        client = world.client(on_event=heard)
        caller = asyncio.create_task(client.create_send_id("campaign", "send"))
        await asyncio.sleep(0.01)
        (create,) = client._creates().running
        create.task.cancel()
        await asyncio.wait([caller])

    heard = hear(schedule)
    (ended,) = heard.of(AttemptEnded)
    assert ("CancelledError", None, None) == (ended.reason, ended.status, ended.quota_spent)
    assert 1 == len(heard.of(CreateCancelled))


# --- the quota -----------------------------------------------------------------------------------


def test_what_is_learnt_of_the_quota_is_told() -> None:
    """With each change of its numbers."""

    async def schedule(world: World, heard: Heard) -> None:
        client = world.client(on_event=heard)
        await client.create_send_id("campaign")
        await client.quota()  # changes nothing

    heard = hear(schedule, daily_limit=100)
    numbers = [(e.used, e.remaining, e.in_flight, e.unconfirmed) for e in heard.of(QuotaLearnt)]
    assert [(0, 99, 1, 0), (1, 99, 0, 0)] == numbers
    assert [None, MIDNIGHT] == [
        e.resets_at and e.resets_at.timestamp() for e in heard.of(QuotaLearnt)
    ]
    assert 3 == len(heard.of(StoreUsed))
    assert [] == heard.of(HeadersNotBelieved, LimitChanged, ClockCorrected)


def test_a_limit_that_changes_is_told() -> None:
    """A lower one, from what was assumed."""

    async def schedule(world: World, heard: Heard) -> None:
        await world.client(on_event=heard).create_send_id("campaign")

    assert [(100, 30)] == [
        (e.before, e.limit) for e in hear(schedule, daily_limit=30).of(LimitChanged)
    ]


def test_the_end_of_a_window_is_told() -> None:
    """Once."""

    async def schedule(world: World, heard: Heard) -> None:
        client = world.client(on_event=heard)
        await client.create_send_id("campaign")
        await client.create_send_id("campaign")
        await asyncio.sleep(120)
        await client.create_send_id("campaign")

    ended = hear(schedule, start=MIDNIGHT - 60).of(WindowEnded)
    assert [MIDNIGHT] == [event.resets_at.timestamp() for event in ended]


def test_a_clock_that_was_off_is_told() -> None:
    """By how much."""

    async def schedule(world: World, heard: Heard) -> None:
        await world.client(on_event=heard, clock_error=90.0).create_send_id("campaign")

    (corrected,) = hear(schedule).of(ClockCorrected)
    assert -90 == pytest.approx(corrected.seconds, abs=1.5)


def test_headers_that_are_not_believed_are_told() -> None:
    """Those of another bucket."""
    other = {
        "x-ratelimit-limit": "250000",
        "x-ratelimit-remaining": "248999",
        "x-ratelimit-reset": str(int(MIDNIGHT)),
    }

    async def schedule(world: World, heard: Heard) -> None:
        world.fate = lambda n, send_id: Fate(headers=other)
        await world.client(on_event=heard).create_send_id("campaign")

    (said,) = hear(schedule).of(HeadersNotBelieved)
    assert (250_000, 1_001, MIDNIGHT) == (said.limit, said.used, said.resets_at.timestamp())


def test_a_doubt_is_told_when_it_begins_and_when_it_ends() -> None:
    """An answer to a later request clears it."""

    async def schedule(world: World, heard: Heard) -> None:
        world.fate = lambda n, send_id: UNANSWERED if n == 0 else Fate()
        client = world.client(on_event=heard, max_retries=0)
        await gather([client.create_send_id("campaign", "lost")])
        await asyncio.sleep(60)
        await client.create_send_id("campaign", "next")

    doubts = hear(schedule).of(DoubtOpened, DoubtCleared)
    assert [(DoubtOpened, 1), (DoubtCleared, 0)] == [(type(e), e.unconfirmed) for e in doubts]


# --- the store -----------------------------------------------------------------------------------


class Flaky(MemoryStore):
    """A store that is away while it is told to be."""

    away = False

    async def transact(self, *args: Any) -> Any:
        if self.away:
            raise StoreError("the store is away")
        return await super().transact(*args)


def test_a_store_that_fails_and_recovers_is_told() -> None:
    """With how long it was away."""

    async def schedule(world: World, heard: Heard) -> None:
        store = Flaky(clock=world.loop.time, wall=world.now)
        client = world.client(on_event=heard, store=store)
        store.away = True
        await gather([client.create_send_id("campaign")])
        await asyncio.sleep(5)
        store.away = False
        await client.create_send_id("campaign")

    heard = hear(schedule)
    assert ["the store is away"] == [event.message for event in heard.of(StoreFailed)]
    (recovered,) = heard.of(StoreRecovered)
    assert 5 == pytest.approx(recovered.seconds, abs=0.5)
    assert ["StoreError"] == [event.reason for event in heard.of(CreateFailed)]


def test_an_attempt_that_cannot_be_settled_is_told() -> None:
    """What was created is returned all the same."""

    async def schedule(world: World, heard: Heard) -> None:
        store = Flaky(clock=world.loop.time, wall=world.now)
        create = asyncio.create_task(
            world.client(on_event=heard, store=store).create_send_id("campaign", "send")
        )
        await asyncio.sleep(0.01)
        store.away = True
        await create

    heard = hear(schedule)
    (settling,) = heard.of(SettlingFailed)
    assert ("send", "the store is away") == (settling.send_id, settling.message)
    assert 1 == len(heard.of(CreateSucceeded))


# --- listeners -----------------------------------------------------------------------------------


def test_several_listeners_hear_the_same() -> None:
    """In their order."""
    first, second = Heard(), Heard()

    async def schedule(world: World) -> None:
        await world.client(on_event=[first, second]).create_send_id("campaign")

    play(schedule)
    assert first == second != []


def test_clients_that_share_a_store_hear_of_its_quota_once_each() -> None:
    """And of their own creates alone."""
    ours, theirs, shared = Heard(), Heard(), Heard()

    async def schedule(world: World) -> None:
        store = world.store()
        client = world.client(store=store, on_event=[ours, shared])
        world.client(store=store, on_event=[theirs, shared])._creates()
        await client.create_send_id("campaign")

    play(schedule)
    assert ours.of(QuotaLearnt) == theirs.of(QuotaLearnt) == shared.of(QuotaLearnt)
    assert 2 == len(shared.of(QuotaLearnt))
    assert (4, 0) == (len(ours.of(CreateEvent)), len(theirs.of(CreateEvent)))


def test_a_listener_whose_client_is_gone_hears_nothing() -> None:
    """The quota it watched lives on."""
    gone = Heard()

    async def schedule(world: World) -> None:
        store = world.store()
        client = world.client(store=store)
        await client.create_send_id("campaign")
        other = world.client(store=store, on_event=gone)
        await other.create_send_id("campaign")
        gone.clear()
        await other.close()
        world.clients.remove(other)
        del other
        await client.create_send_id("campaign")

    play(schedule)
    assert [] == gone


def test_a_listener_that_raises_is_logged_once_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others hear all the same."""
    heard = Heard()

    def broken(event: Event) -> None:
        raise RuntimeError("a listener's own fault")

    async def schedule(world: World) -> None:
        client = world.client(on_event=(broken, heard))
        await client.create_send_id("campaign", "send")

    play(schedule)
    assert 1 == len(heard.of(CreateSucceeded))
    (record,) = caplog.records
    assert record.message.startswith("a listener of events raised")


async def coroutine(event: Event) -> None:
    """No listener."""


class Awaited:
    """No listener either."""

    async def __call__(self, event: Event) -> None:
        """Nobody would await it."""


@pytest.mark.parametrize("value", [7, "log", [print, None], coroutine, Awaited()])
def test_what_cannot_be_called_plainly_is_no_listener(value: Any) -> None:
    """Events are not awaited."""

    async def schedule(world: World) -> None:
        with pytest.raises(ConfigurationError, match="on_event must be a plain function"):
            world.client(on_event=value)

    play(schedule)


KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind not in {Event, CreateEvent}
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_event_is_a_frozen_value_with_documented_fields(kind: type[Event]) -> None:
    """The documentation names each field that the event has of its own."""
    own = {field.name for field in attrs.fields(kind) if not field.inherited}
    assert all(f"        {name}: " in (kind.__doc__ or "") for name in own)
    values: dict[str, Any] = {field.name: None for field in attrs.fields(kind)}
    event = kind(**values)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.workspace = "other"  # type: ignore[misc]
    assert event == kind(**values)


# --- the log -------------------------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture, fate: Fate, **options: Any) -> list[tuple[str, str]]:
    """The level and the name of each record of one create."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: fate
        await gather([world.client(**options).create_send_id("campaign", "send")])

    play(schedule)
    return [(record.levelname, record.event) for record in caplog.records]  # type: ignore[attr-defined]  # an extra


def test_a_success_is_logged_for_debugging_alone(caplog: pytest.LogCaptureFixture) -> None:
    """From its start to its end."""
    caplog.set_level(logging.DEBUG, "braze_sends")
    records = logged(caplog, Fate())
    assert {"DEBUG"} == {level for level, _ in records}
    assert {"create started", "attempt started", "attempt ended", "create succeeded"} <= {
        name for _, name in records
    }


def test_a_retry_and_a_failure_are_logged_as_information(caplog: pytest.LogCaptureFixture) -> None:
    """The caller has the error."""
    caplog.set_level(logging.INFO, "braze_sends")
    assert [("INFO", "retry scheduled"), ("INFO", "create failed")] == logged(
        caplog, Fate(status=503), max_retries=1
    )


def test_a_limit_that_changes_is_logged_as_information(caplog: pytest.LogCaptureFixture) -> None:
    """Without a word of the other numbers."""
    caplog.set_level(logging.INFO, "braze_sends")

    async def schedule(world: World) -> None:
        await world.client().create_send_id("campaign", "send")

    play(schedule, daily_limit=30)
    assert [("INFO", "limit changed")] == [(r.levelname, r.event) for r in caplog.records]  # type: ignore[attr-defined]  # an extra


def test_a_refusal_is_logged_as_information(caplog: pytest.LogCaptureFixture) -> None:
    """It needs nobody's attention by itself."""
    caplog.set_level(logging.INFO, "braze_sends")
    assert ("INFO", "quota refused") in logged(caplog, Fate(), daily_limit=0)


def test_a_key_that_braze_refuses_is_logged_as_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """Without the key, which a 401 echoes."""

    async def schedule(world: World) -> None:
        world.model.api_key = "another"
        with pytest.raises(AuthenticationError):
            await world.client().create_send_id("campaign", "send")

    play(schedule)
    (record,) = caplog.records
    assert logging.ERROR == record.levelno
    assert KEY not in caplog.text


def test_a_store_that_is_down_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """With what happened; the record's own message is left alone."""

    async def schedule(world: World) -> None:
        store = Flaky()
        store.away = True
        await gather([world.client(store=store).create_send_id("campaign", "send")])

    play(schedule)
    assert {"WARNING"} == {record.levelname for record in caplog.records}
    assert "store failed workspace=" in caplog.text
    assert "message=the store is away" in caplog.text
    assert "the store is away" == caplog.records[0].text  # type: ignore[attr-defined]  # an extra


def test_a_record_has_the_fields_of_its_event(caplog: pytest.LogCaptureFixture) -> None:
    """So that a structured log needs no parsing."""
    caplog.set_level(logging.DEBUG, "braze_sends")
    logged(caplog, Fate())
    (record,) = (r for r in caplog.records if r.message.startswith("attempt ended "))
    told = vars(record)
    assert ("campaign", "send", 1, 201, True) == tuple(
        told[name] for name in ("campaign_id", "send_id", "attempt", "status", "quota_spent")
    )
    assert "reason" not in told
