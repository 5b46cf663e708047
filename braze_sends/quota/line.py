"""Those who wait in one process: who stands where, and whose budget ends when.

Those who ask for the same stand in one line, in the order in which they came. A line has one meter
for all, so that time passes for thousands of them without one being looked at.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Iterator
from heapq import heappop, heappush

import attrs

from braze_sends.quota.rule.messages import Ask, Grant
from braze_sends.stores.store import Remembered

#: A wait shorter than this is over: the rest is rounding.
INSTANT = 1e-6

_tickets = itertools.count()


@attrs.define(eq=False)
class WaitBudget:
    """How long one create may still wait for quota, all its waits together.

    Attributes:
        left: seconds; infinite to wait for ever.
        in_doubt: whether an attempt for the pair, of whoever, was seen to be in doubt.
        undoubted: the pair was in no doubt when this create was granted its lease, and nothing was
            sent on it. A doubt that is seen now is that lease's own, which ran out.
        on_pair_wait: called when the create begins, or ends, to wait only for its own pair, which
            is under way elsewhere.
        on_wait: called when it begins to wait, with ``None``; and when it waits no more, with the
            seconds that it has waited.
        ticket: its place in line, kept over its attempts.
    """

    left: float
    in_doubt: bool = False
    undoubted: bool = False
    on_pair_wait: Callable[[bool], None] = lambda waits: None
    on_wait: Callable[[float | None], None] = lambda seconds: None
    ticket: int = attrs.field(factory=lambda: next(_tickets))


@attrs.frozen
class Held:
    """A lease of ours.

    Attributes:
        grant: to be handed back with the answer.
        deadline: loop time past which it is ours no more, so that nothing may be sent on it.
        ahead: seconds by which the steady clock was ahead of the loop's. The loop's may stand still
            while the host sleeps, so what is more later was slept.
    """

    grant: Grant
    deadline: float
    ahead: float = math.inf


@attrs.define(eq=False)
class Waiter:
    """One create in line.

    Attributes:
        future: what its caller awaits.
        line: where it stands; ``None`` if it waits for its pair alone.
        joined: what the line's meter showed when it joined.
        waits_since: loop time at which it was found that it has to wait.
    """

    ask: Ask
    budget: WaitBudget
    future: asyncio.Future[Held | Remembered] = attrs.field(init=False)
    line: Line | None = None
    joined: float = 0.0
    waits_since: float | None = None


@attrs.define(eq=False)
class Line:
    """Those who ask for the same, in the order of their tickets.

    Attributes:
        key: what they ask for: the headroom, the own limit, and whether they may pass others.
        waiters: by their tickets.
        counting: loop time since which they wait for quota; ``None`` while they wait for a probe,
            which takes nothing from their budgets.
        counted: seconds that they waited for quota before.
        ends: what the meter shows when a budget ends, and whose, the first one first. A waiter
            may have left meanwhile.
    """

    key: tuple[int, int | None, bool]
    waiters: dict[int, Waiter] = attrs.field(factory=dict)
    counting: float | None = None
    counted: float = 0.0
    ends: list[tuple[float, int]] = attrs.field(factory=list)

    def meter(self, now: float) -> float:
        """Seconds of waiting for quota that this line has seen."""
        return self.counted if self.counting is None else self.counted + now - self.counting

    def count(self, waits: bool, now: float) -> None:
        """From now on its waiters wait for quota, or do not."""
        self.counted = self.meter(now)
        self.counting = now if waits else None

    def join(self, waiter: Waiter, now: float) -> None:
        ticket = waiter.budget.ticket
        late_comer = not self.waiters or ticket > next(reversed(self.waiters))
        self.waiters[ticket] = waiter
        if not late_comer:  # a further attempt keeps the place of the first
            self.waiters = dict(sorted(self.waiters.items()))
        waiter.line, waiter.joined = self, self.meter(now)
        self.await_end(waiter)

    def await_end(self, waiter: Waiter) -> None:
        """Note when its budget ends."""
        heappush(self.ends, (waiter.joined + waiter.budget.left, waiter.budget.ticket))

    def leave(self, waiter: Waiter, now: float) -> None:
        del self.waiters[waiter.budget.ticket]
        waiter.budget.left -= self.meter(now) - waiter.joined
        waiter.line = None

    def first_end(self) -> tuple[float, Waiter | None]:
        """What the meter shows when the next budget ends, and whose it is."""
        while self.ends:
            end, ticket = self.ends[0]
            waiter = self.waiters.get(ticket)
            if waiter is not None and waiter.joined + waiter.budget.left == end:
                return end, waiter
            heappop(self.ends)
        return math.inf, None

    def spent(self, within: float, now: float) -> Iterator[Waiter]:
        """Those whose budgets end before they will have waited for ``within`` seconds more."""
        while True:
            end, waiter = self.first_end()
            left = end - self.meter(now)
            lasts = left > INSTANT and within <= left and within != math.inf
            if waiter is None or lasts:
                return
            heappop(self.ends)
            yield waiter
