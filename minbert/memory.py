"""Whether a batch fits into the machine's memory: attention grows with the square of its length."""

from __future__ import annotations

import math
import os

from minbert.config import BertConfig
from minbert.errors import InputError


def check_memory(config: BertConfig, examples: int, positions: int, layers: int = 1) -> None:
    """Raise InputError if the attention weights of a padded batch, kept for this many layers, need more than
    the machine's memory, as far as the system tells."""
    needed = 4 * layers * examples * config.num_attention_heads * positions**2
    if needed > memory_of_machine():
        size = f"{examples:,} x {positions:,} positions need {needed / 2**30:,.1f} GiB for attention"
        raise InputError(f"{size}, more than this machine has: make the batch or max_length smaller")


def memory_of_machine() -> float:
    """Return the bytes of the machine's memory; infinite where the system does not tell."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return math.inf
    return pages * size if pages > 0 else math.inf
