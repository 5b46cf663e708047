"""Options of one call, the client with other options, and headers and User-Agent of its own."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from braze_sends import (
    UNSET,
    APITimeoutError,
    ConfigurationError,
    InternalServerError,
    MemoryStore,
    QuotaExhaustedError,
    SendId,
    SendsClient,
)
from braze_sends.create import Policy
from braze_sends.testing import FakeBraze, Fault
from tests.conftest import StoppedClock
from tests.servers import braze as emulator
from tests.test_batch import rows
from tests.waiting import PATIENCE, until
from tests.world import KEY, LOST, UNANSWERED, Fate, World, play


def client_of(fake: FakeBraze, **options: Any) -> SendsClient:
    """A client that does not give up because the machine is busy."""
    options = {"timeout": PATIENCE, "max_rate_limit_wait": PATIENCE} | options
    return SendsClient(KEY, base_url=fake.base_url, **options)


def under_way(client: SendsClient, send_id: str) -> bool:
    """Whether a create of that name has begun and not ended."""
    return any(create.request.send_id == send_id for create in client._creates().running)


# --- the timeout of one call ---------------------------------------------------------------------


async def test_a_call_ends_at_its_own_timeout(fake: FakeBraze, stopped_clock: StoppedClock) -> None:
    """The client's own is longer, and holds for the next call again."""
    fake.script(Fault(stall=asyncio.Event()))
    async with client_of(fake, max_retries=0) as braze:
        create = asyncio.create_task(braze.create_send_id("campaign", "asked", timeout=5))
        await until(lambda: fake.created)
        stopped_clock.advance(10)
        with pytest.raises(APITimeoutError):
            await create
        create = asyncio.create_task(braze.create_send_id("campaign", "asked"))
        assert "asked" == (await create).send_id


def test_the_quota_goes_by_the_timeout_of_the_call() -> None:
    """A slot in doubt is cleared by a request that begins three of its own timeouts later."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: LOST if send_id == "long" else Fate()
        client = world.client(timeout=1, max_retries=0)
        await client.create_send_id("campaign", "first")
        began = world.loop.time()
        create = asyncio.create_task(client.create_send_id("campaign", "long", timeout=10))
        await asyncio.sleep(9)  # a lease of one second's timeout would be over
        assert 1 == (await client.quota()).in_flight
        with pytest.raises(APITimeoutError):
            await create
        await client.create_send_id("campaign", "soon")
        assert 1 == (await client.quota()).unconfirmed
        await asyncio.sleep(began + 30 - world.loop.time())
        await client.create_send_id("campaign", "late")
        assert 0 == (await client.quota()).unconfirmed

    play(schedule)


@pytest.mark.parametrize(("other", "shared"), [(10, True), (UNSET, True), (11, False)])
def test_callers_share_a_create_if_they_agree_on_the_timeout(other: Any, shared: bool) -> None:
    """The pair is one request in any case."""

    async def schedule(world: World) -> None:
        client = world.client(timeout=10.0)
        first, second = await asyncio.gather(
            client.create_send_id("campaign", "pair", timeout=10),
            client.create_send_id("campaign", "pair", timeout=other),
        )
        assert shared is (first is second)
        assert ["pair"] == world.asked
        assert shared is not second.reused

    play(schedule)


def test_each_attempt_of_a_batch_has_its_timeout() -> None:
    """As many seconds as the batch was given, and not the client's."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: UNANSWERED
        client = world.client(timeout=100, max_retries=0)
        began = world.loop.time()
        outcomes = await client.create_send_ids(rows(0, 1), concurrency=2, timeout=2)
        assert {APITimeoutError} == {type(outcome.error) for outcome in outcomes}
        assert 4 == world.loop.time() - began  # the first is the probe
        streamed = [one async for one in client.iter_send_ids(rows(2), timeout=2)]
        assert APITimeoutError is type(streamed[0].error)
        assert 6 == world.loop.time() - began

    play(schedule)


