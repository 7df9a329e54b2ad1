"""Make tests/golden.json, the metrics of a small run that uses every method: `python tools/make_golden.py`.

Run it only after a change that is meant to move the numbers; the commit says why.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from minbert import linear
from multitask.machine import rounding
from multitask.run import main

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (
    "--option finetune --weights ROOT/weights/tiny --threads 1 --device cpu --epochs 2 --steps-per-epoch 6 "
    "--batch-size 4 --accumulate 2 --sampling annealed --lr 1e-3 --encoder-dropout 0.1 --head-dropout 0.1 "
    "--smart-weight 1 --bregman-weight 1 --no-report"
)

if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()  # it has no flags: --help must not run it
    linear.chosen = lambda *_: frozenset()  # the same matrix library on every processor, as in the test
    with tempfile.TemporaryDirectory() as folder:
        words = COMMAND.replace("ROOT", str(ROOT)).split()
        assert main([*words, "--out", f"{folder}/run"]) == 0
        lines = Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()
    golden = {
        "machine": rounding(),
        "command": COMMAND.split(),
        "metrics": [json.loads(line) for line in lines],
    }
    (ROOT / "tests" / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
