"""Where a run computes, and how fast: threads, device, precision, compilation."""

from __future__ import annotations

import time
from functools import lru_cache
from statistics import median

import torch

from minbert.errors import InputError
from minbert.linear import Linear, fast_products, onednn_is_faster
from multitask import distributed
from multitask.config import Config
from multitask.model import MultitaskBert

WORTH = 1.05  # of float32's speed: what bf16 must reach to be taken


def set_up(config: Config) -> torch.device:
    """Set the threads; the device by name, where auto is the GPU if torch sees one. Of several processes each
    has a GPU of its own. InputError where this machine cannot do what is asked, or would only be slowed down
    by it."""
    threads = config.threads or distributed.default_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    device = _device(config.device)
    if (
        config.precision == "bf16" and not config.resume
    ):  # a run that has begun is not to end for a busy minute
        _check_bf16(device)
    if config.compile:
        _check_compiler(device)
    return device


def prepared(model: MultitaskBert, config: Config, device: torch.device) -> MultitaskBert:
    """The model on its device, in the precision of the run, its layers compiled where that is wanted and does
    not put torch's products in the place of faster ones. A layer compiles in its place, so that weights keep
    their names and a copy is an ordinary model."""
    model.precision = config.precision
    faster_as_it_is = device.type == "cpu" and config.precision == "float32" and onednn_is_faster()
    if config.compile and not faster_as_it_is:
        for layer in model.encoder.layers:
            layer.compile(dynamic=True)
    return model.to(device)


def _device(name: str) -> torch.device:
    if name == "auto":
        return distributed.own_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = distributed.own_device(torch.device(name))
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("only cpu, cuda and mps compute")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not to be had here ({str(error).splitlines()[0]})") from None
    return device


def _check_bf16(device: torch.device) -> None:
    """A processor without instructions for bf16 emulates it, many times slower."""
    gain = distributed.from_writer(lambda: bf16_gain(device))
    if gain < WORTH:
        raise InputError(
            f"--precision bf16: measured at {gain:.2f} times the speed of float32 on this {device.type}; "
            "leave it out"
        )


@lru_cache
def bf16_gain(device: torch.device) -> float:
    """How many times as fast as in float32 products are in bf16, measured once a process."""
    return product_seconds(torch.float32, device) / product_seconds(torch.bfloat16, device)


@torch.inference_mode()
def product_seconds(
    dtype: torch.dtype, device: torch.device, rows: int = 512, inputs: int = 768, outputs: int = 3072
) -> float:
    """The median time of a product, by default as a BERT layer has it."""
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
    except Exception as error:  # the compiler's own kinds, which differ between backends
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"--compile: torch.compile does not work here ({reason})") from None
