"""Ensemble: per task, the mean of the runs that are good enough at it (paper, section 4.4).

A run is a member for a task where its dev score, (1 + r) / 2 for a correlation, passes that task's threshold.
Classes average their probabilities, a regression its outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minbert.errors import InputError


def members(task: str, scores: Mapping[str, float], threshold: float, or_best: bool = False) -> list[str]:
    """The runs whose score reaches the threshold. Where there is none: with `or_best` the best run, else an
    InputError with every run's score."""
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


def average(kind: str, logits: Sequence[Tensor]) -> Tensor:
    """Members' logits (N, C) each -> logits (N, C) of their mean probabilities, or the mean of their
    outputs."""
    stacked = torch.stack(list(logits)).double()
    if kind == "classification":
        return stacked.softmax(dim=2).mean(dim=0).log()
    if kind == "binary":
        return stacked.sigmoid().mean(dim=0).logit()
    return stacked.mean(dim=0)
