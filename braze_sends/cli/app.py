"""The command and its sub-commands. Each of these imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from braze_sends.cli.commands.batch import batch
from braze_sends.cli.commands.create import create
from braze_sends.cli.commands.demo import demo
from braze_sends.cli.commands.doctor import doctor
from braze_sends.cli.commands.emulator import emulator
from braze_sends.cli.commands.quota import quota
from braze_sends.cli.commands.store import store
from braze_sends.cli.commands.track import track
from braze_sends.cli.help import Command, Group

app = typer.Typer(
    cls=Group,
    help="Create Braze send IDs, and keep the daily quota that they cost.",
    epilog="Example: braze-sends create my-campaign --send-id story-1\n\n"
    "Exit codes: 0 done, 1 error, 2 wrong usage, 3 some rows of a batch have no send ID, "
    "75 no quota: come back later, 130 interrupted.",
    context_settings={"help_option_names": ["--help", "-h"]},
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # one of them may be the API key
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from braze_sends import __version__

        typer.echo(f"braze-sends {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of ``braze-sends`` itself."""


for command, example in (  # in the order of the help
    (create, "BRAZE_BASE_URL=US-01 braze-sends create my-campaign --api-key-file key.txt"),
    (
        batch,
        "braze-sends batch calendar.csv --output sends.jsonl --store sqlite:///quota.db --wait",
    ),
    (track, "braze-sends track sends.jsonl --csv"),
    (quota, "braze-sends quota --store sqlite:///quota.db"),
    (doctor, "braze-sends doctor --store sqlite:///quota.db"),
    (demo, "braze-sends demo"),
    (emulator, "braze-sends emulator --port 8080 --daily-limit 5"),
):
    app.command(cls=Command, epilog=f"Example: {example}")(command)
app.add_typer(store, name="store")
