"""The journal of a batch: a file with one JSON line for each send that was decided.

A batch may be killed at any moment, and the machine may crash: a line that was written is on disk
before the next send starts, and the next run goes on after it.

::

    with Journal.open("sends.jsonl") as journal:
        todo = journal.missing(requests)
        async for outcome in braze.iter_send_ids(todo, concurrency=1):
            journal.write(outcome)

The file holds such lines and nothing else, so a file with anything else in it is somebody else's,
and is left as it is.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self, get_args

import attrs

from braze_sends.batch import Outcome
from braze_sends.errors import BadRequestError, BrazeSendsError, ConfigurationError
from braze_sends.models import CreateSendId
from braze_sends.protocol import check_request, pair_digest

__all__ = ["Entry", "Journal", "JournalError", "Status"]

Status = Literal["created", "reused", "queued", "failed"]

#: Characters that a line keeps of an error or a request ID; these come from the network.
MAX_TEXT: Final = 1000

#: Bytes of the longest line that is read, its end included.
MAX_LINE: Final = 1024 * 1024

#: Bytes that there must be room for before anything is sent: a day's lines without long errors.
ROOM: Final = 16 * 1024


class JournalError(BrazeSendsError):
    """The journal cannot be used, or a line could not be written to it.

    Attributes:
        line: the line that could not be written, without its line break, and is nowhere else;
            ``None`` while nothing was to be written yet.
    """

    def __init__(self, message: str, told: object = None, *, line: str | None = None) -> None:
        super().__init__(message, quota_spent=False if line is None else None)
        self.line = line
        self._take(told)


@attrs.frozen
class Entry:
    """What a line tells.

    Attributes:
        campaign_id: the campaign.
        send_id: the send ID that was asked for.
        status: ``"created"``; ``"reused"``, which cost nothing; ``"queued"``: Braze will create it
            later; ``"failed"``: Braze refused this pair with a 400.
        error: why it failed, in words, or ``None``.
        request_id: Braze's ``X-Request-Id``, or ``None``.
        at: when it was decided, ISO 8601, UTC.
    """

    campaign_id: str
    send_id: str
    status: Status
    error: str | None
    request_id: str | None
    at: str

    @classmethod
    def of(cls, outcome: Outcome, at: datetime) -> Entry | None:
        """The entry for an outcome; ``None`` if it decides nothing.

        The pair is that of the request, by which a rerun finds it. Should Braze ever name a send
        otherwise, the request did not get what it asks for: the status is ``"failed"``, and the
        error tells what there is instead.
        """
        request, send, error = outcome.request, outcome.result, outcome.error
        told: str | None = None
        if send is not None:
            status: Status = "queued" if send.queued else "reused" if send.reused else "created"
            if send.send_id != request.send_id:
                status = "failed"
                told = f"Braze has created it under another send ID: {send.send_id}"
        elif isinstance(error, BadRequestError) and not error.from_edge:
            status, told = "failed", f"{type(error).__name__}: {error}"
        else:
            return None
        request_id: str | None = getattr(send or error, "request_id", None)
        return cls(
            request.campaign_id,
            request.send_id,  # type: ignore[arg-type]  # ``Journal.write`` refuses None
            status,
            told and told[:MAX_TEXT],
            request_id and request_id[:MAX_TEXT],
            at.astimezone(UTC).isoformat(timespec="milliseconds"),
        )


class Journal:
    """The lines of a batch: appended, and on disk before the next send starts. See ``open``.

    Not for several threads at once.

    Attributes:
        lasting: a rerun can go on from it: it is a regular file.
        torn: the last line had been cut short by a kill or a crash, and was removed; its request
            is to be asked for again.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.torn = False
        self._name = "standard output" if path is None else os.fspath(path)
        self._decided: dict[bytes, Status] = {}
        self._half: int | None = None  # where a half-written line begins, if it is still there
        self._end = 0  # of the last line in a regular file
        self._opened: io.FileIO | None = None
        self._lasting: io.FileIO | None = None  # the same, if it is a regular file

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None, *, read_only: bool = False) -> Journal:
        """Open a journal, and read the lines that it has.

        A regular file is locked against other batches until it is closed or the process ends, and
        there is room in it for more lines. A pipe or a device is only written to.

        Args:
            path: the file, created if it is missing; ``None`` is standard output.
            read_only: only read the lines that there are: nothing is created, locked or mended.

        Raises:
            JournalError: it cannot be used, another batch is writing it, or it has a line that is
                not one of these; then it stays as it was.
        """
        journal = cls(path)
        with journal._reporting(verb="read" if read_only else "written"):
            if path is None:
                _standard_output()  # if it is closed, that is to be known now
            elif read_only:
                journal._look(journal._name)
            else:
                journal._opened = journal._open(journal._name)
        return journal

    def __contains__(self, request: CreateSendId) -> bool:
        """Whether the request has a line."""
        return self.status(request) is not None

    def status(self, request: CreateSendId) -> Status | None:
        """What the line of the request says, ``None`` if it has none yet."""
        return self._decided.get(pair_digest(request))

    def missing(self, requests: Iterable[CreateSendId]) -> Iterator[CreateSendId]:
        """The requests that have no line when their turn comes.

        Raises:
            ConfigurationError: a request has no ``send_id``: a rerun could not find its line, and
                would create another send.
        """
        for request in requests:
            if request.send_id is None:
                raise ConfigurationError(
                    "a journal needs a send_id for each request; new_send_id() makes one"
                )
            if request not in self:
                yield request

    def write(self, outcome: Outcome, *, at: datetime | None = None) -> Entry | None:
        """Append the line of an outcome; it is on disk when this returns.

        An outcome that decides nothing gets no line: the quota has ended, or nobody knows what
        became of the request. The next run asks again. A ``"reused"`` one may reach the disk later,
        since it can be asked for again at no cost.

        Args:
            outcome: what became of a request that names its send.
            at: when it was decided, now by default.

        Returns:
            what the line tells, ``None`` if none was written.

        Raises:
            JournalError: the line could not be written, and is in the error; a regular file is as
                it was before.
        """
        entry = Entry.of(outcome, datetime.now(UTC) if at is None else at)
        if entry is None:
            return None
        line = json.dumps(attrs.asdict(entry))
        pair = pair_digest(outcome.request)
        if decision_in(line.encode()) != (pair, entry.status):
            raise ValueError(f"no rerun could read this line: {line}")
        with self._reporting(line):
            self._append(f"{line}\n".encode(), lasting=entry.status != "reused")
        self._decided[pair] = entry.status
        return entry

    def check(self) -> None:
        """Make sure that a regular file still has all lines.

        Raises:
            JournalError: another program has cut it short.
        """
        if self._lasting is not None:
            with self._reporting():
                _require_size(self._lasting, self._end)

    def close(self) -> None:
        """Close the file; standard output stays open."""
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _reporting(self, line: str | None = None, verb: str = "written") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalError(
                f"{self._name} cannot be {verb}: {error.strerror or error}", line=line
            ) from None

    @property
    def lasting(self) -> bool:
        return self._lasting is not None

    # --- opening ---------------------------------------------------------------------------------

    def _look(self, path: str) -> None:
        _require_folder(path)
        if os.path.isdir(path) or os.path.isfile(path):  # else nothing is there to read
            with io.FileIO(path) as file:
                self._read(file)

    def _open(self, path: str) -> io.FileIO:
        _require_folder(path)
        new = not os.path.exists(path)
        # Who can also read a pipe is never told that its reader has gone.
        file = io.FileIO(path, "a+" if new or os.path.isfile(path) else "a")
        try:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                self._lasting = file
                self._keep_apart(file)
                self._lock(file)
                self._make_room(file, *self._read(file))
                if new:
                    _keep_name(path)
        except BaseException:
            file.close()
            raise
        return file

    def _keep_apart(self, file: io.FileIO) -> None:
        for stream in {1, 2} - {file.fileno()}:  # one that was closed may be ours
            with suppress(OSError):  # it is closed
                if os.path.sameopenfile(file.fileno(), stream):
                    raise JournalError(
                        f"{self._name} is where standard {'output' if stream == 1 else 'error'} "
                        "goes, and each would overwrite the other"
                    )

    def _lock(self, file: io.FileIO) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(
                f"{self._name} is being written by another batch; wait for its end, or name "
                "another file"
            ) from None

    def _read(self, file: io.FileIO) -> tuple[int, bool]:
        """Take in the lines. Where they end, and whether the last one lacks its line break."""
        end = number = 0
        file.seek(0)
        reader = io.BufferedReader(file)
        try:
            while line := reader.readline(MAX_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    break
                if line.strip():  # a kill while room was made leaves blank lines
                    self._take(line, number)
                end += len(line)
        finally:
            reader.detach()
        if not line:
            return end, False
        if len(line) == MAX_LINE:  # there may be more of it
            raise self._foreign(number)
        # A crash of the machine may leave NULs where a line was to be, but not a file of them.
        text = line.rstrip(b"\0")
        if _is_torn(text) and (text or self._decided):
            self.torn = True
            return end, False
        self._take(text, number)
        return end + len(text), True

    def _take(self, line: bytes, number: int) -> None:
        decision = decision_in(line)
        if decision is None:
            raise self._foreign(number)
        pair, status = decision
        self._decided[pair] = status

    def _foreign(self, number: int) -> JournalError:
        return JournalError(
            f"{self._name} cannot be the output: its line {number} is no result of a batch; name "
            "another file"
        )

    def _make_room(self, file: io.FileIO, end: int, unfinished: bool) -> None:
        keep = end
        try:
            file.truncate(end)
            _write_all(file, b"\n" * ROOM)
            os.fsync(file.fileno())
            keep += unfinished
        finally:
            file.truncate(keep)
        self._end = keep

    # --- writing ---------------------------------------------------------------------------------

    def _append(self, data: bytes, *, lasting: bool) -> None:
        file = self._lasting
        if file is None:
            _write_all(self._opened or _standard_output(), data)
            return
        _require_size(file, self._end)
        self._remove_half(file)
        start = file.seek(0, os.SEEK_END)
        try:
            _write_all(file, data)
            if lasting:
                os.fsync(file.fileno())
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(self._name)):
                raise FileNotFoundError(errno.ENOENT, "it was replaced by another file")
            _require_size(file, start + len(data))
        except OSError:
            self._half = start
            self._remove_half(file)
            raise
        self._end = start + len(data)

    def _remove_half(self, file: io.FileIO) -> None:
        if self._half is not None:
            if os.fstat(file.fileno()).st_size > self._half:  # else it would grow
                file.truncate(self._half)
            self._half = None


