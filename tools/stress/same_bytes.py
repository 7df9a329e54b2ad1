"""Whether a change keeps every byte of what runs write: small runs in two checkouts, compared.

    git worktree add ../before HASH
    python tools/stress/same_bytes.py ../before . [--cases finetune,mnrl]

Every method is in one of the runs, on the tiny checkpoint and the shipped sample. Compared are metrics.jsonl,
clock fields aside, the weights of best/ and the predictions. Where they differ, the largest difference is
printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ALL_METHODS = (
    "--sampling annealed --schedule halve-on-rise --accumulate 2 --encoder-dropout 0.1 --head-dropout 0.1 "
    "--smart-weight 1.5 --smart-rows 3 --bregman-weight 1 --bregman-beta 0.9:0.99"
)
TRAINED = "--weights weights/tiny --epochs 3 --steps-per-epoch 8 --lr 1e-3 --batch-size 8 --no-report"
CASES = {  # a name and the command; OUT is the folder of the runs, a run of it is named after its case
    "finetune": f"--option finetune {TRAINED} {ALL_METHODS}",
    "normalize": f"--option finetune {TRAINED} --smart-weight 15 --smart-mode normalize --smart-norm 2 "
    "--smart-steps 2 --encoder-dropout 0 --sampling full-pass --pooling cls --choose-by worst",
    "tokens": f"--option finetune {TRAINED.replace('--batch-size 8', '--max-tokens 200')} --skip-bad-rows",
    "pretrain": f"--option pretrain {TRAINED} --smart-weight 1",
    "mnrl": f"--option mnrl {TRAINED.replace('--batch-size 8', '--groups 2')}",
    "mlm": f"--option mlm {TRAINED}",
    "from-mnrl": f"--option finetune {TRAINED} --init OUT/mnrl".replace("--weights weights/tiny ", ""),
    "ensemble": "--option ensemble --run OUT/finetune OUT/tokens --copy",
    "distill": f"--option distill {TRAINED} --run OUT/ensemble --smart-weight 1.5",
    "processes": f"--option finetune {TRAINED} {ALL_METHODS}",
}
NEEDS = {"from-mnrl": ["mnrl"], "ensemble": ["finetune", "tokens"], "distill": ["ensemble"]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="checkout to compare with")
    parser.add_argument("after", type=Path, help="checkout to compare")
    parser.add_argument("--cases", default=",".join(CASES), help="runs to make (default: all)")
    args = parser.parse_args()
    cases = list(dict.fromkeys(case for name in args.cases.split(",") for case in with_needs(name)))
    same = True
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            runs = [carry_out(case, tree, Path(folder, name)) for tree, name in
                    ((args.before, "before"), (args.after, "after"))]  # fmt: skip
            differences = list(compare(*runs))
            same = same and not differences
            print(f"{case:10} {'; '.join(differences) or 'the same bytes'}", flush=True)
    return 0 if same else 1


def with_needs(case: str) -> list[str]:
    """The case after the cases whose runs it starts from."""
    return [*(other for need in NEEDS.get(case, ()) for other in with_needs(need)), case]


def carry_out(case: str, tree: Path, out: Path) -> Path:
    """Make the run of a case with the code of a checkout, and return its folder."""
    words = f"{CASES[case]} --threads 1 --device cpu --out OUT/{case}".replace("OUT", str(out)).split()
    start = [sys.executable, "-m", "multitask.run"]
    if case == "processes":
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "-m",
            "multitask.run",
        ]
    environment = os.environ | {"PYTHONPATH": str(tree.resolve()), "MINBERT_CACHE": str(out / "cache")}
    done = subprocess.run([*start, *words], cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{case} in {tree}: exit status {done.returncode}\n{done.stderr}")
    return out / case


def compare(before: Path, after: Path) -> Iterator[str]:
    """What differs between two runs of one case, in words."""
    old, new = (dict(numbers(run)) for run in (before, after))
    if old != new:
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        yield f"metrics: {len(names)} of {len(old)} values, up to {largest(old, new, names)}"
    for file in sorted(path.relative_to(before) for path in before.glob("best/*.safetensors")):
        one, other = (load_file(run / file) for run in (before, after))
        if one.keys() != other.keys() or any(not one[name].equal(other[name]) for name in one):
            gaps = [(one[name] - other[name]).abs().max().item() for name in one.keys() & other.keys()]
            yield f"{file}: up to {max(gaps):.1e}"
    for file in sorted(path.relative_to(before) for path in before.glob("predictions/*")):
        if (before / file).read_bytes() != (after / file).read_bytes():
            yield f"{file} differs"


def numbers(run: Path) -> Iterator[tuple[str, Any]]:
    """The values in a run's metrics.jsonl by name, without clock fields."""
    path = run / "metrics.jsonl"
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else ()):
        yield from flat(json.loads(line), str(number))


def flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if "second" not in key:
                yield from flat(inner, f"{name}/{key}")
    else:
        yield name, value


def largest(old: dict[str, Any], new: dict[str, Any], names: list[str]) -> str:
    """The largest relative difference and where it is; names that only one run has come first."""
    for name in names:
        if name not in old or name not in new:
            return f"{name}, which only one of them has"
    relative = {name: abs(old[name] - new[name]) / max(abs(old[name]), 1e-9) for name in names}
    worst = max(relative, key=relative.__getitem__)
    return f"{relative[worst]:.1e} ({worst})"


if __name__ == "__main__":
    sys.exit(main())
