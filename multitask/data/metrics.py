"""What a task may be scored by, and how each metric enters the mean score. Shapes: predictions and labels are
(N,); classes are their numbers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multitask.data.resampling import (
    Weighted,
    weighted_accuracy,
    weighted_f1,
    weighted_f1_macro,
    weighted_mae,
    weighted_mcc,
    weighted_pearson,
    weighted_rmse,
    weighted_spearman,
)

Value = Any  # of a metric, a float; or an array of them
Measure = Callable[[np.ndarray, np.ndarray], float]  # predictions and labels (N,) -> the metric


@dataclass(frozen=True)
class Metric:
    """A metric, and its value on a scale from 0 to 1 on which all tasks are averaged."""

    name: str
    measure: Measure
    weighted: Weighted  # the same for many draws of the rows at once
    scale: Callable[[Value, float], Value]  # the metric and `width` -> its score
    formula: str = ""  # of the score, where it is not the metric itself
    symbol: str = ""  # of the metric in figures; default: its name
    bounded: bool = False  # whether the score needs the range of the labels
    width: float = 1.0  # high - low, if it does

    def score(self, value: Value) -> Value:
        """Return what a value of the metric contributes to the mean score: the higher, the better."""
        return self.scale(value, self.width)


def per_class(predictions: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return precision, recall, F1 and the number of rows of each class, by its name; 0 where one of them is
    undefined."""
    from sklearn.metrics import precision_recall_fscore_support

    numbers = range(len(names))
    found = precision_recall_fscore_support(labels, predictions, labels=numbers, zero_division=0)
    columns = zip(names, *(values.tolist() for values in found), strict=True)
    return {
        name: {"precision": precision, "recall": recall, "f1": f1, "rows": rows}
        for name, precision, recall, f1, rows in columns
    }


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


def as_it_is(value: Value, width: float) -> Value:
    return value


def halfway_to_one(value: Value, width: float) -> Value:
    return (1 + value) / 2


def share_of_range(value: Value, width: float) -> Value:
    return 1 - value / width


ACCURACY = Metric("accuracy", accuracy, weighted_accuracy, as_it_is)
F1_MACRO = Metric("f1_macro", f1_macro, weighted_f1_macro, as_it_is)
F1 = Metric("f1", f1, weighted_f1, as_it_is)
MCC = Metric("mcc", mcc, weighted_mcc, halfway_to_one, "(1 + m) / 2")
PEARSON = Metric("pearson", pearson, weighted_pearson, halfway_to_one, "(1 + r) / 2", "r")
SPEARMAN = Metric("spearman", spearman, weighted_spearman, halfway_to_one, "(1 + r) / 2")
RMSE = Metric("rmse", rmse, weighted_rmse, share_of_range, "1 - m/range", bounded=True)
MAE = Metric("mae", mae, weighted_mae, share_of_range, "1 - m/range", bounded=True)
METRICS = {metric.name: metric for metric in (ACCURACY, F1_MACRO, F1, MCC, PEARSON, SPEARMAN, RMSE, MAE)}
