"""Training: the update, and the loop of updates, evaluations and saved states around it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from minbert.errors import InputError
from minbert.files import write_folder, write_text
from minbert.optim import constant_schedule, linear_schedule
from multitask import evaluate, state
from multitask.config import MAX_STEPS_PER_EPOCH, Config
from multitask.data import Examples
from multitask.losses import LOSSES
from multitask.model import MultitaskBert
from multitask.progress import Meter
from multitask.sampling import random_seed, schedule
from multitask.state import Progress
from multitask.tasks import Task


def update(
    model: MultitaskBert,
    optimizer: Optimizer,
    task: Task,
    batches: Iterable[tuple[Mapping[str, Tensor], Tensor]],
    clip_norm: float,
) -> float:
    """One step on the mean loss over `batches` of equal size, (inputs, labels) each; returns that loss."""
    batches = list(batches)
    total = 0.0
    for inputs, labels in batches:
        loss = LOSSES[task.kind](model(task.name, inputs), labels) / task.unit**2 / len(batches)
        loss.backward()
        total += loss.item()
    if not math.isfinite(total):
        raise InputError(f"{task.name}: the loss became {total}; lower --lr, or set --clip-norm")
    if clip_norm > 0:
        clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def fit(
    model: MultitaskBert,
    optimizer: Optimizer,
    train: Mapping[str, Examples],
    dev: Mapping[str, Examples],
    config: Config,
    run: Path,
    progress: Progress,
) -> None:
    """Train from `progress.step` to the last epoch's end; `run` gets states, metrics and the best model."""
    names = list(train)
    steps_per_epoch = epoch_steps(train, config)
    total_steps = config.epochs * steps_per_epoch
    rate = rate_schedule(config, total_steps)
    rows_per_step = config.batch_size * config.accumulate
    meter = Meter(steps_per_epoch, config.epochs, rows_per_step)
    sizes = [len(train[name]) for name in names]

    for step, index, rows in schedule(sizes, rows_per_step, total_steps, config.seed, progress.step):
        started = time.perf_counter()
        task = model.tasks[names[index]]
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate(step)
        set_training_mode(model)
        torch.manual_seed(random_seed(config.seed, "dropout", step))
        batches = [
            collate(model, train[task.name], rows[start : start + config.batch_size])
            for start in range(0, len(rows), config.batch_size)
        ]
        loss = update(model, optimizer, task, batches, config.clip_norm)

        progress.add(task.name, loss, time.perf_counter() - started)
        meter.update(progress)
        epoch_ends = progress.step % steps_per_epoch == 0
        if epoch_ends:
            end_epoch(model, dev, progress, steps_per_epoch, rows_per_step, run)
        if epoch_ends or progress.step % config.save_every == 0:
            state.save(run, progress, model, optimizer)
    meter.close()


def end_epoch(
    model: MultitaskBert,
    dev: Mapping[str, Examples],
    progress: Progress,
    steps: int,
    rows_per_step: int,
    run: Path,
) -> None:
    """Score the dev tables, add the epoch's line to metrics.jsonl, and keep the model if it is the best."""
    scores = evaluate.scores(model, evaluate.all_logits(model, dev), dev)
    losses = {name: total / updates for name, (total, updates) in sorted(progress.losses.items())}
    losses["all"] = sum(total for total, _ in progress.losses.values()) / steps
    record: dict[str, Any] = {
        "epoch": progress.step // steps,
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "examples_per_second": round(steps * rows_per_step / progress.seconds, 2),
        "loss": losses,
        "dev": scores,
    }
    best = progress.best_score is None or scores["score"] > progress.best_score
    if best:
        progress.best_score, progress.best_epoch = scores["score"], record["epoch"]
        write_folder(run / "best", model.save)
    progress.records.append(record)
    progress.losses, progress.seconds = {}, 0.0
    write_metrics(run, progress)
    line = f"epoch {record['epoch']}: loss {losses['all']:.4f}, dev {evaluate.summary(model.tasks, scores)}"
    Meter.say(line + ", best" * best)


def write_metrics(run: Path, progress: Progress) -> None:
    lines = (json.dumps(record, allow_nan=False) + "\n" for record in progress.records)
    write_text(run / "metrics.jsonl", "".join(lines))


def collate(
    model: MultitaskBert, examples: Examples, rows: Iterable[int]
) -> tuple[dict[str, Tensor], Tensor]:
    """These rows as one padded batch and its labels, on the model's device."""
    rows = list(rows)
    inputs = model.tokenizer.pad([examples.encoded[row] for row in rows])
    labels = torch.as_tensor(examples.labels[rows], dtype=torch.float32)
    return evaluate.to_device(inputs, model.device), labels.to(model.device)


def set_training_mode(model: MultitaskBert) -> None:
    """Dropout on, but for a frozen encoder, whose features stay what they are."""
    model.train()
    model.encoder.train(not model.frozen)


def epoch_steps(train: Mapping[str, Examples], config: Config) -> int:
    """Updates in an epoch: as set, or one pass over all rows of all tasks but at most 2,000."""
    rows = sum(map(len, train.values()))
    one_pass = math.ceil(rows / (config.batch_size * config.accumulate))
    return config.steps_per_epoch or min(MAX_STEPS_PER_EPOCH, one_pass)


def rate_schedule(config: Config, total_steps: int) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the step."""
    warmup = round(config.warmup * total_steps)
    if config.schedule == "constant":
        return partial(constant_schedule, warmup_steps=warmup)
    return partial(linear_schedule, total_steps=total_steps, warmup_steps=warmup)
