"""tools/paper/averaged.py: the average of a row's seeds, and how calibrated it is."""

import numpy as np
import pytest

import averaged


def test_the_average_is_that_of_every_output():
    members = [{"sst-dev": np.array([[0.2, 0.8]])}, {"sst-dev": np.array([[0.6, 0.4]])}]
    assert averaged.average(members)["sst-dev"] == pytest.approx(np.array([[0.4, 0.6]]))


def test_a_model_twice_too_sure_has_temperature_2_and_is_mended_by_it():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 5))
    right = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(5, p=row) for row in right])
    temperature, before, after = averaged.calibration(np.exp(2 * logits), labels.astype(float))
    assert temperature == pytest.approx(2, abs=0.15)
    assert before > 0.15 and after < 0.04
