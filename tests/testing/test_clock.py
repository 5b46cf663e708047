"""The loop with virtual time."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

import pytest

from braze_sends.testing import VirtualTimeLoop, run_virtual


def now() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


def test_a_day_passes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sleep of two days takes two days of the loop's time, and the loop waits for nothing."""
    waits: list[float | None] = []
    select = selectors.DefaultSelector.select

    def noted(self: selectors.DefaultSelector, timeout: float | None = None) -> Any:
        waits.append(timeout)
        return select(self, timeout)

    async def main() -> float:
        await asyncio.sleep(2 * 86400)
        return now()

    monkeypatch.setattr(selectors.DefaultSelector, "select", noted)
    assert 172_800 == run_virtual(main())
    assert {0} == set(waits)


def test_the_time_begins_where_it_is_told() -> None:
    """The loop's time begins at ``start``, also at one of the size of an epoch."""

    async def main() -> tuple[float, float]:
        begun = now()
        await asyncio.sleep(1e-9)  # rounded away: due at once
        await asyncio.sleep(0.1)
        return begun, now()

    assert (1_728_043_200.0, 1_728_043_200.1) == run_virtual(main(), start=1_728_043_200.0)


def test_timers_run_in_order() -> None:
    """Tasks wake in the order of their timers, each at its own time."""
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(now())

    async def main() -> None:
        await asyncio.gather(*(sleeper(seconds) for seconds in (3, 1, 2, 1e7)))

    run_virtual(main())
    assert [1, 2, 3, 1e7] == woken


def test_a_timeout_expires() -> None:
    """A timeout goes by the virtual time."""

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return now()

    assert 30 == run_virtual(main())


def test_what_is_ready_comes_before_the_time() -> None:
    """A callback handed in as from another thread runs before the time goes on."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        loop.call_later(60, woken.cancel)
        # By way of the self-pipe alone: what call_soon_threadsafe wakes a sleeping loop with.
        loop.call_soon(lambda: loop.call_soon_threadsafe(woken.set_result, now()))
        await woken
        return now()

    assert 0 == run_virtual(main())


def test_a_deadlock_is_an_error() -> None:
    """A wait that nothing can end raises instead of hanging."""

    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtual(main())


def test_an_error_comes_through() -> None:
    """What the coroutine raises is raised to the caller."""

    async def main() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_virtual(main())


def test_the_loop_works_for_other_runners_too() -> None:
    """The loop works for other runners too, and begins at 0."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert 0 == runner.get_loop().time()
        runner.run(asyncio.sleep(5))
        assert 5 == runner.get_loop().time()
