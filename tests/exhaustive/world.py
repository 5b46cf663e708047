"""A few creates, two clients and Braze as one value, and every step that can come next.

The clients use the rule as the limiter does. Each step of a client is one transaction: it advances
the bucket, changes it, and then answers all who wait in that client.

Time stands still while steps are taken, and then jumps to the next moment at which something can
change. Within a moment the transactions come one after the other: each adds a tick to the time, so
that "begun before" and "answered after" are never a tie. Braze's clock and the store's agree.

*Invariants*, looked at in every step:

- There are no more 429s than excused attempts. Excused are the repeat of a pair that may exist, and
  a probe that goes beyond what is free because an unknown outcome is ripe. An excused attempt may
  take the slot of another one, which then draws the 429.
- Nothing else is granted beyond what is free.
- No more is created in a window than the clients' own limit.
- No pair is under way twice.
- ``used`` is never above the limit. There are no more leases than creates under way, and no more
  unconfirmed slots than unknown outcomes.
- Nobody waits while nothing is under way, all unknown outcomes are ripe and Braze has a slot.
- Whoever waits is looked at again: something is under way, or the bucket names a time.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attrs

from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reading

#: What the rule promises, in seconds, written down once more: a lease lasts for a timeout and 5 s,
#: Braze is done with a request after three timeouts, and its clock is known to 2 s.
TIMEOUT, LEASE, RIPE, KNOWN_TO = 10.0, 15.0, 30.0, 2.0
#: A window is over a second after its reset.
MARGIN = 1.0
#: In one window an unconfirmed slot can ripen, unless its attempt begins late in it. Seconds.
WINDOW, LATE = 40.0, 25.0
#: One transaction. A power of two, so that sums of times are exact.
TICK = 2.0**-20
#: A create's attempts at most.
ATTEMPTS = 3

Step = tuple[str, ...]


class ViolationError(Exception):
    """An invariant does not hold."""


@attrs.frozen
class Scope:
    """What is walked.

    Attributes:
        creates: the client, 0 or 1, and the pair of each create. Two clients may want the same
            pair. Under the pair ``""`` Braze names the send.
        limit: slots of a window.
        assumed: what the clients take for it at first; the limit, if it is 0.
        own_limit: the clients' own limit.
        counts: what costs a slot at Braze, ``"pairs"`` or ``"requests"``.
        windows: how many windows there are.
    """

    creates: tuple[tuple[int, str], ...]
    limit: int = 2
    assumed: int = 0
    own_limit: int | None = None
    counts: str = "pairs"
    windows: int = 2


class Create(NamedTuple):
    """One call of a user.

    Attributes:
        phase: idle, waits, out, backoff or done.
        life: calls for the same pair before this one.
        number: of its attempt.
        doubt: what the limiter knows of the pair: ``""`` at first, "none" when a lease was granted
            without a doubt, "some" when the pair may exist.
        kept_until: when the lease ends that it keeps between two attempts.
    """

    phase: str = "idle"
    life: int = 0
    number: int = 1
    doubt: str = ""
    kept_until: float = 0.0


class Reply(NamedTuple):
    """What Braze has answered, with the headers of that moment."""

    status: int
    used: int
    reset: float


class Attempt(NamedTuple):
    """A request that is under way, or whose outcome still matters.

    Attributes:
        owner: "waits"; "stopped", which waits past its timeout; "dead"; "unknown", which was told
            that nobody knows; "bare", which was told of a success without headers.
        begun: on the steady clock; of a bare success, so that it is ripe when it is told.
        slow: whether time has passed since it began.
        may_arrive: whether Braze may still get it.
    """

    create: int
    life: int
    number: int
    begun: float
    excused: bool
    owner: str = "waits"
    slow: bool = False
    may_arrive: bool = True
    reply: Reply | None = None

    @property
    def name(self) -> str:
        return f"{lease_of(self.create, self.life)}.{self.number}"

    @property
    def due(self) -> float:
        """The moment of its timeout."""
        return math.floor(self.begun) + TIMEOUT

    @property
    def ripe(self) -> float:
        """The moment from which on it cannot be counted any more."""
        return math.floor(self.begun) + RIPE


def copied(bucket: Bucket) -> Bucket:
    """The same state, to be changed on its own."""
    return attrs.evolve(
        bucket,
        leases=dict(bucket.leases),
        unconfirmed=dict(bucket.unconfirmed),
        present=dict(bucket.present),
    )


@attrs.define(eq=False)
class World:
    """One state. ``steps`` names what can come next, and ``do`` does it.

    Attributes:
        moment: seconds since the first window began.
        tick: transactions so far.
        memory: for each pair, whether it is known or in doubt.
        exists: pairs that Braze has.
        used: slots taken in Braze's window.
        made: pairs created in it.
        refused: whether a 429 was told in it, or since a window's end was known.
        credit: excused attempts less 429s.
        dead_until: when the last lease of a killed client has ended.
        fresh: for each client, whether it has looked since the bucket changed.
        told: collects what happens, in words, if it is a list.
    """

    scope: Scope
    bucket: Bucket
    creates: tuple[Create, ...]
    attempts: tuple[Attempt, ...] = ()
    moment: float = 0.0
    tick: int = 0
    memory: dict[str, str] = attrs.field(factory=dict)
    exists: frozenset[str] = frozenset()
    used: int = 0
    made: int = 0
    refused: bool = False
    credit: int = 0
    dead_until: float = 0.0
    fresh: tuple[bool, bool] = (True, True)
    told: list[str] | None = None

    @classmethod
    def begin(cls, scope: Scope) -> World:
        bucket = Bucket(offset=0.0, limit=scope.assumed or scope.limit)
        return cls(scope, bucket, (Create(),) * len(scope.creates))

    def copy(self) -> World:
        return World(
            self.scope,
            copied(self.bucket),
            self.creates,
            self.attempts,
            self.moment,
            self.tick,
            self.memory.copy(),
            self.exists,
            self.used,
            self.made,
            self.refused,
            self.credit,
            self.dead_until,
            self.fresh,
            self.told,
        )

    @property
    def now(self) -> float:
        return self.moment + self.tick * TICK

    # --- what can come next ----------------------------------------------------------------------

    def steps(self) -> Iterator[tuple[Step, int]]:
        """The possible steps, each with the number of faults that it takes."""
        alike = set()
        busy = {0: False, 1: False}
        for n, (create, (client, _)) in enumerate(
            zip(self.creates, self.scope.creates, strict=True)
        ):
            busy[client] |= create.phase in {"waits", "out", "backoff"}
            kind = self._kind(n)
            if create.phase == "backoff" or (create.phase == "idle" and kind not in alike):
                yield ("ask", str(n)), 0
            if create.phase == "idle":
                alike.add(kind)  # of idle ones that are alike, the first asks first
            elif create.phase in {"waits", "backoff"}:
                yield ("cancel", str(n)), 1
        for client, is_busy in busy.items():
            if not self.fresh[client] and self._waiting(client):
                yield ("look", str(client)), 0
            if is_busy:
                yield ("kill", str(client)), 1
        for attempt in self.attempts:
            if attempt.reply is None and attempt.may_arrive:
                yield ("arrive", attempt.name), 0
            if attempt.owner in {"waits", "stopped"}:
                yield from self._ends(attempt)
        slow = self._slow()
        if slow is not None:
            yield ("wait",), slow

    def _ends(self, attempt: Attempt) -> Iterator[tuple[Step, int]]:
        name, due = attempt.name, attempt.due <= self.moment
        if attempt.reply is not None:
            yield ("tell", name, "full"), 0
            yield ("tell", name, "bare"), 1
        if due and attempt.owner == "waits":
            yield ("stop", name), 1
        if attempt.reply is None or attempt.reply.status == 201:
            kinds = ["unknown"]
            if not due:
                kinds += ["5xx"] if attempt.reply else ["5xx", "unsent"]
            for kind in kinds:
                named = self.scope.creates[attempt.create][1] != ""
                repeated = attempt.number < ATTEMPTS and (named or kind == "unsent")
                for then in ("again", "end") if repeated else ("end",):
                    yield ("tell", name, kind, then), 0 if due else 1

    def _slow(self) -> int | None:
        """The faults that it takes to let time pass, or ``None`` if something comes first."""
        slow = 0
        for attempt in self.attempts:
            if attempt.owner == "waits":
                if attempt.due <= self.moment:
                    return None
                slow += not attempt.slow
        for client in (0, 1):
            if not self.fresh[client] and self._waiting(client):
                return None
        return slow + sum(create.phase == "backoff" for create in self.creates)

    def _waiting(self, client: int) -> list[int]:
        return [
            n
            for n, create in enumerate(self.creates)
            if create.phase == "waits" and self.scope.creates[n][0] == client
        ]

    def _kind(self, n: int) -> tuple[int, str, int]:
        """What is the same for creates that are alike while they are idle."""
        client, pair = self.scope.creates[n]
        shared = sum(pair == other for _, other in self.scope.creates) > 1
        return client, pair if shared or not pair or self.creates[n].life else "?", pair == ""

    # --- steps -----------------------------------------------------------------------------------

    def do(self, step: Step) -> None:
        """Take a step.

        Raises:
            ViolationError: an invariant does not hold.
        """
        kind, *rest = step
        if kind == "wait":
            self._wait()
        elif kind == "look":
            self.say("client {} looks again", rest[0])
            self._transact(int(rest[0]))
        elif kind == "kill":
            self._kill(int(rest[0]))
        elif kind in {"ask", "cancel"}:
            n = int(rest[0])
            client, pair = self.scope.creates[n]
            self.say("client {} {}s create {} of pair {!r}", client, kind, n, pair)
            lease = lease_of(n, self.creates[n].life)
            self._set(n, phase="waits" if kind == "ask" else "done")
            self._transact(client, None if kind == "ask" else lambda b, _: b.close(lease))
        else:
            attempt = next(a for a in self.attempts if a.name == rest[0])
            if kind == "arrive":
                self._arrive(attempt)
            elif kind == "stop":
                self.say("the owner of {} is stopped", rest[0])
                self._replace(attempt, attempt._replace(owner="stopped"))
            else:
                self._tell(attempt, rest[1], again="again" in rest)

    def _arrive(self, attempt: Attempt) -> None:
        """Braze handles a request."""
        pair = self.scope.creates[attempt.create][1]
        new = pair not in self.exists
        status = 201
        if new or self.scope.counts == "requests":
            if self.used >= self.scope.limit:
                status = 429
                self.credit -= 1
            else:
                self.used += 1
                self.made += new
                self.exists |= {pair} - {""}
        reply = Reply(status, self.used, self._reset())
        # Of an answer that nobody waits for, nothing is left.
        heard = attempt.owner in {"waits", "stopped"}
        self._replace(attempt, attempt._replace(reply=reply if heard else None, may_arrive=False))
        self.say("{} arrives: {}, used {}", attempt.name, status, self.used)
        if self.credit < 0:
            raise ViolationError(f"{attempt.name} draws a 429")
        if self.scope.own_limit is not None and self.made > self.scope.own_limit:
            raise ViolationError(
                f"{self.made} are created under an own limit of {self.scope.own_limit}"
            )

    def _tell(self, attempt: Attempt, kind: str, *, again: bool) -> None:
        """A client learns how its attempt ended."""
        n, reply = attempt.create, attempt.reply
        client, pair = self.scope.creates[n]
        unknown = kind in {"unknown", "5xx"}
        refused = not unknown and reply is not None and reply.status == 429
        made = not unknown and reply is not None and not refused
        window = None
        if kind in {"full", "5xx"}:
            # An error that comes before the request is handled has the headers of now.
            used, reset = (reply.used, reply.reset) if reply else (self.used, self._reset())
            window = Reading(self.scope.limit, used, reset)
        answer = Answer(
            spent=True if made else None if unknown else False,
            in_doubt=unknown,
            window=window,
            refused=refused,
        )
        self.say("client {} is told of {}: {}{}", client, attempt.name, kind, " (again)" * again)
        if made and pair:
            self.memory[pair] = "known"
        ask = ask_of(self.scope, n, self.creates[n], False)
        known = self.memory.get(pair) == "known"

        def finish(bucket: Bucket, now: float) -> None:
            bucket.finish(ask, Grant(attempt.begun), answer, now, keep=again)
            if known and (made or unknown):
                bucket.settle_pair(pair)

        believed = window is not None and window.reset > self.moment
        if believed or refused or kind == "unsent":
            left = None
        elif made:
            begun = self.now + TICK - RIPE
            left = attempt._replace(owner="bare", begun=begun, slow=False, reply=None)
        else:
            may_arrive = attempt.may_arrive and kind != "5xx"
            left = attempt._replace(owner="unknown", slow=False, reply=None, may_arrive=may_arrive)
        self._replace(attempt, left)
        if believed:
            self._forget(lambda other: other.begun + RIPE <= attempt.begun)
        create = self.creates[n]
        doubt = "some" if unknown else create.doubt
        if refused or again:
            phase, until = (
                ("waits", 0.0) if refused else ("backoff", math.floor(attempt.begun) + LEASE)
            )
            create = Create(phase, create.life, attempt.number + 1, doubt, until)
        elif unknown and pair:
            create = Create("idle", create.life + 1)  # it may be asked for anew
        else:
            create = Create("done")
        self.creates = (*self.creates[:n], create, *self.creates[n + 1 :])
        self.refused |= refused
        self._transact(client, finish)

    def _kill(self, client: int) -> None:
        self.say("client {} is killed, and begins anew", client)
        for n, create in enumerate(self.creates):
            if self.scope.creates[n][0] == client and create.phase not in {"idle", "done"}:
                self._set(
                    n, *Create("idle" if self.scope.creates[n][1] else "done", create.life + 1)
                )
        for attempt in self.attempts:
            alive = attempt.owner in {"waits", "stopped"}
            if alive and self.scope.creates[attempt.create][0] == client:
                dead = attempt._replace(owner="dead", slow=False, reply=None)
                self._replace(attempt, dead)
        self.dead_until = self.moment + LEASE

    def _wait(self) -> None:
        """Time passes, to the next moment at which something can change."""
        self._nobody_waits_in_vain()
        times = [self._reset() - WINDOW + LATE, self._reset()]
        times += [attempt.ripe for attempt in self.attempts]
        times += [attempt.due for attempt in self.attempts if attempt.owner == "waits"]
        change = self.bucket.next_change(self.now)
        times += [] if change == math.inf else [math.floor(change)]
        self.go_to(min(time for time in times if time > self.moment))

    def go_to(self, moment: float) -> None:
        """Let time pass until then."""
        before, self.moment = self.moment, float(moment)
        self.say("")
        self.fresh = (False, False)
        begun = self.moment // WINDOW * WINDOW
        known = self.bucket.status().reset is not None  # else nothing tells that a window ends
        if before < begun:
            self.used = self.made = 0
            self.refused = self.refused and not known
        if before < begun + MARGIN <= self.moment and known:
            self._forget(lambda attempt: attempt.begun + RIPE <= begun - KNOWN_TO)
        for attempt in self.attempts:
            slow = attempt.owner == "waits"
            may_arrive = attempt.may_arrive and attempt.ripe > self.moment
            if (slow, may_arrive) != (attempt.slow, attempt.may_arrive):
                self._replace(attempt, attempt._replace(slow=slow, may_arrive=may_arrive))
        if self.dead_until <= self.moment:
            self.dead_until = 0.0

    # --- a transaction ---------------------------------------------------------------------------

    def _transact(self, client: int, change: Callable[[Bucket, float], None] | None = None) -> None:
        """What ``Limiter._transact`` does."""
        self.tick += 1
        bucket, now, scope = self.bucket, self.now, self.scope
        bucket.advance(now)
        if change is not None:
            change(bucket, now)
        for pair in bucket.unsettled:
            self.memory.setdefault(pair, "doubt")
        bucket.unsettled.clear()
        waiting = []
        changed = change is not None  # else nothing that others wait for has come free
        doubted = bucket.doubted()
        for n in self._waiting(client):
            create, pair = self.creates[n], scope.creates[n][1]
            if self.memory.get(pair) == "known":
                bucket.close(lease_of(n, create.life))
                changed = True
                self._set(n, *Create("done"))
                self.say("  create {} is known", n)
                continue
            in_doubt = create.doubt != "none" and (pair in self.memory or pair in doubted)
            if in_doubt:
                self._set(n, doubt="some")
            waiting.append((n, ask_of(scope, n, create, in_doubt)))
        other = self.fresh[1 - client] and not changed
        self.fresh = (True, other) if client == 0 else (other, True)
        free = bucket.status(scope.own_limit).remaining if waiting else 0
        decisions = bucket.reserve([ask for _, ask in waiting], now) if waiting else []
        for (n, ask), decision in zip(waiting, decisions, strict=True):
            if isinstance(decision, Grant):
                free -= self._granted(n, ask, free)
            else:
                self.say("  create {} waits for {}", n, decision.reason.value)
        self._accounts_agree()

    def _granted(self, n: int, ask: Ask, free: int) -> int:
        """Judge a grant and send the request; how many free tokens it took."""
        create = self.creates[n]
        others = [attempt for attempt in self.attempts if attempt.owner != "waits"]
        pair = self.scope.creates[n][1]
        same = [a for a in self.attempts if pair and self.scope.creates[a.create][1] == pair]
        if any(attempt.owner == "waits" for attempt in same):
            raise ViolationError(f"pair {pair} is under way twice")
        repeat = bool(same) or self.memory.get(pair) == "doubt"
        takes = not repeat and create.kept_until <= self.moment
        probe = takes and free < 1
        word = "repeats" if repeat else "probes" if probe else "goes"
        self.say("  create {} {}, {} free", n, word, free)
        if probe and not any(attempt.begun + RIPE <= self.now for attempt in others):
            raise ViolationError(f"create {n} is granted though nothing is free or ripe")
        self.credit = min(self.credit + repeat + probe, 3)
        attempt = Attempt(n, create.life, create.number, self.now, repeat or probe)
        self.attempts += (attempt,)
        doubt = create.doubt or "none"
        self._set(n, phase="out", doubt=doubt, kept_until=0.0)
        return int(takes)

    def _accounts_agree(self) -> None:
        status = self.bucket.status()
        if status.used > self.scope.limit:
            raise ViolationError(f"used is {status.used}")
        unknown = sum(attempt.owner != "bare" for attempt in self.attempts)
        if status.unconfirmed > unknown:
            raise ViolationError(
                f"{status.unconfirmed} unconfirmed slots, {unknown} unknown outcomes"
            )
        alive = sum(create.phase in {"waits", "out", "backoff"} for create in self.creates)
        if not self.dead_until and status.in_flight > alive:
            raise ViolationError(f"{status.in_flight} leases, {alive} creates under way")

    def _nobody_waits_in_vain(self) -> None:
        waits = [n for n, create in enumerate(self.creates) if create.phase == "waits"]
        under_way = any(attempt.owner == "waits" for attempt in self.attempts)
        under_way |= any(create.phase == "backoff" for create in self.creates)
        if not waits or under_way or self.dead_until:
            return
        if self.bucket.next_change(self.now) == math.inf:
            raise ViolationError(f"create {waits[0]} waits for ever")
        if self.refused or self.used >= self.scope.limit or self.scope.own_limit is not None:
            return
        if self.moment < self._reset() - WINDOW + MARGIN:
            return
        bare = [attempt for attempt in self.attempts if attempt.owner == "bare"]
        if bare and self.bucket.status().reset is None:
            return  # nothing has told when they end to count
        if all(attempt.begun + RIPE <= self.now for attempt in self.attempts):
            why = ", after a repeat without headers" if any(a.excused for a in bare) else ""
            raise ViolationError(f"create {waits[0]} waits, though Braze has a slot{why}")

    # --- small things ----------------------------------------------------------------------------

    def say(self, text: str, *args: Any) -> None:
        if self.told is not None:
            self.told.append(f"{self.moment:5.0f} s  {text.format(*args)}" if text else "")

    def _reset(self) -> float:
        return (self.moment // WINDOW + 1) * WINDOW

    def _set(self, n: int, *fields: Any, **changes: Any) -> None:
        create = Create(*fields) if fields else self.creates[n]._replace(**changes)
        self.creates = (*self.creates[:n], create, *self.creates[n + 1 :])

    def _replace(self, attempt: Attempt, other: Attempt | None) -> None:
        changed = (other if one is attempt else one for one in self.attempts)
        self.attempts = tuple(one for one in changed if one is not None)

    def _forget(self, settled: Callable[[Attempt], bool]) -> None:
        """Drop attempts of unknown outcome that the rule has an answer for."""
        self.attempts = tuple(
            attempt
            for attempt in self.attempts
            if attempt.owner in {"waits", "stopped"} or not settled(attempt)
        )


@functools.cache
def lease_of(n: int, life: int) -> str:
    """The ID of a create's lease."""
    return f"{n}{'abcdefgh'[life]}"


@functools.cache
def ask_of(scope: Scope, n: int, create: Create, in_doubt: bool) -> Ask:
    """What the limiter asks the bucket for a create."""
    pair = scope.creates[n][1] or None
    return Ask(
        lease_of(n, create.life),
        create.number,
        pair,
        TIMEOUT,
        own_limit=scope.own_limit,
        in_doubt=in_doubt,
    )
