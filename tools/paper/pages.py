"""Write the page of a table or figure: our numbers beside the paper's, as Markdown and charts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from cells import Figure, PaperTable, Row, Scores, in_order
from grid import Grid
from multitask.data.tasks import SENTIMENT
from multitask.report.drawing import save_figure
from multitask.report.figures import comparison
from runs import COLUMNS, effort, gaps, mean_and_spread, read_labels, read_predictions, result

HEAD = (*COLUMNS, "Model")
NONE = "–"
Score = Callable[[Path], Scores]


def write_table(table: PaperTable, grid: Grid, score: Score, notes: Sequence[str], stem: Path) -> str:
    """Write STEM.md, .png and .svg; return the Markdown."""
    found = {row: [score(run) for run in grid.done(row.cell)] for row in table.rows}
    ours = np.array([[mean_and_spread(values) for values in columns(scores)] for scores in found.values()])
    paper = np.array([row.paper or [np.nan] * len(HEAD) for row in table.rows])
    labels = [", ".join(label for label in row.labels if label != NONE) for row in table.rows]
    save_figure(comparison(", ".join(table.head), labels, HEAD, paper, ours), stem.parent, stem.name)
    lines = [*score_lines(table, found), "", *evenness_lines(table, grid, found)]
    if table.times:
        lines += ["", *time_lines(table, grid)]
    runs = chain(*(grid.done(row.cell) for row in table.rows))
    return write_page(table.title, [*notes, *memberships(runs)], lines, stem)


def score_lines(table: PaperTable, found: Mapping[Row, Sequence[Scores]]) -> list[str]:
    """Return the lines of scores, each of ours followed by the paper's."""
    lines = []
    for row, scores in found.items():
        pairs = zip(map(shown, columns(scores)), paper_figures(row.paper, len(HEAD)), strict=True)
        lines.append([*row.labels, *chain(*pairs), len(scores)])
    return markdown([*table.head, *chain(*((f"{name} ours†", "paper") for name in HEAD)), "n"], lines)


def evenness_lines(table: PaperTable, grid: Grid, found: Mapping[Row, Sequence[Scores]]) -> list[str]:
    """Return lines on how even the tasks are, how much each is overfitted, and what training took."""
    lines = []
    for row, scores in found.items():
        even = [[min(one[:-1]), max(one[:-1]) - min(one[:-1])] for one in scores]
        paper = row.paper and (min(row.paper[:-1]), max(row.paper[:-1]) - min(row.paper[:-1]))
        pairs = zip(map(shown, columns(even, 2)), paper_figures(paper, 2), strict=True)
        runs = grid.done(row.cell)
        overfitted = map(shown, columns([gaps(run) for run in runs], len(COLUMNS)))
        lines.append([*row.labels, *chain(*pairs), *overfitted, *efforts([effort(run) for run in runs])])
    head = [*table.head, "worst task ours†", "paper", "spread ours†", "paper"]
    head += [f"{name} train − dev" for name in COLUMNS]
    return markdown([*head, "updates", "rows seen", "minutes of training"], lines)


def time_lines(table: PaperTable, grid: Grid) -> list[str]:
    """Return lines on the paper's training times beside ours, including the runs that a model starts from."""
    lines = []
    for model, one, said in table.times:
        parts = in_order([one])
        seeds = [seed for seed in grid.seeds if all(grid.finished(part, seed) for part in parts)]
        wholes = [np.sum([effort(grid.run(part, seed)) for part in parts], axis=0) for seed in seeds]
        lines.append([model, said, *efforts(wholes)])
    return markdown(["training", "paper", "updates ours", "rows seen", "minutes of training"], lines)


def columns(scores: Sequence[Sequence[float]], width: int = len(HEAD)) -> list[list[float]]:
    return [[one[place] for one in scores] for place in range(width)]


def shown(values: Sequence[float]) -> str:
    mean, spread = mean_and_spread(values)
    return NONE if np.isnan(mean) else f"{mean:.3f}" if np.isnan(spread) else f"{mean:.3f} ± {spread:.3f}"


def paper_figures(figures: Sequence[float] | None, width: int) -> list[str]:
    return [NONE] * width if figures is None else [f"{value:.3f}" for value in figures]


def efforts(runs: Sequence[Sequence[float]]) -> list[str]:
    """Return updates, rows and minutes, as means over the runs."""
    means = [mean_and_spread(values)[0] for values in columns(runs, 3)]
    formats = (",.0f", ",.0f", ",.1f")
    return [NONE if np.isnan(mean) else format(mean, form) for mean, form in zip(means, formats, strict=True)]


def memberships(runs: Iterable[Path]) -> Iterator[str]:
    """Yield the members of each ensemble among these runs, task by task."""
    for run in runs:
        for task, chosen in result(run).get("tasks", {}).items():
            names = ", ".join(Path(member).parent.name for member in chosen["members"])
            yield f"{run.name}, members for {task}: {names}."


def write_figure(figure: Figure, grid: Grid, notes: Sequence[str], tables: Path, stem: Path) -> str:
    """Write STEM.md, .png and .svg with the figure of the best run on dev; return the Markdown."""
    best = max(grid.done(figure.cell), key=lambda run: result(run)["dev"]["score"])
    for ending in (".png", ".svg"):
        shutil.copyfile(best / "figures" / (figure.file + ending), f"{stem}{ending}")
    notes = [*notes, f"Plotted from {best}, dev score {result(best)['dev']['score']:.3f}."]
    lines = fraction_lines(best, figure.fractions, tables) if figure.fractions else []
    return write_page(figure.title, notes, lines, stem)


def fraction_lines(run: Path, fractions: Mapping[tuple[int, int], float], tables: Path) -> list[str]:
    """Return the fraction of each true class that is predicted as another, ours beside the paper's."""
    labels = read_labels(tables, SENTIMENT, "dev")
    truth, predicted = np.array([*labels.values()]), read_predictions(run, SENTIMENT, "dev", labels)
    rows = [
        [true, guess, f"{np.mean(predicted[truth == true] == guess):.2f}", f"{paper:.2f}"]
        for (true, guess), paper in fractions.items()
    ]
    return markdown(["true class", "predicted", "fraction ours†", "paper"], rows)


def markdown(head: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *rows)]


def write_page(title: str, notes: Iterable[str], lines: Sequence[str], stem: Path) -> str:
    listed = [f"- {note}" for note in notes]
    text = "\n".join([f"# {title}", "", *listed, "", *lines, "", f"![{title}]({stem.name}.png)", ""])
    Path(f"{stem}.md").write_text(text, encoding="utf-8")
    return text
