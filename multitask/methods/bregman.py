"""BPPO: Bregman proximal point optimisation (Jiang et al. 2020, https://arxiv.org/abs/1911.03437, eq. 4, 5).

    theta_{t+1} = argmin F(theta) + mu D(theta, teacher_t)
    D(theta, teacher) = 1/n sum_i l(f(x_i; theta), f(x_i; teacher))
    teacher_t = (1 - beta) theta_t + beta teacher_{t-1}

The teacher is a copy that slowly follows the model; D keeps the model's outputs close to the teacher's, and l
is the same divergence as in SMART (losses.py). At the first step teacher and model are equal, so D is exactly
0.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class MomentumTeacher:
    """The exponential moving average of a model's weights. Call it like the model; no gradient flows.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> teacher = MomentumTeacher(model, beta=0.75)
    >>> with torch.no_grad():
    ...     change = model.weight.add_(1.0)
    >>> teacher.update()
    >>> round((model(torch.ones(1, 1)) - teacher(torch.ones(1, 1))).item(), 4)
    0.75
    """

    def __init__(self, model: nn.Module, beta: float):
        if not 0 <= beta <= 1:
            raise ValueError(f"beta must lie in [0, 1], not {beta}")
        self.student = model
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.beta = beta

    @torch.no_grad()
    def update(self) -> None:
        """Set teacher = (1 - beta) student + beta teacher. Call it after every step of the optimizer."""
        for mine, theirs in zip(self.model.parameters(), self.student.parameters(), strict=True):
            mine.lerp_(theirs, 1 - self.beta)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def beta_at(step: int, total_steps: int, beta: float, later: float | None = None) -> float:
    """Return beta, or `later` after the first tenth of training (Jiang et al.: .99, then .999).

    >>> [beta_at(step, 100, 0.99, later=0.999) for step in (0, 9, 10)]
    [0.99, 0.99, 0.999]
    """
    return beta if later is None or step < total_steps // 10 else later
