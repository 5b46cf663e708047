"""The input of a batch: a file that names a send in each row, as CSV or JSON Lines.

The whole file is read before anything is sent, and what is good of it is kept on disk, so that it
may change, or be a pipe, while the batch runs for days.

No byte that cannot be decoded is lost on the way: it becomes a lone surrogate, which no valid
UTF-8 gives, and is found in the row that holds it.
"""

from __future__ import annotations

import csv
import json
import re
import select
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, chain
from typing import Any, BinaryIO, Final, Self

import attrs

from braze_sends.cli.common import printable
from braze_sends.errors import ConfigurationError
from braze_sends.models import CreateSendId
from braze_sends.protocol import check_request, pair_digest

#: Bytes of the longest line that is read, its end included; no export of sends comes near.
MAX_LINE: Final = 1024 * 1024

COLUMNS: Final = ("campaign_id", "send_id")

_CHUNK: Final = 64 * 1024
_UTF8_BOM: Final = b"\xef\xbb\xbf"
#: As they look when decoded; that of UTF-32 begins with one of these, or with NULs.
_UTF16_BOMS: Final = ("\udcff\udcfe", "\udcfe\udcff")


@attrs.frozen
class BadRow:
    """A row that names no send.

    Attributes:
        line: the physical line in which it starts, from 1.
        problem: what is wrong, without control characters or long excerpts.
    """

    line: int
    problem: str


class Rows:
    """The good rows of a file, each pair once, in the file's order.

    They are kept in a temporary file without a name, which vanishes with the process. Iterations do
    not disturb each other.

    Args:
        found: the rows, read to their end.
        on_bad: called with each bad row, in order.

    Attributes:
        count: good rows, each pair once.
        repeated: rows that repeat the pair of an earlier row.
        bad: bad rows.

    Raises:
        ConfigurationError: there is no room for the temporary file.
    """

    def __init__(
        self, found: Iterable[CreateSendId | BadRow], on_bad: Callable[[BadRow], None]
    ) -> None:
        self.count = self.repeated = self.bad = 0
        seen: set[bytes] = set()
        with _keeping():
            self._kept = tempfile.TemporaryFile()  # noqa: SIM115  # ``close`` closes it
        try:
            for row in found:
                if isinstance(row, BadRow):
                    self.bad += 1
                    on_bad(row)
                elif (digest := pair_digest(row)) in seen:
                    self.repeated += 1
                else:
                    seen.add(digest)
                    self.count += 1
                    with _keeping():
                        # Neither ID has control characters.
                        self._kept.write(f"{row.campaign_id}\t{row.send_id}\n".encode())
            with _keeping():
                self._kept.flush()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[CreateSendId]:
        offset = 0
        while True:
            self._kept.seek(offset)
            lines = self._kept.readlines(_CHUNK)
            offset = self._kept.tell()
            if not lines:
                return
            for line in lines:
                yield CreateSendId(*line.decode().rstrip("\n").split("\t"))

    def close(self) -> None:
        """Forget the rows."""
        with suppress(OSError):  # what was not flushed for want of room
            self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(file: BinaryIO, on_bad: Callable[[BadRow], None], *, name: str = "the file") -> Rows:
    """Read a file to its end. The first character that is no blank tells the format.

    ``{``: JSON Lines, objects with the strings ``campaign_id`` and ``send_id``. Else CSV: a header
    with these names, cells separated by comma, semicolon (Excel in Europe) or tab. Names in any
    order and case. Other keys and columns are ignored, and so are blank lines. UTF-8, lines that
    end in LF, CRLF or CR.

    Args:
        file: what to read, from where it stands.
        on_bad: called with each bad row, in order; reading goes on.
        name: what error messages call the file.

    Raises:
        ConfigurationError: the file as a whole is unusable: it is empty, not UTF-8, or lacks a
            column; or a quote that is not closed leaves unknown what the rows are.
    """
    lines = _Lines(file, name)
    first = _first(lines)
    if re.fullmatch(r"sep=.\s*", _start(first)):  # by Excel, which the header tells as well
        first = _first(lines)
    found = _json_rows if _start(first).startswith("{") else _csv_rows
    return Rows(found(first, lines), on_bad)


@contextmanager
def _keeping() -> Iterator[None]:
    """Turn the failures of the temporary file into ``ConfigurationError``."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"the rows cannot be kept in a temporary file: {error.strerror or error}; "
            "TMPDIR names the folder for it"
        ) from None


# --- lines ---------------------------------------------------------------------------------------


@attrs.define
class _TooLong:
    """A line over ``MAX_LINE``, of which only this was kept."""

    start: str
    quotes: int = 0


class _Lines:
    """The physical lines of a file as text, with their ends.

    Attributes:
        name: what messages call the file.
        number: of the line that was given last, from 1.
        ended: there are no more.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self.number = 0
        self.ended = False
        self._split = _split(file)

    def __iter__(self) -> Iterator[str | _TooLong]:
        return self

    def __next__(self) -> str | _TooLong:
        try:
            line = next(self._split)
        except StopIteration:
            self.ended = True
            raise
        except OSError as error:
            raise self.unusable(f"cannot be read: {error.strerror or error}") from None
        self.number += 1
        return _text(line) if isinstance(line, bytes) else line

    def unusable(self, why: str) -> ConfigurationError:
        """The error that says why the whole file cannot be used."""
        return ConfigurationError(f"{self.name} {why}")


