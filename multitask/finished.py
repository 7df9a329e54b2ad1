"""A run that is done: what its folder holds, what may come next, and what --resume makes of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from minbert.errors import InputError
from minbert.files import is_real_folder
from multitask.advice import command, python
from multitask.config import Config, changed_flags
from multitask.data.texts import is_plain_text
from multitask.layout import BEST, CONFIG, METRICS, PREDICTIONS, REPORT, RESULT, STATE
from multitask.messages import warn
from multitask.model import MultitaskBert
from multitask.preparation import tasks_of
from multitask.progress import Progress
from multitask.recipes import read_settings
from multitask.runs import claim_folder, result_of
from multitask.state import remove_states


def finished_run(config: Config) -> Path | None:
    """Return the run that --resume names, claimed, if it is done and leaves nothing to train; else None.

    A run whose model is damaged is not done, as long as it has a state to restore it from. Raises InputError
    if other --epochs are wanted and there is no state.
    """
    if not config.saving.resume or config.output.out is None:
        return None
    run = Path(config.output.out)
    if not all((run / name).is_file() for name in (CONFIG, RESULT)):
        return None
    claim_folder(config)
    has_state = is_real_folder(run / STATE)
    epochs = read_settings(run / CONFIG).get("epochs")
    if config.training.epochs != epochs:
        if has_state:
            return None
        raise InputError(
            f"{run}: is finished and has no state/ to resume, so its {epochs} epochs cannot become "
            f"{config.training.epochs}; start from its model with --init {run} and another --out, and "
            "use --keep-state next time"
        )
    try:
        MultitaskBert.load(run / BEST)
    except InputError:
        if has_state:
            return None
        raise
    return run


def print_done(run: Path) -> None:
    """Print in a line that a run is finished, and with which scores."""
    dev = result_of(run).get("dev")
    if not isinstance(dev, dict):
        raise InputError(f"{run / RESULT}: not the result of a run; restore the file")
    print(f"{run}: is finished, nothing to resume; dev {', '.join(_in_words(dev))}")


def _in_words(scores: Mapping[str, Any]) -> Iterator[str]:
    for name, value in scores.items():
        if isinstance(value, dict):
            yield from (f"{name} {one}" for one in _in_words(value))
        elif isinstance(value, int | float):
            yield f"{name} {value:.3f}"


def drop_state(config: Config, run: Path) -> None:
    """Remove the state of a run that is done, unless it is to be kept."""
    if config.saving.keep_state:
        return
    try:
        remove_states(run / STATE)
    except OSError as error:
        warn(f"{run / STATE}: cannot be removed ({error}); it is no longer needed")


def print_end(config: Config, run: Path, selected: Collection[str], progress: Progress) -> None:
    """Print what a finished run's folder holds, and the commands that may come next."""
    size = sum(path.stat().st_size for path in (run / BEST).iterdir() if path.is_file())
    held = [f"{name}/" for name in (PREDICTIONS, STATE) if (run / name).is_dir()]
    held += [name for name in (METRICS, REPORT) if (run / name).is_file()]
    epochs = f"epoch {progress.best_epoch} of {len(progress.records)}"
    print(f"{run} holds {BEST}/, the model of {epochs} ({size / 1e6:.1f} MB), and {', '.join(held)}. Next:")
    for line in next_commands(config, run, selected):
        print(f"  {line}")


def next_commands(config: Config, run: Path, selected: Collection[str]) -> Iterator[str]:
    """Yield what one may do with a run that has trained these tasks, or none, as mnrl and mlm do."""
    if selected:
        task = ("--task", next(iter(selected)))
        yield command("predict", "--run", run, *task)
        yield command("serve", "--run", run)
        yield command("export", "--run", run, *task, "--to", "hf", "--out", f"{run}-hf")
    else:
        data = config.tables.data
        if data is not None and is_plain_text(Path(data), tasks_of(config).values()):
            data = "DIR"  # with tables
        tables = ["--data", data] if data else []
        same = changed_flags(config.start, "task_file", "pooling", "max_length")
        skip = ["--skip-bad-rows"] if config.reading.skip_bad_rows else []
        yield command("finetune", "--init", run, *tables, *same, *skip)
        yield command("report", "--run", run)
        if config.option == "mlm":
            yield python("minbert.mlm", run / BEST, "A [MASK] film.")
        else:
            yield command("export", "--run", run, "--to", "hf", "--out", f"{run}-hf")