def test_a_cancelled_batch_waits_for_its_own_attempts_alone() -> None:
    """Its own timeout at most, though an attempt of another call may take a hundred seconds."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: UNANSWERED if n else Fate()
        client = world.client(max_retries=0)
        await client.create_send_id("campaign", "first")
        long = asyncio.create_task(client.create_send_id("campaign", "long", timeout=100))
        batch = asyncio.create_task(client.create_send_ids(rows(0), timeout=2))
        await asyncio.sleep(1)
        assert 3 == len(world.asked)
        long.cancel()
        batch.cancel()
        cancelled = world.loop.time()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert world.loop.time() - cancelled <= 2

    play(schedule)


def test_policies_of_the_same_values_are_the_same() -> None:
    """So that calls share a create whose options were given one by one."""
    one, two = (Policy(aiohttp.ClientTimeout(total=5.0), 2, None) for _ in range(2))
    assert (one, hash(one)) == (two, hash(two))


# --- with_options --------------------------------------------------------------------------------


def test_a_view_has_its_own_timeout_and_retries() -> None:
    """The client keeps its own."""

    async def schedule(world: World) -> None:
        world.fate = lambda n, send_id: UNANSWERED
        client = world.client(timeout=100, max_retries=5)
        once = client.with_options(timeout=2).with_options(max_retries=0)
        began = world.loop.time()
        with pytest.raises(APITimeoutError):
            await once.create_send_id("campaign", "pair")
        assert 2 == world.loop.time() - began
        assert 1 == len(world.asked)
        with pytest.raises(APITimeoutError):
            await client.create_send_id("campaign", "pair", timeout=1)
        assert 7 == len(world.asked)

    play(schedule)


async def test_retries_of_a_view_may_be_more_than_the_clients(
    fake: FakeBraze, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gives up at the first failure, and the view at the third."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)
    async with client_of(fake, max_retries=0) as braze:
        fake.script(*[Fault(status=500)] * 3)
        with pytest.raises(InternalServerError):
            await braze.create_send_id("campaign", "pair")
        assert 3 == (await braze.with_options(max_retries=2).create_send_id("campaign")).attempts


async def test_a_view_has_its_own_wait_and_headroom_and_limit(fake: FakeBraze) -> None:
    """What a call is given goes before them, and ``quota`` tells the view's own limit."""
    async with client_of(fake, max_rate_limit_wait=0) as braze:
        await braze.create_send_id("campaign", "first")
        fake.spend(89)
        await braze.forget_quota()
        await braze.create_send_id("campaign", "second")
        bulk = braze.with_options(headroom=9)
        with pytest.raises(QuotaExhaustedError):
            await bulk.create_send_id("campaign", "bulk")
        (outcome,) = await bulk.create_send_ids(rows(0))
        assert isinstance(outcome.error, QuotaExhaustedError)
        assert isinstance(await bulk.create_send_id("campaign", headroom=8), SendId)

        capped = braze.with_options(daily_limit=3)
        assert (3, 0) == ((await capped.quota()).limit, (await capped.quota()).remaining)
        with pytest.raises(QuotaExhaustedError):
            await capped.create_send_id("campaign", "capped")
        assert isinstance(
            await capped.with_options(daily_limit=None).create_send_id("campaign"), SendId
        )
        assert 100 == (await braze.quota()).limit

        patient = bulk.with_options(max_rate_limit_wait=None)
        waits = asyncio.create_task(patient.create_send_id("campaign", "patient"))
        await until(lambda: under_way(patient, "patient"))
        assert not waits.done()
        waits.cancel()


async def test_a_view_shares_all_that_the_client_has(fake: FakeBraze) -> None:
    """Session, store, quota, creates under way, and the rate limit that was seen last."""
    answered = asyncio.Event()
    fake.script(Fault(stall=answered))
    async with client_of(fake) as braze:
        view = braze.with_options()
        assert view.rate_limit is None
        creates = [
            asyncio.create_task(one.create_send_id("campaign", "pair")) for one in (braze, view)
        ]
        await until(lambda: fake.created)
        answered.set()
        first, second = await asyncio.gather(*creates)
        assert first is second
        assert 1 == len(fake.requests)
        assert braze.rate_limit == view.rate_limit is not None
        assert await view.find_send_id("campaign", "pair")
        assert await view.quota() == await braze.quota()
        assert view.base_url == braze.base_url


