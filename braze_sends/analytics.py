"""What came of a send: the values, the query that asks for them, and the answer to values.

``GET /sends/data_series``, https://www.braze.com/docs/api/endpoints/export/campaigns/get_send_analytics/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Any, Final, TypeVar

import attrs

from braze_sends.errors import ConfigurationError
from braze_sends.models import CreateSendId

PATH: Final = "/sends/data_series"
#: What the key needs.
PERMISSION: Final = "sends.data_series"

#: Days that one request may ask for.
MAX_LENGTH: Final = 100

T = TypeVar("T")

_More = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class ChannelAnalytics:
    """What one variation of a message did on one day in one channel.

    A number that Braze does not tell is ``None``.

    Attributes:
        variation_name: the variation, or ``None``.
        sent: messages sent.
        delivered: messages that arrived.
        undelivered: messages that did not arrive.
        delivery_failed: messages that were rejected.
        direct_opens: direct opens.
        total_opens: all opens.
        bounces: bounces.
        body_clicks: clicks on the body.
        revenue: US dollars.
        unique_recipients: different users who got it.
        conversions: conversions of the first event.
        conversions_by_send_time: the same, by the time of the send.
        more: all other fields by Braze's names, such as ``clicks`` of an email, and those of
            further conversion events.
    """

    variation_name: str | None = None
    sent: int | None = None
    delivered: int | None = None
    undelivered: int | None = None
    delivery_failed: int | None = None
    direct_opens: int | None = None
    total_opens: int | None = None
    bounces: int | None = None
    body_clicks: int | None = None
    revenue: float | None = None
    unique_recipients: int | None = None
    conversions: int | None = None
    conversions_by_send_time: int | None = None
    more: _More = attrs.field(factory=dict, hash=False)


@attrs.frozen(kw_only=True)
class DayAnalytics:
    """What a send did on one day.

    Attributes:
        time: the day.
        messages: the variations of each channel, by Braze's name of the channel, such as
            ``"ios_push"`` or ``"email"``.
        revenue: US dollars over all channels, or ``None`` if Braze does not tell it here.
        unique_recipients: different users over all channels, or ``None``.
        conversions: conversions of the first event over all channels, or ``None``.
        conversions_by_send_time: the same, by the time of the send, or ``None``.
        more: all other fields, by Braze's names.
    """

    time: date
    messages: Mapping[str, tuple[ChannelAnalytics, ...]] = attrs.field(factory=dict, hash=False)
    revenue: float | None = None
    unique_recipients: int | None = None
    conversions: int | None = None
    conversions_by_send_time: int | None = None
    more: _More = attrs.field(factory=dict, hash=False)


@attrs.frozen(kw_only=True)
class SendAnalytics:
    """What came of a send, day by day.

    Attributes:
        campaign_id: the campaign.
        send_id: the send identifier.
        days: the days that Braze tells, in its order.
        more: what the answer has besides, by Braze's names.
    """

    campaign_id: str
    send_id: str
    days: tuple[DayAnalytics, ...] = ()
    more: _More = attrs.field(factory=dict, hash=False)


def query_of(request: CreateSendId, length: object, ending_at: object) -> dict[str, str]:
    """The query for a checked pair.

    Raises:
        ConfigurationError: ``length`` is no whole number of 1 to 100, or ``ending_at`` is no
            ``datetime`` with a time zone.
    """
    if request.send_id is None:
        raise ConfigurationError("send_id must be a string", campaign_id=request.campaign_id)
    if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= MAX_LENGTH:
        raise ConfigurationError(f"length must be a whole number of days, 1 to {MAX_LENGTH}")
    query = {
        "campaign_id": request.campaign_id,
        "send_id": request.send_id,
        "length": str(length),
    }
    if ending_at is not None:
        if not isinstance(ending_at, datetime) or ending_at.utcoffset() is None:
            raise ConfigurationError(
                "ending_at must be a datetime with a time zone, such as datetime.now(UTC), or None"
            )
        query["ending_at"] = ending_at.isoformat(timespec="seconds")
    return query


def parse(request: CreateSendId, answer: object) -> SendAnalytics:
    """The answer's JSON as a value. Nothing is coerced, and nothing is lost.

    Raises:
        ValueError: it is not what Braze documents; the words complete "the body …".
    """
    fields = _object(answer, "is not a JSON object")
    days = _list(fields.pop("data", None), "has no list of days in data")
    fields.pop("message", None)
    return SendAnalytics(
        campaign_id=request.campaign_id,
        send_id=str(request.send_id),
        days=tuple(map(_day, days)),
        more=fields,
    )


def _day(value: object) -> DayAnalytics:
    fields = _object(value, "has a day that is not an object")
    channels = _object(fields.pop("messages", None) or {}, "has messages that are not an object")
    messages = {name: tuple(map(_variation, _variations(one))) for name, one in channels.items()}
    return _made(DayAnalytics, fields, time=_date(fields.pop("time", None)), messages=messages)


def _variations(value: object) -> list[object]:
    return _list(value, "has a channel that is not a list")


def _variation(value: object) -> ChannelAnalytics:
    fields = _object(value, "has a variation that is not an object")
    name = fields.pop("variation_name", None)
    if not isinstance(name, str | None):
        raise ValueError("has a variation_name that is not a string")
    return _made(ChannelAnalytics, fields, variation_name=name)


def _made(kind: Callable[..., T], fields: dict[str, Any], **known: object) -> T:
    """A value of the numbers that ``kind`` knows; the rest goes into ``more``."""
    numbers = {name: fields.pop(name) for name in _NUMBERS[kind] if name in fields}
    for name, number in numbers.items():
        if number is not None and not _is_number(number, whole=name != "revenue"):
            what = "a number" if name == "revenue" else "a whole number"
            raise ValueError(f"has a value of {name} that is not {what}")
    return kind(**known, **numbers, more=fields)


def _is_number(value: object, *, whole: bool) -> bool:
    # JSON's true is no 1, and Python reads NaN, which JSON does not have.
    if isinstance(value, int):
        return not isinstance(value, bool)
    return not whole and isinstance(value, float) and math.isfinite(value)


def _date(value: object) -> date:
    try:
        return datetime.fromisoformat(value).date()  # type: ignore[arg-type]  # TypeError if not
    except (TypeError, ValueError):
        raise ValueError("has a day whose time is not an ISO 8601 date") from None


def _object(value: object, problem: str) -> dict[str, Any]:
    """A copy of a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(problem)  # what ``parse`` promises
    return dict(value)


def _list(value: object, problem: str) -> list[object]:
    if not isinstance(value, list):
        raise ValueError(problem)  # what ``parse`` promises
    return value


_NUMBERS: Final[Mapping[Any, tuple[str, ...]]] = {
    kind: tuple(
        field.name
        for field in attrs.fields(kind)
        if field.name not in ("variation_name", "time", "messages", "more")
    )
    for kind in (ChannelAnalytics, DayAnalytics)
}
