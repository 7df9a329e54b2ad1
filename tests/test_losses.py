"""losses.py: values by hand, and shapes that would broadcast are refused."""

import math

import pytest
import torch
from torch import Tensor, tensor

from multitask.losses import LOSSES, binary_cross_entropy, cross_entropy, squared_error
from multitask.tasks import METRICS


def close(value: Tensor, wanted: float) -> bool:
    return value.shape == () and math.isclose(value.item(), wanted, rel_tol=1e-6)


def test_cross_entropy():
    """softmax(0, ln 3) = (1/4, 3/4), so label 1 costs ln 4/3; softmax(ln 2, 0) = (2/3, 1/3), so label 1 costs
    ln 3; their mean is (ln 4/3 + ln 3) / 2 = ln 4 / 2 = ln 2."""
    logits = tensor([[0.0, math.log(3)], [math.log(2), 0.0]])
    assert close(cross_entropy(logits, tensor([1.0, 1.0])), math.log(2))


def test_cross_entropy_of_even_logits():
    """Five equal logits: every label costs ln 5."""
    assert close(cross_entropy(torch.zeros(3, 5), tensor([0.0, 2.0, 4.0])), math.log(5))


def test_binary_cross_entropy():
    """sigmoid(ln 3) = 3/4: label 1 costs ln 4/3, label 0 costs ln 4. sigmoid(0) = 1/2 costs ln 2 either way.
    The mean of the three: (ln 4/3 + ln 4 + ln 2) / 3 = ln(32/3) / 3."""
    logits = tensor([[math.log(3)], [math.log(3)], [0.0]])
    assert close(binary_cross_entropy(logits, tensor([1.0, 0.0, 1.0])), math.log(32 / 3) / 3)


def test_squared_error():
    """(1 - 3)^2 = 4 and (2.5 - 2)^2 = 0.25; their mean is 2.125. A B x B broadcast would give 2.625."""
    assert close(squared_error(tensor([[1.0], [2.5]]), tensor([3.0, 2.0])), 2.125)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("shape, labels", [((3, 1), (3, 1)), ((3,), (3,)), ((3, 1), (2,)), ((1, 1), (3,))])
def test_shapes_that_would_broadcast_are_refused(loss, shape, labels):
    with pytest.raises(ValueError, match="do not fit labels"):
        loss(torch.zeros(shape), torch.zeros(labels))


@pytest.mark.parametrize("loss", [binary_cross_entropy, squared_error])
def test_one_column_is_wanted(loss):
    with pytest.raises(ValueError, match=r"logits \(3, 2\) do not fit"):
        loss(torch.zeros(3, 2), torch.zeros(3))


def test_every_kind_has_a_loss():
    assert LOSSES.keys() == METRICS.keys()


@pytest.mark.parametrize("kind, columns", [("classification", 3), ("binary", 1), ("regression", 1)])
def test_gradients_reach_the_logits(kind, columns):
    logits = torch.randn(4, columns, requires_grad=True)
    LOSSES[kind](logits, torch.ones(4)).backward()
    assert logits.grad is not None and logits.grad.abs().min() > 0
