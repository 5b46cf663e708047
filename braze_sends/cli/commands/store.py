"""``braze-sends store``: what a store itself needs now and then."""

from __future__ import annotations

from typing import Annotated

import typer

from braze_sends.cli import options
from braze_sends.cli.help import Command, Group

store = typer.Typer(cls=Group, help="Prepare the store that keeps the quota.", no_args_is_help=True)


@store.command(
    cls=Command, epilog="Example: braze-sends store migrate --store postgresql://host/database"
)
def migrate(
    store: Annotated[
        str,
        typer.Option(
            "--store",
            metavar="URL",
            envvar="BRAZE_SENDS_STORE",
            show_envvar=True,
            help="The database, as postgresql://user@host/database.",
        ),
    ],
    profile: options.Profile = None,
) -> None:
    """Make the tables of a PostgreSQL store, or bring them up to date.

    Does nothing if they are, and harms nothing if several processes run it. Other stores need none.
    """
    import asyncio

    from braze_sends import PostgresStore, open_store
    from braze_sends.cli.common import printing, reporting

    with reporting(as_json=False):
        place = open_store(store)
        if not isinstance(place, PostgresStore):
            with printing():
                typer.echo("Nothing to do: this store needs no tables.")
            return

        async def run() -> int:
            try:
                return await place.migrate()
            finally:
                await place.close()

        version = asyncio.run(run())
        with printing():
            typer.echo(f"The tables have version {version} and are up to date.")
