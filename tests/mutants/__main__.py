"""``python -m tests.mutants``: apply each fault in a copy of the package, and see what notices it.

::

    python -m tests.mutants                       all faults, two at a time
    python -m tests.mutants --only "no probe"    those that have these words in their name

A fault is killed if a test fails, a simulated day has a violation, or either hangs. The exit code
is 1 if a fault survived or could not be applied.
"""

# ruff: noqa: T201  # what it prints is what it is for

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

from tests.mutants.faults import FAULTS, Fault, wrong

ROOT = Path(__file__).parents[2]
#: What the copy consists of.
PARTS = ("braze_sends", "tests", "conftest.py", "pyproject.toml")
#: A test that takes longer hangs, and so does a command, in seconds. Alone, the longest test takes
#: one second, and the longest command five: a busy machine kills no fault.
LONGEST_TEST, LONGEST = 20, 120
#: What tries where a fault's own killer does not notice it, the fastest first.
WIDE = (
    "tests/quota/test_bucket.py tests/quota/test_limiter.py tests/quota/test_turns.py "
    "tests/test_schedules.py tests/test_client.py",
    "simulation --days 240",
    "tests/exhaustive",
)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", re.MULTILINE)


class BrokenError(Exception):
    """A command says nothing: it fails without a fault, or it names no test."""


@attrs.frozen
class Verdict:
    """How a fault fared: ``by`` is what killed it, ``None`` if it survived."""

    fault: Fault
    by: str | None
    expected: bool
    seconds: float


def copied(root: Path, to: Path) -> Path:
    """The package and its tests, without what Python makes of them."""
    for part in PARTS:
        if (root / part).is_dir():
            shutil.copytree(root / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / part, to / part)
    return to


def notices(killer: str, folder: Path) -> str | None:
    """What a command in the copy fails with, ``None`` if all is well.

    Raises:
        BrokenError: it could not run.
    """
    first, *rest = shlex.split(killer)
    if first == "simulation":
        command = ["-m", "tests.simulation", *rest]
    else:
        # The same order and examples each time, and no process beside this one.
        options = ("-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist")
        limit = f"--timeout={LONGEST_TEST}"
        command = ["-m", "pytest", *options, limit, "--hypothesis-seed=0", first, *rest]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=environment,
            timeout=LONGEST,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"a hang of {killer}"
    if ended.returncode == 0:
        return None
    if ended.returncode != 1:
        raise BrokenError(f"{killer}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}")
    failed = _FAILED.search(ended.stdout)
    return failed[1] if failed else killer


def tried(fault: Fault, clean: Path) -> Verdict:
    """Apply a fault in a copy of its own, and run what should notice it, then the rest."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = copied(clean, Path(name))
        file = folder / fault.file
        file.write_text(file.read_text().replace(fault.old, fault.new))
        by, expected = None, True
        for killer in (fault.killer, *WIDE):
            if by := notices(killer, folder):
                break
            expected = False
    return Verdict(fault, by, expected, time.perf_counter() - began)


def sound(faults: list[Fault], clean: Path) -> None:
    """See that nothing fails without a fault.

    Raises:
        BrokenError: something does, so that no verdict would mean anything.
    """
    killers = {fault.killer for fault in faults}
    simulated = {killer for killer in killers if killer.startswith("simulation")}
    named = " ".join(sorted(killers - simulated))
    with ThreadPoolExecutor(2) as pool:
        commands = [*WIDE, *sorted(simulated), *([named] if named else [])]
        for failed in pool.map(lambda command: notices(command, clean), commands):
            if failed:
                raise BrokenError(f"fails without a fault: {failed}")


def main() -> int:
    """Parse, check, run, print; 1 if a fault survived or something is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--only", default="", help="faults with these words in their name")
    only = parser.parse_args().only
    faults = [fault for fault in FAULTS if only in fault.name]
    if not faults:
        print(f"no fault is named {only!r}")
        return 1
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        clean = copied(ROOT, Path(name))  # one state, though others go on in the checkout
        if complaints := [told for fault in faults if (told := wrong(fault, clean))]:
            print("\n".join(complaints))
            return 1
        try:
            sound(faults, clean)
            with ThreadPoolExecutor(2) as pool:
                verdicts = []
                for verdict in pool.map(lambda fault: tried(fault, clean), faults):
                    verdicts.append(verdict)
                    by = verdict.by or f"SURVIVED: {verdict.fault.breaks}"
                    note = "" if verdict.expected or not verdict.by else "  (not by its own killer)"
                    told = f"{verdict.seconds:5.1f} s  {verdict.fault.name}: {by}{note}"
                    print(told, flush=True)
        except BrokenError as error:
            print(error)
            return 1
    survived = [verdict.fault.name for verdict in verdicts if verdict.by is None]
    kinds = Counter(
        "simulation" if verdict.by.startswith("simulation") else verdict.by.partition("::")[0]
        for verdict in verdicts
        if verdict.by
    )
    by = ", ".join(f"{count} by {kind}" for kind, count in kinds.most_common())
    killed, took = len(verdicts) - len(survived), time.perf_counter() - began
    print(f"\n{killed} of {len(verdicts)} faults killed in {took:.0f} s: {by}")
    if survived:
        print(f"survived: {', '.join(survived)}")
    return bool(survived)


if __name__ == "__main__":
    raise SystemExit(main())
