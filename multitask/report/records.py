"""The records of a run's epochs, metrics.jsonl, read without trust."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minbert.errors import InputError
from minbert.reading import MEGABYTE, read_text, reason
from multitask.config import MAX_STEPS
from multitask.data.tasks import OVERALL, Task
from multitask.report.figures import BESIDE, PANELS, SINGLE, Records

LARGEST_WHOLE = 2**53  # number in a record; up to here a float holds every one exactly
LARGEST_NUMBER = 1e38  # the loss of large labels, in float32
OF_ENCODER = {"mnrl": ("knn",), "mlm": ("perplexity", "accuracy")}  # shown of dev, where there are no tasks
LARGEST_METRICS = 16 * MEGABYTE  # a record has about 2,000 bytes


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records in a metrics.jsonl, one per epoch. Raises InputError if one is not valid."""
    try:
        lines = read_text(path, LARGEST_METRICS).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({reason(error)}); has the run completed an epoch?"
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            good = _is_record(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise InputError(f"{path}:{number}: not the record of an epoch; restore the file") from None
        records.append(record)
    if not records:
        raise InputError(f"{path}: holds no epoch yet; make the report when the run has completed one")
    return records


def _is_record(record: Any) -> bool:
    """Return whether a record has everything that is plotted, in numbers that can be plotted.

    Raises KeyError or TypeError if it does not look like a record at all.
    """
    counts = record["epoch"], record["step"]
    singles = [*counts, *(record.get(name, 0) for name in ("seconds", "examples_per_second", *SINGLE))]
    singles += [record["loss"]["all"], record["dev"]["score"]]
    parts = {panel.partition("/")[0] for panel in PANELS} | {*BESIDE}
    return (
        all(isinstance(count, int) and 0 < count <= MAX_STEPS for count in counts)
        and all(map(is_number, singles))
        and all(_holds_numbers(record.get(part, {}), 2) for part in parts - {*SINGLE})
    )


def check_scores(
    path: Path, records: Records, selected: Mapping[str, Task], choose_by: str, option: str
) -> None:
    """Raise InputError if a record lacks a score that the report of this option's run shows."""
    names = choose_by, *OF_ENCODER.get(option, ())
    for number, record in enumerate(records, start=1):
        parts = [record[part] for part in BESIDE if part in record]
        if selected:
            parts.append(record["dev"])
        good = all(is_number(record["dev"].get(name)) for name in names)
        if not good or not all(_scores(part, selected) for part in parts):
            raise InputError(f"{path}:{number}: not the record of an epoch of this run; restore the file")


def _scores(scores: Mapping[str, Any], selected: Mapping[str, Task]) -> bool:
    """Return whether each of these tasks has its metric here, and the overall scores are there too."""
    metrics = [(scores.get(name), task.kind.metric) for name, task in selected.items()]
    return all(is_number(scores.get(name)) for name in OVERALL) and all(
        isinstance(found, dict) and is_number(found.get(metric)) for found, metric in metrics
    )


def _holds_numbers(values: Any, levels: int) -> bool:
    """Return whether this maps names to numbers, or to such mappings, at most `levels` deep."""
    return isinstance(values, dict) and all(
        is_number(value) or (levels > 1 and _holds_numbers(value, levels - 1)) for value in values.values()
    )


def is_number(value: Any) -> bool:
    if isinstance(value, float):
        return abs(value) <= LARGEST_NUMBER
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_WHOLE
