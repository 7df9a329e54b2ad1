"""Which task each update trains and which rows it takes: a function of (seed, step), so nothing has to be
saved.

Annealed sampling (Stickland & Murray 2019, https://arxiv.org/abs/1902.02671) chooses task i of N_i rows in
epoch e of E with p_i proportional to N_i ** alpha, alpha = 1 - 0.8 (e - 1) / (E - 1): by size at first,
evenly at last.

An epoch is `steps_per_epoch` updates, not a pass over the data. One task per update. Each task walks through
its own rows in shuffled passes, and every pass is shuffled anew.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np


def random_generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The one source of randomness: the same numbers for the same seed, purpose and position."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def random_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for torch, from the same source."""
    return int(random_generator(seed, purpose, *numbers).integers(2**63))


def annealed_alpha(epoch: int, epochs: int) -> float:
    """alpha = 1 - 0.8 (e - 1) / (E - 1), with e from 1; 1 where there is one epoch (Stickland & Murray
    2019)."""
    return 1.0 if epochs == 1 else 1 - 0.8 * (epoch - 1) / (epochs - 1)


def task_probabilities(sizes: Sequence[int], alpha: float) -> np.ndarray:
    """p_i proportional to N_i ** alpha; `sizes` are the tasks' numbers of rows."""
    weights = np.asarray(sizes, dtype=np.float64) ** alpha
    return weights / weights.sum()


# How a task is chosen: alpha as a function of (epoch, epochs). Round-robin takes the tasks in turn instead.
ALPHAS: dict[str, Callable[[int, int], float]] = {
    "proportional": lambda epoch, epochs: 1.0,
    "sqrt": lambda epoch, epochs: 0.5,
    "annealed": annealed_alpha,
    "uniform": lambda epoch, epochs: 0.0,
}


def epoch_probabilities(sampling: str, sizes: Sequence[int], epoch: int, epochs: int) -> np.ndarray:
    """How often each task comes in an epoch, as shares of its updates."""
    alpha = 0.0 if sampling == "round-robin" else ALPHAS[sampling](epoch, epochs)
    return task_probabilities(sizes, alpha)


def epoch_tasks(
    sampling: str, sizes: Sequence[int], epoch: int, epochs: int, steps: int, seed: int
) -> np.ndarray:
    """The task of every update of an epoch: in turn from one epoch into the next, or drawn."""
    if sampling == "round-robin":
        return np.arange((epoch - 1) * steps, epoch * steps) % len(sizes)
    probabilities = epoch_probabilities(sampling, sizes, epoch, epochs)
    return random_generator(seed, "tasks", epoch).choice(len(sizes), size=steps, p=probabilities)


def shuffled_rows(seed: int, task: int, size: int, start: int, count: int) -> np.ndarray:
    """Rows start..start+count of the endless walk through shuffled passes over `size` rows."""
    positions = np.arange(start, start + count)
    passes = positions // size
    return np.concatenate(
        [
            _pass(seed, task, size, int(number))[positions[passes == number] % size]
            for number in np.unique(passes)
        ]
    )


@lru_cache(maxsize=32)
def _pass(seed: int, task: int, size: int, number: int) -> np.ndarray:
    return random_generator(seed, "pass", task, number).permutation(size)


def task_order(
    sampling: str, sizes: Sequence[int], steps_per_epoch: int, epochs: int, seed: int
) -> np.ndarray:
    """The task of every update of a run."""
    return np.concatenate(
        [epoch_tasks(sampling, sizes, epoch, epochs, steps_per_epoch, seed) for epoch in range(1, epochs + 1)]
    )


def step_rows(
    order: np.ndarray, step: int, sizes: Sequence[int], rows_per_step: int, seed: int
) -> np.ndarray:
    """The rows of an update: those that follow the ones its task took in the updates before."""
    task = int(order[step])
    start = int((order[:step] == task).sum()) * rows_per_step
    return shuffled_rows(seed, task, sizes[task], start, rows_per_step)


def schedule(
    sampling: str,
    sizes: Sequence[int],
    rows_per_step: int,
    steps_per_epoch: int,
    epochs: int,
    seed: int,
    first_step: int = 0,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(step, task, rows) of every update from `first_step` on."""
    order = task_order(sampling, sizes, steps_per_epoch, epochs, seed)
    for step in range(first_step, len(order)):
        yield step, int(order[step]), step_rows(order, step, sizes, rows_per_step, seed)


def plan_table(
    sampling: str, names: Sequence[str], sizes: Sequence[int], rows: int, steps: int, epochs: int
) -> str:
    """What will be sampled, as lines of text: each task's share at the first and the last epoch, and how
    often the run is expected to pass over its rows (`rows` an update, `steps` an epoch)."""
    shares = np.array([epoch_probabilities(sampling, sizes, epoch, epochs) for epoch in range(1, epochs + 1)])
    passes = shares.sum(axis=0) * steps * rows / np.asarray(sizes)
    lines = [
        f"  {name:12} {size:9,} rows, {first:.1%} of updates at first, {last:.1%} at last, {count:.2f} passes"
        for name, size, first, last, count in zip(names, sizes, shares[0], shares[-1], passes, strict=True)
    ]
    return "\n".join([f"sampling {sampling}:", *lines])
