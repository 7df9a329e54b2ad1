"""The parts of a table: its rows, and the run behind each row. paper.py has the paper's own tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from multitask.config import flag
from multitask.recipes import read_recipe, recipe_path

Scores = tuple[float, ...]  # accuracy on QQP and SST, (1 + r) / 2 on STS, and their mean, "Model"


@dataclass(frozen=True)
class Cell:
    """A run: a recipe, the settings that differ from it, and the cells that must be finished first.

    These are the cell that it starts from, or those that an ensemble averages. `stated` names the settings
    that its table fixes, even if the recipe has the same values; `mark` distinguishes cells that differ only
    in what they need.
    """

    recipe: str
    settings: tuple[tuple[str, Any], ...] = ()
    needs: tuple[Cell, ...] = ()
    mark: str = ""
    stated: frozenset[str] = field(default=frozenset(), compare=False)

    @property
    def name(self) -> str:
        departures = [f"{flag(name)[2:]}-{as_text(value)}" for name, value in self.settings]
        return "-".join(filter(None, [self.recipe, *departures, self.mark]))

    @property
    def said(self) -> dict[str, Any]:
        """The settings of the recipe, overridden by the cell's."""
        return read_recipe(recipe_path(self.recipe)) | dict(self.settings)

    @property
    def trains(self) -> bool:
        return self.recipe != "ensemble"


def as_text(value: Any) -> str:
    """Return a setting's value as written on the command line."""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def cell(recipe: str, *needs: Cell, **settings: Any) -> Cell:
    """Make a cell without the settings that the recipe has anyway, so that equal runs are equal cells."""
    said = read_recipe(recipe_path(recipe))
    departures = {name: value for name, value in settings.items() if said.get(name) != value}
    return Cell(recipe, tuple(sorted(departures.items())), needs, stated=frozenset(settings))


def in_order(cells: Iterable[Cell]) -> list[Cell]:
    """Return these cells and all that they need, each once and after what it needs."""
    return list(dict.fromkeys(chain(*([*in_order(one.needs), one] for one in cells))))


@dataclass(frozen=True)
class Row:
    labels: tuple[str, ...]
    cell: Cell
    paper: Scores | None = None  # None: not a row of the paper


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper; `times` is how long it says training takes: (model, its cell, the time)."""

    title: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    times: tuple[tuple[str, Cell, str], ...] = ()

    @property
    def cells(self) -> list[Cell]:
        return in_order(row.cell for row in self.rows)


@dataclass(frozen=True)
class Figure:
    """A figure that `--option report` plots in the folder of a cell's run, under the name `file`.

    For a confusion matrix, `fractions` are those that the paper's text states, by (true, predicted)
    class.
    """

    title: str
    cell: Cell
    file: str
    notes: tuple[str, ...] = ()
    fractions: Mapping[tuple[int, int], float] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        return in_order([self.cell])


def sweep(
    title: str,
    recipe: str,
    columns: Mapping[str, str],
    *rows: tuple,
    needs: tuple[Cell, ...] = (),
    notes: tuple[str, ...] = (),
    extra: tuple[Row, ...] = (),
    **settings: Any,
) -> PaperTable:
    """Make a table of one recipe with several settings.

    Each row is as the paper prints it: the values of the settings in `columns` (head: setting), then its four
    scores. `extra` rows are ours.
    """
    width = len(columns)
    found = []
    for row in rows:
        varied = dict(zip(columns.values(), row[:width], strict=True))
        one = cell(recipe, *needs, **varied, **settings)
        found.append(Row(tuple(map(str, row[:width])), one, row[width:]))
    return PaperTable(title, tuple(columns), (*found, *extra), notes)
