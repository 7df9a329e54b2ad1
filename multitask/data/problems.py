"""The bad rows of a table: counted by what is wrong with them, and the remedy that fits.

Rows that a task refuses for their labels, or a large share of all rows, have one cause. To drop them would be
no remedy: it might drop a whole class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minbert.fields import did_you_mean
from multitask.data.formats import Problem
from multitask.data.tasks import Task

MANY = 5  # rows with one problem, which share a line of a report
LARGE = 0.25  # a share of bad rows that has one cause
LARGE_OF_LABELS = 0.01  # the same where labels are refused
MOST_KINDS = 1000  # of problems that are told apart
REPORTED = 20  # lines of a report


@dataclass
class Alike:
    """Rows with the same problem."""

    first: Problem
    lines: list[int] = field(default_factory=list)  # the first `MANY`
    rows: int = 0

    def in_words(self, task: Task, where: str = "") -> str:
        """Return the problem with the label that may have been meant and, if they are given, other places."""
        hint = did_you_mean(self.first.label, task.labels) if self.first.label else ""
        notes = "; ".join(note for note in (where, hint.removeprefix("; ")) if note)
        return f"{self.first.message} ({notes})" if notes else self.first.message

    def listed(self, path: object, task: Task) -> list[str]:
        """Return a line of a report for each row or, if there are many, one for all."""
        if self.rows < MANY:
            return [f"{path}:{line}: {self.in_words(task)}" for line in self.lines]
        lines = ", ".join([*map(str, self.lines), *(["..."] if self.rows > MANY else [])])
        return [f"{path}:{self.lines[0]}: {self.in_words(task, f'{self.rows:,} rows: {lines}')}"]


@dataclass
class BadRows:
    """The bad rows of one table."""

    task: Task
    count: int = 0
    of_label: int = 0  # of these, refused for their labels
    empty: int = 0  # of these, with an empty text or label
    by_message: dict[str, Alike] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        self.count += 1
        self.of_label += problem.label != ""
        self.empty += problem.message in {f"{name} is empty" for name in (*self.task.texts, self.task.label)}
        if problem.message not in self.by_message and len(self.by_message) == MOST_KINDS:
            return
        alike = self.by_message.setdefault(problem.message, Alike(problem))
        alike.rows += 1
        if len(alike.lines) < MANY:
            alike.lines.append(problem.line)

    @property
    def groups(self) -> list[Alike]:
        """Rows with the same problem, those of many first."""
        return sorted(self.by_message.values(), key=lambda one: -one.rows if one.rows >= MANY else 0)

    def listed(self, path: object) -> list[str]:
        """Return the first lines of a report, and how many rows they leave out."""
        lines: list[str] = []
        told = 0
        for alike in self.groups:
            added = alike.listed(path, self.task)[: REPORTED - len(lines)]
            lines += added
            told += alike.rows if alike.rows >= MANY and added else len(added)
        return lines if told == self.count else [*lines, f"... and {self.count - told:,} more"]

    def cause(self, good: int) -> str:
        """Return what to fix, beside `good` rows, if the bad ones have one cause; else nothing."""
        task, rows = self.task, good + self.count
        if self.of_label >= max(MANY, LARGE_OF_LABELS * rows):
            setting = "labels" if task.labels or task.kind.classes else "num_classes"
            return f"fix {setting if task.classes else 'low and high'} of task {task.name}, or the file"
        return "fix the file" if self.count >= max(MANY, LARGE * rows) else ""
