"""What torchrun tells the processes that it starts, in environment variables."""

from __future__ import annotations

import os

from minbert.errors import InputError, shown

GRACE_SECONDS = 5  # torchrun ends all processes at the first exit, which must be that of the one that speaks
NEEDED = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched(name: str, default: int = 0) -> int:
    """Return the number in one of torchrun's variables, or the default if it is not set, or empty."""
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InputError(
            f"{name} is {shown(text)}, not a number as torchrun sets it: unset it, or use torchrun"
        )
    return int(text)


def processes_launched() -> int:
    """Return the number of processes that torchrun has started. Raises InputError if there are several, and
    nothing tells this one where the others are."""
    count = launched("WORLD_SIZE", 1)
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if count > 1 and missing:
        raise InputError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} are not set: start the processes with "
            "torchrun, or unset WORLD_SIZE for a single one"
        )
    return count
