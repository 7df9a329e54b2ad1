"""Tasks as data: columns, kind, labels and files. No other code branches on a task's name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minbert.errors import InputError, short_line, shown
from minbert.fields import check_table, did_you_mean, field, fields_of
from minbert.reading import load_toml
from multitask.data.calibration import UNCHANGED, Calibration
from multitask.data.kinds import KINDS, Kind
from multitask.methods.calibration import THRESHOLDS, fit_temperature

OVERALL = ("score", "worst", "spread")  # keys for all tasks together, beside the tasks' own scores
# Keys beside the tasks' names in a run's records, so no task may use them.
RESERVED = ("all", "skipped", "gradient_ratio", *OVERALL)
MOST_CLASSES = 10_000
LARGEST_LABEL = 1e15  # of a regression, in its unit: a batch's squares must stay finite in float32
LONGEST_NAME = 100  # of tasks, files and labels, in bytes: a file system must accept it
BALANCED = "balanced"
BOOLEANS = {"false": 0.0, "true": 1.0}
FIRST_FIELDS = 11  # of `Task`, which its repr always shows


class LabelError(ValueError):
    """The label of a row that its task does not allow."""

    def __init__(self, label: str, problem: str):
        super().__init__(problem)
        self.label = label


Answer = int | float | str  # the number of a class or its label, or the value of a regression


@dataclass(frozen=True)
class Answers:
    """What a task's logits say about N examples."""

    numbers: Tensor  # (N,) the class, int64, or the value of a regression
    probabilities: Tensor | None  # (N, classes); None for a regression
    values: list[Answer]  # as the task names them: labels if it has any, else the numbers


