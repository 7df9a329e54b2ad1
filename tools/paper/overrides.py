"""`--set`: the user's settings for all cells that use them, except where a table states its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cells import Cell, Figure, PaperTable, as_text, cell
from minbert.errors import InputError, shown
from minbert.fields import check, from_text
from multitask.config import FIELDS, INSTEAD, SETTINGS, Bppo, Smart, check_settings
from multitask.methods.sampling import FULL_PASS

GROUPS = ("model", "training", "SMART", "BPPO", "MNRL")
ELSEWHERE = {"weights": "--weights", "seed": "--seeds"}  # settings with their own flag
GIVEN = {*ELSEWHERE, "init", "allow_pickle", "task_file"}  # decided by the cell or the command line
COMPARED = {"sampling"}  # what the rows compare
SETTABLE = {name for name, one in SETTINGS.items() if one.title in GROUPS} - GIVEN - COMPARED
MOST_RATIO = 1000  # of a rate to the one that is stated
Changes = Mapping[str, Any]  # setting: value, or for lr a Ratio


@dataclass(frozen=True)
class Ratio:
    """A learning rate as a multiple of the one in a cell or its recipe."""

    factor: float

    def __str__(self) -> str:
        return f"{self.factor:g}x"

    def of(self, rate: float) -> float:
        return float(f"{self.factor * rate:.6g}")


def read_changes(items: Iterable[str]) -> dict[str, Any]:
    """Parse NAME=VALUE items into checked values, sorted by name.

    Raises InputError if a name is not a training setting or is given twice, or a value is invalid.
    """
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name in found:
            raise InputError(f"--set: {shown(item)}: {'set twice' if equals else 'not NAME=VALUE'}")
        if name == "option" or (name in SETTINGS and name not in SETTABLE):
            remedy = f"; use {ELSEWHERE[name]}" if name in ELSEWHERE else ""
            if name in COMPARED:
                raise InputError(f"--set: {name} cannot be set, because the rows of the tables compare it")
            raise InputError(f"--set: {name} is not a training setting{remedy}")
        found[name] = _value(name, text.strip())
    _ = Bppo(beta=found.get("bregman_beta", "0")).betas  # checks the format of its text
    return dict(sorted(found.items()))


def _value(name: str, text: str) -> Any:
    if name == "lr" and text.endswith("x"):
        ratio = replace(FIELDS["lr"], most=MOST_RATIO)
        return Ratio(check(from_text(text[:-1], ratio), ratio, "--set: lr"))
    value = from_text(text, FIELDS[name]) if name in FIELDS else text
    return check_settings({name: value}, "--set")[name]


def in_words(changes: Changes) -> str:
    return ",".join(f"{name}={as_text(value)}" for name, value in changes.items())


def changed_table(table: PaperTable, changes: Changes) -> PaperTable:
    rows = tuple(replace(row, cell=changed(row.cell, changes)) for row in table.rows)
    times = tuple((model, changed(one, changes), said) for model, one, said in table.times)
    return replace(table, rows=rows, times=times)


def changed_figure(figure: Figure, changes: Changes) -> Figure:
    return replace(figure, cell=changed(figure.cell, changes))


def changed(one: Cell, changes: Changes) -> Cell:
    """Return the cell, and the cells that it needs, with the changes that apply to each."""
    needs = [changed(need, changes) for need in one.needs]
    said = one.said
    taken = {
        name: value.of(said.get(name, FIELDS[name].default)) if isinstance(value, Ratio) else value
        for name, value in changes.items()
        if takes(one, name, value)
    }
    return replace(cell(one.recipe, *needs, **dict(one.settings) | taken), mark=one.mark, stated=one.stated)


def takes(one: Cell, name: str, value: Any) -> bool:
    """Return whether a setting applies to a cell: the cell uses it and its table does not state it.

    A ratio applies even if the table states a rate. A setting of SMART or BPPO applies only to cells with the
    method on; steps_per_epoch never applies to full passes.
    """
    said = one.said
    if name == "steps_per_epoch" and said.get("sampling") == FULL_PASS:
        return False
    displaced = (INSTEAD | {idle: other for other, idle in INSTEAD.items()}).get(name)
    methods = [group.prefix for group in (Smart, Bppo) if name.startswith(group.prefix)]
    return (
        SETTINGS[name].used_by(said["option"])
        and (isinstance(value, Ratio) or not {name, displaced} & one.stated)
        and all(said.get(f"{prefix}weight") for prefix in methods)
    )
