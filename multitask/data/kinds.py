"""The kinds of tasks. Each is one object with all that depends on the kind: how a task of it is learned, read
off the logits and scored. Axes: B or N examples, C outputs of a head, M members of an ensemble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from multitask.data.metrics import (
    ACCURACY,
    F1,
    F1_MACRO,
    MAE,
    MCC,
    PEARSON,
    RMSE,
    SPEARMAN,
    Measure,
    Metric,
    Value,
)
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
    loss: Callable[..., Tensor]  # logits (B, C) and labels (B,) -> scalar; see `Task.training_loss`
    divergence: Callable[[Tensor, Tensor], Tensor]  # logits (B, C) of two passes -> scalar
    distillation: Callable[[Tensor, Tensor, float], Tensor]  # student, teacher (B, C), temperature -> scalar
    average: Callable[[Tensor, Tensor], Tensor]  # members' logits (M, N, C), weights (M, 1, 1) -> (N, C)
    decode: Callable[[Tensor], Tensor]  # logits (N, C) -> the class of each example, int64, or its value (N,)
    probabilities: Callable[[Tensor], Tensor] | None  # logits (N, C) -> (N, classes); None: has no classes
    first_bias: Callable[[np.ndarray], float] | None  # labels (N,) -> the head's first bias; None: 0
    classes: int | None  # how many; None: as the task says
    metrics: tuple[Metric, ...]  # that a task may be scored by; the first is the default
    settings: tuple[str, ...]  # the fields of `Task` that only some kinds have
    chosen: Metric | None = None  # instead of the default

    def scored_by(self, metric: str, width: float) -> Kind:
        """Return the kind with this metric, for labels in a range of this width. Raises KeyError if it is not
        one of the kind's."""
        found = {one.name: one for one in self.metrics}[metric]
        return replace(self, chosen=replace(found, width=width) if found.bounded else found)

    @property
    def scoring(self) -> Metric:
        return self.chosen or self.metrics[0]

    @property
    def metric(self) -> str:
        return self.scoring.name

    @property
    def measure(self) -> Measure:
        """Predictions and labels (N,) -> the metric."""
        return self.scoring.measure

    def score(self, value: Value) -> Value:
        """Return what a value of the metric contributes to the mean score: the higher, the better."""
        return self.scoring.score(value)

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


def mean(labels: np.ndarray) -> float:
    return float(np.mean(labels))


OF_CLASSES = ("labels", "class_weights", "label_smoothing", "calibrate")
CLASSIFICATION = Kind(
    "classification",
    loss=cross_entropy,
    divergence=symmetric_kl,
    distillation=softened_kl,
    average=mean_probabilities,
    decode=most_probable,
    probabilities=softmax,
    first_bias=None,
    classes=None,
    metrics=(ACCURACY, F1_MACRO, MCC),
    settings=("num_classes", *OF_CLASSES),
)
BINARY = Kind(
    "binary",
    loss=binary_cross_entropy,
    divergence=symmetric_kl,
    distillation=softened_kl,
    average=mean_bernoulli,
    decode=is_positive,
    probabilities=both_sigmoids,
    first_bias=None,
    classes=2,
    metrics=(ACCURACY, F1_MACRO, F1, MCC),
    settings=("threshold", *OF_CLASSES),
)
REGRESSION = Kind(
    "regression",
    loss=squared_error,
    divergence=squared_difference,
    distillation=squared_distance,
    average=mean_outputs,
    decode=the_output,
    probabilities=None,
    first_bias=mean,
    classes=0,
    metrics=(PEARSON, SPEARMAN, RMSE, MAE),
    settings=("low", "high"),
)
KINDS = {kind.name: kind for kind in (CLASSIFICATION, BINARY, REGRESSION)}
