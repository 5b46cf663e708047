"""The endpoint as pure functions: requests out, results and errors in."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braze_sends import (
    APIConnectionError,
    APIResponseError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    BrazeSendsError,
    ConfigurationError,
    CreateSendId,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExhaustedError,
    RateLimit,
    RateLimitError,
    SendId,
)
from braze_sends.errors import span
from braze_sends.headers import LONGEST_WAIT, AnswerHeaders, read
from braze_sends.protocol import (
    MAX_BODY,
    MAX_CAMPAIGN_ID_LENGTH,
    MAX_ERRORS,
    MAX_TEXT,
    NoReply,
    Reply,
    build_body,
    check_request,
    exhausted,
    leaves_pair_in_doubt,
    parse_response,
    says_it_exists,
)
from braze_sends.settings import ApiKey
from tests.world import KEY

NAMED = CreateSendId("campaign", "asked")
UNNAMED = CreateSendId("campaign")
NOW = datetime(2026, 11, 21, 9, tzinfo=UTC)
RATE_LIMIT = RateLimit(100, 37, NOW + timedelta(hours=15))
TOLD = AnswerHeaders(RATE_LIMIT, 7.0, NOW.timestamp(), "request-1")


def parse(
    status: int,
    body: object,
    *,
    request: CreateSendId = NAMED,
    told: AnswerHeaders = TOLD,
    too_long: bool = False,
) -> SendId:
    """Parse an answer; a body that is not bytes is made JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_response(request, Reply(status, {}, content, too_long), told, ApiKey(KEY))


def error_of(status: int, body: object, **options: Any) -> APIResponseError:
    """The error that an answer gives."""
    with pytest.raises(APIResponseError) as caught:
        parse(status, body, **options)
    return caught.value


# --- requests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (NAMED, b'{"campaign_id":"campaign","send_id":"asked"}'),
        (UNNAMED, b'{"campaign_id":"campaign"}'),
        (CreateSendId('a"b', "c\\d"), b'{"campaign_id":"a\\"b","send_id":"c\\\\d"}'),
    ],
)
def test_a_body_is_compact_json_without_an_unset_send_id(
    request_: CreateSendId, body: bytes
) -> None:
    """The body holds the campaign, and the send ID only where there is one."""
    assert body == build_body(request_)


@pytest.mark.parametrize(
    "request_",
    [
        NAMED,
        UNNAMED,
        CreateSendId("d8b73da7-0b7c-fc72-1d80-e59c7f20f0d3", "s"),
        CreateSendId("c" * MAX_CAMPAIGN_ID_LENGTH, "s" * 64),
        CreateSendId("a b", "~!@ #\"'"),
    ],
)
def test_ids_that_braze_could_accept_pass_unchanged(request_: CreateSendId) -> None:
    """Printable ASCII within the lengths is fine, also a campaign that is no RFC 4122 UUID."""
    assert request_ is check_request(request_)


BAD_IDS = [
    ("", "must not be empty"),
    ("   ", "must not be empty"),
    ("\n", "must not be empty"),
    (b"bytes", "must be a string, not bytes"),
    (7, "must be a string, not int"),
    (True, "must be a string, not bool"),
    (["a"], "must be a string, not list"),
    ({}, "must be a string, not dict"),
    ("é", "must be ASCII"),
    ("\uff43", "must be ASCII"),
    ("\ud800", "must be ASCII"),
    ("a\nb", "must not contain control characters"),
    ("a\x00b", "must not contain control characters"),
    ("a\x7f", "must not contain control characters"),
    (" a", "must not begin or end with a blank"),
    ("a ", "must not begin or end with a blank"),
]


