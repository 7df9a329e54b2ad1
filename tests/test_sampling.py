"""sampling.py: every row in its turn, the same order for the same seed, in the middle as from the start, and
tasks as often as their probabilities say."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from helpers import make_model, write_tables
from hypothesis import given
from hypothesis import strategies as st

from multitask import finetune
from multitask.config import SAMPLINGS, Config
from multitask.data import make_examples, read_split
from multitask.sampling import (
    ALPHAS,
    Batches,
    Plan,
    RowBatches,
    TokenBatches,
    annealed_alpha,
    epoch_probabilities,
    epoch_tasks,
    expected_rows,
    plan_table,
    random_generator,
    random_seed,
    shuffled_rows,
    task_probabilities,
)
from multitask.tasks import BUILT_IN


def schedule(
    sampling: str,
    sizes: Sequence[int],
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
    seed: int,
    first_step: int = 0,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(step, task, rows) of every update of one batch from `first_step` on."""
    walks: list[Batches] = [RowBatches(seed, task, size, batch_size) for task, size in enumerate(sizes)]
    plan = Plan(sampling, sizes, walks, 1, steps_per_epoch, epochs, seed)
    for step in range(first_step, epochs * steps_per_epoch):
        (rows,) = plan.batches(step)
        yield step, plan.task(step), rows


REAL = [8544, 141498, 6040]  # sentiment, paraphrase, similarity


def walk(sizes, rows_per_step, total_steps, seed=0, first_step=0, sampling="round-robin", epochs=1):
    """The schedule of `epochs` epochs of `total_steps` updates each, as plain lists."""
    planned = schedule(sampling, sizes, rows_per_step, total_steps, epochs, seed, first_step)
    return [(step, task, rows.tolist()) for step, task, rows in planned]


def test_round_robin_advances():
    """An epoch of 7 updates ends with task 0, so the next begins with task 1: no task gains from the cut."""
    tasks = [task for _, task, _ in walk([5, 6, 7], 2, 7, epochs=3)]
    assert tasks == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("size, rows_per_step", [(10, 5), (10, 3), (7, 4), (3, 8), (1, 4)])
def test_every_pass_takes_every_row_once(size, rows_per_step):
    """Also where a batch spans passes, and where one batch holds more rows than the table."""
    drawn = [row for _, _, rows in walk([size], rows_per_step, 5 * size) for row in rows]
    assert len(drawn) == 5 * size * rows_per_step
    for start in range(0, len(drawn), size):
        assert sorted(drawn[start : start + size]) == list(range(size))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    rows_per_step=st.integers(1, 40),
    steps=st.integers(1, 20),
    epochs=st.integers(1, 4),
    sampling=st.sampled_from(SAMPLINGS),
    seed=st.integers(0, 2**63 - 1),
)
def test_whatever_the_sampling_each_task_takes_whole_passes(
    sizes, rows_per_step, steps, epochs, sampling, seed
):
    """Every row once before any comes again, and as many rows as there are updates."""
    taken = [[] for _ in sizes]
    for _, task, rows in walk(sizes, rows_per_step, steps, seed, sampling=sampling, epochs=epochs):
        assert len(rows) == rows_per_step
        taken[task] += rows
    assert sum(map(len, taken)) == rows_per_step * steps * epochs
    for size, rows in zip(sizes, taken, strict=True):
        for start in range(0, len(rows), size):
            one_pass = rows[start : start + size]
            assert len(set(one_pass)) == len(one_pass) and set(one_pass) <= set(range(size))


def test_each_pass_is_shuffled_anew_and_each_task_and_seed_differently():
    orders = [shuffled_rows(0, 0, 50, start, 50).tolist() for start in (0, 50, 100)]
    orders += [shuffled_rows(0, 1, 50, 0, 50).tolist(), shuffled_rows(1, 0, 50, 0, 50).tolist()]
    orders += [list(range(50))]
    assert len({tuple(order) for order in orders}) == 6


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_same_seed_gives_the_same_schedule(sampling):
    assert walk([9, 4], 4, 30, 7, sampling=sampling) == walk([9, 4], 4, 30, 7, sampling=sampling)
    assert walk([9, 4], 4, 30, 7, sampling=sampling) != walk([9, 4], 4, 30, 8, sampling=sampling)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("first_step", [0, 1, 5, 9, 10, 17, 29, 30])
