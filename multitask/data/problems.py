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
class Repeated:
    """A problem, and the rows that have it."""

    first: Problem
    lines: list[int] = field(default_factory=list)  # the first `MANY`
    rows: int = 0

    def in_words(self, task: Task, where: str = "") -> str:
        """Return the problem with the label that may have been meant and, if given, where else it is."""
        hint = did_you_mean(self.first.label, task.labels) if self.first.label else ""
        notes = "; ".join(note for note in (where, hint.removeprefix("; ")) if note)
        return f"{self.first.message} ({notes})" if notes else self.first.message

    def of_all(self, task: Task) -> str:
        """Return the problem with the number of its rows and the lines of the first."""
        lines = ", ".join([*map(str, self.lines), *(["..."] if self.rows > MANY else [])])
        return self.in_words(task, f"{self.rows:,} rows: {lines}")


@dataclass
class BadRows:
    """The bad rows of one table."""

    task: Task
    count: int = 0
    of_label: int = 0  # of these, refused for their labels
    empty: int = 0  # of these, with an empty text or label
    by_message: dict[str, Repeated] = field(default_factory=dict)

    def add(self, problem: Problem) -> None:
        self.count += 1
        self.of_label += problem.label != ""
        self.empty += problem.message in {f"{name} is empty" for name in (*self.task.texts, self.task.label)}
        if problem.message not in self.by_message and len(self.by_message) == MOST_KINDS:
            return
        known = self.by_message.setdefault(problem.message, Repeated(problem))
        known.rows += 1
        if len(known.lines) < MANY:
            known.lines.append(problem.line)

    @property
    def problems(self) -> list[Repeated]:
        """The problems, those of many rows first, the others in the order of the table."""
        return sorted(self.by_message.values(), key=lambda one: -one.rows if one.rows >= MANY else 0)

    def listed(self, path: object) -> list[str]:
        """Return a report: a line for each problem of many rows, then one for each other row, and how many
        rows that leaves out."""
        many = [one for one in self.problems if one.rows >= MANY][:REPORTED]
        others = [(line, one) for one in self.problems if one.rows < MANY for line in one.lines]
        others = sorted(others, key=lambda pair: pair[0])[: REPORTED - len(many)]
        report = [f"{path}:{one.lines[0]}: {one.of_all(self.task)}" for one in many]
        report += [f"{path}:{line}: {one.in_words(self.task)}" for line, one in others]
        left = self.count - sum(one.rows for one in many) - len(others)
        return [*report, f"... and {left:,} more"] if left else report

    def cause(self, good: int) -> str:
        """Return what to fix, beside `good` rows, if the bad ones have one cause; else nothing."""
        task, rows = self.task, good + self.count
        if self.of_label >= max(MANY, LARGE_OF_LABELS * rows):
            setting = "labels" if task.labels or task.kind.classes else "num_classes"
            return f"fix {setting if task.classes else 'low and high'} of task {task.name}, or the file"
        return "fix the file" if self.count >= max(MANY, LARGE * rows) else ""
