"""A run's progress: what it has counted in this epoch, and the records of the epochs before; read without
trust."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from minbert.errors import shown
from minbert.fields import check_table, field, fields_of
from minbert.products import read_choices
from minbert.reading import load_json

TERM = re.compile(r"skipped|(loss|objective|distill)/[^/]+|(smart|bregman)/[^/]+/[^/]+")  # of a loss


@dataclass
class Progress:
    """A run's progress after `step` updates. Floats survive JSON to the last bit."""

    step: int = field(0)
    seconds: float = field(0.0)  # of training, in this epoch
    best_score: float = field(0.0, low=-1e9)
    best_epoch: int = field(0)  # 0: none yet
    skipped_in_a_row: int = field(0)  # consecutive skipped updates up to now
    # Of this epoch: term -> [sum, sum of squares, updates]; term -> all values, for a median.
    sums: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    ratios: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    records: list[dict[str, Any]] = dataclasses.field(default_factory=list)  # the lines of metrics.jsonl
    facts: dict[str, str] = dataclasses.field(default_factory=dict)  # fingerprints of what it learns from
    products: dict[str, Any] = dataclasses.field(default_factory=dict)  # see `machine.choose_products`

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch."""
        return self.records[self.best_epoch - 1]

    @property
    def metrics(self) -> str:
        """The content of metrics.jsonl."""
        return "".join(json.dumps(record, allow_nan=False) + "\n" for record in self.records)

    def add(self, terms: Mapping[str, float], seconds: float) -> None:
        """Count one more update, with the terms of its loss."""
        self.step += 1
        self.seconds += seconds
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if "skipped" in terms else 0
        for name, value in terms.items():
            if name.endswith("/gradient_ratio"):
                self.ratios.setdefault(name, []).append(value)
                continue
            sums = self.sums.setdefault(name, [0.0, 0.0, 0])
            sums[0] += value
            sums[1] += value * value
            sums[2] += 1

    def mean(self, name: str) -> float:
        """Return a term's mean over the updates of this epoch that had it, or NaN if none had."""
        total, _, updates = self.sums.get(name, (math.nan, 0.0, 1))
        return total / updates

    def end_epoch(self) -> dict[str, Any]:
        """Return the epoch's terms, nested by the slashes in their names, and start the next epoch.

        A term is its mean over the updates that had it, a gradient ratio its median, `skipped` a count. A
        task's objective is its mean, variance and number of updates, which give the error of the mean.
        """
        nested: dict[str, Any] = {}
        for name in sorted(self.sums.keys() | self.ratios.keys()):
            *path, last = name.split("/")
            level = nested
            for part in path:
                level = level.setdefault(part, {})
            level[last] = self._summary(name)
        self.sums, self.ratios, self.seconds = {}, {}, 0.0
        return nested

    def _summary(self, name: str) -> Any:
        if name in self.ratios:
            return median(self.ratios[name])
        total, squares, updates = self.sums[name]
        if name.endswith("skipped"):
            return int(total)
        mean = self.mean(name)
        if not name.startswith("objective/"):
            return mean
        variance = max(0.0, squares - total * mean) / max(1, updates - 1)
        return {"mean": mean, "variance": variance, "updates": updates}


def read_progress(path: Path) -> Progress:
    """Read a progress.json. Raises InputError or ValueError if it is not what `Progress` declares."""
    values = load_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    plain = {name: values.pop(name) for name in fields_of(Progress) if name in values}
    plain = check_table(plain, fields_of(Progress), path.name, required=fields_of(Progress))
    kinds = {"sums": dict, "ratios": dict, "records": list, "facts": dict, "products": dict}
    if values.keys() != kinds.keys() or not all(isinstance(values[name], kinds[name]) for name in kinds):
        raise ValueError(f"{path.name} does not have {', '.join(kinds)} beside its numbers")
    if values["products"]:
        if values["products"].keys() != {"machine", "onednn"}:
            raise ValueError(f"{path.name} does not say which products were chosen on which machine")
        read_choices(values["products"]["onednn"])
    return Progress(**plain, **values)


def check_progress(
    progress: Progress, settings: Mapping[str, Any], check_record: Callable[[dict[str, Any]], object]
) -> None:
    """Raise some exception unless this can be the progress of a run with these settings."""
    epochs, best = len(progress.records), progress.best_epoch
    for name in progress.sums | progress.ratios:
        if not TERM.fullmatch(name):
            raise ValueError(f"{shown(name)} is not the name of a term")
    for sums in progress.sums.values():
        if len(sums) != 3 or not all(map(_is_finite, sums)) or sums[1] < 0 or sums[2] < 1:
            raise ValueError("its sums are malformed")
    if not all(map(_is_finite, (value for values in progress.ratios.values() for value in values))):
        raise ValueError("its ratios are not numbers")
    copy.deepcopy(progress).end_epoch()
    steps = settings.get("steps_per_epoch", progress.step)
    if not 0 <= progress.step - epochs * steps <= steps or progress.skipped_in_a_row > progress.step:
        raise ValueError(f"step {progress.step} is not in epoch {epochs + 1}")
    for epoch, record in enumerate(progress.records, start=1):
        check_record(record)
        if (record["epoch"], record["step"]) != (epoch, epoch * steps) or not _is_finite(record):
            raise ValueError(f"the record of epoch {epoch} is malformed")
    if best > epochs or (
        best and progress.best["dev"][settings.get("choose_by", "score")] != progress.best_score
    ):
        raise ValueError(f"its best epoch, {best}, is not one of its {epochs}")


def _is_finite(value: Any) -> bool:
    """Whether this is a finite number, or nested tables of them."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_finite(item) for name, item in value.items())
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
