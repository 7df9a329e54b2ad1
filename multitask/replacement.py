"""Folders that are replaced whole or not at all, and checksums of their files."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from minbert import files
from minbert.reading import open_regular


def write_folder(path: Path, write: Callable[[Path], None], pieces: Collection[str]) -> None:
    """Replace a folder with what `write` puts into an empty one: files of the names in `pieces`.

    Whatever else the folder holds is not this program's, and stays. If the machine stops between the two
    renames, `path` is missing and the old folder is still beside it: `settle` puts it back.
    """
    partial, old = files.partial_path(path), previous(path)
    settle(path, pieces)
    for other in path.parent.glob(f"{path.name}.partial-*"):  # of a process that was killed
        files.remove(other, pieces)
    try:
        files.make_folder(partial)
        write(partial)
        for file in [*partial.iterdir(), partial]:
            files.flush(file)
        if path.exists():
            files.rename(path, old)
        files.rename(partial, path)
    except OSError as error:
        with suppress(OSError):  # the disk may be full
            files.remove(partial, pieces)
            if error.errno != errno.ESTALE:  # the folder is still this run's
                settle(path, pieces)
        raise
    files.flush(path.parent)
    settle(path, pieces)


def previous(path: Path) -> Path:
    """Return where `write_folder` keeps the old folder while it renames the new one."""
    return path.with_name(path.name + ".old")


def settle(path: Path, pieces: Collection[str]) -> None:
    """Finish a replacement of this folder, or undo it if it was interrupted before the new one was in place.

    Only the process that writes the folder may call this.
    """
    old = previous(path)
    if not files.is_real_folder(old):
        return
    if not path.exists():
        files.rename(old, path)
        return
    for other in [file for file in old.iterdir() if not files.is_piece(file.name, pieces)]:
        files.rename(other, path / other.name)
    files.remove(old, pieces)


def digests(folder: Path, pieces: Collection[str]) -> dict[str, str]:
    """Return the SHA-256 of each of these files that is in a folder and can be read, by name."""
    found = {}
    for name in sorted(pieces):
        with suppress(OSError), open_regular(folder / name) as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
