"""The job of --option export: a run's model for other programs.

What is written is loaded again by the library that a user would load it with, and compared with our own model
on dev rows, before it gets its name.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, cast

from minbert.errors import InputError, counted
from minbert.files import flush, named_folder, rename, write_text
from multitask import machine
from multitask.advice import command
from multitask.config import Config
from multitask.data import tasks
from multitask.data.tables import SPLITS
from multitask.data.tasks import Task
from multitask.data.tokens import HEAD
from multitask.ensemble_model import is_ensemble
from multitask.forms import (
    EXTRA,
    Exported,
    ModularCrossEncoder,
    OnnxFile,
    Rows,
    SentenceEncoder,
    SequenceClassifier,
)
from multitask.layout import CARD
from multitask.model import MultitaskBert
from multitask.preparation import tasks_of
from multitask.report.card import Subject, card
from multitask.runs import read_and_print_notes, result_of, set_up, settings_of, with_tables_of
from multitask.saved import best_folder

ROWS = 100  # dev rows of each task that are compared
TOLERANCE = 1e-4  # largest difference of an output
RESOLUTION = 1e-6  # the same, relative to outputs above 100: float32 holds no more digits
CLASSIFIERS: Mapping[str, type[Exported]] = {"cls": SequenceClassifier, "mean": ModularCrossEncoder}


def run_export(config: Config) -> None:
    """Write a run's model as another library reads it, if it then computes what ours does on dev rows."""
    run, out = Path(config.runs.run[0]), Path(cast(str, config.output.out))
    if is_ensemble(run):
        raise InputError(
            f"{run}: is an ensemble, which no other library knows; distil it first with "
            f"{command('distill', '--run', run)}, and export the student"
        )
    if os.path.lexists(out):
        raise InputError(f"{out}: exists already; choose another --out")
    device = set_up(config)
    model = machine.place(MultitaskBert.load(run), config.products, device)
    model.long = HEAD  # no library reads more
    exported = choose(config, model)
    exported.check_libraries()
    config, settings = with_tables_of(config, run), settings_of(run)
    selected = exported.tasks or model.tasks
    rows = dev_rows(config, selected) if selected else learned_rows(config, run, settings)
    parent = named_folder(out.parent)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.partial-", dir=parent) as scratch:
        source, folder = named_folder(Path(scratch, "encoder")), named_folder(Path(scratch, "export"))
        model.encoder.save_pretrained(source)
        model.tokenizer.save_pretrained(source, model.max_length)
        with quiet_libraries():
            exported.write(source, folder)
            check_same_outputs(exported, folder, rows)
        subject = Subject.of(best_folder(run), settings, result_of(run), exported.tasks)
        write_text(folder / CARD, card(subject, exported.usage))
        publish(folder, parent / out.name)
    print(f"{out}: {exported.title}, and its card {CARD}")


def choose(config: Config, model: MultitaskBert) -> Exported:
    """Return what is to be exported. Raises InputError if the model does not have it."""
    name = config.one_task.task
    selected = tasks.select([name] if name else [], model.tasks)
    if config.export.to == "onnx" and not selected:
        raise InputError(f"{config.runs.run[0]}: has no heads; export its encoder with --to hf")
    if config.export.to == "onnx":
        return OnnxFile(model, selected)
    return CLASSIFIERS[model.pooling](model, selected) if name else SentenceEncoder(model, {})


def learned_rows(config: Config, run: Path, settings: Mapping[str, Any]) -> Rows:
    """Return the dev rows of the tasks, or the plain text, that an encoder without heads was trained on."""
    if not settings:
        raise InputError(f"{run}: has no heads, and no config.toml that names its task; name the whole run")
    tables = {"data": config.tables.data, "skip_bad_rows": config.reading.skip_bad_rows}
    trained = Config.of(settings).changed(**tables)
    return dev_rows(trained, tasks_of(trained))


def dev_rows(config: Config, selected: Mapping[str, Task]) -> Rows:
    """Return the texts of the first dev rows of these tasks."""
    tables = read_and_print_notes(config, SPLITS[1:2], selected)[SPLITS[1]]
    return {name: [row.texts for row in islice(table.rows(), ROWS)] for name, table in tables.items()}


def check_same_outputs(exported: Exported, folder: Path, rows: Rows) -> None:
    """Print how far what was written differs from our model. Raises InputError if that is more than
    rounding."""
    theirs = exported.outputs(folder, rows)
    for name, ours in exported.expected(rows).items():
        same_shape = theirs[name].shape == ours.shape
        largest = (theirs[name] - ours).abs().max().item() if same_shape else math.inf
        print(f"{name}: {counted(len(ours), 'dev row')}, largest difference {largest:.1e}", flush=True)
        if not largest <= max(TOLERANCE, RESOLUTION * ours.abs().max().item()):
            raise InputError(
                f"{name}: the export differs from the run by {largest:.1e}, more than {TOLERANCE:g}, and was "
                f"not kept; try other versions of its libraries: {EXTRA}"
            )


def publish(folder: Path, out: Path) -> None:
    """Give a finished folder its name, and its files the mode of the user's other new ones."""
    mode = (folder / CARD).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        flush(path)
    rename(folder, out)
    flush(out.parent)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the notes, warnings and progress bars of other libraries off the terminal."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        if shown:
            bars.enable_progress_bar()
