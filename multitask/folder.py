"""A run's folder: claimed, locked and marked by one process, numbered if unnamed, given back if unused.

A folder is not trusted because it was named: it may be the user's own, or somebody else's work. One that
holds anything by the name of a piece of a run is taken only if it bears the mark that `claim` leaves, and
never if that piece is a link; and what a run removes, it removes file by file (`minbert.files.remove`).
"""

from __future__ import annotations

import atexit
import errno
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from minbert.errors import InputError
from minbert.files import UNFINISHED, make_folder, named_folder, sweep, write_text
from multitask import advice
from multitask.layout import BEGUN, CONFIG, FOLDERS, PIECES, PIPELINE, STATE
from multitask.messages import warn

LOCK = ".lock"
MARK = ".minbert"
MARK_TEXT = "The folder that holds this file was made by minbert, which may replace the files that it made.\n"


@dataclass(frozen=True)
class Held:
    """What this process has locked: the lock, its file, and the folder, by which they are known again."""

    lock: FileLock
    file: os.stat_result
    folder: os.stat_result


_held: dict[str, Held] = {}  # by the folder's real path


def claim(out: str | None, name: str, holds: str = CONFIG, resume: bool | None = False) -> Path:
    """Make, lock and mark the folder `out`, or the next free runs/NAME-N, and return it.

    `holds` is CONFIG for a single run and PIPELINE for a recipe's stages. A folder that holds a run is never
    written over: it is claimed only with `resume`, which is None for what cannot be resumed. Raises
    InputError if the folder cannot be made, is in use, holds another run or files that may not be a run's.
    """
    try:
        if out is None:
            return _claim_next_free(named_folder("runs"), name)
        folder = named_folder(out)
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be made ({error.strerror}); choose another --out"
        ) from None
    lock(folder)
    for other, what in ((CONFIG, "a single run"), (PIPELINE, "the stages of a recipe")):
        if other != holds and (folder / other).exists():
            raise InputError(f"{folder}: holds {what}; choose another --out")
    found = [piece for piece in PIECES if os.path.lexists(folder / piece)]
    if not resume and (holds in found or (is_marked(folder) and not BEGUN.isdisjoint(found))):
        remedy = "" if resume is None else f"resume it with {advice.resume(folder)}, or "
        raise InputError(f"{folder}: holds a run already; {remedy}choose another --out")
    check_links(folder)
    if found and not (resume and {*FOLDERS}.isdisjoint(found)):  # files alone hold nothing to remove
        _check_mark(folder, found)
    mark(folder)
    for place in (folder, *(folder / name for name in FOLDERS)):
        sweep(place)
    return folder


def check_links(folder: Path, pieces: Iterable[str] = PIECES) -> None:
    """Raise InputError if one of these pieces of a run is a link, which would lead out of its folder."""
    for piece in pieces:
        if (folder / piece).is_symlink():
            raise InputError(
                f"{folder / piece}: is a symbolic link, which is not followed; replace it with its target"
            )


def _check_mark(folder: Path, found: Sequence[str]) -> None:
    """Raise InputError if a folder with these pieces of a run is not one that a run has made."""
    places = [folder, folder / STATE] if STATE in found else [folder]
    for place in places:
        if not is_marked(place) and not is_unused(place):
            raise InputError(
                f"{place}: has no file {MARK}, so {found[0]} may be your own and is left alone; choose "
                "another --out, or copy a run with its hidden files (older versions had none)"
            )


def is_marked(folder: Path) -> bool:
    """Return whether a run has made this folder."""
    return (folder / MARK).is_file() and not (folder / MARK).is_symlink()


def is_unused(folder: Path) -> bool:
    """Return whether a folder is empty but for files that were never finished, such as the mark itself."""
    return folder.is_dir() and all(map(UNFINISHED.fullmatch, os.listdir(folder)))


def make_marked(folder: Path) -> None:
    """Make a folder for a run alone. Raises OSError if there is one that no run has made, or a link."""
    make_folder(folder)
    if not is_marked(folder) and not is_unused(folder):
        raise OSError(errno.EEXIST, f"has no file {MARK}, so it may not be a run's", str(folder))
    mark(folder)


def mark(folder: Path) -> None:
    """Leave the mark of a run in a folder."""
    if not is_marked(folder):
        write_text(folder / MARK, MARK_TEXT)


def _claim_next_free(folder: Path, name: str) -> Path:
    """Make, lock and return the next free FOLDER/NAME-N. Making it claims the number, whoever else is looking
    for one. It is removed at the end of the process if the run never began."""
    for number in count(1):
        run = folder / f"{name}-{number}"
        with suppress(FileExistsError):
            run.mkdir()
            break
    lock(run)
    mark(run)
    atexit.register(_give_back, run)
    return run


def last_claimed() -> Path | None:
    """Return the folder that this process has locked last, if any."""
    return Path(list(_held)[-1]) if _held else None


def _give_back(run: Path) -> None:
    with suppress(OSError):
        if {*os.listdir(run)} <= {LOCK, MARK}:
            _held.pop(os.path.realpath(run), None)
            for name in os.listdir(run):
                (run / name).unlink()
            run.rmdir()


def lock(folder: Path) -> None:
    """Keep every other process out of this folder until this one ends, however it ends.

    Raises InputError if another process holds the lock or the folder cannot be written. A file system without
    locks is left unlocked.
    """
    if _is_held(folder):
        return
    try:
        one = FileLock(folder / LOCK, timeout=0, fallback_to_soft=False)
    except TypeError:  # releases before 4 do not know soft locks, which a killed process would leave behind
        one = FileLock(folder / LOCK, timeout=0)
    try:
        one.acquire()
    except Timeout:
        raise InputError(f"{folder}: in use by another process; wait, or choose another --out") from None
    except NotImplementedError:  # a file system without locks
        return
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None
    _held[os.path.realpath(folder)] = Held(one, (folder / LOCK).lstat(), folder.stat())


def check_held(folder: Path) -> None:
    """Make and lock a folder that this process has locked again if it is gone, or its lock is. Raises OSError
    if there is another folder in its place, or another's lock."""
    held = _held.get(os.path.realpath(folder))
    if held is None or _is_held(folder):
        return
    same = folder.is_dir() and os.path.samestat(held.folder, folder.stat())
    if os.path.lexists(folder / LOCK if same else folder):
        raise OSError(errno.ESTALE, "was replaced while this run was at work", str(folder))
    if not same:
        warn(f"{folder}: was removed while this run was at work; making it again")
    make_folder(folder)
    try:
        lock(folder)
    except InputError as error:
        raise OSError(errno.ESTALE, str(error)) from None
    mark(folder)


def _is_held(folder: Path) -> bool:
    try:
        return os.path.samestat(_held[os.path.realpath(folder)].file, (folder / LOCK).lstat())
    except (KeyError, OSError):
        return False
