"""The job of --option inspect: look at a folder of tables, say what is in them, write a task file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers.pre_tokenizers import BertPreTokenizer

from minbert import hub
from minbert.config import BertConfig
from minbert.errors import InputError, counted, short_line
from minbert.files import write_text
from minbert.tokenizer import BertTokenizer
from multitask.advice import command
from multitask.config import Config, Inputs, changed_flags
from multitask.data.guessing import guess_folder, to_toml
from multitask.data.inspection import ERROR, NOTE, WARNING, Count, Inspection, TableFacts, inspect
from multitask.data.tables import unread_files
from multitask.data.tasks import Task, read_task_file, task_to_toml
from multitask.data.tokens import WHOLE
from multitask.messages import progress_bar, warn
from multitask.saved import start_folder

TASK_FILE = "tasks.toml"
SHOWN_LABELS = 10
CHECKS = {  # what is fine unless one of these codes is found
    "no bad rows": ("unreadable", "bad_rows", "many_bad_rows"),
    "no text repeated": ("repeated", "repeated_swapped"),
    "no text in two tables": ("leak", "leak_swapped", "shared_text"),
    "no contradictory labels": ("contradiction",),
    "enough rows of every label": ("few_rows", "few_dev_rows", "rare_label", "imbalance", "constant_label"),
    "texts fit": ("long",),
    "words are known": ("unknown_tokens",),
    "no column gives the label away": ("giveaway",),
}


def run_inspection(config: Config) -> None:
    """Inspect the tables of tasks: those of --task-file or, without it, those that the tables in the folder
    look made for, in a task file that is written. Raises InputError at the end if a table is bad."""
    directory, given = Path(cast(str, config.tables.data)), config.start.task_file
    if not directory.is_dir():
        raise InputError(f"--data: {directory} is not a folder")
    if given is not None and (config.output.out is not None or config.replacing.force):
        raise InputError("--task-file is checked, not written: leave out --out and --force")
    if given is None:
        found = guess_and_write(directory, config.output.out or TASK_FILE, config.replacing.force)
    else:
        found = read_described(given, directory)
    reader = open_reader(config.start)
    inspections = {
        name: inspect(task, directory, config.reading.skip_bad_rows, reader.count, reader.max_length, watch)
        for name, task in found.tasks.items()
    }
    findings = [finding for one in inspections.values() for finding in one.findings]
    errors = [*found.errors, *(finding.message for finding in findings if finding.level == ERROR)]
    following = next_command(config, found.task_file, inspections)
    if config.inspection.json:
        print(json.dumps(in_json(config, found, reader, inspections, errors, following), indent=2))
    else:
        for name, inspection in inspections.items():
            print_inspection(name, inspection, reader.max_length)
        print_end(found, inspections, len(errors), following)
    if errors:
        raise InputError("\n".join(errors))


@dataclass(frozen=True)
class Found:
    """The tasks to inspect, and what else is in their folder."""

    tasks: Mapping[str, Task]
    task_file: str
    is_new: bool  # whether the task file has been written now
    notes: Sequence[str]  # files that are not read, with the reason
    errors: Sequence[str]  # files that cannot be read


def read_described(task_file: str, directory: Path) -> Found:
    """Return the tasks of a task file."""
    tasks = read_task_file(Path(task_file))
    unread = [f"{file}: is not read; {table.name} is" for file, table in unread_files(directory, tasks)]
    return Found(tasks, task_file, False, unread, [])


def guess_and_write(directory: Path, task_file: str, force: bool) -> Found:
    """Guess the tasks that the tables in a folder are for, and write the task file. Raises InputError if
    there are none, or if the file exists, unless `force` replaces it."""
    target = Path(task_file)
    if target.exists() and not force:
        raise InputError(f"{target}: exists; check it with --task-file {target}, or replace it with --force")
    folder = guess_folder(directory, watch)
    if not folder.guesses:
        nothing = f"{directory}: no table for a task was found"
        raise InputError("\n".join([*folder.errors, *folder.notes, nothing]))
    try:
        write_text(target, to_toml(folder.guesses.values(), directory.resolve().name))
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); name another --out") from None
    tasks = {name: one.task for name, one in folder.guesses.items()}
    return Found(tasks, task_file, True, folder.notes, folder.errors)


def watch(items: Iterable[Any], name: str) -> Iterable[Any]:
    """Show on a terminal how many rows have been read."""
    return progress_bar(items, desc=name, unit=" rows")


# Tokens


@dataclass(frozen=True)
class Reader:
    """What counts the tokens."""

    name: str
    max_length: int  # that the model reads
    count: Count


def open_reader(inputs: Inputs) -> Reader:
    """Return the tokenizer of --weights or, if the default one is not available, a counter of words."""
    try:
        folder = hub.resolve_tokenizer(start_folder(inputs.weights), inputs.revision)
    except InputError as error:
        if inputs.weights != hub.DEFAULT:
            raise
        warn(f"{short_line(error)}; so words and signs are counted, and real texts have some more tokens")
        return Reader("words", inputs.max_length, count_words)
    tokenizer = BertTokenizer.from_pretrained(folder)
    longest = BertConfig.from_pretrained(folder).max_position_embeddings
    return Reader(inputs.weights, min(inputs.max_length, longest), partial(count_tokens, tokenizer))


def count_tokens(tokenizer: BertTokenizer, texts: Sequence[tuple[str, ...]]) -> tuple[np.ndarray, int]:
    """Return the number of tokens of each text or pair, and how many of all are [UNK]."""
    first, *second = map(list, zip(*texts, strict=True))
    encoded = [ids for ids, _ in tokenizer.token_ids(first, second[0] if second else None, WHOLE)]
    unknown = tokenizer.backend.get_vocab().get("[UNK]", -1)
    return np.array([len(ids) for ids in encoded]), sum(ids.count(unknown) for ids in encoded)


def count_words(texts: Sequence[tuple[str, ...]]) -> tuple[np.ndarray, int]:
    """Return the number of words and signs of each text or pair, with [CLS] and [SEP]."""
    split = BertPreTokenizer().pre_tokenize_str
    return np.array([1 + sum(len(split(text)) + 1 for text in row) for row in texts]), 0


# What is printed


def print_inspection(name: str, inspection: Inspection, max_length: int) -> None:
    task = inspection.task
    print(f"{name}: {task.kind.name}, {task.label} of {' and '.join(task.texts)}")
    for split, table in inspection.tables.items():
        bad = f", {table.bad:,} bad" if table.bad else ""
        print(f"  {split:5}  {table.file}: {counted(table.rows, 'row')}{bad}")
        if table.labels:
            print(f"         {in_words(task, table)}")
        print(f"         {of_lengths(table, max_length)}")
    for finding in inspection.findings:
        if finding.level != ERROR:  # these end the command
            print(f"  {finding.level}: {finding.message}")
            if finding.places:
                print(f"    {', '.join(' = '.join(place) for place in finding.places)}")
    found = {finding.code for finding in inspection.findings}
    fine = [check for check, codes in CHECKS.items() if not found & {*codes}]
    if fine:
        print(f"  fine: {', '.join(fine)}")


def in_words(task: Task, table: TableFacts) -> str:
    """Return how labels are distributed: rows and share of each class, or figures of a regression."""
    if not task.classes:
        return f"{task.label}: " + ", ".join(f"{name} {value:.3g}" for name, value in table.labels.items())
    largest = sorted(table.labels, key=lambda name: -table.labels[name])[:SHOWN_LABELS]
    more = [f"and {task.classes - SHOWN_LABELS} more"] if task.classes > SHOWN_LABELS else []
    counts = [(name, count) for name, count in table.labels.items() if name in largest]
    return ", ".join([f"{name} {count:,.0f} ({count / table.rows:.1%})" for name, count in counts] + more)


def of_lengths(table: TableFacts, max_length: int) -> str:
    lengths = table.lengths
    cut = f"{lengths.cut:.1%} longer than" if lengths.cut else "none longer than"
    sample = f", of {lengths.rows:,} rows" if lengths.rows < table.rows else ""
    shown = f"median {lengths.median}, 95% up to {lengths.most}, longest {lengths.longest}"
    return f"tokens: {shown}, {cut} --max-length {max_length}{sample}"


def print_end(
    found: Found, inspections: Mapping[str, Inspection], errors: int, following: str | None
) -> None:
    for note in found.notes:
        print(f"note: {note}")
    levels = [finding.level for one in inspections.values() for finding in one.findings]
    counts = [counted(errors, ERROR), *(counted(levels.count(level), level) for level in (WARNING, NOTE))]
    done = "wrote" if found.is_new else "checked"
    print(f"{done} {found.task_file}: {counted(len(inspections), 'task')}; {', '.join(counts)}")
    if following is not None:
        print(f"Next{', once it says what you mean' if found.is_new else ''}:\n  {following}")


def next_command(config: Config, task_file: str, inspections: Mapping[str, Inspection]) -> str | None:
    """Return the command that trains on the tables, as far as they can be read; None if none can."""
    codes = {name: {finding.code for finding in one.findings} for name, one in inspections.items()}
    good = [name for name in codes if not codes[name] & {"unreadable", "many_bad_rows"}]
    if not good:
        return None
    words = ["finetune", "--data", config.tables.data, "--task-file", task_file]
    if len(good) < len(codes):
        words += ["--tasks", ",".join(good)]
    if any("bad_rows" in codes[name] for name in good):
        words.append("--skip-bad-rows")
    return command(*words, *changed_flags(config.start, "max_length", "weights", "revision"))


def in_json(
    config: Config,
    found: Found,
    reader: Reader,
    inspections: Mapping[str, Inspection],
    errors: Sequence[str],
    following: str | None,
) -> dict[str, Any]:
    """Return what --json prints; docs/data.md describes it."""
    return {
        "data": config.tables.data,
        "task_file": found.task_file,
        "tokenizer": reader.name,
        "max_length": reader.max_length,
        "tasks": {
            name: {
                "definition": task_to_toml(one.task),
                "tables": {split: asdict(table) for split, table in one.tables.items()},
                "findings": [asdict(finding) for finding in one.findings],
            }
            for name, one in inspections.items()
        },
        "notes": list(found.notes),
        "errors": list(errors),
        "next": following,
    }
