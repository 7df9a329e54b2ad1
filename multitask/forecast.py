"""How long a training run will take on this machine, measured on a few of its updates beforehand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import mean

import numpy as np

from minbert.optim import AdamW, parameter_groups
from multitask import jobs, machine
from multitask.config import Config
from multitask.train import epoch_steps, update

TRIED = 5  # updates
LEAST_ROWS = 200  # of the smallest table that is tried on; larger ones keep their proportions


@dataclass(frozen=True)
class Cost:
    """Seconds of a run's parts."""

    start: float  # reading, tokenising, building the model
    update: float
    evaluation: float  # one scoring of the dev tables
    epochs: int
    steps_per_epoch: int

    def seconds(self, epochs_done: int = 0) -> float:
        """What the epochs that are left will take, with the predictions at the end."""
        epoch = self.steps_per_epoch * self.update + self.evaluation
        return self.start + (self.epochs - epochs_done) * epoch + 2 * self.evaluation


def measure(config: Config) -> Cost:
    """Carry out some updates of the run, and an evaluation, on a thinned copy of its tables; nothing is
    written. What grows with the rows is scaled up again."""
    started = time.perf_counter()
    selected = jobs.selected_tasks(config)
    rows = jobs.read_splits(config.data, jobs.SPLITS[:2], selected, config.skip_bad_rows)
    reading = time.perf_counter() - started

    every = max(1, min(len(table) for table in rows["train"].values()) // LEAST_ROWS)
    thinned = {
        split: {name: table[::every] for name, table in tables.items()} for split, tables in rows.items()
    }
    training = jobs.PREPARE[config.option](config, selected, thinned, machine.set_up(config))
    start = reading + every * (time.perf_counter() - started - reading)

    update_seconds = mean(_tried_updates(training)[1:])  # the first one warms up
    started = time.perf_counter()
    training.method.evaluate()
    evaluation = every * (time.perf_counter() - started)
    size = sum(len(table) for table in rows["train"].values())
    steps = epoch_steps(size, training.rows_per_step, config)
    return Cost(start, update_seconds, evaluation, config.epochs, steps)


def _tried_updates(training: jobs.Training) -> list[float]:
    """Seconds of updates spread over the run, so that the tasks come as often as they will."""
    config, method = training.config, training.method
    optimizer = AdamW(parameter_groups(training.model, config.weight_decay), lr=config.lr)
    last = config.epochs * (config.steps_per_epoch or 1) - 1
    seconds = []
    for step in np.linspace(0, last, TRIED + 1).astype(int).tolist():
        started = time.perf_counter()
        update(optimizer, method.losses(step), config.accumulate, config.clip_norm)
        method.after_update(step)
        seconds.append(time.perf_counter() - started)
    return seconds
