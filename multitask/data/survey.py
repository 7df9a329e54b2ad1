"""A folder of tables that nobody has described: which files belong together, and what is in their columns."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minbert.errors import short_line, shown
from multitask.data.formats import Problem, ending, lines_of, read_sheet
from multitask.data.tables import SPLIT_OF, TABLES, normalized, opened

ENDINGS = (*TABLES, ".tsv", ".tab", ".xlsx")  # the last is refused, with a remedy
NO_DATA = (".md", ".toml")  # endings of files that nobody takes for tables
MOST_VALUES = 1000  # of a column that are counted; one with more holds no classes
LONGEST_VALUE = 200  # characters of a value that are kept
MOST_STRAYS = 0.05  # the largest share of values in a column of numbers that are none
LEAST_UNIQUE = 0.99  # the least share of different values in a column of ids: a repeated one is a mistake
MOST_COLUMNS = 100  # of a table that are looked at
MEASURED = 1000  # rows whose words are counted
IMBALANCED = 5  # times as many rows of one class as of another

Watch = Callable[[Iterable[Any], str], Iterable[Any]]  # items and what they are called -> the same items
LONGEST_ID = 64  # characters
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)  # neither inf nor nan
_ID = re.compile(r"(?:\b|_)(?:id|key|uid|uuid|guid|idx|index|no|nr|num|number|code|ref)$", re.IGNORECASE)
_SPLIT = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(SPLIT_OF, key=len, reverse=True))})(?![a-z])", re.IGNORECASE
)


@dataclass(frozen=True)
class Group:
    """The files of one task."""

    name: str  # what their names have in common
    files: Mapping[str, Path]  # by split
    others: Sequence[Path] = ()  # that are named like them

    @property
    def paths(self) -> list[Path]:
        return [*self.files.values(), *self.others]


def find_groups(directory: Path) -> tuple[list[Group], list[Path]]:
    """Return the tables in a folder and in the folders in it, the files of a task together, and the files in
    other formats. Splits are told from the files' names; a table whose name says none is for training."""
    found: dict[tuple[Path, str], dict[str, list[Path]]] = {}
    unread = []
    for path in sorted(path for pattern in ("*", "*/*") for path in directory.glob(pattern)):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(directory).parts):
            continue
        if ending(path) not in ENDINGS:
            if ending(path) not in NO_DATA:
                unread.append(path)
            continue
        stem, split = _name_and_split(Path(path.name.lower().removesuffix(".gz")).stem)
        files = found.setdefault((path.parent, stem), {})
        files.setdefault(split, []).append(path)
    return [_group(folder, stem, files) for (folder, stem), files in found.items()], unread


def _name_and_split(stem: str) -> tuple[str, str]:
    """Divide reviews-test into reviews and test-student. Without a split, the second is empty."""
    matches = [*_SPLIT.finditer(stem)]
    if not matches:
        return stem, ""
    match = matches[-1]
    return f"{stem[: match.start()]} {stem[match.end() :]}".strip(" -_."), SPLIT_OF[match[0]]


def _group(folder: Path, stem: str, files: dict[str, list[Path]]) -> Group:
    if "train" not in files and "" in files:
        files["train"] = files.pop("")
    first = {split: paths[0] for split, paths in files.items() if split}
    others = [path for paths in files.values() for path in paths if path not in first.values()]
    return Group(stem or folder.resolve().name, first, others)


@dataclass
class Column:
    """What is known of a column: its values, as long as there are few, and how many are numbers or words."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)  # empty if there are more than `MOST_VALUES`
    filled: int = 0
    has_many: bool = False
    strays: int = 0  # values that are no numbers
    is_whole: bool = True  # as far as they are numbers
    low: float = math.inf
    high: float = -math.inf
    words: float = 0.0  # of the first rows, in all

    def add(self, value: str) -> None:
        if not value:
            return
        self.filled += 1
        if self.filled <= MEASURED:
            self.words += _words(value)
        number = number_of(value)
        if number is None:
            self.strays += 1
        else:
            self.is_whole = self.is_whole and number == int(number)
            self.low, self.high = min(self.low, number), max(self.high, number)
        if not self.has_many:
            self.counts[value[:LONGEST_VALUE]] += 1
            if len(self.counts) > MOST_VALUES:
                self.has_many = True
                self.counts.clear()

    @property
    def is_numeric(self) -> bool:
        """Whether its values are numbers, but for a few such as n/a."""
        return self.strays <= MOST_STRAYS * self.filled

    @property
    def mean_words(self) -> float:
        return self.words / max(1, min(self.filled, MEASURED))

    @property
    def variety(self) -> float:
        """The share of different values; 1 if there are many."""
        return 1.0 if self.has_many else len(self.counts) / max(1, self.filled)


def number_of(text: str) -> float | None:
    """Return the finite number that a text is, if it is one as a task reads them."""
    number = float(text) if NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def alike(labels: Iterable[str]) -> str:
    """Return the labels that differ only in case and spaces, in words; nothing if there are none."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(normalized(label).replace(" ", ""), []).append(shown(label, 40))
    found = ", ".join(" and ".join(group) for group in groups.values() if len(group) > 1)
    return short_line(found) if found else ""


