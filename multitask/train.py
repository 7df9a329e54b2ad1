"""The update, and the loop of updates, evaluations and saved states around it, whatever the method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minbert.errors import InputError, counted
from minbert.optim import AdamW, clip_scale, constant_schedule, linear_schedule
from multitask import distributed
from multitask.config import LONGEST_EPOCH, Training
from multitask.data.tokens import Examples
from multitask.messages import say
from multitask.meter import Meter
from multitask.methods.sampling import random_seed
from multitask.methods.schedules import halve_on_rise
from multitask.model import MultitaskBert
from multitask.progress import Progress
from multitask.state import States
from multitask.stopping import Stop, Stopped

# Parts of a loss by name, such as loss/sentiment; `Progress.end_epoch` sums them up for metrics.jsonl. Under
# objective/TASK is the whole loss, which halve-on-rise follows.
Terms = dict[str, float]
SKIPPED_AT_MOST = 10  # updates in a row
SCORED = ("dev", "dev_loss", "train", "teacher")  # the parts of a record that must be finite


class Method(Protocol):
    """What the loop asks of a way to train: `finetune.py`, `ranking.py` and `language.py` have one each."""

    @property
    def model(self) -> MultitaskBert:
        """What is trained, or whose encoder is."""

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """What a saved state holds: the model, and what else learns."""

    @property
    def evaluated(self) -> Sequence[Examples]:
        """The examples that `evaluate` passes through the encoder."""

    def losses(self, step: int) -> Iterable[tuple[Tensor, Terms]]:
        """Yield the loss and its terms on this process's rows of each batch of an update, in training mode.
        Both are weighted, so that their sums over the processes are those of the whole batch."""

    def after_update(self, step: int) -> None:
        """Do what follows the optimizer's step."""

    def evaluate(self, step: int) -> dict[str, Any]:
        """Return parts of the epoch's record, after `step` updates: `dev`, the scores, one of which picks the
        best model, and whatever else is measured."""

    def describe(self, record: Mapping[str, Any]) -> str:
        """Return an epoch's scores in a line."""

    def warnings(self, record: Mapping[str, Any]) -> Iterable[str]:
        """Yield what in an epoch's record should worry the reader, a line each."""

    def rows(self, step: int) -> str:
        """Return in words which rows of the training tables this update takes, counted from 1."""


@dataclass(frozen=True)
class TrainingRun:
    """A training run that is ready to start: everything is resolved."""

    method: Method
    optimizer: AdamW
    settings: Training
    steps_per_epoch: int
    rows_per_step: float  # on average
    choose_by: str  # the dev score that picks the best epoch
    summary: str  # what will be sampled, in words
    facts: Mapping[str, str]  # fingerprints of all that it learns from and is scored on

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * self.steps_per_epoch


def update(optimizer: AdamW, losses: Iterable[tuple[Tensor, Terms]], count: int, clip_norm: float) -> Terms:
    """Take one step on the mean of `count` losses, and return the means of their terms.

    If several processes share a batch, terms and gradients are added up here, before any decision. What was
    skipped in any batch or process counts once. If the loss or the norm of the gradient is not finite, there
    is no step, and one term, `skipped`.
    """
    found: dict[str, list[float]] = {}
    for loss, terms in losses:  # each is computed here, and its graph freed before the next
        (loss / count).backward()
        for name, value in (terms | {"loss/all": loss.item()}).items():
            found.setdefault(name, []).append(value)
    means = distributed.add_up({name: sum(values) / len(values) for name, values in found.items()})
    means |= {name: 1.0 for name, value in means.items() if name.endswith("/skipped") and value}
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


def fit(run: TrainingRun, states: States, progress: Progress, save_every: int | None = None) -> Path:
    """Train from `progress` to the end of the last epoch, and return the folder that has states, metrics and
    the best model: that of `states`, unless its disk failed. Raises Stopped, with a state saved, if a signal
    asks for it."""
    rate = rate_schedule(run.settings, run.total_steps)
    meter = Meter(run.steps_per_epoch, run.settings.epochs, run.rows_per_step)
    with Stop() as stop, states:
        while not distributed.largest(stop.number) and not is_over(progress, run.settings):
            if len(progress.records) < progress.step // run.steps_per_epoch:  # an epoch awaits its scores
                evaluate = partial(run.method.evaluate, progress.step)
                # A signal may cut the evaluation off; several processes must all go through with it.
                found = evaluate() if distributed.several() else stop.unless_asked(evaluate)
                if found is not None:
                    lr = run.settings.lr * rate(progress.step - 1, progress.records)
                    record = end_epoch(run, progress, {"lr": lr, **found}, states)
                    states.save(progress)
                    announce(run.method, progress, record)
                continue
            started = time.perf_counter()
            for group in run.optimizer.param_groups:
                group["lr"] = run.settings.lr * rate(progress.step, progress.records)
            terms = train_step(run, progress.step)
            progress.add(terms, time.perf_counter() - started)
            meter.update(progress)
            if progress.skipped_in_a_row:
                report_skipped(run.method.rows(progress.step - 1), progress, run.steps_per_epoch)
            if progress.step % run.steps_per_epoch and states.due(progress, save_every):
                states.save(progress)
        folder = states.finish_or_rescue(progress)
    meter.close()
    if asked := distributed.largest(stop.number):
        raise Stopped(asked, folder)
    return folder


