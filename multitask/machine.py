"""How a run uses the machine: threads, device, precision and compilation."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from minbert import products as libraries
from minbert.bert import BertModel
from minbert.config import BertConfig
from minbert.errors import InputError, short_line, shown
from minbert.linear import Linear, fast_products, onednn_is_here
from multitask import distributed
from multitask.config import Machine, Products
from multitask.messages import warn
from multitask.model import MultitaskBert

Model = TypeVar("Model", bound=MultitaskBert)

CPU, MPS = torch.device("cpu"), torch.device("mps")
DEVICES = re.compile(r"cpu|mps|cuda(:\d{1,3})?")
WORTH = 1.05  # the least speed of bf16, relative to float32, at which it is accepted
TOLERANCE = 1e-3  # the largest relative difference from the CPU at which --device auto takes a Mac's GPU


def set_up(machine: Machine, products: Products = Products(), resume: bool = False) -> torch.device:
    """Set the number of threads and return the device; `auto` is the GPU if torch sees one, but a Mac's only
    if it computes what the CPU does.

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


def place(model: Model, products: Products, device: torch.device) -> Model:
    """Return the model on its device, in the run's precision, with its layers compiled if --compile is set.

    They are not compiled if that would replace faster matrix products with torch's. Layers are compiled in
    place, so weights keep their names and a copy is an ordinary model.
    """
    model.precision = products.precision
    if products.compile and not any(_choices(model, products.precision, device).values()):
        for layer in model.encoder.layers:
            layer.compile(dynamic=True)
    return model.to(device)


def choose_products(model: MultitaskBert, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the matrix library of each of the encoder's products, and return the choice as a record.

    Process 0 chooses for all processes. A resumed run keeps what it has `recorded`, so that it goes on with
    the same bytes, if this is the same machine with as many threads and the record has all its products.
    """

    def choose() -> dict[str, Any]:
        found = _choices(model, model.precision, model.device)
        if recorded.get("machine") == libraries.machine() and recorded["onednn"].keys() == found.keys():
            return dict(recorded)
        return {"machine": libraries.machine(), "onednn": found}

    record = distributed.from_writer(choose)
    libraries.adopt(record["onednn"])
    return record


def _choices(model: MultitaskBert, precision: str, device: torch.device) -> dict[str, list[str]]:
    """Return which of the encoder's products oneDNN is to compute: none on a GPU, in bf16, or without it."""
    if device.type != "cpu" or precision != "float32" or not onednn_is_here():
        return {}
    return libraries.choices(model.layer_shapes)


def describe_products(record: Mapping[str, Any]) -> str:
    """Return the record of `choose_products` in lines to print."""
    lines = [f"  {size}: {', '.join(taken) or 'none'}" for size, taken in record["onednn"].items()]
    return "\n".join([f"products by oneDNN ({record['machine']}):", *(lines or ["  none"])])


def _device(name: str) -> torch.device:
    if name == "auto":
        return distributed.own_device(_found_device())
    if not DEVICES.fullmatch(name):
        raise InputError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {shown(name)}")
    try:
        device = distributed.own_device(torch.device(name))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available on this machine ({short_line(error)})") from None
    return device


def _found_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available() and not distributed.several() and _agrees_with_cpu(MPS):
        return MPS
    return CPU


@lru_cache  # warn once
def _agrees_with_cpu(device: torch.device) -> bool:
    try:
        difference = difference_from_cpu(device)
        found = f"vectors or gradients that differ from the CPU's by {difference:.2g} of their size"
    except RuntimeError as error:  # such as an operation that it lacks
        difference, found = math.inf, short_line(error)
    if difference <= TOLERANCE:
        return True
    warn(f"--device auto: computing on the CPU, because a test on {device} gave {found}")
    return False


def difference_from_cpu(device: torch.device) -> float:
    """Return by how much 8 rows through two layers of a random BERT-base give other numbers than on the CPU:
    the largest difference in the vectors, or in the gradient, relative to the CPU's largest number there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = BertModel(BertConfig(vocab_size=1000, num_hidden_layers=2)).eval()
        ids = torch.randint(1, 1000, (8, 16))
    mask = torch.arange(16) < torch.arange(2, 18, 2)[:, None]  # rows of 2, 4, ... 16 tokens
    pairs = zip(*(_vectors_and_gradient(encoder, ids, mask, place) for place in (CPU, device)), strict=True)
    return torch.stack([(one - other).abs().max() / one.abs().max() for one, other in pairs]).max().item()


def _vectors_and_gradient(
    encoder: BertModel, ids: Tensor, mask: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    copied = copy.deepcopy(encoder).to(device)
    vectors = copied.pooled(ids.to(device), mask.to(device))
    vectors.square().sum().backward()
    gradients = [parameter.grad for parameter in copied.parameters() if parameter.grad is not None]
    return vectors.detach().cpu(), torch.cat([gradient.flatten().cpu() for gradient in gradients])


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
        raise InputError(f"--compile: torch.compile does not work here ({short_line(error, 200)})") from None


def rounding() -> dict[str, str]:
    """Return what the rounding of a run's numbers depends on: the processor and the version of torch."""
    return {"processor": libraries.processor(), "torch": torch.__version__}
