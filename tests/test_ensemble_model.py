"""ensemble_model.py: an ensemble used like any run, its file, and folders that are moved."""

import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch
from helpers import ROOT, make_model, sentence, write_tables

from minbert.errors import InputError
from multitask import MultitaskBert, load
from multitask.data.tables import read_split
from multitask.data.tasks import BUILT_IN, PARAPHRASE, SENTIMENT, SIMILARITY
from multitask.ensemble_model import ENSEMBLE, Ensemble, Panel, distinct_runs, read_ensemble, write_ensemble
from multitask.run import main

SINGLES = [sentence(number) for number in range(9)]
PAIRS = [(sentence(number), sentence(number + 30)) for number in range(9)]


def said_by(capsys, *words: object) -> str:
    """Return what a successful command prints."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 0
    return capsys.readouterr().out


def refused(capsys, *words: object) -> str:
    """Return the one-line error with which a command fails."""
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


@pytest.fixture(scope="module")
def members(tmp_path_factory, tiny) -> Path:
    """Two models that have only sentiment in common: `a` reads at most 12 tokens and has paraphrase, `b`
    pools differently and has similarity. Tests must not change them."""
    folder = tmp_path_factory.mktemp("members")
    a = make_model(tiny, {task.name: task for task in (SENTIMENT, PARAPHRASE)}, max_length=12)
    b = make_model(tiny, {task.name: task for task in (SENTIMENT, SIMILARITY)}, pooling="cls")
    for name, model in (("a", a), ("b", b)):
        for head in model.heads.values():
            torch.nn.init.normal_(head.weight)
        model.save(folder / name / "best")
    return folder


PANELS = {
    "sentiment": Panel(SENTIMENT, 0.5, ("../a", "../b/best"), (3.0, 1.0)),
    "paraphrase": Panel(PARAPHRASE, 0.0, ("../a",), (1.0,)),
    "similarity": Panel(SIMILARITY, 0.0, ("../b/best",), (1.0,)),
}


@pytest.fixture
def both(members, tmp_path) -> Path:
    """An ensemble of copies of the two members."""
    shutil.copytree(members, tmp_path / "runs")
    folder = tmp_path / "runs" / "both"
    folder.mkdir()
    write_ensemble(folder, PANELS)
    return folder


# As a model


def test_probabilities_are_the_members_weighted_mean(both, members):
    """3/4 of a's and 1/4 of b's, each with its own tokens; a task with one member is predicted by that
    one."""
    a, b, ensemble = load(members / "a"), load(members / "b"), load(both)
    assert list(ensemble.tasks) == ["sentiment", "paraphrase", "similarity"]
    rows = [torch.tensor(one.predict_proba("sentiment", SINGLES)) for one in (a, b)]
    assert (rows[0] - rows[1]).abs().max() > 0.05
    mixed = 0.75 * rows[0] + 0.25 * rows[1]
    torch.testing.assert_close(torch.tensor(ensemble.predict_proba("sentiment", SINGLES)), mixed)
    assert ensemble.predict("sentiment", SINGLES) == mixed.argmax(dim=1).tolist()
    assert ensemble.predict("similarity", PAIRS) == pytest.approx(b.predict("similarity", PAIRS), abs=1e-6)
    assert all(isinstance(value, float) for value in ensemble.predict("similarity", PAIRS))
    assert ensemble.predict("paraphrase", PAIRS) == a.predict("paraphrase", PAIRS)


def test_a_table_is_predicted_as_its_texts_are(both, tmp_path):
    ensemble = load(both)
    tables = read_split(write_tables(tmp_path / "data"), "dev", BUILT_IN, False)
    for name, table in tables.items():
        texts = [row.texts for row in table.rows()]
        torch.testing.assert_close(ensemble.logits_of_table(name, table), ensemble.logits(name, texts))


def test_each_member_is_loaded_once_and_when_it_is_needed(both):
    loaded = []

    def load_model(folder: Path) -> MultitaskBert:
        loaded.append(folder.parent.name)
        return MultitaskBert.load(folder)

    ensemble = Ensemble(both, load_model)
    assert loaded == []
    ensemble.predict("similarity", PAIRS)
    assert loaded == ["b"]
    ensemble.predict("sentiment", SINGLES)
    ensemble.predict("paraphrase", PAIRS)
    assert sorted(loaded) == ["a", "b"]


def test_mistakes_are_those_of_any_model(both):
    ensemble = load(both)
    for method in (ensemble.predict, ensemble.predict_proba, ensemble.logits):
        with pytest.raises(InputError, match="no task 'mood'; it has sentiment, paraphrase, similarity"):
            method("mood", ["a"])
    with pytest.raises(InputError, match="similarity takes pairs; item 0 is 'a'"):
        ensemble.predict("similarity", ["a"])
    with pytest.raises(InputError, match="similarity is a regression task"):
        ensemble.predict_proba("similarity", PAIRS)
    assert ensemble.predict("sentiment", []) == []


def test_load_takes_a_run_and_its_best(members):
    wanted = MultitaskBert.load(members / "a" / "best").predict("sentiment", SINGLES)
    for folder in (members / "a", str(members / "a" / "best")):
        assert load(folder).predict("sentiment", SINGLES) == wanted


def test_the_name_load_comes_without_torch():
    code = "import sys, multitask; multitask.__all__.index('load'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_one_model_is_wanted_and_an_ensemble_given(both, tmp_path, capsys):
    with pytest.raises(InputError, match=f"^{both}: is an ensemble, where one model is needed"):
        MultitaskBert.load(both)
    words = ["--option", "finetune", "--init", both, "--out", tmp_path / "out"]
    assert f"{both}: is an ensemble, where one model is needed" in refused(capsys, *words)


# Members


@pytest.mark.parametrize("spelling", ["a", "a/", "a/best", "a/best/", "./a", "a/../a", "b/../a/best", "link"])
def test_every_spelling_of_a_run_is_one_member(members, monkeypatch, tmp_path, spelling):
    shutil.copytree(members, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    os.symlink("a", "link")
    assert distinct_runs(["a", spelling, "b"]) == ["a", "b"]


def test_a_model_outside_a_run_keeps_its_name(members, tmp_path):
    """A folder best.old, left behind by an interrupted replacement, still belongs to the run."""
    shutil.copytree(members / "a" / "best", tmp_path / "saved")
    assert distinct_runs([str(tmp_path / "saved")]) == [str(tmp_path / "saved")]
    shutil.copytree(members / "a" / "best", tmp_path / "run" / "best.old")
    assert distinct_runs([str(tmp_path / "run")]) == [str(tmp_path / "run")]


def test_a_member_that_is_gone_is_named_in_one_line(both, capsys):
    shutil.rmtree(both.parent / "a")
    words = ["--option", "predict", "--run", both, "--task", "similarity"]
    line = refused(capsys, *words)
    assert f"{both / ENSEMBLE}: member '../a' is gone" in line and str(both.parent / "a") in line
    assert "--copy" in line


def test_a_member_without_a_model_is_named(both):
    shutil.rmtree(both.parent / "a" / "best")
    with pytest.raises(InputError, match=f"{ENSEMBLE}: member '../a': .*holds no finished model"):
        load(both)


def test_a_member_that_is_an_ensemble_is_refused(both, capsys, tmp_path):
    other = both.parent / "other"
    other.mkdir()
    write_ensemble(other, {"sentiment": Panel(SENTIMENT, 0.5, ("../both",), (1.0,))})
    with pytest.raises(InputError, match=f"{other / ENSEMBLE}: member '../both': .*is an ensemble"):
        load(other)
    words = ["--option", "ensemble", "--run", both, "--data", tmp_path, "--out", tmp_path / "nested"]
    assert f"{both}: is an ensemble, where one model is needed" in refused(capsys, *words)


@pytest.mark.parametrize("task", [replace(SENTIMENT, num_classes=4), SIMILARITY])
def test_a_member_that_defines_a_task_otherwise_is_refused(both, task):
    """With other classes, or without the task, as `a` lacks similarity."""
    write_ensemble(both, {task.name: Panel(task, 0.5, ("../a",), (1.0,))})
    with pytest.raises(InputError, match=f"'../a' does not define task {task.name} as the ensemble does"):
        load(both)


# The file


def test_the_file_reads_back(both):
    assert read_ensemble(both / ENSEMBLE) == PANELS


def test_weights_are_equal_where_the_file_has_none(both):
    tables = tomllib.loads((both / ENSEMBLE).read_text())
    del tables["sentiment"]["weights"]
    (both / ENSEMBLE).write_text(tomli_w.dumps(tables))
    assert read_ensemble(both / ENSEMBLE)["sentiment"].weights == (1.0, 1.0)


NUMBER = r"a number, at least -1e\+09 and at most 1e\+09"
NUMBERS = r"a list of numbers, at least 1e-06 and at most 1e\+06"


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"weight": [1.0, 1.0]}, r"unknown key 'weight'; did you mean weights\?"),
        ({"threshold": None}, "lacks threshold"),
        ({"members": None}, "lacks members"),
        ({"threshold": "high"}, f"threshold must be {NUMBER}, not 'high'"),
        ({"threshold": True}, f"threshold must be {NUMBER}, not True"),
        ({"threshold": math.nan}, f"threshold must be {NUMBER}, not nan"),
        ({"threshold": math.inf}, f"threshold must be {NUMBER}, not inf"),
        ({"threshold": 10**400}, f"threshold must be {NUMBER}, not 1000"),
        ({"members": []}, "members must be a list of 1 to 1,000 folders"),
        ({"members": "../a"}, "members must be a list of non-empty UTF-8 texts without NUL, not '../a'"),
        ({"members": ["x"] * 1001}, "members must be a list of 1 to 1,000 folders"),
        (
            {"members": [3, "../a"]},
            r"members must be a list of non-empty UTF-8 texts without NUL, not \[3, '../a'\]",
        ),
        (
            {"members": ["", "../a"]},
            r"members must be a list of non-empty UTF-8 texts without NUL, not \['', '../a'\]",
        ),
        ({"members": ["x" * 1001, "../a"]}, "is not a folder"),
        ({"members": ["/etc", "../a"]}, "'/etc' must be relative"),
        ({"members": ["../a", "../a"]}, "lists a member twice"),
        ({"weights": [1.0]}, "weights must have one number per member"),
        ({"weights": 1.0}, f"weights must be {NUMBERS}, not 1.0"),
        ({"weights": [1.0, 0.0]}, f"weights must be {NUMBERS}, not "),
        ({"weights": [1.0, -1.0]}, f"weights must be {NUMBERS}, not "),
        ({"weights": [1.0, math.nan]}, f"weights must be {NUMBERS}, not "),
        ({"weights": [1.0, 10**400]}, f"weights must be {NUMBERS}, not "),
        ({"weights": [1.0, True]}, f"weights must be {NUMBERS}, not "),
        ({"task": 3}, "lacks the section task"),
        ({"task": None}, "lacks the section task"),
        ({"task": {"kind": "binary"}}, "lacks texts, label"),
    ],
)
def test_a_file_that_is_not_right_is_refused_in_one_line(both, change, problem):
    path = both / ENSEMBLE
    tables = tomllib.loads(path.read_text())
    changed = {key: value for key, value in (tables["sentiment"] | change).items() if value is not None}
    path.write_text(tomli_w.dumps(tables | {"sentiment": changed}))
    with pytest.raises(InputError, match=rf"^{path}: \[sentiment\]: .*{problem}") as caught:
        load(both)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "sentiment = 3", "[", "\0"])
def test_a_file_that_is_none(both, text):
    (both / ENSEMBLE).write_text(text)
    with pytest.raises(InputError, match=f"^{both / ENSEMBLE}: "):
        load(both)


def test_two_tasks_of_one_output_are_refused(both):
    twin = replace(PARAPHRASE, name="twin")
    write_ensemble(both, PANELS | {"twin": Panel(twin, 0.0, ("../a",), (1.0,))})
    with pytest.raises(InputError, match=f"{ENSEMBLE}: two tasks share an output"):
        load(both)


# From the command line


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny) -> Path:
    """Two short runs of all tasks, an ensemble that refers to them and one with copies."""
    folder = tmp_path_factory.mktemp("made")
    train = [
        "--option",
        "finetune",
        "--weights",
        tiny,
        "--data",
        write_tables(folder / "data"),
        "--epochs",
        1,
    ]
    for seed in (1, 2):
        words = [*train, "--steps-per-epoch", 6, "--seed", seed, "--out", folder / f"run-{seed}"]
        assert main(list(map(str, words))) == 0
    for out, flags in (("named", []), ("copied", ["--copy"])):
        runs = [folder / "run-1", folder / "run-2" / "best", f"{folder}/run-1/"]
        words = ["--option", "ensemble", "--run", *runs, *flags, "--out", folder / out]
        assert main(list(map(str, words))) == 0
    return folder


def test_an_ensemble_names_its_members_relative_to_its_folder(made):
    """`run-1` and `run-1/` are the same run, and so are `run-2/best` and `run-2`."""
    panels = read_ensemble(made / "named" / ENSEMBLE)
    assert [panel.members for panel in panels.values()] == [("../run-1", "../run-2")] * 3
    assert [panel.weights for panel in panels.values()] == [(1.0, 1.0)] * 3
    assert {name: panel.task for name, panel in panels.items()} == BUILT_IN
    chosen = json.loads((made / "named" / "result.json").read_text())["tasks"]
    assert chosen["sentiment"]["members"] == [str(made / "run-1"), str(made / "run-2")]


@pytest.mark.parametrize("name", ["named", "copied"])
def test_evaluate_repeats_what_the_ensemble_found(made, tmp_path, capsys, name):
    """The folder alone gives the same files and scores as the runs did when it was made."""
    shutil.copytree(made, tmp_path / "moved")
    folder = tmp_path / "moved" / name
    shutil.rmtree(folder / "predictions")
    said = said_by(capsys, "--option", "evaluate", "--run", folder, "--data", made / "data")
    before, after = made / name / "predictions", folder / "predictions"
    assert {path.name: path.read_text() for path in before.iterdir()} == {
        path.name: path.read_text() for path in after.iterdir()
    }
    score = json.loads((folder / "result.json").read_text())["dev"]["score"]
    assert f"score {score:.3f}".split() in [line.split()[:2] for line in said.splitlines()]


def test_a_copied_ensemble_travels_without_its_runs(made, tmp_path, capsys):
    texts = write_tables(tmp_path / "texts") / "sts-dev.csv"
    words = ["--option", "predict", "--task", "similarity", "--input", texts, "--run"]
    wanted = said_by(capsys, *words, made / "named")
    shutil.copytree(made / "copied", tmp_path / "alone")
    assert said_by(capsys, *words, tmp_path / "alone") == wanted
    assert sorted(path.name for path in (tmp_path / "alone" / "members").iterdir()) == ["1-run-1", "2-run-2"]
    shutil.copytree(made / "named", tmp_path / "lost")
    assert "member '../run-1' is gone" in refused(capsys, *words, tmp_path / "lost")


def test_copies_are_of_members_alone(made, tmp_path, capsys):
    """A threshold between the two runs' scores keeps one of them; if that is the only task, the other run is
    not part of the ensemble."""
    scores = json.loads((made / "named" / "result.json").read_text())["tasks"]["similarity"]["scores"]
    assert len(set(scores.values())) == 2
    words = ["--option", "ensemble", "--run", *scores, "--copy", "--tasks", "similarity"]
    best = max(scores, key=scores.__getitem__)
    said_by(capsys, *words, "--thresholds", f"similarity={scores[best]!r}", "--out", tmp_path / "one")
    assert [path.name for path in (tmp_path / "one" / "members").iterdir()] == [f"1-{Path(best).name}"]
    panel = read_ensemble(tmp_path / "one" / ENSEMBLE)["similarity"]
    assert (panel.members, panel.threshold) == ((f"members/1-{Path(best).name}",), scores[best])


def test_what_is_said_of_the_tables_is_said_once(made, tmp_path, capsys):
    scores = json.loads((made / "named" / "result.json").read_text())["tasks"]["similarity"]["scores"]
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    shutil.copy(data / "sts-dev.csv", data / "sts-test.csv")  # the table is called sts-test-student.csv
    said = said_by(capsys, "ensemble", "--run", *scores, "--data", data, "--out", tmp_path / "one")
    assert said.count("is not read") == 1


def test_predict_streams_an_ensemble(made, tmp_path, capsys):
    """Each row's prediction is the mean of the two runs'."""
    texts = write_tables(tmp_path / "texts") / "sts-dev.csv"
    words = ["--option", "predict", "--task", "similarity", "--input", texts, "--run"]
    columns = []
    for run in ("run-1", "run-2", "named"):
        lines = said_by(capsys, *words, made / run).splitlines()
        columns.append([float(line.split("\t")[1]) for line in lines[1:]])
    assert len(columns[2]) == 6
    for one, two, mean in zip(*columns, strict=True):
        assert mean == pytest.approx((one + two) / 2, abs=1e-6)


def test_weights_in_the_file_are_honoured(made, tmp_path):
    shutil.copytree(made / "copied", tmp_path / "weighted")
    path = tmp_path / "weighted" / ENSEMBLE
    tables = tomllib.loads(path.read_text())
    tables["similarity"]["weights"] = [1, 3]
    path.write_text(tomli_w.dumps(tables))
    values = [load(folder).predict("similarity", PAIRS) for folder in (made / "run-1", made / "run-2")]
    wanted = [one / 4 + 3 * two / 4 for one, two in zip(*values, strict=True)]
    assert load(tmp_path / "weighted").predict("similarity", PAIRS) == pytest.approx(wanted, abs=1e-6)


def test_an_ensemble_is_listed_beside_the_runs_around_it(made):
    with pytest.raises(InputError, match="holds the runs copied, named, run-1, run-2; name one of them"):
        MultitaskBert.load(made)


def test_an_ensemble_without_its_settings_asks_for_data(made, tmp_path, capsys):
    shutil.copytree(made / "copied", tmp_path / "bare")
    (tmp_path / "bare" / "config.toml").unlink()
    line = refused(capsys, "--option", "evaluate", "--run", tmp_path / "bare")
    assert "name a folder with --data" in line
    said_by(capsys, "--option", "evaluate", "--run", tmp_path / "bare", "--data", made / "data")
