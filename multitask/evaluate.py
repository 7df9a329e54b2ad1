"""Scores and losses of every task, and submission files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minbert.files import make_folder, write_text
from multitask.data.calibration import UNCHANGED, Calibration
from multitask.data.tables import Table
from multitask.data.tasks import OVERALL, Task
from multitask.data.tokens import Examples
from multitask.model import MultitaskBert
from multitask.output import Answering, class_columns, each, six_places

LONGEST_INTERVAL = len("  [-1.000, -1.000]")


def scores(
    tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], data: Mapping[str, Examples | Table]
) -> dict[str, Any]:
    """Return the metric of each task's logits, {task: {metric: value}}, and three figures over all tasks:
    their weighted mean `score`, the `worst`, and the `spread` between the best and the worst, where each
    metric is taken on its scale from 0 to 1."""
    predictions = {
        name: tasks[name].answers(logits).numbers.double().numpy() for name, logits in outputs.items()
    }
    return scores_of(tasks, predictions, {name: data[name].labels for name in outputs})


def scores_of(
    tasks: Mapping[str, Task], predictions: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the `scores` of predictions (N,)."""
    values = {name: tasks[name].kind.measure(predictions[name], labels[name]) for name in predictions}
    found: dict[str, Any] = {name: {tasks[name].kind.metric: value} for name, value in values.items()}
    return found | {name: float(value) for name, value in overall(tasks, values).items()}


def overall(tasks: Mapping[str, Task], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the three figures over all tasks, given the value of each task's metric, or an array of them."""
    each = [tasks[name].kind.score(value) for name, value in values.items()]
    weights = [tasks[name].weight for name in values]
    score = sum(weight * value for weight, value in zip(weights, each, strict=True)) / sum(weights)
    worst, best = np.minimum.reduce(each), np.maximum.reduce(each)
    return {"score": score, "worst": worst, "spread": best - worst}


def losses(
    tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], data: Mapping[str, Examples]
) -> dict[str, float]:
    """Return each task's mean loss over its examples, from its logits: the negative log-likelihood of
    classes, or the squared error of values in the task's unit."""
    found = {}
    for name, logits in outputs.items():
        task, labels = tasks[name], torch.as_tensor(data[name].labels)
        found[name] = task.kind.loss(logits.double() / task.unit, labels / task.unit).item()
    return found


def all_logits(model: MultitaskBert, data: Mapping[str, Examples]) -> dict[str, Tensor]:
    """Return the logits (N, C) of every task's examples."""
    return {name: model.logits_of_tokens(name, examples.tokens) for name, examples in data.items()}


def summary(tasks: Mapping[str, Task], dev: Mapping[str, Any]) -> str:
    """Return the scores in one line."""
    values = []
    for name, task in tasks.items():
        value = dev[name][task.kind.metric]
        formula = task.kind.scoring.formula
        entering = f" ({formula} = {task.kind.score(value):.3f})" if formula else ""
        values.append(f"{name} {task.kind.metric} {value:.3f}{entering}")
    return ", ".join([*values, *(f"{name} {dev[name]:.3f}" for name in OVERALL)])


def format_scores(
    tasks: Mapping[str, Task], *scores: Mapping[str, Any], intervals: Mapping[str, Any] | None = None
) -> str:
    """Return the scores of one model or several, side by side, one line for each figure; behind those of the
    first their `intervals`. A metric is also shown as it enters the mean score, where that differs."""
    ends, width = ({}, 0) if intervals is None else (intervals, LONGEST_INTERVAL)
    lines = []
    for name, task in tasks.items():
        metric, scoring = task.kind.metric, task.kind.scoring
        values = [dev[name][metric] for dev in scores]
        lines.append((name, metric, values, within(ends.get(name, {}).get(metric))))
        if scoring.formula:
            lines.append(("", scoring.formula, [scoring.score(value) for value in values], ""))
    lines += [(name, "", [dev[name] for dev in scores], within(ends.get(name))) for name in OVERALL]
    texts = []
    for name, metric, values, end in lines:
        first, *others = (f"  {value:.3f}" for value in values)
        texts.append(f"  {name:12} {metric:11}{first}{end:{width}}{''.join(others)}".rstrip())
    return "\n".join(texts)


def within(ends: Sequence[float] | None) -> str:
    """Return an interval as it stands behind a score."""
    return f"  [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""


def write_predictions(
    directory: Path,
    task: Task,
    split: str,
    ids: Iterable[str],
    logits: Tensor,
    calibration: Calibration = UNCHANGED,
) -> Path:
    """Write a split's submission file and return its path: CSV with the probabilities of the classes or, for
    a task with a `header`, the course's format, with them in a file beside it."""
    make_folder(directory)
    path = directory / f"{task.submission}-{split}-output.csv"
    ids, answers = list(ids), task.answers(logits, calibration)
    if not task.header:
        text = io.StringIO()
        Answering(text, path.name, task).write(ids, answers)
        write_text(path, text.getvalue())
        return path
    lines = (f"{row_id} , {value} \n" for row_id, value in zip(ids, answers.values, strict=True))
    write_text(path, f"id \t {task.header} \n" + "".join(lines))
    if answers.probabilities is not None:
        text = io.StringIO()
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(["id", *class_columns(task)])
        rows = zip(ids, each(answers), strict=True)
        writer.writerows([row_id, *map(six_places, row)] for row_id, row in rows)
        write_text(directory / f"{task.submission}-{split}-probabilities.csv", text.getvalue())
    return path
