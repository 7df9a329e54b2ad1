"""Tables of the tasks, read strictly: every row is either valid or reported with its file and line.

A table is in any of the formats of formats.py, and may be compressed with gzip. Columns are found by name.
"""

from __future__ import annotations

import codecs
import hashlib
import math
import re
import unicodedata
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import chain, product
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from minbert.errors import InputError, counted, short_line, shown
from minbert.reading import expanded, open_regular
from multitask.data.cache import cached, key_of
from multitask.data.formats import (
    JSON_LINES,
    LONGEST_LINE,
    STRICT,
    Problem,
    decode,
    ending,
    hinted_separator,
    lines_of,
    read_sheet,
    separator_of,
    split_header,
    too_long,
)
from multitask.data.problems import BadRows
from multitask.data.tasks import LabelError, Task

SAMPLE = Path(__file__).parent / "sample"
SPLITS = ("train", "dev", "test-student")
FORMAT = 4  # version of the cache's entries: increase it when what is read, checked or kept changes
TABLES = (".csv", ".jsonl", ".ndjson", ".json")  # endings of files that are no plain lines
SPLIT_OF = {  # what files of each split are called
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "test-student", "testing"), "test-student"),
    **dict.fromkeys(("dev", "devel", "development", "val", "valid", "validation", "eval"), "dev"),
}
SHOWN_SHARES = 10  # classes whose shares are printed

UNFIT_FOR_IDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Row:
    line: int  # counted from 1, as in an editor
    id: str
    texts: tuple[str, ...]
    label: float | None

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts))


def parse(
    lines: Iterable[bytes], name: str, task: Task, labelled: bool, with_id: bool = True
) -> Iterator[Row | Problem]:
    """Yield every row of a table as a `Row`, or as a `Problem` that says what is wrong with it.

    A row's id is its line number if the task has no id column, or if there is none in the table and `with_id`
    is false or the table is not tab-separated. Raises InputError if the header does not name each required
    column exactly once.
    """
    needed = [*task.texts, task.label] if labelled else [*task.texts]
    optional = [task.id] if task.id else []
    sheet = read_sheet(lines, name, [*optional, *needed])
    required = with_id and (sheet.form == STRICT or task.id != "id")
    wanted = [column for column in optional if required or column in sheet.columns] + needed
    missing = [column for column in wanted if sheet.columns.count(column) != 1]
    if missing:
        where = f"{sheet.form} header" if len(sheet.columns) > 1 else "header"
        if sheet.form == JSON_LINES:
            where = "first object"
        names = short_line(", ".join(map(repr, sheet.columns)))
        found = f"the {where} names {names}" if sheet.columns else "the file is empty"
        if missing == optional:
            found += '; if the rows have no ids, say id = "" in a task file'
        raise InputError(
            f"{name}:{sheet.line}: needs exactly one column named {' and one named '.join(missing)}; {found}"
        )
    for record in sheet.records:
        try:
            if isinstance(record, Problem):
                yield record
            else:
                yield _row(record.line, record.cells, wanted, task, labelled)
        except KeyError as column:  # of an object in JSON lines
            yield Problem(record.line, f"has no text or number named {column.args[0]}")
        except LabelError as error:
            yield Problem(record.line, str(error), error.label)
        except ValueError as error:
            yield Problem(record.line, str(error))


def parse_texts(lines: Iterable[bytes], name: str, task: Task) -> Iterator[Row | Problem]:
    """Yield every row of texts to predict: of a table, with or without ids and labels, or of plain lines."""
    lines = iter(lines)
    first = next(lines, b"")
    rest = chain([first] if first else [], lines)
    if first and is_table(first, name, task):
        return parse(rest, name, task, labelled=False, with_id=False)
    return parse_plain(rest, task)


