"""state.py: what is saved comes back to the bit, and what was cut off half-way does no harm."""

import json

import pytest
import torch
from torch import nn

from minbert import AdamW
from minbert.errors import InputError
from minbert.files import recover_folder, write_folder, write_text
from multitask import state
from multitask.state import Progress


def make(seed: int = 0) -> tuple[nn.ModuleDict, AdamW]:
    """Two layers, of which one stays idle."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "idle": nn.Linear(4, 2)})
    return model, AdamW(model.parameters(), lr=0.1)


def steps(model, optimizer, count: int) -> None:
    for number in range(count):
        torch.manual_seed(number)
        optimizer.zero_grad()
        model["used"](torch.randn(5, 4)).square().sum().backward()
        optimizer.step()


def save(run, step: int) -> None:
    model, optimizer = make()
    steps(model, optimizer, step)
    state.save(run, Progress(step), {"model": model}, optimizer)


def load(run, seed: int = 0) -> Progress | None:
    model, optimizer = make(seed)
    return state.load(run, {"model": model}, optimizer)


def folders(run) -> list[str]:
    return sorted(path.name for path in (run / "state").iterdir())


def test_what_was_saved_comes_back(tmp_path):
    model, optimizer = make()
    steps(model, optimizer, 3)
    progress = Progress(3, {"loss/sentiment": [0.1 + 0.2, 2]}, 1.7, 2 / 3, 1, [{"loss": 1 / 3}], "abc")
    state.save(tmp_path, progress, {"model": model}, optimizer)

    other, its_optimizer = make(seed=1)
    assert state.load(tmp_path, {"model": other}, its_optimizer) == progress
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
    """A teacher beside the model, of the same shape: neither takes the other's place."""
    parts = {"model": make(0)[0], "teacher": make(1)[0]}
    optimizer = AdamW(parts["model"].parameters(), lr=0.1)
    steps(parts["model"], optimizer, 2)
    state.save(tmp_path, Progress(2), parts, optimizer)
    assert sorted(path.name for path in (tmp_path / "state" / "step-00000002").iterdir()) == [
        "model.safetensors", "optimizer.safetensors", "progress.json", "teacher.safetensors"
    ]  # fmt: skip

    others = {"teacher": make(2)[0], "model": make(3)[0]}
    its_optimizer = AdamW(others["model"].parameters(), lr=0.1)
    assert state.load(tmp_path, others, its_optimizer) == Progress(2)
    for name, module in parts.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(others[name].state_dict()[key], tensor)
    assert its_optimizer.state[others["model"]["used"].weight]["step"] == 2


def test_a_part_that_was_not_saved_is_named(tmp_path):
    save(tmp_path, 1)
    model, optimizer = make()
    with pytest.raises(InputError, match=r"not a whole state .*teacher\.safetensors"):
        state.load(tmp_path, {"model": model, "teacher": make()[0]}, optimizer)


def test_progress_gives_each_terms_mean_over_its_own_updates():
    """sentiment in two updates, 1 and 3; similarity in one; what was skipped is counted."""
    progress = Progress()
    progress.add({"loss/sentiment": 1.0, "loss/all": 1.0, "smart/sentiment/skipped": 1.0}, 0.5)
    progress.add({"loss/similarity": 4.0, "loss/all": 4.0}, 0.25)
    progress.add({"loss/sentiment": 3.0, "loss/all": 4.0, "smart/sentiment/skipped": 1.0}, 0.25)
    assert (progress.step, progress.seconds) == (3, 1.0)
    assert progress.means() == {
        "loss": {"sentiment": 2.0, "all": 3.0, "similarity": 4.0},
        "smart": {"sentiment": {"skipped": 2}},
    }


def test_nothing_saved(tmp_path):
    assert load(tmp_path) is None


def test_the_newest_is_loaded_and_two_are_kept(tmp_path):
    for step in (1, 2, 9, 10):
        save(tmp_path, step)
    assert folders(tmp_path) == ["step-00000009", "step-00000010"]
    progress = load(tmp_path)
    assert progress is not None and progress.step == 10


@pytest.mark.parametrize("name", ["step-00000009.partial", "step-00000009.old", "step-x", "other"])
def test_a_save_that_was_cut_off_is_ignored(tmp_path, name):
    save(tmp_path, 2)
    partial = tmp_path / "state" / name
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    progress = load(tmp_path)
    assert progress is not None and progress.step == 2
    save(tmp_path, 9)  # and the next save of that step goes through
    assert {"step-00000002", "step-00000009"} <= set(folders(tmp_path))
    progress = load(tmp_path)
    assert progress is not None and progress.step == 9


def test_a_save_that_fails_leaves_the_state_before(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(state.json, "dumps", fail)
    with pytest.raises(OSError):
        save(tmp_path, 2)
    progress = load(tmp_path)
    assert progress is not None and progress.step == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("share", [None, 0, 0.5, 0.99])
def test_a_torn_state_is_named(tmp_path, name, share):
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "state" / "step-00000002" / name
    content = path.read_bytes()
    path.unlink() if share is None else path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="^" + str(path.parent) + ": not a whole state") as caught:
        load(tmp_path)
    assert "delete that folder to go on from the one before" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_progress_of_another_version_is_named(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "state" / "step-00000001" / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": 1}))
    with pytest.raises(InputError, match="not a whole state"):
        load(tmp_path)


def test_the_state_of_another_model_is_refused(tmp_path):
    save(tmp_path, 1)
    model = nn.ModuleDict({"used": nn.Linear(4, 3)})
    with pytest.raises(InputError, match="not a whole state"):
        state.load(tmp_path, {"model": model}, AdamW(model.parameters()))


def test_write_folder_replaces_the_whole_folder(tmp_path):
    path = tmp_path / "best"
    write_folder(path, lambda folder: (folder / "a").write_text("1"))
    write_folder(path, lambda folder: (folder / "b").write_text("2"))
    assert [file.name for file in path.iterdir()] == ["b"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["best"]


def test_write_folder_keeps_the_old_one_until_the_new_is_whole(tmp_path):
    path = tmp_path / "best"
    write_folder(path, lambda folder: (folder / "a").write_text("1"))

    def fail(folder):
        (folder / "b").write_text("half")
        assert (path / "a").read_text() == "1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(path, fail)
    assert [file.name for file in path.iterdir()] == ["a"]
    write_folder(path, lambda folder: (folder / "c").write_text("3"))  # over the leftovers
    assert [folder.name for folder in tmp_path.iterdir()] == ["best"]


def test_recover_folder_undoes_a_replacement_that_was_cut_off_between_its_renames(tmp_path):
    path, old = tmp_path / "best", tmp_path / "best.old"
    old.mkdir()
    (old / "a").write_text("1")
    recover_folder(path)
    assert (path / "a").read_text() == "1" and not old.exists()

    old.mkdir()  # the new one is in its place: the old one is only a leftover
    recover_folder(path)
    assert (path / "a").read_text() == "1"
    recover_folder(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_write_text_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_text(path, "one\n")
    write_text(path, "two\n")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text() == "two\n"
