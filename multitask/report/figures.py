"""Figures of a run, as in section 5 of "Jack of All Trades, Master of Some: Improving BERT for Multitask
Learning" (Stanford CS224N). Each is a pure function from arrays or records to a matplotlib `Figure`.

Plotting needs the extra `plots`, which is imported on first use. Nothing uses pyplot's global state.
"""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minbert.errors import InputError
from minbert.files import make_folder, write_content
from multitask.data.tasks import RESERVED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl

# Labels are never parsed as formulas, and equal figures are equal byte for byte.
STYLE: Any = {
    "text.parse_math": False, "svg.hashsalt": "minbert", "figure.constrained_layout.use": True,
    "savefig.bbox": "tight", "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 10, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#888888", "xtick.color": "#555555", "ytick.color": "#555555",
    "axes.labelcolor": "#333333",
}  # fmt: skip
INK, PALE = "#222222", "#999999"
# Both palettes can be told apart by colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9")  # for tasks (Okabe and Ito)
THEMES = {"light": ("#1f2328", "#8b949e", "#0072b2"), "dark": ("#f0f6fc", "#9198a1", "#6cb6ff")}  # ink, pale
ORDERED = ("#08417a", "#5aa2d8", "#b9b9b9", "#f29c3c", "#9c3504")  # for ordered classes
PANELS = {  # part of a record, or one term of it -> title, y label
    "loss": ("Training loss", "mean over the epoch"),
    "dev": ("Dev scores", ""),
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
BESIDE = {
    "train": ("--", "training rows"),
    "teacher": (":", "averaged weights"),
}  # other scores in the panel of the dev scores
MANY_CLASSES, MANY_POINTS = 30, 5000  # above these, cells show no numbers, and an SVG's points are an image
MOST_CLASSES, MOST_LINES, MOST_EPOCHS = 300, 40, 200  # drawn in a matrix, in a panel, as bars
LONGEST_LABEL = 40  # characters


def can_plot() -> bool:
    """Return whether the extra `plots` is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def plotting() -> Iterator[None]:
    """Apply our style, in a `with` or as a decorator. Raises InputError if the extra is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            'matplotlib, needed for figures, is not installed: pip install "minbert[plots]"'
        ) from None
    with matplotlib.rc_context(STYLE):
        yield


