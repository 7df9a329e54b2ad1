"""Draw the figures of the lessons: `python tools/paper/lesson_figures.py`.

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
from multitask.report.drawing import DARK, LIGHT, Theme, plotting
from record import RESULTS, lines_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

THEMES = {"light": LIGHT, "dark": DARK}
IMAGES = RESULTS.parents[1] / "docs" / "images"
STYLE: Any = {"svg.fonttype": "none", "font.size": 9, "axes.titlesize": 9.5, "legend.fontsize": 8}
TASKS = ("paraphrase", "sentiment", "similarity")
EPOCHS = range(1, 11)
SIZES = {  # rows of each task
    "141,498 questions, as in the paper": (141_498, 8_544, 6_040),
    "14,061 questions, as in our runs": (14_061, 8_544, 6_040),
}
WIDTHS, DRAWS = (1, 4, 16, 64, 256), 2000  # of a head; queries with ten keys each
POINTS, UPDATES = 100, 401  # as in the lesson on MNRL

Number = Callable[[Mapping[str, Any]], float]  # of the record of an epoch


def attention(theme: Theme) -> Figure:
    """The largest of ten attention weights and its derivative by its own score, by the width of a head."""
    figure, panels = canvas(2)
    generator = torch.Generator().manual_seed(0)
    for label, power, colour in (
        ("divided by sqrt(d)", 0.5, theme.colours[0]),
        ("as they are", 0.0, theme.colours[1]),
    ):
        largest, derivatives = [], []
        for width in WIDTHS:
            query = torch.randn(DRAWS, 1, width, generator=generator)
            scores = (query * torch.randn(DRAWS, 10, width, generator=generator)).sum(dim=2) / width**power
            weights = scores.softmax(dim=1)
            top = weights.amax(dim=1)
            largest.append(top.mean().item())
            derivatives.append((top * (1 - top)).mean().item())
        for axes, values in zip(panels, (largest, derivatives), strict=True):
            axes.plot(WIDTHS, values, color=colour, marker="o", markersize=3, label=label)
    for axes, title in zip(panels, ("largest weight of ten", "its derivative by its score"), strict=True):
        axes.set_xscale("log", base=2)
        axes.set(ylim=0, xlabel="d")
        axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        axes.set_title(title)
    panels[0].legend(frameon=False, title="scores")
    return figure


def layer(theme: Theme) -> Figure:
    """ReLU and GELU, and how far GELU by tanh is from the exact one."""
    figure, (shapes, error) = canvas(2)
    u = torch.linspace(-4, 4, 401)
    exact = torch.nn.functional.gelu(u)
    shapes.plot(u, u.relu(), color=theme.soft, linestyle=":", label="ReLU")
    shapes.plot(u, exact, color=theme.colours[0], label="GELU")
    shapes.set_title("what becomes of u")
    shapes.legend(frameon=False)
    error.plot(u, torch.nn.functional.gelu(u, approximate="tanh") - exact, color=theme.colours[1])
    error.set_title("GELU by tanh, less the exact one")
    for axes in (shapes, error):
        axes.set_xlabel("u")
    return figure


def sampling(theme: Theme) -> Figure:
    """Each task's share of the updates by epoch, annealed and in turn, for two tables of questions."""
    figure, panels = canvas(2)
    for axes, (title, sizes) in zip(panels, SIZES.items(), strict=True):
        shares = np.array([task_probabilities(sizes, annealed_alpha(epoch, 10)) for epoch in EPOCHS]).T
        for name, share, colour in zip(TASKS, shares, theme.colours, strict=False):
            axes.plot(EPOCHS, share, color=colour, marker="o", markersize=3, label=name)
        axes.axhline(1 / 3, color=theme.soft, linestyle=":", label="tasks in turn")
        axes.set(ylim=(0, 1), xlabel="epoch")
        axes.set_title(title)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panels[1].legend(frameon=False, loc="upper right")
    return figure


def smart(theme: Theme) -> Figure:
    """SST by epoch, annealed without and with SMART: the gap to the training rows, and the loss on dev."""
    figure, (gap, loss) = canvas(2)
    cells = {"annealed": "annealed-5x", "annealed + SMART": "annealed-smart-ball-5x"}
    by_epoch(gap, cells, lambda one: accuracy(one, "train") - accuracy(one, "dev"), theme.colours)
    by_epoch(loss, cells, lambda one: one["dev_loss"]["sentiment"], theme.colours)
    gap.set_title("SST accuracy, training rows − dev")
    loss.set_title("loss of SST on dev")
    gap.legend(frameon=False)
    return figure


def mnrl(theme: Theme) -> Figure:
    """The lesson's points before and after MNRL, and SST by epoch in runs that began without and with it."""
    figure, (left, middle, right) = canvas(3)
    labels, before, after = toy()
    for axes, points, title in ((left, before, "before"), (middle, after, "after 400 updates")):
        for label, colour in enumerate(theme.colours):
            x, y = points[labels == label].T
            axes.scatter(x, y, s=9, color=colour)
        axes.plot(0, 0, "+", color=theme.ink)
        axes.set_aspect("equal", "datalim")
        axes.set_title(title)
        axes.set(xticks=[], yticks=[])
    cells = {"without MNRL": "annealed-smart-ball-5x", "with MNRL": "mnrl-annealed-smart-ball-5x"}
    by_epoch(right, cells, lambda one: accuracy(one, "dev"), theme.colours)
    right.set_title("SST accuracy, dev")
    right.legend(frameon=False)
    return figure


def canvas(count: int) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of this many panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, 2.4))
    return figure, figure.subplots(1, count)


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


FIGURES = {"attention": attention, "layer": layer, "sampling": sampling, "smart": smart, "mnrl": mnrl}


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
            for ground, theme in THEMES.items():
                save(name, theme, args.out / f"lesson-{name}-{ground}.svg")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def save(name: str, theme: Theme, path: Path) -> None:
    import matplotlib

    with plotting(theme), matplotlib.rc_context(STYLE):
        FIGURES[name](theme).savefig(path, metadata={"Date": None, "Creator": None})
    print(path)


if __name__ == "__main__":
    sys.exit(main())
