"""Draw the tables and figures of docs/results.md, and README's headline, from the records in tools/results.

    python tools/paper/published.py              # from the records alone
    python tools/paper/published.py --data DIR   # first compute what needs the labels of the dev tables anew

Text outside the marked blocks of a page stays. What needs the labels (intervals, differences, likelihoods) is
kept in tools/results/judged.json, so that the page can be drawn without the tables.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minbert.errors import InputError
from minbert.files import write_content, write_text
from multitask.data.resampling import interval, weighted_accuracy, weighted_pearson
from multitask.report.drawing import DARK, LIGHT, Theme, drawn, svg_of
from pages import NONE, markdown
from record import RESULTS, lines_of
from runs import COLUMNS, mean_and_spread, read_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = RESULTS.parents[1]
JUDGED = RESULTS / "judged.json"
DRAWS = 2000  # of the bootstrap
SUBMISSIONS = {task.submission: task for task in COLUMNS.values()}  # as the outputs are named
MEASURES = ("SST", "QQP", "(1 + r) / 2", "score", "NLL of SST", "NLL of QQP")


@dataclass(frozen=True)
class Line:
    """A row of the table: a cell of runs, and the cell that it builds on."""

    title: str
    cell: str
    builds_on: str | None = None
    in_readme: bool = True


LINES = (
    Line("baseline: tasks in turn", "baseline-equal-updates-5x"),
    Line("baseline, full passes", "baseline-full-pass-5x", in_readme=False),
    Line("baseline + SMART", "baseline-smart-ball-5x", "baseline-equal-updates-5x"),
    Line("annealed", "annealed-5x", "baseline-equal-updates-5x"),
    Line("annealed + SMART", "annealed-smart-ball-5x", "annealed-5x"),
    Line("MNRL + annealed + SMART", "mnrl-annealed-smart-ball-5x", "annealed-smart-ball-5x"),
    Line("the same, trained on (mu = 0)", "mnrl-control-ball-5x"),
    Line("MNRL + BPPO (mu 1, beta .75)", "mnrl-bregman-ball-5x", "mnrl-control-ball-5x"),
    Line("MNRL + BPPO (mu 3, beta .99:.999)", "mnrl-bregman-strong-ball-5x", "mnrl-control-ball-5x"),
    Line("ensemble of all", "ensemble", "mnrl-bregman-ball-5x"),
    Line("student of the ensemble", "student", "mnrl-bregman-ball-5x"),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the dev tables")
    args = parser.parse_args()
    try:
        records = {line.cell: lines_of(RESULTS / f"{line.cell}.jsonl") for line in LINES}
        lines = [line for line in LINES if records[line.cell]]
        if args.data:
            write_text(JUDGED, json.dumps(judge(lines, args.data), indent=1) + "\n")
        judged = json.loads(JUDGED.read_text(encoding="utf-8"))
        draw(lines, records, judged, ROOT)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# With the labels


def judge(lines: Sequence[Line], data: Path) -> dict[str, Any]:
    """Return {"rows": {cell: {measure: interval}}, "differences": {cell: {measure: ...}}}."""
    truth, draws = read_truth(data)
    found = {
        line.cell: {seed: measure(one, truth, draws) for seed, one in outputs_of(line.cell).items()}
        for line in lines
    }
    return {
        "rows": {cell: summary([*seeds.values()]) for cell, seeds in found.items() if seeds},
        "differences": {
            line.cell: summary(paired(found[line.cell], found[line.builds_on]))
            for line in lines
            if line.builds_on and found.get(line.builds_on)
        },
    }


def read_truth(data: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the labels of each dev table, (rows,), and the draws of its rows: see `drawn_rows`."""
    labels = {name: read_labels(data, task, "dev").values() for name, task in SUBMISSIONS.items()}
    truth = {name: np.array([*values]) for name, values in labels.items()}
    return truth, {name: drawn_rows(len(values), name) for name, values in truth.items()}


def drawn_rows(rows: int, name: str) -> np.ndarray:
    """Return how often each row is drawn, (1 + DRAWS, rows): first each once, then the bootstrap's draws."""
    draws = np.random.default_rng(list(name.encode())).multinomial(rows, np.full(rows, 1 / rows), DRAWS)
    return np.concatenate([np.ones((1, rows)), draws]).astype(np.float64)


