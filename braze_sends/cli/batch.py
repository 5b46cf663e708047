"""``braze-sends batch``: a file of rows; a line for each that was decided; over days if need be."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Annotated, Final

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
from braze_sends.cli.common import (
    INTERRUPTED,
    STOPPING,
    USAGE,
    BaseUrlOption,
    KeyFileOption,
    StoreOption,
    WorkspaceOption,
    existing,
    file_of,
    forgetful,
    make_client,
    note,
    now,
    print_json,
    reporting,
    status_of,
)
from braze_sends.cli.cost import show_cost
from braze_sends.cli.output import Output, OutputError
from braze_sends.cli.progress import Progress
from braze_sends.cli.rows import BadRow, Rows, read
from braze_sends.cli.summary import Summary

#: After so many rows in a row without a result the connection is taken for dead.
GIVE_UP_AFTER: Final = 5


def batch(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="CSV with a header row, or JSON Lines, with campaign_id and send_id; - for "
            "standard input.",
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="Where result lines are appended, and what a rerun goes on from. Without it, or "
            "with -: standard output.",
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for quota, over as many days as it takes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file and show its cost; send nothing.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without rows that cannot be used.")
    ] = False,
    limit_per_day: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Never create more in a day through this store."),
    ] = None,
    headroom: Annotated[
        int, typer.Option(min=0, metavar="N", help="Slots of the quota to leave for others.")
    ] = 0,
    concurrency: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="How many at a time. Above 1, lines come as answers do."
        ),
    ] = 1,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="The longest that an attempt may take.")
    ] = 10.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    base_url: BaseUrlOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Create a send ID for each row of a file.

    Each row that is decided gets a line of JSON. With --output, or a store
    that lasts, the same command run again goes on where it stopped: after a
    crash, when the quota is back, or with rows that got no answer.
    """
    output = None if output == "-" else output
    with reporting(as_json), contextlib.ExitStack() as stack:
        if file == api_key_file == "-":
            raise ConfigurationError("FILE and --api-key-file cannot both be standard input")
        kept = file_of(store)
        if output and kept and os.path.realpath(output) == os.path.realpath(kept):
            raise ConfigurationError("--output and --store cannot both be the same file")
        braze = make_client(
            base_url,
            existing(store) if dry_run else store,
            workspace,
            api_key_file,
            timeout=timeout,
            daily_limit=limit_per_day,
            max_rate_limit_wait=None if wait else 0.0,
        )
        rows = stack.enter_context(_read(file, skip_bad, as_json))
        lines = stack.enter_context(Output(output, read_only=dry_run))
        found = Counter(map(lines.status, rows))
        summary = Summary(
            rows=rows.count,
            bad=rows.bad,
            repeated=rows.repeated,
            before=rows.count - found[None] - found["failed"],
            failed_before=found["failed"],
        )
        if dry_run:
            todo = (request for request in rows if not lines.knows(request))
            show_cost(summary, todo, braze, headroom, as_json)
            return
        if lines.torn:
            note(f"the last line of {output} had been cut short, and was removed")
        if forgetful(store) and not quiet:
            if limit_per_day is not None:
                note("without a store that lasts, --limit-per-day is for this run alone")
            if not lines.lasting:
                note("a rerun will begin anew: to go on, give --output, or a store that lasts")
        done = rows.count - found[None]
        progress = stack.enter_context(
            Progress(
                rows.count,
                done,
                quiet,
                headroom=headroom if wait else None,
                capped=limit_per_day is not None,
            )
        )
        asyncio.run(_Run(braze, rows, lines, progress, summary, concurrency, headroom).run())
    if as_json:
        print_json(summary.as_json())
    elif not quiet or summary.exit_code:
        for line in summary.in_words(continues=lines.lasting or not forgetful(store)):
            note(line)
    raise typer.Exit(summary.exit_code)


