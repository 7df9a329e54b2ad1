"""--option inspect: from a folder of tables to a task file that trains as it is."""

import gzip
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from helpers import WORDS, sentence

from minbert import hub
from minbert.errors import InputError
from multitask import inspecting
from multitask.data.tasks import BUILT_IN, read_task_file
from multitask.run import main
from multitask.saved import start_folder


def rows_of(count, row):
    return "".join(f"{row(number)}\n" for number in range(count))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The three files of a practitioner: reviews, question pairs and scores; and two that are none."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my tables"
    folder.mkdir()
    moods = ["negative", "neutral", "positive"]
    reviews = rows_of(90, lambda n: f'{n},"{sentence(n)}, ""{WORDS[n % 20]}"" {n}",{moods[n % 3]}')
    (folder / "reviews.csv").write_text(f"id,review,mood\n{reviews}")
    for split, count in (("train", 40), ("dev", 20), ("test", 5)):
        same = {} if split == "test" else {"same": True}
        pairs = rows_of(count, lambda n, split=split, same=same: json.dumps({
            "question1": f"how {sentence(n)} {split} {n}", "question2": f"what {sentence(n + 7)}",
            **dict.fromkeys(same, n % 2 == 0),
        }))  # fmt: skip
        (folder / f"pairs-{split}.jsonl").write_text(pairs)
    essays = rows_of(60, lambda n: f"{sentence(n)} essay {n};{n % 10 + 1}")
    (folder / "essays_train.csv.gz").write_bytes(gzip.compress(f"essay;score\n{essays}".encode()))
    (folder / "prices.csv").write_text("sku,price\na,1\n")
    (folder / "notes.txt").write_text("buy milk")
    return folder


def inspect(tiny, *words) -> int:
    return main(["--option", "inspect", *map(str, words), "--weights", str(tiny)])


def test_the_task_file_and_the_next_command_work_as_they_are(folder, tiny, capsys):
    assert inspect(tiny, "--data", folder) == 0
    out = capsys.readouterr().out
    tasks = read_task_file(Path("tasks.toml"))
    kinds = {name: (task.kind.name, task.label, task.texts) for name, task in tasks.items()}
    assert kinds == {
        "essays": ("regression", "score", ("essay",)),
        "pairs": ("binary", "same", ("question1", "question2")),
        "reviews": ("classification", "mood", ("review",)),
    }
    assert f"note: {folder / 'notes.txt'}: is in no format of tables" in out
    assert f"note: {folder / 'prices.csv'}: no column looks like texts" in out
    words = shlex.split(out.splitlines()[-1])
    assert words[2:6] == ["multitask.run", "finetune", "--data", str(folder)]
    assert "--skip-bad-rows" not in words
    words += ["--epochs", "1", "--steps-per-epoch", "3", "--threads", "1", "--out", "run"]
    assert main(words[3:]) == 0
    assert set(json.loads(Path("run/result.json").read_text())["dev"]) >= {"essays", "pairs", "reviews"}


def test_an_existing_file_is_kept_and_a_task_file_checked(folder, tiny, capsys):
    Path("mine.toml").write_text("mine")
    assert inspect(tiny, "--data", folder, "--out", "mine.toml") == 2
    assert Path("mine.toml").read_text() == "mine" and "replace it with --force" in capsys.readouterr().err
    assert inspect(tiny, "--data", folder, "--out", "mine.toml", "--force") == 0
    written = Path("mine.toml").read_text()
    assert inspect(tiny, "--data", folder, "--task-file", "mine.toml") == 0
    assert Path("mine.toml").read_text() == written and not Path("tasks.toml").exists()
    assert "checked" in capsys.readouterr().out
    assert inspect(tiny, "--data", folder, "--task-file", "mine.toml", "--force") == 2


def test_a_bad_file_ends_in_one_line_and_the_others_are_inspected(folder, tiny, capsys):
    (folder / "bad.csv").write_text('text,label\n"never closed,1\n')
    (folder / "broken.jsonl").write_text('{"text": "some words", "label": 1}\n{"text":\n')
    with (folder / "reviews.csv").open("a") as file:
        file.write("90,,neutral\n")
    assert inspect(tiny, "--data", folder, "--json") == 2
    out, err = capsys.readouterr()
    found, lines = json.loads(out), err.splitlines()
    assert f"error: {folder / 'bad.csv'}:2: a quote" in lines[0] and len(lines) == 3
    assert lines[1].startswith(f"{folder / 'broken.jsonl'}:2: not a JSON object")
    assert lines[2].startswith(f"{folder / 'reviews.csv'}:92: review is empty; ")
    assert found["errors"] == err.removeprefix("error: ").splitlines()
    assert list(found["tasks"]) == ["essays", "pairs", "reviews"] and "--skip-bad-rows" in found["next"]
    assert inspect(tiny, "--data", folder, "--task-file", "tasks.toml", "--skip-bad-rows") == 0


