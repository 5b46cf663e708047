"""``braze-sends demo``: more creates than the quota has, over a bad line; then the books."""

from __future__ import annotations


def demo() -> None:
    """Create more than the quota allows while requests fail, and compare both records.

    Everything happens on this machine, in a few seconds. The exit code is 0
    only if the emulator's record agrees with what the client believes.
    """
    from rich.console import Console

    from braze_sends.cli.demo import show
    from braze_sends.testing.demo import Plan

    show(Plan(), Console(highlight=False))
