"""resampling.py: every metric on weighted rows is the metric on rows repeated so often; intervals as theory
has them."""

import numpy as np
import pytest

from multitask.data.metrics import METRICS
from multitask.data.resampling import RESAMPLES, interval, resampled

CLASSES = ("accuracy", "f1_macro", "mcc")


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_is_a_number_of_copies(name):
    """Twelve rows, drawn up to four times or never: as scikit-learn and scipy score the copies. Some values
    are equal, so their ranks are shared; the last draw has one row alone, for which nothing varies."""
    metric, rng = METRICS[name], np.random.default_rng(1)
    top = 3 if name in CLASSES else 2 if name == "f1" else 6
    p, y = rng.integers(top, size=(2, 12)).astype(float)
    weights = rng.integers(5, size=(20, 12))
    found = metric.weighted(p, y, weights.astype(float))
    wanted = [metric.measure(np.repeat(p, row), np.repeat(y, row)) for row in weights]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    alone = metric.weighted(p, p, np.eye(12)[:1])
    constant = {"f1": float(p[0] == 1), "mcc": 0, "pearson": 0, "spearman": 0, "rmse": 0, "mae": 0}
    assert alone == [constant.get(name, 1)]


def test_the_interval_of_a_share_is_that_of_the_binomial():
    """300 of 400 rows right: .75 +- 1.96 sqrt(.75 x .25 / 400) = .75 +- .0424."""
    labels = np.zeros(400)
    predictions = (np.arange(400) >= 300).astype(float)
    values = resampled(METRICS["accuracy"].weighted, predictions, labels, "a")
    assert values.shape == (RESAMPLES,)
    assert interval(values) == pytest.approx([0.7076, 0.7924], abs=0.006)
    assert interval(np.arange(1001.0)) == pytest.approx([25, 975])


def test_draws_depend_on_the_name_alone(monkeypatch):
    predictions, labels = np.random.default_rng(0).normal(size=(2, 50))
    draw = METRICS["rmse"].weighted, predictions, labels
    first = resampled(*draw, "a")
    assert (first == resampled(*draw, "a")).all() and (first != resampled(*draw, "b")).any()
    monkeypatch.setattr("multitask.data.resampling.WEIGHTS", 50 * 7)
    np.testing.assert_allclose(resampled(*draw, "a"), first)
