"""The interface of every trained model, one network or an average of several: texts in, predictions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import cast

from torch import Tensor

from minbert.errors import InputError, shown
from multitask.data.calibration import UNCHANGED, Calibration
from multitask.data.tables import Table
from multitask.data.tasks import Answer, Answers, Task
from multitask.inference import EVALUATION_BATCH

Texts = Sequence[str] | Sequence[tuple[str, ...]]  # single sentences or pairs, depending on the task


class Predictor(ABC):
    """Predictions from logits, which a subclass computes. `tasks` maps names to `Task`s, `calibrations` those
    of them whose probabilities or threshold were fitted on dev to what was found."""

    tasks: Mapping[str, Task]
    calibrations: Mapping[str, Calibration]

    @abstractmethod
    def logits(self, task: str, texts: Texts, batch_size: int = EVALUATION_BATCH) -> Tensor:
        """Return logits (N, C) for N texts or pairs, on the CPU. Raises InputError if the task does not take
        such texts."""

    @abstractmethod
    def logits_of_table(self, task: str, table: Table) -> Tensor:
        """Return logits (N, C) for the N rows of a table, on the CPU and in the table's order."""

    @abstractmethod
    def are_cut(self, task: str, texts: Texts) -> list[bool]:
        """Return which of these texts or pairs are longer than the model reads, so that they are cut."""

    def predict(self, task: str, texts: Texts, batch_size: int = EVALUATION_BATCH) -> list[Answer]:
        """Return the predicted class of each text or pair, its label (str) or else its number (int), or its
        value (float) for a regression."""
        return self.answers(task, self.logits(task, texts, batch_size)).values

    def predict_proba(self, task: str, texts: Texts, batch_size: int = EVALUATION_BATCH) -> list[list[float]]:
        """Return the probability of every class, in the order of the task's `class_names`, for each text or
        pair. Raises InputError for a regression, which has no classes."""
        if not self.task_of(task).classes:
            raise InputError(f"{task} is a regression task: it has no classes; use predict")
        probabilities = self.answers(task, self.logits(task, texts, batch_size)).probabilities
        return cast(Tensor, probabilities).tolist()

    def answers(self, task: str, logits: Tensor) -> Answers:
        """Return what logits (N, C) of this model say, calibrated."""
        return self.task_of(task).answers(logits, self.calibrations.get(task, UNCHANGED))

    def task_of(self, name: str) -> Task:
        """Return the task of this name. Raises InputError if the model has none."""
        if name not in self.tasks:
            raise InputError(f"this model has no task {shown(name)}; it has {', '.join(self.tasks)}")
        return self.tasks[name]
