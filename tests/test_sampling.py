"""sampling.py: every row in its turn, the same order for the same seed, in the middle as from the start."""

import numpy as np
import pytest

from multitask.sampling import random_generator, random_seed, round_robin, schedule, shuffled_rows


def walk(sizes, rows_per_step, total_steps, seed=0, first_step=0):
    """The schedule as plain lists."""
    return [
        (step, task, rows.tolist())
        for step, task, rows in schedule(sizes, rows_per_step, total_steps, seed, first_step)
    ]


def test_round_robin_advances():
    assert round_robin(np.arange(7), 3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [(step, task) for step, task, _ in walk([5, 6, 7], 2, 7)] == list(enumerate([0, 1, 2, 0, 1, 2, 0]))


@pytest.mark.parametrize("size, rows_per_step", [(10, 5), (10, 3), (7, 4), (3, 8), (1, 4)])
def test_every_pass_takes_every_row_once(size, rows_per_step):
    """Also where a batch spans passes, and where one batch holds more rows than the table."""
    drawn = [row for _, _, rows in walk([size], rows_per_step, 5 * size) for row in rows]
    assert len(drawn) == 5 * size * rows_per_step
    for start in range(0, len(drawn), size):
        assert sorted(drawn[start : start + size]) == list(range(size))


def test_each_pass_is_shuffled_anew_and_each_task_and_seed_differently():
    orders = [shuffled_rows(0, 0, 50, start, 50).tolist() for start in (0, 50, 100)]
    orders += [shuffled_rows(0, 1, 50, 0, 50).tolist(), shuffled_rows(1, 0, 50, 0, 50).tolist()]
    orders += [list(range(50))]
    assert len({tuple(order) for order in orders}) == 6


def test_the_same_seed_gives_the_same_schedule():
    assert walk([9, 4], 4, 30, seed=7) == walk([9, 4], 4, 30, seed=7)
    assert walk([9, 4], 4, 30, seed=7) != walk([9, 4], 4, 30, seed=8)


@pytest.mark.parametrize("first_step", [0, 1, 2, 5, 17, 29, 30])
def test_a_resumed_schedule_is_the_tail_of_the_whole(first_step):
    sizes = [9, 4, 31]
    assert walk(sizes, 4, 30, first_step=first_step) == walk(sizes, 4, 30)[first_step:]


def test_random_seed_depends_on_every_argument():
    arguments = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    seeds = [random_seed(*args) for args in arguments]
    assert len(set(seeds)) == len(arguments)
    assert seeds == [random_seed(*args) for args in arguments]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_random_generator_repeats_itself():
    assert random_generator(3, "x", 1).random() == random_generator(3, "x", 1).random()
