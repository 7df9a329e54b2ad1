"""Average recorded outputs into an ensemble: for each task, those of all runs of the cells that have it.

    python tools/paper/pool.py NAME CELL [CELL ...] --data DIR --out FOLDER

This needs no models. It records the ensemble as the cell NAME, as record.py does, and writes its submission
files for the dev and test tables of DIR into FOLDER.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from measures import SUBMISSIONS, Outputs, recorded
from minbert.errors import InputError
from multitask.data.tables import read_table
from multitask.evaluate import scores, write_predictions
from multitask.machine import rounding
from record import head, keep


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="name of the new cell")
    parser.add_argument("cells", nargs="+", metavar="CELL", help="recorded cells")
    parser.add_argument("--data", type=Path, required=True, help="folder of tables, for the ids and labels")
    parser.add_argument("--out", type=Path, required=True, help="folder for the submission files")
    args = parser.parse_args()
    try:
        print(pool(args.name, args.cells, args.data, args.out))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def pool(cell: str, cells: Sequence[str], data: Path, out: Path) -> Path:
    """Record the average and write its submission files; return the path of the record."""
    found = {one: recorded(one) for one in cells}
    if unknown := [one for one, seeds in found.items() if not seeds]:
        raise InputError(f"no recorded outputs of {', '.join(unknown)}")
    runs = {f"{one}-seed-{seed}": outputs for one in found for seed, outputs in found[one].items()}
    members = {
        name: [run for run, outputs in runs.items() if f"{name}-dev" in outputs] for name in SUBMISSIONS
    }
    if missing := [name for name, those in members.items() if not those]:
        raise InputError(f"no run of {', '.join(cells)} has outputs for {', '.join(missing)}")
    average = {  # in float16, as it is kept, so that the record and the submission files agree
        f"{name}-{split}": np.asarray(
            np.mean([runs[run][f"{name}-{split}"] for run in members[name]], axis=0), np.float16
        )
        for name in SUBMISSIONS
        for split in ("dev", "test")
    }
    entry = {
        "cell": cell,
        "seed": 0,
        "commit": head(),
        "machine": rounding(),
        "settings": {"option": "ensemble"},
        "best_epoch": None,
        "dev": submit(average, data, out),
        "epochs": [],
        "members": {SUBMISSIONS[name].name: those for name, those in members.items()},
    }
    return keep(entry, average)


def submit(outputs: Outputs, data: Path, out: Path) -> dict[str, Any]:
    """Write the submission files of the dev and test tables; return the dev scores."""
    logits, tables = {}, {}
    for name, task in SUBMISSIONS.items():
        for split, short in (("dev", "dev"), ("test-student", "test")):
            table = read_table(task.path(data, split), task, labelled=split == "dev")
            found = to_logits(outputs[f"{name}-{short}"], task.outputs)
            write_predictions(out, task, short, table.ids, found)
            if split == "dev":
                logits[task.name], tables[task.name] = found, table
    return scores({task.name: task for task in SUBMISSIONS.values()}, logits, tables)


def to_logits(outputs: np.ndarray, size: int) -> Tensor:
    """Return the logits (N, size) of probabilities (N, classes), or values (N,) as (N, 1)."""
    given = torch.from_numpy(outputs.astype(np.float64))
    if given.ndim == 1:
        return given[:, None]
    logs = given.clamp(min=1e-7).log()
    return logs[:, 1:] - logs[:, :1] if size == 1 else logs


if __name__ == "__main__":
    sys.exit(main())
