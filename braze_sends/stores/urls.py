"""Which store a URL names."""

from __future__ import annotations

import re

from braze_sends.errors import ConfigurationError
from braze_sends.stores.memory import MemoryStore
from braze_sends.stores.store import Store

_REDIS = (
    "redis",
    "rediss",
    "unix",
    "redis+cluster",
    "rediss+cluster",
    "redis+sentinel",
    "rediss+sentinel",
)

#: What is meant as the name of an SQLite file.
_FILE = re.compile(r"(sqlite:(//)?)?(?P<path>[\w./-]+\.(db|sqlite|sqlite3))")


def open_store(url: str) -> Store:
    """The store that ``url`` names.

    Args:
        url: ``memory://``; ``sqlite:///quota.db`` (relative) or ``sqlite:////var/lib/quota.db``;
            ``redis://``, ``rediss://``, ``unix://``, ``redis+cluster://`` or
            ``redis+sentinel://`` (extra ``redis``), see ``RedisStore``; ``postgresql://`` or
            ``postgres://`` (extra ``postgres``), see ``PostgresStore``.

    Raises:
        ConfigurationError: there is no such kind of store, or what it needs is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "memory" and not rest:
        return MemoryStore()
    if scheme == "sqlite" and rest.startswith("/") and rest != "/":
        from braze_sends.stores.sqlite import SQLiteStore

        return SQLiteStore(rest[1:])
    if separator and scheme in _REDIS:
        from braze_sends.stores.redis import RedisStore

        return RedisStore(url)
    if separator and scheme in ("postgresql", "postgres"):
        from braze_sends.stores.postgres import PostgresStore

        return PostgresStore(url)
    if separator and scheme.startswith(("postgresql+", "postgres+")):
        raise ConfigurationError(
            "a postgresql:// URL names no driver: leave out + and what follows"
        )
    if file := _FILE.fullmatch(url):
        raise ConfigurationError(
            f"a store is named by a URL: did you mean sqlite:///{file['path']}?"
        )
    # Not the URL itself: it may hold a password, or be a key in the wrong place.
    shown = f"{scheme[:20]}://…" if separator else "given"
    raise ConfigurationError(
        f"unknown store {shown}: use memory://, sqlite:///file.db, redis://host/0, "
        "postgresql://host/database, or pass a Store"
    )
