"""Read untrusted files safely.

Only regular files are opened, so that a pipe or a device cannot block the program; texts are read only up to
a size limit, and compressed ones only while they expand as texts do; and whatever is wrong with a JSON or
TOML file is reported as an InputError of one line.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
import zlib
from io import BufferedIOBase, BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, BinaryIO

from minbert.errors import InputError, short_line

MEGABYTE = 1 << 20
LARGEST_TEXT = 32 * MEGABYTE  # for JSON and vocabularies; the largest BERT's takes a few megabytes
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # do not wait for a pipe's writer; Windows lacks the flag
BINARY = getattr(os, "O_BINARY", 0)  # Windows translates line ends without it
LARGEST_SETTINGS = MEGABYTE  # for TOML, whose parser is slow
GZIP = b"\x1f\x8b"  # the first bytes of such a file
MOST_EXPANSION = 200  # times; texts expand 3 to 20 times
EXPANDS_FREELY = 64 * MEGABYTE  # before that is looked at
MOST_PARTS = 16  # of a dotted TOML key; the parser's time and memory grow with their square

_STRING_OR_COMMENT = re.compile(
    r"""\"{3}(?:\\?.)*?(?:\"{3}|\Z) | '{3}.*?(?:'{3}|\Z) | "(?:\\.|[^"\\\n])*"? | '[^'\n]*'? | \#[^\n]*""",
    re.DOTALL | re.VERBOSE,
)
_DEEP_KEY = re.compile(rf"(?:\.[^.,=\n]*){{{MOST_PARTS}}}")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading bytes. Raises OSError for anything else, such as a pipe or a folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_WAIT | BINARY)
    except ValueError:
        raise OSError(errno.EINVAL, "the name contains a NUL byte") from None
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "not a regular file")


class Gunzip(RawIOBase):
    """The content of a gzip file, which may have several members, as it is needed.

    Reading raises OSError if the file is damaged or cut, or expands more than a text does.
    """

    def __init__(self, file: BinaryIO | BufferedIOBase):
        self.file, self.taken, self.given = file, 0, 0
        self.inflate = zlib.decompressobj(wbits=31)
        self.rest = b""  # what has been taken and not yet expanded

    def readable(self) -> bool:
        """Return True: it is there to be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer, and return how much of it; 0 at the end."""
        while True:
            self.rest = self.rest or self._take()
            if not self.rest and self.inflate.eof:
                return 0
            if not self.rest:
                raise OSError(errno.EINVAL, "the gzip file ends too early")
            if self.inflate.eof:
                self.inflate = zlib.decompressobj(wbits=31)
            try:
                part = self.inflate.decompress(self.rest, len(buffer))
            except zlib.error:
                raise OSError(errno.EINVAL, "a damaged gzip file") from None
            self.rest = self.inflate.unconsumed_tail or self.inflate.unused_data
            self.given += len(part)
            if self.given > max(EXPANDS_FREELY, MOST_EXPANSION * self.taken):
                raise OSError(errno.EFBIG, f"expands more than {MOST_EXPANSION} times, which no text does")
            if part:
                buffer[: len(part)] = part
                return len(part)

    def _take(self) -> bytes:
        part = self.file.read(1 << 16)
        self.taken += len(part)
        return part

    def close(self) -> None:
        """Close it, and the file that it reads."""
        self.file.close()
        super().close()


def expanded(file: BufferedReader) -> BufferedReader:
    """Return a file, or the content of a gzip file, as its first bytes say."""
    return BufferedReader(Gunzip(file)) if file.peek(len(GZIP)).startswith(GZIP) else file


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Return the text of a UTF-8 file.

    Raises OSError if it cannot be read or has more than `largest` bytes, ValueError if it is not UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"larger than {largest / MEGABYTE:g} MB")
    return content.decode("utf-8")


def load_json(path: Path, hint: str = "") -> Any:
    """Return the value in a JSON file. Raises InputError, ending in `hint`, if it cannot be read as JSON, or
    an object in it has a key twice."""
    try:
        return parse_json(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({reason(error)}){hint}") from None


def parse_json(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError or RecursionError if it is not JSON, or if an object
    in it has a key twice."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice")
    return values


def load_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file. Raises InputError if it cannot be read as TOML, or a key has more
    than `MOST_PARTS` parts."""
    try:
        text = read_text(path, LARGEST_SETTINGS)
        if _DEEP_KEY.search(_STRING_OR_COMMENT.sub("x", text)):
            raise ValueError(f"a key of more than {MOST_PARTS} parts")
        return tomllib.loads(text)
    except FileNotFoundError:
        raise InputError(f"{path}: cannot be read (no such file)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as TOML ({reason(error)})") from None


def reason(error: Exception) -> str:
    """Return why a file could not be read, in a few words; the message around it names the file."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return short_line(getattr(error, "strerror", None) or error)