@dataclass(frozen=True, repr=False)
class Task:
    """One task: where its tables are, what their columns mean, and how it is trained and scored.

    The kinds are "classification" (cross-entropy), "binary" (two classes, one logit, binary cross-entropy)
    and "regression" (labels are numbers from low to high, squared error). Classes are named by `labels`, or
    else numbered from 0. Raises InputError if the fields do not make a valid task.

    >>> task = Task("spam", "binary", ("text",), "kind", files="{split}.csv", labels=("ham", "spam"))
    >>> task.outputs, task.classes, task.parse_label("spam")
    (1, 2, 1.0)
    """

    name: str
    kind: Kind = field(type="str", choices=KINDS)  # its name will do, too
    texts: tuple[str, ...] = field()  # the text columns: one sentence, or two that are tokenised together
    label: str = field()  # the label's column
    files: str = field("", empty=True)  # a table's file, with {split} in place of train, dev or test-student
    output: str = field("", empty=True)  # submission files are OUTPUT-dev-output.csv ...; default: the name
    header: str = field("", empty=True)  # of submission files in the course's format; without it, plain CSV
    id: str = field("id", empty=True)  # the column that identifies each row; empty: rows are numbered by line
    num_classes: int = field(0, most=MOST_CLASSES)  # for a classification without `labels`
    low: float = field(-math.inf, low=-math.inf, most=math.inf)  # low and high: for a regression only
    high: float = field(math.inf, low=-math.inf, most=math.inf)
    labels: tuple[str, ...] = field(())  # the names of the classes, as the tables have them
    metric: str = field("", empty=True)  # default: accuracy, or pearson for a regression
    weight: float = field(1.0, low=1e-3, most=1e3)  # in the mean score over all tasks
    class_weights: str | tuple[float, ...] = field(
        (), type="tuple[float, ...]", word=BALANCED, low=1e-6, most=1e6
    )  # of each class's rows in the loss
    label_smoothing: float = field(0.0, below=1)
    dev_fraction: float = field(0.0, below=1)  # of the training table that is held out as dev
    train: str = field("", empty=True)  # a table of its own name, instead of the one of `files`
    dev: str = field("", empty=True)
    test: str = field("", empty=True)
    calibrate: bool = field(False)  # whether a temperature is fitted on dev
    threshold: str = field("", choices=THRESHOLDS)  # how the threshold of a binary task is chosen on dev

    def __post_init__(self) -> None:
        kind = KINDS.get(self.kind) if isinstance(self.kind, str) else self.kind
        self._check(isinstance(kind, Kind), f"kind must be one of {', '.join(KINDS)}, not {shown(self.kind)}")
        object.__setattr__(self, "kind", kind)
        self._check_names()
        self._check_files()
        self._check_settings()
        self._check_classes()
        self._check_metric()

    def __repr__(self) -> str:
        """Name the fields of the first version, and later ones that are not at their defaults. The names of
        cached tables and the facts of saved states are made of it, so new fields may not change those."""
        shown = [
            f"{one.name}={getattr(self, one.name)!r}"
            for place, one in enumerate(fields(self))
            if place < FIRST_FIELDS or getattr(self, one.name) != one.default
        ]
        return f"Task({', '.join(shown)})"

    def _check(self, good: bool, problem: str) -> None:
        if not good:
            raise InputError(f"task {short_line(self.name)}: {problem}")

    def _check_names(self) -> None:
        check = self._check
        check(self.name.isidentifier(), "invalid name; use letters, digits and underscores")
        for name in (self.name, self.output, *self._files):
            check(len(name.encode()) <= LONGEST_NAME, f"names and files take up to {LONGEST_NAME} bytes each")
        for name in (self.output, self.header, *self._files):
            check(name.isprintable(), "files, output and header may not contain control characters")
        check(self.name not in RESERVED, "this name is reserved for all tasks together; choose another")
        check(
            Path(self.submission).name == self.submission,
            "output must be the start of a file name, without folders",
        )
        check(len(self.texts) in (1, 2), f"texts must name one or two columns, not {len(self.texts)}")
        columns = (*([self.id] if self.id else []), *self.texts, self.label)
        check(len(set(columns)) == len(columns), f"columns must differ: {short_line(', '.join(columns))}")

    def _check_files(self) -> None:
        check = self._check
        if self.files:
            check("{split}" in self.files, "files needs {split} in place of train, dev or test-student")
            check(Path(self.files).name == self.files, "files must be a file name, without folders")
        for name in (self.train, self.dev, self.test):
            inside = not Path(name).is_absolute() and ".." not in Path(name).parts
            check(inside, "train, dev and test must be files in the data folder")
        check(bool(self.files or self.train), "name its tables, with files or with train, dev and test")
        check(
            bool(self.files or self.dev or self.dev_fraction),
            "lacks dev; name a table, or hold out a part of train with dev_fraction",
        )
        check(not (self.dev and self.dev_fraction), "dev and dev_fraction exclude each other")

    def _check_settings(self) -> None:
        """Check the settings that only some kinds have: in the others they are at their defaults."""
        self._check(self.low < self.high, "low must be below high")
        for one in fields(self):
            takers = [kind.name for kind in KINDS.values() if one.name in kind.settings]
            if takers and self.kind.name not in takers:
                problem = f"{one.name} is for a {' or '.join(takers)} only"
                self._check(getattr(self, one.name) == one.default, problem)
        ends = [abs(end) for end in (self.low, self.high) if math.isfinite(end)]
        self._check(
            max(ends, default=0) <= LARGEST_LABEL * min(self.unit, 1),
            "low and high are too large, or too close together",
        )

    def _check_classes(self) -> None:
        check = self._check
        if self.kind.classes is None:
            classes = f"a classification needs labels, or num_classes from 2 to {MOST_CLASSES:,}"
            check(2 <= self.classes <= MOST_CLASSES, classes)
        check(len(self.labels) in (0, self.classes), f"has {self.classes} classes, not {len(self.labels)}")
        check(len(set(self.labels)) == len(self.labels), "labels must differ")
        for label in self.labels:
            good = label == label.strip() and label.isprintable() and len(label.encode()) <= LONGEST_NAME
            check(good, f"label {shown(label)} has spaces at its ends, control characters, or is too long")
        given = 0 if self.class_weights == BALANCED else len(self.class_weights)
        check(given in (0, self.classes), f"class_weights must have {self.classes} numbers, not {given}")

    def _check_metric(self) -> None:
        known = {metric.name: metric for metric in self.kind.metrics}
        metric = self.metric or next(iter(known))
        wrong = f"not {shown(metric)}{did_you_mean(metric, known)}"
        self._check(
            metric in known, f"metric of a {self.kind.name} must be one of {', '.join(known)}, {wrong}"
        )
        bounded = not known[metric].bounded or math.isfinite(self.high - self.low)
        self._check(
            bounded, f"metric {metric} needs low and high: it enters the score as 1 - {metric} / range"
        )
        if self.metric:
            object.__setattr__(self, "kind", self.kind.scored_by(metric, self.high - self.low))

    @property
    def _files(self) -> tuple[str, ...]:
        return self.files, self.train, self.dev, self.test

    @property
    def outputs(self) -> int:
        """The number of outputs of the task's head, C."""
        return self.classes if self.kind.classes is None else 1

    @property
    def classes(self) -> int:
        """The number of classes; 0 for a regression."""
        return self.num_classes or len(self.labels) if self.kind.classes is None else self.kind.classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes: their labels, or else their numbers."""
        return self.labels or tuple(map(str, range(self.classes)))

    @property
    def unit(self) -> float:
        """How much of a label one unit of the head's output stands for: a fifth of a regression's range, so
        that every range is learned like 0 to 5. 1 if the range is unbounded, and for the other kinds."""
        width = self.high - self.low
        return width / 5 if math.isfinite(width) else 1.0

    @cached_property
    def _numbers(self) -> Mapping[str, float]:
        """The numbers of the labels that are words."""
        if not self.labels:
            return BOOLEANS if self.kind.classes == len(BOOLEANS) else {}
        return {label: float(number) for number, label in enumerate(self.labels)}

    def parse_label(self, text: str) -> float:
        """Return the label as a number. Raises LabelError if the task does not allow it."""
        if self.labels or text.lower() in self._numbers:
            return self._named(text)
        try:
            value = float(text.replace("_", "?"))  # Python would read 1_0 as 10
        except ValueError:
            raise LabelError(text, f"{self.label} {shown(text)} is not a number") from None
        if not self.classes:
            low, high = max(self.low, -LARGEST_LABEL), min(self.high, LARGEST_LABEL)
            if not low <= value <= high:
                bounds = f"{low:g} to {high:g}"
                raise LabelError(text, f"{self.label} {short_line(text)} is outside {bounds}")
            return value
        if value not in range(self.classes):
            problem = f"is not a whole number from 0 to {self.classes - 1}"
            raise LabelError(text, f"{self.label} {short_line(text)} {problem}")
        return value

    def _named(self, text: str) -> float:
        """Return the number of a label that is a word; those of the booleans in any case."""
        for word in (text, *((text.lower(), text.capitalize()) if text.lower() in BOOLEANS else ())):
            if word in self._numbers:
                return self._numbers[word]
        raise LabelError(
            text, f"{self.label} {shown(text)} is not one of {short_line(', '.join(self.labels))}"
        )

    def path(self, directory: Path, split: str) -> Path:
        """Return where a split's table is: the folder itself, if the task names no file for it. A dev table
        that is held out is in the file of the training table."""
        if split == "dev" and self.dev_fraction:
            split = "train"
        own = {"train": self.train, "dev": self.dev, "test-student": self.test}[split]
        return directory / (own or self.files.replace("{split}", split))

    @property
    def submission(self) -> str:
        """What the names of submission files begin with."""
        return self.output or self.name

    def training_loss(self, labels: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss to train on, given the labels (N,) of the training rows: that of the kind, with the
        task's class weights and label smoothing.

        Balanced weights are N / (classes x rows of the class), so that every class counts the same and their
        mean over the rows is 1.
        """
        options: dict[str, Any] = {}
        if self.class_weights == BALANCED:
            counts = np.bincount(labels.astype(int), minlength=self.classes)
            options["class_weights"] = torch.from_numpy(len(labels) / (self.classes * np.maximum(counts, 1)))
        elif self.class_weights:
            options["class_weights"] = torch.tensor(self.class_weights)
        if self.label_smoothing:
            options["label_smoothing"] = self.label_smoothing
        return partial(self.kind.loss, **options) if options else self.kind.loss

    def answers(self, logits: Tensor, calibration: Calibration = UNCHANGED) -> Answers:
        """Read predictions off logits (N, C): the one place where raw outputs become answers."""
        scaled = logits / calibration.temperature
        numbers = self.kind.decode(scaled - calibration.least_logit)
        probabilities = None if self.kind.probabilities is None else self.kind.probabilities(scaled)
        values = numbers.tolist()
        named = [self.labels[number] for number in values] if self.labels else values
        return Answers(numbers, probabilities, named)

    @property
    def is_fitted_on_dev(self) -> bool:
        """Whether something is fitted on dev that training does not see."""
        return self.calibrate or bool(self.threshold)

    def fit(self, logits: Tensor, labels: np.ndarray, fitted_on: str = "") -> Calibration:
        """Return what the task wants fitted on dev: a temperature, then a threshold on what that gives."""
        logits = logits.double()
        temperature, threshold = UNCHANGED.temperature, UNCHANGED.threshold
        if self.calibrate and len(labels):
            temperature = fit_temperature(self.kind.loss, logits, torch.from_numpy(labels))
        if self.threshold:
            threshold = THRESHOLDS[self.threshold]((logits / temperature).squeeze(1).numpy(), labels)
        return Calibration(temperature, threshold, fitted_on)


