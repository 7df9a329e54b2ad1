"""state.py: what is saved is restored exactly, and a save that is cut off halfway does no harm."""

import errno
import json
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import contents
from safetensors.torch import load_file, save_file
from torch import nn

from minbert import AdamW, files
from minbert.errors import InputError
from minbert.files import write_tensors, write_text
from multitask import state
from multitask.config import Config
from multitask.folder import claim
from multitask.progress import Progress
from multitask.replacement import digests, settle, write_folder
from multitask.state import States

SETTINGS = Config("finetune").settings


class Model(nn.ModuleDict):
    def save(self, folder: Path) -> None:
        write_tensors(folder / "model.safetensors", self.state_dict())


def make(seed: int = 0) -> tuple[Model, AdamW]:
    """Two layers, one of which is never used."""
    torch.manual_seed(seed)
    model = Model({"used": nn.Linear(4, 3), "idle": nn.Linear(4, 2)})
    return model, AdamW(model.parameters(), lr=0.1)


def steps(model, optimizer, count: int) -> None:
    for number in range(count):
        torch.manual_seed(number)
        optimizer.zero_grad()
        model["used"](torch.randn(5, 4)).square().sum().backward()
        optimizer.step()


def write(run, progress: Progress, parts, optimizer) -> None:
    with States(run, parts, optimizer, SETTINGS) as states:
        states.save(progress)


def save(run, *numbers: int) -> None:
    """Save a run's states at these steps, one after another."""
    model, optimizer = make()
    with States(run, {"model": model}, optimizer, SETTINGS) as states:
        for step in numbers:
            steps(model, optimizer, 1)
            states.save(Progress(step))


def load(run, facts: Mapping[str, str] = {}, **settings: Any) -> Progress | None:
    model, optimizer = make()
    return States(run, {"model": model}, optimizer, SETTINGS | settings).load(facts, dict)


def record(epoch: int, step: int, score: float = 0.0) -> dict[str, Any]:
    return {"epoch": epoch, "step": step, "loss": {"all": 1 / 3}, "dev": {"score": score}}


def folders(run) -> list[str]:
    return sorted(path.name for path in (run / "state").iterdir() if path.is_dir())


def test_what_was_saved_comes_back(tmp_path):
    model, optimizer = make()
    steps(model, optimizer, 3)
    progress = Progress(
        step=3,
        seconds=1.7,
        best_score=2 / 3,
        best_epoch=1,
        skipped_in_a_row=2,
        sums={"loss/sentiment": [0.1 + 0.2, 0.1, 2], "loss/भावना": [1.0, 1.0, 1]},
        ratios={"bregman/sentiment/gradient_ratio": [1 / 3]},
        records=[record(1, 3, 2 / 3)],
        facts={"tables": "abc"},
    )
    with States(tmp_path, {"model": model}, optimizer, SETTINGS) as states:
        states.keep_best()
        states.save(progress)
        steps(model, optimizer, 0)

    other, its_optimizer = make(seed=1)
    found = States(tmp_path, {"model": other}, its_optimizer, SETTINGS)
    assert found.load({"tables": "abc"}, dict) == progress
    assert found.best is not None and torch.equal(found.best["used"].weight, model["used"].weight)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not its_optimizer.state[other["idle"].weight]
    for parameter, its in zip(model["used"].parameters(), other["used"].parameters(), strict=True):
        wanted, found = optimizer.state[parameter], its_optimizer.state[its]
        assert found.keys() == wanted.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert found["step"] == 3 and type(found["step"]) is type(wanted["step"])
        assert torch.equal(found["exp_avg"], wanted["exp_avg"])
        assert torch.equal(found["exp_avg_sq"], wanted["exp_avg_sq"])

    steps(model, optimizer, 2)
    steps(other, its_optimizer, 2)
    assert torch.equal(model["used"].weight, other["used"].weight)


