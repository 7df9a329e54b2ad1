"""Predictions for a stream of texts: rows in, rows out, in order and in constant memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from itertools import repeat
from pathlib import Path
from typing import BinaryIO, TextIO

from minbert.command import unguarded
from minbert.errors import InputError, counted
from minbert.files import create, discard, flush, partial_path, rename, resolved
from minbert.tokenizer import CHARACTERS
from multitask.data.formats import Problem, lines_of
from multitask.data.tables import Row, parse_texts
from multitask.data.tasks import Task
from multitask.evaluate import class_columns, six_places, tab_separated
from multitask.predictor import Predictor

WINDOW = 1024  # rows read, sorted by length, predicted and written at a time
PIPE_WINDOW = 32  # the same for standard input; a typed line is answered at once


def predict(model: Predictor, task: Task, source: str, target: str, skip_bad_rows: bool) -> None:
    """Read texts from a file or `-`; write ids, predictions and class probabilities, separated by tabs.

    The input is a table whose header names the task's text columns (an id column is copied to the output),
    or plain lines: one sentence each, or two separated by a tab. An output file appears under its name once
    it is complete. Raises InputError if a file cannot be read or written, or at a bad row, unless
    `skip_bad_rows` drops it.
    """
    if "-" not in (source, target) and Path(source).resolve() == Path(target).resolve():
        raise InputError(f"{target}: is also the input; name another --output")
    reader, name = _open_input(source)
    size = WINDOW if source != "-" else 1 if reader.isatty() else PIPE_WINDOW
    with reader:
        windows = _windows(_items(reader, name, task), name, size, skip_bad_rows)
        if target == "-":
            stdout = unguarded(sys.stdout)
            if stdout.closed:
                raise InputError("standard output is closed; name a file with --output")
            if isinstance(stdout, TextIOWrapper):
                stdout.reconfigure(encoding="utf-8")
            try:
                _write(model, task, windows, stdout)
            except OSError as error:
                error.filename = "standard output"
                raise
            return
        raw, path, partial = _open_output(target)
        with TextIOWrapper(raw, encoding="utf-8", newline="") as file:
            try:
                _write(model, task, windows, file)
            except InputError as error:
                raise InputError(f"{error}\npredictions for the rows before it are in {partial}") from None
            except BaseException:
                if partial != path:
                    discard(partial)
                raise
        if partial != path:
            flush(partial)
            rename(partial, path)


def _open_output(target: str) -> tuple[BinaryIO, Path, Path]:
    """Open a file for the predictions. Return it, its path, and where it is until it is complete: a pipe or a
    device is written directly."""
    path = resolved(Path(target).parent) / Path(target).name
    try:
        if path.exists() and not path.is_file():
            return open(path, "wb"), path, path
        partial = partial_path(path)
        return create(partial), path, partial
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); name another --output") from None


def _open_input(source: str) -> tuple[BinaryIO, str]:
    if source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file with --input")
        return sys.stdin.buffer, "standard input"
    try:
        return open(source, "rb"), source
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None


def _items(reader: BinaryIO, name: str, task: Task) -> Iterator[Row | Problem]:
    """Parse the input as a table if its first line names the task's columns, else as plain lines."""
    return parse_texts(_without_blank_end(lines_of(reader, name)), name, task)


def _without_blank_end(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines, except empty ones after the last text, such as an editor leaves."""
    empty = 0
    for line in lines:
        if line.strip(b"\r\n"):
            yield from repeat(b"\n", empty)
            yield line
            empty = 0
        else:
            empty += 1


def _windows(
    items: Iterable[Row | Problem], name: str, size: int, skip_bad_rows: bool
) -> Iterator[list[Row]]:
    """Yield good rows, `size` at a time, or fewer long ones. At a bad one, yield the rows before it, then
    raise InputError."""
    window: list[Row] = []
    characters = dropped = kept = 0
    for item in items:
        if isinstance(item, Row):
            window.append(item)
            kept += 1
            characters += item.characters
        elif skip_bad_rows:
            dropped += 1
        else:
            yield window
            raise InputError(f"{name}:{item.line}: {item.message} (--skip-bad-rows drops such rows)")
        if len(window) == size or characters >= CHARACTERS:
            yield window
            window, characters = [], 0
    yield window
    if dropped and not kept:
        raise InputError(f"{name}: all {counted(dropped, 'row')} are bad, and dropped")
    if dropped:
        print(f"{name}: dropped {counted(dropped, 'bad row')}", file=sys.stderr)


def _write(model: Predictor, task: Task, windows: Iterable[list[Row]], file: TextIO) -> None:
    writer = tab_separated(file)
    writer.writerow(["id", task.label, *class_columns(task)])
    for rows in windows:
        logits = model.logits(task.name, [row.texts for row in rows])
        values = task.kind.decode(logits).tolist()
        of_classes: list[list[float]] = [[]] * len(rows)
        if task.kind.probabilities is not None:
            of_classes = task.kind.probabilities(logits).tolist()
        for row, value, probabilities in zip(rows, values, of_classes, strict=True):
            writer.writerow([row.id, value, *map(six_places, probabilities)])
        file.flush()
