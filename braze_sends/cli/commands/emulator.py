"""``braze-sends emulator``: a Braze on this machine."""

from __future__ import annotations

from typing import Annotated

import typer


def emulator(
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="Where to listen; 0 for a free one.")
    ] = 0,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen; 0.0.0.0 lets other machines and containers in, without TLS.",
        ),
    ] = "127.0.0.1",
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
    """Run an emulator of Braze on this machine. It sends nothing.

    Its URL is the first line of the output. Stopping it, with Ctrl-C or
    SIGTERM, is its normal end: the exit code is 0.
    """
    import asyncio
    import shlex
    from urllib.parse import urlsplit

    from braze_sends.cli import common
    from braze_sends.testing import FakeBraze

    if not host:  # asyncio would listen on all addresses
        raise typer.BadParameter("empty; give an address such as 127.0.0.1", param_hint="--host")
    fake = FakeBraze(
        host=host,
        port=port,
        daily_limit=daily_limit,
        api_key=api_key,
        window=window,
        latency=latency,
    )

    async def serve() -> None:
        async with fake:
            with common.printing():
                typer.echo(fake.base_url)  # flushed, so that a script can wait for this line
            lines = [
                f"An emulator of Braze: {daily_limit} send IDs in a window. To use it:",
                f"  export BRAZE_BASE_URL={fake.base_url}",
                f"  export BRAZE_API_KEY={shlex.quote(api_key)}",
                "  braze-sends create my-campaign",
                "Ctrl-C ends it.",
            ]
            if not common.is_loopback(host):
                lines[:0] = [
                    f"warning: it listens on {host} without TLS. Everybody who can reach the port "
                    "can use it, and can read the keys that are sent to it: send no real key.",
                    "To use it from another machine or container, where NAME is this one's name:",
                    f"  export BRAZE_BASE_URL=http://NAME:{urlsplit(fake.base_url).port}",
                    "  export BRAZE_SENDS_ALLOW_HTTP_HOST=NAME",
                ]
            for line in lines:
                common.note(line)
            await asyncio.Event().wait()  # until it is stopped

    try:
        asyncio.run(common.until_stopped(serve()))
    except OSError as error:
        common.note(f"error: cannot listen on port {port} of {host}: {error.strerror}")
        raise typer.Exit(common.ERROR) from None
    common.note(
        f"{len(fake.requests)} requests, {len(fake.created)} created, {fake.refused} over quota"
    )
