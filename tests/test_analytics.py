"""What came of a send: the values, the request, its retries, and that no quota is touched."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any, TypeVar

import aiohttp
import pytest
from aioresponses import aioresponses

from braze_sends import (
    APIConnectionError,
    APIResponseValidationError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ChannelAnalytics,
    ConfigurationError,
    CreateSendId,
    DayAnalytics,
    InternalServerError,
    MemoryStore,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    SendAnalytics,
    SendsClient,
    sync,
)
from braze_sends.analytics import parse
from braze_sends.stores.store import Transaction
from braze_sends.testing import FakeBraze, Fault
from tests.servers import braze as emulator
from tests.servers import free_port
from tests.world import KEY

T = TypeVar("T")

PAIR = CreateSendId("campaign", "story")
USED_UP = {"X-Ratelimit-Limit": "250000", "X-Ratelimit-Remaining": "0"}


class Untouchable(MemoryStore):
    """A store that nobody may use."""

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """Fail the test."""
        raise AssertionError("the store was used")


@pytest.fixture(autouse=True)
def backoffs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt waits of its own accord."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)


def client(fake: FakeBraze, **options: Any) -> SendsClient:
    return SendsClient(KEY, base_url=fake.base_url, **options)


def parsed(*days: object, **rest: object) -> SendAnalytics:
    return parse(PAIR, {"message": "success", "data": list(days), **rest})


# --- values --------------------------------------------------------------------------------------


def test_known_numbers_become_attributes_and_all_else_is_kept() -> None:
    """Channels and fields that nobody knew when this was written are there by Braze's names."""
    told = parsed(
        {
            "time": "2026-11-21",
            "messages": {
                "ios_push": [{"variation_name": "A", "sent": 3, "conversions3": 1}],
                "hologram": [{"sent": 2, "revenue": 1.5, "waves": {"big": 1}}, {}],
            },
            "revenue": 7,
            "conversions": 4,
            "conversions1": 2,
        },
        {"time": "2026-11-22T00:00:00+00:00", "messages": None, "conversions": None},
        next="page",
    )

    assert {"next": "page"} == told.more
    assert ("campaign", "story") == (told.campaign_id, told.send_id)
    first, second = told.days
    assert first == DayAnalytics(
        time=date(2026, 11, 21),
        messages={
            "ios_push": (ChannelAnalytics(variation_name="A", sent=3, more={"conversions3": 1}),),
            "hologram": (
                ChannelAnalytics(sent=2, revenue=1.5, more={"waves": {"big": 1}}),
                ChannelAnalytics(),
            ),
        },
        revenue=7,
        conversions=4,
        more={"conversions1": 2},
    )
    assert second == DayAnalytics(time=date(2026, 11, 22))


def test_analytics_can_be_hashed_and_pickled() -> None:
    """As all values of the package."""
    told = parsed({"time": "2026-11-21", "messages": {"email": [{"sent": 1, "clicks": 2}]}})

    again = pickle.loads(pickle.dumps(told))  # noqa: S301  # our own

    assert told == again
    assert 1 == len({told, again})


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ([], "is not a JSON object"),
        ({}, "has no list of days in data"),
        ({"data": {}}, "has no list of days in data"),
        ({"data": [1]}, "has a day that is not an object"),
        ({"data": [{}]}, "has a day whose time is not an ISO 8601 date"),
        ({"data": [{"time": 20261121}]}, "has a day whose time is not an ISO 8601 date"),
        ({"data": [{"time": "today"}]}, "has a day whose time is not an ISO 8601 date"),
        ({"data": [{"messages": [1]}]}, "has messages that are not an object"),
        ({"data": [{"messages": {"sms": {}}}]}, "has a channel that is not a list"),
        ({"data": [{"messages": {"sms": ["x"]}}]}, "has a variation that is not an object"),
        (
            {"data": [{"messages": {"sms": [{"variation_name": 1}]}}]},
            "has a variation_name that is not a string",
        ),
        *(
            (
                {"data": [{"messages": {"sms": [{"sent": value}]}}]},
                "has a value of sent that is not a whole number",
            )
            for value in ("1", 1.0, True, [1])
        ),
        *(
            (
                {"data": [{"time": "2026-11-21", "revenue": value}]},
                "has a value of revenue that is not a number",
            )
            for value in ("1", False, float("nan"))
        ),
    ],
)
def test_nothing_is_coerced(answer: object, problem: str) -> None:
    """A known field of another type is an error, which tells the field and not its value."""
    with pytest.raises(ValueError, match=f"^{re.escape(problem)}$"):
        parse(PAIR, answer)


