"""Linear layers that use the faster of torch's two matrix libraries, product by product.

oneDNN, which comes with torch, is twice as fast on some processors as the library that torch multiplies with.
`products.py` measures which to take. oneDNN sums in a different order, so it is used only where speed matters
more than the last bits: inside `fast_products`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minbert.products import FEWEST_ROWS, Choice, chosen, onednn

ROWS = 32  # oneDNN compiles a kernel for each new shape, so rows are padded to a multiple of this

_fast: ContextVar[bool] = ContextVar("fast", default=False)


def fast_products() -> AbstractContextManager[None]:
    """Return a context in which `Linear` and its gradients use the faster library.

    If that is oneDNN, second derivatives and `torch.func` are not supported; turn it off for them, with
    `torch.backends.mkldnn.flags(enabled=False)`. The context does nothing under torch.compile.
    """
    return nullcontext() if torch.compiler.is_compiling() else _taking_the_faster()


@contextmanager
def _taking_the_faster() -> Iterator[None]:
    token = _fast.set(True)
    try:
        yield
    finally:
        _fast.reset(token)


class Linear(nn.Linear):
    """`nn.Linear`, x W^T + b, with the faster library inside `fast_products`.

    >>> layer, x = Linear(6, 4), torch.ones(2, 6)
    >>> torch.equal(layer(x), x @ layer.weight.T + layer.bias)
    True
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x W^T + b, with the faster library inside `fast_products`: (..., inputs) -> (..., outputs)."""
    if torch.compiler.is_compiling() or not _fast.get() or bias is None or not _suits_onednn(x):
        return F.linear(x, weight, bias)
    outputs, inputs = weight.shape
    choice = chosen(inputs, outputs, len(x))
    if not choice:
        return F.linear(x, weight, bias)
    product: Tensor = _Product.apply(_pad(x), weight, bias, choice)
    return product[: len(x)]


def _suits_onednn(x: Tensor) -> bool:
    rows = x.ndim == 2 and len(x) >= FEWEST_ROWS[0]
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return rows and plain and onednn_is_here()


def onednn_is_here() -> bool:
    """Whether torch has oneDNN, and it is not turned off."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class _Product(torch.autograd.Function):
    """x W^T + b, in which oneDNN computes the products of a choice: see products.py."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, choice: Choice) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.choice = choice
        return onednn(x, weight, bias) if "output" in choice else F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        needs_x, needs_weight, needs_bias = (_is_needed(node) for node, _ in ctx.next_functions[:3])
        if needs_x:
            of_x = onednn(gradient, weight.t()) if "input" in ctx.choice else gradient @ weight
        if needs_weight:
            of_weight = onednn(gradient.t(), x.t()) if "weight" in ctx.choice else gradient.t() @ x
        if needs_bias:
            of_bias = gradient.sum(dim=0)
        return of_x, of_weight, of_bias, None


def _is_needed(node: Any) -> bool:
    """Whether the running backward pass needs the gradient that goes to this node of the graph. SMART's
    ascent needs none of the weights', although they require gradients (`ctx.needs_input_grad`)."""
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # it is a leaf, and `torch.autograd.grad` was asked for its gradient
        return True


def _pad(rows: Tensor) -> Tensor:
    """Return the rows, and zeros up to a multiple of ROWS."""
    missing = -len(rows) % ROWS
    return F.pad(rows, (0, 0, 0, missing)) if missing else rows
