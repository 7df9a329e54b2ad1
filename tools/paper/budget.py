"""Scale a grid to a budget of minutes: measure a few updates, then scale the steps of all cells alike."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cells import Cell, Figure, PaperTable
from grid import Grid, weights_of_recipes
from minbert.errors import InputError
from multitask.command_line import resolve
from multitask.config import Config
from multitask.methods.sampling import FULL_PASS

if TYPE_CHECKING:
    from multitask.forecast import Cost

MARGIN = 0.9  # fraction of the budget to plan for: other work may slow the machine down


def within(
    minutes: float, name: str, targets: Mapping[str, PaperTable | Figure], grid: Grid
) -> tuple[Grid, str]:
    """Return the grid scaled to the budget, and a note on this for the reader of the page.

    A scaled grid has its own folder, whose plan.json later calls read instead of measuring again. Targets
    with the same cells share it.
    """
    cells = targets[name].cells
    first = next(other for other, target in targets.items() if set(target.cells) == set(cells))
    seeds = f"-seeds-{len(grid.seeds)}" if len(grid.seeds) > 1 else ""
    folder = grid.out / f"{first}-budget-{minutes:g}{seeds}"
    source = {"data": grid.data, "weights": grid.weights}
    path = folder / "plan.json"
    if not path.is_file():
        found = source | plan(minutes, grid, cells)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sizes, note, before = found["sizes"], found["note"], {key: found[key] for key in source}
        if sizes and not {cell.name for cell in cells if cell.trains} <= sizes.keys():
            raise KeyError
    except (ValueError, KeyError):
        raise InputError(
            f"{path}: not a plan of these cells; delete it and the runs beside it to make a new one"
        ) from None
    if before != source:
        raise InputError(f"{path}: made with a different --data or --weights; choose another --out")
    return replace(grid, out=folder if sizes else grid.out, sizes=sizes), note


def plan(minutes: float, grid: Grid, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the `sizes` of the cells, empty if the whole grid fits, and a `note` on them."""
    started = time.perf_counter()
    costs, averaging = measure_cells(grid, cells)
    spent = time.perf_counter() - started
    seconds = MARGIN * 60 * minutes - spent
    whole = sum(cost.seconds() * (len(grid.seeds) - len(grid.done(cell))) for cell, cost in costs.items())
    if whole + averaging <= seconds:
        return {"sizes": {}, "note": f"The whole grid fits into {minutes:g} minutes: nothing is scaled."}
    before, after = [*costs.values()], scaled([*costs.values()], (seconds - averaging) / len(grid.seeds))
    fraction = sum(map(updates, after)) / sum(map(updates, before))
    note = (
        f"Scaled to {fraction:.2%} of the paper's steps, to fit into {minutes:g} minutes (all of them: about "
        f"{whole / 3600:,.1f} hours): these figures show that the methods run, not what they achieve."
    )
    epochs = {one.epochs: two.epochs for one, two in zip(before, after, strict=True)}
    if any(one != two for one, two in epochs.items()):
        note += f" Fewer epochs too: {', '.join(f'{two} of {one}' for one, two in sorted(epochs.items()))}."
    idle: dict[str, list[str]] = {}  # rule: the cells that are too short for it
    for cell, one, two in zip(costs, before, after, strict=True):
        for rule in idle_rules(config_of(cell, grid), two.epochs, two.steps_per_epoch, one.steps_per_epoch):
            idle.setdefault(rule, []).append(cell.name)
    if idle:
        listed = "; ".join(f"{rule} ({', '.join(names)})" for rule, names in idle.items())
        note += f" Too short for a rule to take effect: {listed}."
    needed = len(grid.seeds) * sum(cost.seconds() for cost in after) + averaging
    if needed > seconds:
        least = f"about {needed / 60:.1f} minutes, after {spent / 60:.1f} of measuring"
        note += f" Even the smallest grid takes longer: {least}."
    sizes = {
        cell.name: {"epochs": cost.epochs, "steps_per_epoch": cost.steps_per_epoch}
        for cell, cost in zip(costs, after, strict=True)
    }
    return {"sizes": sizes, "note": note}