def _split(file: BinaryIO) -> Iterator[bytes | _TooLong]:
    long: _TooLong | None = None  # the line at hand, all but its last byte, if it is too long
    rest = b""
    while len(rest) < len(_UTF8_BOM) and (more := _some(file, len(_UTF8_BOM) - len(rest))):
        rest += more
    rest = rest.removeprefix(_UTF8_BOM)
    for chunk in chain(iter(lambda: _some(file, _CHUNK), b""), [b""]):
        lines = (rest + chunk).splitlines(keepends=True)
        rest = b""
        if chunk and not lines[-1].endswith(b"\n"):
            rest = lines.pop()  # it may go on, even if it ends in CR: with LF
        for line in lines:
            if long is None and len(line) <= MAX_LINE:
                yield line
                continue
            long = long or _TooLong(_text(line[:_CHUNK]))
            long.quotes += line.count(b'"')
            yield long
            long = None
        if len(rest) > MAX_LINE:
            long = long or _TooLong(_text(rest[:_CHUNK]))
            long.quotes += rest[:-1].count(b'"')
            rest = rest[-1:]


def _some(file: BinaryIO, size: int) -> bytes:
    """What there is of so many bytes; nothing at the end."""
    while (data := file.read(size)) is None:  # a pipe that somebody else made non-blocking
        select.select([file], [], [])
    return data


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _start(line: str | _TooLong) -> str:
    return (line if isinstance(line, str) else line.start).lstrip()


def _first(lines: _Lines) -> str | _TooLong:
    """The first line that is not blank."""
    for line in lines:
        if start := _start(line):
            if start.startswith(_UTF16_BOMS) or "\0" in start[:4]:
                raise lines.unusable(_UTF16)
            if start.startswith("PK\x03\x04"):
                raise lines.unusable('is a workbook of a spreadsheet: save it as "CSV UTF-8"')
            return line
    raise lines.unusable(
        "is empty: a batch needs CSV with the columns campaign_id and send_id, or JSON Lines"
    )


def _problem_of(text: str) -> str | None:
    """What makes a row unusable wherever in it that stands."""
    if "\0" in text:
        return "it has NUL characters"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        return f"it is not UTF-8, with its byte 0x{byte:02X}: save the file as UTF-8"
    return None


def _row(line: int, campaign_id: Any, send_id: Any) -> CreateSendId | BadRow:
    try:
        return check_request(CreateSendId(campaign_id, send_id))
    except ConfigurationError as error:
        return BadRow(line, str(error))


_TOO_LONG: Final = f"over {MAX_LINE} bytes long"
_UTF16: Final = "looks like UTF-16 or UTF-32: save it as UTF-8"


# --- JSON Lines ----------------------------------------------------------------------------------


def _json_rows(first: str | _TooLong, lines: _Lines) -> Iterator[CreateSendId | BadRow]:
    for line in chain([first], lines):
        if isinstance(line, _TooLong):
            yield BadRow(lines.number, f"it is {_TOO_LONG}")
        elif not line.isspace():
            yield _json_row(lines.number, line)


