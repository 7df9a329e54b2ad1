"""Every setting in one line: its name, type, default, bounds and meaning.

The settings of a method or a concern stand together as a small dataclass, a group. OPTIONS says which groups
each `--option` uses; the flags, the recipes, the help and a run's saved `config.toml` all derive from these
lines. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, cast

from minbert.errors import InputError, shown
from minbert.fields import Field, check_table, field, fields_of
from minbert.hub import DEFAULT

LONGEST_EPOCH = 2000  # updates, unless --steps-per-epoch or a full pass says more
MAX_STEPS = 10**8  # of a whole run
SAMPLINGS = ("round-robin", "full-pass", "proportional", "sqrt", "annealed", "uniform")
SCHEDULES = ("constant", "linear", "halve-on-rise")
SCORES = ("score", "worst")
PRECISIONS = ("float32", "bf16")
EXPORTS = ("hf", "onnx")
LONG = ("head", "head-tail", "windows")


class Group:
    """What every group has: its title in the help, and what its flags begin with."""

    title: ClassVar[str]
    prefix: ClassVar[str] = ""


@dataclass(frozen=True)
class Tables(Group):
    title = "data"
    data: str | None = field(None, "folder of tables (default: the shipped sample, or the run's own data)")


@dataclass(frozen=True)
class Selection(Group):
    title = "data"
    tasks: tuple[str, ...] = field((), "tasks to use, as NAME,NAME (default: all)")


@dataclass(frozen=True)
class Reading(Group):
    title = "data"
    skip_bad_rows: bool = field(False, "drop bad rows and count them, instead of stopping")


@dataclass(frozen=True)
class Inputs(Group):
    """The part of `Start` that decides what is read."""

    title = "model"
    task_file: str | None = field(None, "TOML file with tasks of your own, instead of the built-in ones")
    max_length: int = field(512, "longest input in tokens; longer ones are cut", low=8, below=4097)
    weights: str = field(
        DEFAULT, "pretrained encoder: a name of `python -m minbert.hub`, a folder, or ORG/NAME on the hub"
    )
    revision: str | None = field(None, "branch, tag or commit of --weights on the hub (default: main)")


@dataclass(frozen=True)
class Start(Inputs):
    long: str = field(
        "head",
        "what is read of longer texts: all, in windows, only in evaluation and prediction",
        choices=LONG,
    )
    allow_pickle: bool = field(False, "read pytorch_model.bin if there is no model.safetensors")
    init: str | None = field(None, "finished run to start from, encoder and heads, instead of --weights")
    pooling: str = field("mean", "sentence vector: first token, or mean over tokens", choices=("cls", "mean"))


@dataclass(frozen=True)
class Encoder(Group):
    title, prefix = "model", "encoder_"
    dropout: float = field(0.1, "dropout in the encoder", below=1)


@dataclass(frozen=True)
class Training(Group):
    title = "training"
    epochs: int = field(10, "number of epochs", low=1, below=10**5)
    steps_per_epoch: int | None = field(
        None,
        f"updates an epoch (default: all rows once, at most {LONGEST_EPOCH:,}; full-pass: its pass)",
        low=1,
    )
    accumulate: int = field(1, "batches in an update, all of one task", low=1, below=10**5)
    lr: float = field(5e-5, "highest learning rate", most=1)
    schedule: str = field("linear", "the rate after its warm-up", choices=SCHEDULES)
    warmup: float = field(0.06, "fraction of all updates in which the rate rises", below=1)
    weight_decay: float = field(1e-4, "AdamW's decay; biases and LayerNorm have none")
    clip_norm: float = field(1.0, "largest gradient norm (L2); larger gradients are scaled down; 0: never")
    patience: int = field(0, "epochs without a better score before the end; 0: all")
    seed: int = field(0, "seed of every random choice", below=2**63)


@dataclass(frozen=True)
class Rows(Group):
    """The part of `Batches` that decides which rows an update takes."""

    title = "training"
    batch_size: int = field(16, "rows in a batch", low=1, below=10**5)
    max_tokens: int | None = field(
        None,
        "most tokens in a batch, padded, instead of --batch-size",
        low=1,
    )
    sampling: str = field(
        "round-robin",
        "how an update's task is chosen (docs/methods.md)",
        choices=SAMPLINGS,
    )


@dataclass(frozen=True)
class Batches(Rows):
    head_dropout: float = field(0.0, "dropout before the heads", below=1)
    choose_by: str = field("score", "dev score that picks the best epoch: mean or worst", choices=SCORES)


@dataclass(frozen=True)
class Smart(Group):
    title, prefix = "SMART", "smart_"
    weight: float = field(0.0, "lambda, the weight of the smoothness regulariser; 0: off")
    mode: str = field("ball", "how the perturbation is bounded", choices=("ball", "normalize"))
    steps: int = field(1, "ascent steps", below=1001)
    rows: int | None = field(None, "regularise this many random rows of each batch (default: all)", low=1)
    epsilon: float | None = field(None, "radius (1e-2; norm 2: 1e-2 sqrt(width)); normalize: divisor (1e-6)")
    step_size: float | None = field(None, "length of a step (default epsilon; normalize: 1e-3)")
    noise_std: float | None = field(
        None, "deviation of the first noise (radius / 10, norm 2: / sqrt(width) too; normalize: 1e-5)"
    )
    norm: str = field("inf", "norm of a token's perturbation", choices=("inf", "2"))

    def ascent(self, width: int) -> dict[str, Any]:
        """Return the settings of the search, as `smart.adversarial_noise` takes them. Their defaults depend
        on mode and norm: if all of a token's `width` coordinates are 1e-2, its norm is 1e-2 for p = inf and
        1e-2 sqrt(width) for p = 2."""
        ball = self.mode == "ball"
        longer = math.sqrt(width) if self.norm == "2" else 1.0  # a token's norm over a coordinate's
        epsilon = _or(self.epsilon, 1e-2 * longer if ball else 1e-6)
        return {
            "mode": self.mode,
            "norm": self.norm,
            "num_steps": self.steps,
            "epsilon": epsilon,
            "step_size": _or(self.step_size, epsilon if ball else 1e-3),
            "noise_std": _or(self.noise_std, epsilon / longer / 10 if ball else 1e-5),
        }


@dataclass(frozen=True)
class Bppo(Group):
    title, prefix = "BPPO", "bregman_"
    weight: float = field(0.0, "mu, the weight of the divergence from the teacher; 0: off")
    beta: str = field("0.99", "momentum of the teacher, X or X:X to change after a tenth of the run")

    def __post_init__(self) -> None:
        try:
            if len(self.betas) > 2 or not all(0 <= beta <= 1 for beta in self.betas):
                raise ValueError
        except ValueError:
            problem = f"must be X or X:X with numbers from 0 to 1, not {shown(self.beta)}"
            raise InputError(f"--bregman-beta {problem}") from None

    @property
    def betas(self) -> tuple[float, ...]:
        """The teacher's momentum: at first, and, if it changes, after a tenth of the run."""
        return tuple(map(float, self.beta.split(":")))


