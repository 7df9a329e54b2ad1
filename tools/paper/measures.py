"""Judge recorded outputs by the labels of the dev tables: measures with bootstrap intervals, and paired
differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from lines import Line
from multitask.data.resampling import interval, weighted_accuracy, weighted_pearson
from record import RESULTS
from runs import COLUMNS, read_labels

DRAWS = 2000  # of the bootstrap
SUBMISSIONS = {task.submission: task for task in COLUMNS.values()}  # as the outputs are named
MEASURES = ("SST", "QQP", "(1 + r) / 2", "score", "NLL of SST", "NLL of QQP")
CONFUSED = "best-ensemble"  # the cell of the confusion matrix
Outputs = Mapping[str, np.ndarray]


def judge(lines: Sequence[Line], data: Path) -> dict[str, Any]:
    """Return {"rows": {cell: {measure: ...}}, "differences": {cell: {measure: ...}}, "confusion": (5, 5)}."""
    truth, draws = read_truth(data)
    found = {
        line.cell: {seed: measure(one, truth, draws) for seed, one in outputs_of(line).items()}
        for line in lines
    }
    return {
        "rows": {cell: summary([*seeds.values()]) for cell, seeds in found.items() if seeds},
        "differences": {
            line.cell: summary(paired(found[line.cell], found[line.builds_on]))
            for line in lines
            if line.builds_on and found[line.cell] and found.get(line.builds_on)
        },
        "confusion": confusion_matrix(
            truth["sst"], recorded(CONFUSED)["0"]["sst-dev"].argmax(1), labels=range(5)
        ).tolist(),
    }


def read_truth(data: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the labels of each dev table, (rows,), and the draws of its rows: see `drawn_rows`."""
    labels = {name: read_labels(data, task, "dev").values() for name, task in SUBMISSIONS.items()}
    truth = {name: np.array([*values]) for name, values in labels.items()}
    return truth, {name: drawn_rows(len(values), name) for name, values in truth.items()}


def drawn_rows(rows: int, name: str) -> np.ndarray:
    """Return how often each row is drawn, (1 + DRAWS, rows): first each once, then the bootstrap's draws."""
    draws = np.random.default_rng(list(name.encode())).multinomial(rows, np.full(rows, 1 / rows), DRAWS)
    return np.concatenate([np.ones((1, rows)), draws]).astype(np.float64)


def outputs_of(line: Line) -> dict[str, Outputs]:
    """Return the outputs of a line by seed; of members, the averages for the seeds that all of them have."""
    if not line.members:
        return recorded(line.cell)
    cells = [recorded(cell) for cell in line.members]
    seeds = sorted(set.intersection(*(set(cell) for cell in cells)))
    return {seed: average([cell[seed] for cell in cells]) for seed in seeds}


def recorded(cell: str) -> dict[str, Outputs]:
    """Return the recorded outputs of a cell's runs by seed: {task-split: (N, classes) or (N,)}."""
    return {
        path.stem.rpartition("-")[2]: {name: x.astype(np.float64) for name, x in np.load(path).items()}
        for path in sorted((RESULTS / "outputs").glob(f"{cell}-seed-*.npz"))
    }


def average(members: Sequence[Outputs]) -> Outputs:
    """Return the mean of the members' probabilities, and of their values."""
    return {name: np.mean([one[name] for one in members], axis=0) for name in members[0]}


def measure(outputs: Outputs, truth: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return each of MEASURES on each draw, (len(MEASURES), 1 + DRAWS)."""
    accuracies, likelihoods = {}, {}
    for name in ("sst", "para"):
        probabilities, labels, weights = outputs[f"{name}-dev"], truth[name].astype(int), draws[name]
        accuracies[name] = weighted_accuracy(probabilities.argmax(1), labels, weights)
        own = probabilities[np.arange(len(labels)), labels] / probabilities.sum(1)
        likelihoods[name] = weights @ -np.log(np.maximum(own, 1e-7)) / len(labels)
    half = (1 + weighted_pearson(outputs["sts-dev"], truth["sts"], draws["sts"])) / 2
    score = (accuracies["sst"] + accuracies["para"] + half) / 3
    return np.stack(
        [accuracies["sst"], accuracies["para"], half, score, likelihoods["sst"], likelihoods["para"]]
    )


def paired(ones: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Return the difference for each seed that both have; if there is none, that of their means."""
    if both := [seed for seed in ones if seed in others]:
        return [ones[seed] - others[seed] for seed in both]
    return [np.mean([*ones.values()], axis=0) - np.mean([*others.values()], axis=0)]


def summary(seeds: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return for each measure each seed's value, their mean, spread and n, and the mean's 95% interval."""
    means = np.mean(seeds, axis=0)
    spreads = np.std(seeds, axis=0, ddof=1)[:, 0] if len(seeds) > 1 else None
    return {
        name: {
            "each": [round(float(seed[place, 0]), 5) for seed in seeds],
            "mean": round(float(means[place, 0]), 5),
            "spread": None if spreads is None else round(float(spreads[place]), 5),
            "n": len(seeds),
            "interval": [round(end, 5) for end in interval(means[place, 1:])],
        }
        for place, name in enumerate(MEASURES)
    }
