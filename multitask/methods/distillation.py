"""Distillation: a student learns the outputs of a trained teacher (Hinton et al. 2015, "Distilling the
Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531, section 2).

Equation 1 softens the class probabilities with a temperature; the loss is the student's distance from the
teacher:

    q_c(z) = exp(z_c / T) / sum_j exp(z_j / T)
    L = T^2 KL(q(v) || q(z)),    KL(q || p) = sum_c q_c (log q_c - log p_c)

    z    `student`, its logits (B, C)
    v    `teacher`, its logits (B, C), through which no gradient flows
    T    `temperature`: 1 leaves the probabilities as they are; the higher it is, the more the student learns
         about which wrong classes came close

The gradient of the KL falls as 1 / T^2 (equation 4). The factor T^2 compensates for that, so that a weight
between L and the loss on the labels means the same at every temperature. Hinton et al. minimise the
cross-entropy of q(v) and q(z), which is the KL plus the entropy of q(v): the gradients are equal, but the KL
of a perfect student is 0. A single logit is that of a Bernoulli distribution, q(z) = sigmoid(z / T). A
regression has no probabilities to soften, so a student learns its value by squared error.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multitask.methods.losses import check_pair, squared_difference


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(q(teacher) || q(student)), a scalar: the mean over the batch.

    Logits (B, C) each; a single column is the logit of a Bernoulli distribution.

    >>> teacher = torch.tensor([[2.0, 0.0, -1.0]])
    >>> softened_kl(teacher + 5, teacher, temperature=2.0).abs() < 1e-6  # the same probabilities
    tensor(True)
    """
    check_pair(student, teacher)
    log_q, log_p = (_log_probabilities(z / temperature) for z in (teacher.detach(), student))
    return temperature**2 * (log_q.exp() * (log_q - log_p)).sum(dim=1).mean()


def squared_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return (student - teacher)^2, a scalar: the mean over the batch. Outputs (B, 1) each.

    The temperature has no effect; it is a parameter so that all kinds of task have the same signature.
    """
    return squared_difference(student, teacher.detach())


def _log_probabilities(logits: Tensor) -> Tensor:
    """Return log probabilities (B, C) from logits (B, C), or those of both classes, (B, 2), from (B, 1)."""
    if logits.shape[1] > 1:
        return logits.log_softmax(dim=1)
    return torch.cat([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)
