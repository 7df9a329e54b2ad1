"""packing.py: what goes in comes out again, zeros where nothing was, and gradients find their way back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minbert import BertModel
from minbert.errors import InputError
from minbert.packing import Packing, minus_infinity_at

# right padding, a hole, left padding, no padding
MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]])


def test_places_by_hand() -> None:
    """Rows of 4: row 0 holds places 0 and 1, row 1 4 and 6, row 2 10 and 11, row 3 12 to 15; so the first
    tokens are the 0th, 2nd, 4th and 6th of the packed list."""
    packing = Packing.from_mask(MASK)
    assert packing.tokens.tolist() == [0, 1, 4, 6, 10, 11, 12, 13, 14, 15]
    assert packing.first.tolist() == [0, 2, 4, 6]
    assert packing.positions.tolist() == [0, 1, 0, 2, 2, 3, 0, 1, 2, 3]
    assert packing.mask.dtype == torch.bool


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
@pytest.mark.parametrize("tail", [(), (3,), (3, 2)])
def test_round_trip(dtype: torch.dtype, tail: tuple[int, ...]) -> None:
    packing = Packing.from_mask(MASK.to(dtype))
    padded = torch.randn(4, 4, *tail)
    packed = packing.pack(padded)
    assert packed.shape == (10, *tail)
    assert torch.equal(packing.pack(packing.unpack(packed)), packed)
    assert torch.equal(
        packing.unpack(packed), torch.where(MASK.bool().view(4, 4, *[1] * len(tail)), padded, 0.0)
    )


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    length = draw(st.integers(1, 12))
    rows = st.lists(st.booleans(), min_size=length, max_size=length).filter(any)
    return torch.tensor(draw(st.lists(rows, min_size=1, max_size=6)))


@given(masks(), st.integers(1, 3))
def test_round_trip_of_any_mask(mask: torch.Tensor, width: int) -> None:
    """What is packed comes back to its place, in order; all else becomes 0; every example's first real token
    is found."""
    packing = Packing.from_mask(mask)
    padded = torch.arange(1.0, 1 + mask.numel() * width).view(*mask.shape, width)
    packed = packing.pack(padded)
    assert torch.equal(packed, padded[mask])
    assert torch.equal(packing.unpack(packed), padded * mask[..., None])
    places = [row.tolist().index(True) for row in mask]
    assert torch.equal(packed[packing.first], padded[range(len(mask)), places])


def test_first_tokens() -> None:
    """Row r's first token of the list [10 r + place] is that of its first True: 0, 10, 22 and 30."""
    packing = Packing.from_mask(MASK)
    values = torch.arange(4)[:, None] * 10 + torch.arange(4)
    assert packing.pack(values)[packing.first].tolist() == [0, 10, 22, 30]


def test_groups_by_hand() -> None:
    """Rows of 5, 1, 1 and 4 tokens: one group costs 4 x 5^2, two cost 2 x 5^2 + 2 x 1^2. Their batches are
    [[0 1 2 3 4], [7 8 9 10 -]] and [[5], [6]], from the packed list of 11 tokens."""
    mask = torch.arange(5) < torch.tensor([5, 1, 1, 4])[:, None]
    whole = Packing.from_mask(mask)
    packing = whole.by_length()
    assert whole.layout.shapes == ((4, 5),) and packing.layout.shapes == ((2, 5), (2, 1))
    longer, shorter = packing.layout.spread(torch.arange(11))
    hidden = [masks[:, 0, 0] == -torch.inf for masks in packing.key_masks]
    assert longer.masked_fill(hidden[0], -1).tolist() == [[0, 1, 2, 3, 4], [7, 8, 9, 10, -1]]
    assert shorter.masked_fill(hidden[1], -1).tolist() == [[5], [6]]
    assert torch.equal(packing.layout.collect([longer, shorter]), torch.arange(11))
    firsts = packing.first_layout.spread(torch.arange(4))
    assert [batch.tolist() for batch in firsts] == [[[0], [3]], [[1], [2]]]
    assert packing.first_layout.collect(firsts).tolist() == [0, 1, 2, 3]


