"""Tasks as data: columns, kind, labels and files. No other code branches on a task's name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minbert.errors import InputError, short_line, shown
from minbert.fields import check_table, field, fields_of
from minbert.reading import load_toml
from multitask.data.kinds import BINARY, CLASSIFICATION, KINDS, REGRESSION, Kind

OVERALL = ("score", "worst", "spread")  # keys for all tasks together, beside the tasks' own scores
RESERVED = (
    "all",
    "skipped",
    "gradient_ratio",
    *OVERALL,
)  # keys beside the tasks' names in a run's records, so no task may use them
MOST_CLASSES = 10_000
LARGEST_LABEL = 1e15  # of a regression, in its unit: a batch's squares must stay finite in float32
LONGEST_NAME = 100  # of tasks and files, in bytes: a file system must accept it


@dataclass(frozen=True)
class Task:
    """One task: where its tables are, what their columns mean, and how it is trained and scored.

    The kinds are "classification" (integer labels 0..num_classes-1, cross-entropy, accuracy), "binary"
    (labels 0 and 1, one logit, binary cross-entropy, accuracy) and "regression" (labels are numbers from low
    to high, squared error, Pearson correlation). Raises InputError if the fields do not make a valid task.
    """

    name: str
    kind: Kind = field(type="str", choices=KINDS)  # its name will do, too
    texts: tuple[str, ...] = field()  # the text columns: one sentence, or two that are tokenised together
    label: str = field()  # the label's column
    files: str = field()  # a table's file name, with {split} in place of train, dev or test-student
    output: str = field("", empty=True)  # submission files are OUTPUT-dev-output.csv ...; default: the name
    header: str = field("Prediction", empty=True)  # the prediction's column in a submission file
    id: str = field("id")  # the column that identifies each row
    num_classes: int = field(0, most=MOST_CLASSES)  # for a classification only
    low: float = field(-math.inf, low=-math.inf, most=math.inf)  # low and high: for a regression only
    high: float = field(math.inf, low=-math.inf, most=math.inf)

    def __post_init__(self) -> None:
        def check(good: bool, problem: str) -> None:
            if not good:
                raise InputError(f"task {short_line(self.name)}: {problem}")

        kind = KINDS.get(self.kind) if isinstance(self.kind, str) else self.kind
        check(isinstance(kind, Kind), f"kind must be one of {', '.join(KINDS)}, not {shown(self.kind)}")
        object.__setattr__(self, "kind", kind)
        check(self.name.isidentifier(), "invalid name; use letters, digits and underscores")
        for name in (self.name, self.files, self.output):
            check(len(name.encode()) <= LONGEST_NAME, f"names and files take up to {LONGEST_NAME} bytes each")
        for name in (self.files, self.output, self.header):
            check(name.isprintable(), "files, output and header may not contain control characters")
        check(self.name not in RESERVED, "this name is reserved for all tasks together; choose another")
        check(
            Path(self.submission).name == self.submission,
            "output must be the start of a file name, without folders",
        )
        check(len(self.texts) in (1, 2), f"texts must name one or two columns, not {len(self.texts)}")
        check("{split}" in self.files, "files needs {split} in place of train, dev or test-student")
        check(Path(self.files).name == self.files, "files must be a file name, without folders")
        check(self.low < self.high, "low must be below high")
        ends = [abs(end) for end in (self.low, self.high) if math.isfinite(end)]
        check(
            max(ends, default=0) <= LARGEST_LABEL * min(self.unit, 1),
            "low and high are too large, or too close together",
        )
        if self.kind == CLASSIFICATION:
            classes = f"a classification needs num_classes from 2 to {MOST_CLASSES:,}"
            check(2 <= self.num_classes <= MOST_CLASSES, classes)
        else:
            check(self.num_classes == 0, "num_classes is for a classification only")
        if self.kind != REGRESSION:
            check(math.isinf(self.low) and math.isinf(self.high), "low and high are for a regression only")
        columns = (self.id, *self.texts, self.label)
        check(len(set(columns)) == len(columns), f"columns must differ: {short_line(', '.join(columns))}")

    @property
    def outputs(self) -> int:
        """The number of outputs of the task's head, C."""
        return self.num_classes or 1

    @property
    def classes(self) -> int:
        """The number of classes; 0 for a regression."""
        return 0 if self.kind.probabilities is None else self.num_classes or 2

    @property
    def label_names(self) -> tuple[str, ...]:
        """What other libraries call the outputs: the classes, or the score of a regression."""
        return tuple(map(str, range(self.classes))) or ("score",)

    @property
    def unit(self) -> float:
        """How much of a label one unit of the head's output stands for: a fifth of a regression's range, so
        that every range is learned like 0 to 5. 1 if the range is unbounded, and for the other kinds."""
        width = self.high - self.low
        return width / 5 if math.isfinite(width) else 1.0

    def parse_label(self, text: str) -> float:
        """Return the label as a number. Raises ValueError if the task does not allow it."""
        try:
            value = float(text.replace("_", "?"))  # Python would read 1_0 as 10
        except ValueError:
            raise ValueError(f"{self.label} {shown(text)} is not a number") from None
        if not self.classes:
            low, high = max(self.low, -LARGEST_LABEL), min(self.high, LARGEST_LABEL)
            if not low <= value <= high:
                bounds = f"{low:g} to {high:g}"
                raise ValueError(f"{self.label} {short_line(text)} is outside {bounds}")
            return value
        if value not in range(self.classes):
            problem = f"is not a whole number from 0 to {self.classes - 1}"
            raise ValueError(f"{self.label} {short_line(text)} {problem}")
        return value

    def path(self, directory: Path, split: str) -> Path:
        return directory / self.files.replace("{split}", split)

    @property
    def submission(self) -> str:
        return self.output or self.name


SENTIMENT = Task(
    "sentiment", CLASSIFICATION, ("sentence",), "sentiment", "ids-sst-{split}.csv",
    output="sst", header="Predicted_Sentiment", num_classes=5,
)  # fmt: skip
PARAPHRASE = Task(
    "paraphrase", BINARY, ("sentence1", "sentence2"), "is_duplicate", "quora-{split}.csv",
    output="para", header="Predicted_Is_Paraphrase",
)  # fmt: skip
SIMILARITY = Task(
    "similarity", REGRESSION, ("sentence1", "sentence2"), "similarity", "sts-{split}.csv",
    output="sts", header="Predicted_Similiary", low=0.0, high=5.0,  # the course's own spelling
)  # fmt: skip
BUILT_IN = {task.name: task for task in (SENTIMENT, PARAPHRASE, SIMILARITY)}


def select(names: Sequence[str], known: Mapping[str, Task] = BUILT_IN) -> dict[str, Task]:
    """Return the tasks of these names, in the order given, or all tasks if there are no names."""
    for name in names:
        if name not in known:
            raise InputError(f"unknown task {shown(name)}; known are {', '.join(known)}")
    return {name: known[name] for name in names or known}


def first_of_single_texts_in_classes(selected: Mapping[str, Task]) -> Task:
    """Return the first classification of single sentences, which is the task that mnrl trains on."""
    for task in selected.values():
        if task.kind == CLASSIFICATION and len(task.texts) == 1:
            return task
    raise InputError("--option mnrl needs a classification task with one text column; name one with --tasks")


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
    values = check_table(table, fields_of(Task), f"{path}: [{name}]", ("kind", "texts", "label", "files"))
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
