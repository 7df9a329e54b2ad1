"""What a student learns: its teacher's logits on the training and dev rows.

They are computed once and kept in the run's folder, so resuming the run needs neither the teacher nor the
computation again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from minbert.checkpoint import contents
from minbert.errors import InputError, short_line
from minbert.files import write_tensors
from multitask.data.tables import Table
from multitask.data.tasks import Task
from multitask.layout import TARGETS
from multitask.predictor import Predictor

Targets = Mapping[str, Mapping[str, Tensor]]  # split -> task -> logits (N, C), float32


def compute_targets(teacher: Predictor, tables: Mapping[str, Mapping[str, Table]]) -> Targets:
    """Return the teacher's logits on these tables, by split and task."""
    return {
        split: {name: teacher.logits_of_table(name, table).float() for name, table in of_split.items()}
        for split, of_split in tables.items()
    }


def write_targets(run: Path, targets: Targets) -> None:
    """Write the logits into a run's folder: one tensor (N, C) per SPLIT/TASK."""
    tensors = {
        f"{split}/{name}": logits for split, found in targets.items() for name, logits in found.items()
    }
    write_tensors(run / TARGETS, tensors)


def read_targets(run: Path, tasks: Mapping[str, Task], tables: Mapping[str, Mapping[str, Table]]) -> Targets:
    """Read what `write_targets` wrote. Raises InputError if the file does not have finite logits for every
    row of these tables."""
    path = run / TARGETS
    try:
        stored = contents(path)
        wanted = {
            f"{split}/{name}": (len(table), tasks[name].outputs)
            for split, of_split in tables.items()
            for name, table in of_split.items()
        }
        for key, shape in wanted.items():
            found = stored.get(key)
            if found is None or found.shape != shape or found.dtype != torch.float32:
                raise ValueError(f"has no {key} of shape {shape} in float32")
        targets = {
            split: {name: stored[f"{split}/{name}"].read() for name in of_split}
            for split, of_split in tables.items()
        }
        if not all(logits.isfinite().all() for found in targets.values() for logits in found.values()):
            raise ValueError("holds values that are not finite")
        return targets
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{path}: not the outputs of this run's teacher ({short_line(error)}); restore the file, or "
            "start again with another --out"
        ) from None


def digest_of(targets: Targets) -> str:
    """Return a SHA-256 over the logits."""
    hasher = hashlib.sha256()
    for split, found in targets.items():
        for name, logits in found.items():
            hasher.update(f"{split}/{name}/{tuple(logits.shape)}".encode())
            hasher.update(logits.numpy().tobytes())
    return hasher.hexdigest()
