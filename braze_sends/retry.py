"""What is tried again, and after how long."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    wait_random_exponential,
)

from braze_sends.errors import (
    APIConnectionError,
    APIResponseError,
    APIResponseValidationError,
    BrazeSendsError,
    RateLimitError,
)

#: https://www.braze.com/docs/api/errors/: 5xx are to be retried with exponential backoff.
TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})

#: Full jitter, https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/: a random
#: wait of up to 0.5 s, then 1 s, 2 s … 8 s.
_backoff = wait_random_exponential(multiplier=0.5, max=8)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may fare better later."""
    if isinstance(error, APIConnectionError):
        return not error.permanent
    if not isinstance(error, APIResponseError):
        return False
    # Text that is no JSON is not of Braze's making, but of a CDN or proxy that could not reach it.
    # Below 500 such a page is a verdict all the same.
    edge = error.from_edge and (
        isinstance(error, APIResponseValidationError) or error.status_code >= 500
    )
    return error.status_code in TRANSIENT_STATUSES or edge


def is_safe(error: BrazeSendsError) -> bool:
    """Whether a repeat cannot create a second send.

    An attempt with an unknown outcome is repeated only where the pair has a name: the repeat then
    asks for the same pair. A send that Braze is to name would be created twice.
    """
    return error.send_id is not None or error.quota_spent is False


def retrying(
    max_retries: int, may_repeat: Callable[[BrazeSendsError], bool], *, for_ever: bool = False
) -> AsyncRetrying:
    """A fresh retry loop for one call; shared by tasks, one would be corrupt.

    Args:
        max_retries: attempts after the first.
        may_repeat: the caller's say, asked of transient errors alone.
        for_ever: whether the caller waits for quota for ever: then a 429 is no failure.
    """
    failures = 0

    def stop(state: RetryCallState) -> bool:
        nonlocal failures
        error = state.outcome.exception() if state.outcome else None
        failures += not (for_ever and isinstance(error, RateLimitError))
        return failures > max_retries

    return AsyncRetrying(
        stop=stop,
        # A positive predicate on our own errors: a catch-all would swallow CancelledError.
        retry=retry_if_exception(
            lambda error: (
                isinstance(error, BrazeSendsError) and is_transient(error) and may_repeat(error)
            )
        ),
        wait=_wait,
        reraise=True,
    )


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RateLimitError):
        return 0.0  # the limiter makes everybody wait, this call too
    asked = error.retry_after if isinstance(error, APIResponseError) else None
    return max(asked or 0.0, _backoff(state))
