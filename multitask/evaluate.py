"""Predictions and metrics: one loop for every task, and the course's submission files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minbert.files import write_text
from multitask.data import Examples, Table
from multitask.distributed import collect, deal
from multitask.losses import LOSSES
from multitask.store import Tokens, length_sorted_batches
from multitask.tasks import OVERALL, Task

if TYPE_CHECKING:
    from multitask.model import MultitaskBert

EVALUATION_BATCH = 256  # rows at most in a batch
EVALUATION_TOKENS = 2048  # at most in a batch, padding included: what the caches of a processor like best


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def in_length_order(
    tokens: Tokens,
    pad_token_id: int,
    compute: Callable[[Mapping[str, Tensor]], Tensor],
    batch_size: int = EVALUATION_BATCH,
) -> Tensor:
    """`compute` on batches of like length, divided over the processes; its rows on the CPU, in float32 and in
    the examples' own order."""
    batches = length_sorted_batches(tokens.lengths, batch_size, EVALUATION_TOKENS)
    rows = [compute(tokens.batch(batch, pad_token_id)).float().cpu() for batch in deal(batches)]
    return torch.cat(collect(rows))[np.argsort(np.concatenate(batches))]


@torch.inference_mode()
def predict_logits(
    model: MultitaskBert, task: str, tokens: Tokens, batch_size: int = EVALUATION_BATCH
) -> Tensor:
    """Logits (N, C) of tokenised examples, on the CPU, in their own order; leaves the model in evaluation
    mode."""
    model.eval()
    if not len(tokens):
        return torch.empty(0, model.tasks[task].outputs)

    def logits(batch: Mapping[str, Tensor]) -> Tensor:
        return model(task, to_device(batch, model.device))

    return in_length_order(tokens, model.tokenizer.pad_token_id, logits, batch_size)


def decode(kind: str, logits: Tensor) -> Tensor:
    """Logits (N, C) -> (N,): the most probable class, int64, or the value of a regression, float32."""
    if kind == "classification":
        return logits.argmax(dim=1)
    return (logits > 0).squeeze(1).long() if kind == "binary" else logits.squeeze(1)


def probabilities(kind: str, logits: Tensor) -> Tensor:
    """Logits (N, C) of a classification or binary task -> the probability of every class, (N, classes)."""
    if kind == "classification":
        return logits.softmax(dim=1)
    return torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1)


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """The share of predictions (N,) that equal their labels (N,)."""
    return float(np.mean(predictions == labels))


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Pearson's correlation over the whole split; 0, with a warning, where either side is constant."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        warnings.warn("a correlation with constant values is undefined: taken as 0", stacklevel=2)
        return 0.0
    return float(np.corrcoef(predictions, labels)[0, 1])


METRICS = {"accuracy": accuracy, "pearson": pearson}


def scores(
    tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], data: Mapping[str, Examples | Table]
) -> dict[str, Any]:
    """Score each task's logits: {task: {metric: value}}; and over the tasks, each metric taken as
    `Task.score` counts it, their mean `score`, the `worst`, and the `spread` from the best to the worst."""
    result: dict[str, Any] = {}
    for name, logits in outputs.items():
        task = tasks[name]
        predictions = decode(task.kind, logits).double().numpy()
        result[name] = {task.metric: METRICS[task.metric](predictions, data[name].labels)}
    each = [tasks[name].score(value) for name in outputs for value in result[name].values()]
    return result | {"score": sum(each) / len(each), "worst": min(each), "spread": max(each) - min(each)}


def losses(
    tasks: Mapping[str, Task], outputs: Mapping[str, Tensor], data: Mapping[str, Examples]
) -> dict[str, float]:
    """Each task's mean loss over its examples, from its logits: the negative log-likelihood of classes, the
    squared error of values in the task's unit."""
    found = {}
    for name, logits in outputs.items():
        task, labels = tasks[name], torch.as_tensor(data[name].labels)
        found[name] = LOSSES[task.kind](logits.double() / task.unit, labels / task.unit).item()
    return found


def all_logits(model: MultitaskBert, data: Mapping[str, Examples]) -> dict[str, Tensor]:
    return {name: predict_logits(model, name, examples.tokens) for name, examples in data.items()}


def summary(tasks: Mapping[str, Task], dev: Mapping[str, Any]) -> str:
    """The scores in one line."""
    values = []
    for name, task in tasks.items():
        value = dev[name][task.metric]
        entering = f" ((1 + r) / 2 = {task.score(value):.3f})" if task.metric == "pearson" else ""
        values.append(f"{name} {task.metric} {value:.3f}{entering}")
    return ", ".join([*values, *(f"{name} {dev[name]:.3f}" for name in OVERALL)])


def format_scores(tasks: Mapping[str, Task], *scores: Mapping[str, Any]) -> str:
    """The scores of one model or several side by side, a line each; a correlation r also as (1 + r) / 2, as
    it enters the score."""
    lines = []
    for name, task in tasks.items():
        values = [dev[name][task.metric] for dev in scores]
        lines.append([name, task.metric, *values])
        if task.metric == "pearson":
            lines.append(["", "(1 + r) / 2", *map(task.score, values)])
    lines += [[name, "", *(dev[name] for dev in scores)] for name in OVERALL]
    return "\n".join(
        f"  {name:12} {metric:11}" + "".join(f"  {value:.3f}" for value in values)
        for name, metric, *values in lines
    )


def write_predictions(directory: Path, task: Task, split: str, ids: Iterable[str], logits: Tensor) -> Path:
    """One split's submission file in the course's format, and beside it the probabilities where there are
    classes."""
    directory.mkdir(parents=True, exist_ok=True)
    ids = list(ids)
    path = directory / f"{task.submission}-{split}-output.csv"
    values = decode(task.kind, logits).tolist()
    lines = (f"{row_id} , {value} \n" for row_id, value in zip(ids, values, strict=True))
    write_text(path, f"id \t {task.header} \n" + "".join(lines))
    if task.kind != "regression":
        rows = probabilities(task.kind, logits).tolist()
        header = "\t".join(["id", *(f"class_{number}" for number in range(len(rows[0])))]) + "\n"
        lines = (
            "\t".join([row_id, *(f"{value:.6f}" for value in row)]) + "\n"
            for row_id, row in zip(ids, rows, strict=True)
        )
        write_text(directory / f"{task.submission}-{split}-probabilities.csv", header + "".join(lines))
    return path