@dataclass(frozen=True)
class Distillation(Group):
    title, prefix = "distillation", "distill_"
    weight: float = field(0.9, "weight of the teacher's outputs in the loss; the labels get the rest", most=1)
    temperature: float = field(2.0, "softens both models' probabilities; 1: unchanged", low=1e-3, below=1e3)


@dataclass(frozen=True)
class Mnrl(Group):
    title = "MNRL"
    groups: int = field(3, "groups in a batch, each of two sentences of every class", low=1, below=10**5)
    scale: float = field(20.0, "C, the scale of the similarities")


@dataclass(frozen=True)
class Mlm(Group):
    title = "masked language modelling"
    mask_rate: float = field(0.15, "fraction of a text's tokens to be guessed", low=1e-3, most=1)
    whole_words: bool = field(False, "choose all tokens of a word together")
    held_out: float = field(0.05, "fraction of plain text that perplexity is measured on", low=1e-6, below=1)


@dataclass(frozen=True)
class Runs(Group):
    title = "run"
    run: tuple[str, ...] = field(
        (), "finished run or ensemble to use; ensemble and report take several", separator=" "
    )


@dataclass(frozen=True)
class Choice(Group):
    title = "run"
    thresholds: tuple[str, ...] = field((), "least dev score of a member, as TASK=X,... (default: 0)")
    or_best: bool = field(False, "if no run reaches a task's threshold, use its best run instead of stopping")
    copy: bool = field(False, "copy the members' models into the ensemble's folder")

    def __post_init__(self) -> None:
        try:
            least = self.least_scores
            if len(least) < len(self.thresholds) or not all(-math.inf < x <= 1 for x in least.values()):
                raise ValueError
        except ValueError:
            given = shown(",".join(self.thresholds))
            raise InputError(
                f"--thresholds must be TASK=X,TASK=X with one number, at most 1, for each task, not {given}"
            ) from None

    @property
    def least_scores(self) -> dict[str, float]:
        """The thresholds by task."""
        return {task: float(text) for task, text in (item.split("=") for item in self.thresholds)}


