"""The quota in the memory of one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import TypeVar

import attrs

from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.store import MEMORY, Remembered, Transaction, steady

T = TypeVar("T")


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

    def run(self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]) -> T:
        """Do what ``transact`` does, without a coroutine.

        The record is changed in place. If ``change`` raises, the record keeps what was done so far.
        """
        with self._lock:
            now = self._clock()
            record = self._records.get(workspace)
            if record is None:
                record = self._records[workspace] = _Record(Bucket(offset=self._wall() - now))
            known = record.pairs
            asked = {pair: known[pair] for pair in pairs if pair in known}
            transaction = Transaction(now, record.bucket, asked)
            result = change(transaction)
            record.bucket = transaction.bucket
            for pair, memory in asked.items():
                if known.get(pair) is not memory:
                    # Set anew, so that the dicts stay in the order in which they expire.
                    known.pop(pair, None)
                    record.expiry.pop(pair, None)
                    known[pair] = memory
                    record.expiry[pair] = now + MEMORY
            while record.expiry and record.expiry[oldest := next(iter(record.expiry))] <= now:
                del known[oldest], record.expiry[oldest]
            return result

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        """See ``Store.transact``. Never suspends."""
        return self.run(workspace, pairs, change)

    async def close(self) -> None:
        """Nothing was opened."""
