"""A batch under way: what becomes of each row, and when to stop."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from itertools import takewhile
from typing import Final

import attrs
import typer

from braze_sends import (
    APIStatusError,
    BadRequestError,
    BrazeSendsError,
    ConfigurationError,
    CreateSendId,
    Outcome,
    QuotaExhaustedError,
    RateLimitError,
    SendsClient,
    StoreError,
)
from braze_sends.cli.common import STOPPING, USAGE, interrupts, note, now, print_json
from braze_sends.cli.progress import Progress
from braze_sends.cli.rows import WRONG_BYTE, BadRow, Rows, read
from braze_sends.cli.summary import Summary
from braze_sends.journal import Journal, JournalError

#: After so many rows in a row without a result the connection is taken for dead.
GIVE_UP_AFTER: Final = 5


#: Rows with the same fault that are shown.
MOST_ALIKE = 5


def read_rows(file: str, skip_bad: bool, as_json: bool, encoding: str | None, keep: bool) -> Rows:
    """The rows of a file; each that is bad is told, and an error unless they are skipped."""
    bad: list[dict[str, object]] = []
    alike: Counter[str] = Counter()

    def on_bad(row: BadRow) -> None:
        if as_json and not skip_bad:
            bad.append(attrs.asdict(row))
            return
        # A file in another encoding has the same fault in hundreds of lines.
        fault = row.problem.partition(WRONG_BYTE)[0]
        alike[fault] += 1
        if alike[fault] <= MOST_ALIKE:
            note(f"line {row.line}: {row.problem}")

    name = "standard input" if file == "-" else file
    try:
        with sys.stdin.buffer if file == "-" else open(file, "rb") as source:
            rows = read(source, on_bad, name=name, encoding=encoding, keep=keep)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    for fault, count in alike.items():
        if count > MOST_ALIKE:
            note(
                f"{count} lines of {name} have this fault, of which {MOST_ALIKE} are shown: {fault}"
            )
    if not rows.bad or skip_bad:
        return rows
    rows.close()
    told, them = ("1 bad row", "it") if rows.bad == 1 else (f"{rows.bad} bad rows", "them")
    problem = f"{told}; nothing was sent. Fix {them}, or pass --skip-bad"
    if not as_json:
        raise ConfigurationError(problem)
    print_json({"error": "ConfigurationError", "message": problem, "bad_rows": bad})
    raise typer.Exit(USAGE)


@attrs.define(eq=False)
class Run:
    braze: SendsClient
    rows: Rows
    journal: Journal
    progress: Progress
    summary: Summary
    concurrency: int
    headroom: int
    more: bool = True
    unanswered_in_a_row: int = 0
    closing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        watching = asyncio.create_task(self.progress.watch(self.braze))
        todo = takewhile(lambda _: self.more, self.journal.missing(self.rows))
        at_once = b"ended at once; a rerun asks again for what was under way"
        with interrupts(self.interrupt, at_once):
            async with self.braze:
                outcomes = self.braze.iter_send_ids(
                    todo, concurrency=self.concurrency, headroom=self.headroom
                )
                async with contextlib.aclosing(outcomes):
                    async for outcome in outcomes:
                        self.take(outcome)
                try:
                    self.journal.check()
                except JournalError as failure:
                    self.fail(failure)
                watching.cancel()
                await asyncio.wait([watching])
                if self.closing is not None:
                    await self.closing

    def take(self, outcome: Outcome) -> None:
        """Write down what was decided; what cannot go on is stopped."""
        try:
            entry = self.journal.write(outcome, at=now())
        except JournalError as failure:
            # Said, so that it is not lost: it may be known nowhere else.
            self.progress.say(f"not written: {failure.line}")
            self.summary.unwritten += 1
            self.fail(failure)
            return
        if entry is None:
            self.take_undecided(outcome.request, outcome.error)  # type: ignore[arg-type]  # no None
            return
        self.unanswered_in_a_row = 0
        if entry.status == "failed":
            self.progress.say(f"failed: {_pair(outcome.request)}: {outcome.error or entry.error}")
        self.summary.lines[entry.status] += 1
        self.progress.advance(getattr(outcome.result or outcome.error, "rate_limit", None))

    def take_undecided(self, request: CreateSendId, error: BrazeSendsError) -> None:
        """What gets no line, and is asked for by the next run."""
        unknown = error.quota_spent is not False
        if isinstance(error, QuotaExhaustedError | RateLimitError):
            limit = getattr(error, "limit", None)
            if error.retry_after is None and limit is not None and limit <= self.headroom:
                kept = f", and --headroom keeps {self.headroom}" if self.headroom else ""
                never = f"no day will have a slot for this batch: the limit is {limit}{kept}"
                self.fail(ConfigurationError(never))
            else:
                self.summary.ended = self.summary.ended or error
                self.more = False
        elif _is_fatal(error) and self.closing is None:
            self.fail(error)
        elif unknown or self.closing is None:  # else it was called off
            self.summary.unknown += unknown
            what = "unknown" if unknown else "not created"
            self.progress.say(f"{what}: {_pair(request)}: {error}")
            self.unanswered_in_a_row += 1
            if self.unanswered_in_a_row == GIVE_UP_AFTER:
                rows = f"{GIVE_UP_AFTER} rows in a row got no answer"
                self.fail(
                    BrazeSendsError(
                        f"{rows}, so the batch has stopped; to find the cause, run: "
                        "braze-sends doctor"
                    )
                )

    def fail(self, error: BrazeSendsError) -> None:
        self.summary.fatal = self.summary.fatal or error
        self.stop()

    def interrupt(self) -> None:
        self.summary.interrupted = True
        self.progress.say(STOPPING)
        self.stop()

    def stop(self) -> None:
        """Send no more. Closing calls off what has not been sent, and waits for what has."""
        self.more = False
        self.closing = self.closing or asyncio.create_task(self.braze.close())


def _is_fatal(error: Exception) -> bool:
    """Whether every row would end like this: a bad key, a wrong URL, a proxy in between."""
    if isinstance(error, APIStatusError) and not isinstance(error, BadRequestError):
        return error.status_code < 500
    return isinstance(error, StoreError | ConfigurationError)


def _pair(request: CreateSendId) -> str:
    return f"{request.campaign_id}, {request.send_id}"
