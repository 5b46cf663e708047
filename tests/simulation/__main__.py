"""``python -m tests.simulation``: one run's timeline, or many runs' findings.

::

    python -m tests.simulation --seed 7 --mix lossy      the timeline of one run
    python -m tests.simulation --days 1000               a table of all mixes
"""

# ruff: noqa: T201  # what it prints is what it is for

from __future__ import annotations

import argparse
import logging
import time

from tests.simulation.judge import Findings, kinds
from tests.simulation.mixes import MIXES
from tests.simulation.world import DAYS, run


def main() -> int:
    """Parse, run, print; 1 if something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="one run: its timeline")
    parser.add_argument("--mix", choices=MIXES, help="one mix alone")
    parser.add_argument("--days", type=int, default=200, help="days in all")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    logging.disable()  # what the client logs of a store that fails
    mixes = [MIXES[options.mix]] if options.mix else list(MIXES.values())
    if options.seed is not None:
        bad = 0
        for mix in mixes if options.mix else mixes[:1]:
            world = run(options.seed, mix, keeps=True)
            print("\n".join(world.timeline or ()))
            print(world.judge.found)
            bad += len(world.judge.found.violations)
        return bool(bad)
    count = max(1, options.days // DAYS // len(mixes))
    print(f"{'mix':<16}{'days':>6}{'ms/day':>8}{'429':>6}{'waste/day':>11}  violations, first seed")
    bad = 0
    for mix in mixes:
        began = time.perf_counter()
        found: list[Findings] = []
        first: dict[str, int] = {}
        for seed in range(options.first, options.first + count):
            try:
                findings = run(seed, mix).judge.found
            except Exception as error:
                raise RuntimeError(f"--seed {seed} --mix {mix.name!r}") from error
            found.append(findings)
            for kind, _ in findings.violations:
                first.setdefault(kind, seed)
        took = 1000 * (time.perf_counter() - began) / count / DAYS
        waste = sum(one.wasted for one in found) / count / DAYS
        excused = sum(one.excused for one in found)
        told = ", ".join(f"{n} {kind} ({first[kind]})" for kind, n in kinds(found).items())
        print(f"{mix.name:<16}{DAYS * count:>6}{took:>8.1f}{excused:>6}{waste:>11.2f}  {told}")
        bad += sum(kinds(found).values())
    return bool(bad)


if __name__ == "__main__":
    raise SystemExit(main())