@dataclass(frozen=True)
class Output(Group):
    title = "run"
    out: str | None = field(
        None,
        "folder of this run (default: the next free runs/OPTION-N), or of an export; "
        "inspect: task file to write (default: tasks.toml); "
        "report of several runs: HTML file, or folder (default: comparison.html in the first run's folder)",
    )


@dataclass(frozen=True)
class Saving(Group):
    title = "run"
    resume: bool = field(False, "resume the run in --out from its last saved state")
    save_every: int | None = field(None, "updates between saved states (default: those of 45 seconds)", low=1)
    keep_state: bool = field(False, "keep state/ when the run is done, to train more epochs later")
    report: bool = field(True, "write report.html at the end (needs the extra plots)")
    verbose: bool = field(False, "print which matrix library was chosen for each product")


@dataclass(frozen=True)
class Machine(Group):
    title = "machine"
    threads: int | None = field(None, "processor threads", low=1, below=1025)
    device: str = field("auto", "auto, cpu, cuda, cuda:N or mps")


@dataclass(frozen=True)
class Products(Group):
    title = "machine"
    precision: str = field("float32", "of the encoder's matrix products", choices=PRECISIONS)
    compile: bool = field(
        False, "compile update and layers (torch.compile): needs a C++ compiler and a minute"
    )


@dataclass(frozen=True)
class Tsne(Group):
    title = "report"
    perplexity: float = field(50.0, "t-SNE's perplexity, about each sentence's neighbours (mnrl only)", low=1)
    iterations: int = field(4000, "t-SNE's iterations (mnrl only)", low=250, below=10**6)


@dataclass(frozen=True)
class Baseline(Group):
    title = "report"
    baseline: str | None = field(None, "run or ensemble to compare a single --run with")


@dataclass(frozen=True)
class OneTask(Group):
    title = "run"
    task: str = field("", "the task to predict, or whose head to export with the encoder")


@dataclass(frozen=True)
class Prediction(Group):
    title = "predict"
    input: str = field("-", "file to read, - for standard input")
    output: str = field("-", "file to write, tab-separated, .csv or .jsonl; - for standard output")


@dataclass(frozen=True)
class Replacing(Group):
    title = "run"
    force: bool = field(False, "replace the file that is written, if it exists")


@dataclass(frozen=True)
class Inspection(Group):
    title = "inspect"
    json: bool = field(False, "print what was found as JSON, for programs")


@dataclass(frozen=True)
class Export(Group):
    title = "export"
    to: str = field("", "what to write: folder of Hugging Face's libraries, or ONNX file", choices=EXPORTS)


@dataclass(frozen=True)
class Serving(Group):
    title = "serve"
    host: str = field("127.0.0.1", "address to listen on; 0.0.0.0 lets the network in")
    port: int = field(8000, "port; 0: any that is free", below=65536)
    max_rows: int = field(256, "most rows in a request; more get status 422", low=1)
    max_body: int = field(1_000_000, "most bytes in a request's body; more get status 413", low=1)
    max_batch: int = field(64, "most rows of several requests computed together; 1: none share", low=1)
    queue: int = field(1024, "most rows waiting; further requests get status 503", low=1)


@dataclass(frozen=True)
class Option:
    """What an --option does, the groups of settings that it uses, and the settings that it needs."""

    meaning: str
    groups: tuple[type[Group], ...]
    needs: tuple[str, ...] = ()
    one_run: bool = False  # whether --run names a single one