def _standard_output() -> Any:
    """Standard output without a buffer, in which a line could be left."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed")
    sys.stdout.flush()
    return getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)


def _write_all(stream: Any, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = stream.write(rest)
        if written is None:  # a pipe that somebody else made non-blocking is full
            select.select([], [stream], [])
        rest = rest[written or 0 :]


def _require_size(file: io.FileIO, size: int) -> None:
    if os.fstat(file.fileno()).st_size < size:
        raise OSError(errno.EIO, "it was cut short by another program")


def _require_folder(path: str) -> None:
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {folder}")


def _keep_name(path: str) -> None:
    """Have the folder on disk, too, with the name of a new file."""
    with suppress(OSError):  # Windows opens no folders, and not every file system can do this
        folder = os.open(os.path.dirname(os.path.realpath(path)), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# --- lines ---------------------------------------------------------------------------------------


def decision_in(line: bytes) -> tuple[bytes, Status] | None:
    """The digest of the pair in a line of ours and its status, ``None`` if it is none."""
    try:
        fields = json.loads(line.decode("utf-8-sig"))  # some editors put a BOM before the first
        request = check_request(CreateSendId(fields["campaign_id"], fields["send_id"]))
        status = _STATUSES[fields["status"]]
        ours = (
            [*fields] == _KEYS
            and request.send_id is not None
            and all(isinstance(fields[name], str | None) for name in ("error", "request_id"))
            and datetime.fromisoformat(fields["at"]).tzinfo is not None
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return (pair_digest(request), status) if ours else None


def _is_torn(line: bytes) -> bool:
    """Whether this is the beginning of a line of ours. No part of one is JSON."""
    start = b'{"campaign_id": '
    if line[: len(start)] != start[: len(line)]:
        return False
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


#: One object for each, however many lines have it.
_STATUSES: Final[Mapping[str, Status]] = {status: status for status in get_args(Status)}
_KEYS: Final = [field.name for field in attrs.fields(Entry)]
