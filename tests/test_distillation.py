"""distillation.py: values and gradients derived by hand, and the limit of Hinton et al. 2015, equation 4."""

import math

import pytest
import torch
from torch import tensor

from multitask.methods.distillation import softened_kl, squared_distance

T = 2.0
TEACHER = tensor([[2 * math.log(3), 0.0]])  # softened by T: (3/4, 1/4)
STUDENT = tensor([[0.0, 0.0]])  # (1/2, 1/2)
# KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln(3/2) + 1/4 ln(1/2) = .1308; the other way round it is .1438.
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def test_the_kl_of_softened_classes_times_the_temperature_squared():
    assert softened_kl(STUDENT, TEACHER, T).item() == pytest.approx(4 * KL)


def test_one_logit_is_a_bernoulli_distribution():
    """sigmoid(2 ln 3 / 2) = 3/4 and sigmoid(0) = 1/2: the two classes above."""
    student, teacher = tensor([[0.0]]), tensor([[2 * math.log(3)]])
    assert softened_kl(student, teacher, T).item() == pytest.approx(4 * KL)
    assert softened_kl(student, -teacher, T).item() == pytest.approx(4 * KL)


def test_the_loss_is_the_mean_over_the_batch():
    """One row as above and two in which student and teacher agree: a third of the loss."""
    student = torch.cat([STUDENT, tensor([[1.0, 2.0], [5.0, -5.0]])])
    teacher = torch.cat([TEACHER, tensor([[3.0, 4.0], [5.0, -5.0]])])  # a constant does not matter
    assert softened_kl(student, teacher, T).item() == pytest.approx(4 * KL / 3)


def test_the_gradient_pulls_the_student_towards_the_teacher():
    """d/dz of T^2 KL is T (p - q), over the B rows: T = 2 and p - q = (1/2 - 3/4, 1/2 - 1/4) give (-.5, .5).
    For one logit z, d/dz of T^2 KL is T (p_1 - q_1) = -.5. The teacher gets no gradient."""
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    softened_kl(student, teacher, T).backward()
    torch.testing.assert_close(student.grad, tensor([[-0.5, 0.5]]))
    assert teacher.grad is None
    student = torch.zeros(1, 1, requires_grad=True)
    softened_kl(student, tensor([[2 * math.log(3)]]), T).backward()
    torch.testing.assert_close(student.grad, tensor([[-0.5]]))


@pytest.mark.parametrize("temperature", [1.0, 100.0, 1000.0])
def test_the_gradient_keeps_its_size_whatever_the_temperature(temperature):
    """Equation 4: for a high T and logits of mean 0, the gradient of T^2 KL is (z - v) / C, here (1 + 1) / 2.
    At T = 1 it is p_0 - q_0 = sigmoid(2) - sigmoid(-2) = tanh(1) = .762."""
    student = tensor([[1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    teacher = tensor([[-1.0, 1.0]], dtype=torch.float64)
    softened_kl(student, teacher, temperature).backward()
    wanted = 1.0 if temperature > 1 else math.tanh(1)
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([wanted, -wanted], rel=1e-3)


@pytest.mark.parametrize("columns", [1, 5])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_perfect_student_has_no_loss_and_no_gradient(columns, temperature):
    student = torch.randn(7, columns, requires_grad=True)
    loss = softened_kl(student, student.detach().clone(), temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None and student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("sure", [tensor([[1000.0, -1000.0]]), tensor([[1000.0]]), tensor([[-1000.0]])])
def test_a_sure_teacher_leaves_finite_numbers(sure):
    """q = (1, 0) against p = (1/2, 1/2): ln 2, and not the NaN of 0 log 0."""
    student = torch.zeros_like(sure).requires_grad_()
    loss = softened_kl(student, sure, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert student.grad is not None and student.grad.isfinite().all()


def test_values_are_learned_by_their_squared_error_at_any_temperature():
    """((1 - 3)^2 + (2 - 2)^2) / 2 = 2, with a gradient of (2 (1 - 3) / 2, 0) = (-2, 0)."""
    for temperature in (1.0, 5.0):
        student, teacher = tensor([[1.0], [2.0]], requires_grad=True), tensor([[3.0], [2.0]]).requires_grad_()
        loss = squared_distance(student, teacher, temperature)
        loss.backward()
        assert loss.item() == 2
        torch.testing.assert_close(student.grad, tensor([[-2.0], [0.0]]))
        assert teacher.grad is None


@pytest.mark.parametrize("loss", [softened_kl, squared_distance])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 1)])
def test_shapes_that_would_broadcast_are_refused(loss, shape):
    with pytest.raises(ValueError, match="of the same shape"):
        loss(torch.zeros(3, 1), torch.zeros(shape), 1.0)
