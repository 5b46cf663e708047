"""The input of a batch: what is read, what is refused, and in which words."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import select
import tempfile
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braze_sends import ConfigurationError, CreateSendId
from braze_sends.cli.rows import MAX_LINE, BadRow, read

HEADER = b"campaign_id,send_id\n"


def parse(
    data: bytes, encoding: str | None = None
) -> tuple[list[tuple[str, str | None]], list[tuple[int, str]]]:
    """The pairs of the good rows, and the bad rows."""
    bad: list[BadRow] = []
    with read(io.BytesIO(data), bad.append, name="sends.csv", encoding=encoding) as rows:
        good = [(row.campaign_id, row.send_id) for row in rows]
        assert len(good) == rows.count
        assert len(bad) == rows.bad
    return good, [(row.line, row.problem) for row in bad]


def refusal(data: bytes) -> str:
    """The words with which a whole file is refused, after those that every refusal has."""
    with pytest.raises(ConfigurationError) as caught:
        read(io.BytesIO(data), lambda row: None, name="sends.csv").close()
    assert caught.value.quota_spent is False
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix("sends.csv ")


# --- both formats --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"campaign_id,send_id\nc,s1\nd,s2\n",
        b"\n  \r\ncampaign_id,send_id\n\nc,s1\n \t \nd,s2",
        b"\xef\xbb\xbfcampaign_id,send_id\r\nc,s1\r\nd,s2\r\n",
        b"campaign_id,send_id\rc,s1\rd,s2\r",
        b"name;Send_ID ; CAMPAIGN_ID\nx;s1;c\ny;s2;d\n",
        b"send_id\tcampaign_id\ns1\tc\ns2\td\n",
        b'"campaign_id", "send_id"\n "c" , s1 \n\td\xc2\xa0,"s2"\n'.replace(b'"c" ', b'"c"'),
        '"a,\nb",campaign_id,send_id,ü\n"x\r\n"",;y",c,s1,\U0001f600\n,d,s2,\n'.encode(),
        b'{"campaign_id": "c", "send_id": "s1"}\n{"send_id": "s2", "campaign_id": "d", "n": [1]}',
        b'\xef\xbb\xbf\n {"campaign_id":"c","send_id":"s1"}\r\n\r\n{"campaign_id":"d",'
        b'"send_id":"s\\u0032"}\r\n',
    ],
)
def test_forms_of_the_same_rows(data: bytes) -> None:
    """Format, delimiter, order of columns, line ends and a BOM are told by content."""
    assert ([("c", "s1"), ("d", "s2")], []) == parse(data)


def test_rows_can_be_read_again_and_at_once() -> None:
    """Iterations start over, and do not disturb each other, in a file of many blocks too."""
    wanted = [CreateSendId("campaign", f"story-{n}") for n in range(10_000)]
    data = HEADER + b"".join(f"campaign,story-{n}\n".encode() for n in range(10_000))
    with read(io.BytesIO(data), print) as rows:
        assert list(zip(wanted, wanted, strict=True)) == list(zip(rows, rows, strict=True))
        assert wanted == list(rows)


def test_each_pair_once() -> None:
    """A pair that was there already is counted, not given; the same ID elsewhere is another."""
    data = HEADER + b"c,s\nd,s\nc,s\nc,t\n c ,s\n"
    with read(io.BytesIO(data), print) as rows:
        assert (3, 2, 0) == (rows.count, rows.repeated, rows.bad)
        assert [("c", "s"), ("d", "s"), ("c", "t")] == [(r.campaign_id, r.send_id) for r in rows]


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_empty_file(data: bytes) -> None:
    """A file of nothing, or of blanks, is told to be empty."""
    assert refusal(data).startswith("is empty: ")


@pytest.mark.parametrize("data", [HEADER, HEADER.strip(), HEADER + b"\n\n"])
def test_header_without_rows(data: bytes) -> None:
    """A header alone is a file with no rows."""
    assert ([], []) == parse(data)


ACCENTS = 'Größe,campaign_id,send_id\r\n"é\r\nü",c,s1\r\n€,d,s2\r\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("order", ["", "-be"])
def test_rows_are_the_same_in_each_encoding_that_a_spreadsheet_saves(
    encoding: str, order: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """UTF-8, and UTF-16 and UTF-32 of both byte orders with a mark, are told by the content."""
    mark = "\ufeff" if order and encoding in ("utf-16", "utf-32") else ""
    codec = encoding + order if mark else encoding

    assert ([("c", "s1"), ("d", "s2")], []) == parse((mark + ACCENTS).encode(codec))
    assert "" == capsys.readouterr().err


def test_what_is_not_utf8_is_read_as_cp1252_with_one_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The warning names the option that says otherwise."""
    assert ([("c", "s1"), ("d", "s2")], []) == parse(ACCENTS.encode("cp1252"))
    assert (
        "warning: sends.csv is not UTF-8, and is read as cp1252; if it is in another encoding, "
        "name that with --encoding\n" == capsys.readouterr().err
    )


