"""The kinds of tasks. Each is one object with all that depends on the kind: how a task of it is learned, read
off the logits and scored. Axes: B or N examples, C outputs of a head, M members of an ensemble."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from multitask.methods.distillation import softened_kl, squared_distance
from multitask.methods.ensemble import mean_bernoulli, mean_outputs, mean_probabilities
from multitask.methods.losses import (
    binary_cross_entropy,
    cross_entropy,
    squared_difference,
    squared_error,
    symmetric_kl,
)


@dataclass(frozen=True, repr=False)
class Kind:
    """What a task of one kind computes."""

    name: str
    loss: Callable[[Tensor, Tensor], Tensor]  # logits (B, C) and labels (B,) -> scalar
    divergence: Callable[
        [Tensor, Tensor], Tensor
    ]  # logits (B, C) of two passes -> scalar; for SMART and BPPO
    distillation: Callable[[Tensor, Tensor, float], Tensor]  # student, teacher (B, C), temperature -> scalar
    average: Callable[[Tensor, Tensor], Tensor]  # members' logits (M, N, C), weights (M, 1, 1) -> (N, C)
    decode: Callable[[Tensor], Tensor]  # logits (N, C) -> the class of each example, int64, or its value (N,)
    probabilities: Callable[[Tensor], Tensor] | None  # logits (N, C) -> (N, classes); None: has no classes
    metric: str
    measure: Callable[[np.ndarray, np.ndarray], float]  # predictions and labels (N,) -> the metric
    score: Callable[[float], float]  # the metric -> a value from 0 to 1

    def __repr__(self) -> str:  # part of the names of cached tables, so it must not change between runs
        return repr(self.name)


def most_probable(logits: Tensor) -> Tensor:
    return logits.argmax(dim=1)


def is_positive(logits: Tensor) -> Tensor:
    return (logits > 0).squeeze(1).long()


def the_output(logits: Tensor) -> Tensor:
    return logits.squeeze(1)


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=1)


def both_sigmoids(logits: Tensor) -> Tensor:
    return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of predictions (N,) that equal their labels (N,)."""
    return float(np.mean(predictions == labels))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's correlation over the whole split; 0, with a warning, if either side is constant."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        warnings.warn("a correlation with constant values is undefined: taken as 0", stacklevel=2)
        return 0.0
    return float(np.corrcoef(predictions, labels)[0, 1])


def as_it_is(accuracy: float) -> float:
    return accuracy


def halfway_to_one(r: float) -> float:
    return (1 + r) / 2


CLASSIFICATION = Kind(
    "classification",
    loss=cross_entropy,
    divergence=symmetric_kl,
    distillation=softened_kl,
    average=mean_probabilities,
    decode=most_probable,
    probabilities=softmax,
    metric="accuracy",
    measure=accuracy,
    score=as_it_is,
)
BINARY = Kind(
    "binary",
    loss=binary_cross_entropy,
    divergence=symmetric_kl,
    distillation=softened_kl,
    average=mean_bernoulli,
    decode=is_positive,
    probabilities=both_sigmoids,
    metric="accuracy",
    measure=accuracy,
    score=as_it_is,
)
REGRESSION = Kind(
    "regression",
    loss=squared_error,
    divergence=squared_difference,
    distillation=squared_distance,
    average=mean_outputs,
    decode=the_output,
    probabilities=None,
    metric="pearson",
    measure=pearson,
    score=halfway_to_one,
)
KINDS = {kind.name: kind for kind in (CLASSIFICATION, BINARY, REGRESSION)}
