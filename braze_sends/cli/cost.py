"""``braze-sends batch --dry-run``: what a file would cost, against the quota that is left."""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import typer

from braze_sends import CreateSendId, QuotaStatus, SendsClient
from braze_sends.cli.common import moment, print_json
from braze_sends.cli.output import OutputError, Status, decision_in
from braze_sends.cli.rows import Rows
from braze_sends.protocol import pair_digest

#: Pairs that are looked up in one step.
_AT_ONCE = 100


def show_cost(
    rows: Rows, braze: SendsClient, output: str | None, headroom: int, as_json: bool
) -> None:
    """Print how many rows are left to create, and how many days that takes. Nothing is sent."""
    decided = _decided(output)
    found = Counter(decided.get(pair_digest(request)) for request in rows)
    todo = (request for request in rows if pair_digest(request) not in decided)
    remembered, status = asyncio.run(_ask_store(braze, todo))
    create = found[None] - remembered
    failed = found["failed"]
    before = rows.count - found[None] - failed
    days = _days(create, status, headroom)
    if as_json:
        print_json(
            {
                "rows": rows.count,
                "bad": rows.bad,
                "repeated": rows.repeated,
                "before": before,
                "failed_before": failed,
                "remembered": remembered,
                "to_create": create,
                "limit": status.limit,
                "remaining": status.remaining,
                "known": status.known,
                "resets_at": status.resets_at and status.resets_at.isoformat(),
                "days": days,
            }
        )
        return
    assumed = "" if status.known else " (assumed)"
    resets = "" if status.resets_at is None else f", resets {moment(status.resets_at)}"
    for label, value in {
        "Rows": f"{rows.count}",
        "Bad": f"{rows.bad}",
        "Repeated": f"{rows.repeated}",
        "Done before": f"{before}",
        "Failed before": f"{failed}",
        "Remembered": f"{remembered}",
        "To create": f"{create}",
        "Quota left": f"{status.remaining} of {status.limit}{assumed}{resets}",
        "Days needed": "never: all of it is headroom" if days is None else f"{days}",
    }.items():
        typer.echo(f"{label:<15}{value}")


def _decided(output: str | None) -> dict[bytes, Status]:
    """What the lines in the output say, which stays as it is."""
    if output is None or not os.path.isfile(output):
        return {}
    try:
        with open(output, "rb") as file:
            return dict(found for line in file if (found := decision_in(line)) is not None)
    except OSError as error:
        raise OutputError(f"{output} cannot be read: {error.strerror}") from None


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
        while some := list(islice(pairs, _AT_ONCE)):
            found = [braze.find_send_id(pair.campaign_id, str(pair.send_id)) for pair in some]
            remembered += sum(send is not None for send in await asyncio.gather(*found))
        return remembered, await braze.quota()
