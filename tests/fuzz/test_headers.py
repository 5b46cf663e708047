"""Headers that are nearly right: each is read, or unknown."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from hypothesis import strategies as st

from braze_sends.headers import LONGEST_WAIT, AnswerHeaders, read
from braze_sends.settings import ApiKey
from tests.fuzz.shapes import Strategy, check, long, often, pick, several, times
from tests.world import KEY, MIDNIGHT, MORNING

NAMES = (
    *(f"x-ratelimit-{name}" for name in ("limit", "remaining", "reset", "retry-after")),
    *("retry-after", "date", "x-request-id"),
)

_whole = pick(
    [
        *("100", "37", "0", "1", "-0", "-1", "+5", "00", "007", "1_000", "1.0", "1e2", "0x10"),
        *(
            "172800",
            "172801",
            times(9, "9"),
            times(15, "9"),
            times(16, "9"),
            times(5000, "9"),
            "253402300799",
        ),
        *("253402300800", "62135596800", "4294967296", "9223372036854775808", "NaN", "inf"),
        *("\u0663\u0667", "\uff11\uff10\uff10", "\u00b2", "\U0001d7d9", "1\u0660", "", " ", "null"),
        *(str(int(MIDNIGHT)), f"{int(MIDNIGHT)}000", f"{int(MIDNIGHT)}.0", str(int(MORNING) - 1)),
    ]
)
_blanks = pick(["", " ", "\t", "\n", "\r\n ", "\x0b", "\u00a0", "\u2003", "\0", '"'])

_zones = pick(
    [
        *("GMT", "UTC", "UT", "Z", "EST", "", "gmt", "+0000", "-0000", "+2359", "-2359", "+2400"),
        *("-9999", "+99999999999999", "GMT+1", "(GMT)", "GMT GMT", "+\u0660\u0660\u0660\u0660"),
    ]
)
_years = pick(
    [
        *("0", "1", "9", "26", "49", "50", "68", "69", "99", "100", "1900", "1969", "1970", "2026"),
        *("2038", "9999", "10000", "99999", "-1", ""),
    ]
)
_days = pick(["0", "1", "01", "21", "29", "30", "31", "32", "-1", "\u0662\u0661", "x"])
_months = pick(["Jan", "Feb", "Nov", "nov", "November", "Foo", "11", ""])
_times = pick(
    [
        *("09:00:00", "00:00:00", "23:59:59", "23:59:60", "24:00:00", "9:0:0", "09:00", "09.00.00"),
        *("-1:00:00", "09:00:00.5", "99999999999:0:0", "09:00:61", "", "::", "09:00:00:00"),
    ]
)
_weekdays = pick(["Sat", "Saturday", "Mon", "sat", "", "Foo"])
_near = st.timedeltas(timedelta(days=-3), timedelta(days=3)).map(
    lambda apart: datetime.fromtimestamp(MORNING, UTC) + apart
)
_edges = pick([datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)])
#: In the three formats of RFC 9110, section 5.6.7, and with parts that are wrong.
_dates = st.one_of(
    (_near | _edges).map(lambda when: format_datetime(when, usegmt=True)),
    _near.map(lambda when: f"{when:%A, %d-%b-%y %H:%M:%S} GMT"),
    _near.map(lambda when: f"{when:%a %b %e %H:%M:%S %Y}"),
    st.builds("{}, {} {} {} {} {}".format, _weekdays, _days, _months, _years, _times, _zones),
    st.builds("{}, {}-{}-{} {} {}".format, _weekdays, _days, _months, _years, _times, _zones),
    st.builds("{} {} {} {} {}".format, _weekdays, _months, _days, _times, _years),
)
_identifiers = pick(
    [
        *(
            "9d4c0c4e-6f5c",
            "",
            " x ",
            times(128, "x"),
            times(129, "x"),
            times(70_000, "x"),
            "\x1b[31m",
            "\u00e9",
        ),
        *(
            "\ud800",
            "\u202e",
            "a\x7f",
            KEY,
            f"1-{KEY.upper()}",
            times(20, KEY),
            f" {KEY} {times(127, 'x')}",
        ),
    ]
)

_value = _whole | _dates | _identifiers
_padded = st.builds("{}{}{}".format, _blanks, _value, _blanks)
#: What was sent twice comes joined.
_joined = st.builds(
    lambda parts, comma: comma.join(parts),
    st.lists(_value, min_size=2, max_size=3),
    pick([", ", ",", " ,"]),
)


def _values(usual: Strategy[str]) -> Strategy[str]:
    return often(usual, _value, _padded, _joined, st.text(max_size=20), weight=6)


_usual = {
    **{
        name: often(st.just(text), _whole) for name, text in zip(NAMES, ("100", "37"), strict=False)
    },
    NAMES[2]: often(st.just(str(int(MIDNIGHT))), _whole),
    **dict.fromkeys(NAMES[3:5], _whole | _dates),
    NAMES[5]: _dates,
    NAMES[6]: _identifiers,
}
#: As the transport hands them on: names in lower case.
_all = {name: _values(usual) for name, usual in _usual.items()} | {"x": _value}
HEADERS = st.fixed_dictionaries({}, optional=_all) | st.fixed_dictionaries(_all)
CLOCKS = pick([MORNING, 0.0, 1e11, -1e11, MIDNIGHT + 0.5])


def whole(headers: dict[str, str]) -> dict[str, str]:
    """With the long values as long as they are."""
    return {name: long(text) for name, text in headers.items()}


def sensible(told: AnswerHeaders) -> None:
    """What was read is within the bounds that the rest of the client counts on."""
    if told.rate_limit is not None:
        assert 0 <= told.rate_limit.remaining <= told.rate_limit.limit < 10**15
        assert 0 < told.rate_limit.limit
        assert UTC == told.rate_limit.resets_at.tzinfo
        assert 0 < told.rate_limit.resets_at.timestamp()
    assert told.retry_after is None or 0 <= told.retry_after <= LONGEST_WAIT
    assert told.date is None or (math.isfinite(told.date) and abs(told.date) < 3e11)
    if told.request_id is not None:
        assert told.request_id.isascii()
        assert told.request_id.isprintable()
        assert 1 <= len(told.request_id) <= 128
        assert KEY not in told.request_id.lower()


def _headers_hold(case: tuple[dict[str, str], float]) -> None:
    headers, now = whole(case[0]), case[1]
    told = read(headers, now, ApiKey(KEY).scrub)
    sensible(told)
    assert told == read(headers, now, ApiKey(KEY).scrub)


@several(50, 8000)
def test_headers_are_read_or_unknown(examples: int) -> None:
    """Headers near those of Braze are read without an error to values within their bounds."""
    check(examples, st.tuples(HEADERS, CLOCKS), _headers_hold)
