"""Figures of a run, as in section 5 of "Jack of All Trades, Master of Some: Improving BERT for Multitask
Learning" (Stanford CS224N). Each is a pure function from arrays or records to a matplotlib `Figure`, for
a light ground or, with `theme=DARK`, a dark one.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multitask.data.tasks import RESERVED
from multitask.report.drawing import LIGHT, Theme, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
Curve = tuple[Sequence[float], Sequence[float]]  # updates, values
Estimate = tuple[float, Sequence[float]]  # a score, and the ends of its interval
PANELS = {  # part of a record, or one term of it -> title, y label
    "loss": ("Training loss", "mean over the epoch"),
    "dev": ("Dev scores", ""),
    "dev/rmse": ("Dev errors", "RMSE, in the unit of the labels"),
    "dev/mae": ("Dev errors", "MAE, in the unit of the labels"),
    "dev/perplexity": ("Perplexity", "of the masked tokens of held-out text"),
    "distill": ("Distillation", "distance to the teacher's outputs"),
    "smart/r": ("SMART", "R"),
    "smart/gradient_ratio": ("SMART's strength", "gradient relative to the task loss's"),
    "bregman/d": ("BPPO", "D"),
    "bregman/gradient_ratio": ("BPPO's strength", "gradient relative to the task loss's"),
    "lr": ("Learning rate", "of the epoch's last update"),
    "beta": ("Momentum of BPPO's teacher", "beta"),
}
SINGLE = ("lr", "beta")  # panels with one number per epoch
# Other scores in the panel of the dev scores.
BESIDE = {"train": ("--", "training rows"), "teacher": (":", "averaged weights")}
MANY_CLASSES, MANY_POINTS = 30, 5000  # above these, cells show no numbers, and an SVG's points are an image
MOST_CLASSES, MOST_LINES, MOST_EPOCHS = 300, 40, 200  # drawn in a matrix, in a panel, as bars
LONGEST_LABEL = 40  # characters


@drawn
def learning_curves(
    records: Records, choose_by: str = "score", columns: int = 2, *, theme: Theme = LIGHT
) -> Figure:
    """Plot losses, scores, R, D, rate and beta by epoch, as far as the run recorded them, and mark the best
    epoch. The panels stand in so many columns."""
    from matplotlib.figure import Figure

    panels = {part: lines for part in PANELS if (lines := _curves(records, part))}
    named = [name.partition("/")[0] for lines in reversed(panels.values()) for name in lines]
    task_names = [name for name in dict.fromkeys(named) if name not in (*RESERVED, *SINGLE)]
    colours = {name: theme.colour(place) for place, name in enumerate(sorted(task_names))}
    epochs, best = [record["epoch"] for record in records], best_record(records, choose_by)["epoch"]

    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows))
    for place, (part, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.axvline(best, color=theme.pale, linewidth=1, linestyle=":")
        axes.annotate(
            f"best epoch {best}", (best, 1), xytext=(0, 5), textcoords="offset points",
            xycoords=("data", "axes fraction"), color=theme.soft, fontsize=8.5, ha="center",
        )  # fmt: skip
        ends: dict[str, tuple[float, str]] = {}
        for name, values in lines.items():
            colour = colours.get(name.partition("/")[0], theme.ink)
            axes.plot(epochs, values, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name)
            ends[_label(name)] = (_last(values), colour)
        meaning = PANELS[part][1]
        if part.partition("/")[0] == "dev":
            beside = _plot_beside(axes, records, part, lines, colours, theme)
            meaning = "\n".join(filter(None, (meaning, beside)))
        axes.set_title(PANELS[part][0], pad=18)
        axes.set(xlabel="epoch", ylabel=meaning)
        _whole_numbers(axes)
        axes.set_xlim(min(epochs) - 0.4, max(epochs) + 0.4)
        if part == "dev":
            _no_noise(axes)
        elif part != "beta":  # beta at most changes from .99 to .999
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        _label_ends(axes, ends)
    return figure


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def _no_noise(axes: Axes) -> None:
    """Show a range of at least a tenth, so that noise does not fill the panel."""
    low, high = axes.get_ylim()
    middle = (low + high) / 2
    axes.set_ylim(min(low, middle - 0.05), max(high, middle + 0.05))


def _plot_beside(
    axes: Axes,
    records: Records,
    panel: str,
    lines: Mapping[str, np.ndarray],
    colours: Mapping[str, str],
    theme: Theme,
) -> str:
    """Plot the other scores in the colours of the panel's dev lines. Return the legend.

    Only the mean score is plotted for the teacher.
    """
    epochs, legend = [record["epoch"] for record in records], []
    for part, (style, meaning) in BESIDE.items():
        curves = _curves(records, panel.replace("dev", part, 1))
        names = [name for name in lines if name in curves and (part == "train" or name == "score")]
        for name in names:
            colour = colours.get(name.partition("/")[0], theme.ink)
            axes.plot(
                epochs, curves[name], style, color=colour, marker=".", linewidth=1, label=f"{part} {name}"
            )
        if names:
            legend.append(f"{'dashed' if style == '--' else 'dotted'}: {meaning}")
    return "\n".join(legend)


def _curves(records: Records, panel: str) -> dict[str, np.ndarray]:
    """Return the lines of one of the `PANELS` by name, with NaN where an epoch has no value."""
    part, _, term = panel.partition("/")
    flat = [dict(_flatten({part: record[part]})) if part in record else {} for record in records]
    flat = [{name.removeprefix(f"{part}/"): value for name, value in values.items()} for values in flat]
    names = list(dict.fromkeys(name for values in flat for name in values))
    names = [name for name in names if name not in ("worst", "spread")]
    if term:
        names = [name for name in names if f"/{name}".endswith(f"/{term}")]
    elif part not in SINGLE:  # what has a panel of its own, as errors have, which are on no scale to 1
        names = [name for name in names if f"dev/{name.rpartition('/')[2]}" not in PANELS]
    curves = {name: np.array([values.get(name, math.nan) for values in flat]) for name in names[:MOST_LINES]}
    for whole in ("all", "score"):  # with a single task they would hide its own line
        others = [values for name, values in curves.items() if name != whole]
        if whole in curves and any(np.allclose(curves[whole], values, equal_nan=True) for values in others):
            del curves[whole]
    return curves


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, value


def _label(name: str) -> str:
    """Return how a line is labelled: similarity/pearson as similarity r, knn as kNN accuracy."""
    words = {"pearson": "r", "all": "objective", "knn": "kNN accuracy", "retrieval": "same class nearest"}
    words |= dict.fromkeys(("r", "d", "gradient_ratio", "rmse", "mae"), "")
    return drawn_name(" ".join(words.get(word, word) for word in name.split("/")).strip())


def drawn_name(name: str) -> str:
    """Return a name as it is drawn."""
    return name if len(name) <= LONGEST_LABEL else f"{name[:LONGEST_LABEL]}…"


def _last(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else 0.0


def _label_ends(axes: Axes, ends: Mapping[str, tuple[float, str]]) -> None:
    """Label each line at its right end. Labels that would overlap are moved apart by least squares.

    With the gaps between labels subtracted, their positions are an isotonic regression of the lines' ends.
    """
    from sklearn.isotonic import isotonic_regression

    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda name: ends[name][0])
    steps = 0.075 * (high - low) * np.arange(len(ordered))
    places = isotonic_regression(np.array([ends[name][0] for name in ordered]) - steps) + steps
    for name, place in zip(ordered, places, strict=True):
        axes.annotate(
            name, (1, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9.5,
            xycoords=("axes fraction", "data"), color=ends[name][1], annotation_clip=False,
        )  # fmt: skip


@drawn
def sampling_shares(
    sampling: str,
    names: Sequence[str],
    epochs: np.ndarray,
    shares: np.ndarray,
    width: float = 6.6,
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Plot each task's share of the updates of these epochs, which are evenly spaced: (epochs,) and (epochs,
    tasks)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    spacing = epochs[-1] / len(epochs)
    figure = Figure(figsize=(width, 3))
    axes = figure.add_subplot()
    bottoms = np.cumsum(shares, axis=1) - shares
    colours = {name: theme.colour(place) for place, name in enumerate(sorted(names))}
    for task, name in enumerate(names):
        axes.bar(epochs, shares[:, task], 0.9 * spacing, bottoms[:, task], color=colours[name], label=name)
    axes.set_ylim(0, 1)
    axes.set_xlim(1 - 0.6 * spacing, epochs[-1] + 0.6 * spacing)
    middles = bottoms[-1] + shares[-1] / 2
    ends = {
        f"{drawn_name(name)} {shares[-1, task]:.0%}": (middles[task], colours[name])
        for task, name in enumerate(names)
    }
    _label_ends(axes, ends)
    axes.set(title=f"Share of updates, {sampling}", xlabel="epoch")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _whole_numbers(axes)
    return figure


@drawn
def confusion_matrix(
    labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], *, theme: Theme = LIGHT
) -> Figure:
    """Plot the fraction of each true class (down) predicted as each class (across). Rows sum to 1."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (np.asarray(labels, int), np.asarray(predictions, int)), 1)
    rows = counts.sum(axis=1)
    fractions = counts / np.maximum(rows, 1)[:, None]
    names = [drawn_name(name) for name in classes]
    needed = 0.1 * max(map(len, names))  # inches beside each other
    cell = min(max(0.62, needed), 1.1, 14.8 / len(classes))
    figure = Figure(figsize=(1.9 + cell * len(classes), 1.2 + min(0.62, cell) * len(classes)))
    axes = figure.add_subplot()
    axes.imshow(
        fractions, aspect="auto", cmap=LinearSegmentedColormap.from_list("ramp", theme.ramp), vmin=0, vmax=1
    )
    turn: Any = {"rotation": 45, "ha": "right"} if needed > cell else {}
    axes.set_xticks(range(len(classes)), names, **turn)
    axes.set_yticks(
        range(len(classes)), [f"{name}  (n = {n:,.0f})" for name, n in zip(names, rows, strict=True)]
    )
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(classes) <= MANY_CLASSES:
        for (row, column), fraction in np.ndenumerate(fractions):
            text = f"{fraction:.2f}" if rows[row] else "–"
            colour = theme.ground if fraction > 0.55 else theme.ink
            axes.text(column, row, text, ha="center", va="center", color=colour)
    return figure


