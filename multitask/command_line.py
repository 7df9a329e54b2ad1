"""From the command line to what is to be done: flags over a recipe over the defaults."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from minbert.errors import InputError, short_line, shown
from minbert.hub import CHECKPOINTS
from minbert.reading import load_toml
from multitask.config import (
    MACHINE,
    OPTIONS,
    PATHS,
    RESUMABLE,
    SETTINGS,
    Config,
    check,
    default_of,
    flag,
    layered,
    looks_ahead,
    read_recipe,
    read_stages,
    read_toml,
    recipe_path,
)

PIPELINE = "pipeline.toml"  # in the folder of a pipeline: its stages as they were started


@dataclass(frozen=True)
class Pipeline:
    """A recipe's stages, each a run in a folder of its own below `out`. In their `init` and `run`, @NAME
    stands for what the stage NAME has made."""

    name: str
    stages: dict[str, Config]
    out: str | None
    resume: bool

    @property
    def settings(self) -> dict[str, Any]:
        """What is saved as `pipeline.toml`: a recipe that extends nothing."""
        return {"stages": {name: config.settings for name, config in self.stages.items()}}


def resolve(argv: Sequence[str]) -> Config | Pipeline:
    """The command line's settings over a recipe's over the defaults. With --resume, the settings that the run
    in --out was started with stand in for the defaults."""
    given = _parse(argv)
    recipe = given.pop("recipe", None)
    path = None if recipe is None else recipe_path(recipe)
    flags = {name: check(name, value, flag(name)) for name, value in given.items()}
    flags |= {name: _absolute(name, value) for name, value in flags.items() if name in PATHS}
    saved = Path(flags["out"]) / PIPELINE if flags.get("resume") and "out" in flags else None
    if saved is not None and os.path.isfile(saved):
        return _resumed_pipeline(saved, path, flags)
    if path is not None and "stages" in load_toml(path):
        return _pipeline(path, flags)
    return _single({} if path is None else read_recipe(path), flags)


def _single(recipe: dict[str, Any], flags: dict[str, Any]) -> Config:
    values = layered(recipe, flags)
    values |= {name: _absolute(name, value) for name, value in values.items() if name in PATHS}
    return Config.of(_resumed(values) if values.get("resume") else values, named=values)


def _pipeline(path: Path, flags: dict[str, Any], named: bool = True) -> Pipeline:
    """Every stage with the flags that it uses. The stages say themselves what they do and start from."""
    fixed = [name for name in flags if name in ("option", "init", "run", "task", "input", "output")]
    if fixed:
        raise InputError(f"{', '.join(map(flag, fixed))}: the stages of {path} say this themselves")
    stages: dict[str, Config] = {}
    unused = flags.keys() - {"out", "resume"}
    for name, settings in read_stages(path).items():
        references = [settings.get("init", ""), *settings.get("run", ())]
        unknown = [ref for ref in references if ref.startswith("@") and ref[1:] not in stages]
        if unknown:
            raise InputError(
                f"{path}: stage {name}: {short_line(', '.join(unknown))}: no stage of that name before it"
            )
        option = settings.get("option")
        own = {key: flags[key] for key in flags if key != "out" and option in SETTINGS[key]["options"]}
        if "init" in settings:
            own.pop("weights", None)
        own.pop("resume", None)
        values = layered(settings, own)
        values |= {key: _absolute(key, value) for key, value in values.items() if key in PATHS}
        try:
            if {"out", "resume"} & settings.keys():
                raise InputError("out and resume are of the whole, on the command line")
            config = stages[name] = Config.of(values, named=values if named else own)
            start = stages.get((config.init or "@")[1:])
            if start is not None and start.pooling != config.pooling:
                raise InputError(f"its pooling is {config.pooling}, that of {config.init} {start.pooling}")
        except InputError as error:
            raise InputError(f"{path}: stage {name}: {error}") from None
        unused -= own.keys()
    if unused:
        raise InputError(f"{path}: no stage uses {', '.join(map(flag, sorted(unused)))}")
    return Pipeline(path.stem, stages, flags.get("out"), flags.get("resume", False))


def _resumed_pipeline(saved: Path, recipe: Path | None, flags: dict[str, Any]) -> Pipeline:
    """The pipeline as it was started; only the machine's flags may differ."""
    machine = {name: value for name, value in flags.items() if name in MACHINE | {"out", "resume"}}
    before = _pipeline(saved, machine, named=False)
    now = _pipeline(saved, flags, named=False) if recipe is None else _pipeline(recipe, flags)
    for name in before.stages.keys() | now.stages.keys():
        old, new = (
            pipeline.stages[name].settings if name in pipeline.stages else {} for pipeline in (before, now)
        )
        for key in sorted((old.keys() | new.keys()) - MACHINE):
            if old.get(key) != new.get(key):
                raise InputError(
                    f"{saved}: stage {name} was started with {key} = {shown(old.get(key))}, "
                    f"not {shown(new.get(key))}"
                )
    return before