@plotting()
def learning_curves(records: Records, choose_by: str = "score") -> Figure:
    """Plot losses, scores, R, D, rate and beta by epoch, as far as the run recorded them, and mark the best
    epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = {part: lines for part in PANELS if (lines := _curves(records, part))}
    named = [name.partition("/")[0] for lines in reversed(panels.values()) for name in lines]
    task_names = [name for name in dict.fromkeys(named) if name not in (*RESERVED, *SINGLE)]
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(sorted(task_names))}
    epochs, best = [record["epoch"] for record in records], best_record(records, choose_by)["epoch"]

    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(10, 3.4 * rows))
    for place, (part, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, 2, place)
        axes.axvline(best, color=PALE, linewidth=1, linestyle=":")
        axes.annotate(
            f"best epoch {best}", (best, 1), xytext=(0, 5), textcoords="offset points",
            xycoords=("data", "axes fraction"), color="#666666", fontsize=8.5, ha="center",
        )  # fmt: skip
        ends: dict[str, tuple[float, str]] = {}
        for name, values in lines.items():
            colour = colours.get(name.partition("/")[0], INK)
            axes.plot(epochs, values, color=colour, marker="o", markersize=3.5, linewidth=1.6, label=name)
            ends[_label(name)] = (_last(values), colour)
        if part == "dev":
            axes.set_ylabel(_plot_beside(axes, records, lines, colours))
        axes.set_title(PANELS[part][0], pad=18)
        if PANELS[part][1]:
            axes.set_ylabel(PANELS[part][1])
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.4, max(epochs) + 0.4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        low, high = axes.get_ylim()
        middle = (low + high) / 2
        if part == "dev":  # so that noise does not fill the panel
            axes.set_ylim(min(low, middle - 0.05), max(high, middle + 0.05))
        elif part != "beta":  # beta at most changes from .99 to .999
            axes.set_ylim(0, high)
        _label_ends(axes, ends)
    return figure


def _plot_beside(
    axes: Axes, records: Records, lines: Mapping[str, np.ndarray], colours: Mapping[str, str]
) -> str:
    """Plot the other scores in the colours of the dev lines. Return the legend.

    Only the mean score is plotted for the teacher.
    """
    epochs, legend = [record["epoch"] for record in records], []
    for part, (style, meaning) in BESIDE.items():
        curves = _curves(records, part)
        names = [name for name in lines if name in curves and (part == "train" or name == "score")]
        for name in names:
            colour = colours.get(name.partition("/")[0], INK)
            axes.plot(
                epochs, curves[name], style, color=colour, marker=".", linewidth=1, label=f"{part} {name}"
            )
        if names:
            legend.append(f"{'dashed' if style == '--' else 'dotted'}: {meaning}")
    return ", ".join(legend)


def _curves(records: Records, panel: str) -> dict[str, np.ndarray]:
    """Return the lines of one of the `PANELS` by name, with NaN where an epoch has no value."""
    part, _, term = panel.partition("/")
    flat = [dict(_flatten({part: record[part]})) if part in record else {} for record in records]
    flat = [{name.removeprefix(f"{part}/"): value for name, value in values.items()} for values in flat]
    names = list(dict.fromkeys(name for values in flat for name in values))
    names = [name for name in names if name not in ("worst", "spread")]
    if term:
        names = [name for name in names if f"/{name}".endswith(f"/{term}")]
    else:
        names = [name for name in names if f"{part}/{name}" not in PANELS]
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
    words |= dict.fromkeys(("r", "d", "gradient_ratio"), "")
    return shortened(" ".join(words.get(word, word) for word in name.split("/")).strip())


def shortened(name: str) -> str:
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


@plotting()
def sampling_shares(sampling: str, names: Sequence[str], epochs: np.ndarray, shares: np.ndarray) -> Figure:
    """Plot each task's share of the updates of these epochs, which are evenly spaced: (epochs,) and (epochs,
    tasks)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    spacing = epochs[-1] / len(epochs)
    figure = Figure(figsize=(6.6, 3))
    axes = figure.add_subplot()
    bottoms = np.cumsum(shares, axis=1) - shares
    colours = dict(zip(sorted(names), COLOURS * len(names), strict=False))
    for task, name in enumerate(names):
        axes.bar(epochs, shares[:, task], 0.9 * spacing, bottoms[:, task], color=colours[name], label=name)
    axes.set_ylim(0, 1)
    axes.set_xlim(1 - 0.6 * spacing, epochs[-1] + 0.6 * spacing)
    middles = bottoms[-1] + shares[-1] / 2
    ends = {
        f"{shortened(name)} {shares[-1, task]:.0%}": (middles[task], colours[name])
        for task, name in enumerate(names)
    }
    _label_ends(axes, ends)
    axes.set(title=f"Share of updates, {sampling}", xlabel="epoch")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


@plotting()
def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]) -> Figure:
    """Plot the fraction of each true class (down) predicted as each class (across). Rows sum to 1."""
    from matplotlib.figure import Figure

    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (np.asarray(labels, int), np.asarray(predictions, int)), 1)
    rows = counts.sum(axis=1)
    fractions = counts / np.maximum(rows, 1)[:, None]
    side = min(1.2 + 0.62 * len(classes), 16)
    figure = Figure(figsize=(side + 0.7, side))
    axes = figure.add_subplot()
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(
        range(len(classes)), [f"{name}  (n = {n:,.0f})" for name, n in zip(classes, rows, strict=True)]
    )
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), fraction in np.ndenumerate(fractions) if len(classes) <= MANY_CLASSES else ():
        text = f"{fraction:.2f}" if rows[row] else "–"
        axes.text(column, row, text, ha="center", va="center", color="white" if fraction > 0.65 else INK)
    return figure


