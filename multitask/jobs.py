"""What each `--option` does, from reading its tables to writing its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch.optim import Optimizer

from minbert.errors import InputError
from minbert.files import recover_folder, write_text
from minbert.optim import AdamW, parameter_groups
from multitask import evaluate, state, tasks
from multitask.build import best_folder, build_model, start_heads
from multitask.config import Config, read_toml
from multitask.data import SAMPLE, Examples, Row, fingerprint, make_examples, read_split
from multitask.model import MultitaskBert
from multitask.predict import predict
from multitask.tasks import Task
from multitask.train import epoch_steps, fit, write_metrics

SPLITS = ("train", "dev", "test-student")


def run_training(config: Config) -> None:
    """pretrain and finetune: train, then predict dev and test with the best model."""
    if config.data is None:
        print("no --data given: training on the shipped sample, too small for its scores to mean anything")
    known = tasks.read_task_file(Path(config.task_file)) if config.task_file else tasks.BUILT_IN
    selected = tasks.select(config.tasks, known)
    device = set_up_machine(config)
    rows = read_splits(config.data, SPLITS, selected, config.skip_bad_rows)
    run = claim_folder(config)

    model = build_model(config, selected).to(device)
    train_data, dev_data, test_data = (encode(rows[split], model) for split in SPLITS)
    config = replace(config, out=str(run), steps_per_epoch=epoch_steps(train_data, config))
    start_heads(model, train_data, config)
    optimizer = AdamW(parameter_groups(model, config.weight_decay), lr=config.lr)
    progress = start_or_resume(config, model, optimizer, fingerprint([rows["train"], rows["dev"]]))
    write_text(run / "config.toml", tomli_w.dumps(config.settings))
    print("training rows:", ", ".join(f"{name} {len(examples):,}" for name, examples in train_data.items()))
    print(f"{config.epochs} epochs of {config.steps_per_epoch:,} updates on {device}, writing {run}")

    fit(model, optimizer, train_data, dev_data, config, run, progress)

    best = MultitaskBert.load(run / "best", device)
    scores = write_all_predictions(run / "predictions", best, dev_data, test_data)
    print(f"best epoch {progress.best_epoch} of {config.epochs}, on dev:\n{evaluate.table(selected, scores)}")
    print(f"model {run / 'best'}, predictions {run / 'predictions'}, curves {run / 'metrics.jsonl'}")


def run_evaluation(config: Config) -> None:
    """Score a finished run's best model on the dev tables and write its dev and test predictions again."""
    run, saved = Path(config.run), Path(config.run) / "config.toml"
    data = config.data or (read_toml(saved).get("data") if saved.is_file() else None)
    device = set_up_machine(config)
    model = MultitaskBert.load(best_folder(config.run), device)
    selected = tasks.select(config.tasks, model.tasks)
    rows = read_splits(data, SPLITS[1:], selected, config.skip_bad_rows)
    dev_data, test_data = (encode(rows[split], model) for split in SPLITS[1:])
    scores = write_all_predictions(run / "predictions", model, dev_data, test_data)
    print(f"{run} on the dev tables of {data or 'the shipped sample'}:\n{evaluate.table(selected, scores)}")
    print(f"predictions {run / 'predictions'}")


def run_prediction(config: Config) -> None:
    """A stream of texts in, predictions out."""
    device = set_up_machine(config)
    model = MultitaskBert.load(best_folder(config.run), device)
    task = tasks.select([config.task], model.tasks)[config.task]
    predict(model, task, config.input, config.output, config.skip_bad_rows)


JOBS: dict[str, Callable[[Config], None]] = {
    "pretrain": run_training,
    "finetune": run_training,
    "evaluate": run_evaluation,
    "predict": run_prediction,
}


def read_splits(
    data: str | None, splits: Sequence[str], selected: Mapping[str, Task], skip_bad_rows: bool
) -> dict[str, dict[str, list[Row]]]:
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


def encode(rows: Mapping[str, Sequence[Row]], model: MultitaskBert) -> dict[str, Examples]:
    """Every task's rows, tokenised; says how many fill the longest input, and may have been cut."""
    examples = {name: make_examples(rows[name], model.tokenizer, model.max_length) for name in rows}
    for name in examples:
        full = sum(len(ids) == model.max_length for ids, _ in examples[name].encoded)
        if full:
            print(f"{name}: {full} rows fill all {model.max_length} tokens; what is longer is cut")
    return examples


def claim_folder(config: Config) -> Path:
    """Make the run's folder. One that holds a run is only gone on with, never written over; without --out it
    is the next free runs/OPTION-N."""
    try:
        if config.out is None:
            return next_free(Path("runs"), config.option)
        run = Path(config.out)
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be made ({error.strerror}); name another --out") from None
    if not config.resume and (run / "config.toml").exists():
        raise InputError(f"{run}: holds a run already; go on with it (--resume), or name another --out")
    recover_folder(run / "best")
    return run


def next_free(folder: Path, option: str) -> Path:
    """Making the folder claims its number, whoever else is looking for one."""
    folder.mkdir(exist_ok=True)
    for number in count(1):
        run = folder / f"{option}-{number}"
        with suppress(FileExistsError):
            run.mkdir()
            break
    return run


def start_or_resume(config: Config, model: MultitaskBert, optimizer: Optimizer, data: str) -> state.Progress:
    """Step 0, or with --resume the last saved state, put into model and optimizer."""
    run = Path(config.out or "")
    progress = state.load(run, model, optimizer) if config.resume else None
    if progress is None:
        if config.resume:
            print(f"{run}: nothing saved yet, starting at step 0")
        return state.Progress(data=data)
    if progress.data != data:
        raise InputError(f"{run}: the tables are not those the run was started with; bring those back")
    if len(progress.records) > config.epochs:
        raise InputError(
            f"{run}: has {len(progress.records)} epochs behind it, more than --epochs {config.epochs}"
        )
    print(f"{run}: going on after step {progress.step}")
    write_metrics(run, progress)
    return progress


def write_all_predictions(
    directory: Path, model: MultitaskBert, dev: Mapping[str, Examples], test: Mapping[str, Examples]
) -> dict[str, Any]:
    """Submission files for dev, and for test where there are tables; returns the dev scores."""
    dev_logits = evaluate.all_logits(model, dev)
    for split, data, logits in (("dev", dev, dev_logits), ("test", test, evaluate.all_logits(model, test))):
        for name, examples in data.items():
            evaluate.write_predictions(directory, model, split, name, examples.ids, logits[name])
    return evaluate.scores(model, dev_logits, dev)


def set_up_machine(config: Config) -> torch.device:
    """Set the threads; the device by name, where auto is the GPU if torch sees one."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("only cpu, cuda and mps compute")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {config.device}: not to be had here ({str(error).splitlines()[0]})"
        ) from None
    return device
