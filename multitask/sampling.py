"""Which task each update trains and which rows it takes: a function of (seed, step), so nothing has to be
saved.

Annealed sampling (Stickland & Murray 2019, https://arxiv.org/abs/1902.02671) chooses task i of N_i rows in
epoch e of E with p_i proportional to N_i ** alpha, alpha = 1 - 0.8 (e - 1) / (E - 1): by size at first,
evenly at last.

An epoch is `steps_per_epoch` updates, not a pass over the data. One task per update. Each task walks through
its own rows in shuffled passes, and every pass is shuffled anew. The walk is cut into batches of as many rows
each, or by a budget of tokens.

The budget counts tokens as padded, rows times the longest: the encoder's linear layers see only real tokens,
but its attention scores are padded, rows times the longest squared. Real tokens alone would not bound those,
where one long row stands among many short ones; this product bounds both.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Protocol

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


class Batches(Protocol):
    """A task's endless walk in batches; called with a batch's number, from 0, it gives its rows."""

    @property
    def mean_rows(self) -> float:
        """Rows in a batch."""

    def __call__(self, number: int) -> np.ndarray: ...


class RowBatches:
    """Batches of `batch_size` rows, some with the end of one pass and the beginning of the next."""

    def __init__(self, seed: int, task: int, size: int, batch_size: int):
        self.seed, self.task, self.size, self.batch_size = seed, task, size, batch_size

    @property
    def mean_rows(self) -> float:
        return self.batch_size

    def __call__(self, number: int) -> np.ndarray:
        return shuffled_rows(self.seed, self.task, self.size, number * self.batch_size, self.batch_size)


class TokenBatches:
    """Batches of as many rows as fit into `max_tokens`, padding included; a longer row stands alone. A pass
    ends with what is left over, so how it is cut depends on the pass alone, not on those before it."""

    def __init__(self, seed: int, task: int, lengths: np.ndarray, max_tokens: int):
        self.seed, self.task, self.lengths, self.max_tokens = seed, task, lengths, max_tokens
        self.ends = [0]  # of each pass that has been cut: how many batches there are up to it
        self.cut = lru_cache(maxsize=2)(self._cut)

    @property
    def mean_rows(self) -> float:
        return len(self.lengths) / len(self.cut(0))

    def __call__(self, number: int) -> np.ndarray:
        while self.ends[-1] <= number:
            self.ends.append(self.ends[-1] + len(self.cut(len(self.ends) - 1)))
        which = bisect_right(self.ends, number) - 1
        return self.cut(which)[number - self.ends[which]]

    def _cut(self, number: int) -> list[np.ndarray]:
        """The batches of a pass."""
        rows = _pass(self.seed, self.task, len(self.lengths), number)
        starts, start, longest = [], 0, 0
        for place, length in enumerate(self.lengths[rows].tolist()):
            longest = max(longest, length)
            if place > start and (place + 1 - start) * longest > self.max_tokens:
                starts.append(place)
                start, longest = place, length
        return np.split(rows, starts)


class Plan:
    """Every update of a run: which task it trains, and on which batches. Nothing is drawn before its epoch
    is asked for."""

    def __init__(
        self, sampling: str, sizes: Sequence[int], walks: Sequence[Batches], accumulate: int,
        steps_per_epoch: int, epochs: int, seed: int,
    ):  # fmt: skip
        self.sampling, self.sizes, self.walks, self.accumulate = sampling, sizes, walks, accumulate
        self.steps_per_epoch, self.epochs, self.seed = steps_per_epoch, epochs, seed
        self.before = [np.zeros(len(sizes), dtype=np.int64)]  # updates of each task before each epoch
        self.tasks_of = lru_cache(maxsize=2)(self._tasks_of)

    def _tasks_of(self, epoch: int) -> np.ndarray:
        return epoch_tasks(self.sampling, self.sizes, epoch + 1, self.epochs, self.steps_per_epoch, self.seed)

    def task(self, step: int) -> int:
        epoch, place = divmod(step, self.steps_per_epoch)
        return int(self.tasks_of(epoch)[place])

    def earlier(self, step: int) -> int:
        """How many updates of the same task came before this one in its epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        tasks = self.tasks_of(epoch)
        return int((tasks[:place] == tasks[place]).sum())

    def later(self, step: int) -> int:
        """How many updates of the same task are to come after this one in its epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        tasks = self.tasks_of(epoch)
        return int((tasks[place + 1 :] == tasks[place]).sum())

    def batches(self, step: int) -> list[np.ndarray]:
        """The rows of each batch of an update: those that follow the ones its task took before."""
        task, epoch = self.task(step), step // self.steps_per_epoch
        while len(self.before) <= epoch:
            last = self.tasks_of(len(self.before) - 1)
            self.before.append(self.before[-1] + np.bincount(last, minlength=len(self.sizes)))
        first = (int(self.before[epoch][task]) + self.earlier(step)) * self.accumulate
        return [self.walks[task](number) for number in range(first, first + self.accumulate)]


def mean_probabilities(sampling: str, sizes: Sequence[int], epochs: int) -> np.ndarray:
    """How often each task comes in a whole run; in a very long one, judged by a thousand of its epochs."""
    judged = np.linspace(1, epochs, min(epochs, 1000)).round().astype(int).tolist()
    return np.mean([epoch_probabilities(sampling, sizes, epoch, epochs) for epoch in judged], axis=0)


def expected_rows(sampling: str, sizes: Sequence[int], rows: Sequence[float], epochs: int) -> float:
    """How many rows an update of a run takes on average, where those of each task take `rows`."""
    return round(float(mean_probabilities(sampling, sizes, epochs) @ np.asarray(rows)), 6)


def plan_table(
    sampling: str, names: Sequence[str], sizes: Sequence[int], rows: Sequence[float], steps: int, epochs: int
) -> str:
    """What will be sampled, as lines of text: each task's share at the first and the last epoch, the mean
    number of rows in its updates, and how often the run is expected to pass over its rows (`steps` updates an
    epoch)."""
    passes = (
        mean_probabilities(sampling, sizes, epochs) * epochs * steps * np.asarray(rows) / np.asarray(sizes)
    )
    first, last = (epoch_probabilities(sampling, sizes, epoch, epochs) for epoch in (1, epochs))
    columns = zip(names, sizes, first, last, rows, passes, strict=True)
    lines = [
        f"  {name:12} {size:9,} rows, {at_first:.1%} of updates at first, {at_last:.1%} at last, "
        f"{update:.4g} rows each, {count:.2f} passes"
        for name, size, at_first, at_last, update, count in columns
    ]
    return "\n".join([f"sampling {sampling}:", *lines])
