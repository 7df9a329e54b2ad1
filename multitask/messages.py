"""Lines for the reader, above the progress bar if there is one."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm

from minbert.command import unguarded


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line, on standard output if no `file` is named."""
    with tqdm.external_write_mode(unguarded(sys.stderr)):  # where the bar is: see meter.py
        print(line, file=file, flush=True)


def warn(line: str) -> None:
    """Print a warning on standard error."""
    say(f"warning: {line}", sys.stderr)
