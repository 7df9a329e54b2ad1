"""SIGTERM and Ctrl-C: a run that trains finishes its step and saves first; asked a second time, it ends at
once, as programs do."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

SIGNALS = (signal.SIGTERM, signal.SIGINT)
Result = TypeVar("Result")


class Stopped(BaseException):
    """A signal has asked the program to end; `run` is the folder that can be gone on with, where there is
    one."""

    def __init__(self, number: int, run: Path | None = None):
        super().__init__(number)
        self.number, self.run = number, run


class _GivenUp(BaseException):
    """What was under way need not be finished."""


class Stop:
    """Inside it, a signal is noted in `number`, and the next one ends the process."""

    def __init__(self) -> None:
        self.number = 0
        self._idle = False  # nothing under way whose end is worth waiting for
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in self._before:
            signal.signal(each, signal.SIG_DFL)
        with suppress(OSError):  # print() may be at work where the signal came
            os.write(sys.stderr.fileno(), b"\nstopping after this step; a second signal ends at once\n")
        if self._idle:
            raise _GivenUp

    def unless_asked(self, work: Callable[[], Result]) -> Result | None:
        """The result of work that leaves nothing behind, so that a signal may cut it off: then None."""
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
    """SIGTERM raises Stopped, as Ctrl-C raises KeyboardInterrupt."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
