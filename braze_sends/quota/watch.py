"""What a transaction changed in the quota, told as events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Generic, TypeVar

import attrs

from braze_sends.events import (
    ClockCorrected,
    DoubtCleared,
    DoubtOpened,
    Event,
    LimitChanged,
    QuotaLearnt,
    WindowEnded,
)
from braze_sends.quota.rule.messages import Status
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


def _utc(epoch: float) -> datetime:
    return datetime.fromtimestamp(epoch, UTC)