def test_a_byte_far_behind_the_beginning_decides_the_encoding(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Even in the last row, half a character at the very end included."""
    data = HEADER + b"c,s\n" * 50_000
    for end in (b"c,t\xe9\n", b"c,t\xc3"):
        assert [(50_002, "send_id must be ASCII, as Braze requires")] == parse(data + end)[1]
        assert 1 == capsys.readouterr().err.count("read as cp1252")


@pytest.mark.parametrize("encoding", ["latin-1", "UTF-8", "utf-16-le", "utf-16", "cp1252"])
def test_an_encoding_that_is_named_is_not_doubted(
    encoding: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a byte order mark and without one; no warning tells of it."""
    text = ACCENTS.replace("€", "x")

    assert ([("c", "s1"), ("d", "s2")], []) == parse(text.encode(encoding), encoding)
    if encoding.lower().startswith("utf"):
        assert ([("c", "s1"), ("d", "s2")], []) == parse(f"\ufeff{text}".encode(encoding), encoding)
    assert "" == capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["latin-9000", "hex", "a\0b", ""])
def test_an_unknown_encoding_is_refused_before_the_file_is_read(encoding: str) -> None:
    """The message names some that are known."""
    with pytest.raises(ConfigurationError, match=r"^--encoding .*is unknown: name one such as"):
        read(io.BytesIO(), print, encoding=encoding)


def test_a_file_that_is_not_in_its_encoding_is_refused() -> None:
    """Half a character of UTF-16 cannot be told as a byte of one row."""
    data = ACCENTS.encode("utf-16")
    with pytest.raises(ConfigurationError, match=r"^sends.csv is not UTF-16-LE after line 3$"):
        parse(data[:-1])


def test_a_byte_that_cp1252_does_not_have_makes_its_row_bad() -> None:
    """The other rows are good."""
    data = b"campaign_id,send_id,x\nc,s,\xe9\nc,t,\x81\n"
    problem = "it is not cp1252, with its byte 0x81: save the file as UTF-8"
    assert ([("c", "s")], [(3, problem)]) == parse(data)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["campaign_id,send_id\r\n", '\r\n{"campaign_id": "c"}'])
def test_utf16(text: str, encoding: str) -> None:
    """UTF-16 and UTF-32 are recognised without a byte order mark too."""
    assert "looks like UTF-16 or UTF-32: save it as UTF-8" == refusal(text.encode(encoding))