@pytest.mark.parametrize(
    ("value", "problem"), [*BAD_IDS, (None, "not NoneType"), ("c" * 257, "at most 256")]
)
def test_a_bad_campaign_is_refused_before_anything_is_sent(value: Any, problem: str) -> None:
    """A campaign that Braze cannot accept is a ConfigurationError that names the trouble."""
    with pytest.raises(ConfigurationError) as caught:
        check_request(CreateSendId(value, "s"))
    assert str(caught.value).startswith("campaign_id must ")
    assert problem in str(caught.value)
    assert caught.value.quota_spent is False


@pytest.mark.parametrize(("value", "problem"), [*BAD_IDS, ("s" * 65, "at most 64 characters")])
def test_a_bad_send_id_is_refused_before_anything_is_sent(value: Any, problem: str) -> None:
    """A send ID that Braze cannot accept is a ConfigurationError that names the trouble."""
    with pytest.raises(ConfigurationError) as caught:
        check_request(CreateSendId("campaign", value))
    assert str(caught.value).startswith("send_id must ")
    assert problem in str(caught.value)
    assert ("campaign", value if isinstance(value, str) else None) == (
        caught.value.campaign_id,
        caught.value.send_id,
    )


_anything = st.none() | st.text() | st.binary() | st.integers() | st.floats() | st.lists(st.text())


@given(_anything, _anything)
def test_every_request_is_either_good_or_a_configuration_error(campaign: Any, send: Any) -> None:
    """Whatever is given for the IDs, the check passes it, fit for a body, or refuses it."""
    try:
        request = check_request(CreateSendId(campaign, send))
    except ConfigurationError:
        return
    expected = {"campaign_id": campaign} | ({} if send is None else {"send_id": send})
    assert expected == json.loads(build_body(request).decode("ascii"))


# --- success -------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 299])
@pytest.mark.parametrize("request_", [NAMED, UNNAMED])
def test_any_2xx_with_a_send_id_is_a_success(status: int, request_: CreateSendId) -> None:
    """The send ID in the body of a 2xx is the result, with what the headers told."""
    send = parse(status, {"message": "success", "send_id": "made"}, request=request_)
    expected = SendId("campaign", "made", request_id="request-1", rate_limit=RATE_LIMIT)
    assert expected == send
    assert "made" == str(send)


@pytest.mark.parametrize(
    "body",
    [
        b'{"send_id":"made"}',
        b'{"send_id":"made","message":"whatever it says","new":{"a":[1]},"n":1e999}',
        b'\xef\xbb\xbf{"message":"success","send_id":"made"}',
        b' {"send_id": "made"}\r\n',
    ],
    ids=["no message", "unknown fields", "byte order mark", "blanks"],
)
def test_wording_and_unknown_fields_are_ignored(body: bytes) -> None:
    """Only the send ID of a 2xx is judged; what Braze adds or rewords does no harm."""
    assert "made" == parse(201, body).send_id


def test_a_send_id_that_was_asked_for_may_hold_the_key() -> None:
    """The caller chose both, as tests do, and the answer repeats what was asked."""
    asked = CreateSendId("campaign", f"{KEY}-1")
    assert asked.send_id == parse(201, {"send_id": asked.send_id}, request=asked).send_id


@pytest.mark.parametrize("status", [200, 201, 202])
def test_a_queued_create_with_a_name_is_a_queued_send_id(status: int) -> None:
    """Braze took the request and will create the ID that was asked for."""
    expected = SendId(
        "campaign", "asked", queued=True, request_id="request-1", rate_limit=RATE_LIMIT
    )
    assert expected == parse(status, {"message": "queued"})


def test_a_queued_create_without_a_name_is_an_error() -> None:
    """A name that Braze will choose later cannot be known, so there is no send ID to return."""
    error = error_of(202, {"message": "queued"}, request=UNNAMED)
    assert APIResponseValidationError is type(error)
    assert error.quota_spent is None
    assert error.send_id is None


