"""Calibration: probabilities that mean what they say, and the threshold of a binary task, both fitted on dev.

Temperature scaling (Guo et al. 2017, "On Calibration of Modern Neural Networks",
https://arxiv.org/abs/1706.04599, section 4.2) divides all logits by one number, which leaves their order:

    T = argmin  -1/N sum_i log q_{y_i}(z_i / T)

The expected calibration error (their equation 3) sorts the rows by confidence, the probability of the most
probable class, and compares it in bins of equally many rows with the share of rows whose class that is:

    ECE = sum_b  n_b / N  |accuracy(b) - confidence(b)|

    z    `logits` (N, C), or (N, 1) of a binary task
    q    softmax, or sigmoid of a single logit
    y    `labels` (N,)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

WIDEST = 20.0  # temperature, or 1 over it: what a few rows may lead to at most
SUREST = 1e-6  # a threshold's least distance from 0 and 1
BINS = 15
FOLDS = 5


def fit_temperature(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> float:
    """Return the temperature at which the negative log-likelihood, the `loss`, is least. Logits (N, C),
    labels (N,).

    Of four rows at 98% for class 0, one is of class 1; log 3 instead of 4 would give the right 75%:

    >>> import torch
    >>> from torch.nn.functional import cross_entropy
    >>> logits, labels = torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    >>> abs(fit_temperature(cross_entropy, logits, labels) - 4 / math.log(3)) < 0.01
    True
    """
    from scipy.optimize import minimize_scalar

    def nll(log_temperature: float) -> float:
        return loss(logits / math.exp(log_temperature), labels).item()

    ends = -math.log(WIDEST), math.log(WIDEST)
    found = math.exp(minimize_scalar(nll, bounds=ends, method="bounded").x)
    return min(max(found, 1 / WIDEST), WIDEST)


def best_f1_threshold(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability above which to predict class 1 for the highest F1: in the middle between the
    logits (N,) of two rows; labels (N,). 1/2 if no row is of class 1.

    >>> best_f1_threshold(np.array([-3.0, -1.0, 1.0, 3.0]), np.array([0, 0, 1, 1]))
    0.5
    """
    from scipy.special import expit
    from sklearn.metrics import precision_recall_curve

    if not labels.any():
        return 0.5
    precision, recall, cuts = precision_recall_curve(labels, logits)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1[:-1]))  # the last has no cut
    below = cuts[best - 1] if best else cuts[0] - 1
    return float(np.clip(expit((below + cuts[best]) / 2), SUREST, 1 - SUREST))


THRESHOLDS = {"f1": best_f1_threshold}


def folds(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield what to fit on and what to judge, (rest, fold), for each fold of so many rows: always the same,
    at random."""
    order = np.random.default_rng(0).permutation(count)
    for fold in np.array_split(order, min(FOLDS, count)):
        yield np.setdiff1d(order, fold), fold


@dataclass(frozen=True)
class Reliability:
    """How far confidence and accuracy differ, and both in each bin, least confident first."""

    error: float
    confidence: list[float]
    accuracy: list[float]
    rows: list[int]


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> Reliability:
    """Return the expected calibration error of probabilities (N, classes), in bins of equally many rows.
    Labels (N,).

    >>> round(reliability(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])).error, 4)
    0.15
    """
    confidences, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.array_split(np.argsort(confidences, kind="stable"), min(BINS, len(labels)))
    confidence, accuracy = ([float(values[rows].mean()) for rows in bins] for values in (confidences, right))
    counts = [len(rows) for rows in bins]
    error = np.average(np.abs(np.subtract(accuracy, confidence)), weights=counts)
    return Reliability(float(error), confidence, accuracy, counts)
