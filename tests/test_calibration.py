"""calibration.py: numbers by hand."""

import math

import numpy as np
import pytest
import torch

from multitask.data.calibration import Calibration
from multitask.methods.calibration import (
    best_f1_threshold,
    fit_temperature,
    folds,
    reliability,
)
from multitask.methods.losses import binary_cross_entropy, cross_entropy


def test_the_temperature_that_makes_confidence_accuracy():
    """Logits of 2 and -2, right three times in four: the likelihood is greatest where sigmoid(2 / T) = 3 / 4,
    at T = 2 / ln 3. Two classes whose logits differ by 2 are the same."""
    logits, labels = torch.tensor([[2.0], [2], [-2], [-2]]).double(), torch.tensor([1.0, 1, 0, 1])
    wanted = pytest.approx(2 / math.log(3), rel=1e-4)
    assert fit_temperature(binary_cross_entropy, logits, labels) == wanted
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    assert fit_temperature(cross_entropy, two, labels) == wanted


@pytest.mark.parametrize(("logit", "wanted"), [(3.0, 1 / 20), (-3.0, 20)])
def test_rows_that_are_all_right_or_all_wrong_stay_within_bounds(logit, wanted):
    found = fit_temperature(binary_cross_entropy, torch.full((4, 1), logit).double(), torch.ones(4))
    assert found == pytest.approx(wanted, rel=1e-3)
    Calibration(found)


def test_the_threshold_with_the_highest_f1():
    """Above each cut, from the top, 1/1, 1/2, 2/3, 3/4 and 3/5 are positive, of three in all: F1 is .5, .4,
    .667, .857 and .75. So the cut is between -1 and -2, at the logit -1.5."""
    logits, labels = np.array([2.0, 1, 0, -1, -2]), np.array([1.0, 0, 1, 1, 0])
    found = best_f1_threshold(logits, labels)
    assert found == pytest.approx(1 / (1 + math.exp(1.5)))
    assert Calibration(threshold=found).least_logit == pytest.approx(-1.5)


def test_thresholds_at_the_ends():
    assert best_f1_threshold(np.array([1.0, 2]), np.zeros(2)) == 0.5
    everything = best_f1_threshold(np.array([1.0, 2]), np.ones(2))
    assert everything == pytest.approx(1 / (1 + math.exp(-0.5)))  # below the least
    assert best_f1_threshold(np.array([99.0, 98]), np.array([1.0, 0])) == 1 - 1e-6


def test_every_row_is_judged_once_by_the_rest():
    seen = []
    for rest, fold in folds(12):
        assert len(fold) in (2, 3) and sorted([*rest, *fold]) == list(range(12))
        seen += fold.tolist()
    assert sorted(seen) == list(range(12)) and seen != sorted(seen)
    assert [len(fold) for _, fold in folds(2)] == [1, 1]


def test_the_calibration_error():
    """30 rows make 15 bins of two: seven with confidence .6, one with both, seven with .8. If all are right,
    the bins are off by .4, .3 and .2; if all are wrong, by .6, .7 and .8."""
    p = np.repeat([0.6, 0.8], 15)
    probabilities = np.stack([1 - p, p], axis=1)
    found = reliability(probabilities, np.ones(30))
    assert found.error == pytest.approx((7 * 0.4 + 0.3 + 7 * 0.2) / 15) and found.rows == [2] * 15
    assert found.confidence == pytest.approx([0.6] * 7 + [0.7] + [0.8] * 7)
    wrong = reliability(probabilities, np.zeros(30))
    assert wrong.error == pytest.approx((7 * 0.6 + 0.7 + 7 * 0.8) / 15) and wrong.accuracy == [0.0] * 15
    assert reliability(np.array([[0.25, 0.75]]), np.array([1.0])).error == 0.25
