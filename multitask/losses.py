"""Task losses: logits (B, C) and labels (B,) in, one scalar out, the mean over the batch's B examples.

Every shape is checked: (B, 1) against (B,) would broadcast into a B x B loss and say nothing.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label]; logits (B, C), labels (B,) with values 0..C-1."""
    _check(logits, labels)
    return F.cross_entropy(logits, labels.long())


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log sigmoid(+-logit); logits (B, 1), labels (B,) with values 0 and 1."""
    _check(logits, labels, columns=1)
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels.to(logits.dtype))


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """(output - label)^2; logits (B, 1), labels (B,)."""
    _check(logits, labels, columns=1)
    return F.mse_loss(logits.squeeze(1), labels.to(logits.dtype))


LOSSES = {"classification": cross_entropy, "binary": binary_cross_entropy, "regression": squared_error}


def _check(logits: Tensor, labels: Tensor, columns: int | None = None) -> None:
    wanted = (labels.shape[0], columns or logits.shape[-1])
    if labels.ndim != 1 or logits.shape != wanted:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
