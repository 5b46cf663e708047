"""Header text to values. What is blank, garbled, negative or absurd is unknown, never zero.

Headers come as a mapping with lower-case names. A header that was sent twice arrives as one text
with a comma: the text is garbled, as it should be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache

import attrs

from braze_sends.models import RateLimit

#: The headers that are read, with lower-case names.
NAMES = (
    "date",
    "x-request-id",
    "retry-after",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-retry-after",
)

#: Two days: longer than any wait that a daily quota can ask for, wherever its day begins.
LONGEST_WAIT = 48 * 3600.0


@attrs.frozen
class AnswerHeaders:
    """What the headers of one answer say.

    Attributes:
        rate_limit: the rate-limit triple, or ``None`` unless all three make sense.
        retry_after: seconds to wait before another request, or ``None``.
        date: the server's clock, epoch seconds with a resolution of one second, or ``None``.
        request_id: Braze's ``X-Request-Id``, or ``None``.
    """

    rate_limit: RateLimit | None = None
    retry_after: float | None = None
    date: float | None = None
    request_id: str | None = None


def read(
    headers: Mapping[str, str], now: float, clean: Callable[[str], str] = str
) -> AnswerHeaders:
    """Read an answer's headers.

    Args:
        headers: names in lower case.
        now: our wall clock, epoch seconds; used for a ``Retry-After`` date without a ``Date``.
        clean: cuts the key out of a text that is passed on.
    """
    date = _http_date(headers.get("date"))
    return AnswerHeaders(
        rate_limit=_rate_limit(headers),
        retry_after=_retry_after(headers, now if date is None else date),
        date=date,
        request_id=_request_id(clean(headers.get("x-request-id", ""))),
    )


def _rate_limit(headers: Mapping[str, str]) -> RateLimit | None:
    # https://www.braze.com/docs/api/api_limits/: the reset is in UTC epoch seconds. A 401 carries
    # the three as empty strings.
    limit = _whole_number(headers.get("x-ratelimit-limit"))
    remaining = _whole_number(headers.get("x-ratelimit-remaining"))
    reset = _whole_number(headers.get("x-ratelimit-reset"))
    if not limit or remaining is None or remaining > limit or not reset:
        return None
    resets_at = _utc(reset)
    return None if resets_at is None else RateLimit(limit, remaining, resets_at)


@lru_cache(maxsize=8)  # the reset is the same for a day
def _utc(seconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    # X-RateLimit-Retry-After (seconds) is documented for sibling APIs; Retry-After, RFC 9110
    # section 10.2.3, is seconds or an HTTP date.
    for name in ("retry-after", "x-ratelimit-retry-after"):
        text = headers.get(name)
        seconds: float | None = _whole_number(text)
        if seconds is None and (date := _http_date(text)) is not None:
            seconds = max(0.0, date - now)
        if seconds is not None and seconds <= LONGEST_WAIT:
            return float(seconds)
    return None


def _whole_number(text: str | None) -> int | None:
    # int() alone would take "1_000", "+5" and digits of other scripts.
    if text is None or not _WHOLE_NUMBER.fullmatch(text):
        return None
    return int(text)


_WHOLE_NUMBER = re.compile(r"[ \t]*[0-9]{1,15}[ \t]*")


@lru_cache(maxsize=8)  # the date is the same for a second
def _http_date(text: str | None) -> float | None:
    if not text:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return date.timestamp()


def _request_id(text: str) -> str | None:
    text = text.strip()
    return text if text and len(text) <= 128 and text.isascii() and text.isprintable() else None
