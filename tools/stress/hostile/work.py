"""Inputs that cost more work than they should, and those that a terminal or a spreadsheet would obey."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from functools import partial

from hostile.box import TRAIN, Box, Cases, Wrong, write

EVALUATE = "--option evaluate --threads 1 --run {run}"
PREDICT = "--option predict --threads 1 --task sentiment --run {run} --input {box}/input.txt"
SIZE = 100_000  # bytes of TOML
GIGABYTE = 1 << 30

# TOML whose parsing takes more than its size promises

BOMBS: Mapping[str, Callable[[], str]] = {
    "a key of 50,000 parts": lambda: "a." * (SIZE // 2) + "a = 1\n",
    "keys of 500 parts": lambda: "".join(f"k{n}." + "a." * 500 + "a = 1\n" for n in range(SIZE // 1010)),
    "keys of 50 parts, of one table": lambda: "".join("a." * 50 + f"k{n} = 1\n" for n in range(SIZE // 110)),
    "sections of 500 parts": lambda: "".join("[" + "a." * 500 + f"k{n}]\n" for n in range(SIZE // 1010)),
    "nested lists": lambda: "a = " + "[" * (SIZE // 2) + "]" * (SIZE // 2) + "\n",
    "nested tables": lambda: "a = " + "{a = " * (SIZE // 6) + "1" + "}" * (SIZE // 6) + "\n",
    "12,000 keys": lambda: "".join(f"k{n} = 1\n" for n in range(12_000)),
    "12,000 sections": lambda: "".join(f"[k{n}]\n" for n in range(12_000)),
    "a number of 100,000 digits": lambda: "a = " + "9" * SIZE + "\n",
    "a key of 100,000 characters": lambda: "a" * SIZE + " = 1\n",
}
PLACES = {  # where the bomb is put, and the command that reads it there
    "recipe": ("generous.toml", TRAIN + " --recipe {box}/generous.toml --out {out}"),
    "task file": ("tasks.toml", TRAIN + " --task-file {box}/tasks.toml --out {out}"),
    "config.toml, evaluate": ("run/config.toml", EVALUATE),
    "config.toml, --resume": ("stopped/config.toml", "--resume --out {stopped}"),
    "pipeline.toml": ("stages/pipeline.toml", "--resume --out {stages}"),
    "ensemble.toml": ("ensemble/ensemble.toml", EVALUATE.replace("{run}", "{ensemble}")),
    "tasks.toml of a model": ("run/best/tasks.toml", EVALUATE),
}


def bomb(make: Callable[[], str], path: str, words: str, box: Box) -> None:
    """The file alone is wrong, or its end: the part before the bomb is as it was."""
    box.take("run", "other", "stopped", "stages", "ensemble")
    before = (box / path).read_text() if (box / path).exists() else ""
    write(box / path, make() + before)
    box.command(words, writes=("run", "stopped", "stages", "ensemble", "out"), seconds=8, peak=1.5 * GIGABYTE)


# Long texts

WORDS = "the film was good and a bad movie is very "


def long_rows(rows: int, size: int, box: Box) -> None:
    box.take("run")
    text = (WORDS * (size // len(WORDS))).encode() + b"\n"
    with (box / "input.txt").open("wb") as file:
        for _ in range(rows):
            file.write(text)
    words = PREDICT + " --output {work}/out.tsv"
    box.command(words, expect=(0,), writes=("work/out.tsv",), seconds=150, peak=1.5 * GIGABYTE)
    if (box / "work/out.tsv").read_bytes().count(b"\n") != rows + 1:
        raise Wrong("rows are missing")


TEXTS: Mapping[str, Callable[[], str]] = {
    "a word of a megabyte": lambda: "a" * 1_000_000,
    "a word of ten megabytes": lambda: "ab" * 5_000_000,
    "a megabyte of accents": lambda: "a" + "\u0301" * 500_000,
    "a megabyte of Chinese": lambda: "漢" * 330_000,
    "a megabyte of blanks": lambda: "a" + " " * 1_000_000 + "b",
    "a megabyte of dots": lambda: "." * 1_000_000,
    "a megabyte of emoji": lambda: "👩‍👩‍👧" * 60_000,
    "a megabyte of [SEP]": lambda: "[SEP]" * 200_000,
    "a megabyte of NUL": lambda: "a" + "\0" * 1_000_000,
}


def long_text(make: Callable[[], str], use: str, box: Box) -> None:
    box.take("run")
    if use == "predict":
        write(box / "input.txt", make() + "\n")
        box.command(PREDICT + " --output {work}/out.tsv", writes=("work/out.tsv",), peak=1.5 * GIGABYTE)
    else:
        with (box / "data/ids-sst-dev.csv").open("a") as file:
            head = (box / "data/ids-sst-dev.csv").read_text().partition("\n")[0].split("\t")
            cells = {"id": "long", "sentence": make(), "sentiment": "1"}
            file.write("\t".join(cells.get(column, "0") for column in head) + "\n")
        box.command(EVALUATE, peak=1.5 * GIGABYTE)


# What a spreadsheet or a terminal obeys

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "a,b", "a , b", "a;b", "'x", '=cmd|"x"!A1', "100%", "日本")


def formulas(box: Box) -> None:
    """Ids that a spreadsheet takes for formulas, or that hold the separator, are kept as they are."""
    box.take("run")
    rows = [[name, "a good film", "1"] for name in FORMULAS]
    with (box / "input.txt").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerows([["id", "sentence", "sentiment"], *rows])
    write(box / "data/ids-sst-dev.csv", (box / "input.txt").read_bytes())
    if box.command(PREDICT + " --output {work}/out.tsv", writes=("work/out.tsv",)).status == 0:
        with (box / "work/out.tsv").open(newline="") as file:
            found = [row[0] for row in csv.reader(file, delimiter="\t")][1:]
        if found != list(FORMULAS):
            raise Wrong(f"ids have changed: {found!a}")
    if box.command(EVALUATE).status == 0:
        lines = (box / "run/predictions/sst-dev-output.csv").read_text().splitlines()[1:]
        if len(lines) != len(FORMULAS):
            raise Wrong("rows are missing")


EVIL = "\x1b]0;x\x07\x9b31m\x7f"  # sets the window's title and a colour; the last two stand alone


def evil(name: str, box: Box) -> None:
    box.take("run", "other", "ensemble", "stages")
    OBEYED[name](box)


def command(box: Box, words: str, **places: str) -> None:
    """Carry out a command whose output goes to a terminal."""
    box.command(box.words(words, evil=EVIL, **places), writes=("",), terminal=True)


def evil_table(column: str, split: str = "dev") -> Callable[[Box], None]:
    """Put control characters into a cell of each row of a table, or into the column's name."""

    def change(box: Box) -> None:
        path = box / f"data/ids-sst-{split}.csv"
        head, *rows = [line.split("\t") for line in path.read_text().splitlines()]
        if column in head:
            for row in rows:
                row[head.index(column)] += EVIL
        else:
            head[-1] += EVIL
        write(path, "".join("\t".join(row) + "\n" for row in [head, *rows]))
        write(box / "input.txt", path.read_bytes())
        command(box, PREDICT)
        command(box, EVALUATE)
        command(box, EVALUATE + " --skip-bad-rows")

    return change


