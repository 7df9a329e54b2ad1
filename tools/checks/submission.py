"""What a submission is: a zip of the two packages' Python files and the prediction files, and nothing else.

The same rules hold where one is packed and where one is unpacked, whoever has made it.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

PACKAGES = ("minbert", "multitask")
PREDICTIONS = "predictions"
GIVEN = "given.json"  # in checks/: the digests of the files with nothing to fill in
MOST_FILES = 500
LARGEST_FILE = 4 << 20  # bytes, expanded
LARGEST = 24 << 20  # bytes of all files together, expanded
LARGEST_ZIP = 12 << 20

CODE = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:/[A-Za-z_][A-Za-z0-9_]*)+\.py")
OUTPUT = re.compile(rf"{PREDICTIONS}/[A-Za-z0-9_]+(?:-[a-z]+)*\.csv")


class Refused(ValueError):
    """Why these files are no submission, in one line."""


def code_files(folder: Path) -> list[Path]:
    """Return the Python files of the packages in an assignment's folder; no link is followed."""
    found = []
    for package in PACKAGES:
        for path in sorted((folder / package).rglob("*.py")):
            steps = [path, *path.parents][: len(path.relative_to(folder).parts)]
            if CODE.fullmatch(path.relative_to(folder).as_posix()) and not any(
                one.is_symlink() for one in steps
            ):
                found.append(path)
    return found


def digests(folder: Path) -> dict[str, str]:
    """Return a digest of each Python file of the packages, by name, whatever its line breaks."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            b"\n".join(path.read_bytes().splitlines())
        ).hexdigest()
        for path in code_files(folder)
    }


def changed_files(folder: Path) -> list[str]:
    """Return the files with nothing to fill in that are missing, or not as they were given."""
    given = json.loads((folder / "checks" / GIVEN).read_text(encoding="utf-8"))
    found = digests(folder)
    return [name for name, digest in given.items() if found.get(name) != digest]


def check_size(files: Mapping[str, bytes]) -> None:
    """Raise Refused if these are too many files, or too large."""
    if len(files) > MOST_FILES:
        raise Refused(f"{len(files)} files, more than {MOST_FILES}")
    for name, content in files.items():
        if len(content) > LARGEST_FILE:
            raise Refused(f"{name}: larger than {LARGEST_FILE >> 20} MB")
    if sum(map(len, files.values())) > LARGEST:
        raise Refused(f"the files are larger than {LARGEST >> 20} MB together")


def pack(files: Mapping[str, bytes], target: Path) -> None:
    """Write a zip of these files, by name in it. The same files give the same bytes."""
    check_size(files)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)


def unpack(source: Path) -> dict[str, bytes]:
    """Return the files of a submission, by name. Nothing is written, and no more is expanded than it may
    hold, whatever the archive claims. Raises Refused if there is anything else in it."""
    try:
        if source.stat().st_size > LARGEST_ZIP:
            raise Refused(f"larger than {LARGEST_ZIP >> 20} MB")
        with zipfile.ZipFile(source) as archive:
            check_entries(archive.infolist())
            files: dict[str, bytes] = {}
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as file:
                        files[entry.filename] = file.read(LARGEST_FILE + 1)
                    check_size(files)
            return files
    except OSError as error:
        raise Refused(f"cannot be read ({error.strerror or error})") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        UnicodeError,
    ) as error:
        raise Refused(f"a damaged zip, or none ({' '.join(str(error).split())[:100]})") from None


def check_entries(entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raise Refused unless these are plain files of a submission, or folders, each once."""
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused(f"{name!r} is a link or a special file")
        if entry.flag_bits & 1:
            raise Refused(f"{name!r} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"{name!r} is compressed in an unusual way; make it with submit.py")
        if entry.is_dir():
            if PurePosixPath(name).parts[:1] and PurePosixPath(name).parts[0] in (*PACKAGES, PREDICTIONS):
                continue
            raise Refused(f"{name!r} is no part of a submission; make it with submit.py")
        if not CODE.fullmatch(name) and not OUTPUT.fullmatch(name):
            raise Refused(f"{name!r} is no part of a submission; make it with submit.py")
        if name.casefold() in seen:
            raise Refused(f"{name!r} is in it twice")
        seen.add(name.casefold())
        if len(seen) > MOST_FILES:
            raise Refused(f"more than {MOST_FILES} files")
