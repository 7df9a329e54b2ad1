"""What several test files share. The tests need no network and no real weights, unless marked slow."""

import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from multitask import jobs

hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=50)
hypothesis.settings.load_profile("same")  # the same inputs every time; tools/stress/fuzz.py has others

sys.orig_argv[0] = sys.executable  # messages advise the same commands here and in the processes of the tests
torch.set_num_threads(1)  # the same sums on every machine, and a training beside the tests goes on


@pytest.fixture(scope="session")
def tiny() -> Path:
    """The committed tiny checkpoint: 2 layers, width 32, random weights (made by tools/make_reference.py)."""
    return Path(__file__).resolve().parent.parent / "weights" / "tiny"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests, and the processes they start, share a cache of their own and leave the user's alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINBERT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same random numbers, alone or in the whole set."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _without_reports() -> Iterator[None]:
    """Runs end without their report, which takes longer than a tiny run; test_report.py has it drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "can_plot", lambda: False)
        yield
