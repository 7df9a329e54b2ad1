"""Draw the figures of the lessons: `python tools/paper/lesson_figures.py`, or only those that are named.

Writes docs/images/lesson-NAME-light.svg and lesson-NAME-dark.svg, from formulas, the records in tools/results
and minilm-l6. The same matplotlib and torch give the same bytes. Needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from minbert import AdamW, BertModel, BertTokenizer
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
SENTENCE = "The cat sat on the mat because it was tired."
HEADS = ((0, 2), (1, 8), (3, 1))  # layer and head, of minilm-l6
LENGTHS = (3, 12, 4, 6)  # tokens of the sentences of a batch
WIDTHS, DRAWS = (1, 4, 16, 64, 256), 2000  # of a head; queries with ten keys each
POINTS, UPDATES = 100, 401  # as in the lesson on MNRL

Number = Callable[[Mapping[str, Any]], float]  # of the record of an epoch


def attention(theme: Theme) -> Figure:
    """The largest of ten attention weights and the length of softmax's gradient, by the width of a head."""
    figure, panels, _, _, colours = canvas(theme, 2)
    generator = torch.Generator().manual_seed(0)
    for label, power, colour in (("divided by sqrt(d)", 0.5, colours[0]), ("as they are", 0.0, colours[1])):
        largest, gradients = [], []
        for width in WIDTHS:
            query = torch.randn(DRAWS, 1, width, generator=generator)
            scores = (query * torch.randn(DRAWS, 10, width, generator=generator)).sum(dim=2) / width**power
            weights = scores.softmax(dim=1)
            top = weights.amax(dim=1)
            largest.append(top.mean().item())
            gradients.append((top * (1 - top)).mean().item())
        for axes, values in zip(panels, (largest, gradients), strict=True):
            axes.plot(WIDTHS, values, color=colour, marker="o", markersize=3, label=label)
    for axes, title in zip(panels, ("largest weight of ten", "its derivative by its score"), strict=True):
        axes.set_xscale("log", base=2)
        axes.set(ylim=0, xlabel="d")
        axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        axes.set_title(title)
    panels[0].legend(frameon=False, title="scores")
    return figure


@torch.no_grad()
def heads(theme: Theme) -> Figure:
    """What three heads of minilm-l6 look at: a row for each query, a column for each key."""
    from matplotlib.colors import LinearSegmentedColormap

    figure, panels, *_ = canvas(theme, 3, height=2.9)
    model, tokenizer = BertModel.from_pretrained("minilm-l6"), BertTokenizer.from_pretrained("minilm-l6")
    batch = tokenizer([SENTENCE])
    attentions = model(**batch, output_attentions=True).attentions
    tokens = tokenizer.tokens(batch["input_ids"][0])
    places = np.arange(len(tokens)) + 0.5
    for axes, (layer, head) in zip(panels, HEADS, strict=True):
        ramp = LinearSegmentedColormap.from_list("ramp", theme.ramp)
        axes.pcolormesh(attentions[layer][0, head].numpy(), cmap=ramp, vmin=0, vmax=1)
        axes.set_title(f"layer {layer}, head {head}")
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xticks(places, tokens, rotation=90, fontsize=7)
        axes.set_yticks(places, tokens if axes is panels[0] else [""] * len(tokens), fontsize=7)
        axes.tick_params(length=0)
    return figure


def norms(theme: Theme) -> Figure:
    """BERT's layer, with the norms after the sums, beside the later way, with the norms in the branches."""
    figure, panels, ink, pale, colours = canvas(theme, 2, height=3.3)
    columns = {
        "post-norm, as in BERT": ("attention", "+", "norm", "feed-forward", "+", "norm"),
        "pre-norm, as in GPT-2": ("norm", "attention", "+", "norm", "feed-forward", "+"),
    }
    for axes, (title, steps) in zip(panels, columns.items(), strict=True):
        axes.set_title(title)
        axes.axis("off")
        axes.set(xlim=(-1.6, 1.6), ylim=(-0.9, 6.1))
        arrow = {"arrowstyle": "->", "color": pale}
        axes.annotate("", (0, 6), (0, -0.8), arrowprops=arrow, zorder=0)
        start = -0.55  # where the next residual leaves
        for height, step in enumerate(steps):
            number = ("attention", "feed-forward", "+", "norm").index(step)
            style = f"{'circle' if step == '+' else 'round'},pad=0.35"
            box = {"boxstyle": style, "facecolor": theme.ground, "edgecolor": colours[number]}
            axes.text(0, height, step, ha="center", va="center", color=ink, bbox=box)
            if step == "+":
                axes.plot([0, 1.1, 1.1, 0.2], [start, start, height, height], color=colours[2], zorder=0)
                start = height + (1.45 if steps[-1] == "norm" else 0.45)
    return figure


