"""The quota on a screen: the numbers, and what was created by hour and by campaign."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import attrs
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from braze_sends import QuotaStatus, SendsClient, StoreError
from braze_sends.cli import common

#: Seconds between two looks of ``--watch``.
REFRESH = 2.0
#: The hours of the chart, the columns of one, and how many a label is for. The rows of campaigns,
#: and the columns of a name and a bar. All of it fits into a terminal of 80 columns and 24 rows.
DAY, WIDE, LABELLED = 24, 2, 6
MOST_ROWS, NAME, BAR = 9, 40, 24

_UNKNOWN = "Nothing is known of the quota yet: Braze tells it when a send ID is created."
_FORGETFUL = (
    "In memory it is forgotten when a command ends; a store that lasts remembers it, such as",
    "--store sqlite:///quota.db",
)

Seen = QuotaStatus | StoreError


def show(braze: SendsClient, *, watch: bool, as_json: bool, lasts_not: bool) -> None:
    """Show the quota once, or again and again until it is stopped."""
    if watch:
        with _screen(as_json, lasts_not) as take:
            asyncio.run(common.until_stopped(_watch(braze, take)))
    else:
        _pages(as_json, lasts_not)(asyncio.run(_look(braze)))


async def _look(braze: SendsClient) -> QuotaStatus:
    async with braze:
        return await braze.quota()


async def _watch(braze: SendsClient, take: Callable[[Seen], None]) -> None:
    async with braze:
        while True:
            try:
                take(await braze.quota())
            except StoreError as error:
                take(error)  # it may come back
            await asyncio.sleep(REFRESH)


@contextlib.contextmanager
def _screen(as_json: bool, lasts_not: bool) -> Iterator[Callable[[Seen], None]]:
    """To show again and again: in one place on a terminal, else one after the other."""
    console = Console(highlight=False)
    if as_json or not console.file.isatty() or console.is_dumb_terminal:
        yield _pages(as_json, lasts_not)
        return
    pens = glyphs(console.encoding)
    lines: list[Text] = []
    with Live(console=console, auto_refresh=False) as live:

        def redraw(seen: Seen) -> None:
            nonlocal lines
            looked = common.now()
            at = f"{looked.astimezone():%H:%M:%S}"
            if isinstance(seen, StoreError):
                foot = Text(f"{at} error: {common.printable(common.error_line(seen))}", "red")
            else:
                foot = Text(f"{at}, Ctrl-C ends it", "dim")
                lines = describe(seen, looked, pens, lasts_not=lasts_not)
            live.update(Group(*lines, Text(), foot), refresh=True)

        yield redraw


def _pages(as_json: bool, lasts_not: bool) -> Callable[[Seen], None]:
    """To show one after the other, with an empty line between; or each as a line of JSON."""
    console = Console(highlight=False)
    pens = glyphs(console.encoding)
    between: list[Text] = []

    def show_json(seen: Seen) -> None:
        if isinstance(seen, StoreError):
            common.print_json(common.error_object(seen))
        else:
            used = seen.used if seen.known else None
            common.print_json({"known": seen.known, **attrs.asdict(seen), "used": used})

    def show(seen: Seen) -> None:
        if isinstance(seen, StoreError):
            common.note(f"error: {common.error_line(seen)}")
            return
        lines = describe(seen, common.now(), pens, lasts_not=lasts_not)
        with common.printing():
            console.print(*between, *lines, sep="\n", soft_wrap=True)
        between[:] = [Text()]

    return show_json if as_json else show


@attrs.frozen
class Glyphs:
    """What the charts are drawn with."""

    heights: str = "▁▂▃▄▅▆▇█"  # from low to high
    bar: str = "▆"
    begun: str = "┯" + 11 * "━"  # the axis for the hours of one label, if they have begun
    to_come: str = "┬" + 11 * "─"
    rest: str = "…"  # of a name that is too long


ASCII: Final = Glyphs(".:-=+*%#", "#", "+" + 11 * "=", "+" + 11 * "-", "...")


def glyphs(encoding: str) -> Glyphs:
    """The nicest that an encoding can carry."""
    nicest = Glyphs()
    try:
        repr(nicest).encode(encoding)
    except UnicodeEncodeError:
        return ASCII
    return nicest


def describe(status: QuotaStatus, at: datetime, pens: Glyphs, *, lasts_not: bool) -> list[Text]:
    """Lines that show a status; ``lasts_not`` is a store that lasts no longer than the command."""
    heading = [] if status.known else [_UNKNOWN, *_FORGETFUL * lasts_not, ""]
    lines = [Text(line) for line in heading]
    for label, value, style in _rows(status, at):
        lines.append(Text.assemble(f"{label:<14}", (value, style)))
    if status.creations:
        lines += [Text(), *_by_hour(status, at, pens), Text(), *_by_campaign(status, pens)]
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
    return lines


def _rows(status: QuotaStatus, at: datetime) -> Iterator[tuple[str, str, str]]:
    """Label, value and style."""
    assumed = "" if status.known else " (assumed)"
    plenty = "green" if 5 * status.remaining > status.limit else "yellow"
    yield "Limit", f"{status.limit}{assumed}", ""
    yield "Used", f"{status.used}" if status.known else "unknown", ""
    yield "In flight", f"{status.in_flight}", ""
    yield "Unconfirmed", f"{status.unconfirmed}", "yellow" if status.unconfirmed else ""
    yield "Remaining", f"{status.remaining}{assumed}", plenty if status.remaining else "bold red"
    resets = "unknown"
    if status.resets_at is not None:
        left = common.span((status.resets_at - at).total_seconds())
        resets = f"{common.moment(status.resets_at)}, in {left}"
    yield "Resets", resets, ""
    if status.creations:
        hours = _hours(status)
        most = max(hours.values())
        yield "Created", f"{hours.total()} through this store, {most} in the busiest hour", ""


def _by_hour(status: QuotaStatus, at: datetime, pens: Glyphs) -> list[Text]:
    """A day up to the reset, or up to now if that is not known: bars, an axis and its labels."""
    counts = _hours(status)
    now_in = math.floor(at.timestamp() / 3600)
    resets_at = status.resets_at
    end = now_in + 1 if resets_at is None else math.ceil(resets_at.timestamp() / 3600)
    first = min(end - DAY, *counts)
    hours = range(first, min(end, first + DAY + 1))
    most = max(counts.values())
    heights = " " + pens.heights
    bars = "".join(WIDE * heights[_part(counts[h], most, len(pens.heights))] for h in hours)
    # The axis ends with the first column of the hour after the last one.
    length, past = WIDE * len(hours) + 1, WIDE * max(0, now_in + 1 - first)
    begun, to_come = pens.begun * len(hours), pens.to_come * len(hours)
    labels = ""
    for hour in range(first, hours.stop + 1, LABELLED):
        local = datetime.fromtimestamp(hour * 3600, UTC).astimezone()
        labels += f"{local:%H:%M}".ljust(LABELLED * WIDE)
    return [
        Text(bars.rstrip(), "cyan"),
        Text.assemble(begun[: min(past, length)], (to_come[past:length], "dim")),
        Text(labels.rstrip(), "dim"),
    ]


def _by_campaign(status: QuotaStatus, pens: Glyphs) -> list[Text]:
    """The campaigns with the most creations, and what is left of them."""
    counts: Counter[str] = Counter()
    for one in sorted(status.creations, key=lambda one: one.campaign_id):
        counts[one.campaign_id] += one.count
    others, what = counts.pop("", 0), "others"
    rows = [(_name(campaign, pens), count) for campaign, count in counts.most_common()]
    if len(rows) > MOST_ROWS - bool(others):
        what = what if others else f"{len(rows) - MOST_ROWS + 1} others"
        others += sum(count for _, count in rows[MOST_ROWS - 1 :])
        rows = rows[: MOST_ROWS - 1]
    wide = max((len(name) for name, _ in rows), default=0)
    most = max((count for _, count in rows), default=0)
    digits = len(f"{max(most, others)}")
    lines = []
    for name, count in rows:
        bar = pens.bar * _part(count, most, BAR)
        lines.append(Text.assemble(f"{count:>{digits}}  {name:<{wide}}  ", (bar, "cyan")))
    if others:
        lines.append(Text.assemble(f"{others:>{digits}}  ", (what, "dim")))
    return lines


def _part(count: int, most: int, steps: int) -> int:
    """As many of the steps as ``count`` is of ``most``; more than nothing is one at least."""
    return -(-count * steps // most)


def _hours(status: QuotaStatus) -> Counter[int]:
    """What was created in each hour since the epoch."""
    counts: Counter[int] = Counter()
    for one in status.creations:
        counts[math.floor(one.hour.timestamp() / 3600)] += one.count
    return counts


def _name(campaign: str, pens: Glyphs) -> str:
    """A campaign as it can be shown, in the width that there is."""
    name = common.printable(campaign)
    if pens is ASCII:
        name = name.encode("ascii", "replace").decode()
    return name if len(name) <= NAME else name[: NAME - len(pens.rest)] + pens.rest
