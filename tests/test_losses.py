"""losses.py: values derived by hand; shapes that would broadcast are refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, tensor

from multitask.data.kinds import KINDS
from multitask.methods.losses import (
    binary_cross_entropy,
    cross_entropy,
    squared_difference,
    squared_error,
    symmetric_kl,
)


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
    The mean of the three is (ln 4/3 + ln 4 + ln 2) / 3 = ln(32/3) / 3."""
    logits = tensor([[math.log(3)], [math.log(3)], [0.0]])
    assert close(binary_cross_entropy(logits, tensor([1.0, 0.0, 1.0])), math.log(32 / 3) / 3)


def test_squared_error():
    """(1 - 3)^2 = 4 and (2.5 - 2)^2 = 0.25; their mean is 2.125. A B x B broadcast would give 2.625."""
    assert close(squared_error(tensor([[1.0], [2.5]]), tensor([3.0, 2.0])), 2.125)


@pytest.mark.parametrize("loss", [cross_entropy, binary_cross_entropy, squared_error])
@pytest.mark.parametrize("shape, labels", [((3, 1), (3, 1)), ((3,), (3,)), ((3, 1), (2,)), ((1, 1), (3,))])
def test_shapes_that_would_broadcast_are_refused(loss, shape, labels):
    with pytest.raises(ValueError, match="do not fit labels"):
        loss(torch.zeros(shape), torch.zeros(labels))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
@pytest.mark.parametrize("kind, columns", [("classification", 3), ("binary", 1), ("regression", 1)])
def test_a_loss_is_of_its_logits_type_whatever_that_of_the_labels(kind, columns, dtype):
    logits, labels = torch.randn(3, columns), tensor([0, 1, 1])
    loss = KINDS[kind].loss
    torch.testing.assert_close(loss(logits, labels.to(dtype)), loss(logits, labels.float()))


