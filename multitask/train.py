"""Training: the update, and the loop of updates, evaluations and saved states around it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from minbert.bert import BertModel
from minbert.errors import InputError
from minbert.optim import AdamW, constant_schedule, linear_schedule, parameter_groups
from minbert.tokenizer import BertTokenizer
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
        loss = LOSSES[task.kind](model(task.name, inputs), labels) / len(batches)
        loss.backward()
        total += loss.item()
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
            group["lr"] = config.rate * rate(step)
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
    losses = {name: total / updates for name, (total, updates) in progress.losses.items()}
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
        state.write_folder(run / "best", model.save)
    progress.records.append(record)
    progress.losses, progress.seconds = {}, 0.0
    write_metrics(run, progress)
    Meter.say(
        f"epoch {record['epoch']}: loss {losses['all']:.4f}, dev {summary(model, scores)}" + ", best" * best
    )


def summary(model: MultitaskBert, scores: Mapping[str, Any]) -> str:
    values = [f"{name} {task.metric} {scores[name][task.metric]:.3f}" for name, task in model.tasks.items()]
    return ", ".join([*values, f"score {scores['score']:.3f}"])


def write_metrics(run: Path, progress: Progress) -> None:
    state.write_file(run / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in progress.records))


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
    model.encoder.train(model.encoder.pooler.weight.requires_grad)


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


def best_folder(run: str) -> Path:
    """The model of a run: its best/, or the folder itself where it is one."""
    folder = Path(run) / "best"
    state.recover_folder(folder)
    for candidate in (folder, Path(run)):
        if (candidate / "tasks.toml").is_file():
            return candidate
    raise InputError(f"{run}: holds no finished model (best/tasks.toml); has the run completed an epoch?")


def build_model(config: Config, tasks: Mapping[str, Task]) -> MultitaskBert:
    """The model that a run starts from: a pretrained encoder with fresh heads, or --init's encoder and
    heads."""
    source = config.weights if config.init is None else best_folder(config.init)
    encoder = BertModel.from_pretrained(
        source,
        config.allow_pickle,
        hidden_dropout_prob=config.encoder_dropout,
        attention_probs_dropout_prob=config.encoder_dropout,
    )
    tokenizer = BertTokenizer.from_pretrained(source, config.allow_pickle)
    torch.manual_seed(random_seed(config.seed, "heads"))
    model = MultitaskBert(encoder, tokenizer, tasks, config.pooling, config.head_dropout, config.max_length)
    encoder.requires_grad_(config.option == "finetune")
    return model


def start_heads(model: MultitaskBert, train: Mapping[str, Examples], config: Config) -> None:
    """A regression head's bias starts at its labels' mean, so that small rates need not walk there; a head
    that --init has trained starts as it ended."""
    for name, task in model.tasks.items():
        if task.kind == "regression":
            bias = cast(Tensor, model.heads[name].bias)
            torch.nn.init.constant_(bias, float(np.mean(train[name].labels)))
    if config.init is None:
        return
    source = MultitaskBert.load(best_folder(config.init))
    if source.pooling != model.pooling:
        raise InputError(
            f"--init {config.init}: was trained with --pooling {source.pooling}; start from it with the same"
        )
    for name in model.heads.keys() & source.heads.keys():
        if model.tasks[name].outputs != source.tasks[name].outputs:
            raise InputError(f"--init {config.init}: its task {name} has another number of outputs")
        model.heads[name].load_state_dict(source.heads[name].state_dict())


def make_optimizer(model: MultitaskBert, config: Config) -> AdamW:
    return AdamW(parameter_groups(model, config.weight_decay), lr=config.rate)
