"""Where a run comes from: its settings, and the checkpoint at the start of its chain of runs."""

from __future__ import annotations

from pathlib import Path

from minbert.errors import InputError
from minbert.hub import CHECKPOINTS, find_checkpoint
from multitask.config import Config, Start
from multitask.layout import CONFIG
from multitask.recipes import read_settings


def read_config(run: Path, skip_bad_rows: bool, *options: str) -> Config:
    """Read the settings of a run. Raises InputError if it is not a run of one of these options."""
    settings = read_settings(run / CONFIG)
    if settings.get("option") not in options:
        raise InputError(f"{run / CONFIG}: its option must be {' or '.join(options)}; name another --run")
    config = Config.of(settings)
    return config.changed(skip_bad_rows=config.reading.skip_bad_rows or skip_bad_rows)


def first_checkpoint(source: str) -> str:
    """Return the checkpoint at the start of a chain of runs, each the --init or --weights of the next."""
    for _ in range(20):
        saved = [folder / CONFIG for folder in (Path(source), Path(source).parent)]
        path = next((path for path in saved if source not in CHECKPOINTS and path.is_file()), None)
        if path is None:
            break
        settings = read_settings(path)
        source = settings.get("init") or settings.get("weights") or Start().weights
    return source


def pretraining(checkpoint: str) -> list[str]:
    """Return a sentence on what a known checkpoint was pre-trained on, in a list; none for an unknown one."""
    found = find_checkpoint(checkpoint)
    return [f"Pre-training of {found.name}: {found.pretraining}."] if found else []
