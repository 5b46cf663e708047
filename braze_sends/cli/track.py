"""What came of the sends of a batch: its lines, a question for each, and what is shown."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from io import StringIO
from typing import Any, BinaryIO, Final, get_args

import attrs
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from braze_sends import (
    APIConnectionError,
    APIResponseValidationError,
    BadRequestError,
    BrazeSendsError,
    ChannelAnalytics,
    ConfigurationError,
    CreateSendId,
    DayAnalytics,
    InternalServerError,
    SendAnalytics,
    SendsClient,
)
from braze_sends.cli import common
from braze_sends.journal import Entry, Status

#: How long Braze keeps the numbers of a send; days to ask for, and questions at a time.
KEPT: Final = timedelta(days=14)
LENGTH, CONCURRENCY = 14, 8
#: After so many sends in a row without an answer the connection is taken for dead.
GIVE_UP_AFTER: Final = 5

#: The totals of a send, in the order of the CSV.
TOTALS: Final = (
    "sent", "delivered", "undelivered", "delivery_failed", "direct_opens", "total_opens", "opens",
    "bounces", "body_clicks", "clicks", "conversions", "conversions_by_send_time", "revenue",
)  # fmt: skip
#: The columns of numbers of the table, and the totals that each adds up.
COLUMNS: Final = {
    "Sent": ("sent",),
    "Delivered": ("delivered",),
    "Opens": ("total_opens", "opens"),
    "Clicks": ("body_clicks", "clicks"),
    "Bounces": ("bounces",),
    "Conversions": ("conversions",),
    "Revenue": ("revenue",),
}

_STATUSES: Final = get_args(Status)

#: What concerns one send alone. Any other error would meet every send.
_OF_ONE: Final = (
    APIConnectionError, APIResponseValidationError, BadRequestError, InternalServerError,
)  # fmt: skip


@attrs.define
class Tracked:
    """A send of the batch, and what came of it: analytics, or an error, or not asked yet."""

    entry: Entry
    told: SendAnalytics | None = None
    error: BrazeSendsError | None = None


@attrs.frozen
class Sends:
    """The sends to ask for, each pair once, and how many are too old."""

    tracked: list[Tracked]
    older: int


def read_sends(file: str) -> Sends:
    """The sends that the lines of a batch tell, if Braze may still keep their numbers.

    Raises:
        ConfigurationError: the file cannot be read, or a line of it is no result of a batch.
    """
    name = "standard input" if file == "-" else file
    try:
        source: AbstractContextManager[BinaryIO]
        source = nullcontext(sys.stdin.buffer) if file == "-" else open(file, "rb")  # noqa: SIM115
        with source as lines:
            entries = [entry for entry in _entries(lines, name) if entry.status != "failed"]
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be read: {error.strerror or error}") from None
    by_pair = {(entry.campaign_id, entry.send_id): entry for entry in entries}
    oldest = common.now() - KEPT
    kept = [
        Tracked(entry) for entry in by_pair.values() if datetime.fromisoformat(entry.at) >= oldest
    ]
    return Sends(kept, len(by_pair) - len(kept))


def _entries(lines: Iterable[bytes], name: str) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        entry = _entry(line)
        if entry is not None:
            yield entry
        elif line.endswith(b"\n"):
            raise ConfigurationError(
                f"{name}: line {number} is no result of a batch; give the file that braze-sends "
                "batch --output wrote"
            )
        else:
            common.note(f"the last line of {name} was cut short, and is left out")


def _entry(line: bytes) -> Entry | None:
    try:
        entry = Entry(**json.loads(line.decode("utf-8-sig")))
        CreateSendId(entry.campaign_id, entry.send_id).check()
        ours = datetime.fromisoformat(entry.at).tzinfo is not None and entry.status in _STATUSES
    except (TypeError, ValueError, RecursionError):  # ConfigurationError is a ValueError
        return None
    return entry if ours and isinstance(entry.send_id, str) else None


async def ask(braze: SendsClient, sends: list[Tracked]) -> None:
    """Ask for each send, some at a time, with a bar on a terminal.

    Raises:
        BrazeSendsError: an error that would meet every send.
    """
    console = Console(stderr=True)
    shown = console.is_terminal and not console.is_dumb_terminal
    columns = BarColumn(bar_width=20), MofNCompleteColumn()
    bar = Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not shown)
    task = bar.add_task("", total=len(sends))
    left = iter(sends)
    fatal: list[BrazeSendsError] = []
    unanswered = 0

    async def worker() -> None:
        nonlocal unanswered
        for send in left:
            await _ask(braze, send, fatal)
            unanswered = unanswered + 1 if isinstance(send.error, APIConnectionError) else 0
            if unanswered == GIVE_UP_AFTER:
                why = f"{GIVE_UP_AFTER} sends in a row got no answer: the connection is taken for"
                fatal.append(BrazeSendsError(f"{why} dead ({send.error})"))
            if fatal:
                return
            bar.advance(task)
            bar.refresh()

    with bar:
        async with braze:
            await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    if fatal:
        raise fatal[0]


async def _ask(braze: SendsClient, send: Tracked, fatal: list[BrazeSendsError]) -> None:
    entry = send.entry
    try:
        send.told = await braze.send_analytics(entry.campaign_id, entry.send_id, length=LENGTH)
    except _OF_ONE as error:
        send.error = error
        if isinstance(error, APIConnectionError) and error.permanent:
            fatal.append(error)
    except BrazeSendsError as error:
        fatal.append(error)


def totals(told: SendAnalytics) -> dict[str, float]:
    """The numbers of all days, channels and variations added up, by Braze's names.

    Where a day tells a number of all its channels, that one counts. Unique recipients are left
    out: a user may be among those of several days.
    """
    sums: Counter[str] = Counter()
    for day in told.days:
        of_channels: Counter[str] = Counter()
        for variations in day.messages.values():
            for variation in variations:
                of_channels.update(_numbers(variation))
        sums.update({**of_channels, **_numbers(day)})
    sums.pop("unique_recipients", None)
    return dict(sums)


def _numbers(value: ChannelAnalytics | DayAnalytics) -> dict[str, Any]:
    return {
        name: number
        for name, number in _fields(value).items()
        if isinstance(number, int | float) and not isinstance(number, bool)
    }


def _fields(value: ChannelAnalytics | DayAnalytics) -> dict[str, Any]:
    """What Braze told, by its names, but for the messages of a day."""
    fields = attrs.asdict(value, recurse=False)
    more: dict[str, Any] = fields.pop("more")
    fields.pop("messages", None)
    known = {name: told for name, told in fields.items() if told is not None}
    return known | more


def show_table(sends: Sends) -> None:
    """A line for each send, and what went wrong on stderr."""
    table = Table(box=None, pad_edge=False)
    for name in ("Campaign", "Send ID"):
        table.add_column(name, overflow="fold")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for send in sends.tracked:
        cells = [common.printable(send.entry.campaign_id), common.printable(send.entry.send_id)]
        numbers = {} if send.told is None else totals(send.told)
        for names in COLUMNS.values():
            found = [numbers[name] for name in names if name in numbers]
            cells.append(_shown(sum(found)) if found else "-")
        table.add_row(*map(Text, cells))  # as text, since an ID may look like markup
    console = Console(highlight=False)
    if not console.is_terminal:  # nothing is folded where a script reads
        console.width = 10_000
    with common.printing():
        if sends.tracked:
            console.print(table)
    for send in sends.tracked:
        if send.error is not None:
            common.note(f"failed: {send.entry.campaign_id}, {send.entry.send_id}: {send.error}")


def _shown(number: float) -> str:
    return f"{number:.2f}" if isinstance(number, float) else f"{number}"


def show_csv(sends: Sends) -> None:
    """A row of totals for each send. An empty cell: Braze does not tell it."""
    file = StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["campaign_id", "send_id", "at", "days", *TOTALS, "error"])
    for send in sends.tracked:
        entry, told = send.entry, send.told
        numbers = {} if told is None else totals(told)
        rows.writerow(
            [entry.campaign_id, entry.send_id, entry.at, "" if told is None else len(told.days)]
            + [numbers.get(name, "") for name in TOTALS]
            + ["" if send.error is None else common.printable(str(send.error))]
        )
    with common.printing():
        sys.stdout.write(file.getvalue())
        sys.stdout.flush()


def show_json(sends: Sends) -> None:
    """All that Braze told, by its names."""
    common.print_json({"sends": [*map(_send_object, sends.tracked)], "older": sends.older})


def _send_object(send: Tracked) -> dict[str, Any]:
    days = None if send.told is None else [*map(_day_object, send.told.days)]
    return {
        "campaign_id": send.entry.campaign_id,
        "send_id": send.entry.send_id,
        "at": send.entry.at,
        "days": days,
        "error": send.error and type(send.error).__name__,
        "message": send.error and str(send.error),
    }


def _day_object(day: DayAnalytics) -> dict[str, Any]:
    messages = {name: [*map(_fields, one)] for name, one in day.messages.items()}
    return _fields(day) | {"time": day.time.isoformat(), "messages": messages}
