"""What is fitted on dev for a task after training, and kept with the model: see methods/calibration.py."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minbert.fields import field
from multitask.methods.calibration import SUREST, WIDEST


@dataclass(frozen=True)
class Calibration:
    """What is done to a task's logits before they are read."""

    temperature: float = field(1.0, low=1 / WIDEST, most=WIDEST)
    threshold: float = field(0.5, low=SUREST, most=1 - SUREST)  # of the probability, for the second class
    fitted_on: str = field("", empty=True)  # SHA-256 of the dev table

    @property
    def least_logit(self) -> float:
        """The logit, divided by the temperature, above which the second class is predicted."""
        return math.log(self.threshold / (1 - self.threshold))


UNCHANGED = Calibration()
