"""Which task each update trains, and on which rows: a function of (seed, step), so no state is saved.

Annealed sampling (Stickland & Murray 2019, https://arxiv.org/abs/1902.02671) draws task i, which has N_i
rows, with probability p_i proportional to N_i ** alpha. In epoch e of E, alpha = 1 - 0.8 (e - 1) / (E - 1):
by size in the first epoch, almost evenly in the last. `proportional`, `sqrt` and `uniform` keep alpha at 1,
.5 and 0.

Two samplings draw nothing: the tasks take turns. With `round-robin`, every task always has its turn. With
`full-pass`, a task drops out once it has passed over its rows, until all tasks have: small tasks are
exhausted early, and the largest one ends the pass alone. This is the baseline of "Jack of All Trades, Master
of Some: Improving BERT for Multitask Learning" (Stanford CS224N), whose section 3.1 names that as its
weakness. With the paper's 141,498, 8,544 and 6,040 rows in batches of 16, a pass is 8,844 + 534 + 378 = 9,756
updates. (All 156,082 rows together make 9,755 batches and two more rows; here each task rounds up by itself.)

An epoch is `steps_per_epoch` updates, whatever the sampling, and each update trains one task. Each task walks
through its own rows in passes, each shuffled differently. The walk is cut into batches of a fixed number of
rows, or by a budget of tokens.

The budget counts tokens with padding: the number of rows times the longest. The encoder's linear layers see
only real tokens, but its attention scores are padded, and grow with the rows times the longest squared. A
budget of real tokens would not bound those when one long row is among many short ones; this product bounds
both.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np

from minbert.errors import counted


def random_generator(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """Return the random generator for this seed, purpose and position. All randomness comes from here."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *numbers])


def random_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed for torch, from the same source."""
    return int(random_generator(seed, purpose, *numbers).integers(2**63))


def annealed_alpha(epoch: int, epochs: int) -> float:
    """Return alpha = 1 - 0.8 (e - 1) / (E - 1) for epoch e of E, counted from 1 (Stickland & Murray 2019).

    A single epoch has alpha 1.

    >>> [round(annealed_alpha(epoch, epochs=5), 2) for epoch in (1, 2, 3, 4, 5)]
    [1.0, 0.8, 0.6, 0.4, 0.2]
    """
    return 1.0 if epochs == 1 else 1 - 0.8 * (epoch - 1) / (epochs - 1)


def task_probabilities(sizes: Sequence[int], alpha: float) -> np.ndarray:
    """Return p_i proportional to N_i ** alpha, (tasks,), where `sizes` has each task's number of rows N_i.

    >>> task_probabilities([900, 100], alpha=1), task_probabilities([900, 100], alpha=0.5)
    (array([0.9, 0.1]), array([0.75, 0.25]))
    """
    weights = np.asarray(sizes) ** alpha
    return weights / weights.sum()


# Samplings that draw a task for each update: alpha as a function of (epoch, epochs).
ALPHAS: dict[str, Callable[[int, int], float]] = {
    "proportional": lambda epoch, epochs: 1.0,
    "sqrt": lambda epoch, epochs: 0.5,
    "annealed": annealed_alpha,
    "uniform": lambda epoch, epochs: 0.0,
}
FULL_PASS = "full-pass"


def mean_shares(sampling: str, sizes: Sequence[int], epochs: int) -> np.ndarray:
    """Return each task's mean probability over a run; of a very long run, over a thousand of its epochs."""
    judged = np.linspace(1, epochs, min(epochs, 1000)).round().astype(int).tolist()
    return np.mean([task_probabilities(sizes, ALPHAS[sampling](epoch, epochs)) for epoch in judged], axis=0)


def expected_rows(sampling: str, sizes: Sequence[int], rows: Sequence[float], epochs: int) -> float:
    """Return the mean number of rows in an update, given those of each task, if no task drops out."""
    evenly = sampling == "round-robin"
    shares = task_probabilities(sizes, 0) if evenly else mean_shares(sampling, sizes, epochs)
    return round(float(shares @ np.asarray(rows)), 6)


