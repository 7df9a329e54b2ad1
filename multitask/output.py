"""Predictions as rows of text: tab-separated, CSV or JSON lines; and tasks as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import numpy as np

from multitask.data.formats import ending
from multitask.data.tasks import Answer, Answers, Task

JSON_LINES = (".jsonl", ".ndjson")


class Answering:
    """Writes a task's answers into a file, a row for each example: its id, the prediction, and the
    probability of every class. The form is told by the ending of the file's name."""

    def __init__(self, file: TextIO, name: str, task: Task):
        self.file, self.task = file, task
        self.is_json = ending(name) in JSON_LINES
        separator = "," if ending(name) == ".csv" else "\t"
        self.writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        self.has_header = self.is_json

    def write(self, ids: Iterable[str], answers: Answers) -> None:
        if not self.has_header:
            self.writer.writerow(["id", self.task.label, *class_columns(self.task)])
            self.has_header = True
        for row_id, value, probabilities in zip(ids, answers.values, each(answers), strict=True):
            if not self.is_json:
                self.writer.writerow([row_id, shortest(value), *map(six_places, probabilities)])
                continue
            row: dict[str, object] = {"id": row_id, self.task.label: shortest(value)}
            if probabilities:
                rounded = [round(probability, 6) for probability in probabilities]
                row["probabilities"] = dict(zip(self.task.class_names, rounded, strict=True))
            self.file.write(json.dumps(row, ensure_ascii=False) + "\n")


def each(answers: Answers) -> Iterator[list[float]]:
    """Yield the probabilities of every example's classes: none, for a regression."""
    if answers.probabilities is None:
        yield from ([] for _ in answers.values)
    else:
        yield from answers.probabilities.tolist()


def class_columns(task: Task) -> list[str]:
    """Return the headers of the columns with the probabilities of a task's classes, if it has any."""
    return [f"class_{name}" for name in task.class_names]


def shortest(value: Answer) -> Answer:
    """Return a float with no more digits than float32 has; anything else as it is."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def six_places(probability: float) -> str:
    return f"{probability:.6f}"


def described(task: Task) -> dict[str, Any]:
    """Return what a client or a page must know of a task, as JSON."""
    found: dict[str, Any] = {"name": task.name, "kind": task.kind.name, "texts": task.texts}
    if task.kind.probabilities is not None:
        return found | {"classes": task.class_names}
    ends = {"low": task.low, "high": task.high}
    return found | {end: value if math.isfinite(value) else None for end, value in ends.items()}