def test_what_cannot_be_read_is_left_out_of_the_next_command(folder, tiny, capsys):
    assert inspect(tiny, "--data", folder) == 0
    (folder / "pairs-dev.jsonl").unlink()
    capsys.readouterr()
    assert inspect(tiny, "--data", folder, "--task-file", "tasks.toml", "--json") == 2
    assert "--tasks essays,reviews" in json.loads(capsys.readouterr().out)["next"]


def test_labels_to_be_fixed_are_not_skipped_by_the_next_command(folder, tiny, capsys):
    assert inspect(tiny, "--data", folder) == 0
    described = Path("tasks.toml").read_text()
    assert 'labels = ["false", "true"]' in described
    Path("tasks.toml").write_text(described.replace('"neutral"', '"neutrall"'))
    capsys.readouterr()
    assert inspect(tiny, "--data", folder, "--task-file", "tasks.toml", "--json") == 2
    out, err = capsys.readouterr()
    assert "(did you mean neutrall?)" in err and err.count("\n") == 1
    assert (
        "--tasks essays,pairs" in json.loads(out)["next"] and "--skip-bad-rows" not in json.loads(out)["next"]
    )


def test_the_keys_for_programs(folder, tiny, capsys):
    assert inspect(tiny, "--data", folder, "--json", "--max-length", "4000") == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        "data", "task_file", "tokenizer", "max_length", "tasks", "notes", "errors", "next"
    ]  # fmt: skip
    assert found["max_length"] == 512  # the most that the model reads
    task = found["tasks"]["reviews"]
    assert list(task) == ["definition", "tables", "findings"]
    assert task["definition"]["labels"] == ["negative", "neutral", "positive"]
    assert list(task["tables"]) == ["train", "dev"]
    assert list(task["tables"]["train"]) == ["file", "rows", "bad", "empty", "labels", "lengths"]
    assert list(task["tables"]["train"]["lengths"]) == ["rows", "median", "most", "longest", "cut", "unknown"]
    assert list(task["findings"][0]) == ["level", "code", "message", "rows", "places"]


def test_the_shipped_sample_gives_the_built_in_tasks(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert inspect(tiny, "--data", Path(inspecting.__file__).parent / "data" / "sample") == 0
    assert read_task_file(Path("tasks.toml")) == BUILT_IN


def test_words_are_counted_where_the_default_tokenizer_cannot_be_had(folder, tiny, monkeypatch, capsys):
    def offline(*_):
        raise InputError("no network")

    monkeypatch.setattr(hub, "resolve_tokenizer", offline)
    assert main(["inspect", "--data", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["tokenizer"] == "words" and "no network; so words and signs are counted" in err
    assert json.loads(out)["tasks"]["essays"]["tables"]["train"]["lengths"]["longest"] == 10
    assert inspect(tiny, "--data", folder, "--force") == 2  # a tokenizer that was named is needed


def test_a_run_names_a_tokenizer_as_it_does_in_training(folder, tiny, capsys):
    """A run's best/, but not where a checkpoint has the folder's name."""
    for name in ("run", hub.DEFAULT):
        shutil.copytree(tiny, folder.parent / name / "best")
    assert main(["inspect", "--data", str(folder), "--weights", "run", "--json"]) == 0
    assert start_folder("run") == Path("run/best") and start_folder(hub.DEFAULT) == hub.DEFAULT
    assert start_folder(f"./{hub.DEFAULT}") == Path(hub.DEFAULT, "best")


@pytest.mark.parametrize("words, problem", [
    ([], "--option inspect needs --data"), (["--data", "none"], "--data: .*none is not a folder"),
    (["--data", "."], "no table for a task was found"),
    (["--data", ".", "--pooling", "cls"], "--option inspect does not use --pooling"),
])  # fmt: skip
def test_mistakes(words, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *words]) == 2
    assert re.search(problem, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
