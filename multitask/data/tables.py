"""Tab-separated tables, read strictly: every row is either valid or reported with its file and line.

A table is a UTF-8 file with a header and one row per line. A quoted field may not span lines, so one stray
quote cannot swallow the rows below it. A byte-order mark and CRLF line ends are accepted. Columns are found
by name.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from minbert.errors import InputError, counted, short_line, shown
from minbert.reading import open_regular
from multitask.data.cache import cached, key_of
from multitask.data.tasks import Task

SAMPLE = Path(__file__).parent / "sample"
SPLITS = ("train", "dev", "test-student")
REPORTED = 20  # problems listed in one error message
FORMAT = 3  # version of the cache's entries: increase it when what is read, checked or kept changes
LONGEST_LINE = 1 << 20  # bytes; the longest input of a model is a few thousand tokens

UNFIT_FOR_IDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

csv.field_size_limit(LONGEST_LINE)


@dataclass(frozen=True)
class Row:
    line: int  # counted from 1, as in an editor
    id: str
    texts: tuple[str, ...]
    label: float | None

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


@dataclass(frozen=True)
class Problem:
    line: int
    message: str


def parse(
    lines: Iterable[bytes], name: str, task: Task, labelled: bool, with_id: bool = True
) -> Iterator[Row | Problem]:
    """Yield every row of a table as a `Row`, or as a `Problem` that says what is wrong with it.

    If `with_id` is false, the id column may be missing; a row's id is then its line number. Raises InputError
    if the header does not name each required column exactly once.
    """
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
                raise ValueError(f"{len(fields)} tab-separated fields, but the header has {len(header)}")
            yield _row(
                number, {column: fields[place].strip() for column, place in places.items()}, task, labelled
            )
        except ValueError as error:
            yield Problem(number, str(error))


def parse_plain(lines: Iterable[bytes], task: Task) -> Iterator[Row | Problem]:
    """Yield every row of plain text without a header: one sentence per line, or two separated by a tab.

    Quotes have no special meaning here.
    """
    for number, line in enumerate(lines, start=1):
        try:
            fields = _decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).split("\t")
            if len(fields) != len(task.texts):
                raise ValueError(
                    f"{len(fields)} tab-separated fields, but {task.name} takes {len(task.texts)}; "
                    f"a table with more columns needs a header that names {' and '.join(task.texts)}"
                )
            yield _row(
                number, dict(zip(task.texts, (field.strip() for field in fields), strict=True)), task, False
            )
        except ValueError as error:
            yield Problem(number, str(error))


def _row(number: int, cells: Mapping[str, str], task: Task, labelled: bool) -> Row:
    """Return a row, given its cells by column. Raises ValueError with what is wrong."""
    for column in cells:
        if not cells[column]:
            raise ValueError(f"{column} is empty")
    if UNFIT_FOR_IDS.search(cells.get(task.id, "")):
        raise ValueError(f"{task.id} {shown(cells[task.id])} contains a control character or a line break")
    label = task.parse_label(cells[task.label]) if labelled else None
    return Row(number, cells.get(task.id, str(number)), tuple(cells[column] for column in task.texts), label)


def lines_of(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the lines of a file. Raises InputError once `LONGEST_LINE` bytes hold no line end."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise _too_long(f"{name}:{number}")
        yield line


def _too_long(place: str) -> InputError:
    return InputError(f"{place}: a line of more than {LONGEST_LINE >> 20} MB; is this a table of text?")


def read_header(line: bytes, name: str) -> list[str]:
    """Return the column names in a table's first line. Raises InputError if it cannot be read."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{name}: is UTF-16, the format of Excel's Unicode text; save it as UTF-8")
    try:
        return _fields(line.removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise InputError(f"{name}:1: in the header: {error}") from None


def _decode(line: bytes) -> str:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8") from None


def _fields(line: bytes) -> list[str]:
    """Return the fields of one line. Raises ValueError with the reason if the line cannot be parsed."""
    try:
        rows = list(csv.reader([_decode(line)], delimiter="\t", strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise ValueError('a quote (") is not closed on the same line; close it or double it') from None
        if "expected after" in str(error):
            raise ValueError('text follows a closing quote ("); double the quotes inside a field') from None
        if "new-line character" in str(error):
            raise ValueError("a carriage return (CR) in the line; save the file with LF line ends") from None
        raise ValueError(str(error)) from None
    return rows[0] if rows else []


@dataclass(frozen=True)
class Source:
    """A table's file, as it was when its hash was computed, and how to read it."""

    path: Path
    digest: str  # SHA-256 of the file
    task: Task
    labelled: bool
    skip_bad_rows: bool

    @property
    def key(self) -> str:
        """The hash of everything that the rows depend on."""
        return key_of(FORMAT, self.digest, self.task, self.labelled, self.skip_bad_rows)

    def rows(self) -> Iterator[Row]:
        return (item for item in self.items() if isinstance(item, Row))

    def items(self) -> Iterator[Row | Problem]:
        """Yield every row in order, good or bad.

        After the last row, raises InputError if there were bad rows and `skip_bad_rows` is false; the message
        lists the first 20 with file and line, and counts them all. Also raises InputError if no row was good,
        or if the file has changed since its hash was computed.
        """
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
                            message = f"{self.task.id} {short_line(item.id)} duplicates line {line}"
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
            counts = f"{self.path}: bad rows: {bad} of {len(lines_of_ids) + bad}"
            raise InputError(
                "\n".join([*listed, *more, f"{counts}; fix them, or drop them with --skip-bad-rows"])
            )
        if not lines_of_ids:
            raise InputError(f"{self.path}: has no {'usable ' if bad else ''}rows below its header")
        if hasher.hexdigest() != self.digest:
            raise InputError(f"{self.path}: has changed since this run first read it; start again")


def _hashed(lines: Iterable[bytes], hasher: hashlib._Hash) -> Iterator[bytes]:
    for line in lines:
        hasher.update(line)
        yield line


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror})")


class Strings(Sequence[str]):
    """Many short strings, stored as UTF-8 in one array."""

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self.data, self.ends = data, ends  # (bytes,) uint8; (N,) int64: where each string ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        start = self.ends[row - 1] if row else 0
        return self.data[start : self.ends[row]].tobytes().decode()


@dataclass(frozen=True)
class Table:
    """A table whose every line has been read and checked. Its texts stay in the file."""

    source: Source
    ids: Sequence[str]
    labels: np.ndarray  # (N,) float64; NaN if the table has no labels
    dropped: int  # bad rows left out

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self) -> Iterator[Row]:
        """Read the rows again. Raises InputError if the file is no longer the one that was checked."""
        return self.source.rows()


