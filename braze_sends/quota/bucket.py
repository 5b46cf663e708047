"""The quota rule: one day's tokens, refilled whole when the window ends, fed by the headers.

**What must hold.** P1: no more is created in a window than its limit, and a workspace that nobody
else uses draws no 429, but for the repeat of an attempt whose answer was lost and for the canary
that asks whether old doubts were real. P2: every token comes back or is accounted for, and nothing
waits for ever.

The rule in one line: ``free = limit - max(used seen in this window) - open leases - charges``,
with ``used = limit - remaining`` of the headers, which only grows within a window.

- A *lease* is the right to one create. It is taken before the first byte and closed once. Past its
  *deadline* its owner is taken for dead.
- A *charge* outlives its attempt: a *doubt* (timeout, reset, 5xx: Braze may have counted it, now or
  a little later) or a *certain* one (a success without headers). It goes when a believed answer
  must have counted it already, or when the window ends.
- While the state is *unknown* (cold start, new window, after a 429) a *canary* goes first.

Two clocks. ``now`` is the steady clock of the store, in seconds from any origin: deadlines and the
order of things go by it. Braze's own time is ``now + offset``, corrected by ``Date``; only the
window's end goes by that.

Pure: no clock, no randomness, no I/O. Every transition can be repeated without harm, since a store
may run it twice and a reply of the store may be lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import Enum

import attrs

from braze_sends.headers import LONGEST_WAIT
from braze_sends.quota.tally import Tally

#: https://www.braze.com/docs/api/endpoints/messaging/send_messages/post_create_send_ids/
ASSUMED_LIMIT = 100
DAY = 86_400.0
#: More than any limit.
NO_CAP = 1 << 62
#: No attempt takes longer, in seconds: a lease that would is damaged.
LONGEST_TIMEOUT = 3600.0
#: Past its attempt's timeout, what a lease is allowed for its owner to say how it ended.
LEASE_GRACE = 5.0
#: So many timeouts after an attempt began, Braze is done with it, whatever came of it.
RIPE_TIMEOUTS = 3
#: The reset second itself can still be refused.
RESET_MARGIN = 1.0
#: Resets this close are the same window: the headers have whole seconds.
SAME_RESET = 2.0
#: A window with less than this left may have ended already, by the clock of whoever answered.
CLOSING = 5.0
#: A ``Date`` further than this from what we hold needs a second witness.
ODD_DATE = 2.0
#: A process that asked within so many seconds has its share of what is free, see ``reserve``.
PRESENT = 10.0
#: The first pause after a 429 that does not say how long, and the longest; doubled in between.
#: Two seconds, so that a window that opens six seconds late draws two refusals and not eight.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 64.0


class Reason(Enum):
    """What a create waits for."""

    QUOTA = "quota"  #: a token, or the end of a block: counts as a wait for quota
    CANARY = "canary"  #: the attempt that asks for the state: bounded by one attempt's timeout
    PAIR = "pair"  #: the same pair is under way elsewhere: bounded by its lease


@attrs.frozen
class Ask:
    """One create that wants to make an attempt.

    Attributes:
        lease: the lease's ID, made by the client, the same for all attempts of one create.
        attempt: 1 for the first attempt.
        pair: names the pair to create; ``None`` if Braze is to name the send.
        timeout: seconds that the attempt may take.
        headroom: slots to leave untouched.
        cap: the caller's own limit a window, or ``None``.
        in_doubt: whether an attempt for the pair was in doubt once, though its charge may be gone.
        campaign: what it is counted under, once it is created.
    """

    lease: str
    attempt: int
    pair: str | None
    timeout: float
    headroom: int = 0
    cap: int | None = None
    in_doubt: bool = False
    campaign: str = ""


@attrs.frozen
class Grant:
    """Go: ``begun`` is when, on the steady clock."""

    begun: float


@attrs.frozen
class Wait:
    """Not now. ``until`` is the earliest time at which that changes, ``None`` if any moment may,
    and infinite if never."""

    reason: Reason
    until: float | None = None


@attrs.frozen
class Window:
    """What the rate-limit headers of one answer say; ``reset`` in Braze's epoch seconds."""

    limit: int
    used: int
    reset: float