def is_table(first: bytes, name: str, task: Task) -> bool:
    """Return whether a file with this first line is meant as a table. It is if its name says so, or if the
    line names one of the task's text columns, in any case of letters, is an object, or names a separator."""
    header = first.removeprefix(codecs.BOM_UTF8).strip()
    is_object = header.startswith(b"{") and header.endswith(b"}")
    if is_object or hinted_separator(first) is not None or ending(name) in TABLES:
        return True
    found = {name.casefold() for name in split_header(header, separator_of(header, task.texts))}
    return any(column.casefold() in found for column in task.texts)


def parse_plain(lines: Iterable[bytes], task: Task) -> Iterator[Row | Problem]:
    """Yield every row of plain text without a header: one sentence per line, or two separated by a tab.

    Quotes have no special meaning here.
    """
    for number, line in enumerate(lines, start=1):
        try:
            fields = decode(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).split("\t")
            if len(fields) != len(task.texts):
                found = counted(len(fields), "tab-separated field")
                raise ValueError(
                    f"{found}, but {task.name} takes {len(task.texts)}; "
                    f"a table with more columns needs a header that names {' and '.join(task.texts)}"
                )
            yield _row(
                number, dict(zip(task.texts, map(str.strip, fields), strict=True)), task.texts, task, False
            )
        except ValueError as error:
            yield Problem(number, str(error))


def _row(number: int, cells: Mapping[str, str], wanted: Collection[str], task: Task, labelled: bool) -> Row:
    """Return a row, given its cells by column. Raises ValueError with what is wrong."""
    for column in wanted:
        if not cells[column]:
            raise ValueError(f"{column} is empty")
    row_id = cells[task.id] if task.id in wanted else str(number)
    if UNFIT_FOR_IDS.search(row_id):
        raise ValueError(f"{task.id} {shown(row_id)} contains a control character or a line break")
    label = task.parse_label(cells[task.label]) if labelled else None
    return Row(number, row_id, tuple(cells[column] for column in task.texts), label)


def normalized(text: str) -> str:
    """Return a text without regard to case, spacing and Unicode's forms of a character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_held_out(texts: Sequence[str], fraction: float) -> bool:
    """Return whether a row is held out as dev, where this fraction of the rows is.

    That depends on its texts alone, without regard to case, spacing and Unicode's forms of a character, or to
    the order of a pair. So equal texts are on one side, and stay there when rows are added.
    """
    digest = hashlib.sha256("\0".join(sorted(map(normalized, texts))).encode()).digest()
    return int.from_bytes(digest[:8]) < fraction * 2**64


@dataclass(frozen=True)
class Source:
    """A table's file, as it was when its hash was computed, and how to read it."""

    path: Path
    digest: str  # SHA-256 of the file
    task: Task
    labelled: bool
    skip_bad_rows: bool
    part: str | None = None  # "train" or "dev", if a part of the table is held out as dev

    @property
    def key(self) -> str:
        """The hash of everything that the rows depend on."""
        return key_of(FORMAT, self.digest, self.task, self.labelled, self.skip_bad_rows, self.part)

    def rows(self) -> Iterator[Row]:
        return (item for item in self.items() if isinstance(item, Row))

    def items(self) -> Iterator[Row | Problem]:
        """Yield every row of the part in order, good or bad.

        After the last row, raises InputError if there were bad rows and `skip_bad_rows` is false; the message
        lists 20 of them with file and line, many with one problem as one, and counts them all. Also raises
        InputError if no row was good, or if the file has changed since its hash was computed.
        """
        lines_of_ids: dict[str, int] = {}
        bad, taken, hasher = BadRows(self.task), 0, hashlib.sha256()
        with opened(self.path) as file:
            lines = hashed(lines_of(file, str(self.path)), hasher)
            for item in parse(lines, str(self.path), self.task, self.labelled):
                if isinstance(item, Row):
                    line = lines_of_ids.setdefault(item.id, item.line)
                    if line != item.line:
                        message = f"{self.task.id} {short_line(item.id)} duplicates line {line}"
                        item = Problem(item.line, message)
                    elif not self.takes(item):
                        continue
                    else:
                        taken += 1
                if isinstance(item, Problem):
                    bad.add(item)
                yield item
        if bad.count and not self.skip_bad_rows:
            counts = f"{self.path}: bad rows: {bad.count} of {len(lines_of_ids) + bad.count}"
            remedy = bad.cause(len(lines_of_ids)) or "fix them, or drop them with --skip-bad-rows"
            raise InputError("\n".join([*bad.listed(self.path), f"{counts}; {remedy}"]))
        if not lines_of_ids:
            raise InputError(f"{self.path}: has no {'usable ' if bad.count else ''}rows below its header")
        if not taken:
            held_out = f"dev_fraction = {self.task.dev_fraction:g} leaves none of its rows for {self.part}"
            raise InputError(f"{self.path}: {held_out}; choose another fraction")
        self.check_unchanged(hasher)

    def check_unchanged(self, hasher: hashlib._Hash) -> None:
        """Raise InputError unless all that was read now is what was read at first."""
        if hasher.hexdigest() != self.digest:
            raise InputError(f"{self.path}: has changed since this run first read it; start again")

    def takes(self, row: Row) -> bool:
        """Whether a row is in the part."""
        held_out = self.part is not None and is_held_out(row.texts, self.task.dev_fraction)
        return self.part is None or held_out == (self.part == "dev")


