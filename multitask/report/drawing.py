"""How figures are drawn: our style, the colours of a light and a dark ground, and the files.

Plotting needs the extra `plots`, which is imported on first use. Nothing uses pyplot's global state.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from minbert.errors import InputError
from minbert.files import make_folder, write_content

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")


@dataclass(frozen=True)
class Theme:
    """The colours of a page and its figures. The palettes can be told apart by colour-blind readers."""

    ground: str
    ink: str
    soft: str  # words beside the point
    pale: str  # lines that guide the eye
    faint: str  # borders
    warning: str  # the ground of a note
    colours: tuple[str, ...]  # of tasks or runs (Okabe and Ito)
    ordered: tuple[str, ...]  # of ordered classes
    ramp: tuple[str, ...]  # from nothing to all

    def colour(self, place: int) -> str:
        return self.colours[place % len(self.colours)]


LIGHT = Theme(
    ground="#ffffff", ink="#1f2328", soft="#59636e", pale="#8b949e", faint="#d8dee4", warning="#fdf4ea",
    colours=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"),
    ordered=("#08417a", "#5aa2d8", "#b9b9b9", "#f29c3c", "#9c3504"),
    ramp=("#f5f9fe", "#9cc8e6", "#2676b8", "#08306b"),
)  # fmt: skip
DARK = Theme(
    ground="#0f1318", ink="#e8edf2", soft="#9aa4af", pale="#707b87", faint="#30373f", warning="#2b2117",
    colours=("#62b0f5", "#ff8a4c", "#3cc49a", "#e59ac9", "#dcb545", "#a9dcf5"),
    ordered=("#4f8fe0", "#9cc9f2", "#8d949c", "#f5b266", "#e8703a"),
    ramp=("#182029", "#1f4a75", "#3b8fd6", "#a5d4fa"),
)  # fmt: skip

# Labels are never parsed as formulas, and equal figures are equal byte for byte.
STYLE: Any = {
    "text.parse_math": False, "svg.hashsalt": "minbert", "figure.constrained_layout.use": True,
    "savefig.bbox": "tight", "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 10, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def can_plot() -> bool:
    """Return whether the extra `plots` is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def plotting(theme: Theme = LIGHT) -> Iterator[None]:
    """Apply our style, in a `with` or as a decorator. Raises InputError if the extra is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise InputError(
            'matplotlib, needed for figures, is not installed: pip install "minbert[plots]"'
        ) from None
    colours: Any = {
        "figure.facecolor": theme.ground, "axes.facecolor": theme.ground, "axes.edgecolor": theme.pale,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "xtick.color": theme.pale, "ytick.color": theme.pale,
        "xtick.labelcolor": theme.soft, "ytick.labelcolor": theme.soft,
    }  # fmt: skip
    with matplotlib.rc_context(STYLE | colours):
        yield


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in our style and in the colours of `theme`, a keyword of each figure."""

    @wraps(draw)
    def in_style(*args: P.args, **keywords: P.kwargs) -> Figure:
        theme = keywords.get("theme", LIGHT)
        assert isinstance(theme, Theme)
        with plotting(theme):
            return draw(*args, **keywords)

    return in_style


@plotting()
def save_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write NAME.png and NAME.svg into the folder. Return the SVG."""
    make_folder(folder)
    png, svg = io.BytesIO(), svg_of(figure)
    figure.savefig(png, format="png", dpi=150)
    write_content(folder / f"{name}.png", png.getvalue())
    write_content(folder / f"{name}.svg", svg)
    return svg


@plotting()
def svg_of(figure: Figure) -> bytes:
    svg = io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()