@pytest.mark.parametrize(
    "options",
    [{"timeout": 60}, {"max_retries": 1}, {"daily_limit": 50}, {"headroom": 1}],
    ids=lambda options: next(iter(options)),
)
async def test_calls_on_other_options_share_no_create(
    fake: FakeBraze, options: dict[str, Any]
) -> None:
    """The pair is one request all the same, and the second caller gets what is remembered."""
    async with client_of(fake) as braze:
        await braze.create_send_id("campaign", "first")
        view = braze.with_options(**options)
        sends = await asyncio.gather(
            *(one.create_send_id("campaign", "pair") for one in (braze, view))
        )
        assert [False, True] == [send.reused for send in sends]
        assert 2 == len(fake.requests)


async def test_closing_a_view_closes_nothing_else(fake: FakeBraze) -> None:
    """What it began goes on, the client can be used, and the view cannot."""
    answered = asyncio.Event()
    fake.script(Fault(stall=answered))
    async with client_of(fake) as braze:
        async with braze.with_options(max_retries=0) as view:
            create = asyncio.create_task(view.create_send_id("campaign", "pair"))
            await until(lambda: fake.created)
        assert not create.done()
        with pytest.raises(ConfigurationError, match="is closed"):
            await view.create_send_id("campaign", "other")
        assert repr(view).endswith(" closed>")
        assert not repr(braze).endswith(" closed>")
        answered.set()
        assert "pair" == (await create).send_id
        assert isinstance(await braze.create_send_id("campaign"), SendId)


async def test_a_view_ends_with_its_client(fake: FakeBraze) -> None:
    """Closing the client calls off what waits for quota in a view, and the view can do no more."""
    async with client_of(fake) as braze:
        view = braze.with_options(daily_limit=1, max_rate_limit_wait=None)
        await view.create_send_id("campaign", "first")
        waits = asyncio.create_task(view.create_send_id("campaign", "second"))
        await until(lambda: under_way(view, "second"))
    with pytest.raises(ConfigurationError, match="closed while"):
        await waits
    with pytest.raises(ConfigurationError, match="is closed"):
        await view.quota()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("timeout", 0),
        ("timeout", None),
        ("max_retries", -1),
        ("max_retries", None),
        ("max_rate_limit_wait", -1),
        ("headroom", -1),
        ("headroom", None),
        ("daily_limit", "100"),
    ],
)
def test_an_unusable_option_of_a_view_is_refused_by_name(option: str, value: object) -> None:
    """At once, as the client's own are."""
    options: dict[str, Any] = {option: value}
    braze = SendsClient(KEY, base_url="US-01", store=MemoryStore())
    with pytest.raises(ConfigurationError, match=rf"\b{option}\b"):
        braze.with_options(**options)


async def test_a_ping_has_the_timeout_of_its_view(fake: FakeBraze) -> None:
    """As a create of that view would have."""
    async with client_of(fake) as braze:
        fake.script(Fault(stall=asyncio.Event()))
        ping = await braze.with_options(timeout=1e-9).ping()
    assert isinstance(ping.error, TimeoutError)


# --- headers and User-Agent ----------------------------------------------------------------------


