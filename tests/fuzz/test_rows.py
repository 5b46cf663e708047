"""Files near those that operators make: rows, bad rows, or one error for the file."""

from __future__ import annotations

import io
from collections.abc import Callable

from hypothesis import strategies as st

from braze_sends import ConfigurationError, CreateSendId
from braze_sends.cli.rows import MAX_LINE, BadRow, read
from braze_sends.protocol import check_request
from tests.fuzz.shapes import (
    Content,
    Strategy,
    anything,
    check,
    contents,
    mapping,
    often,
    pick,
    quoted,
    several,
    times,
)

_names = often(
    pick(["campaign_id", "send_id"]),
    pick(
        ["Campaign ID", "SEND_ID", " send_id ", "sendid", "note", "", "\ufeffcampaign_id", "x\x1by"]
    ),
    weight=6,
)
_columns = often(
    pick([["campaign_id", "send_id"], ["send_id", "campaign_id", "note"]]),
    st.lists(_names, max_size=5),
    weight=4,
)
_ids = often(
    pick(["c", "d", "s1", "s2", "x" * 64]),
    pick(
        [
            *(
                "",
                " ",
                "x" * 65,
                "x" * 257,
                "\u00e9",
                "\u202e",
                "a\0b",
                "a\tb",
                "a\nb",
                "a,b;c",
                "\x85",
            ),
            *(
                '"',
                '""',
                'a"b',
                '"a"',
                "'",
                "=1+1",
                "\ufeff",
                "\ufffd",
                "\ud800",
                "\x1c",
                "\\",
                "0",
            ),
            times(3000, "\n"),
        ]
    ),
    weight=5,
)
#: Near the longest cell that ``csv`` takes, and the longest line that is read.
_long = pick([times(n, "x") for n in (131_072, 131_073, MAX_LINE - 4, MAX_LINE)])
_ends = pick(["\n", "\r\n", "\r"])
_odd_ends = often(_ends, pick(["\n\n", "\n\r", "\x0b", "\x0c", "\u2028", "\x1c", "", "\0"]))


def _csv_quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"'


_ways: Strategy[Callable[[str], str]] = often(
    st.just(str),
    st.just(_csv_quoted),
    pick(['"{}'.format, '{}"'.format, ' "{}" '.format, '"{}"x'.format]),
)
_cells = st.builds(lambda way, text: way(text), _ways, often(_ids, _long, weight=40))
_delimiters = often(pick(",;\t"), pick(["|", ", ", " ; "]), weight=6)
_blank_lines = pick(["", " ", "\t", ",,", ";;", '""', "sep=;", "\ufeff"])


@st.composite
def _joined(draw: st.DrawFn, lines: list[str]) -> str:
    """Lines with their ends: all alike, or mixed."""
    if draw(st.integers(0, 3)):
        end = draw(_ends)
        return end.join(lines) + draw(pick(["", end]))
    return "".join(line + draw(_odd_ends) for line in lines)


@st.composite
def _csv(draw: st.DrawFn) -> str:
    delimiter, columns = draw(_delimiters), draw(_columns)
    lines = [draw(pick(["sep=;", "", "sep=,", " "]))] * draw(st.integers(0, 1))
    lines.append(delimiter.join(draw(_ways)(name) for name in columns))
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.integers(0, 5)):
            width = draw(often(st.just(len(columns)), st.integers(0, 7), weight=6))
            lines.append(delimiter.join(draw(_cells) for _ in range(width)))
        else:
            lines.append(draw(_blank_lines))
    return draw(_joined(lines))


_json_names = quoted(often(_names, pick(["Send ID", "x"])))
_objects = mapping(
    st.builds(
        lambda campaign, send, more: [('"campaign_id"', campaign), ('"send_id"', send), *more],
        *[often(quoted(_ids), anything(_ids), quoted(_long), weight=20)] * 2,
        often(st.just([]), st.lists(st.tuples(_json_names, anything(_ids)), max_size=2)),
    )
)
_lines = often(_objects, _blank_lines, anything(_ids), weight=6)
_json = st.lists(_lines, min_size=1, max_size=6).flatmap(_joined)
_mixed = st.builds("{}\n{}".format, _csv(), _json)

FILES = contents(often(_csv() | _json, _mixed, weight=4))


class Slow(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self._most if size is None or size < 0 else min(size, self._most))


def _read(file: io.BytesIO) -> tuple[list[CreateSendId], list[BadRow], int, str | None]:
    """The good rows, the bad ones, how many were repeated, and the file's own error."""
    bad: list[BadRow] = []
    try:
        rows = read(file, bad.append)
    except ConfigurationError as error:
        return [], bad, 0, str(error)
    with rows:
        good = list(rows)
        assert (len(good), len(bad)) == (rows.count, rows.bad)
        return good, bad, rows.repeated, None


def _rows_hold(content: Content) -> None:
    data = content.bytes()
    good, bad, repeated, refusal = found = _read(io.BytesIO(data))
    lines = len(data.splitlines())
    for row in good:
        assert isinstance(row.send_id, str)
        assert row == check_request(row)
    assert len(good) == len(set(good))
    assert len(good) + repeated + len(bad) <= lines
    assert sorted({row.line for row in bad}) == [row.line for row in bad]
    assert all(1 <= row.line <= lines for row in bad)
    for text in [*(row.problem for row in bad), *([refusal] if refusal is not None else [])]:
        assert text.isprintable()
        assert 0 < len(text) < 600
    if len(data) < 2000:
        assert found == _read(Slow(data, 1))
    assert found == _read(Slow(data, 40_000))


@several(30, 5000)
def test_a_file_is_rows_or_one_error(examples: int) -> None:
    """A file near CSV or JSON Lines, in any encoding and however it arrives, gives valid rows, bad
    rows with a line and a problem that can be shown, or one ``ConfigurationError``."""
    check(examples, FILES, _rows_hold)