def hashed(lines: Iterable[bytes], hasher: hashlib._Hash) -> Iterator[bytes]:
    for line in lines:
        hasher.update(line)
        yield line


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a table, which may be compressed with gzip. Raises InputError if it cannot be read."""
    try:
        with expanded(open_regular(path)) as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


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


def source_of(
    path: Path,
    task: Task,
    labelled: bool,
    skip_bad_rows: bool = False,
    part: str | None = None,
    kind: type[Source] = Source,
) -> Source:
    """Return a table's file as it is now. Raises InputError if it cannot be read."""
    with opened(path) as file:
        return kind(path, _digest(file, path), task, labelled, skip_bad_rows, part)


def read_table(
    path: Path, task: Task, labelled: bool, skip_bad_rows: bool = False, part: str | None = None
) -> Table:
    """Return a checked table, or the part of it that is train or dev, from the cache if the same bytes have
    been checked before.

    Raises InputError if the table has bad rows, unless `skip_bad_rows` drops them.
    """
    return checked(source_of(path, task, labelled, skip_bad_rows, part))


def checked(source: Source) -> Table:
    """Return the table in a file, checked now or before. Raises InputError as `Source.items` does."""
    kept = cached(source.key, lambda: check(source))
    return Table(source, Strings(kept["ids"], kept["id_ends"]), kept["labels"], int(kept["dropped"]))


def _digest(file: BinaryIO, path: Path) -> str:
    """Return the SHA-256 of a file's content. Raises InputError at a stretch without a line end that no line
    may have, so that a hole of a terabyte on the disk is not read to its end."""
    hasher = hashlib.sha256()
    while part := file.read(LONGEST_LINE):
        if len(part) == LONGEST_LINE and b"\n" not in part:
            raise too_long(str(path))
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
    labelled = split != "test-student"
    return {
        name: read_table(
            path, task, labelled, skip_bad_rows, split if labelled and task.dev_fraction else None
        )
        for name, task in tasks.items()
        if (path := task.path(directory, split)).is_file()
    }


