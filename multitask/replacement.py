"""Folders that are replaced whole or not at all, and checksums of their files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from minbert import files


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder with what `write` puts into an empty one.

    If the machine stops between the two renames, `path` is missing and the old folder is still beside it:
    `recover_folder` puts it back.
    """
    partial, old = files.partial_path(path), previous(path)
    recover_folder(path)
    for leftover in (partial, old):
        files.remove(leftover)
    try:
        files.make_folder(partial)
        write(partial)
        for file in [*partial.iterdir(), partial]:
            files.flush(file)
        if path.exists():
            files.rename(path, old)
        files.rename(partial, path)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # the disk may be full
        recover_folder(path)
        raise
    files.flush(path.parent)
    files.remove(old)


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
