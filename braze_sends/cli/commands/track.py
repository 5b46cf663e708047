"""``braze-sends track``: what came of the sends that a batch created."""

from __future__ import annotations

from typing import Annotated

import typer

from braze_sends.cli import options


def track(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="The lines that braze-sends batch wrote; - for standard input.",
        ),
    ],
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV, a row of totals for each send.")
    ] = False,
    as_json: options.Json = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="The longest that an attempt may take.")
    ] = 10.0,
    base_url: options.BaseUrl = None,
    api_key_file: options.KeyFile = None,
) -> None:
    """Show the results of the sends that a batch created: messages, opens, conversions.

    Asks Braze for each send of the last 14 days, since it keeps the numbers
    for so long. That costs no quota. The API key needs the permission
    sends.data_series.
    """
    import asyncio

    from braze_sends import ConfigurationError, SendsClient
    from braze_sends.cli import common, track

    with common.reporting(as_json):
        if as_csv and as_json:
            raise ConfigurationError("--csv and --json cannot both be given")
        if file == api_key_file == "-":
            raise ConfigurationError("FILE and --api-key-file cannot both be standard input")
        key = common.api_key(api_key_file)
        # Nothing is asked of the store, so none is opened.
        braze = SendsClient(key, base_url=base_url, store="memory://", timeout=timeout)
        sends = track.read_sends(file)
        try:
            asyncio.run(track.ask(braze, sends.tracked))
        except KeyboardInterrupt:
            common.note("interrupted")
            raise typer.Exit(common.INTERRUPTED) from None
    show = track.show_json if as_json else track.show_csv if as_csv else track.show_table
    show(sends)
    if sends.older:
        common.note(f"left out, since Braze keeps the numbers for 14 days: {sends.older} older")
    if any(send.error for send in sends.tracked):
        raise typer.Exit(common.SOME_FAILED)