_EVERY = (Reading, Machine)
_TRAINING = (Tables, Selection, Start, Training, Output, Saving, Products, *_EVERY)
_TASKS = (Batches, Smart, Bppo, *_TRAINING)
OPTIONS = {
    "inspect": Option(
        "look at a folder of tables, say what is wrong with them, and write a task file for them",
        (Tables, Reading, Inputs, Output, Replacing, Inspection), ("data",),
    ),
    "pretrain": Option("train the heads on a frozen encoder", _TASKS),
    "mnrl": Option(
        "train an encoder so that sentences of one class are close, for --init or --weights",
        (Encoder, Mnrl, *_TRAINING),
    ),
    "mlm": Option(
        "train an encoder further to guess masked words of your texts, for --init or --weights",
        (Encoder, Mlm, Rows, *_TRAINING),
    ),
    "finetune": Option("train encoder and heads together: the main job", (Encoder, *_TASKS)),
    "distill": Option(
        "train one model on the outputs of a run or an ensemble, beside the labels",
        (Encoder, Distillation, Runs, *_TASKS), ("run",), one_run=True,
    ),
    "evaluate": Option(
        "score a run or an ensemble on the dev tables and write its dev and test predictions",
        (Tables, Selection, Runs, Products, *_EVERY), ("run",), one_run=True,
    ),
    "ensemble": Option(
        "average the runs of --run, for each task those that reach its threshold",
        (Tables, Selection, Runs, Choice, Output, Products, *_EVERY), ("run",),
    ),
    "report": Option(
        "write the report of a run or an ensemble, or of several side by side, the first as the baseline",
        (Tables, Runs, Output, Replacing, Baseline, Tsne, *_EVERY), ("run",),
    ),
    "predict": Option(
        "read texts from a file or standard input, write predictions as it goes",
        (Runs, OneTask, Prediction, Replacing, Products, *_EVERY), ("run", "task"), one_run=True,
    ),
    "export": Option(
        "write a run's model for transformers, sentence-transformers or onnxruntime",
        (Tables, Runs, OneTask, Export, Output, *_EVERY), ("run", "to", "out"), one_run=True,
    ),
    "serve": Option(
        "answer with a run or an ensemble over HTTP, with a page to try it on",
        (Runs, Serving, Products, Machine), ("run",), one_run=True,
    ),
}  # fmt: skip
WRITE_FOLDERS = tuple(  # the options that write a run's folder, or that of an export
    name for name, option in OPTIONS.items() if Output in option.groups and Replacing not in option.groups
)
TRAINING = tuple(name for name, option in OPTIONS.items() if Training in option.groups)
DEFAULTS: dict[str, dict[str, Any]] = {
    "pretrain": {"lr": 1e-3},
    "mlm": {"sampling": "proportional"},
}  # of one option, if it differs from the others
INSTEAD = {"init": "weights", "max_tokens": "batch_size"}  # the first replaces the second
PATHS = ("data", "task_file", "weights", "init")
# What a resumed run may change without changing its result: where it runs, what it saves and prints, and the
# number of epochs if no update depends on how many are to follow.
MACHINE = {"threads", "device", "save_every", "keep_state", "verbose"}
RESUMABLE = MACHINE | {"epochs"}
PERMISSIONS = {"allow_pickle"}  # which the user gives, and no file
NEUTRAL = MACHINE | {"out", "report"}  # do not affect the model


