"""What each `--option` does, from reading its tables to writing its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
import torch

from minbert.errors import InputError
from multitask import evaluate, state, tasks
from multitask import train as training
from multitask.config import Config, read_toml
from multitask.data import SAMPLE, Examples, Row, fingerprint, make_examples, read_split
from multitask.model import MultitaskBert
from multitask.predict import predict as predict_stream
from multitask.tasks import Task

SPLITS = ("train", "dev", "test-student")


def train(config: Config) -> None:
    """pretrain and finetune: train, then predict dev and test with the best model."""
    if config.data is None:
        print("no --data given: training on the shipped sample, too small for its scores to mean anything")
    known = tasks.read_task_file(Path(config.task_file)) if config.task_file else tasks.BUILT_IN
    selected = tasks.select(config.tasks, known)
    run = run_folder(config)
    rows = read_splits(config.data, SPLITS, selected, config)
    set_up_machine(config)

    model = training.build_model(config, selected).to(device(config))
    train_data, dev_data, test_data = (encode(rows[split], model) for split in SPLITS)
    training.start_heads(model, train_data, config)
    optimizer = training.make_optimizer(model, config)
    progress = start_or_resume(
        run, model, optimizer, fingerprint([rows["train"], rows["dev"]]), config.resume
    )
    write_config(run, config)
    sizes = ", ".join(f"{name} {len(examples):,}" for name, examples in train_data.items())
    steps = training.epoch_steps(train_data, config)
    print(f"training rows: {sizes}")
    print(f"{config.epochs} epochs of {steps:,} updates on {model.device}, writing {run}")

    training.fit(model, optimizer, train_data, dev_data, config, run, progress)

    best = MultitaskBert.load(run / "best", device(config))
    scores = write_all_predictions(run / "predictions", best, dev_data, test_data)
    print(f"best epoch {progress.best_epoch} of {config.epochs}, on dev:\n{evaluate.table(best, scores)}")
    print(f"model {run / 'best'}, predictions {run / 'predictions'}, curves {run / 'metrics.jsonl'}")


def evaluate_run(config: Config) -> None:
    """Score a finished run's best model on the dev tables and write its dev and test predictions again."""
    run = Path(config.run)
    saved = run / "config.toml"
    data = config.data or (read_toml(saved).get("data") if saved.is_file() else None)
    set_up_machine(config)
    model = MultitaskBert.load(training.best_folder(str(run)), device(config))
    rows = read_splits(data, SPLITS[1:], tasks.select(config.tasks, model.tasks), config)
    dev_data, test_data = (encode(rows[split], model) for split in SPLITS[1:])
    scores = write_all_predictions(run / "predictions", model, dev_data, test_data)
    print(f"{run} on the dev tables of {data or 'the shipped sample'}:\n{evaluate.table(model, scores)}")
    print(f"predictions {run / 'predictions'}")


def predict(config: Config) -> None:
    """A stream of texts in, predictions out."""
    set_up_machine(config)
    model = MultitaskBert.load(training.best_folder(config.run), device(config))
    task = tasks.select([config.task], model.tasks)[config.task]
    predict_stream(model, task, config.input, config.output, config.skip_bad_rows)


JOBS: dict[str, Callable[[Config], None]] = {
    "pretrain": train,
    "finetune": train,
    "evaluate": evaluate_run,
    "predict": predict,
}


def read_splits(
    data: str | None, splits: Sequence[str], selected: Mapping[str, Task], config: Config
) -> dict[str, dict[str, list[Row]]]:
    """Every table's rows, by split and task. All are read and checked before anything takes time; only the
    test tables may be missing."""
    directory = SAMPLE if data is None else Path(data)
    if not directory.is_dir():
        raise InputError(f"--data: {directory} is not a folder")
    rows = {split: read_split(directory, split, selected, config.skip_bad_rows) for split in splits}
    for split in set(splits) - {"test-student"}:
        for name in selected.keys() - rows[split].keys():
            path = selected[name].path(directory, split)
            raise InputError(f"{path}: no such file; add it, or leave task {name} out with --tasks")
    return rows


def encode(rows: Mapping[str, Sequence[Row]], model: MultitaskBert) -> dict[str, Examples]:
    return {name: make_examples(rows[name], model.tokenizer, model.max_length) for name in rows}


def run_folder(config: Config) -> Path:
    """Where the run writes. A folder that holds a run is only gone on with, never written over."""
    run = Path(config.out) if config.out else next_free(Path("runs"), config.option)
    state.recover_folder(run / "best")
    if not config.resume and (run / "config.toml").exists():
        raise InputError(f"{run}: holds a run already; go on with it (--resume), or name another --out")
    return run


def write_config(run: Path, config: Config) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
        state.write_file(run / "config.toml", tomli_w.dumps(config.settings | {"out": str(run)}))
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({error.strerror}); name another --out") from None


def next_free(folder: Path, option: str) -> Path:
    number = 1
    while (folder / f"{option}-{number}").exists():
        number += 1
    return folder / f"{option}-{number}"


def start_or_resume(
    run: Path, model: MultitaskBert, optimizer: torch.optim.Optimizer, data: str, resume: bool
) -> state.Progress:
    """Step 0, or with `resume` the last saved state, put into model and optimizer."""
    progress = state.load(run, model, optimizer) if resume else None
    if progress is None:
        if resume:
            print(f"{run}: nothing saved yet, starting at step 0")
        return state.Progress(data=data)
    if progress.data != data:
        raise InputError(f"{run}: the tables are not those the run was started with; bring those back")
    print(f"{run}: going on after step {progress.step}")
    training.write_metrics(run, progress)
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


def set_up_machine(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def device(config: Config) -> torch.device:
    """The device by name; auto is the GPU where torch sees one."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(config.device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {config.device}: not to be had here ({str(error).splitlines()[0]})"
        ) from None
    return chosen
