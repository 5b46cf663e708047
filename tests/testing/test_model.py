"""The model of Braze's endpoint."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from braze_sends.testing.model import (
    ANALYTICS_PATH,
    GENERAL_LIMIT,
    MAX_BODY,
    PATH,
    RATE_LIMIT_HEADERS,
    BrazeModel,
    Reply,
)

DAY = 86400
NOON = 20_000 * DAY + DAY / 2  # 2024-10-04 12:00 UTC
MIDNIGHT = 20_001 * DAY
GOOD = {"Authorization": "Bearer test-key", "Content-Type": "application/json"}


def post(model: BrazeModel, send_id: Any = "s", *, now: float = NOON, **content: Any) -> Reply:
    """Ask for a pair."""
    body = json.dumps({"campaign_id": "c", "send_id": send_id} | content).encode()
    return model.handle("POST", PATH, GOOD, body, now)


def triple(reply: Reply) -> tuple[str | None, ...]:
    """The values of the three rate-limit headers."""
    return tuple(reply.headers.get(name) for name in RATE_LIMIT_HEADERS)


def test_a_new_pair_is_created() -> None:
    """A new pair is answered 201 with its send ID, and exists afterwards."""
    model = BrazeModel()
    reply = post(model)

    assert 201 == reply.status
    assert b'{"message":"success","send_id":"s"}' == reply.body
    assert [("c", "s")] == model.created
    assert {20_000: 1} == model.created_by_window


def test_a_success_has_the_rate_limit_headers() -> None:
    """A success names the limit, what remains after it, and the end of the aligned window."""
    assert ("100", "99", str(MIDNIGHT)) == triple(post(BrazeModel()))


def test_a_fraction_of_a_second_is_rounded_up() -> None:
    """The reset of a window that ends within a second is the second after it."""
    assert "3" == triple(post(BrazeModel(window=2.5), now=1.0))[2]


def test_every_answer_has_the_common_headers() -> None:
    """An answer carries Braze's date and a request ID of its own."""
    model = BrazeModel()
    first, second = post(model), model.handle("GET", "/", {}, b"", NOON)

    assert "Fri, 04 Oct 2024 12:00:00 GMT" == first.headers["Date"] == second.headers["Date"]
    assert "application/json" == second.headers["Content-Type"]
    assert "00000000-4e9d-4000-8000-000000000001" == first.headers["X-Request-Id"]
    assert "00000000-4e9d-4000-8000-000000000002" == second.headers["X-Request-Id"]


def test_braze_names_a_send_without_a_name() -> None:
    """Each request without a send ID creates another pair, which the answer names."""
    model = BrazeModel()
    body = b'{"campaign_id": "c"}'
    names = [
        json.loads(model.handle("POST", PATH, GOOD, body, NOON).body)["send_id"] for _ in range(2)
    ]

    assert [("c", name) for name in names] == model.created
    assert 2 == len(set(names))


@pytest.mark.parametrize("authorization", ["Bearer wrong", "Bearer 'test-key'", "test-key", ""])
def test_a_bad_key_is_refused_and_creates_nothing(authorization: str) -> None:
    """A bad key is echoed, the rate-limit headers are empty, and nothing is created."""
    model = BrazeModel()
    reply = model.handle("POST", PATH, GOOD | {"Authorization": authorization}, b"{}", NOON)

    assert 401 == reply.status
    echo = authorization.removeprefix("Bearer ")
    assert {"message": f"Invalid API key: {echo}"} == json.loads(reply.body)
    assert ("", "", "") == triple(reply)
    assert 0 == model.used


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/sends/id/create/", 403),
        ("POST", "/sends/id", 404),
        ("GET", PATH, 404),
    ],
)
def test_another_path_or_method_is_not_the_endpoint(method: str, path: str, status: int) -> None:
    """Another path or method is not this endpoint, and says nothing of its quota."""
    reply = BrazeModel().handle(method, path, GOOD, b"{}", NOON)

    assert status == reply.status
    assert (None, None, None) == triple(reply)


def test_a_body_over_a_mebibyte_is_too_large() -> None:
    """One byte above 1 MiB is too much, 1 MiB is not."""
    model = BrazeModel()
    body = b'{"campaign_id": "c"}'.ljust(MAX_BODY)

    assert 201 == model.handle("POST", PATH, GOOD, body, NOON).status
    assert 413 == model.handle("POST", PATH, GOOD, body + b" ", NOON).status


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json; charset=utf-8", 201),
        ("Application/JSON", 201),
        ("text/plain", 415),
        ("", 415),
    ],
)
def test_only_json_is_taken(content_type: str, status: int) -> None:
    """Only JSON is taken, with or without parameters, under a header name in any case."""
    headers = {"AUTHORIZATION": "Bearer test-key", "content-TYPE": content_type}
    reply = BrazeModel().handle("POST", PATH, headers, b'{"campaign_id": "c"}', NOON)

    assert status == reply.status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"campaign_id": ""}',
        b'{"campaign_id": 1}',
        b'{"campaign_id": ["c"]}',
        b'{"campaign_id": "unknown"}',
        b'{"campaign_id": "c", "send_id": null}',
        b'{"campaign_id": "c", "send_id": 1}',
        b'{"campaign_id": "c", "send_id": ""}',
        b'{"campaign_id": "c", "send_id": "\\u00e9"}',
        b'{"campaign_id": "c", "send_id": "%s"}' % (b"s" * 65),
    ],
)
def test_a_bad_request_costs_nothing(body: bytes) -> None:
    """A body that does not name a known campaign and a valid send is a 400 that costs nothing."""
    model = BrazeModel(campaigns=frozenset({"c"}))
    reply = model.handle("POST", PATH, GOOD, body, NOON)

    assert 400 == reply.status
    assert [] == model.created
    assert ("100", "100", str(MIDNIGHT)) == triple(reply)


