"""The bucket against a model of Braze: any order of answers, losses, deaths, clocks and limits.

``BucketMachine`` drives ``Bucket`` as the limiter does, without tasks. Time is a number. Whoever
has a store runs the same machine on it, by giving ``transact``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import TypeVar

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from braze_sends import headers
from braze_sends.protocol import PATH
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.quota.rule.ledger import Lease
from braze_sends.quota.rule.messages import Answer, Ask, Grant, Reading, Reason, Wait
from braze_sends.quota.rule.window import DAY
from braze_sends.testing.model import BrazeModel, Reply

T = TypeVar("T")

TIMEOUT = 10.0
WINDOW = 3600.0
LIMIT = 5  # in place of the 100 that are assumed until Braze tells; see ``assume``
EPOCH = 1_795_262_400.0  # a window's beginning


@attrs.define(eq=False)
class Request:
    """An attempt under way."""

    ask: Ask
    grant: Grant
    arrives: float
    reply: Reply | None = None
    owner_lives: bool = True
    ended: bool = False


def assume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the rule assume the limit that the model begins with, as it does for Braze."""
    monkeypatch.setattr("braze_sends.quota.rule.window.ASSUMED_LIMIT", LIMIT)


def _is_probe(lease: Lease) -> bool:
    """Whether its request may be refused, since its answer tells more than is known."""
    return lease.asks_unconfirmed or lease.asks_limit