def test_utf16_behind_other_letters() -> None:
    """UTF-16 is recognised by the names of the columns, if not by how it begins."""
    data = "日本語です,campaign_id,send_id\n".encode("utf-16-le")
    assert "looks like UTF-16 or UTF-32: save it as UTF-8" == refusal(data)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"c,\xe9t\xe9,x", "it is not UTF-8, with its byte 0xE9: save the file as UTF-8"),
        (b"c,s,caf\xe9", "it is not UTF-8, with its byte 0xE9: save the file as UTF-8"),
        (b"c,s,\xed\xa0\x80", "it is not UTF-8, with its byte 0xED: save the file as UTF-8"),
        (b"c,s,a\0b", "it has NUL characters"),
        (b"c\xc3\xa9,s,", "campaign_id must be ASCII, as Braze requires"),
        (b",s,", "campaign_id must not be empty"),
        (b"c, ,", "send_id must not be empty"),
        (b",,x", "campaign_id must not be empty"),
        (b"c,a\tb,", "send_id must not contain control characters"),
        (b'c,"a\nb",', "send_id must not contain control characters"),
        (b"c," + 65 * b"s" + b",", "send_id must be at most 64 characters, not 65"),
        (b"c,s", "it has 2 cells, but the header has 3: c,s"),
        (b"c,s,,", "it has 4 cells, but the header has 3: c,s,,"),
        (b'"c"x,s,', "it is not CSV: ',' expected after '\"'"),
        (b'"c,s,x', "it is not CSV: unexpected end of data"),
        (b'"c"x,"s,', "it is not CSV: ',' expected after '\"'"),
        (b"c,s," + 131073 * b"x", "it is not CSV: field larger than field limit (131072)"),
    ],
)
def test_bad_csv_rows(row: bytes, problem: str) -> None:
    """What is wrong with a row is told with its line, and the rows around it are good."""
    header = b"campaign_id,send_id,name\n"
    before, rest = b"a,b,\n\n", b"\ny,z,\n"
    if row in (b'"c,s,x', b'"c"x,"s,'):  # what could be the beginning of a long cell
        rest = b""
    good, bad = parse(header + before + row + rest, "utf-8")

    assert ([("a", "b"), ("y", "z")][: 1 + bool(rest)], [(4, problem)]) == (good, bad)


def test_words_for_a_tab() -> None:
    """A problem is told without control characters."""
    data = b'campaign_id\tsend_id\n"c"x\ts\n'
    assert ([], [(2, "it is not CSV: 'tab' expected after '\"'")]) == parse(data)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"{", "it is not JSON, at column 2: Expecting property name enclosed in double quotes: {"),
        (
            b'{"campaign_id": "c" "x"}',
            'it is not JSON, at column 21: Expecting \',\' delimiter: {"campaign_id": "c" "x"}',
        ),
        (
            b'{"campaign_id": "a\tb"}',
            "it is not JSON, at column 19: Invalid control character at: "
            '{"campaign_id": "a\ufffdb"}',
        ),
        (b"{} {}", "it is not JSON, at column 4: Extra data: {} {}"),
        (b"x" * 100, f"it is not JSON, at column 1: Expecting value: {'x' * 57}..."),
        (b'["c", "s"]', 'it is not a JSON object: ["c", "s"]'),
        (b'"c"', 'it is not a JSON object: "c"'),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"n": ' + b"1" * 5000 + b"}", "it has a number that is too long"),
        (b"{}", "campaign_id is missing"),
        (b'{"campaign_id": "c"}', "send_id is missing"),
        (b'{"campaign_id": "c", "send_id": null}', "send_id is missing"),
        (b'{"campaign_id": "c", "Send ID": "s", "send_id": "s"}', "it has send_id more than once"),
        (b'{"campaign_id": "c", "campaign_id": 0}', "it has campaign_id more than once"),
        (b'{"campaign_id": "c", "send_id": {}}', "send_id must be a string, not dict"),
        (b'{"campaign_id": "c", "send_id": 7}', "send_id must be a string, not int"),
        (b'{"campaign_id": [], "send_id": "s"}', "campaign_id must be a string, not list"),
        (b'{"campaign_id": "c", "send_id": ""}', "send_id must not be empty"),
        (
            b'{"campaign_id": "c", "send_id": " s"}',
            "send_id must not begin or end with a blank",
        ),
        (
            b'{"campaign_id": "\\ud800", "send_id": "s"}',
            "campaign_id must be ASCII, as Braze requires",
        ),
        (b'{"n": "\xe9"}', "it is not UTF-8, with its byte 0xE9: save the file as UTF-8"),
        (b'{"n": "\0"}', "it has NUL characters"),
    ],
)
def test_bad_json_rows(row: bytes, problem: str) -> None:
    """What is wrong with a row is told with its line, and the rows around it are good."""
    good = b'{"campaign_id": "c", "send_id": "s%d"}\n'
    expected = [("c", "s1"), ("c", "s2")], [(3, problem)]

    assert expected == parse(good % 1 + b"\n" + row + b"\r\n" + good % 2, "utf-8")


