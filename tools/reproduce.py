"""The paper's tables and figures, one command each: our numbers beside the paper's.

    python tools/reproduce.py table7 [--data DIR] [--weights NAME] [--seeds 0,1,2] [--budget MINUTES]
    python tools/reproduce.py table7 --list       # the command of every cell, for any other scheduler

A cell is the run of one row (paper.py) with one seed, in OUT/CELL/seed-N; tables that share a run share its
folder. A cell whose folder holds result.json is done, and skipped; one that was stopped is gone on with.
Scores are only ever read from these folders, so the cells may as well have run elsewhere. Writes
OUT/TABLE.md, .png and .svg. Needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from budget import within
from grid import RESULT, Grid, Job, carry_out, jobs_of, weights_of_recipes
from minbert import hub
from minbert.errors import InputError
from multitask.command_line import resolve
from multitask.config import read_toml
from multitask.figures import comparison, plotting, save_figure
from multitask.tasks import BUILT_IN, PARAPHRASE, SENTIMENT, SIMILARITY, Task
from paper import ENSEMBLE, TARGETS, Figure, Scores, Table

# Modules that bring torch are imported where they are used: --list and mistakes are answered at once.
COLUMNS = {"QQP": PARAPHRASE, "SST": SENTIMENT, "STS": SIMILARITY}
HEAD = (*COLUMNS, "Model")


# From run folders to numbers


def result(run: Path) -> dict[str, Any]:
    """What a finished run found: its dev scores, and for an ensemble each task's members."""
    try:
        return json.loads((run / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run / RESULT}: cannot be read ({error}); delete it to run the cell again"
        ) from None


def dev_scores(run: Path) -> Scores:
    dev = result(run)["dev"]
    return (*(task.score(dev[task.name][task.metric]) for task in COLUMNS.values()), dev["score"])


def test_scores(run: Path, labels: Mapping[str, Mapping[str, float]]) -> Scores:
    """The predictions for the test tables against {task: {id: label}}."""
    from multitask.evaluate import METRICS

    found = []
    for task in COLUMNS.values():
        truth = labels[task.name]
        metric = METRICS[task.metric](read_predictions(run, task, "test", truth), np.array([*truth.values()]))
        found.append(task.score(metric))
    return (*found, statistics.mean(found))


def read_labels(folder: Path, task: Task, split: str) -> dict[str, float]:
    from multitask.data import read_table

    table = read_table(task.path(folder, split), task, labelled=True)
    return dict(zip(table.ids, table.labels.tolist(), strict=True))


def read_predictions(run: Path, task: Task, split: str, ids: Iterable[str]) -> np.ndarray:
    """What a run's submission file says of these rows."""
    path = run / "predictions" / f"{task.submission}-{split}-output.csv"
    try:
        with path.open(encoding="utf-8") as lines:
            next(lines, "")
            values = {row: float(value) for row, value in (line.rsplit(" , ", 1) for line in lines)}
        return np.array([values[row] for row in ids])
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no predictions to read ({error}); was there a {split} table?") from None
    except KeyError as error:
        raise InputError(f"{path}: lacks row {error}, which the labels have") from None


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1); NaN where there are too few values."""
    mean = statistics.mean(values) if values else np.nan
    return mean, statistics.stdev(values) if len(values) > 1 else np.nan


# From numbers to Markdown and charts


def write_table(
    table: Table, grid: Grid, score: Callable[[Path], Scores], notes: Sequence[str], stem: Path
) -> str:
    """STEM.md, .png and .svg, each figure of ours before the paper's; returns the Markdown."""
    done = [grid.done(row.cell) for row in table.rows]
    ours = [[mean_and_spread(values) for values in columns([score(run) for run in runs])] for runs in done]
    lines = []
    for row, runs, found in zip(table.rows, done, ours, strict=True):
        pairs = zip((shown(*one) for one in found), (f"{value:.3f}" for value in row.paper), strict=True)
        lines.append([*row.labels, *chain(*pairs), len(runs)])
    head = [*table.head, *chain(*((f"{name} ours†", "paper") for name in HEAD)), "n"]
    labels, paper = [", ".join(row.labels) for row in table.rows], np.array([row.paper for row in table.rows])
    drawing = comparison(", ".join(table.head), labels, HEAD, paper, np.array(ours))
    save_figure(drawing, stem.parent, stem.name)
    return write_page(table.title, [*notes, *memberships(chain(*done))], markdown(head, lines), stem)


def columns(scores: Sequence[Scores]) -> list[list[float]]:
    return [[one[place] for one in scores] for place in range(len(HEAD))]


def shown(mean: float, spread: float) -> str:
    return "–" if np.isnan(mean) else f"{mean:.3f}" if np.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"


def memberships(runs: Iterable[Path]) -> Iterator[str]:
    """Whom each ensemble among these runs averages, task by task."""
    for run in runs:
        for task, chosen in result(run).get("tasks", {}).items():
            names = ", ".join(Path(member).parent.name for member in chosen["members"])
            yield f"{run.name}, members for {task}: {names}."


