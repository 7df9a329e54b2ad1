"""pairing.py: a difference is judged on the same draws of the rows for both models."""

from dataclasses import replace

import numpy as np
import pytest

from multitask.data.tasks import PARAPHRASE, SIMILARITY
from multitask.pairing import Difference, differences

RNG = np.random.default_rng(0)


def test_the_interval_is_that_of_paired_rows():
    """Of 400 rows, the model is right in 20 in which the baseline is wrong, and wrong in none in which it is
    right: the share is .05 -+ 1.96 sqrt(.05 x .95 / 400), though each accuracy alone is known to +- .05."""
    labels = np.zeros(400)
    baseline = (np.arange(400) < 200).astype(float)
    model = (np.arange(400) < 180).astype(float)
    found = differences({"a": PARAPHRASE}, {"a": baseline}, {"a": model}, {"a": labels})
    for name in ("a", "score", "worst"):
        assert found[name].value == pytest.approx(0.05)
        assert found[name].interval == pytest.approx([0.0286, 0.0714], abs=0.004)
        assert found[name].verdict == "better"
    back = differences({"a": PARAPHRASE}, {"a": model}, {"a": baseline}, {"a": labels})
    assert {one.verdict for one in back.values()} == {"worse"}


def test_a_model_is_no_better_than_itself_and_a_smaller_error_is_better():
    task = replace(SIMILARITY, metric="rmse", low=0, high=5)
    labels = RNG.uniform(1, 4, size=200)
    good, bad = ({"a": labels + scale * RNG.normal(size=200)} for scale in (0.1, 0.5))
    same = differences({"a": task}, good, good, {"a": labels})["score"]
    assert (same.value, list(same.interval), same.verdict) == (0, [0, 0], "no clear difference")
    found = differences({"a": task}, bad, good, {"a": labels})
    assert found["a"].value < 0 < found["score"].value
    assert found["a"].verdict == found["score"].verdict == "better"


def test_a_verdict_is_a_sentence():
    assert Difference(0.012, [0.004, 0.02]).in_words("b", "a") == (
        "b beats a: score +0.012, 95% interval +0.004 to +0.020."
    )
    assert (
        Difference(-0.012, [-0.02, -0.004]).in_words("b", "a").startswith("b is worse than a: score -0.012")
    )
    assert (
        Difference(0.01, [-0.004, 0.02])
        .in_words("b", "a")
        .startswith("b and a cannot be told apart on these")
    )
