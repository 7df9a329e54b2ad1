"""Write the assignment: the library with the parts emptied, what checks them, and the handout."""

from __future__ import annotations

import configparser
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from assignment.blanking import Drift, blanked, planted, without
from assignment.parts import EXERCISES, Exercise
from checks import probes
from checks.judging import FIRST_SEED, RECORD, TODO, Known, Part, recognise, record_to_files, run
from checks.submission import GIVEN, PACKAGES, digests
from minbert.errors import InputError
from minbert.files import partial_path, rename, write_tensors, write_text
from minbert.sanity import REFERENCE

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc")


def make(target: Path) -> None:
    """Write the assignment into a new folder. Raises InputError if there is something in it already, and
    Drift if the table of parts does not fit the library."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is there already; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(target)
    try:
        partial.mkdir()
        write_folder(partial)
        if target.exists():
            target.rmdir()
        rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_folder(folder: Path) -> None:
    """Write everything that the assignment holds into an empty folder."""
    write_packages(folder)
    write_checks(folder)
    recorded = record(EXERCISES, FIRST_SEED)
    check_that_mistakes_differ(recorded)
    text, numbers = record_to_files(recorded)
    write_text(folder / "checks" / f"{RECORD}.json", text)
    write_tensors(folder / "checks" / f"{RECORD}.safetensors", numbers)
    to_fill = {exercise.path.as_posix() for exercise in EXERCISES}
    given = {name: digest for name, digest in digests(folder).items() if name not in to_fill}
    write_text(folder / "checks" / GIVEN, json.dumps(given, indent=1))
    for name in ("check.py", "submit.py"):
        shutil.copyfile(HERE / name, folder / name)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    (folder / "tests").mkdir()
    shutil.copyfile(REFERENCE, folder / REFERENCE.relative_to(ROOT))
    write_text(folder / "requirements.txt", requirements())
    write_text(folder / "README.md", handout())


def write_packages(folder: Path) -> None:
    """Copy the two packages with every part emptied, and the weights that come with them."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=NOT_COPIED)
    for exercise in EXERCISES:
        if exercise.functions:
            path = folder / exercise.path
            write_text(path, emptied(path.read_text(encoding="utf-8"), exercise))
    shutil.copytree(ROOT / "weights" / "tiny", folder / "weights" / "tiny")
    shutil.copyfile(ROOT / "weights" / "README.md", folder / "weights" / "README.md")


def write_checks(folder: Path) -> None:
    """Copy the package that runs and judges the parts."""
    shutil.copytree(ROOT / "tools" / "checks", folder / "checks", ignore=NOT_COPIED)


def emptied(source: str, exercise: Exercise) -> str:
    """Return the source of a part's file with its functions emptied. Raises Drift if one is not there."""
    try:
        for name in exercise.functions:
            source = blanked(source, name, f"{TODO} {exercise.name}")
        for name in exercise.removed:
            source = without(source, name)
    except Drift as error:
        raise Drift(f"part {exercise.name}, {exercise.path}: {error}") from None
    return source


def record(exercises: Sequence[Exercise], seed: int) -> dict[Part, Known]:
    """Return what the library computes in each part, and what it would with each mistake. Raises Drift if it
    fails in a part."""
    found = {}
    for exercise in exercises:
        with own_weights(), np.errstate(all="ignore"):
            right = run(exercise.name, seed)
            if right.stopped or right.to_do:
                raise Drift(f"part {exercise.name}: the library fails: {' '.join(right.stopped)}")
            made = {}
            for mistake in exercise.mistakes:
                with planted(exercise.path, mistake.function, mistake.old, mistake.new):
                    made[mistake.text] = run(exercise.name, seed).steps
        found[exercise.part] = Known(right.steps, made, right.steps.axes)
    return found


def check_that_mistakes_differ(record: Mapping[Part, Known]) -> None:
    """Raise Drift if a mistake changes nothing, or would be taken for another."""
    for part, known in record.items():
        for text, steps in known.mistakes.items():
            named = recognise(steps, known)
            if named != text:
                raise Drift(f"part {part.name}: the mistake {text!r} would be taken for {named!r}")


@contextmanager
def own_weights() -> Iterator[None]:
    """A context in which the probes take the tiny checkpoint of this repository."""
    before = probes.TINY
    probes.TINY = ROOT / "weights" / "tiny"
    try:
        yield
    finally:
        probes.TINY = before


def requirements() -> str:
    """Return what the packages need, at the versions of tools/constraints.txt where that names one."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = [*settings["options"]["install_requires"].split(), "matplotlib>=3.9"]
    constraints = (ROOT / "tools" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0]: line for line in constraints if "==" in line}
    lines = [pinned.get(line.split(">=")[0], line) for line in needed]
    return "".join(f"{line}\n" for line in lines)


def handout() -> str:
    """Return the handout, in Markdown: its text, with the table and the sections of the parts."""
    rows = [
        f"| `{exercise.name}` | {exercise.title} | {places(exercise)} | {exercise.points or ''} |"
        for exercise in EXERCISES
    ]
    table = ["| part | what it is | to fill in | points |", "|---|---|---|---|", *rows]
    total = sum(exercise.points for exercise in EXERCISES)
    sections = [
        f"### {exercise.title}\n\n`python check.py {exercise.name}`"
        + (f", {exercise.points} points: {places(exercise)}" if exercise.functions else "")
        + f"\n{exercise.about.rstrip()}\n"
        for exercise in EXERCISES
    ]
    text = (HERE / "handout.md").read_text(encoding="utf-8")
    for name, value in {"table": "\n".join(table), "total": str(total), "parts": "\n".join(sections)}.items():
        if text.count(f"{{{name}}}") != 1:
            raise Drift(f"handout.md: needs exactly one {{{name}}}")
        text = text.replace(f"{{{name}}}", value)
    return text


def places(exercise: Exercise) -> str:
    names = ", ".join(f"`{name}`" for name in exercise.functions)
    return f"{names} in `{exercise.path.as_posix()}`" if names else "nothing"
