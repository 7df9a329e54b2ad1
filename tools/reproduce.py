"""The paper's tables and figures, one command each: our numbers beside the paper's. The paper is "Jack of All
Trades, Master of Some: Improving BERT for Multitask Learning" (Stanford CS224N).

    python tools/reproduce.py table7 [--data DIR] [--weights NAME] [--seeds 0,1,2] [--budget MINUTES]
    python tools/reproduce.py table7 --weights minilm-l6 --set lr=5x,pooling=mean
    python tools/reproduce.py table7 --list       # the command of every cell, for any other scheduler

A cell is the run of one row (paper.py) with one seed, in OUT/CELL/seed-N; tables that share a run share its
folder. A cell whose folder holds result.json is done, and skipped; one that was stopped is gone on with.
Scores are only ever read from these folders, so the cells may as well have run elsewhere. Writes
OUT/TABLE.md, .png and .svg. Needs the extra `plots`.

--set gives a setting to every cell that uses it, except where the cell's table states it: lr=3e-5, or lr=5x
for five times the rate that each row or its recipe states, also where the table varies it. A setting of SMART
or BPPO goes to the cells that have it on. These runs and pages lie in OUT/set-NAME=VALUE,...
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
from cells import Figure, Table
from grid import Grid, Job, carry_out, jobs_of, pooled, weights_of_recipes
from minbert import hub
from minbert.errors import InputError
from multitask.command_line import resolve
from multitask.config import Config, check, read_toml
from multitask.figures import plotting
from multitask.tasks import BUILT_IN, select
from notes import data_note, notes_on, notes_on_changes, notes_on_ensemble
from overrides import changed_figure, changed_table, in_words, read_changes
from pages import HEAD, Score, write_figure, write_table
from paper import FIGURES, TABLES
from runs import COLUMNS, dev_scores, read_labels, test_scores

# Modules that bring torch are imported where they are used: --list and mistakes are answered at once.
WITH_ENSEMBLE = ("table7", "table8")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 1 where a cell failed; 2 after a mistake in the input, with one line that says which;
    130 after Ctrl-C and 141 where nobody reads the output any more."""
    try:
        return reproduce(parse(argv))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on", file=sys.stderr)
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
    with plotting():  # says before the work whether it can draw
        failed = carry_out(jobs)
        if isinstance(target, Table):
            print("\n" + write_table(target, grid, score, notes, stem))
        elif not failed:
            print("\n" + write_figure(target, grid, notes, tables_of(grid), stem))
    print(f"{failed} of {len(jobs)} failed" if failed else f"written {stem}.md, {stem}.png and {stem}.svg")
    return 1 if failed else 0


