"""Ensemble: for each task, the mean of the runs that are good enough at it (section 4.4 of "Jack of All
Trades, Master of Some: Improving BERT for Multitask Learning", Stanford CS224N).

A run is a member for a task if its dev score reaches the task's threshold; the score of a correlation r is
(1 + r) / 2. Probabilities are averaged for classes, outputs for a regression:

    p(c) = sum_m w_m p_m(c) / sum_m w_m

    m           a member; one of the `logits` (N, C) each
    w_m         `weights`, equal by default
    p_m(c)      softmax or sigmoid of its logits; for a regression, its output

The result is log p(c), or log p(1) - log p(0) for a binary task: logits like those of a single model. The sum
is computed with logarithms, so a probability close to 0 or 1 still gives a finite logit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minbert.errors import InputError


def members(task: str, scores: Mapping[str, float], threshold: float, or_best: bool = False) -> list[str]:
    """Return the runs whose score reaches the threshold.

    If there is none, return the best run if `or_best`, else raise InputError with every run's score.
    """
    chosen = [run for run, score in scores.items() if score >= threshold]
    if not chosen and or_best:
        return [max(scores, key=scores.__getitem__)]
    if not chosen:
        listed = ", ".join(f"{run} {score:.3f}" for run, score in scores.items())
        raise InputError(
            f"{task}: no run reaches the threshold {threshold:g} ({listed}); "
            "lower --thresholds, or take the best run with --or-best"
        )
    return chosen


def average(kind: str, logits: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Return the logits (N, C) of the members' weighted mean probabilities, or the weighted mean (N, 1) of
    their outputs for a regression, in float64. `logits` holds each member's (N, C)."""
    stacked = torch.stack(list(logits)).double()
    given = torch.tensor(weights or [1.0] * len(logits), dtype=torch.float64)
    fractions = (given / given.sum())[:, None, None]
    if kind == "classification":
        return (stacked.log_softmax(dim=2) + fractions.log()).logsumexp(dim=0)
    if kind == "binary":
        log_p1, log_p0 = ((F.logsigmoid(z) + fractions.log()).logsumexp(dim=0) for z in (stacked, -stacked))
        return log_p1 - log_p0
    return (stacked * fractions).sum(dim=0)
