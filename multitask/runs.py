"""What the jobs share: the folder of a new run, the tables, finished models, and predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minbert.errors import InputError, short_line
from minbert.files import resolved, write_text
from minbert.reading import load_json
from multitask import distributed, evaluate, folder, machine
from multitask.config import TRAINING, Config
from multitask.data.calibration import UNCHANGED
from multitask.data.tables import SPLITS, Splits, print_dropped, print_held_out, print_unread
from multitask.data.tasks import Task
from multitask.ensemble_model import is_ensemble, open_model
from multitask.judgement import Calibrations, Judgement, describe, judge, only_answer
from multitask.layout import CONFIG, RESULT
from multitask.model import MultitaskBert
from multitask.predictor import Predictor
from multitask.preparation import read_rows
from multitask.recipes import read_settings
from multitask.saved import best_folder

Outputs = Mapping[str, Mapping[str, Tensor]]  # split -> task -> logits (N, C)


def set_up(config: Config) -> torch.device:
    return machine.set_up(config.machine, config.products, config.saving.resume)


def claim_folder(config: Config) -> Path:
    """Claim the run's folder, in one process for all. Raises InputError if another does not see it."""

    def claim() -> str:
        resume: bool | None = config.saving.resume
        if not resume and config.option not in TRAINING:
            resume = None  # cannot be resumed, except as the unfinished stage of a recipe, which is run again
        return str(folder.claim(config.output.out, config.option, resume=resume))

    check_holds_no_tables(config.output.out, config.tables.data)
    run = Path(distributed.from_writer(claim))
    if not run.is_dir():
        raise InputError(
            f"{run}: not visible from this process; choose an --out in a folder that all machines share"
        )
    return run


def check_holds_no_tables(out: str | None, data: str | None) -> None:
    """Raise InputError if the folder of a run is to be that of its tables."""
    if out is not None and data is not None and os.path.realpath(out) == os.path.realpath(data):
        raise InputError(f"{out}: holds the tables; choose another --out")


def print_if_sample(config: Config) -> None:
    if config.tables.data is None:
        print("no --data given: training on the shipped sample, too small for its scores to mean anything")


def read_and_print_notes(config: Config, splits: Sequence[str], selected: Mapping[str, Task]) -> Splits:
    """Return the checked tables of these splits. Print how many bad rows were left out, which rows are held
    out, and which files that look meant are not read."""
    rows = read_rows(config, splits, selected)
    print_dropped(rows)
    print_held_out(rows)
    print_unread(config.tables.data, selected)
    return rows


def outputs_of(model: Predictor, tables: Splits) -> Outputs:
    """Return the model's logits on the dev and test tables."""
    return {
        split: {name: model.logits_of_table(name, table) for name, table in tables[split].items()}
        for split in SPLITS[1:]
    }


def write_all_predictions(
    directory: Path,
    selected: Mapping[str, Task],
    tables: Splits,
    logits: Outputs,
    calibrations: Calibrations,
) -> Judgement:
    """Write the submission files for dev, and for test if there are tables; return what dev says."""
    if distributed.is_writer():
        for split, short in zip(SPLITS[1:], ("dev", "test"), strict=True):
            for name, table in tables[split].items():
                given = logits[split][name], calibrations.get(name, UNCHANGED)
                evaluate.write_predictions(directory, selected[name], short, table.ids, *given)
    return judge(selected, logits["dev"], tables["dev"], calibrations)


def print_scores(selected: Mapping[str, Task], judged: Judgement, *others: Mapping[str, Any]) -> None:
    """Print the dev scores with their intervals, beside those of other models, and what was fitted on dev."""
    print(evaluate.format_scores(selected, judged.dev, *others, intervals=judged.intervals))
    for line in filter(None, (describe(judged, name) for name in selected)):
        print(f"  {line}")
    for name, classes in judged.classes.items():
        if (only := only_answer(classes)) is not None:
            print(f"  warning: {name} is predicted to be {short_line(only)} in every row of dev")


def write_result(run: Path, **found: Any) -> None:
    """Write what a run found, which says that it is done."""
    folder.check_held(run)
    write_text(run / RESULT, json.dumps(found, indent=2) + "\n")


def settings_of(run: Path) -> dict[str, Any]:
    """Return the settings of a run, of the one around its best/, or of an ensemble; none if they are not
    there."""
    for place in (run, run.parent):
        if (place / CONFIG).is_file():
            return read_settings(place / CONFIG)
    return {}


def result_of(run: Path) -> dict[str, Any]:
    """Return what a run, or the one around its best/, has found; nothing if it has not finished."""
    for place in (run, run.parent):
        if (place / RESULT).is_file():
            found = load_json(place / RESULT)
            return found if isinstance(found, dict) else {}
    return {}


def data_of(run: Path) -> str | None:
    """Return the data folder that a run, the one around its best/, or an ensemble was made with; None for the
    shipped sample."""
    if settings := settings_of(run):
        return settings.get("data")
    if not is_ensemble(run):
        best_folder(run)  # raises InputError if the folder holds no run at all
    raise InputError(f"{run}: no config.toml tells what data it was trained on; name a folder with --data")


def with_tables_of(config: Config, run: Path) -> Config:
    """Return the settings with a run's data, without bad rows if it has left them out; as they are if they
    name other data."""
    if config.tables.data is not None:
        return config
    skipped = config.reading.skip_bad_rows or settings_of(run).get("skip_bad_rows", False)
    return config.changed(data=data_of(run), skip_bad_rows=skipped)


def place_of_run(run: Path) -> Path:
    """Return where a run's folder is. Raises InputError if a piece of it is a link, so that it is not safe to
    write there."""
    place = resolved(run)
    folder.check_links(place)
    return place


def load_run(run: Path, config: Config, device: torch.device) -> Predictor:
    """Load a run's best model, or an ensemble, onto the device."""
    return open_model(run, lambda best: load_single(best, config, device))


def load_single(run: Path, config: Config, device: torch.device) -> MultitaskBert:
    """Load a run's best model onto the device. Raises InputError if it has no heads."""
    model = machine.place(MultitaskBert.load(run), config.products, device)
    check_has_heads(run, model.tasks)
    return model


def check_has_heads(run: Path, defined: Mapping[str, Task]) -> None:
    """Raise InputError if a run has no tasks."""
    if not defined:
        raise InputError(
            f"{run}: is an encoder and has no heads, as after mnrl and mlm; fine-tune from it with --init"
        )
