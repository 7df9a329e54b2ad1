"""Do the work on real tokens only.

Sentences of one batch differ in length, so a batch (B, L) is padded to its longest row, and about half of a
typical one is padding. Almost everything in BERT looks at one token at a time: the linear layers, GELU,
LayerNorm and dropout do not care which sentence a token belongs to. So we pull the T real tokens out into one
flat (T, H) list and run those parts on the list. Only attention relates the tokens of a sentence to each
other; there, and there alone, the list is laid out in rows again, and packed afterwards. No number changes:
padding never reached a real token before, because attention masks it, and now it is never computed.

Attention's work grows with the square of the row's length. So the fast path lets the long examples of a batch
attend in one group and the short ones in another, each padded only to its own longest: `by_length`.

Axes: B examples, L positions, H width, T real tokens; b and l are those of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minbert.errors import InputError

SAVING = 0.25  # the least fraction of attention's work that is worth a second group


@dataclass(frozen=True)
class Layout:
    """Where the rows of a packed list stand in padded batches, one for each group of examples."""

    shapes: tuple[tuple[int, int], ...]  # (b, l) of each group
    # (sum of b l,) the row at each place of the batches in turn; at padding, the example's first
    rows: Tensor
    places: Tensor  # (T,) each row's place

    def spread(self, packed: Tensor) -> list[Tensor]:
        """(T, ...) -> a batch (b, l, ...) for each group. What stands at padding must be masked."""
        batches = packed.index_select(0, self.rows).split([rows * length for rows, length in self.shapes])
        return [batch.unflatten(0, shape) for batch, shape in zip(batches, self.shapes, strict=True)]

    def collect(self, batches: Sequence[Tensor]) -> Tensor:
        """A batch (b, l, ...) for each group -> (T, ...)"""
        flat = [batch.flatten(0, 1) for batch in batches]
        return (torch.cat(flat) if len(flat) > 1 else flat[0]).index_select(0, self.places)


@dataclass(frozen=True)
class Packing:
    """Where the T real tokens of a padded batch stand, and which examples attend in one group.

    >>> packing = Packing.from_mask(torch.tensor([[1, 1, 1], [1, 1, 0]]))
    >>> packing.pack(torch.tensor([[1, 2, 3], [4, 5, 0]]))
    tensor([1, 2, 3, 4, 5])
    >>> packing.positions, packing.first
    (tensor([0, 1, 2, 0, 1]), tensor([0, 3]))
    >>> packing.unpack(torch.tensor([6, 7, 8, 9, 10]))
    tensor([[ 6,  7,  8],
            [ 9, 10,  0]])
    """

    mask: Tensor  # (B, L) bool, True at real tokens
    tokens: Tensor  # (T,) int64, their places in the flattened batch, row after row
    positions: Tensor  # (T,) int64, their positions in their own rows
    first: Tensor  # (B,) int64, each example's first token, as a place in the packed list
    layout: Layout  # of the tokens: an example is a row, without its padding and then padded on the right
    first_layout: Layout  # of the first tokens alone: batches (b, 1)
    key_masks: tuple[Tensor, ...]  # (b, 1, 1, l) of each group, added to the scores: -inf at padding

    @classmethod
    def from_mask(cls, attention_mask: Tensor) -> Packing:
        """attention_mask (B, L), nonzero at real tokens; all examples are one group. Raises InputError if one
        has no token."""
        mask = attention_mask.bool()
        lengths = mask.sum(dim=1)
        if not lengths.all():
            row = int((lengths == 0).nonzero()[0])
            raise InputError(
                f"row {row} of attention_mask is all zeros: every example needs at least one token"
            )
        tokens = mask.flatten().nonzero().squeeze(1)
        first = lengths.cumsum(dim=0) - lengths
        everyone = torch.arange(len(mask), device=mask.device)
        length = mask.shape[1]
        grouped = _in_groups(first, lengths, tokens // length, [(everyone, length)])
        return cls(mask, tokens, tokens % length, first, *grouped)

    def by_length(self) -> Packing:
        """Return the packing with the longer and the shorter examples in a group each, if that saves enough
        work. On a GPU two small groups take longer than one, and torch.compile needs a fixed number."""
        if torch.compiler.is_compiling() or not self.mask.is_cpu:
            return self
        lengths = self.mask.sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        ranked = lengths[order].tolist()

        def work(longer: int) -> int:
            """Of attention, if so many examples are in the first group."""
            return longer * ranked[0] ** 2 + (len(ranked) - longer) * ranked[longer % len(ranked)] ** 2

        longer = min(range(1, len(ranked) + 1), key=work)
        groups = [(order[:longer], ranked[0]), (order[longer:], ranked[longer % len(ranked)])]
        if work(longer) > (1 - SAVING) * work(len(ranked)):
            if ranked[0] == self.mask.shape[1]:
                return self
            groups = [(order, ranked[0])]  # without the positions that are padding in all examples
        owners = self.tokens // self.mask.shape[1]
        layout, first_layout, masks = _in_groups(self.first, lengths, owners, groups)
        return replace(self, layout=layout, first_layout=first_layout, key_masks=masks)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (T, ...)"""
        return padded.flatten(0, 1).index_select(0, self.tokens)

    def unpack(self, packed: Tensor) -> Tensor:
        """(T, ...) -> (B, L, ...), zeros at padding."""
        padded = packed.new_zeros(self.mask.numel(), *packed.shape[1:])
        return padded.index_copy_(0, self.tokens, packed).unflatten(0, self.mask.shape)

    def unpack_weights(self, weights: Tensor) -> Tensor:
        """Attention weights (B, A, l, l) of examples in one group -> (B, A, L, L), zeros at padding."""
        ranks = (self.mask.cumsum(dim=1) - 1).clamp(min=0)[:, None]  # (B, 1, L): where the layout has them
        queries, keys = ranks[..., :, None], ranks[..., None, :]
        heads, length = weights.shape[1], ranks.shape[-1]
        rows = weights.gather(2, queries.expand(-1, heads, -1, weights.shape[-1]))
        full = rows.gather(3, keys.expand(-1, heads, length, -1))
        return full * (self.mask[:, None, :, None] & self.mask[:, None, None, :])


