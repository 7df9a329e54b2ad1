"""Record finished runs compactly: one line each in tools/results/CELL.jsonl, with their outputs beside it.

    python tools/paper/record.py CELL RUN [RUN ...] [--commit HASH] [--processor NAME --torch VERSION]

A line has the run's settings without paths, the records of its epochs, its commit and its machine; that of an
ensemble has its members, and the seed 0. The outputs on the dev and test tables are in
tools/results/outputs/CELL-seed-N.npz: class probabilities and regression values in float16, in the order of
the table's rows. Ensembles and pages need nothing else. Recording a run again replaces its line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np

from minbert.errors import InputError
from multitask.machine import rounding
from multitask.recipes import read_settings
from runs import records, result

RESULTS = Path(__file__).resolve().parents[1] / "results"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cell", help="name of the cell, the same for all its seeds")
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs")
    parser.add_argument("--commit", help="commit of the code that ran (default: this checkout's)")
    parser.add_argument("--processor", help="what the runs ran on (default: this machine's)")
    parser.add_argument("--torch", help="the version of torch there (default: this one)")
    args = parser.parse_args()
    try:
        commit = args.commit or head()
        for run in args.runs:
            print(record(args.cell, run, commit, args.processor, args.torch))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def head() -> str:
    """Return the commit that is checked out, with the suffix -dirty if files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError("not a git checkout; use --commit HASH")
    return done.stdout.strip()


def record(cell: str, run: Path, commit: str, processor: str | None = None, torch: str | None = None) -> Path:
    """Write a run's line and outputs; return the path of the line's file."""
    settings = read_settings(run / "config.toml")
    found, here = result(run), rounding()
    settings = {
        name: Path(value).name if name == "weights" else value  # a checkpoint's name, or a folder's
        for name, value in settings.items()
        if name not in ("data", "task_file", "init", "out", "run")
    }
    entry = {
        "cell": cell,
        "seed": settings.get("seed", 0),
        "commit": commit,
        "machine": {"processor": processor or here["processor"], "torch": torch or here["torch"]},
        "settings": settings,
        "best_epoch": found.get("best_epoch"),
        "dev": found["dev"],
        "epochs": records(run),
    }
    if chosen := found.get("tasks"):
        entry["members"] = {task: [Path(one).name for one in of["members"]] for task, of in chosen.items()}
    return keep(entry, outputs(run))


def keep(entry: dict[str, Any], outputs: dict[str, np.ndarray]) -> Path:
    """Write a line in place of the same seed's, and the run's outputs; return the path of the line's file."""
    path = RESULTS / f"{entry['cell']}.jsonl"
    others = [line for line in lines_of(path) if line["seed"] != entry["seed"]]
    (RESULTS / "outputs").mkdir(parents=True, exist_ok=True)
    if outputs:  # none of mnrl, whose model has no heads
        np.savez_compressed(
            RESULTS / "outputs" / f"{entry['cell']}-seed-{entry['seed']}.npz", **cast(Any, outputs)
        )
    ordered = sorted([*others, entry], key=lambda line: line["seed"])
    path.write_text("".join(json.dumps(line) + "\n" for line in ordered), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of a cell, none if it has no file yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def outputs(run: Path) -> dict[str, np.ndarray]:
    """Return {task-split: outputs}, such as sst-dev: (N, classes) probabilities, or (N,) values."""
    found = {}
    for path in sorted((run / "predictions").glob("*-output.csv")):
        name, separator = path.name.removesuffix("-output.csv"), " , "
        probabilities = path.with_name(f"{name}-probabilities.csv")
        if probabilities.exists():
            path, separator = probabilities, "\t"
        rows = path.read_text(encoding="utf-8").splitlines()[1:]
        values = [[float(value) for value in row.split(separator)[1:]] for row in rows]
        found[name] = np.array(values, np.float16).squeeze()
    return found


if __name__ == "__main__":
    sys.exit(main())
