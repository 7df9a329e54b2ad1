"""An embedding whose gradient stays in one place.

A batch names a few hundred of the 30,000 rows of a word table; the gradient of all others is zero. torch
writes those zeros into fresh memory at every step, 47 MB in a small BERT, which the system hands out page by
page: up to a tenth of a training step. Here the next gradient takes the memory of the last.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Embedding(nn.Embedding):
    """`nn.Embedding`, with the same numbers forward and backward."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # torch imports 800 modules, for a second, to draw nothing
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32:
            return super().forward(input)
        rows: Tensor = _Lookup.apply(self.weight, input.flatten(), self.padding_idx)
        return rows.unflatten(0, input.shape)


class _Lookup(torch.autograd.Function):
    """table[ids]; the row of padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding_idx = table.shape, padding_idx
        return table.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        total = zeros(ctx.shape).index_add_(0, ids, gradient)
        if ctx.padding_idx is not None:
            total[ctx.padding_idx] = 0
        return total, None, None


_arrays: dict[torch.Size, np.ndarray] = {}  # the last one of each shape


def zeros(shape: torch.Size) -> Tensor:
    """float32 zeros, in the memory of the last ones of this shape if no tensor is left in it."""
    array = _arrays.get(shape)
    if array is None or sys.getrefcount(array) > 3:  # the dict, `array` and the call; a tensor is one more
        array = _arrays[shape] = np.empty(shape, np.float32)
    return torch.from_numpy(array).zero_()
