"""folder.py: one process at a time in a run's folder, a free number for a run without a name, and no run
written over."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

from minbert.errors import InputError
from multitask import advice, folder
from multitask.folder import LOCK, MARK, MARK_TEXT, check_held, claim, make_marked
from multitask.layout import CONFIG, FOLDERS, PIECES, PIPELINE

KINDS = {CONFIG: "a single run", PIPELINE: "the stages of a recipe"}


def started(code: str, cwd: Path) -> subprocess.Popen[str]:
    """Start another process, in which `claim` is at hand."""
    code = f"from multitask.folder import claim\n{code}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=cwd, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def said_by(code: str, cwd: Path) -> str:
    """Return what another process prints; it must end well."""
    out, err = (process := started(code, cwd)).communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out


@contextlib.contextmanager
def holding(out: Path) -> Iterator[subprocess.Popen[str]]:
    """Have another process claim a folder and keep it until it is killed."""
    with started(f"print(claim({str(out)!r}, 'finetune'), flush=True)\ninput()", out.parent) as process:
        assert process.stdout is not None and process.stdout.readline() == f"{out}\n"
        try:
            yield process
        finally:
            process.kill()


def free_descriptor() -> int:
    """Return the lowest free file descriptor: the same as before if nothing has been left open."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


# A folder with a name


@pytest.mark.parametrize("holds", KINDS)
def test_a_folder_is_made_with_those_above_it(tmp_path, holds):
    assert claim(str(tmp_path / "a" / "b"), "finetune", holds) == tmp_path / "a" / "b"
    assert sorted(os.listdir(tmp_path / "a" / "b")) == [".lock", ".minbert"]


@pytest.mark.parametrize("resume", [False, True, None])
def test_a_folder_that_holds_no_run_is_taken_as_it_is(tmp_path, resume):
    (tmp_path / "notes.txt").write_text("mine")
    assert claim(str(tmp_path), "finetune", resume=resume) == tmp_path
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("holds", KINDS)
def test_a_run_is_claimed_again_only_to_resume_it(tmp_path, holds):
    (tmp_path / holds).write_text("")
    with pytest.raises(InputError) as caught:
        claim(str(tmp_path), "finetune", holds)
    remedy = f"resume it with {advice.resume(tmp_path)}, or choose another --out"
    assert str(caught.value) == f"{tmp_path}: holds a run already; {remedy}"
    assert claim(str(tmp_path), "finetune", holds, resume=True) == tmp_path


def test_what_cannot_be_resumed_is_not_told_to(tmp_path):
    (tmp_path / CONFIG).write_text("")
    with pytest.raises(InputError) as caught:
        claim(str(tmp_path), "ensemble", resume=None)
    assert str(caught.value) == f"{tmp_path}: holds a run already; choose another --out"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("holds, other", [(CONFIG, PIPELINE), (PIPELINE, CONFIG)])
def test_a_run_and_the_stages_of_a_recipe_are_not_mixed(tmp_path, holds, other, resume):
    (tmp_path / other).write_text("")
    with pytest.raises(InputError) as caught:
        claim(str(tmp_path), "finetune", holds, resume)
    assert str(caught.value) == f"{tmp_path}: holds {KINDS[other]}; choose another --out"


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_file_where_the_folder_should_be(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / below
    with pytest.raises(
        InputError, match=rf"^{tmp_path}/file.*: cannot be made \(.*\); choose another --out$"
    ):
        claim(str(out), "finetune")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / ".lock").mkdir()  # root may write into any folder, but not into this
    with pytest.raises(InputError) as caught:
        claim(str(tmp_path), "finetune")
    assert str(caught.value) == f"{tmp_path}: cannot be written (Is a directory); choose another --out"


def test_a_named_folder_stays_when_the_process_ends(tmp_path):
    assert said_by("print(claim('mine', 'finetune'))", tmp_path) == "mine\n"
    assert sorted(os.listdir(tmp_path / "mine")) == [".lock", ".minbert"]


# A folder that may not be a run's


