"""An ensemble as a model: for each task, the average of the runs that are its members.

Its folder holds `ensemble.toml`, with a section for each task:

    [sentiment]
    threshold = 0.53              # the dev score that the members had to reach
    members = ["../a", "../b"]    # folders of runs or saved models, relative to this one
    weights = [1.0, 1.0]          # their relative weights in the average; equal if left out

    [sentiment.calibration]       # what was fitted on the average's dev outputs, if the task asks for it
    temperature = 1.31
    threshold = 0.5

    [sentiment.task]              # the task's definition, the same in all members
    kind = "classification"
    ...
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from minbert.errors import InputError, shown
from minbert.fields import check_table, field, fields_of
from minbert.files import write_text
from minbert.reading import load_toml
from multitask.data.calibration import UNCHANGED, Calibration
from multitask.data.tables import Table
from multitask.data.tasks import Task, check_outputs, task_from_toml, task_to_toml
from multitask.inference import EVALUATION_BATCH
from multitask.layout import CALIBRATION, COPIES, ENSEMBLE
from multitask.methods.ensemble import average
from multitask.model import MultitaskBert
from multitask.predictor import Predictor, Texts
from multitask.replacement import write_folder
from multitask.saved import MODEL_FILES, best_folder, calibration_from_toml, read_definitions

MOST_MEMBERS = 1000  # for one task
LONGEST_PATH = 1000  # characters in a member's path

LoadModel = Callable[[Path], MultitaskBert]


@dataclass(frozen=True)
class Panel:
    """Who predicts one task."""

    task: Task
    threshold: float = field(low=-1e9)  # the dev score that the members had to reach
    members: tuple[str, ...] = field()  # paths relative to the ensemble's folder
    weights: tuple[float, ...] = field(low=1e-6, most=1e6)
    calibration: Calibration = UNCHANGED


class Ensemble(Predictor):
    """The ensemble that `write_ensemble` wrote into a folder. Raises InputError if a member is gone, is
    itself an ensemble, or defines a task differently.

    `load_model` loads each member once, when it is first needed, even if it predicts several tasks. Members
    may differ in tokenizer, length, pooling and size; each tokenises the texts in its own way.
    """

    def __init__(self, folder: Path, load_model: LoadModel):
        self.panels = read_ensemble(folder / ENSEMBLE)
        self.tasks = {name: panel.task for name, panel in self.panels.items()}
        self.calibrations = {name: panel.calibration for name, panel in self.panels.items()}
        self.places = {member: place_of(folder, member) for member in _members(self.panels)}
        for name, panel in self.panels.items():
            if len({os.path.realpath(self.places[member]) for member in panel.members}) < len(panel.members):
                raise InputError(f"{folder / ENSEMBLE}: {name}: lists one model twice; remove one of them")
        definitions = {
            member: read_definitions(place / "tasks.toml")[1] for member, place in self.places.items()
        }
        for name, panel in self.panels.items():
            for member in panel.members:
                if definitions[member].get(name) != panel.task:
                    raise InputError(
                        f"{folder / ENSEMBLE}: member {shown(member)} does not define task {name} as the "
                        "ensemble does; make the ensemble again"
                    )
        self._model = cache(lambda member: load_model(self.places[member]))

    def logits(self, task: str, texts: Texts, batch_size: int = EVALUATION_BATCH) -> Tensor:
        return self.mean(task, [model.logits(task, texts, batch_size) for model in self.models(task)])

    def are_cut(self, task: str, texts: Texts) -> list[bool]:
        by_member = [model.are_cut(task, texts) for model in self.models(task)]
        return [any(of_text) for of_text in zip(*by_member, strict=True)]

    def logits_of_table(self, task: str, table: Table) -> Tensor:
        return self.mean(task, self.logits_of_members(task, table))

    def logits_of_members(self, task: str, table: Table) -> list[Tensor]:
        """Return the logits (N, C) of each of the task's members, for the N rows of a table."""
        return [model.logits_of_table(task, table) for model in self.models(task)]

    def models(self, task: str) -> Iterator[MultitaskBert]:
        """Yield the task's members, each loaded when it is its turn."""
        self.task_of(task)
        return map(self._model, self.panels[task].members)

    def mean(self, task: str, logits: Sequence[Tensor]) -> Tensor:
        """Return the ensemble's logits (N, C), given those of the task's members."""
        panel = self.panels[task]
        return average(panel.task.kind.average, logits, panel.weights)


