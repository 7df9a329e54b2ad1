"""The update, and the loop of updates, evaluations and saved states around it, whatever the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minbert.errors import InputError
from minbert.optim import AdamW, clip_scale, constant_schedule, linear_schedule
from multitask import distributed
from multitask.config import MAX_STEPS_PER_EPOCH, Config
from multitask.data import Examples
from multitask.progress import Meter
from multitask.sampling import random_seed
from multitask.schedules import halve_on_rise
from multitask.state import Progress, States
from multitask.stopping import Stop, Stopped

# Parts of a loss by name, such as loss/sentiment; `Progress.end_epoch` sums them up for metrics.jsonl. Under
# objective/TASK stands the whole loss, which halve-on-rise follows.
Terms = dict[str, float]
SKIPPED_AT_MOST = 10  # updates in a row


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

    def evaluate(self, step: int) -> dict[str, Any]:
        """Parts of the epoch's record, after `step` updates: `dev`, the scores, by one of which the best
        model is chosen, and whatever else is measured."""

    def describe(self, record: Mapping[str, Any]) -> str:
        """An epoch's scores in a line."""

    def warnings(self, record: Mapping[str, Any]) -> Iterable[str]:
        """What in an epoch's record should worry the reader, a line each."""

    def rows(self, step: int) -> str:
        """Which rows of the training tables this update takes, in words; rows count from 1."""


def update(optimizer: AdamW, losses: Iterable[tuple[Tensor, Terms]], count: int, clip_norm: float) -> Terms:
    """One step on the mean of `count` losses; returns the means of their terms. Where several processes share
    a batch, losses and terms are already those of the whole batch, and the gradients are added up here. Where
    the loss or the norm of the gradient is not finite, there is no step, and one term, `skipped`."""
    found: dict[str, list[float]] = {}
    for loss, terms in losses:
        (loss / count).backward()
        for name, value in (terms | {"loss/all": loss.item()}).items():
            found.setdefault(name, []).append(value)
    means = {
        name: sum(values) if name.endswith("/skipped") else sum(values) / len(values)
        for name, values in found.items()
    }
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    finite = math.isfinite(means["loss/all"])
    if finite:
        distributed.sum_gradients(parameters)
        scale = clip_scale(parameters, clip_norm or math.inf)
        finite = scale > 0
    if finite:
        optimizer.step(scale=scale)
    optimizer.zero_grad(set_to_none=True)
    return means if finite else {"skipped": 1.0}


def fit(
    method: Method,
    optimizer: AdamW,
    rows_per_step: float,
    config: Config,
    states: States,
    progress: Progress,
) -> None:
    """Train from `progress` to the last epoch's end; the run's folder gets states, metrics and the best
    model. Stopped, with a state saved, where a signal asks for it."""
    assert config.steps_per_epoch is not None, "resolved before training starts"
    rate = rate_schedule(config, config.epochs * config.steps_per_epoch)
    meter = Meter(config.steps_per_epoch, config.epochs, rows_per_step)

    with Stop() as stop, states:
        while not distributed.largest(stop.number) and not is_over(progress, config):
            if len(progress.records) < progress.step // config.steps_per_epoch:  # an epoch awaits its scores
                alone = not distributed.several()  # else all must go through with it
                evaluate = partial(method.evaluate, progress.step)
                found = stop.unless_asked(evaluate) if alone else evaluate()
                if found is not None:
                    lr = config.lr * rate(progress.step - 1, progress.records)
                    end_epoch(method, progress, {"lr": lr, **found}, rows_per_step, config, states)
                    states.save(progress)
                continue
            step, started = progress.step, time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(step, progress.records)
            torch.manual_seed(random_seed(config.seed, "dropout", step) + distributed.rank())
            terms = update(optimizer, method.losses(step), config.accumulate, config.clip_norm)
            if "skipped" not in terms:
                method.after_update(step)
            progress.add(terms, time.perf_counter() - started)
            meter.update(progress)
            if progress.skipped_in_a_row:
                report_skipped(method.rows(step), progress, config.steps_per_epoch)
            if progress.step % config.steps_per_epoch and states.due(progress, config.save_every):
                states.save(progress)
        run = states.close(progress)
    meter.close()
    if asked := distributed.largest(stop.number):
        raise Stopped(asked, run)
    if run != Path(config.out or run):
        raise InputError(
            f"{config.out}: cannot be written; the trained model is in {run / 'best'}: predict with --resume "
            f"--out {run}"
        )


