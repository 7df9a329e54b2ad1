"""What the HTML pages of both packages may run: their own scripts, known by their hashes."""

from __future__ import annotations

import base64
import hashlib
import re

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def scripts_of(page: str) -> str:
    """Return the sources of a content security policy that let the scripts inside a page run, and no other:
    'sha256-...' of each."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in SCRIPT.findall(page))
    return " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in hashes)
