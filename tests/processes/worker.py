"""Worker processes on a shared store, and the handle by which a test holds one.

Braze is emulated in the test's process; a worker talks to it over loopback, and tells over a pipe
what happens as it happens, so that nothing it told is lost when it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any
from unittest.mock import patch

import aiohttp
import attrs

from braze_sends import BrazeSendsError, SendsClient, Store
from braze_sends.models import QuotaStatus
from braze_sends.protocol import NoReply, Reply
from braze_sends.quota.redis import RedisStore
from braze_sends.quota.sqlite import SQLiteStore
from braze_sends.testing import FakeBraze
from braze_sends.transport import Exchange, Transport
from tests.world import KEY

# A forkserver, since a test's process has threads. It imports what workers need once.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pytest", "redis.asyncio", "tests.processes.worker"])

#: No wait in a test is longer, in seconds.
PATIENCE = 40.0


@attrs.frozen(kw_only=True)
class Job:
    """What a worker is to do.

    The last six are hooks of the tests, to shorten times and to stop the worker where it matters.

    Attributes:
        base_url: where Braze is.
        store: the store's URL.
        workspace: names the quota.
        names: the send IDs to create, all of one campaign.
        at_once: how many creates may be under way; all by default.
        options: of ``SendsClient``.
        grace: stands in for ``LEASE_GRACE``, in seconds.
        look: stands in for ``FIRST_LOOK`` and ``LAST_LOOK``, in seconds.
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
    grace: float | None = None
    look: float | None = None
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


# --- in the worker -------------------------------------------------------------------------------


def work(pipe: Connection) -> None:
    """Do one job after another, until the test ends or kills this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test alone
    with contextlib.suppress(EOFError):
        while True:
            job = pipe.recv()
            with _hooks(job, pipe):
                asyncio.run(_do(job, pipe))


async def _do(job: Job, pipe: Connection) -> None:
    async with contextlib.AsyncExitStack() as stack:
        options = dict(job.options)
        if job.connections is not None:
            connector = aiohttp.TCPConnector(limit=job.connections)
            session = aiohttp.ClientSession(connector=connector)
            options["session"] = await stack.enter_async_context(session)
        store = _store(job.store)
        stack.push_async_callback(store.close)
        client = await stack.enter_async_context(
            SendsClient(KEY, base_url=job.base_url, workspace=job.workspace, store=store, **options)
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
                pipe.send(outcome)

        pipe.send("begins")
        await asyncio.gather(*map(create, job.names))
        pipe.send(await client.quota())


def _store(url: str) -> Store:
    # Through ``time`` and not bound before: its clock may be off.
    path = url.removeprefix("sqlite:///")
    return RedisStore(url) if path == url else SQLiteStore(path, wall=lambda: time.time())


@contextlib.contextmanager
def _hooks(job: Job, pipe: Connection) -> Iterator[None]:
    send, true_time = Transport.send, time.time

    def back_off(state: object) -> float:
        pipe.send("backs off")
        return job.backoff or 0.0

    async def hold(self: Transport, body: bytes, exchange: Exchange) -> Reply | NoReply:
        pipe.send("holds")
        await asyncio.sleep(job.hold or 0.0)
        return await send(self, body, exchange)

    with contextlib.ExitStack() as stack:
        if job.grace is not None:
            for module in ("bucket", "limiter"):
                stack.enter_context(patch(f"braze_sends.quota.{module}.LEASE_GRACE", job.grace))
        if job.look is not None:
            for name in ("FIRST_LOOK", "LAST_LOOK"):
                stack.enter_context(patch(f"braze_sends.quota.limiter.{name}", job.look))
        if job.backoff is not None:
            stack.enter_context(patch("braze_sends.retry._wait", back_off))
        if job.hold is not None:
            stack.enter_context(patch.object(Transport, "send", hold))
        if job.clock:
            stack.enter_context(patch("time.time", lambda: true_time() + job.clock))
        yield


# --- in the test ---------------------------------------------------------------------------------


class Worker:
    """A worker process, for ``async with``, at whose end it is killed.

    Attributes:
        outcomes: of its jobs, in the order in which it told them.
        words: what else it told.
        quota: what its client knew of the quota when its last job was done.
    """

    def __init__(self) -> None:
        self._pipe, self._theirs = _PROCESSES.Pipe()
        self._process = _PROCESSES.Process(target=work, args=(self._theirs,), daemon=True)
        self._given = self._done = 0
        self.outcomes: list[Outcome] = []
        self.words: list[str] = []
        self.quota: QuotaStatus | None = None
        self.ended = False

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

    def begin(self, job: Job) -> None:
        """Let it do ``job``, after those it has."""
        self._given += 1
        self._pipe.send(job)

    async def end(self) -> list[Outcome]:
        """Wait until all its jobs are done; the outcomes of them all."""
        await until(lambda: self.ended or self._done == self._given)
        assert self._done == self._given, "the worker died; its traceback is on stderr"
        return self.outcomes

    async def do(self, job: Job) -> list[Outcome]:
        """``begin`` and ``end``; the outcomes of this job."""
        before = len(self.outcomes)
        self.begin(job)
        return (await self.end())[before:]

    async def tells(self, word: str) -> None:
        """Wait until it has told ``word``."""
        await until(lambda: word in self.words)

    def kill(self) -> None:
        """``kill -9``."""
        self._process.kill()

    def stop(self) -> None:
        """``kill -STOP``: it stands still, until ``resume``."""
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """``kill -CONT``."""
        assert self._process.pid is not None
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
                if isinstance(told, Outcome):
                    self.outcomes.append(told)
                elif isinstance(told, QuotaStatus):
                    self.quota = told
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


def braze(before_midnight: float = 12 * 3600.0, **options: Any) -> FakeBraze:
    """Braze with the key of the tests, so many seconds before its window ends: a test that is run
    at midnight is like any other."""
    fake = FakeBraze(api_key=KEY, **options)
    fake.clock_offset = -before_midnight - time.time() % 86_400
    return fake


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait until ``condition`` holds.

    Raises:
        TimeoutError: it did not, for so long.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
