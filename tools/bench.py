"""Training steps side by side: ours, those of the methods, and `transformers`', on identical real batches.

    python tools/bench.py [--data DIR] [--repeats N] [--threads N]

All take turns on every batch, in one process. Quote ratios of the medians: times depend on the machine.
"minbert" and "transformers" train the encoder with dropout .1 on the mean square of the pooled vectors: ours
is `BertModel.pooled` with "cls" pooling and our AdamW; theirs is `BertModel` (sdpa), each batch padded to its
longest row, and torch's fused AdamW. "plain", "SMART" and "BPPO" are whole multitask updates without dropout.
Needs the extra `test` (transformers).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from minbert import AdamW, BertModel, BertTokenizer, hub
from minbert.optim import parameter_groups
from multitask.build import build_model
from multitask.config import Config
from multitask.data import SAMPLE, Examples, make_examples, read_split
from multitask.finetune import Finetuning
from multitask.sampling import schedule
from multitask.tasks import BUILT_IN
from multitask.train import update

BATCH = 16
WARM_UP = 3  # steps, one of each task: SMART compares its ascent with random noise in those
METHODS = {"plain": {}, "SMART": {"smart_weight": 1.0}, "BPPO": {"bregman_weight": 1.0}}
Step = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=SAMPLE, help="folder of tables (default: the shipped sample)"
    )
    parser.add_argument("--weights", default=hub.DEFAULT, help="checkpoint: a name or a folder")
    parser.add_argument("--repeats", type=int, default=30, help="batches timed, in turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="processor threads")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error("--repeats: quartiles need at least 2")
    torch.set_num_threads(args.threads)
    directory, count = hub.resolve(args.weights), args.repeats + WARM_UP
    tokenizer = BertTokenizer.from_pretrained(directory)
    rows = read_split(args.data, "train", BUILT_IN, skip_bad_rows=False)
    train = {name: make_examples(rows[name], tokenizer, 512) for name in rows}
    batches = real_batches(train, tokenizer, count)

    ours = BertModel.from_pretrained(directory)
    theirs = transformers.BertModel.from_pretrained(directory, attn_implementation="sdpa")
    fused = torch.optim.AdamW(parameter_groups(theirs, 1e-4), lr=1e-5, fused=True)
    by_hand = AdamW(parameter_groups(ours, 1e-4), lr=1e-5)
    steps: dict[str, Step] = {
        "transformers": encoder_step(theirs, lambda x: theirs(**x).pooler_output, fused, batches),
        "minbert": encoder_step(ours, lambda x: ours.pooled(**x), by_hand, batches),
    }
    steps |= {name: method_step(train, count, args.weights, settings) for name, settings in METHODS.items()}

    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(count):
        for name, step in steps.items():
            started = time.perf_counter()
            step(number)
            times[name].append(time.perf_counter() - started)
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    padded = sum(batch["attention_mask"].numel() for batch in batches)
    size = f"{args.repeats} batches of {BATCH}, {1 - real / padded:.0%} padding, {args.threads} threads"
    print(f"median (quartiles) of a step, {size}")
    print("ratios: of the encoders to transformers, of the methods to plain")
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds[WARM_UP:], n=4)
        reference = statistics.median(times["plain" if name in METHODS else "transformers"][WARM_UP:])
        spread = f"({1000 * low:.0f} to {1000 * high:.0f})"
        print(f"  {name:13} {1000 * median:6.1f} ms {spread:14} {median / reference:.2f}")


def encoder_step(
    model: nn.Module,
    pooled: Callable[[dict[str, Any]], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: list[dict[str, Tensor]],
) -> Step:
    """Forward, backward and update of an encoder alone."""
    model.train()

    def step(number: int) -> None:
        pooled(batches[number]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def method_step(train: Mapping[str, Examples], count: int, weights: str, settings: Mapping[str, Any]) -> Step:
    """A whole update of multitask fine-tuning, collation included."""
    config = Config(
        "finetune",
        weights=weights,
        pooling="cls",
        encoder_dropout=0.0,
        steps_per_epoch=count,
        epochs=1,
        **settings,
    )
    model = build_model(config, BUILT_IN)
    method = Finetuning(model, train, {}, config)
    optimizer = AdamW(parameter_groups(model, config.weight_decay), lr=1e-5)

    def step(number: int) -> None:
        update(optimizer, method.losses(number), 1, config.clip_norm)
        method.after_update(number)

    return step


def real_batches(
    train: Mapping[str, Examples], tokenizer: BertTokenizer, count: int
) -> list[dict[str, Tensor]]:
    """Batches of the tasks in turn, as a round-robin run with seed 0 meets them."""
    tokens = [examples.tokens for examples in train.values()]
    plan = schedule("round-robin", [len(rows) for rows in tokens], BATCH, count, epochs=1, seed=0)
    return [tokens[task].batch(rows, tokenizer.pad_token_id) for _, task, rows in plan]


if __name__ == "__main__":
    main()
