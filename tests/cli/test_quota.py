"""``braze-sends quota``: in this process, as a process of its own, and on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from braze_sends import Creations, QuotaStatus, SendsClient, StoreError
from braze_sends.cli import quota as module
from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import Run, Start
from tests.clocks import SharedClock
from tests.waiting import wait_until

RESET = datetime(2026, 11, 23, tzinfo=UTC)
NOW = datetime(2026, 11, 22, 14, 48, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A store that outlives a command."""
    return f"sqlite:///{tmp_path / 'quota.db'}"


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's clock is an hour ahead of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1")
        time.tzset()
        yield
    time.tzset()


def creations(*counts: tuple[str, int, int]) -> tuple[Creations, ...]:
    """Of campaign, hour since the day began, and number."""
    return tuple(
        Creations(campaign, NOW.replace(hour=0, minute=0) + timedelta(hours=hour), count)
        for campaign, hour, count in counts
    )


def quota_of(
    *counts: tuple[str, int, int], resets_at: datetime | None = RESET, **numbers: int
) -> QuotaStatus:
    return QuotaStatus(
        limit=100,
        remaining=numbers.get("remaining", 35),
        in_flight=2,
        unconfirmed=numbers.get("unconfirmed", 1),
        resets_at=resets_at,
        known=resets_at is not None,
        used=62,
        creations=creations(*counts),
    )


def shown(status: QuotaStatus, pens: module.Glyphs | None = None, **options: bool) -> list[str]:
    """The lines of a status."""
    lasts_not = options.get("lasts_not", False)
    lines = module.describe(status, NOW, pens or module.Glyphs(), lasts_not=lasts_not)
    return [line.plain for line in lines]


# --- in this process -----------------------------------------------------------------------------


def test_unknown_quota(run: Run, fake: FakeBraze) -> None:
    """A new process without a store says that it knows nothing, and what would remember."""
    result = run("quota")

    assert (0, []) == (result.exit_code, fake.requests)
    assert result.stdout.startswith("Nothing is known of the quota yet")
    assert "\n--store sqlite:///" in result.stdout
    assert "Remaining     100 (assumed)\n" in result.stdout


def test_unknown_quota_of_a_store_that_lasts(run: Run, store: str) -> None:
    """Who has a store that lasts is not told to get one."""
    result = run("quota", "--store", store)

    assert result.stdout.startswith("Nothing is known of the quota yet")
    assert "--store" not in result.stdout


def test_known_quota(run: Run, fake: FakeBraze, store: str) -> None:
    """What creates have learnt and done is shown by the next command with that store."""
    fake.daily_limit = 10
    fake.spend(1)
    for campaign in ("news", "shop", "news"):
        assert 0 == run("create", campaign, "--store", store).exit_code
    requests = len(fake.requests)
    lines = run("quota", "--store", store).stdout.splitlines()

    assert [
        "Limit         10",
        "Used          4",
        "In flight     0",
        "Unconfirmed   0",
        "Remaining     6",
    ] == lines[:5]
    assert lines[5].startswith("Resets        ")
    assert ", in " in lines[5]
    assert lines[6].startswith("Created       3 through this store, 3 in the")
    assert ["2  news  ▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆", "1  shop  ▆▆▆▆▆▆▆▆▆▆▆▆"] == lines[-2:]
    assert "██" in lines[8]
    assert requests == len(fake.requests)


def test_json(run: Run, clock: SharedClock, store: str) -> None:
    """``--json`` prints one object, with times in UTC."""
    before = json.loads(run("quota", "--json").stdout)
    now = datetime.fromtimestamp(clock(), UTC)
    run("create", "c", "--store", store)
    result = run("quota", "--json", "--store", store)
    after = json.loads(result.stdout)

    assert (False, None, None, []) == tuple(
        before[name] for name in ("known", "resets_at", "used", "creations")
    )
    assert now + timedelta(hours=12) == datetime.fromisoformat(after.pop("resets_at"))
    assert {
        "known": True,
        "limit": 2,
        "remaining": 1,
        "in_flight": 0,
        "unconfirmed": 0,
        "used": 1,
        "creations": [{"campaign_id": "c", "hour": now.isoformat(), "count": 1}],
    } == after
    assert 1 == result.stdout.count("\n")


