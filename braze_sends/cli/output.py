"""The output of a batch: one JSON line for each row that was decided.

A batch may be killed at any moment, and the machine may crash: a line that was written is on disk
before the next send starts, and the next run goes on after it. The file holds such lines and
nothing else, so a file with anything else in it is somebody else's, and is left as it is.
"""

from __future__ import annotations

import errno
import io
import json
import os
import select
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, Self, get_args

from braze_sends.cli.rows import MAX_LINE
from braze_sends.errors import BrazeSendsError
from braze_sends.models import CreateSendId
from braze_sends.protocol import check_request, pair_digest

Status = Literal["created", "reused", "queued", "failed"]

#: Characters that a line shows of an error or a request ID; these come from the network.
MAX_TEXT: Final = 1000

#: Bytes that there must be room for before anything is sent: a day's lines without long errors.
ROOM: Final = 16 * 1024


class OutputError(BrazeSendsError):
    """The output cannot be used, or a line could not be written to it.

    Attributes:
        line: the line that could not be written, without its line break, and is nowhere else;
            ``None`` while nothing was to be written yet.
    """

    def __init__(self, message: str, *, line: str | None = None) -> None:
        super().__init__(message, quota_spent=False if line is None else None)
        self.line = line


class Output:
    """The result lines: appended, and on disk before the next send starts.

    Opening a regular file locks it against other batches until it is closed or the process ends,
    reads the lines that it has, and makes sure that there is room for more. A pipe or a device is
    only written to, and so is standard output. Not for several threads at once.

    Args:
        path: the file, created if it is missing; ``None`` is standard output.
        read_only: only read the lines that there are: nothing is created, locked or mended.

    Attributes:
        lasting: a rerun can go on from it: it is a regular file.
        torn: the last line had been cut short by a kill or a crash, and was removed; its row is
            to be asked for again.

    Raises:
        OutputError: it cannot be used, another batch is writing it, or it has a line that is not
            one of these; then it stays as it was.
    """

    def __init__(self, path: str | None, *, read_only: bool = False) -> None:
        self.torn = False
        self._name = "standard output" if path is None else path
        self._decided: dict[bytes, Status] = {}
        self._half: int | None = None  # where a half-written line begins, if it is still there
        self._end = 0  # of the last line in a regular file
        self._opened: io.FileIO | None = None
        self._lasting: io.FileIO | None = None  # the same, if it is a regular file
        with self._reporting(verb="read" if read_only else "written"):
            if path is None:
                _standard_output()  # if it is closed, that is to be known now
            elif read_only:
                self._look(path)
            else:
                self._opened = self._open(path)

    def knows(self, request: CreateSendId) -> bool:
        """Whether the pair has a line already."""
        return self.status(request) is not None

    def status(self, request: CreateSendId) -> Status | None:
        """What the line of the pair says, ``None`` if it has none yet."""
        return self._decided.get(pair_digest(request))

    def write(
        self,
        request: CreateSendId,
        status: Status,
        *,
        send_id: str | None = None,
        error: str | None = None,
        request_id: str | None = None,
        at: datetime,
    ) -> tuple[Status, str | None]:
        """Append a line, and return the status and the error that it tells.

        A line always names the pair of its row, by which a rerun finds it. Should Braze ever name
        a send otherwise, the row did not get what it asks for: the line says ``failed``, and its
        error what there is instead.

        Args:
            request: the row.
            status: what became of it. All but ``"reused"``, which can be asked for again at no
                cost, are on disk when this returns.
            send_id: as Braze named it.
            error: why it failed, in words.
            request_id: Braze's ``X-Request-Id``.
            at: when it was decided.

        Raises:
            OutputError: the line could not be written, and is in the error; a regular file is as it
                was before.
        """
        if send_id not in (None, request.send_id):
            status, error = "failed", f"Braze has created it under another send ID: {send_id}"
        line = _line(request, status, error, request_id, at)
        if decision_in(line.encode()) != (pair_digest(request), status):
            raise ValueError(f"no rerun could read this line: {line}")
        with self._reporting(line):
            self._append(f"{line}\n".encode(), lasting=status != "reused")
        self._decided[pair_digest(request)] = status
        return status, error

    def check(self) -> None:
        """Make sure that a regular file still has all lines.

        Raises:
            OutputError: another program has cut it short.
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
            raise OutputError(
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
                    raise OutputError(
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
            raise OutputError(f"{self._name} is being written by another batch") from None

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

    def _foreign(self, number: int) -> OutputError:
        return OutputError(
            f"{self._name} cannot be the output: its line {number} is no result of a batch"
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


def _line(
    request: CreateSendId, status: str, error: str | None, request_id: str | None, at: datetime
) -> str:
    return json.dumps(
        {
            "campaign_id": request.campaign_id,
            "send_id": request.send_id,
            "status": status,
            "error": error and error[:MAX_TEXT],
            "request_id": request_id and request_id[:MAX_TEXT],
            "at": at.astimezone(UTC).isoformat(timespec="milliseconds"),
        }
    )


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
_KEYS: Final = ["campaign_id", "send_id", "status", "error", "request_id", "at"]
