"""What surrounds a command: output that cannot end it, errors in one line, an exit status."""

from __future__ import annotations

import argparse
import errno
import io
import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from minbert.errors import InputError, short_line, visible

ROOT = Path(__file__).resolve().parent.parent  # of the packages
LIBRARIES = ("minbert", "torch", "numpy", "tokenizers", "safetensors")
# What torch, CUDA, oneDNN, Python's threads and the loader of libraries say when there is no more memory.
NO_MEMORY = re.compile(
    "DefaultCPUAllocator|out of memory|ALLOC_FAILED|could not create a primitive|can't start new thread|"
    "failed to map segment"
)


class Guarded:
    """A standard stream that takes whatever is written to it.

    Writing never raises: what the stream does not accept is lost, and `lost` is the first error. Control
    characters, which a terminal would obey, become Python's escapes, and so does what the stream's encoding
    cannot express.
    """

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name = stream, name
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write what the stream accepts, and return the length of the text."""
        encoding = self.stream.encoding or "utf-8"
        self._attempt(self.stream.write, visible(text).encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Send on what is written."""
        if not self.stream.closed:
            self._attempt(self.stream.flush)

    def isatty(self) -> bool:
        """Return whether the stream is an open terminal."""
        return not self.stream.closed and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        try:
            action(*arguments)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EBADF
            self.lost = self.lost or OSError(number, os.strerror(number), self.name)

    def release(self) -> None:
        """Let go of what is not written yet, which Python would try again, and complain about, at its end."""
        with suppress(OSError, ValueError):
            try:
                self.stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextmanager
def guarded() -> Iterator[Guarded]:
    """A context in which standard output, which is yielded, and standard error are `Guarded`."""
    _occupy_standard_descriptors()
    before = sys.stdout, sys.stderr
    out, err = Guarded(before[0] or _closed(), "<stdout>"), Guarded(before[1] or _closed(), "<stderr>")
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        out.release()
        err.release()


def unguarded(stream: TextIO) -> TextIO:
    """Return the stream behind a guarded one: for data, which must arrive as it is, or fail."""
    return stream.stream if isinstance(stream, Guarded) else stream


def _closed() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


def _occupy_standard_descriptors() -> None:
    """Open the null device on each of the descriptors 0, 1 and 2 that is closed. A file of ours would get its
    number otherwise, and in it what a library or another program writes to its standard error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number


class Parser(argparse.ArgumentParser):
    """A parser whose complaint is an InputError, so that it is one line too."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError with what is wrong with the arguments."""
        raise InputError(f"{short_line(message)} (--help lists the flags)")


def print_answer(find: Callable[[], str]) -> int:
    """Carry out a command whose work is to find what is printed, and return the exit status."""

    def work() -> int:
        print(find(), flush=True)
        return 0

    return carry_out(work)


def carry_out(work: Callable[[], int]) -> int:
    """Do the work of a command, which returns its exit status, and return that, or that of `explain`."""
    with guarded() as output:
        try:
            status = work()
            if output.lost is not None:
                raise output.lost
            return status
        except (Exception, KeyboardInterrupt) as error:
            return explain(error)


def explain(error: BaseException, advice: str = "") -> int:
    """Print in one line, on standard error, what ended a command, and return the exit status.

    It is 2 after a mistake in the input or a failure of the disk or the memory, 70 after a bug, 130 after
    Ctrl-C, and 141 if nobody reads the output. `advice` ends the line.
    """
    line, status = _line_and_status(error, advice)
    print(line, file=sys.stderr, flush=True)
    return status


def _line_and_status(error: BaseException, advice: str) -> tuple[str, int]:
    if isinstance(error, InputError):
        return f"error: {error}", 2
    if isinstance(error, KeyboardInterrupt):
        return f"\nstopped{advice}", 130
    if isinstance(error, BrokenPipeError):  # the reader of the output has left, as `head` does
        return f"stopped: the reader of the output has gone{advice}", 141
    if is_lack_of_memory(error):
        return f"error: not enough memory ({short_line(error)}){advice or '; free some, and try again'}", 2
    if isinstance(error, OSError):  # such as a full disk
        named = error.filename is not None and error.strerror
        return f"error: {f'{error.filename}: {error.strerror}' if named else error}{advice}", 2
    place = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, NotImplementedError) and str(error).startswith("TODO "):  # the course's assignment
        path = Path(place.filename)
        path = path.relative_to(ROOT) if ROOT in path.parents else path
        return f"still to do: {str(error).removeprefix('TODO ')} ({path.as_posix()}:{place.lineno})", 2
    found = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno} ({short_line(error)})"
    return f"error: a bug in minbert: {found}; {_write_details(error)}{advice}", 70


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether this is how Python, numpy, torch or the system say that there is not enough memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and NO_MEMORY.search(str(error)) is not None
    )


def _write_details(error: BaseException) -> str:
    """Write what is needed to find a bug into a new file, and return where it is, in words."""
    lines = [f"command    {sys.orig_argv}", f"system     {platform.platform()}, Python {sys.version}"]
    lines += [f"{name:10} {_version(name)}" for name in LIBRARIES]
    try:
        descriptor, path = tempfile.mkstemp(prefix="minbert-bug-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join([*lines, "", *traceback.format_exception(error)]))
    except OSError as problem:
        return f"its details could not be written ({problem})"
    return f"please report it with {path}, which has the details"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"
