"""sampling.py: every row in its turn, the same order for the same seed wherever a run resumes, and each task
as often as its probability says."""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from helpers import make_config, make_model, method_of, planned, write_tables
from hypothesis import given
from hypothesis import strategies as st

from multitask.config import SAMPLINGS
from multitask.data.tables import read_split
from multitask.data.tasks import BUILT_IN
from multitask.data.tokens import make_examples
from multitask.finetune import plan_over
from multitask.methods.sampling import (
    ALPHAS,
    Plan,
    RowBatches,
    TokenBatches,
    Walk,
    annealed_alpha,
    expected_rows,
    mean_shares,
    pass_updates,
    random_generator,
    random_seed,
    shuffled_rows,
    task_probabilities,
    turn_order,
)


def plan_by_rows(
    sampling: str, sizes: Sequence[int], batch_size: int, steps_per_epoch: int, epochs: int, seed: int = 0
) -> Plan:
    """Return a plan whose updates are one batch of a fixed number of rows each."""
    walks: list[Walk] = [RowBatches(seed, task, size, batch_size) for task, size in enumerate(sizes)]
    return Plan(sampling, sizes, walks, 1, steps_per_epoch, epochs, seed)


def schedule(
    sampling: str,
    sizes: Sequence[int],
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
    seed: int,
    first_step: int = 0,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (step, task, rows) of every update, of one batch each, from `first_step` on."""
    plan = plan_by_rows(sampling, sizes, batch_size, steps_per_epoch, epochs, seed)
    for step in range(first_step, epochs * steps_per_epoch):
        (rows,) = plan.batches(step)
        yield step, plan.task(step), rows


REAL = [8544, 141498, 6040]  # sentiment, paraphrase, similarity


def walk(sizes, rows_per_step, total_steps, seed=0, first_step=0, sampling="round-robin", epochs=1):
    """Return the schedule of `epochs` epochs of `total_steps` updates each, as plain lists."""
    planned = schedule(sampling, sizes, rows_per_step, total_steps, epochs, seed, first_step)
    return [(step, task, rows.tolist()) for step, task, rows in planned]


def test_round_robin_advances():
    """An epoch of 7 updates ends with task 0, so the next begins with task 1: the cut favours no task."""
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
    """Every row comes once before any comes again, and every update takes rows."""
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
    """Three epochs of ten updates, resumed within an epoch and between two."""
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
    """They hold as many rows as fit, padding included; a row longer than the budget is a batch by itself."""
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
    """In whatever order they are asked for, also from a new object, as after a resume."""
    first = TokenBatches(7, 1, LENGTHS, 200)
    wanted = [first(number).tolist() for number in range(80)]
    assert len({number for batch in wanted[:30] for number in batch}) == len(LENGTHS)  # more than one pass
    for number in (79, 3, 41, 0):
        assert first(number).tolist() == TokenBatches(7, 1, LENGTHS, 200)(number).tolist() == wanted[number]
    assert TokenBatches(8, 1, LENGTHS, 200)(0).tolist() != wanted[0]
    assert TokenBatches(7, 0, LENGTHS, 200)(0).tolist() != wanted[0]


def test_mean_rows():
    """Rows of 4, 4 and 4 tokens with a budget of 8: a batch of two and a batch of one."""
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
    for place in (0, 500, *range(980, 1000)):
        assert plan.later(2000 + place) == tasks[place + 1 :].count(tasks[place])
    assert len(plan.describe(["a", "b"]).splitlines()) == 3


def test_expected_rows():
    """2 and 4 rows per update: 3 if the tasks take turns; (2 + 3 * 4) / 4 = 3.5 by size, 1 to 3."""
    assert expected_rows("round-robin", [10, 30], [2, 4], 5) == 3
    assert expected_rows("proportional", [10, 30], [2, 4], 5) == 3.5
    assert expected_rows("annealed", REAL, [10, 10, 10], 25) == 10
    assert expected_rows("round-robin", [1, 1, 1], [1, 1, 2], 5) == 1.333333


def test_mean_shares_are_those_of_every_epoch():
    each = [task_probabilities(REAL, annealed_alpha(epoch, 900)) for epoch in range(1, 901)]
    assert mean_shares("annealed", REAL, 900) == pytest.approx(np.mean(each, axis=0), rel=1e-9)


@pytest.mark.parametrize(
    "epoch, epochs, alpha", [(1, 25, 1), (25, 25, 0.2), (13, 25, 0.6), (2, 5, 0.8), (1, 1, 1)]
)
def test_annealed_alpha(epoch, epochs, alpha):
    """1 - 0.8 (e - 1) / (E - 1) falls from 1 to 0.2, with 0.6 halfway; a single epoch has 1, not 0 / 0."""
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
    """Sizes 100, 400 and 1600 are in the ratio 1 : 4 : 16, and their square roots 1 : 2 : 4."""
    assert task_probabilities([100, 400, 1600], alpha) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "sampling, first, last",
    [
        ("round-robin", [2 / 4, 1 / 4, 1 / 4], [1 / 4, 2 / 4, 1 / 4]),
        ("uniform", [1 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3]),
        ("proportional", [1 / 21, 4 / 21, 16 / 21], [1 / 21, 4 / 21, 16 / 21]),
        ("sqrt", [1 / 7, 2 / 7, 4 / 7], [1 / 7, 2 / 7, 4 / 7]),
        ("annealed", [1 / 21, 4 / 21, 16 / 21], task_probabilities([1, 4, 16], 0.2)),
    ],
)
def test_shares_of_an_epoch(sampling, first, last):
    """The first and the last of 11 epochs of 4 updates, with sizes 1 : 4 : 16. In turn, the first epoch
    takes tasks 0, 1, 2, 0, and the last, from update 40 = 13 x 3 + 1 on, tasks 1, 2, 0, 1."""
    plan = plan_by_rows(sampling, [100, 400, 1600], 1, 4, 11)
    assert plan.shares(1) == pytest.approx(first)
    assert plan.shares(11) == pytest.approx(last)


def chi_square(tasks, probabilities) -> float:
    """Return the sum of (drawn - expected)^2 / expected, which for three tasks exceeds 13.8 once in 1,000."""
    expected = probabilities * len(tasks)
    return float(((np.bincount(tasks, minlength=len(probabilities)) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("sampling", ALPHAS)
@pytest.mark.parametrize("epoch", [1, 5, 10])
def test_tasks_come_as_often_as_their_probabilities_say(sampling, epoch):
    """The expected probabilities are computed here from N ** alpha; those of another alpha do not fit."""
    alphas = {"proportional": 1, "sqrt": 0.5, "annealed": 1 - 0.8 * (epoch - 1) / 9, "uniform": 0}
    tasks = plan_by_rows(sampling, REAL, 16, 6000, 10).tasks_of(epoch)
    assert len(tasks) == 6000

    def shares(alpha):
        powers = np.array([size**alpha for size in REAL])
        return powers / powers.sum()

    assert chi_square(tasks, shares(alphas[sampling])) < 13.8
    assert chi_square(tasks, shares(alphas[sampling] - 0.2)) > 100


def test_round_robin_gives_every_task_the_same_number_of_updates():
    plan = plan_by_rows("round-robin", REAL, 16, 1000, 3)
    tasks = np.concatenate([plan.tasks_of(epoch) for epoch in (1, 2, 3)])
    assert np.bincount(tasks).tolist() == [1000, 1000, 1000]


def test_turns_of_tasks_that_drop_out():
    """With 2, 4 and 1 turns: all tasks in the first round, 0 and 1 in the second, then 1 alone."""
    assert turn_order([2, 4, 1]).tolist() == [0, 1, 2, 0, 1, 1, 1]
    assert turn_order([1, 1]).tolist() == [0, 1]


def test_a_full_pass_takes_the_tasks_in_turn_until_each_is_exhausted():
    """With 5, 8 and 2 rows in batches of 2, passes are 3, 4 and 1 updates, an epoch 8. Then all begin again.
    Task 0 is one row ahead: the last batch of its first pass was filled up with a row of the second."""
    planned = list(schedule("full-pass", [5, 8, 2], 2, 8, 2, 0))
    tasks = [task for _, task, _ in planned]
    assert tasks == 2 * [0, 1, 2, 0, 1, 0, 1, 1]
    for task, size in enumerate([5, 8, 2]):
        first = np.concatenate([rows for _, one, rows in planned[:8] if one == task])
        assert sorted(first[:size]) == list(range(size))  # a whole pass, by the end of the first epoch


def test_a_full_pass_is_the_same_order_however_it_is_cut_into_epochs():
    """A pass is 9 updates. Epochs of 4 follow on from each other; the second pass begins in the third."""
    whole = [(step, task, rows.tolist()) for step, task, rows in schedule("full-pass", [5, 8, 4], 2, 9, 4, 3)]
    assert [task for _, task, _ in whole[:9]] == [0, 1, 2, 0, 1, 2, 0, 1, 1]
    cut = [(step, task, rows.tolist()) for step, task, rows in schedule("full-pass", [5, 8, 4], 2, 4, 9, 3)]
    assert cut == whole


def test_the_papers_full_pass():
    """141,498 / 16 = 8,843.6, 8,544 / 16 = 534 and 6,040 / 16 = 377.5, each rounded up. With accumulation of
    4, 64 rows: 2,210.9, 133.5 and 94.4."""
    assert pass_updates([141498, 8544, 6040], [16, 16, 16]) == [8844, 534, 378]
    assert pass_updates([141498, 8544, 6040], [64, 64, 64]) == [2211, 134, 95]
    plan = plan_by_rows("full-pass", [141498, 8544, 6040], 16, 9756, 10)
    assert plan.updates.tolist() == [88440, 5340, 3780] and plan.rows_per_step == 16
    assert plan.describe(["qqp", "sst", "sts"]).splitlines() == [
        "sampling full-pass:",
        "  qqp            141,498 rows, 8,844 updates in the first epoch, 8,844 in the last, 16 rows each, "
        "10.00 passes",
        "  sst              8,544 rows, 534 updates in the first epoch, 534 in the last, 16 rows each, "
        "10.00 passes",
        "  sts              6,040 rows, 378 updates in the first epoch, 378 in the last, 16 rows each, "
        "10.01 passes",
    ]


def test_the_plan_of_a_full_pass_in_shorter_epochs():
    """A pass of 3, 4 and 1 updates (as above), in 3 epochs of 3: tasks 0 1 2, 0 1 0, 1 1 | 0. The second pass
    has begun with one update of task 0: 4 updates of 2 rows are 8/5 = 1.60 passes, 4 of 8 rows 1.00, and 1 of
    2 rows 1.00."""
    plan = plan_by_rows("full-pass", [5, 8, 2], 2, 3, 3)
    assert [plan.shares(epoch).tolist() for epoch in (1, 2, 3)] == [
        pytest.approx(counts) for counts in ([1 / 3, 1 / 3, 1 / 3], [2 / 3, 1 / 3, 0], [1 / 3, 2 / 3, 0])
    ]
    a, b, c = plan.describe(["a", "b", "c"]).splitlines()[1:]
    assert a.endswith("1 update in the first epoch, 1 in the last, 2 rows each, 1.60 passes")
    assert b.endswith("1 update in the first epoch, 2 in the last, 2 rows each, 1.00 passes")
    assert c.endswith("1 update in the first epoch, 0 in the last, 2 rows each, 1.00 passes")


def test_a_full_pass_by_tokens_and_with_accumulation():
    """6 rows of 4 tokens with a budget of 8 are batches of 2 rows, 4 rows per update, so a pass is
    6 / 4 = 1.5, rounded up to 2 updates. With 2 rows it is 1."""
    walks = [TokenBatches(0, task, np.full(size, 4), 8) for task, size in enumerate((6, 2))]
    plan = Plan("full-pass", [6, 2], walks, 2, 3, 2, 0)
    assert [plan.task(step) for step in range(6)] == [0, 1, 0, 0, 1, 0]
    assert [[len(rows) for rows in plan.batches(step)] for step in range(6)] == [[2, 2], [2, 2]] * 3
    assert plan.rows == [4, 4] and plan.updates.tolist() == [4, 2]


def test_rows_of_an_update_on_average():
    """Batches of 2 and 1 rows for the first task, of 1 row for the others: (1.5 + 1 + 1) / 3."""
    walks = [TokenBatches(0, 0, np.full(3, 4), 8), RowBatches(0, 1, 5, 1), RowBatches(0, 2, 5, 1)]
    assert Plan("round-robin", [3, 5, 5], walks, 1, 3, 1, 0).rows_per_step == 1.166667


def test_each_epoch_draws_its_tasks_anew():
    plan = plan_by_rows("uniform", REAL, 16, 100, 2)
    first, second = (plan.tasks_of(epoch).tolist() for epoch in (1, 2))
    assert first != second


def test_the_sizes_are_those_of_the_loaded_tables(tiny, tmp_path):
    """Tables of 24, 12 and 6 rows, not of the sizes in the paper."""
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
    config = make_config(
        "finetune", sampling="annealed", steps_per_epoch=30, epochs=2, batch_size=4, accumulate=3
    )
    method = method_of(config, model, train, dev)
    for step, task, rows in schedule("annealed", [24, 12, 6], 12, 30, 2, config.training.seed):
        name, batches = planned(method, step)
        assert name == list(sizes)[task] and np.concatenate(batches).tolist() == rows.tolist()
        assert [len(batch) for batch in batches] == [4, 4, 4] and max(rows) < sizes[name]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"sampling": "full-pass"}, 10_002),
        ({"sampling": "full-pass", "accumulate": 5}, 2_001),
        ({"sampling": "full-pass", "steps_per_epoch": 7}, 7),
        ({"sampling": "round-robin"}, 2000),
        ({"sampling": "round-robin", "accumulate": 10}, 1001),
    ],
)
def test_an_epoch_of_a_full_pass_is_not_capped(settings, steps):
    """100,000 rows are 10,000 batches of 10, and 12 rows are 2. With five batches per update that is 2,000
    updates and 1. Round-robin with ten batches per update: 100,012 / 100, rounded up."""
    train = {"a": range(100_000), "b": range(12)}
    config = make_config("finetune", batch_size=10, **settings)
    assert plan_over(train, config.batches, config.training).steps_per_epoch == steps


def test_plan_table():
    """Sizes 100, 400 and 1600, 10 epochs of 210 updates of 4 rows. Proportional: 1/21 = 4.8% of 2100 updates
    are 100 updates, 400 rows, 4 passes over 100; 4/21 and 16/21 pass as often."""
    plan = plan_by_rows("proportional", [100, 400, 1600], 4, 210, 10)
    lines = plan.describe(["a", "b", "c"]).splitlines()
    assert lines[0] == "sampling proportional:"
    assert [line.split()[:2] for line in lines[1:]] == [["a", "100"], ["b", "400"], ["c", "1,600"]]
    for line, share in zip(lines[1:], ("4.8%", "19.0%", "76.2%"), strict=True):
        assert line.count(share) == 2 and line.endswith("4 rows each, 4.00 passes")


def test_plan_table_of_annealed_sampling():
    """Two epochs of 100 updates of 10 rows, sizes 100 and 3200, as 1 to 32. alpha 1: 1/33 = 3.0%; alpha 0.2:
    32 ** 0.2 = 2, so 1/3 and 2/3. Passes over a: (1/33 + 1/3) 1000 / 100 = 3.64."""
    lines = plan_by_rows("annealed", [100, 3200], 10, 100, 2).describe(["a", "b"]).splitlines()
    assert "3.0% of updates in the first epoch, 33.3% in the last" in lines[1] and "3.64 passes" in lines[1]
    assert "97.0% of updates in the first epoch, 66.7% in the last" in lines[2] and "0.51 passes" in lines[2]


def test_random_seed_depends_on_every_argument():
    arguments = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    seeds = [random_seed(*args) for args in arguments]
    assert len(set(seeds)) == len(arguments)
    assert seeds == [random_seed(*args) for args in arguments]
    assert all(0 <= seed < 2**63 for seed in seeds) and max(seeds) > 2**60


def test_random_generator_repeats_itself():
    assert random_generator(3, "x", 1).random() == random_generator(3, "x", 1).random()
