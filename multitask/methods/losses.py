"""Task losses and divergences: scalars, each the mean over the batch's B examples.

A task loss compares logits (B, C) with labels (B,). A divergence l(., .) compares the logits (B, C) of two
passes; SMART and BPPO keep it small (Jiang et al. 2020, https://arxiv.org/abs/1911.03437, section 3). All
shapes are checked and raise ValueError: (B, 1) against (B,) would silently broadcast into a B x B loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return -log softmax(logits)[label]. Logits (B, C), labels (B,) with values 0..C-1.

    `class_weights` (C,) multiply the losses of the rows of each class. `label_smoothing` takes this share of
    a label and divides it over all classes.

    >>> cross_entropy(torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([0]))  # log 2
    tensor(0.6931)
    """
    _check(logits, labels)
    labels = labels.long()
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    losses = F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return (class_weights.to(losses)[labels] * losses).mean()


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return -log sigmoid(+logit) for label 1, -log sigmoid(-logit) for 0. Logits (B, 1), labels (B,).

    `class_weights` (2,) and `label_smoothing` are as in `cross_entropy`.

    >>> binary_cross_entropy(torch.zeros(1, 1), torch.tensor([1]))  # log 2
    tensor(0.6931)
    """
    _check(logits, labels, columns=1)
    targets = labels.to(logits.dtype)
    weights = None if class_weights is None else class_weights.to(logits)[labels.long()]
    if label_smoothing:
        targets = torch.lerp(targets, torch.full_like(targets, 0.5), label_smoothing)
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), targets, weight=weights)


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (output - label)^2. Logits (B, 1), labels (B,)."""
    _check(logits, labels, columns=1)
    return F.mse_loss(logits.squeeze(1), labels.to(logits.dtype))


def symmetric_kl(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Return KL(P||Q) + KL(Q||P), the sum and not half of it. Logits (B, C) each.

    Over the classes this is sum_c (p_c - q_c) (log p_c - log q_c). A single column is the logit of a
    Bernoulli distribution, whose two classes give (p - q) (logit_p - logit_q). Gradient flows to both sides.

    >>> p, q = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 1.0]]).log()
    >>> symmetric_kl(p, q)  # (3/4 - 1/2) log 3
    tensor(0.2747)
    """
    check_pair(logits_p, logits_q)
    if logits_p.shape[1] == 1:
        return ((logits_p.sigmoid() - logits_q.sigmoid()) * (logits_p - logits_q)).mean()
    log_p, log_q = logits_p.log_softmax(dim=1), logits_q.log_softmax(dim=1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=1).mean()


def squared_difference(outputs_p: Tensor, outputs_q: Tensor) -> Tensor:
    """Return (p - q)^2. Outputs (B, 1) each."""
    check_pair(outputs_p, outputs_q)
    return F.mse_loss(outputs_p, outputs_q)


def _check(logits: Tensor, labels: Tensor, columns: int | None = None) -> None:
    wanted = (labels.shape[0], columns or logits.shape[-1])
    if labels.ndim != 1 or logits.shape != wanted:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")


def check_pair(p: Tensor, q: Tensor) -> None:
    """Raise ValueError unless these are two matrices (B, C) of the same shape."""
    if p.ndim != 2 or p.shape != q.shape:
        raise ValueError(
            f"a divergence takes two (B, C) of the same shape, not {tuple(p.shape)} and {tuple(q.shape)}"
        )
