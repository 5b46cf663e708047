"""What goes into one transaction, and what the transaction gives. A store may run it again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from braze_sends.quota.line import Held, Waiter
from braze_sends.quota.rule.ledger import LEASE_GRACE
from braze_sends.quota.rule.messages import Ask, Grant, Reason, Status, Wait
from braze_sends.stores.store import Remembered, Transaction

T = TypeVar("T")


@attrs.define(eq=False)
class Operation:
    """A change that asks for no lease: an attempt's end, a look, a lease that is given back.

    Attributes:
        run: the change; what it returns is the result.
        pair: the pair whose memory the change looks at, or ``None``. Those who wait for the end of
            a create of this pair go into the same transaction.
        future: for the result.
    """

    run: Callable[[Transaction], Any]
    pair: str | None
    future: asyncio.Future[Any]


@attrs.define
class Outcome:
    """What one transaction gave.

    Attributes:
        now: the steady clock.
        results: of the operations, in their order.
        decisions: by the names of their leases, what became of those who asked.
        doubted: the leases of those whose pairs are in doubt, but see ``WaitBudget.undoubted``.
        passing: the leases of those who may pass others, since their pairs are in doubt.
        statuses: the numbers to show, for each own limit under which somebody waits for quota.
        room: tokens that are free.
        next_change: when something changes by itself, on the steady clock. Infinite if it never
            does, or if nobody waits.
    """

    now: float
    results: list[Any]
    decisions: dict[str, Grant | Remembered | Wait] = attrs.field(factory=dict)
    doubted: set[str] = attrs.field(factory=set)
    passing: set[str] = attrs.field(factory=set)
    statuses: dict[int | None, Status] = attrs.field(factory=dict)
    room: int = 0
    next_change: float = math.inf


@attrs.define(eq=False)
class Group:
    """What goes into one transaction.

    Attributes:
        operations: they are run before anybody is served.
        front: the waiters who may be served, in the order of their tickets.
        behind: the fresh waiters who stand further back. Their pairs are looked up, and only those
            whom ``Bucket.passes`` lets pass are decided.
        fresh: the waiters whose pairs no transaction has looked up, by their tickets; they stand in
            ``front`` or ``behind`` too.
        process: names this process where others share the store.
        pairs_wait: whether somebody waits for the end of its own pair.
        started: loop time.
        ahead: see ``Held``.
    """

    front: list[Waiter]
    process: str | None
    started: float
    ahead: float
    operations: list[Operation] = attrs.field(factory=list)
    behind: list[Waiter] = attrs.field(factory=list)
    fresh: dict[int, Waiter] = attrs.field(factory=dict)
    pairs_wait: bool = False

    @property
    def pairs(self) -> set[str]:
        """The pairs whose memory is looked at."""
        pairs = {operation.pair for operation in self.operations}
        pairs |= {waiter.ask.pair for waiter in self.front}
        pairs |= {waiter.ask.pair for waiter in self.behind}
        return {pair for pair in pairs if pair is not None}

    def change(self, transaction: Transaction) -> Outcome:
        """Run the operations, then decide who is served. A store may call it again."""
        bucket, now = transaction.bucket, transaction.now
        bucket.advance(now)
        outcome = Outcome(now, [operation.run(transaction) for operation in self.operations])
        _remember(transaction)
        if self.front:
            self._decide(transaction, outcome)
        outcome.room = bucket.room()
        if self.pairs_wait or any(isinstance(one, Wait) for one in outcome.decisions.values()):
            outcome.next_change = bucket.next_change(now)
        return outcome

    def served(
        self, waiter: Waiter, decision: Grant | Remembered, outcome: Outcome
    ) -> Held | Remembered:
        """What a waiter gets that need not wait: a lease, or what is remembered of its pair.

        Notes in its budget whether the pair is free of doubt, see ``WaitBudget.undoubted``.
        """
        if isinstance(decision, Remembered):
            return decision
        budget = waiter.budget
        budget.undoubted = not budget.in_doubt
        # The deadline counts from before the transaction, since this process may have been stopped
        # during it. The lease is older if an earlier transaction granted it and its reply was lost.
        begun = self.started - (outcome.now - decision.begun)
        return Held(decision, begun + waiter.ask.timeout + LEASE_GRACE, self.ahead)

    def _decide(self, transaction: Transaction, outcome: Outcome) -> None:
        bucket, doubted = transaction.bucket, transaction.bucket.doubted()
        asking: list[Ask] = []
        for place, waiter in enumerate((*self.front, *self.behind)):
            ask, is_behind = waiter.ask, place >= len(self.front)
            memory = None if ask.pair is None else transaction.pairs.get(ask.pair)
            if memory is not None and memory.send_id is not None:
                bucket.close(ask.lease)
                outcome.decisions[ask.lease] = memory
                continue
            # A memory without a send ID is a doubt that has no slot any more.
            repeat = ask.pair in doubted
            if (memory is not None or repeat) and not waiter.budget.undoubted:
                ask = attrs.evolve(ask, in_doubt=True)
                outcome.doubted.add(ask.lease)
            if ask.in_doubt or repeat:
                outcome.passing.add(ask.lease)
            if not is_behind or bucket.passes(ask, doubted):
                asking.append(ask)
        for ask, decision in zip(
            asking, bucket.reserve(asking, outcome.now, self.process), strict=True
        ):
            outcome.decisions[ask.lease] = decision
            if isinstance(decision, Wait) and decision.reason is Reason.QUOTA:
                outcome.statuses[ask.own_limit] = bucket.status(ask.own_limit)


def alone(change: Callable[[Transaction], T]) -> Callable[[Transaction], T]:
    """A transition of one operation, where nobody waits."""

    def transition(transaction: Transaction) -> T:
        transaction.bucket.advance(transaction.now)
        result = change(transaction)
        _remember(transaction)
        return result

    return transition


def _remember(transaction: Transaction) -> None:
    """Remember as in doubt the pairs that have lost their slots and were never settled."""
    for pair in transaction.bucket.unsettled:
        transaction.pairs.setdefault(pair, Remembered(None))
    transaction.bucket.unsettled.clear()