def evil_file(path: str, content: str, *commands: str) -> Callable[[Box], None]:
    def change(box: Box) -> None:
        quoted = EVIL.encode("unicode_escape").decode().replace("\\x", "\\u00")
        old = (box / path).read_text() if content.startswith("+") else ""
        write(box / path, old + content.removeprefix("+").replace("EVIL", quoted))
        for words in commands:
            command(box, words)

    return change


def evil_name(name: str, *commands: str) -> Callable[[Box], None]:
    """Give control characters to the name of one of the box's folders."""

    def change(box: Box) -> None:
        (box / name).rename(box / f"{name}{EVIL}")
        for words in commands:
            command(box, words)

    return change


TASK = '[rating]\nkind = "classification"\ntexts = ["sentence"]\nlabel = "sentiment"\nnum_classes = 5\n'
TASK += 'files = "ids-sst-{split}.csv"\n'
NEW = TRAIN + " --out {out}"
WITH_TASKS = NEW + " --task-file {box}/tasks.toml"
RECIPE = "--recipe {box}/generous.toml"
OBEYED: Mapping[str, Callable[[Box], None]] = {
    "ids": evil_table("id"),
    "ids of the test table": evil_table("id", "test-student"),
    "labels": evil_table("sentiment"),
    "texts": evil_table("sentence"),
    "a header": evil_table(""),
    "a task's name": evil_file("tasks.toml", '["EVIL"]\nkind = "binary"', WITH_TASKS),
    "a task's label": evil_file("tasks.toml", TASK.replace('"sentiment"', '"EVIL"'), WITH_TASKS),
    "a task's text column": evil_file("tasks.toml", TASK.replace('"sentence"', '"EVIL"'), WITH_TASKS),
    "a task's files": evil_file("tasks.toml", TASK.replace("ids-sst", "EVIL"), WITH_TASKS),
    "a task's header": evil_file("tasks.toml", TASK + 'header = "EVIL"', WITH_TASKS),
    "a key of a recipe": evil_file("generous.toml", '"EVIL" = 1', TRAIN + " " + RECIPE),
    "a value of a recipe": evil_file("generous.toml", 'option = "finetune"\ndata = "EVIL"', RECIPE),
    "a stage's name": evil_file("generous.toml", '[stages."EVIL"]\nepochs = 1', RECIPE),
    "config.toml": evil_file(
        "run/config.toml", 'option = "finetune"\ndata = "EVIL"', EVALUATE, "--resume --out {run}"
    ),
    "metrics.jsonl": evil_file("run/metrics.jsonl", '{"epoch": 1, "EVIL": 2}', "--option report --run {run}"),
    "ensemble.toml": evil_file(
        "ensemble/ensemble.toml", '["EVIL"]\nmembers = ["EVIL"]', EVALUATE.replace("run}", "ensemble}")
    ),
    "a run's name": evil_name(
        "run", EVALUATE.replace("{run}", "{box}/run{evil}"), "--option report --run {box}/run{evil}",
        "--option ensemble --run {other} {box}/run{evil} --out {out}", "--resume --out {box}/run{evil}",
    ),
    "the name of --out": lambda box: command(box, TRAIN + " --out {work}/new{evil}"),
    "the name of --data": evil_name(
        "data", NEW.replace("{data}", "{box}/data{evil}"), EVALUATE + " --data {box}/data{evil}"
    ),
    "the name of --weights": evil_name("weights", NEW.replace("{weights}", "{box}/weights{evil}")),
    "an argument": lambda box: command(box, "--option {evil}"),
    "a flag": lambda box: command(box, "--{evil}"),
    "a checkpoint": lambda box: command(box, NEW.replace("{weights}", "{evil}")),
}  # fmt: skip


def cases() -> Cases:
    for place, (path, words) in PLACES.items():
        for name, make in BOMBS.items():
            yield f"{place}: {name}", partial(bomb, make, path, words)
    yield "2,000 rows of 50 KB", partial(long_rows, 2000, 50_000)
    for name, text in TEXTS.items():
        for use in ("predict", "evaluate"):
            yield f"{name}: {use}", partial(long_text, text, use)
    yield "ids that are formulas", formulas
    for name in OBEYED:
        yield f"control characters in {name}", partial(evil, name)
