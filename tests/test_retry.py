"""What is tried again, and after how long."""

from __future__ import annotations

import asyncio
import random
from typing import Any
from unittest import mock

import pytest

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
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    QuotaExhaustedError,
    RateLimitError,
    SendId,
    StoreError,
)
from braze_sends.quota.rule.messages import Answer
from braze_sends.retry import retry
from braze_sends.verdict import Verdict, is_safe, is_transient

BUSY = InternalServerError("busy", status_code=503)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (APIConnectionError(""), True),
        (APIConnectionError("", quota_spent=None), True),
        (APIConnectionError("", permanent=True), False),
        (APITimeoutError("", quota_spent=None), True),
        (RateLimitError("", status_code=429), True),
        (InternalServerError("", status_code=500), True),
        (InternalServerError("", status_code=502), True),
        (InternalServerError("", status_code=503), True),
        (InternalServerError("", status_code=504), True),
        (InternalServerError("", status_code=501), False),
        (InternalServerError("", status_code=505), False),
        (InternalServerError("", status_code=520, from_edge=True), True),
        (APIResponseValidationError("", status_code=200, from_edge=True), True),
        (APIResponseValidationError("", status_code=201), False),
        (APIStatusError("", status_code=302), False),
        (ConfigurationError(""), False),
        (QuotaExhaustedError(""), False),
        (StoreError(""), False),
        (BrazeSendsError(""), False),
        (ValueError(""), False),
        (TimeoutError(""), False),
        (asyncio.CancelledError(), False),
    ],
)
def test_errors_that_may_pass_are_transient(error: BaseException, transient: bool) -> None:
    """Lost connections, 429, 5xx that say "later" and pages of a proxy may fare better later."""
    assert transient is is_transient(error)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (BadRequestError, 400),
        (AuthenticationError, 401),
        (PermissionDeniedError, 403),
        (NotFoundError, 404),
        (APIStatusError, 413),
        (APIStatusError, 415),
    ],
)
@pytest.mark.parametrize("from_edge", [False, True])
@pytest.mark.parametrize("retry_after", [None, 1.0])
def test_a_verdict_is_never_tried_again(
    kind: type[APIStatusError], status: int, from_edge: bool, retry_after: float | None
) -> None:
    """A 4xx other than 429 is final, also from a proxy, and also with a Retry-After."""
    error = kind("", status_code=status, from_edge=from_edge, retry_after=retry_after)
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("send_id", "quota_spent", "safe"),
    [
        ("asked", None, True),
        ("asked", False, True),
        ("asked", True, True),
        (None, False, True),
        (None, None, False),
        (None, True, False),
    ],
)
def test_a_repeat_is_safe_if_it_has_a_name_or_cost_nothing(
    send_id: str | None, quota_spent: bool | None, safe: bool
) -> None:
    """A pair with a name can always be repeated; a nameless one only if it surely cost nothing."""
    assert safe is is_safe(APIConnectionError("", quota_spent=quota_spent, send_id=send_id))


MADE = SendId("campaign", "made")


