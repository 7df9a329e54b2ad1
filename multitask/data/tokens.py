"""Sentences as flat arrays: the token ids of all rows one after the other.

As Python lists of numbers, a million pairs would take about ten gigabytes. Here one array holds all token
ids, `offsets` says where each row begins, and `firsts` how many of its tokens have type 0. That takes 60
bytes per pair.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import tokenizers
import torch
from torch import Tensor

from minbert.tokenizer import BertTokenizer, Keep, first_tokens, in_chunks, rooms
from multitask.data.cache import Arrays, cached, key_of
from multitask.data.tables import FORMAT, Table

TokenIds = tuple[list[int], list[int]]  # (input_ids, token_type_ids) of one example, unpadded
HEAD, HEAD_TAIL, WINDOWS = "head", "head-tail", "windows"  # what is read of texts that are too long
WHOLE = 2**31  # tokens: longer than any text


def first_and_last_tokens(ids: list[int], room: int) -> list[int]:
    """Return a quarter of what there is room for from the beginning of a text, and the rest from its end: the
    division of Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?"
    (https://arxiv.org/abs/1905.05583), which did best there."""
    first = room // 4
    return ids[:first] + ids[len(ids) - (room - first) :]


KEEP: dict[str, Keep] = {HEAD: first_tokens, HEAD_TAIL: first_and_last_tokens}


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

    def windows(self, most: int) -> tuple[Tokens, np.ndarray]:
        """Return the examples in windows of at most so many tokens, and the example of each window.

        An example that is not longer is its own window. The windows of a longer one are evenly spaced and
        overlap by at least a quarter, and each has the special tokens; in a pair, the longer text passes by
        the shorter one, or both move on if both are long.
        """
        if not (self.lengths > most).any():
            return self, np.arange(len(self))
        found: list[tuple[np.ndarray, int, int]] = []  # the places of a window's tokens, its firsts, its row
        for row, firsts in enumerate(self.firsts.tolist()):
            start, end = self.offsets[row : row + 2].tolist()
            whole = [(np.arange(start, end), firsts)]
            pieces = whole if end - start <= most else _windows(start, end, firsts, most)
            found += [(*piece, row) for piece in pieces]
        offsets = np.cumsum([0, *(len(places) for places, _, _ in found)], dtype=np.int64)
        firsts = np.array([firsts for _, firsts, _ in found], dtype=np.int32)
        ids = self.ids[np.concatenate([places for places, _, _ in found])]
        return Tokens(ids, offsets, firsts), np.array([row for _, _, row in found])

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


def _windows(start: int, end: int, firsts: int, most: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the places of each window of the example at these places, and how many of them have type 0."""
    texts = [np.arange(start + 1, start + firsts - 1)]
    sizes: tuple[int, ...] = (most - 2,)
    if start + firsts < end:
        texts.append(np.arange(start + firsts, end - 1))
        sizes = rooms(len(texts[0]), len(texts[1]), most - 3)
    beyond = [len(text) - size for text, size in zip(texts, sizes, strict=True)]
    steps = max(-(-4 * more // (3 * size)) for more, size in zip(beyond, sizes, strict=True) if more)
    for step in range(steps + 1):
        parts: list[Sequence[int] | np.ndarray] = [[start]]
        for text, size, more in zip(texts, sizes, beyond, strict=True):
            first = round(more * step / steps)
            parts += [text[first : first + size], [end - 1]]
        yield np.concatenate(parts), sizes[0] + 2


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

    def in_windows(self, most: int) -> Examples:
        """Return the examples with the windows of those that are longer in their place: see `Tokens`."""
        tokens, rows = self.tokens.windows(most)
        if tokens is self.tokens:
            return self
        return Examples([self.ids[row] for row in rows], tokens, self.labels[rows])

    def take(self, rows: np.ndarray) -> Examples:
        """Return only these rows, in the order given."""
        return Examples([self.ids[row] for row in rows], self.tokens.take(rows), self.labels[rows])


def tokenize(
    columns: Sequence[Sequence[str]], tokenizer: BertTokenizer, max_length: int, long: str = HEAD
) -> list[TokenIds]:
    """Return (input_ids, token_type_ids) of every row of one or two columns of texts. Those that are too long
    are cut, or stay whole to be read in windows."""
    first, second = columns[0], columns[1] if len(columns) == 2 else None
    if long == WINDOWS:
        return tokenizer.token_ids(first, second, WHOLE)
    return tokenizer.token_ids(first, second, max_length, KEEP[long])


def make_examples(table: Table, tokenizer: BertTokenizer, max_length: int, long: str = HEAD) -> Examples:
    """Return a table's rows, tokenised; the tokens come from the cache if they are there."""

    def build() -> Arrays:
        chunks = in_chunks(table.rows(), lambda row: row.characters)
        columns = (list(zip(*(row.texts for row in chunk), strict=True)) for chunk in chunks)
        encoded = (tokenize(texts, tokenizer, max_length, long) for texts in columns)
        return vars(Tokens.join(encoded, tokenizer.vocab_size))

    length = {HEAD: max_length, WINDOWS: WHOLE}.get(long, (max_length, long))
    key = key_of(FORMAT, table.source.key, tokenizer.fingerprint(), tokenizers.__version__, length)
    kept = cached(key, build)
    return Examples(table.ids, Tokens(**kept), table.labels)
