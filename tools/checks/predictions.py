r"""Prediction files in the course's format, checked against the tables that they answer.

    id \t Predicted_Sentiment
    e887e4b90d46f0964bd02ceb5 , 4

There is a file for each task and split, such as sst-dev-output.csv, with a line for each row of the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from checks.submission import LARGEST_FILE
from minbert.errors import InputError, counted, shown
from minbert.reading import open_regular
from multitask.data.tables import read_split
from multitask.data.tasks import BUILT_IN, Task

SPLITS = {"dev": "dev", "test-student": "test"}  # what a split is called in the name of its file
TRAIN = "python -m multitask.run --option finetune"
EVALUATE = "python -m multitask.run --option evaluate --run RUN"
REPORTED = 20  # problems listed in one message


Expected = Mapping[str, tuple[Task, list[str]]]  # by the name of a file: the task, and the ids of the rows


def expected_files(data: Path) -> Expected:
    """Return, by the name of each prediction file, the task and the ids of the rows in its table. Raises
    InputError if the tables in the folder cannot be read."""
    found = {}
    for split, short in SPLITS.items():
        for name, table in read_split(data, split, BUILT_IN, skip_bad_rows=False).items():
            task = BUILT_IN[name]
            found[f"{task.submission}-{short}-output.csv"] = task, list(table.ids)
    if not found:
        raise InputError(f"{data}: holds no dev or test tables of {', '.join(BUILT_IN)}")
    return found


def problems(name: str, content: bytes, task: Task, ids: list[str]) -> Iterator[str]:
    """Yield what is wrong with a prediction file, each as one line that names the place and the remedy."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        yield f"{name}: not UTF-8 (byte {error.start + 1}); save the file as UTF-8"
        return
    header = lines[0].split() if lines else []
    if header != ["id", task.header]:
        yield f"{name}:1: the header is {shown(' '.join(header))}; write: id \\t {task.header}"
        return
    wanted = {*ids}
    seen: dict[str, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.rsplit(",", 1)]
        if len(parts) != 2:
            yield f"{name}:{number}: has no comma; a line is: id , value"
            continue
        row_id, value = parts
        if row_id in seen:
            yield f"{name}:{number}: id {shown(row_id)} was answered in line {seen[row_id]}; keep one of them"
        elif row_id not in wanted:
            yield f"{name}:{number}: id {shown(row_id)} is not in the table; is this another split's?"
        seen.setdefault(row_id, number)
        if problem := wrong_value(value, task):
            yield f"{name}:{number}: {problem}"
    if missing := [row_id for row_id in ids if row_id not in seen]:
        missed = f"{counted(len(missing), 'row')} of {len(ids):,} not answered"
        yield f"{name}: {missed}, the first {shown(missing[0])}"


def wrong_value(value: str, task: Task) -> str:
    """Return what is wrong with a prediction, or "" if nothing is."""
    try:
        number = float(value.replace("_", "?"))  # Python would read 1_0 as 10
    except ValueError:
        return f"{shown(value)} is not a number"
    if task.classes:
        is_class = number in range(task.classes)
        return "" if is_class else f"{shown(value)} is none of the classes 0 to {task.classes - 1}"
    return "" if math.isfinite(number) else f"{shown(value)} is not finite"


def read_predictions(folder: Path, expected: Expected) -> dict[str, bytes]:
    """Return the prediction files in a folder. Raises InputError with a list of all that is wrong."""
    files: dict[str, bytes] = {}
    found: list[str] = []
    missing = False
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; train first ({TRAIN}), and name the run's")
    if not any((folder / name).exists() for name in expected):
        advice = f"name a run's, which {TRAIN} makes, and {EVALUATE} completes"
        raise InputError(f"{folder}: holds no prediction files; {advice}")
    for name, (task, ids) in expected.items():
        try:
            with open_regular(folder / name) as file:
                files[name] = file.read(LARGEST_FILE + 1)
        except OSError as error:
            found.append(f"{folder / name}: {error.strerror}")
            missing = True
            continue
        found += problems(str(folder / name), files[name], task, ids)
    if found:
        more = [f"and {len(found) - REPORTED} more"] if len(found) > REPORTED else []
        if missing:
            more.append(f"write what is missing with {EVALUATE}")
        raise InputError("\n".join(["the predictions are not complete:", *found[:REPORTED], *more]))
    return files
