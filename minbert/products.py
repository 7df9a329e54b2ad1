"""Which of torch's two matrix libraries is faster for a product: measured on this machine, and kept.

torch hands float32 products to a BLAS (on x86, MKL), and has oneDNN beside it. On one processor oneDNN is
twice as fast, on the next it is slower, and sometimes the shape decides. So both are timed, once, on the
three products of a linear layer with the weights W (out, in). X (rows, in) is its input, and dY the gradient
of its output Y:

    output  Y = X W^T          input  dX = dY W          weight  dW = dY^T X

oneDNN takes a product only if it is clearly faster; if the two are about equal, the BLAS keeps it. What was
measured is kept in `products.json` in the user's cache, by processor, threads and version of torch. The file
may be deleted at any time.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minbert.errors import InputError
from minbert.files import make_folder, write_text
from minbert.hub import cache_home
from minbert.reading import load_json

Choice = frozenset[str]  # those of a layer's products that oneDNN computes
Size = tuple[int, int, int]  # inputs, outputs and fewest rows
Table = dict[Size, Choice]
Clock = Callable[[], float]

PRODUCTS = ("output", "input", "weight")
FEWEST_ROWS = (32, 256)  # a choice is measured for so many rows, and holds up to the next number
GAIN = 1.1  # oneDNN's least speed, relative to the other library's, at which it takes a product
ROUNDS = 5

_SIZE = re.compile(r"(\d{1,7}) x (\d{1,7}), (\d{1,7}) rows or more")
_measured: dict[int, Table] = {}  # by the number of threads
_adopted: dict[int, Table] = {}  # likewise; these come first, and are never written to the file


def onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return a b^T + bias by oneDNN, without a gradient: a (n, in), which may be a transposed view as b (out,
    in) may, and bias (out,) -> (n, out)."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return product


def chosen(inputs: int, outputs: int, rows: int) -> Choice:
    """Return which products of a layer oneDNN computes, for FEWEST_ROWS[0] rows or more: as adopted, or as
    measured, now if they never were."""
    size = inputs, outputs, max(least for least in FEWEST_ROWS if least <= rows)
    adopted = _adopted.get(torch.get_num_threads(), {})
    return adopted[size] if size in adopted else _measured_here([size])[size]


def choices(shapes: Collection[tuple[int, int]]) -> dict[str, list[str]]:
    """Return which products oneDNN computes in layers of these (inputs, outputs), as measured here, in a form
    that `adopt` takes."""
    sizes = [(*shape, rows) for shape in shapes for rows in FEWEST_ROWS]
    return _written(_measured_here(sizes))


def adopt(written: object) -> None:
    """Use this result of `choices` from now on, in this process, whatever was measured. Raises ValueError if
    it is malformed."""
    _adopted[torch.get_num_threads()] = read_choices(written)


def machine() -> str:
    """Return what a measurement holds for: processor, threads and version of torch."""
    return f"{processor()}, threads {torch.get_num_threads()}, torch {torch.__version__}"


@cache
def processor() -> str:
    """Return the processor's name with its family and model, which tell one generation from the next; for an
    Arm, the numbers of its maker and part."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = dict(re.findall(r"^([\w ]*\w)\s*: (.+)$", text, flags=re.MULTILINE))
    if {"model name", "cpu family", "model"} <= found.keys():
        return f"{found['model name']}, family {found['cpu family']}, model {found['model']}"
    if {"CPU implementer", "CPU part"} <= found.keys():
        return f"{platform.machine()}, maker {found['CPU implementer']}, part {found['CPU part']}"
    return platform.processor() or platform.machine()


# Measuring


def measure(inputs: int, outputs: int, rows: int, clock: Clock = time.perf_counter) -> Choice:
    """Return those of the three products for which oneDNN is faster."""
    ones = partial(torch.ones, dtype=torch.float32, device="cpu")  # whatever torch's defaults are
    x, weight, gradient = ones(rows, inputs), ones(outputs, inputs), ones(rows, outputs)
    rivals: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "output": (lambda: F.linear(x, weight), lambda: onednn(x, weight)),
        "input": (lambda: gradient @ weight, lambda: onednn(gradient, weight.t())),
        "weight": (lambda: gradient.t() @ x, lambda: onednn(gradient.t(), x.t())),
    }
    return frozenset(name for name, (plain, other) in rivals.items() if is_faster(other, plain, clock))


def is_faster(other: Callable[[], object], plain: Callable[[], object], clock: Clock) -> bool:
    """Whether `other` is clearly faster than `plain`, in the best round of each. They take turns, so that a
    busy machine slows both; and it only ever adds to a time, so the best is the least disturbed."""

    def seconds(work: Callable[[], object]) -> float:
        started = clock()
        work()
        return clock() - started

    other()  # oneDNN compiles a kernel for each new shape
    rounds = [(seconds(plain), seconds(other)) for _ in range(ROUNDS)]
    of_plain, of_other = map(min, zip(*rounds, strict=True))
    return GAIN * of_other <= of_plain


# Keeping


def _measured_here(sizes: Sequence[Size]) -> Table:
    """Return the choices for these sizes from the file, or measure them now."""
    threads = torch.get_num_threads()
    if threads not in _measured:
        try:
            _measured[threads] = read_choices(_all_kept().get(machine(), {}))
        except ValueError:
            _measured[threads] = {}
    table = _measured[threads]
    missing = [size for size in sizes if size not in table]
    if missing:
        table |= {size: measure(*size) for size in missing}
        _keep(table)
    return {size: table[size] for size in sizes}


def _all_kept() -> dict[str, object]:
    """Return what products.json holds, machine by machine; nothing if it is missing or damaged."""
    try:
        kept = load_json(_file())
    except InputError:
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(table: Table) -> None:
    """Write this machine's table to products.json. If that fails, the next process measures again."""
    with suppress(OSError, InputError):
        make_folder(_file().parent)
        write_text(_file(), json.dumps(_all_kept() | {machine(): _written(table)}, indent=1) + "\n")


def _file() -> Path:
    return cache_home() / "products.json"


def _written(table: Table) -> dict[str, list[str]]:
    return {
        f"{inputs} x {outputs}, {rows} rows or more": [name for name in PRODUCTS if name in choice]
        for (inputs, outputs, rows), choice in sorted(table.items())
    }


def read_choices(written: object) -> Table:
    """Return the table that `choices` has written. Raises ValueError if this is not one."""
    if not isinstance(written, dict):
        raise ValueError("not a table of products")
    table: Table = {}
    for name, products in written.items():
        size = _SIZE.fullmatch(name)
        if size is None or not isinstance(products, list) or not all(one in PRODUCTS for one in products):
            raise ValueError(f"not a product: {name} {products}")
        inputs, outputs, rows = map(int, size.groups())
        table[inputs, outputs, rows] = frozenset(products)
    return table
