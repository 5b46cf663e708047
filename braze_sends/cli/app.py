"""The commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import shlex
from typing import Annotated

import typer
from rich.console import Console

import braze_sends
from braze_sends import SendId, SendsClient, new_send_id
from braze_sends.cli.batch import batch
from braze_sends.cli.common import (
    ERROR,
    INTERRUPTED,
    STOPPING,
    BaseUrlOption,
    JsonOption,
    KeyFileOption,
    StoreOption,
    WorkspaceOption,
    make_client,
    moment,
    note,
    printable,
    printing,
    reporting,
    status_of,
    until_stopped,
)
from braze_sends.cli.demo import demo
from braze_sends.cli.doctor import doctor
from braze_sends.cli.quota import quota
from braze_sends.testing import FakeBraze

app = typer.Typer(
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
        typer.echo(f"braze-sends {braze_sends.__version__}")
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


# --- create --------------------------------------------------------------------------------------


def create(
    campaign_id: Annotated[
        str, typer.Argument(metavar="CAMPAIGN_ID", help="The campaign's API identifier.")
    ],
    send_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Your name for the send. Without it: a new one."),
    ] = None,
    as_json: JsonOption = False,
    headroom: Annotated[
        int, typer.Option(min=0, metavar="N", help="Slots of the quota to leave for others.")
    ] = 0,
    max_wait: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="The longest wait for quota; inf for ever."),
    ] = 30.0,
    base_url: BaseUrlOption = None,
    store: StoreOption = None,
    workspace: WorkspaceOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Create a send ID and print it."""
    # Named here, so that it is known whatever happens and can be asked for again.
    name = new_send_id() if send_id is None else send_id

    async def run(braze: SendsClient) -> SendId:
        async with braze:
            wait = None if max_wait == math.inf else max_wait
            try:
                return await braze.create_send_id(
                    campaign_id, name, max_rate_limit_wait=wait, headroom=headroom
                )
            except asyncio.CancelledError:
                note(STOPPING)
                raise

    with reporting(as_json):
        client = make_client(base_url, store, workspace, api_key_file)
        try:
            send = asyncio.run(run(client))
        except KeyboardInterrupt:
            note(f"interrupted; to ask for the same send again, pass --send-id {name}")
            raise typer.Exit(INTERRUPTED) from None
    with printing(f"; {status_of(send)}: {send.campaign_id}, {send.send_id}"):
        typer.echo(json.dumps(_send_object(send)) if as_json else printable(send.send_id))
    if not as_json and Console(stderr=True).is_terminal:
        note(_details(send))


def _send_object(send: SendId) -> dict[str, object]:
    limit = send.rate_limit
    return {
        "campaign_id": send.campaign_id,
        "send_id": send.send_id,
        "status": status_of(send),
        "attempts": send.attempts,
        "request_id": send.request_id,
        "rate_limit": limit
        and {
            "limit": limit.limit,
            "remaining": limit.remaining,
            "resets_at": limit.resets_at.isoformat(),
        },
    }


def _details(send: SendId) -> str:
    told: list[str] = [status_of(send)]
    if send.attempts > 1:
        told.append(f"{send.attempts} attempts")
    if (limit := send.rate_limit) is not None:
        told.append(f"{limit.remaining} of {limit.limit} left until {moment(limit.resets_at)}")
    return ", ".join(told)


# --- emulator ------------------------------------------------------------------------------------


def emulator(
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Where to listen; 0 for a free one.")
    ] = 0,
    daily_limit: Annotated[int, typer.Option(min=0, metavar="N", help="Slots of a window.")] = 100,
    api_key: Annotated[
        str, typer.Option(metavar="KEY", help="The made-up key that it accepts.")
    ] = "test-key",
    window: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="Length of a window; a day is 86400.")
    ] = 86400.0,
    latency: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long each answer takes.")
    ] = 0.0,
) -> None:
    """Run a Braze that sends nothing, to try things out.

    Its URL is the first line of the output. Stopping it, with Ctrl-C or
    SIGTERM, is its normal end: the exit code is 0.
    """
    fake = FakeBraze(
        port=port, daily_limit=daily_limit, api_key=api_key, window=window, latency=latency
    )
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.run(until_stopped(_serve(fake)))
        except OSError as error:
            note(f"error: cannot listen on port {port}: {error.strerror}")
            raise typer.Exit(ERROR) from None
    note(f"{len(fake.requests)} requests, {len(fake.created)} created, {fake.refused} over quota")


async def _serve(fake: FakeBraze) -> None:
    async with fake:
        with printing():
            typer.echo(fake.base_url)  # flushed, so that a script can wait for this line
        for line in (
            f"A Braze that sends nothing: {fake.daily_limit} send IDs in a window. To use it:",
            f"  export BRAZE_BASE_URL={fake.base_url}",
            f"  export BRAZE_API_KEY={shlex.quote(fake.model.api_key)}",
            "  braze-sends create my-campaign",
            "Ctrl-C ends it.",
        ):
            note(line)
        await asyncio.Event().wait()  # until it is stopped


# --- all commands, in the order of the help ------------------------------------------------------

for command, example in (
    (create, "BRAZE_BASE_URL=US-01 braze-sends create my-campaign --api-key-file key.txt"),
    (
        batch,
        "braze-sends batch calendar.csv --output sends.jsonl --store sqlite:///quota.db --wait",
    ),
    (quota, "braze-sends quota --store sqlite:///quota.db"),
    (doctor, "braze-sends doctor --store sqlite:///quota.db"),
    (demo, "braze-sends demo"),
    (emulator, "braze-sends emulator --port 8080 --daily-limit 5"),
):
    app.command(epilog=f"Example: {example}")(command)
