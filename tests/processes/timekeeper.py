"""One clock for worker processes and the emulator, which moves when all of them only wait for it.

Processes, sockets, signals and stores are real; time is not. It jumps to the next timer of anybody
as soon as nobody has anything else to do. So the constants are the real ones, no timeout passes
because the machine is busy, and a minute costs nothing.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from braze_sends.testing import FakeBraze
from tests.clocks import NOON, SharedClock
from tests.processes.worker import Job, Outcome, Worker
from tests.waiting import until
from tests.world import KEY

#: The end of the day of ``NOON``.
MIDNIGHT = NOON + 43_200


class WatchedBraze(FakeBraze):
    """An emulator that knows which requests it is at.

    Attributes:
        open: their names, which are their user agents.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.open: set[str] = set()

    async def _respond(self, incoming: web.Request) -> web.Response:
        name = incoming.headers.get("User-Agent", "")
        self.open.add(name)
        try:
            return await super()._respond(incoming)
        finally:
            self.open.discard(name)


class Timekeeper:
    """Starts workers and emulators, and lets time pass for them.

    Attributes:
        clock: shows the time, epoch seconds.
    """

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = SharedClock(path)
        self._loop = asyncio.get_running_loop()
        self._workers: list[Worker] = []
        self._emulators: list[WatchedBraze] = []
        monkeypatch.setattr(self._loop, "time", self.clock)
        # asyncio's own is lost in the rounding of a time of an epoch's size.
        monkeypatch.setattr(self._loop, "_clock_resolution", 1e-6)
        monkeypatch.setattr("braze_sends.testing.fake.time", SimpleNamespace(time=self.clock))

    def braze(self, **options: Any) -> WatchedBraze:
        """An emulator with the key of the tests; twelve hours are left of its day."""
        fake = WatchedBraze(api_key=KEY, **options)
        self._emulators.append(fake)
        return fake

    def worker(self) -> Worker:
        """A worker process."""
        worker = Worker(f"worker-{len(self._workers)}", str(self.clock.path))
        self._workers.append(worker)
        return worker

    async def until(self, condition: Callable[[], object]) -> None:
        """Let time pass until ``condition`` holds, and no longer."""

        @functools.wraps(condition)  # whose source is told where it is waited for in vain
        def holds() -> bool:
            if condition():
                return True
            if (wakes := self._next()) is not None:
                assert wakes < math.inf, f"nothing more will happen: {self._workers}"
                self.clock.set(max(wakes, self.clock()))
            return False

        await until(holds)

    async def passes(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.clock() + seconds
        timer = self._loop.call_at(end, lambda: None)
        await self.until(lambda: self.clock() >= end)
        timer.cancel()

    async def ends(self, worker: Worker) -> list[Outcome]:
        """Let time pass until all jobs of ``worker`` are done; the outcomes of them all."""
        await self.until(lambda: worker.ended or not worker.at_work)
        assert not worker.at_work, "the worker died; its traceback is on stderr"
        return worker.outcomes

    async def do(self, worker: Worker, job: Job) -> list[Outcome]:
        """Let ``worker`` do ``job``; the outcomes of this job."""
        before = len(worker.outcomes)
        worker.begin(job)
        return (await self.ends(worker))[before:]

    async def kill(self, worker: Worker) -> None:
        """``kill -9``; what had left it has arrived when this returns."""
        worker.kill()
        for _ in range(20):
            await asyncio.sleep(0)

    def _next(self) -> float | None:
        """When the next timer is due, if everybody waits for that; else ``None``."""
        now = self.clock()
        if self._loop._ready:  # type: ignore[attr-defined]
            return None
        timers = [
            timer.when()
            for timer in self._loop._scheduled  # type: ignore[attr-defined]
            if not timer.cancelled()
        ]
        handled = {name for fake in self._emulators for name in fake.open}
        for worker in self._workers:
            if worker.ended or worker.stopped or not worker.at_work:
                continue
            waits = worker.waits
            # It has seen the time, and each of its requests is at Braze, who is not done with it.
            if waits is None or waits.seen != now or not waits.sent <= handled:
                return None
            timers.append(waits.wakes)
        return min(timers, default=math.inf)
