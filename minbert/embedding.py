"""An embedding whose gradient costs as much as the rows it touches.

A batch names a few hundred of the 30,000 rows of a word table; the gradient of all others is zero. torch
writes those zeros into fresh memory at every step, 47 MB in a small BERT: up to a tenth of a training step.
The system's own zeroed memory (calloc, which is what NumPy's `zeros` takes) becomes real where it is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Embedding(nn.Embedding):
    """`nn.Embedding`, with the same numbers forward and backward."""

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
        total = torch.from_numpy(np.zeros(ctx.shape, np.float32)).index_add_(0, ids, gradient)
        if ctx.padding_idx is not None:
            total[ctx.padding_idx] = 0
        return total, None, None