def pass_updates(sizes: Sequence[int], rows: Sequence[float]) -> list[int]:
    """Return how many updates each task needs to pass over its rows, at `rows` per update.

    The last update is filled up with rows of the next pass.

    >>> pass_updates([141_498, 8_544, 6_040], rows=[16, 16, 16])
    [8844, 534, 378]
    """
    return [math.ceil(round(size / taken, 6)) for size, taken in zip(sizes, rows, strict=True)]


def turn_order(updates: Sequence[int]) -> np.ndarray:
    """Return the tasks in turn, (sum of updates,): task i drops out after `updates[i]` turns.

    >>> turn_order([4, 2, 1])
    array([0, 1, 2, 0, 1, 0, 0])
    """
    tasks = np.repeat(np.arange(len(updates)), updates)
    rounds = np.concatenate([np.arange(count) for count in updates])
    return tasks[np.argsort(rounds, kind="stable")]


def shuffled_rows(seed: int, task: int, size: int, start: int, count: int) -> np.ndarray:
    """Return rows start..start+count of a task's endless walk through shuffled passes over `size` rows."""
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


class Walk(Protocol):
    """A task's endless walk, in batches: call it with a batch's number, from 0, to get the rows."""

    @property
    def mean_rows(self) -> float:
        """The mean number of rows in a batch."""

    def __call__(self, number: int) -> np.ndarray: ...


class RowBatches:
    """Batches of `batch_size` rows. A batch may hold the end of one pass and the start of the next."""

    def __init__(self, seed: int, task: int, size: int, batch_size: int):
        self.seed, self.task, self.size, self.batch_size = seed, task, size, batch_size

    @property
    def mean_rows(self) -> float:
        """The number of rows in every batch."""
        return self.batch_size

    def __call__(self, number: int) -> np.ndarray:
        return shuffled_rows(self.seed, self.task, self.size, number * self.batch_size, self.batch_size)


class TokenBatches:
    """Batches of as many rows as fit into `max_tokens`, padding included; a longer row is a batch by itself.

    No batch spans two passes, so how a pass is cut does not depend on the passes before it.
    """

    def __init__(self, seed: int, task: int, lengths: np.ndarray, max_tokens: int):
        self.seed, self.task, self.lengths, self.max_tokens = seed, task, lengths, max_tokens
        self.ends = [0]  # the number of batches up to the end of each pass that has been cut
        self.cut = lru_cache(maxsize=2)(self._cut)

    @property
    def mean_rows(self) -> float:
        """The mean number of rows in a batch of the first pass."""
        return len(self.lengths) / len(self.cut(0))

    def __call__(self, number: int) -> np.ndarray:
        while self.ends[-1] <= number:
            self.ends.append(self.ends[-1] + len(self.cut(len(self.ends) - 1)))
        which = bisect_right(self.ends, number) - 1
        return self.cut(which)[number - self.ends[which]]

    def _cut(self, number: int) -> list[np.ndarray]:
        """Return the batches of a pass."""
        rows = _pass(self.seed, self.task, len(self.lengths), number)
        starts, start, longest = [], 0, 0
        for place, length in enumerate(self.lengths[rows].tolist()):
            longest = max(longest, length)
            if place > start and (place + 1 - start) * longest > self.max_tokens:
                starts.append(place)
                start, longest = place, length
        return np.split(rows, starts)


