"""The async client for Braze send IDs that knows the rate limit.

::

    async with SendsClient() as braze:
        send = await braze.create_send_id("campaign-id")
"""

import typing as _typing

# For type checkers and editors. Python imports a name when it is first asked for, see __getattr__:
# aiohttp takes long, and ``braze-sends`` must be able to end quietly at Ctrl-C meanwhile.
if _typing.TYPE_CHECKING:  # pragma: no cover
    from braze_sends.analytics import ChannelAnalytics, DayAnalytics, SendAnalytics
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
    from braze_sends.models import (
        Check,
        CreateSendId,
        Creations,
        Ping,
        QuotaStatus,
        RateLimit,
        SendId,
    )
    from braze_sends.settings import UNSET, Unset
    from braze_sends.stores.check import check_store
    from braze_sends.stores.memory import MemoryStore
    from braze_sends.stores.postgres import PostgresStore
    from braze_sends.stores.redis import RedisStore
    from braze_sends.stores.sqlite import SQLiteStore
    from braze_sends.stores.store import Store
    from braze_sends.stores.urls import open_store

    __version__: str

__all__ = [
    "UNSET",
    "APIConnectionError",
    "APIResponseError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "BrazeSendsError",
    "ChannelAnalytics",
    "Check",
    "ConfigurationError",
    "CreateSendId",
    "Creations",
    "DayAnalytics",
    "InternalServerError",
    "MemoryStore",
    "NotFoundError",
    "Outcome",
    "PermissionDeniedError",
    "Ping",
    "PostgresStore",
    "QuotaExhaustedError",
    "QuotaStatus",
    "RateLimit",
    "RateLimitError",
    "RedisStore",
    "SQLiteStore",
    "SendAnalytics",
    "SendId",
    "SendsClient",
    "Store",
    "StoreError",
    "Unset",
    "check_store",
    "new_send_id",
    "open_store",
]

#: Where the names are. Errors and values come first, since they import little; the stores that
#: import a driver come last, since most callers of ``SendsClient`` need one of them at most.
_MODULES = (
    "errors",
    "models",
    "stores.store",
    "stores.check",
    "stores.memory",
    "stores.urls",
    "settings",
    "batch",
    "client",
    "analytics",
    "stores.sqlite",
    "stores.redis",
    "stores.postgres",
)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name == "__version__":  # looked up when asked for, since it reads a file
        return import_module("importlib.metadata").version("braze_sends")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (vars(import_module(f"braze_sends.{module}")) for module in _MODULES)
    return globals().setdefault(name, next(home[name] for home in homes if name in home))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
