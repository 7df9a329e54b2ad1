"""Plain text to pre-train on: a line of a folder's .txt files is a text, and a share of them is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from minbert.errors import InputError
from multitask.data.formats import Problem, decode, lines_of
from multitask.data.kinds import KINDS
from multitask.data.tables import Row, Source, Splits, checked, hashed, opened, source_of
from multitask.data.tasks import Task

ENDING = ".txt"


@dataclass(frozen=True)
class PlainText(Source):
    """A file of which each line that is not blank is a text; or the part of it that is train or dev."""

    def items(self) -> Iterator[Row | Problem]:
        """Yield every text of the part. Raises InputError at a line that is not UTF-8, unless
        `skip_bad_rows`, and if the file has changed since its hash was computed."""
        hasher = hashlib.sha256()
        with opened(self.path) as file:
            for number, line in enumerate(hashed(lines_of(file, str(self.path)), hasher), start=1):
                try:
                    row = Row(number, str(number), (decode(line).removeprefix("\ufeff").strip(),), None)
                except ValueError as error:
                    if not self.skip_bad_rows:
                        drop = "fix it, or drop such lines with --skip-bad-rows"
                        raise InputError(f"{self.path}:{number}: {error}; {drop}") from None
                    yield Problem(number, str(error))
                    continue
                if row.texts[0] and self.takes(row):
                    yield row
        self.check_unchanged(hasher)


def text_files(directory: Path) -> list[Path]:
    """Return a folder's .txt files, but for hidden ones, such as those that macOS puts beside others."""
    paths = sorted(directory.glob(f"*{ENDING}"))
    return [path for path in paths if path.is_file() and not path.name.startswith(".")]


def is_plain_text(directory: Path, tasks: Collection[Task]) -> bool:
    """Return whether a folder has .txt files, and no training table of these tasks."""
    has_tables = any(task.path(directory, "train").is_file() for task in tasks)
    return not has_tables and bool(text_files(directory))


def read_texts(directory: Path, held_out: float, skip_bad_rows: bool) -> Splits:
    """Return what the .txt files of a folder have to train on, and this share of it that is held out, file by
    file. Raises InputError if either is nothing."""
    splits: Splits = {"train": {}, "dev": {}}
    for path in text_files(directory):
        task = Task("text", KINDS["regression"], ("text",), "", id="", train=path.name, dev_fraction=held_out)
        for part, tables in splits.items():
            table = checked(source_of(path, task, False, skip_bad_rows, part, PlainText))
            if len(table):
                tables[path.name] = table
    for part, tables in splits.items():
        if not tables:
            raise InputError(
                f"{directory}: its {ENDING} files have no line for {part}; add some, or change --held-out"
            )
    return splits
