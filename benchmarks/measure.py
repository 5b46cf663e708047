"""Rounds that alternate between the sides, and their medians.

A sample is the CPU time of this process, so a server in another process costs nothing here. The
spread is the middle half of the rounds. A ratio is the median of the ratios of each round.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs

Work = Callable[[], Awaitable[object]]


@attrs.frozen
class Row:
    """One line of the table."""

    what: str
    cost: str
    ratio: str = ""


@attrs.frozen
class Section:
    """A heading with its rows, the names of the columns, and remarks on what was left out."""

    title: str
    columns: tuple[str, str, str]
    rows: Sequence[Row]
    remarks: Sequence[str] = ()


@attrs.frozen
class Samples:
    """Seconds for each operation, one sample for each round."""

    cpu: list[float] = attrs.field(factory=list)
    wall: list[float] = attrs.field(factory=list)


async def alternate(
    sides: Mapping[str, Work],
    *,
    rounds: int,
    operations: int = 1,
    between: Work | None = None,
) -> dict[str, Samples]:
    """Run each side once in each round, in turns, after one round that is not counted.

    Args:
        sides: the work of each side by its name.
        rounds: how many rounds are counted.
        operations: how many operations one call of a side does.
        between: called before each side, not timed.
    """
    samples = {name: Samples() for name in sides}
    order = list(sides)
    for number in range(-1, rounds):
        for name in order:
            if between is not None:
                await between()
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            await sides[name]()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if number >= 0:
                samples[name].cpu.append(cpu / operations)
                samples[name].wall.append(wall / operations)
        order.reverse()  # so that neither side is always the first
    return samples


def cost(samples: Sequence[float]) -> str:
    """The median and the middle half, in a unit that fits."""
    median = statistics.median(samples)
    unit, scale = ("s", 1.0) if median >= 1 else ("ms", 1e3) if median >= 1e-3 else ("µs", 1e6)
    return f"{_spread([sample * scale for sample in samples])} {unit}"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median ratio of two sides in the same round, and the middle half."""
    return _spread([one / other for one, other in zip(ours, theirs, strict=True)])


def _spread(samples: Sequence[float]) -> str:
    if len(samples) == 1:
        return _short(samples[0])
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return f"{_short(median)} ({_short(low)} to {_short(high)})"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
