"""Worker processes on a shared store, and the handle by which a test holds one.

Braze is emulated in the test's process; a worker talks to it over loopback, and tells over a pipe
what happens as it happens, so that nothing it told is lost when it is killed. Its time is that of
the test's clock (``tests.processes.timekeeper``).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from multiprocessing.connection import Connection
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar
from unittest.mock import patch

import aiohttp
import attrs

from braze_sends import BrazeSendsError, SendsClient, Store
from braze_sends.models import QuotaStatus
from braze_sends.protocol import NoReply, Reply
from braze_sends.stores.postgres import PostgresStore
from braze_sends.stores.redis import RedisStore
from braze_sends.stores.sqlite import SQLiteStore
from braze_sends.stores.store import Transaction
from braze_sends.transport import Exchange, Transport
from tests.clocks import ClockLoop, SharedClock
from tests.waiting import PATIENCE
from tests.world import KEY

T = TypeVar("T")

# A forkserver, since a test's process has threads. It imports what workers need once.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pytest", "psycopg", "redis.asyncio", "tests.processes.worker"])


#: Told when a job is done and all that it opened is closed.
DONE = "done"


@attrs.frozen(kw_only=True)
class Job:
    """What a worker is to do.

    The last four are hooks of the tests, to stop the worker where it matters.

    Attributes:
        base_url: where Braze is.
        store: the store's URL.
        workspace: names the quota.
        names: the send IDs to create, all of one campaign.
        at_once: how many creates may be under way; all by default.
        options: of ``SendsClient``.
        connections: the most connections that are open; leases beyond that wait.
        backoff: seconds between two attempts; when one begins, the worker tells ``"backs off"``.
        hold: seconds between a lease and its request; at their beginning it tells ``"holds"``.
        clock: seconds by which the worker's wall clock is ahead.
    """

    base_url: str
    store: str
    workspace: str = "workspace"
    names: tuple[str, ...]
    at_once: int | None = None
    options: dict[str, Any] = attrs.field(factory=dict)
    connections: int | None = None
    backoff: float | None = None
    hold: float | None = None
    clock: float = 0.0


@attrs.frozen
class Outcome:
    """How one create ended: ``error`` is the error's class, or ``None`` for a send ID."""

    name: str
    error: str | None = None
    quota_spent: bool | None = None
    reused: bool = False


@attrs.frozen
class Waits:
    """A worker's event loop has nothing to do.

    Attributes:
        seen: the clock's time.
        job: the number of the job that it is at, from 1.
        wakes: when its next timer is due; infinite for none.
        busy: how many of its steps wait for something else than time or Braze's answer: for the
            store, or for a connection.
        sent: names the requests that have left and have no answer yet.
    """

    seen: float
    job: int
    wakes: float
    busy: int
    sent: frozenset[str]


# --- in the worker -------------------------------------------------------------------------------


