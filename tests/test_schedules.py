"""schedules.py: the rate halves when the total loss rises beyond its noise, whatever tasks were sampled."""

import numpy as np
import pytest

from multitask import train
from multitask.config import Training
from multitask.methods.sampling import Plan, RowBatches
from multitask.methods.schedules import halve_on_rise


def epoch(**tasks):
    """Return an epoch's objective, given (mean, variance, updates) of each task."""
    return {
        name: dict(zip(("mean", "variance", "updates"), found, strict=True)) for name, found in tasks.items()
    }


@pytest.mark.parametrize(
    "losses, factor",
    [
        ([], 1),
        ([1], 1),
        ([1, 2, 3], 1),
        ([1, 2, 3, 4], 0.5),  # three rises in a row
        ([1, 2, 3, 4, 5, 6], 0.5),  # the count starts again: two more are not enough
        ([1, 2, 3, 4, 5, 6, 7], 0.25),
        ([1, 2, 3, 2, 3, 4], 1),  # a fall between
        ([1, 2, 3, 3, 4, 5], 1),  # an equal loss is no rise
        ([1, 2, 3, 3, 4, 5, 6], 0.5),
        ([4, 3, 2, 1], 1),
        ([1, 2, 3, 4, 0, 1, 2, 3], 0.25),  # the rate stays halved when the loss falls again
    ],
)
def test_the_rate_halves_after_three_rises_in_a_row(losses, factor):
    """With one task and no noise."""
    assert halve_on_rise([epoch(a=(loss, 0, 9)) for loss in losses]) == factor


def test_another_number_of_rises():
    epochs = [epoch(a=(loss, 0, 9)) for loss in (1, 2, 3, 4, 5)]
    assert [halve_on_rise(epochs, rises) for rises in (1, 2, 4, 5)] == [1 / 16, 0.25, 0.5, 1]


@pytest.mark.parametrize("rise, factor", [(0.09, 1), (0.11, 0.5), (-0.11, 1)])
def test_a_rise_must_exceed_one_standard_error(rise, factor):
    """Variance .5 over 100 updates in both epochs: the difference has a standard error of sqrt(.005 + .005) =
    .1."""
    assert halve_on_rise([epoch(a=(1, 0.5, 100)), epoch(a=(1 + rise, 0.5, 100))], rises=1) == factor


@pytest.mark.parametrize("other, factor", [(0.0, 0.5), (-0.06, 0.5), (-0.09, 1)])
def test_every_task_has_the_same_weight(other, factor):
    """The loss of a rises by .2, that of b by `other`. Four errors of .0025 each: sqrt(.01) / 2 = .05 against
    (.2 + other) / 2, that is .1 and .07; for the last, .055, variances four times as large and an error of
    .1."""
    variance = 0.25 if factor == 0.5 else 1.0
    before = epoch(a=(1, variance, 100), b=(9, variance, 100))
    after = epoch(a=(1.2, variance, 100), b=(9 + other, variance, 100))
    assert halve_on_rise([before, after], rises=1) == factor


def test_a_task_without_an_error_of_its_own_keeps_its_last_values():
    """b goes from 5 to 9 in a single update, which is no rise yet; in the last epoch it has risen since the
    first."""
    epochs = [epoch(a=(1, 0, 9), b=(5, 0, 9)), epoch(a=(1, 0, 9)), epoch(a=(1, 0, 9), b=(9, 0, 1))]
    assert halve_on_rise(epochs, rises=1) == 1
    assert halve_on_rise([*epochs, epoch(a=(1, 0, 9), b=(6, 0, 2))], rises=1) == 0.5


def test_a_task_that_is_new_is_no_rise():
    assert halve_on_rise([epoch(a=(1, 0, 9)), epoch(a=(1, 0, 9), b=(5, 0, 9))], rises=1) == 1


# With annealed sampling, on the paper's numbers of rows

SIZES, EPOCHS, STEPS = (141_498, 8_544, 6_040), 25, 300
MEANS, DEVIATION = np.array([0.45, 1.25, 0.75]), 0.2  # of the updates' losses: QQP low, SST high


def simulated(seed: int, drift: float = 0.0) -> tuple[list, list[float]]:
    """Return every epoch's objective and plain mean over updates, if each task's loss is noise around a mean
    that grows by `drift` per epoch."""
    random, objectives, plain = np.random.default_rng(seed), [], []
    plan = Plan("annealed", SIZES, [RowBatches(seed, 0, 1, 1)] * 3, 1, STEPS, EPOCHS, seed)
    for number in range(1, EPOCHS + 1):
        tasks = plan.tasks_of(number)
        losses = random.normal(MEANS[tasks] + drift * number, DEVIATION)
        of_tasks = {str(task): losses[tasks == task] for task in range(3)}
        objectives.append(
            epoch(**{
                name: (values.mean(), values.var(ddof=1) if len(values) > 1 else 0.0, len(values))
                for name, values in of_tasks.items() if len(values)
            })
        )  # fmt: skip
        plain.append(losses.mean())
    return objectives, plain


def test_a_model_that_stands_still_keeps_its_rate():
    """Of a hundred runs, nearly all would be halved by the mean over updates, which follows the mixture of
    tasks, but hardly any is by the rule."""
    runs = [simulated(seed) for seed in range(100)]
    by_mixture = [halve_on_rise([epoch(all=(mean, 0, 9)) for mean in plain]) for _, plain in runs]
    assert np.mean(np.array(by_mixture) < 1) > 0.8
    assert np.mean([halve_on_rise(objectives) < 1 for objectives, _ in runs]) <= 0.03


def test_a_loss_that_really_rises_is_noticed():
    """A rise of .1 per epoch for every task, where the error of the difference is about .02."""
    assert all(halve_on_rise(simulated(seed, drift=0.1)[0]) <= 1 / 32 for seed in range(20))


def test_a_run_follows_its_records():
    rate = train.rate_schedule(Training(schedule="halve-on-rise", warmup=0.1), 20)
    assert [rate(step, []) for step in (0, 1, 2, 19)] == [1 / 3, 2 / 3, 1, 1]
    records = [{"objective": epoch(a=(loss, 0, 9))} for loss in (1.0, 1.1, 1.2, 1.3)]
    assert rate(15, records) == 0.5
