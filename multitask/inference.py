"""Batches in, outputs out: one loop over tokenised examples, whatever computes on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from multitask.data.tokens import Tokens, length_sorted_batches
from multitask.distributed import collect, deal

EVALUATION_BATCH = 256  # rows at most in a batch
EVALUATION_TOKENS = 2048  # at most in a batch, padding included: what the caches of a processor like best


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def in_length_order(
    tokens: Tokens,
    pad_token_id: int,
    compute: Callable[[Mapping[str, Tensor]], Tensor],
    batch_size: int = EVALUATION_BATCH,
    watch: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]] = iter,
) -> Tensor:
    """Return the rows that `compute` gives for batches of similar lengths, in the examples' own order, on the
    CPU, in float32. The batches are divided over the processes; `watch` may show their progress."""
    batches = length_sorted_batches(tokens.lengths, batch_size, EVALUATION_TOKENS)
    rows = [compute(tokens.batch(batch, pad_token_id)).float().cpu() for batch in watch(deal(batches))]
    return torch.cat(collect(rows))[np.argsort(np.concatenate(batches))]