def test_every_part_comes_back_and_the_moments_belong_to_the_model(tmp_path):
    """A teacher of the same shape as the model: the two are not mixed up."""
    parts = {"model": make(0)[0], "teacher": make(1)[0]}
    optimizer = AdamW(parts["model"].parameters(), lr=0.1)
    steps(parts["model"], optimizer, 2)
    write(tmp_path, Progress(2), parts, optimizer)
    assert sorted(path.name for path in (tmp_path / "state" / "step-00000002").iterdir()) == [
        "config.toml", "manifest.json", "model.safetensors", "optimizer.safetensors", "progress.json",
        "teacher.safetensors",
    ]  # fmt: skip

    others = {"teacher": make(2)[0], "model": make(3)[0]}
    its_optimizer = AdamW(others["model"].parameters(), lr=0.1)
    assert States(tmp_path, others, its_optimizer, SETTINGS).load({}, dict) == Progress(2)
    for name, module in parts.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(others[name].state_dict()[key], tensor)
    assert its_optimizer.state[others["model"]["used"].weight]["step"] == 2


def test_a_part_that_was_not_saved_is_named(tmp_path):
    save(tmp_path, 1)
    model, optimizer = make()
    with pytest.raises(InputError, match=r"step-00000001: .*teacher\.safetensors"):
        States(tmp_path, {"model": model, "teacher": make()[0]}, optimizer, SETTINGS).load({}, dict)


def test_progress_sums_up_each_term_over_its_own_updates():
    """Two updates of sentiment, with objectives 1 and 3, and one of similarity; skipped updates are counted.
    1 and 3 have mean 2 and variance (1 + 1) / (2 - 1); the ratios .1, .2 and .9 have median .2."""
    progress, ratio = Progress(), "bregman/similarity/gradient_ratio"
    first = {
        "loss/sentiment": 1.0,
        "loss/all": 1.0,
        "smart/sentiment/skipped": 1.0,
        "objective/sentiment": 1.0,
    }
    progress.add(first | {ratio: 0.1}, 0.5)
    progress.add({"loss/similarity": 4.0, "loss/all": 4.0, "objective/similarity": 4.0, ratio: 0.9}, 0.25)
    progress.add(
        first | {"loss/sentiment": 3.0, "loss/all": 4.0, "objective/sentiment": 3.0, ratio: 0.2}, 0.25
    )
    assert (progress.step, progress.seconds, progress.mean("loss/all")) == (3, 1.0, 3.0)
    assert progress.end_epoch() == {
        "loss": {"sentiment": 2.0, "all": 3.0, "similarity": 4.0},
        "smart": {"sentiment": {"skipped": 2}},
        "objective": {
            "sentiment": {"mean": 2.0, "variance": 2.0, "updates": 2},
            "similarity": {"mean": 4.0, "variance": 0.0, "updates": 1},
        },
        "bregman": {"similarity": {"gradient_ratio": 0.2}},
    }
    assert progress == Progress(step=3) and math.isnan(progress.mean("loss/all"))


def test_nothing_saved(tmp_path):
    assert load(tmp_path) is None


def test_the_newest_is_loaded_and_two_are_kept(tmp_path):
    save(tmp_path, 1, 2, 9, 10)
    assert folders(tmp_path) == ["step-00000009", "step-00000010"]
    progress = load(tmp_path)
    assert progress is not None and progress.step == 10


@pytest.mark.parametrize("name", ["step-00000009.partial-0123456789abcdef", "step-00000009.old"])
def test_a_save_that_was_cut_off_is_ignored(tmp_path, name):
    save(tmp_path, 2)
    partial = tmp_path / "state" / name
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    progress = load(tmp_path)
    assert progress is not None and progress.step == 2
    model, optimizer = make()
    states = States(tmp_path, {"model": model}, optimizer, SETTINGS)
    states.load({}, dict)
    states.finish_or_rescue(Progress(9))  # the next save of that step succeeds, and cleans up
    assert folders(tmp_path) == ["step-00000002", "step-00000009"]
    progress = load(tmp_path)
    assert progress is not None and progress.step == 9


@pytest.fixture
def full_disk(monkeypatch):
    """Return a function that makes the disk full, or no longer full, for everything below a folder."""
    full: list[Path] = []
    real = files.write_bytes

    def write_bytes(path, content):
        if any(path.is_relative_to(folder) for folder in full):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    monkeypatch.setattr(files, "write_bytes", write_bytes)
    return full