@pytest.mark.parametrize(
    "body", [{"message": "queued", "errors": ["no"]}, {"message": "queued", "send_id": ""}]
)
def test_a_queued_create_that_contradicts_itself_is_an_error(body: object) -> None:
    """``queued`` beside errors, or beside an unusable send ID, is not taken for a success."""
    assert APIResponseValidationError is type(error_of(202, body))


# --- 2xx that are no success ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "complaint", "from_edge"),
    [
        (b'{"message":"success"}', "no usable send_id: success", False),
        (b'{"message":"success","send_id":null}', "no usable send_id: success", False),
        (b'{"send_id":7}', "no usable send_id", False),
        (b'{"send_id":["made"]}', "no usable send_id", False),
        (b'{"send_id":{"id":"made"}}', "no usable send_id", False),
        (b'{"send_id":true}', "no usable send_id", False),
        (b'{"send_id":""}', "no usable send_id", False),
        (b'{"send_id":" \\t"}', "no usable send_id", False),
        (b'{"send_id":"made "}', "no usable send_id", False),
        (b'{"send_id":"ma\\u001bde"}', "no usable send_id", False),
        (b'{"send_id":"ma\\nde"}', "no usable send_id", False),
        (b'{"send_id":"\\ud800"}', "no usable send_id", False),
        (b'{"send_id":"m\xc3\xa4de"}', "no usable send_id", False),
        (b'{"send_id":"' + b"m" * 65 + b'"}', "no usable send_id", False),
        (b'{"send_id":"' + b"m" * 1_000_000 + b'"}', "no usable send_id", False),
        (f'{{"send_id":"{KEY}"}}'.encode(), "no usable send_id", False),
        (f'{{"send_id":"id-{KEY.upper()}"}}'.encode(), "no usable send_id", False),
        (b"{}", "no usable send_id", False),
        (b"[]", "not a JSON object", False),
        (b'"made"', "not a JSON object", False),
        (b"7", "not a JSON object", False),
        (b"", "the body is empty", False),
        (b" \n", "the body is empty", False),
        (b'{"send_id":"made"', "the body is not JSON", True),
        (b"<html><p>Welcome to <b>our</b> portal</p>", "not JSON: Welcome to our portal", True),
        (b"\xff\xfe\x00", "the body is not JSON", True),
        (b"[" * 100_000, "the body is not JSON", True),
    ],
)
def test_a_2xx_without_a_usable_send_id_is_an_error_of_its_own(
    body: bytes, complaint: str, from_edge: bool
) -> None:
    """The error says what is wrong with the body, and that the slot may be spent."""
    error = error_of(201, body)
    assert APIResponseValidationError is type(error)
    assert complaint in str(error)
    assert from_edge is error.from_edge
    assert error.quota_spent is None
    assert 201 == error.status_code


@pytest.mark.parametrize("status", [201, 500])
def test_a_body_that_was_too_long_is_not_judged(status: int) -> None:
    """What was not read to its end is an error that quotes nothing of it."""
    error = error_of(status, b"", too_long=True)
    assert (f"over {MAX_BODY} bytes" in str(error)) is (status == 201)
    assert error.from_edge is False


# --- other statuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "quota_spent"),
    [
        (400, BadRequestError, None),
        (401, AuthenticationError, False),
        (402, APIStatusError, None),
        (403, PermissionDeniedError, False),
        (404, NotFoundError, None),
        (409, APIStatusError, None),
        (413, APIStatusError, None),
        (415, APIStatusError, None),
        (429, RateLimitError, False),
        (499, APIStatusError, None),
        (500, InternalServerError, None),
        (502, InternalServerError, None),
        (503, InternalServerError, None),
        (520, InternalServerError, None),
        (599, InternalServerError, None),
        (100, APIStatusError, None),
        (199, APIStatusError, None),
        (300, APIStatusError, None),
        (302, APIStatusError, None),
        (304, APIStatusError, None),
    ],
)
def test_the_status_gives_the_class_of_the_error(
    status: int, kind: type[APIStatusError], quota_spent: bool | None
) -> None:
    """The status alone decides the class, and whether the slot can have been spent."""
    error = error_of(status, {"message": "words", "send_id": "made"})
    assert kind is type(error)
    assert quota_spent is error.quota_spent
    assert (status, "request-1", RATE_LIMIT, 7.0) == (
        error.status_code,
        error.request_id,
        error.rate_limit,
        error.retry_after,
    )
    assert ("campaign", "asked") == (error.campaign_id, error.send_id)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_says_why_it_is_not_followed(status: int) -> None:
    """A redirect is an error that speaks of the redirect, not of the page that came with it."""
    assert "redirected, which is never followed" in str(error_of(status, b"<p>Moved</p>"))


