"""Predictions for a stream of texts: rows in, rows out, in order and in constant memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat

from tqdm import tqdm

from minbert.errors import InputError, counted
from minbert.tokenizer import CHARACTERS
from multitask.data.formats import Problem
from multitask.data.tables import Row, parse_texts
from multitask.data.tasks import Task
from multitask.messages import progress_bar
from multitask.output import Answering
from multitask.predictor import Predictor
from multitask.streams import Input, open_input, open_output

WINDOW = 1024  # rows read, sorted by length, predicted and written at a time


def predict(
    model: Predictor, task: Task, source: str, target: str, skip_bad_rows: bool, force: bool = False
) -> None:
    """Read texts from a file or `-`; write ids, predictions and class probabilities.

    The input is a table that names the task's text columns (an id column is copied to the output), or plain
    lines: one sentence each, or two separated by a tab. Lines that arrive one by one are answered one by one.
    The output's ending says whether it is tab-separated, CSV or JSON lines; it appears under its name once it
    is complete. Prints how many texts were cut. Raises InputError if a file cannot be read or written, if the
    output exists, unless `force` replaces it, or at a bad row, unless `skip_bad_rows` drops it.
    """
    rows = cut = 0
    with (
        open_input(source) as given,
        open_output(target, force) as file,
        _bar(given, task, target) as bar,
    ):
        lines = _without_blank_end(_measured(given.lines(), bar))
        items = parse_texts(lines, given.name, task)
        answering = Answering(file, target, task)
        for window in _windows(items, given.name, given.ready, skip_bad_rows):
            texts = [row.texts for row in window]
            answering.write(
                [row.id for row in window], model.answers(task.name, model.logits(task.name, texts))
            )
            file.flush()
            rows, cut = rows + len(window), cut + sum(model.are_cut(task.name, texts))
    if cut:
        limit = "longer than the model reads, and cut"
        print(f"{given.name}: {cut:,} of {counted(rows, 'text')} {limit}", file=sys.stderr)


def _bar(given: Input, task: Task, target: str) -> tqdm:
    """Return a progress bar, unless the texts come one by one or the answers themselves are seen."""
    seen = target == "-" and sys.stdout.isatty()
    shown = given.size is not None and not seen
    return progress_bar(total=given.size, unit="B", unit_scale=True, desc=task.name, shown=shown)


def _measured(lines: Iterable[bytes], bar: tqdm) -> Iterator[bytes]:
    for line in lines:
        bar.update(len(line))
        yield line


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
    items: Iterable[Row | Problem], name: str, ready: Callable[[], bool], skip_bad_rows: bool
) -> Iterator[list[Row]]:
    """Yield good rows: `WINDOW` at a time, or fewer long ones, or those that are there when the next one is
    not yet `ready`. At a bad one, yield the rows before it, then raise InputError."""
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
            if window:
                yield window
            raise InputError(f"{name}:{item.line}: {item.message} (--skip-bad-rows drops such rows)")
        if len(window) == WINDOW or characters >= CHARACTERS or not ready():
            yield window
            window, characters = [], 0
    yield window
    if dropped and not kept:
        raise InputError(f"{name}: all {counted(dropped, 'row')} are bad, and dropped")
    if dropped:
        print(f"{name}: dropped {counted(dropped, 'bad row')}", file=sys.stderr)
