"""How long a training run will take on this machine, estimated by timing a few of its updates."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import mean

import numpy as np

from multitask import machine
from multitask.config import Config
from multitask.data.tables import SPLITS
from multitask.preparation import prepare, read_rows, tasks_of
from multitask.ranking import sentence_vectors
from multitask.train import TrainingRun, train_step

TRIED = 5  # updates to time
TRIED_ROWS = 64  # rows to time of each table that an evaluation reads


@dataclass(frozen=True)
class Cost:
    """The time that the parts of a run take, in seconds."""

    start: float  # reading and tokenising tables, building the model
    update: float
    evaluation: float  # scoring the dev tables once
    epochs: int
    steps_per_epoch: int

    def seconds(self, epochs_done: int = 0) -> float:
        """Return the seconds that the remaining epochs and the final predictions will take."""
        epoch = self.steps_per_epoch * self.update + self.evaluation
        return self.start + (self.epochs - epochs_done) * epoch + 2 * self.evaluation


def measure(config: Config) -> Cost:
    """Carry out some updates of the run, and part of an evaluation, without writing anything of it."""
    started = time.perf_counter()
    selected = tasks_of(config)
    rows = read_rows(config, SPLITS[:2], selected)
    run = prepare(config, selected, rows, machine.set_up(config.machine, config.products))
    start = time.perf_counter() - started
    update_seconds = mean(_tried_updates(run)[1:])  # the first one warms up
    return Cost(start, update_seconds, _evaluation_seconds(run), run.settings.epochs, run.steps_per_epoch)


def _evaluation_seconds(run: TrainingRun) -> float:
    """Return the seconds of an evaluation's pass through the encoder, which is nearly all of it, timed on the
    first rows of each table."""
    seconds = 0.0
    for examples in run.method.evaluated:
        model, some = run.method.model, examples.tokens.head(TRIED_ROWS)
        started = time.perf_counter()
        sentence_vectors(model, some.windows(model.max_length)[0])
        seconds += (time.perf_counter() - started) * len(examples) / len(some)
    return seconds


def _tried_updates(run: TrainingRun) -> list[float]:
    """Return the seconds of updates spread over the run, so that tasks occur in realistic proportions."""
    seconds = []
    places = np.linspace(0, run.total_steps - 1, TRIED + 2).astype(int)
    for step in places[:-1].tolist():  # the last has diagnostics
        started = time.perf_counter()
        train_step(run, step)
        seconds.append(time.perf_counter() - started)
    return seconds