def _read(file: str, skip_bad: bool, as_json: bool) -> Rows:
    """The rows of a file; each that is bad is told.

    Raises:
        ConfigurationError: the file cannot be used, or rows of it, and that is not to be.
    """
    bad: list[dict[str, object]] = []

    def on_bad(row: BadRow) -> None:
        if as_json and not skip_bad:
            bad.append({"line": row.line, "problem": row.problem})
        else:
            note(f"line {row.line}: {row.problem}")

    try:
        with sys.stdin.buffer if file == "-" else open(file, "rb") as source:
            rows = read(source, on_bad, name="standard input" if file == "-" else file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None
    if not rows.bad or skip_bad:
        return rows
    rows.close()
    count, them = ("1 bad row", "it") if rows.bad == 1 else (f"{rows.bad} bad rows", "them")
    problem = f"{count}; nothing was sent. Mend {them}, or pass --skip-bad"
    if not as_json:
        raise ConfigurationError(problem)
    print_json({"error": "ConfigurationError", "message": problem, "bad_rows": bad})
    raise typer.Exit(USAGE)


@attrs.define(eq=False)
class _Run:
    """A batch under way."""

    braze: SendsClient
    rows: Rows
    output: Output
    progress: Progress
    summary: Summary
    concurrency: int
    headroom: int
    more: bool = True
    unanswered_in_a_row: int = 0
    closing: asyncio.Task[None] | None = None

    async def run(self) -> None:
        watching = asyncio.create_task(self.progress.watch(self.braze))
        with _interrupts(self.interrupt):
            async with self.braze:
                outcomes = self.braze.iter_send_ids(
                    self.todo(), concurrency=self.concurrency, headroom=self.headroom
                )
                async with contextlib.aclosing(outcomes):
                    async for outcome in outcomes:
                        self.take(outcome)
                try:
                    self.output.check()
                except OutputError as failure:
                    self.fail(failure)
                watching.cancel()
                await asyncio.wait([watching])
                if self.closing is not None:
                    await self.closing

    def todo(self) -> Iterator[CreateSendId]:
        for request in self.rows:
            if not self.more:
                return
            if not self.output.knows(request):
                yield request

    def take(self, outcome: Outcome) -> None:
        """Write down what was decided; what cannot go on is stopped."""
        error, summary = outcome.error, self.summary
        if error is None or _is_verdict(error):
            self.unanswered_in_a_row = 0
            self.write(outcome)
        elif isinstance(error, QuotaExhaustedError) and self.never(error):
            self.fail(
                ConfigurationError(
                    f"no day will have a slot for this batch: the limit is {error.limit}"
                    f"{f', and --headroom keeps {self.headroom}' if self.headroom else ''}"
                )
            )
        elif isinstance(error, QuotaExhaustedError | RateLimitError):
            summary.ended = summary.ended or error
            self.more = False
        elif _is_fatal(error) and self.closing is None:
            self.fail(error)
        elif error.quota_spent is False and self.closing is not None:
            pass  # called off before it was sent
        else:
            # It gets no line, and is asked for by the next run.
            unknown = error.quota_spent is not False
            summary.unknown += unknown
            what = "unknown" if unknown else "not created"
            self.progress.say(f"{what}: {_pair(outcome.request)}: {error}")
            self.unanswered_in_a_row += 1
            if self.unanswered_in_a_row == GIVE_UP_AFTER:
                rows = f"{GIVE_UP_AFTER} rows in a row got no answer"
                self.fail(BrazeSendsError(f"{rows}: the connection is taken for dead"))

    def write(self, outcome: Outcome) -> None:
        request, send, error = outcome.request, outcome.result, outcome.error
        try:
            status, told = self.output.write(
                request,
                "failed" if send is None else status_of(send),
                send_id=None if send is None else send.send_id,
                error=None if error is None else f"{type(error).__name__}: {error}",
                request_id=getattr(send or error, "request_id", None),
                at=now(),
            )
        except OutputError as failure:
            # Said, so that it is not lost: it may be known nowhere else.
            self.progress.say(f"not written: {failure.line}")
            self.summary.unwritten += 1
            self.fail(failure)
        else:
            if status == "failed":
                self.progress.say(f"failed: {_pair(request)}: {error or told}")
            self.summary.lines[status] += 1
            self.progress.advance(getattr(send or error, "rate_limit", None))

    def never(self, error: QuotaExhaustedError) -> bool:
        """Whether no window will have a slot for this batch."""
        limit = error.limit
        return error.retry_after is None and limit is not None and limit <= self.headroom

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


def _is_verdict(error: Exception) -> bool:
    """Whether Braze has said no to this very row."""
    return isinstance(error, BadRequestError) and not error.from_edge


def _is_fatal(error: Exception) -> bool:
    """Whether every row would end like this: a bad key, a wrong URL, a proxy in between."""
    if isinstance(error, APIStatusError) and not isinstance(error, BadRequestError):
        return error.status_code < 500
    return isinstance(error, StoreError | ConfigurationError)


def _pair(request: CreateSendId) -> str:
    return f"{request.campaign_id}, {request.send_id}"


def _on_a_terminal() -> bool:
    return sys.stderr.isatty()


@contextlib.contextmanager
def _interrupts(first: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C or SIGTERM calls ``first``; Ctrl-C once more ends the process at once.

    A signal that was ignored when the process started, as ``nohup`` and a script's ``&`` have
    SIGINT, stays ignored.
    """
    loop = asyncio.get_running_loop()
    called = False

    def interrupted(number: int, frame: FrameType | None) -> None:
        nonlocal called
        if called and number == signal.SIGINT:
            with contextlib.suppress(OSError):
                if _on_a_terminal():
                    os.write(2, b"\x1b[?25h\n")  # shows the cursor, which the bar has hidden
                os.write(2, b"ended at once; a rerun asks again for what was under way\n")
            os._exit(INTERRUPTED)
        if not called:
            called = True
            loop.call_soon_threadsafe(first)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
