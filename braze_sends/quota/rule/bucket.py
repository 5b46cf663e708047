"""The quota rule: one day's tokens, refilled whole when the window ends, fed by the headers.

**What must hold.** P1: no more is created in a window than its limit, and a workspace that nobody
else uses draws no 429, but for the repeat of an attempt whose answer was lost and for the attempt
that asks whether old doubts were real. P2: every token comes back or is accounted for, and nothing
waits for ever.

The rule in one line: ``free = limit - max(used seen in this window) - open leases - unconfirmed``,
with ``used = limit - remaining`` of the headers, which only grows within a window.

- A *lease* is the right to one create. It is taken before the first byte and closed once. Past its
  *deadline* its owner is taken for dead.
- An *unconfirmed* slot outlives its attempt, which is *in doubt* (a timeout, a reset, a 5xx: Braze
  may have counted it, now or a little later) or *certain* (a success without headers). The slot is
  free when a believed answer must have counted it already, or when the window ends.
- While the state is *unknown* (cold start, new window, after a 429) a *probe* goes first.
- An attempt may go *beyond* what is free, alone, when its answer tells more than is known.

Two clocks. ``now`` is the steady clock of the store, in seconds from any origin: deadlines and the
order of things go by it. Braze's own time is ``now + offset``, corrected by ``Date``; only the
window's end goes by that.

Pure: no clock, no randomness, no I/O. Every transition can be repeated without harm, since a store
may run it twice and a reply of the store may be lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import attrs

from braze_sends.headers import LONGEST_WAIT
from braze_sends.quota.rule.clock import Clock
from braze_sends.quota.rule.gate import SHORTEST_PAUSE, Gate
from braze_sends.quota.rule.history import History
from braze_sends.quota.rule.ledger import NO_LIMIT, Ledger
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reading, Reason, Status, Wait
from braze_sends.quota.rule.share import Share
from braze_sends.quota.rule.window import DAY, RESET_MARGIN, SAME_RESET, Window


@attrs.define(slots=False)
class Bucket(Share, Ledger, Gate, Window, Clock):
    """The state of one workspace's quota, and its transitions.

    The parts know nothing of each other; what concerns two of them is here. One class, since a
    record of it is flat.
    """

    # --- time ------------------------------------------------------------------------------------

    def advance(self, now: float) -> None:
        """Let time pass: dead owners, the window's end, slots that lapse."""
        for name in self.expired(now):
            self._give_up(name, now)
        if self.is_over(self.braze_time(now)):
            self._end_window(now)
        self.end_sighting(self.braze_time(now))
        if self.reset is None:
            self.used = 0  # ``used`` is of a window, and none is known
            if self.unconfirmed:
                # No window is known, so no window's end will free them.
                self.keep_unconfirmed(lambda slot: now < slot.ripe + DAY)

    def _give_up(self, name: str, now: float) -> None:
        lease = self.give_up(name, now)
        if lease is not None:
            self.probe_ended(lease.begun)

    def next_change(self, now: float) -> float:
        """When time alone next changes the state, or what a wait is for; infinite if never."""
        lapse = DAY if self.reset is None else math.inf
        times = [self.blocked_until, self.next_deadline(), self.next_end() - self.offset]
        times += [slot.ripe for slot in self.unconfirmed.values()]
        times += [slot.ripe + lapse for slot in self.unconfirmed.values()]
        return min((time for time in times if time > now), default=math.inf)

    def _end_window(self, now: float) -> None:
        # An attempt that was not yet ripe at the reset may be counted in the new window. Braze's
        # time is known to about two seconds.
        end = (self.reset or 0.0) - self.offset - SAME_RESET
        self.keep_unconfirmed(lambda slot: not slot.asked and slot.ripe > end)
        self.begin_anew()
        self.history = History()
        self.forget_state(now)

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
        share = self.share(process, self.room(), now)
        doubted = self.doubted()
        decisions: list[Grant | Wait] = []
        stop: Wait | None = None
        short: dict[tuple[int, int | None], Wait] = {}
        for ask in asks:
            decision: Grant | Wait | None = None
            passes = self.passes(ask, doubted)
            if not passes:
                decision = stop or short.get((ask.headroom, ask.own_limit))
                if decision is None and share < 1:
                    decision = stop = Wait(Reason.PROBE)  # it is the others' turn
            if decision is None:
                decision = self._decide(ask, now, repeat=ask.pair in doubted)
                if isinstance(decision, Grant):
                    share -= not passes
                elif decision.reason is Reason.PROBE or now < self.blocked_until:
                    stop = decision
                elif decision.reason is Reason.QUOTA:
                    # All that ask for the same stand behind this one. Whoever asks for less, or
                    # has another own_limit, is looked at by itself.
                    short[ask.headroom, ask.own_limit] = decision
            decisions.append(decision)
        # Who only waits for the window's end is not noted: nothing is to be shared, nor written.
        wanted = any(isinstance(one, Grant) or one.reason is Reason.PROBE for one in decisions)
        if process is not None and wanted:
            self.note_presence(process, now)
        return decisions

    def passes(self, ask: Ask, doubted: set[str]) -> bool:
        """Whether a create is decided by itself, whoever stands in front of it.

        Such a create takes no token from those in front: it repeats an attempt in doubt, has its
        lease already, or waits for another create of its pair.
        """
        in_doubt = ask.in_doubt or ask.pair in doubted
        return in_doubt or ask.lease in self.leases or self.holder(ask) is not None

    def _decide(self, ask: Ask, now: float, *, repeat: bool) -> Grant | Wait:
        lease = self.leases.get(ask.lease)
        if lease is not None and lease.attempt == ask.attempt:
            return Grant(lease.begun)  # asked again, because the store's reply was lost
        if lease is not None and lease.attempt is not None:
            # The store failed when the end of the attempt before was to be kept: it is in doubt.
            self._give_up(ask.lease, now)
            lease, repeat = None, ask.pair is not None
        if (holder := self.holder(ask)) is not None:
            return Wait(Reason.PAIR, holder.deadline)
        if now < self.blocked_until:
            self.end(ask.lease)  # not held while it waits: others see the token free
            return Wait(Reason.QUOTA, self.blocked_until)
        asks_unconfirmed = asks_limit = False
        if not repeat:
            if not self.known and self.begun_since(self.unknown_since) >= self.probes:
                return Wait(Reason.PROBE)
            if lease is None and self.free(ask) < 1:
                beyond = self._beyond(ask, now)
                if isinstance(beyond, Wait):
                    return beyond
                asks_unconfirmed, asks_limit = beyond
        self.open(ask, now, asks_unconfirmed=asks_unconfirmed, asks_limit=asks_limit)
        return Grant(now)

    def _beyond(self, ask: Ask, now: float) -> tuple[bool, bool] | Wait:
        """Whether an attempt goes though nothing is free, since its answer tells more than we know.

        Returns:
            whether it asks for the unconfirmed slots, and whether for the limit; else what it
            waits for.
        """
        own_room = self.own_room(ask.own_limit, self.used)
        if self._time_to_ask(ask, now) <= now:
            return True, False
        if own_room > ask.headroom:
            if self.careful:
                self.careful = False
                return False, True
            if self._sighted(ask):
                # The answers that are on their way come first.
                return Wait(Reason.PROBE) if self.leases else (False, True)
            # A limit that is only assumed may be higher than the headroom: an answer tells.
            if self._headroom_unjudged(ask) and not self.leases and self.room() > 0:
                return False, False
        # A pair that may exist is asked for though nothing is left, so that its send is not lost;
        # but not while other leases are open, whose slots it could take.
        if ask.in_doubt and not self.leases and own_room > 0:
            return False, False
        return Wait(Reason.QUOTA, self._free_at(ask, now))

    def free(self, ask: Ask) -> int:
        """Tokens that ``ask`` could take; below 1, none."""
        return min(self.room(), self.own_room(ask.own_limit, self.used)) - ask.headroom

    def room(self) -> int:
        """Tokens that are free, below 1 if none."""
        room = self.limit - self.used - len(self.unconfirmed)
        if (seen := self.sighting) is not None:
            # Not more than is left by the higher limit, if that is ours: others may use it too.
            since = sum(slot.ripe > seen.told for slot in self.unconfirmed.values())
            room = min(room, seen.window.limit - seen.window.used - since)
        return room - len(self.leases)

    def _time_to_ask(self, ask: Ask, now: float) -> float:
        """When an attempt may ask whether the unconfirmed slots that fill the quota are real.

        An attempt may ask when a token would be free if all ripe slots were in vain. No lease may
        be open, since an answer that is on its way tells the same at no cost. The caller's own
        limit is never risked.
        """
        if self.leases or self.own_room(ask.own_limit, self.used) <= ask.headroom:
            return math.inf
        missing = 1 - (self.room() - ask.headroom)
        begins = -math.inf if self.reset is None else self._begins(self.reset)
        ripening = self.in_vain(self.used, self.learned, begins)
        if len(ripening) < missing:
            return math.inf
        return ripening[missing - 1] if missing > 0 else -math.inf

    def _begins(self, reset: float) -> float:
        """When the window that ends at ``reset`` begins at the earliest, on the steady clock."""
        return reset - DAY - self.offset

    def _sighted(self, ask: Ask) -> bool:
        """Whether a limit was sighted that has room, and a create beyond ours would confirm it.

        Only where every slot of our limit is certainly taken, or will be by the open leases:
        otherwise a success would prove nothing.
        """
        seen = self.sighting
        if seen is None:
            return False
        certain = len(self.unconfirmed) - self.doubts() - self.included(self.used, self.learned)
        if self.used + certain + len(self.leases) < self.limit:
            return False
        return seen.window.limit - max(seen.window.used, self.limit) > ask.headroom

    def _headroom_unjudged(self, ask: Ask) -> bool:
        """Whether an answer has to tell first if the headroom leaves anything."""
        seen = self.sighting
        if seen is not None and seen.window.limit - seen.window.used <= ask.headroom:
            return False
        return self.learned == -math.inf and ask.headroom >= self.limit

    def _free_at(self, ask: Ask, now: float) -> float | None:
        """When a token may be free for ``ask``, in the terms of ``Wait.until``."""
        limit = NO_LIMIT if self._headroom_unjudged(ask) or self.sighting else self.limit
        if min(limit, NO_LIMIT if ask.own_limit is None else ask.own_limit) <= ask.headroom:
            return math.inf
        if self.leases:
            return None
        times = [self._time_to_ask(ask, now), self.next_end() - self.offset]
        if self.reset is None:
            missing = 1 - self.free(ask)
            lapsing = sorted(slot.ripe + DAY for slot in self.unconfirmed.values())
            times += lapsing[missing - 1 : missing]
        return min(times)

    # --- answers ---------------------------------------------------------------------------------

    def finish(
        self, ask: Ask, grant: Grant, answer: Answer, now: float, *, keep: bool = False
    ) -> bool:
        """Take in how an attempt ended.

        Args:
            ask: with the attempt's number.
            grant: what allowed it.
            answer: how it ended.
            now: the steady clock.
            keep: whether another attempt of the same create follows on its token.

        Returns:
            whether the headers were believed.
        """
        lease = self.leases.get(ask.lease)
        mine = lease is not None and lease.attempt == ask.attempt
        # The owner may have been stopped past the deadline, and taken for dead: then a slot stands
        # for the attempt.
        slot = self.unconfirmed.pop(f"{ask.lease}.{ask.attempt}", None)
        repeat = ask.pair is not None and any(c.pair == ask.pair for c in self.unconfirmed.values())
        if lease is not None and mine and lease.asks_limit and answer.spent is not None:
            self.limit_asked(answer.window, now, created=answer.spent, refused=answer.refused)
        believed = self._observe(answer, grant.begun, now)
        if mine or slot is not None:
            elsewhere = self._of_ended_window(answer.window, grant.begun, now)
            # A certain slot shows that this very answer was taken in before.
            if answer.spent and not elsewhere and not (slot is not None and slot.certain):
                self.history = self.history.add(ask.campaign, self.braze_time(now))
            if believed:
                self.count(answer, repeat=repeat)
            elif not elsewhere:
                self.note(ask, grant, answer, now)
            self.remember(ask, answer)
        if mine:
            if keep:
                self.rest(ask.lease)
            else:
                self.end(ask.lease)
        if answer.refused:
            asked_unconfirmed = lease is not None and mine and lease.asks_unconfirmed
            self._refused(answer, grant.begun, now, asks=asked_unconfirmed and not believed)
        elif believed or answer.spent:
            self.refusals = 0
        if mine and not believed and not answer.refused:
            self.probe_ended(grant.begun)
        return believed

    def close(self, name: str, undelivered: int | None = None) -> None:
        """Hand back a lease between two attempts; the doubts of its attempts stay.

        A lease whose attempt was not settled is kept until its deadline, and is a doubt then: the
        store may have failed when the attempt's end was to be kept.

        Args:
            name: the lease.
            undelivered: the attempt that it may have been granted for without its owner's knowing.
        """
        lease = self.leases.get(name)
        if lease is not None and lease.attempt in (None, undelivered):
            self.end(name)

    def _refused(self, answer: Answer, begun: float, now: float, *, asks: bool) -> None:
        window = answer.window
        ends = -math.inf if window is None else window.reset - self.offset + RESET_MARGIN
        if window and window.used == window.limit and now < ends <= now + LONGEST_WAIT:
            self.block(ends, now)
            return
        # Either the headers show that another limiter refused, or nothing tells: all back off.
        pause = self.pause(begun) if answer.retry_after is None else answer.retry_after
        if pause is None:
            return
        if asks and not answer.from_edge:
            self.refuse_unconfirmed(begun)
        self.block(now + max(pause, SHORTEST_PAUSE) * (1 + answer.jitter / 10), now)

    def _observe(self, answer: Answer, begun: float, now: float) -> bool:
        """Merge the headers; whether they were believed."""
        window = answer.window
        if answer.date is not None:
            # Whether ``Date`` and the reset both say that our window is over.
            over = (
                self.reset is not None
                and window is not None
                and answer.date >= self.reset
                and window.reset > self.reset + SAME_RESET
            )
            guessed = self.learned == -math.inf
            self.correct(answer.date, begun, now, guessed=guessed, witnessed=over)
        if window is None or not self.is_credible(window, begun, self.braze_time(now)):
            return False
        if window.limit > self.limit and not self.trusting:
            if self.sight(window, now) and answer.spent and self.is_probe(begun):
                self.known = True  # up to our limit, and no further than what is left by this
            return False
        if self.is_other(window.reset):
            if self.reset is not None and window.reset > self.reset:
                self._end_window(now)
            self.count_from(window.reset, SAME_RESET)
        self.believe(window, begun, now)
        self.careful = False
        # An answer to a request from before cannot tell what has been counted since.
        self.known = self.known or self.is_probe(begun)
        if self.unconfirmed:
            self.clear_unconfirmed(begun, self._begins(window.reset))
        return True

    def _of_ended_window(self, window: Reading | None, begun: float, now: float) -> bool:
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
        """Forget what was learnt, never the leases and unconfirmed slots."""
        self.forget_limit()
        self.open_carefully()
        self.forget_state(now)

    def distrust(self, now: float) -> None:
        """Do not believe a state that may be old: a store that was set back has lost what came
        later.

        What it counts is a lower bound from now on, and one request goes first to ask for the rest.
        """
        self.forget_state(now)
        # Any send that Braze counts beyond ours may be one of ours that was lost.
        self.cleared = max(self.cleared, self.limit)

    def status(self, own_limit: int | None = None) -> Status:
        """The numbers to show, under the caller's own ``own_limit``."""
        ask = Ask("", 0, None, 0.0, own_limit=own_limit)
        doubts = self.doubts()
        limit, used, reset = self.limit, self.used, self.reset
        free = self.free(ask)
        if reset is None and self.sighting is not None:
            # Not acted upon before a second answer, but better than nothing to show.
            window = self.sighting.window
            limit, used, reset = window.limit, window.used, window.reset
            free = limit - used - len(self.leases) - doubts
        if own_limit is not None:
            limit, free = min(limit, own_limit), min(free, self.own_room(ask.own_limit, self.used))
        return Status(limit, max(0, free), len(self.leases), doubts, reset, used)