class Plan:
    """Every update of a run: which task it trains, on which batches, and each task's share of an epoch.

    Steps are counted from 0, epochs from 1. An epoch's tasks are drawn when they are first asked for.
    """

    def __init__(
        self, sampling: str, sizes: Sequence[int], walks: Sequence[Walk], accumulate: int,
        steps_per_epoch: int, epochs: int, seed: int,
    ):  # fmt: skip
        self.sampling, self.sizes, self.walks, self.accumulate = sampling, sizes, walks, accumulate
        self.steps_per_epoch, self.epochs, self.seed = steps_per_epoch, epochs, seed
        self.rows = [accumulate * walk.mean_rows for walk in walks]  # mean rows in an update of each task
        self.turns: np.ndarray | None = None  # the tasks' order, repeated, if none are drawn
        if sampling not in ALPHAS:
            updates = pass_updates(sizes, self.rows) if sampling == FULL_PASS else [1] * len(sizes)
            self.turns = turn_order(updates)
        self.before = [np.zeros(len(sizes), dtype=np.int64)]  # updates of each task before each epoch
        self.tasks_of = lru_cache(maxsize=2)(self._tasks_of)

    def _tasks_of(self, epoch: int) -> np.ndarray:
        """Return the task of every update of an epoch."""
        steps = self.steps_per_epoch
        if self.turns is not None:
            return self.turns[np.arange((epoch - 1) * steps, epoch * steps) % len(self.turns)]
        generator = random_generator(self.seed, "tasks", epoch)
        return generator.choice(len(self.sizes), size=steps, p=self.shares(epoch))

    def shares(self, epoch: int) -> np.ndarray:
        """Return each task's share of an epoch's updates: exact if tasks take turns, else its probability."""
        if self.turns is None:
            return task_probabilities(self.sizes, ALPHAS[self.sampling](epoch, self.epochs))
        steps = self.steps_per_epoch
        before, after = (self._counts_before(self.turns, number * steps) for number in (epoch - 1, epoch))
        return (after - before) / steps

    @cached_property
    def updates(self) -> np.ndarray:
        """How many updates of the run each task gets: exact if tasks take turns, else the expected number."""
        steps = self.total_steps
        if self.turns is None:
            return steps * mean_shares(self.sampling, self.sizes, self.epochs)
        return self._counts_before(self.turns, steps)

    @property
    def passes(self) -> np.ndarray:
        """How often the run passes over all rows of each task."""
        return self.updates * self.rows / np.asarray(self.sizes)

    def _counts_before(self, turns: np.ndarray, step: int) -> np.ndarray:
        """Return how many updates before this one each task gets, if the tasks take these turns."""
        passes, rest = divmod(step, len(turns))
        return passes * self._counts(turns) + self._counts(turns[:rest])

    @property
    def total_steps(self) -> int:
        """How many updates the run has."""
        return self.epochs * self.steps_per_epoch

    @property
    def rows_per_step(self) -> float:
        """The mean number of rows in an update of the run."""
        return round(float(self.updates @ np.asarray(self.rows)) / self.total_steps, 6)

    def _counts(self, tasks: np.ndarray) -> np.ndarray:
        return np.bincount(tasks, minlength=len(self.sizes))

    def task(self, step: int) -> int:
        """Return the number of the task that an update trains."""
        epoch, place = divmod(step, self.steps_per_epoch)
        return int(self.tasks_of(epoch + 1)[place])

    def earlier(self, step: int) -> int:
        """Return how many updates of the same task precede this one in its epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        tasks = self.tasks_of(epoch + 1)
        return int((tasks[:place] == tasks[place]).sum())

    def later(self, step: int) -> int:
        """Return how many updates of the same task follow this one in its epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        tasks = self.tasks_of(epoch + 1)
        return int((tasks[place + 1 :] == tasks[place]).sum())

    def batches(self, step: int) -> list[np.ndarray]:
        """Return the rows of each batch of an update. They continue where the task's last update ended."""
        task, epochs_before = self.task(step), step // self.steps_per_epoch
        while len(self.before) <= epochs_before:
            self.before.append(self.before[-1] + self._counts(self.tasks_of(len(self.before))))
        first = (int(self.before[epochs_before][task]) + self.earlier(step)) * self.accumulate
        return [self.walks[task](number) for number in range(first, first + self.accumulate)]

    def describe(self, names: Sequence[str]) -> str:
        """Describe in lines of text what will be sampled.

        Gives each task's share of the first and the last epoch, the mean number of rows in its updates, and
        how often the run passes over its rows.
        """
        columns = zip(
            names, self.sizes, self.shares(1), self.shares(self.epochs), self.rows, self.passes, strict=True
        )
        lines = [
            f"  {name:12} {size:9,} rows, {self._parts(first, last)}, {rows:.4g} rows each, {done:.2f} passes"
            for name, size, first, last, rows, done in columns
        ]
        return "\n".join([f"sampling {self.sampling}:", *lines])

    def _parts(self, first: float, last: float) -> str:
        if self.turns is None:
            return f"{first:.1%} of updates in the first epoch, {last:.1%} in the last"
        first, last = first * self.steps_per_epoch, last * self.steps_per_epoch
        return f"{counted(round(first), 'update')} in the first epoch, {round(last):,} in the last"
