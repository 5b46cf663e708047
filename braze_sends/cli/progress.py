"""What a batch says while it runs, on stderr: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from datetime import datetime

from rich import progress
from rich.console import Console
from rich.table import Column

from braze_sends import BrazeSendsError, QuotaStatus, RateLimit, SendsClient
from braze_sends.cli.common import finish, moment, note, now, printable, span

#: Seconds between two looks at the quota, and between two frames of the bar.
LOOK, FRAME = 1.0, 0.25
#: Columns of a terminal that has room for the day on which a file is done.
WIDE = 110


class Progress:
    """The progress of one batch of ``rows``, of which some were ``done`` before.

    Args:
        quiet: show nothing but what is said.
        headroom: slots that the batch leaves to others while it waits; ``None``: it does not wait.
        capped: the batch has a limit of its own, of which answers do not know.
    """

    def __init__(
        self, rows: int, done: int, quiet: bool, headroom: int | None, capped: bool = False
    ) -> None:
        self._rows, self._done, self._headroom = rows, done, headroom
        self._quiet, self._capped = quiet, capped
        self._quota: RateLimit | None = None
        self._waits = False
        self._seen, self._stuck = done, 0  # rows at the last look; what is in flight, if no more
        self._told_until: datetime | None = None
        console = Console(stderr=True, highlight=False)
        self._drawn = sys.stderr.isatty() and not console.is_dumb_terminal and not quiet
        column = Column(no_wrap=True, overflow="ellipsis")
        self._bar = progress.Progress(
            progress.BarColumn(bar_width=20),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.description}", table_column=column),
            console=console,
            auto_refresh=False,  # frames come from ``watch``, and no thread is needed
            transient=True,
            disable=not self._drawn,
        )
        self._task = self._bar.add_task("", total=rows, completed=done)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._describe()  # for the last frame, which ``stop`` draws
        with contextlib.suppress(OSError):
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line that matters, however quiet it is meant to be."""
        if not self._drawn:
            note(line)
            return
        with contextlib.suppress(OSError):  # the terminal is gone; the batch goes on
            self._bar.console.print(printable(line), markup=False, emoji=False, soft_wrap=True)

    def advance(self, limit: RateLimit | None) -> None:
        """One more row has been decided, by an answer that told ``limit``."""
        self._done += 1
        self._waits, self._stuck = False, 0
        if limit is not None and not self._capped:
            self._told(limit)
        self._bar.advance(self._task)
        told = self._done % max(1, self._rows // 10) == 0 or self._done == self._rows
        if told and not self._drawn and not self._quiet:
            note(f"{self._done} of {self._rows} rows{self._left()}")

    async def watch(self, braze: SendsClient) -> None:
        """Show how much quota is left, until cancelled."""
        looked = float("-inf")
        while not self._quiet:
            time = asyncio.get_running_loop().time()
            if time - looked >= LOOK:
                looked = time
                with contextlib.suppress(BrazeSendsError):  # the creates meet the same, and say so
                    self._look(await braze.quota())
            self._describe()
            with contextlib.suppress(OSError):
                self._bar.refresh()
            await asyncio.sleep(FRAME if self._drawn else LOOK)

    def _look(self, status: QuotaStatus) -> None:
        used_up = self._headroom is not None and status.remaining <= self._headroom
        self._waits = used_up and not status.in_flight
        self._stuck = status.in_flight if self._done == self._seen else 0
        self._seen = self._done
        until = status.resets_at
        if until is None:
            return
        self._told(RateLimit(status.limit, status.remaining, until))
        if self._waits and not self._drawn and until != self._told_until:
            self._told_until = until
            note(f"waiting for quota: it resets {moment(until)}, in {_span_until(until)}")

    def _told(self, limit: RateLimit) -> None:
        # Answers come in any order, and within a window it only becomes less.
        last = self._quota
        same = last is not None and (last.resets_at, last.limit) == (limit.resets_at, limit.limit)
        if last is None or not same or limit.remaining < last.remaining:
            self._quota = limit

    def _describe(self) -> None:
        text = f"{self._bar.tasks[0].speed or 0:.1f}/s"
        if self._stuck:  # also on what an earlier run has left in flight
            text = f"waiting for {self._stuck} in flight"
        elif self._waits:
            text = "waiting"
        text += self._left()
        if self._quota is not None:
            text += f", resets in {_span_until(self._quota.resets_at)}"
            text += self._done_at(self._quota)
        self._bar.update(self._task, description=text)

    def _done_at(self, quota: RateLimit) -> str:
        """When the file is done, if that takes days of waiting and there is room to say so."""
        if self._headroom is None or self._bar.console.width < WIDE:
            return ""
        when = finish(
            self._rows - self._done,
            limit=quota.limit,
            remaining=quota.remaining,
            headroom=self._headroom,
            resets_at=quota.resets_at,
        )
        return "" if when is None else f", done about {when.astimezone():%a %d %b %H:%M}"

    def _left(self) -> str:
        return f", {self._quota.remaining} of {self._quota.limit} left" if self._quota else ""


def _span_until(when: datetime) -> str:
    return span((when - now()).total_seconds())
