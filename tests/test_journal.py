"""The journal of a batch: its lines, what a kill or a crash leaves of them, and what is refused."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import select
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from braze_sends import (
    APITimeoutError,
    BadRequestError,
    BrazeSendsError,
    ConfigurationError,
    CreateSendId,
    Outcome,
    QuotaExhaustedError,
    SendId,
)
from braze_sends.journal import ROOM, Entry, Journal, JournalError, Status
from tests.waiting import PATIENCE

A, B, C = (CreateSendId("campaign", name) for name in "abc")
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
BUSY = "is being written by another batch; wait for its end, or name another file"


def line(request: CreateSendId = A, status: str = "created", error: str | None = None) -> bytes:
    """A result line as it should be."""
    if status == "failed" and error is None:
        error = "BadRequestError: 400: "
    fields = {
        "campaign_id": request.campaign_id,
        "send_id": request.send_id,
        "status": status,
        "error": error,
        "request_id": None,
        "at": "2026-11-22T12:00:00.000+00:00",
    }
    return f"{json.dumps(fields)}\n".encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the journal is to be."""
    return tmp_path / "out.jsonl"


def outcome(
    request: CreateSendId, status: Status, error: str | None = None, **more: Any
) -> Outcome:
    """What makes a line of that status."""
    if status == "failed":
        return Outcome(request, error=BadRequestError(error or "", status_code=400, **more))
    states = {"queued": status == "queued", "reused": status == "reused"}
    sent: dict[str, Any] = {"send_id": request.send_id, **states, **more}
    return Outcome(request, SendId(request.campaign_id, **sent))


def write(journal: Journal, request: CreateSendId = A, status: Status = "created") -> None:
    """Write a line."""
    assert journal.write(outcome(request, status), at=NOON) is not None


def refusal(path: Path | str) -> str:
    """Why a path cannot be the journal, after its name."""
    with pytest.raises(JournalError) as caught:
        Journal.open(str(path)).close()
    assert (None, False) == (caught.value.line, caught.value.quota_spent)
    return str(caught.value).removeprefix(f"{path} ")


# --- lines ---------------------------------------------------------------------------------------


def test_each_row_has_a_line_with_all_that_is_known(path: Path) -> None:
    """A line has all that is known of a row, and times are UTC."""
    with Journal.open(str(path)) as journal:
        at = datetime(2026, 11, 22, 13, 0, 0, 123456, tzinfo=timezone(timedelta(hours=1)))
        journal.write(outcome(A, "created", request_id="r-1"), at=at)
        journal.write(outcome(B, "failed", "no \U0001f600\n"), at=NOON)
        journal.write(outcome(C, "reused"), at=NOON)

    assert [
        '{"campaign_id": "campaign", "send_id": "a", "status": "created", "error": null, '
        '"request_id": "r-1", "at": "2026-11-22T12:00:00.123+00:00"}',
        '{"campaign_id": "campaign", "send_id": "b", "status": "failed", '
        '"error": "BadRequestError: 400: no \\ud83d\\ude00\\n", "request_id": null, '
        '"at": "2026-11-22T12:00:00.000+00:00"}',
        '{"campaign_id": "campaign", "send_id": "c", "status": "reused", "error": null, '
        '"request_id": null, "at": "2026-11-22T12:00:00.000+00:00"}',
    ] == path.read_text("ascii").splitlines()


def test_a_rerun_knows_the_lines(path: Path) -> None:
    """Pairs that have a line are known, in the same run and in the next, which appends."""
    with Journal.open(str(path)) as journal:
        write(journal, A, "failed")
        assert [True, False] == [A in journal, B in journal]
    with Journal.open(str(path)) as journal:
        write(journal, B, "queued")
        assert [True, True, False] == [A in journal, B in journal, C in journal]
        assert not journal.torn

    assert line(A, "failed") + line(B, "queued") == path.read_bytes()