def write_figure(figure: Figure, grid: Grid, notes: Sequence[str], stem: Path) -> str:
    """STEM.md, .png and .svg: the figure of the run with the best dev score; returns the Markdown."""
    best = max(grid.done(figure.cell), key=lambda run: result(run)["dev"]["score"])
    for ending in (".png", ".svg"):
        shutil.copyfile(best / "figures" / (figure.file + ending), f"{stem}{ending}")
    notes = [*notes, f"Drawn of {best}, dev score {result(best)['dev']['score']:.3f}."]
    lines = share_lines(best, figure.shares, tables_of(grid)) if figure.shares else []
    return write_page(figure.title, notes, lines, stem)


def share_lines(run: Path, shares: Mapping[tuple[int, int], float], tables: Path) -> list[str]:
    """The shares of a true class that are predicted as another, ours beside those that the paper states."""
    labels = read_labels(tables, SENTIMENT, "dev")
    truth, predicted = np.array([*labels.values()]), read_predictions(run, SENTIMENT, "dev", labels)
    rows = [
        [true, guess, f"{np.mean(predicted[truth == true] == guess):.2f}", f"{paper:.2f}"]
        for (true, guess), paper in shares.items()
    ]
    return markdown(["true class", "predicted", "share ours†", "paper"], rows)


def tables_of(grid: Grid) -> Path:
    from multitask.data import SAMPLE

    return Path(grid.data) if grid.data else SAMPLE


def markdown(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows)]


def write_page(title: str, notes: Iterable[str], lines: Sequence[str], stem: Path) -> str:
    listed = [f"- {note}" for note in notes]
    text = "\n".join([f"# {title}", "", *listed, "", *lines, "", f"![{title}]({stem.name}.png)", ""])
    Path(f"{stem}.md").write_text(text, encoding="utf-8")
    return text


# The command line


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
    target, weights = TARGETS[args.target], args.weights or weights_of_recipes()
    out = Path(args.out or Path("runs", "reproduce", Path(weights).name))
    machine = [f"--{name}={value}" for name in ("threads", "device") if (value := vars(args)[name])]
    grid, stem = Grid(out, args.data, args.weights, args.seeds, machine), out / args.target
    notes = [*target.notes, *notes_on(grid, weights)]
    if args.budget or not args.list:
        check_input(grid, weights)
    if args.budget:
        grid, note = within(args.budget, args.target, grid)
        notes, stem = [note, *notes], out / f"{args.target}-budget-{args.budget:g}"
    if args.target == "table8" and not args.test_labels:
        files = grid.out / ENSEMBLE.name / "seed-N" / "predictions" / "*-test-output.csv"
        notes.append(f"Not scored, for want of --test-labels; the predictions are {files}.")
    jobs = jobs_of(target, grid)
    if args.list:
        print("\n".join([*(f"# {line}" for line in (target.title, *notes)), *map(str, jobs)]))
        return 0
    score = scorer(args)
    check_runs(jobs, grid, weights)
    print("\n".join((target.title, *notes)), flush=True)
    with plotting():  # says before the work whether it can draw
        failed = carry_out(jobs)
        if isinstance(target, Table):
            print("\n" + write_table(target, grid, score, notes, stem))
        elif not failed:
            print("\n" + write_figure(target, grid, notes, stem))
    print(f"{failed} of {len(jobs)} failed" if failed else f"written {stem}.md, {stem}.png and {stem}.svg")
    return 1 if failed else 0


def notes_on(grid: Grid, weights: str) -> list[str]:
    """What a reader of the numbers must know."""
    notes = []
    if grid.data is None:
        notes.append("On the shipped sample: too small for its scores to mean anything.")
    known = hub.CHECKPOINTS.get(weights)
    notes.append(f"† From {weights}{f', pre-training: {known.pretraining}' if known else ''}.")
    if len(grid.seeds) > 1:
        notes.append("Ours are mean ± standard deviation (n - 1) over n seeds.")
    return notes


def scorer(args: argparse.Namespace) -> Callable[[Path], Scores]:
    """How the scores of a run are read: on dev, or in Table 8 on the test tables, where they have labels."""
    if args.target != "table8":
        return dev_scores
    if args.test_labels is None:
        return lambda run: (np.nan,) * len(HEAD)
    folder = Path(args.test_labels)
    labels = {task.name: read_labels(folder, task, "test-student") for task in BUILT_IN.values()}
    return lambda run: test_scores(run, labels)


def check_input(grid: Grid, weights: str) -> None:
    """Tables and weights are there before anything is measured or run."""
    from multitask.jobs import SPLITS, read_splits

    read_splits(grid.data, SPLITS, BUILT_IN, skip_bad_rows=False)
    hub.resolve(weights)


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
    parser.add_argument("target", choices=TARGETS, help="the table or figure")
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
    parser.add_argument("--list", action="store_true", help="print the cells' commands and run nothing")
    parser.add_argument("--out", help="folder of the cells and pages (default: runs/reproduce/WEIGHTS)")
    parser.add_argument("--test-labels", metavar="DIR", help="table8: the test tables with labels, to score")
    parser.add_argument("--threads", help="processor threads of each run")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N, for each run")
    args = parser.parse_args(argv)
    if args.test_labels and args.target != "table8":
        parser.error("--test-labels belongs to table8")
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