def idle_rules(config: Config, epochs: int, steps_per_epoch: int, whole_pass: int) -> Iterator[str]:
    """Yield each rule that a run of this size is too short for, with the least size that it needs.

    `whole_pass` is the number of updates in an epoch before scaling.
    """
    updates = epochs * steps_per_epoch
    if config.training.schedule == "halve-on-rise" and epochs < 5:
        yield "halve-on-rise acts from epoch 5 on"  # three rises take the losses of four epochs
    if config.batches.sampling == "annealed" and epochs < 2:
        yield "annealing needs 2 epochs"
    if config.bppo.weight and len(config.bppo.betas) > 1 and updates < 10:
        yield "beta changes after a tenth of at least 10 updates"
    if (
        config.batches.sampling == FULL_PASS
        and config.training.steps_per_epoch is None
        and updates < whole_pass
    ):
        yield f"a full pass takes {whole_pass:,} updates, not {updates:,}"


def scaled(costs: Sequence[Cost], seconds: float) -> list[Cost]:
    """Return the costs with fewer epochs and steps, so that together they take these seconds.

    Starting the runs comes first. Evaluations may take half of the time left, and the epochs of all cells are
    scaled by one factor to fit; updates get the rest, and the steps of all cells are scaled by another. No
    cell gets fewer than 2 epochs of one step, even if the total is then longer.
    """
    left = seconds - sum(replace(cost, epochs=0).seconds() for cost in costs)
    fraction = left / 2 / sum(cost.epochs * cost.evaluation for cost in costs)
    costs = [replace(cost, epochs=shrunk(cost.epochs, fraction, 2)) for cost in costs]
    left -= sum(cost.epochs * cost.evaluation for cost in costs)
    fraction = left / sum(updates(cost) * cost.update for cost in costs)
    return [replace(cost, steps_per_epoch=shrunk(cost.steps_per_epoch, fraction, 1)) for cost in costs]


def shrunk(count: int, fraction: float, least: int) -> int:
    return min(count, max(least, int(fraction * count)))


def updates(cost: Cost) -> int:
    return cost.epochs * cost.steps_per_epoch


def config_of(cell: Cell, grid: Grid) -> Config:
    config = resolve(grid.job(cell, grid.seeds[0]).words)
    assert isinstance(config, Config)
    return config


def measure_cells(grid: Grid, cells: Sequence[Cell]) -> tuple[dict[Cell, Cost], float]:
    """Return the cost of each training run on this machine, and the seconds that the ensembles take.

    Cells whose updates do the same work are measured once, all from the pretrained weights.
    """
    from multitask.forecast import measure  # imports torch

    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import multitask.jobs"], check=True)
    process = time.perf_counter() - started
    tried: dict[tuple, Cost] = {}
    costs: dict[Cell, Cost] = {}
    for cell in filter(lambda cell: cell.trains, cells):
        start = {"init": None, "weights": grid.weights or weights_of_recipes()}
        config = config_of(cell, grid).changed(**start)
        training, batches = config.training, config.batches
        regularised = (config.smart.weight > 0, config.bppo.weight > 0)
        batch = (batches.batch_size, batches.max_tokens, config.mnrl.groups)
        whole = training.steps_per_epoch is None
        kind = (config.option, batches.sampling, whole, *batch, *regularised)
        if kind not in tried:
            print(f"measuring {cell.name}", flush=True)
            tried[kind] = measure(config)
        cost = tried[kind]
        steps = training.steps_per_epoch or cost.steps_per_epoch
        costs[cell] = replace(cost, start=process + cost.start, epochs=training.epochs, steps_per_epoch=steps)
    members = [costs[need] for cell in cells if not cell.trains for need in cell.needs]
    return costs, len(grid.seeds) * sum(cost.start + 3 * cost.evaluation for cost in members)  # dev and test
