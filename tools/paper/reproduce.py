"""Reproduce a table or figure of the paper with one command: our numbers beside the paper's. The paper is
"Jack of All Trades, Master of Some: Improving BERT for Multitask Learning" (Stanford CS224N).

    python tools/paper/reproduce.py table7 [--data DIR] [--weights NAME] [--seeds 0,1,2] [--budget MINUTES]
    python tools/paper/reproduce.py table7 --weights minilm-l6 --set lr=5x,pooling=mean
    python tools/paper/reproduce.py table7 --list       # print every cell's command, for another scheduler

A cell is the run of one row (see paper.py) with one seed, in OUT/CELL/seed-N; tables with the same run share
its folder. A cell with a result.json is finished and skipped; an interrupted one is resumed. Scores are only
read from these folders, so the cells may also run elsewhere. Writes OUT/TABLE.md, .png and .svg. Needs the
extra `plots`.

--set gives a setting to every cell that uses it, unless the cell's table states its own: lr=3e-5, or lr=5x
for five times the rate of each row or its recipe, even if the table varies it. A setting of SMART or BPPO
applies only to cells that have the method on. These runs and pages are in OUT/set-NAME=VALUE,...
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from budget import within
from cells import Figure, PaperTable
from grid import Grid, Job, carry_out, jobs_of, pooled, weights_of_recipes
from minbert import hub
from minbert.errors import InputError
from minbert.fields import check
from multitask.command_line import resolve
from multitask.config import FIELDS, Choice
from multitask.data.tasks import BUILT_IN, select
from multitask.recipes import read_settings
from multitask.report.drawing import plotting
from notes import data_note, notes_on, notes_on_changes, notes_on_ensemble
from overrides import changed_figure, changed_table, in_words, read_changes
from pages import HEAD, Score, write_figure, write_table
from paper import FIGURES, TABLES
from runs import COLUMNS, dev_scores, read_labels, test_scores

# Modules that import torch are imported only where they are used, so that --list and errors are immediate.
WITH_ENSEMBLE = ("table7", "table8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0 means success, 1 a failed cell, 2 a mistake in the input, reported in one line, 130 Ctrl-C and 141 that
    standard output was closed.
    """
    try:
        return reproduce(parse(argv))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the same command to resume", file=sys.stderr)
        return 130


def reproduce(args: argparse.Namespace) -> int:
    """List or run the grid of a table or figure, and write its page."""
    target, grid, notes, stem = planned(args)
    jobs = jobs_of(target, grid)
    if args.list:
        print("\n".join([*(f"# {line}" for line in (target.title, *notes)), *map(str, jobs)]))
        return 0
    score = scorer(args)
    check_runs(jobs, grid, weights_of(args))
    print("\n".join((target.title, *notes)), flush=True)
    with plotting():  # fails before the work if it cannot plot
        failed = carry_out(jobs)
        if isinstance(target, PaperTable):
            print("\n" + write_table(target, grid, score, notes, stem))
        elif not failed:
            print("\n" + write_figure(target, grid, notes, tables_of(grid), stem))
    print(f"{failed} of {len(jobs)} failed" if failed else f"wrote {stem}.md, {stem}.png and {stem}.svg")
    return 1 if failed else 0


def planned(args: argparse.Namespace) -> tuple[PaperTable | Figure, Grid, list[str], Path]:
    """Return the target that was asked for, its grid, its notes and the path of its page without suffix."""
    weights, changes = weights_of(args), read_changes(args.set)
    out = Path(args.out or Path("runs", "reproduce", Path(weights).name))
    if changes:
        out = out / f"set-{in_words(changes)}"
    machine = [f"--{name}={value}" for name in ("threads", "device") if (value := vars(args)[name])]
    grid = Grid(out, args.data, args.weights, args.seeds, machine, args.precision)
    stem = out / args.target
    thresholds = {"thresholds": read_thresholds(args.thresholds)} if args.thresholds else {}
    tables = {name: changed_table(table, changes | thresholds) for name, table in TABLES.items()}
    targets: dict[str, PaperTable | Figure] = {
        **tables,
        **{name: changed_figure(figure, changes) for name, figure in FIGURES.items()},
    }
    target = targets[args.target]
    notes = [*notes_on(target, grid, weights), *notes_on_changes(target, changes)]
    if args.budget or not args.list:
        notes.append(data_note(check_input(grid, weights)))
    if args.budget:
        grid, note = within(args.budget, args.target, targets, grid)
        notes, stem = [note, *notes], out / f"{args.target}-budget-{args.budget:g}"
    if isinstance(target, PaperTable) and args.target in WITH_ENSEMBLE:
        if args.pool:
            target = pooled(target, tables.values(), grid)
        unscored = args.target == "table8" and not args.test_labels
        notes += notes_on_ensemble(target.rows[-1].cell, grid, args.pool, unscored)
    return target, grid, notes, stem


