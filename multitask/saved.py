"""A run's model on disk: its folder, and what that holds beside the encoder and the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError
from torch import Tensor

from minbert.bert import POOLINGS
from minbert.checkpoint import FLOATS, contents
from minbert.errors import InputError, short_line
from minbert.fields import check_table, field, fields_of
from minbert.files import write_text
from minbert.hub import CHECKPOINTS
from minbert.reading import load_toml
from multitask.config import LONG
from multitask.data.calibration import Calibration
from multitask.data.tasks import Task, check_outputs, task_from_toml
from multitask.data.tokens import HEAD
from multitask.layout import BEST, CALIBRATION, ENSEMBLE
from multitask.replacement import previous

MODEL_FILES = (
    *("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json"),
    *("heads.safetensors", "tasks.toml"),
)


def best_folder(run: str | Path) -> Path:
    """Return the folder of a run's model: its best/, or `run` itself if that holds a saved model. Raises
    InputError if there is none, or several as in an ensemble or a recipe's stages."""
    run = Path(run)
    if not run.exists():
        raise InputError(f"{run}: no such folder")
    best = run / BEST
    for candidate in (best, previous(best), run):
        if (candidate / "tasks.toml").is_file():
            return candidate
    if (run / ENSEMBLE).is_file():
        raise InputError(f"{run}: is an ensemble, where one model is needed; name one of its members")
    finished = [*run.glob(f"*/{BEST}/tasks.toml"), *run.glob(f"*/{ENSEMBLE}")]
    if runs := sorted(path.relative_to(run).parts[0] for path in finished):
        names = ", ".join(runs)
        raise InputError(f"{run}: holds the runs {names}; name one of them, such as {run / runs[-1]}")
    raise InputError(
        f"{run}: holds no finished model (tasks.toml, here or in best/); has the run completed an epoch?"
    )


def start_folder(source: str) -> str | Path:
    """Return the best/ of a run, or else the source as it is. A checkpoint's name comes before a folder."""
    best = Path(source, BEST)
    return best if source not in CHECKPOINTS and (best / "config.json").is_file() else source


@dataclass(frozen=True)
class Saved:
    """What tasks.toml holds beside the tasks."""

    pooling: str = field(choices=POOLINGS)
    head_dropout: float = field(below=1)
    max_length: int = field(low=4, most=2**20)
    long: str = field(HEAD, choices=LONG)


def read_definitions(path: Path) -> tuple[dict[str, Any], dict[str, Task]]:
    """Read the settings and the tasks in a saved model's tasks.toml. Raises InputError if they are not
    valid."""
    values = load_toml(path)
    tables = values.pop("tasks", None)
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(f"{path}: not a saved model's (it lacks sections [tasks.NAME]); name a run")
    required = [name for name in fields_of(Saved) if name != "long"]  # which older models lack
    settings = check_table(values, fields_of(Saved), str(path), required)
    tasks = {name: task_from_toml(name, table, path) for name, table in tables.items()}
    check_outputs(tasks.values(), str(path))
    return settings, tasks


def write_calibrations(directory: Path, calibrations: Mapping[str, Calibration]) -> None:
    """Write beside a saved model what was fitted on dev for it, if anything was."""
    if calibrations:
        tables = {name: asdict(found) for name, found in calibrations.items()}
        write_text(directory / CALIBRATION, tomli_w.dumps(tables))


def read_calibrations(directory: Path, tasks: Mapping[str, Task]) -> dict[str, Calibration]:
    """Read what `write_calibrations` wrote, if it wrote anything. Raises InputError if it does not fit the
    tasks."""
    path = directory / CALIBRATION
    tables = load_toml(path) if path.is_file() else {}
    return {name: calibration_from_toml(tasks.get(name), table, path) for name, table in tables.items()}


def calibration_from_toml(task: Task | None, table: Any, path: Path) -> Calibration:
    """Return what was fitted on dev for a task, from a section of a TOML file. Raises InputError if the task
    is not one for which something is."""
    if task is None or not task.is_fitted_on_dev or not isinstance(table, dict):
        raise InputError(f"{path}: does not fit the tasks beside it; remove it, or restore it")
    return Calibration(**check_table(table, fields_of(Calibration), f"{path}: [{task.name}]"))


def load_heads(directory: Path) -> tuple[dict[str, Any], dict[str, Task], dict[str, Tensor]]:
    """Read what a saved model holds beside its encoder: its settings, its tasks, and its heads' tensors."""
    settings, tasks = read_definitions(directory / "tasks.toml")
    path = directory / "heads.safetensors"
    try:
        stored = contents(path)
        if not all(tensor.dtype in FLOATS.values() for tensor in stored.values()):
            raise ValueError("holds something else than floats")
        for name, task in tasks.items():  # before a model of their sizes is made
            if f"{name}.bias" not in stored or stored[f"{name}.bias"].shape != (task.outputs,):
                raise ValueError(f"its head for {name} is not the one of tasks.toml")
        heads = {name: tensor.read() for name, tensor in stored.items()}
        if not all(tensor.isfinite().all() for tensor in heads.values()):
            raise ValueError("holds values that are not finite")
        return settings, tasks, heads
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: not a saved model's ({short_line(error)})") from None