def test_a_resumed_schedule_is_the_tail_of_the_whole(sampling, first_step):
    """Three epochs of ten updates, entered within an epoch and between two."""
    whole = walk([9, 4, 31], 4, 10, sampling=sampling, epochs=3)
    assert [step for step, _, _ in whole] == list(range(30))
    assert walk([9, 4, 31], 4, 10, 0, first_step, sampling, 3) == whole[first_step:]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_update_trains_one_task_on_the_next_rows_of_its_own_pass(sampling):
    """Whatever the order of the tasks, each walks through its own rows without gap or repeat."""
    sizes, taken = [9, 4, 31], [[], [], []]
    for _, task, rows in walk(sizes, 4, 40, sampling=sampling, epochs=2):
        taken[task] += rows
    for task, rows in enumerate(taken):
        assert rows and rows == shuffled_rows(0, task, sizes[task], 0, len(rows)).tolist()


LENGTHS = np.random.default_rng(3).integers(3, 60, size=101)


@pytest.mark.parametrize("max_tokens", [1, 59, 64, 200, 10_000])
def test_batches_by_tokens_take_every_row_once_a_pass(max_tokens):
    """They hold as many rows as fit, padding included, and a row that is longer than the budget stands
    alone."""
    batches, number = TokenBatches(0, 0, LENGTHS, max_tokens), 0
    for _ in range(3):
        taken = []
        while len(taken) < len(LENGTHS):
            rows = batches(number)
            assert len(rows) == 1 or len(rows) * LENGTHS[rows].max() <= max_tokens
            taken, number = [*taken, *rows], number + 1
            if len(taken) < len(LENGTHS):
                longer = [*rows, batches(number)[0]]
                assert len(longer) * LENGTHS[longer].max() > max_tokens
        assert sorted(taken) == list(range(len(LENGTHS)))


def test_batches_by_tokens_depend_on_their_number_alone():
    """Asked for in any order, and by one that has just come, as after a resume."""
    first = TokenBatches(7, 1, LENGTHS, 200)
    wanted = [first(number).tolist() for number in range(80)]
    assert len({number for batch in wanted[:30] for number in batch}) == len(LENGTHS)  # more than one pass
    for number in (79, 3, 41, 0):
        assert first(number).tolist() == TokenBatches(7, 1, LENGTHS, 200)(number).tolist() == wanted[number]
    assert TokenBatches(8, 1, LENGTHS, 200)(0).tolist() != wanted[0]
    assert TokenBatches(7, 0, LENGTHS, 200)(0).tolist() != wanted[0]


def test_mean_rows():
    """Rows of 4, 4 and 4 tokens by budgets of 8: batches of two and of one."""
    assert TokenBatches(0, 0, np.array([4, 4, 4]), 8).mean_rows == 1.5
    assert RowBatches(0, 0, 3, 8).mean_rows == 8


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_update_takes_the_next_batches_of_its_task(sampling):
    """With accumulation, in whatever order the steps are asked for."""

    def plan() -> Plan:
        walks = [TokenBatches(0, task, LENGTHS[: 40 + 30 * task], 150) for task in range(3)]
        return Plan(sampling, [40, 70, 100], walks, 2, 20, 3, seed=0)

    whole, walks, taken = plan(), plan().walks, [0, 0, 0]
    for step in range(60):
        task, batches = whole.task(step), whole.batches(step)
        assert [rows.tolist() for rows in batches] == [walks[task](taken[task] + n).tolist() for n in (0, 1)]
        taken[task] += 2
        assert all(np.array_equal(*pair) for pair in zip(plan().batches(step), batches, strict=True))
    assert min(taken) > 0