@drawn
def similarity_scatter(
    labels: np.ndarray, predictions: np.ndarray, caption: str, *, theme: Theme = LIGHT
) -> Figure:
    """Plot predicted against true values, with the line where they are equal, under a caption."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.4))
    axes = figure.add_subplot()
    both = np.concatenate([labels, predictions])
    margin = 0.04 * max(np.ptp(both), 1e-6)
    low, high = both.min() - margin, both.max() + margin
    axes.axline((low, low), (high, high), color=theme.pale, linewidth=1, linestyle="--", zorder=1)
    axes.annotate(
        "equal", (high, high), xytext=(4, 0), textcoords="offset points", color=theme.soft,
        annotation_clip=False, va="center", fontsize=9.5,
    )  # fmt: skip
    many = len(labels) > MANY_POINTS
    axes.scatter(
        labels, predictions, s=14, color=theme.colour(0), alpha=0.1 if many else 0.45, linewidths=0,
        rasterized=many,
    )  # fmt: skip
    axes.set(
        xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="true", ylabel="predicted",
        title=f"{caption}, {len(labels):,} rows",
    )  # fmt: skip
    return figure


@drawn
def reliability_curve(curves: Mapping[str, Mapping[str, Any]], *, theme: Theme = LIGHT) -> Figure:
    """Plot the share of right predictions against confidence, in bins of equally many rows, before and after
    calibration. Each curve has its `confidence`, `accuracy` and `error`: see methods/calibration.py."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4, 4))
    axes = figure.add_subplot()
    axes.axline((0, 0), (1, 1), color=theme.pale, linewidth=1, linestyle="--")
    colours = [theme.pale, theme.colour(0)][-len(curves) :]
    for (name, curve), colour in zip(curves.items(), colours, strict=True):
        label = f"{name}: error {curve['error']:.3f}" if len(curves) > 1 else f"error {curve['error']:.3f}"
        axes.plot(curve["confidence"], curve["accuracy"], color=colour, marker="o", markersize=4, label=label)
    drawn = [value for curve in curves.values() for value in curve["confidence"] + curve["accuracy"]]
    ends = max(0, min(drawn) - 0.05), min(1, max(drawn) + 0.05)
    axes.set(xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel="confidence", ylabel="share of right predictions")
    figure.legend(frameon=False, loc="outside upper left", fontsize=9, ncols=len(curves))
    return figure


