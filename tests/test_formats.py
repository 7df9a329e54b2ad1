"""formats.py: each format told from its first line, and every way in which a row of it can be wrong."""

import gzip
import io
import json

import pytest
import torch

from minbert.errors import InputError
from minbert.reading import expanded, open_regular
from multitask.data.formats import JSON_LINES, Problem, Record, lines_of, read_sheet
from multitask.data.tables import parse_texts, read_table
from multitask.data.tasks import SENTIMENT, Answers
from multitask.output import Answering
from multitask.streams import check_paths

ROWS = [{"id": "a", "text": 'He said "no", twice', "label": "1"}, {"id": "b", "text": "plain", "label": "0"}]


def quoted(separator: str) -> list[bytes]:
    """The rows in text with this separator, every cell quoted."""
    cells = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    lines = (separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells)
    return [f"{line}\n".encode() for line in lines]


OBJECTS = [json.dumps(row).encode() + b"\n" for row in ROWS]
FORMATS = {
    "tab-separated": quoted("\t"), "comma-separated": quoted(","), "semicolon-separated": quoted(";"),
    JSON_LINES: OBJECTS,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("start, end", [(b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")])
def test_every_format_gives_the_same_rows(form, start, end):
    lines = [line.replace(b"\n", end) for line in FORMATS[form]]
    sheet = read_sheet([start + lines[0], *lines[1:]], "t")
    assert (sheet.form, sheet.columns) == (form, ["id", "text", "label"])
    first = 1 if form == JSON_LINES else 2
    assert list(sheet.records) == [Record(number, row) for number, row in enumerate(ROWS, start=first)]


@pytest.mark.parametrize("header, wanted, form", [
    (b"text, long\tlabel", ["text, long"], "tab-separated"),
    (b"a\tb,label;c", ["label;c"], "comma-separated"),
    (b"text", ["text"], "tab-separated"), (b"a;b;c,d", [], "semicolon-separated"),
])  # fmt: skip
def test_the_separator_is_the_one_that_gives_the_columns(header, wanted, form):
    assert read_sheet([header], "t", wanted).form == form


@pytest.mark.parametrize("hint, lines", [
    (b"sep=;\r\n", [b"text;label\r\n", b"a, b;1\r\n", b"x\r\n"]),
    (b'\xef\xbb\xbf"sep=\t"\n', [b"text\tlabel\n", b"a, b\t1\n", b"x\n"]),
])  # fmt: skip
def test_excels_hint_at_the_separator_is_obeyed_and_counted_as_a_line(hint, lines):
    sheet = read_sheet([hint, *lines], "t")
    good, bad = sheet.records
    assert (sheet.columns, sheet.line, good) == (
        ["text", "label"],
        2,
        Record(3, {"text": "a, b", "label": "1"}),
    )
    assert isinstance(bad, Problem) and bad.line == 4
    with pytest.raises(InputError, match=r"^t:2: in the header: .*CR"):
        read_sheet([hint, b"a\rb\n"], "t")
    with pytest.raises(InputError, match=r"^t:1: sep= must name one of tab, comma, semicolon, not '\|'"):
        read_sheet([b"sep=|\n", *lines], "t")
    assert read_sheet([hint], "t").columns == []


def test_a_field_of_csv_may_span_lines_and_blank_lines_are_left_out():
    lines = [b"text,label\n", b'"two\n', b'lines, ""quoted""",1\r\n', b"\n", b"x,0\n", b"\n"]
    assert list(read_sheet(lines, "t").records) == [
        Record(2, {"text": 'two\nlines, "quoted"', "label": "1"}), Record(5, {"text": "x", "label": "0"}),
    ]  # fmt: skip


@pytest.mark.parametrize("bad, problems", [
    ([b"x,1,2\n"], ["3 comma-separated fields, but the header has 2; quote a field that holds one"]),
    ([b"x\n"], ["1 comma-separated field, but the header has 2"]),
    ([b"caf\xe9,1\n"], ["not UTF-8; save the file as UTF-8"]),
    ([b'"a" b,1\n'], ['text follows a closing quote ("); double the quotes inside a field']),
    ([b'"a,1\n', b"lost,1\n", b'b "c",1\n'], [
        'text follows a closing quote ("); double the quotes inside a field',
        *["is taken as part of the row that begins in line 2"] * 2,
    ]),
    ([b"a\rb,1\n"], ["a carriage return (CR) in the line; save the file with LF line ends"]),
])  # fmt: skip
def test_a_bad_row_of_csv_is_reported_and_the_next_one_read(bad, problems):
    found = list(read_sheet([b"text,label\n", *bad, b"good,1\n"], "t").records)
    assert found[:-1] == [Problem(number, problem) for number, problem in enumerate(problems, start=2)]
    assert found[-1] == Record(2 + len(bad), {"text": "good", "label": "1"})


@pytest.mark.parametrize("rest", [[], [b"x,1\n"] * 10], ids=["at the end", "above other rows"])
def test_a_quote_that_is_never_closed_stops_the_reading(rest):
    with pytest.raises(InputError, match=r'^t:3: a quote \("\) in this row is not closed'):
        list(read_sheet([b"text,label\n", b"x,1\n", b'"y,1\n', *rest], "t").records)


def test_a_quoted_field_is_not_read_without_end():
    def lines():
        yield from (b"text,label\n", b'"y,1\n')
        for _ in range(2000):
            yield b"x" * 1000 + b"\n"
        raise AssertionError("read more than 1 MB of one row")

    with pytest.raises(InputError, match=r'^t:2: a quote \("\) in this row is not closed'):
        list(read_sheet(lines(), "t").records)


def test_cells_of_json_lines():
    line = b'{"a": 1, "b": 0.5, "c": true, "d": null, "e": [1], "f": {"a": 1}, "g": " x\\n "}'
    (record,) = read_sheet([line], "t").records
    assert record == Record(1, {"a": "1", "b": "0.5", "c": "true", "d": "", "g": "x"})


@pytest.mark.parametrize("bad, problem", [
    (b"[1]", "not a JSON object on one line"), (b"{", "not a JSON object on one line (Expecting property"),
    (b'{"text": "a", "text": "b"}', "(a key is given twice)"), (b"\xff", "not UTF-8 (byte 1 of the line)"),
    (b'{"text": "\\ud800"}', "contains half of a surrogate pair"), (b'{"a":' * 10**5, "(nested too deeply)"),
    (b'{"text": ' + b"1" * 5000 + b"}", "not a JSON object on one line (Exceeds the limit"),
])  # fmt: skip
def test_a_bad_line_of_json_lines_is_reported_and_the_next_one_read(bad, problem):
    first, found, last = read_sheet([OBJECTS[0], bad + b"\n", b"\n", OBJECTS[1]], "t").records
    assert isinstance(found, Problem) and found.line == 2 and problem in found.message
    assert (first, last) == (Record(1, ROWS[0]), Record(4, ROWS[1]))


@pytest.mark.parametrize("first, problem", [
    (b"{\n", "^t:1: not a JSON object on one line .*; write one object on each line$"),
    (b"[\n", "^t: is a JSON array; write one object on each line"), (b'[{"a": 1}]', "^t: is a JSON array"),
    (b"PK\x03\x04...", "^t: is an archive, such as an Excel workbook; save it as CSV in UTF-8"),
])  # fmt: skip
def test_what_is_no_table_is_refused_with_a_remedy(first, problem):
    with pytest.raises(InputError, match=problem):
        read_sheet([first], "t")


# Gzip

TABLE = b"id,sentence,sentiment\n" + b"".join(b"%d,film %d,3\n" % (row, row) for row in range(5000))


def test_a_table_may_be_compressed_in_several_members(tmp_path):
    """And is the same table, so that it is found in the cache."""
    plain, packed = tmp_path / "t.csv", tmp_path / "t.csv.gz"
    plain.write_bytes(TABLE)
    packed.write_bytes(gzip.compress(TABLE[:30_000]) + gzip.compress(b"") + gzip.compress(TABLE[30_000:]))
    one, other = (read_table(path, SENTIMENT, labelled=True) for path in (plain, packed))
    assert list(one.rows()) == list(other.rows()) and one.source.key == other.source.key


@pytest.mark.parametrize("damage, problem", [
    (lambda packed: packed[:-1], "the gzip file ends too early"),
    (lambda packed: packed[:100] + bytes(100) + packed[200:], "a damaged gzip file"),
    (lambda packed: packed + bytes(10), "a damaged gzip file"),
    (lambda packed: gzip.compress(b"a,b,3\n" * 100_000) * 150, "expands more than 200 times"),
    (lambda packed: gzip.compress(bytes(10**7)), "a line of more than 1 MB"),
])  # fmt: skip
def test_a_damaged_file_or_a_bomb_is_refused_in_one_line(tmp_path, damage, problem):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(damage(gzip.compress(TABLE)))
    with pytest.raises(InputError) as caught:
        read_table(path, SENTIMENT, labelled=True)
    assert str(caught.value).startswith(f"{path}: ") and problem in str(caught.value)


def test_lines_of_a_compressed_file(tmp_path):
    path = tmp_path / "t.gz"
    path.write_bytes(gzip.compress(TABLE))
    with expanded(open_regular(path)) as file:
        assert b"".join(lines_of(file, "t")) == TABLE
    assert file.raw.file.closed


def test_the_ending_of_a_name_counts_in_any_case(tmp_path):
    for name in ("d.csv", "d.CSV", "d.Csv.GZ"):  # a header, so no line of plain text
        with pytest.raises(InputError, match="column named sentence; the header names"):
            [*parse_texts([b"review\n", b"good\n"], name, SENTIMENT)]
    for name, separator in (("a.CSV", ","), ("a.tsv", "\t")):
        file = io.StringIO()
        Answering(file, name, SENTIMENT).write(["x"], Answers(torch.tensor([1]), torch.eye(1, 5), [1]))
        assert file.getvalue().splitlines()[-1].startswith(f"x{separator}1{separator}1.000000{separator}")
    with pytest.raises(InputError, match="give --output another ending"):
        check_paths("-", str(tmp_path / "x.XLSX"), False)