def test_the_longest_send_id_is_accepted() -> None:
    """A known campaign and a send ID of 64 characters are accepted."""
    model = BrazeModel(campaigns=frozenset({"c"}))

    assert 201 == post(model, "s" * 64).status


def test_an_unknown_campaign_is_told_in_brazes_words() -> None:
    """The 400 for a campaign has the message that was recorded."""
    reply = post(BrazeModel(), campaign_id="")

    expected = {"message": "campaign_id must be a string of the campaign api identifier"}
    assert expected == json.loads(reply.body)


def test_beyond_the_limit_there_is_a_429() -> None:
    """Beyond the limit there is a 429 that names the reset, and creates and counts nothing."""
    model = BrazeModel(daily_limit=2)
    statuses = [post(model, f"s{n}").status for n in range(4)]
    reply = post(model, "s4")

    assert [201, 201, 429, 429] == statuses
    assert ("2", "0", str(MIDNIGHT)) == triple(reply)
    assert {"message": "Rate limit exceeded"} == json.loads(reply.body)
    assert 3 == model.refused
    assert 2 == model.used == len(model.created)


def test_a_429_has_no_headers_if_the_model_says_so() -> None:
    """A 429 has no rate-limit headers if the model says so; a success keeps its own."""
    model = BrazeModel(daily_limit=1, headers_on_429=False)

    assert ("1", "0", str(MIDNIGHT)) == triple(post(model, "s1"))
    assert (None, None, None) == triple(post(model, "s2"))


def test_at_the_reset_all_slots_are_back() -> None:
    """The window's last moment still belongs to it; at the reset all slots are back."""
    model = BrazeModel(daily_limit=1)

    assert 201 == post(model, "s1").status
    assert 429 == post(model, "s2", now=MIDNIGHT - 0.001).status
    assert 201 == post(model, "s2", now=MIDNIGHT).status
    assert {20_000: 1, 20_001: 1} == model.created_by_window == model.used_by_window


def test_a_duplicate_costs_nothing() -> None:
    """Where pairs are counted a duplicate is a success without cost, also beyond the limit."""
    model = BrazeModel(daily_limit=1)

    assert [201, 201] == [post(model).status, post(model).status]
    assert [("c", "s")] == model.created
    assert (1, 0) == (model.used, model.refused)


def test_a_duplicate_may_be_refused() -> None:
    """Where a duplicate is an error it says that the send exists, and costs nothing."""
    model = BrazeModel(duplicate=400)
    post(model)
    reply = post(model)

    assert 400 == reply.status
    expected = {"message": "send_id already exists for this campaign"}
    assert expected == json.loads(reply.body)
    assert 1 == model.used


def test_where_requests_are_counted_duplicates_and_errors_cost_a_slot() -> None:
    """Where requests are counted a duplicate and an error cost a slot, and the limit is first."""
    model = BrazeModel(daily_limit=3, counts="requests")
    statuses = [post(model).status, post(model).status, post(model, 1).status, post(model).status]

    assert [201, 201, 400, 429] == statuses
    assert 1 == len(model.created) == model.created_by_window[20_000]


def test_a_bad_key_is_no_counted_request() -> None:
    """Where requests are counted those with a bad key are not."""
    model = BrazeModel(counts="requests")
    model.handle("POST", PATH, {}, b"{}", NOON)

    assert 100 == model.remaining(NOON)


def test_where_errors_are_counted_a_400_costs_a_slot() -> None:
    """Where errors are counted a 400 costs a slot, and beyond the limit it is a 429."""
    model = BrazeModel(daily_limit=1, counts_errors=True)

    assert [400, 429] == [post(model, 1).status, post(model, 1).status]
    assert [] == model.created


def test_what_others_spend_is_missing_from_what_remains() -> None:
    """What others spend is missing from what remains, and they cannot take more than there is."""
    model = BrazeModel()
    model.spend(30, NOON)
    assert "69" == triple(post(model))[1]

    model.spend(100, NOON)
    assert 100 == model.used


