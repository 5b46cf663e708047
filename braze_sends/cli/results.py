"""The output of a batch as CSV, ``-o sends.csv``: written anew from the journal beside it.

The journal, ``sends.csv.jsonl``, is what a run appends to and goes on from. The CSV is replaced in
one step when a run ends, so it is whole at any time, and a killed run leaves the one before.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from braze_sends import BrazeSendsError, ConfigurationError

#: The keys of a journal's lines.
COLUMNS: Final = ("campaign_id", "send_id", "status", "error", "request_id", "at")

Pair = tuple[str, str]


def is_csv(output: str | None) -> bool:
    """Whether the output's name asks for CSV."""
    return output is not None and output.lower().endswith(".csv")


def journal_of(output: str | None) -> str | None:
    """The path of an output's journal: the output itself, unless it is CSV."""
    return f"{output}.jsonl" if is_csv(output) else output


def check(output: str) -> None:
    """Make sure that a CSV which will be replaced is the output of a batch.

    Raises:
        ConfigurationError: it is another file, or cannot be read.
    """
    start = ",".join(COLUMNS).encode()
    try:
        with open(output, "rb") as file:
            found = file.read(len(start) + 3)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be read: {error.strerror}") from None
    if not found.removeprefix(b"\xef\xbb\xbf").startswith(start):
        raise ConfigurationError(
            f"{output} exists and is not the CSV of a batch: it would be replaced; name another "
            "file with --output"
        )


def write(output: str, others: Mapping[Pair, str], names: list[str]) -> None:
    """Replace a CSV by what its journal tells.

    Args:
        others: by pair, what else the input tells of it, as a JSON object.
        names: the keys of these objects, which become columns.

    Raises:
        BrazeSendsError: it cannot be written; then it is as it was before.
    """
    path = os.path.realpath(output)
    new = f"{path}.tmp"  # no other run has it: the journal is locked
    header = [f"input_{name}" if name in COLUMNS else name for name in names]
    try:
        with open(new, "w", encoding="utf-8-sig", newline="") as file:  # for spreadsheets
            table = csv.writer(file)
            table.writerow([*COLUMNS, *header])
            for entry in _entries(f"{output}.jsonl"):
                told = json.loads(others.get((entry["campaign_id"], entry["send_id"]), "{}"))
                cells = [told.get(name) for name in names]
                table.writerow([*(entry[name] for name in COLUMNS), *map(_cell, cells)])
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(new)
        raise BrazeSendsError(
            f"{output} cannot be written: {error.strerror}; its rows are in {output}.jsonl, and "
            "the same command writes it again"
        ) from None


def _entries(journal: str) -> Iterator[dict[str, Any]]:
    with open(journal, encoding="utf-8-sig") as lines:
        for line in lines:
            with suppress(ValueError):  # blank, or the half of a line that could not be written
                yield json.loads(line)


def _cell(value: object) -> object:
    return value if value is None or isinstance(value, str) else json.dumps(value)
