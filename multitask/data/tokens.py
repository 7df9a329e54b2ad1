"""Sentences as flat arrays: the token ids of all rows one after the other.

As Python lists of numbers, a million pairs would take about ten gigabytes. Here one array holds all token
ids, `offsets` says where each row begins, and `firsts` how many of its tokens have type 0. That takes 60
bytes per pair.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import tokenizers
import torch
from torch import Tensor

from minbert.tokenizer import BertTokenizer, in_chunks
from multitask.data.cache import Arrays, cached, key_of
from multitask.data.tables import FORMAT, Row, Table

TokenIds = tuple[list[int], list[int]]  # (input_ids, token_type_ids) of one example, unpadded


@dataclass(frozen=True)
class Tokens:
    """The T tokens of N examples."""

    ids: np.ndarray  # (T,) uint16 if the vocabulary is small enough, else int32
    offsets: np.ndarray  # (N + 1,) int64: example i is ids[offsets[i] : offsets[i + 1]]
    firsts: np.ndarray  # (N,) int32: how many of an example's tokens have type 0; the rest have type 1

    @classmethod
    def join(cls, chunks: Iterable[Sequence[TokenIds]], vocab_size: int) -> Tokens:
        """Join the output of one or more calls of `BertTokenizer.token_ids`."""
        dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
        ids, lengths, firsts = [np.empty(0, dtype)], array("q", [0]), array("i")
        for chunk in chunks:
            ids.append(np.fromiter(chain.from_iterable(row for row, _ in chunk), dtype))
            lengths.extend(len(row) for row, _ in chunk)
            firsts.extend(len(types) - sum(types) for _, types in chunk)
        return cls(np.concatenate(ids), np.cumsum(lengths, dtype=np.int64), np.array(firsts, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.firsts)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example, (N,)."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the number of tokens of these examples, without looking at the others."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def head(self, count: int) -> Tokens:
        """Return the first `count` examples, or all if there are fewer."""
        offsets = self.offsets[: count + 1]
        return Tokens(self.ids[: offsets[-1]], offsets, self.firsts[:count])

    def take(self, rows: np.ndarray) -> Tokens:
        """Return only these examples, in the order given."""
        places = [np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows]
        offsets = np.cumsum([0, *self.lengths_of(rows)], dtype=np.int64)
        return Tokens(self.ids[np.concatenate(places)], offsets, self.firsts[rows])

    def batch(self, rows: Sequence[int] | np.ndarray, pad_token_id: int) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and token_type_ids of these examples, each (B, L) int64.

        They are padded to the longest example, as `BertTokenizer.pad` does for lists.
        """
        rows = np.asarray(rows, dtype=np.int64)
        starts, ends = self.offsets[rows, None], self.offsets[rows + 1, None]
        places = starts + np.arange((ends - starts).max(initial=0))  # (B, L)
        real = places < ends
        ids = np.where(real, self.ids[np.where(real, places, 0)], pad_token_id) if real.size else places
        types = real & (places >= starts + self.firsts[rows, None])
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {
            name: torch.from_numpy(values.astype(np.int64))
            for name, values in zip(names, (ids, real, types), strict=True)
        }


def length_sorted_batches(lengths: np.ndarray, batch_size: int, max_tokens: int) -> list[np.ndarray]:
    """Split all rows into batches of similar length, longest first, so that memory runs out early or never.

    A batch holds `batch_size` rows, or fewer if more would exceed `max_tokens`, but at least one.
    """
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        stop = start + max(1, min(batch_size, max_tokens // int(lengths[order[start]])))
        batches.append(order[start:stop])
        start = stop
    return batches


@dataclass(frozen=True)
class Examples:
    """The examples of one split of one task, tokenised."""

    ids: Sequence[str]
    tokens: Tokens
    labels: np.ndarray  # (N,) float64; NaN if the table has no labels

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Examples:
        """Return only these rows, in the order given."""
        return Examples([self.ids[row] for row in rows], self.tokens.take(rows), self.labels[rows])


def tokenize(rows: Sequence[Row], tokenizer: BertTokenizer, max_length: int) -> list[TokenIds]:
    """Return (input_ids, token_type_ids) of every row: of its one sentence, or of its two together."""
    columns = list(zip(*(row.texts for row in rows), strict=True))
    return tokenizer.token_ids(columns[0], columns[1] if len(columns) == 2 else None, max_length)


def make_examples(table: Table, tokenizer: BertTokenizer, max_length: int) -> Examples:
    """Return a table's rows, tokenised; the tokens come from the cache if they are there."""

    def build() -> Arrays:
        chunks = in_chunks(table.rows(), lambda row: row.characters)
        encoded = (tokenize(chunk, tokenizer, max_length) for chunk in chunks)
        return vars(Tokens.join(encoded, tokenizer.vocab_size))

    key = key_of(FORMAT, table.source.key, tokenizer.fingerprint(), tokenizers.__version__, max_length)
    kept = cached(key, build)
    return Examples(table.ids, Tokens(**kept), table.labels)