def tsne_places(
    vectors: np.ndarray, perplexity: float = 50, iterations: int = 4000, seed: int = 0
) -> tuple[np.ndarray, str]:
    """Return where t-SNE on their cosine distance puts these vectors (N, H), as (N, 2), and how, in words.

    It looks at 3 * perplexity neighbours of each row; if there are fewer rows, the perplexity is reduced and
    the words say so. N must be at least 4, `iterations` at least 250.
    """
    from sklearn.manifold import TSNE

    used = min(perplexity, (len(vectors) - 1) / 3)
    note = f" (not {perplexity:g}: only {len(vectors)} rows)" if used < perplexity else ""
    layout = TSNE(perplexity=used, max_iter=iterations, metric="cosine", random_state=seed % 2**32)
    places = layout.fit_transform(np.asarray(vectors, np.float32))
    return places, f"t-SNE, perplexity {used:.3g}{note}, {iterations:,} iterations, seed {seed}"


@drawn
def tsne(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    caption: str,
    columns: int = 2,
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Plot places (N, 2) of the same rows before and after training, coloured by class; see `tsne_places`.
    `names` are the classes'."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    classes, numbers = np.unique(labels, return_inverse=True)
    ramp = LinearSegmentedColormap.from_list("ordered", theme.ordered)
    colours = ramp(np.linspace(0, 1, len(classes)))
    rows = 2 // columns
    figure = Figure(figsize=(5 * columns, 0.4 + 4.8 * rows))
    for place, (title, places) in enumerate((("Before", before), ("After", after)), start=1):
        axes = figure.add_subplot(rows, columns, place, title=title, xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set(visible=True, color=theme.faint)
        many = len(labels) > MANY_POINTS
        x, y = places.T
        axes.scatter(x, y, s=16, c=colours[numbers], alpha=0.85, linewidths=0, rasterized=many)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=drawn_name(names[int(number)]))
        for colour, number in zip(colours, classes, strict=True)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(classes), 6 * columns), frameon=False,
        title=textwrap.fill(f"class ({caption})", 40 * columns),
    )  # fmt: skip
    return figure