def test_a_full_disk_costs_a_warning_and_the_next_save_tries_again(tmp_path, full_disk, capsys):
    model, optimizer = make()
    states = States(tmp_path, {"model": model}, optimizer, SETTINGS)
    states.save(Progress(1))
    states.wait()
    full_disk.append(tmp_path)
    for _ in range(3):
        states.save(Progress(2))
        states.wait()
    err = capsys.readouterr().err
    assert (
        err.startswith(f"warning: {tmp_path}: the state cannot be saved") and err.count("No space left") == 1
    )
    assert folders(tmp_path) == ["step-00000001"]  # the half-written state no longer takes space
    full_disk.clear()
    assert states.finish_or_rescue(Progress(3)) == tmp_path
    assert folders(tmp_path) == ["step-00000001", "step-00000003"]
    assert capsys.readouterr().err == ""


def test_a_run_whose_last_state_cannot_be_written_goes_to_another_folder(tmp_path, full_disk, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    model, optimizer = make()
    steps(model, optimizer, 3)
    states = States(tmp_path / "run", {"model": model}, optimizer, SETTINGS)
    states.keep_best()
    full_disk.append(tmp_path / "run")
    place = states.finish_or_rescue(Progress(3, best_epoch=1, records=[record(1, 3)]))
    assert place.parent == tmp_path / "elsewhere"
    assert {"best", "config.toml", "metrics.jsonl", "state"} <= {path.name for path in place.iterdir()}
    assert load(place) == Progress(3, best_epoch=1, records=[record(1, 3)])

    full_disk.append(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(OSError, match="could not be written anywhere"):
        states.finish_or_rescue(Progress(4))


@pytest.mark.parametrize("failing", ["gettempdir", "mkdtemp"])
def test_where_no_other_folder_can_be_made_the_run_stays_as_it_is(tmp_path, full_disk, monkeypatch, failing):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    save(run, 1)
    (run / "notes").write_text("mine")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    model, optimizer = make()
    states = States(run, {"model": model}, optimizer, SETTINGS)
    full_disk.append(tmp_path)
    monkeypatch.setattr(tempfile, failing, fail)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OSError, match="could not be written anywhere"):
        states.finish_or_rescue(Progress(4))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("about", ["state/step", "best"])
def test_a_folder_that_another_run_takes_during_a_save_gets_nothing(tmp_path, monkeypatch, capsys, about):
    """It is taken between two steps of a save: when the state is in place, or the best model."""
    run, real = claim(str(tmp_path / "run"), "finetune"), state.write_folder

    def replace(path, *args):
        real(path, *args)
        if str(path).startswith(f"{run}/{about}") and not (tmp_path / "away").exists():
            run.rename(tmp_path / "away")
            for folder in (run, run / "state", run / "best"):
                folder.mkdir()
                (folder / "theirs").write_text("theirs")

    model, optimizer = make()
    states = States(run, {"model": model}, optimizer, SETTINGS)
    states.keep_best()
    monkeypatch.setattr(state, "write_folder", replace)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = states.finish_or_rescue(Progress(1, best_epoch=1, records=[record(1, 1)]))
    assert place.parent == tmp_path and place.name.startswith("minbert-run-")
    assert sorted(path.name for path in run.rglob("*")) == ["best", "state", "theirs", "theirs", "theirs"]
    assert "was replaced while this run was at work" in capsys.readouterr().err


def test_a_folder_removed_while_the_run_goes_on_is_made_again(tmp_path):
    run = tmp_path / "run"
    model, optimizer = make()
    states = States(run, {"model": model}, optimizer, SETTINGS)
    states.keep_best()
    states.save(Progress(1, best_epoch=1, records=[record(1, 1)]))
    states.wait()
    shutil.rmtree(run)
    assert states.finish_or_rescue(Progress(2, best_epoch=1, records=[record(1, 1)])) == run
    assert sorted(path.name for path in run.iterdir()) == ["best", "config.toml", "metrics.jsonl", "state"]


def test_a_best_model_that_was_changed_on_disk_is_written_again_at_the_end(tmp_path, capsys):
    model, optimizer = make()
    states = States(tmp_path, {"model": model}, optimizer, SETTINGS)
    states.keep_best()
    states.save(Progress(1, best_epoch=1, records=[record(1, 1)]))
    states.wait()
    before = (tmp_path / "best" / "model.safetensors").read_bytes()
    (tmp_path / "best" / "model.safetensors").write_bytes(before[:-1] + b"?")
    states.finish_or_rescue(Progress(1, best_epoch=1, records=[record(1, 1)]))
    assert (tmp_path / "best" / "model.safetensors").read_bytes() == before
    assert "has changed since it was written" in capsys.readouterr().err


def test_the_state_that_is_written_is_that_of_its_step(tmp_path, monkeypatch):
    """The writing thread is held until the training has changed the weights."""
    model, optimizer = make()
    steps(model, optimizer, 1)
    wanted = model["used"].weight.detach().clone()
    moved_on = threading.Event()
    monkeypatch.setattr(state, "write_folder", lambda *args: (moved_on.wait(10), write_folder(*args)))
    with States(tmp_path, {"model": model}, optimizer, SETTINGS) as states:
        states.save(Progress(1))
        steps(model, optimizer, 3)
        moved_on.set()
    other, its_optimizer = make(seed=1)
    assert States(tmp_path, {"model": other}, its_optimizer, SETTINGS).load({}, dict) == Progress(1)
    assert torch.equal(other["used"].weight, wanted)
    assert its_optimizer.state[other["used"].weight]["step"] == 1


NAMES = ["model.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "a bit"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, capsys, name, damage):
    save(tmp_path, 1, 2)
    path = tmp_path / "state" / "step-00000002" / name
    content = path.read_bytes()
    flipped = content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]
    path.unlink() if damage == "missing" else path.write_bytes(
        {"empty": b"", "torn": content[: len(content) // 2], "a bit": flipped}[damage]
    )
    progress = load(tmp_path)
    assert progress is not None and progress.step == 1
    assert capsys.readouterr().err.startswith(f"warning: {path.parent}: ")

    model, optimizer = make()  # the damaged state must not count as a good one
    states = States(tmp_path, {"model": model}, optimizer, SETTINGS)
    assert states.load({}, dict) == Progress(1)
    states.finish_or_rescue(Progress(3))
    assert folders(tmp_path) == ["step-00000001", "step-00000003"]


def test_where_no_state_is_whole_nothing_starts_again(tmp_path):
    save(tmp_path, 1, 2)
    for name in folders(tmp_path):
        (tmp_path / "state" / name / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(
        InputError, match=r"no saved state can be resumed: .*02: .*01: .*another --out"
    ) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "state")
    with pytest.raises(InputError, match="its folder state/ is gone"):
        load(tmp_path)


@pytest.mark.parametrize("manifest", [{"model.safetensors": "0" * 64}, {"format": 1, "files": {}}, []])
def test_states_of_another_version_are_refused_in_one_line(tmp_path, manifest):
    save(tmp_path, 1)
    (tmp_path / "state" / "step-00000001" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"saved by another version of minbert, .* another --out") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"step-00000009", b"\xff\xfe", None])
def test_a_damaged_pointer_costs_nothing(tmp_path, content):
    save(tmp_path, 1, 2)
    pointer = tmp_path / "state" / "latest"
    pointer.unlink() if content is None else pointer.write_bytes(content)
    progress = load(tmp_path)
    assert progress is not None and progress.step == 2


def test_the_pointer_decides(tmp_path):
    """A run cut off between a state and its pointer resumes from the state before."""
    save(tmp_path, 1, 2)
    (tmp_path / "state" / "latest").write_text("step-00000001")
    progress = load(tmp_path)
    assert progress is not None and progress.step == 1


def test_states_of_other_tables_or_settings_are_refused(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(InputError, match="the tables are not what the run was started with"):
        load(tmp_path, {"tables": "other"})
    with pytest.raises(InputError, match="was saved with choose_by = 'score', not 'worst'"):
        load(tmp_path, choose_by="worst")


def test_a_state_of_another_model_is_refused(tmp_path):
    save(tmp_path, 1)
    model = Model({"used": nn.Linear(4, 3)})
    with pytest.raises(InputError, match="no saved state can be resumed"):
        States(tmp_path, {"model": model}, AdamW(model.parameters()), SETTINGS).load({}, dict)


# States whose hashes are right and whose content is wrong


def rehash(state_folder: Path) -> None:
    """Write the manifest that fits what is in a state's folder, as an attacker would."""
    manifest = json.loads((state_folder / "manifest.json").read_text())
    manifest["files"] = digests(state_folder, manifest["files"])
    (state_folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def saved(tmp_path) -> Path:
    """The state of a run of 2 epochs of 2 steps, after step 3."""
    model, optimizer = make()
    steps(model, optimizer, 3)
    progress = Progress(
        3, 0.5, 0.25, 1, 0, {"loss/all": [1.0, 1.0, 1]}, {}, [record(1, 2, 0.25)], {"tables": "a"}
    )
    with States(tmp_path, {"model": model}, optimizer, SETTINGS | {"steps_per_epoch": 2}) as states:
        states.keep_best()
        states.save(progress)
    assert load(tmp_path, {"tables": "a"}, steps_per_epoch=2) == progress
    return tmp_path / "state" / "step-00000003"


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.clear(),
        lambda values: values.update(step="3"),
        lambda values: values.update(step=-1),
        lambda values: values.update(step=5),
        lambda values: values.update(step=1),
        lambda values: values.update(step=2**70),
        lambda values: values.update(seconds=float("nan")),
        lambda values: values.update(colour=1),
        lambda values: values.pop("sums"),
        lambda values: values.update(best_epoch=2),
        lambda values: values.update(best_score=0.75),
        lambda values: values.update(skipped_in_a_row=4),
        lambda values: values.update(sums=[]),
        lambda values: values.update(sums={"loss/all": [1.0, 1.0]}),
        lambda values: values.update(sums={"loss/all": [1.0, -1.0, 1]}),
        lambda values: values.update(sums={"loss/all": [1.0, 1.0, 0]}),
        lambda values: values.update(sums={"loss/all": 3}),
        lambda values: values.update(sums={"loss": [1.0, 1.0, 1], "loss/all": [1.0, 1.0, 1]}),
        lambda values: values.update(sums={"loss": [1.0, 1.0, 1]}),
        lambda values: values.update(ratios={"bregman/x/gradient_ratio": ["1"]}),
        lambda values: values.update(ratios={"bregman/x/gradient_ratio": []}),
        lambda values: values.update(ratios={"x": [1.0]}),
        lambda values: values.update(records={}),
        lambda values: values.update(records=[3]),
        lambda values: values.update(records=[]),
        lambda values: values.update(records=values["records"] * 2),
        lambda values: values["records"][0].update(epoch=2),
        lambda values: values["records"][0].update(step=True),
        lambda values: values["records"][0].update(dev=1),
        lambda values: values["records"][0].update(loss={"all": float("inf")}),
        lambda values: values["records"][0].update(note="\x1b[2J"),
        lambda values: values.update(facts={"tables": "b"}),
        lambda values: values.update(facts={"tables": "a", "more": "b"}),
        lambda values: values.update(facts=["tables"]),
    ],
)  # fmt: skip
def test_a_progress_that_cannot_be_is_refused_in_a_line(saved, change):
    values = json.loads((saved / "progress.json").read_text())
    change(values)
    (saved / "progress.json").write_text(json.dumps(values))
    rehash(saved)
    with pytest.raises(
        InputError, match=r"no saved state can be resumed: .*step-00000003: .*another --out"
    ) as caught:
        load(saved.parent.parent, {"tables": "a"}, steps_per_epoch=2)
    assert "\n" not in str(caught.value) and "changed since" not in str(caught.value)


@pytest.mark.parametrize(
    "file, change",
    [
        ("model", lambda tensors: tensors["used.weight"][0].fill_(math.nan)),
        ("model", lambda tensors: tensors.update({"used.weight": torch.ones(4, 3)})),
        ("model", lambda tensors: tensors.update({"used.weight": torch.ones(3, 4, dtype=torch.float64)})),
        ("model", lambda tensors: tensors.pop("idle.bias")),
        ("model", lambda tensors: tensors.update(more=torch.ones(1))),
        ("best", lambda tensors: tensors["used.bias"].fill_(math.inf)),
        ("optimizer", lambda tensors: tensors["used.weight/exp_avg"].fill_(math.nan)),
        ("optimizer", lambda tensors: tensors["used.weight/exp_avg_sq"].fill_(-1)),
        ("optimizer", lambda tensors: tensors["used.weight/step"].fill_(4)),
        ("optimizer", lambda tensors: tensors["used.weight/step"].fill_(0.5)),
        ("optimizer", lambda tensors: tensors.pop("used.weight/exp_avg")),
        ("optimizer", lambda tensors: tensors.clear()),
        ("optimizer", lambda tensors: tensors.update({"other/step": torch.ones(())})),
        ("optimizer", lambda tensors: tensors.update({"used.bias/exp_avg": torch.ones(4)})),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be_are_refused_in_a_line(saved, file, change):
    tensors = load_file(saved / f"{file}.safetensors")
    change(tensors)
    save_file(tensors, saved / f"{file}.safetensors")
    rehash(saved)
    with pytest.raises(InputError, match=rf"step-00000003: {file}\.safetensors") as caught:
        load(saved.parent.parent, {"tables": "a"}, steps_per_epoch=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["manifest.json", "progress.json", "config.toml", "model.safetensors", "../latest"]
)
@pytest.mark.parametrize("kind", ["pipe", "giant", "link", "folder"])
def test_what_is_no_file_of_a_state_is_neither_waited_for_nor_read(saved, name, kind):
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(content)
        os.truncate(path, 1 << 40)
    if name == "../latest":
        assert load(saved.parent.parent, {"tables": "a"}, steps_per_epoch=2) is not None
        return
    reason = r"not a regular file|no such file|larger than|Is a directory|[Hh]eader"
    with pytest.raises(InputError, match=rf"no saved state can be resumed: \S*: .*({reason})"):
        load(saved.parent.parent, {"tables": "a"}, steps_per_epoch=2)


@pytest.mark.parametrize("names", [["step-00000003"], ["step-00000003", "step-00000004"]])
def test_what_a_link_leads_to_is_never_removed(saved, tmp_path, names):
    """States that are links to somebody's folders are neither read nor removed."""
    run, victim = tmp_path, tmp_path / "victim"
    saved.rename(victim)
    for name in names:
        (run / "state" / name).symlink_to(victim)
    before = contents(victim)
    assert load(run / "nothing") is None
    with pytest.raises(InputError, match="its folder state/ is gone"):
        load(run, {"tables": "a"}, steps_per_epoch=2)
    model, optimizer = make()
    with States(run, {"model": model}, optimizer, SETTINGS) as states:
        for step in (5, 6, 7):
            states.save(Progress(step))
    assert contents(victim) == before
    assert all((run / "state" / name).is_symlink() for name in names)


def test_write_folder_replaces_the_whole_folder(tmp_path):
    path = tmp_path / "best"
    write_folder(path, lambda folder: (folder / "a").write_text("1"), "ab")
    write_folder(path, lambda folder: (folder / "b").write_text("2"), "ab")
    assert [file.name for file in path.iterdir()] == ["b"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["best"]


def test_write_folder_keeps_the_old_one_until_the_new_is_whole(tmp_path):
    path = tmp_path / "best"
    write_folder(path, lambda folder: (folder / "a").write_text("1"), "ab")

    def fail(folder):
        (folder / "b").write_text("half")
        assert (path / "a").read_text() == "1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(path, fail, "ab")
    assert [file.name for file in path.iterdir()] == ["a"]
    write_folder(path, lambda folder: (folder / "c").write_text("3"), "abc")  # over the leftovers
    assert [folder.name for folder in tmp_path.iterdir()] == ["best"]


def test_settle_undoes_a_replacement_that_was_cut_off_between_its_renames(tmp_path):
    path, old = tmp_path / "best", tmp_path / "best.old"
    old.mkdir()
    (old / "a").write_text("1")
    settle(path, "a")
    assert (path / "a").read_text() == "1" and not old.exists()

    old.mkdir()  # the new one is in place, so the old one is only a leftover
    (old / "a").write_text("0")
    (old / "notes").write_text("mine")
    settle(path, "a")
    assert contents(path) == {"a": b"1", "notes": b"mine"} and not old.exists()
    settle(tmp_path / "nothing", "a")
    assert not (tmp_path / "nothing").exists()


def test_write_text_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_text(path, "one\n")
    write_text(path, "two\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "two\n"
