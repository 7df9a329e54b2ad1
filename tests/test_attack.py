"""tools/stress/attack.py: what it takes for wrong, and a few of its cases; all of them are slow."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT

import attack
from hostile.box import Box, Done, Skipped, Wrong, changes, judged

SCRIPT = [sys.executable, str(ROOT / "tools" / "stress" / "attack.py")]


@pytest.mark.parametrize(
    "status, out, err, problems",
    [
        (0, "epoch 1\n", "", []),
        (2, "", "error: no such folder\n", []),
        (2, "", "no such folder\n", ["no line that begins with error:"]),
        (70, "", "error: see the file\n", ["status 70"]),
        (-9, "", "", ["status -9"]),
        (2, "", "error: x\nTraceback (most recent call last):\n", ["traceback"]),
        (0, "name \x1b[31m\n", "", ["printed the control character '\\x1b'"]),
        (0, "", "name \x9b31m\n", ["printed the control character '\\x9b'"]),
        (2, "", "error: x\n" * 40, ["a long message"]),
    ],
)
def test_the_judge_sees_what_is_wrong(status, out, err, problems):
    assert [*judged(Done(status, out, err, 0.1, 1 << 20), (0, 2))] == problems


def test_a_snapshot_sees_every_change(tmp_path):
    box = Box(tmp_path)
    (box / "victim/link").symlink_to("letter.txt")
    os.mkfifo(box / "victim/pipe")
    (box / "run").mkdir()
    before = box.snapshot(("run",))
    (box / "run/new").touch()
    assert not [*changes(before, box.snapshot(("run",)))]

    (box / "victim/link").unlink()
    (box / "victim/link").symlink_to("folder")
    (box / "victim/pipe").unlink()
    (box / "victim/folder/photos/new").touch()
    (box / "victim/letter.txt").write_text("a lettuce")
    (box / "home/.bashrc").chmod(0o600)
    assert [*changes(before, box.snapshot(("run",)))] == [
        "removed victim/pipe",
        "made victim/folder/photos/new",
        "changed home/.bashrc, victim/letter.txt, victim/link",
    ]


def test_every_case_has_a_name_of_its_own():
    names = [name for name, _ in attack.all_cases()]
    assert len(names) == len(set(names)) > 1000
    assert all(name.isprintable() and len(name) < 150 for name in names)


def test_the_script_prints_a_line_for_each_case_and_fails_if_one_does(tmp_path, monkeypatch, capsys):
    def wrong(box):
        raise Wrong("made x", "status 1")

    def skipped(box):
        raise Skipped("no such files")

    group = SimpleNamespace(cases=lambda: [("right", lambda box: None), ("bad", wrong), ("odd", skipped)])
    monkeypatch.setattr(attack, "GROUPS", {"some": group})
    monkeypatch.setattr(attack, "give_up_rights", lambda: None)
    monkeypatch.setattr(sys, "argv", ["attack.py"])
    assert attack.main() == 1
    right, bad, odd, counts = capsys.readouterr().out.splitlines()
    assert right == "ok   some: right" and bad == "FAIL some: bad: made x; status 1"
    assert odd == "skip some: odd: no such files"
    assert counts.startswith("1 of 3 right, 1 failed, 1 skipped")


def test_a_few_cases():
    done = subprocess.run([*SCRIPT, "--only", "report: run/metrics.jsonl is"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("ok   folders: report") == 9, done.stdout + done.stderr


@pytest.mark.slow
def test_every_case():
    """A case that fails is tried again by itself: a busy machine may have let it wait for too long."""
    names = [name for name, _ in attack.all_cases()]
    done = subprocess.run(SCRIPT, capture_output=True, text=True, timeout=3600)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert done.returncode == int(bool(failed)), done.stdout[-2000:] + done.stderr
    for line in failed:
        name = max((name for name in names if line.startswith(f"FAIL {name}:")), key=len)
        again = subprocess.run([*SCRIPT, "--only", name], capture_output=True, text=True, timeout=600)
        assert again.returncode == 0, again.stdout + again.stderr
