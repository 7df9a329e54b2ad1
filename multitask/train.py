"""The update, and the loop of updates, evaluations and saved states around it, whatever the method."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from minbert.errors import InputError
from minbert.files import write_folder, write_text
from minbert.optim import constant_schedule, halve_on_rise, linear_schedule
from multitask import distributed, state
from multitask.config import MAX_STEPS_PER_EPOCH, Config
from multitask.data import Examples
from multitask.distributed import is_writer
from multitask.progress import Meter
from multitask.sampling import random_seed
from multitask.state import Progress

Terms = dict[str, float]  # parts of a loss by name, such as loss/sentiment; their means go into metrics.jsonl


class Method(Protocol):
    """What the loop asks of a way to train: `finetune.py` and `mnrl.py` have one each."""

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """What a saved state holds: the model, and what else learns."""

    @property
    def evaluated(self) -> Sequence[Examples]:
        """What `evaluate` passes through the encoder."""

    def losses(self, step: int) -> Iterable[tuple[Tensor, Terms]]:
        """The loss and its terms on each batch of this update, computed one at a time; in training mode."""

    def after_update(self, step: int) -> None:
        """What follows the optimizer's step."""

    def evaluate(self) -> dict[str, Any]:
        """The dev scores; `score` is the one that chooses the best model."""

    def describe(self, record: Mapping[str, Any]) -> str:
        """An epoch's dev scores in a line, and what should worry the reader."""

    def save(self, folder: Path) -> None:
        """Write the model."""


def update(
    optimizer: Optimizer, losses: Iterable[tuple[Tensor, Terms]], count: int, clip_norm: float
) -> Terms:
    """One step on the mean of `count` losses; returns the means of their terms. Where several processes share
    a batch, losses and terms are already those of the whole batch, and the gradients are added up here."""
    found: dict[str, list[float]] = {}
    for loss, terms in losses:
        (loss / count).backward()
        for name, value in (terms | {"loss/all": loss.item()}).items():
            found.setdefault(name, []).append(value)
    means = {
        name: sum(values) if name.endswith("/skipped") else sum(values) / len(values)
        for name, values in found.items()
    }
    if not math.isfinite(means["loss/all"]):
        raise InputError(f"the loss became {means}; lower --lr, or set --clip-norm")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    distributed.sum_gradients(parameters)
    if not clip_grad_norm_(parameters, clip_norm or math.inf).isfinite():
        raise InputError(f"the gradient is not finite (loss {means}); lower --lr")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return means


def fit(
    method: Method, optimizer: Optimizer, rows_per_step: float, config: Config, run: Path, progress: Progress
) -> None:
    """Train from `progress.step` to the last epoch's end; `run` gets states, metrics and the best model."""
    assert config.steps_per_epoch is not None, "resolved before training starts"
    total_steps = config.epochs * config.steps_per_epoch
    rate = rate_schedule(config, total_steps)
    meter = Meter(config.steps_per_epoch, config.epochs, rows_per_step)

    while progress.step < total_steps and not out_of_patience(progress, config.patience):
        step, started = progress.step, time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate(step, [record["loss"]["all"] for record in progress.records])
        torch.manual_seed(random_seed(config.seed, "dropout", step) + distributed.rank())
        terms = update(optimizer, method.losses(step), config.accumulate, config.clip_norm)
        method.after_update(step)

        progress.add(terms, time.perf_counter() - started)
        meter.update(progress)
        epoch_ends = progress.step % config.steps_per_epoch == 0
        if epoch_ends:
            end_epoch(method, progress, config.steps_per_epoch, rows_per_step, run)
        if is_writer() and (epoch_ends or progress.step % config.save_every == 0):
            state.save(run, progress, method.parts, optimizer)
    meter.close()


def end_epoch(method: Method, progress: Progress, steps: int, rows_per_step: float, run: Path) -> None:
    """Score the dev tables, add the epoch's line to metrics.jsonl, and keep the model if it is the best."""
    scores = method.evaluate()
    if not math.isfinite(scores["score"]):
        raise InputError(f"the dev score became {scores['score']}; lower --lr, or set --clip-norm")
    record: dict[str, Any] = {
        "epoch": progress.step // steps,
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "examples_per_second": round(steps * rows_per_step / progress.seconds, 2),
        **progress.means(),
        "dev": scores,
    }
    best = progress.best_score is None or scores["score"] > progress.best_score
    if best:
        progress.best_score, progress.best_epoch = scores["score"], record["epoch"]
        if is_writer():
            write_folder(run / "best", method.save)
    progress.records.append(record)
    progress.sums, progress.seconds = {}, 0.0
    write_metrics(run, progress)
    line = f"epoch {record['epoch']}: loss {record['loss']['all']:.4f}, dev {method.describe(record)}"
    Meter.say(line + ", best" * best)


def out_of_patience(progress: Progress, patience: int) -> bool:
    """Whether `patience` epochs have passed without a better score; never for 0."""
    return patience > 0 and len(progress.records) - progress.best_epoch >= patience


def write_metrics(run: Path, progress: Progress) -> None:
    lines = (json.dumps(record, allow_nan=False) + "\n" for record in progress.records)
    if is_writer():
        write_text(run / "metrics.jsonl", "".join(lines))


def epoch_steps(rows: int, rows_per_step: float, config: Config) -> int:
    """Updates in an epoch: as set, or one pass over all rows but at most 2,000."""
    return config.steps_per_epoch or min(MAX_STEPS_PER_EPOCH, math.ceil(rows / rows_per_step))


def rate_schedule(config: Config, total_steps: int) -> Callable[[int, Sequence[float]], float]:
    """The factor on the learning rate as a function of the step and of the epochs' losses so far."""
    warmup = round(config.warmup * total_steps)
    return {
        "constant": lambda step, losses: constant_schedule(step, warmup),
        "linear": lambda step, losses: linear_schedule(step, total_steps, warmup),
        "halve-on-rise": lambda step, losses: constant_schedule(step, warmup) * halve_on_rise(losses),
    }[config.schedule]
