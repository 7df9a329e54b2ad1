"""Files that are written whole or not at all: under an unpredictable name, then renamed.

The folder written to may be somebody else's, with links in it that lead elsewhere. So no link is followed
here: neither a file's own name nor that of the folder that it is in, which is held open meanwhile. A folder
that the user has named may be a link: `resolved` follows it, once. A system without these calls (Windows)
checks by path, and would miss a link that is planted between the check and the call.

Everything that changes the disk goes through the few functions at the end, so that the tests can make any of
them fail at any call.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minbert.reading import BINARY

HOLDS_FOLDERS_OPEN = os.open in os.supports_dir_fd and {"O_NOFOLLOW", "O_DIRECTORY"} <= {*dir(os)}
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
UNFINISHED = re.compile(r"(?P<name>.+)\.partial-[0-9a-f]{16}|\.tmp\w{6}")  # .tmp: safetensors' own


def write_text(path: Path, text: str) -> None:
    """Replace a file with this text, in UTF-8."""
    write_content(path, text.encode())


def write_content(path: Path, content: bytes) -> None:
    """Replace a file with these bytes."""
    _replace(path, lambda partial: write_bytes(partial, content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file with these tensors. Raises OSError if it cannot be written."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _replace(path, lambda partial: write_safetensors(partial, whole))


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    partial = partial_path(path)
    try:
        write(partial)
        flush(partial)
        rename(partial, path)
    except OSError:
        discard(partial)
        raise


def discard(partial: Path) -> None:
    """Remove a file that will not be finished."""
    with suppress(OSError), _holding(partial.parent) as folder:
        os.unlink(_in(folder, partial), dir_fd=folder)


def partial_path(path: Path) -> Path:
    """Return where a file or folder is written before it gets its name: beside it, under a name of its own
    each time. Raises OSError for a path without a name, as . and / are."""
    if not path.name:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.with_name(f"{path.name}.partial-{secrets.token_hex(8)}")


def resolved(folder: Path) -> Path:
    """Return where a folder that the user has named is, if it is a link; else the folder as named."""
    return folder.resolve() if folder.is_symlink() else folder


def named_folder(path: str | Path) -> Path:
    """Make a folder that the user has named, unless it exists, and return where it is."""
    Path(path).mkdir(parents=True, exist_ok=True)
    return resolved(Path(path))


def is_real_folder(path: Path) -> bool:
    """Return whether this is a folder, and not a link to one."""
    return path.is_dir() and not path.is_symlink()


@contextmanager
def _holding(folder: Path) -> Iterator[int | None]:
    """Hold a folder open, for calls relative to it; None if the system has no such calls. Raises OSError if
    it is a link."""
    if folder.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link, which is not followed", str(folder))
    if not HOLDS_FOLDERS_OPEN:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _in(folder: int | None, path: Path) -> Path | str:
    """Return the file's name relative to the folder that is held open."""
    return path if folder is None else path.name


# What changes the disk


def create(path: Path) -> BinaryIO:
    """Open a new file for writing. Raises OSError if there is one of this name."""
    with _holding(path.parent) as folder:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY
        return open(os.open(_in(folder, path), flags, 0o666, dir_fd=folder), "wb")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a new file. Raises OSError if there is one of this name."""
    with create(path) as file:
        file.write(content)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a new safetensors file, with the mode of the user's other new files."""
    write_bytes(path, b"")
    mode = path.lstat().st_mode
    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})  # into a private file, then renamed to this
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from None


def flush(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk (fsync)."""
    if not HOLDS_FOLDERS_OPEN and path.is_dir():  # Windows cannot
        return
    access = os.O_RDONLY if HOLDS_FOLDERS_OPEN else os.O_RDWR
    descriptor = os.open(path, access | NO_FOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(path: Path, target: Path) -> None:
    """Give a file or folder its name, in place of the file of that name if there is one."""
    with _holding(path.parent) as source, _holding(target.parent) as goal:
        os.replace(_in(source, path), _in(goal, target), src_dir_fd=source, dst_dir_fd=goal)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it exists. Raises OSError if it is a link."""
    path.mkdir(parents=True, exist_ok=True)
    with _holding(path):
        pass


def is_piece(name: str, pieces: Collection[str]) -> bool:
    """Return whether this is one of these files, or one that was never finished."""
    unfinished = UNFINISHED.fullmatch(name)
    return name in pieces or (unfinished is not None and unfinished["name"] in (None, *pieces))


def remove(path: Path, pieces: Collection[str]) -> None:
    """Remove a folder that holds nothing but these files, finished or not; of any other only these files.
    Does nothing if there is no such folder, or only a link."""
    _unlink(path, lambda name: is_piece(name, pieces))
    with suppress(OSError):  # something else is in it
        path.rmdir()


def sweep(path: Path) -> None:
    """Remove the files in a folder that were never finished, because a process was killed."""
    _unlink(path, lambda name: UNFINISHED.fullmatch(name) is not None)


def _unlink(path: Path, chosen: Callable[[str], bool]) -> None:
    """Remove these files from a folder, if it is one."""
    if not is_real_folder(path):
        return
    with _holding(path) as folder:
        for name in filter(chosen, os.listdir(path if folder is None else folder)):
            with suppress(IsADirectoryError, PermissionError):  # macOS reports a folder as the latter
                os.unlink(_in(folder, path / name), dir_fd=folder)