# --- the request ---------------------------------------------------------------------------------


async def test_a_created_send_has_analytics(fake: FakeBraze) -> None:
    """The emulator has numbers on the day of the creation."""
    async with client(fake) as braze:
        await braze.create_send_id("campaign", "story")
        told = await braze.send_analytics("campaign", "story")

    (day,) = told.days
    assert datetime.fromtimestamp(fake.now, UTC).date() == day.time
    assert (12, 24.5, 1000) == (day.conversions, day.revenue, day.unique_recipients)
    assert {"ios_push"} == day.messages.keys()
    assert (1000, 960) == (day.messages["ios_push"][0].sent, day.messages["ios_push"][0].delivered)


async def test_ids_of_any_characters_arrive_as_they_are(answers: aioresponses) -> None:
    """The query is encoded; the time of its end keeps its time zone."""
    answers.get(re.compile("https://rest.iad-01.braze.com/"), payload={"data": []})
    end = datetime(2026, 11, 21, 9, tzinfo=timezone(timedelta(hours=1)))

    async with SendsClient(KEY, base_url="US-01") as braze:
        told = await braze.send_analytics("a&b=c", "1+1 #%", length=30, ending_at=end)

    ((method, url),) = answers.requests
    assert ("GET", "/sends/data_series") == (method, url.path)
    assert {
        "campaign_id": "a&b=c",
        "send_id": "1+1 #%",
        "length": "30",
        "ending_at": "2026-11-21T09:00:00+01:00",
    } == dict(url.query)
    assert ("a&b=c", "1+1 #%", ()) == (told.campaign_id, told.send_id, told.days)


async def test_a_read_carries_the_key_and_no_body(fake: FakeBraze) -> None:
    """It is a plain GET, without the type of a content that is not there."""
    async with client(fake) as braze:
        await braze.send_analytics("campaign", "story")

    (request,) = fake.requests
    assert ("GET", True, b"") == (request.method, request.authorized, request.body)
    assert not {"content-type"} & {name.lower() for name in request.headers}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("", "s"), "campaign_id must not be empty"),
        (("c", None), "send_id must be a string"),
        (("c", "ö"), "send_id must be ASCII"),
    ],
)
async def test_a_pair_that_cannot_exist_is_not_asked_for(
    fake: FakeBraze, arguments: tuple[Any, Any], problem: str
) -> None:
    """The error comes before any request."""
    async with client(fake) as braze:
        with pytest.raises(ConfigurationError, match=f"^{problem}"):
            await braze.send_analytics(*arguments)
    assert [] == fake.requests


@pytest.mark.parametrize("length", [0, 101, 1.0, True, "14", None])
async def test_a_length_out_of_bounds_is_refused(fake: FakeBraze, length: Any) -> None:
    """Braze takes 1 to 100 whole days."""
    async with client(fake) as braze:
        with pytest.raises(ConfigurationError, match=r"^length must be a whole number of days"):
            await braze.send_analytics("campaign", "story", length=length)
    assert [] == fake.requests


@pytest.mark.parametrize("ending_at", [datetime(2026, 11, 21), date(2026, 11, 21), "2026-11-21"])
async def test_an_end_without_a_time_zone_is_refused(fake: FakeBraze, ending_at: Any) -> None:
    """Nobody can know when a time without a zone is."""
    async with client(fake) as braze:
        with pytest.raises(ConfigurationError, match=r"^ending_at must be a datetime with a time"):
            await braze.send_analytics("campaign", "story", ending_at=ending_at)
    assert [] == fake.requests


