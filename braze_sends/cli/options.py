"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

#: Groups of options in the help.
BRAZE, QUOTA = "Braze", "Quota"


def _take_profile(context: typer.Context, name: str | None) -> None:
    """Let the values of a profile stand in for options that are neither given nor in the
    environment."""
    if context.resilient_parsing:  # of the shell's completion
        return
    from braze_sends.cli import profiles
    from braze_sends.cli.common import reporting

    with reporting(as_json=False):
        context.default_map = profiles.options(name)


Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        envvar="BRAZE_SENDS_PROFILE",
        show_envvar=True,
        is_eager=True,  # before the options that it stands in for
        callback=_take_profile,
        help="A profile of ~/.config/braze-sends/config.toml. Without it: default, if there is "
        "one.",
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        rich_help_panel=QUOTA,
        metavar="URL",
        envvar="BRAZE_SENDS_STORE",
        show_envvar=True,
        help="Where the quota is remembered. Without it: in memory, until the command ends.",
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        rich_help_panel=BRAZE,
        metavar="URL",
        envvar="BRAZE_BASE_URL",
        help="Your Braze instance, such as US-01, or its REST URL.",
    ),
]
Workspace = Annotated[
    str | None,
    typer.Option(
        "--workspace",
        rich_help_panel=QUOTA,
        metavar="NAME",
        help="Names the quota in the store, where several keys share one.",
    ),
]
# The key is no option's value: arguments are seen by everybody who can list processes.
KeyFile = Annotated[
    str | None,
    typer.Option(
        "--api-key-file",
        rich_help_panel=BRAZE,
        metavar="PATH",
        help="A file that holds the API key, or - for standard input. Without it: the environment "
        "variable BRAZE_API_KEY, or a prompt.",
    ),
]
LogFile = Annotated[
    str | None,
    typer.Option(
        "--log-file",
        metavar="PATH",
        help="Append what happens inside to a file, a line for each event.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Headroom = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        rich_help_panel=QUOTA,
        help="Slots of the quota to leave for others.",
    ),
]
