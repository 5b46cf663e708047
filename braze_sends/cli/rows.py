"""The input of a batch: a file that names a send in each row, as CSV or JSON Lines.

The whole file is read before anything is sent, and its good rows are kept on disk: it may change,
or be a pipe, while the batch runs for days. A byte order mark tells the encoding; a file without
one is UTF-8, or else cp1252, as Excel writes it. A byte that the encoding does not know becomes a
lone surrogate, which no valid text has, and is found in the row that holds it.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
import select
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import chain
from typing import Any, BinaryIO, Final

import attrs

from braze_sends import ConfigurationError, CreateSendId
from braze_sends.cli.common import note, printable

#: Characters of the longest line that is read, its end included; no export of sends comes near.
MAX_LINE: Final = 1024 * 1024

COLUMNS: Final = ("campaign_id", "send_id")

_CHUNK: Final = 64 * 1024
#: That of UTF-32 LE begins with that of UTF-16 LE.
_BOMS: Final = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_UTF16: Final = "looks like UTF-16 or UTF-32: save it as UTF-8"
#: Characters of a row that a message shows.
_SHOWN: Final = 60
#: In what is wrong with a row that has a byte which the encoding lacks.
WRONG_BYTE: Final = ", with its byte 0x"
#: What Excel saves "CSV" in, in much of the world.
_ELSE: Final = "cp1252"
_TOO_LONG: Final = f"over {MAX_LINE} bytes long"


@attrs.frozen
class BadRow:
    """A row that names no send: the line in which it starts, from 1, and in words why."""

    line: int
    problem: str


class Rows(AbstractContextManager["Rows"]):
    """The good rows of a file, each pair once, in the file's order.

    They are ``count``, and in a temporary file, which vanishes with the process. Iterations do not
    disturb each other. With ``lines``, what else these tell of a row is kept too, see ``others``;
    ``names`` are the names of that.
    """

    def __init__(
        self,
        found: Iterable[CreateSendId | BadRow],
        on_bad: Callable[[BadRow], None],
        lines: _Lines | None = None,
    ) -> None:
        self.count = self.repeated = self.bad = 0
        names: dict[str, None] = {}
        with _keeping():
            self._kept = tempfile.TemporaryFile()  # noqa: SIM115  # ``close`` closes it
        seen: set[bytes] = set()
        try:
            for row in found:
                if isinstance(row, BadRow):
                    self.bad += 1
                    on_bad(row)
                    continue
                line = f"{row.campaign_id}\t{row.send_id}\n".encode()  # no ID has such characters
                digest = hashlib.blake2b(line, digest_size=16).digest()
                if digest in seen:
                    self.repeated += 1
                    continue
                seen.add(digest)
                self.count += 1
                if lines is not None:
                    names |= dict.fromkeys(lines.others)
                    others = json.dumps(lines.others, default=lambda twice: None)
                    line = line.replace(b"\n", f"\t{others}\n".encode())  # JSON has no tabs
                with _keeping():
                    self._kept.write(line)
            with _keeping():
                self._kept.flush()
        except BaseException:
            self.close()
            raise
        self.names = [*names]

    def __iter__(self) -> Iterator[CreateSendId]:
        for cells in self._cells():
            yield CreateSendId(*cells[:2])

    def others(self) -> dict[tuple[str, str], str]:
        """By pair, a JSON object of what else its row tells; empty if that was not kept."""
        return {(cells[0], cells[1]): cells[2] for cells in self._cells() if len(cells) > 2}

    def _cells(self) -> Iterator[list[str]]:
        self._kept.seek(0)
        while lines := self._kept.readlines(_CHUNK):
            offset = self._kept.tell()
            for line in lines:
                yield line.decode().rstrip("\n").split("\t")
            self._kept.seek(offset)

    def close(self) -> None:
        with suppress(OSError):  # what was not flushed for want of room
            self._kept.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def read(
    file: BinaryIO,
    on_bad: Callable[[BadRow], None],
    *,
    name: str = "the file",
    encoding: str | None = None,
    keep: bool = False,
) -> Rows:
    """Read a file, which messages call ``name``, to its end; ``on_bad`` is told each bad row.

    If the first character that is no blank is ``{``, it is JSON Lines: objects with the strings
    ``campaign_id`` and ``send_id``. Else it is CSV: a header with these names, cells separated by
    comma, semicolon (Excel in Europe) or tab. Names in any order and case. Other keys and columns
    are ignored, and so are blank lines. Lines end in LF, CRLF or CR.

    Args:
        encoding: the name of a codec of Python's. ``None``: the byte order mark tells it; without
            one it is UTF-8, or cp1252 if the file is not UTF-8, which a warning on stderr says.
        keep: keep the other columns, or keys, of the rows too.

    Raises:
        ConfigurationError: the file as a whole is unusable: it is empty, not in the encoding, or
            lacks a column; or a quote that is not closed leaves unknown what the rows are. Or
            Python knows no such encoding.
    """
    if encoding is not None:
        try:
            io.TextIOWrapper(io.BytesIO(), encoding)
        except (LookupError, ValueError):
            raise ConfigurationError(
                f"--encoding {printable(encoding)} is unknown: name one such as utf-8, utf-16 or "
                "cp1252"
            ) from None
    with _keeping():
        kept = tempfile.TemporaryFile()  # noqa: SIM115  # closed below
    try:
        found = _copy(file, kept, name)
        return _rows(_Lines(kept, name, encoding or found), on_bad, encoding is None, keep)
    finally:
        with suppress(OSError):  # what was not flushed for want of room
            kept.close()


def _rows(lines: _Lines, on_bad: Callable[[BadRow], None], guessed: bool, keep: bool) -> Rows:
    first = _first(lines)
    if guessed and lines.encoding == _ELSE:
        note(
            f"warning: {lines.name} is not UTF-8, and is read as {_ELSE}; if it is in another "
            "encoding, name that with --encoding"
        )
    if re.fullmatch(r"sep=.\s*", first.lstrip()):  # by Excel, which the header tells as well
        first = _first(lines)
    found = _json_rows if first.lstrip().startswith("{") else _csv_rows
    return Rows(found(first, lines), on_bad, lines if keep else None)


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


def _copy(file: BinaryIO, kept: BinaryIO, name: str) -> str:
    """Copy a file from its beginning, and find out its encoding."""
    reader = io.BufferedReader(_Waiting(file), _CHUNK)
    decoder = codecs.getincrementaldecoder("utf-8")()
    found, chunk = None, b"none yet"
    while chunk:
        try:
            chunk = reader.read(_CHUNK)
        except OSError as error:
            raise ConfigurationError(f"{name} cannot be read: {error.strerror or error}") from None
        if kept.tell() == 0:
            found = next((_BOMS[bom] for bom in _BOMS if chunk.startswith(bom)), None)
        if found is None:
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                found = _ELSE
        with _keeping():
            kept.write(chunk)
    with _keeping():
        kept.seek(0)
    return found or "utf-8"


class _Waiting(io.RawIOBase):
    """A file that is waited for, even if it is a pipe that somebody else made non-blocking."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while (data := self._file.read(len(buffer))) is None:
            select.select([self._file], [], [])
        buffer[: len(data)] = data
        return len(data)


class _Lines(Iterator[str]):
    """The physical lines of a file as text. Of one that is too long only the beginning is given."""

    def __init__(self, file: BinaryIO, name: str, encoding: str) -> None:
        self.name, self.encoding = name, encoding
        self.number = 0  # of the line that was given last, from 1
        self.too_long = False  # whether that line was over ``MAX_LINE``
        self.quotes = 0  # how many there are in it, if so
        self.ended = False  # there are no more
        self.columns: list[str] = []  # of CSV, as the header writes them
        self.others: dict[str, object] = {}  # what else the row that was given last tells
        self._text = open(  # noqa: SIM115  # ``file`` stays the owner
            file.fileno(), encoding=encoding, errors="surrogateescape", closefd=False
        )

    def __next__(self) -> str:
        try:
            line = piece = self._text.readline(MAX_LINE + 1)
            self.too_long, self.quotes = len(line) > MAX_LINE, 0
            while self.too_long and piece:
                self.quotes += piece.count('"')
                piece = "" if piece.endswith("\n") else self._text.readline(_CHUNK)
        except UnicodeError:
            raise self.unusable(
                f"is not {_named(self.encoding)} after line {self.number}"
            ) from None
        if not line:
            self.ended = True
            raise StopIteration
        self.number += 1
        return line if self.number > 1 else line.removeprefix("\ufeff")

    def unusable(self, why: str) -> ConfigurationError:
        """The error that says why the whole file cannot be used."""
        return ConfigurationError(f"{self.name} {why}")


def _first(lines: _Lines) -> str:
    """The first line that is not blank."""
    for line in lines:
        if start := line.lstrip():
            if "\0" in start[:4]:
                raise lines.unusable(_UTF16)
            if start.startswith("PK\x03\x04"):
                raise lines.unusable('is a workbook of a spreadsheet: save it as "CSV UTF-8"')
            return line
    raise lines.unusable(
        "is empty: a batch needs CSV with the columns campaign_id and send_id, or JSON Lines"
    )


def _named(encoding: str) -> str:
    return encoding.upper() if encoding.startswith("utf") else encoding


def _problem_of(text: str, encoding: str) -> str | None:
    """What makes a row unusable wherever in it that stands."""
    if "\0" in text:
        return "it has NUL characters"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        return f"it is not {_named(encoding)}{WRONG_BYTE}{byte:02X}: save the file as UTF-8"
    return None


def _shown(text: str) -> str:
    """A row for a message: its beginning, on one line."""
    text = text.strip()
    return printable(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}...")


def _row(line: int, campaign_id: Any, send_id: Any) -> CreateSendId | BadRow:
    try:
        return CreateSendId(campaign_id, send_id).check()
    except ConfigurationError as error:
        return BadRow(line, str(error))


def _column(name: str) -> str:
    """A column's name as it is compared: ``Send ID`` will do."""
    return name.lower().replace(" ", "_")


# --- JSON Lines ----------------------------------------------------------------------------------


def _json_rows(first: str, lines: _Lines) -> Iterator[CreateSendId | BadRow]:
    for line in chain([first], lines):
        if lines.too_long:
            yield BadRow(lines.number, f"it is {_TOO_LONG}")
        elif not line.isspace():
            yield _json_row(lines, line)


def _json_row(lines: _Lines, line: str) -> CreateSendId | BadRow:
    number = lines.number
    if problem := _problem_of(line, lines.encoding):
        return BadRow(number, problem)
    try:
        row = json.loads(line.rstrip(), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return BadRow(
            number, f"it is not JSON, at column {error.colno}: {error.msg}: {_shown(line)}"
        )
    except ValueError:  # Python reads no integer of over 4300 digits
        return BadRow(number, "it has a number that is too long")
    except RecursionError:
        return BadRow(number, "it is nested too deeply")
    if not isinstance(row, dict):
        return BadRow(number, f"it is not a JSON object: {_shown(line)}")
    for name in COLUMNS:
        if row.get(name) is None:
            return BadRow(number, f"{name} is missing")
        if row[name] is _TWICE:
            return BadRow(number, f"it has {name} more than once")
    lines.others = {name: value for name, value in row.items() if name not in COLUMNS}
    return _row(number, *(row[name] for name in COLUMNS))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        name = _column(key)
        found[name] = _TWICE if name in found else value
    return found


_TWICE: Final = object()


# --- CSV -----------------------------------------------------------------------------------------


def _csv_rows(first: str, lines: _Lines) -> Iterator[CreateSendId | BadRow]:
    delimiter, names = _header(first, lines)
    campaign_id, send_id = map(names.index, COLUMNS)
    while True:
        row: list[str] = []
        try:
            cells = next(_reader(_parts(lines, row), delimiter))
        except StopIteration:
            return
        except csv.Error as error:
            why = printable(str(error).replace("\t", "tab"))
            yield _bad_row(lines, row, delimiter, why)
            continue
        began = lines.number - len(row) + 1
        if not any(map(str.strip, cells)):
            pass  # a blank line, or such as spreadsheets leave below the last row
        elif problem := _problem_of("".join(cells), lines.encoding):
            yield BadRow(began, problem)
        elif len(cells) != len(names):
            count = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            shown = _shown("".join(row))
            yield BadRow(began, f"it has {count}, but the header has {len(names)}: {shown}")
        else:
            told = zip(lines.columns, names, cells, strict=True)
            lines.others = {column: cell for column, name, cell in told if name not in COLUMNS}
            yield _row(began, cells[campaign_id].strip(), cells[send_id].strip())


def _reader(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    # Blanks around cells do not count, so those before a quote must not make it part of an ID.
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def _parts(lines: Iterable[str], row: list[str]) -> Iterator[str]:
    """The lines of one row, which also go into ``row``."""
    size = 0
    for line in lines:
        row.append(line)
        size += len(line)
        if size > MAX_LINE:
            raise csv.Error(_TOO_LONG)
        yield line


def _header(first: str, lines: _Lines) -> tuple[str, list[str]]:
    """The delimiter, and the names of the columns in lower case."""
    number = lines.number
    if lines.too_long:
        raise lines.unusable(f"has a header that is {_TOO_LONG}, in line {number}")
    if "\0" in first:
        raise lines.unusable(_UTF16)
    if first.lstrip().startswith("["):
        raise lines.unusable("is a JSON array: write one object a line, without brackets")
    row: list[str] = []
    quotes = 0
    with suppress(csv.Error):  # over too many lines, which below are more than one row
        for line in _parts(chain([first], lines), row):
            quotes += line.count('"')
            if quotes % 2 == 0:  # a quoted name may go over several lines
                break
    readings = []
    for delimiter in ",;\t":
        with suppress(csv.Error):
            rows = list(_reader(row, delimiter))
            if len(rows) == 1:
                readings.append((delimiter, [cell.strip() for cell in rows[0]]))
    if not readings:
        raise lines.unusable(f"has a header whose quotes do not match, in line {number}")
    delimiter, shown = max(readings, key=lambda one: (-len(_missing(one[1])), len(one[1])))
    if missing := _missing(shown):
        told = ", ".join(printable(name[:40]) for name in shown[:10])
        more = ", ..." if len(shown) > 10 else ""
        raise lines.unusable(f"lacks {' and '.join(missing)} in its header: {told}{more}")
    lines.columns, names = shown, [*map(_column, shown)]
    for name in COLUMNS:
        if names.count(name) > 1:
            raise lines.unusable(f"has {name} more than once in its header")
    return delimiter, names


def _missing(names: list[str]) -> list[str]:
    return [name for name in COLUMNS if name not in map(_column, names)]


def _bad_row(lines: _Lines, row: list[str], delimiter: str, why: str) -> BadRow:
    """What csv cannot read; ``ConfigurationError`` if nobody can know where the row ends."""
    number = lines.number - len(row) + 1
    opened = None
    if len(row) == 1 and lines.too_long:
        opened = number if lines.quotes % 2 else None
    else:
        # What csv says of the last of several lines is wrong, unless the file ended there.
        good = "".join(row if len(row) == 1 or lines.ended else row[:-1])
        for cell in re.finditer(rf'(?:\A|{delimiter}) *("[^"]*(?:""[^"]*)*("|\Z))', good):
            if not cell[2]:
                opened = number + good.count("\n", 0, cell.start(1))
        # Lines that a quote has swallowed may have been rows, and those that follow may be the rest
        # of a cell that csv gave up. But nothing follows the last line.
        if len(row) > 1:
            opened = opened or number
        elif opened and not next(lines, None):
            opened = None
    if opened:
        raise lines.unusable(
            f"cannot be divided into rows: the quote that opens in line {opened} is not closed "
            f"where its cell should end ({why})"
        )
    return BadRow(number, f"it is {why}" if lines.too_long else f"it is not CSV: {why}")
