"""How long a training run will take on this machine, estimated by timing a few of its updates."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from multitask import jobs, machine
from multitask.config import Config
from multitask.evaluate import in_length_order, to_device
from multitask.train import update

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
    """Time some updates of the run and part of an evaluation, without writing any files."""
    started = time.perf_counter()
    selected = jobs.selected_tasks(config)
    rows = jobs.read_splits(config.data, jobs.SPLITS[:2], selected, config.skip_bad_rows)
    training = jobs.PREPARE[config.option](config, selected, rows, machine.set_up(config))
    start = time.perf_counter() - started
    update_seconds = mean(_tried_updates(training)[1:])  # the first one warms up
    steps = training.config.steps_per_epoch or 1
    return Cost(start, update_seconds, _evaluation_seconds(training), config.epochs, steps)


def _evaluation_seconds(training: jobs.Training) -> float:
    """Return the seconds of an evaluation, extrapolated from the first rows of each table.

    Only the passes through the encoder are timed; they take nearly all of the time.
    """
    model, seconds = training.model.eval(), 0.0

    @torch.inference_mode()
    def pooled(batch: Mapping[str, Tensor]) -> Tensor:
        embedded = model.encoder.embed(**to_device(batch, model.device))
        return model.pooled_from_embeddings(*embedded)

    for examples in training.method.evaluated:
        some = examples.tokens.head(TRIED_ROWS)
        started = time.perf_counter()
        in_length_order(some, model.tokenizer.pad_token_id, pooled)
        seconds += (time.perf_counter() - started) * len(examples) / len(some)
    return seconds


def _tried_updates(training: jobs.Training) -> list[float]:
    """Return the seconds of updates spread over the run, so that tasks occur in realistic proportions."""
    config, method = training.config, training.method
    optimizer = jobs.make_optimizer(training)
    last = config.epochs * (config.steps_per_epoch or 1) - 1
    seconds = []
    for step in np.linspace(0, last, TRIED + 2).astype(int)[:-1].tolist():  # the last has diagnostics
        started = time.perf_counter()
        update(optimizer, method.losses(step), config.accumulate, config.clip_norm)
        method.after_update(step)
        seconds.append(time.perf_counter() - started)
    return seconds
