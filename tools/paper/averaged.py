"""Compare the average of a row's seeds with its single models, and how calibrated both are, on dev.

    python tools/paper/averaged.py --data DIR

Reads the outputs in tools/results/outputs and the labels of the dev tables. A difference is what the average
gains over the mean of its members, with its 95% interval by a bootstrap over dev rows. Temperature and
calibration error (ECE) are those of SST; "ECE with it" has a temperature that was fitted on other rows.
"""

from __future__ import annotations

import argparse
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from lines import METHODS
from measures import MEASURES, average, measure, read_truth, recorded, summary
from minbert.errors import InputError
from multitask.methods.calibration import fit_temperature, folds, reliability
from multitask.methods.losses import cross_entropy
from pages import markdown
from published import signed, three


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the dev tables")
    args = parser.parse_args()
    try:
        truth, draws = read_truth(args.data)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    head = ["", "n", *MEASURES[:5], "temperature", "ECE", "ECE with it"]
    body: list[list[object]] = []
    cells = [(line.title, [*recorded(line.cell).values()]) for line in METHODS]
    for title, members in [*cells, ("all of them", [*chain(*(members for _, members in cells))])]:
        if len(members) > 1:
            singles = np.mean([measure(one, truth, draws) for one in members], axis=0)
            together = measure(average(members), truth, draws)
            difference = summary([together - singles])
            calibrated = np.mean([calibration(one["sst-dev"], truth["sst"]) for one in members], axis=0)
            body += [
                [title, len(members), *map(three, singles[:5, 0]), *map(three, calibrated)],
                ["averaged", "", *map(three, together[:5, 0]),
                 *map(three, calibration(average(members)["sst-dev"], truth["sst"]))],
                ["difference", "", *(signed(difference[name]) for name in MEASURES[:5]), "", "", ""],
            ]  # fmt: skip
    print("\n".join(markdown(head, body)))
    return 0


def calibration(given: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Return the best temperature, the calibration error, and that of cross-fitted temperatures."""
    probabilities, labels = given / given.sum(axis=1, keepdims=True), truth.astype(int)
    logits, answers = torch.from_numpy(np.log(np.maximum(probabilities, 1e-7))), torch.from_numpy(labels)
    fitted = np.empty_like(probabilities)
    for rest, fold in folds(len(labels)):
        temperature = fit_temperature(cross_entropy, logits[rest], answers[rest])
        fitted[fold] = (logits[fold] / temperature).softmax(dim=1).numpy()
    before, after = (reliability(found, labels).error for found in (probabilities, fitted))
    return fit_temperature(cross_entropy, logits, answers), before, after


if __name__ == "__main__":
    sys.exit(main())
