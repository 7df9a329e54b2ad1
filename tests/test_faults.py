"""A failing disk: each call of a run that writes something fails, once or for good, and the run or its
resumption still ends with the right weights."""

import errno
import re
import tempfile
from pathlib import Path

import pytest
from helpers import contents, metrics_without_clock, write_tables

from minbert import files
from multitask.data.tasks import SIMILARITY
from multitask.layout import CARD
from multitask.run import main

PRIMITIVES = ("write_bytes", "write_safetensors", "flush", "rename", "make_folder", "remove")
KINDS = ("no space", "I/O error", "short write", "no space from then on")


class Faults:
    """Wraps the functions of files.py that change the disk and makes the n-th call on a folder fail, from 1.

    The call fails before it does anything; or halfway, when half of a file is written and anything else is
    done although it is reported as failed; or it fails and so does every later call.
    """

    def __init__(self, monkeypatch, folder: Path, kind: str = "", number: int = 0):
        self.folder, self.kind, self.number, self.calls = folder, kind, number, 0
        for name in PRIMITIVES:
            monkeypatch.setattr(files, name, self.failing(getattr(files, name)))

    def failing(self, real):
        def call(path, *args):
            self.calls += path.is_relative_to(self.folder)
            due = path.is_relative_to(self.folder) and self.calls == self.number
            if self.kind == "no space from then on" and 0 < self.number <= self.calls:
                due = path.is_relative_to(self.folder)
            if due and self.kind == "short write":
                real(path, *args)
                if path.is_file():
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            if due:
                code = errno.EIO if self.kind == "I/O error" else errno.ENOSPC
                raise OSError(code, "injected", str(path))
            return real(path, *args)

        return call


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny):
    """A run of 2 epochs of 2 updates, with a state after each update."""
    data = write_tables(tmp_path_factory.mktemp("faults") / "data", {"similarity": SIMILARITY})
    return [
        *("--option", "finetune", "--weights", str(tiny), "--data", str(data), "--tasks", "similarity"),
        *("--threads", "1", "--batch-size", "4", "--epochs", "2", "--steps-per-epoch", "2"),
        *("--save-every", "1", "--lr", "3e-3", "--seed", "3"),  # the second epoch is the better one
    ]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The uninterrupted run, and the number of its calls."""
    run = tmp_path_factory.mktemp("faults") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        faults = Faults(patch, run)
        assert main([*words, "--out", str(run)]) == 0
    return run, faults.calls


def survives(words, whole, folder: Path, kind: str, number: int, capsys) -> None:
    """Let one call fail, resume the run if that ended it, and compare."""
    run = folder / f"run-{number}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        faults = Faults(patch, run, kind, number)
        status = main([*words, "--out", str(run)])
        assert faults.calls >= number
    err = capsys.readouterr().err
    assert status in (0, 2) and err and "Traceback" not in err, err
    if elsewhere := re.search(r"the trained model is in (\S+)/best", err):
        model = {name: content for name, content in contents(whole / "best").items() if name != CARD}
        assert contents(Path(elsewhere[1]) / "best") == model  # the card comes when the run is done
        assert main(["--resume", "--out", elsewhere[1]]) == 0
        assert contents(Path(elsewhere[1]) / "predictions") == contents(whole / "predictions")
    if status:
        assert main([*words, "--resume", "--out", str(run)]) == 0
    assert contents(run / "best") == contents(whole / "best")
    assert contents(run / "predictions") == contents(whole / "predictions")
    assert metrics_without_clock(run) == metrics_without_clock(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_some_calls_fail(words, whole, tmp_path, capsys, kind):
    run, calls = whole
    assert calls > 200
    for number in range(1 + 7 * KINDS.index(kind), calls + 1, 41):
        survives(words, run, tmp_path, kind, number, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_call_fails(words, whole, tmp_path, capsys, kind):
    run, calls = whole
    for number in range(1, calls + 1):
        survives(words, run, tmp_path, kind, number, capsys)
    with capsys.disabled():
        print(f"\n{kind}: {calls} of {calls} calls that failed ended right")