@pytest.mark.parametrize("loss", [binary_cross_entropy, squared_error])
def test_one_column_is_wanted(loss):
    with pytest.raises(ValueError, match=r"logits \(3, 2\) do not fit"):
        loss(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.parametrize("kind, columns", [("classification", 3), ("binary", 1), ("regression", 1)])
def test_gradients_reach_the_logits(kind, columns):
    logits = torch.randn(4, columns, requires_grad=True)
    KINDS[kind].loss(logits, torch.ones(4)).backward()
    assert logits.grad is not None and logits.grad.abs().min() > 0


# Divergences


def test_symmetric_kl_of_two_classes():
    """P = (3/4, 1/4) and Q = (1/4, 3/4): KL(P||Q) = 3/4 ln 3 - 1/4 ln 3 = ln 3 / 2, and KL(Q||P) is equal.
    The sum is ln 3; half of it would be ln 3 / 2."""
    p, q = tensor([[math.log(3), 0.0]]), tensor([[0.0, math.log(3)]])
    assert close(symmetric_kl(p, q), math.log(3))


def test_symmetric_kl_is_the_sum_of_both_directions():
    """P = (4/5, 1/5) and Q = (1/2, 1/2), where the two directions differ:
    KL(P||Q) = 4/5 ln 8/5 + 1/5 ln 2/5 and KL(Q||P) = 1/2 ln 5/8 + 1/2 ln 5/2; together
    (4/5 - 1/2) ln 8/5 + (1/5 - 1/2) ln 2/5 = 3/10 ln 4."""
    p, q = tensor([[math.log(4), 0.0]]), torch.zeros(1, 2)
    one_way = 0.8 * math.log(8 / 5) + 0.2 * math.log(2 / 5)
    other_way = 0.5 * math.log(5 / 8) + 0.5 * math.log(5 / 2)
    assert math.isclose(one_way + other_way, 0.3 * math.log(4))
    assert not math.isclose(one_way, other_way, rel_tol=0.1)
    assert close(symmetric_kl(p, q), 0.3 * math.log(4))
    assert close(symmetric_kl(q, p), 0.3 * math.log(4))


def test_symmetric_kl_of_five_classes():
    """P = (8, 4, 2, 1, 1) / 16 and Q is P reversed. Each (p - q) (ln p - ln q) is 7/16 ln 8 for the outer two
    classes, 3/16 ln 4 for the next two, 0 in the middle: 2 (21/16 + 6/16) ln 2 = 27/8 ln 2. The last two
    classes of P are equal, so Q = (1, 1, 2, 4, 8) / 16. A constant added to all logits changes nothing."""
    p = tensor([[8.0, 4.0, 2.0, 1.0, 1.0]]).log()
    q = p.flip(1)
    assert close(symmetric_kl(p, q), 27 / 8 * math.log(2))
    assert close(symmetric_kl(p + 3, q - 2), 27 / 8 * math.log(2))


def test_symmetric_kl_of_one_column_is_that_of_bernoulli_distributions():
    """Logits ln 3 and 0: probabilities (3/4, 1/4) and (1/2, 1/2), so
    (1/4) ln(3/2) + (-1/4) ln(1/2) = ln 3 / 4. A softmax over one logit is always 1, and gives 0."""
    assert close(symmetric_kl(tensor([[math.log(3)]]), tensor([[0.0]])), math.log(3) / 4)


def test_one_column_equals_the_softmax_over_it_and_zero():
    p, q = torch.randn(2, 7, 1, dtype=torch.float64) * 4
    zero = torch.zeros_like(p)
    two_columns = symmetric_kl(torch.cat([zero, p], dim=1), torch.cat([zero, q], dim=1))
    torch.testing.assert_close(symmetric_kl(p, q), two_columns)


@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("size", [1.0, 50.0, 1e4])
def test_symmetric_kl_of_equal_logits_is_0(columns, size):
    logits = torch.randn(4, columns) * size
    assert symmetric_kl(logits, logits.clone()).item() == 0


def test_squared_difference():
    """(1 - 3)^2 = 4 and (2.5 - 2)^2 = 1/4; their mean is 17/8."""
    assert close(squared_difference(tensor([[1.0], [2.5]]), tensor([[3.0], [2.0]])), 17 / 8)


@pytest.mark.parametrize(
    "divergence, columns", [(symmetric_kl, 1), (symmetric_kl, 5), (squared_difference, 1)]
)
def test_a_divergence_is_a_mean_over_examples(divergence, columns):
    """The whole batch twice gives the same value; a sum would double."""
    p, q = torch.randn(2, 3, columns)
    each = [divergence(p[row : row + 1], q[row : row + 1]).item() for row in range(3)]
    assert close(divergence(p, q), sum(each) / 3)
    assert close(divergence(p.repeat(2, 1), q.repeat(2, 1)), sum(each) / 3)


@pytest.mark.parametrize(
    "divergence, columns", [(symmetric_kl, 1), (symmetric_kl, 5), (squared_difference, 1)]
)
def test_a_divergences_gradient_on_both_sides_is_that_of_finite_differences(divergence, columns):
    """gradcheck compares every entry of both Jacobians; a detached side would be 0 in ours only."""
    p, q = (torch.randn(3, columns, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(divergence, (p, q))
    divergence(p, q).backward()
    assert p.grad is not None and q.grad is not None
    assert p.grad.abs().min() > 0 and q.grad.abs().min() > 0


@pytest.mark.parametrize("columns", [1, 2, 5])
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_symmetric_kl_of_large_logits_is_a_number(columns, size):
    """Logits of +-s: P is certain of one class and Q of the other. One column gives (1 - 0) (s + s) = 2 s;
    with more, the logarithms of the two classes that matter are s + s apart, which gives 2 * 2 s."""
    p = torch.full((2, columns), -size)
    p[:, 0] = size
    q = -p if columns == 1 else p.roll(1, dims=1)
    p.requires_grad_(), q.requires_grad_()
    value = symmetric_kl(p, q)
    assert close(value, 2 * size if columns == 1 else 4 * size)
    value.backward()
    assert p.grad is not None and p.grad.isfinite().all() and q.grad is not None and q.grad.isfinite().all()


@pytest.mark.parametrize("divergence", [symmetric_kl, squared_difference])
@pytest.mark.parametrize(
    "p, q", [((3, 1), (3,)), ((3,), (3,)), ((3, 1), (1, 1)), ((3, 2), (3, 1)), ((2, 3, 1),) * 2]
)
def test_a_divergence_refuses_shapes_that_would_broadcast(divergence, p, q):
    with pytest.raises(ValueError, match=r"two \(B, C\) of the same shape"):
        divergence(torch.zeros(p), torch.zeros(q))


@pytest.mark.parametrize("weights", [None, tensor([0.5, 2.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_and_smoothing_mean_the_same_with_one_output_and_with_two(weights, smoothing):
    """A logit z is the same as the two 0 and z; a weight multiplies, and smoothing takes a label from 1 to
    .9 and from 0 to .1."""
    z, labels = tensor([[1.5], [-0.5], [0.3]]), tensor([1, 1, 0])
    one = binary_cross_entropy(z, labels, weights, smoothing)
    two = cross_entropy(torch.cat([torch.zeros_like(z), z], dim=1), labels, weights, smoothing)
    torch.testing.assert_close(one, two)
    target = labels * (1 - smoothing) + smoothing / 2
    each = -target * F.logsigmoid(z[:, 0]) - (1 - target) * F.logsigmoid(-z[:, 0])
    torch.testing.assert_close(one, ((1 if weights is None else weights[labels]) * each).mean())
