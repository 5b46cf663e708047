"""Clocks that move only when a test moves them, in this process and in others.

Time stands still while a process is slow, so no timeout passes because a machine is busy, and a
day passes at once.
"""

from __future__ import annotations

import asyncio
import math
import mmap
import os
import selectors
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple

from tests.waiting import wait_until

_T = TypeVar("_T")
_Args = TypeVarTuple("_Args")

#: What a stopped clock shows at first: noon, so that the end of the day is far away.
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()

#: Names a shared clock's file to the processes that go by it.
VARIABLE = "TESTS_CLOCK"

_DOUBLE = struct.Struct("d")
#: Real seconds between two looks at a shared clock.
_LOOK = 0.002


class SharedClock:
    """A clock in a file, the same for all processes that open it. Call it for its time.

    Args:
        path: the file; it is made if it is not there.
        start: epoch seconds that a new one shows.
    """

    def __init__(self, path: Path | str, start: float = NOON) -> None:
        self.path = Path(path)
        if not self.path.exists():
            self.path.write_bytes(_DOUBLE.pack(start))
        with self.path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _DOUBLE.size)

    def __call__(self) -> float:
        time: float
        (time,) = _DOUBLE.unpack_from(self._map)  # 8 aligned bytes: never half a time
        return time

    def set(self, when: float) -> None:
        """Show ``when`` from now on; a clock does not go back."""
        assert when >= self()
        _DOUBLE.pack_into(self._map, 0, when)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.set(self() + seconds)

    def __enter__(self) -> SharedClock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._map.close()


class ClockSelector(selectors.DefaultSelector):
    """Waits for real events, and wakes when the clock has moved.

    Args:
        clock: the clock that the event loop goes by.
        waits: called before each wait, with the clock's time.
    """

    def __init__(
        self, clock: Callable[[], float], waits: Callable[[float], object] | None = None
    ) -> None:
        super().__init__()
        self._clock, self._waits = clock, waits
        self._seen = clock()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        # Where the clock has moved since the last look, a timer may be due.
        if not ready and timeout != 0 and self._seen == self._clock():
            if self._waits is not None:
                self._waits(self._seen)
            while not ready and self._seen == self._clock():
                ready = super().select(_LOOK)
        self._seen = self._clock()
        return ready


class ClockLoop(asyncio.SelectorEventLoop):
    """An event loop with real sockets, threads and processes, whose time is a clock's.

    Args:
        clock: the clock.
        waits: called before the loop waits, with the clock's time.
    """

    def __init__(
        self, clock: Callable[[], float], waits: Callable[[float], object] | None = None
    ) -> None:
        self._clock = clock
        super().__init__(ClockSelector(clock, waits))
        self._clock_resolution = 1e-6  # asyncio's own is lost in a time of an epoch's size

    def time(self) -> float:
        """The clock's time, in seconds."""
        return self._clock()


def go_by(clock: Callable[[], float]) -> None:
    """Put ``clock`` in place of this process's clocks, for good. Before braze_sends is imported,
    which binds some of them."""
    time.time = time.monotonic = clock
    time.clock_gettime = lambda _: clock()

    def new_loop() -> asyncio.AbstractEventLoop:
        return ClockLoop(clock)

    asyncio.new_event_loop = asyncio.events.new_event_loop = new_loop


class _CommandLoop(ClockLoop):
    """Notes beside the clock when the command, such as ``batch``, has done all that is to do by the
    clock's time, and waits; see ``pass_time``."""

    def __init__(self, clock: SharedClock, command: str) -> None:
        super().__init__(clock, self._note)
        self._idle = SharedClock(_idle_since(clock, command), start=-math.inf)
        self._jobs = 0

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Args], _T], *args: *_Args
    ) -> asyncio.Future[_T]:
        future = super().run_in_executor(executor, func, *args)
        self._jobs += 1
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self._jobs -= 1

    def _note(self, now: float) -> None:
        if not self._jobs and now > self._idle():
            self._idle.set(now)


def _idle_since(clock: SharedClock, command: str) -> Path:
    return clock.path.with_name(f"{clock.path.name}.{command}")


def pass_time(clock: SharedClock, command: str, seconds: float) -> None:
    """Let time pass for a command that is started by ``python -m tests.clocks``, and that has no
    request under way; wait until it has done what is due by then, and waits for more."""
    clock.advance(seconds)
    with SharedClock(_idle_since(clock, command), start=-math.inf) as idle:
        wait_until(lambda: idle() == clock())


def main() -> None:
    """``python -m tests.clocks …``: the command ``braze-sends …`` by the clock that
    ``TESTS_CLOCK`` names."""
    clock = SharedClock(os.environ[VARIABLE])
    go_by(clock)

    def new_loop() -> asyncio.AbstractEventLoop:
        return _CommandLoop(clock, sys.argv[1])

    asyncio.events.new_event_loop = new_loop
    from braze_sends.cli import main as command

    command()


if __name__ == "__main__":
    main()