def test_examples_of_like_lengths_stay_together() -> None:
    mask = torch.arange(10) < torch.tensor([10, 9, 9, 8])[:, None]
    for packing in (Packing.from_mask(mask), Packing.from_mask(mask[:1])):
        assert packing.by_length() is packing
    wide = torch.nn.functional.pad(mask, (0, 10))  # padded beyond the longest
    assert Packing.from_mask(wide).by_length().layout.shapes == ((4, 10),)


def test_a_broken_example_leaves_the_others_alone(tiny) -> None:
    """What stands at padding is multiplied by 0, and would still be NaN if it came from another example."""
    model = BertModel.from_pretrained(tiny)
    mask = torch.arange(9) < torch.tensor([2, 9, 8, 3])[:, None]
    embeddings, packing = model.embed(torch.ones_like(mask, dtype=torch.int64), mask)
    broken = embeddings.index_fill(0, torch.tensor([0]), torch.inf)
    for pooling in ("cls", "mean"):
        vectors = model.pooled_from_embeddings(broken, packing, pooling)
        assert vectors.isfinite().all(dim=1).tolist() == [False, True, True, True]


@given(masks(), st.booleans())
def test_any_mask_is_laid_out_and_collected(mask: torch.Tensor, by_length: bool) -> None:
    """Each example's tokens stand at the beginning of a row, in order, and only they may be seen."""
    packing = Packing.from_mask(mask)
    packing = packing.by_length() if by_length else packing
    packed = packing.pack(torch.arange(1, 1 + mask.numel()).view(mask.shape))
    batches = packing.layout.spread(packed)
    assert torch.equal(packing.layout.collect(batches), packed)
    seen = [(batch * (keys[:, 0, 0] == 0)) for batch, keys in zip(batches, packing.key_masks, strict=True)]
    rows = sorted([token for token in row.tolist() if token] for batch in seen for row in batch)
    assert rows == [
        (row.nonzero() + 1 + number * mask.shape[1]).flatten().tolist() for number, row in enumerate(mask)
    ]
    for keys in packing.key_masks:
        assert keys.dtype == torch.float32 and keys.isinf().logical_or(keys == 0).all()


@given(masks())
def test_weights_return_to_their_positions(mask: torch.Tensor) -> None:
    """The weight between tokens i and j of an example, here 1 + 100 i + j, stands at their positions."""
    packing = Packing.from_mask(mask)
    ((_, length),) = packing.layout.shapes
    ranks = torch.arange(length, dtype=torch.float32)
    weights = (1 + 100 * ranks[:, None] + ranks).expand(len(mask), 2, length, length)
    full = packing.unpack_weights(weights)
    for row, found in zip(mask, full, strict=True):
        places = row.nonzero().flatten()
        assert torch.equal(found[:, places[:, None], places], weights[0, :, : len(places), : len(places)])
        assert found.count_nonzero() == 2 * len(places) ** 2


def test_what_is_made_stays_on_the_device_it_is_made_from() -> None:
    """On torch's device without memory, which every machine has."""
    assert minus_infinity_at(MASK.to("meta").bool()).is_meta


def test_gradients_pass_through() -> None:
    """d/dx of sum(w unpack(pack(x))) is w at real tokens, and 0 at padding."""
    packing = Packing.from_mask(MASK)
    padded = torch.randn(4, 4, 3, requires_grad=True)
    weight = torch.randn(4, 4, 3)
    (weight * packing.unpack(packing.pack(padded))).sum().backward()
    assert torch.equal(padded.grad, weight * MASK[..., None])


def test_row_without_tokens_is_named() -> None:
    with pytest.raises(InputError, match="row 1 of attention_mask is all zeros"):
        Packing.from_mask(torch.tensor([[1, 1], [0, 0], [0, 0]]))