def test_a_plan_of_endless_epochs_draws_only_those_it_is_asked_for():
    plan = Plan("annealed", [9, 4], [RowBatches(0, task, 9, 2) for task in (0, 1)], 1, 1000, 10**8, seed=0)
    assert len(plan.batches(2500)) == 1 and plan.earlier(2000) == 0
    tasks = [plan.task(step) for step in range(2000, 3000)]
    for place in (0, 500, 999):
        assert plan.later(2000 + place) == tasks[place + 1 :].count(tasks[place])
    assert len(plan_table("annealed", ["a", "b"], [9, 4], [2, 2], 1000, 10**8).splitlines()) == 3


def test_expected_rows():
    """Tasks in turn, of 2 and 4 rows an update: 3. By size, 1 to 3: (2 + 3 * 4) / 4 = 3.5."""
    assert expected_rows("round-robin", [10, 30], [2, 4], 5) == 3
    assert expected_rows("proportional", [10, 30], [2, 4], 5) == 3.5
    assert expected_rows("annealed", REAL, [10, 10, 10], 25) == 10


@pytest.mark.parametrize(
    "epoch, epochs, alpha", [(1, 25, 1), (25, 25, 0.2), (13, 25, 0.6), (2, 5, 0.8), (1, 1, 1)]
)
def test_annealed_alpha(epoch, epochs, alpha):
    """1 - 0.8 (e - 1) / (E - 1): from 1 down to 0.2, half-way 0.6; one epoch divides by nothing and takes
    1."""
    assert annealed_alpha(epoch, epochs) == pytest.approx(alpha)


@pytest.mark.parametrize(
    "alpha, wanted",
    [
        (1, [1 / 21, 4 / 21, 16 / 21]),
        (0.5, [1 / 7, 2 / 7, 4 / 7]),
        (0, [1 / 3, 1 / 3, 1 / 3]),
        (
            0.2,
            [1 / (1 + 4**0.2 + 16**0.2), 4**0.2 / (1 + 4**0.2 + 16**0.2), 16**0.2 / (1 + 4**0.2 + 16**0.2)],
        ),
    ],
)
def test_task_probabilities(alpha, wanted):
    """Of sizes 100, 400 and 1600, which are as 1 to 4 to 16; their square roots as 1 to 2 to 4."""
    assert task_probabilities([100, 400, 1600], alpha) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "sampling, first, last",
    [
        ("round-robin", [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]),
        ("uniform", [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]),
        ("proportional", [1 / 21, 4 / 21, 16 / 21], [1 / 21, 4 / 21, 16 / 21]),
        ("sqrt", [1 / 7, 2 / 7, 4 / 7], [1 / 7, 2 / 7, 4 / 7]),
        ("annealed", [1 / 21, 4 / 21, 16 / 21], task_probabilities([1, 4, 16], 0.2)),
    ],
)
def test_epoch_probabilities(sampling, first, last):
    sizes = [100, 400, 1600]
    assert epoch_probabilities(sampling, sizes, 1, 10) == pytest.approx(first)
    assert epoch_probabilities(sampling, sizes, 10, 10) == pytest.approx(last)


