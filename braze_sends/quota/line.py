"""Those who wait in one process: who stands where, and whose budget ends when.

Waiters that ask for the same stand in one line, in the order in which they came. A line has one
*meter*, which counts the time for all its waiters: a thousand waiters cost no more than one.
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

#: A budget with less than this left, in seconds, has ended: the rest is rounding.
INSTANT = 1e-6

_tickets = itertools.count()


@attrs.define(eq=False)
class WaitBudget:
    """How long one create may still wait for quota, all its waits together.

    Attributes:
        left: seconds; infinite to wait for ever.
        in_doubt: whether the store, or an answer, has ever shown this create an attempt in doubt
            for the pair; the attempt may be that of another create.
        undoubted: whether the pair was in no doubt when this create was granted its lease, and no
            attempt of this create is in doubt since. If the store then holds the pair in doubt, the
            doubt is the lease of this create, which ran out before anything was sent.
        on_pair_wait: called with ``True`` when the create begins to wait only for the end of
            another create of its pair, and with ``False`` when that wait ends.
        on_wait: called with ``None`` when the create begins to wait, and with the seconds that it
            has waited when the wait ends.
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
        deadline: loop time past which the lease is no longer ours: nothing may be sent on it then.
        ahead: seconds by which the steady clock was ahead of the loop's clock, before the lease was
            granted. The loop's clock may stand still while the host sleeps. If the steady clock is
            further ahead later, the host has slept for the difference.
    """

    grant: Grant
    deadline: float
    ahead: float = math.inf


@attrs.define(eq=False)
class Waiter:
    """One create in line.

    Attributes:
        future: what the create awaits; not set for a create that is served at once.
        line: where it stands; ``None`` if it waits for its pair alone.
        joined: what the line's meter showed when the waiter joined.
        waits_since: loop time at which a transaction found that it has to wait, ``None`` before.
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
        counting: loop time since which the meter runs, while its waiters wait for quota; ``None``
            while they wait for a probe, which takes nothing from their budgets.
        counted: what the meter showed at that time.
        ends: a heap of what the meter will show when a budget ends, and the ticket of its waiter.
            An entry is void if that waiter has left, or if its budget ends at another time by now.
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
        """Let the meter run from ``now`` on if the waiters wait for quota, else stop the meter."""
        self.counted = self.meter(now)
        self.counting = now if waits else None

    def join(self, waiter: Waiter, now: float) -> None:
        """Put a waiter in, at the place of its ticket."""
        ticket = waiter.budget.ticket
        late_comer = not self.waiters or ticket > next(reversed(self.waiters))
        self.waiters[ticket] = waiter
        if not late_comer:  # a further attempt keeps the place of the first
            self.waiters = dict(sorted(self.waiters.items()))
        waiter.line, waiter.joined = self, self.meter(now)
        self.await_end(waiter)

    def await_end(self, waiter: Waiter) -> None:
        """Note in ``ends`` when the budget of a waiter ends."""
        heappush(self.ends, (waiter.joined + waiter.budget.left, waiter.budget.ticket))

    def leave(self, waiter: Waiter, now: float) -> None:
        """Take a waiter out, and what the meter has counted for it from its budget."""
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
        """Those whose budgets do not last for ``within`` seconds more.

        The end of each is taken out of ``ends``, so that each is given once.
        """
        while True:
            end, waiter = self.first_end()
            left = end - self.meter(now)
            lasts = left > INSTANT and within <= left and within != math.inf
            if waiter is None or lasts:
                return
            heappop(self.ends)
            yield waiter
