"""embedding.py beside torch.nn.Embedding: the same rows, the same gradient."""

import pytest
import torch
from torch import nn

from minbert.embedding import Embedding

IDS = torch.tensor([[5, 0, 7, 5], [5, 2, 0, 99]])  # one row three times, and the padding row


@pytest.mark.parametrize("padding_idx", [None, 0, 2])
@pytest.mark.parametrize("ids", [IDS, IDS[0], IDS[:, :0]])
def test_equals_torch(padding_idx: int | None, ids: torch.Tensor) -> None:
    ours, theirs = Embedding(100, 8, padding_idx), nn.Embedding(100, 8, padding_idx)
    theirs.load_state_dict(ours.state_dict())
    weight = torch.randn(*ids.shape, 8)
    for _ in range(2):  # the second gradient is added to the first
        for table in (ours, theirs):
            (table(ids).sin() * weight).sum().backward()
    assert torch.equal(ours(ids), theirs(ids))
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    assert ours.weight.grad.is_contiguous()


def test_frozen_table_and_moved_embeddings() -> None:
    """A frozen embedding gets no gradient, but what is added to its rows does."""
    table = Embedding(10, 4).requires_grad_(False)
    noise = torch.zeros(3, 4, requires_grad=True)
    (table(torch.tensor([1, 2, 3])) + noise).sum().backward()
    assert table.weight.grad is None
    assert torch.equal(noise.grad, torch.ones(3, 4))


def test_double_precision() -> None:
    table = Embedding(10, 4, dtype=torch.float64)
    table(torch.tensor([1, 1])).sum().backward()
    assert table.weight.grad.dtype == torch.float64
    assert table.weight.grad[:3, 0].tolist() == [0, 2, 0]


def test_second_derivatives() -> None:
    """Here they are those of the rows that the gradient itself was multiplied by."""
    ours, theirs = Embedding(10, 4, 0), nn.Embedding(10, 4, 0)
    theirs.load_state_dict(ours.state_dict())
    found = []
    for table in (ours, theirs):
        loss = table(torch.tensor([0, 3, 3])).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, table.weight, create_graph=True)
        gradient.square().sum().backward()
        found.append(table.weight.grad)
    torch.testing.assert_close(*found)
    by_function = torch.func.grad(
        lambda weight: torch.func.functional_call(ours, {"weight": weight}, torch.tensor([3, 5])).sin().sum()
    )
    expected = torch.zeros(10, 4).index_add(0, torch.tensor([3, 5]), ours.weight[[3, 5]].cos())
    torch.testing.assert_close(by_function(ours.weight), expected)


def test_memory_is_taken_again_once_it_is_free() -> None:
    """Not while a gradient, or a view of it, is in use; and no values of the previous gradient remain."""
    table = Embedding(10, 4)

    def gradient(row: int) -> torch.Tensor:
        return torch.autograd.grad(table(torch.tensor([row])).sum(), table.weight)[0]

    first = gradient(1)[1:]
    second = gradient(2)
    assert second.data_ptr() not in (0, first.data_ptr() - 16)
    place = second.data_ptr()
    del second
    third = gradient(3)
    assert third.data_ptr() == place
    assert third.sum(dim=1).tolist() == [0, 0, 0, 4, 0, 0, 0, 0, 0, 0]
    assert first.sum(dim=1).tolist() == [4, 0, 0, 0, 0, 0, 0, 0, 0]