async def test_default_headers_go_with_every_request(fake: FakeBraze) -> None:
    """With creates and with a ping; what the client sets stays as it is."""
    async with client_of(fake, default_headers={"X-Gateway": "token 7"}) as braze:
        await braze.create_send_id("campaign")
        await braze.ping()
    assert ["token 7"] * 2 == [request.headers["X-Gateway"] for request in fake.requests]
    assert [True, False] == [request.authorized for request in fake.requests]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"Authorization": "Basic x"}, "must not have Authorization"),
        ({"content-TYPE": "text/plain"}, "must not have content-TYPE"),
        ({"Host": "elsewhere"}, "must not have Host"),
        ({"Transfer-Encoding": "chunked"}, "must not have Transfer-Encoding"),
        ({"User-Agent": "mine"}, "must not have User-Agent: .*user_agent="),
        ({"": "x"}, "not the name of a header"),
        ({"X Y": "x"}, "not the name of a header"),
        ({"X-Y\r\nEvil": "x"}, "not the name of a header"),
        ({7: "x"}, "not the name of a header"),
        ({f"X-{KEY}": "x"}, "not the name of a header"),
        ({"X-Y": ""}, "X-Y.* must be printable ASCII"),
        ({"X-Y": " x"}, "X-Y.* must be printable ASCII"),
        ({"X-Y": "x\r\nEvil: 1"}, "X-Y.* must be printable ASCII"),
        ({"X-Y": "ä"}, "X-Y.* must be printable ASCII"),
        ({"X-Y": 7}, "X-Y.* must be printable ASCII"),
        ({"X-Y": f"Bearer {KEY}"}, "must not hold the API key"),
        ([("X-Y", "x")], "must be a mapping"),
    ],
)
def test_default_headers_that_may_not_be_sent_are_refused(headers: Any, message: str) -> None:
    """The message names the header, and shows neither a value nor the key."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        SendsClient(KEY, base_url="US-01", default_headers=headers)
    assert KEY not in str(caught.value)
    assert "Evil" not in str(caught.value)


async def test_the_default_headers_are_those_of_the_moment(fake: FakeBraze) -> None:
    """A mapping that its owner changes later changes no request, unchecked as it would be."""
    headers = {"X-Y": "x"}
    async with client_of(fake, default_headers=headers) as braze:
        headers["Authorization"] = "Basic x"
        await braze.create_send_id("campaign")
    assert fake.requests[0].authorized


def test_a_value_of_a_default_header_is_shown_to_nobody() -> None:
    """It may be a token."""
    braze = SendsClient(KEY, base_url="US-01", default_headers={"X-Token": "sesame"})
    assert "sesame" not in f"{braze!r} {braze._settings!r} {braze._transport!r}"


async def test_a_user_agent_is_appended(fake: FakeBraze) -> None:
    """The client's own name comes first."""
    async with client_of(fake, user_agent="newsroom/3.1 (team 7)") as braze:
        await braze.create_send_id("campaign")
        await braze.ping()
    for request in fake.requests:
        assert request.headers["User-Agent"].startswith("braze_sends/")
        assert request.headers["User-Agent"].endswith(" newsroom/3.1 (team 7)")


@pytest.mark.parametrize(
    ("user_agent", "message"),
    [
        ("", "must be printable ASCII"),
        ("x ", "must be printable ASCII"),
        ("x\nEvil: 1", "must be printable ASCII"),
        ("naïve/1", "must be printable ASCII"),
        (7, "must be printable ASCII"),
        (f"x/{KEY}", "must not hold the API key"),
    ],
)
def test_a_user_agent_that_may_not_be_sent_is_refused(user_agent: Any, message: str) -> None:
    """Only text that is safe in a header, without the key."""
    with pytest.raises(ConfigurationError, match=f"user_agent {message}"):
        SendsClient(KEY, base_url="US-01", user_agent=user_agent)


@pytest.mark.parametrize(("suffix", "sent"), [(None, "theirs/1"), ("mine/2", "theirs/1 mine/2")])
async def test_a_session_keeps_its_own_user_agent(suffix: str | None, sent: str) -> None:
    """A suffix is appended to it."""
    async with (
        emulator(api_key=KEY) as fake,
        aiohttp.ClientSession(headers={"user-agent": "theirs/1"}) as session,
        client_of(fake, session=session, user_agent=suffix) as braze,
    ):
        await braze.create_send_id("campaign")
        assert sent == fake.requests[0].headers["User-Agent"]
