"""``braze-sends demo``: more creates than the quota has, over a bad line; then the books."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import attrs
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from braze_sends import (
    BrazeSendsError,
    MemoryStore,
    QuotaExhaustedError,
    QuotaStatus,
    SendId,
    SendsClient,
)
from braze_sends.cli.common import ERROR, printing, span
from braze_sends.testing import FakeBraze, Fault

Pair = tuple[str, str]

CAMPAIGN: Final = "demo-campaign"

#: What goes wrong, each twice. All of it early, while slots are left: a repeat or a probe that
#: meets a used-up quota may rightly be refused, and the demo claims that no request is.
FAULTS: Final[Mapping[str, Callable[[float], Fault]]] = {
    "created, then the connection is cut": lambda _: Fault(drop="after"),
    "the connection is cut before": lambda _: Fault(drop="before"),
    "503 Service Unavailable": lambda _: Fault(status=503),
    "502 with HTML, from the edge": lambda _: Fault(status=502),
    "504 from the edge, but created": lambda _: Fault(status=504, commit=True),
    "created, answered after the timeout": lambda timeout: Fault(stall=3 * timeout),
    "created after the timeout": lambda timeout: Fault(delay=1.5 * timeout),
    "created, rate-limit headers blank": lambda _: Fault(headers="blank"),
    "created, rate-limit headers garbled": lambda _: Fault(headers="garbled"),
}


@attrs.frozen(kw_only=True)
class Plan:
    """The size of a demo.

    Attributes:
        limit: slots of the quota.
        pairs: send IDs that are asked for.
        twice: how many of them are asked for twice at once, and once more in the end.
        rush: the time in which all are asked for, seconds. Those that come late find slots taken
            by doubts, and have to wait until these are cleared.
        timeout: seconds for one attempt. A doubt is charged three times as long, so this sets
            how long the demo takes.
        latency: the longest that an answer takes without a fault, seconds.
    """

    limit: int = 100
    pairs: int = 130
    twice: int = 10
    rush: float = 0.8
    timeout: float = 0.5
    latency: float = 0.15


@attrs.frozen(kw_only=True)
class Books:
    """What the client's callers were told, and what the emulator wrote down.

    Attributes:
        told: the outcome of every call of the rush.
        again: the outcomes of asking once more for what exists.
        quota: the client's view in the end.
        created, requests, over_quota, left: the emulator's view in the end.
        ended: when that was, by the emulator's clock.
    """

    told: Sequence[tuple[Pair, SendId | BrazeSendsError]]
    again: Sequence[SendId | BrazeSendsError]
    quota: QuotaStatus
    created: Sequence[Pair]
    requests: int
    over_quota: int
    left: int
    ended: datetime

    @property
    def sends(self) -> dict[Pair, SendId]:
        """What the client holds for created, by the pair that was asked for."""
        return {pair: told for pair, told in self.told if isinstance(told, SendId)}

    @property
    def refused(self) -> list[BrazeSendsError]:
        """The errors."""
        return [told for _, told in self.told if not isinstance(told, SendId)]

    @property
    def attempts(self) -> int:
        """Requests that the client made. Two calls for one pair share theirs."""
        return sum(send.attempts for send in self.sends.values())


async def run(plan: Plan, progress: Callable[[SendId | BrazeSendsError], None]) -> Books:
    """Create more send IDs than the quota has, in one rush, and return both sides' books."""
    fake = FakeBraze(
        api_key="demo-key",
        daily_limit=plan.limit,
        latency=lambda: random.uniform(0, plan.latency),
    )
    # By its clock the demo begins at noon, so that no day ends while it runs.
    fake.clock_offset = 43_200.0 - time.time() % 86_400.0
    faults = [make(plan.timeout) for make in FAULTS.values()] * 2
    random.shuffle(faults)
    fake.script(None, *faults)
    async with (
        fake,
        SendsClient(
            "demo-key",
            base_url=fake.base_url,
            store=MemoryStore(),  # never the one that BRAZE_SENDS_STORE names
            timeout=plan.timeout,
            max_retries=8,
            max_rate_limit_wait=20.0,  # until the doubts are cleared, and no longer
        ) as braze,
    ):

        async def ask(pair: Pair, delay: float = 0.0) -> SendId | BrazeSendsError:
            await asyncio.sleep(delay)
            try:
                told: SendId | BrazeSendsError = await braze.create_send_id(*pair)
            except BrazeSendsError as error:
                told = error
            progress(told)
            return told

        pairs = [(CAMPAIGN, f"story-{n}") for n in range(plan.pairs)]
        delays = [plan.rush * n / plan.pairs for n in range(plan.pairs)]
        calls = pairs + pairs[: plan.twice]
        told = await asyncio.gather(*map(ask, calls, delays + delays[: plan.twice]))
        again = await asyncio.gather(*map(ask, pairs[: plan.twice]))
        return Books(
            told=list(zip(calls, told, strict=True)),
            again=again,
            quota=await braze.quota(),
            created=fake.created,
            requests=len(fake.requests),
            over_quota=fake.refused,
            left=fake.remaining,
            ended=datetime.fromtimestamp(fake.now, UTC),
        )


