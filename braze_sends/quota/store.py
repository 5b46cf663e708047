"""Where the quota lives. A store makes one transition at a time atomic, and decides nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar, runtime_checkable

import attrs

from braze_sends.errors import ConfigurationError
from braze_sends.quota.bucket import DAY, Bucket

T = TypeVar("T")

#: Longer than Braze keeps the analytics of a send ID, which is 14 days.
#: https://www.braze.com/docs/api/endpoints/export/campaigns/get_send_analytics/
MEMORY = 30 * DAY

#: A state that nobody touched for so long says nothing any more: each window in it has ended, and
#: each charge has lapsed.
STATE_KEPT = 4 * DAY


# On Linux CLOCK_MONOTONIC stands still while the host sleeps, and CLOCK_BOOTTIME does not. On macOS
# time.monotonic() stands still (https://github.com/python/cpython/issues/86273), and
# CLOCK_MONOTONIC_RAW does not (clock_gettime(3) there). On Windows time.monotonic() counts sleep.
_COUNTS_SLEEP: int | None = getattr(
    time, "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME", None
)


def steady() -> float:
    """Seconds since some moment before this process began. Never goes back, and counts the time
    that the host sleeps; the same for all processes of the host."""
    return time.monotonic() if _COUNTS_SLEEP is None else time.clock_gettime(_COUNTS_SLEEP)


def distrust(bucket: Bucket, now: float) -> None:
    """Do not believe a state that may be old: a store that was set back has lost what came later.

    What it counts is a lower bound from now on, and one request goes first to ask for the rest.
    """
    bucket.known, bucket.unknown_since, bucket.canaries = False, now, 1
    if bucket.reset is not None:
        # Any send that Braze counts beyond ours may be one of ours that was lost.
        bucket.cleared = max(bucket.cleared, bucket.limit)


@attrs.frozen
class Remembered:
    """What became of a pair.

    Attributes:
        send_id: its send ID, or ``None`` while nobody knows whether Braze created it.
        queued: Braze had only queued it.
        request_id: Braze's ``X-Request-Id`` of the answer.
    """

    send_id: str | None
    queued: bool = False
    request_id: str | None = None


@attrs.define
class Transaction:
    """A workspace's record, held while it is changed.

    Attributes:
        now: the store's steady clock, in seconds from any origin.
        bucket: the state of the quota, to be changed in place.
        pairs: what is remembered of the pairs asked for; what is set here is kept.
    """

    now: float
    bucket: Bucket
    pairs: dict[str, Remembered]


@runtime_checkable
class Store(Protocol):
    """What the limiter needs of a store.

    Attributes:
        shared: whether other processes may change the record too.
    """

    shared: bool

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """Load the record, apply ``change``, keep what it left, all in one step.

        Args:
            workspace: names the record; one that is not there begins as a new ``Bucket``.
            pairs: the pairs whose memory ``change`` looks at.
            change: pure; it may be called again if somebody else was first. What it returns for
                the call that was kept is returned.

        Raises:
            StoreError: the record cannot be read or kept.
        """
        ...

    async def close(self) -> None:
        """Give back what was opened; idempotent."""
        ...


@attrs.define
class _Record:
    bucket: Bucket
    pairs: dict[str, Remembered] = attrs.field(factory=dict)
    expiry: dict[str, float] = attrs.field(factory=dict)


class MemoryStore:
    """The quota in this process's memory. Pass one to several clients to let them share it.

    Args:
        clock: the steady clock, in seconds; it counts the time that the host sleeps.
        wall: the wall clock, in epoch seconds; Braze's ``Date`` headers correct it.
    """

    shared = False

    def __init__(
        self,
        *,
        clock: Callable[[], float] = steady,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall = wall
        self._records: dict[str, _Record] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._records)} workspaces)"

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """See ``Store.transact``. Never suspends."""
        with self._lock:
            now = self._clock()
            record = self._records.get(workspace)
            if record is None:
                record = self._records[workspace] = _Record(Bucket(offset=self._wall() - now))
            asked = {pair: record.pairs[pair] for pair in pairs if pair in record.pairs}
            # A copy, so that a change that raises leaves nothing behind.
            transaction = Transaction(now, record.bucket.copy(), dict(asked))
            result = change(transaction)
            record.bucket = transaction.bucket
            for pair, memory in transaction.pairs.items():
                if asked.get(pair) is not memory:
                    # Set anew, so that the dicts stay in the order in which they expire.
                    record.pairs.pop(pair, None)
                    record.expiry.pop(pair, None)
                    record.pairs[pair] = memory
                    record.expiry[pair] = now + MEMORY
            while record.expiry and record.expiry[oldest := next(iter(record.expiry))] <= now:
                del record.pairs[oldest], record.expiry[oldest]
            return result

    async def close(self) -> None:
        """Nothing was opened."""


def open_store(url: str) -> Store:
    """The store that ``url`` names.

    Args:
        url: ``memory://``; ``sqlite:///quota.db`` (relative) or ``sqlite:////var/lib/quota.db``;
            ``redis://``, ``rediss://`` or ``unix://`` (extra ``redis``).

    Raises:
        ConfigurationError: there is no such kind of store, or what it needs is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "memory" and not rest:
        return MemoryStore()
    if scheme == "sqlite" and rest.startswith("/") and rest != "/":
        from braze_sends.quota.sqlite import SQLiteStore

        return SQLiteStore(rest[1:])
    if separator and scheme in ("redis", "rediss", "unix"):
        from braze_sends.quota.redis import RedisStore

        return RedisStore(url)
    # Not the URL itself: it may hold a password, or be a key in the wrong place.
    shown = f"{scheme[:20]}://…" if separator else "given"
    raise ConfigurationError(
        f"unknown store {shown}: use memory://, sqlite:///file.db, redis://host/0, or pass a Store"
    )