# --- long lines ----------------------------------------------------------------------------------

TOO_LONG = "over 1048576 bytes long"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("over", [-1, 0, 1, 2, 3, 65535, 65536, 65537])
def test_longest_line(end: bytes, over: int) -> None:
    """A line of 1 MiB with its end, which counts as one, is read; one byte more is too much,
    wherever blocks end."""
    row = b'{"campaign_id": "c", "send_id": "s%d", "x": "%s"}'
    long = row % (2, (MAX_LINE + over - len(row % (2, b"") + b"\n")) * b"x")
    good, bad = parse(end.join([row % (1, b""), long, row % (3, b""), b"{}"]))

    assert [("c", f"s{n}") for n in (1, 2, 3) if n != 2 or over <= 0] == good
    assert [(2, f"it is {TOO_LONG}")] * (over > 0) + [(4, "campaign_id is missing")] == bad


@pytest.mark.parametrize(
    ("head", "row"), [(HEADER, b"c,s%d\n"), (b"", b'{"campaign_id":"c","send_id":"s%d"}\n')]
)
def test_too_long_lines_take_no_memory(head: bytes, row: bytes) -> None:
    """Of lines of 10 MB nothing is kept, and the rows between them are read."""
    long = row[:5] + 10_000_000 * b"x" + b"\n"
    data = io.BytesIO(head + long + row % 1 + long + row % 2 + long)
    bad: list[BadRow] = []
    tracemalloc.start()
    with read(data, bad.append) as rows:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert ["s1", "s2"] == [row.send_id for row in rows]
    first = 1 + len(head.splitlines())
    assert [BadRow(first + n, f"it is {TOO_LONG}") for n in (0, 2, 4)] == bad
    assert peak < 6 * 1024 * 1024


def test_too_long_header() -> None:
    """Without a header nobody knows what the cells of the rows are."""
    assert f"has a header that is {TOO_LONG}, in line 2" == refusal(b"\n" + MAX_LINE * b"x,")


# --- CSV -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("send_id", "lacks campaign_id in its header: send_id"),
        ("campaign_id;x", "lacks send_id in its header: campaign_id, x"),
        ("campaign_id|send_id", "lacks campaign_id and send_id in its header: campaign_id|sen"),
        ("c-1,s-1", "lacks campaign_id and send_id in its header: c-1, s-1"),
        ("campaign_id,send_id;x", "lacks send_id in its header: campaign_id, send_id;x"),
        ("campaign_id,send_id, Send_ID", "has send_id more than once in its header"),
        ("campaign_id\tcampaign_id\tsend_id", "has campaign_id more than once in its header"),
        (
            "\x1b[2J\ufeff," + 99 * "y" + 20 * ",z",
            f"in its header: \ufffd[2J\ufffd, {40 * 'y'}, z, z, ",
        ),
        ('campaign_id,"send_id"x', 'and send_id in its header: campaign_id,"send_id"x'),
        ('campaign_id,"send_id\nc,s\n', "has a header whose quotes do not match, in line 1"),
        ('a"b,campaign_id,send_id\nc,"s","\nx,y', "whose quotes do not match, in line 1"),
        (
            'campaign_id,send_id,"x\n' + 99999 * "campaign,story-1\n",
            "whose quotes do not match, in line 1",
        ),
        ('[{"campaign_id": "c"}]', "is a JSON array: write one object a line"),
    ],
)
def test_unusable_header(header: str, why: str) -> None:
    """Both columns must be in the header, once; else it is told what is there."""
    assert why in refusal(header.encode())


def test_header_with_bytes_that_are_not_utf8() -> None:
    """A name that is no UTF-8 does no harm while its column is not needed."""
    assert ([("c", "s")], []) == parse(b"campaign_id,send_id,Gr\xf6\xdfe\nc,s,1\n")


