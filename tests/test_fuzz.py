"""Every reader of untrusted files gets a few hostile ones of each kind; stress/fuzz.py tries thousands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import fuzz


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_reader_takes_hostile_files_or_refuses_them_in_one_line(name):
    seen, taken, finding = fuzz.fuzz(fuzz.READERS[name], inputs=25, seed=0)
    assert not finding
    assert seen >= 25 and taken <= seen


@pytest.mark.parametrize("name", fuzz.READERS)
def test_a_reader_takes_what_the_hostile_files_were_made_from(name, tmp_path):
    for file, content in fuzz.READERS[name].right().items():
        (tmp_path / file).write_bytes(content)
    assert fuzz.attempt(fuzz.READERS[name], tmp_path)


NO_FILES = {
    "missing": lambda path: None,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "empty": Path.touch,
    "hole of a terabyte": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", [name for name in fuzz.READERS if name not in ("flags", "texts", "cache")])
def test_what_stands_in_a_files_place_neither_holds_a_reader_up_nor_fills_the_memory(name, kind, tmp_path):
    """Replace each file of a reader in turn. A pipe that nobody writes to must not block it forever."""
    if (name, kind) == ("tables", "hole of a terabyte"):
        pytest.skip("a table is hashed to its end")
    reader = fuzz.READERS[name]
    right = reader.right()
    for spoiled in right:
        folder = tmp_path / spoiled
        folder.mkdir()
        for file, content in right.items():
            if file != spoiled:
                (folder / file).write_bytes(content)
        try:
            NO_FILES[kind](folder / spoiled)
        except OSError:
            pytest.skip("this file system has no such files")
        fuzz.attempt(reader, folder)


def test_the_script_counts_its_inputs_and_prints_what_it_finds(monkeypatch, capsys):
    def careless(folder):
        assert b"\xff" not in (folder / "input.txt").read_bytes(), "seen"

    broken = fuzz.Reader(lambda: {}, fuzz.texts, careless)
    monkeypatch.setattr(fuzz, "READERS", {"texts": fuzz.READERS["texts"], "broken": broken})
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--inputs", "300"])
    monkeypatch.setattr(fuzz.resource, "setrlimit", lambda *_: None)
    monkeypatch.setenv("MINBERT_CACHE", "restored after the test")  # main moves it
    assert fuzz.main() == 1
    out = capsys.readouterr().out
    assert "texts            300 inputs" in out and "AssertionError: seen" in out and "1 findings" in out
    assert r"\xff" in out.partition("input.txt: ")[2]


@pytest.mark.slow
def test_a_thousand_inputs_of_every_kind():
    words = [sys.executable, str(ROOT / "tools" / "stress" / "fuzz.py"), "--inputs", "1000", "--seed", "1"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=3000)
    assert done.returncode == 0, done.stdout[-5000:]
