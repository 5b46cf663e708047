"""The async client for Braze send IDs that knows the rate limit.

::

    async with SendsClient() as braze:
        send = await braze.create_send_id("campaign-id")
"""

from importlib import metadata as _metadata

from braze_sends.batch import Outcome
from braze_sends.client import SendsClient, new_send_id
from braze_sends.errors import (
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
from braze_sends.models import CreateSendId, Creations, QuotaStatus, RateLimit, SendId
from braze_sends.quota.redis import RedisStore
from braze_sends.quota.sqlite import SQLiteStore
from braze_sends.quota.store import MemoryStore, Store, open_store

__all__ = [
    "APIConnectionError",
    "APIResponseError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "BrazeSendsError",
    "ConfigurationError",
    "CreateSendId",
    "Creations",
    "InternalServerError",
    "MemoryStore",
    "NotFoundError",
    "Outcome",
    "PermissionDeniedError",
    "QuotaExhaustedError",
    "QuotaStatus",
    "RateLimit",
    "RateLimitError",
    "RedisStore",
    "SQLiteStore",
    "SendId",
    "SendsClient",
    "Store",
    "StoreError",
    "new_send_id",
    "open_store",
]


def __getattr__(name: str) -> str:
    if name == "__version__":  # looked up when asked for, since it reads a file
        return _metadata.version("braze_sends")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
