"""Which task each update trains and which rows it takes: a function of (seed, step), so nothing has to be
saved.

An epoch is `steps_per_epoch` updates, not a pass over the data. One task per update. Each task walks through
its own rows in shuffled passes, and every pass is shuffled anew.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np


def random_generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The one source of randomness: the same numbers for the same seed, purpose and position."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def random_seed(seed: int, purpose: str, *numbers: int) -> int:
    """A seed for torch, from the same source."""
    return int(random_generator(seed, purpose, *numbers).integers(2**63))


def round_robin(step: np.ndarray, num_tasks: int) -> np.ndarray:
    """The task of each step: 0, 1, 2, 0, 1, 2, ..."""
    return step % num_tasks


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


def schedule(
    sizes: Sequence[int], rows_per_step: int, total_steps: int, seed: int, first_step: int = 0
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(step, task, rows) of every update from `first_step` on; `sizes` are the tasks' numbers of rows."""
    tasks = round_robin(np.arange(total_steps), len(sizes))
    drawn = np.bincount(tasks[:first_step], minlength=len(sizes))
    for step in range(first_step, total_steps):
        task = int(tasks[step])
        yield (
            step,
            task,
            shuffled_rows(seed, task, sizes[task], int(drawn[task]) * rows_per_step, rows_per_step),
        )
        drawn[task] += 1
