"""When an attempt is made again, and after how long."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from braze_sends.verdict import Verdict

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


def _verdict(state: RetryCallState) -> Verdict:
    assert state.outcome is not None  # noqa: S101  # tenacity asks after an attempt
    verdict: Verdict = state.outcome.result()
    return verdict


def _wait(state: RetryCallState) -> float:
    verdict = _verdict(state)
    if verdict.answer.refused:
        return 0.0  # the limiter makes every create wait, also this one
    return max(verdict.retry_after or 0.0, _backoff(state))
