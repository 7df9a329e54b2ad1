"""Progress bars, and lines for the reader above them."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

from minbert.command import unguarded


def has_room(stream: TextIO) -> bool:
    """Return whether a stream is a terminal that is known to have columns for a bar."""
    return stream.isatty() and os.get_terminal_size(stream.fileno()).columns > 0


def progress_bar(items: Any = None, *, shown: bool = True, **settings: Any) -> tqdm:
    """Return tqdm's bar over these items, on a terminal, or else no more than the items."""
    bar = unguarded(sys.stderr)  # its carriage returns are to be obeyed
    hidden = not shown or not has_room(sys.stderr)
    return tqdm(items, disable=hidden, file=bar, dynamic_ncols=True, leave=False, **settings)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line, on standard output if no `file` is named."""
    with tqdm.external_write_mode(unguarded(sys.stderr)):  # where the bar is: see meter.py
        print(line, file=file, flush=True)


def warn(line: str) -> None:
    """Print a warning on standard error."""
    say(f"warning: {line}", sys.stderr)
