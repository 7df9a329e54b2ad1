"""Whether a change costs time: the same training runs in two checkouts, taking turns.

    git worktree add ../before HASH
    python tools/stress/same_speed.py ../before . [--weights minilm-l6] [--repeats 5] [--threads 1] [-- FLAGS]

Each run fine-tunes on the shipped sample; what counts is its second epoch, by the run's own clock. Printed
are the medians, and the median of the ratios of neighbouring runs with its quartiles. FLAGS, such as
`--smart-weight 1.5`, are given to both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("after", type=Path, help="checkout to compare")
    parser.add_argument("--weights", default="minilm-l6")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="runs in each checkout")
    given = [*sys.argv[1:], "--"]
    args = parser.parse_args(given[: given.index("--")])
    flags = given[given.index("--") + 1 : -1]
    words = ["--weights", args.weights, "--threads", str(args.threads), *flags]
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(args.repeats):
        sides = (0, 1) if repeat % 2 else (1, 0)  # neither is always the one that comes second
        for side in sides:
            seconds[side].append(epoch_seconds((args.before, args.after)[side], words))
    ratios = [after / before for before, after in zip(*seconds, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"an epoch of 30 updates: {median(seconds[0]):.2f} s before, {median(seconds[1]):.2f} s after")
    print(f"after over before: {median(ratios):.3f}, quartiles {low:.3f} to {high:.3f}")
    return 0


def epoch_seconds(tree: Path, words: Sequence[str]) -> float:
    """Return the seconds of the second of two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "multitask.run", "--option", "finetune", "--no-report"]
        command += ["--epochs", "2", "--steps-per-epoch", "30", "--out", f"{folder}/run", *words]
        environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{tree}: exit status {done.returncode}\n{done.stderr}")
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        return float(json.loads(lines[1])["seconds"])


if __name__ == "__main__":
    sys.exit(main())