def test_a_send_that_braze_names_otherwise_is_found_by_its_row(path: Path) -> None:
    """Its line has the pair of the row, by which a rerun finds it, and the other name in words."""
    with Journal.open(str(path)) as journal:
        told = "Braze has created it under another send ID: other"
        entry = journal.write(outcome(A, "created", send_id="other"), at=NOON)
        assert entry == Entry(
            "campaign", "a", "failed", told, None, "2026-11-22T12:00:00.000+00:00"
        )
        write(journal, B)

    assert line(A, "failed", told) + line(B) == path.read_bytes()
    with Journal.open(str(path)) as journal:
        assert A in journal


def test_text_from_the_network_is_cut(path: Path) -> None:
    """However long an error is, its line is one that a rerun can read."""
    with Journal.open(str(path)) as journal:
        text = "\U0001f600" * 1_000_000
        journal.write(outcome(A, "failed", text, request_id=text), at=NOON)

    assert path.stat().st_size < 30_000
    told = json.loads(path.read_bytes())
    assert (f"BadRequestError: 400: {text}"[:1000], text[:1000]) == (
        told["error"],
        told["request_id"],
    )
    with Journal.open(str(path)) as journal:
        assert A in journal


def test_no_line_is_written_that_could_not_be_read(path: Path) -> None:
    """A mistake in the program does not make the file useless."""
    with Journal.open(path) as journal, pytest.raises(ValueError, match=r"^no rerun could read"):
        journal.write(outcome(CreateSendId("c"), "created", send_id="s"))

    assert b"" == path.read_bytes()


@pytest.mark.parametrize(
    "error",
    [
        APITimeoutError("", quota_spent=None),
        QuotaExhaustedError(""),
        BadRequestError("a page of the edge", status_code=400, from_edge=True),
    ],
)
def test_what_is_not_decided_has_no_line(path: Path, error: BrazeSendsError) -> None:
    """Without an answer of Braze to the pair, a rerun has to ask again."""
    with Journal.open(path) as journal:
        assert journal.write(Outcome(A, error=error)) is None
        assert [A] == list(journal.missing([A]))

    assert b"" == path.read_bytes()


def test_requests_that_have_a_line_are_not_missing(path: Path) -> None:
    """Requests that have a line are left out, also those that got it meanwhile."""
    with Journal.open(path) as journal:
        write(journal, B)
        todo = journal.missing([A, B, A, C])
        assert A == next(todo)
        write(journal, A)
        assert [C] == list(todo)


def test_a_request_without_a_name_is_refused(path: Path) -> None:
    """Nothing could be found again by it, so it is refused before it is sent."""
    with (
        Journal.open(path) as journal,
        pytest.raises(ConfigurationError, match="needs a send_id"),
    ):
        list(journal.missing([CreateSendId("c")]))


def test_a_line_has_the_time_of_its_decision(path: Path) -> None:
    """Unless the caller says otherwise."""
    with Journal.open(path) as journal:
        entry = journal.write(outcome(A, "created"))

    assert entry is not None
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(entry.at) < timedelta(hours=1)


def test_a_journal_error_is_one_of_the_package_and_pickles() -> None:
    """An ``JournalError`` is told like any other error; the line crosses processes."""
    error: JournalError = pickle.loads(  # noqa: S301  # made just now
        pickle.dumps(JournalError("full", line="{}"))
    )

    assert issubclass(JournalError, BrazeSendsError)
    assert ("full", "{}", None) == (str(error), error.line, error.quota_spent)


# --- what is there already -----------------------------------------------------------------------


def test_every_torn_line_is_cut_off(path: Path) -> None:
    """Wherever a line was cut short, it goes; a whole one without its line break stays."""
    whole = line(B, "failed", 'a"b\\c/\u1234\n') + b""
    for kept in (b"", line(A)):
        for length in range(1, len(whole) + 1):
            path.write_bytes(kept + whole[:length])
            with Journal.open(str(path)) as journal:
                assert (length < len(whole) - 1) is journal.torn, whole[:length]
                assert (bool(kept), not journal.torn) == (A in journal, B in journal)
                write(journal, C)
            rest = b"" if journal.torn else whole
            assert kept + rest + line(C) == path.read_bytes()


