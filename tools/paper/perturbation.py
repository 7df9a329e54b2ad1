"""Find the mode, norm and epsilon that make SMART matter, by its search on a run's own training batches.

    python tools/paper/perturbation.py --run RUN [--data DIR] [--batches N] [--epsilons X,X,...]

Every setting sees the same batches of every task, without dropout, through the run's best model. Each row of
the output has means over the batches: R; |dR|, the norm of its gradient with respect to all weights; |dL|,
that of the task loss; the cosine of the perturbation with the gradient that it climbed; and, as a median, how
many times more the perturbation raised l than random noise of the same norm. `lambda` is |dL| / |dR|, the
weight with which both terms pull equally hard. Epsilons are per coordinate: for the 2-norm the radius is
sqrt(width) times as large.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minbert.command import explain
from minbert.errors import InputError, shown
from minbert.fields import check
from minbert.packing import Packing
from multitask.config import FIELDS, Smart
from multitask.data.tables import SAMPLE, read_split
from multitask.data.tokens import Examples, make_examples
from multitask.finetune import gradient_norm
from multitask.methods.sampling import random_seed, shuffled_rows
from multitask.methods.smart import NORMS, adversarial_noise, ascent_gain
from multitask.model import MultitaskBert
from multitask.runs import data_of

EPSILONS = "0.001,0.003,0.01,0.03,0.1,0.3"
BATCH = 16


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="finished run of `--option finetune`")
    parser.add_argument("--data", type=Path, help="folder of tables (default: the run's own)")
    parser.add_argument("--batches", type=int, default=100, help="batches per task (default 100)")
    parser.add_argument(
        "--epsilons", default=EPSILONS, help=f"radii of the ball, per coordinate (default {EPSILONS})"
    )
    args = parser.parse_args()
    if args.batches < 1:
        parser.error("--batches: must be at least 1")
    try:
        model = MultitaskBert.load(args.run)
        radii = [check(radius, FIELDS["smart_epsilon"], "--epsilons") for radius in numbers(args.epsilons)]
        folder = args.data or Path(data_of(args.run) or SAMPLE)
        rows = read_split(folder, "train", model.tasks, skip_bad_rows=False)
    except InputError as error:
        return explain(error)
    model.eval()
    longer = {"inf": 1.0, "2": math.sqrt(model.encoder.config.hidden_size)}
    settings = [Smart(mode="normalize")] + [
        Smart(norm=norm, epsilon=radius * longer[norm]) for norm in NORMS for radius in radii
    ]
    print(f"{args.batches} batches of {BATCH} rows per task from {folder}, {args.run}")
    print("| task | mode | norm | epsilon | R | \\|dR\\| | \\|dL\\| | lambda | cosine | gain |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in model.tasks:
        examples = make_examples(rows[name], model.tokenizer, model.max_length)
        for smart in settings:
            found = np.array(list(searches(model, name, examples, smart, args.batches)))
            r, regulariser, loss, cosine = found[:, :4].mean(axis=0)
            weight, gain = loss / regulariser, np.median(found[:, 4])
            cells = [smart.mode, smart.norm, f"{smart.epsilon or 1e-6:.3g}"]
            cells += [f"{r:.2g}", f"{regulariser:.2g}", f"{loss:.2g}", f"{weight:.2g}", f"{cosine:.3f}"]
            cells += [f"{gain:,.2f}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


def numbers(text: str) -> list[float]:
    try:
        return [float(item) for item in text.split(",")]
    except ValueError:
        raise InputError(f"--epsilons: {shown(text)} is not a list of numbers, X,X,...") from None


def searches(
    model: MultitaskBert, name: str, examples: Examples, smart: Smart, batches: int
) -> Iterator[tuple[float, ...]]:
    """Yield R, |dR|, |dL|, the cosine and the gain on each batch."""
    task, weights = model.tasks[name], list(model.encoder.parameters())
    divergence = task.kind.divergence
    for number in range(batches):
        rows = shuffled_rows(0, 0, len(examples), number * BATCH, BATCH)
        inputs = examples.tokens.batch(rows, model.tokenizer.pad_token_id)
        labels = torch.as_tensor(examples.labels[rows], dtype=torch.float32)
        generator = torch.Generator().manual_seed(random_seed(0, "noise", number))
        embeddings, packing = model.encoder.embed(**inputs)

        def outputs(embeddings: Tensor, packing: Packing = packing) -> Tensor:
            return model.logits_from_embeddings(name, embeddings, packing) / task.unit

        clean = outputs(embeddings)
        ascent = smart.ascent(embeddings.shape[1])
        noise, found = adversarial_noise(
            outputs, embeddings, clean, divergence, **ascent, generator=generator
        )
        r = divergence(outputs(embeddings + noise), clean)
        normal = torch.randn(embeddings.shape, generator=generator)
        gain = ascent_gain(outputs, embeddings, clean, divergence, noise, r, ascent["norm"], normal)
        loss = task.kind.loss(clean, labels / task.unit)
        norms = [gradient_norm(value, weights) for value in (r, loss)]
        yield r.item(), *norms, found.cosine, gain


if __name__ == "__main__":
    sys.exit(main())