class BucketMachine(RuleBasedStateMachine):
    """Rules are what can happen; invariants are what must hold.

    Attributes:
        excused: attempts that may draw a 429 (P1): repeats of one in doubt, and probes that ask
            whether unconfirmed slots are real. Where requests count, a repeat may take the slot of
            another.
        lone: nobody else uses the workspace, and its limit was not lowered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.names = itertools.count()
        self.waiting: list[Ask] = []
        self.requests: list[Request] = []
        self.doubted: list[str] = []
        self.excused = 0
        self.lone = True
        self.bucket = Bucket(offset=0.0)

    def transact(self, change: Callable[[Bucket, float], T]) -> T:
        """Apply ``change`` to the state; another store's machine puts it there."""
        return change(self.bucket, self.now)

    @initialize(
        clock=st.sampled_from([-40.0, 0.0, 40.0]),
        into=st.floats(0, WINDOW),
        counts=st.sampled_from(["pairs", "requests"]),
        duplicate=st.sampled_from([201, 400]),
        headers_on_429=st.booleans(),
    )
    def begin(
        self, clock: float, into: float, counts: str, duplicate: int, headers_on_429: bool
    ) -> None:
        self.model = BrazeModel(
            daily_limit=LIMIT,
            window=WINDOW,
            counts=counts,  # type: ignore[arg-type]
            duplicate=duplicate,  # type: ignore[arg-type]
            headers_on_429=headers_on_429,
        )
        self.offset = EPOCH + into - self.now

        def set_clock(bucket: Bucket, now: float) -> None:
            bucket.offset = self.offset + clock
            bucket.limit = LIMIT

        self.transact(set_clock)

    # --- what can happen -------------------------------------------------------------------------

    @rule(count=st.integers(1, 8), headroom=st.sampled_from([0, 0, 2]))
    def want(self, count: int, headroom: int) -> None:
        """Creates of new pairs join the queue."""
        for _ in range(count):
            name = next(self.names)
            self.waiting.append(Ask(f"lease{name}", 1, f"pair{name}", TIMEOUT, headroom))
        self.serve()

    @precondition(lambda self: self.doubted)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """A pair in doubt is asked for again."""
        pair = data.draw(st.sampled_from(self.doubted))
        self.waiting.append(Ask(f"lease{next(self.names)}", 1, pair, TIMEOUT))
        self.serve()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A caller in the queue is cancelled."""
        self.waiting.remove(data.draw(st.sampled_from(self.waiting)))
        self.serve()

    @precondition(lambda self: self.in_flight())
    @rule(data=st.data(), delay=st.floats(0, 3 * TIMEOUT))
    def arrive(self, data: st.DataObject, delay: float) -> None:
        """Braze will have handled a request after ``delay``, however late, or at once."""
        request = data.draw(st.sampled_from(self.in_flight()))
        if request.reply is None:
            request.arrives = min(
                request.arrives,
                max(self.now, min(self.now + delay, request.grant.begun + 3 * TIMEOUT - 0.01)),
            )

    @precondition(lambda self: self.in_flight())
    @rule(data=st.data(), told=st.sampled_from([True, True, True, False]))
    def answer(self, data: st.DataObject, told: bool) -> None:
        """An answer comes, with or without headers that can be read."""
        request = data.draw(st.sampled_from(self.in_flight()))
        if request.owner_lives:
            self.answered(request, told)

    @rule(told=st.booleans())
    def answer_all(self, told: bool) -> None:
        """All is well for a moment."""
        for request in self.in_flight():
            if request.owner_lives:
                self.answered(request, told)

    @precondition(lambda self: self.in_flight())
    @rule(data=st.data())
    def break_off(self, data: st.DataObject) -> None:
        """The connection breaks; the request may still arrive."""
        request = data.draw(st.sampled_from(self.in_flight()))
        if request.owner_lives:
            self.end(request, Answer(spent=None, in_doubt=True))

    @precondition(lambda self: self.in_flight())
    @rule(data=st.data())
    def refuse_connection(self, data: st.DataObject) -> None:
        """It was never sent."""
        request = data.draw(st.sampled_from(self.in_flight()))
        if request.reply is None and request.arrives == math.inf and request.owner_lives:
            self.end(request, Answer(spent=False))

    @precondition(lambda self: self.in_flight())
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """The process is killed after sending."""
        data.draw(st.sampled_from(self.in_flight())).owner_lives = False

    @rule(seconds=st.one_of(st.floats(0, 5), st.floats(5, 60), st.just(WINDOW)))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(before=st.floats(-5, 5))
    def wait_for_the_reset(self, before: float) -> None:
        braze = self.now + self.offset
        self.pass_time(max(0.0, math.ceil(braze / WINDOW) * WINDOW - before - braze))

    @rule(n=st.integers(1, 3))
    def others_spend(self, n: int) -> None:
        self.lone = False
        self.model.spend(n, self.now + self.offset)

    @rule(limit=st.integers(3, 8))
    def change_limit(self, limit: int) -> None:
        self.lone = self.lone and limit >= self.model.daily_limit
        self.model.daily_limit = limit

    @rule()
    def forget(self) -> None:
        """Costs at most one 429: the careful request may meet a used up quota."""
        self.excused += 1
        self.transact(lambda bucket, now: bucket.forget(now))
        self.serve()

    # --- what must hold --------------------------------------------------------------------------

    @invariant()
    def a_lone_client_draws_no_unexcused_429(self) -> None:
        if self.lone and hasattr(self, "model"):
            assert self.model.refused <= self.excused

    @invariant()
    def every_token_is_accounted_for(self) -> None:
        """Nothing is open that is not under way, and no attempt leaves two unconfirmed slots."""

        def check(bucket: Bucket, now: float) -> None:
            alive = [r for r in self.requests if not (r.ended and r.owner_lives)]
            assert len(bucket.leases) <= len(alive)
            assert len(bucket.unconfirmed) <= len(self.requests)

        self.transact(check)

    def teardown(self) -> None:
        """Left alone, all who wait are served, and no slot stays in doubt."""
        if not hasattr(self, "model"):
            return
        for _ in range(3000):  # with headroom below a limit that was raised, one a day
            for request in self.in_flight():
                if request.owner_lives:
                    self.answered(request, True)
            if not self.waiting and not self.in_flight():
                break
            change: float = self.transact(lambda bucket, now: bucket.next_change(now))
            self.pass_time(min(max(change - self.now, 0.01), WINDOW))
        assert [] == self.waiting
        self.pass_time(DAY + WINDOW)  # what has no window lapses after a day
        self.wait_for_the_reset(-5.0)  # so that no window ends in what follows
        for _ in range(5):  # a lowered limit is believed when an answer tells it
            self.want(1, 0)
            self.answer_all(True)
            self.pass_time(60)

        def check(bucket: Bucket, now: float) -> None:
            bucket.advance(now)
            left, free = self.model.remaining(now + self.offset), bucket.free(Ask("", 0, None, 0.0))
            assert {} == bucket.leases
            if self.model.daily_limit > bucket.limit:  # nobody has gone beyond ours yet
                assert free <= left
            else:
                assert ({}, left) == (bucket.unconfirmed, free), bucket

        self.transact(check)

    # --- how it goes on --------------------------------------------------------------------------

    def in_flight(self) -> list[Request]:
        return [request for request in self.requests if not request.ended]

    def serve(self) -> None:
        asks = list(self.waiting)

        def reserve(bucket: Bucket, now: float) -> tuple[list[Grant | Wait], int]:
            bucket.advance(now)
            doubted = {slot.pair for slot in bucket.unconfirmed.values() if not slot.certain}
            decisions = bucket.reserve(asks, now)
            excused = sum(
                ask.pair in doubted or _is_probe(bucket.leases[ask.lease])
                for ask, decision in zip(asks, decisions, strict=True)
                if isinstance(decision, Grant)
            )
            return decisions, excused

        decisions, excused = self.transact(reserve)
        self.excused += excused
        for ask, decision in zip(asks, decisions, strict=True):
            if isinstance(decision, Grant):
                self.waiting.remove(ask)
                self.requests.append(Request(ask, decision, math.inf))
            elif decision.reason is Reason.QUOTA and decision.until == math.inf:
                self.waiting.remove(ask)  # never: it would raise

    def handle(self, request: Request) -> None:
        send_id = request.ask.pair
        body = json.dumps({"campaign_id": "campaign", "send_id": send_id}).encode()
        fields = {"authorization": "Bearer test-key", "content-type": "application/json"}
        request.reply = self.model.handle("POST", PATH, fields, body, self.now + self.offset)

    def answered(self, request: Request, told: bool) -> None:
        if request.reply is None:
            self.handle(request)
        reply = request.reply
        assert reply is not None
        read = headers.read({k.lower(): v for k, v in reply.headers.items()}, 0.0)
        limit, window = read.rate_limit, None
        if limit is not None and told:
            window = Reading(limit.limit, limit.used, limit.resets_at.timestamp())
        answer = Answer(
            spent={201: True, 400: None, 429: False}[reply.status],
            window=window,
            date=read.date if told else None,
            refused=reply.status == 429,
        )
        self.end(request, answer)
        if reply.status == 429 and request.ask.lease not in {ask.lease for ask in self.waiting}:
            self.waiting.insert(0, attrs.evolve(request.ask, attempt=request.ask.attempt + 1))
            self.serve()

    def end(self, request: Request, answer: Answer) -> None:
        request.ended = True
        if answer.in_doubt and request.ask.pair is not None:
            self.doubted.append(request.ask.pair)
        self.transact(lambda b, now: b.finish(request.ask, request.grant, answer, now))
        self.serve()

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            arrivals = [r.arrives for r in self.requests if r.reply is None]
            timeouts = [request.grant.begun + TIMEOUT for request in self.in_flight()]
            change = self.transact(lambda bucket, now: bucket.next_change(now))
            moment = min([*arrivals, *timeouts, change, end])
            self.now = max(self.now, moment)
            for request in self.requests:
                if request.reply is None and request.arrives <= self.now:
                    self.handle(request)
            for request in self.in_flight():
                if request.grant.begun + TIMEOUT <= self.now:
                    if request.owner_lives:
                        self.end(request, Answer(spent=None, in_doubt=True))
                    else:
                        request.ended = True
            self.serve()
            if moment >= end:
                return