@pytest.mark.parametrize(
    ("tail", "torn"),
    [(b"", False), (b"\n" * ROOM, False), (b"\r\n \n", False), (b"\0" * 999, True)],
)
@pytest.mark.parametrize(
    "form", [line(A), line(A).replace(b'": ', b'":'), b"\xef\xbb\xbf" + line(A), b"\n" + line(A)]
)
def test_what_a_crash_leaves_is_tolerated(path: Path, form: bytes, tail: bytes, torn: bool) -> None:
    """Blank lines stay, NULs at the end go; a line may have been formatted otherwise."""
    path.write_bytes(form + tail)
    with Journal.open(str(path)) as journal:
        assert (torn, True) == (journal.torn, A in journal)
        write(journal, B)

    assert form + (b"" if torn else tail) + line(B) == path.read_bytes()


@pytest.mark.parametrize("text", [line(B)[:-1], line(B)[:-9]])
def test_nuls_after_a_line_do_not_hide_whether_it_is_whole(path: Path, text: bytes) -> None:
    """NULs after a line do not hide whether it is whole."""
    path.write_bytes(line(A) + text + b"\0" * 99)
    with Journal.open(str(path)) as journal:
        assert (text != line(B)[:-1]) is journal.torn is (B not in journal)
        write(journal, C)

    assert line(A) + (b"" if journal.torn else line(B)) + line(C) == path.read_bytes()


