"""An event loop whose time is virtual: a day passes in a microsecond, and no test sleeps."""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.DefaultSelector):
    """Polls, and where asyncio would wait, lets the time pass at once."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.time = start

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # The poll comes first: a callback from call_soon_threadsafe that is already there must run
        # before time goes on.
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("deadlock: nothing is scheduled")
            self.time += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to the next timer as soon as nothing else is ready.

    ``loop.time()``, ``asyncio.sleep`` and all timeouts go by its time; ``time.time()`` does not.
    If nothing is ready and no timer is set, the loop would wait for ever: it raises
    ``RuntimeError`` instead.

    Nothing outside of the loop gets time to answer while it jumps. Real sockets, subprocesses and
    threads (``asyncio.to_thread``) therefore do not work on it.

    Args:
        start: what ``time()`` gives at first, in seconds.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._virtual = _JumpingSelector(start)
        super().__init__(self._virtual)
        # asyncio runs what is due before time() + resolution. Its own nanosecond is lost in the
        # rounding of a time of an epoch's size, and a timer that is due would never run.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """The virtual time, in seconds."""
        return self._virtual.time


def run_virtual(main: Coroutine[Any, Any, T], *, start: float = 0.0) -> T:
    """Run a coroutine on a :class:`VirtualTimeLoop` of its own, and give its result.

    Args:
        main: what to run.
        start: the loop's time at the beginning, in seconds.

    Raises:
        RuntimeError: every task waits, and nothing is scheduled that could wake one.
    """
    with asyncio.Runner(loop_factory=functools.partial(VirtualTimeLoop, start)) as runner:
        return runner.run(main)
