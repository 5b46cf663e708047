"""``braze-sends batch -o sends.csv``: what is in the CSV, and when it is replaced."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import Run

Batch = Callable[..., Any]

CALENDAR = "Title,campaign_id,send_id,status\nÄ,c,s1,draft\nB,c,s2,\nC,c,s3,done\n"
HEADER = ["campaign_id", "send_id", "status", "error", "request_id", "at"]


@pytest.fixture
def batch(run: Run, fake: FakeBraze, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Run a batch over rows in a folder of its own, where it leaves ``sends.csv``."""
    monkeypatch.chdir(tmp_path)

    def batch(rows: str, *args: str) -> Any:
        Path("rows").write_text(rows, encoding="utf-8")
        return run("batch", "rows", "-o", "sends.csv", *args)

    return batch


def table() -> list[list[str]]:
    with open("sends.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file))


def test_the_csv_has_a_row_for_each_line_of_the_journal_beside_it(batch: Batch) -> None:
    """With the same names and values, and a mark that spreadsheets know as UTF-8."""
    assert 75 == batch(CALENDAR).exit_code

    lines = [json.loads(line) for line in Path("sends.csv.jsonl").read_text().splitlines()]
    assert [("s1", "created"), ("s2", "created")] == [
        (line["send_id"], line["status"]) for line in lines
    ]
    rows = [[value or "" for value in line.values()] for line in lines]
    assert [HEADER, *rows] == table()
    assert Path("sends.csv").read_bytes().startswith(b"\xef\xbb\xbfcampaign_id,")
    assert not Path("sends.csv.tmp").exists()


def test_the_next_run_goes_on_and_writes_the_csv_anew(batch: Batch, fake: FakeBraze) -> None:
    """Whatever became of the CSV in between."""
    assert 75 == batch(CALENDAR).exit_code
    Path("sends.csv").unlink()
    fake.end_window()

    result = batch(CALENDAR)
    assert (0, "3 rows: 1 created, 2 done before") == (
        result.exit_code,
        result.stderr.splitlines()[-1],
    )
    assert ["s1", "s2", "s3"] == [row[1] for row in table()[1:]]
    assert [("c", "s1"), ("c", "s2"), ("c", "s3")] == fake.created


def test_other_columns_are_kept_on_demand(batch: Batch) -> None:
    """Beside the results; one whose name a result has is told apart."""
    batch(CALENDAR, "--keep-columns")

    assert [*HEADER, "Title", "input_status"] == table()[0]
    assert [["s1", "Ä", "draft"], ["s2", "B", ""]] == [[row[1], *row[6:]] for row in table()[1:]]


def test_other_keys_of_json_lines_are_kept_on_demand(batch: Batch) -> None:
    """Each row may have others; what is no text is JSON."""
    rows = (
        '{"campaign_id": "c", "send_id": "s1", "title": "A\\tB", "n": 1}\n'
        '{"campaign_id": "c", "send_id": "s2", "tags": ["x"], "n": null, "z": 1, "z": 2}\n'
    )
    assert 0 == batch(rows, "--keep-columns").exit_code

    assert ["title", "n", "tags", "z"] == table()[0][6:]
    assert [["A\tB", "1", "", ""], ["", "", '["x"]', ""]] == [row[6:] for row in table()[1:]]


def test_rows_of_another_input_stay_in_the_csv(batch: Batch) -> None:
    """Without the columns that this input has, since they are known of its rows alone."""
    batch("campaign_id,send_id\nc,before\n")
    batch("campaign_id,send_id,title\nc,s1,A\n", "--keep-columns")

    assert [["before", ""], ["s1", "A"]] == [[row[1], row[6]] for row in table()[1:]]


def test_a_failed_row_is_asked_again_when_its_line_is_deleted(
    batch: Batch, fake: FakeBraze
) -> None:
    """The summary names the file that has the line."""
    fake.script(Fault(status=400))
    batch("campaign_id,send_id\nc,s1\n")
    result = batch("campaign_id,send_id\nc,s1\n")

    assert "failed" == table()[1][2]
    assert "delete its lines from sends.csv.jsonl" in result.stderr


def test_the_csv_is_written_when_a_run_is_ended_by_an_error(batch: Batch, fake: FakeBraze) -> None:
    """With what was decided before it."""
    fake.script(None, Fault(status=401))

    assert 1 == batch(CALENDAR).exit_code
    assert ["s1"] == [row[1] for row in table()[1:]]


def test_a_csv_that_cannot_be_replaced_stays_and_is_told(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are in the journal, from which the next run writes it."""

    def replace(*paths: str) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        result = batch("campaign_id,send_id\nc,s1\n")

    assert 1 == result.exit_code
    assert "error: sends.csv cannot be written: Permission denied; its rows are in " in (
        result.stderr
    )
    assert ["rows", "sends.csv.jsonl"] == sorted(os.listdir())
    assert 0 == batch("campaign_id,send_id\nc,s1\n").exit_code
    assert "s1" == table()[1][1]


def test_half_a_line_in_the_journal_does_no_harm(batch: Batch) -> None:
    """A kill while a line was written leaves one."""
    batch("campaign_id,send_id\nc,s1\n")
    with open("sends.csv.jsonl", "a") as journal:
        journal.write('\n{"campaign_id": "c", "se')

    result = batch("campaign_id,send_id\nc,s1\nc,s2\n")
    assert "the last line of sends.csv.jsonl had been cut short, and was removed" in result.stderr
    assert ["s1", "s2"] == [row[1] for row in table()[1:]]


@pytest.mark.parametrize("content", ["campaign_id,send_id\nc,s\n", "{}\n", ""])
def test_a_file_that_is_no_csv_of_a_batch_is_left_alone(
    batch: Batch, fake: FakeBraze, content: str
) -> None:
    """It may be somebody's calendar."""
    Path("sends.csv").write_text(content)
    result = batch(CALENDAR)

    assert (2, []) == (result.exit_code, fake.requests)
    assert "sends.csv exists and is not the CSV of a batch" in result.stderr
    assert content == Path("sends.csv").read_text()
    assert not Path("sends.csv.jsonl").exists()


def test_an_output_that_cannot_be_read_is_refused(batch: Batch) -> None:
    """Such as a folder."""
    Path("sends.csv").mkdir()
    result = batch(CALENDAR)

    assert 2 == result.exit_code
    assert "sends.csv cannot be read: Is a directory" in result.stderr


def test_the_input_cannot_be_the_output(run: Run, batch: Batch) -> None:
    """Nor can the store."""
    Path("sends.csv").write_text(",".join(HEADER) + "\nc,s,,,,\n")
    same = "cannot both be the same file"

    assert same in run("batch", "sends.csv", "-o", "sends.csv").stderr
    assert same in batch(CALENDAR, "--store", "sqlite:///sends.csv.jsonl").stderr


def test_columns_can_be_kept_in_csv_alone(run: Run, batch: Batch) -> None:
    """Lines of JSON have fixed keys."""
    Path("rows").write_text(CALENDAR)
    result = run("batch", "rows", "-o", "sends.jsonl", "--keep-columns")

    assert 2 == result.exit_code
    assert "--keep-columns needs CSV" in result.stderr


def test_a_dry_run_writes_no_csv(batch: Batch) -> None:
    """As it writes no lines."""
    assert 0 == batch(CALENDAR, "--dry-run").exit_code
    assert ["rows"] == os.listdir()
