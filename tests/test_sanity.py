"""sanity.py: all the same as it is; a planted mistake is found in its line; without a checkout, one line."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from minbert import bert, mlm, sanity
from minbert.comparison import main


def failing(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the check and return the stages that differ."""
    status = main(["--sanity"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["stage", "largest", "difference", "allowed"]
    found = [line.split("  ")[0] for line in lines[1:-1] if line.endswith("differs")]
    assert status == (1 if found else 0)
    assert lines[-1] == (f"the first that differs is {found[0]}" if found else sanity.ALL_THE_SAME)
    return found


def test_all_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sanity"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    stages = (
        "embeddings|layer 0, weights|layer 0|layer 1, weights|layer 1|pooler|gradients|AdamW|masked tokens"
    )
    assert [line.split("  ")[0] for line in lines] == stages.split("|")
    assert all(line.endswith("  same") for line in lines)


def unscaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Any:
    weights = (query @ key.mT + mask).softmax(dim=-1)
    return weights @ value, weights


def not_a_number(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Any:
    weights = (query @ key.mT * math.nan + mask).softmax(dim=-1)
    return weights @ value, weights


def not_differentiated(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Any:
    weights = (query @ key.mT / math.sqrt(query.shape[-1]) + mask).softmax(dim=-1).detach()
    return weights @ value, weights


@pytest.mark.parametrize(
    ("attention", "first", "last"),
    [
        (unscaled, "layer 0, weights", "masked tokens"),
        (not_a_number, "layer 0, weights", "masked tokens"),
        (not_differentiated, "gradients", "gradients"),
    ],
)
def test_mistakes_in_the_encoder(
    attention: Callable[..., Any],
    first: str,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bert, "attention", attention)
    found = failing(capsys)
    assert (found[0], found[-1]) == (first, last)


def test_another_gelu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bert.F, "gelu", lambda x, gelu=F.gelu: gelu(x, approximate="tanh"))
    assert failing(capsys)[0] == "layer 0"


def without_correction(parameters: list[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    return ADAMW(parameters, correct_bias=False, **settings)


ADAMW = sanity.AdamW


@pytest.mark.parametrize(
    "optimizer", [Adam, without_correction], ids=["decay in the moments", "no correction"]
)
def test_mistakes_in_adamw(
    optimizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanity, "AdamW", optimizer)
    assert failing(capsys) == ["AdamW"]


def test_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanity, "REFERENCE", tmp_path / "reference.safetensors")
    assert main(["--sanity"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "reference.safetensors" in line and "run the check in a checkout" in line


def test_a_mistake_in_the_masked_head(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlm.MaskedLanguageHead, "forward", lambda head, x, table: x @ table.T + head.bias)
    assert failing(capsys) == ["masked tokens"]