@pytest.mark.parametrize("resume", [False, True, None])
@pytest.mark.parametrize("piece", FOLDERS)
def test_pieces_that_no_run_has_made_are_left_alone(tmp_path, piece, resume):
    (tmp_path / piece).mkdir()
    (tmp_path / piece / "novel.txt").write_text("mine")
    with pytest.raises(InputError, match=rf"^{tmp_path}: has no file \.minbert, so {piece} may be your own"):
        claim(str(tmp_path), "finetune", resume=resume)
    assert not (tmp_path / MARK).exists()


def test_a_state_that_no_run_has_made_is_left_alone(tmp_path):
    claim(str(tmp_path), "finetune")
    (tmp_path / "state" / "step-00000001").mkdir(parents=True)
    with pytest.raises(InputError, match=rf"^{tmp_path}/state: has no file \.minbert, "):
        claim(str(tmp_path), "finetune", resume=True)


def test_a_state_whose_mark_could_not_be_written_is_marked_later(tmp_path):
    """The disk was full, or the process was killed, before the mark was in place."""
    claim(str(tmp_path), "finetune")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".minbert.partial-0123456789abcdef").write_text("")
    assert claim(str(tmp_path), "finetune", resume=True) == tmp_path
    make_marked(tmp_path / "state")
    assert os.listdir(tmp_path / "state") == [MARK]


def test_a_run_that_has_lost_its_config_is_not_written_over(tmp_path):
    claim(str(tmp_path), "finetune")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="holds a run already; resume it with "):
        claim(str(tmp_path), "finetune")
    assert claim(str(tmp_path), "finetune", resume=True) == tmp_path


@pytest.mark.parametrize("piece", ["teacher.safetensors", "predictions", "members", "ensemble.toml"])
@pytest.mark.parametrize("resume", [False, True, None])
def test_a_run_that_was_stopped_before_it_began_may_start_again(tmp_path, piece, resume):
    """A distillation that has kept its teacher's outputs, an ensemble that has made its predictions."""
    claim(str(tmp_path), "distill")
    (tmp_path / piece).mkdir()
    assert claim(str(tmp_path), "distill", resume=resume) == tmp_path


@pytest.mark.parametrize("piece", PIECES)
def test_a_link_in_place_of_a_piece_is_refused(tmp_path, piece):
    claim(str(tmp_path / "run"), "finetune")
    (tmp_path / "run" / piece).symlink_to(tmp_path / "victim")
    with pytest.raises(InputError, match=rf"^{tmp_path}/run/{piece}: is a symbolic link"):
        claim(str(tmp_path / "run"), "finetune", resume=True)


def test_a_lock_and_a_mark_that_are_links_are_not_followed(tmp_path):
    victim = tmp_path / "victim"
    for name in (LOCK, MARK):
        run = tmp_path / name.strip(".")
        run.mkdir()
        (run / name).symlink_to(victim)
        if name == LOCK:
            with pytest.raises(InputError, match="cannot be written"):
                claim(str(run), "finetune")
        else:
            claim(str(run), "finetune")
    assert not victim.exists() and (tmp_path / "minbert" / MARK).read_text() == MARK_TEXT


def test_what_a_killed_run_never_finished_is_swept_away(tmp_path):
    claim(str(tmp_path), "finetune")
    (tmp_path / "predictions").mkdir()
    unfinished = [
        tmp_path / f"{name}.partial-0123456789abcdef" for name in ("metrics.jsonl", "predictions/x.csv")
    ]
    for path in (*unfinished, tmp_path / "notes.partial"):
        path.write_text("half")
    claim(str(tmp_path), "finetune", resume=True)
    assert not any(path.exists() for path in unfinished) and (tmp_path / "notes.partial").exists()


def test_a_folder_that_another_run_has_taken_is_not_written(tmp_path):
    """The folder was removed while the run was at work, and another process made a run of this name."""
    run = claim(str(tmp_path / "run"), "finetune")
    check_held(run)
    shutil.rmtree(run)
    check_held(run)  # nobody has taken it, so it is made again
    assert sorted(os.listdir(run)) == [LOCK, MARK]
    (run / LOCK).unlink()
    check_held(run)  # only the lock is gone, so it is taken again
    assert (run / LOCK).exists()
    shutil.rmtree(run)
    with holding(run), pytest.raises(OSError, match="was replaced while this run was at work"):
        check_held(run)


