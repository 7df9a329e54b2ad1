"""From the command line to what is to be done: flags over a recipe over the defaults."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minbert.command import Parser
from minbert.errors import InputError, short_line, shown
from minbert.fields import Field, check, did_you_mean, from_text
from minbert.hub import CHECKPOINTS, COMMIT
from minbert.reading import load_toml
from multitask import advice
from multitask.config import (
    DEFAULTS,
    FIELDS,
    MACHINE,
    OPTIONS,
    PATHS,
    PERMISSIONS,
    RESUMABLE,
    SETTINGS,
    Config,
    flag,
    looks_ahead,
)
from multitask.layout import CONFIG, PIPELINE, STATE
from multitask.recipes import CutError, layered, read_recipe, read_settings, read_stages, recipe_path


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
    """Return the command line's settings over a recipe's over the defaults. With --resume, the settings that
    the run in --out was started with replace the defaults."""
    flags = _parse(argv)
    recipe = flags.pop("recipe", None)
    path = None if recipe is None else recipe_path(recipe)
    saved = Path(flags["out"]) / PIPELINE if flags.get("resume") and "out" in flags else None
    if saved is not None and os.path.isfile(saved):
        return _resumed_pipeline(saved, path, flags)
    if path is not None and "stages" in load_toml(path):
        return _pipeline(path, flags)
    return _single({} if path is None else read_recipe(path), flags)


def _single(recipe: dict[str, Any], flags: dict[str, Any]) -> Config:
    values = layered(recipe, flags)
    values |= {name: _absolute(name, value, values) for name, value in values.items() if name in PATHS}
    resumed = values.get("resume") and SETTINGS["resume"].used_by(values.get("option", "finetune"))
    return Config.of(_resumed(values) if resumed else values, named=values)


def _pipeline(path: Path, flags: dict[str, Any], named: bool = True) -> Pipeline:
    """Return every stage with the flags that it uses. What a stage does and starts from is its own."""
    fixed = [name for name in flags if name in ("option", "init", "run", "task", "input", "output")]
    if fixed:
        raise InputError(f"{', '.join(map(flag, fixed))}: the stages of {path} set this themselves")
    shared = {name: value for name, value in flags.items() if name not in ("out", "resume")}
    stages, unused = dict[str, Config](), {*shared}
    for name, settings in read_stages(path).items():
        try:
            own = _flags_of_stage(settings, shared, named)
            stages[name] = _stage(settings, own, stages, named)
        except InputError as error:
            raise InputError(f"{path}: stage {name}: {error}") from None
        unused -= own.keys()
    if unused:
        raise InputError(f"{path}: no stage uses {', '.join(map(flag, sorted(unused)))}")
    return Pipeline(path.stem, stages, flags.get("out"), flags.get("resume", False))


def _flags_of_stage(settings: dict[str, Any], shared: dict[str, Any], named: bool) -> dict[str, Any]:
    """Return those of the flags that a stage uses. A seed is added to the stage's own, so that stages that
    differ only in their seeds still do."""
    own = {key: value for key, value in shared.items() if SETTINGS[key].used_by(settings.get("option", ""))}
    if "init" in settings:
        own = {key: value for key, value in own.items() if key not in ("weights", "revision")}
    if named and "seed" in own:
        own["seed"] = check(own["seed"] + settings.get("seed", 0), FIELDS["seed"], flag("seed"))
    return own


def _stage(settings: dict[str, Any], own: dict[str, Any], before: dict[str, Config], named: bool) -> Config:
    """Return a stage's settings with its own flags. Raises InputError if it does not fit those before it."""
    if {"out", "resume"} & settings.keys():
        raise InputError("out and resume belong to the whole recipe: set them on the command line")
    references = [settings.get("init", ""), *settings.get("run", ())]
    if unknown := [ref for ref in references if ref.startswith("@") and ref[1:] not in before]:
        raise InputError(f"{short_line(', '.join(unknown))}: no stage of that name before it")
    if settings.get("option") == "ensemble":  # or hours of training end at a threshold that no run reaches
        settings = {"or_best": True} | settings
    values = layered(settings, own)
    values |= {key: _absolute(key, value, values) for key, value in values.items() if key in PATHS}
    config = Config.of(values, named=values if named else own)
    init, ours = config.start.init, config.start.pooling
    if init is not None and init.startswith("@") and (theirs := before[init[1:]].start.pooling) != ours:
        raise InputError(f"its pooling is {ours}, but that of {init} is {theirs}")
    return config


def _resumed_pipeline(saved: Path, recipe: Path | None, flags: dict[str, Any]) -> Pipeline:
    """Return the pipeline as it was started; only the machine's flags may differ."""
    if recipe is None and "seed" in flags:
        raise InputError(f"{saved} has the seeds of the stages: leave --seed out, or add --recipe")
    machine = {
        name: value for name, value in flags.items() if name in MACHINE | PERMISSIONS | {"out", "resume"}
    }
    before = _pipeline(saved, machine, named=False)
    now = _pipeline(saved, flags, named=False) if recipe is None else _pipeline(recipe, flags)
    for name in before.stages | now.stages:
        old, new = (
            pipeline.stages[name].settings if name in pipeline.stages else {} for pipeline in (before, now)
        )
        for key in sorted((old.keys() | new.keys()) - MACHINE):
            if _differs(key, old.get(key), new.get(key)):
                raise InputError(
                    f"{saved}: stage {name} was started with {key} = {shown(old.get(key))}, "
                    f"not {shown(new.get(key))}"
                )
    return before