class Attempts:
    """A create that fails as told, and then succeeds; and the pauses between its attempts."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.made = 0
        self.asked: list[Verdict] = []
        self.pauses: list[float] = []
        self.noted: list[tuple[Verdict, float]] = []

    def note(self, verdict: Verdict, seconds: float) -> None:
        self.noted.append((verdict, seconds))

    async def attempt(self) -> Verdict:
        self.made += 1
        if not self.errors:
            return Verdict(MADE, Answer(True))
        error = self.errors.pop(0)
        if not isinstance(error, BrazeSendsError):
            raise error
        refused = isinstance(error, RateLimitError)
        retry_after = getattr(error, "retry_after", None)
        answer = Answer(error.quota_spent, refused=refused)
        return Verdict(error, answer, transient=is_transient(error), retry_after=retry_after)

    async def run(self, max_retries: int, *, may_repeat: bool = True) -> SendId:
        async def pause(seconds: float) -> None:
            self.pauses.append(seconds)

        def asks(verdict: Verdict) -> bool:
            self.asked.append(verdict)
            return may_repeat

        with mock.patch("asyncio.sleep", pause):
            verdict = await retry(await self.attempt(), self.attempt, max_retries, asks, self.note)
        if isinstance(verdict.outcome, BrazeSendsError):
            raise verdict.outcome
        return verdict.outcome


async def test_a_transient_error_is_tried_again() -> None:
    """After errors that pass, the result is the result; each pause is told before it begins."""
    attempts = Attempts(APIConnectionError(""), BUSY)
    assert MADE == await attempts.run(2)
    assert attempts.pauses == [seconds for _, seconds in attempts.noted]
    assert 3 == attempts.made


@pytest.mark.parametrize("max_retries", [0, 1, 5])
async def test_the_last_error_is_raised_itself(max_retries: int) -> None:
    """When the attempts are used up, the caller gets the last error, not a wrapper of it."""
    errors = [InternalServerError(str(n), status_code=503) for n in range(9)]
    attempts = Attempts(*errors)
    with pytest.raises(InternalServerError) as caught:
        await attempts.run(max_retries)
    assert errors[max_retries] is caught.value
    assert max_retries + 1 == attempts.made


@pytest.mark.parametrize(
    "error", [BadRequestError("", status_code=400), ValueError(), asyncio.CancelledError()]
)
async def test_other_errors_are_raised_at_once(error: BaseException) -> None:
    """A verdict, a bug and a cancellation end the call with its first attempt."""
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        await attempts.run(5)
    assert 1 == attempts.made


async def test_the_caller_can_refuse_a_repeat() -> None:
    """A transient error is raised where the caller says that it may not be repeated."""
    attempts = Attempts(BUSY)
    with pytest.raises(InternalServerError):
        await attempts.run(5, may_repeat=False)
    assert 1 == attempts.made


async def test_the_caller_is_asked_of_transient_errors_alone() -> None:
    """A final error is final before anybody is asked."""
    final, busy = Attempts(BadRequestError("", status_code=400)), Attempts(BUSY)
    for attempts in (final, busy):
        with pytest.raises(APIResponseError):
            await attempts.run(5, may_repeat=False)
    assert ([], [BUSY]) == (final.asked, [verdict.outcome for verdict in busy.asked])


@pytest.mark.parametrize(
    ("draw", "pauses"), [(max, [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]), (min, [0.0] * 7)]
)
async def test_the_backoff_doubles_and_is_jittered_in_full(
    draw: Any, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause is a random number between 0 and half a second, doubled each time, up to 8 s."""
    monkeypatch.setattr(random, "uniform", lambda low, high: draw(low, high))
    attempts = Attempts(*[BUSY] * 7)
    await attempts.run(7)
    assert pauses == attempts.pauses


@pytest.mark.parametrize("status", [500, 503, 504])
async def test_retry_after_is_honoured_over_the_backoff(status: int) -> None:
    """A wait that the answer asks for is kept, however short the backoff would be."""
    attempts = Attempts(InternalServerError("", status_code=status, retry_after=20.0))
    await attempts.run(1)
    assert [20.0] == attempts.pauses


@pytest.mark.parametrize("retry_after", [0.0, 0.1])
async def test_a_shorter_retry_after_does_not_cut_the_backoff(
    retry_after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``Retry-After: 0`` does not make the client hammer."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    attempts = Attempts(InternalServerError("", status_code=503, retry_after=retry_after))
    await attempts.run(1)
    assert [0.5] == attempts.pauses


async def test_a_429_is_left_to_the_limiter() -> None:
    """The limiter makes all wait for the quota, so the retry adds no pause of its own."""
    attempts = Attempts(RateLimitError("", status_code=429, retry_after=20.0))
    await attempts.run(1)
    assert [0.0] == attempts.pauses


async def test_each_call_has_a_loop_of_its_own() -> None:
    """Many calls under way at once do not count each other's attempts."""
    many = [Attempts(BUSY, BUSY) for _ in range(50)]
    assert [MADE] * 50 == await asyncio.gather(*(attempts.run(2) for attempts in many))
    assert {3} == {attempts.made for attempts in many}


def test_what_an_answer_is_does_not_depend_on_its_class_alone() -> None:
    """An error of the tree's middle is judged by its status like its children."""
    assert is_transient(APIResponseError("", status_code=503))
    assert not is_transient(APIResponseError("", status_code=400))
