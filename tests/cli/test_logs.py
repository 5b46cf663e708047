"""``--log-file``: what happens inside a command, a line for each event."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest

from braze_sends import ConfigurationError
from braze_sends.cli import logs
from braze_sends.cli.logs import logging_to
from braze_sends.testing import FakeBraze, Fault
from tests.cli.conftest import KEY, Run

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) (.*)")

log = logging.getLogger("braze_sends")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("braze_sends.retry._backoff", lambda state: 0.0)
    return tmp_path / "log"


def test_each_event_is_a_line_with_its_time_and_level(
    run: Run, fake: FakeBraze, path: Path
) -> None:
    """Those of every level, and never the key; a later command appends its own."""
    Path("rows").write_text("campaign_id,send_id\nc,s1\n")
    fake.daily_limit = 100
    fake.script(Fault(status=500))
    assert 0 == run("batch", "rows", "-o", "out", "--log-file", "log").exit_code
    lines = path.read_text().splitlines()
    assert 0 == run("create", "c", "--log-file", "log").exit_code
    more = path.read_text().splitlines()

    assert lines == more[: len(lines)] != more
    assert all(LINE.fullmatch(line) for line in more)
    assert "DEBUG" in path.read_text()
    assert "s1" in path.read_text()
    assert KEY not in path.read_text()


def test_after_a_command_the_log_is_as_it_was(path: Path) -> None:
    """Level and handlers."""
    before = (log.level, [*log.handlers])
    with logging_to(str(path)):
        assert logging.DEBUG == log.level

    assert before == (log.level, log.handlers)


def test_text_of_several_lines_is_one_line(path: Path) -> None:
    """Nobody can forge an event."""
    with logging_to(str(path)):
        log.info("a\n2026 b\x1b[2J")

    assert path.read_text().endswith("Z INFO a\ufffd2026 b\ufffd[2J\n")
    assert 1 == path.read_text().count("\n")


def test_a_log_that_cannot_be_opened_is_wrong_usage(path: Path) -> None:
    """Such as a folder."""
    path.mkdir()
    told = "log cannot be written: Is a directory"
    with pytest.raises(ConfigurationError, match=told), logging_to(str(path)):
        pass


def test_a_log_that_cannot_be_written_ends_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is told once."""

    class Full(logs._LogFile):
        def _open(self) -> io.TextIOWrapper:
            return open("/dev/full", "w")

    monkeypatch.setattr(logs, "_LogFile", Full)
    with logging_to(str(path)):
        log.info("one")
        log.info("two")

    assert f"warning: {path} cannot be written, and misses events\n" == capsys.readouterr().err


@pytest.mark.parametrize("name", ["out.csv", "out.csv.jsonl", "quota.db", "rows"])
def test_a_log_needs_a_file_of_its_own(run: Run, path: Path, name: str) -> None:
    """It must not mix with the input, the output or the store."""
    Path("rows").write_text("campaign_id,send_id\nc,s1\n")
    store = "sqlite:///quota.db"
    result = run("batch", "rows", "-o", "out.csv", "--store", store, "--log-file", name)

    assert 2 == result.exit_code
    assert "--log-file needs a file of its own" in result.stderr
