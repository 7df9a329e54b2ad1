"""What each `--option` does, from reading its tables to writing its files."""

from __future__ import annotations

import atexit
import json
import os
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from minbert.errors import InputError
from minbert.files import lock, write_text
from minbert.optim import AdamW, parameter_groups
from multitask import distributed, evaluate, machine, targets, tasks
from multitask.build import build_model, start_heads
from multitask.command_line import PIPELINE
from multitask.config import PATHS, TASKS_TRAINING, TRAINING, Config, read_toml
from multitask.data import SAMPLE, Examples, Table, fingerprint, read_split
from multitask.ensemble import average, members
from multitask.ensemble_model import (
    Panel,
    copy_members,
    distinct_runs,
    is_ensemble,
    open_model,
    relative_members,
    write_ensemble,
)
from multitask.figures import can_plot
from multitask.finetune import Finetuning, plan_over
from multitask.model import MultitaskBert, best_folder, read_definitions
from multitask.predict import predict
from multitask.predictor import Predictor
from multitask.ranking import Ranking
from multitask.report import write_report
from multitask.state import Progress, States
from multitask.store import key_of
from multitask.tasks import Task
from multitask.train import Method, epoch_steps, fit

RESULT = "result.json"  # written last: what came of a run, and by its being there, that the run is done
SPLITS = ("train", "dev", "test-student")
Splits = dict[str, dict[str, Table]]  # split -> task -> checked table
Logits = dict[str, dict[str, dict[str, Tensor]]]  # split -> task -> run -> (N, C)


@dataclass(frozen=True)
class Training:
    """All that a run has before its first update."""

    config: Config  # with its steps_per_epoch
    model: MultitaskBert
    method: Method
    rows_per_step: float  # on average
    plan: str  # what will be sampled, in words
    data: str  # the fingerprint of all that it learns from and is scored on


def run_training(config: Config) -> None:
    """pretrain and finetune: train, then predict dev and test with the best model."""
    name_the_sample(config)
    selected = selected_tasks(config)
    rows = read_splits(config.data, SPLITS, selected, config.skip_bad_rows)
    device, run = machine.set_up(config), claim_folder(config)
    training = prepare_finetuning(replace(config, out=str(run)), selected, rows, device)
    progress = train(training)
    predict_with_best(config, run, device, selected, rows, progress)


def run_distillation(config: Config) -> None:
    """distill: as `run_training`, with the outputs of a teacher beside the labels. They are kept in the run's
    folder, so that a run that goes on does not need the teacher."""
    device = machine.set_up(config)
    teacher = None if has_targets(config) else load_run(Path(config.run[0]), config, device)
    if teacher is not None:
        config = taught_by(teacher, config)
    name_the_sample(config)
    selected = selected_tasks(config)
    rows = read_splits(config.data, SPLITS, selected, config.skip_bad_rows)
    learned = {split: rows[split] for split in SPLITS[:2]}
    run = claim_folder(config)
    if teacher is not None:
        print(f"computing {config.run[0]}'s outputs on the training and dev rows", flush=True)
        outputs = targets.compute_targets(teacher, learned)
        distributed.from_writer(lambda: targets.write_targets(run, outputs))
    outputs = targets.read_targets(run, selected, learned)

    config = replace(config, out=str(run))
    training = prepare_finetuning(config, selected, rows, device, outputs["train"])
    progress = train(replace(training, data=key_of(training.data, targets.digest_of(outputs))))
    of_teacher = evaluate.scores(selected, outputs["dev"], rows["dev"])
    predict_with_best(config, run, device, selected, rows, progress, of_teacher)


def has_targets(config: Config) -> bool:
    """Whether a run goes on that has its teacher's outputs. InputError if they and the teacher are gone."""
    run = Path(config.out or "")
    if not config.resume or not (run / "config.toml").is_file():
        return False
    kept = (run / targets.FILE).is_file()
    if not kept and not Path(config.run[0]).exists():
        raise InputError(
            f"{run / targets.FILE}: is gone, and so is the teacher {config.run[0]} that could compute it "
            "again; bring back one of them"
        )
    return kept


