"""Slots that are taken, or may be, beyond what the headers have told: open leases, and what is
unconfirmed.

All times are on the steady clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush

import attrs

from braze_sends.quota.rule.history import History
from braze_sends.quota.rule.messages import Answer, Ask, Grant

#: More than any limit.
NO_LIMIT = 1 << 62
#: No attempt takes longer, in seconds: a lease that would is damaged.
LONGEST_TIMEOUT = 3600.0
#: The owner of a lease has so many seconds after its attempt's timeout to say how it ended.
LEASE_GRACE = 5.0
#: So many timeouts after an attempt began, Braze is done with it, whatever came of it.
RIPE_TIMEOUTS = 3


@attrs.frozen
class Lease:
    """An open lease; ``attempt`` is ``None`` between two attempts. ``ripe``: see ``Unconfirmed``.

    ``asks_unconfirmed`` and ``asks_limit`` mark an attempt that went beyond what was free: its
    answer tells whether the ripe doubts were real, or whether the limit is as high as was sighted.
    """

    pair: str | None
    attempt: int | None
    begun: float
    deadline: float
    ripe: float
    asks_unconfirmed: bool = False
    asks_limit: bool = False


@attrs.frozen
class Unconfirmed:
    """A slot that may be, or is, spent beyond what the headers have told.

    Attributes:
        pair: the pair that may have been created. The lease's name stands for a send that Braze was
            to name. ``None`` once it is known whether the pair exists.
        begun: when its attempt began.
        ripe: by then Braze has counted the slot, if Braze ever does: a believed answer to a request
            that began at or after ``ripe`` has the slot in its numbers.
        certain: whether it is certainly spent: its attempt succeeded without usable headers.
        asked: whether an attempt that asked for the slot was refused. The slot then stays until the
            window ends.
    """

    pair: str | None
    begun: float
    ripe: float
    certain: bool = False
    asked: bool = False

    @property
    def may_exist(self) -> bool:
        """Whether it may be, or is, a send of its own: one that an own limit has to count."""
        return self.certain or self.pair is not None


@attrs.define(slots=False)
class Ledger:
    """Leases, unconfirmed slots, and what was created through this store.

    Attributes:
        leases: by their names.
        unconfirmed: slots, by the names of their attempts: the lease's name, a dot, the number.
        created: sends created in the window that ends at ``created_reset``.
        cleared: doubts that were cleared in that window, each of which may have been a create.
        history: what was created in the window, to be shown.
        unsettled: pairs that are still in doubt, and for which no slot stands any more. It is not
            part of the state: ``quota/group.py`` moves these pairs to the memory of pairs.
    """

    created: int = 0
    cleared: int = 0
    created_reset: float | None = None
    history: History = attrs.field(factory=History)
    leases: dict[str, Lease] = attrs.field(factory=dict)
    unconfirmed: dict[str, Unconfirmed] = attrs.field(factory=dict)
    unsettled: list[str] = attrs.field(factory=list, init=False, eq=False, repr=False)
    # Indexes of the leases: the lease's name by its pair, and a heap of deadlines. A deadline whose
    # lease has ended, or has another deadline by now, is dropped when its turn comes.
    _holders: dict[str, str] = attrs.field(init=False, eq=False, repr=False)
    _deadlines: list[tuple[float, str]] = attrs.field(init=False, eq=False, repr=False)
    _last_deadline: float = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._holders = {
            lease.pair: name for name, lease in self.leases.items() if lease.pair is not None
        }
        self._deadlines = [(lease.deadline, name) for name, lease in self.leases.items()]
        heapify(self._deadlines)
        self._last_deadline = max((when for when, _ in self._deadlines), default=-math.inf)

    # --- leases ----------------------------------------------------------------------------------

    def open(self, ask: Ask, now: float, *, asks_unconfirmed: bool, asks_limit: bool) -> None:
        """Begin an attempt; its create may have the lease already."""
        lease = Lease(
            pair=ask.pair,
            attempt=ask.attempt,
            begun=now,
            deadline=now + ask.timeout + LEASE_GRACE,
            ripe=now + RIPE_TIMEOUTS * ask.timeout,
            asks_unconfirmed=asks_unconfirmed,
            asks_limit=asks_limit,
        )
        self.leases[ask.lease] = lease
        if ask.pair is not None:
            self._holders[ask.pair] = ask.lease
        heappush(self._deadlines, (lease.deadline, ask.lease))
        self._last_deadline = max(self._last_deadline, lease.deadline)

    def rest(self, name: str) -> None:
        """Keep a lease between two attempts."""
        self.leases[name] = attrs.evolve(self.leases[name], attempt=None)

    def end(self, name: str) -> Lease | None:
        """Take a lease away."""
        lease = self.leases.pop(name, None)
        if lease is not None and lease.pair is not None and self._holders.get(lease.pair) == name:
            del self._holders[lease.pair]
        return lease

    def give_up(self, name: str, now: float) -> Lease | None:
        """End a lease whose owner will not tell how its attempt ended: that attempt is in doubt.

        Returns:
            the lease, if an attempt was under way.
        """
        lease = self.end(name)
        if lease is None or lease.attempt is None:
            return None
        ripe = min(lease.ripe, now + RIPE_TIMEOUTS * LONGEST_TIMEOUT)
        self.unconfirmed[f"{name}.{lease.attempt}"] = Unconfirmed(
            lease.pair or name, lease.begun, ripe
        )
        return lease

    def expired(self, now: float) -> list[str]:
        """The leases whose owners are taken for dead."""
        latest = now + LONGEST_TIMEOUT + LEASE_GRACE
        if self._last_deadline > latest:  # a record is damaged
            self._last_deadline = latest
            return [
                name for name, lease in self.leases.items() if not now < lease.deadline <= latest
            ]
        names = []
        while self.next_deadline() <= now:
            names.append(heappop(self._deadlines)[1])
        return names

    def next_deadline(self) -> float:
        """When the next lease expires; infinite if none is open."""
        while self._deadlines:
            deadline, name = self._deadlines[0]
            lease = self.leases.get(name)
            if lease is not None and lease.deadline == deadline:
                return deadline
            heappop(self._deadlines)
        return math.inf

    def holder(self, ask: Ask) -> Lease | None:
        """The lease of another create of the same pair."""
        name = None if ask.pair is None else self._holders.get(ask.pair)
        return None if name is None or name == ask.lease else self.leases[name]

    def begun_since(self, then: float) -> int:
        """How many attempts that are under way began at ``then`` or later."""
        return sum(
            lease.attempt is not None and lease.begun >= then for lease in self.leases.values()
        )

    # --- unconfirmed slots -----------------------------------------------------------------------

    def note(self, ask: Ask, grant: Grant, answer: Answer, now: float) -> None:
        """Note a slot for an attempt that its headers do not count, if it may be spent."""
        name = f"{ask.lease}.{ask.attempt}"
        if answer.spent is True:
            # An earlier attempt may have created it, and ``used`` may include that already.
            begun = min(
                (c.begun for c in self.unconfirmed.values() if ask.pair and c.pair == ask.pair),
                default=grant.begun,
            )
            self.unconfirmed[name] = Unconfirmed(ask.pair, begun, ripe=now, certain=True)
        elif answer.spent is None:
            # One that Braze was to name cannot be asked for, but may exist all the same.
            pair = (ask.pair or ask.lease) if answer.in_doubt else None
            ripe = grant.begun + RIPE_TIMEOUTS * ask.timeout
            self.unconfirmed[name] = Unconfirmed(pair, grant.begun, ripe)

    def remember(self, ask: Ask, answer: Answer) -> None:
        """A pair in doubt is to be remembered, unless a slot stands for it."""
        noted = f"{ask.lease}.{ask.attempt}" in self.unconfirmed
        if answer.in_doubt and not noted and ask.pair is not None:
            self.unsettled.append(ask.pair)

    def doubted(self) -> set[str]:
        """The pairs that may have been created."""
        if not self.unconfirmed:
            return set()
        pairs = {slot.pair for slot in self.unconfirmed.values() if not slot.certain}
        return {pair for pair in pairs if pair is not None}

    def doubts(self) -> int:
        """How many slots are in doubt."""
        return sum(not slot.certain for slot in self.unconfirmed.values())

    def settle_pair(self, pair: str) -> None:
        """A pair exists: what is open for it stays, and is about the quota alone.

        Without this, a doubt of it that is cleared later would put it in doubt again.
        """
        for name, slot in self.unconfirmed.items():
            if slot.pair == pair:
                self.unconfirmed[name] = attrs.evolve(slot, pair=None)
        holder = self._holders.pop(pair, None)
        if holder is not None:
            self.leases[holder] = attrs.evolve(self.leases[holder], pair=None)

    def keep_unconfirmed(self, wanted: Callable[[Unconfirmed], bool]) -> None:
        """Drop the slots that are not ``wanted``. The pairs that they leave in doubt become
        ``unsettled``."""
        for name, slot in list(self.unconfirmed.items()):
            if not wanted(slot):
                del self.unconfirmed[name]
                nameless = slot.pair == name.rpartition(".")[0]  # nobody can ask for it again
                if slot.pair is not None and not slot.certain and not nameless:
                    self.unsettled.append(slot.pair)

    def clear_unconfirmed(self, begun: float, window_begins: float) -> None:
        """A believed answer came to a request begun at ``begun``: it has counted what was ripe."""
        for slot in self.unconfirmed.values():
            if begun >= slot.ripe > window_begins:
                ours = slot.certain and slot.begun > window_begins
                self.created += ours
                self.cleared += slot.may_exist and not ours
        self.keep_unconfirmed(lambda slot: begun < slot.ripe)

    def refuse_unconfirmed(self, begun: float) -> None:
        """The attempt that asked was refused: what was ripe is taken until the window ends."""
        for name, slot in self.unconfirmed.items():
            if slot.ripe <= begun:
                self.unconfirmed[name] = attrs.evolve(slot, asked=True)

    def in_vain(self, used: int, learned: float, window_begins: float) -> list[float]:
        """When each slot ripens that may be kept in vain, the first one first.

        A doubt may be kept in vain. So may a success without headers, if ``used`` includes it
        already, or if its first attempt may have been counted before this window began.
        """
        certain, others = list[float](), list[float]()
        for slot in self.unconfirmed.values():
            if not slot.asked:
                ours = slot.certain and slot.begun > window_begins
                (certain if ours else others).append(slot.ripe)
        return sorted(others + sorted(certain)[: self.included(used, learned)])

    def included(self, used: int, learned: float) -> int:
        """How many successes without headers ``used`` may include.

        Only those that began before ``learned``, when the last believed answer was taken in. And
        only as many as ``used`` exceeds ``created``, in which they are not counted yet.
        """
        before = sum(
            slot.certain and not slot.asked and slot.begun < learned
            for slot in self.unconfirmed.values()
        )
        return max(0, min(before, used - self.created))

    # --- the caller's own limit ------------------------------------------------------------------

    def count(self, answer: Answer, *, repeat: bool) -> None:
        """Count what an attempt with believed headers has created.

        A ``repeat`` counts as a cleared doubt: an earlier attempt may have created the send, in
        whatever window.
        """
        self.created += answer.spent is True and not repeat
        self.cleared += answer.in_doubt or (answer.spent is True and repeat)

    def own_room(self, own_limit: int | None, counted: int) -> int:
        """What is left of the caller's own limit; ``counted`` are the sends that headers count."""
        if own_limit is None:
            return NO_LIMIT
        # A cleared doubt may have been a create, and a create may have been counted in the window
        # before; but no more were than the headers count.
        made = min(self.created + self.cleared, counted)
        return (
            own_limit
            - made
            - len(self.leases)
            - sum(c.may_exist for c in self.unconfirmed.values())
        )

    def count_from(self, reset: float, same: float) -> None:
        """A believed answer names the window that ends at ``reset``.

        The counts begin anew if that is more than ``same`` seconds after the end of the window that
        was counted.
        """
        if self.created_reset is None or reset > self.created_reset + same:
            self.created = self.cleared = 0
        self.created_reset = reset
