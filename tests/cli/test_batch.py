"""``braze-sends batch``, run in this process against an emulator."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from braze_sends import QuotaExhaustedError, RateLimitError
from braze_sends.cli.common import come_back, command, moment, printing, reporting
from braze_sends.journal import Journal
from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import KEY, Gate, Run
from tests.clocks import NOON
from tests.servers import free_port
from tests.waiting import wait_until

Batch = Callable[..., Any]


@pytest.fixture
def batch(run: Run, fake: FakeBraze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Run a batch over rows in a folder of its own, where it leaves ``out.jsonl``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)
    fake.daily_limit = 100

    def batch(rows: str | bytes, *args: str, **options: Any) -> Any:
        Path("rows").write_bytes(rows.encode() if isinstance(rows, str) else rows)
        return run("batch", "rows", "--output", "out.jsonl", *args, **options)

    return batch


def csv(*names: object) -> str:
    return "campaign_id,send_id\n" + "".join(f"c,s{name}\n" for name in names)


def lines(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def told(*keys: str) -> list[tuple[Any, ...]]:
    return [tuple(line[key] for key in keys) for line in lines()]


SQLITE = ("--store", "sqlite:///quota.db")


# --- lines ---------------------------------------------------------------------------------------


def test_a_line_for_each_row_in_their_order(batch: Batch, fake: FakeBraze) -> None:
    """With what was asked for, what became of it, Braze's request ID and the time."""
    result = batch(csv(1, 2, 3))

    assert (0, "", "3 rows: 3 created") == (
        result.exit_code,
        result.stdout,
        result.stderr.splitlines()[-1],
    )
    assert ["campaign_id", "send_id", "status", "error", "request_id", "at"] == list(lines()[0])
    assert [("c", f"s{n}", "created", None) for n in (1, 2, 3)] == told(
        "campaign_id", "send_id", "status", "error"
    )
    assert [("c", "s1"), ("c", "s2"), ("c", "s3")] == fake.created
    assert all(line["request_id"] and line["at"].endswith("+00:00") for line in lines())


def test_without_output_lines_go_to_standard_output(run: Run, batch: Batch) -> None:
    """So that they can be piped."""
    Path("rows").write_text(csv(1, 2))
    result = run("batch", "rows")

    assert ["s1", "s2"] == [json.loads(line)["send_id"] for line in result.stdout.splitlines()]
    assert result.stderr.endswith("2 rows: 2 created\n")


def test_rows_from_standard_input(run: Run, batch: Batch, fake: FakeBraze) -> None:
    """``-``, here as JSON Lines."""
    rows = "".join(f'{{"campaign_id": "c", "send_id": "s{n}"}}\n' for n in range(3))
    result = run("batch", "-", input=rows)

    assert 0 == result.exit_code
    assert [("c", "s0"), ("c", "s1"), ("c", "s2")] == fake.created


def test_a_pair_is_sent_once_and_has_one_line(batch: Batch, fake: FakeBraze) -> None:
    """However often it stands in the file."""
    result = batch(csv(1, 2, 1, 1))

    assert [("s1",), ("s2",)] == told("send_id")
    assert 2 == len(fake.requests)
    assert result.stderr.endswith("2 rows: 2 created (left out: 2 repeated)\n")


def test_a_queued_send_is_told_as_such(batch: Batch, fake: FakeBraze) -> None:
    """Braze took it and will create it later."""
    fake.script(Fault(status=202))

    assert 0 == batch(csv(1)).exit_code
    assert [("queued", None)] == told("status", "error")


def test_several_at_a_time(batch: Batch, fake: FakeBraze, gate: Gate) -> None:
    """``--concurrency 5``: five requests are under way at once, and never more."""

    def answer_the_fifth(request: object) -> Fault | None:
        if len(fake.requests) == 6:  # the first one goes alone
            gate.open()
        return Fault(stall=gate.event) if len(fake.requests) > 1 else None

    fake.fault_for = answer_the_fifth
    assert 0 == batch(csv(*range(20)), "--concurrency", "5").exit_code
    assert 5 == fake.peak_in_flight
    assert {f"s{n}" for n in range(20)} == {send_id for (send_id,) in told("send_id")}


# --- going on ------------------------------------------------------------------------------------


def test_run_again_it_does_nothing(batch: Batch, fake: FakeBraze) -> None:
    """What has a line is done, without a store too."""
    batch(csv(1, 2))
    before = Path("out.jsonl").read_bytes()
    result = batch(csv(1, 2))

    assert (0, "2 rows: 2 done before\n") == (result.exit_code, result.stderr)
    assert before == Path("out.jsonl").read_bytes()
    assert 2 == len(fake.requests)


def test_without_a_store_it_goes_on_from_the_output(batch: Batch, fake: FakeBraze) -> None:
    """Rows that are new, or had no line, are sent."""
    batch(csv(1, 2))
    result = batch(csv(0, 1, 2, 3))

    assert result.stderr.endswith("4 rows: 2 created, 2 done before\n")
    assert ["s1", "s2", "s0", "s3"] == [send_id for (send_id,) in told("send_id")]
    assert 4 == len(fake.created)


