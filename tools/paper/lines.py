"""The rows of docs/results.md: which recorded cells its tables show, and what each is compared with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A row: a cell of runs, and the cell that it builds on.

    With `members`, it is their average: seed by seed, the mean of these cells' outputs.
    """

    title: str
    cell: str
    builds_on: str | None = None
    members: tuple[str, ...] = ()
    in_readme: bool = True


METHODS = (
    Line("baseline: tasks in turn", "baseline-equal-updates-5x"),
    Line("baseline + SMART", "baseline-smart-ball-5x", "baseline-equal-updates-5x"),
    Line("annealed", "annealed-5x", "baseline-equal-updates-5x"),
    Line("annealed + SMART", "annealed-smart-ball-5x", "annealed-5x"),
    Line("MNRL + annealed + SMART", "mnrl-annealed-smart-ball-5x", "annealed-smart-ball-5x"),
    Line("the same, trained on (mu = 0)", "mnrl-control-ball-5x", "mnrl-annealed-smart-ball-5x"),
    Line("MNRL + BPPO (mu 1, beta .75)", "mnrl-bregman-ball-5x", "mnrl-control-ball-5x"),
    Line(
        "MNRL + BPPO (mu 3, beta .99:.999)",
        "mnrl-bregman-strong-ball-5x",
        "mnrl-control-ball-5x",
        in_readme=False,
    ),
)
LINES = (
    *METHODS,
    Line(
        "ensemble of the rows above",
        "ensemble-of-rows",
        "mnrl-bregman-ball-5x",
        members=tuple(line.cell for line in METHODS),
        in_readme=False,
    ),
    Line("ensemble of --recipe best", "recipe-ensemble", "ensemble-of-rows", in_readme=False),
    Line("the best ensemble", "best-ensemble", "ensemble-of-rows"),
    Line("student of an ensemble", "student", "mnrl-bregman-ball-5x", in_readme=False),
    Line("student of --recipe best", "recipe-student", "mnrl-bregman-ball-5x", in_readme=False),
    Line("student of nine specialists", "student-of-nine", "student"),
    Line("student of eight, on a GPU", "student-of-eight", "student", in_readme=False),
    Line("student of eight, on a CPU", "student-of-eight-cpu", "student", in_readme=False),
    Line("baseline, full passes", "baseline-full-pass-5x", "baseline-equal-updates-5x", in_readme=False),
)

SMALL: dict[str, tuple[Line, ...]] = {
    "imbalance": (
        Line("tasks in turn", "tenth-turns"),
        Line("annealed", "tenth-annealed", "tenth-turns"),
        Line("proportional", "tenth-proportional", "tenth-turns"),
    ),
    "norms": (
        Line("ball, p = inf", "small-inf"),
        Line("ball, p = 2", "small-two", "small-inf"),
        Line("normalize", "small-normalize", "small-inf"),
        Line("without SMART", "small-annealed", "small-inf"),
    ),
    "lambdas": (
        Line("lambda 1.5", "small-inf"),
        Line(".5", "small-lambda-05", "small-inf"),
        Line("5", "small-lambda-5", "small-inf"),
        Line("15", "small-lambda-15", "small-inf"),
    ),
    "batches": (
        Line("16 rows, 200 updates an epoch", "small-annealed"),
        Line("16 rows, 100", "small-16x100", "small-annealed"),
        Line("8 rows, 200", "small-8x200", "small-annealed"),
        Line("8 rows, 400", "small-8x400", "small-annealed"),
    ),
    "base": (
        Line("mu 0", "small-base-control"),
        Line("mu .3, beta .75", "small-base-bregman", "small-base-control"),
        Line("mu 3, beta .3", "small-base-strong", "small-base-control"),
    ),
    "after": (
        Line("4 epochs at 5e-6, mu 0", "mnrl-control-ball-5x"),
        Line("mu 3, beta .99:.999", "mnrl-bregman-strong-ball-5x", "mnrl-control-ball-5x"),
        Line("mu 1, beta .9", "small-after-mnrl-beta", "mnrl-control-ball-5x"),
        Line("mu 1, beta .75", "mnrl-bregman-ball-5x", "mnrl-control-ball-5x"),
        Line("the same, 25 epochs at 5e-7", "small-after-mnrl", "mnrl-control-ball-5x"),
    ),
    "epochs": (
        Line("15 epochs", "small-15-epochs"),
        Line("25", "small-25-epochs", "small-15-epochs"),
        Line("50", "small-50-epochs", "small-15-epochs"),
    ),
    "longer": (
        Line("lambda 1.5", "small-long-1"),
        Line("5", "small-long-5", "small-long-1"),
        Line("15", "small-long-15", "small-long-1"),
    ),
    "precision": (
        Line("bf16, CPU", "baseline-equal-updates-5x"),
        Line("float32, CPU", "baseline-float32", "baseline-equal-updates-5x"),
        Line("float32, GPU", "baseline-float32-gpu", "baseline-equal-updates-5x"),
    ),
}