def taught_by(teacher: Predictor, config: Config) -> Config:
    """The settings with the teacher's data and tasks where they name none. InputError if it does not have a
    task as it is defined here."""
    run, known = config.run[0], selected_tasks(config)
    names = config.tasks or tuple(name for name in known if name in teacher.tasks)
    for name in names or known:
        if teacher.tasks.get(name) != known[name]:
            raise InputError(
                f"{run}: does not have the task {name} as it is defined here; its tasks are "
                f"{', '.join(teacher.tasks)}: choose with --tasks, or name the --task-file of its training"
            )
    return replace(config, data=config.data or data_of(Path(run)), tasks=names)


def predict_with_best(
    config: Config,
    run: Path,
    device: torch.device,
    selected: Mapping[str, Task],
    rows: Splits,
    progress: Progress,
    teacher: Mapping[str, Any] | None = None,
) -> None:
    """Predict dev and test with a run's best model, print its dev scores, beside those of its teacher if it
    had one, and finish the run."""
    distributed.wait()  # until the best model is on the disk
    best = machine.prepared(MultitaskBert.load(run / "best"), config, device)
    scores = predict_all(run / "predictions", best, selected, rows)
    compared = {} if teacher is None else {"teacher": teacher}
    columns = ", student and teacher" if compared else ""
    print(f"best epoch {progress.best_epoch} of {len(progress.records)}, on dev{columns}:")
    print(evaluate.format_scores(selected, scores, *compared.values()))
    for name, task in selected.items():
        value, epoch = max(
            (record["dev"][name][task.metric], -record["epoch"]) for record in progress.records
        )
        print(f"  best {name} {task.metric} {value:.3f} in epoch {-epoch}")
    print(f"model {run / 'best'}, predictions {run / 'predictions'}, curves {run / 'metrics.jsonl'}")
    found = {"dev": scores, **compared, "best_epoch": progress.best_epoch}
    distributed.from_writer(lambda: finish(config, run, device, found))


def prepare_finetuning(
    config: Config,
    selected: Mapping[str, Task],
    rows: Splits,
    device: torch.device,
    taught: Mapping[str, Tensor] | None = None,
) -> Training:
    """The model and the tokenised tables of pretrain, finetune and distill; `taught` are a teacher's logits
    (N, C) on the training rows."""
    with distributed.first_on_machine():  # a checkpoint may have to be fetched
        model = machine.prepared(build_model(config, selected), config, device)
    train_data, dev_data = (encode(rows[split], model) for split in SPLITS[:2])
    start_heads(model, train_data, config)
    plan = plan_over(train_data, config)
    config = replace(config, steps_per_epoch=plan.steps_per_epoch)
    method = Finetuning(model, train_data, dev_data, config, taught)
    data = fingerprint([rows["train"], rows["dev"]])
    return Training(config, model, method, plan.rows_per_step, plan.describe(list(selected)), data)


def run_ranking(config: Config) -> None:
    """mnrl: an encoder in which sentences of one class lie together, from the first task of single texts in
    classes."""
    name_the_sample(config)
    selected = selected_tasks(config)
    rows = read_splits(config.data, SPLITS[:2], selected, config.skip_bad_rows)
    device, run = machine.set_up(config), claim_folder(config)
    progress = train(prepare_ranking(replace(config, out=str(run)), selected, rows, device))
    print(f"best epoch {progress.best_epoch} of {len(progress.records)}; encoder {run / 'best'}")
    found = {"dev": progress.best["dev"], "best_epoch": progress.best_epoch}
    distributed.from_writer(lambda: finish(config, run, device, found))


def prepare_ranking(
    config: Config, selected: Mapping[str, Task], rows: Splits, device: torch.device
) -> Training:
    """The encoder and the tokenised tables of mnrl."""
    (task,) = selected.values()
    with distributed.first_on_machine():
        model = machine.prepared(build_model(config, {}), config, device)
    train_data, dev_data = (encode(rows[split], model)[task.name] for split in SPLITS[:2])
    rows_per_step = 2 * task.num_classes * config.groups * config.accumulate
    config = replace(config, steps_per_epoch=epoch_steps(len(train_data), rows_per_step, config))
    method = Ranking(model, train_data, dev_data, config)
    plan = f"{task.name}: {len(train_data):,} rows; {config.groups} groups of sentences a batch"
    return Training(config, model, method, rows_per_step, plan, fingerprint([rows["train"], rows["dev"]]))


PREPARE = {**dict.fromkeys(TASKS_TRAINING, prepare_finetuning), "mnrl": prepare_ranking}