async def test_a_client_that_was_closed_asks_nothing(fake: FakeBraze) -> None:
    """Nor does a view of ``with_options`` that was closed."""
    async with client(fake) as braze:
        view = braze.with_options(timeout=5)
        await view.close()
        with pytest.raises(ConfigurationError, match="closed"):
            await view.send_analytics("campaign", "story")
    with pytest.raises(ConfigurationError, match="closed"):
        await braze.send_analytics("campaign", "story")
    assert [] == fake.requests


async def test_closing_the_client_ends_the_retries_of_a_read(fake: FakeBraze) -> None:
    """No session is opened again for the next attempt."""
    async with client(fake) as braze:

        def close(request: object) -> Fault:
            braze._closed = True
            return Fault(status=503)

        fake.fault_for = close
        with pytest.raises(ConfigurationError, match="closed"):
            await braze.send_analytics("campaign", "story")
    assert 1 == len(fake.requests)


def test_the_synchronous_client_has_the_same() -> None:
    """Without ``await``."""
    with emulator(api_key=KEY) as fake, sync.SendsClient(KEY, base_url=fake.base_url) as braze:
        braze.create_send_id("campaign", "story")
        told = braze.send_analytics("campaign", "story", length=1, timeout=60)
    assert 1 == len(told.days)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
    ],
)
async def test_a_refusal_is_the_same_error_as_for_a_create(
    fake: FakeBraze, status: int, kind: type[Exception]
) -> None:
    """It is not repeated, costs nothing, and tells the pair."""
    fake.script(Fault(status=status))
    async with client(fake) as braze:
        with pytest.raises(kind) as caught:
            await braze.send_analytics("campaign", "story")

    error: Any = caught.value
    assert 1 == len(fake.requests)
    assert (status, False) == (error.status_code, error.quota_spent)
    assert ("campaign", "story") == (error.campaign_id, error.send_id)
    assert KEY not in str(error)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500),
        Fault(status=502),
        Fault(status=429, headers={"Retry-After": "0"}),
        Fault(status=429, headers="missing"),
        Fault(drop="before"),
        Fault(drop="after"),
    ],
)
async def test_a_failure_that_may_pass_is_repeated(fake: FakeBraze, fault: Fault) -> None:
    """A read changes nothing, so any of them is safe to repeat."""
    fake.script(fault, fault)
    async with client(fake) as braze:
        told = await braze.send_analytics("campaign", "story")
    assert () == told.days


async def test_a_failure_that_lasts_is_raised_after_all_retries(fake: FakeBraze) -> None:
    """``max_retries`` is that of the client, or of ``with_options``."""
    fake.fault_for = lambda request: Fault(status=500)
    async with client(fake) as braze:
        with pytest.raises(InternalServerError):
            await braze.with_options(max_retries=1).send_analytics("campaign", "story")
        assert 2 == len(fake.requests)
        with pytest.raises(InternalServerError):
            await braze.send_analytics("campaign", "story")
    assert 2 + 3 == len(fake.requests)


@pytest.mark.parametrize("wait", [30.0, 0.0])
async def test_a_wait_longer_than_allowed_raises_at_once(fake: FakeBraze, wait: float) -> None:
    """``max_rate_limit_wait`` bounds what Braze may ask for; the error tells the time."""
    fake.script(Fault(status=429, headers={"Retry-After": "31"}))
    async with client(fake, max_rate_limit_wait=wait) as braze:
        with pytest.raises(RateLimitError) as caught:
            await braze.send_analytics("campaign", "story")
    assert (31.0, 1) == (caught.value.retry_after, len(fake.requests))


