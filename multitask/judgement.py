"""What the dev tables say about a trained model: its scores with intervals, each class, and how far its
probabilities can be believed.

What is fitted on dev, a temperature or a threshold, would look better there than elsewhere. So it is judged
by cross-fitting: each fifth of the rows by what is fitted on the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multitask.data.calibration import UNCHANGED, Calibration
from multitask.data.metrics import per_class
from multitask.data.resampling import interval, resampled
from multitask.data.tables import Table
from multitask.data.tasks import OVERALL, Answers, Task
from multitask.evaluate import overall, scores_of
from multitask.methods.calibration import folds, reliability

Calibrations = Mapping[str, Calibration]  # by task


@dataclass(frozen=True)
class Judgement:
    """Each part is by task; `result.json` holds them under these names."""

    dev: dict[str, Any]  # the metric, and three figures over all tasks: see `evaluate.scores`
    intervals: dict[str, Any]  # like dev, with [low, high], the 95% interval of each
    classes: dict[str, Any]  # class -> precision, recall, f1, rows
    calibration: dict[str, Any]  # temperature, threshold, and the calibration error before and after
    cross_fitted: list[str]  # the tasks whose temperature or threshold was fitted on these tables


def fit_calibrations(
    tasks: Mapping[str, Task], logits: Mapping[str, Tensor], dev: Mapping[str, Table]
) -> dict[str, Calibration]:
    """Return what the tasks want fitted on their dev tables."""
    return {
        name: task.fit(logits[name], dev[name].labels, dev[name].source.digest)
        for name, task in tasks.items()
        if task.is_fitted_on_dev
    }


def judge(
    tasks: Mapping[str, Task],
    logits: Mapping[str, Tensor],
    dev: Mapping[str, Table],
    calibrations: Calibrations,
) -> Judgement:
    """Return what labelled tables say about the model with these logits (N, C) and calibrations."""
    used = {name: calibrations.get(name, UNCHANGED) for name in logits}
    cross_fitted = [name for name in logits if is_fitted_on(used[name], dev[name])]
    answers = {name: judged_answers(tasks[name], logits[name], dev[name], used[name]) for name in logits}
    predictions = {name: given.numbers.double().numpy() for name, given in answers.items()}
    labels = {name: dev[name].labels for name in logits}
    classes = {
        name: per_class(predictions[name], labels[name], tasks[name].class_names)
        for name in logits
        if tasks[name].classes
    }
    calibration = {
        name: _calibration(tasks[name], logits[name], answers[name], labels[name], used[name])
        for name in classes
    }
    return Judgement(
        scores_of(tasks, predictions, labels),
        intervals(tasks, predictions, labels),
        classes,
        calibration,
        cross_fitted,
    )


def is_fitted_on(calibration: Calibration, table: Table) -> bool:
    return calibration.fitted_on == table.source.digest


def judged_answers(task: Task, logits: Tensor, table: Table, calibration: Calibration) -> Answers:
    """Return the answers by which a model is judged on a table: its own, or cross-fitted ones if the
    calibration was fitted on this table."""
    if is_fitted_on(calibration, table):
        return cross_fit(task, logits, table.labels)
    return task.answers(logits, calibration)


def cross_fit(task: Task, logits: Tensor, labels: np.ndarray) -> Answers:
    """Return answers of which each fifth is calibrated by the rest of the rows (N,)."""
    parts, order = [], []
    for rest, fold in folds(len(labels)):
        parts.append(task.answers(logits[fold], task.fit(logits[rest], labels[rest])))
        order.append(fold)
    back = np.argsort(np.concatenate(order))
    numbers, probabilities = (
        torch.cat([getattr(part, name) for part in parts])[back] for name in ("numbers", "probabilities")
    )
    values = [value for part in parts for value in part.values]
    return Answers(numbers, probabilities, [values[row] for row in back])


def _calibration(
    task: Task, logits: Tensor, answers: Answers, labels: np.ndarray, used: Calibration
) -> dict[str, Any]:
    """Return what was done to a task's probabilities, and how reliable they are before and after."""
    before, after = (
        asdict(reliability(given.probabilities.double().numpy(), labels))  # type: ignore[union-attr]
        for given in (task.answers(logits), answers)
    )
    found: dict[str, Any] = {"before": before}
    if task.calibrate:
        found |= {"after": after, "temperature": used.temperature}
    if task.threshold:
        found["threshold"] = used.threshold
    return found


def intervals(
    tasks: Mapping[str, Task], predictions: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return the 95% interval of every score, [low, high], by the bootstrap over each task's rows."""
    values = {
        name: resampled(tasks[name].kind.scoring.weighted, predictions[name], labels[name], name)
        for name in predictions
    }
    together = overall(tasks, values)
    found: dict[str, Any] = {name: {tasks[name].kind.metric: interval(values[name])} for name in values}
    return found | {name: interval(together[name]) for name in OVERALL}


def only_answer(classes: Mapping[str, Any]) -> str | None:
    """Return the class that is predicted for every row, if there is one and it is not right for all."""
    rows = sum(found["rows"] for found in classes.values())
    for name, found in classes.items():
        is_only = found["recall"] == 1 and math.isclose(found["precision"], found["rows"] / rows)
        if is_only and found["rows"] < rows:
            return name
    return None


def describe(judged: Judgement, name: str) -> str:
    """Return in a line what was fitted on dev for a task, and what that did to its calibration error; an
    empty one if nothing was."""
    found = judged.calibration.get(name, {})
    fitted = [f"{what} {found[what]:.3f}" for what in ("temperature", "threshold") if what in found]
    if "after" in found:
        before, after = (found[part]["error"] for part in ("before", "after"))
        fitted.append(f"calibration error {before:.3f} before, {after:.3f} after")
    if not fitted:
        return ""
    judged_by = " (five-fold cross-fitted on dev)" if name in judged.cross_fitted else ""
    return f"{name}: {', '.join(fitted)}{judged_by}"
