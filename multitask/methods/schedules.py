"""The learning-rate schedule of BPPO: halve the rate after three consecutive epochs in which the total loss
rose (section 4.3.4 of "Jack of All Trades, Master of Some: Improving BERT for Multitask Learning", Stanford
CS224N).

The paper does not define its total loss. The mean over an epoch's updates does not work: annealed sampling
moves updates from the task with the most rows to the others, whose losses are higher, so this mean rises even
when the model does not change. Here every task counts equally, and a rise must exceed the noise:

    total(e) = 1/K sum_k m_k(e)          m_k: the mean of L + lambda R + mu D over the updates of task k
    a rise:    total(e) - total(e-1)  >  1/K sqrt( sum_k  s2_k(e) / n_k(e) + s2_k(e-1) / n_k(e-1) )

where s2_k is the variance over the n_k updates of task k. The total includes mu D, which starts at 0, grows
as the model moves away from its teacher, and changes again when beta does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

Objective = Mapping[str, Mapping[str, float]]  # task -> mean, variance and number of updates in an epoch


def halve_on_rise(epochs: Sequence[Objective], rises: int = 3) -> float:
    """Return the factor on the learning rate after these epochs: it halves at `rises` rises in a row.

    >>> epochs = [{"sentiment": {"mean": mean, "variance": 0.01, "updates": 100}} for mean in (1, 2, 3, 4)]
    >>> halve_on_rise(epochs[:3]), halve_on_rise(epochs)
    (1.0, 0.5)
    """
    factor, in_a_row = 1.0, 0
    for before, after in pairwise(carried_forward(epochs)):
        in_a_row = in_a_row + 1 if has_risen(before, after) else 0
        if in_a_row == rises:
            factor, in_a_row = factor / 2, 0
    return factor


def carried_forward(epochs: Sequence[Objective]) -> list[Objective]:
    """Return the epochs with the last known values for any task that had fewer than two updates.

    The error of such a task's mean is unknown.
    """
    known: dict[str, Mapping[str, float]] = {}
    result: list[Objective] = []
    for epoch in epochs:
        known = known | {task: found for task, found in epoch.items() if found["updates"] >= 2}
        result.append(known)
    return result


def has_risen(before: Objective, after: Objective) -> bool:
    """Return whether the mean over the tasks rose by more than one standard error of the difference.

    A task whose values were carried forward has not changed, and adds no noise.
    """
    moved = [(before[task], after[task]) for task in before if before[task] is not after[task]]
    rise = sum(new["mean"] - old["mean"] for old, new in moved)
    variance = sum(one["variance"] / one["updates"] for pair in moved for one in pair)
    return rise > math.sqrt(variance)
