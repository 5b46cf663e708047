"""Answers that are nearly Braze's: each is a valid send ID, or an error fit to be shown."""

from __future__ import annotations

import pickle
from itertools import chain

import attrs
from hypothesis import strategies as st

from braze_sends import APIResponseError, BrazeSendsError, CreateSendId, RateLimitError, SendId
from braze_sends import headers as headers_of
from braze_sends.headers import AnswerHeaders
from braze_sends.protocol import (
    MAX_BODY,
    MAX_ERRORS,
    MAX_TEXT,
    Reply,
    check_request,
    exhausted,
    leaves_pair_in_doubt,
    parse_response,
    says_it_exists,
)
from braze_sends.settings import ApiKey
from tests.fuzz.shapes import (
    NUMBERS,
    Content,
    Strategy,
    anything,
    array,
    check,
    contents,
    deep,
    mapping,
    often,
    pick,
    quoted,
    several,
    times,
)
from tests.fuzz.test_headers import HEADERS, sensible, whole
from tests.world import KEY, MORNING

REQUESTS = pick([CreateSendId("campaign", "asked"), CreateSendId("campaign")])

_texts = pick(
    [
        *("success", "queued", "asked", "other", "", " ", "send_id already exists", times(64, "x")),
        *(
            times(65, "x"),
            times(1001, "x"),
            times(200_000, "x"),
            f"Invalid API key: {KEY}",
            KEY,
            KEY.upper(),
            KEY * 3,
        ),
        *(
            KEY[:-1],
            f"{times(990, 'x')}{KEY}",
            f"\x1b[31m{KEY}\x1b[0m",
            f"{KEY[:9]}\0{KEY[9:]}",
            "\u202e",
        ),
        *(
            "\ud800",
            "\udc00\ud800",
            "\U0001f600",
            "\0",
            "a\r\nb",
            "\u2028",
            times(60_000, "\u00e9"),
        ),
        *(
            f"<b>{KEY}</b>",
            times(5000, "<"),
            f"{KEY[:9]}<i></i>{KEY[9:]}",
            "\u212a",
            "asked ",
            "\x7f",
        ),
    ]
)
_any = anything(_texts)
_issues = array(
    often(quoted(_texts), mapping(st.lists(st.tuples(quoted(_texts), _any), max_size=2)), _any)
)


def _member(name: str, *values: Strategy[str]) -> Strategy[list[tuple[str, str]]]:
    """There, missing, or there twice."""
    one = st.tuples(quoted(st.just(name)), often(*values))
    return st.lists(one, min_size=1, max_size=1) | st.lists(one, max_size=2)


_answers = mapping(
    st.builds(
        lambda *members: [*chain(*members)],
        _member("message", quoted(_texts), _any),
        _member("send_id", quoted(_texts), _any) | st.just([]),
        _member("errors", _issues, deep(_issues), array(NUMBERS), _any) | st.just([]),
        often(st.just([]), st.lists(st.tuples(quoted(_texts), _any), max_size=2)),
    )
)
_pages = st.builds(
    "{}<html>{}<p title='{}'>{}".format, pick(["", "<!doctype html>"]), *[_texts] * 3
)
_padding = pick(["", " ", "\n", "\ufeff", "\x0b", ")]}',\n", "\0"])
_text = st.builds(
    "{}{}{}".format,
    often(st.just(""), _padding),
    often(_answers, _any, _pages),
    often(st.just(""), _padding),
)
BODIES = contents(_text)
STATUSES = often(
    pick([200, 201, 202, 204, 299]),
    pick([400, 401, 403, 404, 429, 500, 503]),
    st.integers(100, 599),
    weight=1,
)

#: Above what ``MAX_ERRORS`` characters and as many items take to write down.
_MOST = 10 * MAX_ERRORS


@attrs.frozen
class Case:
    """One exchange."""

    request: CreateSendId
    status: int
    headers: dict[str, str]
    body: Content
    too_long: bool


CASES = st.builds(
    Case,
    REQUESTS,
    STATUSES,
    often(st.just({}), HEADERS, weight=1),
    BODIES,
    often(st.just(False), st.just(True), weight=9),
)


def fit_to_show(error: BrazeSendsError) -> None:
    """It prints, pickles, and holds neither the key nor more than its share."""
    for text in (str(error), repr(error)):
        assert len(text.encode()) <= 4 * (MAX_TEXT + 500)
        assert text.isprintable()
        assert KEY not in text.lower()
    shown = repr(vars(error))
    shown.encode()
    assert KEY not in shown.lower()
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # ours, of a moment ago
    assert type(error) is type(again)
    assert (str(error), shown) == (str(again), repr(vars(again)))


def _answered(
    case: Case, headers: dict[str, str], told: AnswerHeaders
) -> SendId | APIResponseError:
    reply = Reply(case.status, headers, case.body.bytes()[:MAX_BODY], case.too_long)
    try:
        return parse_response(case.request, reply, told, ApiKey(KEY))
    except APIResponseError as error:
        return error


def _bodies_hold(case: Case) -> None:
    headers = whole(case.headers)
    told = headers_of.read(headers, MORNING, ApiKey(KEY).scrub)
    sensible(told)
    answer = _answered(case, headers, told)
    if isinstance(answer, SendId):
        assert 200 <= case.status < 300
        assert "campaign" == answer.campaign_id
        check_request(CreateSendId("campaign", answer.send_id))
        assert KEY not in answer.send_id.lower()
        assert answer == pickle.loads(pickle.dumps(answer))  # noqa: S301  # ours
        return
    assert (case.status, "campaign", case.request.send_id) == (
        answer.status_code,
        answer.campaign_id,
        answer.send_id,
    )
    fit_to_show(answer)
    assert len(repr(answer.errors)) <= _MOST
    assert says_it_exists(answer) in (True, False)
    assert leaves_pair_in_doubt(answer) in (True, False)
    if isinstance(answer, RateLimitError):
        fit_to_show(exhausted(answer, told, MORNING))


@several(40, 8000)
def test_an_answer_is_a_send_id_or_an_error_that_can_be_shown(examples: int) -> None:
    """An answer near Braze's, with any status, gives a valid send ID or an error without the key,
    of bounded length, that prints and pickles."""
    check(examples, CASES, _bodies_hold)