def weights_of(args: argparse.Namespace) -> str:
    return args.weights or weights_of_recipes()


# Checks before any work


def scorer(args: argparse.Namespace) -> Score:
    """Return how to score a run: on dev, or for Table 8 on the test tables, NaN if they have no labels."""
    if args.target != "table8":
        return dev_scores
    if args.test_labels is None:
        return lambda run: (np.nan,) * len(HEAD)
    folder = Path(args.test_labels)
    labels = {task.name: read_labels(folder, task, "test-student") for task in BUILT_IN.values()}
    return lambda run: test_scores(run, labels)


def check_input(grid: Grid, weights: str) -> dict[str, tuple[int, int]]:
    """Check tables and weights before anything runs; return the numbers of rows of train and dev."""
    from multitask.data.tables import SPLITS, read_splits

    rows = read_splits(grid.data, SPLITS, BUILT_IN, skip_bad_rows=False)
    hub.resolve(weights)
    train, dev = (rows[split] for split in SPLITS[:2])
    return {name: (len(train[task.name]), len(dev[task.name])) for name, task in COLUMNS.items()}


def tables_of(grid: Grid) -> Path:
    from multitask.data.tables import SAMPLE

    return Path(grid.data) if grid.data else SAMPLE


def read_thresholds(text: str) -> tuple[str, ...]:
    """Parse the thresholds. Raises InputError if one is invalid or its task unknown."""
    found = check(text.split(","), FIELDS["thresholds"], "--thresholds")
    select(list(Choice(thresholds=found).least_scores), BUILT_IN)
    return found


def check_runs(jobs: Sequence[Job], grid: Grid, weights: str) -> None:
    """Raise InputError if a command is invalid, or a folder has a run on other tables or weights."""
    for job in jobs:
        if not job.product.exists():
            resolve(job.words)
        if (path := job.run / "config.toml").is_file():
            found = {"weights": weights} | read_settings(path)  # it has none if it started from another run
            for name, wanted in {"data": grid.data, "weights": weights}.items():
                if last_part(found.get(name)) != last_part(wanted):
                    before = found.get(name, "the shipped sample")
                    raise InputError(f"{path}: the run was made with {name} {before}; choose another --out")


def last_part(path: str | None) -> str:
    """Return the name of a folder, which is the same if the run was made on another machine."""
    return Path(path).resolve().name if path else ""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the flags)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*TABLES, *FIGURES], help="table or figure to reproduce")
    parser.add_argument("--data", help="folder of tables (default: the shipped sample)")
    parser.add_argument(
        "--weights", help=f"pretrained encoder (default: {weights_of_recipes()}, as in the recipes)"
    )
    parser.add_argument(
        "--seeds", type=seeds, default=(0,), metavar="N,N", help="seeds for every cell (default 0)"
    )
    parser.add_argument(
        "--budget", type=minutes, metavar="MINUTES", help="scale down steps and epochs to fit into this time"
    )
    parser.add_argument(
        "--set", type=lambda text: text.split(","), action="extend", default=[], metavar="NAME=VALUE,...",
        help="settings for all cells that use them and whose table does not state them; lr=5x is a ratio",
    )  # fmt: skip
    parser.add_argument(
        "--thresholds",
        metavar="TASK=X,...",
        help="table7, table8: minimum dev scores of the ensemble's members",
    )
    parser.add_argument(
        "--pool",
        action="store_true",
        help="table7, table8: let the ensemble choose from all finished cells in OUT",
    )
    parser.add_argument("--list", action="store_true", help="print the cells' commands without running them")
    parser.add_argument("--out", help="folder for cells and pages (default: runs/reproduce/WEIGHTS)")
    parser.add_argument(
        "--test-labels", metavar="DIR", help="table8: folder of labelled test tables to score on"
    )
    parser.add_argument("--threads", help="CPU threads for each run")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N, for each run")
    parser.add_argument("--precision", help="float32 or bf16, for each run")
    args = parser.parse_args(argv)
    if args.test_labels and args.target != "table8":
        parser.error("--test-labels applies only to table8")
    for name in ("pool", "thresholds"):
        if vars(args)[name] and args.target not in WITH_ENSEMBLE:
            parser.error(f"--{name} applies only to table7 and table8")
    if args.pool and args.budget:
        parser.error("--pool cannot be combined with --budget, whose folder lacks the other tables' cells")
    return args


def seeds(text: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(int(one) for one in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not N,N,...") from None
    return found


def minutes(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = np.nan
    if not 0 < found < np.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes")
    return found


if __name__ == "__main__":
    sys.exit(main())
