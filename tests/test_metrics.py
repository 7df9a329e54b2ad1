"""metrics.py: every metric by hand, and what it contributes to the score."""

import math
from dataclasses import replace

import numpy as np
import pytest

from multitask.data.metrics import METRICS, RMSE, accuracy, pearson, spearman


def test_accuracy():
    assert accuracy(np.array([1, 2, 3, 4]), np.array([1.0, 2.0, 0.0, 4.0])) == 0.75


def test_pearson():
    """Deviations (-1, 0, 1) and (-1, 1, 0): r = 1 / (sqrt 2 sqrt 2) = 1/2, at any scale and shift."""
    predictions, labels = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 1.0])
    assert pearson(predictions, labels) == pytest.approx(0.5)
    assert pearson(10 * predictions - 4, labels) == pytest.approx(0.5)
    assert pearson(-predictions, labels) == pytest.approx(-0.5)


@pytest.mark.parametrize("predictions, labels", [([3, 3, 3], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([1], [2])])
@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_a_correlation_of_constant_values_is_0_with_a_warning(correlation, predictions, labels):
    with pytest.warns(UserWarning, match="constant"):
        assert correlation(np.array(predictions), np.array(labels)) == 0.0


@pytest.mark.parametrize(
    "name, predictions, labels, value, score",
    [
        ("accuracy", [1, 1, 0, 2], [1, 0, 0, 2], 3 / 4, 3 / 4),
        # class 1: precision 1/2, recall 1
        ("f1", [1, 1, 0, 0], [1, 0, 0, 0], 2 / 3, 2 / 3),
        ("f1", [0, 0], [0, 0], 0, 0),
        # class 0: precision 1, recall 2/3, so 4/5; class 1: 2/3
        ("f1_macro", [1, 1, 0, 0], [1, 0, 0, 0], (4 / 5 + 2 / 3) / 2, (4 / 5 + 2 / 3) / 2),
        # (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)) = 2 / sqrt(2 x 1 x 3 x 2)
        ("mcc", [1, 1, 0, 0], [1, 0, 0, 0], 2 / math.sqrt(12), (1 + 2 / math.sqrt(12)) / 2),
        ("mcc", [1, 1], [1, 0], 0, 1 / 2),
        # ranks (1, 2, 3) and (1, 3, 2): 1 - 6 x 2 / (3 x 8)
        ("spearman", [1, 2, 90], [0, 2, 1], 1 / 2, 3 / 4),
        ("rmse", [1, 5], [1, 2], math.sqrt(9 / 2), 1 - math.sqrt(9 / 2) / 10),
        ("mae", [1, 5], [1, 2], 3 / 2, 1 - 3 / 20),
    ],
)
def test_metrics_and_scores(name, predictions, labels, value, score):
    metric = replace(METRICS[name], width=10.0)
    found = metric.measure(np.array(predictions, float), np.array(labels, float))
    assert found == pytest.approx(value) and isinstance(found, float)
    assert metric.score(found) == pytest.approx(score)


def test_an_error_of_nothing_is_the_best_score():
    assert replace(RMSE, width=4.0).score(0.0) == 1 > replace(RMSE, width=4.0).score(1.0) == 0.75