FOREIGN = {
    "CSV": b"campaign_id,send_id\nc,s\n",
    "CSV, not ended": b"campaign_id,send_id",
    "input": b'{"campaign_id": "c", "send_id": "s"}\n',
    "input, not ended": b'{"campaign_id": "c", "send_id": "s"}',
    "another object": line(A).replace(b'"at"', b'"when"'),
    "one key more": line(A).replace(b'"at"', b'"x": 1, "at"'),
    "another status": line(A).replace(b'"created"', b'"begun"'),
    "a list for a status": line(A).replace(b'"created"', b"[]"),
    "an error that is no text": line(A).replace(b"null", b"7"),
    "no time": line(A).replace(b"2026", b"yesterday"),
    "no time zone": line(A).replace(b"+00:00", b""),
    "a time that is no text": line(A).replace(b'"2026-11-22T12:00:00.000+00:00"', b"1"),
    "no ID": line(A).replace(b'"a"', b'""'),
    "null for an ID": line(A).replace(b'"a"', b"null"),
    "whole, but no ID, not ended": line(A)[:-1].replace(b'"a"', b'""'),
    "a list": b"[1]\n",
    "a number": b"1\n",
    "nested": b"[" * 100_000 + b"\n",
    "a binary": b"\x7fELF\0\0\0",
    "no UTF-8": b"\xff\n",
    "UTF-16": line(A).decode().encode("utf-16-le"),
    "NULs in a line": b"\0\n",
    "blanks, not ended": b"  ",
    "two in a line": line(A)[:-1] + line(B),
    "torn, with a line break": line(A)[:-9] + b"\n",
    "too long": b'{"campaign_id": "' + 1024 * 1024 * b"c",
    "too long, but for blanks": line(A)[:-1] + 1024 * 1024 * b" " + b"x",
    "too long, but for NULs": line(A)[:-1] + 1024 * 1024 * b"\0",
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("before", [b"", line(B) + b"\n" + line(C)])
def test_what_is_not_ours_is_left_alone(path: Path, before: bytes, content: bytes) -> None:
    """A file with any other line is refused, with the line's number, and stays as it was."""
    path.write_bytes(before + content)
    number = before.count(b"\n") + 1

    says = f"its line {number} is no result of a batch; name another file"
    assert f"cannot be the output: {says}" == refusal(path)
    assert before + content == path.read_bytes()


def test_a_file_of_nuls_is_refused(path: Path) -> None:
    """NULs and no line of ours are nothing that a crash of a batch would leave."""
    path.write_bytes(b"\0" * 4096)

    says = "its line 1 is no result of a batch; name another file"
    assert f"cannot be the output: {says}" == refusal(path)
    assert b"\0" * 4096 == path.read_bytes()


PIECES = [
    line(A),
    line(B, "failed", '\\"\u20ac'),
    line(A)[:-1],
    b"\n",
    b"\0",
    b" ",
    b'{"',
    b"x",
    b"\\u",
]


@given(
    st.binary()
    | st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)
    | st.tuples(
        st.sampled_from([line(A), line(B, "failed", '\\"\u20ac')]), st.integers(0, 180)
    ).map(lambda drawn: drawn[0][: drawn[1]])
)
@example(b"")
def test_a_file_of_any_content_is_refused_unchanged_or_keeps_its_lines(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """A file is refused and unchanged; or its lines are all kept, and only what follows goes."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(content)
    try:
        journal = Journal.open(str(path))
    except JournalError:
        assert content == path.read_bytes()
        return
    with journal:
        write(journal, C)
    result = path.read_bytes()
    lines = [json.loads(text) for text in result.splitlines() if text.strip()]

    assert result.startswith(content[: content.rfind(b"\n") + 1])
    assert result.endswith(line(C))
    assert ["campaign"] * len(lines) == [told["campaign_id"] for told in lines]
    if not journal.torn:
        assert result.startswith(content.rstrip(b"\0"))


def test_many_lines_are_read_in_little_memory(path: Path) -> None:
    """Of the lines of earlier runs only the digests are kept."""
    count = 5_000
    requests = [CreateSendId("c" * 250, f"s{n}") for n in range(count)]
    path.write_bytes(b"".join(line(request) for request in requests))
    tracemalloc.start()
    with Journal.open(str(path)) as journal:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert all(map(journal.__contains__, requests))
    assert peak < 200 * count


# --- opening -------------------------------------------------------------------------------------


def test_a_path_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """What is wrong is told with the path; nothing is made."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    no_folder = tmp_path / "no" / "folder"
    before = sorted(tmp_path.iterdir())

    told = f"cannot be written: there is no folder {no_folder}"
    assert told == refusal(no_folder / "out")
    assert "cannot be written: Is a directory" == refusal(tmp_path)
    told = f"cannot be written: there is no folder {tmp_path / 'file'}"
    assert told == refusal(tmp_path / "file" / "out")
    assert "cannot be written: Too many levels of symbolic links" == refusal(tmp_path / "loop")
    assert "cannot be written: File name too long" == refusal(tmp_path / ("x" * 300))
    assert "cannot be written: No such file or directory" == refusal("").strip()
    assert before == sorted(tmp_path.iterdir())


def test_a_file_that_standard_error_goes_to_is_refused(path: Path) -> None:
    """Is refused: each would overwrite the other."""
    before = os.dup(2)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
            told = "is where standard error goes, and each would overwrite the other"
            assert told == refusal(path)
    finally:
        os.dup2(before, 2)
        os.close(before)


def test_a_file_in_a_folder_that_takes_none_is_refused() -> None:
    """A file that not even root can create is refused."""
    assert refusal("/sys/out.jsonl").startswith("cannot be written: ")


def test_links_are_followed(path: Path, tmp_path: Path) -> None:
    """A symbolic link stays, and its target is written, also one that is not there yet."""
    link = tmp_path / "link"
    link.symlink_to(path)
    for request in (A, B):
        with Journal.open(str(link)) as journal:
            write(journal, request)

    assert link.is_symlink()
    assert line(A) + line(B) == path.read_bytes()


def test_the_umask_decides_who_can_read_the_file(path: Path) -> None:
    """There are no secrets in the file."""
    before = os.umask(0o027)
    try:
        Journal.open(str(path)).close()
    finally:
        os.umask(before)

    assert 0o640 == path.stat().st_mode & 0o777


def test_two_batches_do_not_write_one_file_at_once(path: Path) -> None:
    """While one batch writes a file no other does; afterwards the next may."""
    with Journal.open(str(path)) as journal:
        write(journal)
        assert BUSY == refusal(path)
        write(journal, B)
    with Journal.open(str(path)) as journal:
        assert B in journal


HOLDER = """
import sys
from braze_sends.journal import Journal
journal = Journal.open(sys.argv[1])
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.process
def test_two_processes_do_not_write_one_file_at_once(path: Path) -> None:
    """The lock holds between processes, and ends with its process, however that ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,  # it holds the file until this is closed
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert "open\n" == holder.stdout.readline()
        assert BUSY == refusal(path)
        holder.kill()
        holder.wait()
        Journal.open(str(path)).close()


def test_a_system_without_locks_goes_without(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no such locks, on Windows, it goes without."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with Journal.open(str(path)) as journal:
        write(journal)

    assert line() == path.read_bytes()


def test_a_folder_that_cannot_be_opened_is_left_to_the_system(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a folder cannot be opened, on Windows, the file's name is left to the system."""
    opened = os.open

    def refuses_folders(name: str, *args: Any) -> int:
        if os.path.isdir(name):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name, *args)

    monkeypatch.setattr(os, "open", refuses_folders)
    with Journal.open(str(path)) as journal:
        write(journal)

    assert line() == path.read_bytes()


# --- special files -------------------------------------------------------------------------------


def test_a_device_that_forgets_takes_what_it_is_given() -> None:
    """A device has no lines of earlier runs, takes what it is given, and needs no room."""
    with Journal.open("/dev/null") as journal:
        write(journal)
        assert A in journal
    with Journal.open("/dev/null") as journal:
        assert A not in journal


def test_a_device_that_is_full_is_an_error_at_the_first_line() -> None:
    """A device that takes nothing is an error at the first line, which is not lost."""
    with Journal.open("/dev/full") as journal, pytest.raises(JournalError) as caught:
        write(journal)

    assert "/dev/full cannot be written: No space left on device" == str(caught.value)
    assert line() == f"{caught.value.line}\n".encode()
    assert A not in journal


def test_a_named_pipe_gets_the_lines(path: Path) -> None:
    """A named pipe gets the lines, and a reader that has gone is an error."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with Journal.open(str(path)) as journal:
        write(journal)
        assert line() == os.read(reader, 4096)
        os.close(reader)
        with pytest.raises(JournalError, match=r"cannot be written: Broken pipe$") as caught:
            write(journal, B)

    assert line(B) == f"{caught.value.line}\n".encode()


@contextmanager
def standard_output_to_a_pipe(patch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make standard output a pipe; the end to read from."""
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        patch.setattr(sys, "stdout", stream)
        yield reader
        patch.undo()


def test_standard_output_gets_the_lines_at_once_and_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lines go to standard output at once, after what was there, and leave it open."""
    with standard_output_to_a_pipe(monkeypatch) as reader:
        print("first")  # noqa: T201  # left in the buffer
        with Journal.open(None) as journal:
            write(journal)
            assert b"first\n" + line() == os.read(reader, 4096)
            assert A in journal
        assert not sys.stdout.closed
        os.close(reader)


def test_something_in_place_of_standard_output_gets_the_lines_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Something put in place of standard output, as by tests, gets the lines too."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
    with Journal.open(None) as journal:
        write(journal)

    assert isinstance(sys.stdout.buffer, io.BytesIO)
    assert line() == sys.stdout.buffer.getvalue()


def test_standard_output_whose_reader_has_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed pipe is an error with the line, and nothing is left that fails once more."""
    with standard_output_to_a_pipe(monkeypatch) as reader:
        journal = Journal.open(None)
        os.close(reader)
        with pytest.raises(
            JournalError, match=r"^standard output cannot be written: Bro"
        ) as caught:
            write(journal)
        sys.stdout.flush()

    assert line() == f"{caught.value.line}\n".encode()


def test_standard_output_that_does_not_block_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that is full and was made non-blocking is waited for."""
    with standard_output_to_a_pipe(monkeypatch) as reader:
        os.set_blocking(sys.stdout.fileno(), False)
        raw, filled = io.FileIO(sys.stdout.fileno(), "w", closefd=False), 0
        while sent := raw.write(b"\n" * 65536):
            filled += sent
        wait = select.select

        def empty_and_wait(*files: Any) -> Any:
            os.read(reader, filled)
            return wait(*files)

        monkeypatch.setattr(select, "select", empty_and_wait)
        write(Journal.open(None))
        assert line() == os.read(reader, filled).lstrip(b"\n")
        os.close(reader)


def test_standard_output_that_is_closed_is_told_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process without standard output is told so before anything is sent."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(JournalError, match=r"^standard output cannot be written: it is closed$"):
        Journal.open(None)


# --- failures while writing ----------------------------------------------------------------------


def fail(patch: pytest.MonkeyPatch, times: int, number: int = errno.EIO) -> None:
    """Have the next calls of fsync fail."""
    left, fsync = [number] * times, os.fsync

    def failing(file: int) -> None:
        if left:
            raise OSError(left[0], os.strerror(left.pop()))
        fsync(file)

    patch.setattr(os, "fsync", failing)


def test_without_room_for_lines_a_batch_does_not_begin(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for lines a batch does not begin, and the file is as it was."""
    for content in (b"", line(A), line(A)[:-1]):
        path.write_bytes(content)
        fail(monkeypatch, 1, errno.ENOSPC)
        assert "cannot be written: No space left on device" == refusal(path)
        assert content == path.read_bytes()


def test_a_line_that_is_half_written_is_neither_kept_nor_known(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that did not reach the disk is not in the file, nor known; the next one is."""
    with Journal.open(str(path)) as journal:
        write(journal, A)
        fail(monkeypatch, 1)
        with pytest.raises(JournalError, match=r": Input/output error$") as caught:
            write(journal, B)
        assert (line(B).decode(), None) == (f"{caught.value.line}\n", caught.value.quota_spent)
        assert line(A) == path.read_bytes()
        assert B not in journal
        write(journal, B)

    assert line(A) + line(B) == path.read_bytes()


def test_nothing_is_written_behind_half_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is ever written behind the half of a line: it is removed first, as soon as can be."""
    with Journal.open(str(path)) as journal:
        write(journal, A)

        class Stubborn(io.FileIO):
            """Does not let itself be cut."""

            def truncate(self, size: int | None = None) -> int:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        good, bad = journal._lasting, Stubborn(path, "a+")
        with bad:
            fail(monkeypatch, 1)
            journal._lasting = bad
            for request in (B, C):
                with pytest.raises(JournalError, match=r": Read-only file system$"):
                    write(journal, request)
            assert line(A) + line(B) == path.read_bytes()
        journal._lasting = good
        write(journal, C)

    assert line(A) + line(C) == path.read_bytes()


@pytest.mark.parametrize("before", [True, False])
def test_a_file_that_another_program_cuts_gets_no_more_lines(
    path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """A file that another program cuts, also amid a write, gets no more lines and no NULs."""
    cut = len(line(A)) - 5
    with Journal.open(str(path)) as journal:
        write(journal, A)
        if before:
            os.truncate(path, cut)
        else:
            monkeypatch.setattr(os, "fsync", lambda file: os.truncate(file, cut))
        for request in (B, C):
            with pytest.raises(
                JournalError, match=r": it was cut short by another program$"
            ) as caught:
                write(journal, request)
            assert line(request).decode() == f"{caught.value.line}\n"
        with pytest.raises(JournalError, match=r": it was cut short by another program$"):
            journal.check()

    assert line(A)[:cut] == path.read_bytes()


def test_a_line_is_on_disk_before_the_next_send(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is on disk when ``write`` returns, unless it can be asked for again for nothing."""
    with Journal.open(str(path)) as journal:
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda file: synced.append(path.stat().st_size))
        for status in ("created", "reused", "queued", "failed"):
            write(journal, A, status)

    sizes = [len(line(status=status)) for status in ("created", "reused", "queued", "failed")]
    assert [sizes[0], sum(sizes[:3]), sum(sizes)] == synced


def run(script: str, *args: str) -> Any:
    """What a Python script prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *args], stdout=subprocess.PIPE, timeout=PATIENCE, check=True
    )
    return json.loads(done.stdout)


FULL = """
import json, resource, sys
from pathlib import Path
from braze_sends import CreateSendId, Outcome, SendId
from braze_sends.journal import ROOM, Journal, JournalError

path, told, written = Path(sys.argv[1]), [], []
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

limit(ROOM - 1)
try:
    Journal.open(str(path))
except JournalError as error:
    told.append(str(error))
told.append(path.stat().st_size)
limit(ROOM + 5000)
with Journal.open(str(path)) as journal:
    for n in range(999):
        try:
            request = CreateSendId("c", f"s{n}")
            journal.write(Outcome(request, SendId("c", f"s{n}")))
        except JournalError as error:
            told += [str(error), error.line]
            break
        written.append(f"s{n}")
print(json.dumps([told, written]))
"""


@pytest.mark.process
def test_a_disk_that_is_full_loses_no_line(path: Path) -> None:
    """A file that may not grow: told at opening; later the line that does not fit is not lost."""
    (at_opening, size, at_writing, unwritten), written = run(FULL, str(path))
    why = f"{path} cannot be written: File too large"
    lines = path.read_bytes().splitlines(keepends=True)

    assert [why, 0, why] == [at_opening, size, at_writing]
    assert 100 < len(written)
    assert written == [json.loads(text)["send_id"] for text in lines]
    assert all(text.endswith(b"\n") for text in lines)
    assert f"s{len(written)}" == json.loads(unwritten)["send_id"]


KILLED = """
import itertools, json, os, random, signal, sys, time
from braze_sends import BadRequestError, CreateSendId, Outcome
from braze_sends.journal import Journal

path, rounds = sys.argv[1], int(sys.argv[2])
told = []
for number in range(rounds):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        journal = Journal.open(path)
        for n in itertools.count():
            name = f"{number}-{n}"
            error = BadRequestError(n % 50 * "x", status_code=400)
            journal.write(Outcome(CreateSendId("c", name), error=error))
            os.write(writer, f"{name}\\n".encode())
    os.close(writer)
    with open(reader) as names:
        told.append([names.readline().strip() for _ in range(random.randrange(6))])
        time.sleep(random.uniform(0.0, 0.004))  # by chance, amid a line or between two
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told[-1] += names.read().split()
print(json.dumps(told))
"""


@pytest.mark.process
@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.long)])
def test_a_kill_at_any_moment_loses_no_written_line(path: Path, rounds: int) -> None:
    """After ``kill -9`` the file can be gone on with, and no line whose writing ended is lost."""
    told = run(KILLED, str(path), str(rounds))
    with Journal.open(str(path)) as journal:
        torn = journal.torn
    lines = path.read_bytes()
    there = [json.loads(text)["send_id"] for text in lines.splitlines() if text]
    ended = [name for names in told for name in names]

    assert lines.endswith(b"\n")
    assert len(set(there)) == len(there)
    assert set(ended) <= set(there)
    assert len(there) - len(ended) <= rounds - torn
    assert len(ended) > rounds