def _json_row(number: int, line: str) -> CreateSendId | BadRow:
    if problem := _problem_of(line):
        return BadRow(number, problem)
    try:
        row = json.loads(line.rstrip(), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return BadRow(number, f"it is not JSON, at column {error.colno}: {error.msg}")
    except ValueError:  # Python reads no integer of over 4300 digits
        return BadRow(number, "it has a number that is too long")
    except RecursionError:
        return BadRow(number, "it is nested too deeply")
    if not isinstance(row, dict):
        return BadRow(number, "it is not a JSON object")
    for name in COLUMNS:
        if row.get(name) is None:
            return BadRow(number, f"{name} is missing")
        if row[name] is _TWICE:
            return BadRow(number, f"it has {name} more than once")
    return _row(number, *(row[name] for name in COLUMNS))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        name = _column(key)
        found[name] = _TWICE if name in found else value
    return found


_TWICE: Final = object()


# --- CSV -----------------------------------------------------------------------------------------


def _csv_rows(first: str | _TooLong, lines: _Lines) -> Iterator[CreateSendId | BadRow]:
    delimiter, names = _header(first, lines)
    campaign_id, send_id = map(names.index, COLUMNS)
    for line in lines:
        number = lines.number
        if isinstance(line, _TooLong):
            if line.quotes % 2:
                raise _unclosed(lines, number, _TOO_LONG)
            yield BadRow(number, f"it is {_TOO_LONG}")
            continue
        if line.isspace():
            continue
        cells = _Record(line, lines).cells(delimiter)
        if isinstance(cells, BadRow):
            yield cells
        elif not any(map(str.strip, cells)):
            pass  # as spreadsheets leave below the last row
        elif problem := _problem_of("".join(cells)):
            yield BadRow(number, problem)
        elif len(cells) != len(names):
            yield BadRow(number, f"it has {len(cells)} cells, the header {len(names)}")
        else:
            yield _row(number, cells[campaign_id].strip(), cells[send_id].strip())


def _header(first: str | _TooLong, lines: _Lines) -> tuple[str, list[str]]:
    """The delimiter, and the names of the columns in lower case."""
    if isinstance(first, _TooLong):
        raise lines.unusable(f"has a header that is {_TOO_LONG}, in line {lines.number}")
    if "\0" in first:
        raise lines.unusable(_UTF16)
    if first.lstrip().startswith("["):
        raise lines.unusable("is a JSON array: write one object a line, without brackets")
    number, record = lines.number, _Record(first, lines)
    with suppress(csv.Error):  # over too many lines, which below are more than one row
        record.take_header()
    found = [
        (delimiter, [cell.strip() for cell in rows[0]])
        for delimiter in ",;\t"
        if len(rows := _parsed(record.taken, delimiter)) == 1
    ]
    if not found:
        raise lines.unusable(f"has a header whose quotes do not match, in line {number}")
    delimiter, shown = max(found, key=lambda reading: (-len(_missing(reading[1])), len(reading[1])))
    if missing := _missing(shown):
        raise lines.unusable(f"lacks {' and '.join(missing)} in its header: {_listed(shown)}")
    names = [*map(_column, shown)]
    for name in COLUMNS:
        if names.count(name) > 1:
            raise lines.unusable(f"has {name} more than once in its header")
    return delimiter, names


def _missing(names: list[str]) -> list[str]:
    return [name for name in COLUMNS if name not in map(_column, names)]


def _column(name: str) -> str:
    """A column's name as it is compared: ``Send ID`` will do."""
    return name.lower().replace(" ", "_")


def _listed(names: list[str], longest: int = 40, most: int = 10) -> str:
    shown = [printable(name[:longest]) for name in names[:most]]
    return ", ".join(shown) + (", ..." if len(names) > most else "")


class _Record:
    """A row and the physical lines that it takes: more than one if it has a quoted cell.

    Attributes:
        taken: its lines as far as they were asked for.
    """

    def __init__(self, first: str, lines: _Lines) -> None:
        self.taken = [first]
        self._number = lines.number
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        """Its lines, for a parser that stops asking where the row ends."""
        yield self.taken[0]
        size = len(self.taken[0])
        for line in self._lines:
            text = line if isinstance(line, str) else line.start
            self.taken.append(text)
            size += len(text)
            if isinstance(line, _TooLong) or size > MAX_LINE:
                raise csv.Error(_TOO_LONG)
            yield text

    def take_header(self) -> None:
        """Take lines until the quotes match, which needs no delimiter."""
        quotes = 0
        for line in self:
            quotes += line.count('"')
            if quotes % 2 == 0:
                break

    def cells(self, delimiter: str) -> list[str] | BadRow:
        """The cells; takes as many lines as they need.

        Raises:
            ConfigurationError: where the row ends cannot be known.
        """
        try:
            return next(_reader(self, delimiter))
        except csv.Error as error:
            opened = self._opened(delimiter)
            # Lines that a quote has swallowed may have been rows, and those that follow may be the
            # rest of a cell that csv gave up. But nothing follows the last line.
            if len(self.taken) > 1 or (opened is not None and next(self._lines, None)):
                raise _unclosed(self._lines, opened or self._number, _words(error)) from None
            return BadRow(self._number, f"it is not CSV: {_words(error)}")

    def _opened(self, delimiter: str) -> int | None:
        """The line in which the quote opens that is still open, or ``None``."""
        # What csv says of the last of several lines is wrong, unless the file ended there.
        good = self.taken if len(self.taken) == 1 or self._lines.ended else self.taken[:-1]
        quoted = rf'(?:\A|{delimiter}) *("[^"]*(?:""[^"]*)*("|\Z))'
        for cell in re.finditer(quoted, "".join(good)):
            if not cell[2]:
                ends = accumulate(map(len, good))
                return self._number + sum(end <= cell.start(1) for end in ends)
        return None


def _reader(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    # Blanks around cells do not count, so those before a quote must not make it part of an ID.
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def _parsed(lines: list[str], delimiter: str) -> list[list[str]]:
    """The rows, none if it is not CSV."""
    try:
        return list(_reader(lines, delimiter))
    except csv.Error:
        return []


def _words(error: csv.Error) -> str:
    return printable(str(error).replace("\t", "tab"))


def _unclosed(lines: _Lines, line: int, why: str) -> ConfigurationError:
    return lines.unusable(
        f"cannot be divided into rows: the quote that opens in line {line} is not closed where "
        f"its cell should end ({why})"
    )
