"""Where the quota lives. A store makes one transition at a time atomic, and decides nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar, runtime_checkable

import attrs

from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.window import DAY

T = TypeVar("T")

#: A pair is remembered for so many seconds: longer than Braze keeps the analytics of a send ID,
#: which is 14 days.
#: https://www.braze.com/docs/api/endpoints/export/campaigns/get_send_analytics/
MEMORY = 30 * DAY

#: A state that nobody touches is kept for so many seconds. By then the state says nothing any more:
#: its window has ended, and each unconfirmed slot has lapsed.
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
        pairs: what is remembered of the pairs asked for; a pair without a memory is not in it. What
            is set here is kept.
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
            change: without I/O, since it may be called again if somebody else was first.

        Returns:
            what ``change`` returned in the call whose changes were kept.

        Raises:
            StoreError: the record cannot be read or kept.
        """
        ...

    async def close(self) -> None:
        """Give back what was opened; idempotent."""
        ...
