"""A recipe of several stages: each is a run in a folder of its own, started from what earlier stages made.

A stage that has a result is not run again, and one that was stopped is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from minbert.files import write_text
from minbert.reading import read_text
from multitask import distributed, folder
from multitask.command_line import Pipeline, saved_settings
from multitask.config import TRAINING, Config
from multitask.data.tasks import select
from multitask.finished import drop_state
from multitask.forecast import measure
from multitask.jobs import JOBS
from multitask.layout import CONFIG, METRICS, PIPELINE, RESULT, STATE
from multitask.preparation import tasks_of, with_commit
from multitask.runs import check_holds_no_tables, print_if_sample

TAKEN = ("data", "tasks", "task_file", "skip_bad_rows")  # settings that a student may have from its teacher


def run_pipeline(pipeline: Pipeline) -> None:
    """Print how long it will take, then carry out every stage that is not done yet."""
    check_thresholds(pipeline.stages)
    stages = {name: with_commit(config) for name, config in pipeline.stages.items()}
    pipeline = replace(pipeline, stages=stages)
    out = Path(distributed.from_writer(lambda: str(start(pipeline))))
    left = distributed.from_writer(lambda: stages_left(pipeline, out))
    first = next(iter(stages.values()))
    if not first.runs.run:  # whose data it would take
        print_if_sample(first)
    print(f"stages {', '.join(pipeline.stages)}, in {out}")
    if len(left) < len(pipeline.stages):
        print(f"done before: {', '.join(name for name in pipeline.stages if name not in left)}")
    print_forecast(pipeline.stages, left, out)
    for name in left:
        print(f"stage {name}", flush=True)
        config = placed(pipeline.stages[name], out, name)
        job = partial(JOBS[config.option], config)
        if config.option in TRAINING:
            job()
        else:
            distributed.from_writer(job)


def stages_left(pipeline: Pipeline, out: Path) -> list[str]:
    """Return the stages that have no result yet. Remove a state that a kill has left in one that has."""
    done = {name: config for name, config in pipeline.stages.items() if (out / name / RESULT).exists()}
    for name, config in done.items():
        drop_state(config, out / name)
    return [name for name in pipeline.stages if name not in done]


def check_thresholds(stages: Mapping[str, Config]) -> None:
    """Raise InputError, before anything is trained, if an ensemble of stages has a threshold for a task that
    no stage trains."""
    trained = [tasks_of(config) for config in stages.values() if config.option in TRAINING]
    known = {name: task for some in trained for name, task in some.items()}
    for config in stages.values():
        if all(run.startswith("@") for run in config.runs.run):
            select(list(config.choice.least_scores), known)


def start(pipeline: Pipeline) -> Path:
    """Claim the pipeline's folder, write its stages into it, and return it."""
    for config in pipeline.stages.values():
        check_holds_no_tables(pipeline.out, config.tables.data)
    out = folder.claim(pipeline.out, pipeline.name, PIPELINE, pipeline.resume)
    folder.check_links(out, pipeline.stages)
    write_text(out / PIPELINE, tomli_w.dumps(pipeline.settings))
    return out


def placed(config: Config, out: Path, name: str) -> Config:
    """Return the stage with its folder and those of the stages that it names; resumed if it has begun, with
    what it then took from its teacher."""

    def folder_of(value: str) -> str:
        return str(out / value[1:]) if value.startswith("@") else value

    def begun_with() -> dict[str, Any] | None:
        if not (out / name / CONFIG).exists() and not (out / name / STATE).exists():
            return None
        _, saved = saved_settings(out / name)
        return {key: value for key, value in (saved or {}).items() if key in TAKEN}

    init, taken = config.start.init, distributed.from_writer(begun_with)
    return config.changed(
        init=None if init is None else folder_of(init),
        run=tuple(map(folder_of, config.runs.run)),
        out=str(out / name),
        resume=taken is not None,
        **(taken or {}),
    )


def standalone(stages: Mapping[str, Config], name: str) -> Config:
    """Return the stage as it would start without the stages before it: from the encoder that the first of
    them starts from."""
    first = stages[name]
    while first.start.init is not None and first.start.init.startswith("@"):
        first = stages[first.start.init[1:]]
    start = first.start
    return stages[name].changed(init=start.init, weights=start.weights, revision=start.revision)


def print_forecast(stages: Mapping[str, Config], left: list[str], out: Path) -> None:
    """Measure the training stages that are left, and print how long they will take."""
    seconds = {}
    for name in left:
        if stages[name].option in TRAINING:
            done = 0
            with suppress(OSError, ValueError):
                done = read_text(out / name / METRICS).count("\n")
            seconds[name] = measure(standalone(stages, name)).seconds(done)
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    if parts:
        print(f"about {duration(sum(seconds.values()))} on this machine: {parts}", flush=True)


def duration(seconds: float) -> str:
    """Return a duration in hours, minutes or seconds."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds > 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
