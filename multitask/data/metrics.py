"""What a task may be scored by, and how each metric enters the mean score. Shapes: predictions and labels are
(N,); classes are their numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Measure = Callable[[np.ndarray, np.ndarray], float]  # predictions and labels (N,) -> the metric


@dataclass(frozen=True)
class Metric:
    """A metric, and its value on a scale from 0 to 1 on which all tasks are averaged."""

    name: str
    measure: Measure
    scale: Callable[[float, float], float]  # the metric and `width` -> its score
    formula: str = ""  # of the score, where it is not the metric itself
    symbol: str = ""  # of the metric in figures; default: its name
    bounded: bool = False  # whether the score needs the range of the labels
    width: float = 1.0  # high - low, if it does

    def score(self, value: float) -> float:
        """Return what a value of the metric contributes to the mean score: the higher, the better."""
        return self.scale(value, self.width)


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of predictions (N,) that equal their labels (N,)."""
    return float(np.mean(predictions == labels))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's correlation over the whole split; 0, with a warning, if either side is constant."""
    return 0.0 if _is_constant(predictions, labels) else float(np.corrcoef(predictions, labels)[0, 1])


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's correlation, that of the ranks; 0, with a warning, if either side is constant."""
    from scipy.stats import spearmanr

    return 0.0 if _is_constant(predictions, labels) else float(spearmanr(predictions, labels).statistic)


def _is_constant(predictions: np.ndarray, labels: np.ndarray) -> bool:
    constant = np.ptp(predictions) == 0 or np.ptp(labels) == 0
    if constant:
        warnings.warn("a correlation with constant values is undefined: taken as 0", stacklevel=3)
    return bool(constant)


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return F1 of class 1; 0 if it is neither predicted nor there."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, zero_division=0))


def f1_macro(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of the F1 of all classes that are predicted or there."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def mcc(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return Matthews' correlation; 0 if only one class is predicted, or there."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def rmse(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the root of the mean squared error, in the unit of the labels."""
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(labels, predictions))


def mae(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean absolute error, in the unit of the labels."""
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(labels, predictions))


def as_it_is(value: float, width: float) -> float:
    return value


def halfway_to_one(value: float, width: float) -> float:
    return (1 + value) / 2


def share_of_range(value: float, width: float) -> float:
    return 1 - value / width


ACCURACY = Metric("accuracy", accuracy, as_it_is)
F1_MACRO = Metric("f1_macro", f1_macro, as_it_is)
F1 = Metric("f1", f1, as_it_is)
MCC = Metric("mcc", mcc, halfway_to_one, "(1 + m) / 2")
PEARSON = Metric("pearson", pearson, halfway_to_one, "(1 + r) / 2", "r")
SPEARMAN = Metric("spearman", spearman, halfway_to_one, "(1 + r) / 2")
RMSE = Metric("rmse", rmse, share_of_range, "1 - m/range", bounded=True)
MAE = Metric("mae", mae, share_of_range, "1 - m/range", bounded=True)
METRICS = {metric.name: metric for metric in (ACCURACY, F1_MACRO, F1, MCC, PEARSON, SPEARMAN, RMSE, MAE)}