def test_with_a_store_the_output_may_be_lost(batch: Batch, fake: FakeBraze) -> None:
    """What the store remembers costs nothing, and has its lines again."""
    batch(csv(1, 2), *SQLITE)
    Path("out.jsonl").unlink()
    result = batch(csv(1, 2, 3), *SQLITE)

    assert result.stderr.endswith("3 rows: 1 created, 2 reused\n")
    assert [("s1", "reused"), ("s2", "reused"), ("s3", "created")] == told("send_id", "status")
    assert 3 == len(fake.requests)


def test_a_line_cut_short_is_asked_for_again(batch: Batch, fake: FakeBraze) -> None:
    """As a machine that crashed while it was written leaves it."""
    batch(csv(1, 2), *SQLITE)
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[:-30])
    result = batch(csv(1, 2), *SQLITE)

    assert "had been cut short, and was removed" in result.stderr
    assert [("s1", "created"), ("s2", "reused")] == told("send_id", "status")
    assert 2 == len(fake.requests)


def test_when_the_quota_ends_it_says_when_to_come_back(batch: Batch, fake: FakeBraze) -> None:
    """Exit code 75; what is left has no line, and no request was made for it."""
    fake.daily_limit = 3
    result = batch(csv(*range(9)), *SQLITE)
    *_, last, done = result.stderr.splitlines()

    assert 75 == result.exit_code
    assert done.startswith("at 3 a day the file is done about ")
    assert last.startswith("6 left; come back ")
    assert last.endswith(": the same command goes on from here")
    assert 3 == len(lines()) == len(fake.requests)