def test_unconfirmed_is_no_creation(
    run: Run, fake: FakeBraze, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send of which nobody knows whether it was created is not shown as created."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)
    fake.script(Fault(drop="after"), Fault(drop="after"), Fault(drop="after"))
    assert 1 == run("create", "c", "--store", store).exit_code
    told = json.loads(run("quota", "--json", "--store", store).stdout)

    assert [] == told["creations"]
    assert told["unconfirmed"]


def test_a_damaged_tally_is_an_error(run: Run, store: str, tmp_path: Path) -> None:
    """One that somebody has changed by hand; the line says what to do."""
    run("create", "c", "--store", store)
    with contextlib.closing(sqlite3.connect(tmp_path / "quota.db")) as database:
        (state,) = database.execute("SELECT state FROM quota").fetchone()
        (hour,) = json.loads(state)["tally"]["hours"]
        database.execute("UPDATE quota SET state = ?", [state.replace(hour, "noon")])
        database.commit()
    result = run("quota", "--store", store)

    assert (1, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("error: the store holds a damaged history: delete ")


def test_colours(run: Run, store: str) -> None:
    """On a terminal what is left has a colour, unless none are wanted; elsewhere none at all."""
    run("create", "c", "--store", store)
    args = ("quota", "--store", store)

    assert "Remaining     \x1b[32m1\x1b[0m\n" in run(*args, env={"FORCE_COLOR": "1"}).stdout
    bare = run(*args, env={"FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert "Remaining     1\n" in bare.stdout
    assert "\x1b[3" not in bare.stdout
    assert "\x1b" not in run(*args).stdout


# --- what is shown -------------------------------------------------------------------------------


@pytest.mark.usefixtures("zone")
def test_a_day() -> None:
    """Numbers, hours by the user's clock, campaigns by what they created; the heavier part of the
    axis has begun."""
    status = quota_of(("news", 0, 1), ("news", 8, 24), ("shop", 8, 2), ("shop", 14, 13))

    assert [
        "Limit         100",
        "Used          62",
        "In flight     2",
        "Unconfirmed   1",
        "Remaining     35",
        "Resets        Mon 23 Nov 01:00 CET = Mon 23 Nov 00:00 UTC, in 9 h 12 min",
        "Created       40 through this store, 26 in the busiest hour",
        "",
        "▁▁              ██          ▄▄",
        "┯━━━━━━━━━━━┯━━━━━━━━━━━┯━━━━━──────┬───────────┬",
        "01:00       07:00       13:00       19:00       01:00",
        "",
        "25  news  ▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆",
        "15  shop  ▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆",
    ] == shown(status)


@pytest.mark.usefixtures("zone")
def test_a_day_in_ascii() -> None:
    """Where the output's encoding has no blocks."""
    status = quota_of(("ne\x1bws", 0, 1), ("ne\x1bws", 8, 24), ("s" * 50, 14, 13))

    assert [
        "..              ##          ++",
        "+===========+===========+=====------+-----------+",
        "01:00       07:00       13:00       19:00       01:00",
        "",
        f"25  {'ne?ws':<40}  ########################",
        f"13  {'s' * 37}...  #############",
    ] == shown(status, module.ASCII)[8:]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp1252"])
def test_encodings_without_blocks(encoding: str) -> None:
    """What is drawn can be encoded."""
    assert module.ASCII == module.glyphs(encoding)


def test_control_characters_do_not_reach_the_terminal() -> None:
    """A campaign from the store cannot steer it."""
    assert "1  a\ufffd[2Jb  ▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆" == shown(quota_of(("a\x1b[2Jb", 3, 1)))[-1]


@pytest.mark.parametrize(
    ("resets_at", "hours", "bars", "axis"),
    [
        # A window of an hour: what was before it is not shown as anything.
        (NOW.replace(hour=15, minute=0), (14,), " " * 46 + "██", 48 * "━"),
        # One that ends within an hour has begun in the 25th before.
        (NOW.replace(hour=20, minute=30), (-4, 14), "██" + " " * 34 + "██", 38 * "━" + 12 * "─"),
        # One that is over, by this machine's clock.
        (NOW.replace(hour=14, minute=0), (13,), " " * 46 + "██", 48 * "━"),
        # One that is longer than a day.
        (NOW + timedelta(hours=40), (13, 14), "████", 4 * "━" + 46 * "─"),
        # None is known: a day up to now.
        (None, (-9, 14), "██" + " " * 44 + "██", 48 * "━"),
        (None, (14,), " " * 46 + "██", 48 * "━"),
    ],
)
def test_other_windows(
    resets_at: datetime | None, hours: tuple[int, ...], bars: str, axis: str
) -> None:
    """A chart of a day or an hour more, with all that was created, up to the reset or to now."""
    status = quota_of(*(("c", hour, 1) for hour in hours), resets_at=resets_at)
    lines = shown(status)
    begin = lines.index("") + 1 if resets_at else lines.index("", 2) + 1

    assert bars == lines[begin]
    assert axis == lines[begin + 1][:-1].replace("┯", "━").replace("┬", "─")


def test_many_campaigns() -> None:
    """The first by number are named, then by name; of the rest there is the sum."""
    counts = [(f"{n:03}", 5, 200 if n == 77 else 1) for n in reversed(range(150))]

    assert [
        "200  077  ▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆",
        "  1  000  ▆",
        "  1  001  ▆",
        "  1  002  ▆",
        "  1  003  ▆",
        "  1  004  ▆",
        "  1  005  ▆",
        "  1  006  ▆",
        "142  142 others",
    ] == shown(quota_of(*counts))[12:]


@pytest.mark.parametrize(
    ("named", "unnamed", "last"),
    [(9, 0, "8"), (8, 5, "others"), (9, 5, "others"), (0, 5, "others")],
)
def test_campaigns_that_are_not_told_apart(named: int, unnamed: int, last: str) -> None:
    """They come last, with those for which there is no room."""
    counts = [(f"{n}", 5, 9) for n in range(named)]
    if unnamed:
        counts.append(("", 5, unnamed))
    lines = shown(quota_of(*counts))[12:]

    assert last == lines[-1].split()[1]
    assert len(lines) <= 9
    assert 9 * named + unnamed == sum(int(line.split()[0]) for line in lines)


@pytest.mark.parametrize("campaigns", [1, 3, 9, 150])
@pytest.mark.parametrize("pens", [module.Glyphs(), module.ASCII])
def test_it_fits_into_a_terminal(campaigns: int, pens: module.Glyphs) -> None:
    """Of 80 columns and 24 rows, with the foot and the line for the next prompt."""
    counts = [(f"{n:0100}", hour, 7) for n in range(campaigns) for hour in range(24)]
    lines = shown(quota_of(*counts), pens)

    assert max(map(len, lines)) <= 80
    assert len(lines) + 3 <= 24
    assert lines == [line.rstrip() for line in lines]


def test_nothing_is_known_but_something_was_created() -> None:
    """Braze has told no numbers; they are marked as assumed, and creations are shown."""
    lines = shown(quota_of(("c", 14, 3), resets_at=None), lasts_not=True)

    assert "--store sqlite:///quota.db" == lines[2]
    assert [
        "",
        "Limit         100 (assumed)",
        "Used          unknown",
        "In flight     2",
        "Unconfirmed   1",
        "Remaining     35 (assumed)",
        "Resets        unknown",
        "Created       3 through this store, 3 in the busiest hour",
        "",
    ] == lines[3:12]


@pytest.mark.parametrize(
    ("remaining", "style"), [(21, "green"), (20, "yellow"), (1, "yellow"), (0, "bold red")]
)
def test_what_is_left_has_the_colour_of_a_traffic_light(remaining: int, style: str) -> None:
    """Green while it is more than a fifth, red when it is nothing."""
    lines = module.describe(
        quota_of(remaining=remaining, unconfirmed=0), NOW, module.Glyphs(), lasts_not=False
    )

    assert [style] == [span.style for line in lines for span in line.spans]


# --- watch ---------------------------------------------------------------------------------------


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def looks(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> list[QuotaStatus | StoreError]:
    """What one look after the other shows; then comes Ctrl-C, or SIGTERM."""
    looks: list[QuotaStatus | StoreError] = [
        quota_of(resets_at=RESET, remaining=2),
        StoreError("the store is away"),
        quota_of(resets_at=RESET, remaining=1),
    ]
    rest = iter(looks)

    async def look(_: Any) -> QuotaStatus:
        seen = next(rest, None)
        if seen is None:
            signal.raise_signal(request.param)
            return quota_of()
        if isinstance(seen, StoreError):
            raise seen
        return seen

    monkeypatch.setattr(SendsClient, "quota", look)
    monkeypatch.setattr(module, "REFRESH", 0.0)
    return looks


@pytest.mark.usefixtures("looks")
def test_watch(run: Run) -> None:
    """A block for each look with an empty line between; a store that is away is told, and asked
    again; Ctrl-C or SIGTERM is the normal end."""
    result = run("quota", "--watch")
    blocks = result.stdout.split("\n\n")

    assert (0, "error: the store is away\n") == (result.exit_code, result.stderr)
    assert ["2", "1"] == [block.splitlines()[4].split()[1] for block in blocks[:2]]
    assert all(block.startswith("Limit         100\n") for block in blocks)


@pytest.mark.usefixtures("looks")
def test_watch_as_json(run: Run) -> None:
    """An object for each look, on a line of its own; an error is one, too."""
    result = run("quota", "--watch", "--json")
    told = [json.loads(line) for line in result.stdout.splitlines()]

    assert (0, "") == (result.exit_code, result.stderr)
    assert [2, None, 1] == [one.get("remaining") for one in told[:3]]
    assert ("StoreError", "the store is away") == (told[1]["error"], told[1]["message"])


def test_watch_opens_the_store_once(
    run: Run, store: str, fake: FakeBraze, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All looks share a client and a connection, and none asks Braze."""
    quota, connect = SendsClient.quota, sqlite3.connect
    clients: list[SendsClient] = []
    opened: list[sqlite3.Connection] = []

    async def look(braze: SendsClient) -> QuotaStatus:
        clients.append(braze)
        if len(clients) == 3:
            signal.raise_signal(signal.SIGINT)
        return await quota(braze)

    def open_database(*args: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*args, **options))
        return opened[-1]

    monkeypatch.setattr(SendsClient, "quota", look)
    monkeypatch.setattr(sqlite3, "connect", open_database)
    monkeypatch.setattr(module, "REFRESH", 0.0)
    result = run("quota", "--watch", "--store", store)

    assert (0, 1, 1) == (result.exit_code, len(set(clients)), len(opened))
    assert [] == fake.requests


def test_watch_needs_a_store_that_can_be(run: Run) -> None:
    """Wrong usage is told at once."""
    assert 2 == run("quota", "--watch", "--store", "nowhere://").exit_code


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output, as it is captured, is a terminal."""
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.usefixtures("terminal")
def test_redrawing(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal a look is drawn over the one before; while the store is away, what was seen
    last stays, and the error is below."""
    with module._screen(as_json=False, lasts_not=False) as show:
        show(StoreError("gone\x07"))
        first = capsys.readouterr().out
        show(quota_of())
        second = capsys.readouterr().out
        show(StoreError("the store is away"))
        third = capsys.readouterr().out

    up = "\x1b[1A\x1b[2K"
    assert "Limit" not in first
    assert "error: gone\ufffd" in first
    assert (1, 0) == (second.count(up), second.count("error"))
    assert second.endswith(", Ctrl-C ends it\x1b[0m")
    assert 7 == third.count(up)
    assert "Limit         100" in third
    assert third.endswith(" error: the store is away\x1b[0m")
    assert capsys.readouterr().out.endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.usefixtures("terminal")
def test_a_terminal_that_cannot_redraw(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is treated as a pipe."""
    monkeypatch.setenv("TERM", "dumb")
    with module._screen(as_json=False, lasts_not=False) as show:
        show(quota_of())

    assert capsys.readouterr().out.startswith("Limit         100\nUsed          62\n")


@pytest.mark.usefixtures("terminal")
def test_json_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """It is the same as in a pipe."""
    with module._screen(as_json=True, lasts_not=False) as show:
        show(quota_of())

    assert 62 == json.loads(capsys.readouterr().out)["used"]


# --- as a process of its own ---------------------------------------------------------------------


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_watch_in_a_pipe(run: Run, start: Start, store: str, stop: signal.Signals) -> None:
    """Each block is there when it is printed, in an encoding that cannot carry blocks too; Ctrl-C
    or SIGTERM ends it with exit code 0."""
    run("create", "c", "--store", store)
    watch = start("quota", "--watch", "--store", store, env={"PYTHONIOENCODING": "ascii"})
    assert watch.stdout is not None
    lines = [watch.stdout.readline() for _ in range(13)]
    watch.send_signal(stop)

    assert ("", "", 0) == (*watch.communicate(), watch.returncode)
    assert ["Limit         2\n", "1  c  ########################\n"] == [lines[0], lines[-1]]


def test_watch_where_sigint_is_ignored(start: Start, clock: SharedClock, store: str) -> None:
    """A watch that was started with SIGINT ignored goes on after it, and ends by SIGTERM."""
    watch = start("quota", "--watch", "--json", "--store", store, no_sigint=True)
    out = watch.stdout
    assert out is not None
    first = out.readline()
    watch.send_signal(signal.SIGINT)

    def looked_again() -> bool:
        clock.advance(module.REFRESH)  # again and again: it may not have begun to wait
        return bool(select.select([out], [], [], 0)[0])

    wait_until(looked_again)
    second = out.readline()
    watch.send_signal(signal.SIGTERM)
    rest, err = watch.communicate()

    assert (0, "") == (watch.returncode, err)
    assert {first} == {second, *rest.splitlines(keepends=True)}
    assert 100 == json.loads(first)["limit"]


def test_watch_on_a_terminal(run: Run, start: Start, store: str) -> None:
    """Ctrl-C leaves what was seen last, and the cursor."""
    run("create", "c", "--store", store)
    ours, theirs = pty.openpty()
    env = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80", "LINES": "24"}
    watch = start("quota", "--watch", "--store", store, env=env, stdout=theirs)
    os.close(theirs)
    shown = b""
    while b"Ctrl-C ends it" not in shown:
        shown += os.read(ours, 4096)
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate()
    with contextlib.suppress(OSError):  # Linux: the other end is closed
        while more := os.read(ours, 4096):
            shown += more
    os.close(ours)

    assert (0, "") == (watch.returncode, err)
    assert shown.startswith(b"\x1b[?25lLimit         2\r\n")
    assert "1  c  ▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆▆\r\n".encode() in shown
    assert b"\x1b[3" not in shown
    assert shown.endswith(b"\x1b[?25h")
