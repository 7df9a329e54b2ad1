"""Files and folders that are written whole or not at all: under another name first, then renamed.

Everything that changes the disk goes through the few functions at the end, so that the tests can make any of
them fail at any call.
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

_locks: dict[tuple[int, int], int] = {}  # (device, inode) of a lock file -> its open descriptor


def write_text(path: Path, text: str) -> None:
    """Replace a file with this text, in UTF-8."""
    content, partial = text.encode(), _partial(path)
    write_bytes(partial, content)
    flush(partial)
    rename(partial, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file with these tensors. Raises OSError if it cannot be written."""
    partial = _partial(path)
    write_safetensors(partial, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    flush(partial)
    rename(partial, path)


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder with what `write` puts into an empty one.

    If the machine stops between the two renames, `path` is missing and the old folder is still beside it:
    `recover_folder` puts it back.
    """
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
        shutil.rmtree(partial, ignore_errors=True)  # the disk may be full
        recover_folder(path)
        raise
    flush(path.parent)
    remove(old)


def previous(path: Path) -> Path:
    """Return where `write_folder` keeps the old folder while it renames the new one."""
    return path.with_name(path.name + ".old")


def recover_folder(path: Path) -> None:
    """Undo a replacement that was interrupted halfway.

    Only the process that writes the folder may call this.
    """
    if previous(path).exists() and not path.exists():
        os.rename(previous(path), path)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by name; empty if there is no such folder."""
    found = {}
    for path in sorted(folder.glob("*")):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def lock(folder: Path) -> None:
    """Keep every other process out of this folder until this one ends, however it ends.

    Raises InputError if another process holds the lock or the folder cannot be written. A file system without
    locks is left unlocked.
    """
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) in _locks:
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{folder}: in use by another process; wait, or choose another folder") from None
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
