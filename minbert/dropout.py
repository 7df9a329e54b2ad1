"""Dropout (Srivastava et al. 2014), with few random numbers.

On a processor it is the drawing that takes the time: torch's dropout draws a number for each element, one
after another, which is a tenth of a training step. Here one draw of 64 bits serves four elements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, probability: float) -> Tensor:
    """x with each element 0 at this probability, and else grown so that its mean stays.

    On a processor an element is kept where its own 16 random bits are among the lowest (1 - probability)
    2^16, rounded to a whole number; the growth is the inverse of just that share.
    """
    kept = round((1 - probability) * 2**16)
    if x.device.type != "cpu" or kept in (0, 2**16):
        return F.dropout(x, probability)
    draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)  # all of the 64 bits
    keep = draws.view(torch.int16)[: x.numel()].view(x.shape) < kept - 2**15
    return x * keep.to(x.dtype).mul_(2**16 / kept)


class Dropout(nn.Dropout):
    """`dropout` in training, nothing in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x
