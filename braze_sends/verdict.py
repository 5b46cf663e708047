"""What one attempt came to, judged once.

Pure: an answer goes in, and a value comes out that says what the caller is told, what the quota
learns, what is remembered, and whether another attempt makes sense.
"""

from __future__ import annotations

import attrs

from braze_sends import protocol
from braze_sends.errors import (
    APIConnectionError,
    APIResponseError,
    APIResponseValidationError,
    BrazeSendsError,
    RateLimitError,
)
from braze_sends.headers import AnswerHeaders
from braze_sends.models import CreateSendId, SendId
from braze_sends.protocol import NoReply, Reply
from braze_sends.quota.rule.messages import Answer, Reading
from braze_sends.settings import ApiKey
from braze_sends.stores.store import Remembered

#: https://www.braze.com/docs/api/errors/: 5xx are to be retried with exponential backoff.
TRANSIENT_STATUSES = frozenset({429, 500, 502, 503, 504})


@attrs.frozen
class Verdict:
    """What one attempt came to.

    Attributes:
        outcome: the send ID, or the error that the caller is told if no other attempt follows.
        answer: what the quota learns.
        created: what is to be remembered of the pair, if it exists.
        transient: whether another attempt may fare better.
        safe: whether another attempt cannot create a second send.
        retry_after: seconds that Braze asks to wait before another attempt, or ``None``. It is
            ``None`` after a 429, since then the limiter waits.
    """

    outcome: SendId | BrazeSendsError
    answer: Answer
    created: Remembered | None = None
    transient: bool = False
    safe: bool = False
    retry_after: float | None = None


def judge(
    request: CreateSendId,
    reply: Reply | NoReply,
    told: AnswerHeaders,
    key: ApiKey,
    *,
    attempt: int,
    in_doubt: bool,
    now: float,
    jitter: float,
) -> Verdict:
    """Judge an attempt.

    Args:
        request: what was asked for.
        reply: what came.
        told: its headers.
        key: the API key, which is cut out of all texts.
        attempt: 1 for the first attempt of the create.
        in_doubt: whether an earlier attempt for the pair may have created it.
        now: the wall clock, epoch seconds, for an answer without ``Date``.
        jitter: 0 to 1, see ``Answer``.
    """
    limit = told.rate_limit
    reading = None
    if limit is not None:
        reading = Reading(limit.limit, limit.used, limit.resets_at.timestamp())
    try:
        send = protocol.parse_response(request, reply, told, key)
    except BrazeSendsError as error:
        if not (in_doubt and protocol.says_it_exists(error)):
            return _failed(error, told, reading, in_doubt=in_doubt, now=now, jitter=jitter)
        send = SendId(
            request.campaign_id,
            str(request.send_id),
            request_id=told.request_id,
            rate_limit=limit,
        )
    if attempt > 1:
        send = attrs.evolve(send, attempts=attempt)
    answer = Answer(
        spent=None if send.queued else True,
        in_doubt=send.queued,
        window=reading,
        date=told.date,
    )
    return Verdict(send, answer, Remembered(send.send_id, send.queued, send.request_id))


def _failed(
    error: BrazeSendsError,
    told: AnswerHeaders,
    reading: Reading | None,
    *,
    in_doubt: bool,
    now: float,
    jitter: float,
) -> Verdict:
    answer = Answer(
        spent=error.quota_spent,
        in_doubt=protocol.leaves_pair_in_doubt(error),
        window=reading,
        date=told.date,
        refused=isinstance(error, RateLimitError),
        from_edge=isinstance(error, RateLimitError) and error.from_edge,
        retry_after=told.retry_after,
        jitter=jitter,
    )
    transient, safe, retry_after = is_transient(error), is_safe(error), None
    if isinstance(error, RateLimitError):
        error = protocol.exhausted(error, told, now)
    elif isinstance(error, APIResponseError):
        retry_after = error.retry_after
    if in_doubt:
        error.quota_spent = None  # it speaks of the whole call, also of earlier attempts
    return Verdict(error, answer, transient=transient, safe=safe, retry_after=retry_after)


def is_transient(error: BaseException) -> bool:
    """Whether the same request may fare better later."""
    if isinstance(error, APIConnectionError):
        return not error.permanent
    if not isinstance(error, APIResponseError):
        return False
    # Text that is no JSON comes from a CDN or proxy that could not reach Braze. Below 500 such
    # a text is final all the same, but for a 2xx and a 429.
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
