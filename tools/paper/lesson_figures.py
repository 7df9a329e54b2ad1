"""Draw the figures of the lessons on the methods: `python tools/paper/lesson_figures.py`.

Writes docs/images/lesson-NAME-light.svg and lesson-NAME-dark.svg, from formulas and the records in
tools/results. The same matplotlib and torch give the same bytes. Needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from minbert.errors import InputError
from multitask.methods.mnrl import draw_groups, group_loss
from multitask.methods.sampling import annealed_alpha, task_probabilities
from multitask.report.figures import plotting
from record import RESULTS, lines_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEMES = {  # ink, pale ink, then colours that colour-blind readers can tell apart
    "light": ("#1f2328", "#59636e", "#0072b2", "#b8500a", "#007a55", "#a8457f", "#8a6d00"),
    "dark": ("#f0f6fc", "#9198a1", "#6cb6ff", "#f0883e", "#3fb98a", "#e08bbd", "#d9b72b"),
}
IMAGES = RESULTS.parents[1] / "docs" / "images"
STYLE: Any = {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9.5, "legend.fontsize": 8}
TASKS = ("paraphrase", "sentiment", "similarity")
EPOCHS = range(1, 11)
SIZES = {  # rows of each task
    "141,498 questions, as in the paper": (141_498, 8_544, 6_040),
    "14,061 questions, as in our runs": (14_061, 8_544, 6_040),
}
POINTS, UPDATES = 100, 401  # as in the lesson on MNRL

Number = Callable[[Mapping[str, Any]], float]  # of the record of an epoch


def sampling(theme: str) -> Figure:
    """Each task's share of the updates by epoch, annealed and in turn, for two tables of questions."""
    figure, panels, ink, pale, colours = canvas(theme, 2)
    for axes, (title, sizes) in zip(panels, SIZES.items(), strict=True):
        shares = np.array([task_probabilities(sizes, annealed_alpha(epoch, 10)) for epoch in EPOCHS]).T
        for name, share, colour in zip(TASKS, shares, colours, strict=False):
            axes.plot(EPOCHS, share, color=colour, marker="o", markersize=3, label=name)
        axes.axhline(1 / 3, color=pale, linestyle=":", label="tasks in turn")
        axes.set(ylim=(0, 1), xlabel="epoch")
        axes.set_title(title, color=ink)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels[1].legend(frameon=False, labelcolor=ink, loc="upper right")
    return figure


def smart(theme: str) -> Figure:
    """SST by epoch, annealed without and with SMART: the gap to the training rows, and the loss on dev."""
    figure, (gap, loss), ink, _, colours = canvas(theme, 2)
    cells = {"annealed": "annealed-5x", "annealed + SMART": "annealed-smart-ball-5x"}
    by_epoch(gap, cells, lambda one: accuracy(one, "train") - accuracy(one, "dev"), colours)
    by_epoch(loss, cells, lambda one: one["dev_loss"]["sentiment"], colours)
    gap.set_title("SST accuracy, training rows − dev", color=ink)
    loss.set_title("loss of SST on dev", color=ink)
    gap.legend(frameon=False, labelcolor=ink)
    return figure


def mnrl(theme: str) -> Figure:
    """The lesson's points before and after MNRL, and SST by epoch in runs that began without and with it."""
    figure, (left, middle, right), ink, _, colours = canvas(theme, 3)
    labels, before, after = toy()
    for axes, points, title in ((left, before, "before"), (middle, after, "after 400 updates")):
        for label, colour in enumerate(colours):
            x, y = points[labels == label].T
            axes.scatter(x, y, s=9, color=colour)
        axes.plot(0, 0, "+", color=ink)
        axes.set_aspect("equal", "datalim")
        axes.set_title(title, color=ink)
        axes.set(xticks=[], yticks=[])
    cells = {"without MNRL": "annealed-smart-ball-5x", "with MNRL": "mnrl-annealed-smart-ball-5x"}
    by_epoch(right, cells, lambda one: accuracy(one, "dev"), colours)
    right.set_title("SST accuracy, dev", color=ink)
    right.legend(frameon=False, labelcolor=ink)
    return figure


def canvas(theme: str, count: int) -> tuple[Figure, Sequence[Axes], str, str, Sequence[str]]:
    """Return a figure of this many panels side by side, and the theme's ink, pale ink and colours."""
    from matplotlib.figure import Figure

    ink, pale, *colours = THEMES[theme]
    figure = Figure(figsize=(6.8, 2.4), facecolor="none")
    panels = figure.subplots(1, count)
    for axes in panels:
        axes.set_facecolor("none")
        axes.tick_params(colors=pale)
        axes.spines[:].set_color(pale)
        axes.xaxis.label.set_color(pale)
    return figure, panels, ink, pale, colours


def by_epoch(axes: Axes, cells: Mapping[str, str], number: Number, colours: Sequence[str]) -> None:
    """Plot a number of every seed of these cells by epoch, and its mean."""
    for (label, cell), colour in zip(cells.items(), colours, strict=False):
        runs = [one["epochs"] for one in lines_of(RESULTS / f"{cell}.jsonl")]
        seeds = np.array([[number(epoch) for epoch in epochs] for epochs in runs])
        axes.plot(EPOCHS, seeds.T, color=colour, linewidth=0.8, alpha=0.45)
        axes.plot(EPOCHS, seeds.mean(axis=0), color=colour, linewidth=2.2, label=label)
    axes.set_xlabel("epoch")


def accuracy(record: Mapping[str, Any], part: str) -> float:
    return record[part]["sentiment"]["accuracy"]


def toy() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the labels of the lesson's points (N,), and the points (N, 2) before and after MNRL."""
    torch.manual_seed(0)
    labels, generator = np.arange(POINTS) % 5, np.random.default_rng(0)
    points = (0.3 * torch.randn(POINTS, 2) + torch.tensor([1.0, 0.5])).requires_grad_()
    before = points.detach().clone()
    optimizer = torch.optim.Adam([points], lr=0.02)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        group_loss(points[draw_groups(labels, 1, generator)], groups=1).backward()
        optimizer.step()
    return labels, before.numpy(), points.detach().numpy()


FIGURES = {"sampling": sampling, "smart": smart, "mnrl": mnrl}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=IMAGES, help="folder of the pictures (default: docs/images)"
    )
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in FIGURES:
            for theme in THEMES:
                save(name, theme, args.out / f"lesson-{name}-{theme}.svg")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@plotting()
def save(name: str, theme: str, path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context(STYLE):
        FIGURES[name](theme).savefig(path, metadata={"Date": None, "Creator": None})
    print(path)


if __name__ == "__main__":
    sys.exit(main())
