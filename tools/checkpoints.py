"""What an update costs from each named checkpoint, measured on random weights of its shape.

    python tools/checkpoints.py [--data DIR] [--rounds N]

The time of an update depends on shapes and lengths alone, so nothing is downloaded but the default
checkpoint, whose vocabulary makes the tokens. All shapes take turns on the same updates of a run with the
default settings (batches of 16, dropout, AdamW). The seconds are those of the processor on one thread, which
other programs on the machine hardly change: the mean over the tasks of the median of each task's updates.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from statistics import fmean, median
from typing import cast

import torch

from minbert import BertConfig, BertModel, BertTokenizer, hub
from minbert.command import explain
from minbert.errors import InputError
from minbert.products import processor
from multitask.config import Config
from multitask.data.tables import SPLITS, read_splits
from multitask.finetune import Finetuning
from multitask.preparation import prepare, tasks_of
from multitask.train import TrainingRun, train_step

WARM_UP = 1  # rounds that are not counted
SHAPES = {
    hub.DEFAULT: BertConfig(30522, 384, 6, 12, 1536),
    "bert-tiny": BertConfig(30522, 128, 2, 2, 512),
    "bert-mini": BertConfig(30522, 256, 4, 4, 1024),
    "bert-small": BertConfig(30522, 512, 4, 8, 2048),
    "bert-medium": BertConfig(30522, 512, 8, 8, 2048),
    "bert-base-uncased": BertConfig(),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of tables (default: the shipped sample)")
    parser.add_argument("--rounds", type=int, default=10, help="timed updates of each task")
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: run_of(shape, args.data, args.rounds) for name, shape in SHAPES.items()}
    seconds = measure(runs, args.rounds)
    print(f"{processor()}, one thread; tokens in a row: {lengths(runs[hub.DEFAULT])}\n")
    print("| name | parameters | layers x width | seconds per 1,000 updates | times minilm-l6 |")
    print("|---|---|---|---|---|")
    for name, shape in SHAPES.items():
        size = sum(weight.numel() for weight in runs[name].method.model.encoder.parameters())
        ratio = seconds[name] / seconds[hub.DEFAULT]
        layers = f"{shape.num_hidden_layers} x {shape.hidden_size}"
        print(f"| `{name}` | {size / 1e6:.1f} M | {layers} | {1000 * seconds[name]:.0f} | {ratio:.2f} |")


def run_of(shape: BertConfig, data: str | None, rounds: int) -> TrainingRun:
    """Return a run from random weights of this shape that is ready to start."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        BertModel(shape).save_pretrained(folder)
        BertTokenizer.from_pretrained(hub.DEFAULT).save_pretrained(folder)
        steps = 3 * (WARM_UP + rounds) + 100  # the last updates of an epoch do extra work: they measure
        config = Config("finetune").changed(weights=folder, epochs=1, steps_per_epoch=steps)
        selected = tasks_of(config)
        rows = read_splits(data, SPLITS[:2], selected, skip_bad_rows=False)
        return prepare(config, selected, rows, torch.device("cpu"))


def measure(runs: Mapping[str, TrainingRun], rounds: int) -> dict[str, float]:
    """Return the seconds of an update from each checkpoint."""
    tasks = len(next(iter(runs.values())).method.model.tasks)
    times: dict[str, list[list[float]]] = {name: [[] for _ in range(tasks)] for name in runs}
    for step in range(tasks * (WARM_UP + rounds)):
        for name, run in runs.items():
            started = time.process_time()
            train_step(run, step)
            times[name][step % tasks].append(time.process_time() - started)  # tasks take turns
    return {name: fmean(median(some[WARM_UP:]) for some in found) for name, found in times.items()}


def lengths(run: TrainingRun) -> str:
    """Return how many tokens the rows of each task have."""
    train = cast(Finetuning, run.method).train
    return ", ".join(f"{name} {examples.tokens.lengths.mean():.0f}" for name, examples in train.items())


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(explain(error))
