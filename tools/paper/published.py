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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lines import LINES, SMALL, Line
from measures import MEASURES, SUBMISSIONS, judge
from minbert.errors import InputError
from minbert.files import write_content, write_text
from multitask.report.drawing import DARK, LIGHT, Theme, drawn, svg_of
from multitask.report.figures import confusion_matrix
from pages import NONE, markdown
from record import RESULTS, lines_of
from runs import mean_and_spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = RESULTS.parents[1]
JUDGED = RESULTS / "judged.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the dev tables")
    args = parser.parse_args()
    try:
        if args.data:
            write_text(
                JUDGED, json.dumps(judge([*LINES, *chain(*SMALL.values())], args.data), indent=1) + "\n"
            )
        draw(json.loads(JUDGED.read_text(encoding="utf-8")), ROOT)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(judged: Mapping[str, Any], root: Path) -> None:
    """Fill the blocks of the pages below `root`, and draw their figures."""
    rows, differences = judged["rows"], judged["differences"]
    lines = [line for line in LINES if line.cell in rows]
    records = {line.cell: lines_of(RESULTS / f"{line.cell}.jsonl") for line in lines}
    headline = [*score_lines([line for line in lines if line.in_readme], rows)]
    fill(root / "README.md", {"headline": headline})
    blocks = {
        "scores": [*score_lines(lines, rows)],
        "fit": [*fit_lines([line for line in lines if records[line.cell]], records, rows)],
        "differences": [*difference_lines(lines, differences)],
        **{name: [*small_lines(table, rows, differences)] for name, table in SMALL.items()},
    }
    fill(root / "docs" / "results.md", blocks)
    points = {line.title: rows[line.cell]["score"]["each"] for line in lines}
    intervals = [rows[line.cell]["score"]["interval"] for line in lines]
    counts = np.array(judged["confusion"])
    labels, predictions = (
        np.repeat(axis, counts.ravel()) for axis in np.indices(counts.shape).reshape(2, -1)
    )
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        figures = {
            "results": dots(points, intervals, theme=theme),
            "results-confusion": confusion_matrix(labels, predictions, [*map(str, range(5))], theme=theme),
        }
        for stem, figure in figures.items():
            write_content(root / "docs" / "images" / f"{stem}-{name}.svg", svg_of(figure))


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


def small_lines(
    lines: Sequence[Line], rows: Mapping[str, Any], differences: Mapping[str, Any]
) -> Iterator[str]:
    """Yield a table of a small experiment: scores, and the difference from the row that each builds on."""
    gains = ("score", "NLL of SST")
    head = ["", *MEASURES[:5], *(f"{name}, over the first" for name in gains), "n"]
    yield from markdown(head, [
        [line.title, *(shown(rows[line.cell][name]) for name in MEASURES[:5]),
         *(signed(differences[line.cell][name]) if line.builds_on else NONE for name in gains),
         rows[line.cell]["score"]["n"]]
        for line in lines if line.cell in rows
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