@pytest.mark.parametrize(
    ("rows", "line", "why"),
    [
        # Never closed, up to the end of the file.
        ('c,s,"x\nd,t,y\n', 3, "unexpected end of data"),
        # Closed by the quote that opens a later cell.
        ('c,s,"x\nd,t,y\nd,u,"y"\n', 3, "',' expected after '\"'"),
        # Where it opens, not where the row starts; a doubled quote opens nothing.
        ('"c\nd",s"," x\ny","z""\ne,t,\n', 5, "unexpected end of data"),
        ('c,"s\nt", "x""\n""\ny\n"u"v,', 4, "',' expected after '\"'"),
        # Over a limit: csv's for a cell, ours for the cells of several lines.
        ('c,s,"' + 9999 * "x,y,z,1,2,3,4,5\n", 3, "field larger than field limit (131072)"),
        ('c,s,"' + 99 * ("x\n" + 11000 * "y" + '","'), 98, TOO_LONG),
        # Whatever follows may be the rest of a cell that was given up.
        ('c,s,"' + 131073 * "x" + "\nd,t,y\n", 3, "field larger than field limit (131072)"),
        ('"c"x,s,"y\nd,t,z\n', 3, "',' expected after '\"'"),
        ('c,s,"' + 1048576 * "x" + '\n"\nd,t,y\n', 3, TOO_LONG),
        ('c,s,"x\n' + 1048577 * "x" + '"\nd,t,y\n', 3, TOO_LONG),
    ],
)
def test_unclosed_quote(rows: str, line: int, why: str) -> None:
    """A quote that swallows lines makes the file unusable, and the line where it opens is named."""
    expected = (
        f"cannot be divided into rows: the quote that opens in line {line} is not closed where "
        f"its cell should end ({why})"
    )
    assert expected == refusal(f"campaign_id,send_id,name\n\n{rows}".encode())


def test_rows_before_an_unclosed_quote_are_looked_at() -> None:
    """Bad rows are told up to where a file turns out to be unusable."""
    bad: list[BadRow] = []
    with pytest.raises(ConfigurationError):
        read(io.BytesIO(HEADER + b',s\nc,"s\n\n'), bad.append)
    assert [BadRow(2, "campaign_id must not be empty")] == bad


# --- failures of the machine ---------------------------------------------------------------------


def test_file_that_cannot_be_read() -> None:
    """A failure while reading is told as such."""

    class Damaged(io.BytesIO):
        """A disk that cannot read on."""

        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) or self.fail()

        def fail(self) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(ConfigurationError, match=r"^mem cannot be read: Input/output error$"):
        read(Damaged(HEADER), print, name="mem")


def test_pipe_that_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that is empty and was made non-blocking is waited for, also within a BOM."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    pieces = [b"\xef\xbb", b"\xbfcampaign_id,send", b"_id\nc,s"]
    wait = select.select

    def fill_and_wait(*files: Any) -> Any:
        """What comes next comes while the pipe is waited for."""
        if pieces:
            os.write(writer, pieces.pop(0))
        else:
            os.close(writer)
        return wait(*files)

    monkeypatch.setattr(select, "select", fill_and_wait)
    with open(reader, "rb") as file, read(file, print) as rows:
        assert [CreateSendId("c", "s")] == list(rows)


