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

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minbert.errors import InputError


def members(task: str, scores: Mapping[str, float], threshold: float, or_best: bool = False) -> list[str]:
    """Return the runs whose score reaches the threshold.

    If there is none, return the best run if `or_best`, else raise InputError with every run's score.

    >>> members("sentiment", {"a": 0.51, "b": 0.47, "c": 0.52}, threshold=0.5)
    ['a', 'c']
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


def average(
    mean: Callable[[Tensor, Tensor], Tensor],
    logits: Sequence[Tensor],
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Return the `mean` of the members' logits, (N, C) each, in float64: one of the means below, with these
    weights, which need not sum to 1.

    >>> logits = [torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.2, 0.8]]).log()]
    >>> average(mean_probabilities, logits, weights=[3, 1]).exp()
    tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    stacked = torch.stack(list(logits)).double()
    given = torch.tensor(weights or [1.0] * len(logits), dtype=torch.float64)
    return mean(stacked, (given / given.sum())[:, None, None])


def mean_probabilities(logits: Tensor, weights: Tensor) -> Tensor:
    """(M, N, C) -> (N, C), log p(c) of the members' mean probabilities; weights (M, 1, 1) that sum to 1."""
    return (logits.log_softmax(dim=2) + weights.log()).logsumexp(dim=0)


def mean_bernoulli(logits: Tensor, weights: Tensor) -> Tensor:
    """(M, N, 1) -> (N, 1), the same with two classes that one logit tells apart: log p(1) - log p(0)."""
    log_p1, log_p0 = ((F.logsigmoid(z) + weights.log()).logsumexp(dim=0) for z in (logits, -logits))
    return log_p1 - log_p0


def mean_outputs(outputs: Tensor, weights: Tensor) -> Tensor:
    """(M, N, 1) -> (N, 1), the mean of a regression's outputs."""
    return (outputs * weights).sum(dim=0)
