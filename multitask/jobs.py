"""What each `--option` does, from reading its tables to writing its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import tomli_w
import torch

from minbert.errors import InputError
from minbert.tokenizer import BertTokenizer
from multitask import evaluate, state, tasks
from multitask import train as training
from multitask.config import Config, read_toml
from multitask.data import SAMPLE, Examples, load_examples
from multitask.model import MultitaskBert
from multitask.predict import predict as predict_stream
from multitask.tasks import Task

Splits = dict[str, Examples]  # task -> its rows of one split


def train(config: Config, resume: bool) -> None:
    """pretrain and finetune: train, then predict dev and test with the best model."""
    announce(config)
    selected = tasks.select(config.tasks, tasks.read_task_file(Path(config.task_file)) if config.task_file else tasks.BUILT_IN)
    directory = data_directory(config.data)
    check_files(directory, selected, ("train", "dev"))
    run = open_run(config, resume)
    set_up_machine(config)
    model = training.build_model(config, selected).to(device(config))
    train_data = load_split(directory, "train", model, selected, config)
    dev_data = load_split(directory, "dev", model, selected, config)
    if config.init is None:
        training.start_at_the_mean(model, train_data)
    optimizer = training.make_optimizer(model, config)
    hashes = {name: train_data[name].sha256 + dev_data[name].sha256 for name in selected}
    progress = resumed_progress(run, model, optimizer, hashes) if resume else state.Progress(data=hashes)
    steps = training.epoch_steps(train_data, config)
    rows = ", ".join(f"{name} {len(examples):,}" for name, examples in train_data.items())
    print(f"training rows: {rows}; {config.epochs} epochs of {steps:,} updates, on {device(config)}; writing {run}")

    progress = training.fit(model, optimizer, train_data, dev_data, config, run, progress)

    best = MultitaskBert.load(run / "best", device(config))
    test_data = load_split(directory, "test-student", best, selected, config)
    scores = write_all_predictions(run / "predictions", best, dev_data, test_data)
    print(f"best epoch {progress.best_epoch} of {config.epochs}, on dev:\n{evaluate.table(best, scores)}")
    print(f"model {run / 'best'}, predictions {run / 'predictions'}, curves {run / 'metrics.jsonl'}")


def evaluate_run(config: Config, resume: bool) -> None:
    """Score a finished run's best model on the dev tables and write its dev and test predictions again."""
    run = Path(required(config.run, "--run"))
    saved = run / "config.toml"
    data = config.data or (read_toml(saved).get("data") if saved.is_file() else None)
    set_up_machine(config)
    model = MultitaskBert.load(training.best_folder(str(run)), device(config))
    selected = tasks.select(config.tasks, model.tasks)
    directory = data_directory(data)
    check_files(directory, selected, ("dev",))
    dev_data = load_split(directory, "dev", model, selected, config)
    test_data = load_split(directory, "test-student", model, selected, config)
    scores = write_all_predictions(run / "predictions", model, dev_data, test_data)
    print(f"{run} on the dev tables of {directory}:\n{evaluate.table(model, scores)}\npredictions {run / 'predictions'}")


def predict(config: Config, resume: bool) -> None:
    """A stream of texts in, predictions out."""
    task = required(config.task, "--task")
    set_up_machine(config)
    model = MultitaskBert.load(training.best_folder(required(config.run, "--run")), device(config))
    predict_stream(model, next(iter(tasks.select([task], model.tasks))), config.input, config.output, config.skip_bad_rows)


JOBS: dict[str, Callable[[Config, bool], None]] = {
    "pretrain": train,
    "finetune": train,
    "evaluate": evaluate_run,
    "predict": predict,
}


def required(value: str | None, flag: str) -> str:
    if value is None:
        raise InputError(f"this option needs {flag} (see --help)")
    return value


def announce(config: Config) -> None:
    if config.data is None:
        print("no --data given: training on the small sample that ships with the project; its scores compare with nothing")


def data_directory(data: str | None) -> Path:
    directory = SAMPLE if data is None else Path(data)
    if not directory.is_dir():
        raise InputError(f"--data: {directory} is not a folder")
    return directory


def check_files(directory: Path, selected: Mapping[str, Task], splits: tuple[str, ...]) -> None:
    """Every table that is needed is there, before anything takes time."""
    for task in selected.values():
        for split in splits:
            path = task.path(directory, split)
            if not path.is_file():
                raise InputError(f"{path}: no such file; add it, or leave task {task.name} out with --tasks")


def load_split(directory: Path, split: str, model: MultitaskBert, selected: Mapping[str, Task], config: Config) -> Splits:
    """One split's rows of every task that has the table; only train and dev tables carry labels."""
    paths = {name: task.path(directory, split) for name, task in selected.items()}
    labelled = split != "test-student"
    return {
        name: load_examples(path, selected[name], model.tokenizer, labelled, config.skip_bad_rows, model.max_length)
        for name, path in paths.items()
        if path.is_file()
    }


def open_run(config: Config, resume: bool) -> Path:
    """The run's folder, with its config.toml. A folder that holds a run is only gone on with, never written over."""
    run = Path(config.out) if config.out else next_free(Path("runs"), config.option)
    state.recover_folder(run / "best")
    if not resume and (run / "config.toml").exists():
        raise InputError(f"{run}: holds a run already; go on with it (--resume), or name another --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
        state.write_file(run / "config.toml", tomli_w.dumps(config.settings | {"out": str(run)}))
    except OSError as error:
        raise InputError(f"{run}: cannot be written ({error.strerror}); name another --out") from None
    return run


def next_free(folder: Path, option: str) -> Path:
    number = 1
    while (folder / f"{option}-{number}").exists():
        number += 1
    return folder / f"{option}-{number}"


def resumed_progress(run: Path, model: MultitaskBert, optimizer: torch.optim.Optimizer, hashes: dict[str, str]) -> state.Progress:
    """The last saved state, put into model and optimizer; step 0 where nothing has been saved."""
    progress = state.load(run, model, optimizer)
    if progress is None:
        print(f"{run}: nothing saved yet, starting at step 0")
        return state.Progress(data=hashes)
    changed = [name for name in hashes if progress.data.get(name) != hashes[name]]
    if changed:
        raise InputError(f"{run}: the tables of {', '.join(changed)} are not those the run was started with")
    print(f"{run}: going on after step {progress.step}")
    training.write_metrics(run, progress)
    return progress


def write_all_predictions(directory: Path, model: MultitaskBert, dev: Splits, test: Splits) -> dict:
    """Submission files for dev, and for test where there are tables; returns the dev scores."""
    outputs = evaluate.all_logits(model, dev)
    for split, data, logits in (("dev", dev, outputs), ("test", test, evaluate.all_logits(model, test))):
        for name, examples in data.items():
            evaluate.write_predictions(directory, model, split, name, examples.ids, logits[name])
    return evaluate.scores(model, outputs, dev)


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
        raise InputError(f"--device {config.device}: not to be had here ({str(error).splitlines()[0]})") from None
    return chosen
