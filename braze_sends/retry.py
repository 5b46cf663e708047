"""When an attempt is made again, and after how long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    retry_if_result,
    stop_after_attempt,
    wait_random_exponential,
)

from braze_sends.verdict import Verdict, is_transient

T = TypeVar("T")

#: Full jitter, https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/: a random
#: wait of up to 0.5 s, then 1 s, 2 s … 8 s.
_backoff = wait_random_exponential(multiplier=0.5, max=8)


async def retry(
    first: Verdict,
    attempt: Callable[[], Awaitable[Verdict]],
    max_retries: int,
    may_repeat: Callable[[Verdict], bool],
    on_retry: Callable[[Verdict, float], None],
    *,
    for_ever: bool = False,
) -> Verdict:
    """Make further attempts after a ``first`` one that failed, until a verdict is final.

    Args:
        first: what the first attempt came to.
        attempt: makes one more attempt.
        max_retries: the most attempts after the first.
        may_repeat: whether the create allows one more attempt; called after each transient failure,
            also after the last.
        on_retry: called before each further attempt, with the last verdict and the seconds until
            the attempt.
        for_ever: whether the caller waits for quota for ever. A 429 then counts as no failure.
    """
    made = [first]  # tenacity makes the first attempt too, and gets the verdict that is there
    failures = 0

    async def next_attempt() -> Verdict:
        return made.pop() if made else await attempt()

    def stop(state: RetryCallState) -> bool:
        nonlocal failures
        failures += not (for_ever and _verdict(state).answer.refused)
        return failures > max_retries

    retrying = AsyncRetrying(
        stop=stop,
        retry=retry_if_result(lambda verdict: verdict.transient and may_repeat(verdict)),
        wait=_wait,
        before_sleep=lambda state: on_retry(_verdict(state), state.upcoming_sleep),
        retry_error_callback=_verdict,
    )
    return await retrying(next_attempt)


async def retry_read(
    attempt: Callable[[], Awaitable[T]], max_retries: int, longest_wait: float
) -> T:
    """Make the attempts of a read, which changes nothing, so that each may be repeated.

    Args:
        attempt: makes one attempt, and raises what became of it if that is no result.
        max_retries: the most attempts after the first.
        longest_wait: seconds that all waits that an answer asks for may take together. An error
            that asks for more is raised at once.
    """
    left = longest_wait

    def may_repeat(error: BaseException) -> bool:
        nonlocal left
        if not is_transient(error):
            return False
        left -= _asked(error)
        return left >= 0

    def wait(state: RetryCallState) -> float:
        assert state.outcome is not None  # noqa: S101  # tenacity asks after an attempt
        return max(_asked(state.outcome.exception()), _backoff(state))

    retrying = AsyncRetrying(
        stop=stop_after_attempt(max_retries + 1),
        retry=retry_if_exception(may_repeat),
        wait=wait,
        reraise=True,
    )
    return await retrying(attempt)


def _asked(error: BaseException | None) -> float:
    """Seconds that an answer asks to wait."""
    return getattr(error, "retry_after", None) or 0.0


def _verdict(state: RetryCallState) -> Verdict:
    assert state.outcome is not None  # noqa: S101  # tenacity asks after an attempt
    verdict: Verdict = state.outcome.result()
    return verdict


def _wait(state: RetryCallState) -> float:
    verdict = _verdict(state)
    if verdict.answer.refused:
        return 0.0  # the limiter makes every create wait, also this one
    return max(verdict.retry_after or 0.0, _backoff(state))