def chi_square(tasks, probabilities) -> float:
    """Sum of (drawn - expected)^2 / expected; with three tasks it passes 13.8 once in a thousand draws."""
    expected = probabilities * len(tasks)
    return float(((np.bincount(tasks, minlength=len(probabilities)) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("sampling", ALPHAS)
@pytest.mark.parametrize("epoch", [1, 5, 10])
def test_tasks_come_as_often_as_their_probabilities_say(sampling, epoch):
    """The probabilities are computed here from N ** alpha, and those of another alpha are far off."""
    alphas = {"proportional": 1, "sqrt": 0.5, "annealed": 1 - 0.8 * (epoch - 1) / 9, "uniform": 0}
    tasks = epoch_tasks(sampling, REAL, epoch, 10, 6000, seed=0)
    assert len(tasks) == 6000

    def shares(alpha):
        powers = np.array([size**alpha for size in REAL])
        return powers / powers.sum()

    assert chi_square(tasks, shares(alphas[sampling])) < 13.8
    assert chi_square(tasks, shares(alphas[sampling] - 0.2)) > 100


def test_round_robin_gives_every_task_the_same_number_of_updates():
    tasks = np.concatenate([epoch_tasks("round-robin", REAL, epoch, 3, 1000, 0) for epoch in (1, 2, 3)])
    assert np.bincount(tasks).tolist() == [1000, 1000, 1000]


def test_each_epoch_draws_its_tasks_anew():
    first, second = (epoch_tasks("uniform", REAL, epoch, 2, 100, 0).tolist() for epoch in (1, 2))
    assert first != second


def test_the_sizes_are_those_of_the_loaded_tables(tiny, tmp_path):
    """Tables of 24, 12 and 6 rows, not the numbers of the paper."""
    sizes = {"sentiment": 24, "paraphrase": 12, "similarity": 6}
    for name, size in sizes.items():
        write_tables(tmp_path, {name: BUILT_IN[name]}, {"train": size, "dev": 6})
    model = make_model(tiny)
    train, dev = (
        {
            name: make_examples(rows, model.tokenizer, 64)
            for name, rows in read_split(tmp_path, split, BUILT_IN, False).items()
        }
        for split in ("train", "dev")
    )
    config = Config("finetune", sampling="annealed", steps_per_epoch=30, epochs=2, batch_size=4, accumulate=3)
    method = finetune.Finetuning(model, train, dev, config)
    for step, task, rows in schedule("annealed", [24, 12, 6], 12, 30, 2, config.seed):
        name, batches = method.planned(step)
        assert name == list(sizes)[task] and np.concatenate(batches).tolist() == rows.tolist()
        assert [len(batch) for batch in batches] == [4, 4, 4] and max(rows) < sizes[name]


def test_plan_table():
    """Sizes 100, 400 and 1600, 10 epochs of 210 updates of 4 rows. Proportional: 1/21 = 4.8% of 2100 updates
    are 100 updates, 400 rows, 4 passes over 100; 4/21 and 16/21 pass as often."""
    lines = plan_table("proportional", ["a", "b", "c"], [100, 400, 1600], [4, 4, 4], 210, 10).splitlines()
    assert lines[0] == "sampling proportional:"
    assert [line.split()[:2] for line in lines[1:]] == [["a", "100"], ["b", "400"], ["c", "1,600"]]
    for line, share in zip(lines[1:], ("4.8%", "19.0%", "76.2%"), strict=True):
        assert line.count(share) == 2 and line.endswith("4 rows each, 4.00 passes")


def test_plan_table_of_annealed_sampling():
    """Two epochs of 100 updates of 10 rows, sizes 100 and 3200, as 1 to 32. alpha 1: 1/33 = 3.0%; alpha 0.2:
    32 ** 0.2 = 2, so 1/3 and 2/3. Passes over a: (1/33 + 1/3) 1000 / 100 = 3.64."""
    lines = plan_table("annealed", ["a", "b"], [100, 3200], [10, 10], 100, 2).splitlines()
    assert (
        "3.0% of updates at first" in lines[1] and "33.3% at last" in lines[1] and "3.64 passes" in lines[1]
    )
    assert (
        "97.0% of updates at first" in lines[2] and "66.7% at last" in lines[2] and "0.51 passes" in lines[2]
    )


def test_random_seed_depends_on_every_argument():
    arguments = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    seeds = [random_seed(*args) for args in arguments]
    assert len(set(seeds)) == len(arguments)
    assert seeds == [random_seed(*args) for args in arguments]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_random_generator_repeats_itself():
    assert random_generator(3, "x", 1).random() == random_generator(3, "x", 1).random()
