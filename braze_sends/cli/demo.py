"""The demo on a console; what it does is in ``braze_sends.testing.demo``."""

from __future__ import annotations

import asyncio
import time

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from braze_sends import BrazeSendsError, SendId
from braze_sends.cli.common import ERROR, printing, span
from braze_sends.testing.demo import FAULTS, Books, Plan, disagreements, run


def table(books: Books) -> Table:
    """Both sides' books, side by side."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False)
    shown.add_column("")
    shown.add_column("client", justify="right")
    shown.add_column("emulator", justify="right")
    pairs = len({pair for pair, _ in books.told})
    shared = len(books.told) - pairs
    reused = sum(isinstance(told, SendId) and told.reused for told in books.again)
    shown.add_row("send IDs asked for", f"{pairs}", "")
    shown.add_row("created", f"{len(books.sends)}", f"{len(books.created)}", style="green")
    shown.add_row("refused", f"{len(books.refused)}", "", style="yellow")
    shown.add_row("asked for twice at once, sent once", f"{shared}", "")
    shown.add_row("asked for again later, reused", f"{reused}", "")
    shown.add_row("requests", f"{books.attempts}", f"{books.requests}")
    shown.add_row("of them retries", f"{books.attempts - len(books.sends)}", "")
    shown.add_row("answers over quota (429)", "", f"{books.over_quota}", style="bold")
    shown.add_row("slots left", f"{books.quota.remaining}", f"{books.left}")
    shown.add_row("unconfirmed", f"{books.quota.unconfirmed}", "")
    return shown


def show(plan: Plan, console: Console) -> None:
    """Run a demo of any size on a console, and exit with 1 if the books disagree."""
    with printing():
        announce(plan, console)
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(
            "[green]{task.fields[created]} created[/] [yellow]{task.fields[refused]} refused"
        ),
        console=console,
        disable=not console.is_interactive,
    )
    created: set[str] = set()
    refused: list[BrazeSendsError] = []
    with bar:
        calls = bar.add_task("", total=plan.pairs + 2 * plan.twice, created=0, refused=0)

        def progress(told: SendId | BrazeSendsError) -> None:
            if isinstance(told, SendId):
                created.add(told.send_id)
            else:
                refused.append(told)
            bar.update(calls, advance=1, created=len(created), refused=len(refused))

        started = time.monotonic()
        books = asyncio.run(run(plan, progress))
        took = time.monotonic() - started
    with printing():
        report(books, took, disagreements(plan, books), console)


def announce(plan: Plan, console: Console) -> None:
    """Print what is going to happen."""
    console.print(
        f"Asking an emulator with {plan.limit} slots for {plan.pairs} send IDs within "
        f"{plan.rush:g} s,\n{plan.twice} of them twice. Of its first answers {2 * len(FAULTS)} go "
        "wrong, each of these twice:"
    )
    for what in FAULTS:
        console.print(f"  {what}", style="dim")


def report(books: Books, took: float, found: list[str], console: Console) -> None:
    """Print the books, and exit with 1 if there are disagreements."""
    console.print("", table(books), "", sep="\n")
    resets_at = books.quota.resets_at
    if books.refused and resets_at is not None:
        left = span((resets_at - books.ended).total_seconds())
        console.print(f"The refused may come back when the emulator's day ends, in {left}.")
    if found:
        for line in found:
            console.print(f"error: {line}", style="red", markup=False)
        raise typer.Exit(ERROR)
    console.print(
        f"After {took:.1f} s the emulator's record agrees with what the client believes.",
        style="green",
    )