# The lock


@pytest.mark.parametrize("resume", [False, True, None])
def test_a_folder_in_use_by_another_process_is_refused_until_that_one_ends(tmp_path, resume):
    out = tmp_path / "run"
    with holding(out):
        free = free_descriptor()
        with pytest.raises(InputError) as caught:
            claim(str(out), "finetune", resume=resume)
        assert free_descriptor() == free
        assert str(caught.value) == f"{out}: in use by another process; wait, or choose another --out"
    assert claim(str(out), "finetune", resume=resume) == out  # it was killed


def test_a_lock_keeps_out_every_name_of_the_folder_and_no_other_folder(tmp_path):
    (tmp_path / "link").symlink_to("run")
    with holding(tmp_path / "run"):
        with pytest.raises(InputError, match="run: in use by another process"):
            claim(str(tmp_path / "link"), "finetune")
        claim(str(tmp_path / "other"), "finetune")


def test_this_process_holds_its_folder_and_may_claim_it_again(tmp_path):
    out = str(tmp_path / "run")
    for _ in range(2):
        claim(out, "finetune")
    code = f"try: claim({out!r}, 'finetune')\nexcept ValueError as error: print(error)"
    assert "in use by another process" in said_by(code, tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.filterwarnings("error")
def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    before, free = dict(folder._held), free_descriptor()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert claim(str(tmp_path / "run"), "finetune") == tmp_path / "run"
    assert folder._held == before and free_descriptor() == free


# A folder with a number


def test_a_run_without_a_name_takes_the_next_free_number(tmp_path):
    code = "for name in ('finetune', 'mnrl', 'finetune'): print(claim(None, name))"
    (tmp_path / "runs" / "finetune-2").mkdir(parents=True)
    (tmp_path / "runs" / "mnrl-1").write_text("a file takes a number too")
    said = said_by(code, tmp_path)
    assert said.split() == ["runs/finetune-1", "runs/mnrl-2", "runs/finetune-3"]


def test_processes_that_start_at_once_take_different_numbers(tmp_path):
    code = "input()\nprint(claim(None, 'finetune'), flush=True)\ninput()"
    processes = [started(code, tmp_path) for _ in range(6)]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    taken = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
    assert sorted(taken) == [f"runs/finetune-{number}" for number in range(1, 7)]
    for process in processes:
        process.communicate("\n", timeout=60)


def test_a_numbered_folder_is_locked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with started("print(claim(None, 'mnrl'), flush=True)\ninput()", tmp_path) as process:
        assert process.stdout is not None and process.stdout.readline() == "runs/mnrl-1\n"
        with pytest.raises(InputError, match="runs/mnrl-1: in use by another process"):
            claim("runs/mnrl-1", "mnrl")
        process.communicate("\n", timeout=60)


@pytest.mark.parametrize(
    "code, left",
    [
        ("", {}),
        ("raise SystemExit(2)", {}),
        ("(run / 'config.toml').write_text('')", {"finetune-1": [".lock", ".minbert", "config.toml"]}),
        ("import shutil; shutil.rmtree(run)", {}),
    ],
)
def test_a_number_is_given_back_by_a_run_that_never_began(tmp_path, code, left):
    out, err = started(f"run = claim(None, 'finetune')\nprint(run)\n{code}", tmp_path).communicate(timeout=60)
    assert (out, err) == ("runs/finetune-1\n", "")
    assert {path.name: sorted(os.listdir(path)) for path in (tmp_path / "runs").iterdir()} == left


def test_a_mistake_in_a_command_takes_no_number(tmp_path):
    (tmp_path / "nope").mkdir()
    command = [sys.executable, "-m", "multitask.run", "--option", "finetune", "--weights", "nope"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "nope" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_file_in_the_place_of_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").write_text("mine")
    with pytest.raises(InputError, match=r"^runs: cannot be made \(File exists\); choose another --out$"):
        claim(None, "finetune")
