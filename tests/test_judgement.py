"""judgement.py: what is fitted on dev is judged on rows that it was not fitted on, kept with the model, and
used by all that predict."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers import write_tables

from multitask import load
from multitask.data.calibration import UNCHANGED
from multitask.data.metrics import per_class
from multitask.data.tables import Table
from multitask.data.tasks import PARAPHRASE, SENTIMENT, SIMILARITY, read_task_file
from multitask.ensemble_model import read_ensemble
from multitask.judgement import cross_fit, fit_calibrations, judge, only_answer
from multitask.methods.calibration import folds, reliability
from multitask.run import main

TASKS = """
[mood]
kind = "classification"
texts = ["text"]
label = "mood"
labels = ["bad", "so-so", "good"]
files = "mood-{split}.tsv"
calibrate = true
[same]
kind = "binary"
texts = ["a", "b"]
label = "same"
files = "same-{split}.tsv"
metric = "f1"
calibrate = true
threshold = "f1"
[stars]
kind = "regression"
texts = ["text"]
label = "stars"
files = "stars-{split}.tsv"
low = 0
high = 5
"""
PAIRS = [("the film", "a movie"), ("a man eats", "the man eats"), ("how do i learn", "is it good")]


def table(labels: np.ndarray, digest: str = "dev") -> Table:
    return cast(Table, SimpleNamespace(labels=labels, source=SimpleNamespace(digest=digest)))


def test_a_row_is_judged_by_what_the_others_say():
    """Only the highest of ten logits is positive. For its own fold there is no positive to fit on, so the
    threshold is 1/2, and its logit -1 is below; fitted on all rows, the threshold is between the two highest
    logits. F1 by cross-fitting is 0, not 1."""
    task = replace(PARAPHRASE, metric="f1", threshold="f1")
    logits, labels = -torch.arange(1.0, 11)[:, None], np.eye(10)[0]
    fitted = fit_calibrations({"paraphrase": task}, {"paraphrase": logits}, {"paraphrase": table(labels)})
    assert fitted["paraphrase"].least_logit == pytest.approx(-1.5)
    assert task.answers(logits, fitted["paraphrase"]).values == [1] + [0] * 9
    assert cross_fit(task, logits, labels).values[0] == 0
    judged = judge({"paraphrase": task}, {"paraphrase": logits}, {"paraphrase": table(labels)}, fitted)
    assert judged.dev["paraphrase"] == {"f1": 0.0} and judged.cross_fitted == ["paraphrase"]
    elsewhere = {"paraphrase": table(labels, "other")}
    judged = judge({"paraphrase": task}, {"paraphrase": logits}, elsewhere, fitted)
    assert judged.dev["paraphrase"] == {"f1": 1.0} and judged.cross_fitted == []
    assert judged.classes["paraphrase"]["1"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0, "rows": 1}


def test_a_temperature_leaves_the_classes_and_mends_the_probabilities():
    """A thousand rows that are true with probability sigmoid(z), of a model that says 3z."""
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(1000, 1, generator=generator)
    labels = torch.bernoulli(z.sigmoid().squeeze(1), generator=generator).double().numpy()
    task = replace(PARAPHRASE, calibrate=True)
    tasks, logits, dev = {"paraphrase": task}, {"paraphrase": 3 * z}, {"paraphrase": table(labels)}
    fitted = fit_calibrations(tasks, logits, dev)
    assert fitted["paraphrase"].temperature == pytest.approx(3, rel=0.15)
    judged = judge(tasks, logits, dev, fitted)
    assert judged.dev == judge(tasks, logits, dev, {}).dev
    found = judged.calibration["paraphrase"]
    assert found["before"]["error"] > 0.08 and found["after"]["error"] < 0.04
    raw = reliability(task.answers(3 * z).probabilities.double().numpy(), labels)
    assert found["before"]["error"] == raw.error and sum(found["after"]["rows"]) == 1000
    low, high = judged.intervals["paraphrase"]["accuracy"]
    assert low < judged.dev["paraphrase"]["accuracy"] < high < low + 0.06


def test_every_fold_is_put_back_in_its_place():
    task = replace(SENTIMENT, calibrate=True)
    logits, labels = torch.randn(23, 5), np.arange(23.0) % 5
    found = cross_fit(task, logits, labels)
    assert found.values == task.answers(logits).values
    for rest, fold in folds(23):
        calibration = task.fit(logits[rest], labels[rest])
        torch.testing.assert_close(
            found.probabilities[fold], task.answers(logits[fold], calibration).probabilities
        )


def test_what_is_not_asked_for_is_left_alone():
    logits = {"similarity": torch.randn(6, 1), "sentiment": torch.randn(6, 5)}
    tasks = {"similarity": SIMILARITY, "sentiment": SENTIMENT}
    dev = {name: table(np.arange(6.0) % 5) for name in tasks}
    assert fit_calibrations(tasks, logits, dev) == {}
    assert (SIMILARITY.answers(logits["similarity"]).numbers == logits["similarity"].squeeze(1)).all()
    judged = judge(tasks, logits, dev, {})
    assert judged.classes.keys() == judged.calibration.keys() == {"sentiment"}
    assert judged.calibration["sentiment"].keys() == {"before"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny) -> Path:
    """Two runs of calibrated tasks, and their ensemble."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tasks.toml").write_text(TASKS)
    sizes = {"train": 24, "dev": 40, "test-student": 3}
    data = write_tables(folder / "data", read_task_file(folder / "tasks.toml"), sizes)
    for path in data.glob("mood-*"):
        lines = [line.rsplit("\t", 1) for line in path.read_text().splitlines()]
        names = {"0": "bad", "1": "so-so", "2": "good"}
        path.write_text("".join(f"{row}\t{names.get(label, label)}\n" for row, label in lines))
    train = ["--option", "finetune", "--weights", tiny, "--data", data, "--task-file", folder / "tasks.toml"]
    short = ["--epochs", 1, "--steps-per-epoch", 6, "--lr", 1e-2, "--threads", 1]
    for seed in (1, 2):
        words = [*train, *short, "--seed", seed, "--out", folder / f"run-{seed}"]
        assert main(list(map(str, words))) == 0
    words = ["--option", "ensemble", "--run", folder / "run-1", folder / "run-2", "--out", folder / "both"]
    assert main(list(map(str, words))) == 0
    return folder


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("name", ["run-1", "both"])
def test_what_was_fitted_is_kept_and_used_by_all_that_predict(made, name, capsys):
    run, model = made / name, load(made / name)
    fitted, found = model.calibrations["same"], result(run)
    assert found["cross_fitted"] == ["mood", "same"]
    assert found["calibration"]["same"]["temperature"] == fitted.temperature != 1
    assert found["calibration"]["same"]["threshold"] == fitted.threshold != 0.5
    assert found["intervals"].keys() == found["dev"].keys()
    z = model.logits("same", PAIRS).double().squeeze(1) / fitted.temperature
    p = [row[1] for row in model.predict_proba("same", PAIRS)]
    assert p == pytest.approx(z.sigmoid().tolist(), abs=1e-6)
    assert model.predict("same", PAIRS) == [int(value > fitted.threshold) for value in p]
    lines = "".join(f"{a}\t{b}\n" for a, b in PAIRS)
    (made / "pairs.txt").write_text(lines)
    capsys.readouterr()
    assert main(["predict", "--run", str(run), "--task", "same", "--input", str(made / "pairs.txt")]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    assert [float(row["class_1"]) for row in rows] == pytest.approx(p, abs=1e-5)
    assert [int(row["same"]) for row in rows] == model.predict("same", PAIRS)


@pytest.mark.parametrize("name", ["run-1", "both"])
def test_evaluate_says_the_same_and_cross_fits_only_the_tables_of_the_fit(made, name, capsys, tmp_path):
    run, data = made / name, tmp_path / "data"
    before = {path.name: path.read_text() for path in (run / "predictions").iterdir()}
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    f1, ends = (result(run)[part]["same"]["f1"] for part in ("dev", "intervals"))
    assert f"same         f1           {f1:.3f}  [{ends[0]:.3f}, {ends[1]:.3f}]" in out
    assert out.count("five-fold cross-fitted on dev") == 2
    assert before == {path.name: path.read_text() for path in (run / "predictions").iterdir()}
    shutil.copytree(made / "data", data)
    with (data / "same-dev.tsv").open("a") as file:
        file.write("new\tthe film\ta movie\t1\n")
    shutil.copytree(made, tmp_path / "made")
    assert main(["evaluate", "--run", str(tmp_path / "made" / name), "--data", str(data)]) == 0
    out = capsys.readouterr().out
    assert out.count("five-fold cross-fitted on dev") == 1 and "same: temperature" in out


def test_an_ensemble_is_averaged_first_and_calibrated_then(made):
    both, singles = load(made / "both"), [load(made / f"run-{seed}") for seed in (1, 2)]
    panel = read_ensemble(made / "both" / "ensemble.toml")["same"]
    assert both.calibrations["same"] == panel.calibration != UNCHANGED
    assert panel.calibration not in [one.calibrations["same"] for one in singles]
    p = torch.stack([one.logits("same", PAIRS).double().sigmoid() for one in singles]).mean(dim=0)
    torch.testing.assert_close(both.logits("same", PAIRS), p.logit())


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[mood]", "[stars]", "does not fit the tasks beside it"),
        ("temperature =", "temprature =", "unknown key 'temprature'; did you mean temperature?"),
        ("temperature = ", "temperature = -", "temperature must be a number, at least 0.05"),
    ],
)
def test_a_calibration_that_is_not_one_is_refused(made, tmp_path, capsys, old, new, problem):
    shutil.copytree(made / "run-1" / "best", tmp_path / "best")
    path = tmp_path / "best" / "calibration.toml"
    path.write_text(path.read_text().replace(old, new))
    assert main(["predict", "--run", str(tmp_path / "best"), "--task", "same"]) == 2
    error = capsys.readouterr().err
    assert problem in error and str(path) in error and error.count("\n") == 1


def test_a_model_that_always_gives_one_answer_is_found():
    labels = np.array([0, 1, 1, 2])
    for predictions, only in (([1, 1, 1, 1], "b"), ([1, 1, 1, 2], None), ([0, 1, 1, 2], None)):
        assert only_answer(per_class(np.array(predictions), labels, ["a", "b", "c"])) == only
    assert only_answer(per_class(np.zeros(3), np.zeros(3), ["a", "b"])) is None  # and it is right
