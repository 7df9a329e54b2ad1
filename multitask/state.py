"""What a run must remember to go on exactly, and how it is written: whole, or not at all.

A state is a folder `state/step-N` with the model's and the optimizer's tensors (safetensors) and
`progress.json`. It is written under another name, flushed to disk and renamed, so a folder of that name is
complete by its being there. Random numbers need no saving: they are functions of (seed, step, purpose).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from minbert.errors import InputError
from minbert.files import write_folder, write_tensors, write_text

KEPT = 2  # states on disk


@dataclass
class Progress:
    """Where a run stands after `step` updates. Floats survive JSON to the last bit."""

    step: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)  # of this epoch: term -> [sum, updates]
    seconds: float = 0.0  # of the epoch under way
    best_score: float | None = None
    best_epoch: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)  # one an epoch: the lines of metrics.jsonl
    data: str = ""  # the fingerprint of the training and dev rows

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch."""
        return self.records[self.best_epoch - 1]

    def add(self, terms: Mapping[str, float], seconds: float) -> None:
        """One more update, with the terms of its loss."""
        self.step += 1
        self.seconds += seconds
        for name, value in terms.items():
            sums = self.sums.setdefault(name, [0.0, 0])
            sums[0] += value
            sums[1] += 1

    def means(self) -> dict[str, Any]:
        """Each term's mean over its updates, nested by the slashes in its name; `skipped` is a count."""
        nested: dict[str, Any] = {}
        for name, (total, updates) in sorted(self.sums.items()):
            *path, last = name.split("/")
            level = nested
            for part in path:
                level = level.setdefault(part, {})
            level[last] = int(total) if last == "skipped" else total / updates
        return nested


def save(run: Path, progress: Progress, parts: Mapping[str, nn.Module], optimizer: Optimizer) -> None:
    """Write the state of this step and drop all but the last two. The optimizer is that of
    `parts["model"]`."""

    def write(folder: Path) -> None:
        for name, module in parts.items():
            write_tensors(folder / f"{name}.safetensors", module.state_dict())
        write_tensors(folder / "optimizer.safetensors", _moments(parts["model"], optimizer))
        write_text(folder / "progress.json", json.dumps(asdict(progress)))

    write_folder(run / "state" / f"step-{progress.step:08d}", write)
    for old in _saved(run)[:-KEPT]:
        shutil.rmtree(old)


def load(run: Path, parts: Mapping[str, nn.Module], optimizer: Optimizer) -> Progress | None:
    """Put the newest state into `parts` and the optimizer; None where nothing has been saved."""
    saved = _saved(run)
    if not saved:
        return None
    folder = saved[-1]
    try:
        progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
        for name, module in parts.items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        _set_moments(parts["model"], optimizer, load_file(folder / "optimizer.safetensors"))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        message = " ".join(str(error).split())
        raise InputError(
            f"{folder}: not a whole state ({message}); delete that folder to go on from the one before"
        ) from None
    return progress


def _saved(run: Path) -> list[Path]:
    return sorted(path for path in run.glob("state/step-*") if path.name.removeprefix("step-").isdigit())


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's memory as named tensors: PARAMETER/exp_avg, PARAMETER/exp_avg_sq, PARAMETER/step."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _set_moments(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        value = int(tensor) if moment == "step" else tensor.to(parameter.device)
        optimizer.state[parameter][moment] = value
