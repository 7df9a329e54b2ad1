"""SIGTERM, Ctrl-C, and SIGHUP when the terminal closes: a run that is training first finishes its step and
saves. A second signal stops it at once, unless it is SIGHUP, which the shell and the kernel may both send.
What was ignored when the program started, as SIGHUP is under nohup, stays ignored."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
FROM_OUTSIDE = (signal.SIGTERM,) if HANGUP is None else (signal.SIGTERM, HANGUP)
Result = TypeVar("Result")


class Stopped(BaseException):
    """A signal has asked the program to stop. `run` is the folder of the run that can be resumed, if any."""

    def __init__(self, number: int, run: Path | None = None):
        super().__init__(number)
        self.number, self.run = number, run


class _GivenUp(BaseException):
    """Interrupts work that need not be finished."""


class Stop:
    """A context in which a first signal only sets `number`, and a second one ends the process."""

    def __init__(self) -> None:
        self.number = 0
        self._idle = False  # whether the work in progress may be interrupted
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = _handle((*FROM_OUTSIDE, signal.SIGINT), self._note)
        return self

    def __exit__(self, *_: object) -> None:
        _restore(self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in self._before:
            signal.signal(each, signal.SIG_IGN if each == HANGUP else signal.SIG_DFL)
        with suppress(OSError):  # not print(), which the signal may have interrupted
            os.write(2, b"\nstopping after this step; a second signal stops at once\n")
        if self._idle:
            raise _GivenUp

    def unless_asked(self, work: Callable[[], Result]) -> Result | None:
        """Return the result of `work`, or None if a signal comes before it ends.

        The work is then interrupted, so it must leave nothing behind.
        """
        if self.number:
            return None
        try:
            self._idle = True
            result = work()
            self._idle = False
        except _GivenUp:
            self._idle = False
            return None
        return result


@contextmanager
def terminable() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP raise Stopped, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _handle(FROM_OUTSIDE, stop)
    try:
        yield
    finally:
        _restore(before)


def _handle(numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle those of these signals that are not ignored, and return the handlers that they had."""
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in handled}


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
