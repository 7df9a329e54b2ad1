"""Files that others wrote, read without trust: only regular ones, so that a pipe or a device cannot hold us
up; whole texts only up to a size; and whatever is wrong with them ends in an InputError of one line."""

from __future__ import annotations

import errno
import json
import os
import stat
import tomllib
from io import BufferedReader
from pathlib import Path
from typing import Any

from minbert.errors import InputError, short_line

MEGABYTE = 1 << 20
LARGEST_TEXT = 64 * MEGABYTE  # of vocabularies; the largest BERT's takes a few
LARGEST_SETTINGS = MEGABYTE  # of TOML, whose reader is slow


def open_regular(path: Path) -> BufferedReader:
    """A regular file, to read its bytes; OSError for everything else that may stand under a name."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not block either
    except ValueError:
        raise OSError(errno.EINVAL, "the name holds a NUL") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "not a regular file")


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """A whole text file, UTF-8. OSError where it cannot be read or is larger than that many bytes,
    ValueError where it is something else than UTF-8."""
    with open_regular(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"larger than {largest / MEGABYTE:g} MB")
    return content.decode("utf-8")


def load_json(path: Path, hint: str = "") -> Any:
    """What a JSON file holds; InputError, with the hint in it, where it is none."""
    try:
        return json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({reason(error)}){hint}") from None


def load_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds; InputError where it is none."""
    try:
        return tomllib.loads(read_text(path, LARGEST_SETTINGS))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as TOML ({reason(error)})") from None


def reason(error: Exception) -> str:
    """Why a file could not be read, in a few words: the message around it names the file."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return short_line(getattr(error, "strerror", None) or error)
