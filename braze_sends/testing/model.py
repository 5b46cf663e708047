"""What Braze's endpoints do, as a pure function of a request and a moment.

No sockets, no clock: :class:`FakeBraze` puts it behind HTTP, a simulation calls it directly.
Where Braze has published no answer, both readings can be had, as arguments of the model.
https://www.braze.com/docs/api/endpoints/messaging/send_messages/post_create_send_ids/
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Literal
from urllib.parse import parse_qsl

import attrs

from braze_sends.models import MAX_SEND_ID_LENGTH

PATH = "/sends/id/create"
ANALYTICS_PATH = "/sends/data_series"

#: https://www.braze.com/docs/api/api_limits/
GENERAL_LIMIT = 250_000

#: Our choice; Braze documents 413, but no size.
MAX_BODY = 1024 * 1024

#: As recorded from the live API, where the documentation writes ``X-RateLimit-...``.
RATE_LIMIT_HEADERS = ("X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset")

# Recorded wordings for 400 and 404, a documented one for 202, ours for the rest.
_MESSAGES = {
    201: "success",
    202: "queued",
    400: "campaign_id must be a string of the campaign api identifier",
    403: "You do not have permission to access this resource",
    404: "Invalid URL",
    413: "Request body is too large",
    415: "Content-Type must be application/json",
    429: "Rate limit exceeded",
    500: "Internal Server Error",
}

# Answers that are given before the request is known to be one for this endpoint's quota.
_WITHOUT_RATE_LIMIT = frozenset({403, 404, 413})


@attrs.frozen
class Reply:
    """An answer: HTTP status, headers and body."""

    status: int
    headers: dict[str, str]
    body: bytes


@attrs.define(kw_only=True)
class BrazeModel:
    """One workspace of Braze, with one key and one quota.

    It answers ``POST /sends/id/create``, and ``GET /sends/data_series`` for what was created.

    Every ``now`` is in seconds since the Unix epoch, by Braze's clock.

    Attributes:
        api_key: the only key that is accepted.
        daily_limit: slots of a window, 0 or more. Assign it at any time; it takes effect at once.
        window: length of a window in seconds, above 0. Window *n* begins at ``n * window``: fixed
            and aligned to the clock, as all recorded windows are.
        counts: what costs a slot: a new pair, or each request with a good key. Unknown of Braze.
        duplicate: the answer to a pair that exists already. Unknown of Braze. Under
            ``counts="pairs"`` it is recognised before the limit is applied and costs nothing.
        counts_errors: whether a 400 or 415 costs a slot under ``counts="pairs"`` too, also a 400
            to a duplicate. Unknown here; seen on an hourly limit of Braze.
        headers_on_429: whether a 429 has the rate-limit headers. Unknown of Braze.
        shows: the bucket that the headers show: this endpoint's own, or Braze's general one of
            250,000 an hour. Unknown of Braze. The own limit is enforced all the same.
        campaigns: the campaigns that exist, or ``None`` for all that anybody asks for.
        skip: seconds by which Braze's clock has been moved ahead, see :meth:`end_window`.
        created: the pairs ``(campaign_id, send_id)`` that exist, in the order of creation.
        created_at: when each pair was created, seconds since the epoch by Braze's clock.
        created_by_window: pairs created in each window, by its index.
        used_by_window: slots taken in each window, by its index.
        refused: requests answered 429 because the window was used up.
    """

    api_key: str = attrs.field(default="test-key", repr=False)
    daily_limit: int = 100
    window: float = 86400.0
    counts: Literal["pairs", "requests"] = "pairs"
    duplicate: Literal[201, 400] = 201
    counts_errors: bool = False
    headers_on_429: bool = True
    shows: Literal["own", "general"] = "own"
    campaigns: frozenset[str] | None = None
    skip: float = 0.0
    created: list[tuple[str, str]] = attrs.field(init=False, factory=list)
    created_at: dict[tuple[str, str], float] = attrs.field(init=False, factory=dict, repr=False)
    created_by_window: dict[int, int] = attrs.field(init=False, factory=dict)
    used_by_window: dict[int, int] = attrs.field(init=False, factory=dict)
    refused: int = attrs.field(init=False, default=0)
    _pairs: set[tuple[str, str]] = attrs.field(init=False, factory=set, repr=False)
    _index: int = attrs.field(init=False, default=0, repr=False)
    _answers: int = attrs.field(init=False, default=0, repr=False)

    @property
    def used(self) -> int:
        """Slots taken in the window of the last call, by its ``now``."""
        return self.used_by_window.get(self._index, 0)

    def remaining(self, now: float) -> int:
        """Slots that are left at ``now``, never below 0."""
        self._index = int((now + self.skip) // self.window)
        return max(0, self.daily_limit - self.used)

    def spend(self, n: int, now: float) -> None:
        """Let other users of the workspace take ``n`` slots, or what is left if that is less."""
        n = min(n, self.remaining(now))
        self.used_by_window[self._index] = self.used + n

    def end_window(self, now: float) -> None:
        """End the current window: Braze's clock jumps to where the next one begins."""
        self.remaining(now)
        # A millisecond past it, so that rounding cannot leave the clock just before it.
        self.skip = (self._index + 1) * self.window - now + 0.001

    def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> Reply:
        """Do what the request asks for and give the answer. Header names may be in any case, and
        the path may have a query.

        All effects are in place when it returns. An answer that is to get lost is thrown away by
        the caller; a request that is to get lost is never handed in.
        """
        fields = {name.lower(): text for name, text in headers.items()}
        authorization = fields.get("authorization", "")
        path, _, query = path.partition("?")
        if path == ANALYTICS_PATH and method == "GET":
            return self._analytics(authorization, query, now)
        if path == PATH + "/":
            return self.answer(403, now)
        if path != PATH or method != "POST":
            return self.answer(404, now)
        if len(body) > MAX_BODY:
            return self.answer(413, now)
        if authorization != f"Bearer {self.api_key}":
            return self._unknown_key(authorization, now)

        data = _parse(body)
        problem = self._problem(fields.get("content-type", ""), data)
        pair = ("", "")
        if problem is None:
            pair = (data["campaign_id"], data.get("send_id") or self._identifier("5e4d"))
            if pair in self._pairs and self.duplicate == 400:
                problem = (400, "send_id already exists for this campaign")
        new = problem is None and pair not in self._pairs

        costs = self.counts == "requests" or new or (problem is not None and self.counts_errors)
        if costs:
            if not self.remaining(now):
                self.refused += 1
                return self.answer(429, now)
            self.spend(1, now)
        if problem is not None:
            return self.answer(problem[0], now, problem[1])
        if new:
            self._pairs.add(pair)
            self.created.append(pair)
            self.created_at[pair] = now + self.skip
            self.remaining(now)
            self.created_by_window[self._index] = self.created_by_window.get(self._index, 0) + 1
        return self.answer(201, now, send_id=pair[1])

    def _unknown_key(self, authorization: str, now: float) -> Reply:
        key = authorization.removeprefix("Bearer ")
        return self.answer(401, now, f"Invalid API key: {key}")

    def _analytics(self, authorization: str, query: str, now: float) -> Reply:
        """Answer ``GET /sends/data_series``; it costs no slot.

        A pair that exists has made-up numbers, always the same, on the day of its creation. One
        that does not exist has none: an empty list. Braze documents neither its answer to an
        unknown pair nor that to one that was created and never sent.
        """
        if authorization != f"Bearer {self.api_key}":
            return self._unknown_key(authorization, now)
        given = dict(parse_qsl(query))
        pair = given.get("campaign_id", ""), given.get("send_id", "")
        length = given.get("length", "")
        if not pair[0] or (self.campaigns is not None and pair[0] not in self.campaigns):
            return self.answer(400, now, _MESSAGES[400], general=True)
        if not pair[1]:
            return self.answer(400, now, "send_id must be a string", general=True)
        if not (re.fullmatch("[0-9]{1,3}", length) and 1 <= int(length) <= 100):
            return self.answer(400, now, "length must be between 1 and 100", general=True)
        end = now + self.skip
        if "ending_at" in given:
            try:
                ending_at = datetime.fromisoformat(given["ending_at"])
            except ValueError:
                problem = "ending_at must be an ISO 8601 date"
                return self.answer(400, now, problem, general=True)
            end = ending_at.replace(tzinfo=ending_at.tzinfo or UTC).timestamp()
        at = self.created_at.get(pair)
        inside = at is not None and end - int(length) * 86400 <= at <= end
        days = [_day_of(at)] if at is not None and inside else []
        return self.answer(200, now, "success", data=days, general=True)

    def answer(
        self,
        status: int,
        now: float,
        message: str | None = None,
        *,
        send_id: str | None = None,
        data: list[Any] | None = None,
        general: bool = False,
    ) -> Reply:
        """Word an answer as Braze does, by default with the usual message for the status.

        ``general`` is for an endpoint of Braze's general bucket, whose headers it shows. Nothing
        is created or counted.
        """
        self._answers += 1
        if message is None:
            # Recorded: a 401 echoes the whole key.
            key = f"Invalid API key: {self.api_key}"
            message = key if status == 401 else _MESSAGES.get(status, f"status {status}")
        content: dict[str, Any] = {"message": message}
        content |= {} if send_id is None else {"send_id": send_id}
        content |= {} if data is None else {"data": data}
        headers = {
            "Content-Type": "application/json",
            "Date": formatdate(now + self.skip, usegmt=True),
            "X-Request-Id": self._identifier("4e9d"),
        }
        if status == 401:
            # Recorded: there, but empty.
            headers |= dict.fromkeys(RATE_LIMIT_HEADERS, "")
        elif status not in _WITHOUT_RATE_LIMIT and (status != 429 or self.headers_on_429):
            remaining = self.remaining(now)
            reset = math.ceil((self._index + 1) * self.window)
            triple = (self.daily_limit, remaining, reset)
            if general or self.shows == "general":
                hour = math.ceil((now + self.skip) / 3600) * 3600
                triple = (GENERAL_LIMIT, GENERAL_LIMIT - self._answers, hour)
            values = map(str, triple)
            headers |= dict(zip(RATE_LIMIT_HEADERS, values, strict=True))
        return Reply(status, headers, json.dumps(content, separators=(",", ":")).encode())

    def _identifier(self, kind: str) -> str:
        # Counted, not random: a test that fails fails again.
        return f"00000000-{kind}-4000-8000-{self._answers:012x}"

    def _problem(self, content_type: str, data: Any) -> tuple[int, str] | None:
        if content_type.partition(";")[0].strip().lower() != "application/json":
            return 415, _MESSAGES[415]
        if not isinstance(data, dict):
            return 400, "Invalid JSON"
        campaign = data.get("campaign_id")
        if not isinstance(campaign, str) or not campaign:
            return 400, _MESSAGES[400]
        if self.campaigns is not None and campaign not in self.campaigns:
            return 400, _MESSAGES[400]
        send_id = data.get("send_id", "to be made")
        if not isinstance(send_id, str) or not send_id.isascii():
            return 400, "send_id must be an ASCII string"
        if not 1 <= len(send_id) <= MAX_SEND_ID_LENGTH:
            return 400, f"send_id must have 1 to {MAX_SEND_ID_LENGTH} characters"
        return None


def _day_of(at: float) -> dict[str, Any]:
    """A day of a send, with every kind of field that Braze documents."""
    return {
        "time": datetime.fromtimestamp(at, UTC).date().isoformat(),
        "messages": {
            "ios_push": [
                {
                    "variation_name": "Variation 1",
                    "sent": 1000,
                    "delivered": 960,
                    "undelivered": 30,
                    "delivery_failed": 10,
                    "direct_opens": 80,
                    "total_opens": 120,
                    "bounces": 10,
                    "body_clicks": 60,
                    "revenue": 24.5,
                    "unique_recipients": 1000,
                    "conversions": 12,
                    "conversions_by_send_time": 12,
                    "conversions1": 3,
                    "conversions1_by_send_time": 3,
                }
            ]
        },
        "conversions": 12,
        "conversions_by_send_time": 12,
        "conversions1": 3,
        "conversions1_by_send_time": 3,
        "revenue": 24.5,
        "unique_recipients": 1000,
    }


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