def make_optimizer(training: Training) -> AdamW:
    config = training.config
    groups = parameter_groups(training.model, config.weight_decay)
    return AdamW(groups, lr=config.lr, compiled=config.compile)


def train(training: Training) -> Progress:
    """From step 0 or the last saved state to the end."""
    config, method = training.config, training.method
    optimizer = make_optimizer(training)
    run = Path(config.out or "")
    states = States(run, method.parts, optimizer, config.settings)
    progress = start_or_resume(config, states, training.data)
    local = dict.fromkeys((*PATHS, "out", "threads", "device"))  # each machine's own affair
    distributed.check_same(config.settings | local | {"tables": progress.data, "saved step": progress.step})
    if distributed.is_writer():
        write_text(run / "config.toml", tomli_w.dumps(config.settings))
    print(training.plan)
    print(
        f"{config.epochs} epochs of {config.steps_per_epoch:,} updates on {training.model.device}, "
        f"writing {run}",
        flush=True,
    )
    fit(method, optimizer, training.rows_per_step, config, states, progress)
    return progress


def finish(config: Config, run: Path, device: torch.device, found: Mapping[str, Any]) -> None:
    """The run's report, where the libraries that draw are installed; then write what the run `found`, which
    says that it is done."""
    if config.report and not can_plot():
        print(f'no report: pip install "minbert[plots]", then --option report --run {run} draws it')
    elif config.report:
        try:
            print(f"report {write_report(run, config.data, device, config.skip_bad_rows)}")
        except InputError as error:
            print(f"no report: {error}")
    write_result(run, **found)


def name_the_sample(config: Config) -> None:
    if config.data is None:
        print("no --data given: training on the shipped sample, too small for its scores to mean anything")


def selected_tasks(config: Config) -> dict[str, Task]:
    """The tasks that a run trains; mnrl takes the first of single texts in classes."""
    known = tasks.read_task_file(Path(config.task_file)) if config.task_file else tasks.BUILT_IN
    selected = tasks.select(config.tasks, known)
    if config.option != "mnrl":
        return selected
    task = tasks.first_of_single_texts_in_classes(selected)
    return {task.name: task}


def run_evaluation(config: Config) -> None:
    """Score a finished run or an ensemble on the dev tables and write its dev and test predictions again."""
    run, device = Path(config.run[0]), machine.set_up(config)
    data = config.data or data_of(run)
    model = load_run(run, config, device)
    selected = tasks.select(config.tasks, model.tasks)
    rows = read_splits(data, SPLITS[1:], selected, config.skip_bad_rows)
    scores = predict_all(run / "predictions", model, selected, rows)
    print(f"{run} on the dev tables of {data or 'the shipped sample'}:")
    print(evaluate.format_scores(selected, scores))
    print(f"predictions {run / 'predictions'}")


def run_ensemble(config: Config) -> None:
    """Average the runs' predictions, for each task those of the runs that reach its threshold, and write the
    ensemble as a model that names its members or, with --copy, holds them."""
    config = replace(config, data=config.data or data_of(Path(config.run[0])))
    defined = [read_definitions(best_folder(run) / "tasks.toml")[1] for run in distinct_runs(config.run)]
    tasks.select(list(config.least_scores), dict(ChainMap(*defined)))  # a threshold of no task is a mistake
    device, out = machine.set_up(config), claim_folder(config)
    known, tables, logits = logits_of_runs(config, device)
    chosen = {name: choose_members(task, logits["dev"][name], tables, config) for name, task in known.items()}
    averaged = {
        split: {
            name: average(known[name].kind, [logits_of[run] for run in chosen[name]["members"]])
            for name, logits_of in logits[split].items()
        }
        for split in SPLITS[1:]
    }
    result = write_all_predictions(out / "predictions", known, tables, averaged)
    inside = {run for entry in chosen.values() for run in entry["members"]}
    needed = [run for run in distinct_runs(config.run) if run in inside]
    paths = (copy_members if config.copy else relative_members)(out, needed)
    write_ensemble(out, {name: panel_of(known[name], chosen[name], paths) for name in known})
    write_text(out / "config.toml", tomli_w.dumps(config.settings))
    write_result(out, dev=result, tasks=chosen)
    for name, entry in chosen.items():
        inside, scores, threshold = entry["members"], entry["scores"], entry["threshold"]
        if max(scores.values()) < threshold:
            print(f"warning: no run reaches {name}'s threshold {threshold:g}; using its best run instead")
        members = ", ".join(f"{run} ({scores[run]:.3f})" for run in inside)
        print(f"{name}: {len(inside)} of {len(scores)} runs: {members}")
    print(f"on the dev tables of {config.data or 'the shipped sample'}:")
    print(evaluate.format_scores(known, result))
    print(f"ensemble {out}, predictions {out / 'predictions'}")


