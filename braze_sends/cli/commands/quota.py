"""``braze-sends quota``: the numbers, and what was created by hour and by campaign."""

from __future__ import annotations

from typing import Annotated

import typer

from braze_sends.cli import options


def quota(
    as_json: options.Json = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Refresh every 2 s, until Ctrl-C; with --json a line each."),
    ] = False,
    base_url: options.BaseUrl = None,
    store: options.Store = None,
    workspace: options.Workspace = None,
    api_key_file: options.KeyFile = None,
) -> None:
    """Show what is known of the quota; asks nothing of Braze.

    A store that lasts knows also what was created through it, by hour and by campaign.
    """
    from braze_sends.cli.common import existing, forgetful, make_client, reporting
    from braze_sends.cli.quota import show

    with reporting(as_json):
        place = store if watch else existing(store)
        client = make_client(base_url, place, workspace, api_key_file)
        show(client, watch=watch, as_json=as_json, lasts_not=forgetful(store))
