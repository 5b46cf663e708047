"""The command line, ``braze-sends``. It needs the extra ``cli``: typer and rich."""

from __future__ import annotations

import os
import sys

_HINT = "error: the command line needs typer and rich: pip install 'braze_sends[cli]'"


def main() -> None:
    """Run ``braze-sends``."""
    try:
        # Python has None for what was closed before it started.
        sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  # as long as the process
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
        try:
            import rich.console  # noqa: F401  # every command needs it

            from braze_sends.cli.app import app
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("typer", "rich"):
                raise
            sys.exit(_HINT)  # to stderr, with exit code 1
        app(prog_name="braze-sends")
    except KeyboardInterrupt:  # while modules are imported; later ones typer sees
        sys.exit(130)
