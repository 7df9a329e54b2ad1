"""Saved states and models with valid hashes and wrong content, and inputs that change before a resumption.

Resuming is refused in a line, or ends with the results of the undisturbed run.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hostile.box import TRAIN, Box, Case, Cases, Wrong, put_hashes_right, write

RESUME = "--resume --out {stopped}"
MISSING = object()

# Changes of progress.json: a field and its wrong value

NESTED: Any = []
for _ in range(500):
    NESTED = [NESTED]
RECORD = {"epoch": 1, "step": 8, "loss": {"all": 1.0}, "dev": {"score": 0.5}}
FIELDS: Mapping[str, tuple[Any, ...]] = {
    "step": (-1, 25, 10**12, 10**400, 1.5, "9", None, True, [], {}, math.nan, math.inf, MISSING),
    "sums": ([], "x", {"x": 1}, {"loss/all": ["a", 1, 1]}, {"loss/all": [math.nan, 1, 1]}, {"loss/all": []},
             {"loss/all": [1.0, 1.0, 0]}, {"loss": [1.0, 1.0, 1]}, NESTED),
    "ratios": ([], {"x": "y"}, {"x/gradient_ratio": []}, {"x/gradient_ratio": ["y"]}),
    "seconds": (-1.0, math.nan, "x", None),
    "best_score": ("x", math.nan, math.inf, [], None),
    "best_epoch": (99, -1, 2**70, 1.5, "1", None, 0),
    "records": ("x", None, {}, [1], ["x"], [[]], [{}], [RECORD], [RECORD] * 9, [RECORD | {"epoch": -1}],
                [RECORD | {"dev": {"score": math.nan}}], [RECORD | {"dev": None}],
                [RECORD | {"\x1b[31m": 1}], NESTED),
    "skipped_in_a_row": (-1, "x", 10**9, None),
    "data": (5, None, "", "x" * 10**6),
    "config": (5, None, "", "\x1b[31m"),
    "surplus": (1, NESTED),
}  # fmt: skip
TEXTS: Mapping[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "no JSON": b"{",
    "no UTF-8": b'{"step": "\xff"}',
    "a deep nest": b"[" * 100_000,
    "a number of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
    "ten megabytes of spaces": b" " * 10_000_000 + b"{}",
}

# Changes of tensors

Tensors = dict[str, Tensor]


def every(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: change(tensor).contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def first(change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    """Change the first tensor that has two axes."""

    def changed(tensors: Tensors) -> Tensors:
        name = min(name for name, tensor in tensors.items() if tensor.dim() > 1)
        return tensors | {name: change(tensors[name]).contiguous()}

    return changed


def counts(value: float | Tensor) -> Callable[[Tensors], Tensors]:
    """Set the steps that the optimizer has counted."""
    return lambda tensors: {
        name: torch.as_tensor(value).clone() if name.endswith("/step") else tensor
        for name, tensor in tensors.items()
    }


CHANGES: Mapping[str, Callable[[Tensors], Tensors]] = {
    "NaN": every(lambda tensor: tensor * math.nan),
    "a single NaN": first(lambda tensor: tensor.index_fill(0, torch.tensor([0]), math.nan)),
    "infinite": every(lambda tensor: tensor + math.inf),
    "of another shape": first(lambda tensor: tensor.T.reshape(-1)),
    "too long": first(lambda tensor: torch.cat([tensor, tensor])),
    "whole numbers": every(lambda tensor: tensor.to(torch.int64)),
    "bfloat16": every(lambda tensor: tensor.to(torch.bfloat16)),
    "fewer": lambda tensors: dict(list(tensors.items())[1:]),
    "more": lambda tensors: tensors | {"surplus": torch.ones(3)},
    "more, with a path": lambda tensors: tensors | {"encoder.nothing/exp_avg": torch.ones(3)},
    "none": lambda tensors: {},
}
OF_OPTIMIZER = {
    "counting -1 steps": counts(-1),
    "counting a billion steps": counts(10**9),
    "counting 1.5 steps": counts(1.5),
    "counting in a vector": counts(torch.ones(3)),
    "negative squares": lambda tensors: {
        name: -tensor - 1 if name.endswith("_sq") else tensor for name, tensor in tensors.items()
    },
    "without moments": lambda tensors: {
        name: tensor for name, tensor in tensors.items() if name.endswith("/step")
    },
}
MANIFESTS: Mapping[str, Any] = {
    "another format": {"format": 99, "files": {}},
    "no format": {"files": {}},
    "no files": {"format": 2},
    "files in a list": {"format": 2, "files": []},
    "files without hashes": {"format": 2, "files": {"model.safetensors": None}},
    "files elsewhere": {"format": 2, "files": {"../../../victim/letter.txt": "0" * 64}},
    "null": None,
    "a nest": NESTED,
}
LATEST = ("", "step-99999999", "../../victim/folder", "/etc", "step-x", "\x1b[31m", "\0", "x" * 10**6, "é")


def resumed(change: Callable[[Path], object], box: Box, hashed: bool = True) -> None:
    """Resume a run both of whose states were changed, their hashes put right."""
    box.take("stopped")
    for state in sorted((box / "stopped/state").glob("step-*")):
        change(state)
        if hashed:
            put_hashes_right(state)
    box.command(RESUME, writes=("stopped",))
    if (box / "stopped/result.json").exists():
        box.check_results("stopped")


def change_field(field: str, value: Any, state: Path) -> None:
    progress = json.loads((state / "progress.json").read_text())
    progress[field] = value
    if value is MISSING:
        del progress[field]
    (state / "progress.json").write_text(json.dumps(progress))


def write_progress(text: bytes, state: Path) -> None:
    write(state / "progress.json", text)


def change_tensors(name: str, change: Callable[[Tensors], Tensors], folder: Path) -> None:
    path = folder / f"{name}.safetensors"
    tensors = load_file(path)
    save_file(change({name: tensor.clone() for name, tensor in tensors.items()}), path, {"format": "pt"})


def write_manifest(manifest: Any, state: Path) -> None:
    (state / "manifest.json").write_text(json.dumps(manifest))


def newest_alone(box: Box) -> None:
    box.take("stopped")
    newest = max((box / "stopped/state").glob("step-*"))
    change_tensors("model", CHANGES["NaN"], newest)
    put_hashes_right(newest)
    box.command(RESUME, expect=(0,), writes=("stopped",))
    box.check_results("stopped")


def pointer(text: str, box: Box) -> None:
    box.take("stopped")
    (box / "stopped/state/latest").write_text(text)
    box.command(RESUME, writes=("stopped",))
    if (box / "stopped/result.json").exists():
        box.check_results("stopped")


# What a run depends on, changed before it is resumed

CLASSES = """
[rating]
kind = "classification"
texts = ["sentence"]
label = "sentiment"
files = "ids-sst-{split}.csv"
num_classes = 5
"""
NUMBERS = CLASSES.replace("classification", "regression").replace("num_classes = 5", "low = 0\nhigh = 4")


def edit(path: str, old: str, new: str) -> Callable[[Box], object]:
    def change(box: Box) -> None:
        text = (box / path).read_text()
        assert old in text, f"{path} does not hold {old}"
        (box / path).write_text(text.replace(old, new))

    return change


def swap_words(box: Box) -> None:
    """Swap two words of the vocabulary, in both files that have it."""
    for name, quoted in (("vocab.txt", "\n{}\n"), ("tokenizer.json", '"{}": ')):
        text = (box / "weights" / name).read_text()
        for old, new in (("the", "?!"), ("of", "the"), ("?!", "of")):
            text = text.replace(quoted.format(old), quoted.format(new))
        (box / "weights" / name).write_text(text)


def swap_rows(box: Box) -> None:
    head, one, two, *rest = (box / "data/ids-sst-train.csv").read_text().splitlines(keepends=True)
    write(box / "data/ids-sst-train.csv", "".join([head, two, one, *rest]))


INPUTS: Mapping[str, tuple[Callable[[Box], object], str]] = {  # the change, and the task file of the run
    "two words of the tokenizer": (swap_words, ""),
    "the tokenizer's case": (edit("weights/tokenizer.json", '"lowercase": true', '"lowercase": false'), ""),
    "layer_norm_eps": (edit("weights/config.json", '_eps": 1e-12', '_eps": 0.5'), ""),
    "hidden_act": (edit("weights/config.json", '"gelu"', '"relu"'), ""),
    "the weights": (
        lambda box: change_tensors("model", every(lambda tensor: tensor * 2), box / "weights"),
        "",
    ),
    "the weights are gone": (lambda box: box.put_away(box / "weights"), ""),
    "two rows": (swap_rows, ""),
    "the tables are gone": (lambda box: box.put_away(box / "data"), ""),
    "the task's kind": (lambda box: write(box / "tasks.toml", NUMBERS), CLASSES),
    "the task's classes": (edit("tasks.toml", "num_classes = 5", "num_classes = 6"), CLASSES),
    "the task's name": (edit("tasks.toml", "[rating]", "[opinion]"), CLASSES),
    "the task's output": (edit("tasks.toml", "num_classes", 'output = "elsewhere"\nnum_classes'), CLASSES),
    "the task's range": (edit("tasks.toml", "high = 4", "high = 8"), NUMBERS),
    "the task file is gone": (lambda box: box.put_away(box / "tasks.toml"), CLASSES),
}


def changed_input(change: Callable[[Box], object], tasks: str, box: Box) -> None:
    words = TRAIN + " --out {run}"
    if tasks:
        write(box / "tasks.toml", tasks)
        words += " --task-file {box}/tasks.toml"
    box.stopped(words, box / "run")
    shutil.copytree(box / "run", box / "undisturbed")
    box.command("--resume --out {undisturbed}", expect=(0,), writes=("undisturbed",))
    change(box)
    if box.command("--resume --out {run}", writes=("run",)).status == 0:
        box.check_results("run", wanted=box / "undisturbed")


# Finished models

PREDICT = (
    "--option predict --threads 1 --output {work}/out.tsv --task similarity --input {data}/sts-dev.csv --run "
)
USES = {
    "predict": PREDICT + "{run}",
    "evaluate": "--option evaluate --threads 1 --run {run}",
    "report": "--option report --threads 1 --run {run}",
    "an ensemble's first": "--option ensemble --threads 1 --out {out} --run {run} {other}",
    "an ensemble's second": "--option ensemble --threads 1 --out {out} --copy --run {other} {run}",
    "predict by an ensemble": PREDICT + "{ensemble}",
    "evaluate an ensemble": "--option evaluate --threads 1 --run {ensemble}",
    "report of an ensemble": "--option report --threads 1 --run {ensemble}",
    "distill": TRAIN.replace("finetune", "distill --run {run}") + " --out {out}",
    "--init": TRAIN.replace("--weights {weights}", "--init {run}") + " --out {out}",
}
WRITES = ("run", "other", "ensemble", "out", "work/out.tsv")


def bad_model(file: str, change: Callable[[Tensors], Tensors], words: str, box: Box) -> None:
    box.take("run", "other", "ensemble")
    change_tensors(file, change, box / "run/best")
    box.command(words, expect=(2,), writes=WRITES)


def shared_output(words: str, box: Box) -> None:
    box.take("run", "other", "ensemble")
    for run in ("run", "other"):
        edit(f"{run}/best/tasks.toml", 'output = "sts"', 'output = "para"')(box)
    box.command(words, expect=(2,), writes=WRITES)


def cut_settings(lines: int, words: str, box: Box) -> None:
    box.take("run")
    text = (box / "run/config.toml").read_text().splitlines(keepends=True)
    write(box / "run/config.toml", "".join(text[:lines]))
    box.command(words, expect=(2,), writes=("run",))


def restored_settings(lines: int | None, box: Box) -> None:
    box.take("stopped")
    text = (box / "stopped/config.toml").read_text().splitlines(keepends=True)
    box.put_away(box / "stopped/config.toml")
    if lines is not None:
        write(box / "stopped/config.toml", "".join(text[:lines]))
    box.command(RESUME, expect=(0,), writes=("stopped",))
    box.check_results("stopped")
    if sorted((box / "stopped/config.toml").read_text().splitlines(keepends=True)) != sorted(text):
        raise Wrong("config.toml is not as it was")


# Pickles: what a file says cannot allow them


def pickled(box: Box) -> None:
    """Leave the weights as a pickle alone."""
    torch.save(load_file(box / "weights/model.safetensors"), box / "weights/pytorch_model.bin")
    box.put_away(box / "weights/model.safetensors")


def by_a_recipe(box: Box) -> None:
    pickled(box)
    write(box / "generous.toml", "allow_pickle = true")
    box.command(TRAIN + " --recipe {box}/generous.toml --out {out}", expect=(2,), writes=("out",))


def by_a_stage(box: Box) -> None:
    pickled(box)
    write(box / "generous.toml", '[stages.first]\noption = "finetune"\nallow_pickle = true')
    words = TRAIN.replace("--option finetune", "--recipe {box}/generous.toml --out {out}")
    box.command(words, expect=(2,), writes=("out",))


def by_config_toml(words: str, box: Box) -> None:
    box.take("run", "stopped")
    pickled(box)
    for run in ("run", "stopped"):
        path = box / run / "config.toml"
        lines = [line for line in path.read_text().splitlines() if not line.startswith("allow_pickle")]
        write(path, "\n".join([*lines, "allow_pickle = true", ""]))
    box.command(words, expect=(2,), writes=("run", "stopped"))


def by_the_command_line(box: Box) -> None:
    pickled(box)
    box.command(TRAIN + " --allow-pickle --out {run}", expect=(0,))
    box.check_results()


PICKLES: Mapping[str, Case] = {
    "by a recipe": by_a_recipe,
    "by a stage of a recipe": by_a_stage,
    "by config.toml, --resume": partial(by_config_toml, RESUME),
    "by config.toml, evaluate": partial(by_config_toml, USES["evaluate"]),
    "by config.toml, report": partial(by_config_toml, USES["report"]),
    "by the command line": by_the_command_line,
}


def cases() -> Cases:
    for field, values in FIELDS.items():
        for number, value in enumerate(values, start=1):
            shown = "missing" if value is MISSING else ascii(value)[:40]
            yield (
                f"progress: {field}, {number}: {shown}",
                partial(resumed, partial(change_field, field, value)),
            )
    for name, text in TEXTS.items():
        yield f"progress: {name}", partial(resumed, partial(write_progress, text))
    for file in ("model", "optimizer", "best"):
        for name, change in {**CHANGES, **(OF_OPTIMIZER if file == "optimizer" else {})}.items():
            yield f"{file}.safetensors: {name}", partial(resumed, partial(change_tensors, file, change))
    yield "only the newest state has NaN weights", newest_alone
    for name, manifest in MANIFESTS.items():
        yield f"manifest: {name}", partial(resumed, partial(write_manifest, manifest), hashed=False)
    yield "a file too many", partial(resumed, lambda state: write(state / "surplus", "x"))
    yield "no best.safetensors", partial(resumed, lambda state: (state / "best.safetensors").unlink())
    for target in LATEST:
        yield f"latest: {ascii(target)[:30]}", partial(pointer, target)
    for name, (change_of, tasks) in INPUTS.items():
        yield f"changed before --resume: {name}", partial(changed_input, change_of, tasks)
    for file, kind in (("model", "NaN"), ("model", "a single NaN"), ("model", "infinite"), ("heads", "NaN")):
        for name, words in USES.items():
            yield f"best/{file}.safetensors is {kind}: {name}", partial(bad_model, file, CHANGES[kind], words)
    for name in ("evaluate", "an ensemble's first", "evaluate an ensemble"):
        yield f"two tasks share an output: {name}", partial(shared_output, USES[name])
    for lines in range(0, 30, 3):
        for name in ("evaluate", "report"):
            yield f"config.toml is cut in line {lines}: {name}", partial(cut_settings, lines, USES[name])
        yield f"config.toml is cut in line {lines}: --resume", partial(restored_settings, lines)
    yield "config.toml is lost: --resume", partial(restored_settings, None)
    for name, function in PICKLES.items():
        yield f"allow_pickle: {name}", function
