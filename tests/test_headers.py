"""Header text to values: what does not make sense is unknown, never zero."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braze_sends import RateLimit
from braze_sends.headers import LONGEST_WAIT, AnswerHeaders, read

DATE = "Sat, 21 Nov 2026 09:00:00 GMT"
MORNING = datetime(2026, 11, 21, 9, tzinfo=UTC)
MIDNIGHT = datetime(2026, 11, 22, tzinfo=UTC)
NAMES = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
TRIPLE = dict(zip(NAMES, ("100", "37", str(int(MIDNIGHT.timestamp()))), strict=True))


def test_the_three_headers_together_are_a_rate_limit() -> None:
    """Limit, remaining and a reset in epoch seconds become numbers and a UTC time."""
    rate_limit = read(TRIPLE, 0.0).rate_limit
    assert RateLimit(100, 37, MIDNIGHT) == rate_limit
    assert rate_limit is not None
    assert UTC == rate_limit.resets_at.tzinfo
    assert 63 == rate_limit.used


def test_no_headers_tell_nothing() -> None:
    """An answer without any known header leaves everything unknown."""
    assert AnswerHeaders() == read({"content-type": "application/json"}, 0.0)


def test_zero_remaining_is_a_number() -> None:
    """A ``0`` that Braze really sent is believed."""
    rate_limit = read(TRIPLE | {NAMES[1]: "0"}, 0.0).rate_limit
    assert RateLimit(100, 0, MIDNIGHT) == rate_limit


def test_blanks_around_numbers_do_no_harm() -> None:
    """A number may have blanks around it."""
    padded = {name: f" {text}\t" for name, text in TRIPLE.items()}
    assert RateLimit(100, 37, MIDNIGHT) == read(padded, 0.0).rate_limit


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "abc",
        "-1",
        "+5",
        "1_000",
        "1.0",
        "1e2",
        "0x10",
        "NaN",
        "37 of 100",
        "\u0663\u0667",  # Arabic-Indic
        "\uff11\uff10\uff10",  # full width
        "²",
        "100, 100",
        "9" * 16,
        "9" * 5000,
    ],
)
def test_one_senseless_header_makes_the_triple_unknown(name: str, text: str) -> None:
    """Blank, garbled, negative, doubled or foreign digits in any one of the three: no triple."""
    assert read(TRIPLE | {name: text}, 0.0).rate_limit is None


@pytest.mark.parametrize("name", NAMES)
def test_one_missing_header_makes_the_triple_unknown(name: str) -> None:
    """Two of the three headers are no triple."""
    rest = {other: text for other, text in TRIPLE.items() if other != name}
    assert read(rest, 0.0).rate_limit is None


def test_the_blank_headers_of_a_401_are_unknown() -> None:
    """Three empty strings, as a recorded 401 carries them, are no triple."""
    assert read(dict.fromkeys(NAMES, ""), 0.0).rate_limit is None


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        ("100", "101", TRIPLE[NAMES[2]]),
        ("0", "0", TRIPLE[NAMES[2]]),
        ("100", "37", "0"),
        ("100", "37", TRIPLE[NAMES[2]] + "000"),
        ("100", "37", "9" * 15),
    ],
    ids=["more left than allowed", "no limit", "no reset", "milliseconds", "far beyond all years"],
)
def test_numbers_that_contradict_sense_are_unknown(limit: str, remaining: str, reset: str) -> None:
    """Numbers that cannot be true together, or name no time, are no triple."""
    headers = dict(zip(NAMES, (limit, remaining, reset), strict=True))
    assert read(headers, 0.0).rate_limit is None


@pytest.mark.parametrize(
    "text", [DATE, "Saturday, 21-Nov-26 09:00:00 GMT", "Sat Nov 21 09:00:00 2026"]
)
def test_date_is_read_in_each_form_of_http(text: str) -> None:
    """``Date`` gives the server's clock in epoch seconds, whichever of HTTP's forms it has."""
    assert MORNING.timestamp() == read({"date": text}, 0.0).date


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "0",
        "Sat, 99 Nov 2026 09:00:00 GMT",
        "Sat, 21 Nov 99999 09:00:00 GMT",
        "Sat, 21 Nov 2026 09:00:00 +99999999",
    ],
)
def test_a_garbled_date_is_unknown(text: str) -> None:
    """A ``Date`` that is no date tells nothing."""
    assert read({"date": text}, 0.0).date is None


@pytest.mark.parametrize("name", ["retry-after", "x-ratelimit-retry-after"])
@pytest.mark.parametrize(("text", "seconds"), [("7", 7.0), ("0", 0.0), (" 90000 ", 90000.0)])
def test_retry_after_is_read_in_seconds(name: str, text: str, seconds: float) -> None:
    """Either header gives a wait in seconds."""
    assert seconds == read({name: text}, 0.0).retry_after


@pytest.mark.parametrize("name", ["retry-after", "x-ratelimit-retry-after"])
@pytest.mark.parametrize(
    "text",
    ["", "soon", "-5", "+5", "1_0", "1.5", "\u0667", "7, 7", "172801", "9" * 15, "9" * 400],
)
def test_a_senseless_retry_after_is_unknown(name: str, text: str) -> None:
    """Garbled text, or a wait longer than two days, asks for no wait."""
    assert read({name: text}, 0.0).retry_after is None


def test_a_retry_after_date_counts_from_the_servers_clock() -> None:
    """With a ``Date`` beside it, an HTTP date is a wait by the server's clock, not by ours."""
    headers = {"date": DATE, "retry-after": "Sat, 21 Nov 2026 09:01:30 GMT"}
    assert 90.0 == read(headers, MORNING.timestamp() + 5000).retry_after


