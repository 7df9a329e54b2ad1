"""A run's folder: claimed and locked by one process, numbered if it has no name, given back if unused."""

from __future__ import annotations

import atexit
import fcntl
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from minbert.errors import InputError

CONFIG = "config.toml"  # the settings of a single run
PIPELINE = "pipeline.toml"  # the stages of a recipe, as they were started
RESULT = "result.json"  # written last: what a run found, and thereby that it is done

_locks: dict[tuple[int, int], int] = {}  # (device, inode) of a lock file -> its open descriptor


def claim(out: str | None, name: str, holds: str = CONFIG, resume: bool | None = False) -> Path:
    """Make and lock the folder `out`, or the next free runs/NAME-N, and return it.

    `holds` is CONFIG for a single run and PIPELINE for a recipe's stages. A folder that holds a run is never
    written over: it is claimed only with `resume`, which is None for what cannot be resumed. Raises
    InputError if the folder cannot be made, is in use, or holds another run.
    """
    if out is None:
        return _claim_next_free(_made(Path("runs")), name)
    folder = _made(Path(out))
    lock(folder)
    for other, what in ((CONFIG, "a single run"), (PIPELINE, "the stages of a recipe")):
        if other != holds and (folder / other).exists():
            raise InputError(f"{folder}: holds {what}; choose another --out")
    if not resume and (folder / holds).exists():
        remedy = "" if resume is None else "resume it with --resume, or "
        raise InputError(f"{folder}: holds a run already; {remedy}choose another --out")
    return folder


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be made ({error.strerror}); choose another --out"
        ) from None
    return folder


def _claim_next_free(folder: Path, name: str) -> Path:
    """Make, lock and return the next free FOLDER/NAME-N. Making it claims the number, whoever else is looking
    for one. It is removed at the end of the process if the run never began."""
    for number in count(1):
        run = folder / f"{name}-{number}"
        with suppress(FileExistsError):
            run.mkdir()
            break
    lock(run)
    atexit.register(_give_back, run)
    return run


def _give_back(run: Path) -> None:
    with suppress(OSError):
        if os.listdir(run) == [".lock"]:
            (run / ".lock").unlink()
            run.rmdir()


def lock(folder: Path) -> None:
    """Keep every other process out of this folder until this one ends, however it ends.

    Raises InputError if another process holds the lock or the folder cannot be written. A file system without
    locks is left unlocked.
    """
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) in _locks:
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"{folder}: in use by another process; wait, or choose another --out") from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return
    _locks[status.st_dev, status.st_ino] = descriptor
