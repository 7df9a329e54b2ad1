"""The cache on disk from which later runs take their tables.

An entry is one safetensors file, named by a hash of everything its arrays depend on. It can be
missing or unused, but never out of date. A checksum over the arrays detects a truncated or damaged entry,
which is then rebuilt. An entry appears by a rename, so two processes may build the same one at once. It is
read into memory, not mapped: whoever truncated a mapped file would kill every process that uses it. The
folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from minbert.errors import InputError
from minbert.files import write_tensors
from minbert.hub import cache_home
from minbert.reading import open_regular

Arrays = Mapping[str, np.ndarray]

CHECKSUM = "sha256"  # name of the array that holds the hash of the others
PARTIAL = ".partial-"  # prefix of the temporary folders in which entries are written
KEPT_SECONDS = 60 * 24 * 60 * 60  # an entry unused for longer than this is removed


def cache_folder() -> Path:
    """Return the folder `tables` in MINBERT_CACHE, or else in `minbert` in the user's cache."""
    return cache_home() / "tables"


def key_of(*parts: object) -> str:
    """Return a hash of everything that an entry depends on. Equal parts must have equal `repr`s."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def cached(key: str, build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of a cache entry; call `build` only if there is no intact entry.

    If the cache cannot be written, print one line of warning.
    """
    try:
        path = cache_folder() / f"{key}.safetensors"
    except InputError:
        _warn("~/.cache", "this user has no home folder")
        return build()
    found = _read(path)
    if found is not None:
        return found
    built = build()
    try:
        _write(path, built)
    except OSError as error:
        _warn(str(path.parent), error.strerror or str(error))
    return built


def _read(path: Path) -> Arrays | None:
    """Return the arrays of an entry, or None if it is missing or damaged."""
    try:
        with open_regular(path) as file:
            arrays = {name: tensor.numpy() for name, tensor in load(file.read()).items()}
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
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


@lru_cache  # warn once per folder
def _warn(folder: str, reason: str) -> None:
    print(
        f"{folder}: cannot cache tables there ({reason}), so the next run will read them again; "
        "make it writable, or name another folder with MINBERT_CACHE",
        file=sys.stderr,
    )
