"""More than one process on one run, as torchrun starts them: what they divide and what they tell each other.

Every process takes the same task and the same global batch, and computes its own part of the rows. The parts
are made to add up: a mean over n_r of the batch's n rows, times the weight n_r / n, summed over the processes
r, is the mean over the batch,

    loss = sum_r  n_r / n  loss_r,        gradient = sum_r  n_r / n  gradient of loss_r

so one all-reduce of the gradients before the optimizer's step gives every process the gradient of the whole
batch; all start from the same weights and take the same steps, and need not compare them. This serves updates
of several forward passes (SMART, BPPO, accumulation), of which `DistributedDataParallel` would have to be
told. Process 0 alone writes and speaks: the writer. In one process everything here is the identity.

A process computes the loss on its own rows, weighted by n_r / n, and knows nothing of the others. Once an
update, the loop adds up the terms of the loss (`add_up`), so that all processes take the same decisions, and
the gradients (`sum_gradients`). A process without rows of its own computes one row with weight 0.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from minbert.errors import InputError, short_line
from multitask.launcher import GRACE_SECONDS, launched, processes_launched
from multitask.stopping import Stopped

Item = TypeVar("Item")


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun has started, where there are several; none but the writer prints.

    The first that fails raises its error; the others, which then fail too, exit silently with status 2.
    """
    if processes_launched() <= 1:
        yield
        return
    # Its functions keep the group that they find at import, whose threads would be at work while Python ends.
    importlib.import_module("torch.distributed.nn.functional")
    attempt = launched("TORCHELASTIC_RESTART_COUNT")  # what the one before has left would mislead
    try:
        store, number, count = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(f"attempt-{attempt}", store)
        # gloo for the CPU, NCCL for GPUs. The others wait for what the writer does by itself, however long.
        dist.init_process_group(store=store, rank=number, world_size=count, timeout=timedelta(days=7))
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes cannot meet ({short_line(error)}); start them all with torchrun"
        ) from None
    try:
        with _silence() if number else nullcontext():
            yield
    except Stopped as stopped:  # all together
        if number:
            time.sleep(GRACE_SECONDS)
            raise SystemExit(128 + stopped.number) from None
        raise
    except BaseException:
        if not _first_to_fail(store):
            with suppress(BaseException):  # torchrun's SIGTERM, which comes in the meantime
                time.sleep(GRACE_SECONDS)
            raise SystemExit(2) from None
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _first_to_fail(store: dist.Store) -> bool:
    try:
        return store.add("failures", 1) == 1
    except RuntimeError:  # the store has gone with the process that failed first
        return False


@contextmanager
def _together() -> Iterator[None]:
    """Turn the error of a call that needs all processes into an OSError: one of them has gone."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise ConnectionError(f"another process of this run has ended ({reason})") from None


_alone = False  # while the writer works by itself


def several() -> bool:
    """Whether there are others to work with."""
    return dist.is_available() and dist.is_initialized() and not _alone


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if several() else 0


def size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if several() else 1


def is_writer() -> bool:
    return rank() == 0


def part_of(count: int) -> tuple[slice, float]:
    """Return which of `count` rows are this process's, as near to count / size as whole rows go, and their
    fraction of all rows. If there are fewer rows than processes, some take the first row, with fraction 0."""
    start, stop = (count * number // size() for number in (rank(), rank() + 1))
    return (slice(start, stop), (stop - start) / count) if stop > start else (slice(0, 1), 0.0)


@dataclass(frozen=True)
class Part:
    """A process's part of a batch of packed examples (minbert/packing.py).

    All rows of the batch count, or some of them. A process that has none of those takes a row with weight 0.
    """

    lengths: np.ndarray  # (B,) tokens of each of the batch's rows
    counting: np.ndarray  # the rows that count, in order
    rows: np.ndarray  # this process's, in order
    weight: float  # its rows, as a fraction of those that count

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Part:
        """`lengths` are the numbers of tokens of all the batch's rows."""
        part, weight = part_of(len(lengths))
        rows = np.arange(len(lengths))
        return cls(np.asarray(lengths), rows, rows[part], weight)

    def among(self, counting: np.ndarray) -> Part:
        """Return this process's part of these rows of the batch alone."""
        mine = np.intersect1d(self.rows, counting) if self.weight else counting[:0]
        rows, weight = (mine, len(mine) / len(counting)) if len(mine) else (self.rows[:1], 0.0)
        return Part(self.lengths, counting, rows, weight)

    @property
    def batch_weight(self) -> float:
        """Its rows, as a fraction of the whole batch."""
        return self.weight * len(self.counting) / len(self.lengths)

    @property
    def token_weight(self) -> float:
        """Its tokens, as a fraction of those of all rows that count."""
        mine, all_tokens = (self.lengths[rows].sum() for rows in (self.rows, self.counting))
        return float(mine / all_tokens) if self.weight else 0.0

    def normal(self, width: int, generator: torch.Generator) -> Tensor:
        """Draw standard normal numbers (T, width) for this part's T tokens. They are drawn for the whole
        batch and cut out of it: from generators in equal states they do not depend on the number of
        processes, nor on which rows count."""
        mine = np.repeat(np.isin(np.arange(len(self.lengths)), self.rows), self.lengths)
        drawn = torch.randn((len(mine), width), generator=generator, device=generator.device)
        return drawn[torch.from_numpy(mine).to(generator.device)]