def read_task_file(path: Path) -> dict[str, Task]:
    """Read the tasks that a TOML file defines: one section `[NAME]` each, with the fields of `Task`."""
    tables = load_toml(path)
    if not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(f"{path}: defines no tasks; give each one a section [NAME]")
    tasks = {name: task_from_toml(name, table, path) for name, table in tables.items()}
    check_outputs(tasks.values(), str(path))
    return tasks


def check_outputs(tasks: Collection[Task], source: str) -> None:
    """Raise InputError if two tasks would write their predictions into the same file."""
    if len({task.submission for task in tasks}) < len(tasks):
        raise InputError(f"{source}: two tasks share an output; their predictions would overwrite each other")


def task_from_toml(name: str, table: Mapping[str, Any], path: Path) -> Task:
    """Return the `Task` that a section of a TOML file defines. Raises InputError with the file and field."""
    if not name.isidentifier():
        raise InputError(f"{path}: {shown(name)}: invalid task name; use letters, digits and underscores")
    values = check_table(table, fields_of(Task), f"{path}: [{name}]", ("kind", "texts", "label"))
    try:
        return Task(name, **values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def task_to_toml(task: Task) -> dict[str, Any]:
    """Return the fields that are not at their defaults: the inverse of `task_from_toml`."""
    values = {one.name: getattr(task, one.name) for one in fields(task) if one.name != "name"}
    values["kind"] = task.kind.name
    defaults = {name: known.default for name, known in fields_of(Task).items()}
    return {name: value for name, value in values.items() if value != defaults[name]}


BUILT_IN = read_task_file(Path(__file__).parent / "paper.toml")
SENTIMENT, PARAPHRASE, SIMILARITY = BUILT_IN.values()


def select(names: Sequence[str], known: Mapping[str, Task] = BUILT_IN) -> dict[str, Task]:
    """Return the tasks of these names, in the order given, or all tasks if there are no names."""
    for name in names:
        if name not in known:
            raise InputError(f"unknown task {shown(name)}; known are {', '.join(known)}")
    return {name: known[name] for name in names or known}


def first_of_single_texts_in_classes(selected: Mapping[str, Task]) -> Task:
    """Return the first task of single texts in classes, which is the one that mnrl trains on."""
    for task in selected.values():
        if task.classes and len(task.texts) == 1:
            return task
    raise InputError("--option mnrl needs a task with classes and one text column; name one with --tasks")