async def test_a_wait_of_any_length_is_allowed_by_none(fake: FakeBraze) -> None:
    """As for creates."""
    fake.script(Fault(status=429, headers={"Retry-After": "0"}))
    async with client(fake, max_rate_limit_wait=None) as braze:
        await braze.send_analytics("campaign", "story")
    assert 2 == len(fake.requests)


async def test_no_answer_within_the_timeout_of_the_call_is_a_timeout(fake: FakeBraze) -> None:
    """The timeout is of one attempt, and the error says that no slot is gone."""
    fake.fault_for = lambda request: Fault(delay=3600.0)
    async with client(fake, max_retries=0) as braze:
        with pytest.raises(APITimeoutError) as caught:
            await braze.send_analytics("campaign", "story", timeout=0.05)
    assert caught.value.quota_spent is False


async def test_a_connection_that_is_refused_tells_so(fake: FakeBraze) -> None:
    """After the retries."""
    async with SendsClient(KEY, base_url=f"http://127.0.0.1:{free_port()}") as braze:
        with pytest.raises(APIConnectionError, match="nothing was sent") as caught:
            await braze.send_analytics("campaign", "story")
    assert caught.value.quota_spent is False


async def test_an_answer_that_is_not_as_documented_is_told(fake: FakeBraze) -> None:
    """The error names what is wrong with the body."""
    fake.script(Fault(status=200, body=json.dumps({"data": [{"time": 1}]})))
    async with client(fake) as braze:
        with pytest.raises(APIResponseValidationError, match="has a day whose time is not an ISO"):
            await braze.send_analytics("campaign", "story")


async def test_an_error_shows_no_key(fake: FakeBraze) -> None:
    """Not in its text, nor in what a pickle of it holds."""
    fake.script(Fault(status=400, body=json.dumps({"message": f"no {KEY}", "errors": [KEY]})))
    async with client(fake) as braze:
        with pytest.raises(BadRequestError) as caught:
            await braze.send_analytics("campaign", "story")
    assert KEY not in f"{caught.value!r}{caught.value}"
    assert KEY.encode() not in pickle.dumps(caught.value)


# --- the quota -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        None,
        Fault(status=429, headers=USED_UP),
        Fault(status=500),
        Fault(status=200, body="<html>"),
        Fault(drop="after"),
    ],
)
async def test_a_read_touches_neither_quota_nor_store(fake: FakeBraze, fault: Fault | None) -> None:
    """Its headers are of another bucket: a limit of 250,000, even if it is used up."""
    fake.fault_for = lambda request: fault
    async with client(fake, store=Untouchable(), max_retries=1) as braze:
        try:
            await braze.send_analytics("campaign", "story")
        except (RateLimitError, InternalServerError, APIResponseValidationError) as error:
            assert error.rate_limit is None or 250_000 == error.rate_limit.limit  # noqa: PT017
        except APIConnectionError:
            pass
        assert braze.rate_limit is None


async def test_creates_go_on_as_if_nothing_had_been_read(fake: FakeBraze) -> None:
    """A 429 of the other bucket, used up, with an hour to wait, pauses no create."""
    async with client(fake, max_retries=0, max_rate_limit_wait=0) as braze:
        await braze.create_send_id("campaign", "first")
        before, seen = await braze.quota(), braze.rate_limit
        fake.script(None, Fault(status=429, headers=USED_UP | {"Retry-After": "3600"}))
        await braze.send_analytics("campaign", "first")
        with pytest.raises(RateLimitError):
            await braze.send_analytics("campaign", "first")

        assert (before, seen) == (await braze.quota(), braze.rate_limit)
        await braze.create_send_id("campaign", "second")
    assert 98 == fake.remaining


async def test_a_session_of_the_caller_is_used(fake: FakeBraze) -> None:
    """With what it carries, as for creates."""
    async with (
        aiohttp.ClientSession(headers={"X-Team": "news"}) as session,
        client(fake, session=session) as braze,
    ):
        await braze.send_analytics("campaign", "story")
    assert "news" == fake.requests[0].headers["X-Team"]
