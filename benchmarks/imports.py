"""What it costs to import the package, and to start the command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import Row, Section, cost, ratio

_IMPORT = """\
from time import process_time
{first}
begun = process_time()
{then}
print(process_time() - begun)
"""
_DEPENDENCIES = "import aiohttp, attrs, cattrs, tenacity"

_COMMANDS = ("create", "batch", "quota", "doctor", "demo", "emulator")
_TRIVIAL = (
    "import rich, typer\n"
    "app = typer.Typer(no_args_is_help=True)\n"
    + "".join(
        f"@app.command('{name}')\ndef {name}_() -> None:\n    '''Do what {name} does.'''\n"
        for name in _COMMANDS
    )
    + "app()\n"
)
_HEAVY, _TYPER = f"`{_DEPENDENCIES}`", "another typer app, `--help`"
_OURS = "from braze_sends.cli import main; main()"


def imports(folder: Path) -> Section:
    """Fresh processes, in turns."""
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")

    def importing(first: str, then: str) -> Callable[[], float]:
        script = _IMPORT.format(first=first, then=then)

        def run() -> float:
            return float(
                subprocess.run(  # noqa: S603  # Python itself, and a script of ours
                    [sys.executable, "-c", script],
                    env=environment,
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            )

        return run

    def helping(script: str) -> Callable[[], float]:
        def run() -> float:
            process = subprocess.Popen(  # noqa: S603  # the same
                [sys.executable, "-c", script, "--help"],
                env=environment,
                stdout=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"--help failed: {script}")
            return usage.ru_utime + usage.ru_stime

        return run

    package, name = "import braze_sends", "from braze_sends import SendsClient"
    sides = {
        _HEAVY: importing("", _DEPENDENCIES),
        f"`{package}`, over these": importing(_DEPENDENCIES, package),
        f"`{name}`, over these": importing(_DEPENDENCIES, name),
        _TYPER: helping(_TRIVIAL),
        "`braze-sends --help`": helping(_OURS),
    }
    samples: dict[str, list[float]] = {what: [] for what in sides}
    order = list(sides)
    for number in range(-1, 11):
        for what in order:
            seconds = sides[what]()
            if number >= 0:  # the first round compiles
                samples[what].append(seconds)
        order.reverse()
    rows = []
    for what, each in samples.items():
        if what in (_HEAVY, _TYPER):
            base = each  # of the rows that follow
            rows.append(Row(what, cost(each)))
        else:
            rows.append(Row(what, cost(each), ratio(each, base)))
    columns = ("in a fresh process", "CPU", "beside the dependencies, or the other app")
    return Section("Imports and the command", columns, rows)
