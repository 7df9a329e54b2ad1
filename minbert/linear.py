"""Linear layers at the rate of the processor.

On x86, torch gives products of float32 matrices to MKL, which leaves the AVX-512 of AMD's processors unused.
oneDNN, which torch has too, uses it and multiplies twice as fast there. Its sums are taken in another order,
so it serves where speed is wanted: inside `fast_products`. On other processors nothing changes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 32  # oneDNN compiles a kernel for each shape it meets: rows come in multiples of these

_fast: ContextVar[bool] = ContextVar("fast", default=False)


def fast_products() -> AbstractContextManager[None]:
    """In here a `Linear` takes the faster library, and so do the gradients of what it computes: first
    derivatives only, where that is oneDNN. Nothing is taken while torch.compile looks on.
    `torch.backends.mkldnn.flags(enabled=False)` turns oneDNN off."""
    return nullcontext() if torch.compiler.is_compiling() else _taking_the_faster()


@contextmanager
def _taking_the_faster() -> Iterator[None]:
    token = _fast.set(True)
    try:
        yield
    finally:
        _fast.reset(token)


class Linear(nn.Linear):
    """`nn.Linear`, x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not _fast.get() or not _suits_onednn(x):
            return super().forward(x)
        rows = F.pad(x, (0, 0, 0, -len(x) % ROWS))
        product: Tensor = torch._C._nn.mkldnn_linear(rows.to_mkldnn(), self.weight, self.bias)
        return product.to_dense()[: len(x)]


def _suits_onednn(x: Tensor) -> bool:
    rows = x.ndim == 2 and len(x) >= ROWS
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return rows and plain and onednn_is_faster()


def onednn_is_faster() -> bool:
    """On AMD's processors with AVX-512, unless torch is told to do without either."""
    here = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return bool(here) and _has_amds_avx512()


@cache
def _has_amds_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    maker = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in maker and torch.backends.cpu.get_cpu_capability() == "AVX512"
