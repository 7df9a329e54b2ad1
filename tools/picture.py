"""Draw README's picture from a finished run: `python tools/picture.py RUN`.

Writes docs/images/sample-light.svg and sample-dark.svg: the dev score of every task and their mean, by epoch.
The same run and the same matplotlib give the same bytes. Needs the extra `plots`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minbert.errors import InputError
from multitask.saved import best_folder, read_definitions

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
THEMES = {  # ink, faint ink, then a colour for each task; on a transparent ground
    "light": ("#1f2328", "#59636e", "#0072b2", "#b8500a", "#007a55", "#a8457f"),
    "dark": ("#f0f6fc", "#9198a1", "#6cb6ff", "#f0883e", "#3fb98a", "#e08bbd"),
}
WIDTH, HEIGHT = 800, 300  # pixels
DPI = 72  # of an SVG's points
APART = 0.075  # of the height: the least distance between two labels at the lines' ends

Curves = Mapping[str, list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="finished run of --option finetune, pretrain or distill")
    parser.add_argument(
        "--out", type=Path, default=IMAGES, help="folder of the pictures (default: docs/images)"
    )
    args = parser.parse_args()
    try:
        curves = dev_curves(args.run)
        args.out.mkdir(parents=True, exist_ok=True)
        for theme in THEMES:
            draw(curves, theme, args.out / f"sample-{theme}.svg")
            print(args.out / f"sample-{theme}.svg")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f'error: {error.name} is not installed: pip install -e ".[plots]"', file=sys.stderr)
        return 2
    return 0


def dev_curves(run: Path) -> dict[str, list[float]]:
    """Return the dev score of every task by epoch, each from 0 to 1, and last their mean."""
    tasks = read_definitions(best_folder(run) / "tasks.toml")[1]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curves = {}
    for name, task in tasks.items():
        label = f"{name}, {task.kind.scoring.formula or task.kind.metric}"
        values = [record["dev"][name][task.kind.metric] for record in records]
        curves[label] = [task.kind.score(value) for value in values]
    return curves | {"score, their mean": [record["dev"]["score"] for record in records]}


def draw(curves: Curves, theme: str, path: Path) -> None:
    """Write the curves as an SVG whose text can be read on the theme's ground."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ink, faint, *palette = THEMES[theme]
    last = len(curves) - 1
    colours = [ink if number == last else palette[number % len(palette)] for number in range(len(curves))]
    style: Any = {
        "svg.hashsalt": "minbert", "svg.fonttype": "none", "font.size": 13, "text.color": ink,
        "axes.labelcolor": faint, "axes.edgecolor": faint, "xtick.color": faint, "ytick.color": faint,
        "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI))
        axes = figure.add_axes((0.07, 0.17, 0.61, 0.69))
        for number, values in enumerate(curves.values()):
            width = 3 if number == last else 1.8
            epochs = range(1, 1 + len(values))
            axes.plot(epochs, values, color=colours[number], linewidth=width, marker="o", markersize=4)
        low, high = axes.get_ylim()
        ends = [values[-1] for values in curves.values()]
        places = spread(ends, APART * (high - low))
        for label, end, place, colour in zip(curves, ends, places, colours, strict=True):
            axes.text(1.02, place, f"{end:.2f} {label}", color=colour, va="center",
                      transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", color=faint, alpha=0.25, linewidth=0.8)
        figure.text(0.012, 0.93, "Dev scores on the shipped sample", weight="bold")
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})


def spread(places: Sequence[float], apart: float) -> list[float]:
    """Return the places, the higher of two moved up where they are less than `apart` from each other."""
    moved: dict[int, float] = {}
    for number in sorted(range(len(places)), key=places.__getitem__):
        moved[number] = max(places[number], max(moved.values(), default=-math.inf) + apart)
    return [moved[number] for number in range(len(places))]


if __name__ == "__main__":
    sys.exit(main())