def _gather(mine: Item) -> list[Item]:
    """Return every process's item, in the processes' order."""
    items: list[Any] = [None] * size()
    with _together():
        dist.all_gather_object(items, mine)
    return items


def add_up(terms: Mapping[str, float]) -> dict[str, float]:
    """Return the sum over the processes of each number, the same everywhere; a process may lack some."""
    if not several():
        return dict(terms)
    sums: dict[str, float] = {}
    for one in _gather(dict(terms)):
        for name, value in one.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its sum over the processes. A parameter that had no part in the update has
    none anywhere, and keeps none."""
    if not several():
        return
    used = [parameter for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([parameter.grad.flatten() for parameter in used])  # type: ignore[union-attr]
    with _together():
        dist.all_reduce(flat)
    for parameter, sums in zip(used, flat.split([parameter.numel() for parameter in used]), strict=True):
        parameter.grad = sums.view_as(parameter)


def largest(number: int) -> int:
    """Return the largest of the processes' numbers, so that all come to the same decision."""
    if not several():
        return number
    box = torch.tensor(number)
    with _together():
        dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def deal(items: Sequence[Item]) -> Sequence[Item]:
    """Return the items that fall to this process, dealt out like cards."""
    return items[rank() :: size()]


def collect(results: list[Item]) -> list[Item]:
    """Return every process's results of the items it was dealt, in the items' own order."""
    if not several():
        return results
    hands = _gather(results)
    items: list[Any] = [None] * sum(map(len, hands))
    for number, hand in enumerate(hands):
        items[number :: size()] = hand
    return items


def from_writer(make: Callable[[], Item]) -> Item:
    """Return what `make` gives in the writer, which works by itself there, as one process does; the others
    wait."""
    global _alone
    if not several():
        return make()
    box: list[Any] = [None]
    if is_writer():
        _alone = True
        try:
            box[0] = make()
        finally:
            _alone = False
    with _together():
        dist.broadcast_object_list(box)
    return box[0]


def wait() -> None:
    """Wait until every process is here."""
    add_up({})


@contextmanager
def first_on_machine() -> Iterator[None]:
    """One process of each machine goes first, and leaves on its disk what the others find there."""
    others = launched("LOCAL_RANK") > 0
    if others:
        wait()
    yield
    if not others:
        wait()


def check_same(facts: Mapping[str, Any]) -> None:
    """Raise InputError in every process if in one of them a fact differs from that of process 0, or is
    missing."""
    if not several():
        return
    found = _gather(dict(facts))
    for number, theirs in enumerate(found):
        different = [name for name in {**found[0], **theirs} if theirs.get(name) != found[0].get(name)]
        if different:
            raise InputError(
                f"process {number} differs from process 0 in {', '.join(different)}: start all machines "
                "with the same command, on the same tables, with --out in a folder that they share"
            )


def own_device(device: torch.device) -> torch.device:
    """Return the device of this process: of the GPUs, the one with its number on the machine."""
    if not several() or device.type == "cpu":
        return device
    here = launched("LOCAL_WORLD_SIZE", 1)
    if device.type != "cuda" or device.index is not None or here > torch.cuda.device_count():
        raise InputError(
            f"--device {device}: {here} processes need a GPU each, of {torch.cuda.device_count()} here; "
            "start as many as there are with --device cuda, or compute on the CPU with --device cpu"
        )
    device = torch.device("cuda", launched("LOCAL_RANK"))
    torch.cuda.set_device(device)
    return device


def default_threads() -> int | None:
    """Return the machine's cores divided over its processes, for each of which torchrun would leave one
    thread; None if torch's own default, or the OMP_NUM_THREADS of the user, holds."""
    if not several() or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // launched("LOCAL_WORLD_SIZE", 1))
