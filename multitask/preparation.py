"""From settings and tables to a training run that is ready to start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minbert.optim import AdamW, parameter_groups
from multitask import distributed, machine
from multitask.build import build_model, start_heads
from multitask.config import Config
from multitask.data import tasks
from multitask.data.tables import SPLITS, Splits, fingerprint
from multitask.data.tasks import Task
from multitask.finetune import Finetuning, plan_over
from multitask.model import MultitaskBert
from multitask.ranking import Ranking
from multitask.train import Method, TrainingRun, epoch_steps


@dataclass(frozen=True)
class Prepared:
    """A run that is ready, with what its folder and its reader must know of it."""

    training: TrainingRun
    model: MultitaskBert
    config: Config  # with steps_per_epoch filled in
    summary: str  # what will be sampled, in words
    data: str  # the fingerprint of all that it learns from and is scored on


def tasks_of(config: Config) -> dict[str, Task]:
    """Return the tasks that a run trains; for mnrl the first of single texts in classes."""
    task_file = config.start.task_file
    known = tasks.read_task_file(Path(task_file)) if task_file else tasks.BUILT_IN
    selected = tasks.select(config.selection.tasks, known)
    if config.option != "mnrl":
        return selected
    task = tasks.first_of_single_texts_in_classes(selected)
    return {task.name: task}


def prepare(
    config: Config,
    selected: Mapping[str, Task],
    rows: Splits,
    device: torch.device,
    taught: Mapping[str, Tensor] | None = None,
) -> Prepared:
    """Return what a run of any training option needs, on checked tables. `taught` are a teacher's logits
    (N, C) on the training rows."""
    if config.option == "mnrl":
        return _prepare_ranking(config, selected, rows, device)
    return _prepare_finetuning(config, selected, rows, device, taught)


def _prepare_finetuning(
    config: Config,
    selected: Mapping[str, Task],
    rows: Splits,
    device: torch.device,
    taught: Mapping[str, Tensor] | None,
) -> Prepared:
    model = _build(config, selected, device)
    model.encoder.requires_grad_(config.option != "pretrain")
    train, dev = (
        {name: model.tokenize_and_print_cuts(table) for name, table in rows[split].items()}
        for split in SPLITS[:2]
    )
    start_heads(model, train, config.start.init)
    plan = plan_over(train, config.batches, config.training)
    method = Finetuning(model, train, dev, plan, config.smart, config.bppo, config.distillation, taught)
    summary = plan.describe(list(selected))
    return _assemble(config, model, method, plan.steps_per_epoch, plan.rows_per_step, rows, summary)


def _prepare_ranking(
    config: Config, selected: Mapping[str, Task], rows: Splits, device: torch.device
) -> Prepared:
    (task,) = selected.values()
    model, training, mnrl = _build(config, {}, device), config.training, config.mnrl
    train, dev = (model.tokenize_and_print_cuts(rows[split][task.name]) for split in SPLITS[:2])
    rows_per_step = 2 * task.num_classes * mnrl.groups * training.accumulate
    method = Ranking(model, train, dev, mnrl, training.accumulate, training.seed)
    steps = epoch_steps(len(train), rows_per_step, training.steps_per_epoch)
    summary = f"{task.name}: {len(train):,} rows; {mnrl.groups} groups of sentences a batch"
    return _assemble(config, model, method, steps, rows_per_step, rows, summary)


def _build(config: Config, selected: Mapping[str, Task], device: torch.device) -> MultitaskBert:
    """Return the model that the run starts from, on its device."""
    dropout = config.encoder_dropout.encoder_dropout, config.head_dropout.head_dropout
    with distributed.first_on_machine():  # a checkpoint may have to be fetched
        model = build_model(config.start, selected, config.training.seed, *dropout)
    return machine.place(model, config.products, device)


def _assemble(
    config: Config,
    model: MultitaskBert,
    method: Method,
    steps_per_epoch: int,
    rows_per_step: float,
    rows: Splits,
    summary: str,
) -> Prepared:
    """Put the run together, with an optimizer over all of the model's weights."""
    training = config.training
    groups = parameter_groups(model, training.weight_decay)
    optimizer = AdamW(groups, lr=training.lr, compiled=config.products.compile)
    run = TrainingRun(method, optimizer, training, steps_per_epoch, rows_per_step, config.batches.choose_by)
    data = fingerprint([rows["train"], rows["dev"]])
    return Prepared(run, model, config.changed(steps_per_epoch=steps_per_epoch), summary, data)
