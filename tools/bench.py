"""Training step against `transformers`, side by side: forward, backward and update on identical real batches.

    python tools/bench.py [--data DIR] [--repeats N] [--threads N]

Both sides take turns on every batch, in one process. Quote the ratio of the medians: times depend on the
machine. Ours: `BertModel.pooled` with "cls" pooling, our AdamW. Theirs: `BertModel` (sdpa), each batch padded
to its longest row, torch's fused AdamW. The loss is the mean square of the pooled vectors in both. Needs the
extra `test` (transformers).
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from minbert import AdamW, BertModel, BertTokenizer, hub
from minbert.optim import parameter_groups
from multitask.data import SAMPLE, read_table, tokenize
from multitask.sampling import schedule
from multitask.tasks import BUILT_IN

BATCH = 16


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
    torch.set_num_threads(args.threads)
    directory = hub.resolve(args.weights)

    ours = BertModel.from_pretrained(directory).train()
    theirs = transformers.BertModel.from_pretrained(directory, attn_implementation="sdpa").train()
    batches = real_batches(args.data, BertTokenizer.from_pretrained(directory), args.repeats)
    padding = 1 - sum(int(b["attention_mask"].sum()) for b in batches) / sum(
        b["input_ids"].numel() for b in batches
    )

    steps = {
        "minbert": Step(
            lambda batch: ours.pooled(**batch), ours, AdamW(parameter_groups(ours, 1e-4), lr=1e-5)
        ),
        "transformers": Step(
            lambda batch: theirs(**batch).pooler_output,
            theirs,
            torch.optim.AdamW(parameter_groups(theirs, 1e-4), lr=1e-5, fused=True),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number, batch in enumerate([*batches[:3], *batches]):  # the first three warm up
        for name, step in steps.items():
            elapsed = step(batch)
            if number >= 3:
                times[name].append(elapsed)
    size = f"{args.repeats} batches of {BATCH}, {padding:.0%} padding, {args.threads} threads"
    print(f"milliseconds a training step, {size}")
    for name, seconds in times.items():
        low, median, high = (1000 * value for value in statistics.quantiles(seconds, n=4))
        print(f"  {name:13} median {median:6.1f}   quartiles {low:6.1f} to {high:6.1f}")
    ratio = statistics.median(times["transformers"]) / statistics.median(times["minbert"])
    print(f"  ratio of the medians: {ratio:.2f}x as fast")


class Step:
    """One training step of an encoder, timed."""

    def __init__(self, pooled, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.pooled, self.model, self.optimizer = pooled, model, optimizer

    def __call__(self, batch: dict[str, Tensor]) -> float:
        started = time.perf_counter()
        self.pooled(batch).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started


def real_batches(directory: Path, tokenizer: BertTokenizer, count: int) -> list[dict[str, Tensor]]:
    """Batches of the three tasks in turn, as a round-robin run with seed 0 would meet them."""
    tables = [read_table(task.path(directory, "train"), task, labelled=True)[0] for task in BUILT_IN.values()]
    encoded = [tokenize(rows, tokenizer, 512) for rows in tables]
    plan = schedule([len(rows) for rows in tables], BATCH, count, seed=0)
    return [tokenizer.pad([encoded[task][row] for row in rows]) for _, task, rows in plan]


if __name__ == "__main__":
    main()
