"""What several test files share. The tests need no network and no real weights, unless marked slow."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the same sums on every machine, and a training beside the tests goes on


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The committed tiny checkpoint: 2 layers, width 32, random weights (made by tools/make_reference.py)."""
    return Path(__file__).resolve().parent.parent / "weights" / "tiny"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random numbers, alone or in the whole set."""
    torch.manual_seed(0)
