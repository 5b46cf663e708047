"""Instructions of the hot paths, which do not depend on how busy the machine is.

A path runs twice in a process of its own, a few times and many times; the difference is the cost.
``instructions.toml`` bounds it, for each Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.hot_paths import NAMES
from benchmarks.measure import Row, Section

_BOUNDS = Path(__file__).with_name("instructions.toml")
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_COUNT = 200

_PERF = ["perf", "stat", "-x,", "-e", "instructions:u"]
_VALGRIND = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]


def instructions(folder: Path) -> tuple[Section, list[str]]:
    """The counts; and what exceeds its bound."""
    columns = ("path", f"instructions, Python {_PYTHON}", "of the bound")
    title = "Instructions of the hot paths"
    tool = _tool()
    if tool is None:
        remark = "Left out: neither `perf stat -e instructions:u` nor valgrind works here."
        return Section(title, columns, [], [remark]), []
    environment = os.environ | {
        "PYTHONHASHSEED": "0",
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    runs = [(name, count) for name in NAMES for count in (0, _COUNT)]
    for name in NAMES:
        _count([], name, 0, environment)  # compiles
    with ThreadPoolExecutor(max_workers=2) as pool:
        counts = list(pool.map(lambda run: _count(tool, run[0], run[1], environment), runs))
    bounds = tomllib.loads(_BOUNDS.read_text()).get(_PYTHON, {})
    rows, exceeded, remarks = [], [], []
    for number, name in enumerate(NAMES):
        each = (counts[2 * number + 1] - counts[2 * number]) / _COUNT
        bound = bounds.get(name)
        if bound is None:
            remarks.append(f"`{_BOUNDS.name}` has no bound for {name} on Python {_PYTHON}.")
        elif each > bound:
            exceeded.append(f"{name}: {each:,.0f} instructions, more than {bound:,}")
        rows.append(Row(name, f"{each:,.0f}", "" if bound is None else f"{each / bound:.2f}"))
    return Section(title, columns, rows, remarks), exceeded


def _tool() -> list[str] | None:
    for tool in (_PERF, _VALGRIND):
        if shutil.which(tool[0]):
            command = [*tool, "true"]
            tried = subprocess.run(  # noqa: S603  # what is on PATH under these names
                command, capture_output=True, text=True, check=False
            )
            if tried.returncode == 0 and _counted(tried.stderr) is not None:
                return tool
    return None


def _count(tool: list[str], name: str, count: int, environment: dict[str, str]) -> int:
    run = subprocess.run(  # noqa: S603  # the same, and Python itself
        [*tool, sys.executable, "-m", "benchmarks.hot_paths", name, str(count)],
        env=environment,
        cwd=_BOUNDS.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"{name} failed:\n{run.stderr}")
    return _counted(run.stderr) or 0


def _counted(told: str) -> int | None:
    """What perf or valgrind printed last."""
    found = re.search(r"I +refs: +([\d,]+)|^(\d+),.*instructions", told, re.MULTILINE)
    return int((found[1] or found[2]).replace(",", "")) if found else None
