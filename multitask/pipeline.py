"""A recipe of several stages: each a run in a folder of its own, started from what the stages before it made.

What is done is never done again: a stage with a result is passed over, and one that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import tomli_w

from minbert.errors import InputError
from minbert.files import lock, write_text
from multitask import distributed, jobs
from multitask.command_line import PIPELINE, Pipeline
from multitask.config import TRAINING, Config
from multitask.forecast import measure


def run_pipeline(pipeline: Pipeline) -> None:
    """Say how long it will take, then carry out every stage that is not done yet."""
    out = Path(distributed.from_writer(lambda: str(claim(pipeline))))
    left = distributed.from_writer(
        lambda: [name for name in pipeline.stages if not (out / name / jobs.RESULT).exists()]
    )
    print(f"stages {', '.join(pipeline.stages)}, in {out}")
    if len(left) < len(pipeline.stages):
        print(f"done before: {', '.join(name for name in pipeline.stages if name not in left)}")
    print_forecast(pipeline.stages, left, out)
    for name in left:
        print(f"stage {name}", flush=True)
        config = placed(pipeline.stages[name], out, name)
        job = partial(jobs.JOBS[config.option], config)
        job() if config.option in TRAINING else distributed.from_writer(job)


def claim(pipeline: Pipeline) -> Path:
    """The pipeline's folder, with its stages in it as they were started."""
    out = jobs.make_folder(Path("runs") if pipeline.out is None else Path(pipeline.out))
    if pipeline.out is None:
        out = jobs.next_free(out, pipeline.name)
    lock(out)
    saved = out / PIPELINE
    if (out / "config.toml").exists():
        raise InputError(f"{out}: holds a run of one stage; name another --out")
    if saved.exists() and not pipeline.resume:
        raise InputError(f"{out}: holds a run already; go on with it (--resume), or name another --out")
    write_text(saved, tomli_w.dumps(pipeline.settings))
    return out


def placed(config: Config, out: Path, name: str) -> Config:
    """The stage with its folder, and those of the stages that it names; resumed where it has begun."""

    def folder(value: str) -> str:
        return str(out / value[1:]) if value.startswith("@") else value

    begun = distributed.from_writer((out / name / "config.toml").exists)
    return replace(
        config,
        init=None if config.init is None else folder(config.init),
        run=tuple(map(folder, config.run)),
        out=str(out / name),
        resume=begun,
    )


def standalone(stages: Mapping[str, Config], name: str) -> Config:
    """The stage as it would start without the stages before it: from the encoder that the first of them
    takes."""
    config = first = stages[name]
    while first.init is not None and first.init.startswith("@"):
        first = stages[first.init[1:]]
    return replace(config, init=first.init, weights=first.weights)


def print_forecast(stages: Mapping[str, Config], left: list[str], out: Path) -> None:
    """Measure the training stages that are left, and say how long they will take."""
    seconds = {}
    for name in left:
        if stages[name].option in TRAINING:
            metrics = out / name / "metrics.jsonl"
            done = metrics.read_bytes().count(b"\n") if metrics.is_file() else 0
            seconds[name] = measure(standalone(stages, name)).seconds(done)
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    if parts:
        print(f"about {duration(sum(seconds.values()))} on this machine: {parts}", flush=True)


def duration(seconds: float) -> str:
    """In hours, minutes or seconds."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds > 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
