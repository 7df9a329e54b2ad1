"""Progress bars, and lines for the reader above them."""

from __future__ import annotations

import sys
from typing import Any, TextIO

from tqdm import tqdm

from minbert.command import unguarded


def progress_bar(items: Any = None, *, shown: bool = True, **settings: Any) -> tqdm:
    """Return tqdm's bar over these items, on a terminal, or else no more than the items."""
    bar = unguarded(sys.stderr)  # its carriage returns are to be obeyed
    hidden = not shown or not sys.stderr.isatty()
    return tqdm(items, disable=hidden, file=bar, dynamic_ncols=True, leave=False, **settings)


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line, on standard output if no `file` is named."""
    with tqdm.external_write_mode(unguarded(sys.stderr)):  # where the bar is: see meter.py
        print(line, file=file, flush=True)


def warn(line: str) -> None:
    """Print a warning on standard error."""
    say(f"warning: {line}", sys.stderr)