def test_the_limit_can_be_changed() -> None:
    """A limit lowered below what is used leaves 0, and a raised one leaves the difference."""
    model = BrazeModel(daily_limit=5)
    model.spend(4, NOON)

    model.daily_limit = 2
    assert ("2", "0", str(MIDNIGHT)) == triple(post(model))
    model.daily_limit = 10
    assert ("10", "5", str(MIDNIGHT)) == triple(post(model))


def test_the_window_can_be_ended() -> None:
    """Ending a window moves Braze's clock to the next one: slots, reset and date go together."""
    model = BrazeModel(daily_limit=1)
    post(model, "s1")
    model.end_window(NOON)
    reply = post(model, "s2")

    assert 201 == reply.status
    assert ("1", "0", str(MIDNIGHT + DAY)) == triple(reply)
    assert "Sat, 05 Oct 2024 00:00:00 GMT" == reply.headers["Date"]


@pytest.mark.parametrize(("now", "window"), [(0.0, 7), (3.3, 7), (NOON, 7), (1.85, 0.7)])
def test_ending_the_window_always_opens_the_next(now: float, window: float) -> None:
    """Whatever the moment, ending the window twice moves on by two windows."""
    model = BrazeModel(window=window)
    first = int(now // window)
    model.end_window(now)
    model.end_window(now)
    post(model, now=now)

    assert {first + 2: 1} == model.created_by_window


def test_the_key_is_not_in_the_repr() -> None:
    """The model's repr does not show the key."""
    assert "secret" not in repr(BrazeModel(api_key="secret"))


@pytest.mark.parametrize(
    ("status", "message"),
    [(202, "queued"), (401, "Invalid API key: test-key"), (418, "status 418")],
)
def test_an_answer_can_be_had_without_a_request(status: int, message: str) -> None:
    """An answer can be had for any status, with the words that are usual for it."""
    reply = BrazeModel().answer(status, NOON)

    assert {"message": message} == json.loads(reply.body)
    assert status == reply.status


# --- GET /sends/data_series ----------------------------------------------------------------------


def analytics(model: BrazeModel, query: str, now: float = NOON) -> Reply:
    return model.handle("GET", f"{ANALYTICS_PATH}?{query}", GOOD, b"", now)


def test_a_pair_has_analytics_on_the_day_of_its_creation() -> None:
    """They are within the days that were asked for, and always the same."""
    model = BrazeModel()
    post(model)
    pair = "&".join(
        f"{name}={value}"
        for name, value in zip(("campaign_id", "send_id"), model.created[0], strict=True)
    )

    def days(query: str, now: float = NOON) -> list[Any]:
        found: list[Any] = json.loads(analytics(model, f"{pair}&{query}", now).body)["data"]
        return found

    day = datetime.fromtimestamp(NOON, UTC)
    assert [day.date().isoformat()] == [one["time"] for one in days("length=1")]
    assert days("length=1") == days("length=100", NOON + 99 * 86400)
    assert [] == days("length=1", NOON + 2 * 86400)
    hour = timedelta(hours=1)
    assert [] == days(f"length=1&ending_at={quote((day - hour).isoformat())}")
    assert days("length=1") == days(f"length=1&ending_at={day + hour:%Y-%m-%dT%H:%M:%S}")


def test_an_unknown_pair_has_no_days() -> None:
    """Braze's own answer is not documented."""
    reply = analytics(BrazeModel(), "campaign_id=c&send_id=s&length=14")
    assert (200, {"message": "success", "data": []}) == (reply.status, json.loads(reply.body))


@pytest.mark.parametrize(
    "query",
    [
        "send_id=s&length=1",
        "campaign_id=other&send_id=s&length=1",
        "campaign_id=c&length=1",
        "campaign_id=c&send_id=s",
        "campaign_id=c&send_id=s&length=0",
        "campaign_id=c&send_id=s&length=101",
        "campaign_id=c&send_id=s&length=1.5",
        "campaign_id=c&send_id=s&length=1&ending_at=today",
    ],
)
def test_a_query_that_cannot_be_answered_is_a_400(query: str) -> None:
    """What is missing or out of bounds, and a campaign that does not exist."""
    assert 400 == analytics(BrazeModel(campaigns=frozenset({"c"})), query).status


def test_analytics_cost_no_slot_and_show_the_general_bucket() -> None:
    """Under every reading of what costs a slot."""
    model = BrazeModel(counts="requests", counts_errors=True)
    for query in ("campaign_id=c&send_id=s&length=14", ""):
        headers = analytics(model, query).headers
        assert str(GENERAL_LIMIT) == headers["X-Ratelimit-Limit"]
    assert 0 == model.used


def test_analytics_need_the_key_and_a_get() -> None:
    """A bad key is a 401, another method a 404."""
    assert 401 == BrazeModel().handle("GET", ANALYTICS_PATH, {}, b"", NOON).status
    assert 404 == BrazeModel().handle("POST", ANALYTICS_PATH, GOOD, b"{}", NOON).status
