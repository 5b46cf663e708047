"""Waiting for what another task, thread or process does, however busy the machine is.

No wait here goes by an event loop's clock, which a test may have stopped.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable

#: Seconds of real time after which a wait is given up: an event that comes at all comes sooner on
#: any machine. Below the time limit of a test, so that the message tells what was waited for.
PATIENCE = 300.0
#: Seconds between two looks.
LOOK = 0.002

# Bound here, since a test may put another clock in place of it.
_now, _sleep = time.monotonic, time.sleep


async def until(condition: Callable[[], object]) -> None:
    """Let the event loop turn until ``condition`` holds.

    Raises:
        AssertionError: it did not for ``PATIENCE`` seconds.
    """
    loop = asyncio.get_running_loop()
    end = _now() + PATIENCE
    while not condition():
        assert _now() < end, _in_vain(condition)
        await loop.run_in_executor(None, _sleep, LOOK)


def wait_until(condition: Callable[[], object]) -> None:
    """Block until ``condition`` holds.

    Raises:
        AssertionError: it did not for ``PATIENCE`` seconds.
    """
    end = _now() + PATIENCE
    while not condition():
        assert _now() < end, _in_vain(condition)
        _sleep(LOOK)


def _in_vain(condition: Callable[[], object]) -> str:
    try:
        source = " ".join(inspect.getsource(condition).split())
    except (OSError, TypeError):
        source = repr(condition)
    return f"waited {PATIENCE:.0f} s in vain: {source}"
