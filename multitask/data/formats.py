"""The formats of tables, each told from the first line: text separated by tabs, commas or semicolons below a
header, and JSON lines. Above the header may stand Excel's hint at the separator, such as sep=; on a line.

Tab-separated text has one row per line: a quoted field may not span lines, so one stray quote cannot swallow
the rows below it. Text separated by commas or semicolons is CSV, whose quoted fields may span lines. JSON
lines are one object per line. All are UTF-8; a byte-order mark and CRLF line ends are accepted.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from minbert.errors import InputError, counted, shown
from minbert.fields import LONE_SURROGATE
from minbert.reading import parse_json, reason

LONGEST_LINE = 1 << 20  # bytes, also of a row of CSV; the longest input of a model is a few thousand tokens
JSON_LINES = "JSON lines"
SEPARATORS = {"\t": "tab-separated", ",": "comma-separated", ";": "semicolon-separated"}
STRICT = "tab-separated"
SEPARATOR_HINT = re.compile(rb'"?sep=(.)"?\r?\n?', re.IGNORECASE)
ARCHIVE = b"PK\x03\x04"

csv.field_size_limit(LONGEST_LINE)

Raw = TypeVar("Raw")  # a row before it is read


def ending(name: str | Path) -> str:
    """Return how a file's name ends, in small letters and without .gz.

    >>> ending("reviews.CSV.gz")
    '.csv'
    """
    return Path(str(name).lower().removesuffix(".gz")).suffix


class Record(NamedTuple):
    line: int  # counted from 1, as in an editor: the first, if the record spans several
    cells: Mapping[str, str]  # by column, stripped


@dataclass(frozen=True)
class Problem:
    line: int
    message: str
    label: str = ""  # that the task does not allow, if that is the problem


@dataclass(frozen=True)
class Sheet:
    """A table whose header has been read."""

    form: str  # one of `SEPARATORS`, or JSON lines
    columns: list[str]  # the header or, of JSON lines, the keys of the first object
    line: int  # of the header, or the first object
    records: Iterator[Record | Problem]  # the rows, good or bad, in order


def read_sheet(lines: Iterable[bytes], name: str, wanted: Collection[str] = ()) -> Sheet:
    """Read a table's header. `wanted` are columns by which the separator is told, if several could be it.

    Raises InputError if the header cannot be read. The records raise it too, at a line or a quoted field
    that does not end.
    """
    lines = iter(lines)
    first = next(lines, b"").removeprefix(codecs.BOM_UTF8)
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{name}: is UTF-16, the format of Excel's Unicode text; save it as UTF-8")
    if first.startswith(ARCHIVE):
        raise InputError(f"{name}: is an archive, such as an Excel workbook; save it as CSV in UTF-8")
    if first.strip() == b"[" or first.lstrip().startswith(b"[{"):
        raise InputError(f"{name}: is a JSON array; write one object on each line (JSON lines)")
    if first.lstrip().startswith(b"{"):
        return _json_lines(chain([first], lines), name)
    if (hinted := hinted_separator(first)) is not None:
        if hinted not in SEPARATORS:
            known = ", ".join(form.removesuffix("-separated") for form in SEPARATORS.values())
            raise InputError(f"{name}:1: sep= must name one of {known}, not {shown(hinted)}")
        return _separated(lines, name, hinted, 2)
    return _separated(chain([first], lines), name, separator_of(first, wanted), 1)


def _separated(lines: Iterable[bytes], name: str, separator: str, start: int) -> Sheet:
    """Read a table whose header is in the line of this number."""
    return (_strict if SEPARATORS[separator] == STRICT else _csv)(lines, name, separator, start)


def hinted_separator(first: bytes) -> str | None:
    """Return what a table's first line says about its separator, if it is Excel's hint."""
    match = SEPARATOR_HINT.fullmatch(first.removeprefix(codecs.BOM_UTF8))
    return match[1].decode("utf-8", "replace") if match else None


def separator_of(header: bytes, wanted: Collection[str]) -> str:
    """Return the separator of a header: the one that gives the most of the columns wanted, or else the most
    columns."""

    def columns(separator: str) -> tuple[int, int]:
        found = split_header(header, separator)
        return len({*found} & {*wanted}), len(found)

    return max(SEPARATORS, key=columns)


def split_header(header: bytes, separator: str) -> list[str]:
    """Return what a header would name if this were its separator."""
    text = header.decode("utf-8", "replace").rstrip("\r\n")
    try:
        return [name.strip() for name in next(csv.reader([text], delimiter=separator), [])]
    except csv.Error:
        return []


def lines_of(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the lines of a file. Raises InputError once `LONGEST_LINE` bytes hold no line end."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise too_long(f"{name}:{number}")
        yield line


def too_long(place: str) -> InputError:
    return InputError(f"{place}: a line of more than {LONGEST_LINE >> 20} MB; is this a table of text?")


def decode(line: bytes) -> str:
    """Return a line without its end. Raises ValueError if it is not UTF-8."""
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8") from None


def _records(
    rows: Iterable[tuple[int, Raw]], cells: Callable[[Raw], Mapping[str, str]]
) -> Iterator[Record | Problem]:
    """Yield every numbered row as a record or, if `cells` raises ValueError, as a problem."""
    for number, row in rows:
        try:
            record = Record(number, cells(row))
        except ValueError as error:
            yield Problem(number, str(error))
        else:
            yield record


# Tab-separated, a row on each line


def _strict(lines: Iterable[bytes], name: str, separator: str, start: int) -> Sheet:
    numbered = enumerate(lines, start)
    _, first = next(numbered, (start, b""))
    try:
        header = _fields(first, separator)
    except ValueError as error:
        raise InputError(f"{name}:{start}: in the header: {error}") from None

    def cells(line: bytes) -> Mapping[str, str]:
        return _cells(header, _fields(line, separator), separator)

    return Sheet(SEPARATORS[separator], header, start, _records(numbered, cells))


def _fields(line: bytes, separator: str) -> list[str]:
    """Return the fields of one line. Raises ValueError with the reason if the line cannot be parsed."""
    try:
        rows = list(csv.reader([decode(line)], delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(_in_words(error)) from None
    return rows[0] if rows else []


def _in_words(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return 'a quote (") is not closed on the same line; close it or double it'
    if "expected after" in str(error):
        return 'text follows a closing quote ("); double the quotes inside a field'
    if "new-line character" in str(error):
        return "a carriage return (CR) in the line; save the file with LF line ends"
    return str(error)


def _cells(header: list[str], fields: list[str], separator: str) -> dict[str, str]:
    """Return the fields by column. Raises ValueError if their number differs."""
    if len(fields) != len(header):
        remedy = "" if separator == "\t" or len(fields) < len(header) else "; quote a field that holds one"
        found = counted(len(fields), f"{SEPARATORS[separator]} field")
        counts = f"{found}, but the header has {len(header)}"
        raise ValueError(counts + remedy)
    return dict(zip(header, map(str.strip, fields), strict=True))


# CSV, whose quoted fields may span lines


def _csv(lines: Iterable[bytes], name: str, separator: str, start: int) -> Sheet:
    rows = _csv_rows(_Feed(lines, name, start - 1), separator)
    _, header = next(rows, (start, []))
    if isinstance(header, str):
        raise InputError(f"{name}:{start}: in the header: {header}")
    header = [column.strip() for column in header]

    def cells(fields: list[str] | str) -> Mapping[str, str]:
        if isinstance(fields, str):
            raise ValueError(fields)
        return _cells(header, fields, separator)

    return Sheet(SEPARATORS[separator], header, start, _records(rows, cells))


def _csv_rows(feed: _Feed, separator: str) -> Iterator[tuple[int, list[str] | str]]:
    """Yield each row's first line and fields, or what is wrong with it. Blank lines between rows are left
    out; of a bad row, every line is reported, since any of them may have been meant as a row."""
    reader = csv.reader(feed, delimiter=separator, strict=True)
    while True:
        feed.begin_row()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise feed.unclosed() from None
            yield feed.first, _in_words(error)
            for number in range(feed.first + 1, feed.number + 1):
                yield number, f"is taken as part of the row that begins in line {feed.first}"
            continue
        if not feed.is_utf8:
            yield feed.first, "not UTF-8; save the file as UTF-8"
        elif fields:
            yield feed.first, fields


class _Feed(Iterator[str]):
    """The lines that `csv.reader` asks for, as many as a row has."""

    def __init__(self, lines: Iterable[bytes], name: str, number: int):
        self.lines, self.name = iter(lines), name
        self.number = number  # of the last line
        self.begin_row()

    def begin_row(self) -> None:
        self.first, self.size, self.is_utf8 = self.number + 1, 0, True

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        self.size += len(line)
        if self.size >= LONGEST_LINE:
            raise self.unclosed()
        try:
            return line.decode()
        except UnicodeDecodeError:
            self.is_utf8 = False
            return line.decode("utf-8", "replace")

    def unclosed(self) -> InputError:
        return InputError(
            f'{self.name}:{self.first}: a quote (") in this row is not closed, so it may have swallowed the '
            "rows below; close it or double it"
        )


# JSON lines


def _json_lines(lines: Iterable[bytes], name: str) -> Sheet:
    numbered = enumerate(lines, start=1)
    _, first = next(numbered)
    try:
        header = list(_object(first))
    except ValueError as error:
        raise InputError(f"{name}:1: {error}; write one object on each line") from None

    rows = ((number, line) for number, line in chain([(1, first)], numbered) if line.strip())
    return Sheet(JSON_LINES, header, 1, _records(rows, _object))


def _object(line: bytes) -> dict[str, str]:
    """Return the texts, numbers and booleans in a line's object, as texts. Raises ValueError if the line is
    no object."""
    text = decode(line)
    try:
        values = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object on one line ({reason(error)})") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object on one line")
    return {key: written for key, value in values.items() if (written := _written(value)) is not None}


def _written(value: Any) -> str | None:
    """Return a text as it is, a number or a boolean as JSON writes it, null as "", and None for the rest."""
    if isinstance(value, str):
        if LONE_SURROGATE.search(value):
            raise ValueError("contains half of a surrogate pair; fix its encoding")
        return value.strip()
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return "" if value is None else None
