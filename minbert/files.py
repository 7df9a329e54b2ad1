"""Files and folders that are written whole, or not at all: under another name first, then renamed.

Whatever changes the disk goes through the few functions at the end, so that the tests can make any of them
fail at any call.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minbert.errors import InputError

_locks: dict[tuple[int, int], int] = {}  # (device, inode) of a lock file -> its descriptor, open till the end


def write_text(path: Path, text: str) -> None:
    """Replace a file by this text, UTF-8."""
    content, partial = text.encode(), _partial(path)
    write_bytes(partial, content)
    flush(partial)
    rename(partial, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file by these tensors; OSError where the disk refuses, as for any other file."""
    partial = _partial(path)
    write_safetensors(partial, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    flush(partial)
    rename(partial, path)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder by what `write` puts into an empty one. Should the machine stop between the two
    renames, `path` is missing and the old one stands beside it: `recover_folder` puts it back."""
    partial, old = _partial(path), previous(path)
    recover_folder(path)
    for leftover in (partial, old):
        remove(leftover)
    try:
        make_folder(partial)
        write(partial)
        for file in [*partial.iterdir(), partial]:
            flush(file)
        if path.exists():
            rename(path, old)
        rename(partial, path)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # a full disk needs its space
        recover_folder(path)
        raise
    flush(path.parent)
    remove(old)


def previous(path: Path) -> Path:
    """Where `write_folder` keeps the old folder while it renames the new one."""
    return path.with_name(path.name + ".old")


def recover_folder(path: Path) -> None:
    """Undo a replacement that was cut off half-way; only for the one who writes the folder."""
    if previous(path).exists() and not path.exists():
        os.rename(previous(path), path)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by name; none where there is no such folder."""
    found = {}
    for path in sorted(folder.glob("*")):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def lock(folder: Path) -> None:
    """Keep every other process out of this folder until this one ends, however it ends; InputError where
    another one is in it. Over a network file system, as far as that knows locks."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); name another --out") from None
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) in _locks:
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{folder}: another process is at work in it; wait, or name another --out") from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _locks[status.st_dev, status.st_ino] = descriptor


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
        path.chmod(mode)  # of any new file of this user's; the library's are private
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise OSError(f"{path}: cannot be written ({error})") from None


def flush(path: Path) -> None:
    """Have the disk really hold a file or a folder's entries."""
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
    """Remove a folder and all in it; none need be there."""
    if path.exists():
        shutil.rmtree(path)
