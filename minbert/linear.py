"""Linear layers that use the faster of torch's two matrix libraries.

On x86, torch multiplies float32 matrices with MKL, which makes no use of AVX-512 on AMD processors. oneDNN,
which also comes with torch, does, and is twice as fast there. It sums in a different order, so it is used
only where speed matters more than the last bits: inside `fast_products`. Other processors keep MKL.
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

ROWS = 32  # oneDNN compiles a kernel for each new shape, so rows are padded to a multiple of this

_fast: ContextVar[bool] = ContextVar("fast", default=False)


def fast_products() -> AbstractContextManager[None]:
    """Return a context in which `Linear` and its gradients use the faster library.

    If that is oneDNN, only first derivatives are supported. The context does nothing under torch.compile.
    `torch.backends.mkldnn.flags(enabled=False)` turns oneDNN off.
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
    """`nn.Linear`, x W^T + b, with the faster library inside `fast_products`."""

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
    """Return whether oneDNN beats MKL: on an AMD processor with AVX-512, unless torch disables either."""
    here = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return bool(here) and _has_amds_avx512()


@cache
def _has_amds_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    maker = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    return "AuthenticAMD" in maker and torch.backends.cpu.get_cpu_capability() == "AVX512"