def packing(theme: Theme) -> Figure:
    """A batch of four sentences, padded and packed: a square for each token, a colour for each sentence."""
    figure, panels, _, _, colours = canvas(theme, 2, height=1.8)
    width = max(LENGTHS)
    owners = [colours[row] for row, length in enumerate(LENGTHS) for _ in range(length)]
    padded = [(place, row) for row, length in enumerate(LENGTHS) for place in range(length)]
    packed = [(place % width, place // width) for place in range(len(owners))]
    filling = [(place, row) for row, length in enumerate(LENGTHS) for place in range(length, width)]
    x, y = np.transpose(filling)
    panels[0].scatter(x, y, s=70, marker="s", color=theme.faint)
    titles = f"padded: {width * len(LENGTHS)} places", f"packed: {len(owners)} places"
    for axes, places, title in zip(panels, (padded, packed), titles, strict=True):
        x, y = np.transpose(places)
        axes.scatter(x, y, s=70, marker="s", color=owners)
        axes.set(xlim=(-0.6, width - 0.4), ylim=(len(LENGTHS) - 0.4, -0.6))
        axes.set_title(title)
        axes.axis("off")
    return figure


def adamw(theme: Theme) -> Figure:
    """How long the first steps are with and without bias correction; what two kinds of decay leave."""
    figure, (steps, left), _, _, colours = canvas(theme, 2)
    for correct, label, colour in zip((True, False), ("corrected", "not corrected"), colours, strict=False):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = AdamW([weight], lr=1.0, correct_bias=correct)
        weight.grad = torch.ones(1)
        path = [0.0]
        for _ in range(300):
            optimizer.step()
            path.append(-weight.item())
        steps.plot(range(1, 301), np.diff(path), color=colour, label=label)
    steps.set(xlabel="update", ylim=0)
    steps.set_title("length of a step, in learning rates")
    steps.legend(frameon=False)
    sizes = torch.logspace(-2, 1, 13)
    for kind, label, colour in zip(
        (AdamW, torch.optim.Adam), ("AdamW", "decay in the gradient"), colours, strict=False
    ):
        torch.manual_seed(0)
        weights = torch.nn.Parameter(torch.ones(len(sizes)))
        optimizer = kind([weights], lr=0.001, eps=1e-8, weight_decay=0.1)
        for _ in range(2000):
            weights.grad = torch.randn(()).sign() * sizes
            optimizer.step()
        left.plot(sizes, weights.detach(), color=colour, marker="o", markersize=3, label=label)
    left.set(xlabel="size of the gradients", xscale="log", ylim=(0, 1.05))
    left.set_xticks((0.01, 0.1, 1, 10), (".01", ".1", "1", "10"))
    left.set_title("what 2,000 updates leave of a weight of 1")
    left.legend(frameon=False)
    return figure


def mlm(theme: Theme) -> Figure:
    """Perplexity and the share guessed on dev, while minilm-l6 learns to guess words of SST."""
    figure, panels, _, _, colours = canvas(theme, 2)
    (run,) = lines_of(RESULTS / "mlm-sst.jsonl")
    updates = [epoch["step"] for epoch in run["epochs"]]
    shown = (("perplexity", "perplexity of held-out tokens"), ("accuracy", "share of them guessed"))
    for axes, (name, title), colour in zip(panels, shown, colours, strict=False):
        axes.plot(
            updates, [epoch["dev"][name] for epoch in run["epochs"]], color=colour, marker="o", markersize=3
        )
        axes.set(xlabel="update", xlim=0, ylim=0)
        axes.set_title(title)
    return figure


def layer(theme: Theme) -> Figure:
    """ReLU and GELU, and how far GELU by tanh is from the exact one."""
    figure, (shapes, error), _, pale, colours = canvas(theme, 2)
    u = torch.linspace(-4, 4, 401)
    exact = torch.nn.functional.gelu(u)
    shapes.plot(u, u.relu(), color=pale, linestyle=":", label="ReLU")
    shapes.plot(u, exact, color=colours[0], label="GELU")
    shapes.set_title("what becomes of u")
    shapes.legend(frameon=False)
    error.plot(u, torch.nn.functional.gelu(u, approximate="tanh") - exact, color=colours[1])
    error.set_title("GELU by tanh, less the exact one")
    for axes in (shapes, error):
        axes.set_xlabel("u")
    return figure


def sampling(theme: Theme) -> Figure:
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


def smart(theme: Theme) -> Figure:
    """SST by epoch, annealed without and with SMART: the gap to the training rows, and the loss on dev."""
    figure, (gap, loss), ink, _, colours = canvas(theme, 2)
    cells = {"annealed": "annealed-5x", "annealed + SMART": "annealed-smart-ball-5x"}
    by_epoch(gap, cells, lambda one: accuracy(one, "train") - accuracy(one, "dev"), colours)
    by_epoch(loss, cells, lambda one: one["dev_loss"]["sentiment"], colours)
    gap.set_title("SST accuracy, training rows − dev", color=ink)
    loss.set_title("loss of SST on dev", color=ink)
    gap.legend(frameon=False, labelcolor=ink)
    return figure


def mnrl(theme: Theme) -> Figure:
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


def canvas(
    theme: Theme, count: int, height: float = 2.4
) -> tuple[Figure, Sequence[Axes], str, str, Sequence[str]]:
    """Return a figure of this many panels side by side, and the theme's ink, pale ink and colours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.8, height))
    panels = figure.subplots(1, count)
    return figure, panels, theme.ink, theme.soft, theme.colours


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


OF_MINILM = {"heads": heads}  # those that need the checkpoint
FIGURES = OF_MINILM | {
    "attention": attention, "layer": layer, "norms": norms, "packing": packing, "adamw": adamw, "mlm": mlm,
    "sampling": sampling, "smart": smart, "mnrl": mnrl,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(FIGURES)} (default: all)")
    parser.add_argument(
        "--out", type=Path, default=IMAGES, help="folder of the pictures (default: docs/images)"
    )
    args = parser.parse_args()
    if unknown := {*args.names} - FIGURES.keys():
        parser.error(f"no figure {min(unknown)}")
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in args.names or FIGURES:
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
