"""How a run uses the machine: threads, device, precision and compilation."""

from __future__ import annotations

import platform
import re
import time
from functools import lru_cache
from pathlib import Path
from statistics import median

import torch

from minbert.errors import InputError
from minbert.linear import Linear, fast_products, onednn_is_faster
from multitask import distributed
from multitask.config import Machine, Products
from multitask.model import MultitaskBert

WORTH = 1.05  # the least speed of bf16, relative to float32, at which it is accepted


def set_up(machine: Machine, products: Products = Products(), resume: bool = False) -> torch.device:
    """Set the number of threads and return the device; `auto` is the GPU if torch sees one.

    Each of several processes has its own GPU. Raises InputError if this machine does not support the
    settings, or would only be slowed down by them.
    """
    threads = machine.threads or distributed.default_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    device = _device(machine.device)
    # A resumed run is not checked: a machine that happens to be busy should not stop it.
    if products.precision == "bf16" and not resume:
        _check_bf16(device)
    if products.compile:
        _check_compiler(device)
    return device


def place(model: MultitaskBert, products: Products, device: torch.device) -> MultitaskBert:
    """Return the model on its device, in the run's precision, with its layers compiled if --compile is set.

    They are not compiled if that would replace faster matrix products with torch's. Layers are compiled in
    place, so weights keep their names and a copy is an ordinary model.
    """
    model.precision = products.precision
    faster_as_it_is = device.type == "cpu" and products.precision == "float32" and onednn_is_faster()
    if products.compile and not faster_as_it_is:
        for layer in model.encoder.layers:
            layer.compile(dynamic=True)
    return model.to(device)


def _device(name: str) -> torch.device:
    if name == "auto":
        return distributed.own_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = distributed.own_device(torch.device(name))
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("only cpu, cuda and mps are supported")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name}: not available on this machine ({str(error).splitlines()[0]})"
        ) from None
    return device


def _check_bf16(device: torch.device) -> None:
    """Raise InputError if bf16 is not faster: processors without bf16 instructions emulate it slowly."""
    gain = distributed.from_writer(lambda: bf16_gain(device))
    if gain < WORTH:
        raise InputError(
            f"--precision bf16: measured at {gain:.2f} times the speed of float32 on this {device.type}; "
            "leave it out"
        )


@lru_cache
def bf16_gain(device: torch.device) -> float:
    """Return how many times as fast bf16 products are as float32 ones, measured once per process."""
    return product_seconds(torch.float32, device) / product_seconds(torch.bfloat16, device)


@torch.inference_mode()
def product_seconds(
    dtype: torch.dtype, device: torch.device, rows: int = 512, inputs: int = 768, outputs: int = 3072
) -> float:
    """Return the median time of a matrix product, in seconds; by default one as in a BERT layer."""
    layer = Linear(inputs, outputs, dtype=dtype, device=device)
    x = torch.ones(rows, inputs, dtype=dtype, device=device)
    seconds = []
    with fast_products():
        for _ in range(7):
            started = time.perf_counter()
            layer(x)[0, 0].item()  # waits for a GPU
            seconds.append(time.perf_counter() - started)
    return median(seconds)


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))
    except Exception as error:  # each backend has its own exception types
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--compile: torch.compile does not work here ({reason})") from None


def rounding() -> dict[str, str]:
    """Return what the rounding of a run's numbers depends on: the processor and the version of torch."""
    return {"processor": processor(), "torch": torch.__version__}


def processor() -> str:
    """Return the processor's name with its family and model, which tell one generation from the next."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, flags=re.MULTILINE))
    if len(found) < 3:
        return platform.processor()
    return f"{found['model name']}, family {found['cpu family']}, model {found['model']}"