@attrs.frozen
class Answer:
    """How an attempt ended, as far as the quota is concerned.

    Attributes:
        spent: whether Braze counted it: ``True``, ``False``, or ``None`` for unknown.
        in_doubt: whether it may have created its pair, so that a repeat creates nothing new.
        window: the rate-limit headers, or ``None`` without usable ones.
        date: the answer's ``Date``, epoch seconds, or ``None``.
        refused: whether it was a 429.
        from_edge: whether something before Braze gave it.
        retry_after: seconds that the answer asks to wait, or ``None``.
        jitter: 0 to 1, drawn by the caller.
    """

    spent: bool | None
    in_doubt: bool = False
    window: Window | None = None
    date: float | None = None
    refused: bool = False
    from_edge: bool = False
    retry_after: float | None = None
    jitter: float = 0.0


@attrs.frozen
class Lease:
    """An open lease; ``attempt`` is ``None`` between two attempts.

    ``asks_charges`` and ``asks_limit`` mark a probe, which goes though nothing is free: its answer
    tells whether the ripe doubts were real, or whether the limit is as high as was sighted.
    """

    pair: str | None
    attempt: int | None
    begun: float
    deadline: float
    ripe: float
    asks_charges: bool = False
    asks_limit: bool = False


@attrs.frozen
class Charge:
    """A slot that may be, or is, spent beyond what the headers have told.

    Attributes:
        pair: what may have been created; ``None`` if that is known by now.
        begun: when its attempt did.
        ripe: a believed answer to a request begun at or after this has counted it, if ever it is
            counted.
        certain: a success without headers.
        asked: a canary for it was refused: it stays until the window ends.
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


@attrs.frozen
class Status:
    """The numbers to show. ``reset`` is in Braze's epoch seconds."""

    limit: int
    remaining: int
    in_flight: int
    unconfirmed: int
    reset: float | None
    used: int


@attrs.frozen
class Rumour:
    """The sighting of a limit higher than ours.

    Attributes:
        window: what the answers said, the one that counted most.
        seen: when the first of them came.
        told: when that one came.
    """

    window: Window
    seen: float
    told: float = math.inf


