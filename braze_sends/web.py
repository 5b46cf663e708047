"""What a web backend answers when a create failed inside a request. Pure functions, no framework.

::

    except BrazeSendsError as error:
        after = retry_after_header(error)
        headers = {"Retry-After": after} if after else None
        return web.json_response({"error": str(error)}, status=http_status(error), headers=headers)
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Final

from braze_sends.errors import (
    APIConnectionError,
    APIResponseError,
    APITimeoutError,
    QuotaExhaustedError,
    RateLimitError,
    StoreError,
)

#: The first class that fits decides.
_STATUSES: Final[tuple[tuple[type[BaseException], HTTPStatus], ...]] = (
    (QuotaExhaustedError, HTTPStatus.SERVICE_UNAVAILABLE),
    (RateLimitError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (APITimeoutError, HTTPStatus.GATEWAY_TIMEOUT),
    (APIConnectionError, HTTPStatus.BAD_GATEWAY),
    (APIResponseError, HTTPStatus.BAD_GATEWAY),
)


def http_status(error: BaseException) -> int:
    """The status with which a web backend answers its visitor when ``error`` ended a create.

    ======================================================  ======
    ``QuotaExhaustedError``, ``RateLimitError``              503
    ``StoreError``                                           503
    ``APITimeoutError``                                      504
    ``APIConnectionError``, any other ``APIResponseError``   502
    ``ConfigurationError``, anything else                    500
    ======================================================  ======

    The quota belongs to the workspace, and not to the visitor. 429 says that *the user* has sent
    too many requests (RFC 6585, section 4), and once the day is used up that may be the visitor's
    first one. 503 says that the server cannot serve for now, and may carry ``Retry-After`` (RFC
    9110, section 15.6.4). Answer 429 only for a limit that each visitor has of their own.

    A 4xx of Braze's is about the request that the backend made, so the visitor gets 502: an invalid
    answer from an inbound server (RFC 9110, section 15.6.3). A ``ConfigurationError`` is about the
    backend's own settings or arguments. To answer 422 for what a visitor chose, check it before
    with ``CreateSendId.check``.

    https://www.rfc-editor.org/rfc/rfc6585#section-4
    https://www.rfc-editor.org/rfc/rfc9110#section-15.6

    Args:
        error: what the call raised, of any class.

    Returns:
        500, 502, 503 or 504.
    """
    fitting = (status for kind, status in _STATUSES if isinstance(error, kind))
    return int(next(fitting, HTTPStatus.INTERNAL_SERVER_ERROR))


def retry_after_header(error: BaseException) -> str | None:
    """The value of a ``Retry-After`` header for the answer to a visitor.

    The header is a number of seconds, rounded up, so that nobody comes back too early.

    https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3

    Args:
        error: what the call raised, of any class.

    Returns:
        whole seconds, 1 or more, as text; ``None`` if nothing says when to come back. Then leave
        the header out.
    """
    if not isinstance(error, QuotaExhaustedError | APIResponseError) or error.retry_after is None:
        return None
    return str(max(1, math.ceil(error.retry_after)))
