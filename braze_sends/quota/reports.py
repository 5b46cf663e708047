"""What happens to the quota and its store, told as events. Imported when something is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import attrs

from braze_sends.events import (
    ClockCorrected,
    DoubtCleared,
    DoubtOpened,
    Event,
    HeadersNotBelieved,
    LimitChanged,
    QuotaLearnt,
    StoreFailed,
    StoreRecovered,
    StoreUsed,
    WindowEnded,
)
from braze_sends.listeners import Audience
from braze_sends.quota.rule.messages import Reading, Status
from braze_sends.quota.rule.window import SAME_RESET
from braze_sends.stores.store import Transaction

T = TypeVar("T")


@attrs.frozen
class _Seen:
    """The quota at one moment.

    ``limit`` and ``reset`` are those that the rule acts upon; ``status`` may show a sighting's.
    """

    status: Status
    limit: int
    reset: float | None
    offset: float

    @classmethod
    def of(cls, transaction: Transaction) -> _Seen:
        bucket = transaction.bucket
        return cls(bucket.status(), bucket.limit, bucket.reset, bucket.offset)


@attrs.define(eq=False)
class Watch(Generic[T]):
    """A transition that is watched; a store may call it again.

    Attributes:
        change: the transition.
        before: the quota before the last call of the transition.
        after: the quota after that call.
    """

    change: Callable[[Transaction], T]
    before: _Seen = attrs.field(init=False)
    after: _Seen = attrs.field(init=False)

    def __call__(self, transaction: Transaction) -> T:
        self.before = _Seen.of(transaction)
        result = self.change(transaction)
        self.after = _Seen.of(transaction)
        return result

    def events(self, workspace: str) -> Iterator[Event]:
        """What the last call changed."""
        before, after = self.before, self.after
        if before.offset != after.offset:
            yield ClockCorrected(workspace=workspace, seconds=after.offset - before.offset)
        if before.reset is not None and (
            after.reset is None or after.reset > before.reset + SAME_RESET
        ):
            yield WindowEnded(workspace=workspace, resets_at=_utc(before.reset))
        if before.limit != after.limit:
            yield LimitChanged(workspace=workspace, before=before.limit, limit=after.limit)
        doubts = after.status.unconfirmed
        if doubts > before.status.unconfirmed:
            yield DoubtOpened(workspace=workspace, unconfirmed=doubts)
        elif doubts < before.status.unconfirmed:
            yield DoubtCleared(workspace=workspace, unconfirmed=doubts)
        if before.status != after.status:
            status = after.status
            yield QuotaLearnt(
                workspace=workspace,
                limit=status.limit,
                used=status.used,
                remaining=status.remaining,
                in_flight=status.in_flight,
                unconfirmed=status.unconfirmed,
                resets_at=None if status.reset is None else _utc(status.reset),
            )


class QuotaReports:
    """Tells the audience of one workspace's quota."""

    def __init__(self, audience: Audience, workspace: str) -> None:
        self._audience = audience
        self._workspace = workspace

    def watch(self, change: Callable[[Transaction], T]) -> Watch[T]:
        """The transition, watched."""
        return Watch(change)

    def transaction(self, watch: Watch[Any], seconds: float) -> None:
        """A transaction has ended well; it took so many seconds."""
        for event in watch.events(self._workspace):
            self._audience.tell(event)
        self._audience.tell(StoreUsed(workspace=self._workspace, seconds=seconds))

    def headers_not_believed(self, reading: Reading) -> None:
        """The headers of an answer were not taken over."""
        self._audience.tell(
            HeadersNotBelieved(
                workspace=self._workspace,
                limit=reading.limit,
                used=reading.used,
                resets_at=_utc(reading.reset),
            )
        )

    def store_failed(self, error: Exception) -> None:
        """A transaction of those who wait has failed."""
        self._audience.tell(StoreFailed(workspace=self._workspace, message=str(error)))

    def store_recovered(self, seconds: float) -> None:
        """A transaction has ended well again, so many seconds after the first that failed."""
        self._audience.tell(StoreRecovered(workspace=self._workspace, seconds=seconds))


def _utc(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)
