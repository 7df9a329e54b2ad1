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
    tasks: Mapping[str, Task], predictions: Sequence[Predictions], labels: Predictions
) -> list[dict[str, Difference]]:
    """Return how each model but the first differs from the first: in the metric of each task, and in the
    `score` and the `worst` over all tasks, which take no task's name."""
    measured = [scores_of(tasks, one, labels) for one in predictions]
    draws = {}  # task -> (models, draws)
    for name, task in tasks.items():
        of_task = [one[name] for one in predictions]
        draws[name] = resampled_together(task.kind.scoring.weighted, of_task, labels[name], name)
    together = overall(tasks, draws)
    found = []
    for place in range(1, len(predictions)):
        ahead = {}
        for name, task in tasks.items():
            value, base = (measured[one][name][task.kind.metric] for one in (place, 0))
            rises = bool(task.kind.score(1.0) > task.kind.score(0.0))
            ahead[name] = Difference(value - base, interval(draws[name][place] - draws[name][0]), rises)
        for name in ("score", "worst"):
            value, base = measured[place][name], measured[0][name]
            ahead[name] = Difference(value - base, interval(together[name][place] - together[name][0]))
        found.append(ahead)
    return found
