"""What Braze's endpoint does, as a pure function of a request and a moment.

No sockets, no clock: :class:`FakeBraze` puts it behind HTTP, a simulation calls it directly.
Where Braze has published no answer, both readings can be had, as arguments of the model.
https://www.braze.com/docs/api/endpoints/messaging/send_messages/post_create_send_ids/
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any, Literal

import attrs

from braze_sends.models import MAX_SEND_ID_LENGTH

PATH = "/sends/id/create"

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
        """Do what the request asks for and give the answer. Header names may be in any case.

        All effects are in place when it returns. An answer that is to get lost is thrown away by
        the caller; a request that is to get lost is never handed in.
        """
        fields = {name.lower(): text for name, text in headers.items()}
        authorization = fields.get("authorization", "")
        if path == PATH + "/":
            return self.answer(403, now)
        if path != PATH or method != "POST":
            return self.answer(404, now)
        if len(body) > MAX_BODY:
            return self.answer(413, now)
        if authorization != f"Bearer {self.api_key}":
            key = authorization.removeprefix("Bearer ")
            return self.answer(401, now, f"Invalid API key: {key}")

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
            self.remaining(now)
            self.created_by_window[self._index] = self.created_by_window.get(self._index, 0) + 1
        return self.answer(201, now, send_id=pair[1])

    def answer(
        self, status: int, now: float, message: str | None = None, *, send_id: str | None = None
    ) -> Reply:
        """Word an answer as Braze does, by default with the usual message for the status.

        Nothing is created or counted.
        """
        self._answers += 1
        if message is None:
            # Recorded: a 401 echoes the whole key.
            key = f"Invalid API key: {self.api_key}"
            message = key if status == 401 else _MESSAGES.get(status, f"status {status}")
        content = {"message": message} | ({} if send_id is None else {"send_id": send_id})
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
            if self.shows == "general":
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


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
