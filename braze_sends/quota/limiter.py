"""Who waits for the quota, in this process: a queue, one timer, and transactions in groups.

**What must hold.** Whoever is granted a lease gets it or gives it back, wherever cancellation
strikes. What is known of a pair is never replaced by a doubt. A waiter is woken by each event that
could serve it: an answer, a lease's deadline, the window's end, the end of its own budget. No
transaction is interrupted, since it runs in a task that no caller owns; its operations can be
repeated without harm. A wait for quota outlives a store that is away for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import uuid
from collections.abc import Callable
from copy import copy
from datetime import UTC, datetime
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import attrs

from braze_sends.errors import BrazeSendsError, QuotaExhaustedError, StoreError
from braze_sends.models import QuotaStatus
from braze_sends.quota.rule.history import History
from braze_sends.quota.rule.ledger import LEASE_GRACE
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reason, Status, Wait
from braze_sends.stores.store import Remembered, Store, Transaction, steady

T = TypeVar("T")

#: Another process may free what is waited for: on a shared store, look again after the first, and
#: ever more seldom, in seconds.
FIRST_LOOK, LAST_LOOK = 0.25, 5.0
#: So long a store may be away before that ends the waits for quota, in seconds.
LONGEST_OUTAGE = 60.0
#: A wait shorter than this is over: the rest is rounding.
INSTANT = 1e-6
#: The longest sleep, in seconds: asyncio's clock may stand still while the host sleeps, and the
#: store's does not.
LONGEST_SLEEP = 60.0
#: Keeps processes from asking in the same instant when a window ends, in seconds.
JITTER = 0.1

_tickets = itertools.count()
_limiters: WeakValueDictionary[tuple[int, int, str], Limiter] = WeakValueDictionary()


@attrs.define(eq=False)
class WaitBudget:
    """How long one create may still wait for quota, all its waits together.

    Attributes:
        left: seconds; infinite to wait for ever.
        in_doubt: whether an attempt for the pair, of whoever, was seen to be in doubt.
        undoubted: it was not when this create was granted a lease, and no attempt of it has left
            since. If that lease ran out, others took the pair for one in doubt; we know better.
        ticket: its place in the queue, kept over its attempts.
        on_pair_wait: called after each look at the queue: whether the create waits only for its own
            pair, which is under way elsewhere.
    """

    left: float
    in_doubt: bool = False
    undoubted: bool = False
    ticket: int = attrs.field(factory=lambda: next(_tickets))
    on_pair_wait: Callable[[bool], None] = lambda waits: None


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
class _Waiter:
    ask: Ask
    budget: WaitBudget
    future: asyncio.Future[Held | Remembered]
    waits_since: float | None = None

    def budget_left(self, now: float) -> float:
        """What is left of the budget in a wait for quota; infinite in no such wait."""
        if self.waits_since is None:
            return math.inf
        return self.budget.left - (now - self.waits_since)

    def spend(self, now: float) -> None:
        """Take the wait for quota that ends now from the budget."""
        if self.waits_since is not None:
            self.budget.left = self.budget_left(now)
            self.waits_since = None


@attrs.define(eq=False)
class _Operation:
    run: Callable[[Transaction], Any]
    pair: str | None
    future: asyncio.Future[Any]


@attrs.frozen
class _Outcome:
    """What one transaction gave."""

    now: float
    results: list[Any]
    decisions: list[Grant | Remembered | Wait]
    doubted: frozenset[str]
    statuses: dict[int | None, Status]  # under the own limit of each who asked
    offset: float
    next_change: float


class Limiter:
    """The quota of one workspace, as the tasks of one event loop see it.

    Clients that share a store share its limiter too, so that there is one queue.
    """

    def __init__(self, store: Store, workspace: str, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        self._workspace = workspace
        self._loop = loop
        self._process = uuid.uuid4().hex[:8] if store.shared else None
        self._queue: dict[int, _Waiter] = {}
        self._operations: list[_Operation] = []
        self._committing: asyncio.Task[None] | None = None
        self._look_again = False
        self._away_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause = FIRST_LOOK

    @classmethod
    def of(cls, store: Store, workspace: str) -> Limiter:
        """The limiter of ``workspace`` in ``store`` for the running loop."""
        loop = asyncio.get_running_loop()
        key = (id(store), id(loop), workspace)  # the limiter holds both, so the ids stay theirs
        limiter = _limiters.get(key)
        if limiter is None:
            limiter = _limiters[key] = cls(store, workspace, loop)
        return limiter

    async def acquire(self, ask: Ask, budget: WaitBudget) -> Held | Remembered:
        """Wait for the right to make an attempt.

        Returns:
            a lease, or what is remembered of the pair, if it exists already.

        Raises:
            QuotaExhaustedError: the wait is, or would be, longer than ``budget`` allows.
            StoreError: the store cannot be used.
        """
        waiter = _Waiter(ask, budget, self._loop.create_future())
        late_comer = not self._queue or budget.ticket > next(reversed(self._queue))
        self._queue[budget.ticket] = waiter
        if not late_comer:  # a further attempt keeps the place of the first
            self._queue = dict(sorted(self._queue.items()))
        self._kick()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._queue.pop(budget.ticket, None)
            if not waiter.future.cancelled():
                waiter.future.exception()  # seen
            # The next transaction gives back whatever this one has granted meanwhile.
            with contextlib.suppress(StoreError):
                await self._run(lambda held: held.bucket.close(ask.lease, ask.attempt))
            raise

    async def finish(
        self,
        ask: Ask,
        grant: Grant,
        answer: Answer,
        *,
        created: Remembered | None = None,
        keep: bool = False,
    ) -> None:
        """Take in how an attempt ended, and remember the pair if it was ``created``, in one step.

        Repeatable; once called, it happens even if the caller is cancelled meanwhile.

        Raises:
            StoreError: the store cannot be used.
        """

        def settle(transaction: Transaction) -> None:
            transaction.bucket.finish(ask, grant, answer, transaction.now, keep=keep)
            if ask.pair is None:
                return
            if created is not None:
                transaction.pairs[ask.pair] = created
            known = transaction.pairs.get(ask.pair)
            if known is not None and known.send_id is not None:
                transaction.bucket.settle_pair(ask.pair)

        await self._run(settle, ask.pair)

    async def close(self, ask: Ask) -> None:
        """Give up the lease of a create that makes no further attempt."""
        await self._run(lambda transaction: transaction.bucket.close(ask.lease))

    async def recall(self, pair: str) -> Remembered | None:
        """What is remembered of a pair that exists.

        Raises:
            StoreError: the store cannot be used.
        """
        memory: Remembered | None = await self._run(
            lambda transaction: transaction.pairs.get(pair), pair
        )
        return memory if memory is not None and memory.send_id is not None else None

    async def status(self, own_limit: int | None) -> QuotaStatus:
        """The quota as the store knows it, under the caller's own ``own_limit``.

        Raises:
            StoreError: the store cannot be used.
        """

        def look(transaction: Transaction) -> tuple[Status, History, float]:
            bucket = transaction.bucket
            return bucket.status(own_limit), bucket.history, transaction.now + bucket.offset

        status, history, braze_now = await self._run(look)
        try:
            creations = history.creations(braze_now)
        except ValueError:
            raise StoreError(
                "the store holds a damaged history: delete its bucket there, and the quota starts "
                "over with one careful request"
            ) from None
        return QuotaStatus(
            limit=status.limit,
            remaining=status.remaining,
            in_flight=status.in_flight,
            unconfirmed=status.unconfirmed,
            resets_at=_utc(status.reset),
            known=status.reset is not None,
            used=status.used,
            creations=creations,
        )

    async def forget(self) -> None:
        """Forget what was learnt from headers.

        Raises:
            StoreError: the store cannot be used.
        """
        await self._run(lambda transaction: transaction.bucket.forget(transaction.now))

    async def drain(self) -> None:
        """Wait until nothing is on its way to the store."""
        while self._committing is not None:
            await asyncio.wait([self._committing])

    # --- transactions ----------------------------------------------------------------------------

    async def _run(self, change: Callable[[Transaction], T], pair: str | None = None) -> T:
        operation = _Operation(change, pair, self._loop.create_future())
        self._operations.append(operation)
        self._kick()
        result: T = await operation.future
        return result

    def _kick(self) -> None:
        """See to it that a transaction takes place with what has gathered."""
        self._look_again = True
        if self._committing is None:
            self._committing = self._loop.create_task(self._commit())
            self._committing.add_done_callback(self._committed)

    def _committed(self, task: asyncio.Task[None]) -> None:
        self._committing = None
        # The end of a loop cancels every task, this one too; those who wait still need it.
        if self._look_again:
            self._kick()

    async def _commit(self) -> None:
        while self._look_again:
            self._look_again = False
            operations, self._operations = self._operations, []
            waiters = list(self._queue.values())
            started = self._loop.time()
            ahead = steady() - started
            try:
                outcome = await self._transact(operations, waiters)
            except asyncio.CancelledError:
                self._operations = operations + self._operations
                self._look_again = True
                raise
            except Exception as error:  # whatever a store raises, nobody may be left waiting
                self._fail(error, operations, waiters)
                self._arm(self._pause)
                continue
            self._away_since = None
            for operation, result in zip(operations, outcome.results, strict=True):
                if not operation.future.done():
                    operation.future.set_result(result)
            self._deliver(waiters, outcome, started, ahead)
            self._arm(outcome.next_change - outcome.now + random.uniform(0, JITTER))

    async def _transact(self, operations: list[_Operation], waiters: list[_Waiter]) -> _Outcome:
        asks = [waiter.ask for waiter in waiters]
        undoubted = {waiter.ask.lease for waiter in waiters if waiter.budget.undoubted}
        pairs = {pair for pair in (o.pair for o in operations) if pair is not None}
        pairs |= {ask.pair for ask in asks if ask.pair is not None}

        def change(transaction: Transaction) -> _Outcome:
            bucket, now = transaction.bucket, transaction.now
            bucket.advance(now)
            results = [operation.run(transaction) for operation in operations]
            for pair in bucket.unsettled:
                transaction.pairs.setdefault(pair, Remembered(None))
            doubted = bucket.doubted()
            memories = {ask.lease: transaction.pairs.get(ask.pair or "") for ask in asks}
            known = {
                lease: memory for lease, memory in memories.items() if memory and memory.send_id
            }
            for lease in known:
                bucket.close(lease)
            asking = [
                attrs.evolve(
                    ask,
                    in_doubt=ask.lease not in undoubted
                    and (memories[ask.lease] is not None or ask.pair in doubted),
                )
                for ask in asks
                if ask.lease not in known
            ]
            decided = iter(bucket.reserve(asking, now, self._process))
            return _Outcome(
                now=now,
                results=results,
                decisions=[known.get(ask.lease) or next(decided) for ask in asks],
                doubted=frozenset(ask.lease for ask in asking if ask.in_doubt),
                statuses={
                    own_limit: bucket.status(own_limit)
                    for own_limit in {ask.own_limit for ask in asks}
                },
                offset=bucket.offset,
                next_change=bucket.next_change(now),
            )

        return await self._store.transact(self._workspace, pairs, change)

    def _deliver(
        self, waiters: list[_Waiter], outcome: _Outcome, started: float, ahead: float
    ) -> None:
        now = self._loop.time()
        for waiter, decision in zip(waiters, outcome.decisions, strict=True):
            if waiter.future.done():  # cancelled while the transaction was under way
                self._queue.pop(waiter.budget.ticket, None)
                continue
            waiter.spend(now)
            waiter.budget.in_doubt |= waiter.ask.lease in outcome.doubted
            waiter.budget.on_pair_wait(
                isinstance(decision, Wait) and decision.reason is Reason.PAIR
            )
            if not isinstance(decision, Wait):
                self._pause = FIRST_LOOK
            if isinstance(decision, Remembered):
                del self._queue[waiter.budget.ticket]
                waiter.future.set_result(decision)
            elif isinstance(decision, Grant):
                waiter.budget.undoubted = not waiter.budget.in_doubt
                del self._queue[waiter.budget.ticket]
                # From before the transaction, since this process may have been stopped in it; and
                # the lease may be that of an earlier one, whose reply was lost.
                begun = started - (outcome.now - decision.begun)
                deadline = begun + waiter.ask.timeout + LEASE_GRACE
                waiter.future.set_result(Held(decision, deadline, ahead))
            elif decision.reason is Reason.QUOTA:
                until = math.nan if decision.until is None else decision.until - outcome.now
                if waiter.budget.left <= INSTANT or until > waiter.budget.left or until == math.inf:
                    del self._queue[waiter.budget.ticket]
                    waiter.future.set_exception(_exhausted(waiter.ask, decision, outcome))
                else:
                    waiter.waits_since = now

    def _fail(self, error: Exception, operations: list[_Operation], waiters: list[_Waiter]) -> None:
        if not isinstance(error, BrazeSendsError):
            error = StoreError(f"the quota's store failed: {type(error).__name__}")
        now = self._loop.time()
        if self._away_since is None:
            self._away_since = now
        patient = now - self._away_since < LONGEST_OUTAGE
        # A copy for each, since each is told which pair it is about.
        for operation in operations:
            if not operation.future.done():
                operation.future.set_exception(copy(error))
                operation.future.exception()  # seen, should its caller be gone
        for waiter in waiters:
            waits = waiter.waits_since is not None and waiter.budget_left(now) > INSTANT
            if patient and waits and not waiter.future.done():
                continue  # it has time; the store may come back
            self._queue.pop(waiter.budget.ticket, None)
            if not waiter.future.done():
                waiter.future.set_exception(copy(error))

    # --- time ------------------------------------------------------------------------------------

    def _arm(self, delay: float) -> None:
        """One timer for all who wait: the next moment at which one of them may be served."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._queue:
            self._pause = FIRST_LOOK
            return
        now = self._loop.time()
        budget = (waiter.budget_left(now) for waiter in self._queue.values())
        delay = min(delay, LONGEST_SLEEP, *budget)
        if self._store.shared:
            delay = min(delay, self._pause)
        self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._pause = min(2 * self._pause, LAST_LOOK)  # until somebody is served
        self._kick()


def _exhausted(ask: Ask, wait: Wait, outcome: _Outcome) -> QuotaExhaustedError:
    status = outcome.statuses[ask.own_limit]
    until = outcome.next_change if wait.until is None else wait.until
    retry_after = None if until == math.inf else max(0.0, until - outcome.now)
    return QuotaExhaustedError(
        f"no send ID is left within the wait allowed: {status.remaining} of {status.limit} free, "
        f"{status.in_flight} in flight, {status.unconfirmed} unconfirmed, "
        f"headroom {ask.headroom}",
        limit=status.limit,
        remaining=status.remaining,
        resets_at=_utc(status.reset),
        retry_after=retry_after,
    )


def _utc(epoch: float | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC)
