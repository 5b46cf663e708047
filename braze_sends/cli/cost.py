"""``braze-sends batch --dry-run``: what a file would cost, against the quota that is left."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from itertools import islice

import typer

from braze_sends import CreateSendId, QuotaStatus, SendsClient
from braze_sends.cli.common import moment, print_json, printing
from braze_sends.cli.summary import Summary


def show_cost(
    summary: Summary,
    todo: Iterable[CreateSendId],
    braze: SendsClient,
    headroom: int,
    as_json: bool,
) -> None:
    """Print what is left to do, ``todo``, and how many days that takes. Nothing is sent."""
    remembered, status = asyncio.run(_ask_store(braze, todo))
    create = summary.left - remembered
    days = _days(create, status, headroom)
    shown = {**summary.known_before, "remembered": remembered, "to_create": create}
    if as_json:
        names = ("limit", "remaining", "known", "resets_at")
        quota = {name: getattr(status, name) for name in names}
        print_json({**shown, **quota, "days": days})
        return
    assumed = "" if status.known else " (assumed)"
    resets = "" if status.resets_at is None else f", resets {moment(status.resets_at)}"
    with printing():
        for name, value in {
            **shown,
            "quota_left": f"{status.remaining} of {status.limit}{assumed}{resets}",
            "days_needed": "never: the limit leaves none" if days is None else days,
        }.items():
            label = name.replace("_", " ").capitalize()
            typer.echo(f"{'Done before' if name == 'before' else label:<15}{value}")


def _days(create: int, status: QuotaStatus, headroom: int) -> int | None:
    """On how many days something is created; ``None`` if it never ends."""
    today, daily = max(0, status.remaining - headroom), max(0, status.limit - headroom)
    if create <= today:
        return min(create, 1)
    return (today > 0) + math.ceil((create - today) / daily) if daily else None


async def _ask_store(braze: SendsClient, todo: Iterable[CreateSendId]) -> tuple[int, QuotaStatus]:
    """How many of the pairs are remembered, and the quota."""
    async with braze:
        remembered, pairs = 0, iter(todo)
        while some := list(islice(pairs, 100)):
            found = [braze.find_send_id(pair.campaign_id, str(pair.send_id)) for pair in some]
            remembered += sum(send is not None for send in await asyncio.gather(*found))
        return remembered, await braze.quota()
