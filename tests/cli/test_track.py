"""``braze-sends track``: what came of the sends that a batch created."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from braze_sends import APIConnectionError, SendAnalytics, SendsClient
from braze_sends.analytics import parse
from braze_sends.cli import common, track
from braze_sends.models import CreateSendId
from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import Run


@pytest.fixture(autouse=True)
def backoffs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt waits of its own accord."""
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the lines of a batch are."""
    return tmp_path / "sends.jsonl"


def line(send_id: Any, status: str = "created", days: float = 0, **fields: object) -> str:
    """A line of a batch, so many days old."""
    at = common.now() - timedelta(days=days)
    entry = {"campaign_id": "c", "send_id": send_id, "status": status, "error": None}
    entry |= {"request_id": None, "at": at.isoformat()}
    return json.dumps(entry | fields) + "\n"


@pytest.fixture
def created(run: Run, output: Path) -> Path:
    """The lines of a batch of two sends."""
    rows = "campaign_id,send_id\nc,s1\nc,s2\n"
    assert 0 == run("batch", "-", "--output", str(output), input=rows).exit_code
    return output


def test_a_batch_is_tracked_as_a_table(run: Run, created: Path) -> None:
    """A line for each send, with its totals."""
    result = run("track", str(created))

    heading, *lines = result.stdout.splitlines()
    assert 0 == result.exit_code, result.output
    columns = ["Sent", "Delivered", "Opens", "Clicks", "Bounces", "Conversions", "Revenue"]
    assert ["Campaign", "Send", "ID", *columns] == heading.split()
    numbers = ["1000", "960", "120", "60", "10", "12", "24.50"]
    assert [["c", "s1", *numbers], ["c", "s2", *numbers]] == [one.split() for one in lines]
    assert "" == result.stderr


def test_csv_has_a_row_of_totals_for_each_send(run: Run, created: Path) -> None:
    """By Braze's names; what it does not tell is an empty cell."""
    result = run("track", str(created), "--csv")

    first, second = csv.DictReader(io.StringIO(result.stdout))
    assert ("c", "s1", "1") == (first["campaign_id"], first["send_id"], first["days"])
    assert ("1000", "24.5", "12") == (first["sent"], first["revenue"], first["conversions"])
    assert ("s2", "", "") == (second["send_id"], second["clicks"], second["error"])


def test_json_has_all_that_braze_told(run: Run, created: Path, fake: FakeBraze) -> None:
    """Fields that nobody knows keep their names; what was not told is not there."""
    day = {
        "time": "2026-11-21",
        "messages": {"hologram": [{"variation_name": "A", "sent": 2, "waves": [1]}]},
        "revenue": 1.5,
        "sparks": 3,
    }
    body = json.dumps({"message": "success", "data": [day]})
    fake.fault_for = lambda request: Fault(status=200, body=body)
    told = json.loads(run("track", str(created), "--json").stdout)

    assert {"sends", "older"} == told.keys()
    first, second = told["sends"]
    assert {"campaign_id", "send_id", "at", "days", "error", "message"} == first.keys()
    assert ("s1", [day], None) == (first["send_id"], first["days"], first["error"])
    assert "s2" == second["send_id"]


def test_tracking_costs_no_quota(run: Run, created: Path, fake: FakeBraze) -> None:
    """The batch has used up the day, and its sends are tracked all the same."""
    assert 0 == fake.remaining
    assert 0 == run("track", str(created)).exit_code
    assert 0 == fake.refused


def test_only_what_braze_keeps_is_asked_for(run: Run, output: Path, fake: FakeBraze) -> None:
    """Each pair of the last 14 days once, if it was created; the lines from standard input."""
    lines = [
        line("old", days=14.1),
        line("new", days=13.9),
        line("queued", "queued"),
        line("no", "failed"),
        "\n",
        line("new", "reused"),
    ]
    result = run("track", "-", "--csv", input="".join(lines))

    assert 0 == result.exit_code, result.output
    asked = [row["send_id"] for row in csv.DictReader(io.StringIO(result.stdout))]
    assert ["new", "queued"] == asked
    assert 2 == len(fake.requests)
    assert "left out, since Braze keeps the numbers for 14 days: 1 older\n" == result.stderr


def test_nothing_to_track_is_no_error(run: Run, output: Path) -> None:
    """An empty file has no sends."""
    output.write_text("")
    result = run("track", str(output))
    assert (0, "") == (result.exit_code, result.output)


def test_a_line_that_was_cut_short_is_left_out(run: Run, output: Path, fake: FakeBraze) -> None:
    """It is the last one of a batch that was killed."""
    output.write_text(line("s1") + line("s2")[:40])
    result = run("track", str(output))
    assert 0 == result.exit_code
    assert f"the last line of {output} was cut short, and is left out\n" == result.stderr
    assert 1 == len(fake.requests)


@pytest.mark.parametrize(
    "foreign",
    [
        "campaign_id,send_id\n",
        "[]\n",
        "{}\n",
        line("s", more=1),
        line(None),
        line(""),
        line("s", status="lost"),
        line("s", at="2026-11-21"),
        line("s", at=1),
        '{"a": ' * 100_000 + "\n",
    ],
    ids=["csv", "list", "empty", "field", "unnamed", "blank", "status", "zone", "time", "deep"],
)
def test_a_file_of_something_else_is_refused(
    run: Run, output: Path, fake: FakeBraze, foreign: str
) -> None:
    """Its line is named, and nothing is asked."""
    output.write_text(line("s1") + foreign)
    result = run("track", str(output))
    assert 2 == result.exit_code
    assert f"error: {output}: line 2 is no result of a batch" in result.stderr
    assert [] == fake.requests


