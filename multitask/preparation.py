"""From settings and tables to a training run that is ready to start."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from minbert import hub
from minbert.bert import BertModel
from minbert.errors import InputError
from minbert.memory import check_memory
from minbert.mlm import BertForMaskedLM, Masking
from minbert.optim import AdamW, parameter_groups
from minbert.tokenizer import BertTokenizer
from multitask import distributed, machine
from multitask.advice import command
from multitask.config import TRAINING, Config, Mlm, Rows, Start
from multitask.data import tasks
from multitask.data.cache import key_of
from multitask.data.tables import SPLITS, Splits, Table, fingerprint, read_splits
from multitask.data.tasks import Task
from multitask.data.texts import is_plain_text, read_texts
from multitask.data.tokens import Examples
from multitask.finetune import Finetuning, plan_over
from multitask.language import LanguageModel, MaskedLanguageModelling, log_frequencies
from multitask.methods.sampling import random_seed
from multitask.model import MultitaskBert
from multitask.ranking import Ranking
from multitask.saved import best_folder, load_heads, start_folder
from multitask.train import Method, TrainingRun, epoch_steps

Pretrained = TypeVar("Pretrained", BertModel, BertForMaskedLM)


def tasks_of(config: Config) -> dict[str, Task]:
    """Return the tasks that a run trains; for mnrl the first of single texts in classes."""
    task_file = config.start.task_file
    known = tasks.read_task_file(Path(task_file)) if task_file else tasks.BUILT_IN
    selected = tasks.select(config.selection.tasks, known)
    if config.option != "mnrl":
        return selected
    task = tasks.first_of_single_texts_in_classes(selected)
    return {task.name: task}


def read_rows(config: Config, splits: Sequence[str], selected: Mapping[str, Task]) -> Splits:
    """Return the checked tables of these splits; for mlm the plain text of the data folder, if it has no
    tables."""
    data, skip_bad_rows = config.tables.data, config.reading.skip_bad_rows
    if config.option == "mlm" and data is not None and is_plain_text(Path(data), selected.values()):
        return read_texts(Path(data), config.mlm.held_out, skip_bad_rows)
    if config.mlm.held_out != Mlm().held_out:
        raise InputError("--held-out is for plain text, .txt files in --data; tables have dev rows")
    if config.option in TRAINING and data is not None and config.start.task_file is None:
        check_is_course(Path(data), selected)
    return read_splits(data, splits, selected, skip_bad_rows)


def check_is_course(directory: Path, selected: Mapping[str, Task]) -> None:
    """Raise InputError, with what to do, if a folder has no table of the built-in tasks at all."""
    paths = [task.path(directory, split) for task in selected.values() for split in SPLITS]
    if not directory.is_dir() or any(path.exists() for path in paths):
        return
    described = directory / "tasks.toml"
    remedy = f"name its task file: --task-file {shlex.quote(str(described))}"
    if not described.is_file():
        remedy = f"describe yours first: {command('inspect', '--data', directory, '--out', 'tasks.toml')}"
    raise InputError(f"{directory}: has none of the course's tables, such as {paths[0].name}; {remedy}")


def with_commit(config: Config) -> Config:
    """Return the settings with the commit of weights from the hub, so that a resumed run starts from the same
    ones, although their branch may have moved."""
    start = config.start
    commit = distributed.from_writer(lambda: hub.commit_of(start.weights, start.revision))
    return config if commit is None else config.changed(revision=commit)


def prepare(
    config: Config,
    selected: Mapping[str, Task],
    rows: Splits,
    device: torch.device,
    taught: Mapping[str, Tensor] | None = None,
) -> TrainingRun:
    """Return a run of any training option, ready to start, on checked tables. `taught` are a teacher's logits
    (N, C) on the training rows."""
    if config.option == "mnrl":
        return _prepare_ranking(config, selected, rows, device)
    if config.option == "mlm":
        return _prepare_language(config, rows, device)
    return _prepare_finetuning(config, selected, rows, device, taught)


def _prepare_finetuning(
    config: Config,
    selected: Mapping[str, Task],
    rows: Splits,
    device: torch.device,
    taught: Mapping[str, Tensor] | None,
) -> TrainingRun:
    model = _build(config, selected, device)
    model.encoder.requires_grad_(config.option != "pretrain")
    train, dev = (
        {name: model.tokenize_and_print_cuts(table, long) for name, table in rows[split].items()}
        for split, long in zip(SPLITS, (model.long_in_training, model.long), strict=False)
    )
    check_batches_fit(model, train, config.batches)
    start_heads(model, train, config.start.init)
    plan = plan_over(train, config.batches, config.training)
    method = Finetuning(model, train, dev, plan, config.smart, config.bppo, config.distillation, taught)
    summary = plan.describe(list(selected))
    return _assemble(config, method, plan.steps_per_epoch, plan.rows_per_step, summary, rows)


def check_batches_fit(model: MultitaskBert, train: Mapping[str, Examples], batches: Rows) -> None:
    """Raise InputError if a batch with the longest row of a task would not fit into a processor's memory."""
    if model.device.type != "cpu":
        return
    layers = 1 if model.frozen else model.encoder.config.num_hidden_layers  # whose attention is kept
    for examples in train.values():
        longest = int(examples.tokens.lengths.max())
        rows = batches.batch_size if batches.max_tokens is None else max(1, batches.max_tokens // longest)
        check_memory(model.encoder.config, math.ceil(rows / distributed.size()), longest, layers)


def _prepare_ranking(
    config: Config, selected: Mapping[str, Task], rows: Splits, device: torch.device
) -> TrainingRun:
    (task,) = selected.values()
    model, training, mnrl = _build(config, {}, device), config.training, config.mnrl
    if model.long != model.long_in_training:
        raise InputError(f"--option mnrl reads one window of a text; use --long {model.long_in_training}")
    train, dev = (model.tokenize_and_print_cuts(rows[split][task.name], model.long) for split in SPLITS[:2])
    rows_per_step = 2 * task.classes * mnrl.groups * training.accumulate
    method = Ranking(model, train, dev, mnrl, training.accumulate, training.seed)
    steps = epoch_steps(len(train), rows_per_step, training.steps_per_epoch)
    summary = f"{task.name}: {len(train):,} rows; {mnrl.groups} groups of sentences a batch"
    return _assemble(config, method, steps, rows_per_step, summary, rows)


def _prepare_language(config: Config, rows: Splits, device: torch.device) -> TrainingRun:
    with distributed.first_on_machine():
        model = build_language_model(config.start, config.encoder.dropout)
    model = machine.place(model, config.products, device)

    def texts(table: Table) -> Examples:
        return model.tokenize_and_print_cuts(table, model.long).in_windows(model.max_length)

    train, dev = ({name: texts(table) for name, table in rows[split].items()} for split in SPLITS[:2])
    check_batches_fit(model, train, config.batches)
    masking = Masking(model.tokenizer, config.mlm.mask_rate, config.mlm.whole_words)
    start_bias(model, train, masking)
    plan = plan_over(train, config.batches, config.training)
    method = MaskedLanguageModelling(model, train, dev, plan, masking)
    summary = plan.describe(list(train))
    return _assemble(config, method, plan.steps_per_epoch, plan.rows_per_step, summary, rows)


def start_bias(model: LanguageModel, train: Mapping[str, Examples], masking: Masking) -> None:
    """Start a fresh head's bias, which is all zeros, from the tokens' frequencies, and say so: a small
    learning rate would take long to move it there."""
    bias = model.language_head.bias
    if not bias.any():
        print("the checkpoint has no head for masked tokens: a fresh one starts from its word embeddings")
        tokens = (examples.tokens for examples in train.values())
        never = masking.special.nonzero().squeeze(1).numpy()
        bias.data.copy_(log_frequencies(tokens, never, len(bias)))


def _build(config: Config, selected: Mapping[str, Task], device: torch.device) -> MultitaskBert:
    """Return the model that the run starts from, on its device."""
    dropout = config.encoder.dropout, config.batches.head_dropout
    with distributed.first_on_machine():  # a checkpoint may have to be fetched
        model = build_model(config.start, selected, config.training.seed, *dropout)
    return machine.place(model, config.products, device)


def _assemble(
    config: Config, method: Method, steps_per_epoch: int, rows_per_step: float, summary: str, rows: Splits
) -> TrainingRun:
    """Return the run with an optimizer over all of the model's weights."""
    training = config.training
    groups = parameter_groups(method.model, training.weight_decay)
    on_cpu = method.model.device.type == "cpu"  # on a GPU it would start as many operations, and slower ones
    optimizer = AdamW(groups, lr=training.lr, compiled=config.products.compile and on_cpu)
    facts = {"tables": fingerprint([rows["train"], rows["dev"]]), **facts_of(method.model)}
    choose_by = config.batches.choose_by
    return TrainingRun(method, optimizer, training, steps_per_epoch, rows_per_step, choose_by, summary, facts)


def facts_of(model: MultitaskBert) -> dict[str, str]:
    """Return fingerprints of what decides a model's outputs, beside its weights."""
    return {
        "tokenizer": model.tokenizer.fingerprint(),
        "encoder's config.json": key_of(model.encoder.config),
        "task definitions": key_of(model.tasks),
    }


def build_model(
    start: Start,
    tasks: Mapping[str, Task],
    seed: int,
    encoder_dropout: float = 0.0,
    head_dropout: float = 0.0,
) -> MultitaskBert:
    """Return a model with a pretrained encoder, or --init's encoder, and randomly initialised heads."""
    encoder, tokenizer = load_start(BertModel, start, encoder_dropout)
    torch.manual_seed(random_seed(seed, "heads"))
    return MultitaskBert(encoder, tokenizer, tasks, start.pooling, head_dropout, start.max_length, start.long)


def build_language_model(start: Start, dropout: float = 0.0) -> LanguageModel:
    """Return the pretrained encoder, or --init's, with its head for masked tokens, or a fresh one."""
    model, tokenizer = load_start(BertForMaskedLM, start, dropout)
    return LanguageModel(
        model, tokenizer, pooling=start.pooling, max_length=start.max_length, long=start.long
    )


def load_start(kind: type[Pretrained], start: Start, dropout: float) -> tuple[Pretrained, BertTokenizer]:
    """Load what a run starts from, and its tokenizer."""
    source = start_folder(start.weights) if start.init is None else best_folder(start.init)
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = kind.from_pretrained(source, start.allow_pickle, start.revision, **dropouts)
    return model, BertTokenizer.from_pretrained(source, start.revision)


def start_heads(model: MultitaskBert, train: Mapping[str, Examples], init: str | None) -> None:
    """Set the heads' initial weights: a regression's bias to its labels' mean, and the heads of --init.

    A small learning rate would take long to move a bias to the mean. A head that --init has trained starts
    from its trained weights. Raises InputError if --init's pooling or one of its tasks differs.
    """
    for name, task in model.tasks.items():
        if task.kind.first_bias is not None:
            bias = cast(Tensor, model.heads[name].bias)
            torch.nn.init.constant_(bias, task.kind.first_bias(train[name].labels) / task.unit)
    if init is not None:
        settings, tasks, heads = load_heads(best_folder(init))
        if settings["pooling"] != model.pooling:
            raise InputError(f"--init {init}: its --pooling is {settings['pooling']}; use the same")
        for name in model.tasks.keys() & tasks.keys():
            ours, theirs = model.tasks[name], tasks[name]
            if (ours.kind.name, ours.outputs) != (theirs.kind.name, theirs.outputs):
                raise InputError(
                    f"--init {init}: its task {name} is {theirs.kind.name} with {theirs.outputs} outputs"
                )
            model.heads[name].load_state_dict({key: heads[f"{name}.{key}"] for key in ("weight", "bias")})
