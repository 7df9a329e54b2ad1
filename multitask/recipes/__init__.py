"""Recipes: settings in TOML files. A recipe may extend others, and may consist of stages."""

from __future__ import annotations

import os
import re
from functools import reduce
from pathlib import Path
from typing import Any

from minbert.errors import InputError, short_line, shown
from minbert.reading import load_toml
from multitask.advice import resume
from multitask.config import INSTEAD, OPTIONS, check_settings, last_setting

SHIPPED = Path(__file__).parent
Known = dict[Path, dict[str, Any]]  # the settings of recipes that have been read


class CutError(InputError):
    """A run's config.toml is not whole: `problem` says why, and the message also what to do."""

    def __init__(self, problem: str, run: Path):
        super().__init__(f"{problem}; {resume(run)} restores it from a saved state")
        self.problem = problem


def layered(recipe: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags over the recipe; --init displaces a recipe's weights, and so on (see INSTEAD). A
    recipe's revision is one of its own weights."""
    displaced = INSTEAD | {idle: name for name, idle in INSTEAD.items()}
    dropped = {displaced[name] for name in flags if name in displaced}
    if {"weights", "init"} & flags.keys():
        dropped.add("revision")
    return {name: value for name, value in recipe.items() if name not in dropped} | flags


def recipe_path(name: str, folder: Path = Path(), source: str = "--recipe") -> Path:
    """Return the file of a shipped recipe's name, or of the path of a TOML file, from this folder on. Raises
    InputError, about the source of the name, if there is none."""
    shipped = SHIPPED / f"{name}.toml"
    if os.path.isfile(shipped):
        return shipped
    if not os.path.isfile(folder / name):
        names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.toml")))
        raise InputError(f"{source}: {shown(name)} is neither a file nor a shipped recipe ({names})")
    return Path(os.path.normpath(folder / name))


def read_recipe(path: Path, behind: tuple[Path, ...] = (), known: Known | None = None) -> dict[str, Any]:
    """Return a recipe's settings over those of the recipes that it `extends`. Each is read once, however
    often it is extended: `known` holds those that were read before."""
    known = {} if known is None else known
    if path in behind:
        raise InputError(f"{path}: extends itself")
    if path not in known:
        values = load_toml(path)
        if "stages" in values:
            raise InputError(f"{path}: a recipe with stages cannot be extended")
        known[path] = _extended(values, str(path), (*behind, path), known)
    return known[path]


def read_stages(path: Path, behind: tuple[Path, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return the settings of every stage of a recipe, in order. A recipe with stages may extend one other
    that has them: its own come after those, or in place of those of the same name."""
    if path in behind:
        raise InputError(f"{path}: extends itself")
    values = load_toml(path)
    stages, base = values.pop("stages", {}), values.pop("extends", None)
    if values:
        raise InputError(f"{path}: {short_line(', '.join(values))} must be in a stage, [stages.NAME]")
    if not isinstance(stages, dict) or not stages:
        raise InputError(f"{path}: stages must be tables, [stages.NAME]")
    for name, stage in stages.items():
        if not isinstance(stage, dict) or not re.fullmatch(r"[\w-]{1,100}", name):
            raise InputError(f"{path}: stages must be tables, [stages.NAME], of letters, digits, - and _")
    own = {name: _extended(stage, f"{path}: stage {name}", (path,), {}) for name, stage in stages.items()}
    if base is None:
        return own
    if not isinstance(base, str):
        raise InputError(f"{path}: extends must be the name of one recipe with stages, not {shown(base)}")
    return read_stages(recipe_path(base, path.parent, f"{path}: extends"), (*behind, path)) | own


def _extended(values: dict[str, Any], source: str, behind: tuple[Path, ...], known: Known) -> dict[str, Any]:
    """Return these settings over those of the recipes that they extend: one name, or a list of names, in
    which a later recipe goes over an earlier one. A path is relative to the recipe that names it."""
    bases = values.pop("extends", [])
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{source}: extends must be a recipe's name or a list of names, not {shown(bases)}")
    paths = [recipe_path(name, behind[-1].parent, f"{source}: extends") for name in names]
    layers = [read_recipe(path, behind, known) for path in paths]
    return reduce(layered, [*layers, check_settings(values, source)])


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a run's config.toml, checked. Raises InputError, or its CutError, if there is
    something wrong with them."""
    try:
        values = load_toml(path)
    except InputError as error:
        raise CutError(str(error), path.parent) from None
    needed = ["option"]
    if values.get("option") in list(OPTIONS):
        needed.append(last_setting(values["option"]))
    for name in needed:
        if name not in values:
            raise CutError(f"{path}: was cut, since it lacks {name}", path.parent)
    return check_settings(values, str(path))