def outputs_of(cell: str) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the outputs of a cell's runs by seed."""
    return {
        path.stem.rpartition("-")[2]: {name: x.astype(np.float64) for name, x in np.load(path).items()}
        for path in sorted((RESULTS / "outputs").glob(f"{cell}-seed-*.npz"))
    }


def measure(
    outputs: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return each of MEASURES on each draw, (len(MEASURES), 1 + DRAWS)."""
    accuracies, likelihoods = {}, {}
    for name in ("sst", "para"):
        probabilities, labels, weights = outputs[f"{name}-dev"], truth[name].astype(int), draws[name]
        accuracies[name] = weighted_accuracy(probabilities.argmax(1), labels, weights)
        own = probabilities[np.arange(len(labels)), labels] / probabilities.sum(1)
        likelihoods[name] = weights @ -np.log(np.maximum(own, 1e-7)) / len(labels)
    half = (1 + weighted_pearson(outputs["sts-dev"], truth["sts"], draws["sts"])) / 2
    score = (accuracies["sst"] + accuracies["para"] + half) / 3
    return np.stack(
        [accuracies["sst"], accuracies["para"], half, score, likelihoods["sst"], likelihoods["para"]]
    )


def paired(ones: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the difference for each seed that both have; if there is none, that of their means."""
    if both := [seed for seed in ones if seed in others]:
        return [ones[seed] - others[seed] for seed in both]
    return [np.mean([*ones.values()], axis=0) - np.mean([*others.values()], axis=0)]


def summary(seeds: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return for each measure its mean over the seeds, their spread, n, and the 95% interval of the mean."""
    means = np.mean(seeds, axis=0)
    spreads = np.std(seeds, axis=0, ddof=1)[:, 0] if len(seeds) > 1 else None
    return {
        name: {
            "mean": round(float(means[place, 0]), 5),
            "spread": None if spreads is None else round(float(spreads[place]), 5),
            "n": len(seeds),
            "interval": [round(end, 5) for end in interval(means[place, 1:])],
        }
        for place, name in enumerate(MEASURES)
    }


# The pages


def draw(
    lines: Sequence[Line], records: Mapping[str, list[dict[str, Any]]], judged: Mapping[str, Any], root: Path
) -> None:
    """Fill the blocks of the pages below `root`, and draw their figure."""
    rows, differences = judged["rows"], judged["differences"]
    headline = [*score_lines([line for line in lines if line.in_readme], rows)]
    fill(root / "README.md", {"headline": headline})
    blocks = {
        "scores": [*score_lines(lines, rows)],
        "fit": [*fit_lines(lines, records, rows)],
        "differences": [*difference_lines(lines, differences)],
    }
    fill(root / "docs" / "results.md", blocks)
    shown = [line for line in lines if line.cell in rows]
    points = {line.title: [one["dev"]["score"] for one in records[line.cell]] for line in shown}
    intervals = [rows[line.cell]["score"]["interval"] for line in shown]
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        picture = svg_of(dots(points, intervals, theme=theme))
        write_content(root / "docs" / "images" / f"results-{name}.svg", picture)


@drawn
def dots(
    points: Mapping[str, Sequence[float]], intervals: Sequence[Sequence[float]], *, theme: Theme = LIGHT
) -> Figure:
    """Plot the score of each row's seeds, their mean, and the mean's interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.7 + 0.34 * len(points)))
    axes = figure.add_subplot()
    for place, (scores, (low, high)) in enumerate(zip(points.values(), intervals, strict=True)):
        axes.hlines(place, low, high, color=theme.colour(0), linewidth=6, alpha=0.25)
        axes.plot(scores, [place] * len(scores), "o", color=theme.colour(0), markersize=5, alpha=0.6)
        axes.plot(np.mean(scores), place, "|", color=theme.ink, markersize=13, markeredgewidth=2)
    axes.set_yticks(range(len(points)), list(points))
    axes.set_ylim(len(points) - 0.5, -0.5)
    axes.set_xlabel("score on dev: each seed, their mean, and its 95% interval")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=theme.faint)
    return figure


