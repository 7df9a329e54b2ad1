"""files.py: whole files or none, and never through a link."""

import os
import stat
from pathlib import Path

import pytest
import torch
from helpers import contents

from minbert import files
from minbert.files import (
    is_piece,
    make_folder,
    named_folder,
    partial_path,
    remove,
    rename,
    sweep,
    write_content,
    write_tensors,
    write_text,
)

HEX = "0123456789abcdef"


@pytest.fixture(params=[True, False], ids=["held open", "by path"])
def system(request, monkeypatch) -> bool:
    """Also as on a system that cannot hold a folder open."""
    if not request.param:
        monkeypatch.setattr(files, "HOLDS_FOLDERS_OPEN", False)
    return request.param


def write(path: Path) -> None:
    write_tensors(path, {"x": torch.ones(2)}) if path.suffix == ".safetensors" else write_text(path, "new\n")


@pytest.fixture
def victim(tmp_path) -> Path:
    """Somebody's folder outside of that which is written to."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "profile").write_text("mine")
    return folder


@pytest.mark.parametrize("name", ["a.txt", "a.safetensors"])
def test_a_file_is_replaced_with_the_mode_of_a_new_one_and_nothing_beside_it(system, tmp_path, name):
    (tmp_path / name).write_text("old")
    (tmp_path / name).chmod(0o600)
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name] and (tmp_path / name).read_bytes() != b"old"
    (tmp_path / "other").touch()
    assert (tmp_path / name).stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["a.txt", "a.safetensors"])
def test_a_link_is_replaced_and_what_it_leads_to_stays(system, tmp_path, victim, name):
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(victim / "profile")
    write(run / name)
    assert (run / name).is_file() and not (run / name).is_symlink()
    assert contents(victim) == {"profile": b"mine"}


@pytest.mark.parametrize("name", ["a.txt", "a.safetensors"])
def test_a_folder_that_is_a_link_is_not_written_to(system, tmp_path, victim, name):
    (tmp_path / "predictions").symlink_to(victim)
    with pytest.raises(OSError, match="is a symbolic link, which is not followed"):
        write(tmp_path / "predictions" / name)
    with pytest.raises(OSError, match="is a symbolic link, which is not followed"):
        make_folder(tmp_path / "predictions")
    remove(tmp_path / "predictions", ["profile"])
    sweep(tmp_path / "predictions")
    assert contents(victim) == {"profile": b"mine"}


def test_a_folder_that_the_user_names_may_be_a_link(tmp_path, victim):
    (tmp_path / "runs").symlink_to(victim)
    write_text(named_folder(tmp_path / "runs") / "a.txt", "new")
    assert contents(victim) == {"profile": b"mine", "a.txt": b"new"}
    assert named_folder(tmp_path / "x" / "y") == tmp_path / "x" / "y" and (tmp_path / "x" / "y").is_dir()


def test_where_a_file_is_written_first_cannot_be_foreseen(tmp_path):
    paths = {partial_path(tmp_path / "a.txt") for _ in range(100)}
    assert len(paths) == 100
    assert all(path.parent == tmp_path and is_piece(path.name, ["a.txt"]) for path in paths)


@pytest.mark.parametrize("name", ["a.txt", "a.safetensors"])
def test_a_file_that_is_there_is_never_opened_for_writing(system, tmp_path, victim, monkeypatch, name):
    """Should somebody foresee the name all the same."""
    monkeypatch.setattr(files, "partial_path", lambda path: path.with_name("foreseen"))
    (tmp_path / "foreseen").symlink_to(victim / "profile")
    with pytest.raises(FileExistsError):
        write(tmp_path / name)
    assert contents(victim) == {"profile": b"mine"}


@pytest.mark.parametrize("failing", ["write_bytes", "flush", "rename"])
def test_what_cannot_be_finished_leaves_nothing_behind(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        write_content(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_swapped_meanwhile_gets_nothing(tmp_path, victim, monkeypatch):
    """Between writing and renaming, the folder becomes a link to another."""
    run, real = tmp_path / "run", files.flush
    run.mkdir()

    def swap(path):
        real(path)
        run.rename(tmp_path / "away")
        run.symlink_to(victim)

    monkeypatch.setattr(files, "flush", swap)
    with pytest.raises(OSError):
        write_text(run / "profile", "new")
    assert contents(victim) == {"profile": b"mine"}


def test_remove_takes_known_pieces_alone(system, tmp_path, victim):
    folder = tmp_path / "state"
    folder.mkdir()
    for name in ("a", f"a.partial-{HEX}", ".tmpXy1234", "notes", f"notes.partial-{HEX}"):
        (folder / name).write_text("x")
    (folder / "b").symlink_to(victim / "profile")
    (folder / "c").mkdir()
    remove(folder, ["a", "b", "c"])
    assert sorted(os.listdir(folder)) == ["c", "notes", f"notes.partial-{HEX}"]
    assert contents(victim) == {"profile": b"mine"}
    (folder / "c").rmdir()
    remove(folder, ["notes"])
    assert not folder.exists()
    remove(folder, ["notes"])  # nothing left to do


def test_sweep_takes_unfinished_files_alone(tmp_path):
    for name in ("a", "a.partial", f"a.partial-{HEX}", f"b.partial-{HEX[:-1]}"):
        (tmp_path / name).write_text("x")
    (tmp_path / f"best.partial-{HEX}").mkdir()
    sweep(tmp_path)
    names = ["a", "a.partial", f"b.partial-{HEX[:-1]}", f"best.partial-{HEX}"]
    assert sorted(os.listdir(tmp_path)) == names


def test_rename_replaces_a_file_and_not_a_folder_with_something_in_it(system, tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    rename(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path) == {"b": b"1"}
    assert stat.S_ISREG((tmp_path / "b").stat().st_mode)