@drawn
def comparison(
    head: str,
    labels: Sequence[str],
    columns: Sequence[str],
    paper: np.ndarray,
    ours: np.ndarray,
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Plot the numbers of "Jack of All Trades, Master of Some: Improving BERT for Multitask Learning"
    (Stanford CS224N) and ours, with error bars, in one panel per column.

    `paper` is (rows, columns). `ours` is (rows, columns, 2), mean and standard deviation, NaN where missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 2.1 * len(columns), 1.6 + 0.34 * len(labels)))
    places = np.arange(len(labels))
    for number, (name, axes) in enumerate(
        zip(columns, figure.subplots(1, len(columns), sharey=True, squeeze=False)[0], strict=True)
    ):
        mean, spread = ours[:, number].T
        axes.hlines(places, paper[:, number], mean, color=theme.faint, linewidth=2, zorder=1)
        axes.plot(
            paper[:, number], places, "o", color=theme.pale, markerfacecolor=theme.ground, label="paper"
        )
        axes.errorbar(mean, places, xerr=spread, fmt="o", color=theme.colour(0), capsize=3, label="ours")
        axes.set_title(name)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.15)
    figure.axes[0].set_yticks(places, labels)
    figure.axes[0].set_ylabel(head)
    figure.axes[0].set_ylim(len(labels) - 0.5, -0.5)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False
    )
    return figure


@drawn
def curves_of_runs(
    panels: Mapping[str, Mapping[str, Curve]], columns: int = 2, *, theme: Theme = LIGHT
) -> Figure:
    """Plot numbers that several runs recorded: for each panel, by its title, the curve of each run by its
    name. Where there are no updates, as in an ensemble, the value is a dashed line."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = {name: theme.colour(place) for place, name in enumerate(names)}
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(5 * columns, 2.8 * rows + 0.25 * len(names)))
    for place, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place, title=title, xlabel="updates")
        for name, (updates, values) in curves.items():
            if len(updates):
                axes.plot(updates, values, color=colours[name], marker="o", markersize=3.5, linewidth=1.6)
            else:
                axes.axhline(values[0], color=colours[name], linestyle="--", linewidth=1.2)
        _no_noise(axes)
    first = next(iter(panels.values()))
    styles: list[Any] = [
        {"marker": "o", "markersize": 3.5} if len(first[name][0]) else {"linestyle": "--"} for name in names
    ]
    handles = [Line2D([], [], color=colours[name], **how) for name, how in zip(names, styles, strict=True)]
    figure.legend(handles, [*map(drawn_name, names)], loc="outside upper left", frameon=False)
    return figure


@drawn
def scores_of_runs(
    panels: Mapping[str, Mapping[str, Estimate]], columns: int = 2, *, theme: Theme = LIGHT
) -> Figure:
    """Plot the scores of several runs with their intervals: for each panel, by its title, those of each run
    by its name, the first on top."""
    from matplotlib.figure import Figure

    rows, most = math.ceil(len(panels) / columns), max(map(len, panels.values()))
    figure = Figure(figsize=(5 * columns, (0.9 + 0.32 * most) * rows))
    for place, (title, scores) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, columns, place, title=title)
        for row, (value, (low, high)) in enumerate(scores.values()):
            axes.hlines(row, low, high, color=theme.colour(row), linewidth=2)
            axes.plot(value, row, "o", color=theme.colour(row), markersize=6)
        first = next(iter(scores.values()))[0]
        axes.axvline(first, color=theme.pale, linewidth=1, linestyle=":", zorder=0)
        axes.set_yticks(range(len(scores)), [*map(drawn_name, scores)])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(most - 0.5, -0.5)
    return figure


def best_record(records: Records, choose_by: str = "score") -> Mapping[str, Any]:
    """Return the record of the epoch whose model was kept: the first with the highest `choose_by`."""
    return max(records, key=lambda record: record["dev"][choose_by])
