"""Turn the cells of the paper's tables into commands of `multitask.run`, and run them."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from cells import Cell, Figure, PaperTable, as_text, in_order
from multitask.config import flag
from multitask.layout import RESULT
from multitask.recipes import read_recipe, recipe_path


@dataclass(frozen=True)
class Job:
    """A command of `multitask.run`, and the run's folder.

    `product` exists once the command is done; `needs` must exist before it starts.
    """

    words: list[str]
    run: Path
    product: Path
    needs: list[Path]

    def __str__(self) -> str:
        after = f"  # after {' '.join(str(need.parent) for need in self.needs)}" if self.needs else ""
        return shlex.join(["python", "-m", "multitask.run", *self.words]) + after


@dataclass(frozen=True)
class Grid:
    """Where and with what cells run. A scaled grid has `sizes`: epochs and steps_per_epoch of each cell."""

    out: Path
    data: str | None = None
    weights: str | None = None
    seeds: Sequence[int] = (0,)
    machine: Sequence[str] = ()  # flags for every command
    precision: str | None = None  # of the model's computations
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def run(self, cell: Cell, seed: int) -> Path:
        return self.out / cell.name / f"seed-{seed}"

    def done(self, cell: Cell) -> list[Path]:
        """Return the runs of a cell that are finished."""
        return [self.run(cell, seed) for seed in self.seeds if self.finished(cell, seed)]

    def finished(self, cell: Cell, seed: int) -> bool:
        return (self.run(cell, seed) / RESULT).exists()

    def job(self, cell: Cell, seed: int) -> Job:
        """Return the job of a cell. Training resumes what it finds, so its command may be repeated."""
        run, needs = self.run(cell, seed), [self.run(need, seed) for need in cell.needs]
        words = ["--recipe", cell.recipe]
        for name, value in {**dict(cell.settings), **self.sizes.get(cell.name, {})}.items():
            words += [flag(name), as_text(value)]
        if not cell.trains:
            words += ["--or-best", "--run", *map(str, needs)]
        elif needs:
            words += ["--init", *map(str, needs)]
        elif self.weights:
            words += ["--weights", self.weights]
        if cell.trains:
            words += ["--seed", str(seed), "--no-report", "--resume"]
        if self.precision:
            words += ["--precision", self.precision]
        words += [*self.common, "--out", str(run)]
        return Job(words, run, run / RESULT, [need / RESULT for need in needs])

    def report(self, figure: Figure, seed: int) -> Job:
        run = self.run(figure.cell, seed)
        words = ["--option", "report", "--run", str(run), *self.common]
        return Job(words, run, run / "figures" / f"{figure.file}.png", [run / RESULT])

    @property
    def common(self) -> list[str]:
        return [*(["--data", self.data] if self.data else []), *self.machine]


def pooled(table: PaperTable, tables: Iterable[PaperTable], grid: Grid) -> PaperTable:
    """Return the table with ensembles that choose from more models.

    These are all models of this table, and those of the other tables that are finished with every seed. The
    name of an ensemble's folder identifies the choice.
    """
    own = set(table.cells)
    members = [
        one
        for one in in_order(chain(*(other.cells for other in tables)))
        if one.said["option"] == "finetune" and (one in own or len(grid.done(one)) == len(grid.seeds))
    ]
    rows = tuple(
        row if row.cell.trains else replace(row, cell=_averaging(row.cell, members)) for row in table.rows
    )
    return replace(table, rows=rows)


def _averaging(ensemble: Cell, members: Sequence[Cell]) -> Cell:
    names = " ".join(sorted(one.name for one in members))
    digest = hashlib.sha256(names.encode()).hexdigest()[:8]
    return replace(ensemble, needs=tuple(members), mark=f"of-{len(members)}-{digest}")


def jobs_of(target: PaperTable | Figure, grid: Grid) -> list[Job]:
    """Return the jobs of a target, each after the jobs that it needs."""
    cells = [grid.job(cell, seed) for cell in target.cells for seed in grid.seeds]
    reports = [grid.report(target, seed) for seed in grid.seeds] if isinstance(target, Figure) else []
    return cells + reports


def carry_out(jobs: Sequence[Job]) -> int:
    """Run the unfinished jobs one by one; skip those whose needs failed. Return how many are unfinished."""
    failed = 0
    for number, job in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {job.run} ... ", end="", flush=True)
        missing = [str(need.parent) for need in job.needs if not need.exists()]
        if job.product.exists():
            print("done before")
        elif missing:
            print(f"not run, missing {', '.join(missing)}")
        else:
            print(execute(job), flush=True)
        failed += not job.product.exists()
    return failed


def execute(job: Job) -> str:
    """Run the command with its output in the run's log.txt, and return a short report."""
    job.run.mkdir(parents=True, exist_ok=True)
    path, started = job.run / "log.txt", time.perf_counter()
    with path.open("ab") as log:
        command = [sys.executable, "-m", "multitask.run", *job.words]
        status = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if status == 0:
        return f"{time.perf_counter() - started:.0f} s"
    last = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"failed with status {status} ({' '.join(last)}), see {path}"


def weights_of_recipes() -> str:
    return read_recipe(recipe_path("baseline"))["weights"]
