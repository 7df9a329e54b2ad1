"""Stopped anywhere and gone on with, or started in another process: the same bytes. And the same numbers as
before a change of the code, or a warning."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers import ROOT, contents, metrics_without_clock, write_tables

from minbert import linear
from multitask import train
from multitask.machine import rounding
from multitask.run import main

SMALL = "--threads 1 --epochs 3 --steps-per-epoch 5 --lr 1e-3 --keep-state"
FINETUNE = "--option finetune --batch-size 4"
VARIANTS = {
    "annealed": f"{FINETUNE} --sampling annealed",
    "sqrt, accumulation": f"{FINETUNE} --sampling sqrt --accumulate 2",
    "proportional, constant rate": f"{FINETUNE} --sampling proportional --schedule constant",
    "uniform, halve-on-rise": f"{FINETUNE} --sampling uniform --schedule halve-on-rise --lr 1e-2",
    "SMART": f"{FINETUNE} --smart-weight 2",
    "BPPO": f"{FINETUNE} --bregman-weight 1 --bregman-beta .9:.99",
    "batches by tokens": "--option finetune --max-tokens 64",
    "early stopping": f"{FINETUNE} --patience 1",
    "pretrain": "--option pretrain --batch-size 4",
    "mnrl": "--option mnrl --accumulate 2",
    "mlm": "--option mlm --batch-size 4 --accumulate 2 --whole-words",
}
GOLDEN = ROOT / "tests" / "golden.json"


@pytest.fixture(scope="module")
def common(tmp_path_factory, tiny) -> list[str]:
    sizes = {"train": 20, "dev": 10, "test-student": 3}
    data = write_tables(tmp_path_factory.mktemp("resume") / "data", sizes=sizes)
    return [*SMALL.split(), "--weights", str(tiny), "--data", str(data)]


@pytest.fixture
def stop_at(monkeypatch):
    """A function that has the process get SIGTERM in its n-th update from now."""

    def stop_at(number: int) -> None:
        calls, real = [], train.update

        def update(*args):
            calls.append(0)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        monkeypatch.setattr(train, "update", update)

    return stop_at


@pytest.mark.parametrize("words", VARIANTS.values(), ids=VARIANTS)
def test_a_run_stopped_three_times_gives_the_bytes_of_one_that_was_not(common, tmp_path, stop_at, words):
    """In mid-epoch, at the end of an epoch (so that its scores are still to come), and in the last one."""
    words = [*common, *words.split()]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    for number in (3, 2, 6):
        stop_at(number)
        status = main([*words, "--out", str(tmp_path / "run"), "--resume"])
        assert status == 143 or (number == 6 and "--patience" in words)
    assert main(["--out", str(tmp_path / "run"), "--resume"]) == 0
    assert metrics_without_clock(tmp_path / "run") == metrics_without_clock(tmp_path / "whole")
    for folder in ("best", "predictions"):
        if (tmp_path / "whole" / folder).exists():
            assert contents(tmp_path / "run" / folder) == contents(tmp_path / "whole" / folder)
    for states in (tmp_path / "run" / "state", tmp_path / "whole" / "state"):
        assert (states / "latest").read_text() == (tmp_path / "whole" / "state" / "latest").read_text()
    last = (tmp_path / "whole" / "state" / "latest").read_text()
    for path in (tmp_path / "whole" / "state" / last).glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "run" / "state" / last / path.name).read_bytes()


def test_the_same_seed_gives_the_same_bytes_in_another_process(common, tmp_path):
    words = [*common, *VARIANTS["SMART"].split(), "--no-report"]
    assert main([*words, "--out", str(tmp_path / "here")]) == 0
    command = [sys.executable, "-m", "multitask.run", *words, "--out", str(tmp_path / "there")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert metrics_without_clock(tmp_path / "here") == metrics_without_clock(tmp_path / "there")
    for folder in ("best", "predictions"):
        assert contents(tmp_path / "here" / folder) == contents(tmp_path / "there" / folder)


class Moved(Warning):
    """The numbers of the golden run are others than before."""


def numbers(value: object, name: str = "") -> dict[str, float]:
    """Every number in a nested record, by its path; but for the clock's."""
    if not isinstance(value, dict):
        return {name: value} if isinstance(value, int | float) else {}
    inner = [numbers(value[key], f"{name}/{key}") for key in value if "second" not in key]
    return {path: number for one in inner for path, number in one.items()}


def test_the_golden_run_has_not_moved(tmp_path, monkeypatch):
    """Equal to the last digit where processor and torch are those that made the file. Others may round
    differently: there a difference is a warning. A change that was meant to move the numbers writes the file
    anew (`tools/make_golden.py`)."""
    monkeypatch.setattr(linear, "chosen", lambda *_: frozenset())
    golden = json.loads(GOLDEN.read_text())
    words = [word.replace("ROOT", str(ROOT)) for word in golden["command"]]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    same_machine = golden["machine"] == rounding()
    for found, before in zip(lines, golden["metrics"], strict=True):
        now, then = numbers(found), numbers(before)
        assert now.keys() == then.keys()
        close = {} if same_machine else {"rel": 1e-4, "abs": 1e-6}
        moved = {path: (then[path], now[path]) for path in now if not equal(now[path], then[path], **close)}
        assert not (moved and same_machine), f"epoch {found['epoch']}: {moved}"
        if moved:
            warnings.warn(f"epoch {found['epoch']}: {moved}", Moved, stacklevel=1)


def equal(now: float, then: float, **close: float) -> bool:
    return now == (pytest.approx(then, **close) if close else then)


@pytest.mark.slow
def test_killed_five_times(tmp_path):
    command = [sys.executable, str(Path("tools") / "stress" / "crash.py"), "--kills", "5"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 kills resumed to identical bytes" in done.stdout
