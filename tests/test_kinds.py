"""kinds.py: predictions by hand, and three kinds whose parts belong together."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from multitask.data import metrics
from multitask.data.kinds import BINARY, CLASSIFICATION, KINDS, REGRESSION
from multitask.data.tasks import PARAPHRASE, SENTIMENT, SIMILARITY
from multitask.methods import distillation, ensemble, losses

LOGITS = {
    "classification": tensor([[0.1, 3.0, 2.0], [5.0, -1.0, 4.9], [0.0, 0.5, 1.0]]),
    "binary": tensor([[0.2], [-0.2], [3.0]]),
    "regression": tensor([[2.5], [-7.0], [0.0]]),
}
LABELS = {"classification": [1, 0, 2], "binary": [1, 0, 1], "regression": [2.5, -7.0, 0.0]}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def test_decode():
    assert CLASSIFICATION.decode(tensor([[0.1, 3.0, 2.0], [5.0, -1.0, 4.9]])).tolist() == [1, 0]
    assert BINARY.decode(tensor([[0.2], [-0.2], [0.0]])).tolist() == [1, 0, 0]
    assert REGRESSION.decode(tensor([[2.5], [-7.0]])).tolist() == [2.5, -7.0]
    assert CLASSIFICATION.decode(torch.zeros(1, 5)).dtype == torch.int64
    assert BINARY.decode(torch.zeros(1, 1)).dtype == torch.int64


def test_probabilities():
    """softmax(0, ln 3) = (1/4, 3/4); sigmoid(ln 3) = 3/4, so the classes 0 and 1 have 1/4 and 3/4."""
    wanted = tensor([[0.25, 0.75]])
    torch.testing.assert_close(CLASSIFICATION.probabilities(tensor([[0.0, math.log(3)]])), wanted)
    torch.testing.assert_close(BINARY.probabilities(tensor([[math.log(3)]])), wanted)


@pytest.mark.parametrize("value, of_accuracy, of_pearson", [(1, 1, 1), (0.5, 0.5, 0.75), (0, 0, 0.5)])
def test_scores(value, of_accuracy, of_pearson):
    """A correlation from -1 to 1 becomes (1 + r) / 2; an accuracy is a score as it is."""
    assert CLASSIFICATION.score(value) == BINARY.score(value) == of_accuracy
    assert REGRESSION.score(value) == of_pearson
    assert REGRESSION.score(-1) == 0


# The three


def test_the_functions_of_each_kind():
    """As docs and `Task` describe them; a swap would train on another loss than it is scored by."""
    found = {
        name: (kind.loss, kind.divergence, kind.distillation, kind.average, kind.metric, kind.measure)
        for name, kind in KINDS.items()
    }
    of_classes = losses.symmetric_kl, distillation.softened_kl
    assert found == {
        "classification": (
            losses.cross_entropy, *of_classes, ensemble.mean_probabilities, "accuracy", metrics.accuracy
        ),
        "binary": (
            losses.binary_cross_entropy, *of_classes, ensemble.mean_bernoulli, "accuracy", metrics.accuracy
        ),
        "regression": (
            losses.squared_error, losses.squared_difference, distillation.squared_distance,
            ensemble.mean_outputs, "pearson", metrics.pearson,
        ),
    }  # fmt: skip
    assert tuple(KINDS.values()) == (CLASSIFICATION, BINARY, REGRESSION)
    assert [task.kind for task in (SENTIMENT, PARAPHRASE, SIMILARITY)] == [CLASSIFICATION, BINARY, REGRESSION]


@each_kind
def test_right_predictions_have_a_lower_loss_and_the_best_score(kind):
    """The loss, what is read off the logits, and the metric agree on what a right answer is."""
    logits, labels = LOGITS[kind.name], LABELS[kind.name]
    predictions = kind.decode(logits)
    assert predictions.tolist() == labels
    assert kind.score(kind.measure(predictions.double().numpy(), np.array(labels, float))) == pytest.approx(1)
    right, wrong = (kind.loss(logits, tensor(answer)) for answer in (labels, labels[::-1][1:] + labels[:1]))
    assert right < wrong
    assert kind.score(kind.measure(predictions.double().numpy(), np.array(labels[1:] + labels[:1]))) < 1


@each_kind
def test_equal_outputs_have_no_distance_and_different_ones_have_one(kind):
    logits = LOGITS[kind.name]
    for distance in (kind.divergence, lambda p, q: kind.distillation(p, q, 2.0)):
        assert distance(logits, logits.clone()).item() == pytest.approx(0, abs=1e-6)
        assert distance(logits, logits.flip(0)).item() > 0.1


@pytest.mark.parametrize("kind", [CLASSIFICATION, BINARY])
def test_the_most_probable_class_is_the_one_that_is_predicted(kind):
    probabilities = kind.probabilities(LOGITS[kind.name])
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    assert torch.equal(probabilities.argmax(dim=1), kind.decode(LOGITS[kind.name]))


@pytest.mark.parametrize("kind", [CLASSIFICATION, BINARY])
def test_the_loss_is_the_negative_logarithm_of_the_labels_probability(kind):
    logits, labels = LOGITS[kind.name], tensor([1, 1, 0])
    of_labels = kind.probabilities(logits).gather(1, labels[:, None])
    torch.testing.assert_close(kind.loss(logits, labels), -of_labels.log().mean())


def test_another_metric_changes_the_score_and_nothing_else():
    """A kind with an error knows the range: 1 of 5 leaves 4/5."""
    rooted = REGRESSION.scored_by("rmse", width=5.0)
    assert (rooted.metric, rooted.score(1.0), rooted.score(0.0)) == ("rmse", 0.8, 1.0)
    assert rooted == REGRESSION.scored_by("rmse", width=5.0) != REGRESSION.scored_by("rmse", width=4.0)
    assert (rooted.loss, rooted.decode, repr(rooted)) == (REGRESSION.loss, REGRESSION.decode, "'regression'")
    assert BINARY.scored_by("accuracy", math.inf).score(0.5) == 0.5


def test_a_regression_has_no_probabilities_and_no_classes():
    assert REGRESSION.probabilities is None
    assert [task.classes for task in (SENTIMENT, PARAPHRASE, SIMILARITY)] == [5, 2, 0]


@each_kind
def test_the_average_of_one_member_predicts_as_it_does(kind):
    """And that of two is the mean of their probabilities or, of a regression, their values."""

    def read(logits: Tensor) -> Tensor:
        return kind.decode(logits) if kind.probabilities is None else kind.probabilities(logits)

    one, other = LOGITS[kind.name].double(), LOGITS[kind.name].double().flip(0)
    alone = kind.average(one[None], torch.ones(1, 1, 1, dtype=torch.float64))
    torch.testing.assert_close(read(alone), read(one))
    both = kind.average(torch.stack([one, other]), torch.full((2, 1, 1), 0.5, dtype=torch.float64))
    torch.testing.assert_close(read(both), (read(one) + read(other)) / 2)


@each_kind
def test_a_kind_is_written_as_its_name(kind):
    """The names of cached tables hold it: an address in memory would never be the same again."""
    assert repr(kind) == repr(kind.name)
    assert "kind='classification'" in repr(SENTIMENT) and " at 0x" not in repr(SENTIMENT)


@each_kind
def test_a_copy_is_the_same_kind(kind):
    """A model is copied with its tasks, for a teacher and for the best epoch."""
    copied = copy.deepcopy(kind)
    assert copied == kind and {kind: 1}[copied] == 1
    assert all(copied != other for other in KINDS.values() if other is not kind)
