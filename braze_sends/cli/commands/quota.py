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
    profile: options.Profile = None,
) -> None:
    """Show the quota as the store knows it. Sends nothing to Braze.

    A store that lasts knows also what was created through it, by hour and by campaign.
    """
    from braze_sends import SendsClient
    from braze_sends.cli import common
    from braze_sends.cli.quota import show

    with common.reporting(as_json):
        key = common.api_key(api_key_file)
        place = store if watch else common.existing(store)
        client = SendsClient(key, base_url=base_url, store=place, workspace=workspace)
        show(client, watch=watch, as_json=as_json, lasts_not=common.forgetful(store))