@attrs.define
class Bucket:
    """The state of one workspace's quota, and its transitions.

    Attributes:
        offset: Braze's epoch seconds minus the steady clock.
        reset: when the window ends, Braze's epoch seconds; ``None`` until a believed answer came.
        known: whether the state is good enough for more than a canary.
        learned: when the last believed answer was taken in.
        unknown_since: attempts begun before this are no canaries.
        canaries: how many attempts may be out while the state is unknown.
        created: sends created through this store in the window that ends at ``created_reset``.
        cleared: doubts cleared in it, each of which may have been a create.
        refusals: 429s in a row that did not say how long to wait.
        rumour: a limit higher than ours that headers show. No header alone raises the limit, since
            it may be another bucket's: https://www.braze.com/docs/api/api_limits/ has one of
            250,000 an hour. A create beyond the old limit that succeeds does.
        dismissed: a limit that was sighted, but a create beyond ours was refused, by no bucket that
            has this limit. It is not believed for a day, or until the window ends.
        odd_offset: what one ``Date`` said that is far from our clock; a second has to agree.
        careful: one request may go though nothing is left, since the quota was to be forgotten.
        trusting: the next answer's limit is ours, since the quota was to be forgotten.
        present: the processes that share the store and want tokens, and when each asked last.
        tally: what was created through this store in the window, to be shown.
        unsettled: pairs whose doubts were cleared without an answer; whoever keeps the state
            remembers them. Not part of it.
    """

    offset: float
    limit: int = ASSUMED_LIMIT
    used: int = 0
    reset: float | None = None
    known: bool = False
    learned: float = -math.inf
    unknown_since: float = -math.inf
    canaries: int = 1
    blocked_until: float = -math.inf
    refusals: int = 0
    created: int = 0
    cleared: int = 0
    created_reset: float | None = None
    rumour: Rumour | None = None
    odd_offset: float | None = None
    careful: bool = False
    trusting: bool = False
    dismissed: int = 0
    dismissed_until: float = -math.inf
    present: dict[str, float] = attrs.field(factory=dict)
    tally: Tally = attrs.field(factory=Tally)
    leases: dict[str, Lease] = attrs.field(factory=dict)
    charges: dict[str, Charge] = attrs.field(factory=dict)
    unsettled: list[str] = attrs.field(factory=list, init=False, eq=False)

    def copy(self) -> Bucket:
        """The same state, to be changed on its own."""
        return attrs.evolve(
            self,
            leases=dict(self.leases),
            charges=dict(self.charges),
            present=dict(self.present),
        )

    # --- time ------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Let time pass: dead owners, the window's end, charges that lapse."""
        for name, lease in list(self.leases.items()):
            if not now < lease.deadline <= now + LONGEST_TIMEOUT + LEASE_GRACE:
                self._give_up(name, now)
        if self.reset is not None and now + self.offset >= self.reset + RESET_MARGIN:
            self._end_window(self.reset, now)
        seen = self.rumour
        if seen is not None and now + self.offset >= seen.window.reset + RESET_MARGIN:
            self.rumour = None
        if self.reset is None:
            self.used = 0  # of no window
            # No window is known, so no window's end will free them.
            self._keep_charges(lambda charge: now < charge.ripe + DAY)

    def _give_up(self, name: str, now: float) -> None:
        """End a lease whose attempt, if one is under way, will not be told of: it is in doubt."""
        lease = self.leases.pop(name)
        if lease.attempt is not None:
            ripe = min(lease.ripe, now + RIPE_TIMEOUTS * LONGEST_TIMEOUT)
            self.charges[f"{name}.{lease.attempt}"] = Charge(lease.pair or name, lease.begun, ripe)
            self._canary_ended(lease.begun)

    def next_change(self, now: float) -> float:
        """When ``advance`` or the waiting next changes by itself; infinite if never."""
        times = [self.blocked_until, *(lease.deadline for lease in self.leases.values())]
        times += [charge.ripe for charge in self.charges.values()]
        if self.reset is not None:
            times.append(self.reset - self.offset + RESET_MARGIN)
        else:
            times += [charge.ripe + DAY for charge in self.charges.values()]
        if self.rumour is not None:
            times.append(self.rumour.window.reset - self.offset + RESET_MARGIN)
        return min((time for time in times if time > now), default=math.inf)

    def _end_window(self, reset: float, now: float) -> None:
        # An attempt that was not yet ripe at the reset may be counted in the new window. Braze's
        # time is known to about two seconds.
        end = reset - self.offset - SAME_RESET
        self._keep_charges(lambda charge: not charge.asked and charge.ripe > end)
        self.reset = None
        self.created = self.cleared = self.dismissed = 0
        self.rumour = None
        self.tally = Tally()
        self._forget_state(now)

    def _forget_state(self, now: float) -> None:
        self.known, self.unknown_since, self.canaries = False, now, 1

    # --- asking ----------------------------------------------------------------------------------

    def reserve(
        self, asks: Iterable[Ask], now: float, process: str | None = None
    ) -> list[Grant | Wait]:
        """Answer those who wait, in their order; ``advance`` comes first.

        First come, first served, and only one that asks with less headroom may pass another. A
        repeat of an attempt in doubt needs no token, since it creates nothing new, and passes.

        Args:
            asks: those who wait in one process.
            now: the steady clock.
            process: names the process, where others share the store: while others want tokens, it
                takes no more at a time than its share of what is free.
        """
        share = self._share(process, now)
        holders = {lease.pair: name for name, lease in self.leases.items()}
        holders.pop(None, None)
        doubted = self.doubted()
        decisions: list[Grant | Wait] = []
        stop: Wait | None = None
        short: dict[tuple[int, int | None], Wait] = {}
        for ask in asks:
            repeat = ask.pair in doubted
            special = repeat or ask.in_doubt or ask.lease in self.leases or ask.pair in holders
            decision: Grant | Wait | None = None
            if not special:
                decision = stop or short.get((ask.headroom, ask.cap))
                if decision is None and share < 1:
                    decision = stop = Wait(Reason.CANARY)  # it is the others' turn
            if decision is None:
                holder = holders.get(ask.pair) if ask.pair is not None else None
                decision = self._decide(ask, now, repeat, holder)
                if isinstance(decision, Grant):
                    share -= not special
                    if ask.pair is not None:
                        holders[ask.pair] = ask.lease
                elif decision.reason is Reason.CANARY or now < self.blocked_until:
                    stop = decision
                elif decision.reason is Reason.QUOTA:
                    # All that ask for the same stand behind this one. Whoever asks for less, or
                    # has another cap, is looked at by itself.
                    short[ask.headroom, ask.cap] = decision
            decisions.append(decision)
        if process is not None:
            self._note_presence(process, decisions, now)
        return decisions

    def _share(self, process: str | None, now: float) -> float:
        """How many tokens a process may take at a time."""
        others = sum(
            name != process and now - asked < PRESENT for name, asked in self.present.items()
        )
        if process is None or not others:
            return math.inf
        return max(1, math.ceil(self._room() / (1 + others)))

    def _note_presence(self, process: str, decisions: list[Grant | Wait], now: float) -> None:
        # Not who waits for the window's end: then nothing is to be shared, nor written.
        wants = any(
            isinstance(decision, Grant) or decision.reason is Reason.CANARY
            for decision in decisions
        )
        if wants and now - self.present.get(process, -math.inf) > PRESENT / 2:
            self.present = {
                name: asked for name, asked in self.present.items() if now - asked < PRESENT
            } | {process: now}

    def doubted(self) -> set[str]:
        """The pairs that may have been created."""
        pairs = {charge.pair for charge in self.charges.values() if not charge.certain}
        return {pair for pair in pairs if pair is not None}

    def settle_pair(self, pair: str) -> None:
        """A pair exists: what is open for it stays, and is about the quota alone.

        Without this, a doubt of it that is cleared later would put it in doubt again.
        """
        for name, charge in self.charges.items():
            if charge.pair == pair:
                self.charges[name] = attrs.evolve(charge, pair=None)
        for name, lease in self.leases.items():
            if lease.pair == pair:
                self.leases[name] = attrs.evolve(lease, pair=None)

    def _decide(self, ask: Ask, now: float, repeat: bool, holder: str | None) -> Grant | Wait:
        lease = self.leases.get(ask.lease)
        if lease is not None and lease.attempt == ask.attempt:
            return Grant(lease.begun)  # asked again, because the store's reply was lost
        if lease is not None and lease.attempt is not None:
            # How the attempt before ended could not be kept: the store had failed.
            self._give_up(ask.lease, now)
            lease, repeat = None, ask.pair is not None
        if holder is not None and holder != ask.lease and holder in self.leases:
            return Wait(Reason.PAIR, self.leases[holder].deadline)
        if now < self.blocked_until:
            self.leases.pop(ask.lease, None)  # not held while it waits: others see the token free
            return Wait(Reason.QUOTA, self.blocked_until)
        asks_charges = asks_limit = False
        if not repeat:
            if not self.known and self._canaries_out() >= self.canaries:
                return Wait(Reason.CANARY)
            if lease is None and self.free(ask) < 1:
                asks_charges = self._time_for_canary(ask, now) <= now
                # One that may exist is asked for though nothing is left, so that it is not lost;
                # but not while others are out, whose slot it could take.
                lost = ask.in_doubt and not self.leases and self._own_room(ask) > 0
                capped = self._own_room(ask) <= ask.headroom
                careful = self.careful and not capped
                # A limit that is only assumed may be higher than the headroom: an answer tells.
                alone = not self.leases and self._room() > 0
                asks_assumed = self._headroom_unjudged(ask) and alone and not capped
                asks_limit = not asks_charges and self._sighted(ask)
                if asks_limit and self.leases:
                    return Wait(Reason.CANARY)  # the answers that are on their way come first
                if not (asks_charges or lost or careful or asks_assumed or asks_limit):
                    return Wait(Reason.QUOTA, self._free_at(ask, now))
                asks_limit = asks_limit or careful
                self.careful = self.careful and not careful
        self.leases[ask.lease] = Lease(
            pair=ask.pair,
            attempt=ask.attempt,
            begun=now,
            deadline=now + ask.timeout + LEASE_GRACE,
            ripe=now + RIPE_TIMEOUTS * ask.timeout,
            asks_charges=asks_charges,
            asks_limit=asks_limit,
        )
        return Grant(now)

    def free(self, ask: Ask) -> int:
        """Tokens that ``ask`` could take; below 1, none."""
        return min(self._room(), self._own_room(ask)) - ask.headroom

    def _room(self) -> int:
        room = self.limit - self.used - len(self.charges)
        if (seen := self.rumour) is not None:
            # Not more than is left by the higher limit, if that is ours: others may use it too.
            since = sum(charge.ripe > seen.told for charge in self.charges.values())
            room = min(room, seen.window.limit - seen.window.used - since)
        return room - len(self.leases)

    def _own_room(self, ask: Ask) -> int:
        if ask.cap is None:
            return NO_CAP
        # A cleared doubt may have been a create, and a create may have been counted in the window
        # before; but no more were than the headers count.
        made = self.created + self.cleared
        if self.reset is not None:
            made = min(made, self.used)
        open_ = len(self.leases) + sum(charge.may_exist for charge in self.charges.values())
        return ask.cap - made - open_

    def _time_for_canary(self, ask: Ask, now: float) -> float:
        """When a canary may ask whether the charges that fill the quota are real.

        That is when, if all that are ripe were in vain, there would be a token; and nothing may be
        open, since an answer that is on its way tells the same for nothing. The caller's own cap is
        never risked.
        """
        missing = 1 - (self._room() - ask.headroom)
        ripening = self._in_vain()
        if self.leases or len(ripening) < missing or self._own_room(ask) <= ask.headroom:
            return math.inf
        return ripening[missing - 1] if missing > 0 else -math.inf

    def _in_vain(self) -> list[float]:
        """When each charge ripens that may be one too many, the first one first.

        A doubt may be, and a success without headers that ``used`` includes already.
        """
        charges = [charge for charge in self.charges.values() if not charge.asked]
        certain = sorted(charge.ripe for charge in charges if charge.certain)
        doubts = [charge.ripe for charge in charges if not charge.certain]
        return sorted(doubts + certain[: self._included()])

    def _included(self) -> int:
        """How many successes without headers ``used`` may include: those from before the last
        believed answer, and no more than ``used`` exceeds what has told its headers."""
        before = sum(
            charge.certain and not charge.asked and charge.begun < self.learned
            for charge in self.charges.values()
        )
        return max(0, min(before, self.used - self.created))

    def _sighted(self, ask: Ask) -> bool:
        """Whether a limit was sighted that has room, and a create beyond ours would confirm it.

        Only where every slot of ours is certainly taken, or will be by those that are under way:
        else a success would show nothing.
        """
        seen = self.rumour
        if seen is None or self._own_room(ask) <= ask.headroom:
            return False
        certain = sum(charge.certain for charge in self.charges.values())
        if self.used + certain - self._included() + len(self.leases) < self.limit:
            return False
        return seen.window.limit - max(seen.window.used, self.limit) > ask.headroom

    def _headroom_unjudged(self, ask: Ask) -> bool:
        """Whether an answer has to tell first if the headroom leaves anything."""
        seen = self.rumour
        if seen is not None and seen.window.limit - seen.window.used <= ask.headroom:
            return False
        return self.learned == -math.inf and ask.headroom >= self.limit

    def _free_at(self, ask: Ask, now: float) -> float | None:
        limit = NO_CAP if self._headroom_unjudged(ask) or self.rumour else self.limit
        if min(limit, NO_CAP if ask.cap is None else ask.cap) <= ask.headroom:
            return math.inf
        if self.leases:
            return None
        times = [self._time_for_canary(ask, now)]
        if self.reset is not None:
            times.append(self.reset - self.offset + RESET_MARGIN)
        else:
            missing = 1 - self.free(ask)
            lapsing = sorted(charge.ripe + DAY for charge in self.charges.values())
            times += lapsing[missing - 1 : missing]
        if self.rumour is not None:
            times.append(self.rumour.window.reset - self.offset + RESET_MARGIN)
        return min(times)

    def _canaries_out(self) -> int:
        return sum(
            lease.attempt is not None and lease.begun >= self.unknown_since
            for lease in self.leases.values()
        )

    # --- answers ---------------------------------------------------------------------------------

    def finish(
        self, ask: Ask, grant: Grant, answer: Answer, now: float, *, keep: bool = False
    ) -> None:
        """Take in how an attempt ended.

        Args:
            ask: with the attempt's number.
            grant: what allowed it.
            keep: whether another attempt of the same create follows on its token.
        """
        name = f"{ask.lease}.{ask.attempt}"
        lease = self.leases.get(ask.lease)
        mine = lease is not None and lease.attempt == ask.attempt
        asked_charges = lease is not None and mine and lease.asks_charges
        asked_limit = lease is not None and mine and lease.asks_limit
        # Its owner may have been stopped past the deadline, and taken for dead.
        charge = self.charges.pop(name, None)
        late = charge is not None
        repeat = ask.pair is not None and any(c.pair == ask.pair for c in self.charges.values())
        if asked_limit and answer.spent is not None:
            self._limit_asked(answer, now)
        believed = self._observe(answer, grant.begun, now)
        if mine or late:
            # A certain charge is this very answer's, taken in before.
            counted = charge is not None and charge.certain
            there = self._of_ended_window(answer.window, grant.begun, now)
            if answer.spent and not counted and not there:
                self.tally = self.tally.add(ask.campaign, now + self.offset)
            ripe = grant.begun + RIPE_TIMEOUTS * ask.timeout
            if believed:
                # An earlier attempt may have created it, in whatever window.
                self.created += answer.spent is True and not repeat
                self.cleared += answer.in_doubt or (answer.spent is True and repeat)
            elif there:
                pass
            elif answer.spent is True:
                # An earlier attempt may have created it, and ``used`` may include that already.
                begun = min(
                    (c.begun for c in self.charges.values() if ask.pair and c.pair == ask.pair),
                    default=grant.begun,
                )
                self.charges[name] = Charge(ask.pair, begun, ripe=now, certain=True)
            elif answer.spent is None:
                # One that Braze was to name cannot be asked for, but may exist all the same.
                pair = (ask.pair or ask.lease) if answer.in_doubt else None
                self.charges[name] = Charge(pair, grant.begun, ripe)
            if answer.in_doubt and name not in self.charges and ask.pair is not None:
                self.unsettled.append(ask.pair)
        if lease is not None and mine:
            if keep:
                self.leases[ask.lease] = attrs.evolve(lease, attempt=None)
            else:
                del self.leases[ask.lease]
        if answer.refused:
            self._refused(answer, believed, grant.begun, now, asked_charges)
        elif believed or answer.spent:
            self.refusals = 0
        if not believed and not answer.refused and mine:
            self._canary_ended(grant.begun)

    def _limit_asked(self, answer: Answer, now: float) -> None:
        """Take in how a create beyond our limit ended: it confirms a higher one, or dismisses it.

        The sighting of that very answer counts: the quota may have been forgotten before it.
        """
        window, seen = answer.window, self.rumour
        higher = window if window is not None and window.limit > self.limit else None
        if higher is None and seen is not None:
            higher = seen.window
        if higher is None:
            return
        if answer.spent or (window is higher and higher.used == higher.limit):
            self.limit, self.rumour = higher.limit, None  # or that bucket itself has refused
        elif answer.refused:
            self.dismissed, self.dismissed_until, self.rumour = higher.limit, now + DAY, None

    def close(self, name: str, undelivered: int | None = None) -> None:
        """Give up a lease between two attempts; the doubts of its attempts stay.

        A lease whose attempt was not settled is kept until its deadline, and is a doubt then: the
        store may have failed when the attempt's end was to be kept.

        Args:
            name: the lease.
            undelivered: the attempt that it may have been granted for without its owner's knowing.
        """
        lease = self.leases.get(name)
        if lease is not None and lease.attempt in (None, undelivered):
            del self.leases[name]

    def _canary_ended(self, begun: float) -> None:
        # Without headers: twice as many may ask, so that a hanging pair, a dead process or a
        # vendor without headers does not hold up the rest.
        if not self.known and begun >= self.unknown_since:
            self.canaries = min(2 * self.canaries, 1 << 20)

    def _refused(
        self, answer: Answer, believed: bool, begun: float, now: float, asked_charges: bool
    ) -> None:
        window = answer.window
        ends = -math.inf if window is None else window.reset - self.offset + RESET_MARGIN
        if window and window.used == window.limit and now < ends <= now + LONGEST_WAIT:
            until = ends
        else:
            # Another limiter's, by its own headers, or nothing that tells: all back off.
            pause = answer.retry_after
            if pause is None and begun < self.unknown_since:
                return  # one of a burst; its first 429 has made everybody back off
            if pause is None:
                pause = min(FIRST_PAUSE * 2**self.refusals, LONGEST_PAUSE)
                self.refusals = min(self.refusals + 1, 16)
            until = now + max(pause, RESET_MARGIN) * (1 + answer.jitter / 10)
            if asked_charges and not believed and not answer.from_edge:
                for name, charge in self.charges.items():
                    if charge.ripe <= begun:
                        self.charges[name] = attrs.evolve(charge, asked=True)
        self.blocked_until = max(self.blocked_until, until)
        self._forget_state(now)

    def _observe(self, answer: Answer, begun: float, now: float) -> bool:
        """Merge the headers; whether they were believed."""
        window = answer.window
        if answer.date is not None:
            self._correct_clock(answer.date, window, begun, now)
        if window is None or not self._is_ours(window, begun, now):
            return False
        if window.limit > self.limit and not self.trusting:
            self._sight(answer, window, begun, now)
            return False
        if self.reset is None or abs(window.reset - self.reset) > SAME_RESET:
            if self.reset is not None and window.reset > self.reset:
                self._end_window(self.reset, now)
            self.limit, self.used, self.reset = window.limit, window.used, window.reset
            if self.created_reset is None or window.reset > self.created_reset + SAME_RESET:
                self.created = self.cleared = 0
            self.created_reset = window.reset
        else:
            # Within a window ``used`` only grows, so a higher one is a later truth.
            if begun >= self.learned or window.used > self.used:
                self.limit = window.limit
            self.used = max(self.used, window.used)
        self.learned = now
        if self.rumour is not None and begun >= self.rumour.seen:
            self.rumour = None  # a later answer names our limit
        self.careful = self.trusting = False
        # An answer to a request from before cannot tell what has been counted since.
        self.known = self.known or begun >= self.unknown_since
        window_begins = window.reset - DAY - self.offset  # at the earliest
        for charge in self.charges.values():
            if begun >= charge.ripe > window_begins:
                sure = charge.certain and charge.begun > window_begins
                self.created += sure
                self.cleared += charge.may_exist and not sure
        self._keep_charges(lambda charge: begun < charge.ripe)
        return True

    def _is_ours(self, window: Window, begun: float, now: float) -> bool:
        """Whether the headers are of a window that has not ended, and not of another bucket."""
        braze_now = now + self.offset
        if not braze_now - RESET_MARGIN < window.reset <= braze_now + LONGEST_WAIT:
            return False
        if self.reset is not None and window.reset > self.reset + SAME_RESET:
            # Windows are fixed: while ours is still ahead, a later one is another bucket's, or a
            # proxy's clock. A lower limit tells that *ours* was: the daily bucket is the small one.
            return braze_now > self.reset - CLOSING or window.limit < self.limit
        if self.reset is not None and window.reset < self.reset - SAME_RESET:
            # An earlier reset is an old window's, or another bucket's, unless the request began
            # after all that we know: then ours was wrong.
            return begun >= self.learned and window.limit == self.limit
        return True

    def _sight(self, answer: Answer, window: Window, begun: float, now: float) -> None:
        """Note a limit higher than ours, unless a create beyond ours was refused already."""
        if window.limit == self.dismissed and now < self.dismissed_until:
            return
        seen = self.rumour
        if seen is None or seen.window.limit != window.limit:
            self.rumour = Rumour(window, now, now)
        else:
            later = window.reset - seen.window.reset
            if later > SAME_RESET or (later >= -SAME_RESET and window.used > seen.window.used):
                self.rumour = Rumour(window, seen.seen, now)
        if answer.spent and begun >= self.unknown_since:
            self.known = True  # up to our limit, and no further than what is left by this answer

    def _correct_clock(self, date: float, window: Window | None, begun: float, now: float) -> None:
        # Date has whole seconds and was written between ``begun`` and ``now``. Outside of what
        # that allows, the lower bound: a window must not be thought over too early.
        low, high = date - now, date + 1.0 - begun
        if low <= self.offset <= high:
            self.odd_offset = None
            return
        # The clock of a proxy, or this host slept. The same answer's reset is a second witness if
        # both say that our window is over; else a second answer has to agree.
        over = (
            self.reset is not None
            and window is not None
            and date >= self.reset
            and window.reset > self.reset + SAME_RESET
        )
        far = self.learned > -math.inf and abs(low - self.offset) > ODD_DATE
        agrees = self.odd_offset is not None and abs(low - self.odd_offset) <= ODD_DATE
        if far and not over and not agrees:
            self.odd_offset = low
            return
        self.offset, self.odd_offset = low, None

    def _of_ended_window(self, window: Window | None, begun: float, now: float) -> bool:
        """Whether an attempt was counted in a window that had not ended when it began.

        One that began later is ours to count: where Braze opens a window some seconds late, no more
        would be charged until it does.
        """
        if window is None or window.limit != self.limit:
            return False
        ended = window.reset + RESET_MARGIN - self.offset
        return begun < ended <= now

    # --- looking ---------------------------------------------------------------------------------

    def forget(self, now: float) -> None:
        """Forget what was learnt, never the leases and charges."""
        # ``used`` stays, since no raise lowers it.
        self.limit, self.learned, self.blocked_until = ASSUMED_LIMIT, -math.inf, -math.inf
        self.refusals, self.rumour, self.dismissed = 0, None, 0
        self.careful = self.trusting = True
        self._forget_state(now)

    def status(self, cap: int | None = None) -> Status:
        """The numbers to show, under the caller's own ``cap``."""
        doubts = sum(not charge.certain for charge in self.charges.values())
        limit, used, reset = self.limit, self.used, self.reset
        free = self.free(Ask("", 0, None, 0.0, cap=cap))
        if reset is None and self.rumour is not None:
            # Not acted upon before a second answer, but better than nothing to show.
            window = self.rumour.window
            limit, used, reset = window.limit, window.used, window.reset
            free = limit - used - len(self.leases) - doubts
        if cap is not None:
            limit, free = min(limit, cap), min(free, self._own_room(Ask("", 0, None, 0.0, cap=cap)))
        return Status(limit, max(0, free), len(self.leases), doubts, reset, used)

    def _keep_charges(self, wanted: Callable[[Charge], bool]) -> None:
        for name, charge in list(self.charges.items()):
            if not wanted(charge):
                del self.charges[name]
                if charge.pair is not None and not charge.certain:
                    self.unsettled.append(charge.pair)