def read_splits(
    data: str | None, splits: Sequence[str], tasks: Mapping[str, Task], skip_bad_rows: bool
) -> Splits:
    """Read the tables of these splits in the folder `data`, or of the shipped sample, and check them all.
    Raises InputError with every table's problems; if a table is missing, except a test table, before any is
    read."""
    directory = SAMPLE if data is None else Path(data)
    if not directory.is_dir():
        raise InputError(f"--data: {directory} is not a folder")
    for task in tasks.values():
        for split in splits:
            path = task.path(directory, split)
            named = split != "test-student" or task.test
            if named and not path.is_file():
                others = [other.name for other, place in unread_files(directory, tasks) if place == path]
                remedy = f"name {others[0]} in a task file, add it, or" if others else "add it, or"
                if data is None:
                    remedy = "name the folder of your tables with --data, or"
                raise InputError(f"{path}: no such file; {remedy} leave task {task.name} out with --tasks")
    tables: Splits = {split: {} for split in splits}
    problems: dict[str, None] = {}
    for split, (name, task) in product(splits, tasks.items()):
        try:
            tables[split] |= read_split(directory, split, {name: task}, skip_bad_rows)
        except InputError as error:
            problems[str(error)] = None  # once, although train and dev may be parts of one file
    if problems:
        raise InputError("\n".join(problems))
    return tables


def unread_files(directory: Path, tasks: Mapping[str, Task]) -> list[tuple[Path, Path]]:
    """Return the files that are named like tables of these tasks and are not read, each with the table whose
    place it might be meant for, such as reviews-test.csv and reviews-test-student.csv."""
    read = {task.path(directory, split) for task in tasks.values() for split in SPLITS}
    found: dict[Path, Path] = {}
    for task in tasks.values():
        if not task.files:
            continue
        for (word, split), compressed in product(SPLIT_OF.items(), ("", ".gz")):
            path = directory / (task.files.replace("{split}", word) + compressed)
            if path not in read and path.is_file():
                found[path] = task.path(directory, split)
    return list(found.items())


def print_unread(data: str | None, tasks: Mapping[str, Task]) -> None:
    """Print which files are not read, though they look meant."""
    for path, table in unread_files(SAMPLE if data is None else Path(data), tasks):
        print(f"note: {path} is not read; to be, it must be called {table.name} or be named in a task file")


def print_held_out(splits: Splits) -> None:
    """Print how the tables of which a part is held out are divided: the rows and classes of both sides."""
    for name, train in splits.get("train", {}).items():
        if train.source.part is not None:
            fraction = train.source.task.dev_fraction
            print(f"{name}: {fraction:.0%} of {train.source.path.name} is held out as dev")
            for part in ("train", "dev"):
                table = splits[part][name]
                labels = f": {shares(table)}" if table.source.labelled else ""
                print(f"  {part:5} {counted(len(table), 'row')}{labels}")


def shares(table: Table) -> str:
    """Return how the labels of a table are distributed: the share of each class, or the mean."""
    task, labels = table.source.task, table.labels
    if not task.classes:
        return f"{task.label} {labels.mean():.3g} on average"
    counts = np.bincount(labels.astype(int), minlength=task.classes)
    largest = np.argsort(-counts, kind="stable")[:SHOWN_SHARES]
    listed = [f"{task.class_names[number]} {counts[number] / len(labels):.1%}" for number in sorted(largest)]
    if task.classes > SHOWN_SHARES:
        listed.append("...")
    return ", ".join(listed)


def print_dropped(rows: Splits) -> None:
    """Print how many bad rows of each file were left out, if any; train and dev may be parts of one file."""
    parts: dict[tuple[Path, str], list[Table]] = {}
    for table in chain.from_iterable(tables.values() for tables in rows.values()):
        parts.setdefault((table.source.path, table.source.task.name), []).append(table)
    for (path, _), found in parts.items():
        if dropped := found[0].dropped:
            print(f"{path}: dropped {counted(dropped, 'bad row')}, kept {sum(map(len, found)):,}")


def fingerprint(splits: Iterable[Mapping[str, Table]]) -> str:
    """Return a SHA-256 over the tasks' names and the bytes of their tables."""
    return key_of(*[(name, table.source.digest) for split in splits for name, table in split.items()])
