"""Grade submissions: run each in processes of its own, and compare its numbers with the library's.

A submission's code can write what it likes into its answers, but only the right numbers gain anything: the
inputs are drawn anew for each grading, the right numbers exist in this process alone, and the comparison is
made here. What this does not do is confine the code: it runs with the rights of whoever grades, and may read
their files and use the network. docs/teaching.md says what to do about that.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from assignment.making import HERE, write_checks, write_packages
from checks.judging import PASSES, TO_DO, Known, Outcome, Part, Verdict, check, report
from checks.predictions import Expected, problems
from checks.probes import Steps
from checks.submission import PREDICTIONS, Refused, unpack
from minbert.errors import short_line, visible
from minbert.files import write_bytes

STARTING = 120  # seconds that importing torch may take
LARGEST_ANSWER = 1 << 20  # bytes; the largest part's take a tenth of that
LARGEST_WRITTEN = 8 << 20  # bytes of any file that a submission writes
OPEN_FILES = 256
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so would be computed by a spreadsheet


@dataclass(frozen=True)
class Limits:
    """What the parts of a submission may use."""

    seconds: int  # for a part
    memory: int  # bytes of address space, of which torch alone maps some GiB


@dataclass(frozen=True)
class Grade:
    """A submission's row in the table."""

    name: str
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)  # by part
    predictions: str = ""  # "6 of 6", or what is wrong with the first
    refused: str = ""  # why nothing was run

    def points(self, part: Part) -> int:
        return part.points if self.verdicts.get(part.name, Verdict(TO_DO)).state == PASSES else 0


def grade(source: Path, record: Mapping[Part, Known], seed: int, expected: Expected, limits: Limits) -> Grade:
    """Grade one zip. `record` is what the library computes with this seed; `expected` are the prediction
    files."""
    try:
        files = unpack(source)
    except Refused as reason:
        return Grade(source.stem, refused=str(reason))
    with tempfile.TemporaryDirectory(prefix="minbert-grade-") as place:
        folder, answers = Path(place) / "work", Path(place) / "answers"
        folder.mkdir()
        answers.mkdir()
        write_work(folder, files)
        outcomes = run_parts(folder, answers, [part.name for part in record], seed, limits)
    verdicts = {part.name: verdict for part, verdict in check(record, outcomes, outcomes.__getitem__)}
    return Grade(source.stem, verdicts, judge_predictions(files, expected))


def write_work(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the assignment, every part emptied, and over it the code of a submission."""
    write_packages(folder)
    write_checks(folder)
    shutil.copyfile(HERE / "answer.py", folder / "answer.py")
    for name, content in files.items():
        if not name.startswith(f"{PREDICTIONS}/"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            write_bytes(path, content)


def run_parts(
    folder: Path, answers: Path, parts: Sequence[str], seed: int, limits: Limits
) -> dict[str, Outcome]:
    """Return what each part computes. A process runs the parts in turn; if one of them ends it, or takes too
    long, another process goes on behind that part."""
    found: dict[str, Outcome] = {}
    left = list(parts)
    while left:
        ended = run_process(folder, answers, left, seed, limits)
        while left and (answers / f"{left[0]}.safetensors").exists():
            part = left.pop(0)
            found[part] = read_answer(answers / f"{part}.safetensors")
        if left:
            found[left.pop(0)] = Outcome(Steps(), (ended,))
    return found


def run_process(folder: Path, answers: Path, parts: Sequence[str], seed: int, limits: Limits) -> str:
    """Run these parts until all have answered, or one takes too long. Return how it ended, in words."""
    (answers / "started").unlink(missing_ok=True)
    command = [sys.executable, "-s", "answer.py", str(seed), str(answers), *parts]
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "MINBERT_CACHE": str(folder),
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: confine(limits, len(parts)),
    )
    try:
        expected = ("started", *(f"{part}.safetensors" for part in parts))
        signs, deadline = 0, time.monotonic() + STARTING
        while process.poll() is None:
            time.sleep(0.05)
            seen = sum((answers / name).exists() for name in expected)
            if seen > signs:
                signs, deadline = seen, time.monotonic() + limits.seconds
            if time.monotonic() > deadline:
                return f"took longer than {limits.seconds} seconds"
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    status = process.returncode
    return f"ended the process by signal {-status}" if status < 0 else f"ended the process, status {status}"


def confine(limits: Limits, parts: int) -> None:
    """Limit what this process and its children may use, each. Not on Windows, which has no such limits."""
    import resource

    for what, most in (
        (resource.RLIMIT_CPU, STARTING + limits.seconds * parts),
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_FSIZE, LARGEST_WRITTEN),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # macOS has no limit on memory
            resource.setrlimit(what, (most, most))


def read_answer(path: Path) -> Outcome:
    """Return what a part has noted, from a file that the submission may have written itself."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_ANSWER:
            return Outcome(Steps(), ("its answers are no plain file, or too large",))
        steps = Steps()
        with safe_open(path, "pt") as file:
            for key in sorted(file.keys()):
                steps.note(key.partition("/")[2], file.get_tensor(key).double())
            said = file.metadata() or {}
    except Exception as error:  # whatever the readers of such files raise
        return Outcome(Steps(), (f"its answers cannot be read ({short_line(error)})",))
    stopped = [short_line(line) for line in visible(said.get("stopped", "")).splitlines()[:3]]
    return Outcome(steps, tuple(stopped), bool(said.get("to do")))


def judge_predictions(files: Mapping[str, bytes], expected: Expected) -> str:
    """Return how many prediction files are valid, and what is wrong with the first that is not."""
    wrong, good = [], 0
    for name, (task, ids) in expected.items():
        content = files.get(f"{PREDICTIONS}/{name}")
        found = [f"{name} is missing"] if content is None else list(problems(name, content, task, ids))
        wrong += found[:1]
        good += not found
    return f"{good} of {len(expected)}" + (f" ({wrong[0]})" if wrong else "")


# The table


def cells(grades: Iterable[Grade], parts: Sequence[Part]) -> list[list[str]]:
    """Return the table of a class: a header, and a row for each submission."""
    scored = [part for part in parts if part.points]
    rows = [["submission", *(part.name for part in scored), "total", "predictions"]]
    for one in grades:
        points = [one.points(part) for part in scored]
        note = f"refused: {one.refused}" if one.refused else one.predictions
        rows.append([one.name, *map(str, points), str(sum(points)), note])
    return rows


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Return the table in columns; the last is as long as it is."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    lines = []
    for first, *numbers, last in rows:
        middle = "  ".join(f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True))
        lines.append(f"{first:{widths[0]}}  {middle}  {last}".rstrip())
    return "\n".join(lines)


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Return the table as CSV, in which no cell is a formula."""
    text = io.StringIO()
    safe = ([f"'{cell}" if cell.startswith(FORMULA) else cell for cell in row] for row in rows)
    csv.writer(text, lineterminator="\n").writerows(safe)
    return text.getvalue()


def feedback(one: Grade, parts: Sequence[Part]) -> str:
    """Return what there is to say about each part of a submission, as check.py says it."""
    if one.refused:
        return f"refused: {one.refused}\n"
    lines = [line for part in parts for line in report(part, one.verdicts[part.name])]
    return "\n".join([*lines, f"predictions: {one.predictions}", ""])