def report_skipped(rows: str, progress: Progress, steps_per_epoch: int) -> None:
    """Say that the last update was skipped; InputError where ten were in a row, or all of an epoch."""
    problem = f"the loss or its gradient is not finite at step {progress.step}, on {rows}"
    Meter.say(f"{problem}: update skipped")
    count = progress.skipped_in_a_row
    if count >= min(SKIPPED_AT_MOST, steps_per_epoch):
        raise InputError(
            f"{count} updates in a row were skipped: {problem}; the last good state and the best model are "
            "kept; start again with a lower --lr, or --clip-norm, and another --out"
        )


def end_epoch(
    method: Method,
    progress: Progress,
    found: dict[str, Any],
    rows_per_step: float,
    config: Config,
    states: States,
) -> None:
    """Put the epoch's record together, and keep the model if it is the best."""
    assert config.steps_per_epoch is not None
    score = found["dev"][config.choose_by]
    for part in ("dev", "dev_loss", "train", "teacher"):
        if not all(map(math.isfinite, numbers_in(found.get(part, {})))):
            raise InputError(f"{part} is no longer finite; lower --lr, or set --clip-norm")
    record: dict[str, Any] = {
        "epoch": progress.step // config.steps_per_epoch,
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "examples_per_second": round(config.steps_per_epoch * rows_per_step / progress.seconds, 2),
        **progress.end_epoch(),
        **found,
    }
    best = progress.best_score is None or score > progress.best_score
    if best:
        progress.best_score, progress.best_epoch = score, record["epoch"]
        states.keep_best()
    progress.records.append(record)
    line = f"epoch {record['epoch']}: loss {record['loss']['all']:.4f}, dev {method.describe(record)}"
    if best:
        line += ", best so far"
    if "skipped" in record:
        line += f"; {record['skipped']} updates skipped"
    Meter.say(line)
    for warning in method.warnings(record):
        Meter.say(f"warning: {warning}")


def numbers_in(values: Mapping[str, Any]) -> Iterator[float]:
    """The numbers of nested mappings."""
    for value in values.values():
        if isinstance(value, Mapping):
            yield from numbers_in(value)
        else:
            yield value


def is_over(progress: Progress, config: Config) -> bool:
    """Whether all epochs have passed, or `patience` of them without a better score (never for 0)."""
    epochs = len(progress.records)
    return epochs >= config.epochs or 0 < config.patience <= epochs - progress.best_epoch


def epoch_steps(rows: int, rows_per_step: float, config: Config) -> int:
    """Updates in an epoch: as set, or one pass over all rows but at most 2,000."""
    return config.steps_per_epoch or min(MAX_STEPS_PER_EPOCH, math.ceil(rows / rows_per_step))


def rate_schedule(config: Config, total_steps: int) -> Callable[[int, Sequence[Mapping[str, Any]]], float]:
    """The factor on the learning rate, as a function of the step and of the records of the epochs so far."""
    warmup = round(config.warmup * total_steps)

    def halved(records: Sequence[Mapping[str, Any]]) -> float:
        return halve_on_rise([record.get("objective", {}) for record in records])

    return {
        "constant": lambda step, records: constant_schedule(step, warmup),
        "linear": lambda step, records: linear_schedule(step, total_steps, warmup),
        "halve-on-rise": lambda step, records: constant_schedule(step, warmup) * halved(records),
    }[config.schedule]
