"""The bootstrap: how far a metric would differ on other rows of the same kind (Efron 1979, "Bootstrap
Methods", https://doi.org/10.1214/aos/1176344552).

Rows are drawn anew, as many as there are, with replacement, and the metric is computed on each draw. A draw
is a weight for each row, how often it was drawn; rows with equal prediction and label count as one, so the
classes of any number of rows are drawn as quickly as their confusion matrix. Every metric is written here for
many draws at once: predictions p and labels y, (K,), and weights w, (R, K), give (R,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95  # of an interval
WEIGHTS = 2**22  # in memory at a time

Weighted = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def resampled(weighted: Weighted, predictions: np.ndarray, labels: np.ndarray, name: str) -> np.ndarray:
    """Return the metric on each of `RESAMPLES` draws of the rows (N,): always the same for one name."""
    return resampled_together(weighted, [predictions], labels, name)[0]


def resampled_together(
    weighted: Weighted, predictions: Sequence[np.ndarray], labels: np.ndarray, name: str
) -> np.ndarray:
    """Return the metric of M models' predictions, (N,) each, on the same draws: (M, RESAMPLES)."""
    generator = np.random.default_rng(list(name.encode()))
    (*each, y), counts = np.unique(np.stack([*predictions, labels]), axis=1, return_counts=True)
    chunk = max(1, WEIGHTS // len(counts))
    found = []
    for size in _sizes(RESAMPLES, chunk):
        w = generator.multinomial(len(labels), counts / len(labels), size).astype(np.float64)
        found.append([weighted(p, y, w) for p in each])
    return np.concatenate(found, axis=1)


def _sizes(count: int, chunk: int) -> list[int]:
    return [min(chunk, count - start) for start in range(0, count, chunk)]


def interval(values: np.ndarray) -> list[float]:
    """Return the ends between which the middle 95% of the values are."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def weighted_accuracy(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    return w @ (p == y) / w.sum(axis=1)


def weighted_f1(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    return _over(2 * (w @ ((p == 1) & (y == 1))), w @ (p == 1) + w @ (y == 1))


def weighted_f1_macro(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    hits, predicted, true = _counts(p, y, w)
    there = predicted + true > 0
    return (_over(2 * hits, predicted + true) * there).sum(axis=1) / there.sum(axis=1)


def weighted_mcc(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient"."""
    hits, predicted, true = _counts(p, y, w)
    rows = w.sum(axis=1)
    spread = (rows**2 - (predicted**2).sum(axis=1)) * (rows**2 - (true**2).sum(axis=1))
    return _over(hits.sum(axis=1) * rows - (predicted * true).sum(axis=1), np.sqrt(spread))


def _counts(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how many rows of each class are right, are predicted to be of it, and are of it, (R, C) each."""
    from scipy.sparse import csr_array

    classes, numbers = np.unique(np.concatenate([p, y]), return_inverse=True)
    shape, rows = (len(p), len(classes)), np.arange(len(p))
    right, predicted, true = (
        csr_array((values.astype(np.float64), (rows, columns)), shape=shape)
        for values, columns in zip(
            (p == y, np.ones(len(p)), np.ones(len(p))),
            (numbers[: len(p)], numbers[: len(p)], numbers[len(p) :]),
            strict=True,
        )
    )
    return w @ right, w @ predicted, w @ true


def weighted_pearson(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    return _correlation(p - p.mean(), y - y.mean(), w)


def weighted_spearman(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    return _correlation(_ranks(p, w), _ranks(y, w), w)


def _ranks(values: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the rank of each value in each draw, (R, K), less half the rows: of equal ones, their mean."""
    _, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(places[order], np.arange(places.max() + 1))
    sizes = np.add.reduceat(w[:, order], starts, axis=1)
    ranks = np.cumsum(sizes, axis=1) - sizes / 2 - w.sum(axis=1, keepdims=True) / 2
    return ranks[:, places]


def _correlation(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation; 0 where one side is constant. p and y are (K,) or (R, K), about 0."""
    rows = w.sum(axis=1)

    def moment(values: np.ndarray) -> np.ndarray:
        return (w * values).sum(axis=1) / rows if values.ndim > 1 else w @ values / rows

    mean_p, mean_y = moment(p), moment(y)
    variances = [moment(values**2) - mean**2 for values, mean in ((p, mean_p), (y, mean_y))]
    tiny = [1e-12 * np.abs(values).max() ** 2 for values in (p, y)]  # rounding, where nothing varies
    varies = (variances[0] > tiny[0]) & (variances[1] > tiny[1])
    spread = np.sqrt(np.maximum(variances[0] * variances[1], 0)) * varies
    return _over(moment(p * y) - mean_p * mean_y, spread)


def weighted_rmse(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.sqrt(w @ (p - y) ** 2 / w.sum(axis=1))


def weighted_mae(p: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    return w @ np.abs(p - y) / w.sum(axis=1)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return above / below, and 0 where that is undefined."""
    return np.divide(above, below, out=np.zeros_like(below), where=below > 0)
