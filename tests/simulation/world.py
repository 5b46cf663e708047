"""One run: hosts with clients on a store, a network in between, callers, and what happened."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Collection
from typing import TypeVar
from unittest.mock import patch

import attrs

from braze_sends import (
    BrazeSendsError,
    CreateSendId,
    MemoryStore,
    SendId,
    SendsClient,
    StoreError,
)
from braze_sends.protocol import NoReply, Reply
from braze_sends.quota.rule.bucket import Bucket
from braze_sends.stores.codec import dump, load_bucket
from braze_sends.stores.memory import _Record
from braze_sends.stores.store import Transaction
from braze_sends.testing import run_virtual
from braze_sends.transport import Exchange, NotSentError
from tests.simulation.braze import DAY, Braze
from tests.simulation.mixes import OWN_LIMIT, Mix

T = TypeVar("T")

KEY = "key-of-the-simulation"
TIMEOUT = 10.0
#: So long after its beginning Braze is done with a request, whatever comes of it.
RIPE = 3 * TIMEOUT
#: A request leaves so long after its lease was granted at most, in seconds.
LATENCY = 0.1
#: Windows that a run lives through.
DAYS = 2
#: When a run begins: some day, epoch seconds.
BEGIN = 20_000 * DAY


@attrs.define(eq=False)
class Attempt:
    """One request that has left.

    Attributes:
        call_pair: the pair that it asks for.
        process: whose it is.
        sent: when it left.
        counted: when Braze counted it; ``None`` if it did not.
        status: what the client was told; ``None`` if no answer has come to it.
        told: when that was.
        over: whether no answer will come any more.
        alone: whether nothing else was under way when it left.
        unconfirmed: attempts of unknown outcome, or told too late, that were old enough to be asked
            about then.
    """

    pair: str
    process: Process
    sent: float
    counted: float | None = None
    status: int | None = None
    told: float = math.inf
    over: bool = False
    alone: bool = False
    unconfirmed: int = 0


@attrs.define(eq=False)
class Call:
    """One create that somebody asked for.

    Attributes:
        pair: what was asked for.
        wait: the longest wait for quota, seconds; ``None`` for ever.
        process: who was asked.
        begun, ended: when.
        result: how it ended; ``None`` while it goes on.
        cancelled: whether the caller was.
    """

    pair: str
    wait: float | None
    process: Process
    begun: float
    ended: float = math.inf
    result: SendId | BaseException | None = None
    cancelled: bool = False


class Process:
    """A process with a client. A frozen one stands still, a dead one for ever."""

    def __init__(self, world: World, name: str, store: MemoryStore) -> None:
        self.world, self.name = world, name
        self.dead = False
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.client = SendsClient(
            KEY,
            base_url="http://127.0.0.1:9",
            workspace="w",
            store=SimulatedStore(self, store),
            timeout=TIMEOUT,
            daily_limit=OWN_LIMIT if world.mix.own_limit else None,
        )
        self.client._transport = Wire(self)  # type: ignore[assignment]

    def __repr__(self) -> str:
        return self.name

    async def runs(self) -> None:
        """Go on as soon as the process runs; if it is dead, not before the run is over."""
        await self.thawed.wait()
        if self.dead:
            raise StoreError("dead")

    def die(self) -> None:
        """``kill -9``: what it was at goes no further."""
        self.dead = True
        self.thawed.clear()


class SimulatedStore:
    """A shared store, with one record for all processes, which may lag and fail."""

    def __init__(self, process: Process, store: MemoryStore) -> None:
        self.process, self.store = process, store
        self.shared = process.world.mix.processes > 1 or process.world.mix.store_fails > 0

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        world, mix, chance = self.process.world, self.process.world.mix, self.process.world.chance
        await self.process.runs()
        if chance.random() < mix.store_lags:
            await asyncio.sleep(chance.uniform(0, 3))
            await self.process.runs()
        fails = chance.random() < mix.store_fails and not world.calm
        if fails:  # how an attempt ended may not be kept: then it is in doubt to all
            world.unkept.append(world.now())
        if fails and chance.random() < 0.5:
            world.note(f"{self.process}: store fails")
            raise StoreError("away")
        result = await self.store.transact(workspace, pairs, change)
        record = self.store._records[workspace]
        record.bucket = load_bucket(dump(record.bucket))  # what a real store keeps
        await self.process.runs()
        if fails:
            world.note(f"{self.process}: store fails after it was applied")
            raise StoreError("reply lost")
        return result

    async def close(self) -> None:
        pass


class Wire:
    """Stands in for ``Transport``: the network, and Braze behind it."""

    borrows_session = False
    seconds = TIMEOUT

    def __init__(self, process: Process) -> None:
        self.process = process

    async def send(self, body: bytes, exchange: Exchange) -> Reply | NoReply:
        world, process = self.process.world, self.process
        mix = world.fates()
        chance = world.chance
        await asyncio.sleep(chance.uniform(0, 0.01))
        await process.runs()
        if chance.random() < mix.refused or world.away:
            return NoReply("refused", sent=False)
        try:
            exchange.start()
        except NotSentError as error:
            return NoReply(str(error), sent=False)
        attempt = world.leaves(process, json.loads(body)["send_id"])
        latency = chance.expovariate(10) + 0.02
        if chance.random() < mix.slow:
            latency = chance.uniform(1, 1.3 * TIMEOUT)
        handled = latency * chance.random()
        if chance.random() < mix.late:
            handled = chance.uniform(0, RIPE - 1)
        lost, unanswered = chance.random() < mix.lost, chance.random() < mix.unanswered
        edge: int | None = None
        if chance.random() < mix.edge_429:
            edge = 429
        elif chance.random() < mix.broken:
            edge = chance.choice([500, 502, 503])
        if edge is not None:
            lost = True  # it goes no further than the edge
        told: list[tuple[int, str]] = []

        def handle() -> None:
            status, message, counts = world.braze.handle(attempt.pair, world.now())
            if counts:
                attempt.counted = world.now()
            told.append((status, message))
            world.handled(attempt, status)

        if not lost:
            world.later(handled, handle)
        slept = world.slept
        if edge is None and (lost or unanswered or max(handled, latency) >= TIMEOUT):
            await asyncio.sleep(TIMEOUT)
            return await self._ends(attempt, NoReply("no answer", sent=True, timed_out=True))
        await asyncio.sleep(max(handled, latency) if edge is None else latency)
        if world.slept != slept:  # no connection outlives a sleep
            return await self._ends(attempt, NoReply("reset", sent=True))
        if edge is None and chance.random() < mix.broken_after:
            edge = chance.choice([500, 502, 504])
        if edge is not None:
            html = b"<p>the edge</p>" if edge in (429, 502, 504) else b'{"message": "oops"}'
            return await self._ends(attempt, Reply(edge, {"content-type": "text/html"}, html))
        status, message = told[0]
        answer = {"message": message} | ({"send_id": attempt.pair} if status == 201 else {})
        headers = world.braze.headers(status, world.now())
        await asyncio.sleep(chance.expovariate(20))  # on its way back
        return await self._ends(attempt, Reply(status, headers, json.dumps(answer).encode()))

    async def _ends(self, attempt: Attempt, reply: Reply | NoReply) -> Reply | NoReply:
        attempt.over = True
        await self.process.runs()
        if isinstance(reply, Reply):
            attempt.status, attempt.told = reply.status, self.process.world.now()
        self.process.world.note(f"{self.process}: {attempt.pair} <- {_shown(reply)}")
        return reply

    def detach(self) -> None:
        pass

    async def close(self) -> None:
        pass


def _shown(reply: Reply | NoReply) -> str:
    if isinstance(reply, NoReply):
        return reply.reason
    names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
    triple = "/".join(reply.headers.get(name, "-") for name in names)
    return f"{reply.status} {triple} {reply.headers.get('date', '')[17:25]}"


class World:
    """One run of one mix.

    Attributes:
        attempts, calls: all of them, in order.
        slept: seconds that the host has slept.
        calm: nothing goes wrong any more.
        away: Braze cannot be reached.
        timeline: what happened, if it is kept.
        unkept: when the store failed.
    """

    def __init__(self, seed: int, mix: Mix, keeps: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.seed, self.mix = seed, mix
        self.chance = random.Random(f"{seed} {mix.name}")
        self.begin = BEGIN + self.chance.choice([0.1, 0.5, 0.9, 0.99]) * DAY
        self.slept = 0.0
        self.calm = self.away = False
        self.timeline: list[str] | None = [] if keeps else None
        self.attempts: list[Attempt] = []
        self.calls: list[Call] = []
        self.under_way: set[Attempt] = set()
        self.unkept: list[float] = []
        self.braze = Braze(mix, self.chance, self.chance.choice(mix.limits))
        # The steady clock of the default counts sleep; the event loop's does not.
        self.store = MemoryStore(clock=lambda: self.loop.time() + self.slept, wall=self.now)
        # The limit that is documented is the one that the workspace has, in small.
        bucket = Bucket(offset=self.begin, limit=self.braze.limit)
        self.store._records["w"] = _Record(bucket)
        self.processes = [
            Process(self, f"p{n}", self.store) for n in range(self.chance.randint(1, mix.processes))
        ]
        self._dead: list[Process] = []
        self._coming: dict[asyncio.TimerHandle, Callable[[], None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def now(self) -> float:
        """The true time, epoch seconds."""
        return self.begin + self.loop.time() + self.slept

    def note(self, line: str) -> None:
        """Keep a line of the timeline."""
        if self.timeline is not None:
            day, second = divmod(self.now() - BEGIN, DAY)
            hours, rest = divmod(second, 3600)
            clock = f"{day:.0f}d {hours:02.0f}:{rest // 60:02.0f}:{rest % 60:06.3f}"
            self.timeline.append(f"{clock} {line}")

    def fates(self) -> Mix:
        """What may go wrong now."""
        return attrs.evolve(QUIET, foreign=self.mix.foreign) if self.calm else self.mix

    def leaves(self, process: Process, pair: str) -> Attempt:
        """A request has left."""
        now = self.now()
        attempt = Attempt(pair, process, now)
        attempt.alone = not any(one.sent > now - TIMEOUT - 5 for one in self.under_way)
        attempt.unconfirmed = sum(
            (one.told > one.sent + TIMEOUT or (one.status or 0) >= 500)
            and one.sent <= now - RIPE + LATENCY
            for one in self.attempts[-300:]
        ) + sum(when <= now - RIPE + TIMEOUT for when in self.unkept)
        self.attempts.append(attempt)
        self.under_way.add(attempt)
        self.note(f"{process}: {pair} ->")
        return attempt

    def handled(self, attempt: Attempt, status: int) -> None:
        """Braze has handled a request."""
        self.under_way.discard(attempt)
        self.note(f"braze: {attempt.pair} {status}, {self.braze.remaining(self.now())} left")
        if status == 429:
            self.judge.over_quota(attempt)

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        """Let something happen at Braze, which does not sleep when the host does."""

        def happens() -> None:
            del self._coming[timer]
            event()

        timer = self.loop.call_later(seconds, happens)
        self._coming[timer] = happens

    # --- what callers do ---

    def ask(self, process: Process, pair: str, wait: float | None) -> None:
        """Somebody asks for a pair."""
        call = Call(pair, wait, process, self.now())
        self.calls.append(call)
        task = self.loop.create_task(self._call(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.chance.random() < self.mix.cancels and not self.calm:
            self.loop.call_later(self.chance.expovariate(1), task.cancel)

    async def _call(self, call: Call) -> None:
        self.note(f"{call.process}: {call.pair} asked for, wait {call.wait}")
        try:
            call.result = await call.process.client.create_send_id(
                "c", call.pair, max_rate_limit_wait=call.wait
            )
        except BrazeSendsError as error:
            call.result = error
        except asyncio.CancelledError:
            call.cancelled = True
        if not call.process.dead:
            call.ended = self.now()
            self.note(f"{call.process}: {call.pair} = {call.result or 'cancelled'!r}")
            self.judge.ended(call)

    def batch(self, process: Process, pairs: list[str], wait: float | None) -> None:
        """Somebody asks for many."""
        calls = {pair: Call(pair, wait, process, self.now()) for pair in pairs}
        self.calls += calls.values()

        async def run() -> None:
            try:
                outcomes = process.client.iter_send_ids(
                    [CreateSendId("c", pair) for pair in pairs],
                    concurrency=4,
                    max_rate_limit_wait=wait,
                )
                async for outcome in outcomes:
                    call = calls[str(outcome.request.send_id)]
                    call.result, call.ended = outcome.result or outcome.error, self.now()
                    self.note(f"{process}: {call.pair} = {call.result!r}")
                    self.judge.ended(call)
            except (asyncio.CancelledError, BrazeSendsError):
                pass

        task = self.loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- what happens ---

    async def run(self) -> None:
        """Two windows, and what is left over."""
        from tests.simulation.judge import Judge

        self.judge = Judge(self)
        end = self.begin - self.begin % DAY + 2 * DAY - 3600
        self.note(f"limit {self.braze.limit}, {len(self.processes)} processes")
        for when, event in sorted(self._script(end), key=lambda one: one[0]):
            await asyncio.sleep(max(0.0, when - self.now()))
            event()
        self.calm, self.away = True, False
        self.note("all is well from here on")
        await self.judge.finish(end)
        for task in list(self._tasks):
            task.cancel()
        for process in [*self._dead, *self.processes]:
            process.thawed.set()
            await process.client.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _script(self, end: float) -> list[tuple[float, Callable[[], None]]]:
        chance, mix = self.chance, self.mix
        midnight = self.begin - self.begin % DAY + DAY
        places = [self.begin, midnight - chance.uniform(0, 60), midnight + chance.uniform(0, 5)]
        events: list[tuple[float, Callable[[], None]]] = []
        names = iter(range(10_000))
        for _ in range(chance.randint(3, 6)):
            if chance.random() < 0.5:
                when = max(self.begin, chance.choice(places) + chance.expovariate(0.1))
            else:
                when = chance.uniform(self.begin, end - 600)
            many = chance.choice([1, 2, self.braze.limit, 2 * self.braze.limit])
            # For ever only where that is not for hours, in which processes look again and again.
            soon = (midnight if when < midnight else midnight + DAY) - when < 600
            wait = chance.choice([0.0, 0.0, 5.0, 30.0, 120.0, None if soon else 60.0])
            pairs = [f"s{next(names)}" for _ in range(many)]
            events.append((when, self._burst(pairs, wait)))
            if chance.random() < 0.3:  # asked for once more, somewhere else
                events.append((when + chance.expovariate(0.05), self._burst(pairs[:3], wait)))

        def often(rate: float, event: Callable[[], None]) -> None:
            for _ in range(int(rate) + (chance.random() < rate % 1)):
                place = chance.choice([one for one, _ in events]) + chance.expovariate(0.5)
                events.append((place, event))

        often(mix.crashes, self._crash)
        often(mix.freezes, self._freeze)
        often(mix.sleeps, self._sleep)
        often(mix.outages, self._outage)
        often(mix.limits_move, self._move_limit)
        often(mix.others, lambda: self.braze.spend(self.now(), 1))
        return events

    def _burst(self, pairs: list[str], wait: float | None) -> Callable[[], None]:
        def burst() -> None:
            if self.chance.random() < self.mix.batches:
                self.batch(self.chance.choice(self.processes), pairs, wait)
                return
            for pair in pairs:
                self.ask(self.chance.choice(self.processes), pair, wait)

        return burst

    def _crash(self) -> None:
        n = self.chance.randrange(len(self.processes))
        dead = self.processes[n]
        self.note(f"{dead}: killed")
        dead.die()
        self._dead.append(dead)
        born = self.processes[n] = Process(self, f"{dead.name}'", self.store)
        for call in self.calls:
            if call.process is dead and call.ended == math.inf:
                self.ask(born, call.pair, call.wait)

    def _freeze(self) -> None:
        process = self.chance.choice(self.processes)
        seconds = self.chance.choice([3.0, 12.0, 20.0, 90.0])
        self.note(f"{process}: stands still for {seconds:.0f} s")
        process.thawed.clear()

        def thaw() -> None:
            self.note(f"{process}: goes on")
            if not process.dead:
                process.thawed.set()

        self.loop.call_later(seconds, thaw)

    def _sleep(self) -> None:
        seconds = self.chance.choice([60.0, 1800.0, 7200.0])
        self.note(f"the host sleeps for {seconds:.0f} s")
        for timer, happens in list(self._coming.items()):
            timer.cancel()
            happens()
        self.slept += seconds

    def _outage(self) -> None:
        self.note("Braze is away")
        self.away = True

        def back() -> None:
            self.note("Braze is back")
            self.away = False

        self.loop.call_later(self.chance.uniform(1, 90), back)

    def _move_limit(self) -> None:
        self.braze.limit = max(1, self.braze.limit + self.chance.choice([-5, -2, 3, 10]))
        self.note(f"the limit is {self.braze.limit}")


QUIET = Mix(name="quiet")


def run(seed: int, mix: Mix, *, keeps: bool = False) -> World:
    """One run; ``keeps`` its timeline."""
    random.seed(seed)  # of the jitter in backoffs

    async def main() -> World:
        world = World(seed, mix, keeps)

        def steady() -> float:
            return world.loop.time() + world.slept

        with (
            patch("braze_sends.transport.steady", steady),
            patch("braze_sends.quota.limiter.steady", steady),
        ):
            await world.run()
        return world

    return run_virtual(main())
