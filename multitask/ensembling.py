"""The job of --option ensemble: choose each task's members among runs, average them, keep the result as a
model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor

from minbert.errors import InputError
from minbert.files import write_text
from multitask import evaluate
from multitask.config import Config
from multitask.data import tasks
from multitask.data.calibration import UNCHANGED
from multitask.data.tables import SPLITS, Splits
from multitask.data.tasks import Task
from multitask.ensemble_model import Panel, copy_members, distinct_runs, relative_members, write_ensemble
from multitask.judgement import Calibrations, fit_calibrations
from multitask.layout import CONFIG, PREDICTIONS
from multitask.methods.ensemble import average, members
from multitask.runs import (
    check_has_heads,
    claim_folder,
    load_single,
    print_scores,
    read_and_print_notes,
    set_up,
    with_tables_of,
    write_all_predictions,
    write_result,
)
from multitask.saved import best_folder, read_definitions

Logits = dict[str, dict[str, dict[str, Tensor]]]  # split -> task -> run -> (N, C)


def run_ensemble(config: Config) -> None:
    """Average the runs' predictions, for each task those of the runs that reach its threshold, and write the
    ensemble as a model that names its members or, with --copy, holds them."""
    runs = config.runs.run
    config = with_tables_of(config, Path(runs[0]))
    known = tasks_of_runs(config)
    tasks.select(list(config.choice.least_scores), known)  # refuses unknown tasks
    device, out = set_up(config), claim_folder(config)
    tables = read_and_print_notes(config, SPLITS[1:], known)
    logits = logits_of_runs(config, tables, device)
    chosen = {name: choose_members(task, logits["dev"][name], tables, config) for name, task in known.items()}
    averaged = {
        split: {
            name: average(known[name].kind.average, [of_run[run] for run in chosen[name]["members"]])
            for name, of_run in logits[split].items()
        }
        for split in SPLITS[1:]
    }
    calibrations = fit_calibrations(known, averaged["dev"], tables["dev"])
    judged = write_all_predictions(out / PREDICTIONS, known, tables, averaged, calibrations)
    inside = {run for entry in chosen.values() for run in entry["members"]}
    needed = [run for run in distinct_runs(runs) if run in inside]
    paths = (copy_members if config.choice.copy else relative_members)(out, needed)
    panels = {name: panel_of(task, chosen[name], paths, calibrations) for name, task in known.items()}
    write_ensemble(out, panels)
    write_text(out / CONFIG, tomli_w.dumps(config.settings))
    write_result(out, **asdict(judged), tasks=chosen)
    print_members(chosen)
    print(f"on the dev tables of {config.tables.data or 'the shipped sample'}:")
    print_scores(known, judged)
    print(f"ensemble {out}, predictions {out / PREDICTIONS}")


def tasks_of_runs(config: Config) -> dict[str, Task]:
    """Return the tasks of all runs. Raises InputError if two runs define one differently."""
    known: dict[str, Task] = {}
    for run in distinct_runs(config.runs.run):
        _, defined = read_definitions(best_folder(run) / "tasks.toml")
        check_has_heads(Path(run), defined)
        for name, task in tasks.select(config.selection.tasks, defined).items():
            if known.setdefault(name, task) != task:
                raise InputError(
                    f"{run}: defines its task {name} differently from the runs before it; see --tasks"
                )
        tasks.check_outputs(known.values(), run)
    return known


def logits_of_runs(config: Config, tables: Splits, device: torch.device) -> Logits:
    """Return every run's logits on the dev and test tables of its tasks."""
    logits: Logits = {split: {name: {} for name in tables[split]} for split in SPLITS[1:]}
    for run in distinct_runs(config.runs.run):
        model = load_single(Path(run), config, device)
        for split, of_task in logits.items():
            for name in [name for name in of_task if name in model.tasks]:
                of_task[name][run] = model.logits_of_table(name, tables[split][name])
    return logits


def choose_members(
    task: Task, dev_logits: Mapping[str, Tensor], tables: Splits, config: Config
) -> dict[str, Any]:
    """Return what is recorded of one task: its threshold, every run's dev score, and the runs that reach
    it."""
    scores = {
        run: evaluate.scores({task.name: task}, {task.name: logits}, tables["dev"])["score"]
        for run, logits in dev_logits.items()
    }
    threshold = config.choice.least_scores.get(task.name, 0.0)
    chosen = members(task.name, scores, threshold, config.choice.or_best)
    return {"threshold": threshold, "scores": scores, "members": chosen}


def panel_of(
    task: Task, chosen: Mapping[str, Any], paths: Mapping[str, str], calibrations: Calibrations
) -> Panel:
    """Return what `choose_members` found as an ensemble keeps it, with members of equal weight."""
    inside = tuple(paths[run] for run in chosen["members"])
    calibration = calibrations.get(task.name, UNCHANGED)
    return Panel(task, chosen["threshold"], inside, (1.0,) * len(inside), calibration)


def print_members(chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Print each task's members with their scores, and warn if none reaches its threshold."""
    for name, entry in chosen.items():
        scores, threshold = entry["scores"], entry["threshold"]
        if max(scores.values()) < threshold:
            print(f"warning: no run reaches {name}'s threshold {threshold:g}; using its best run instead")
        inside = ", ".join(f"{run} ({scores[run]:.3f})" for run in entry["members"])
        print(f"{name}: {len(entry['members'])} of {len(scores)} runs: {inside}")