@plotting()
def similarity_scatter(labels: np.ndarray, predictions: np.ndarray, caption: str) -> Figure:
    """Plot predicted against true values, with the line where they are equal, under a caption."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.4))
    axes = figure.add_subplot()
    both = np.concatenate([labels, predictions])
    margin = 0.04 * max(np.ptp(both), 1e-6)
    low, high = both.min() - margin, both.max() + margin
    axes.axline((low, low), (high, high), color=PALE, linewidth=1, linestyle="--", zorder=1)
    axes.annotate(
        "equal", (high, high), xytext=(4, 0), textcoords="offset points", color="#666666",
        annotation_clip=False, va="center", fontsize=9.5,
    )  # fmt: skip
    many = len(labels) > MANY_POINTS
    axes.scatter(
        labels, predictions, s=14, color=COLOURS[0], alpha=0.1 if many else 0.4, linewidths=0, rasterized=many
    )
    axes.set(
        xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="true", ylabel="predicted",
        title=f"{caption}, {len(labels):,} rows",
    )  # fmt: skip
    return figure


@plotting()
def reliability_curve(curves: Mapping[str, Mapping[str, Any]], theme: str = "light") -> Figure:
    """Plot the share of right predictions against confidence, in bins of equally many rows, before and after
    calibration. Each curve has its `confidence`, `accuracy` and `error`: see methods/calibration.py."""
    from matplotlib.figure import Figure

    ink, pale, colour = THEMES[theme]
    figure = Figure(figsize=(3.6, 3.4), facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.axline((0, 0), (1, 1), color=pale, linewidth=1, linestyle="--")
    colours = [colour] if len(curves) == 1 else [pale, colour]
    for (name, curve), line in zip(curves.items(), colours, strict=True):
        label = f"{name}: error {curve['error']:.3f}" if len(curves) > 1 else f"error {curve['error']:.3f}"
        axes.plot(curve["confidence"], curve["accuracy"], color=line, marker="o", markersize=4, label=label)
    low = min(min(curve["confidence"] + curve["accuracy"]) for curve in curves.values())
    low = max(0, low - 0.05)
    axes.set(xlim=(low, 1.02), ylim=(low, 1.02), aspect="equal")
    axes.set_xlabel("confidence", color=ink)
    axes.set_ylabel("share of right predictions", color=ink)
    axes.tick_params(colors=ink)
    axes.spines[:].set_color(pale)
    axes.legend(frameon=False, labelcolor=ink, loc="upper left", fontsize=9)
    return figure


@plotting()
def tsne(
    before: np.ndarray,
    after: np.ndarray,
    labels: np.ndarray,
    perplexity: float = 50,
    iterations: int = 4000,
    seed: int = 0,
) -> Figure:
    """Plot vectors (N, H) of the same rows before and after training, by t-SNE on their cosine distance.

    Both use the same seed and perplexity. t-SNE looks at 3 * perplexity neighbours of each row; if there are
    fewer rows, the perplexity is reduced and the legend says so. N must be at least 4, `iterations` at least
    250.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from sklearn.manifold import TSNE

    used = min(perplexity, (len(labels) - 1) / 3)
    note = f" (not {perplexity:g}: only {len(labels)} rows)" if used < perplexity else ""
    classes, numbers = np.unique(labels, return_inverse=True)
    colours = LinearSegmentedColormap.from_list("ordered", ORDERED)(np.linspace(0, 1, len(classes)))
    figure = Figure(figsize=(10, 5.2))
    for place, (title, vectors) in enumerate((("Before", before), ("After", after)), start=1):
        layout = TSNE(perplexity=used, max_iter=iterations, metric="cosine", random_state=seed % 2**32)
        x, y = layout.fit_transform(np.asarray(vectors, np.float32)).T
        axes = figure.add_subplot(1, 2, place, title=title, xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set(visible=True, color="#dddddd")
        many = len(labels) > MANY_POINTS
        axes.scatter(x, y, s=16, c=colours[numbers], alpha=0.85, linewidths=0, rasterized=many)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"{name:g}")
        for colour, name in zip(colours, classes, strict=True)
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(classes), 12), frameon=False,
        title=f"class (t-SNE, perplexity {used:.3g}{note}, {iterations:,} iterations, seed {seed})",
    )  # fmt: skip
    return figure


@plotting()
def comparison(
    head: str,
    labels: Sequence[str],
    columns: Sequence[str],
    paper: np.ndarray,
    ours: np.ndarray,
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
        axes.hlines(places, paper[:, number], mean, color="#dddddd", linewidth=2, zorder=1)
        axes.plot(paper[:, number], places, "o", color=PALE, markerfacecolor="white", label="paper")
        axes.errorbar(mean, places, xerr=spread, fmt="o", color=COLOURS[0], capsize=3, label="ours")
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


@plotting()
def save_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write NAME.png and NAME.svg into the folder. Return the SVG."""
    make_folder(folder)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    figure.savefig(svg, format="svg", metadata={"Date": None})
    write_content(folder / f"{name}.png", png.getvalue())
    write_content(folder / f"{name}.svg", svg.getvalue())
    return svg.getvalue()


# The report


def best_record(records: Records, choose_by: str = "score") -> Mapping[str, Any]:
    """Return the record of the epoch whose model was kept: the first with the highest `choose_by`."""
    return max(records, key=lambda record: record["dev"][choose_by])
