"""Transactions on a server that many processes share: tried here, and kept there in one step.

A process goes by what it last saw of a workspace's record. The step that is to keep what a try
leaves compares that with what is true, on the server, and writes only if all of it holds. So a step
takes one round trip if nobody else has written, and no lock is held between two of them.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Final, Protocol, TypeVar

import attrs

from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.codec import dump, load_bucket, load_remembered
from braze_sends.stores.store import Transaction, steady

T = TypeVar("T")

#: Seconds for all tries of a transaction that others are faster than.
CONTENTION_TIMEOUT = 20.0
#: Seconds by which an assumed time may be behind the server's clock. So much earlier than its owner
#: others may take a lease for expired, so it is far less than a lease's grace.
BEHIND = 0.1
#: Seconds in a second by which the server's clock may be slower than ours.
DRIFT = 1e-4


@attrs.frozen
class Seen:
    """A workspace's record, as a try of a transaction goes by it.

    Attributes:
        revision: names it; empty if there is none. It is random and not counted, so that a server
            that was set back cannot come to the same one again.
        state: the bucket as text; empty if there is none.
        server: names the server that has it, or its last start; empty if it does not tell.
        kept_on: that of the server that it was kept on.
        count: how often it was written.
        now: the server's clock, seconds.
        fell: whether the server's clock is far behind the time when the record was kept.
        memories: what is remembered of the pairs asked for, as text.
        assumed: whether the server has still to be asked if all of this is so.
    """

    revision: bytes | str = ""
    state: bytes | str = ""
    server: bytes | str = ""
    kept_on: bytes | str = ""
    count: int = 0
    now: float = 0.0
    fell: bool = False
    memories: Mapping[str, bytes | str] = attrs.field(factory=dict)
    assumed: bool = False


#: Never holds, since its time is long past: a step that assumes it only asks.
NOTHING: Final = Seen(assumed=True)


class Steps(Protocol):
    """One workspace's record on the server, for one transaction."""

    def begin(self) -> None:
        """Called before each try.

        Raises:
            Exception: there is no time for another.
        """

    def may_be_old(self, bucket: Bucket, seen: Seen, *, set_back: bool) -> bool:
        """Whether the server may have lost what was kept after this state.

        Args:
            bucket: the state.
            seen: its record.
            set_back: whether this process has seen a record that was written more often.
        """
        ...

    async def step(
        self, pairs: list[str], seen: Seen, left: Seen, remembered: Mapping[str, str]
    ) -> tuple[bool, Seen]:
        """Keep what a try ``left`` of what it had ``seen``, and what is to be ``remembered`` of
        pairs, if all that it had seen is true.

        ``left`` is ``seen`` itself if the try left all as it was: then only ask.

        Returns:
            whether it holds, and what was there before the step.
        """
        ...

    def kept(self) -> None:
        """Called when a step has kept something."""


class Records:
    """What this process last saw of each record on a server, and of the server's clock."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}
        # The highest count that was seen of each workspace's record.
        self._counts: dict[str, int] = {}
        # What the server's clock had reached when ``steady`` showed the second number.
        self.reached = 0.0, 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """What the server's clock has reached: behind it by an answer's way, and never ahead."""
        clock, at = self.reached
        return clock + (steady() - at) * (1 - DRIFT)

    def heard(self, clock: float, assumed: float) -> None:
        """Take in the server's clock, from an answer to a step that assumed a time."""
        with self._lock:
            # An answer that took long tells less than is known, unless the clock was set back.
            if clock < assumed or clock > self.now():
                self.reached = clock, steady()

    async def transact(
        self,
        workspace: str,
        pairs: Collection[str],
        change: Callable[[Transaction], T],
        steps: Steps,
    ) -> T:
        """See ``Store.transact``."""

        async def look() -> Seen:
            return (await steps.step(asked, NOTHING, NOTHING, {}))[1]

        asked, tries = list(pairs), 0
        # Most likely nobody else has written since. So the first try goes by what was last seen,
        # and as if nothing were remembered of the pairs. The step that is to keep what it leaves
        # checks that. If it leaves all as it was, such a step asks, and a second try goes by that.
        seen = self._last(workspace) or await look()
        while True:
            steps.begin()
            try:
                transaction = self._begin(workspace, seen, steps)
                untouched, before = dump(transaction.bucket), dict(transaction.pairs)
                result = change(transaction)
            except Exception:
                if not seen.assumed:
                    raise  # else it may not with what is true
                seen = await look()
                continue
            left = seen
            if (state := dump(transaction.bucket)) != untouched or transaction.pairs != before:
                left = self._next(workspace, seen, state)
            elif not seen.assumed:
                self._saw(workspace, seen)
                return result
            # Others may have come to be in doubt meanwhile; they are looked at from now on.
            asked += transaction.pairs.keys() - set(asked)
            remembered = {
                pair: dump(memory)
                for pair, memory in transaction.pairs.items()
                if memory != before.get(pair)
            }
            holds, found = await steps.step(asked, seen, left, remembered)
            if holds and left is not seen:
                steps.kept()
                self._saw(workspace, left)
                return result
            if not seen.assumed:
                tries = min(tries + 1, 6)
                await asyncio.sleep(random.uniform(0, 0.001 * 2**tries))
            seen = found

    def _begin(self, workspace: str, seen: Seen, steps: Steps) -> Transaction:
        # The server's clock is taken for UTC until a Date of Braze's corrects it.
        bucket = load_bucket(seen.state) if seen.state else Bucket(offset=0.0)
        set_back = seen.count < self._counts.get(workspace, 0)
        if steps.may_be_old(bucket, seen, set_back=set_back) and seen.state:
            bucket.distrust(seen.now)
        pairs = {pair: load_remembered(memory) for pair, memory in seen.memories.items()}
        return Transaction(seen.now, bucket, pairs)

    def _next(self, workspace: str, seen: Seen, state: str) -> Seen:
        return attrs.evolve(
            seen,
            revision=secrets.token_hex(8),
            state=state,
            kept_on=seen.server or seen.kept_on,
            count=max(seen.count, self._counts.get(workspace, 0)) + 1,
            fell=False,
        )

    def _last(self, workspace: str) -> Seen | None:
        seen = self.seen.get(workspace)
        return seen and attrs.evolve(seen, now=self.now(), assumed=True)

    def _saw(self, workspace: str, seen: Seen) -> None:
        self._counts[workspace] = max(self._counts.get(workspace, 0), seen.count)
        # A server that does not tell who it is may be restarted before the next step, unseen.
        if seen.server:
            self.seen[workspace] = attrs.evolve(seen, memories={})
