"""inference.py: outputs in the examples' own order, whatever batches they were computed in."""

import pytest
import torch
from helpers import make_model, sentence
from torch import tensor

from multitask.data.tasks import BUILT_IN
from multitask.data.tokens import Tokens
from multitask.inference import EVALUATION_BATCH, EVALUATION_TOKENS, in_length_order, to_device

PAD = 999


def tokens(count: int, length=lambda row: 1 + row * 7 % 5) -> Tokens:
    """Row n begins with token n; the lengths go up and down."""
    return Tokens.join([[([row] * length(row), [0] * length(row)) for row in range(count)]], 1000)


class Compute:
    """Returns each row's first token, twice; keeps the shapes of its batches."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, batch) -> torch.Tensor:
        self.shapes.append(tuple(batch["input_ids"].shape))
        assert torch.equal(batch["input_ids"] != PAD, batch["attention_mask"].bool())
        return batch["input_ids"][:, :1].double().repeat(1, 2)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_outputs_come_in_the_rows_order_whatever_the_batches(batch_size):
    compute = Compute()
    found = in_length_order(tokens(11), PAD, compute, batch_size)
    assert torch.equal(found, torch.arange(11.0)[:, None].repeat(1, 2))
    sizes = {1: [1] * 11, 4: [4, 4, 3], 100: [11]}[batch_size]
    assert [rows for rows, _ in compute.shapes] == sizes


def test_batches_hold_rows_of_similar_lengths():
    """Lengths of 1 to 5 tokens, two or three rows of each: batches of four hardly need padding."""
    compute = Compute()
    in_length_order(tokens(11), PAD, compute, 4)
    assert sum(rows * longest for rows, longest in compute.shapes) - tokens(11).lengths.sum() <= 5
    assert [longest for _, longest in compute.shapes] == sorted(longest for _, longest in compute.shapes)[
        ::-1
    ]


def test_a_batch_is_bounded_in_rows_and_in_tokens_with_padding():
    for length in (1, 40, 100, EVALUATION_TOKENS + 1):
        compute = Compute()
        in_length_order(tokens(300, lambda row, length=length: length), PAD, compute)
        assert sum(rows for rows, _ in compute.shapes) == 300
        fitting = max(1, min(EVALUATION_BATCH, EVALUATION_TOKENS // length))
        assert max(rows for rows, _ in compute.shapes) == fitting


def test_outputs_are_float32():
    found = in_length_order(tokens(3), PAD, lambda batch: batch["input_ids"][:, :1].to(torch.bfloat16))
    assert found.dtype == torch.float32 and found.tolist() == [[0], [1], [2]]


def test_a_batch_on_its_device():
    batch = to_device({"a": tensor([1]), "b": tensor([2])}, torch.device("meta"))
    assert batch.keys() == {"a", "b"} and all(one.is_meta for one in batch.values())


# A model's logits


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_models_logits_are_those_of_each_row_alone(tiny, name):
    """In evaluation mode, in which they leave the model."""
    model = make_model(tiny, head_dropout=0.5).train()
    columns = len(BUILT_IN[name].texts)
    texts = [tuple(sentence(row + 40 * place) for place in range(columns)) for row in range(7)]
    rows = model.token_ids(name, texts)
    found = model.logits_of_tokens(name, Tokens.join([rows], model.tokenizer.vocab_size), 3)
    assert not model.training and not found.requires_grad
    alone = torch.cat([model(name, model.tokenizer.pad([row])) for row in rows])
    torch.testing.assert_close(found, alone.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.logits(name, texts), found, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BUILT_IN)
def test_logits_of_nothing(tiny, name):
    model = make_model(tiny)
    assert model.logits_of_tokens(name, tokens(0)).shape == (0, BUILT_IN[name].outputs)