def test_a_retry_after_date_counts_from_our_clock_without_a_date() -> None:
    """Without a ``Date``, an HTTP date is a wait by our clock."""
    headers = {"retry-after": "Sat, 21 Nov 2026 09:01:30 GMT"}
    assert 60.0 == read(headers, MORNING.timestamp() + 30).retry_after


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sat, 21 Nov 2026 08:59:00 GMT", 0.0),
        ("Mon, 23 Nov 2026 09:00:00 GMT", LONGEST_WAIT),
        ("Mon, 23 Nov 2026 09:00:01 GMT", None),
    ],
    ids=["past", "two days", "longer"],
)
def test_a_retry_after_date_is_bounded(text: str, seconds: float | None) -> None:
    """A date that has passed asks for no pause; one too far away is not believed."""
    assert seconds == read({"date": DATE, "retry-after": text}, 0.0).retry_after


@pytest.mark.parametrize(
    ("first", "seconds"), [("5", 5.0), ("soon", 7.0), ("", 7.0), ("999999", 7.0)]
)
def test_the_standard_header_goes_before_brazes_own(first: str, seconds: float) -> None:
    """``Retry-After`` is used if it makes sense, else ``X-RateLimit-Retry-After``."""
    headers = {"retry-after": first, "x-ratelimit-retry-after": "7"}
    assert seconds == read(headers, 0.0).retry_after


@pytest.mark.parametrize(
    ("text", "request_id"),
    [
        ("9d4c0c4e-6f5c", "9d4c0c4e-6f5c"),
        (" 9d4c0c4e ", "9d4c0c4e"),
        ("x" * 128, "x" * 128),
        ("x" * 129, None),
        ("", None),
        ("  ", None),
        ("9d4c\x1b[31m", None),
        ("é", None),
    ],
)
def test_request_id_is_plain_short_text(text: str, request_id: str | None) -> None:
    """``X-Request-Id`` is kept where it is short printable ASCII, fit for a log."""
    assert request_id == read({"x-request-id": text}, 0.0).request_id


_dates = st.builds(
    "Sat, {} Nov {} {}:{}:{} {}".format,
    *[st.integers(-1, 10**12)] * 5,
    st.sampled_from(["GMT", "-0000", "+9999", "-99999999999999", "EST", ""]),
)
_texts = st.text() | st.integers().map(str) | _dates


@given(
    st.dictionaries(
        st.sampled_from(
            [*NAMES, "date", "retry-after", "x-ratelimit-retry-after", "x-request-id", "other"]
        ),
        _texts,
    ),
    st.floats(0, 1e11),
)
def test_no_text_can_break_the_reading(headers: dict[str, str], now: float) -> None:
    """Whatever the headers hold, they are read without an error to values in their bounds."""
    told = read(headers, now)
    if told.rate_limit is not None:
        assert 0 <= told.rate_limit.remaining <= told.rate_limit.limit
        assert 0 < told.rate_limit.limit
    assert told.retry_after is None or 0 <= told.retry_after <= LONGEST_WAIT
    assert told.request_id is None or "" != told.request_id