def _words(text: str) -> float:
    """Return about how many words a text has, also in scripts that put no spaces between them."""
    return max(len(text.split()), sum(character > "\u2e7f" for character in text) / 2)


@dataclass(frozen=True)
class Profile:
    """What is in the tables of a group."""

    rows: int  # of train and dev
    columns: Sequence[Column]  # of train and dev, as far as each table has them, once
    ids: Sequence[str]  # called like ids, in every table; (nearly) every row has its own value
    repeating: Sequence[str]  # those of them that repeat a value
    unique: Sequence[str]  # other columns with another value in each row, words or whole numbers
    in_test: frozenset[str] | None  # the columns of the test table; None if there is no such table
    problem: str  # the first bad row; empty if there is none


def profile(group: Group, watch: Watch) -> Profile:
    """Read the tables of train and dev to their ends, and the header of test. Bad rows are left out. Raises
    InputError if a table cannot be read."""
    columns: dict[str, Column] = {}
    read = [_count(group.files[split], columns, watch) for split in ("train", "dev") if split in group.files]
    shared = [column for name, column in columns.items() if all(name in one.names for one in read)]
    test = group.files.get("test-student")
    in_test = None if test is None else frozenset(header(test))
    unique = [
        column.name
        for column in shared
        if all(column.name in one.unique for one in read) and (in_test is None or column.name in in_test)
    ]
    ids = [name for name in unique if _ID.search(name)]
    repeating = [name for name in ids if any(name in one.repeating for one in read)]
    others = [name for name in unique if name not in ids]
    problem = next((one.problem for one in read if one.problem), "")
    return Profile(sum(one.rows for one in read), shared, ids, repeating, others, in_test, problem)


@dataclass(frozen=True)
class _Counted:
    rows: int
    names: frozenset[str]
    unique: frozenset[str]  # that may be ids: (nearly) every row has its own value
    repeating: frozenset[str]  # those of them that repeat a value
    problem: str


def _count(path: Path, columns: dict[str, Column], watch: Watch) -> _Counted:
    """Add a table's values to the columns."""
    rows, problem = 0, ""
    with opened(path) as file:
        sheet = read_sheet(lines_of(file, str(path)), str(path))
        names = {name for name in sheet.columns[:MOST_COLUMNS] if name and sheet.columns.count(name) == 1}
        added = [columns.setdefault(name, Column(name)) for name in sheet.columns if name in names]
        seen = {name: set[int]() for name in names}  # hashes of the values of what may be ids
        for record in watch(sheet.records, path.name):
            if isinstance(record, Problem):
                problem = problem or f"{path}:{record.line}: {record.message}"
                continue
            rows += 1
            for column in added:
                column.add(record.cells.get(column.name, ""))
            for name, hashes in [*seen.items()]:
                value = record.cells.get(name, "")
                hashes.add(hash(value))
                if not value or (not _ID.search(name) and (len(hashes) < rows or not _may_be_id(value))):
                    del seen[name]
    values = {name: len(hashes) for name, hashes in seen.items() if len(hashes) >= LEAST_UNIQUE * rows > 0}
    repeating = frozenset(name for name, count in values.items() if count < rows)
    return _Counted(rows, frozenset(names), frozenset(values), repeating, problem)


def _may_be_id(value: str) -> bool:
    """Whether a value is a short word, or a whole number."""
    number = number_of(value)
    is_whole = number is None or number == int(number)
    return is_whole and len(value) <= LONGEST_ID and len(value.split()) == 1


def header(path: Path) -> list[str]:
    """Return the columns of a table. Raises InputError if it cannot be read."""
    with opened(path) as file:
        return read_sheet(lines_of(file, str(path)), str(path)).columns
