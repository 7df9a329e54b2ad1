"""Read numbers from the folders of finished runs. NaN stands for whatever a run did not record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cells import Scores
from grid import RESULT
from minbert.errors import InputError
from multitask.config import Config
from multitask.data.tasks import PARAPHRASE, SENTIMENT, SIMILARITY, Task
from multitask.recipes import read_settings

# Modules that import torch are imported only where they are used, so that --list and errors are immediate.
COLUMNS = {"QQP": PARAPHRASE, "SST": SENTIMENT, "STS": SIMILARITY}


class Effort(NamedTuple):
    """The cost of a training run."""

    updates: float
    rows: float
    minutes: float


def result(run: Path) -> dict[str, Any]:
    """Return the result of a finished run: its dev scores, and for an ensemble each task's members."""
    try:
        return json.loads((run / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run / RESULT}: cannot be read ({error}); delete {run} to run the cell again"
        ) from None


def records(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's epochs; an ensemble has none."""
    from multitask.report.records import read_metrics

    path = run / "metrics.jsonl"
    return read_metrics(path) if path.is_file() else []


def dev_scores(run: Path) -> Scores:
    dev = result(run)["dev"]
    return (*(task.kind.score(dev[task.name][task.kind.metric]) for task in COLUMNS.values()), dev["score"])


def test_scores(run: Path, labels: Mapping[str, Mapping[str, float]]) -> Scores:
    """Score the predictions for the test tables against `labels`, {task: {id: label}}."""
    found = []
    for task in COLUMNS.values():
        truth = labels[task.name]
        predictions = read_predictions(run, task, "test", truth)
        metric = task.kind.measure(predictions, np.array([*truth.values()]))
        found.append(task.kind.score(metric))
    return (*found, statistics.mean(found))


def gaps(run: Path) -> tuple[float, ...]:
    """Return how much higher each task scores on training rows than on dev, in the best epoch."""
    epoch = result(run).get("best_epoch")
    record = next((record for record in records(run) if record["epoch"] == epoch), {})
    return tuple(_score(record, "train", task) - _score(record, "dev", task) for task in COLUMNS.values())


def _score(record: Mapping[str, Any], part: str, task: Task) -> float:
    value = record.get(part, {}).get(task.name, {}).get(task.kind.metric)
    return np.nan if value is None else task.kind.score(value)


def effort(run: Path) -> Effort:
    """Return a training run's updates, rows and minutes; with --max-tokens, rows follow from its speed."""
    epochs = records(run)
    if not epochs or not (run / "config.toml").is_file():
        return Effort(np.nan, np.nan, np.nan)
    config, updates = Config.of(read_settings(run / "config.toml")), epochs[-1]["step"]
    if config.option == "mnrl":
        rows = updates * config.training.accumulate * config.mnrl.groups * 2 * SENTIMENT.num_classes
    elif config.batches.max_tokens is None:
        rows = updates * config.training.accumulate * config.batches.batch_size
    else:
        rows = round(sum(one.get("examples_per_second", np.nan) * one.get("seconds", 0) for one in epochs))
    return Effort(updates, rows, sum(one.get("seconds", 0) for one in epochs) / 60)


def read_labels(folder: Path, task: Task, split: str) -> dict[str, float]:
    from multitask.data.tables import read_table

    table = read_table(task.path(folder, split), task, labelled=True)
    return dict(zip(table.ids, table.labels.tolist(), strict=True))


def read_predictions(run: Path, task: Task, split: str, ids: Iterable[str]) -> np.ndarray:
    """Return the predictions in a run's submission file for these ids, in their order."""
    path = run / "predictions" / f"{task.submission}-{split}-output.csv"
    try:
        with path.open(encoding="utf-8") as lines:
            next(lines, "")
            values = {row: float(value) for row, value in (line.rsplit(" , ", 1) for line in lines)}
        return np.array([values[row] for row in ids])
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot read the predictions ({error}); was there a {split} table?"
        ) from None
    except KeyError as error:
        raise InputError(f"{path}: lacks row {error}, which the labels have") from None


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation (n - 1); NaN if there are too few values, or one is NaN."""
    mean = float(np.mean(values)) if values else np.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
