"""Files that are written whole or not at all: under another name first, then renamed.

Everything that changes the disk goes through the few functions at the end, so that the tests can make any of
them fail at any call.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Replace a file with this text, in UTF-8."""
    content, partial = text.encode(), partial_path(path)
    write_bytes(partial, content)
    flush(partial)
    rename(partial, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file with these tensors. Raises OSError if it cannot be written."""
    partial = partial_path(path)
    write_safetensors(partial, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    flush(partial)
    rename(partial, path)


def partial_path(path: Path) -> Path:
    """Return where a file is written before it gets its name."""
    return path.with_name(path.name + ".partial")


def write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(mode)  # that of the user's other new files; safetensors makes its files private
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error})") from None


def flush(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, target: Path) -> None:
    os.replace(path, target)


def make_folder(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Remove a folder and everything in it, if it exists."""
    if path.exists():
        shutil.rmtree(path)
