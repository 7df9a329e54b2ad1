"""The notes on a page: what a reader of our numbers must know."""

from __future__ import annotations

from collections.abc import Mapping

from cells import Cell, Figure, PaperTable
from grid import Grid
from minbert import hub
from multitask.methods.sampling import pass_updates
from overrides import Changes, in_words, takes
from paper import PAPER, ROWS


def notes_on(target: PaperTable | Figure, grid: Grid, weights: str) -> list[str]:
    """Return the paper's title, the table's own notes, and the conditions of our runs."""
    notes = [f"Compared with {PAPER}.", *target.notes]
    if grid.data is None:
        notes.append("On the shipped sample, which is too small for its scores to mean anything.")
    known = hub.CHECKPOINTS.get(weights)
    notes.append(f"† From {weights}{f', pre-training: {known.pretraining}' if known else ''}.")
    if len(grid.seeds) > 1:
        notes.append("Ours are mean ± standard deviation (n - 1) over n seeds.")
    return notes


def notes_on_changes(target: PaperTable | Figure, changes: Changes) -> list[str]:
    """Return what `--set` changed, and which of its settings no cell here uses."""
    if not changes:
        return []
    notes = [
        f"Set for these runs: {in_words(changes)}. A cell keeps what its table states; a rate such as 5x "
        "multiplies the rate of the row or its recipe."
    ]
    idle = [
        name for name, value in changes.items() if not any(takes(one, name, value) for one in target.cells)
    ]
    if idle:
        notes.append(f"No cell here uses {', '.join(idle)} from --set.")
    return notes


def notes_on_ensemble(ensemble: Cell, grid: Grid, pool: bool, unscored: bool) -> list[str]:
    """Return which models it may average, and where its test predictions are if nothing scores them."""
    count = len(ensemble.needs)
    notes = [f"The ensemble chooses from {count} models, all finished cells of all tables, as in the paper."]
    if not pool:
        notes = [
            f"The ensemble chooses from the {count} models of the paper's Table 7; the paper's own chose "
            "from all models of its tables (--pool)."
        ]
    if unscored:
        files = grid.out / ensemble.name / "seed-N" / "predictions" / "*-test-output.csv"
        notes.append(f"Not scored without --test-labels; the predictions are {files}.")
    return notes


def data_note(sizes: Mapping[str, tuple[int, int]]) -> str:
    """Return the sizes of our tables beside the paper's, and the updates of a full pass over each.

    `sizes` is {name: (rows of train, rows of dev)}, by task.
    """
    parts = [
        f"{name} {train:,} and {dev:,} ({ROWS[name][0]:,} and {ROWS[name][1] - ROWS[name][0]:,})"
        for name, (train, dev) in sizes.items()
    ]
    here = [train for train, _ in sizes.values()]
    paper = [ROWS[name][0] for name in sizes]
    passes = [sum(pass_updates(rows, [16] * len(rows))) for rows in (here, paper)]
    return (
        f"Rows of train and dev (in the paper): {', '.join(parts)}. A full pass in batches of 16: "
        f"{passes[0]:,} updates ({passes[1]:,})."
    )