@pytest.mark.parametrize(
    ("body", "message", "errors"),
    [
        ({"message": "no", "errors": ["one", "two"]}, "no", ("one", "two")),
        ({"message": "no", "errors": [{"id": 1}, None, 7]}, "no", ({"id": 1}, None, 7)),
        ({"message": "no", "errors": "text"}, "no", ()),
        ({"message": "no", "errors": {"a": "b"}}, "no", ()),
        ({"message": None}, "no message", ()),
        ({"message": {"text": "no"}}, "no message", ()),
        ({"message": "", "errors": ["one"]}, "no message", ("one",)),
        ({}, "no message", ()),
        (["no"], '["no"]', ()),
        (b"", "no message", ()),
        (b"<h1>502\n Bad\tGateway</h1>\x07", "502 Bad Gateway", ()),
        (b"x" * 5000, "x" * 200, ()),
    ],
)
def test_the_answers_own_words_are_kept(
    body: object, message: str, errors: tuple[object, ...]
) -> None:
    """Braze's message and list are on the error; of a text that is no JSON, a short plain line."""
    error = error_of(400, body)
    assert message == error.message
    assert errors == error.errors


@pytest.mark.parametrize("status", [201, 400, 500])
def test_what_would_act_on_a_terminal_is_replaced(status: int) -> None:
    """The text of an error can be printed and encoded, whatever characters the answer has."""
    text = "no\x1b[2J\n\x9b1m\u202e\ud800 é✓"
    clean = "no\ufffd[2J\ufffd\ufffd1m\ufffd\ufffd é✓"
    error = error_of(status, {"message": text, "errors": [text, {text: [text, 7]}]})
    assert error.message.endswith(clean)
    assert (clean, {clean: [clean, 7]}) == error.errors
    assert str(error).encode("utf-8").decode() == str(error)


