"""Commands for the reader to type: quoted for a shell, and started as this program was."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def command(*words: object) -> str:
    """Return a command line of this program that can be pasted into a shell."""
    return shlex.join([*_program(), *map(str, words)])


def python(module: str, *words: object) -> str:
    """Return a command line that runs a module with this Python."""
    return shlex.join([sys.orig_argv[0], "-m", module, *map(str, words)])


def resume(run: str | Path) -> str:
    """Return the command that resumes a run."""
    return command("--resume", "--out", run)


def program() -> str:
    """Return how this program is called: as the console script, or as a module."""
    return "multitask" if Path(sys.argv[0]).stem == "multitask" else "python -m multitask.run"


def _program() -> list[str]:
    script = Path(sys.argv[0])
    if program() == "multitask":
        return ["multitask" if shutil.which("multitask") == str(script) else str(script)]
    return [sys.orig_argv[0], "-m", "multitask.run"]
