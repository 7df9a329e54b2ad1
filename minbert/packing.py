"""Do the work on real tokens only.

Sentences of one batch differ in length, so a batch (B, L) is padded to its longest row, and about half of a
typical one is padding. Almost everything in BERT looks at one token at a time: the linear layers, GELU,
LayerNorm and dropout do not care which sentence a token belongs to. So we pull the T real tokens out into one
flat (T, H) list and run those parts on the list. Only attention relates the tokens of a sentence to each
other; there, and there alone, the list is laid out as (B, L, H) again, and packed afterwards. No number
changes: padding never reached a real token before, because attention masks it, and now it is never computed.

Axes: B examples, L positions, H width, T real tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from minbert.errors import InputError


@dataclass(frozen=True)
class Packing:
    """Where the T real tokens of a padded batch stand."""

    mask: Tensor  # (B, L) bool, True at real tokens
    tokens: Tensor  # (T,) int64, their places in the flattened batch, row after row
    positions: Tensor  # (T,) int64, their positions in their own rows
    first: Tensor  # (B,) int64, each example's first token, as a place in the packed list
    key_mask: Tensor  # (B, 1, 1, L) float32, the mask of `attention`: every query sees the real tokens

    @classmethod
    def from_mask(cls, attention_mask: Tensor) -> Packing:
        """attention_mask (B, L), nonzero at real tokens. Raises InputError if an example has none."""
        mask = attention_mask.bool()
        lengths = mask.sum(dim=1)
        if not lengths.all():
            row = int((lengths == 0).nonzero()[0])
            raise InputError(
                f"row {row} of attention_mask is all zeros: every example needs at least one token"
            )
        tokens = mask.flatten().nonzero().squeeze(1)
        first = lengths.cumsum(dim=0) - lengths
        return cls(mask, tokens, tokens % mask.shape[1], first, minus_infinity_at(~mask[:, None, None, :]))

    def pack(self, padded: Tensor) -> Tensor:
        """(B, L, ...) -> (T, ...)"""
        return padded.flatten(0, 1).index_select(0, self.tokens)

    def unpack(self, packed: Tensor) -> Tensor:
        """(T, ...) -> (B, L, ...), zeros at padding."""
        padded = packed.new_zeros(self.mask.numel(), *packed.shape[1:])
        return padded.index_copy_(0, self.tokens, packed).unflatten(0, self.mask.shape)


def added_to_scores(mask: Tensor) -> Tensor:
    """Return an attention mask as what is added to the scores. A float mask is that already; of a boolean (or
    0/1) one, True says that a key may be seen. Raises InputError if a query may see no key."""
    if mask.is_floating_point():
        return mask
    if not mask.bool().any(dim=-1).all():
        raise InputError("a query may see no key: every row of the mask needs at least one True")
    return minus_infinity_at(~mask.bool())


def minus_infinity_at(hidden: Tensor) -> Tensor:
    """Return -inf where `hidden` is True and 0 elsewhere, float32."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -math.inf)
