"""Every setting once: its default, what it means, what it may be, and which options it serves.

Command line, recipes (TOML) and a run's saved `config.toml` are all read against this one table, so that a
value is checked the same way wherever it comes from; `Config.of` refuses a setting that the option would
ignore.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any

from minbert.errors import InputError, short_line, shown
from minbert.hub import DEFAULT
from minbert.reading import load_toml

RECIPES = Path(__file__).parent / "recipes"
Known = dict[Path, dict[str, Any]]  # the settings of recipes that have been read

TASKS_TRAINING = ("pretrain", "finetune", "distill")
TRAINING = (*TASKS_TRAINING, "mnrl")
OPTIONS = {
    "pretrain": "train the heads on a frozen encoder",
    "mnrl": "train an encoder so that sentences of one class lie together, for --init or --weights",
    "finetune": "train encoder and heads together: the main job",
    "distill": "train one model on the outputs of a run or an ensemble, beside the labels",
    "evaluate": "score a run or an ensemble on the dev tables and write its dev and test predictions",
    "ensemble": "average the runs of --run, for each task those that reach its threshold",
    "report": "draw a run or an ensemble: report.html and its figures",
    "predict": "read texts from a file or standard input, write predictions as it goes",
}
COMPUTING = (*TRAINING, "evaluate", "ensemble", "predict")
MAX_STEPS_PER_EPOCH = 2000
MAX_STEPS = 10**8  # of a whole run
REQUIRED = {
    **dict.fromkeys(("distill", "evaluate", "report", "ensemble"), ("run",)),
    "predict": ("run", "task"),
}
WEIGHTS = {"smart_weight": "SMART", "bregman_weight": "BPPO"}  # without it, its group does nothing
ONE_RUN = ("distill", "evaluate", "report", "predict")
SAMPLINGS = ("round-robin", "full-pass", "proportional", "sqrt", "annealed", "uniform")
DEFAULTS = {"pretrain": {"lr": 1e-3}}  # of one option, where it differs from the others
INSTEAD = {"init": "weights", "max_tokens": "batch_size"}  # given the first, the second says nothing
PATHS = ("data", "task_file", "weights", "init")
# What a resumed run may change without changing its result: where it runs, and how many epochs of a run that
# does not look ahead.
MACHINE = {"threads", "device", "save_every"}
RESUMABLE = MACHINE | {"epochs"}


def setting(
    default: Any,
    group: str,
    help: str,
    *,
    kind: type = str,
    options: Sequence[str] = TRAINING,
    choices: Sequence[str] = (),
    low: float = 0,
    below: float = 1e9,
    most: float = math.inf,
    many: str = "",
) -> Any:
    """A field of `Config`: a value of `kind` in [low, below) and at most `most`, one of `choices` where there
    are any. With `many`, a list: the separator of its items on the command line, a comma or the space between
    words."""
    metadata = {"group": group, "help": help, "kind": kind, "options": options}
    metadata |= {"choices": tuple(choices), "low": low, "below": below, "most": most, "many": many}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """One run's settings, resolved; see `python -m multitask.run --help`."""

    option: str

    data: str | None = setting(
        None,
        "data",
        "folder of tables; the shipped sample, or the run's own, where none is named",
        options=(*TRAINING, "evaluate", "report", "ensemble"),
    )
    tasks: tuple[str, ...] = setting(
        (),
        "data",
        "tasks to use, as NAME,NAME; all where none is named",
        options=(*TRAINING, "evaluate", "ensemble"),
        many=",",
    )
    task_file: str | None = setting(
        None, "data", "TOML file that defines tasks of your own, to train instead of the built-in ones"
    )
    skip_bad_rows: bool = setting(
        False, "data", "drop bad rows and count them, instead of stopping", kind=bool, options=tuple(OPTIONS)
    )
    max_length: int = setting(
        512, "data", "longest input in tokens; longer ones are cut", kind=int, low=8, below=4097
    )

    weights: str = setting(
        DEFAULT, "model", "pretrained encoder: a name of `python -m minbert.hub`, or a folder"
    )
    allow_pickle: bool = setting(
        False, "model", "read pytorch_model.bin where there is no model.safetensors", kind=bool
    )
    init: str | None = setting(
        None, "model", "finished run to start from, encoder and heads, instead of --weights"
    )
    pooling: str = setting(
        "mean", "model", "sentence vector: first token, or mean over tokens", choices=("cls", "mean")
    )
    encoder_dropout: float = setting(
        0.1,
        "model",
        "dropout in the encoder",
        kind=float,
        low=0,
        below=1,
        options=("finetune", "distill", "mnrl"),
    )
    head_dropout: float = setting(
        0.0, "model", "dropout before the heads", kind=float, low=0, below=1, options=TASKS_TRAINING
    )

    epochs: int = setting(10, "training", "epochs", kind=int, low=1, below=1e5)
    steps_per_epoch: int | None = setting(
        None,
        "training",
        "updates in an epoch; without it, as many as take all rows once, but at most "
        f"{MAX_STEPS_PER_EPOCH:,} (full-pass: its whole pass)",
        kind=int,
        low=1,
    )
    batch_size: int = setting(
        16, "training", "rows in a batch", kind=int, low=1, below=1e5, options=TASKS_TRAINING
    )
    max_tokens: int | None = setting(
        None,
        "training",
        "most tokens in a batch, padding included, instead of --batch-size; a longer row stands alone",
        kind=int,
        low=1,
        options=TASKS_TRAINING,
    )
    sampling: str = setting(
        "round-robin",
        "training",
        "how an update's task is chosen; full-pass: in turn, each until it has passed over its rows",
        choices=SAMPLINGS,
        options=TASKS_TRAINING,
    )
    accumulate: int = setting(
        1, "training", "batches in an update, all of one task", kind=int, low=1, below=1e5
    )
    lr: float = setting(
        5e-5, "training", "highest learning rate; pretrain's default is 1e-3", kind=float, low=0
    )
    schedule: str = setting(
        "linear", "training", "the rate after its warm-up", choices=("constant", "linear", "halve-on-rise")
    )
    warmup: float = setting(
        0.06, "training", "share of all updates in which the rate rises", kind=float, low=0, below=1
    )
    weight_decay: float = setting(
        1e-4, "training", "AdamW's decay; biases and LayerNorm have none", kind=float, low=0
    )
    clip_norm: float = setting(
        1.0, "training", "longest gradient (L2); longer ones are scaled down; 0: never", kind=float, low=0
    )
    patience: int = setting(0, "training", "epochs without a better score before the end; 0: all", kind=int)
    choose_by: str = setting(
        "score",
        "training",
        "dev figure that picks the best epoch: the mean over tasks, or the worst task's",
        choices=("score", "worst"),
        options=TASKS_TRAINING,
    )
    seed: int = setting(0, "training", "seed of every random choice", kind=int, low=0, below=2**63)

    smart_weight: float = setting(
        0.0,
        "SMART",
        "lambda, the weight of the smoothness regulariser; 0: off",
        kind=float,
        options=TASKS_TRAINING,
    )
    smart_mode: str = setting(
        "ball",
        "SMART",
        "how the perturbation is bounded",
        choices=("ball", "normalize"),
        options=TASKS_TRAINING,
    )
    smart_steps: int = setting(1, "SMART", "ascent steps", kind=int, below=1001, options=TASKS_TRAINING)
    smart_rows: int | None = setting(
        None,
        "SMART",
        "regularise this many rows of each batch, picked at random; without it, all",
        kind=int,
        low=1,
        options=TASKS_TRAINING,
    )
    smart_epsilon: float | None = setting(
        None,
        "SMART",
        "ball: its radius (default 1e-2; norm 2: 1e-2 sqrt(width)); normalize: guards a division (1e-6)",
        kind=float,
        options=TASKS_TRAINING,
    )
    smart_step_size: float | None = setting(
        None,
        "SMART",
        "length of a step (default epsilon; normalize: 1e-3)",
        kind=float,
        options=TASKS_TRAINING,
    )
    smart_noise_std: float | None = setting(
        None,
        "SMART",
        "standard deviation of the first noise (a tenth of the radius, per coordinate; normalize: 1e-5)",
        kind=float,
        options=TASKS_TRAINING,
    )
    smart_norm: str = setting(
        "inf", "SMART", "norm of a token's perturbation", choices=("inf", "2"), options=TASKS_TRAINING
    )

    bregman_weight: float = setting(
        0.0,
        "BPPO",
        "mu, the weight of the divergence from the teacher; 0: off",
        kind=float,
        options=TASKS_TRAINING,
    )
    bregman_beta: str = setting(
        "0.99",
        "BPPO",
        "momentum of the teacher, X or X:X to change after a tenth of the run",
        options=TASKS_TRAINING,
    )

    distill_weight: float = setting(
        0.9,
        "distillation",
        "weight of the teacher's outputs in the loss; the labels get 1 minus this",
        kind=float,
        low=0,
        most=1,
        options=("distill",),
    )
    distill_temperature: float = setting(
        2.0,
        "distillation",
        "temperature that softens both models' class probabilities; 1 leaves them unchanged",
        kind=float,
        low=1e-3,
        below=1e3,
        options=("distill",),
    )

    groups: int = setting(
        3,
        "MNRL",
        "groups in a batch, each of two sentences of every class",
        kind=int,
        low=1,
        below=1e5,
        options=("mnrl",),
    )
    scale: float = setting(20.0, "MNRL", "C, the scale of the similarities", kind=float, options=("mnrl",))

    run: tuple[str, ...] = setting(
        (),
        "run",
        "finished run or ensemble to use; for distill, the teacher; for ensemble, the runs to choose from",
        options=("distill", "evaluate", "predict", "report", "ensemble"),
        many=" ",
    )
    thresholds: tuple[str, ...] = setting(
        (),
        "run",
        "least dev score of a member, as TASK=X,...; without one, 0",
        options=("ensemble",),
        many=",",
    )
    or_best: bool = setting(
        False,
        "run",
        "where no run reaches a task's threshold, take its best run, with a warning, instead of stopping",
        kind=bool,
        options=("ensemble",),
    )
    copy: bool = setting(
        False,
        "run",
        "put the members' models into the ensemble's folder, so that it can be moved without their runs",
        kind=bool,
        options=("ensemble",),
    )
    out: str | None = setting(
        None,
        "run",
        "folder of this run; the next free runs/OPTION-N where none is named",
        options=(*TRAINING, "ensemble"),
    )
    resume: bool = setting(False, "run", "go on with the run in --out from its last saved state", kind=bool)
    save_every: int | None = setting(
        None,
        "run",
        "updates between saved states; without it, as many as take most of a minute",
        kind=int,
        low=1,
    )
    report: bool = setting(True, "run", "draw report.html at the end (needs the extra plots)", kind=bool)
    threads: int | None = setting(
        None, "run", "processor threads", kind=int, low=1, below=1025, options=tuple(OPTIONS)
    )
    precision: str = setting(
        "float32",
        "run",
        "of the encoder's products; weights stay float32",
        choices=("float32", "bf16"),
        options=COMPUTING,
    )
    compile: bool = setting(
        False,
        "run",
        "compile update and layers (torch.compile): needs a C++ compiler and a minute",
        kind=bool,
        options=COMPUTING,
    )
    device: str = setting("auto", "run", "auto, cpu, cuda or cuda:N", options=tuple(OPTIONS))

    perplexity: float = setting(
        50.0,
        "report",
        "t-SNE's perplexity, about the number of neighbours of each sentence (runs of mnrl only)",
        kind=float,
        low=1,
        options=("report",),
    )
    iterations: int = setting(
        4000,
        "report",
        "t-SNE's iterations (runs of mnrl only)",
        kind=int,
        low=250,
        below=1e6,
        options=("report",),
    )

    task: str = setting("", "predict", "task to predict", options=("predict",))
    input: str = setting("-", "predict", "file to read, - for standard input", options=("predict",))
    output: str = setting("-", "predict", "file to write, - for standard output", options=("predict",))

    @classmethod
    def of(cls, values: Mapping[str, Any], named: Iterable[str]) -> Config:
        """These settings over the option's defaults. InputError for those that the option does not use or
        that are missing, and for those of `named` that do nothing without another."""
        option = values.get("option")
        if option is None:
            names = ", ".join(OPTIONS)
            raise InputError(f"name what to do with --option, one of {names} (--help explains them)")
        if {"init", "weights"} <= values.keys():
            raise InputError("init brings its own encoder: name it or weights, not both")
        if {"max_tokens", "batch_size"} <= values.keys():
            raise InputError("max-tokens decides the rows of a batch: name it or batch-size, not both")
        ignored = [name for name in values if name != "option" and option not in SETTINGS[name]["options"]]
        if ignored:
            raise InputError(f"--option {option} does not use {', '.join(map(flag, ignored))}")
        for weight, group in WEIGHTS.items():
            of_group = {name for name in SETTINGS if SETTINGS[name]["group"] == group} - {weight}
            idle = [name for name in named if name in of_group]
            if idle and not values.get(weight):
                raise InputError(f"{', '.join(map(flag, idle))} does nothing without {flag(weight)}")
        missing = [name for name in REQUIRED.get(option, ()) if not values.get(name)]
        if missing:
            raise InputError(f"--option {option} needs {' and '.join(map(flag, missing))}")
        if option in ONE_RUN and len(values["run"]) > 1:
            raise InputError(f"--option {option} works on one run, not on {len(values['run'])}")
        config = cls(**(DEFAULTS.get(option, {}) | dict(values)))
        _ = config.betas, config.least_scores  # both are text with a form of its own
        updates = config.epochs * (config.steps_per_epoch or 1)
        if updates > MAX_STEPS:
            raise InputError(f"--epochs times --steps-per-epoch is {updates:,}, more than {MAX_STEPS:,}")
        return config

    @property
    def betas(self) -> tuple[float, ...]:
        """The teacher's momentum: at first, and where it changes after a tenth of the run."""
        betas = self.bregman_beta.split(":")
        try:
            if len(betas) > 2 or not all(0 <= float(beta) <= 1 for beta in betas):
                raise ValueError
        except ValueError:
            problem = f"{shown(self.bregman_beta)} is not X or X:X with numbers from 0 to 1"
            raise InputError(f"--bregman-beta: {problem}") from None
        return tuple(map(float, betas))

    @property
    def least_scores(self) -> dict[str, float]:
        """The thresholds by task."""
        try:
            least = {task: float(text) for task, text in (item.split("=") for item in self.thresholds)}
            if len(least) < len(self.thresholds) or not all(
                -math.inf < value <= 1 for value in least.values()
            ):
                raise ValueError
        except ValueError:
            problem = f"{shown(','.join(self.thresholds))} is not TASK=X,TASK=X"
            raise InputError(f"--thresholds: {problem} with one number, at most 1, for each task") from None
        return least

    def ascent(self, width: int) -> dict[str, Any]:
        """SMART's search, as `smart.adversarial_noise` takes it. The defaults depend on mode and norm: where
        all of a token's `width` coordinates are 1e-2, its norm is 1e-2 for p = inf, 1e-2 sqrt(width) for 2.
        """
        ball = self.smart_mode == "ball"
        longer = math.sqrt(width) if self.smart_norm == "2" else 1.0  # a token's norm over a coordinate's
        epsilon = _or(self.smart_epsilon, 1e-2 * longer if ball else 1e-6)
        return {
            "mode": self.smart_mode,
            "norm": self.smart_norm,
            "num_steps": self.smart_steps,
            "epsilon": epsilon,
            "step_size": _or(self.smart_step_size, epsilon if ball else 1e-3),
            "noise_std": _or(self.smart_noise_std, epsilon / longer / 10 if ball else 1e-5),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What is saved as `config.toml`: every setting of this option that has a value, but for --resume,
        and for those that another one stands in for, as --init for --weights."""
        left_out = {"resume"} | {idle for name, idle in INSTEAD.items() if getattr(self, name) is not None}
        names = [name for name, meta in SETTINGS.items() if self.option in meta["options"]]
        values = {name: getattr(self, name) for name in ("option", *names) if name not in left_out}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def fingerprint(self) -> str:
        """A SHA-256 over the settings that decide what a run gives."""
        free = (
            MACHINE | set(PATHS) | {"out", "report"} | (set() if looks_ahead(self.settings) else {"epochs"})
        )
        decisive = {name: value for name, value in self.settings.items() if name not in free}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def looks_ahead(settings: Mapping[str, Any]) -> bool:
    """Whether what an update does depends on how many are to follow."""
    rate = (settings.get("schedule"), settings.get("warmup")) != ("constant", 0)
    teacher = settings.get("bregman_weight", 0) > 0 and ":" in settings.get("bregman_beta", "")
    return rate or teacher or settings.get("sampling") == "annealed"


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


SETTINGS = {f.name: f.metadata for f in fields(Config) if f.name != "option"}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def default_of(name: str) -> Any:
    return getattr(Config, name, None)


def check(name: str, value: Any, source: str) -> Any:
    """The value as its setting wants it; InputError says where it stood and what it may be."""
    if name == "option":
        if not isinstance(value, str) or value not in OPTIONS:
            raise InputError(f"{source}: {shown(value)} is none of {', '.join(OPTIONS)}")
        return value
    meta = SETTINGS[name]
    kind = meta["kind"]
    if meta["many"]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{source}: {shown(value)} is not a list of names")
        return tuple(_named(item, source) for item in value)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{source}: {shown(value)} is not of type {kind.__name__}")
    if meta["choices"] and value not in meta["choices"]:
        raise InputError(f"{source}: {shown(value)} is none of {', '.join(meta['choices'])}")
    if kind in (int, float) and not (meta["low"] <= value < meta["below"] and value <= meta["most"]):
        bounds = f"at least {meta['low']:g} and "
        bounds += f"below {meta['below']:g}" if math.isinf(meta["most"]) else f"at most {meta['most']:g}"
        raise InputError(f"{source}: {shown(value)} must be a finite number, {bounds}")
    return _named(value, source) if isinstance(value, str) else kind(value)


def _named(text: str, source: str) -> str:
    """A text that can be a name or a path."""
    if not text or "\0" in text:
        raise InputError(f"{source}: {shown(text)} is {'no name: it holds a NUL' if text else 'empty'}")
    return text


def layered(recipe: dict[str, Any], flags: dict[str, Any]) -> dict[str, Any]:
    """The flags over the recipe; --init displaces a recipe's weights, --weights its init, and so on."""
    displaced = INSTEAD | {idle: name for name, idle in INSTEAD.items()}
    dropped = {displaced[name] for name in flags if name in displaced}
    return {name: value for name, value in recipe.items() if name not in dropped} | flags


def recipe_path(name: str) -> Path:
    """A shipped recipe's name, or the path of a TOML file."""
    shipped = RECIPES / f"{name}.toml"
    if os.path.isfile(shipped):
        return shipped
    if not os.path.isfile(name):
        names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
        raise InputError(f"--recipe: {shown(name)} is neither a file nor a shipped recipe ({names})")
    return Path(name)


def read_recipe(path: Path, behind: tuple[Path, ...] = (), known: Known | None = None) -> dict[str, Any]:
    """A recipe's settings over those of the recipes that it `extends`. Those that were read on the way are
    `known`, so that each is read once, however often it is extended."""
    known = {} if known is None else known
    if path in behind:
        raise InputError(f"{path}: extends itself")
    if path not in known:
        values = load_toml(path)
        if "stages" in values:
            raise InputError(f"{path} has stages, which no recipe extends")
        known[path] = _extended(values, str(path), (*behind, path), known)
    return known[path]


def read_stages(path: Path) -> dict[str, dict[str, Any]]:
    """The settings of every stage of a recipe, in order."""
    values = load_toml(path)
    stages = values.pop("stages", {})
    if values:
        raise InputError(f"{path}: {short_line(', '.join(values))} must stand in a stage, as [stages.NAME]")
    for name, stage in stages.items() if isinstance(stages, dict) and stages else [("", None)]:
        if not isinstance(stage, dict) or not re.fullmatch(r"[\w-]{1,100}", name):
            raise InputError(f"{path}: stages are tables, [stages.NAME], of letters, digits, - and _")
    return {name: _extended(stage, f"{path}: stage {name}", (path,), {}) for name, stage in stages.items()}


def _extended(values: dict[str, Any], source: str, behind: tuple[Path, ...], known: Known) -> dict[str, Any]:
    """These settings over those of the recipes that they extend: one name, or a list in which a later recipe
    goes over an earlier one."""
    bases = values.pop("extends", [])
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{source}: extends: {shown(bases)} is not a recipe's name, nor a list of them")
    layers = [read_recipe(recipe_path(name), behind, known) for name in names]
    return reduce(layered, [*layers, check_all(values, source)])


def read_toml(path: Path) -> dict[str, Any]:
    """The checked settings of a run's config.toml."""
    return check_all(load_toml(path), str(path))


def check_all(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Every setting checked; InputError for one that there is not."""
    for name in values:
        if name not in SETTINGS and name != "option":
            close = difflib.get_close_matches(name[:100], SETTINGS, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"{source}: unknown key {shown(name)}{hint}")
    return {name: check(name, value, f"{source}: {name}") for name, value in values.items()}