def test_a_file_that_cannot_be_read_is_told(run: Run, output: Path) -> None:
    """With the system's words."""
    result = run("track", str(output))
    told = f"error: {output} cannot be read: No such file or directory\n"
    assert (2, told) == (result.exit_code, result.stderr)


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("-", "--csv", "--json"), "--csv and --json cannot both be given"),
        (("-", "--api-key-file", "-"), "FILE and --api-key-file cannot both be standard input"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    run: Run, args: tuple[str, ...], problem: str
) -> None:
    """The error names both."""
    result = run("track", *args)
    assert 2 == result.exit_code
    assert problem in result.output


def test_a_send_that_fails_hides_no_other(run: Run, created: Path, fake: FakeBraze) -> None:
    """Exit code 3: some have no numbers."""
    fake.fault_for = lambda request: Fault(status=400) if len(fake.requests) == 3 else None
    result = run("track", str(created))
    assert 3 == result.exit_code
    assert "failed: c, s1: 400: campaign_id must be" in result.stderr
    assert ["c", "s1", *"-" * 7] == result.stdout.splitlines()[1].split()
    assert "24.50" in result.stdout.splitlines()[2]

    fake.fault_for = lambda request: Fault(status=400)
    for one in csv.DictReader(io.StringIO(run("track", str(created), "--csv").stdout)):
        assert "" == one["days"]
        assert one["error"].startswith("400: ")
    told = json.loads(run("track", str(created), "--json").stdout)
    assert [(None, "BadRequestError")] * 2 == [(one["days"], one["error"]) for one in told["sends"]]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(status=401), 1),
        (Fault(status=403), 1),
        (Fault(status=429, headers={"Retry-After": "3600"}), 75),
    ],
)
def test_an_error_that_every_send_would_meet_ends_it(
    run: Run, created: Path, fake: FakeBraze, fault: Fault, code: int
) -> None:
    """With the exit code of the other commands, and nothing on standard output."""
    fake.fault_for = lambda request: fault
    result = run("track", str(created))
    assert (code, "") == (result.exit_code, result.stdout)
    assert result.stderr.startswith(f"error: {fault.status}: ")


def test_a_dead_connection_ends_it(run: Run, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five sends in a row without an answer, not after all of them."""
    asked: list[str] = []

    async def fail(self: SendsClient, campaign_id: str, send_id: str, **_: Any) -> SendAnalytics:
        asked.append(send_id)
        raise APIConnectionError("no answer")

    monkeypatch.setattr(SendsClient, "send_analytics", fail)
    output.write_text("".join(line(f"s{n}") for n in range(100)))
    result = run("track", str(output))
    assert 1 == result.exit_code
    told = "5 sends in a row got no answer: the connection is taken for dead (no answer)"
    assert f"error: {told}\n" == result.stderr
    assert len(asked) < 100


def test_a_connection_that_can_never_work_ends_it(
    run: Run, created: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a certificate that is not trusted: the first send tells it."""

    async def refuse(self: SendsClient, *args: Any, **options: Any) -> SendAnalytics:
        raise APIConnectionError("the certificate is not trusted", permanent=True)

    monkeypatch.setattr(SendsClient, "send_analytics", refuse)
    result = run("track", str(created))
    assert (1, "error: the certificate is not trusted\n") == (result.exit_code, result.stderr)


def test_an_interruption_ends_it(run: Run, created: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left half done, so nothing is to be said."""

    async def interrupt(self: SendsClient, *args: Any, **options: Any) -> SendAnalytics:
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
        raise AssertionError("it went on")

    monkeypatch.setattr(SendsClient, "send_analytics", interrupt)
    result = run("track", str(created))
    assert (130, "interrupted\n") == (result.exit_code, result.stderr)


def test_numbers_of_a_day_count_once() -> None:
    """What a day tells of all channels is not added to what the channels tell."""
    push = {"sent": 1, "conversions": 2, "unique_recipients": 1, "strange": True}
    days = [
        {"time": "2026-11-21", "messages": {"a": [push, push], "b": [push]}, "conversions": 3},
        {"time": "2026-11-22", "messages": {"a": [push | {"clicks": 0.5}]}},
    ]
    told = parse(CreateSendId("c", "s"), {"data": days})
    assert {"sent": 4, "conversions": 5, "clicks": 0.5} == track.totals(told)


def test_a_bar_is_shown_on_a_terminal(run: Run, created: Path) -> None:
    """It counts the sends that were asked for."""
    result = run("track", str(created), env={"FORCE_COLOR": "1", "TERM": "xterm"})
    assert 0 == result.exit_code
    assert "2/2" in result.stderr
    assert "24.50" in result.stdout


def test_brackets_in_an_id_are_no_markup(run: Run, output: Path, fake: FakeBraze) -> None:
    """An ID stands in the table as it is."""
    output.write_text(line("[red]s[/red]"))
    assert "[red]s[/red]" in run("track", str(output)).stdout
