"""The way to the store: who waits for the quota in this process, and when to look again.

**What must hold.** A create that is granted a lease gets the lease or gives the lease back,
wherever cancellation strikes. A doubt never replaces what is known of a pair. A waiter is woken by
each event that could serve the waiter: an answer, a lease's deadline, the window's end. The end of
its budget wakes it too. No transaction is interrupted: a transaction runs in a task that no caller
owns, or without suspending. Its operations can be repeated without harm. A wait for quota outlives
a store that is away for a moment.

A *waiter* is a create that asks for a lease. Waiters that ask for the same stand in one *line*.
Only the *front* of a line goes into a transaction: nobody behind the front can be served before it.
A *fresh* waiter, wherever it stands, is looked up in one transaction, since its pair may exist
already. Waiters whose pairs are in doubt may *pass* others: they stand in lines of their own, and
such a line goes into a transaction whole.

A transaction starts in one of two places. While nobody waits and the store is this process's
memory, ``_in_place`` runs it within the call. Else ``_kick`` sees to it that one runs with all that
has gathered: in place for memory, by ``_commit`` in a task for a store that suspends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import random
import typing
import uuid
from collections.abc import Callable, Collection
from copy import copy
from datetime import UTC, datetime
from typing import TypeVar
from weakref import WeakValueDictionary

from braze_sends.errors import BrazeSendsError, QuotaExhaustedError, StoreError
from braze_sends.listeners import Audience
from braze_sends.models import QuotaStatus
from braze_sends.quota.group import Group, Operation, Outcome, alone
from braze_sends.quota.line import Held, Line, WaitBudget, Waiter
from braze_sends.quota.rule.history import History
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reason, Status, Wait
from braze_sends.stores.memory import MemoryStore
from braze_sends.stores.store import Remembered, Store, Transaction, steady

if typing.TYPE_CHECKING:
    from braze_sends.quota.reports import QuotaReports

T = TypeVar("T")

#: On a shared store another process may free a slot, and nobody tells this one. So the limiter
#: looks again: first after ``FIRST_LOOK`` seconds, then after ever longer, at most ``LAST_LOOK``.
FIRST_LOOK, LAST_LOOK = 0.25, 5.0
#: A store may be away for so long, in seconds. Then the waits for quota end.
LONGEST_OUTAGE = 60.0
#: The longest sleep, in seconds: asyncio's clock may stand still while the host sleeps, and the
#: store's does not.
LONGEST_SLEEP = 60.0
#: Keeps processes from asking in the same instant when a window ends, in seconds.
JITTER = 0.1

_limiters: WeakValueDictionary[tuple[int, int, str], Limiter] = WeakValueDictionary()


class Limiter:
    """The quota of one workspace, as the tasks of one event loop see it.

    Clients that share a store and a workspace share the limiter too: all stand in the same lines.

    Attributes:
        audience: those who are told of the quota and the store.
    """

    def __init__(self, store: Store, workspace: str, loop: asyncio.AbstractEventLoop) -> None:
        self._store = store
        # A class derived from ``MemoryStore`` may do something else in ``transact``.
        self._run_in_place = store.run if type(store) is MemoryStore else None
        self._workspace = workspace
        self._loop = loop
        self._process = uuid.uuid4().hex[:8] if store.shared else None
        # The waiters, by their tickets. Those in ``_for_pair`` stand in no line: each waits for the
        # end of another create of its pair. ``_look_at_pairs``: all of them go into the next
        # transaction.
        self._lines: dict[tuple[int, int | None, bool], Line] = {}
        self._fresh: dict[int, Waiter] = {}
        self._for_pair: dict[int, Waiter] = {}
        self._look_at_pairs = False
        # The tokens that the last transaction left free. Less its headroom, they tell how many
        # waiters are the front of a line.
        self._room = 1
        # What goes into the next transaction, and whether one is wanted.
        self._operations: list[Operation] = []
        self._look_again = False
        # The task of the transactions that may suspend; loop time since which they fail.
        self._committing: asyncio.Task[None] | None = None
        self._away_since: float | None = None
        # The timer, and after how many seconds it looks again on a shared store.
        self._timer: asyncio.TimerHandle | None = None
        self._pause = FIRST_LOOK
        self.audience = Audience()

    @classmethod
    def of(cls, store: Store, workspace: str) -> Limiter:
        """The limiter of ``workspace`` in ``store`` for the running loop."""
        loop = asyncio.get_running_loop()
        key = (id(store), id(loop), workspace)  # the limiter holds both, so the ids stay theirs
        limiter = _limiters.get(key)
        if limiter is None:
            limiter = _limiters[key] = cls(store, workspace, loop)
        return limiter

    @staticmethod
    def clock_moved(store: Store) -> None:
        """Let every create that waits on ``store`` look again, since its clock was moved.

        Can be called from any thread.
        """
        # A list, since other threads may begin to use the store meanwhile.
        for limiter in filter(None, [reference() for reference in _limiters.valuerefs()]):
            limiter.look_again(store)

    def look_again(self, store: Store) -> None:
        """Look soon who can be served, if this is the limiter's store. From any thread."""
        if self._store is store:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
                self._loop.call_soon_threadsafe(self._look)

    @functools.cached_property
    def _reports(self) -> QuotaReports:
        # Imported when something is told, since most programs listen to nothing.
        from braze_sends.quota.reports import QuotaReports

        return QuotaReports(self.audience, self._workspace)

    async def acquire(self, ask: Ask, budget: WaitBudget) -> Held | Remembered:
        """Wait for the right to make an attempt.

        Returns:
            a lease, or what is remembered of the pair, if it exists already.

        Raises:
            QuotaExhaustedError: the wait is, or would be, longer than ``budget`` allows.
            StoreError: the store cannot be used.
        """
        waiter = Waiter(ask, budget)
        if self._idle and (served := self._serve(waiter)) is not None:
            return served
        waiter.future = self._loop.create_future()
        self._join(waiter, passing=False, now=self._loop.time())
        self._fresh[budget.ticket] = waiter
        self._kick()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._leave(waiter, self._loop.time())
            if not waiter.future.cancelled():
                waiter.future.exception()  # nobody reads it: asyncio shall not log it
            # A transaction may have granted the lease meanwhile: the next one gives it back.
            with contextlib.suppress(StoreError):
                await self._operate(
                    lambda transaction: transaction.bucket.close(ask.lease, ask.attempt), ask.pair
                )
            raise
        finally:
            if waiter.waits_since is not None:
                budget.on_wait(self._loop.time() - waiter.waits_since)

    async def finish(
        self,
        ask: Ask,
        grant: Grant,
        answer: Answer,
        *,
        created: Remembered | None = None,
        keep: bool = False,
    ) -> None:
        """Take in how an attempt ended, and remember what was ``created``, in one step.

        The step can be repeated without harm. It takes place even if the caller is cancelled
        meanwhile.

        Raises:
            StoreError: the store cannot be used.
        """

        def settle(transaction: Transaction) -> bool:
            believed = transaction.bucket.finish(ask, grant, answer, transaction.now, keep=keep)
            if ask.pair is None:
                return believed
            if created is not None:
                transaction.pairs[ask.pair] = created
            memory = transaction.pairs.get(ask.pair)
            if memory is not None and memory.send_id is not None:
                transaction.bucket.settle_pair(ask.pair)
            return believed

        believed = await self._operate(settle, ask.pair)
        if answer.window is not None and not believed and self.audience.want(logging.DEBUG):
            self._reports.headers_not_believed(answer.window)

    async def close(self, ask: Ask) -> None:
        """Hand back the lease of a create that makes no further attempt."""
        await self._operate(lambda transaction: transaction.bucket.close(ask.lease), ask.pair)

    async def recall(self, pair: str) -> Remembered | None:
        """What the store remembers of a pair, ``None`` unless the pair is known to exist.

        Raises:
            StoreError: the store cannot be used.
        """
        memory: Remembered | None = await self._operate(
            lambda transaction: transaction.pairs.get(pair), pair
        )
        return memory if memory is not None and memory.send_id is not None else None

    async def status(self, own_limit: int | None) -> QuotaStatus:
        """The quota as the store knows it, under the caller's ``own_limit``.

        Raises:
            StoreError: the store cannot be used.
        """

        def look(transaction: Transaction) -> tuple[Status, History, float]:
            bucket = transaction.bucket
            return bucket.status(own_limit), bucket.history, bucket.braze_time(transaction.now)

        status, history, braze_now = await self._operate(look)
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
        await self._operate(lambda transaction: transaction.bucket.forget(transaction.now))

    @property
    def waiting(self) -> list[int]:
        """The tickets of those who wait, the first one first."""
        waiting = [*self._for_pair]
        for line in self._lines.values():
            waiting += line.waiters
        return sorted(waiting)

    async def drain(self) -> None:
        """Wait until nothing is on its way to the store."""
        while self._committing is not None:
            await asyncio.wait([self._committing])

    # --- in place, while nobody waits ------------------------------------------------------------

    @property
    def _idle(self) -> bool:
        return self._run_in_place is not None and not self._lines and not self._for_pair

    def _serve(self, waiter: Waiter) -> Held | Remembered | None:
        """Serve a create at once.

        ``None`` if the create has to wait, or if the store fails. The create then joins a line, and
        the same transaction runs again: its outcome places the create, or its error is told.
        """
        started, ask = self._loop.time(), waiter.ask
        ahead = steady() - started
        group = Group([waiter], process=self._process, started=started, ahead=ahead)
        pairs = () if ask.pair is None else (ask.pair,)
        try:
            outcome = self._in_place(pairs, group.change)
        except Exception:
            return None
        waiter.budget.in_doubt |= ask.lease in outcome.doubted
        decision = outcome.decisions[ask.lease]
        return None if isinstance(decision, Wait) else group.served(waiter, decision, outcome)

    # --- who waits -------------------------------------------------------------------------------

    def _join(self, waiter: Waiter, *, passing: bool, now: float) -> None:
        # Waiters whose pairs are in doubt may pass others: they stand in a line of their own.
        key = waiter.ask.headroom, waiter.ask.own_limit, passing
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key)
        line.join(waiter, now)

    def _leave(self, waiter: Waiter, now: float) -> None:
        """Take a waiter from where it waits: from its line, or from those who wait for a pair."""
        ticket = waiter.budget.ticket
        self._fresh.pop(ticket, None)
        if self._for_pair.pop(ticket, None) is not None:
            waiter.budget.on_pair_wait(False)
        if (line := waiter.line) is not None:
            line.leave(waiter, now)
            if not line.waiters:
                del self._lines[line.key]

    def _gather(self) -> Group:
        """What goes into the next transaction."""
        self._look_again = False
        operations, self._operations = self._operations, []
        fresh, self._fresh = self._fresh, {}
        front: dict[int, Waiter] = {}
        if self._for_pair:
            pairs = {operation.pair for operation in operations}
            front = {
                ticket: waiter
                for ticket, waiter in self._for_pair.items()
                if self._look_at_pairs or waiter.ask.pair in pairs
            }
            self._look_at_pairs = False
        for line in self._lines.values():
            # A waiter that may pass is served whoever stands before it, so all of its line go.
            headroom, _, passing = line.key
            most = len(line.waiters) if passing else max(1, self._room - headroom)
            front |= itertools.islice(line.waiters.items(), most)
        started = self._loop.time()
        return Group(
            operations=operations,
            front=[front[ticket] for ticket in sorted(front)],
            behind=[waiter for ticket, waiter in fresh.items() if ticket not in front],
            fresh=fresh,
            process=self._process,
            pairs_wait=len(self._for_pair) > 0,
            started=started,
            ahead=steady() - started,
        )

    # --- transactions ----------------------------------------------------------------------------

    async def _operate(self, change: Callable[[Transaction], T], pair: str | None = None) -> T:
        if self._idle:
            pairs = () if pair is None else (pair,)
            try:
                return self._in_place(pairs, alone(change))
            except Exception as error:
                raise _told(error) from None
        operation = Operation(change, pair, self._loop.create_future())
        self._operations.append(operation)
        self._kick()
        result: T = await operation.future
        return result

    def _kick(self) -> None:
        """See to it that a transaction takes place with what has gathered."""
        self._look_again = True
        if self._committing is not None:
            return
        if self._run_in_place is None:
            self._committing = self._loop.create_task(self._commit())
            self._committing.add_done_callback(self._committed)
            return
        while self._look_again:
            group = self._gather()
            try:
                outcome = self._in_place(group.pairs, group.change)
            except Exception as error:  # nobody may be left waiting
                self._fail(error, group)
            else:
                self._deliver(outcome, group)

    def _in_place(self, pairs: Collection[str], change: Callable[[Transaction], T]) -> T:
        """One transaction of a store that never suspends."""
        assert self._run_in_place is not None  # noqa: S101  # whoever calls this has looked
        if not self.audience.want(logging.INFO):  # the highest level of what is told
            return self._run_in_place(self._workspace, pairs, change)
        watch, started = self._reports.watch(change), self._loop.time()
        result = self._run_in_place(self._workspace, pairs, watch)
        self._reports.transaction(watch, self._loop.time() - started)
        return result

    async def _transact(self, pairs: Collection[str], change: Callable[[Transaction], T]) -> T:
        """One transaction of a store that may suspend."""
        if not self.audience.want(logging.INFO):  # the highest level of what is told
            return await self._store.transact(self._workspace, pairs, change)
        watch, started = self._reports.watch(change), self._loop.time()
        result = await self._store.transact(self._workspace, pairs, watch)
        self._reports.transaction(watch, self._loop.time() - started)
        return result

    def _committed(self, task: asyncio.Task[None]) -> None:
        self._committing = None
        # The end of a loop cancels every task, also this one; those who still wait need another.
        if self._look_again:
            self._kick()

    async def _commit(self) -> None:
        while self._look_again:
            group = self._gather()
            try:
                outcome = await self._transact(group.pairs, group.change)
            except asyncio.CancelledError:
                self._operations = group.operations + self._operations
                self._fresh = group.fresh | self._fresh
                self._look_again = self._look_at_pairs = True
                raise
            except Exception as error:  # whatever a store raises, nobody may be left waiting
                self._fail(error, group)
            else:
                self._deliver(outcome, group)

    def _deliver(self, outcome: Outcome, group: Group) -> None:
        """Give the operations their results, and the waiters what was decided."""
        now = self._loop.time()
        if self._away_since is not None:
            self._reports.store_recovered(now - self._away_since)
        self._away_since, self._room = None, outcome.room
        for operation, result in zip(group.operations, outcome.results, strict=True):
            if not operation.future.done():
                operation.future.set_result(result)
        heads: dict[Line, Wait] = {}  # of each line, what its first waiter waits for
        for waiter in (*group.front, *group.behind):
            lease, budget = waiter.ask.lease, waiter.budget
            decision = outcome.decisions.get(lease)
            if waiter.future.done():  # cancelled while the transaction was under way
                self._leave(waiter, now)
                continue
            budget.in_doubt |= lease in outcome.doubted
            if isinstance(decision, Wait):
                self._place(waiter, decision, lease in outcome.passing, now)
                if waiter.line is not None:
                    heads.setdefault(waiter.line, decision)
            elif decision is not None:
                self._leave(waiter, now)
                self._pause = FIRST_LOOK
                waiter.future.set_result(group.served(waiter, decision, outcome))
        looked_up = {waiter.budget.ticket for waiter in (*group.front, *group.behind)}
        for line, wait in heads.items():
            self._wait(line, wait, outcome, looked_up, now)
        if any(line not in heads for line in self._lines.values()):
            self._look_again = True  # the whole front of a line was served: others follow
        for waiter in (*group.front, *group.behind):
            if waiter.waits_since is None and not waiter.future.done():
                waiter.waits_since = now
                waiter.budget.on_wait(None)
        self._arm(outcome.next_change - outcome.now + random.uniform(0, JITTER))

    def _place(self, waiter: Waiter, wait: Wait, passing: bool, now: float) -> None:
        """Put a waiter that has to wait into its line, or among those who wait for a pair."""
        ticket, ask = waiter.budget.ticket, waiter.ask
        if wait.reason is Reason.PAIR:
            if waiter.line is not None:
                self._leave(waiter, now)
                self._for_pair[ticket] = waiter
                waiter.budget.on_pair_wait(True)
            return
        line = self._lines.get((ask.headroom, ask.own_limit, passing))
        if waiter.line is None or waiter.line is not line:
            self._leave(waiter, now)
            self._join(waiter, passing=passing, now=now)

    def _wait(
        self, line: Line, wait: Wait, outcome: Outcome, looked_up: set[int], now: float
    ) -> None:
        """Let a whole line wait as its first waiter does; refuse those whose budgets do not last.

        A waiter that was not in this transaction is looked up in the next one before it is refused:
        another process may have created its pair.
        """
        line.count(wait.reason is Reason.QUOTA, now)
        if wait.reason is not Reason.QUOTA:
            return
        within = 0.0 if wait.until is None else wait.until - outcome.now
        for waiter in list(line.spent(within, now)):
            ticket = waiter.budget.ticket
            if ticket not in looked_up:
                line.await_end(waiter)
                self._fresh[ticket] = waiter
                self._look_again = True
                continue
            self._leave(waiter, now)
            waiter.future.set_exception(_exhausted(waiter.ask, wait, outcome))

    def _fail(self, error: Exception, group: Group) -> None:
        error, now = _told(error), self._loop.time()
        if self._away_since is None:
            self._away_since = now
        self._reports.store_failed(error)
        patient = now - self._away_since < LONGEST_OUTAGE
        # Each gets a copy, since each create writes its own pair into the error.
        for operation in group.operations:
            if not operation.future.done():
                operation.future.set_exception(copy(error))
                operation.future.exception()  # its caller may be gone: asyncio shall not log it
        failed = [*group.fresh.values(), *self._for_pair.values()]
        for line in self._lines.values():
            # Waiters for quota go on waiting while their budgets last: the store may come back.
            waits = patient and line.counting is not None
            failed += line.spent(0.0, now) if waits else line.waiters.values()
        for waiter in failed:
            self._leave(waiter, now)
            if not waiter.future.done():
                waiter.future.set_exception(copy(error))
        self._arm(self._pause)

    # --- time ------------------------------------------------------------------------------------

    def _arm(self, delay: float) -> None:
        """Set the one timer of all waiters: to when one may be served, or when a budget ends.

        Args:
            delay: seconds until something changes by itself.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines and not self._for_pair:
            self._pause = FIRST_LOOK
            return
        now = self._loop.time()
        ends = (
            line.first_end()[0] - line.meter(now)
            for line in self._lines.values()
            if line.counting is not None
        )
        delay = min(delay, LONGEST_SLEEP, *ends)
        if self._store.shared:
            delay = min(delay, self._pause)
        self._timer = self._loop.call_later(max(0.0, delay), self._look)

    def _look(self) -> None:
        self._pause = min(2 * self._pause, LAST_LOOK)  # until somebody is served
        self._look_at_pairs = True
        self._kick()


def _told(error: Exception) -> BrazeSendsError:
    """What callers are told of an error that a store raised."""
    if isinstance(error, BrazeSendsError):
        return error
    return StoreError(
        f"the quota's store raised {type(error).__name__}, which is no StoreError; test "
        "the store with braze_sends.testing.store_conformance"
    )


def _exhausted(ask: Ask, wait: Wait, outcome: Outcome) -> QuotaExhaustedError:
    """The refusal of a waiter whose budget does not last until a slot is free."""
    status = outcome.statuses[ask.own_limit]
    until = outcome.next_change if wait.until is None else wait.until
    retry_after = None if until == math.inf else max(0.0, until - outcome.now)
    return QuotaExhaustedError(
        f"no send ID is left within the wait allowed: {status.remaining} of {status.limit} free, "
        f"{status.used} used, {status.in_flight} in flight, {status.unconfirmed} unconfirmed, "
        f"headroom {ask.headroom}",
        limit=status.limit,
        remaining=status.remaining,
        resets_at=_utc(status.reset),
        retry_after=retry_after,
    )


def _utc(epoch: float | None) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC)
