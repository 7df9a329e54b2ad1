"""Run the probes on the code of a submission, in a process of its own: python answer.py SEED OUT PART ...

Writes what each part computes into OUT, a file each. Whether it is right is decided elsewhere, by a process
that this code cannot reach: so nothing is gained by printing, by replacing functions, or by exiting.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from checks.judging import run


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    seed, folder, *parts = arguments
    (Path(folder) / "started").touch()
    for part in parts:
        outcome = run(part, int(seed))
        tensors = {f"{place:03}/{name}": tensor for place, (name, tensor) in enumerate(outcome.steps.items())}
        said = {"stopped": "\n".join(outcome.stopped), "to do": "yes" if outcome.to_do else ""}
        partial = Path(folder) / "partial"
        save_file(tensors, partial, metadata=said)
        partial.rename(Path(folder) / f"{part}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
