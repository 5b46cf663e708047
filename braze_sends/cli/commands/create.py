"""``braze-sends create``: one send ID."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from braze_sends.cli import options

if TYPE_CHECKING:
    from braze_sends import SendId


def create(
    campaign_id: Annotated[
        str, typer.Argument(metavar="CAMPAIGN_ID", help="The campaign's API identifier.")
    ],
    send_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Your name for the send. Without it: a new one."),
    ] = None,
    as_json: options.Json = False,
    headroom: options.Headroom = 0,
    max_wait: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            rich_help_panel=options.QUOTA,
            help="The longest wait for quota; inf for ever.",
        ),
    ] = 30.0,
    base_url: options.BaseUrl = None,
    store: options.Store = None,
    workspace: options.Workspace = None,
    api_key_file: options.KeyFile = None,
    profile: options.Profile = None,
    log_file: options.LogFile = None,
) -> None:
    """Create a send ID and print it."""
    import asyncio
    import math

    import attrs
    from rich.console import Console

    from braze_sends import SendsClient, new_send_id
    from braze_sends.cli import common
    from braze_sends.cli.logs import logging_to

    # Named here, so that it is known whatever happens and can be asked for again.
    name = new_send_id() if send_id is None else send_id
    wait = None if max_wait == math.inf else max_wait

    async def run(braze: SendsClient) -> SendId:
        async with braze:
            try:
                return await braze.create_send_id(
                    campaign_id, name, max_rate_limit_wait=wait, headroom=headroom
                )
            except asyncio.CancelledError:
                common.note(common.STOPPING)
                raise

    with common.reporting(as_json), logging_to(log_file):
        key = common.api_key(api_key_file)
        client = SendsClient(key, base_url=base_url, store=store, workspace=workspace)
        try:
            send = asyncio.run(run(client))
        except KeyboardInterrupt:
            common.note(f"interrupted; to ask for the same send again, pass --send-id {name}")
            raise typer.Exit(common.INTERRUPTED) from None
    status = "queued" if send.queued else "reused" if send.reused else "created"
    otherwise = f"; {status}: {send.campaign_id}, {send.send_id}"
    if as_json:
        shown = {"campaign_id": send.campaign_id, "send_id": send.send_id, "status": status}
        shown |= attrs.asdict(send, filter=attrs.filters.exclude("queued", "reused"))
        common.print_json(shown, otherwise)
        return
    with common.printing(otherwise):
        typer.echo(common.printable(send.send_id))
    if Console(stderr=True).is_terminal:
        told = [status]
        if send.attempts > 1:
            told.append(f"{send.attempts} attempts")
        if limit := send.rate_limit:
            until = common.moment(limit.resets_at)
            told.append(f"{limit.remaining} of {limit.limit} left until {until}")
        common.note(", ".join(told))
