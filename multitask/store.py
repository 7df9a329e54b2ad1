"""Sentences as flat arrays, and the cache on disk from which later runs map them into memory.

As Python lists of numbers, a million pairs would take about ten gigabytes. Here one array holds the token ids
of all rows, one row after another; `offsets` says where each row begins, and `firsts` how many of its tokens
have type 0. That takes 60 bytes per pair.

An entry of the cache is one safetensors file, named by a hash of everything its arrays depend on. It can be
missing or unused, but never out of date. A checksum over the arrays detects a truncated or damaged entry,
which is then rebuilt. An entry appears by a rename, so two processes may build the same one at once. The
folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import overload

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minbert.files import write_tensors

TokenIds = tuple[list[int], list[int]]  # (input_ids, token_type_ids) of one example, unpadded
Arrays = Mapping[str, np.ndarray]

CHECKSUM = "sha256"  # name of the array that holds the hash of the others
PARTIAL = ".partial-"  # prefix of the temporary folders in which entries are written
KEPT_SECONDS = 60 * 24 * 60 * 60  # an entry unused for longer than this is removed


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


class Strings(Sequence[str]):
    """Many short strings, stored as UTF-8 in one array."""

    def __init__(self, data: np.ndarray, ends: np.ndarray):
        self.data, self.ends = data, ends  # (bytes,) uint8; (N,) int64: where each string ends

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        start = self.ends[row - 1] if row else 0
        return self.data[start : self.ends[row]].tobytes().decode()


def cache_folder() -> Path:
    """Return the folder `tables` in MINBERT_CACHE, or else in `minbert` in the user's cache."""
    home = os.environ.get("MINBERT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "minbert")
    return Path(home, "tables").expanduser()


def key_of(*parts: object) -> str:
    """Return a hash of everything that an entry depends on. Equal parts must have equal `repr`s."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def cached(key: str, build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of a cache entry, memory-mapped; call `build` only if there is no intact entry.

    If the cache cannot be written, print one line of warning and keep the arrays in memory.
    """
    path = cache_folder() / f"{key}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    built = build()
    try:
        _write(path, built)
    except OSError as error:
        _warn(path.parent, error.strerror or str(error))
        return built
    return _read(path) or built  # mapped, as in every later run, so the built arrays can be freed


def _read(path: Path) -> Arrays | None:
    """Return the arrays of an entry, or None if it is missing or damaged."""
    try:
        arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        checksum = arrays.pop(CHECKSUM).tobytes()
    except (OSError, KeyError, ValueError, TypeError, MemoryError, SafetensorError):  # TypeError: bfloat16
        return None
    if checksum != _checksum(path.stem, arrays):
        return None
    with suppress(OSError):  # the file may belong to another user
        os.utime(path)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # private: the tokens reveal the texts
    _sweep(path.parent)
    tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
    tensors[CHECKSUM] = torch.frombuffer(bytearray(_checksum(path.stem, arrays)), dtype=torch.uint8)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=path.parent) as scratch:
        partial = Path(scratch, path.name)
        write_tensors(partial, tensors)
        os.replace(partial, path)


def _checksum(key: str, arrays: Arrays) -> bytes:
    """Return a SHA-256 over an entry's name and arrays."""
    digest = hashlib.sha256(key.encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def _sweep(folder: Path) -> None:
    """Remove entries that have long been unused, such as those of tables that have since changed."""
    ours = (*folder.glob(f"{PARTIAL}*"), *folder.glob("[0-9a-f]" * 64 + ".safetensors"))
    for path in ours:
        with suppress(OSError):  # another process may be sweeping too
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@lru_cache  # warn once per folder
def _warn(folder: Path, reason: str) -> None:
    print(
        f"{folder}: cannot cache tables there ({reason}), so the next run will read them again; "
        "make it writable, or name another folder with MINBERT_CACHE",
        file=sys.stderr,
    )