def logits_of_runs(config: Config, device: torch.device) -> tuple[dict[str, Task], Splits, Logits]:
    """Return the tasks of all runs, their dev and test tables, and every run's logits on them."""
    known: dict[str, Task] = {}
    tables: Splits = {split: {} for split in SPLITS[1:]}
    logits: Logits = {split: {} for split in SPLITS[1:]}
    for run in distinct_runs(config.run):
        model = load_single(Path(run), config, device)
        selected = tasks.select(config.tasks, model.tasks)
        for name, task in selected.items():
            if known.setdefault(name, task) != task:
                raise InputError(
                    f"{run}: defines its task {name} otherwise than the runs before it; see --tasks"
                )
        tasks.check_outputs(known.values(), run)
        for split, rows in read_splits(config.data, SPLITS[1:], selected, config.skip_bad_rows).items():
            tables[split] |= rows
            for name, table in rows.items():
                logits[split].setdefault(name, {})[run] = model.logits_of_table(name, table)
    return known, tables, logits


def choose_members(
    task: Task, dev_logits: Mapping[str, Tensor], tables: Splits, config: Config
) -> dict[str, Any]:
    """Return what is recorded of one task: its threshold, every run's dev score, and the runs that reach
    it."""
    scores = {
        run: evaluate.scores({task.name: task}, {task.name: logits}, tables["dev"])["score"]
        for run, logits in dev_logits.items()
    }
    threshold = config.least_scores.get(task.name, 0.0)
    chosen = members(task.name, scores, threshold, config.or_best)
    return {"threshold": threshold, "scores": scores, "members": chosen}


def panel_of(task: Task, chosen: Mapping[str, Any], paths: Mapping[str, str]) -> Panel:
    """Return what `choose_members` found as an ensemble keeps it, with members of equal weight."""
    inside = tuple(paths[run] for run in chosen["members"])
    return Panel(task, chosen["threshold"], inside, (1.0,) * len(inside))


def run_report(config: Config) -> None:
    """Draw a run: report.html, self-contained, and the figures beside it."""
    run = Path(config.run[0])
    device = machine.set_up(config)
    tsne = (config.perplexity, config.iterations)
    named = tsne != (Config.perplexity, Config.iterations)
    if named and (is_ensemble(run) or read_definitions(best_folder(run) / "tasks.toml")[1]):
        raise InputError(
            f"--perplexity and --iterations are t-SNE's, which only a run of mnrl has, not {run}"
        )
    print(f"report {write_report(run, config.data or data_of(run), device, config.skip_bad_rows, *tsne)}")


def run_prediction(config: Config) -> None:
    """A stream of texts in, predictions out."""
    device = machine.set_up(config)
    model = load_run(Path(config.run[0]), config, device)
    task = tasks.select([config.task], model.tasks)[config.task]
    predict(model, task, config.input, config.output, config.skip_bad_rows)


JOBS: dict[str, Callable[[Config], None]] = {
    "pretrain": run_training,
    "mnrl": run_ranking,
    "finetune": run_training,
    "distill": run_distillation,
    "evaluate": run_evaluation,
    "ensemble": run_ensemble,
    "report": run_report,
    "predict": run_prediction,
}


def read_splits(
    data: str | None, splits: Sequence[str], selected: Mapping[str, Task], skip_bad_rows: bool
) -> Splits:
    """Every table's rows, by split and task. All are read and checked before anything takes time; only the
    test tables may be missing."""
    directory = SAMPLE if data is None else Path(data)
    if not directory.is_dir():
        raise InputError(f"--data: {directory} is not a folder")
    for task in selected.values():
        for split in splits:
            path = task.path(directory, split)
            if split != "test-student" and not path.is_file():
                raise InputError(f"{path}: no such file; add it, or leave task {task.name} out with --tasks")
    return {split: read_split(directory, split, selected, skip_bad_rows) for split in splits}


def encode(tables: Mapping[str, Table], model: MultitaskBert) -> dict[str, Examples]:
    """Tokenise every task's rows; print how many may have been cut."""
    return {name: model.examples(table) for name, table in tables.items()}


