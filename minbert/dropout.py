"""Dropout (Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html) with few random numbers.

On a CPU, most of dropout's time goes into drawing random numbers: torch draws one per element, one after
another, which takes a tenth of a training step. Here one 64-bit draw serves four elements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, probability: float) -> Tensor:
    """Zero each element of x, of any shape, with this probability and rescale the rest to keep the mean.

    On a CPU, an element is kept if its own 16 random bits are among the lowest (1 - probability) 2^16 values,
    rounded to a whole number; it is then divided by exactly this fraction. Other devices use torch's dropout.

    >>> dropout(torch.ones(1000), 0.5).unique()
    tensor([0., 2.])
    """
    kept = round((1 - probability) * 2**16)
    if x.device.type != "cpu" or kept in (0, 2**16):
        return F.dropout(x, probability)
    draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) < kept - 2**15
    return x * keep.to(x.dtype).mul_(2**16 / kept)


class Dropout(nn.Dropout):
    """A layer that applies `dropout` in training and does nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, of any shape, with `dropout` in training."""
        return dropout(x, self.p) if self.training else x
