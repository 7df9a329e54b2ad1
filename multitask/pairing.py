"""Whether a model beats another on the same rows: the paired bootstrap (Efron and Tibshirani 1993, "An
Introduction to the Bootstrap"; Koehn 2004, "Statistical Significance Tests for Machine Translation
Evaluation", https://aclanthology.org/W04-3250). Both models are scored on each draw of the rows, so what
makes rows easy or hard for both of them cancels out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from multitask.data.resampling import interval, resampled_together
from multitask.data.tasks import Task
from multitask.evaluate import overall, scores_of

Predictions = Mapping[str, np.ndarray]  # task -> (N,)


@dataclass(frozen=True)
class Difference:
    """How far a model's score is above that of the baseline."""

    value: float
    interval: Sequence[float]  # of 95%
    higher_is_better: bool = True

    @property
    def verdict(self) -> str:
        """Better or worse if the interval excludes 0, else neither."""
        low, high = self.interval if self.higher_is_better else (-end for end in reversed(self.interval))
        return "better" if low > 0 else "worse" if high < 0 else "no clear difference"

    def in_words(self, name: str, baseline: str, what: str = "score") -> str:
        """Return in a sentence whether the model of this name beats the baseline."""
        claim = {
            "better": f"{name} beats {baseline}",
            "worse": f"{name} is worse than {baseline}",
            "no clear difference": f"{name} and {baseline} cannot be told apart on these rows",
        }[self.verdict]
        return f"{claim}: {what} {self.value:+.3f}, 95% interval {self.ends}."

    @property
    def ends(self) -> str:
        return "{:+.3f} to {:+.3f}".format(*self.interval)


def differences(
    tasks: Mapping[str, Task], baseline: Predictions, model: Predictions, labels: Predictions
) -> dict[str, Difference]:
    """Return how a model differs from the baseline: in the metric of each task, and in the `score` and the
    `worst` over all tasks, whose names no task may have."""
    before, after = (scores_of(tasks, one, labels) for one in (baseline, model))
    draws = {}  # task -> (2, draws)
    for name, task in tasks.items():
        both = [baseline[name], model[name]]
        draws[name] = resampled_together(task.kind.scoring.weighted, both, labels[name], name)
    found = {}
    for name, task in tasks.items():
        metric, score = task.kind.metric, task.kind.score
        rises = bool(score(1.0) > score(0.0))
        gain = after[name][metric] - before[name][metric]
        found[name] = Difference(gain, interval(np.diff(draws[name], axis=0)), rises)
    together = overall(tasks, draws)
    for name in ("score", "worst"):
        found[name] = Difference(after[name] - before[name], interval(np.diff(together[name], axis=0)))
    return found