@pytest.mark.parametrize("status", [201, 400])
@pytest.mark.parametrize(
    "errors",
    [
        ["x" * 900_000],
        ["x"] * 200_000,
        [None] * 200_000,
        [{"reason": "x" * 500}] * 1500,
        [dict.fromkeys(map(str, range(50_000)))],
        [[["x" * 20] * 30] * 30] * 30,
        [2**40] * 30_000,
        [1 / 3] * 30_000,
    ],
    ids=["text", "texts", "nulls", "objects", "names", "nested", "numbers", "fractions"],
)
def test_a_long_answer_makes_no_long_error(
    status: int, errors: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error keeps the beginning of what an answer says, and the rest is not even looked at."""
    scrub, scrubbed = ApiKey.scrub, 0

    def counted(key: ApiKey, text: str) -> str:
        nonlocal scrubbed
        scrubbed += 1
        return scrub(key, text)

    monkeypatch.setattr(ApiKey, "scrub", counted)
    error = error_of(status, {"errors": errors, "message": "y" * 100_000})
    assert error.message.endswith("y" * MAX_TEXT)
    assert len(error.message) < 2 * MAX_TEXT
    assert () != error.errors
    # Every value costs a character of the room, and up to five of punctuation and ``null``.
    assert len(json.dumps(error.errors)) < 7 * MAX_ERRORS
    assert scrubbed <= MAX_ERRORS


@pytest.mark.parametrize(
    ("body", "from_edge"),
    [(b"", False), (b"  ", False), (b'{"message":"no"}', False), (b"[]", False), (b"<p>", True)],
)
def test_text_that_is_no_json_comes_from_the_edge(body: bytes, from_edge: bool) -> None:
    """A CDN's or proxy's page is told from Braze's own answer; an empty body is neither."""
    assert from_edge is error_of(502, body).from_edge


@pytest.mark.parametrize("status", [401, 403])
def test_a_page_that_refuses_is_not_taken_for_brazes_word_on_the_key(status: int) -> None:
    """The message names a proxy or CDN, and says nothing of the key or its permissions."""
    error = error_of(status, b"<h1>Forbidden</h1>")
    assert error.message.startswith("Forbidden. The answer is not JSON, so a proxy or CDN before ")
    assert "sends.id.create" not in error.message


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"message": f"Invalid API key: {KEY}"}).encode(),
        json.dumps({"message": f"Invalid API key: {KEY.upper()}"}).encode(),
        json.dumps({"message": "no", "errors": [KEY, {KEY: [KEY]}]}).encode(),
        f'{{"message":"\\u{ord(KEY[0]):04x}{KEY[1:]}"}}'.encode(),
        f"<html><b>{KEY}</b></html>".encode(),
    ],
    ids=["message", "upper case", "errors", "escaped", "HTML"],
)
@pytest.mark.parametrize("status", [201, 302, 400, 401, 500])
def test_an_echoed_key_is_cleaned_away(status: int, body: bytes) -> None:
    """The key that an answer echoes is on no attribute of the error, however it was written."""
    told = read({"x-request-id": f"id-{KEY}"}, 0.0, ApiKey(KEY).scrub)
    error = error_of(status, body, told=told)
    assert KEY.lower() not in f"{error} {error!r} {vars(error)}".lower()
    assert "id-***" == error.request_id


# --- no answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "quota_spent"), [(True, None), (False, False)])
@pytest.mark.parametrize(
    ("timed_out", "kind"), [(True, APITimeoutError), (False, APIConnectionError)]
)
def test_no_answer_is_a_connection_error(
    timed_out: bool, kind: type[APIConnectionError], sent: bool, quota_spent: bool | None
) -> None:
    """Without an answer the slot is surely not spent if nothing was sent, else nobody knows."""
    with pytest.raises(APIConnectionError, match=r"^the cable$") as caught:
        parse_response(NAMED, NoReply("the cable", sent, timed_out), TOLD, ApiKey(KEY))
    assert kind is type(caught.value)
    assert caught.value.permanent is False
    assert quota_spent is caught.value.quota_spent
    assert ("campaign", "asked") == (caught.value.campaign_id, caught.value.send_id)


# --- any answer at all ---------------------------------------------------------------------------

_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("queued"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["message", "send_id", "errors", "other"]) | st.text(), inner
        )
    ),
    max_leaves=8,
)
_bodies = st.binary(max_size=200) | _json_values.map(lambda value: json.dumps(value).encode())
_headers = st.dictionaries(
    st.sampled_from(
        ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "date", "x-request-id"]
    ),
    st.text(),
)


@given(
    request=st.sampled_from([NAMED, UNNAMED]),
    status=st.sampled_from([200, 201, 202]) | st.integers(100, 999),
    headers=_headers,
    body=_bodies,
    too_long=st.booleans(),
    key=st.sampled_from([KEY, "e", "0", "message"]),
)
def test_every_answer_is_a_send_id_or_an_error_of_ours(
    request: CreateSendId,
    status: int,
    headers: dict[str, str],
    body: bytes,
    too_long: bool,
    key: str,
) -> None:
    """No answer can make anything but a send ID that has a name, or an error that pickles."""
    reply = Reply(status, headers, body, too_long)
    result: SendId | BrazeSendsError
    try:
        result = parse_response(request, reply, read(headers, 0.0), ApiKey(key))
    except BrazeSendsError as error:
        result = error
    if isinstance(result, SendId):
        assert 200 <= status < 300
        assert result.send_id == check_request(CreateSendId("c", result.send_id)).send_id
    else:
        assert str(result).isprintable()
        again = pickle.loads(pickle.dumps(result))  # noqa: S301  # made just now
        assert str(result) == str(again)


