"""Files and folders that are written whole, or not at all: under another name first, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Replace a file by this text, UTF-8."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    os.replace(partial, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file by these tensors; OSError where the disk refuses, as for any other file."""
    partial = path.with_name(path.name + ".partial")
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(ready, partial, metadata={"format": "pt"})
    except SafetensorError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error})") from None
    os.replace(partial, path)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder by what `write` puts into an empty one. Should the machine stop between the two
    renames, `path` is missing and the old one stands beside it: `recover_folder` puts it back."""
    partial, old = path.with_name(path.name + ".partial"), previous(path)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    for file in [*partial.iterdir(), partial]:
        flush(file)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def previous(path: Path) -> Path:
    """Where `write_folder` keeps the old folder while it renames the new one."""
    return path.with_name(path.name + ".old")


def recover_folder(path: Path) -> None:
    """Undo a replacement that was cut off half-way; only for the one who writes the folder."""
    if previous(path).exists() and not path.exists():
        previous(path).rename(path)


def flush(path: Path) -> None:
    """Have the disk really hold a file or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
