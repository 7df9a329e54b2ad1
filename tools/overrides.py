"""`--set`: settings of the user's own for all cells that use them, beside those that a table states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cells import Cell, Figure, Table, as_text, cell
from minbert.errors import InputError, shown
from multitask.config import INSTEAD, SETTINGS, WEIGHTS, Config, check, check_all, default_of
from multitask.sampling import FULL_PASS

GROUPS = ("model", "training", "SMART", "BPPO", "MNRL")
ELSEWHERE = {"weights": "--weights", "seed": "--seeds"}  # what has a flag of its own
GIVEN = {*ELSEWHERE, "init", "allow_pickle"}  # what a cell or the command line decides
COMPARED = {"sampling"}  # what the rows differ in
SETTABLE = {"max_length"} | {n for n in SETTINGS if SETTINGS[n]["group"] in GROUPS} - GIVEN - COMPARED
Changes = Mapping[str, Any]  # setting: value, or for lr a Ratio


@dataclass(frozen=True)
class Ratio:
    """A learning rate as a multiple of the one that a cell or its recipe states."""

    factor: float

    def __str__(self) -> str:
        return f"{self.factor:g}x"

    def of(self, rate: float) -> float:
        return float(f"{self.factor * rate:.6g}")


def read_changes(items: Iterable[str]) -> dict[str, Any]:
    """From NAME=VALUE to checked values, sorted by name. Raises InputError for what is no training setting,
    has no such value, or comes twice."""
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name in found:
            raise InputError(f"--set: {shown(item)}: {'set twice' if equals else 'not NAME=VALUE'}")
        if name == "option" or (name in SETTINGS and name not in SETTABLE):
            remedy = f"; use {ELSEWHERE[name]}" if name in ELSEWHERE else ""
            if name in COMPARED:
                raise InputError(f"--set: {name} is what the rows of the tables differ in")
            raise InputError(f"--set: {name} is not a training setting{remedy}")
        found[name] = _value(name, text.strip())
    _ = Config("finetune", bregman_beta=found.get("bregman_beta", "0")).betas  # a text with a form of its own
    return dict(sorted(found.items()))


def _value(name: str, text: str) -> Any:
    if name == "lr" and text.endswith("x"):
        return Ratio(check(name, _number(text[:-1], float), "--set: lr"))
    kind = SETTINGS[name]["kind"] if name in SETTINGS else str
    return check_all({name: text if kind is str else _number(text, kind)}, "--set")[name]


def _number(text: str, kind: type) -> Any:
    """The number, or the text as it is for `check` to refuse."""
    try:
        return kind(text)
    except ValueError:
        return text


def in_words(changes: Changes) -> str:
    return ",".join(f"{name}={as_text(value)}" for name, value in changes.items())


def changed_table(table: Table, changes: Changes) -> Table:
    rows = tuple(replace(row, cell=changed(row.cell, changes)) for row in table.rows)
    times = tuple((model, changed(one, changes), said) for model, one, said in table.times)
    return replace(table, rows=rows, times=times)


def changed_figure(figure: Figure, changes: Changes) -> Figure:
    return replace(figure, cell=changed(figure.cell, changes))


def changed(one: Cell, changes: Changes) -> Cell:
    """The cell with the changes that it takes, and all that it needs likewise."""
    needs = [changed(need, changes) for need in one.needs]
    said = one.said
    taken = {
        name: value.of(said.get(name, default_of(name))) if isinstance(value, Ratio) else value
        for name, value in changes.items()
        if takes(one, name, value)
    }
    return replace(cell(one.recipe, *needs, **dict(one.settings) | taken), mark=one.mark, stated=one.stated)


def takes(one: Cell, name: str, value: Any) -> bool:
    """Whether a cell uses a setting and its table does not state it; a ratio may change what is stated. A
    setting of SMART or BPPO goes to the cells that have it on. The epochs of full passes stay as they are."""
    meta, said = SETTINGS[name], one.said
    if name == "steps_per_epoch" and said.get("sampling") == FULL_PASS:
        return False
    displaced = (INSTEAD | {idle: other for other, idle in INSTEAD.items()}).get(name)
    weights = [weight for weight, group in WEIGHTS.items() if group == meta["group"]]
    return (
        said["option"] in meta["options"]
        and (isinstance(value, Ratio) or not {name, displaced} & one.stated)
        and all(said.get(weight) for weight in weights)
    )
