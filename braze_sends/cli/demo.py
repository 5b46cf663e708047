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


def show(plan: Plan, console: Console) -> None:
    """Run a demo of any size on a console, and exit with 1 if the books disagree."""
    with printing():
        console.print(
            f"Asking an emulator with {plan.limit} slots for {plan.pairs} send IDs within "
            f"{plan.rush:g} s,\n{plan.twice} of them twice. Of its first answers "
            f"{2 * len(FAULTS)} go wrong, two in each of these ways:"
        )
        for what in FAULTS:
            console.print(f"  {what}", style="dim")
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
    refused = 0
    with bar:
        calls = bar.add_task("", total=plan.pairs + 2 * plan.twice, created=0, refused=0)

        def progress(told: SendId | BrazeSendsError) -> None:
            nonlocal refused
            if isinstance(told, SendId):
                created.add(told.send_id)
            else:
                refused += 1
            bar.update(calls, advance=1, created=len(created), refused=refused)

        started = time.monotonic()
        books = asyncio.run(run(plan, progress))
        took = time.monotonic() - started
    with printing():
        _report(books, took, disagreements(plan, books), console)


def _report(books: Books, took: float, found: list[str], console: Console) -> None:
    console.print("", _table(books), "", sep="\n")
    resets_at = books.quota.resets_at
    if books.refused and resets_at is not None:
        left = span((resets_at - books.ended).total_seconds())
        console.print(f"The refused may come back when the emulator's day ends, in {left}.")
    for line in found:
        console.print(f"error: {line}", style="red", markup=False)
    if found:
        raise typer.Exit(ERROR)
    console.print(
        f"After {took:.1f} s the emulator's record agrees with what the client believes.",
        style="green",
    )


def _table(books: Books) -> Table:
    """Both sides' books, side by side."""
    table = Table("", box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("client", justify="right")
    table.add_column("emulator", justify="right")
    pairs = len({pair for pair, _ in books.told})
    reused = sum(isinstance(told, SendId) and told.reused for told in books.again)
    for what, client, emulator, style in (
        ("send IDs asked for", pairs, "", None),
        ("created", len(books.sends), len(books.created), "green"),
        ("refused", len(books.refused), "", "yellow"),
        ("asked for twice at once, sent once", len(books.told) - pairs, "", None),
        ("asked for again later, reused", reused, "", None),
        ("requests", books.attempts, books.requests, None),
        ("of them retries", books.attempts - len(books.sends), "", None),
        ("answers over quota (429)", "", books.over_quota, "bold"),
        ("slots left", books.quota.remaining, books.left, None),
        ("unconfirmed", books.quota.unconfirmed, "", None),
    ):
        table.add_row(what, str(client), str(emulator), style=style)
    return table