def train_step(run: TrainingRun, step: int) -> Terms:
    """Take the update of this step, with its own random numbers, and return its terms."""
    torch.manual_seed(random_seed(run.settings.seed, "dropout", step) + distributed.rank())
    settings = run.settings
    terms = update(run.optimizer, run.method.losses(step), settings.accumulate, settings.clip_norm)
    if "skipped" not in terms:
        run.method.after_update(step)
    return terms


def report_skipped(rows: str, progress: Progress, steps_per_epoch: int) -> None:
    """Print that the last update was skipped. Raises InputError if ten in a row were, or all of an epoch."""
    problem = f"the loss or its gradient is not finite at step {progress.step}, on {rows}"
    say(f"{problem}: update skipped")
    count = progress.skipped_in_a_row
    if count >= min(SKIPPED_AT_MOST, steps_per_epoch):
        raise InputError(
            f"{count} updates in a row were skipped: {problem}; the last good state and the best model are "
            "kept; start again with a lower --lr, or --clip-norm, and another --out"
        )


def end_epoch(run: TrainingRun, progress: Progress, found: dict[str, Any], states: States) -> dict[str, Any]:
    """Put the epoch's record together, keep the model if it is the best, and return the record."""
    for part in SCORED:
        if not all(map(math.isfinite, numbers_in(found.get(part, {})))):
            raise InputError(f"{part} is no longer finite; lower --lr, or set --clip-norm")
    record: dict[str, Any] = {
        "epoch": progress.step // run.steps_per_epoch,
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "examples_per_second": round(run.steps_per_epoch * run.rows_per_step / progress.seconds, 2),
        **progress.end_epoch(),
        **found,
    }
    score = record["dev"][run.choose_by]
    if not progress.best_epoch or score > progress.best_score:
        progress.best_score, progress.best_epoch = score, record["epoch"]
        states.keep_best()
    progress.records.append(record)
    return record


def announce(method: Method, progress: Progress, record: Mapping[str, Any]) -> None:
    """Print the scores of the epoch that has just ended, and what in its record should worry the reader."""
    line = f"epoch {record['epoch']}: loss {record['loss']['all']:.4f}, dev {method.describe(record)}"
    if record["epoch"] == progress.best_epoch:
        line += ", best so far"
    if "skipped" in record:
        line += f"; {counted(record['skipped'], 'update')} skipped"
    say(line)
    for warning in method.warnings(record):
        say(f"warning: {warning}")


def numbers_in(values: Mapping[str, Any]) -> Iterator[float]:
    """Yield the numbers in nested mappings."""
    for value in values.values():
        if isinstance(value, Mapping):
            yield from numbers_in(value)
        else:
            yield value


def is_over(progress: Progress, settings: Training) -> bool:
    """Whether all epochs have passed, or `patience` of them without a better score (never for 0)."""
    epochs = len(progress.records)
    return epochs >= settings.epochs or 0 < settings.patience <= epochs - progress.best_epoch


def epoch_steps(rows: int, rows_per_step: float, given: int | None) -> int:
    """Return the updates in an epoch: as given, or one pass over all rows but at most 2,000."""
    return given or min(LONGEST_EPOCH, math.ceil(rows / rows_per_step))


def rate_schedule(
    settings: Training, total_steps: int
) -> Callable[[int, Sequence[Mapping[str, Any]]], float]:
    """Return the factor on the learning rate, a function of the step and of the epochs' records so far."""
    warmup = round(settings.warmup * total_steps)

    def halved(records: Sequence[Mapping[str, Any]]) -> float:
        return halve_on_rise([record.get("objective", {}) for record in records])

    return {
        "constant": lambda step, records: constant_schedule(step, warmup),
        "linear": lambda step, records: linear_schedule(step, total_steps, warmup),
        "halve-on-rise": lambda step, records: constant_schedule(step, warmup) * halved(records),
    }[settings.schedule]