Splits = dict[str, dict[str, Table]]  # split -> task -> checked table


def read_table(path: Path, task: Task, labelled: bool, skip_bad_rows: bool = False) -> Table:
    """Return a checked table, from the cache if the same bytes have been checked before.

    Raises InputError if the table has bad rows, unless `skip_bad_rows` drops them.
    """
    try:
        with open_regular(path) as file:
            digest = _digest(file, path)
    except OSError as error:
        raise _unreadable(path, error) from None
    source = Source(path, digest, task, labelled, skip_bad_rows)
    kept = cached(source.key, lambda: check(source))
    return Table(source, Strings(kept["ids"], kept["id_ends"]), kept["labels"], int(kept["dropped"]))


def _digest(file: BinaryIO, path: Path) -> str:
    """Return a file's SHA-256. Raises InputError at a stretch without a line end that no line may have, so
    that a hole of a terabyte on the disk is not read to its end."""
    hasher = hashlib.sha256()
    while part := file.read(LONGEST_LINE):
        if len(part) == LONGEST_LINE and b"\n" not in part:
            raise _too_long(str(path))
        hasher.update(part)
    return hasher.hexdigest()


def check(source: Source) -> dict[str, np.ndarray]:
    """Read a table to its end and return what is kept of it, as arrays. Raises InputError as `items` does."""
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


def read_split(
    directory: Path, split: str, tasks: Mapping[str, Task], skip_bad_rows: bool
) -> dict[str, Table]:
    """Read one split's tables, of every task that has one. All splits except test-student have labels."""
    paths = {name: (task.path(directory, split), task) for name, task in tasks.items()}
    return {
        name: read_table(path, task, split != "test-student", skip_bad_rows)
        for name, (path, task) in paths.items()
        if path.is_file()
    }


def read_splits(
    data: str | None, splits: Sequence[str], tasks: Mapping[str, Task], skip_bad_rows: bool
) -> Splits:
    """Read the tables of these splits in the folder `data`, or of the shipped sample, and check them all.
    Raises InputError if a table is missing, except a test table."""
    directory = SAMPLE if data is None else Path(data)
    if not directory.is_dir():
        raise InputError(f"--data: {directory} is not a folder")
    for task in tasks.values():
        for split in splits:
            path = task.path(directory, split)
            if split != "test-student" and not path.is_file():
                raise InputError(f"{path}: no such file; add it, or leave task {task.name} out with --tasks")
    return {split: read_split(directory, split, tasks, skip_bad_rows) for split in splits}


def print_dropped(tables: Iterable[Table]) -> None:
    """Print how many bad rows of each table were left out, if any."""
    for table in tables:
        if table.dropped:
            print(f"{table.source.path}: dropped {counted(table.dropped, 'bad row')}, kept {len(table)}")


def fingerprint(splits: Iterable[Mapping[str, Table]]) -> str:
    """Return a SHA-256 over the tasks' names and the bytes of their tables."""
    return key_of(*[(name, table.source.digest) for split in splits for name, table in split.items()])