def _absolute(name: str, value: str, values: Mapping[str, Any]) -> str:
    """Return a path that holds from every folder, since a run may be resumed from another one. The names of
    checkpoints and stages stay; what has a revision is a name."""
    is_name = value in CHECKPOINTS or "revision" in values or not os.path.isdir(value)
    if (name == "weights" and is_name) or value.startswith("@"):
        return value
    return check(os.path.realpath(value), FIELDS[name], flag(name))


def _resumed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the run in `out`, with those of `values` that a resumed run may change. Raises
    InputError for any other that differs."""
    if "out" not in values:
        raise InputError("--resume needs --out, the folder of the run to resume")
    path, saved = saved_settings(Path(values["out"]))
    if path.parent != Path(values["out"]):
        print(f"warning: {values['out']}: config.toml is lost or cut; restored from {path}", file=sys.stderr)
    if saved is None:
        if "option" not in values:
            raise InputError(f"{values['out']}: holds no run to resume (no config.toml)")
        return values
    changeable = RESUMABLE - {"epochs"} if looks_ahead(saved) else RESUMABLE
    for name in values.keys() - changeable - PERMISSIONS - {"out", "resume"}:
        before = saved.get(name, FIELDS[name].default)
        if _differs(name, before, values[name]):
            raise InputError(
                f"{path}: the run was started with {name} = {shown(before)}, not {shown(values[name])}; "
                f"a resumed run may change only {', '.join(map(flag, sorted(changeable)))}"
            )
    return saved | {name: value for name, value in values.items() if name != "revision"}


def _differs(name: str, before: Any, now: Any) -> bool:
    """Whether a resumed run was started with another value. Its revision is a commit; a branch, which may
    have moved since then, stands for the commit that was fetched."""
    moved = name == "revision" and before is not None and not COMMIT.fullmatch(now or "")
    return before != now and not moved


def saved_settings(run: Path) -> tuple[Path, dict[str, Any] | None]:
    """Return a run's settings and their file: its config.toml or, if that is lost or cut, the one in its
    newest state; None if there is neither. Raises InputError if all of them are cut."""
    problems = []
    for path in (run / CONFIG, *sorted(run.glob(f"{STATE}/step-*/{CONFIG}"), reverse=True)):
        if os.path.isfile(path):
            try:
                return path, read_settings(path)
            except CutError as error:
                problems.append(error)
    if problems:
        raise InputError(f"{problems[0].problem}, and no saved state has it; start again with another --out")
    return run / CONFIG, None


def _parse(argv: Sequence[str]) -> dict[str, Any]:
    """Return the settings that were given, checked. `finetune --data DIR` is `--option finetune --data DIR`,
    and --batch_size is --batch-size."""
    words = [_with_hyphens(word) for word in argv]
    option = words.pop(0) if words and words[0] in OPTIONS else None
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--option", default=option)
    named = first.parse_known_args(words)[0].option
    if option not in (None, named):
        raise InputError(f"{option} and --option {named}: name one of them")
    helped = named if named in OPTIONS and {"-h", "--help"} & {*words} else None
    given, unknown = _parser(helped).parse_known_args(words)
    if unknown:
        name = unknown[0].partition("=")[0]
        hint = "; it goes before the flags" if name in OPTIONS else did_you_mean(name, OPTIONS)
        if name.startswith("-"):
            hint = did_you_mean(name.lstrip("-"), [known.removeprefix("--") for known in _flags()], "--")
        raise InputError(f"unknown argument {short_line(name)}{hint} (--help lists the flags)")
    values = {"option": option} if option is not None else {}
    values |= {name: _typed(name, value) for name, value in vars(given).items()}
    return {name: x if name == "recipe" else check(x, FIELDS[name], flag(name)) for name, x in values.items()}


def _flags() -> list[str]:
    """Return every flag, switches also in their negative form."""
    negative = [flag(f"no_{name}") for name, setting in SETTINGS.items() if setting.field.kind is bool]
    return ["--help", "--recipe", *map(flag, FIELDS), *negative]


def _with_hyphens(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _typed(name: str, value: Any) -> Any:
    """Return the value of a word; switches and lists of words are typed already."""
    return from_text(value, FIELDS[name]) if isinstance(value, str) and name in FIELDS else value


def _parser(option: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all flags, or of those that one option uses."""
    explained = "\n".join(f"  {name:10} {one.meaning}" for name, one in OPTIONS.items())
    whole = (
        "Fine-tune one BERT for several tasks at once: the course's three, or your own.\n\n"
        f"--option is one of\n{explained}\n\n--option OPTION --help lists the flags of one option."
    )
    parser = Parser(
        prog=advice.program(),
        usage=f"{advice.program()} {option or 'OPTION'} [--flag VALUE ...]",
        description=whole if option is None else f"--option {option}: {OPTIONS[option].meaning}.",
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
    for name, setting in SETTINGS.items():
        if option is None or setting.used_by(option):
            if setting.title not in groups:
                groups[setting.title] = parser.add_argument_group(setting.title)
            _add_flag(groups[setting.title], name, setting.field, DEFAULTS.get(option or "", {}))
    return parser


def _add_flag(group: argparse._ArgumentGroup, name: str, field: Field, defaults: Mapping[str, Any]) -> None:
    """Add a flag to the parser. Its words are checked later, like the values of a recipe."""
    if field.kind is bool:
        group.add_argument(flag(name), action=argparse.BooleanOptionalAction, help=field.meaning)
        return
    default = defaults.get(name, field.default)
    note = "" if default in (None, (), "") else f" (default {default})"
    metavar = "|".join(field.choices) or {int: "N", float: "X"}.get(field.kind, name.upper())
    many: dict[str, Any] = {"nargs": "+", "action": "extend"} if field.separator == " " else {}
    group.add_argument(flag(name), metavar=metavar, help=(field.meaning + note).replace("%", "%%"), **many)
