"""What a web backend answers to its visitors, error by error."""

from __future__ import annotations

from datetime import UTC, datetime

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
    StoreError,
)
from braze_sends.web import http_status, retry_after_header
from tests.test_errors import ALL

STATUSES: dict[type[BaseException], int] = {
    QuotaExhaustedError: 503,
    RateLimitError: 503,
    StoreError: 503,
    APITimeoutError: 504,
    APIConnectionError: 502,
    APIResponseError: 502,
    APIResponseValidationError: 502,
    APIStatusError: 502,
    AuthenticationError: 502,
    BadRequestError: 502,
    InternalServerError: 502,
    NotFoundError: 502,
    PermissionDeniedError: 502,
    ConfigurationError: 500,
    BrazeSendsError: 500,
    TimeoutError: 500,
    ValueError: 500,
    KeyboardInterrupt: 500,
}


@pytest.mark.parametrize(("kind", "status"), STATUSES.items())
def test_each_error_class_has_its_status(kind: type[BaseException], status: int) -> None:
    """A full quota is no fault of the visitor, and a fault of Braze's is a gateway's."""
    assert status == http_status(kind("what happened"))


def test_the_table_of_statuses_has_every_error_class() -> None:
    """No error class of the package is without a status of its own in this table."""
    assert {*ALL} <= {*STATUSES}


def test_a_class_derived_from_an_error_has_the_status_of_that_error() -> None:
    """An application may derive its own."""
    derived = type("StoryError", (QuotaExhaustedError,), {})

    assert 503 == http_status(derived("what happened"))


@pytest.mark.parametrize(
    ("seconds", "header"),
    [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.001, "2"), (43_199.5, "43200"), (None, None)],
)
@pytest.mark.parametrize("kind", [QuotaExhaustedError, RateLimitError, InternalServerError])
def test_retry_after_is_in_whole_seconds_rounded_up(
    kind: type[QuotaExhaustedError | RateLimitError | InternalServerError],
    seconds: float | None,
    header: str | None,
) -> None:
    """At least 1, and nothing where nothing is known."""
    assert header == retry_after_header(kind("what happened", retry_after=seconds))


@pytest.mark.parametrize(
    "error",
    [
        StoreError("down"),
        APITimeoutError("late"),
        ConfigurationError("bad"),
        ValueError("other"),
        QuotaExhaustedError("used up", resets_at=datetime(2026, 11, 22, tzinfo=UTC)),
    ],
)
def test_an_error_that_knows_no_time_to_come_back_has_no_retry_after(error: Exception) -> None:
    """A pure function reads no clock, so the time of the reset alone is not enough."""
    assert None is retry_after_header(error)
