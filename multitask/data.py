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
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tokenizers

from minbert.errors import InputError, short_line, shown
from minbert.reading import open_regular
from minbert.tokenizer import BertTokenizer
from multitask.store import Strings, TokenIds, Tokens, cached, key_of
from multitask.tasks import Task

SAMPLE = Path(__file__).parent / "sample"
REPORTED = 20  # problems spelled out in one report
CHUNK = 8192  # rows that are tokenised together
FORMAT = 2  # of the cache's entries: to raise with any change to what is read, checked or kept
LONGEST_LINE = 1 << 26  # bytes

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

    ids: Sequence[str]
    tokens: Tokens
    labels: np.ndarray  # (N,) float64; NaN where the table has none

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Examples:
        """These rows alone, in the order given."""
        return Examples([self.ids[row] for row in rows], self.tokens.take(rows), self.labels[rows])


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
            f"the tab-separated header names {short_line(', '.join(map(repr, header)))}"
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
    if len(cells.get(task.id, "").splitlines()) > 1 or "\t" in cells.get(task.id, ""):
        raise ValueError(f"{task.id} {shown(cells[task.id])} holds a tab or breaks its line")
    label = task.parse_label(cells[task.label]) if labelled else None
    return Row(number, cells.get(task.id, str(number)), tuple(cells[column] for column in task.texts), label)


def lines_of(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The lines of a file; InputError at one that no row of text can be, before all of it is in memory."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise InputError(
                f"{name}:{number}: longer than {LONGEST_LINE >> 20} MB; is this a table of text?"
            )
        yield line


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
        if "new-line character" in str(error):
            raise ValueError("a CR stands within the line; save the file with lines that end in LF") from None
        raise ValueError(str(error)) from None
    return rows[0] if rows else []


@dataclass(frozen=True)
class Source:
    """A table's file, as it was when its hash was taken, and how it is to be read."""

    path: Path
    digest: str  # SHA-256 of the file
    task: Task
    labelled: bool
    skip_bad_rows: bool

    @property
    def key(self) -> str:
        """A hash of all that its rows depend on."""
        return key_of(FORMAT, self.digest, self.task, self.labelled, self.skip_bad_rows)

    def rows(self) -> Iterator[Row]:
        return (item for item in self.items() if isinstance(item, Row))

    def items(self) -> Iterator[Row | Problem]:
        """Every row, good or bad, as they come. Strict by default: behind a table with bad ones stands an
        InputError that lists the first 20 with file and line, and their number."""
        lines_of_ids: dict[str, int] = {}
        problems: list[Problem] = []
        bad, hasher = 0, hashlib.sha256()
        try:
            with open_regular(self.path) as file:
                lines = _hashed(lines_of(file, str(self.path)), hasher)
                for item in parse(lines, str(self.path), self.task, self.labelled):
                    if isinstance(item, Row):
                        line = lines_of_ids.setdefault(item.id, item.line)
                        if line != item.line:
                            message = f"{self.task.id} {short_line(item.id)} stands already on line {line}"
                            item = Problem(item.line, message)
                    if isinstance(item, Problem):
                        bad += 1
                        problems += [item] * (bad <= REPORTED)
                    yield item
        except OSError as error:
            raise _unreadable(self.path, error) from None
        if bad and not self.skip_bad_rows:
            listed = [f"{self.path}:{problem.line}: {problem.message}" for problem in problems]
            more = [f"... and {bad - REPORTED} more"] if bad > REPORTED else []
            counts = f"{self.path}: {bad} bad rows of {len(lines_of_ids) + bad}"
            raise InputError(
                "\n".join([*listed, *more, f"{counts}; mend them, or drop them with --skip-bad-rows"])
            )
        if not lines_of_ids:
            raise InputError(f"{self.path}: holds no {'usable ' if bad else ''}rows below its header")
        if hasher.hexdigest() != self.digest:
            raise InputError(f"{self.path}: has changed since this run began to read it; start again")


def _hashed(lines: Iterable[bytes], hasher: hashlib._Hash) -> Iterator[bytes]:
    for line in lines:
        hasher.update(line)
        yield line


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror})")


@dataclass(frozen=True)
class Table:
    """A table that was read and checked from its first line to its last. Its texts stay in the file."""

    source: Source
    ids: Sequence[str]
    labels: np.ndarray  # (N,) float64; NaN where the table has none
    dropped: int  # bad rows left out

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Iterator[Row]:
        """The rows, read again; InputError where the file is no longer the one that was checked."""
        return self.source.rows()


def read_table(path: Path, task: Task, labelled: bool, skip_bad_rows: bool = False) -> Table:
    """A table, checked now or, where the cache knows these bytes, before. InputError for bad rows, unless
    they may be dropped."""
    try:
        with open_regular(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None
    source = Source(path, digest, task, labelled, skip_bad_rows)
    kept = cached(source.key, lambda: check(source))
    return Table(source, Strings(kept["ids"], kept["id_ends"]), kept["labels"], int(kept["dropped"]))


def check(source: Source) -> dict[str, np.ndarray]:
    """Read a table to its end, strictly; what is kept of it as arrays."""
    ids, ends, labels, dropped = bytearray(), array("q"), array("d"), 0
    for item in source.items():
        if isinstance(item, Problem):
            dropped += 1
            continue
        ids += item.id.encode()
        ends.append(len(ids))
        labels.append(math.nan if item.label is None else item.label)
    return {
        "ids": np.array(ids, np.uint8),
        "id_ends": np.array(ends),
        "labels": np.array(labels),
        "dropped": np.array(dropped),
    }


def tokenize(rows: Sequence[Row], tokenizer: BertTokenizer, max_length: int) -> list[TokenIds]:
    """(input_ids, token_type_ids) of every row: one sentence, or two together."""
    columns = list(zip(*(row.texts for row in rows), strict=True))
    return tokenizer.token_ids(columns[0], columns[1] if len(columns) == 2 else None, max_length)


def read_split(
    directory: Path, split: str, tasks: Mapping[str, Task], skip_bad_rows: bool
) -> dict[str, Table]:
    """One split's table of every task that has one: labelled, but for the split test-student. Says how many
    rows it dropped where it may."""
    tables = {}
    for name, task in tasks.items():
        path = task.path(directory, split)
        if path.is_file():
            tables[name] = read_table(path, task, split != "test-student", skip_bad_rows)
            if dropped := tables[name].dropped:
                print(f"{path}: dropped {dropped} bad rows, kept {len(tables[name])}")
    return tables


def make_examples(table: Table, tokenizer: BertTokenizer, max_length: int) -> Examples:
    """A table's rows, tokenised now or taken from the cache."""

    def chunks() -> Iterator[list[TokenIds]]:
        rows = table.rows()
        while chunk := list(islice(rows, CHUNK)):
            yield tokenize(chunk, tokenizer, max_length)

    key = key_of(FORMAT, table.source.key, tokenizer.fingerprint(), tokenizers.__version__, max_length)
    kept = cached(key, lambda: vars(Tokens.join(chunks(), tokenizer.vocab_size)))
    return Examples(table.ids, Tokens(**kept), table.labels)


def fingerprint(splits: Iterable[Mapping[str, Table]]) -> str:
    """A SHA-256 over the tasks' names and the bytes of their tables."""
    return key_of(*[(name, table.source.digest) for split in splits for name, table in split.items()])
