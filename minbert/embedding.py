"""An embedding whose gradient costs as much as the rows it touches.

A batch names a few hundred of the 30,000 rows of a word table; the gradient of all others is zero. torch
writes those zeros into fresh memory at every step, 47 MB in a small BERT: up to a tenth of a training step.
Memory mapped from the system is zero already, and becomes real, page by page, where it is written.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

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
        total = untouched_zeros(ctx.shape).index_add_(0, ids, gradient)
        if ctx.padding_idx is not None:
            total[ctx.padding_idx] = 0
        return total, None, None


def untouched_zeros(shape: Sequence[int]) -> Tensor:
    """float32 zeros. (NumPy's, untouched too, ask for pages of 2 MB and wait while Linux makes room for them,
    up to half a training step.)"""
    private = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}  # Windows has no such thing
    return torch.frombuffer(mmap.mmap(-1, 4 * math.prod(shape), **private), dtype=torch.float32).view(shape)