# --- what an error means -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "in_doubt"),
    [
        (APIConnectionError("", quota_spent=None), True),
        (APITimeoutError("", quota_spent=None), True),
        (APIConnectionError("", quota_spent=False), False),
        (InternalServerError("", status_code=500), True),
        (InternalServerError("", status_code=503), True),
        (APIResponseValidationError("", status_code=201), True),
        (APIStatusError("", status_code=302), True),
        (BadRequestError("", status_code=400), False),
        (NotFoundError("", status_code=404), False),
        (APIStatusError("", status_code=413), False),
        (APIStatusError("", status_code=499), False),
        (AuthenticationError("", status_code=401, quota_spent=False), False),
        (RateLimitError("", status_code=429, quota_spent=False), False),
    ],
)
def test_an_unknown_outcome_leaves_the_pair_in_doubt_and_a_verdict_does_not(
    error: BrazeSendsError, in_doubt: bool
) -> None:
    """The pair may exist after an unknown outcome; a 4xx says that it was not created."""
    assert in_doubt is leaves_pair_in_doubt(error)


def rate_limit_error() -> RateLimitError:
    return RateLimitError(
        "slow down",
        status_code=429,
        quota_spent=False,
        campaign_id="campaign",
        send_id="asked",
    )


def used_up(seconds: float) -> RateLimit:
    """Nothing left until that many seconds after ``NOW``."""
    return RateLimit(100, 0, NOW + timedelta(seconds=seconds))


DATE = NOW.timestamp()


@pytest.mark.parametrize(
    ("told", "now", "retry_after"),
    [
        (AnswerHeaders(used_up(3600), None, DATE), 0.0, 3600.0),
        (AnswerHeaders(used_up(3600), None, None), DATE + 600, 3000.0),
        (AnswerHeaders(used_up(3600), 7.0, DATE), 0.0, 3600.0),
        (AnswerHeaders(used_up(LONGEST_WAIT), None, DATE), 0.0, LONGEST_WAIT),
    ],
    ids=["by its Date", "by our clock", "not by Retry-After", "a day and an hour"],
)
def test_a_429_with_a_reset_ahead_is_an_exhausted_quota(
    told: AnswerHeaders, now: float, retry_after: float
) -> None:
    """Nothing left and a reset that is to come say how long to wait, and with what numbers."""
    error = exhausted(rate_limit_error(), told, now)
    assert isinstance(error, QuotaExhaustedError)
    assert told.rate_limit is not None
    assert (100, 0, told.rate_limit.resets_at) == (error.limit, error.remaining, error.resets_at)
    assert retry_after == error.retry_after
    assert f"slow down; come back in {span(retry_after)} (the quota resets " in str(error)
    assert ("campaign", "asked", False) == (error.campaign_id, error.send_id, error.quota_spent)


@pytest.mark.parametrize(
    "rate_limit",
    [None, RATE_LIMIT, used_up(0), used_up(-1), used_up(LONGEST_WAIT + 1)],
    ids=["no triple", "something left", "reset is now", "reset is past", "reset is absurd"],
)
def test_a_429_with_only_a_retry_after_is_an_exhausted_quota_without_numbers(
    rate_limit: RateLimit | None,
) -> None:
    """A wait that Braze asks for is told; numbers that do not explain the 429 are not."""
    error = exhausted(rate_limit_error(), AnswerHeaders(rate_limit, 7.0, DATE), 0.0)
    assert isinstance(error, QuotaExhaustedError)
    assert (None, None, None) == (error.limit, error.remaining, error.resets_at)
    assert 7.0 == error.retry_after