def claim_folder(config: Config) -> Path:
    """The folder that the writer claims, which every process has to see."""
    run = Path(distributed.from_writer(lambda: str(_claimed(config))))
    if not run.is_dir():
        raise InputError(f"{run}: is not to be seen here; name an --out in a folder that all machines share")
    return run


def _claimed(config: Config) -> Path:
    """Make the run's folder. One that holds a run is only gone on with, never written over; without --out it
    is the next free runs/OPTION-N."""
    run = make_folder(Path("runs") if config.out is None else Path(config.out))
    if config.out is None:
        return next_free(run, config.option)
    lock(run)
    if (run / PIPELINE).exists():
        raise InputError(f"{run}: holds the stages of a recipe; name another --out")
    if not config.resume and (run / "config.toml").exists():
        remedy = "go on with it (--resume), or " if config.option in TRAINING else ""
        raise InputError(f"{run}: holds a run already; {remedy}name another --out")
    return run


def make_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be made ({error.strerror}); name another --out") from None
    return folder


def next_free(folder: Path, name: str) -> Path:
    """Making the folder claims its number, whoever else is looking for one. A run that never begins gives it
    back."""
    for number in count(1):
        run = folder / f"{name}-{number}"
        with suppress(FileExistsError):
            run.mkdir()
            break
    lock(run)
    atexit.register(_give_back, run)
    return run


def _give_back(run: Path) -> None:
    with suppress(OSError):
        if os.listdir(run) == [".lock"]:
            (run / ".lock").unlink()
            run.rmdir()


def start_or_resume(config: Config, states: States, data: str) -> Progress:
    """Step 0, or with --resume the last saved state, put into the method's parts and the optimizer."""
    fresh = Progress(data=data, config=config.fingerprint)
    progress = states.load(fresh) if config.resume else None
    if progress is None:
        if config.resume:
            print(f"{states.run}: nothing saved yet, starting at step 0")
        return fresh
    if len(progress.records) > config.epochs:
        raise InputError(
            f"{states.run}: has {len(progress.records)} epochs behind it, more than --epochs {config.epochs}"
        )
    print(f"{states.run}: going on after step {progress.step}")
    (states.run / RESULT).unlink(missing_ok=True)
    return progress


def write_all_predictions(
    directory: Path,
    selected: Mapping[str, Task],
    tables: Splits,
    logits: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Write the submission files for dev, and for test where there are tables; return the dev scores."""
    for split, short in zip(SPLITS[1:], ("dev", "test"), strict=True):
        for name, table in tables[split].items() if distributed.is_writer() else ():
            evaluate.write_predictions(directory, selected[name], short, table.ids, logits[split][name])
    return evaluate.scores(selected, logits["dev"], tables["dev"])


def predict_all(
    directory: Path, model: Predictor, selected: Mapping[str, Task], tables: Splits
) -> dict[str, Any]:
    """Predict the dev and test tables, write the submission files, and return the dev scores."""
    logits = {
        split: {name: model.logits_of_table(name, table) for name, table in tables[split].items()}
        for split in SPLITS[1:]
    }
    return write_all_predictions(directory, selected, tables, logits)


def write_result(run: Path, **found: Any) -> None:
    write_text(run / RESULT, json.dumps(found, indent=2) + "\n")


def data_of(run: Path) -> str | None:
    """Return the data folder that a run, the one around its best/, or an ensemble was made with; None for the
    shipped sample."""
    for folder in (run, run.parent):
        if (folder / "config.toml").is_file():
            return read_toml(folder / "config.toml").get("data")
    if not is_ensemble(run):
        best_folder(run)  # says what is wrong with a folder that is no run at all
    raise InputError(f"{run}: no config.toml tells what data it was trained on; name a folder with --data")


def load_run(run: Path, config: Config, device: torch.device) -> Predictor:
    """Load a run's best model, or an ensemble, onto the device."""
    return open_model(run, lambda best: load_single(best, config, device))


def load_single(run: Path, config: Config, device: torch.device) -> MultitaskBert:
    """Load a run's best model onto the device. Raises InputError if it has no heads, as after mnrl."""
    model = machine.prepared(MultitaskBert.load(run), config, device)
    if not model.tasks:
        raise InputError(f"{run}: an encoder of mnrl, without heads; fine-tune from it with --init")
    return model
