"""What must hold in a run, and what is counted besides."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import attrs

from braze_sends import BrazeSendsError, QuotaExhaustedError, SendId, StoreError
from tests.simulation.braze import DAY
from tests.simulation.mixes import OWN_LIMIT

if TYPE_CHECKING:
    from tests.simulation.world import Attempt, Call, World

#: After so many seconds in which nothing happened, what is known of the quota is known to us.
SETTLED = 60.0


@attrs.define
class Findings:
    """What was found in a run.

    Attributes:
        violations: a kind and a sentence for each.
        excused: over-quota answers of the documented kinds.
        wasted: slots that were left at a window's end though somebody wanted them.
    """

    violations: list[tuple[str, str]] = attrs.field(factory=list)
    excused: int = 0
    wasted: int = 0


class Judge:
    """Watches one run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.found = Findings()
        self._asked: set[int] = set()
        self._watching = asyncio.create_task(self._watch())

    def violated(self, kind: str, sentence: str) -> None:
        self.world.note(f"VIOLATION {kind}: {sentence}")
        self.found.violations.append((kind, sentence))

    # --- as it happens ---

    def over_quota(self, attempt: Attempt) -> None:
        """Braze has refused a request: only two kinds of it are excused."""
        world = self.world
        earlier = [one for one in world.attempts if one.pair == attempt.pair and one is not attempt]
        if any(one.status != 429 for one in earlier):
            self.found.excused += 1  # the repeat of an attempt of unknown outcome, or its original
        elif attempt.alone and attempt.unconfirmed:
            self.found.excused += 1  # the probe that asks whether old unconfirmed slots are real
        elif world.mix.counts == "requests" and self._repeats() > self.found.excused:
            self.found.excused += 1  # a repeat was counted, and another create found none left
        elif attempt.alone and world.mix.foreign and self._first_of_its_window(attempt):
            self.found.excused += 1  # the probe that asks whether a limit that was seen is ours
        elif world.mix.lone:
            self.violated("over quota", f"{attempt.pair} drew a 429 that is not excused")

    def _repeats(self) -> int:
        pairs = [one.pair for one in self.world.attempts]
        return len(pairs) - len(set(pairs))

    def _first_of_its_window(self, attempt: Attempt) -> bool:
        window = self.world.braze.window(attempt.sent)
        first = window not in self._asked
        self._asked.add(window)
        return first

    def ended(self, call: Call) -> None:
        """A call has ended."""
        world, result = self.world, call.result
        if isinstance(result, SendId):
            if call.pair not in world.braze.pairs:
                self.violated("invented", f"{call.pair} was given, and does not exist")
        elif isinstance(result, BrazeSendsError):
            exists = call.pair in world.braze.pairs
            if isinstance(result, StoreError):  # it cannot know of earlier calls
                exists = any(
                    one.counted
                    for one in world.attempts
                    if one.pair == call.pair
                    and one.process is call.process
                    and one.sent >= call.begun
                )
            if result.quota_spent is False and exists:
                self.violated("lie", f"{call.pair} exists, and its call says it cost nothing")
            # What was in flight when it was refused may have ended in the same instant.
            idle = ", 0 in flight" in str(result)
            if isinstance(result, QuotaExhaustedError) and idle and self._free():
                self.violated("needless refusal", f"{call.pair} was refused with slots free")

    async def _watch(self) -> None:
        """Nobody waits while a slot is known to be free."""
        world = self.world
        before: set[Call] = set()
        while True:
            await asyncio.sleep(10.0 if world.now() - self._last() < 300 else 600.0)
            free = self._free()
            waiting = {
                call
                for call in world.calls
                if free and call.result is None and not call.cancelled and not call.process.dead
            }
            for call in waiting & before:
                self.violated("parked", f"{call.pair} waits with {free} slots free")
                before.discard(call)
            before = waiting

    def _last(self) -> float:
        return self.world.attempts[-1].sent if self.world.attempts else -1e18

    def _free(self) -> int:
        """Slots that are surely free and that a client could know of, or 0."""
        world = self.world
        now = world.now()
        quiet = (
            world.mix.lone
            and not world.away
            and not world.under_way
            and not world.store._records["w"].bucket.leases
            and world.attempts
            and world.braze.window(now) == world.braze.window(world.attempts[-1].sent)
            and self._last() < now - SETTLED
            and now % DAY > 15
            and all(process.thawed.is_set() for process in world.processes)
        )
        if not quiet:
            return 0
        free = world.braze.remaining(now)
        if world.mix.own_limit:
            # A pair whose outcome was unknown may be of this window.
            pairs = {one.pair for one in world.attempts if one.sent > now - now % DAY}
            pairs |= {*world.braze.created.get(world.braze.window(now), ())}
            free = min(free, OWN_LIMIT - len(pairs))
        return max(0, free)

    # --- in the end ---

    async def finish(self, end: float) -> None:
        """See what is left, and that every pair can be found."""
        world = self.world
        await asyncio.sleep(900)
        for process in world.processes:
            process.thawed.set()
        self._waste(end)
        self._watching.cancel()
        await self._waits_end()
        self._own_limit()
        self._every_pair_is_told()
        await self._nothing_is_left()

    async def _waits_end(self) -> None:
        """Whoever does not wait for ever has an answer by now."""
        for call in self.world.calls:
            if call.wait is None or call.process.dead or call.result or call.cancelled:
                continue
            self.violated("endless", f"{call.pair} has had no answer")

    def _own_limit(self) -> None:
        if self.world.mix.own_limit:
            for window, pairs in self.world.braze.created.items():
                if len(pairs) > OWN_LIMIT:
                    self.violated("own limit", f"{len(pairs)} created in window {window}")

    def _every_pair_is_told(self) -> None:
        world = self.world
        calls: dict[str, list[Call]] = {}
        for call in world.calls:
            calls.setdefault(call.pair, []).append(call)
        memories = world.store._records["w"].pairs if "w" in world.store._records else {}
        known = {memory.send_id for memory in memories.values()}
        for pair in world.braze.pairs - known:
            told = any(
                isinstance(call.result, SendId)
                or (isinstance(call.result, BrazeSendsError) and call.result.quota_spent is None)
                or call.cancelled
                or call.process.dead
                or call.result is None
                for call in calls[pair]
            )
            if not told:
                self.violated("lost pair", f"{pair} exists, and nobody was told")

    async def _nothing_is_left(self) -> None:
        world = self.world
        for call in world.calls:  # those that wait for ever
            if call.result is None and not call.process.dead and not call.cancelled:
                return
        record = world.store._records.get("w")
        if record is not None:
            record.bucket.advance(world.loop.time() + world.slept)
            if record.bucket.leases:
                self.violated("left over", f"leases {list(record.bucket.leases)}")

    def _waste(self, end: float) -> None:
        """Slots that were left in a window though somebody was refused in it, or waited."""
        world = self.world
        last = int(end // DAY)
        for window in {int(call.begun // DAY) for call in world.calls}:
            start = window * DAY
            unmet = {
                call.pair
                for call in world.calls
                if isinstance(call.result, QuotaExhaustedError) and int(call.ended // DAY) == window
            } | {
                call.pair
                for call in world.calls
                if call.begun < start + DAY
                and call.ended >= start + DAY
                and window < last
                and not call.cancelled
                and not call.process.dead
            }
            unmet -= {pair for pairs in world.braze.created.values() for pair in pairs}
            free = world.braze.limit - world.braze.used.get(window, 0)
            if world.mix.own_limit:
                free = min(free, OWN_LIMIT - len(world.braze.created.get(window, ())))
            self.found.wasted += max(0, min(len(unmet), free))


def kinds(found: list[Findings]) -> Counter[str]:
    """How many runs have a violation of each kind."""
    return Counter(kind for one in found for kind in {kind for kind, _ in one.violations})