def score_lines(lines: Sequence[Line], rows: Mapping[str, Any]) -> Iterator[str]:
    head = ["", "SST", "QQP", "r", "(1 + r) / 2", "score", "95% interval", "n"]
    yield from markdown(head, [
        [line.title, *(shown(rows[line.cell][name]) for name in ("SST", "QQP")),
         three(2 * rows[line.cell]["(1 + r) / 2"]["mean"] - 1),
         *(shown(rows[line.cell][name]) for name in ("(1 + r) / 2", "score")),
         ends(rows[line.cell]["score"]), rows[line.cell]["score"]["n"]]
        for line in lines if line.cell in rows
    ])  # fmt: skip


def fit_lines(
    lines: Sequence[Line], records: Mapping[str, list[dict[str, Any]]], rows: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a table of how even and how overfitted the rows are, and of what they cost."""
    gaps = [f"{name}, train − dev" for name in ("SST", "QQP", "r")]
    head = ["", "worst", "spread", *gaps, "NLL of SST", "NLL of QQP", "updates", "minutes"]
    body = []
    for line in lines:
        seeds = records[line.cell]
        columns = [
            [one["dev"]["worst"] for one in seeds],
            [one["dev"]["spread"] for one in seeds],
            *([gap(one, task.name, task.kind.metric) for one in seeds] for task in (
                SUBMISSIONS["sst"], SUBMISSIONS["para"], SUBMISSIONS["sts"])),
        ]  # fmt: skip
        likelihoods = [shown(rows[line.cell][name]) if line.cell in rows else NONE for name in MEASURES[-2:]]
        updates, minutes = effort(seeds)
        body.append([line.title, *map(mean, columns), *likelihoods, updates, minutes])
    yield from markdown(head, body)


def gap(record: Mapping[str, Any], task: str, metric: str) -> float:
    """Return how much higher a task scores on training rows than on dev, in the best epoch."""
    best = next((one for one in record["epochs"] if one["epoch"] == record["best_epoch"]), None)
    return best["train"][task][metric] - best["dev"][task][metric] if best and "train" in best else np.nan


def effort(seeds: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the updates, and the minutes at the pace of the fastest epoch: the machine was shared."""
    epochs = [one["epochs"] for one in seeds if one["epochs"]]
    if not epochs:
        return NONE, NONE
    fastest = min(one["seconds"] for run in epochs for one in run)
    return f"{epochs[0][-1]['step']:,}", f"{len(epochs[0]) * fastest / 60:.0f}"


def difference_lines(lines: Sequence[Line], differences: Mapping[str, Any]) -> Iterator[str]:
    titles = {line.cell: line.title for line in lines}
    head = ["", "over", *MEASURES[:5], "seeds' spread of the score", "n"]
    yield from markdown(head, [
        [line.title, titles[line.builds_on or ""], *(signed(found[name]) for name in MEASURES[:5]),
         NONE if found["score"]["spread"] is None else three(found["score"]["spread"]), found["score"]["n"]]
        for line in lines if (found := differences.get(line.cell))
    ])  # fmt: skip


def three(value: float) -> str:
    """Return a number as the tables show it: .743, 1.174, -.002."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")


def mean(values: Sequence[float]) -> str:
    return NONE if np.isnan(values).any() else three(mean_and_spread(values)[0])


def shown(found: Mapping[str, Any]) -> str:
    spread = found["spread"]
    return three(found["mean"]) + ("" if spread is None else f" ± {three(spread)}")


def ends(found: Mapping[str, Any]) -> str:
    low, high = map(three, found["interval"])
    return f"{low} to {high}"


def signed(found: Mapping[str, Any]) -> str:
    """Return a difference and its interval, in bold if the interval leaves out 0."""
    low, high = found["interval"]
    value = f"{'+' if found['mean'] >= 0 else ''}{three(found['mean'])}"
    return f"{f'**{value}**' if low * high > 0 else value} ({three(low)} to {three(high)})"


def fill(page: Path, blocks: Mapping[str, Sequence[str]]) -> None:
    """Replace what is between `<!-- NAME -->` and `<!-- end -->`. Raises InputError if a mark is missing."""
    text = page.read_text(encoding="utf-8")
    for name, lines in blocks.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not mark or not end:
            raise InputError(f"{page}: lacks the lines <!-- {name} --> and <!-- end -->")
        text = "\n".join([f"{before}{mark}", *lines, "", f"{end}{after}"])
    write_text(page, text)


if __name__ == "__main__":
    sys.exit(main())
