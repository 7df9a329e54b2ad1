"""Predictions for a stream of texts: rows in, rows out, in order, in memory that does not grow."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO

from minbert.errors import InputError
from multitask import evaluate
from multitask.data import Problem, Row, parse, parse_plain, read_header, tokenize
from multitask.model import MultitaskBert
from multitask.tasks import Task

WINDOW = 1024  # rows that are read, sorted by length, predicted and written together


def predict(model: MultitaskBert, task: Task, source: str, target: str, skip_bad_rows: bool) -> None:
    """Read texts from a file or `-`, write `id, prediction` and the classes' probabilities, tab-separated.

    The input is a table with a header that names the task's text columns (an id column is taken over), or
    plain lines: one sentence, or two with a tab between. A file to write appears under its name when it is
    complete.
    """
    reader, name = _open_input(source)
    with reader:
        windows = _windows(_items(reader, name, task), name, skip_bad_rows)
        if target == "-":
            _write(model, task, windows, sys.stdout)
            return
        partial = Path(target + ".partial")
        try:
            with partial.open("w", encoding="utf-8", newline="") as file:
                _write(model, task, windows, file)
            os.replace(partial, target)
        except OSError as error:
            raise InputError(
                f"{target}: cannot be written ({error.strerror}); name another --output"
            ) from None
        except InputError as error:
            raise InputError(f"{error}\nthe rows before it are predicted, in {partial}") from None


def _open_input(source: str) -> tuple[BinaryIO, str]:
    if source == "-":
        return sys.stdin.buffer, "standard input"
    try:
        return open(source, "rb"), source
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None


def _items(reader: BinaryIO, name: str, task: Task) -> Iterator[Row | Problem]:
    """A table where the first line names the task's columns, else plain lines."""
    first = reader.readline()
    lines = chain([first] if first else [], reader)
    try:
        is_table = set(task.texts) <= set(read_header(first, name))
    except InputError:
        is_table = False
    return parse(lines, name, task, labelled=False, with_id=False) if is_table else parse_plain(lines, task)


def _windows(items: Iterable[Row | Problem], name: str, skip_bad_rows: bool) -> Iterator[list[Row]]:
    """Good rows, some at a time. At a bad one: the rows before it, and then InputError."""
    window: list[Row] = []
    dropped = 0
    for item in items:
        if isinstance(item, Row):
            window.append(item)
        elif skip_bad_rows:
            dropped += 1
        else:
            yield window
            raise InputError(f"{name}:{item.line}: {item.message} (--skip-bad-rows drops such rows)")
        if len(window) == WINDOW:
            yield window
            window = []
    yield window
    if dropped:
        print(f"{name}: dropped {dropped} bad rows", file=sys.stderr)


def _write(model: MultitaskBert, task: Task, windows: Iterable[list[Row]], file: TextIO) -> None:
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    classes = 0 if task.kind == "regression" else max(2, task.outputs)
    writer.writerow(["id", task.label, *(f"class_{number}" for number in range(classes))])
    for rows in windows:
        encoded = tokenize(rows, model.tokenizer, model.max_length) if rows else []
        logits = evaluate.logits(model, task.name, encoded)
        values = evaluate.decode(task.kind, logits).tolist()
        shares = evaluate.probabilities(task.kind, logits).tolist() if classes else [[]] * len(rows)
        for row, value, share in zip(rows, values, shares, strict=True):
            writer.writerow([row.id, value, *(f"{number:.6f}" for number in share)])
        file.flush()