@pytest.mark.parametrize(
    "rate_limit", [None, RATE_LIMIT, used_up(0), used_up(-1), used_up(LONGEST_WAIT + 1)]
)
def test_a_429_that_does_not_say_when_to_come_back_stays_what_it_is(
    rate_limit: RateLimit | None,
) -> None:
    """Where no header gives a time, the caller gets the RateLimitError itself."""
    error = rate_limit_error()
    assert error is exhausted(error, AnswerHeaders(rate_limit, None, DATE), 0.0)


@pytest.mark.parametrize(
    "words",
    [
        "send_id already exists for this campaign",
        "Send ID already exists",
        "The send identifier has already been used",
        "send-id already taken",
        "sendId already in use",
        "A send with this ID was already created",
        "duplicate send_id",
        "send-id-already-exists",
        "Send already exists",
    ],
)
def test_a_400_may_say_that_the_send_exists(words: str) -> None:
    """A message that names a send and says that it is there already counts, wherever it stands."""
    assert says_it_exists(BadRequestError(words, status_code=400))
    assert says_it_exists(BadRequestError("Invalid", errors=(words,), status_code=400))
    assert says_it_exists(BadRequestError("Invalid", errors=({"message": words},), status_code=400))


@pytest.mark.parametrize(
    "words",
    [
        "",
        "campaign_id must be a string of the campaign api identifier",
        "Unknown campaign",
        "send_id must be a string",
        "send_id does not exist",
        "The send_id is too long",
        "A catalog with that name already exists",
        "Campaign already exists",
        "duplicate request",
        "the sender already exists",
        "resend_id already exists",
    ],
)
def test_other_400s_do_not_say_that_the_send_exists(words: str) -> None:
    """An unknown campaign, a catalog that exists, or a send that is merely bad do not count."""
    assert not says_it_exists(BadRequestError(words, errors=(words,), status_code=400))


def test_a_send_and_an_existence_in_different_items_do_not_count() -> None:
    """One and the same text has to say both."""
    error = BadRequestError("bad send_id", errors=("A catalog already exists",), status_code=400)
    assert not says_it_exists(error)


def test_a_long_list_is_not_searched_to_its_end() -> None:
    """A 400 with a megabyte of errors costs no time: a hundred are searched, each at its start."""
    words = "send_id already exists"
    for errors in (("x",) * 100 + (words,), ("x " * MAX_TEXT + words,), ("x",) * 100 + (object(),)):
        assert not says_it_exists(BadRequestError("bad", errors=errors, status_code=400))
    among = ("x",) * 99 + (words,)
    assert says_it_exists(BadRequestError("bad", errors=among, status_code=400))


def test_only_a_400_can_say_that_the_send_exists() -> None:
    """The same words under another status mean nothing."""
    words = "send_id already exists"
    assert not says_it_exists(NotFoundError(words, status_code=404))
    assert not says_it_exists(APIConnectionError(words))


@pytest.mark.parametrize("depth", [700, 950])
def test_an_answer_nested_too_deeply_is_an_error_of_ours(depth: int) -> None:
    """Whether it is the parser or the cleaning that gives up."""
    body = b'{"errors":' + b"[" * depth + b"]" * depth + b"}"
    error = error_of(400, body)
    assert isinstance(error, BadRequestError)
    assert 400 == error.status_code


def test_a_number_without_end_is_cut() -> None:
    """Its digits count as text, and may be the key."""
    body = json.dumps({"message": "no", "errors": [int("9" * 4000), 7]}).encode()
    with pytest.raises(BadRequestError) as caught:
        parse(400, body)
    assert ("9" * 1000, 7) == caught.value.errors