@dataclass(frozen=True)
class Config:
    """The settings of a run as they were given, over the option's defaults."""

    option: str = field(meaning="what to do", choices=OPTIONS)
    tables: Tables = Tables()
    selection: Selection = Selection()
    reading: Reading = Reading()
    start: Start = Start()
    encoder: Encoder = Encoder()
    training: Training = Training()
    batches: Batches = Batches()
    smart: Smart = Smart()
    bppo: Bppo = Bppo()
    distillation: Distillation = Distillation()
    mnrl: Mnrl = Mnrl()
    mlm: Mlm = Mlm()
    runs: Runs = Runs()
    choice: Choice = Choice()
    output: Output = Output()
    saving: Saving = Saving()
    machine: Machine = Machine()
    products: Products = Products()
    baseline: Baseline = Baseline()
    tsne: Tsne = Tsne()
    one_task: OneTask = OneTask()
    prediction: Prediction = Prediction()
    replacing: Replacing = Replacing()
    inspection: Inspection = Inspection()
    export: Export = Export()
    serving: Serving = Serving()

    @classmethod
    def of(cls, values: Mapping[str, Any], named: Iterable[str] = ()) -> Config:
        """Return these settings over the option's defaults. Raises InputError for settings that the option
        does not use, that exclude each other or that are missing, and for those of `named` that do nothing
        without another."""
        name = values.get("option")
        if name is None:
            raise InputError(f"choose what to do with --option, one of {', '.join(OPTIONS)} (see --help)")
        option = OPTIONS[name]
        for key, replaced in INSTEAD.items():
            if {key, replaced} <= values.keys():
                raise InputError(f"{flag(key)} replaces {flag(replaced)}: give only one of them")
        if "revision" in values and "weights" not in values:
            raise InputError("--revision does nothing without --weights")
        unused = [flag(key) for key in values if key != "option" and not SETTINGS[key].used_by(name)]
        if unused:
            raise InputError(f"--option {name} does not use {', '.join(unused)}")
        for group in (Smart, Bppo):
            weight = f"{group.prefix}weight"
            idle = [flag(key) for key in named if key.startswith(group.prefix) and key != weight]
            if idle and weight not in values:  # a flag of 0 turns off what a recipe turns on
                raise InputError(f"{', '.join(idle)} does nothing without {flag(weight)}")
        missing = [flag(key) for key in option.needs if not values.get(key)]
        if missing:
            raise InputError(f"--option {name} needs {' and '.join(missing)}")
        if option.one_run and len(values["run"]) > 1:
            raise InputError(f"--option {name} works on one run, not on {len(values['run'])}")
        given = {key: value for key, value in values.items() if key != "option"}
        config = cls(name).changed(**DEFAULTS.get(name, {}) | given)
        steps = config.training.steps_per_epoch
        updates = config.training.epochs if steps is None else config.training.epochs * steps
        if updates > MAX_STEPS:
            raise InputError(f"--epochs times --steps-per-epoch is {updates:,}, more than {MAX_STEPS:,}")
        return config

    def changed(self, **values: Any) -> Config:
        """Return the configuration with other values for these settings."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            groups.setdefault(SETTINGS[name].group, {})[SETTINGS[name].attribute] = value
        return replace(self, **{name: replace(getattr(self, name), **new) for name, new in groups.items()})

    @property
    def settings(self) -> dict[str, Any]:
        """What is saved as `config.toml`: every setting of this option that has a value, except --resume and
        those that another one replaces, as --init does --weights; permissions are not kept."""
        values = {
            name: getattr(getattr(self, one.group), one.attribute)
            for name, one in SETTINGS.items()
            if one.used_by(self.option)
        }
        replaced = {idle for name, idle in INSTEAD.items() if values.get(name) is not None}
        saved = {name: values[name] for name in values if name not in {"resume", *PERMISSIONS, *replaced}}
        return {"option": self.option} | {name: x for name, x in saved.items() if x is not None}


@dataclass(frozen=True)
class Setting:
    """A setting by the name that flags and files use: where it is in `Config`, and what it may be."""

    group: str  # the attribute of Config
    attribute: str  # of the group
    title: str  # of the group, in the help
    field: Field
    options: tuple[str, ...]

    def used_by(self, option: str) -> bool:
        return option in self.options


def _settings() -> dict[str, Setting]:
    found = {}
    for one in fields(Config)[1:]:
        group = cast(type[Group], type(one.default))
        for name, wanted in fields_of(group).items():
            options = tuple(key for key, option in OPTIONS.items() if _has(option, group, name))
            found[group.prefix + name] = Setting(one.name, name, group.title, wanted, options)
    return found


def _has(option: Option, group: type[Group], name: str) -> bool:
    """Whether an option uses this setting of a group: it may use a part of the group."""
    return any(issubclass(group, part) and name in fields_of(part) for part in option.groups)


SETTINGS = _settings()
FIELDS = fields_of(Config) | {name: setting.field for name, setting in SETTINGS.items()}


def changed_flags(group: Group, *names: str) -> list[str]:
    """Return those of these settings that differ from their defaults, as flags with their values."""
    values = {name: getattr(group, name) for name in names}
    changed = {name: value for name, value in values.items() if value != getattr(type(group), name)}
    return [word for name, value in changed.items() for word in (flag(name), str(value))]


def last_setting(option: str) -> str:
    """Return the setting with which the config.toml of every run of this option ends."""
    saved = [name for name, one in SETTINGS.items() if one.used_by(option) and one.field.default is not None]
    return saved[-1]


def flag(name: str) -> str:
    """max_tokens -> --max-tokens"""
    return "--" + name.replace("_", "-")


def check_settings(values: Mapping[str, Any], source: str, required: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings in a file, checked. Raises InputError for one that does not exist or has no such
    value, for a permission, and if a required one is missing."""
    if name := next(filter(values.get, PERMISSIONS), None):
        raise InputError(f"{source}: {name} may be set on the command line alone, with {flag(name)}")
    return check_table(values, FIELDS, source, required)


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a run's settings that decide its result, but for where its files are."""
    free = (
        MACHINE
        | {*PATHS, "run", "revision", "out", "report"}
        | (set() if looks_ahead(settings) else {"epochs"})
    )
    return {name: value for name, value in settings.items() if name not in free}


def looks_ahead(settings: Mapping[str, Any]) -> bool:
    """Whether an update depends on how many are to follow."""
    rate = (settings.get("schedule"), settings.get("warmup")) != ("constant", 0)
    teacher = settings.get("bregman_weight", 0) > 0 and ":" in settings.get("bregman_beta", "")
    return rate or teacher or settings.get("sampling") == "annealed"


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
