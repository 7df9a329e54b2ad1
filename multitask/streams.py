"""Where predict reads and writes: files, pipes and terminals."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper, UnsupportedOperation
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from minbert.command import unguarded
from minbert.errors import InputError
from minbert.files import create, discard, flush, partial_path, rename, resolved
from minbert.reading import GZIP, Gunzip, expanded
from multitask.data.formats import lines_of

LINE_SECONDS = 0.02  # seconds in which lines that were sent together arrive
NOT_WRITTEN = (".json", ".xls", ".xlsx", ".ods", ".parquet", ".gz", ".zip")
CAN_WAIT = os.name != "nt"  # Windows cannot tell whether a pipe holds more


@dataclass(frozen=True)
class Input:
    """Text to be predicted."""

    file: BinaryIO
    name: str  # in messages
    size: int | None  # in bytes, if it is known
    ready: Callable[[], bool] = lambda: True  # whether the next line is there

    def lines(self) -> Iterator[bytes]:
        """Yield the lines. Raises InputError if one is too long or cannot be read."""
        try:
            yield from lines_of(self.file, self.name)
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read ({error.strerror})") from None


class Arriving:
    """The lines of a pipe or a terminal, which tells whether the next one has come."""

    def __init__(self, descriptor: int):
        self.descriptor, self.pending = descriptor, bytearray()

    def readline(self, size: int, /) -> bytes:
        while (end := self.pending.find(b"\n", 0, size) + 1) == 0 and len(self.pending) < size:
            if not self._receive():
                break
        return self._take(end or size)

    def read(self, size: int, /) -> bytes:
        if not self.pending:
            self._receive()
        return self._take(size)

    def starts_with(self, content: bytes) -> bool:
        while len(self.pending) < len(content) and self._receive():
            pass
        return self.pending.startswith(content)

    def ready(self) -> bool:
        """Return whether a line, or the end, can be read without waiting, or with a very short wait."""
        if b"\n" in self.pending:
            return True
        return CAN_WAIT and bool(select.select([self.descriptor], [], [], LINE_SECONDS)[0])

    def _receive(self) -> bool:
        part = os.read(self.descriptor, 1 << 16)
        self.pending += part
        return bool(part)

    def _take(self, size: int) -> bytes:
        taken = bytes(self.pending[:size])
        del self.pending[:size]
        return taken


@contextmanager
def open_input(source: str) -> Iterator[Input]:
    """Open a file, or standard input if it is `-`; either may be compressed with gzip. Raises InputError if
    it cannot be read."""
    if source == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed; name a file with --input")
        if sys.stdin.isatty():
            print("a text on each line, a tab between the two of a pair; Ctrl-D to end", file=sys.stderr)
        yield _input(sys.stdin.buffer, "standard input")
        return
    with _open(source) as file:
        yield _input(file, source)


def _open(source: str) -> BinaryIO:
    try:
        return open(source, "rb")
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None


def _input(file: BinaryIO, name: str) -> Input:
    try:
        mode = os.fstat(file.fileno())
    except UnsupportedOperation:  # bytes in memory
        mode = None
    if mode is None or stat.S_ISREG(mode.st_mode):
        content = expanded(BufferedReader(file))  # type: ignore[arg-type]
        return Input(content, name, None if mode is None or isinstance(content.raw, Gunzip) else mode.st_size)
    arriving = Arriving(file.fileno())
    if arriving.starts_with(GZIP):
        return Input(BufferedReader(Gunzip(cast(BinaryIO, arriving))), name, None)
    return Input(cast(BinaryIO, arriving), name, None, arriving.ready)


@contextmanager
def open_output(target: str, force: bool) -> Iterator[TextIO]:
    """Open a file, or standard output if it is `-`, for writing text. A file appears under its name once it
    is complete; after an InputError, what was written is kept and named.

    Raises InputError if the file exists, unless `force` replaces it, or if it cannot be opened.
    """
    if target == "-":
        try:
            yield _standard_output()
        except OSError as error:
            error.filename = "standard output"
            raise
        return
    raw, path, partial = _create(target, force)
    with TextIOWrapper(raw, encoding="utf-8", newline="") as file:
        try:
            yield file
        except BaseException as error:
            if partial != path and isinstance(error, InputError) and file.tell():
                raise InputError(f"{error}\npredictions for the rows before it are in {partial}") from None
            if partial != path:
                discard(partial)
            raise
    if partial != path:
        flush(partial)
        rename(partial, path)


def _standard_output() -> TextIO:
    stdout = unguarded(sys.stdout)
    if stdout.closed:
        raise InputError("standard output is closed; name a file with --output")
    if isinstance(stdout, TextIOWrapper):
        stdout.reconfigure(encoding="utf-8")
    return stdout


def check_paths(source: str, target: str, force: bool) -> None:
    """Raise InputError for what is wrong at first sight, before a model is loaded: an input that is missing,
    an output that exists, is the input or has no folder, or a form that is not written."""
    if source != "-" and not Path(source).exists():
        raise InputError(f"{source}: no such file; correct --input")
    if target == "-":
        return
    if Path(target).suffix.lower() in NOT_WRITTEN:
        written = "tab-separated text, CSV (.csv) and JSON lines (.jsonl)"
        raise InputError(f"{target}: predictions are {written}; give --output another ending")
    if source != "-" and Path(source).resolve() == Path(target).resolve():
        raise InputError(f"{target}: is also the input; name another --output")
    if not Path(target).parent.is_dir():
        raise InputError(f"{Path(target).parent}: no such folder; make it, or name another --output")
    _check_replaceable(target, force)


def _check_replaceable(target: str, force: bool) -> None:
    if Path(target).is_file() and not force:
        raise InputError(f"{target}: exists; replace it with --force, or name another --output")


def _create(target: str, force: bool) -> tuple[BinaryIO, Path, Path]:
    """Open a file for the predictions. Return it, its path, and where it is until it is complete: a pipe or a
    device is written directly."""
    path = resolved(Path(target).parent) / Path(target).name
    try:
        if path.exists() and not path.is_file():
            return open(path, "wb"), path, path
        _check_replaceable(target, force)
        partial = partial_path(path)
        return create(partial), path, partial
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); name another --output") from None
