"""A finished run: its state goes, its last lines say what comes next, and --resume leaves it alone."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import contents, write_tables

from multitask import MultitaskBert, finished, train
from multitask.command_line import resolve
from multitask.config import Config
from multitask.data import tasks
from multitask.run import main


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny) -> list[str]:
    data = write_tables(tmp_path_factory.mktemp("finished") / "data")
    words = f"--option finetune --weights {tiny} --data {data} --tasks sentiment --threads 1"
    return [*words.split(), *["--epochs", "2", "--schedule", "constant", "--warmup", "0"]]


@pytest.fixture(scope="module")
def done(words, tmp_path_factory) -> Path:
    """A finished run without its state; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "my run"
    assert main([*words, "--out", str(run)]) == 0
    return run


@pytest.fixture
def kept(words, tmp_path) -> Path:
    assert main([*words, "--keep-state", "--out", str(tmp_path / "kept")]) == 0
    return tmp_path / "kept"


def test_a_finished_run_holds_no_state_unless_it_is_kept(done, kept):
    assert not (done / "state").exists() and (done / "result.json").is_file()
    assert (kept / "state" / "latest").is_file()
    assert contents(done / "best") == contents(kept / "best")


def test_its_last_lines_name_the_model_and_commands_that_can_be_pasted(words, tmp_path, capsys):
    run = tmp_path / "my run"
    assert main([*words, "--no-report", "--out", str(run)]) == 0
    *_, holds, predict, serve, export = capsys.readouterr().out.splitlines()
    assert holds.startswith(f"{run} holds best/, the model of epoch ") and "predictions/" in holds
    for line, option in ((predict, "predict"), (serve, "serve"), (export, "export")):
        _, flag, name, *rest = shlex.split(line)
        config = resolve(rest)
        assert isinstance(config, Config)
        assert (flag, name, config.option, config.runs.run) == ("-m", "multitask.run", option, (str(run),))


def test_the_command_after_mnrl_has_its_task_file_and_its_pooling(words, tmp_path, capsys):
    task_file = str(shutil.copy(Path(tasks.__file__).with_name("paper.toml"), tmp_path))
    changed = ["--task-file", task_file, "--pooling", "cls", "--max-length", "16"]
    run = str(tmp_path / "run")
    assert main(["mnrl", *words[2:], *changed, "--steps-per-epoch", "1", "--no-report", "--out", run]) == 0
    next_command = shlex.split(capsys.readouterr().out.splitlines()[-3])
    small = ["--tasks", "sentiment", "--epochs", "1", "--steps-per-epoch", "1", "--threads", "1"]
    assert main([*next_command[3:], *small, "--no-report", "--out", str(tmp_path / "next")]) == 0


def test_resume_says_in_a_line_that_it_is_finished(done, monkeypatch, capsys):
    before = contents(done / "best"), (done / "result.json").read_bytes()
    monkeypatch.setattr(train, "update", None)
    capsys.readouterr()
    assert main(["--resume", "--out", str(done)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{done}: is finished, nothing to resume; dev sentiment accuracy 0.")
    assert (out.count("\n"), err) == (1, "")
    assert before == (contents(done / "best"), (done / "result.json").read_bytes())


def test_more_epochs_need_the_state(done, kept, capsys):
    assert main(["--resume", "--out", str(done), "--epochs", "3"]) == 2
    err = capsys.readouterr().err
    assert "is finished and has no state/" in err and "--init" in err and err.count("\n") == 1
    assert main(["--resume", "--out", str(kept), "--epochs", "3"]) == 0
    assert (kept / "metrics.jsonl").read_text().count("\n") == 3


def test_a_state_that_a_kill_has_left_goes_on_resume(words, tmp_path, monkeypatch, capsys):
    """The kill comes when the result is written and one file of a state is gone."""
    run = tmp_path / "run"

    def killed(states: Path) -> None:
        (states / "step-00000002" / "manifest.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finished, "remove_states", killed)
        assert main([*words, "--steps-per-epoch", "1", "--out", str(run)]) == 130
    assert (run / "result.json").is_file() and (run / "state").is_dir()
    assert main(["--resume", "--out", str(run)]) == 0
    assert "is finished" in capsys.readouterr().out and not (run / "state").exists()


def test_what_is_not_the_runs_own_stays_in_state(kept):
    (kept / "state" / "mine.txt").write_text("mine")
    assert main(["--resume", "--no-keep-state", "--out", str(kept)]) == 0
    assert sorted(os.listdir(kept / "state")) == [".minbert", "latest", "mine.txt"]


def test_a_damaged_model_is_restored_from_a_kept_state(done, kept, tmp_path, capsys):
    (kept / "best" / "heads.safetensors").unlink()
    assert main(["--resume", "--out", str(kept)]) == 0
    assert MultitaskBert.load(kept).tasks
    damaged = shutil.copytree(done, tmp_path / "damaged")
    (damaged / "best" / "heads.safetensors").unlink()
    assert main(["--resume", "--out", str(damaged)]) == 2
    assert "heads.safetensors" in capsys.readouterr().err


def test_a_state_that_cannot_be_removed_is_a_warning(words, tmp_path, monkeypatch, capsys):
    def fail(states: Path) -> None:
        raise PermissionError(13, "Permission denied", str(states))

    monkeypatch.setattr(finished, "remove_states", fail)
    assert main([*words, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert "state: cannot be removed" in capsys.readouterr().err


def test_a_finished_stage_of_a_recipe_loses_what_a_kill_has_left(words, tmp_path, monkeypatch):
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text('[stages.only]\noption = "finetune"\n')
    shared = ["--recipe", str(recipe), *words[2:], "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setattr(finished, "remove_states", lambda states: None)
        assert main(shared) == 0
    assert (out / "only" / "state").is_dir()
    assert main(["--resume", "--out", str(out)]) == 0
    assert not (out / "only" / "state").exists() and (out / "only" / "best").is_dir()