def work(pipe: Connection, name: str, clock_path: str) -> None:
    """Do one job after another, until the test ends or kills this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test alone
    clock = SharedClock(clock_path)
    with contextlib.suppress(EOFError):
        for number in itertools.count(1):
            job = pipe.recv()
            doing = _Doing(job, number, pipe, name, clock)
            with doing, asyncio.Runner(loop_factory=doing.new_loop) as runner:
                runner.run(doing.do())
            pipe.send(DONE)


#: Names the request that a task makes.
_request: ContextVar[str] = ContextVar("_request")


class _Doing:
    """One job, done."""

    def __init__(
        self, job: Job, number: int, pipe: Connection, name: str, clock: SharedClock
    ) -> None:
        self._job, self._number, self._pipe, self._clock = job, number, pipe, clock
        self._names = (f"{name}-{number}-{n}" for n in itertools.count())
        self._busy = 0
        self._sent: set[str] = set()
        self._told: Waits | None = None
        self._hooks = contextlib.ExitStack()

    def new_loop(self) -> asyncio.AbstractEventLoop:
        self._loop = ClockLoop(self._clock, self._waits)
        return self._loop

    def _waits(self, seen: float) -> None:
        scheduled = self._loop._scheduled  # type: ignore[attr-defined]
        wakes = scheduled[0].when() if scheduled else math.inf
        waits = Waits(seen, self._number, wakes, self._busy, frozenset(self._sent))
        if waits != self._told:
            self._told = waits
            self._pipe.send(waits)

    async def do(self) -> None:
        job = self._job
        async with contextlib.AsyncExitStack() as stack:
            options = dict(job.options)
            if job.connections is not None:
                connector = aiohttp.TCPConnector(limit=job.connections)
                session = aiohttp.ClientSession(connector=connector)
                options["session"] = await stack.enter_async_context(session)
            store = _Store(self, self._store())
            stack.push_async_callback(store.close)
            client = await stack.enter_async_context(
                SendsClient(
                    KEY, base_url=job.base_url, workspace=job.workspace, store=store, **options
                )
            )
            gate = asyncio.Semaphore(job.at_once or max(1, len(job.names)))

            async def create(name: str) -> None:
                async with gate:
                    try:
                        send = await client.create_send_id("campaign", name)
                    except BrazeSendsError as error:
                        outcome = Outcome(name, type(error).__name__, error.quota_spent)
                    else:
                        outcome = Outcome(send.send_id, quota_spent=True, reused=send.reused)
                    self._pipe.send(outcome)

            await asyncio.gather(*map(create, job.names))
            self._pipe.send(await client.quota())
            self._busy += 1  # closing, for which no time passes

    def _wall(self) -> float:
        return self._clock() + self._job.clock

    def _store(self) -> Store:
        url = self._job.store
        if url.startswith("redis"):
            return _ClockedRedis(url, self._clock)
        if url.startswith("postgresql"):
            return _ClockedPostgres(url, self._clock)
        path = url.removeprefix("sqlite:///")
        return SQLiteStore(path, clock=self._clock, wall=self._wall)

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Something is under way that is no wait for time or Braze."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    def __enter__(self) -> _Doing:
        job, pipe = self._job, self._pipe
        send, start = Transport.send, Exchange.start
        doing = self

        def back_off(state: object) -> float:
            pipe.send("backs off")
            return job.backoff or 0.0

        async def clocked(self: Transport, body: bytes, exchange: Exchange) -> Reply | NoReply:
            if job.hold is not None:
                pipe.send("holds")
                await asyncio.sleep(job.hold)
            name = next(doing._names)
            _request.set(name)
            doing._busy += 1  # until the request has left, or is known not to leave
            try:
                return await send(self, body, exchange)
            finally:
                if name in doing._sent:
                    doing._sent.discard(name)
                else:
                    doing._busy -= 1

        def leaves(self: Exchange) -> None:
            start(self)
            doing._busy -= 1
            doing._sent.add(_request.get())

        hooks: list[contextlib.AbstractContextManager[Any]] = [
            patch.object(Transport, "send", clocked),
            patch.object(Exchange, "start", leaves),
            patch("braze_sends.transport._user_agent", _request.get),
            patch("braze_sends.transport.steady", self._clock),
            patch("braze_sends.quota.limiter.steady", self._clock),
            patch("braze_sends.create.time", SimpleNamespace(time=self._wall)),
            patch("braze_sends.stores.optimistic.steady", self._clock),
            patch("braze_sends.stores.postgres.CONNECT_TIMEOUT", int(PATIENCE)),
            # Between two tries of a contended transaction it would sleep by the clock.
            patch(
                "braze_sends.stores.optimistic.random", SimpleNamespace(uniform=lambda a, b: 0.0)
            ),
        ]
        if job.backoff is not None:
            hooks.append(patch("braze_sends.retry._wait", back_off))
        for hook in hooks:
            self._hooks.enter_context(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._hooks.close()


class _ClockedRedis(RedisStore):
    """A store on a real server, by the test's clock instead of the server's."""

    def __init__(self, url: str, clock: SharedClock) -> None:
        super().__init__(url)
        self._clock = clock

    async def _step(
        self, redis: Any, workspace: str, pairs: list[str], values: list[Any]
    ) -> list[bytes]:
        # The server checks what its clock is taken for.
        values = [*values[:2], time.time() - (self._clock() - values[2]), *values[3:]]
        found = await super()._step(redis, workspace, pairs, values)
        seconds, fraction = divmod(self._clock(), 1)
        found[:2] = [b"%d" % seconds, b"%d" % (1e6 * fraction)]
        return found


class _ClockedPostgres(PostgresStore):
    """A store in a real database, by the test's clock instead of the server's."""

    def __init__(self, url: str, clock: SharedClock) -> None:
        super().__init__(url)
        self._clock = clock

    async def _ask(self, query: str, values: dict[str, Any]) -> Any:
        # The server checks what its clock is taken for, and keeps times of that clock.
        ahead = time.time() - self._clock()
        values = values | {name: values[name] + ahead for name in ("now", "expires")}
        held, version, _, *rest, moment, memories = await super()._ask(query, values)
        moment = None if moment is None else moment - ahead
        return held, version, self._clock(), *rest, moment, memories


class _Store:
    """A store, whose transactions are known to be under way."""

    shared = True

    def __init__(self, doing: _Doing, store: Store) -> None:
        self._doing, self._store = doing, store

    async def transact(
        self, workspace: str, pairs: Collection[str], change: Callable[[Transaction], T]
    ) -> T:
        with self._doing.busy():
            return await self._store.transact(workspace, pairs, change)

    async def close(self) -> None:
        await self._store.close()


# --- in the test ---------------------------------------------------------------------------------


class Worker:
    """A worker process, for ``async with``, at whose end it is killed.

    Attributes:
        outcomes: of its jobs, in the order in which it told them.
        words: what else it told.
        quota: what its client knew of the quota when its last job was done.
        ended: whether it is dead.
        stopped: whether it stands still.
    """

    def __init__(self, name: str, clock_path: str) -> None:
        self.name = name
        self._pipe, self._theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(
            target=work, args=(self._theirs, name, clock_path), daemon=True
        )
        self._given = self._done = 0
        self._waits: Waits | None = None
        self.outcomes: list[Outcome] = []
        self.words: list[str] = []
        self.quota: QuotaStatus | None = None
        self.ended = self.stopped = False

    async def __aenter__(self) -> Worker:
        self._process.start()
        self._theirs.close()  # or its end would go unseen
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._hear)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        self._process.kill()
        self._process.join(PATIENCE)
        self._process.close()
        self._pipe.close()
        # Shown by pytest where a test fails.
        told = f"{len(self.made)} made, {Counter(o.error for o in self.outcomes if o.error)}"
        print(f"{self!r}: {told}, {self.words}")  # noqa: T201

    def __repr__(self) -> str:
        state = "dead" if self.ended else "stopped" if self.stopped else self._waits
        return f"<{self.name}: {self._done} of {self._given} jobs done, {state}>"

    @property
    def at_work(self) -> bool:
        """Whether it has jobs that are not done."""
        return self._done < self._given

    @property
    def waits(self) -> Waits | None:
        """How it waits, if all that it has to do is to wait; ``None`` if it may be doing more."""
        waits = self._waits
        return waits if waits is not None and waits.job == self._given and not waits.busy else None

    def begin(self, job: Job) -> None:
        """Let it do ``job``, after those it has."""
        self._given += 1
        self._pipe.send(job)

    def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()
        self._process.join(PATIENCE)
        self._hear()

    def stop(self) -> None:
        """``kill -STOP``: it stands still, until ``resume``."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        self.stopped = True

    def resume(self) -> None:
        """``kill -CONT``."""
        assert self._process.pid is not None
        self.stopped = False
        os.kill(self._process.pid, signal.SIGCONT)

    @property
    def made(self) -> list[str]:
        """The send IDs that its callers were given."""
        return made(self.outcomes)

    def _hear(self) -> None:
        # A message is written in one piece, so there is a whole one or none.
        try:
            while self._pipe.poll():
                told = self._pipe.recv()
                if isinstance(told, Waits):
                    self._waits = told
                elif isinstance(told, Outcome):
                    self.outcomes.append(told)
                elif isinstance(told, QuotaStatus):
                    self.quota = told
                elif told == DONE:
                    self._done += 1
                else:
                    self.words.append(told)
        except (EOFError, OSError):
            self.ended = True
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())


def made(outcomes: list[Outcome]) -> list[str]:
    """The send IDs among them."""
    return [outcome.name for outcome in outcomes if outcome.error is None]


def errors(outcomes: list[Outcome]) -> set[str]:
    """The classes of the errors among them."""
    return {outcome.error for outcome in outcomes if outcome.error is not None}


def names(prefix: str, count: int) -> tuple[str, ...]:
    """So many send IDs."""
    return tuple(f"{prefix}{n}" for n in range(count))