def disagreements(plan: Plan, books: Books) -> list[str]:
    """What the emulator's record and the client's belief differ in; empty if all is well."""
    created, sends = Counter(books.created), books.sends
    wanted = min(plan.limit, plan.pairs)
    found: dict[str, Sequence[object]] = {
        "created, but the client does not know": sorted(created.keys() - sends.keys()),
        "held for created, but the emulator has none": sorted(sends.keys() - created.keys()),
        "created twice": [pair for pair, times in created.items() if times > 1],
        "answered with another pair": [
            pair for pair, send in sends.items() if (send.campaign_id, send.send_id) != pair
        ],
        "failed, not for want of quota": [
            str(error) for error in books.refused if not isinstance(error, QuotaExhaustedError)
        ],
        "refused without a time to come back": [
            str(error)
            for error in books.refused
            if isinstance(error, QuotaExhaustedError) and error.retry_after is None
        ],
        "created before, but asked of Braze again": [
            str(told) for told in books.again if not (isinstance(told, SendId) and told.reused)
        ],
        "answers over quota": [books.over_quota] * (books.over_quota > 0),
        "slots not used": [wanted - len(created)] * (wanted > len(created)),
        "slots left, by the client and by the emulator": [books.quota.remaining, books.left]
        * (books.quota.remaining != books.left),
    }
    return [f"{what}: {', '.join(map(str, which))}" for what, which in found.items() if which]


def table(books: Books) -> Table:
    """Both sides' books, side by side."""
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False)
    shown.add_column("")
    shown.add_column("client", justify="right")
    shown.add_column("emulator", justify="right")
    pairs = len({pair for pair, _ in books.told})
    shared = len(books.told) - pairs
    reused = sum(isinstance(told, SendId) and told.reused for told in books.again)
    shown.add_row("send IDs asked for", f"{pairs}", "")
    shown.add_row("created", f"{len(books.sends)}", f"{len(books.created)}", style="green")
    shown.add_row("refused", f"{len(books.refused)}", "", style="yellow")
    shown.add_row("asked for twice at once, sent once", f"{shared}", "")
    shown.add_row("asked for again later, reused", f"{reused}", "")
    shown.add_row("requests", f"{books.attempts}", f"{books.requests}")
    shown.add_row("of them retries", f"{books.attempts - len(books.sends)}", "")
    shown.add_row("answers over quota (429)", "", f"{books.over_quota}", style="bold")
    shown.add_row("slots left", f"{books.quota.remaining}", f"{books.left}")
    shown.add_row("unconfirmed", f"{books.quota.unconfirmed}", "")
    return shown


def demo() -> None:
    """Ask for more send IDs than the quota has, over a bad line, and compare the books.

    Everything happens on this machine, in a few seconds. The exit code is 0
    only if the emulator's record agrees with what the client believes.
    """
    show(Plan(), Console(highlight=False))


def show(plan: Plan, console: Console) -> None:
    """Run a demo of any size on a console, and exit with 1 if the books disagree."""
    with printing():
        announce(plan, console)
    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(
            "[green]{task.fields[created]} created[/] [yellow]{task.fields[refused]} refused"
        ),
        console=console,
        disable=not console.is_interactive,
    )
    created: set[str] = set()
    refused: list[BrazeSendsError] = []
    with bar:
        calls = bar.add_task("", total=plan.pairs + 2 * plan.twice, created=0, refused=0)

        def progress(told: SendId | BrazeSendsError) -> None:
            if isinstance(told, SendId):
                created.add(told.send_id)
            else:
                refused.append(told)
            bar.update(calls, advance=1, created=len(created), refused=len(refused))

        started = time.monotonic()
        books = asyncio.run(run(plan, progress))
        took = time.monotonic() - started
    with printing():
        report(books, took, disagreements(plan, books), console)


def announce(plan: Plan, console: Console) -> None:
    """Print what is going to happen."""
    console.print(
        f"Asking an emulator with {plan.limit} slots for {plan.pairs} send IDs within "
        f"{plan.rush:g} s,\n{plan.twice} of them twice. Of its first answers {2 * len(FAULTS)} go "
        "wrong, each of these twice:"
    )
    for what in FAULTS:
        console.print(f"  {what}", style="dim")


def report(books: Books, took: float, found: list[str], console: Console) -> None:
    """Print the books, and exit with 1 if there are disagreements."""
    console.print("", table(books), "", sep="\n")
    resets_at = books.quota.resets_at
    if books.refused and resets_at is not None:
        left = span((resets_at - books.ended).total_seconds())
        console.print(f"The refused may come back when the emulator's day ends, in {left}.")
    if found:
        for line in found:
            console.print(f"error: {line}", style="red", markup=False)
        raise typer.Exit(ERROR)
    console.print(
        f"After {took:.1f} s the emulator's record agrees with what the client believes.",
        style="green",
    )
