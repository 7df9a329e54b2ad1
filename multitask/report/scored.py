"""A run or an ensemble, and how it does on its dev tables: what every report is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minbert.errors import InputError
from multitask.config import TRAINING, Config
from multitask.data.calibration import UNCHANGED
from multitask.data.tables import SAMPLE, Table, read_split
from multitask.data.tasks import Answers, Task
from multitask.ensemble_model import Ensemble, is_ensemble
from multitask.judgement import Judgement, judge, judged_answers
from multitask.layout import METRICS
from multitask.model import MultitaskBert
from multitask.pairing import Difference, differences
from multitask.report.figures import Records
from multitask.report.origin import read_config
from multitask.report.records import check_scores, read_metrics


@dataclass(frozen=True)
class OpenRun:
    """A run or an ensemble that was read from its folder."""

    folder: Path
    config: Config
    records: Records  # none of an ensemble
    model: MultitaskBert | Ensemble

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.model.tasks

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def data(self, given: str | None) -> str | None:
        """Return the data folder that was given, or else its own; None for the shipped sample."""
        return given or self.config.tables.data

    def dev(self, given: str | None) -> dict[str, Table]:
        """Read its dev tables."""
        return read_dev(folder_of(self.data(given)), self.tasks, self.config)


def open_run(run: Path, device: torch.device, skip_bad_rows: bool = False) -> OpenRun:
    """Read a training run or an ensemble. Raises InputError if it cannot be read."""
    if is_ensemble(run):
        config = read_config(run, skip_bad_rows, "ensemble")
        return OpenRun(run, config, (), Ensemble(run, lambda folder: load_model(folder, config, device)))
    records = read_metrics(run / METRICS)
    config = read_config(run, skip_bad_rows, *TRAINING)
    model = load_model(run, config, device)
    check_scores(run / METRICS, records, model.tasks, config.batches.choose_by, config.option)
    return OpenRun(run, config, records, model)


def load_model(folder: Path, config: Config, device: torch.device) -> MultitaskBert:
    model = MultitaskBert.load(folder, device)
    model.precision = config.products.precision
    return model


def folder_of(data: str | None) -> Path:
    return SAMPLE if data is None else Path(data)


def read_dev(folder: Path, selected: Mapping[str, Task], config: Config) -> dict[str, Table]:
    """Read the dev tables of these tasks. Raises InputError if one is missing."""
    tables = read_split(folder, "dev", selected, config.reading.skip_bad_rows)
    if name := next((name for name in selected if name not in tables), None):
        raise InputError(f"{selected[name].path(folder, 'dev')}: no such file; name its folder with --data")
    return tables


@dataclass(frozen=True)
class Scored:
    """What a model answers on dev, and what that says about it; each part by task."""

    run: OpenRun
    tables: Mapping[str, Table]
    logits: Mapping[str, Tensor]  # (N, C)
    answers: Mapping[str, Answers]
    judged: Judgement

    @classmethod
    def of(cls, run: OpenRun, tables: Mapping[str, Table], logits: Mapping[str, Tensor]) -> Scored:
        tasks, calibrations = run.tasks, run.model.calibrations
        answers = {
            name: judged_answers(task, logits[name], tables[name], calibrations.get(name, UNCHANGED))
            for name, task in tasks.items()
        }
        return cls(run, tables, logits, answers, judge(tasks, logits, tables, calibrations))

    @property
    def tasks(self) -> Mapping[str, Task]:
        return self.run.tasks

    @property
    def predictions(self) -> dict[str, np.ndarray]:
        return {name: given.numbers.double().numpy() for name, given in self.answers.items()}

    @property
    def labels(self) -> dict[str, np.ndarray]:
        return {name: table.labels for name, table in self.tables.items()}


def score(run: OpenRun, tables: Mapping[str, Table]) -> Scored:
    """Compute a model's answers on dev tables, and judge them."""
    logits = {name: run.model.logits_of_table(name, table) for name, table in tables.items()}
    return Scored.of(run, tables, logits)


Dev = Mapping[str, Table]


def check_comparable(base: OpenRun, tables: Dev, other: OpenRun, theirs: Dev) -> None:
    """Raise InputError unless two runs have the same tasks, scored in the same way on the same dev rows."""

    def refuse(problem: str) -> None:
        raise InputError(f"{other.folder}: cannot be compared with {base.folder}: {problem}")

    if base.tasks.keys() != other.tasks.keys():
        refuse(f"its tasks are {', '.join(other.tasks)}, not {', '.join(base.tasks)}")
    for name, task in base.tasks.items():
        if scoring_of(task) != scoring_of(other.tasks[name]):
            refuse(f"the task {name} has other labels, another metric or another weight in the score")
        if rows_of(tables[name]) != rows_of(theirs[name]):
            refuse(f"the dev table of {name} is another; name a folder for all runs with --data")


def scoring_of(task: Task) -> tuple[object, ...]:
    """Return what decides how a task is scored; how it was trained may differ."""
    return task.kind.name, task.kind.metric, task.class_names, task.low, task.high, task.weight


def rows_of(table: Table) -> tuple[object, ...]:
    return table.source.digest, list(table.ids), table.labels.tolist()


def difference(base: Scored, other: Scored) -> dict[str, Difference]:
    """Return how a model differs from the baseline; see `differences`."""
    return differences(base.tasks, base.predictions, other.predictions, base.labels)