def planned(args: argparse.Namespace) -> tuple[Table | Figure, Grid, list[str], Path]:
    """What is asked for: the table or figure, where its cells run, what a reader must know of the numbers,
    and where the page goes, without its ending."""
    weights, changes = weights_of(args), read_changes(args.set)
    out = Path(args.out or Path("runs", "reproduce", Path(weights).name))
    if changes:
        out = out / f"set-{in_words(changes)}"
    machine = [f"--{name}={value}" for name in ("threads", "device") if (value := vars(args)[name])]
    grid = Grid(out, args.data, args.weights, args.seeds, machine, args.precision)
    stem = out / args.target
    thresholds = {"thresholds": read_thresholds(args.thresholds)} if args.thresholds else {}
    tables = {name: changed_table(table, changes | thresholds) for name, table in TABLES.items()}
    targets: dict[str, Table | Figure] = {
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
    if isinstance(target, Table) and args.target in WITH_ENSEMBLE:
        if args.pool:
            target = pooled(target, tables.values(), grid)
        unscored = args.target == "table8" and not args.test_labels
        notes += notes_on_ensemble(target.rows[-1].cell, grid, args.pool, unscored)
    return target, grid, notes, stem


def weights_of(args: argparse.Namespace) -> str:
    return args.weights or weights_of_recipes()


# Checks before any work


def scorer(args: argparse.Namespace) -> Score:
    """How the scores of a run are read: on dev, or in Table 8 on the test tables, where they have labels."""
    if args.target != "table8":
        return dev_scores
    if args.test_labels is None:
        return lambda run: (np.nan,) * len(HEAD)
    folder = Path(args.test_labels)
    labels = {task.name: read_labels(folder, task, "test-student") for task in BUILT_IN.values()}
    return lambda run: test_scores(run, labels)


def check_input(grid: Grid, weights: str) -> dict[str, tuple[int, int]]:
    """Tables and weights are there before anything is measured or run; returns the rows of train and dev."""
    from multitask.jobs import SPLITS, read_splits

    rows = read_splits(grid.data, SPLITS, BUILT_IN, skip_bad_rows=False)
    hub.resolve(weights)
    train, dev = (rows[split] for split in SPLITS[:2])
    return {name: (len(train[task.name]), len(dev[task.name])) for name, task in COLUMNS.items()}


def tables_of(grid: Grid) -> Path:
    from multitask.data import SAMPLE

    return Path(grid.data) if grid.data else SAMPLE


def read_thresholds(text: str) -> tuple[str, ...]:
    """Raises InputError for what is no threshold of a task."""
    found = check("thresholds", text.split(","), "--thresholds")
    select(list(Config("ensemble", thresholds=found).least_scores), BUILT_IN)
    return found


def check_runs(jobs: Sequence[Job], grid: Grid, weights: str) -> None:
    """No command has a mistake, and no folder holds a run on other tables or weights."""
    for job in jobs:
        if not job.product.exists():
            resolve(job.words)
        if (path := job.run / "config.toml").is_file():
            found = {"weights": weights} | read_toml(path)  # names none where it started from another run
            for name, wanted in {"data": grid.data, "weights": weights}.items():
                if last_part(found.get(name)) != last_part(wanted):
                    before = found.get(name, "the shipped sample")
                    raise InputError(f"{path}: the run was made with {name} {before}; name another --out")


def last_part(path: str | None) -> str:
    """By which a folder is known again where a run was made on another machine."""
    return Path(path).resolve().name if path else ""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the flags)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*TABLES, *FIGURES], help="the table or figure")
    parser.add_argument("--data", help="folder of tables (default: the shipped sample)")
    parser.add_argument(
        "--weights", help=f"pretrained encoder (default: the recipes', {weights_of_recipes()})"
    )
    parser.add_argument(
        "--seeds", type=seeds, default=(0,), metavar="N,N", help="seeds of each cell (default 0)"
    )
    parser.add_argument(
        "--budget", type=minutes, metavar="MINUTES", help="fewer steps and epochs, so that the grid fits"
    )
    parser.add_argument(
        "--set", type=lambda text: text.split(","), action="extend", default=[], metavar="NAME=VALUE,...",
        help="settings of every cell that uses them, where its table does not state them; lr=5x is a ratio",
    )  # fmt: skip
    parser.add_argument(
        "--thresholds",
        metavar="TASK=X,...",
        help="table7, table8: least dev scores of the ensemble's members",
    )
    parser.add_argument(
        "--pool",
        action="store_true",
        help="table7, table8: let the ensemble draw on all finished cells in OUT",
    )
    parser.add_argument("--list", action="store_true", help="print the cells' commands and run nothing")
    parser.add_argument("--out", help="folder of the cells and pages (default: runs/reproduce/WEIGHTS)")
    parser.add_argument("--test-labels", metavar="DIR", help="table8: the test tables with labels, to score")
    parser.add_argument("--threads", help="processor threads of each run")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N, for each run")
    parser.add_argument("--precision", help="float32 or bf16, of each run")
    args = parser.parse_args(argv)
    if args.test_labels and args.target != "table8":
        parser.error("--test-labels belongs to table8")
    for name in ("pool", "thresholds"):
        if vars(args)[name] and args.target not in WITH_ENSEMBLE:
            parser.error(f"--{name} belongs to table7 and table8")
    if args.pool and args.budget:
        parser.error("--pool: each budget has a folder of its own, without the other tables' cells")
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