def _in_groups(
    first: Tensor, lengths: Tensor, owners: Tensor, groups: Sequence[tuple[Tensor, int]]
) -> tuple[Layout, Layout, tuple[Tensor, ...]]:
    """Return the layouts of all tokens and of the first ones, and the groups' key masks.

    `first` and `lengths` (B,) are the examples', `owners` (T,) the example of each token; a group is its
    examples (b,) and the length to which they are padded.
    """
    starts = torch.empty_like(first)  # the place of each example's first token
    rows, masks, offset = [], [], 0
    for examples, longest in groups:
        position = torch.arange(longest, device=first.device)
        real = position < lengths[examples, None]  # (b, l)
        start = first[examples, None]
        rows.append((start + position).where(real, start).flatten())
        masks.append(minus_infinity_at(~real[:, None, None, :]))
        starts[examples] = offset + longest * torch.arange(len(examples), device=first.device)
        offset += real.numel()
    places = starts[owners] + torch.arange(len(owners), device=first.device) - first[owners]
    layout = Layout(tuple((len(examples), longest) for examples, longest in groups), torch.cat(rows), places)
    order = torch.cat([examples for examples, _ in groups])
    firsts = Layout(tuple((len(examples), 1) for examples, _ in groups), order, order.argsort())
    return layout, firsts, tuple(masks)


def added_to_scores(mask: Tensor) -> Tensor:
    """Return an attention mask as what is added to the scores, in its own shape. A float mask is that
    already; of a boolean (or 0/1) one, True says that a key may be seen. Raises InputError if a query may see
    no key.

    >>> added_to_scores(torch.tensor([True, False]))
    tensor([0., -inf])
    """
    if mask.is_floating_point():
        return mask
    if not mask.bool().any(dim=-1).all():
        raise InputError("a query may see no key: every row of the mask needs at least one True")
    return minus_infinity_at(~mask.bool())


def minus_infinity_at(hidden: Tensor) -> Tensor:
    """Return -inf where `hidden` is True and 0 elsewhere, float32, in its shape."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -math.inf)
