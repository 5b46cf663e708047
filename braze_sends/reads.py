"""A question to Braze that changes nothing: a GET, and again if that may help.

It costs no slot of the quota of creates and does not touch the store. Braze counts it in another
bucket, so its rate-limit headers are told in errors alone, and never reach the quota.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import aiohttp
import attrs
from aiohttp import hdrs

from braze_sends import headers, protocol
from braze_sends.models import CreateSendId
from braze_sends.retry import retry_read
from braze_sends.settings import ApiKey
from braze_sends.transport import Exchange, Transport

T = TypeVar("T")


@attrs.frozen
class Question(Generic[T]):
    """What an endpoint is asked.

    Attributes:
        request: the pair that it is about.
        path: the endpoint's path.
        query: names and values, not yet encoded.
        permission: what the key needs.
        parse: see ``protocol.parse_read``.
    """

    request: CreateSendId
    path: str
    permission: str
    query: Mapping[str, str]
    parse: Callable[[object], T]


async def ask(
    question: Question[T],
    transport: Callable[[], Transport],
    key: ApiKey,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109
    max_retries: int,
    longest_wait: float | None,
) -> T:
    """The answer, after as many attempts as it takes.

    Args:
        question: what to ask.
        transport: gives the transport for an attempt; raises if the client was closed.
        key: the API key, which is cut out of all texts.
        timeout: of one attempt.
        max_retries: attempts after the first.
        longest_wait: seconds that Braze may ask to wait, all waits together; ``None``: any.

    Raises:
        APIConnectionError, APIResponseError: of the last attempt, see ``protocol.parse_read``.
    """

    async def attempt() -> T:
        exchange = Exchange(math.inf, timeout=timeout)
        reply = await transport().request(
            hdrs.METH_GET, question.path, exchange, query=question.query
        )
        told = headers.read(reply.headers, time.time(), key.scrub)
        return protocol.parse_read(
            question.request, reply, told, key, question.parse, question.permission
        )

    return await retry_read(
        attempt, max_retries, math.inf if longest_wait is None else longest_wait
    )