@pytest.mark.parametrize("rows", [1, 5000])
def test_no_room_for_the_rows(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """A full disk is told before anything is sent, at the end at the latest."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: io.FileIO("/dev/full", "w+"))
    data = HEADER + b"".join(b"c,s%d\n" % n for n in range(rows))

    with pytest.raises(ConfigurationError, match="No space left on device; TMPDIR names"):
        read(io.BytesIO(data), print)


def test_no_folder_for_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder that is not there is told."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")

    with pytest.raises(ConfigurationError, match="temporary file: No such file or directory"):
        read(io.BytesIO(HEADER), print)


def test_rows_of_empty_cells_are_blank() -> None:
    """As spreadsheets leave them below the last row."""
    with read(io.BytesIO(HEADER + b"c,s\n,\n , \n"), print) as rows:
        assert [CreateSendId("c", "s")] == list(rows)


def test_a_workbook_is_told_as_such() -> None:
    """Who exports it in the wrong form is told the right one."""
    with pytest.raises(ConfigurationError, match=r"save it as .CSV UTF-8"):
        read(io.BytesIO(b"PK\x03\x04\x14\x00\x06\x00"), print)


def test_names_of_columns_as_people_write_them() -> None:
    """Case and blanks do not matter."""
    with read(io.BytesIO(b"Send ID, Campaign Id\ns,c\n"), print) as rows:
        assert [CreateSendId("c", "s")] == list(rows)


def test_failure_of_the_caller_is_its_own() -> None:
    """What ``on_bad`` raises passes through; it is not taken for a failure of the file."""

    def closed(row: BadRow) -> None:
        raise BrokenPipeError("stderr")

    with pytest.raises(BrokenPipeError):
        read(io.BytesIO(HEADER + b"c,\n"), closed)


def test_many_rows() -> None:
    """A row takes little memory: its digest, and nothing of its text."""
    count = 20_000
    file = io.BytesIO(HEADER + b"".join(b"%s,story-%d\n" % (250 * b"c", n) for n in range(count)))
    tracemalloc.start()
    with read(file, print) as rows:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert count == rows.count
    assert peak < 225 * count


# --- anything ------------------------------------------------------------------------------------

IDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=64).filter(
    lambda text: text == text.strip()
)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PAIRS = st.lists(st.tuples(IDS, IDS, TEXTS), max_size=20)


@given(
    PAIRS,
    st.permutations([0, 1, 2]),
    st.sampled_from(",;\t"),
    # csv.writer quotes the line breaks in cells for sure if it is told that they end lines.
    st.sampled_from([(csv.QUOTE_MINIMAL, "\r\n"), *((csv.QUOTE_ALL, end) for end in "\r\n")]),
    st.booleans(),
)
def test_any_csv(
    pairs: list[tuple[str, str, str]],
    order: list[int],
    delimiter: str,
    form: tuple[Any, str],
    bom: bool,
) -> None:
    """What ``csv.writer`` writes in any dialect comes back."""
    quoting, end = form
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
    for row in [("campaign_id", "send_id", "x,y;\tz"), *pairs]:
        writer.writerow([row[n] for n in order])
    data = file.getvalue().encode("utf-8-sig" if bom else "utf-8")

    assert (list(dict.fromkeys(pair[:2] for pair in pairs)), []) == parse(data)


@given(PAIRS.filter(bool), st.booleans(), st.booleans(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_json_lines(
    pairs: list[tuple[str, str, str]], ascii_only: bool, ends: bool, end: str
) -> None:
    """What ``json.dumps`` writes in any form comes back."""
    lines = [
        json.dumps({"x": text, "send_id": s, "campaign_id": c}, ensure_ascii=ascii_only)
        for c, s, text in pairs
    ]
    data = (end.join(lines) + end * ends).encode()

    assert (list(dict.fromkeys(pair[:2] for pair in pairs)), []) == parse(data)


PIECES = [
    *(
        b"campaign_id,send_id\n",
        b"campaign_id",
        b"send_id",
        b'{"campaign_id": "c", "send_id": "s"}',
    ),
    *(
        b"c,s\n",
        b'"',
        b'""',
        b",",
        b";",
        b"\t",
        b" ",
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff",
        b"\xef",
    ),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"{", b"}", b"[", b"\\", b"\x1c", b"\xc2\x85", b"9" * 5000),
    *(b"[" * 50_000, b"x" * 140_000),
]


@given(st.binary() | st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join))
def test_any_bytes(data: bytes) -> None:
    """Whatever the bytes are: rows that can be asked for, bad rows, or one kind of error."""
    lines = len(data.splitlines())
    bad: list[BadRow] = []
    try:
        rows = read(io.BytesIO(data), bad.append)
    except ConfigurationError as error:
        told = [str(error)]
    else:
        with rows:
            good = list(rows)
        assert len(set(good)) == len(good) == rows.count
        assert all(row.send_id and row.send_id.isprintable() for row in good)
        assert rows.count + rows.repeated + rows.bad <= lines
        told = []
    assert sorted({row.line for row in bad}) == [row.line for row in bad]
    assert all(1 <= row.line <= lines for row in bad)
    assert all(text.isprintable() for text in [*told, *(row.problem for row in bad)])
    assert all(len(text) < 600 for text in [*told, *(row.problem for row in bad)])
