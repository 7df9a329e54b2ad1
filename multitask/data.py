"""Tab-separated tables, read strictly: a row is right, or it is reported with its file and line.

A table is UTF-8 with a header; one row a line (a quoted field may not span lines, so that one stray quote
cannot swallow the rows below it); a byte-order mark and CRLF line ends are accepted. Columns are found by
name.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minbert.errors import InputError
from minbert.tokenizer import BertTokenizer
from multitask.tasks import Task

SAMPLE = Path(__file__).parent / "sample"
REPORTED = 20  # problems spelled out in one report

csv.field_size_limit(1 << 24)  # characters in one field


@dataclass(frozen=True)
class Row:
    line: int  # from 1, as editors count
    id: str
    texts: tuple[str, ...]
    label: float | None


@dataclass(frozen=True)
class Problem:
    line: int
    message: str


@dataclass(frozen=True)
class Examples:
    """One split of one task, tokenised once."""

    ids: list[str]
    encoded: list[tuple[list[int], list[int]]]  # (input_ids, token_type_ids) of each row
    labels: np.ndarray  # (N,) float64; NaN where the table has none

    def __len__(self) -> int:
        return len(self.ids)


def parse(
    lines: Iterable[bytes], name: str, task: Task, labelled: bool, with_id: bool = True
) -> Iterator[Row | Problem]:
    """The rows of a table, streaming: each a Row, or the Problem it has. InputError for a header without the
    columns that are wanted; without `with_id`, a table that has no id column numbers its rows by line."""
    numbered = enumerate(lines, start=1)
    _, first = next(numbered, (1, b""))
    header = read_header(first, name)
    wanted = [task.id] * (with_id or task.id in header) + [*task.texts] + [task.label] * labelled
    missing = [column for column in wanted if header.count(column) != 1]
    if missing:
        found = (
            f"the tab-separated header names {', '.join(map(repr, header))}"
            if header
            else "the file is empty"
        )
        if len(header) == 1 and ("," in header[0] or ";" in header[0]):
            found += "; this looks comma-separated: save it as tab-separated text"
        raise InputError(
            f"{name}:1: needs exactly one column named {' and one named '.join(missing)}; {found}"
        )
    places = {column: header.index(column) for column in wanted}
    for number, line in numbered:
        try:
            fields = _fields(line)
            if len(fields) != len(header):
                raise ValueError(f"{len(fields)} tab-separated fields where the header has {len(header)}")
            yield _row(
                number, {column: fields[place].strip() for column, place in places.items()}, task, labelled
            )
        except ValueError as error:
            yield Problem(number, str(error))


def parse_plain(lines: Iterable[bytes], task: Task) -> Iterator[Row | Problem]:
    """Rows of plain text without a header: a sentence a line, or two with a tab between; quotes mean
    nothing."""
    for number, line in enumerate(lines, start=1):
        try:
            fields = _decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).split("\t")
            if len(fields) != len(task.texts):
                raise ValueError(
                    f"{len(fields)} tab-separated fields where {task.name} takes {len(task.texts)}; "
                    f"a table with more columns needs a header that names {' and '.join(task.texts)}"
                )
            yield _row(
                number, dict(zip(task.texts, (field.strip() for field in fields), strict=True)), task, False
            )
        except ValueError as error:
            yield Problem(number, str(error))


def _row(number: int, cells: Mapping[str, str], task: Task, labelled: bool) -> Row:
    """One row from its cells by column; ValueError says what is wrong."""
    for column in cells:
        if not cells[column]:
            raise ValueError(f"{column} is empty")
    label = task.parse_label(cells[task.label]) if labelled else None
    return Row(number, cells.get(task.id, str(number)), tuple(cells[column] for column in task.texts), label)


def read_header(line: bytes, name: str) -> list[str]:
    """The column names in a table's first line."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{name}: is UTF-16, as Excel's Unicode text; save it as UTF-8")
    try:
        return _fields(line.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise InputError(f"{name}:1: the header line: {error}") from None


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8") from None


def _fields(line: bytes) -> list[str]:
    """The fields of one line; ValueError says why it has none."""
    try:
        rows = list(csv.reader([_decode(line)], delimiter="\t", strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise ValueError('a quote (") opens and does not close on its line; close or double it') from None
        if "expected after" in str(error):
            raise ValueError('text follows a closing quote ("); double the quotes inside a field') from None
        raise ValueError(str(error)) from None
    return rows[0] if rows else []


def read_table(path: Path, task: Task, labelled: bool, skip_bad_rows: bool = False) -> tuple[list[Row], int]:
    """All rows of a table, and how many bad ones were dropped. Strict by default: InputError lists the first
    20 problems with file and line, and their number."""
    rows: list[Row] = []
    problems: list[Problem] = []
    lines_of_ids: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for item in parse(file, str(path), task, labelled):
                if isinstance(item, Row) and item.id in lines_of_ids:
                    item = Problem(
                        item.line, f"{task.id} {item.id} stands already on line {lines_of_ids[item.id]}"
                    )
                if isinstance(item, Problem):
                    problems.append(item)
                else:
                    lines_of_ids[item.id] = item.line
                    rows.append(item)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if problems and not skip_bad_rows:
        shown = [f"{path}:{problem.line}: {problem.message}" for problem in problems[:REPORTED]]
        more = [f"... and {len(problems) - REPORTED} more"] if len(problems) > REPORTED else []
        counts = f"{path}: {len(problems)} bad rows of {len(rows) + len(problems)}"
        raise InputError(
            "\n".join([*shown, *more, f"{counts}; mend them, or drop them with --skip-bad-rows"])
        )
    if not rows:
        raise InputError(f"{path}: holds no {'usable ' if problems else ''}rows below its header")
    return rows, len(problems)


def tokenize(
    rows: Sequence[Row], tokenizer: BertTokenizer, max_length: int
) -> list[tuple[list[int], list[int]]]:
    """(input_ids, token_type_ids) of every row: one sentence, or two together."""
    columns = list(zip(*(row.texts for row in rows), strict=True))
    return tokenizer.encode(columns[0], columns[1] if len(columns) == 2 else None, max_length)


def read_split(
    directory: Path, split: str, tasks: Mapping[str, Task], skip_bad_rows: bool
) -> dict[str, list[Row]]:
    """One split's rows of every task that has such a table: labelled, but for the split test-student. Says
    how many rows it dropped where it may."""
    rows = {}
    for name, task in tasks.items():
        path = task.path(directory, split)
        if path.is_file():
            rows[name], dropped = read_table(path, task, split != "test-student", skip_bad_rows)
            if dropped:
                print(f"{path}: dropped {dropped} bad rows, kept {len(rows[name])}")
    return rows


def make_examples(rows: Sequence[Row], tokenizer: BertTokenizer, max_length: int) -> Examples:
    labels = np.array([math.nan if row.label is None else row.label for row in rows])
    return Examples([row.id for row in rows], tokenize(rows, tokenizer, max_length), labels)


def fingerprint(splits: Iterable[Mapping[str, Sequence[Row]]]) -> str:
    """A SHA-256 over everything in these rows."""
    digest = hashlib.sha256()
    for split in splits:
        for name, rows in split.items():
            digest.update(repr((name, rows)).encode())
    return digest.hexdigest()


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[np.ndarray]:
    """All rows in batches of like length, longest first (so that memory fails early or never)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
