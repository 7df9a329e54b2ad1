"""An embedding that reuses the memory of its gradient.

A batch uses a few hundred of the 30,000 rows of a word embedding; the gradient of all other rows is zero.
torch writes those zeros into fresh memory at every step, 47 MB in a small BERT, which the system maps page by
page: up to a tenth of a training step. Here each gradient takes the memory of the previous one.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Embedding(nn.Embedding):
    """`nn.Embedding` with the same values and gradients; on the CPU, float32 gradients reuse memory.

    >>> Embedding(9, 8)(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 8])
    """

    def reset_parameters(self) -> None:
        """Draw fresh weights, unless there is no memory for them."""
        if not self.weight.is_meta:  # on meta, torch imports 800 modules (one second) to do nothing
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of these ids: (...,) -> (..., H)."""
        if self.weight.device.type != "cpu" or self.weight.dtype != torch.float32:
            return super().forward(input)
        rows: Tensor = _Lookup.apply(self.weight, input.flatten(), self.padding_idx)
        return rows.unflatten(0, input.shape)


class _Lookup(torch.autograd.Function):
    """The rows weight[ids]; the padding row gets no gradient."""

    @staticmethod
    def forward(weight: Tensor, ids: Tensor, padding_idx: int | None) -> Tensor:
        return weight.index_select(0, ids)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int | None], output: Tensor) -> None:
        weight, ids, ctx.padding_idx = inputs
        ctx.save_for_backward(ids)
        ctx.shape = weight.shape

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        # With create_graph the gradient is itself differentiated, so its memory is its own.
        total = torch.zeros(ctx.shape) if torch.is_grad_enabled() else zeros(ctx.shape)
        total = total.index_add_(0, ids, gradient)
        if ctx.padding_idx is not None:
            total[ctx.padding_idx] = 0
        return total, None, None


_last: dict[torch.Size, tuple[np.ndarray, weakref.ref[np.ndarray]]] = {}


def zeros(shape: torch.Size) -> Tensor:
    """Return float32 zeros, in the memory of the previous ones of this shape if no tensor still uses it.

    One array of each shape is kept as long as the program runs.
    """
    memory, lent = _last.pop(shape, (None, lambda: None))
    if memory is None or lent() is not None:
        memory = np.empty(shape, np.float32)
    view = memory[:]  # lives as long as any tensor made from it
    _last[shape] = memory, weakref.ref(view)
    return torch.from_numpy(view).zero_()