def load(folder: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """Load a trained model from a run's folder, its `best/`, or the folder of an ensemble.

    Each has `tasks`, `predict` and `predict_proba`.
    """
    return open_model(Path(folder), lambda best: MultitaskBert.load(best, device))


def open_model(folder: Path, load_model: LoadModel) -> Predictor:
    """Load the ensemble in a folder, or else its single model; `load_model` loads each model."""
    return Ensemble(folder, load_model) if is_ensemble(folder) else load_model(folder)


def is_ensemble(folder: Path) -> bool:
    """Return whether a folder holds an ensemble."""
    return (folder / ENSEMBLE).is_file()


def distinct_runs(runs: Iterable[str]) -> list[str]:
    """Return each run once, in order: `a`, `a/` and `a/best` are the same run, as are two links to it."""
    found: dict[str, str] = {}
    for run in runs:
        best = best_folder(run)
        is_of_run = best.stem == "best" and best_folder(best.parent) == best  # best/ or best.old/
        found.setdefault(os.path.realpath(best), str(best.parent if is_of_run else best))
    return list(found.values())


def relative_members(folder: Path, runs: Iterable[str]) -> dict[str, str]:
    """Return the path from an ensemble's folder to each of these runs, by the run's name."""
    return {run: os.path.relpath(os.path.realpath(run), os.path.realpath(folder)) for run in runs}


def copy_members(folder: Path, runs: Iterable[str]) -> dict[str, str]:
    """Save copies of the runs' models in an ensemble's folder. Return their paths relative to it, by run."""
    paths = {}
    for number, run in enumerate(runs, start=1):
        paths[run] = f"{COPIES}/{number}-{os.path.basename(os.path.realpath(run))}"
        write_folder(folder / paths[run], MultitaskBert.load(run).save, (*MODEL_FILES, CALIBRATION))
    return paths


def write_ensemble(folder: Path, panels: Mapping[str, Panel]) -> None:
    """Write `ensemble.toml` into an existing folder, for `Ensemble` to read."""
    tables = {
        name: {
            "threshold": panel.threshold,
            "members": list(panel.members),
            "weights": list(panel.weights),
            **({} if panel.calibration == UNCHANGED else {"calibration": asdict(panel.calibration)}),
            "task": task_to_toml(panel.task),
        }
        for name, panel in panels.items()
    }
    write_text(folder / ENSEMBLE, tomli_w.dumps(tables))


def read_ensemble(path: Path) -> dict[str, Panel]:
    """Read an `ensemble.toml`. Raises InputError if it is not valid. Does not look at the members."""
    tables = load_toml(path)
    if not tables:
        raise InputError(f"{path}: defines no tasks")
    panels = {name: _panel(name, table, path) for name, table in tables.items()}
    check_outputs([panel.task for panel in panels.values()], str(path))
    return panels


def place_of(folder: Path, member: str) -> Path:
    """Return the folder of a member's model. Raises InputError if it is gone or is not a single model."""
    place = os.path.normpath(folder / member)
    if not os.path.isdir(folder / member):
        raise InputError(
            f"{folder / ENSEMBLE}: member {shown(member)} is gone; restore it at {place}, or make the "
            "ensemble again with --copy, which keeps its members' models inside it"
        )
    try:
        return best_folder(folder / member)
    except InputError as error:
        raise InputError(f"{folder / ENSEMBLE}: member {shown(member)}: {error}") from None


def _members(panels: Mapping[str, Panel]) -> list[str]:
    """Return every member once, however many tasks it predicts."""
    return list(dict.fromkeys(member for panel in panels.values() for member in panel.members))


def _panel(name: str, section: Any, path: Path) -> Panel:
    """Return the panel that a section of an ensemble.toml defines."""
    source = f"{path}: [{shown(name)[1:-1]}]"

    def check(good: bool, problem: str) -> None:
        if not good:
            raise InputError(f"{source}: {problem}")

    check(isinstance(section, dict), "must be a section")
    check(isinstance(section.get("task"), dict), "lacks the section task, which defines the task")
    values = {key: value for key, value in section.items() if key not in ("task", "calibration")}
    values = check_table(values, fields_of(Panel), source, required=("threshold", "members"))
    members = values["members"]
    weights = values.setdefault("weights", (1.0,) * len(members))
    check(0 < len(members) <= MOST_MEMBERS, f"members must be a list of 1 to {MOST_MEMBERS:,} folders")
    for member in members:
        check(len(member) <= LONGEST_PATH, f"{shown(member)} is not a folder")
        check(not os.path.isabs(member), f"{shown(member)} must be relative to this file's folder")
    check(len(set(members)) == len(members), "lists a member twice")
    check(len(weights) == len(members), "weights must have one number per member")
    task = task_from_toml(name, section["task"], path)
    if "calibration" in section:
        values["calibration"] = calibration_from_toml(task, section["calibration"], path)
    return Panel(task, **values)