def test_a_file_for_days_is_told_when_it_is_done_and_how_to_go_on(
    batch: Batch, fake: FakeBraze, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At what a day's quota leaves to it; the command can be pasted into a shell."""
    fake.daily_limit = 3
    monkeypatch.setattr(sys, "argv", ["/bin/braze-sends", "batch", "my rows", "--headroom", "1"])
    said = batch(csv(*range(9)), "--headroom", "1", *SQLITE).stderr.splitlines()

    assert said[-3].startswith("7 left; come back ")
    assert said[-2].startswith("at 2 a day the file is done about ")
    assert "  braze-sends batch 'my rows' --headroom 1" == said[-1]


@pytest.mark.parametrize(
    "argv", [["batch", "rows", "--store", "redis://:s3cret@host"], ["-c"], ["demo"]]
)
def test_a_command_that_has_a_password_or_is_unknown_is_not_told(
    argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of a batch is no place for it."""
    monkeypatch.setattr(sys, "argv", ["braze-sends", *argv])
    assert command() is None


def test_and_goes_on_in_the_next_window(batch: Batch, fake: FakeBraze) -> None:
    """The same command does the rest."""
    fake.daily_limit = 3
    codes = []
    for _ in range(3):
        codes.append(batch(csv(*range(8)), *SQLITE).exit_code)
        fake.end_window()
        Path("quota.db").unlink()  # its clock did not jump with the emulator's
    assert [75, 75, 0] == codes
    assert [f"s{n}" for n in range(8)] == [send_id for (send_id,) in told("send_id")]
    assert (8, 8) == (len(fake.created), len(fake.requests))


def test_a_limit_of_ones_own(batch: Batch, fake: FakeBraze) -> None:
    """``--limit-per-day`` holds over runs, with a store."""
    options = ("--limit-per-day", "2", *SQLITE)

    assert [75, 75] == [batch(csv(*range(5)), *options).exit_code for _ in range(2)]
    assert 2 == len(fake.requests)


def test_headroom_is_left(batch: Batch, fake: FakeBraze) -> None:
    """``--headroom`` slots stay for others."""
    fake.daily_limit = 5

    assert 75 == batch(csv(*range(9)), "--headroom", "2").exit_code
    assert (3, 2) == (len(fake.created), fake.remaining)


def test_the_summary_as_json(batch: Batch, fake: FakeBraze) -> None:
    """One object on standard output, for scripts."""
    fake.daily_limit = 3
    fake.script(None, Fault(status=400))
    result = batch(csv(1, 2, 2, 3, 4, 5), "--json", "--quiet")
    summary = json.loads(result.stdout)

    assert summary.pop("resets_at").endswith("+00:00")
    assert 12 * 3600 + 1 == summary.pop("retry_after")
    assert {
        "rows": 5,
        "bad": 0,
        "repeated": 1,
        "before": 0,
        "failed_before": 0,
        "created": 3,
        "reused": 0,
        "queued": 0,
        "failed": 1,
        "unwritten": 0,
        "unknown": 0,
        "left": 1,
        "error": None,
        "message": None,
    } == summary
    assert 75 == result.exit_code


def test_who_is_not_remembered_is_told(run: Run, batch: Batch, fake: FakeBraze) -> None:
    """Without an output and a store a rerun begins anew, and a limit is the run's alone."""
    Path("rows").write_text(csv(1, 2, 3))
    fake.daily_limit = 2
    result = run("batch", "rows", "--limit-per-day", "2")

    assert result.stderr.splitlines()[:2] == [
        "without a store that lasts, --limit-per-day is for this run alone",
        "a rerun will begin anew: to go on, give --output, or a store that lasts",
    ]
    assert result.stderr.endswith(": a rerun begins anew\n")
    assert "remembers" not in run("batch", "rows", *SQLITE).stderr


@pytest.mark.parametrize(
    ("options", "created"), [(("--headroom", "100"), 1), (("--limit-per-day", "0"), 0)]
)
def test_what_can_never_be_is_wrong_usage(
    batch: Batch, fake: FakeBraze, options: tuple[str, str], created: int
) -> None:
    """Even who waits for ever would wait in vain; that the limit is 100, the first answer tells."""
    result = batch(csv(*range(created + 1)), *options, "--wait")

    assert (2, created, created) == (result.exit_code, len(fake.requests), len(lines()))
    assert "error: no day will have a slot for this batch: the limit is " in result.stderr
    assert result.stderr.endswith("row: nothing created\n" if not created else ": 1 created\n")


def test_a_headroom_beyond_the_assumed_limit(batch: Batch, fake: FakeBraze) -> None:
    """Is judged by the real one, which two answers tell."""
    fake.daily_limit = 1000
    result = batch(csv(*range(8)), "--headroom", "995", *SQLITE)

    assert (75, 5) == (result.exit_code, len(fake.requests))


def test_without_wait_nobody_is_said_to_wait(batch: Batch, fake: FakeBraze) -> None:
    """A day that is used up ends it at once."""
    fake.daily_limit = 1
    batch(csv(1), *SQLITE)
    result = batch(csv(1, 2), *SQLITE)

    assert 75 == result.exit_code
    assert "waiting" not in result.stderr


# --- failures ------------------------------------------------------------------------------------


def test_a_row_that_braze_refuses_fails_alone(batch: Batch, fake: FakeBraze) -> None:
    """Its line says why; the others go on; the exit code is 3, also when it is run again."""
    fake.script(None, Fault(status=400))
    result = batch(csv(1, 2, 3))

    assert 3 == result.exit_code
    assert "failed: c, s2: 400: " in result.stderr
    assert result.stderr.endswith("3 rows: 2 created, 1 failed\n")
    assert ["created", "failed", "created"] == [status for (status,) in told("status")]
    assert lines()[1]["error"].startswith("BadRequestError: 400: ")
    assert lines()[1]["request_id"]

    again = batch(csv(1, 2, 3))
    assert 3 == again.exit_code
    assert [
        "3 rows: 2 done before, 1 failed before",
        "to ask again for what failed, delete its lines from the output",
    ] == again.stderr.splitlines()
    assert 3 == len(fake.requests)


def test_a_row_without_an_answer_has_no_line_and_is_asked_for_again(
    batch: Batch, fake: FakeBraze
) -> None:
    """Nobody knows what became of it, so nothing is decided."""
    fake.script(None, *[Fault(status=503)] * 3)
    first = batch(csv(1, 2, 3), *SQLITE)

    assert 3 == first.exit_code
    assert "unknown: c, s2: 503: " in first.stderr
    assert first.stderr.splitlines()[-2:] == [
        "3 rows: 2 created, 1 unknown",
        "1 left: the same command goes on from here",
    ]
    assert [("s1",), ("s3",)] == told("send_id")
    assert 0 == batch(csv(1, 2, 3), *SQLITE).exit_code
    assert [("s1",), ("s3",), ("s2",)] == told("send_id")
    assert 3 == len(fake.created)


def test_a_refused_key_ends_it(batch: Batch, fake: FakeBraze) -> None:
    """It would be refused for every row."""
    result = batch(csv(1, 2, 3), env={"BRAZE_API_KEY": "another-s3cr3t"})

    assert (1, 1, []) == (result.exit_code, len(fake.requests), lines())
    assert "error: 401: Invalid API key: ***" in result.stderr
    assert "another-s3cr3t" not in result.output


@pytest.mark.parametrize("status", [302, 405, 407, 413])
def test_what_every_row_would_be_told_ends_it(batch: Batch, fake: FakeBraze, status: int) -> None:
    """A wrong URL, or a proxy in between, is no verdict on a row: nothing is marked as failed."""
    fake.fault_for = lambda request: Fault(status=status)
    result = batch(csv(1, 2, 3))

    assert (1, 1, []) == (result.exit_code, len(fake.requests), lines())
    assert f"error: {status}: " in result.stderr
    assert result.stderr.endswith(
        "\n3 left: once that is fixed, the same command goes on from here\n"
    )
    fake.fault_for = lambda request: None
    assert 0 == batch(csv(1, 2, 3)).exit_code


def test_a_page_in_place_of_an_answer_is_no_verdict(batch: Batch, fake: FakeBraze) -> None:
    """A 400 that Braze has not written decides nothing about the row."""
    fake.script(Fault(status=400, body="<html>Bad Request</html>"))
    result = batch(csv(1, 2))

    assert (3, [("s2", "created")]) == (result.exit_code, told("send_id", "status"))
    assert "unknown: c, s1: 400: " in result.stderr


def test_what_is_left_is_told_by_a_failed_row_too(batch: Batch, fake: FakeBraze) -> None:
    """Its answer has the headers as well."""
    fake.script(Fault(status=400))
    fake.spend(10)

    assert "1 of 1 rows, 90 of 100 left\n" in batch(csv(1)).stderr


def test_a_row_that_braze_names_otherwise_is_told(batch: Batch, fake: FakeBraze) -> None:
    """It did not get what it asks for, so it has failed."""
    other = '{"message": "success", "send_id": "other"}'
    fake.script(Fault(status=201, body=other, commit=True))
    result = batch(csv(1))

    assert 3 == result.exit_code
    assert "failed: c, s1: Braze has created it under another send ID: other\n" in result.stderr


def test_a_store_that_cannot_be_used_ends_it(batch: Batch, fake: FakeBraze) -> None:
    """Nothing is sent without it."""
    result = batch(csv(1, 2), "--store", "sqlite:///no-such-folder/quota.db")

    assert (1, []) == (result.exit_code, fake.requests)
    assert "error: no-such-folder/quota.db: " in result.stderr


def test_a_dead_line_ends_it(batch: Batch, fake: FakeBraze) -> None:
    """After five rows without an answer the rest is not tried."""
    fake.fault_for = lambda request: Fault(drop="before")
    result = batch(csv(*range(50)))

    assert 1 == result.exit_code
    assert 5 == result.stderr.count("unknown: ")
    assert result.stderr.endswith(
        "error: 5 rows in a row got no answer, so the batch has stopped; to find the cause, run: "
        "braze-sends doctor\n"
        "50 rows: 5 unknown\n"
        "50 left: once that is fixed, the same command goes on from here\n"
    )
    assert 15 == len(fake.requests)


def test_what_was_surely_not_created_is_not_unknown(batch: Batch) -> None:
    """Nobody listens there, so nothing was sent."""
    url = f"http://127.0.0.1:{free_port()}"
    result = batch(csv(*range(9)), "--base-url", url, "--json")
    summary = json.loads(result.stdout)

    assert (1, 0, 9) == (result.exit_code, summary["unknown"], summary["left"])
    assert ("BrazeSendsError", True) == (summary["error"], "5 rows" in summary["message"])
    assert 5 == result.stderr.count("not created: c, s")


@pytest.mark.skipif(sys.platform != "linux", reason="has no /dev/full")
def test_a_line_that_cannot_be_written_is_told_on_stderr(
    run: Run, batch: Batch, fake: FakeBraze
) -> None:
    """A full disk loses no ID, and nothing more is sent."""
    Path("rows").write_text(csv(1, 2, 3))
    full = run("batch", "rows", "--output", "/dev/full", *SQLITE)
    told_line = full.stderr.partition("not written: ")[2].splitlines()[0]

    assert 1 == full.exit_code
    assert ("s1", "created") == (json.loads(told_line)["send_id"], json.loads(told_line)["status"])
    assert "error: /dev/full cannot be written: No space left on device\n" in full.stderr
    assert 1 == len(fake.requests)
    assert 0 == batch(csv(1, 2, 3), *SQLITE).exit_code
    assert ["reused", "created", "created"] == [status for (status,) in told("status")]


@pytest.mark.parametrize("replaced", [False, True])
def test_an_output_that_is_replaced_is_noticed(
    batch: Batch, fake: FakeBraze, replaced: bool
) -> None:
    """Its line is told, and nothing more is sent; nor where it is only gone."""

    def move(request: object) -> None:
        if fake.created:
            os.rename("out.jsonl", "moved")
            if replaced:
                Path("out.jsonl").touch()

    fake.fault_for = move
    result = batch(csv(1, 2, 3))
    told_line = result.stderr.partition("not written: ")[2].splitlines()[0]

    assert (1, 2) == (result.exit_code, len(fake.requests))
    assert "s2" == json.loads(told_line)["send_id"]
    assert "3 rows: 1 created, 1 whose line could not be written" in result.stderr


@pytest.mark.parametrize("kept", [0, 30])
def test_an_output_that_is_cut_short_is_noticed(batch: Batch, fake: FakeBraze, kept: int) -> None:
    """The line that is not written is told, nothing more is sent, and a rerun has every row."""

    def cut(request: object) -> None:
        if fake.created:
            os.truncate("out.jsonl", kept)

    fake.fault_for = cut
    result = batch(csv(1, 2, 3), *SQLITE)
    told_line = result.stderr.partition("not written: ")[2].splitlines()[0]

    assert (1, 2) == (result.exit_code, len(fake.requests))
    assert "s2" == json.loads(told_line)["send_id"]
    assert "error: out.jsonl cannot be written: it was cut short by another program\n" in (
        result.stderr
    )
    fake.fault_for = None
    assert 0 == batch(csv(1, 2, 3), *SQLITE).exit_code
    assert [("s1", "reused"), ("s2", "reused"), ("s3", "created")] == told("send_id", "status")


def test_an_output_that_is_cut_short_after_the_last_line(
    batch: Batch, fake: FakeBraze, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that has written all lines does not end well if some of them are gone by then."""
    write = Journal.write

    def cut(journal: Journal, *args: Any, **options: Any) -> Any:
        written = write(journal, *args, **options)
        if len(fake.created) == 2:
            os.truncate("out.jsonl", os.path.getsize("out.jsonl") - 1)
        return written

    monkeypatch.setattr(Journal, "write", cut)
    result = batch(csv(1, 2))

    assert (1, 2) == (result.exit_code, len(fake.created))
    assert "error: out.jsonl cannot be written: it was cut short by another program\n" in (
        result.stderr
    )


def test_an_output_that_is_the_store(batch: Batch, fake: FakeBraze) -> None:
    """Neither would survive."""
    result = batch(csv(1), "--store", "sqlite:///out.jsonl")

    assert (2, []) == (result.exit_code, fake.requests)
    assert "error: --output and --store cannot both be the same file\n" == result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="has no FIFOs")
def test_an_output_that_nobody_reads_yet(run: Run, batch: Batch) -> None:
    """A dry run does not wait for a reader, nor for a writer."""
    batch(csv(1))
    os.mkfifo("fifo")

    assert 0 == run("batch", "rows", "--dry-run", "--output", "fifo").exit_code


@pytest.mark.skipif(sys.platform == "win32", reason="has no /dev/null")
def test_an_output_that_keeps_nothing(run: Run, batch: Batch, fake: FakeBraze) -> None:
    """Is as good as none, and the command says so."""
    fake.daily_limit = 1
    Path("rows").write_text(csv(1, 2))
    result = run("batch", "rows", "--output", "/dev/null")

    assert "a rerun will begin anew: to go on, give --output, or a store" in result.stderr
    assert result.stderr.endswith(": a rerun begins anew\n")


@pytest.mark.skipif(sys.platform == "win32", reason="has no /dev/null")
def test_an_output_without_lines_costs_nothing(batch: Batch) -> None:
    """A device has none to go on from."""
    result = batch(csv(1), "--dry-run", "--json", "--output", "/dev/null")

    assert 1 == json.loads(result.stdout)["to_create"]


@pytest.mark.skipif(sys.platform != "linux", reason="has no /proc")
def test_an_output_that_cannot_be_read_for_its_cost(run: Run, batch: Batch) -> None:
    """Is told in a line."""
    Path("rows").write_text(csv(1))
    result = run("batch", "rows", "--dry-run", "--output", "/proc/self/mem")

    assert (1, "error: /proc/self/mem cannot be read: Input/output error\n") == (
        result.exit_code,
        result.stderr,
    )


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
@pytest.mark.parametrize("output", ["no-such-folder/out.jsonl", ".", "rows"])
def test_an_output_that_cannot_be_used(
    run: Run, batch: Batch, fake: FakeBraze, output: str, options: tuple[str, ...]
) -> None:
    """Exit code 1 before anything is sent; a file that is something else stays as it was."""
    Path("rows").write_text(csv(1))
    result = run("batch", "rows", "--output", output, *options)

    assert (1, []) == (result.exit_code, fake.requests)
    assert result.stderr.startswith(f"error: {output}")
    assert 1 == result.stderr.count("\n")
    assert csv(1) == Path("rows").read_text()


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        b"\xef\xbb\xbfcampaign_id,send_id\nc,s1\n",
        b"campaign_id,send_id\r\nc,s1\r\n",
        b'title;Send_ID;Campaign_ID\r\n"a; b";s1;c',
        b"sep=;\r\nSend ID;Campaign ID\r\ns1;c\r\n",
        b'{"send_id": "s1", "campaign_id": "c", "title": "x"}',
        b'{"Send ID": "s1", "Campaign ID": "c"}',
    ],
)
def test_files_as_people_have_them(batch: Batch, fake: FakeBraze, rows: bytes) -> None:
    """BOM, CRLF, other columns, other delimiters, JSON Lines."""
    assert 0 == batch(rows).exit_code
    assert [("c", "s1")] == fake.created


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (b"campaign_id,name\nc,s1\n", "rows lacks send_id in its header: campaign_id, name"),
        (b"", "rows is empty"),
        ("campaign_id,send_id\nc,s1\n".encode("utf-16-le"), "save it as UTF-8"),
        (b'campaign_id,send_id\nc,"s1\nc,s2\n', "the quote that opens in line 2 is not closed"),
    ],
)
def test_files_that_cannot_be_used(
    batch: Batch, fake: FakeBraze, rows: bytes, problem: str
) -> None:
    """Exit code 2, and a line that says why; nothing is sent, ``--skip-bad`` or not."""
    result = batch(rows, "--skip-bad")

    assert (2, []) == (result.exit_code, fake.requests)
    assert problem in result.stderr
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_files_as_excel_saves_them(batch: Batch, fake: FakeBraze, encoding: str) -> None:
    """ "Unicode text" and "CSV" of Excel are read without any option."""
    assert 0 == batch("Größe\tcampaign_id\tsend_id\r\né\tc\ts1\r\n".encode(encoding)).exit_code
    assert [("c", "s1")] == fake.created


def test_the_encoding_of_the_file_can_be_named(batch: Batch, fake: FakeBraze) -> None:
    """Then the file is not asked, and a warning is not needed; an unknown name is wrong usage."""
    rows = "name,campaign_id,send_id\n\xc9,c,s1\n".encode("cp850")
    result = batch(rows, "--encoding", "cp850")

    assert (0, [("c", "s1")]) == (result.exit_code, fake.created)
    assert "warning" not in result.stderr
    assert 2 == batch(rows, "--encoding", "dos").exit_code


BAD = (
    b"\xef\xbb\xbfcampaign_id,send_id\nc,s1\nc,\xfc\nc,s2\n,s3\nc,"
    + b"x" * 10_000_000
    + b"\nc,s4\n"
)


def test_every_bad_row_is_told_before_anything_is_sent(batch: Batch, fake: FakeBraze) -> None:
    """With its line number; exit code 2."""
    result = batch(BAD)

    assert (2, []) == (result.exit_code, fake.requests)
    assert [
        "line 3: it is not UTF-8, with its byte 0xFC: save the file as UTF-8",
        "line 5: campaign_id must not be empty",
        "line 6: it is over 1048576 bytes long",
        "error: 3 bad rows; nothing was sent. Fix them, or pass --skip-bad",
    ] == result.stderr.splitlines()


def test_a_fault_in_hundreds_of_lines_is_shown_a_few_times(batch: Batch, fake: FakeBraze) -> None:
    """The first lines are told with their numbers, and then how many there are; others as ever."""
    rows = "".join(f"c,caf\xe9-{n}\n" for n in range(335))
    text = f"campaign_id,send_id\nc\n{rows}c,s1,x\n".encode("latin-1")
    for options, fault, end in (
        ([], "send_id must be ASCII, as Braze requires", ""),
        (
            ["--encoding", "utf-8"],
            "it is not UTF-8",
            ", with its byte 0xE9: save the file as UTF-8",
        ),
    ):
        result = batch(text, *options)

        assert (2, []) == (result.exit_code, fake.requests)
        assert [
            "line 2: it has 1 cell, but the header has 2: c",
            *(f"line {line}: {fault}{end}" for line in range(3, 8)),
            "line 338: it has 3 cells, but the header has 2: c,s1,x",
            f"335 lines of rows have this fault, of which 5 are shown: {fault}",
            "error: 337 bad rows; nothing was sent. Fix them, or pass --skip-bad",
        ] == [line for line in result.stderr.splitlines() if not line.startswith("warning")]


def test_one_bad_row(batch: Batch) -> None:
    """Is told as one."""
    error = batch("campaign_id,send_id\nc,\n").stderr.splitlines()[-1]

    assert "error: 1 bad row; nothing was sent. Fix it, or pass --skip-bad" == error


def test_when_to_come_back() -> None:
    """At the reset; or before, where a doubt is cleared or a pause ends before."""
    resets_at = datetime.fromtimestamp(NOON, UTC) + timedelta(hours=5)
    at_reset = QuotaExhaustedError("", resets_at=resets_at, retry_after=5 * 3600 + 1)
    before = QuotaExhaustedError("", resets_at=resets_at, retry_after=30)

    assert f"{moment(resets_at)}, in 5 h 0 min" == come_back(at_reset)
    assert "in 30 s" == come_back(before)
    assert "later" == come_back(QuotaExhaustedError("nobody knows"))
    assert "in 30 s" == come_back(QuotaExhaustedError("", retry_after=30))
    assert "later" == come_back(RateLimitError(""))


def test_bad_rows_as_json(batch: Batch) -> None:
    """In the error's object."""
    result = batch(BAD, "--json")
    error = json.loads(result.stdout)

    assert (2, "") == (result.exit_code, result.stderr)
    assert [3, 5, 6] == [row["line"] for row in error["bad_rows"]]
    assert "ConfigurationError" == error["error"]


def test_skip_bad_goes_on_without_them(batch: Batch, fake: FakeBraze) -> None:
    """They are told all the same; the exit code is 0, since every good row is done."""
    result = batch(BAD, "--skip-bad")

    assert 0 == result.exit_code
    assert [("c", "s1"), ("c", "s2"), ("c", "s4")] == fake.created
    assert 3 == result.stderr.count("line ")
    assert result.stderr.endswith("3 rows: 3 created (left out: 3 bad)\n")


def test_skip_bad_hides_no_good_row_that_failed(batch: Batch, fake: FakeBraze) -> None:
    """The exit code is 3 for these, and 75 when the quota ended before the last of them."""
    fake.script(Fault(status=400))
    assert 3 == batch(BAD, "--skip-bad").exit_code
    fake.daily_limit = 2
    assert 75 == batch(BAD + b"c,s5\n", "--skip-bad").exit_code


def test_a_file_without_rows(batch: Batch, fake: FakeBraze) -> None:
    """Nothing to do, and all of it done."""
    result = batch(csv())

    assert (0, "0 rows: nothing to do\n", []) == (result.exit_code, result.stderr, fake.requests)


def test_a_file_that_is_not_there(run: Run) -> None:
    """Wrong usage."""
    result = run("batch", "no-such-file.csv")

    assert 2 == result.exit_code
    assert "error: no-such-file.csv cannot be read: No such file or directory\n" == result.stderr


def test_a_key_and_rows_from_one_input(run: Run) -> None:
    """Both cannot be."""
    result = run("batch", "-", "--api-key-file", "-", input=f"{KEY}\n")

    assert 2 == result.exit_code
    assert "cannot both be standard input" in result.stderr


@pytest.mark.parametrize(
    "option", [("--concurrency", "0"), ("--headroom", "-1"), ("--limit-per-day", "-1")]
)
def test_numbers_that_cannot_be_meant(batch: Batch, option: tuple[str, str]) -> None:
    """Exit code 2."""
    assert 2 == batch(csv(1), *option).exit_code


def test_skipped_rows_are_told_beside_json(batch: Batch) -> None:
    """On standard error, where they disturb nobody."""
    result = batch(BAD, "--skip-bad", "--json", "--quiet")

    assert 3 == json.loads(result.stdout)["bad"]
    assert ["line 3", "line 5", "line 6"] == [
        line.partition(":")[0] for line in result.stderr.splitlines()
    ]


# --- what is said --------------------------------------------------------------------------------


def test_piped_it_says_plain_lines(batch: Batch) -> None:
    """One for each tenth, with what is left."""
    result = batch(csv(*range(20)), env={"FORCE_COLOR": "1"})

    assert "\x1b" not in result.stderr
    assert [
        *(f"{n} of 20 rows, {100 - n} of 100 left" for n in range(2, 21, 2)),
        "20 rows: 20 created",
    ] == result.stderr.splitlines()


def test_quiet_it_says_what_went_wrong(run: Run, batch: Batch, fake: FakeBraze) -> None:
    """And nothing else; the options have short names too."""
    assert "" == batch(csv(1, 2), "--quiet").output
    fake.script(Fault(status=400))
    assert "failed: c, s3" in batch(csv(3), "--quiet").stderr
    assert "" == run("batch", "rows", "-o", "short.jsonl", "-q").output
    assert 1 == len(lines("short.jsonl"))


def test_quiet_it_gives_no_advice(run: Run, batch: Batch) -> None:
    """A job that went well says nothing but its lines; ``-`` is standard output."""
    batch(csv(1))
    result = run("batch", "rows", "--output", "-", "--quiet", "--limit-per-day", "5")

    assert (0, "", "s1") == (result.exit_code, result.stderr, json.loads(result.stdout)["send_id"])
    assert not Path("-").exists()


def test_what_is_left_is_that_of_the_limit_of_ones_own(batch: Batch) -> None:
    """Answers do not know of it, so their numbers are not shown."""
    result = batch(csv(1), "--limit-per-day", "10", *SQLITE)

    assert "90 of 100" not in result.stderr
    assert "99 of 100" not in result.stderr


def test_control_characters_do_not_reach_the_terminal(batch: Batch, fake: FakeBraze) -> None:
    """Nor does the text of an error steer the terminal."""
    fake.script(Fault(status=400, body=json.dumps({"message": "no\x1b[2J"})))

    assert "\x1b" not in batch(csv(1)).stderr


# --- --dry-run -----------------------------------------------------------------------------------


def test_a_dry_run_tells_the_cost(batch: Batch, fake: FakeBraze) -> None:
    """Against what is left; nothing is sent or written."""
    fake.daily_limit = 10
    batch(csv(*range(4)), *SQLITE)
    Path("out.jsonl").write_text(Path("out.jsonl").read_text().splitlines(keepends=True)[0])
    before = Path("out.jsonl").read_bytes()
    result = batch(csv(*range(25), 1), "--dry-run", *SQLITE)

    assert 0 == result.exit_code
    shown = dict(line.split(None, 1) for line in result.stdout.replace(" b", "_b").splitlines())
    assert ("25", "1") == (shown["Rows"], shown["Repeated"])
    assert "3" == shown["Remembered"]
    assert "Done before    1\n" in result.stdout
    assert "To create      21\n" in result.stdout
    assert "Quota left     6 of 10, resets " in result.stdout
    assert "Days needed    3\n" in result.stdout
    assert (4, before) == (len(fake.requests), Path("out.jsonl").read_bytes())


def test_a_dry_run_tells_what_has_failed_and_makes_no_store(batch: Batch, fake: FakeBraze) -> None:
    """Nothing is written, not even an empty file."""
    fake.script(Fault(status=400))
    batch(csv(1))
    cost = json.loads(batch(csv(1, 2), "--dry-run", "--json", *SQLITE).stdout)

    assert (0, 1, 1) == (cost["before"], cost["failed_before"], cost["to_create"])
    assert not Path("quota.db").exists()


@pytest.mark.parametrize(
    ("rows", "options", "days"),
    [
        (0, (), 0),
        (100, (), 1),
        (101, (), 2),
        (340, (), 4),
        (340, ("--headroom", "20"), 5),
        (340, ("--headroom", "100"), None),
        (340, ("--limit-per-day", "10"), 34),
    ],
)
def test_the_cost_in_days(
    run: Run, batch: Batch, fake: FakeBraze, rows: int, options: tuple[str, ...], days: int | None
) -> None:
    """By what is left today, and a limit a day."""
    Path("rows").write_text(csv(*range(rows)))
    result = run("batch", "rows", "--output", "new.jsonl", "--dry-run", "--json", *options)
    cost = json.loads(result.stdout)

    assert days == cost["days"]
    assert (rows, False, []) == (cost["to_create"], cost["known"], fake.requests)
    assert not Path("new.jsonl").exists()
    assert run("batch", "rows", "--dry-run", *options).stdout.endswith(
        "Days needed    never: the limit leaves none\n" if days is None else f" {days}\n"
    )


@pytest.mark.parametrize("closed", [True, False])
def test_a_result_that_cannot_be_printed_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed: bool
) -> None:
    """In one line, and what it is; and Python does not try again at its end."""
    before = None if closed else sys.stdout
    monkeypatch.setattr(sys, "stdout", before)
    with pytest.raises(typer.Exit) as ended, printing("; created: c, s"):
        raise OSError(28, "No space left on device")

    assert (1, True) == (ended.value.exit_code, sys.stdout is not before)
    sys.stdout.close()
    reason = "it is closed" if closed else "No space left on device"
    assert f"error: standard output cannot be written: {reason}; created: c, s\n" == (
        capsys.readouterr().err
    )


def test_what_the_system_refuses_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as a socket, where no more files may be opened."""
    with pytest.raises(typer.Exit) as ended, reporting(as_json=True):
        raise OSError(24, "Too many open files")

    assert (1, ("", "error: Too many open files\n")) == (
        ended.value.exit_code,
        capsys.readouterr(),
    )


# --- Ctrl-C --------------------------------------------------------------------------------------


Interrupt = Callable[..., None]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    """Send this process signals from another thread, each when the batch has dealt with the last
    one; return when it has dealt with them all."""
    install, handled = signal.signal, list[int]()

    def installing(number: int, handler: Any) -> Any:
        if getattr(handler, "__module__", None) != "braze_sends.cli.common":
            return install(number, handler)

        def handling(number: int, frame: Any) -> None:
            handler(number, frame)
            handled.append(number)

        return install(number, handling)

    monkeypatch.setattr(signal, "signal", installing)

    def interrupt(times: int, number: int = signal.SIGINT) -> None:
        for n in range(len(handled), len(handled) + times):
            os.kill(os.getpid(), number)
            wait_until(functools.partial(handled.__getitem__, slice(n, None)))

    return interrupt


def test_ctrl_c_lets_what_is_under_way_end(
    batch: Batch, fake: FakeBraze, interrupt: Interrupt
) -> None:
    """Its line is written; what waited behind it is called off; a rerun does the rest."""
    fake.daily_limit = 2
    fake.fault_for = lambda request: interrupt(1) if len(fake.requests) == 2 else None
    result = batch(csv(*range(5)), "--concurrency", "3", "--wait", *SQLITE)

    assert 130 == result.exit_code
    assert "stopping: what is under way may end; Ctrl-C once more ends it at once" in result.stderr
    assert result.stderr.endswith("5 rows: 2 created\n3 left: the same command goes on from here\n")
    assert 2 == len(fake.created) == len(lines())


def test_ctrl_c_after_the_last_request_changes_nothing(
    batch: Batch, fake: FakeBraze, interrupt: Interrupt
) -> None:
    """All is done, so the exit code says so."""
    fake.fault_for = lambda request: interrupt(1)
    result = batch(csv(1))

    assert 0 == result.exit_code
    assert "stopping: " in result.stderr


def test_ctrl_c_leaves_a_csv_of_what_was_decided(
    batch: Batch, run: Run, fake: FakeBraze, interrupt: Interrupt
) -> None:
    """The next run goes on, and writes it anew."""
    Path("rows").write_text(csv(*range(3)))
    fake.fault_for = lambda request: interrupt(1) if len(fake.requests) == 2 else None

    assert 130 == run("batch", "rows", "-o", "sends.csv", *SQLITE).exit_code
    assert ["c,s0", "c,s1"] == [row[:4] for row in Path("sends.csv").read_text().splitlines()[1:]]
    fake.fault_for = None
    assert 0 == run("batch", "rows", "-o", "sends.csv", *SQLITE).exit_code
    assert 4 == len(Path("sends.csv").read_text().splitlines())


@pytest.mark.parametrize("terminal", [True, False])
def test_ctrl_c_twice_ends_it_at_once(
    batch: Batch,
    fake: FakeBraze,
    monkeypatch: pytest.MonkeyPatch,
    interrupt: Interrupt,
    terminal: bool,
) -> None:
    """And says so; on a terminal the cursor is shown again."""
    exits: list[int] = []
    shown: list[bytes] = []
    monkeypatch.setattr("os._exit", exits.append)
    monkeypatch.setattr("os.write", lambda number, data: shown.append(data))

    def stop(request: object) -> None:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        interrupt(2)

    fake.fault_for = stop
    batch(csv(1))

    said = b"ended at once; a rerun asks again for what was under way\n"
    assert ([130], [b"\x1b[?25h\n"] * terminal + [said]) == (exits, shown)


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_ignored(
    batch: Batch, fake: FakeBraze, ignored: signal.Signals
) -> None:
    """A batch that starts with a signal ignored, as SIGINT is under ``nohup``, goes on after it."""
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        fake.fault_for = lambda request: os.kill(os.getpid(), ignored)
        result = batch(csv(1, 2))
        after = signal.getsignal(ignored)
    finally:
        signal.signal(ignored, before)

    assert (0, signal.SIG_IGN) == (result.exit_code, after)
    assert [("s1",), ("s2",)] == told("send_id")
    assert "stopping: " not in result.stderr


def test_a_row_in_doubt_is_told_when_it_is_stopped(
    batch: Batch, fake: FakeBraze, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, and the pause before asking again is not waited for."""

    def interrupted(state: object) -> float:
        signal.raise_signal(signal.SIGINT)
        return 3600.0

    monkeypatch.setattr("braze_sends.retry._backoff", interrupted)
    fake.script(Fault(drop="after"))
    result = batch(csv(1, 2))

    assert (130, [("c", "s1")]) == (result.exit_code, fake.created)
    assert "unknown: c, s1: " in result.stderr
    assert "2 rows: 1 unknown" in result.stderr


def test_sigterm_twice_is_as_good_as_once(
    batch: Batch, fake: FakeBraze, interrupt: Interrupt
) -> None:
    """Only Ctrl-C is impatient."""
    fake.fault_for = lambda request: interrupt(2, signal.SIGTERM)
    result = batch(csv(1, 2))

    assert (130, 1) == (result.exit_code, len(fake.requests))
    assert 1 == result.stderr.count("stopping: ")
