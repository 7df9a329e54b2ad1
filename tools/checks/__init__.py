"""What an assignment is checked with: `tools/course.py make` copies it beside the code to fill in."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  said before a file that an older Python cannot read
    sys.exit(f"this needs Python 3.11 or newer, and is run by {sys.version.split()[0]}: see README.md")
try:
    import torch  # noqa: F401
except ImportError as error:
    sys.exit(f"{error}: install what you need with .venv/bin/pip install -r requirements.txt, see README.md")
