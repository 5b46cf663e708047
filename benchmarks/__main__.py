"""Measure, print the table, and with ``--write`` put it into ``docs/benchmarks.md``."""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from benchmarks import creates, limiter, parked, peers, stores
from benchmarks.imports import imports
from benchmarks.instructions import instructions
from benchmarks.measure import Row, Section

_PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- figures: nox -s bench -->", "<!-- end of the figures -->"

_Run = Callable[[], Coroutine[Any, Any, Section]]


def main() -> int:
    """Exit code 1 if a hot path needs more instructions than its bound."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs: dict[str, _Run] = {
            "creates": creates.alone_and_gathered,
            "tight": creates.tight,
            "limiter": limiter.alone,
            "open": limiter.open_leases,
            "parked": functools.partial(parked.urgent, folder),
            "memory": parked.memory,
            "stores": functools.partial(stores.lone, folder),
            "remembered": functools.partial(creates.remembered, folder),
        }
        options = _options([*runs, "imports", "instructions"])
        runs["parked"] = functools.partial(parked.urgent, folder, full=options.full)
        _open_many_files()
        chosen = options.only or [*runs, "imports", "instructions"]
        sections: list[Section] = []
        exceeded: list[str] = []
        for name in chosen:
            begun = time.monotonic()
            if name == "instructions":
                section, exceeded = instructions(folder)
            elif name == "imports":
                section = imports(folder)
            else:
                section = asyncio.run(runs[name]())
            print(_text(section), flush=True)
            print(f"({name}: {time.monotonic() - begun:.0f} s)\n", file=sys.stderr, flush=True)
            sections.append(section)
    if options.write:
        _write(sections)
    for problem in exceeded:
        print(f"Too many instructions. {problem}", file=sys.stderr)
    return 1 if exceeded else 0


def _options(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, help="may be given repeatedly")
    parser.add_argument("--full", action="store_true", help="also 100,000 callers that wait")
    parser.add_argument("--write", action="store_true", help="write the table into the docs")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write needs the whole run, without --only")
    return options


def _open_many_files() -> None:
    """5,000 gathered creates have 5,000 connections, here and in the server."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _where() -> str:
    return (
        f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}; "
        f"{', '.join(peers.versions())}."
    )


def _text(section: Section) -> str:
    widths = [
        max(len(row[column]) for row in [section.columns, *map(_cells, section.rows)])
        for column in range(3)
    ]
    lines = [section.title]
    for row in [section.columns, *map(_cells, section.rows)]:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append(("  " + "   ".join(cells)).rstrip())
    return "\n".join(lines + [f"  {remark}" for remark in section.remarks])


def _markdown(section: Section) -> str:
    head = "| " + " | ".join(section.columns) + " |\n| --- | --- | --- |"
    rows = ["| " + " | ".join(_cells(row)) + " |" for row in section.rows]
    table = "\n".join([head, *rows]) if rows else ""
    return "\n\n".join(part for part in (f"### {section.title}", table, *section.remarks) if part)


def _cells(row: Row) -> tuple[str, str, str]:
    return row.what, row.cost, row.ratio


def _write(sections: list[Section]) -> None:
    before, begin, rest = _PAGE.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise SystemExit(f"{_PAGE.name} has no lines {_BEGIN} and {_END}")
    body = "\n\n".join([_where(), *map(_markdown, sections)])
    _PAGE.write_text(f"{before}{begin}\n\n{body}\n\n{end}{after}")


if __name__ == "__main__":
    sys.exit(main())