def _absolute(name: str, value: str) -> str:
    """The path from anywhere, since a run may be gone on with from another folder; a checkpoint's name
    and a stage's stay."""
    is_name = name == "weights" and (value in CHECKPOINTS or not os.path.isdir(value))
    return value if is_name or value.startswith("@") else os.path.realpath(value)


def _resumed(values: dict[str, Any]) -> dict[str, Any]:
    if "out" not in values:
        raise InputError("--resume needs --out, the folder of the run to go on with")
    path = Path(values["out"]) / "config.toml"
    if not os.path.isfile(path):
        if "option" not in values:
            raise InputError(f"{values['out']}: holds no run to go on with (no config.toml)")
        return values
    saved = read_toml(path)
    changeable = RESUMABLE - {"epochs"} if looks_ahead(saved) else RESUMABLE
    for name in values.keys() - changeable - {"out", "resume"}:
        before = saved.get(name, default_of(name))
        if values[name] != before:
            raise InputError(
                f"{path}: the run was started with {name} = {shown(before)}, not {shown(values[name])}; "
                f"a resumed run may change only {', '.join(sorted(changeable))}"
            )
    return saved | values


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{short_line(message)} (--help lists the flags)")


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    """The flags that were given; --batch_size is --batch-size."""
    words = [_with_hyphens(word) for word in argv]
    return vars(_parser().parse_args(words))


def _with_hyphens(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _parser() -> argparse.ArgumentParser:
    explained = "\n".join(f"  {name:10} {text}" for name, text in OPTIONS.items())
    parser = _Parser(
        prog="python -m multitask.run",
        usage="python -m multitask.run --option OPTION [--flag VALUE ...]",
        description="Fine-tune one BERT for several tasks at once: the course's three, or your own.\n\n"
        f"--option is one of\n{explained}",
        epilog="A flag beats the recipe, and the recipe beats the defaults.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--option", metavar="OPTION", help="what to do: " + ", ".join(OPTIONS))
    parser.add_argument(
        "--recipe", metavar="NAME_OR_TOML", help="settings from a shipped recipe or a TOML file"
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, meta in SETTINGS.items():
        if meta["group"] not in groups:
            groups[meta["group"]] = parser.add_argument_group(meta["group"])
        group = groups[meta["group"]]
        default = default_of(name)
        note = "" if default is None or default is False or default in ((), "") else f" (default {default})"
        if meta["kind"] is bool:
            group.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=meta["help"])
            continue
        metavar = "|".join(meta["choices"]) or {int: "N", float: "X"}.get(meta["kind"], name.upper())
        if meta["many"] == " ":
            group.add_argument(flag(name), nargs="+", action="extend", metavar=metavar, help=meta["help"])
            continue
        kind = (lambda text: tuple(text.split(","))) if meta["many"] else meta["kind"]
        group.add_argument(
            flag(name), type=kind, metavar=metavar, help=(meta["help"] + note).replace("%", "%%")
        )
    return parser
