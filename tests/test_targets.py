"""targets.py, and --option distill from end to end: what a student learns, and that it resumes without its
teacher."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import (
    collate,
    make_config,
    make_finetuning,
    method_of,
    metrics_without_clock,
    planned,
    write_tables,
)
from safetensors.torch import load_file, save_file

from multitask import MultitaskBert, load, train
from multitask.data.guessing import Guess, to_toml
from multitask.data.tables import read_split
from multitask.data.tasks import BUILT_IN
from multitask.data.tokens import make_examples
from multitask.layout import TARGETS
from multitask.report.page import write_report
from multitask.run import main

STUDENT = ["--threads", "1", "--epochs", "2", "--steps-per-epoch", "6", "--batch-size", "4", "--lr", "1e-2",
           "--save-every", "1", "--keep-state", "--no-report"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny):
    """Two runs on small tables, and their ensemble."""
    folder = tmp_path_factory.mktemp("distill")
    data = write_tables(folder / "data")
    for seed in (1, 2):
        words = ["--option", "finetune", "--weights", str(tiny), "--data", str(data), "--seed", str(seed)]
        assert main([*words, *STUDENT, "--out", str(folder / str(seed))]) == 0
    runs = [str(folder / "1"), str(folder / "2")]
    assert main(["--option", "ensemble", "--run", *runs, "--out", str(folder / "both")]) == 0
    return folder


def distill(tiny, teacher, out, *more) -> int:
    words = ["--option", "distill", "--weights", str(tiny), "--run", str(teacher), "--out", str(out)]
    return main([*words, *STUDENT, *map(str, more)])


def test_a_student_learns_from_the_ensembles_outputs_on_its_tables(folder, tiny, tmp_path, capsys):
    """Data and tasks default to the teacher's. What is kept is its logits for every row."""
    assert distill(tiny, folder / "both", tmp_path / "run") == 0
    said, kept = capsys.readouterr().out, load_file(tmp_path / "run" / TARGETS)
    teacher, model = load(folder / "both"), MultitaskBert.load(tmp_path / "run")
    for split in ("train", "dev"):
        for name, table in read_split(folder / "data", split, BUILT_IN, False).items():
            torch.testing.assert_close(kept[f"{split}/{name}"], teacher.logits_of_table(name, table).float())
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    of_teacher = json.loads((folder / "both" / "result.json").read_text())["dev"]
    for name, task in BUILT_IN.items():
        assert result["teacher"][name][task.kind.metric] == pytest.approx(
            of_teacher[name][task.kind.metric], abs=1e-5
        )
    assert model.tasks == BUILT_IN and "on dev, student and teacher:" in said
    student, of_teacher = result["dev"]["score"], result["teacher"]["score"]
    assert re.search(rf"  score                     {student:.3f}  \[.+\]  +{of_teacher:.3f}\n", said)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert set(json.loads(line)["distill"]) == set(BUILT_IN)


@pytest.mark.parametrize("task", range(3))
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_loss_weighs_labels_and_teacher(tiny, tmp_path, task, weight):
    """(1 - w) times the loss on the labels plus w times T^2 KL(teacher || student), or the squared error.
    With w = 0 it is the loss of fine-tuning."""
    config = make_config("distill", weights=str(tiny), batch_size=4, steps_per_epoch=300, encoder_dropout=0.0)
    config = config.changed(distill_weight=weight, distill_temperature=3.0)
    plain = make_finetuning(config, tmp_path)
    taught = {name: torch.randn(len(rows), BUILT_IN[name].outputs) for name, rows in plain.train.items()}
    method = method_of(config, plain.model, plain.train, plain.dev, taught)
    ((loss, terms),) = method.losses(task)
    name, (rows,) = planned(method, task)
    inputs, labels = collate(method.model, method.train[name], rows)
    logits, wanted = method.model(name, inputs).double(), taught[name][rows].double()
    if name == "similarity":
        distance = (logits - wanted).square().mean()
    else:
        both = [torch.cat([0 * z, z], dim=1) if name == "paraphrase" else z for z in (wanted / 3, logits / 3)]
        q, p = (z.softmax(dim=1) for z in both)
        distance = 9 * (q * (q / p).log()).sum(dim=1).mean()
    assert terms[f"distill/{name}"] == pytest.approx(distance.item(), rel=1e-4)
    of_labels = BUILT_IN[name].kind.loss(logits, labels).item()
    assert loss.item() == pytest.approx((1 - weight) * of_labels + weight * distance.item(), rel=1e-4)


def test_a_range_of_values_weighs_as_0_to_5_does(tiny, tmp_path):
    """For a range of 0 to 10 a unit is 2: values 4 apart are 2 units apart, with a squared error of 4."""
    config = make_config("distill", weights=str(tiny), batch_size=4, steps_per_epoch=300, distill_weight=1.0)
    method = make_finetuning(config.changed(encoder_dropout=0.0), tmp_path)
    method.model.tasks["similarity"] = replace(BUILT_IN["similarity"], high=10.0)
    name, (rows,) = planned(method, 2)
    inputs, _ = collate(method.model.eval(), method.train[name], rows)
    taught = torch.zeros(len(method.train[name]), 1)
    taught[rows] = method.model(name, inputs).detach() + 4
    method.taught = {name: taught}
    ((_, terms),) = method.losses(2)
    assert terms[f"distill/{name}"] == pytest.approx(4, rel=1e-4)


def test_a_run_goes_on_without_its_teacher(folder, tiny, tmp_path, monkeypatch):
    """Stopped in its eighth update, with SMART and BPPO; the teacher is deleted in the meantime."""
    more = ["--smart-weight", "1", "--bregman-weight", "1", "--sampling", "annealed"]
    shutil.copytree(folder / "1", tmp_path / "teacher")
    assert distill(tiny, tmp_path / "teacher", tmp_path / "whole", *more) == 0
    real, calls = train.update, []

    def update(*args):
        calls.append(0)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(train, "update", update)
    assert distill(tiny, tmp_path / "teacher", tmp_path / "cut", *more) == 143
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "teacher")
    assert main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    assert metrics_without_clock(tmp_path / "whole") == metrics_without_clock(tmp_path / "cut")
    for name in ("best/model.safetensors", "result.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda kept: kept.pop("dev/sentiment"), r"has no dev/sentiment of shape \(6, 5\) in float32"),
        (
            lambda kept: kept.update({"train/similarity": torch.zeros(12)}),
            r"no train/similarity of shape \(12, 1\)",
        ),
        (lambda kept: kept["train/paraphrase"].fill_(torch.nan), "not finite"),
        (lambda kept: kept["train/paraphrase"].add_(1), "the teacher's outputs are not"),
    ],
)
def test_outputs_that_are_not_the_teachers_are_refused(folder, tiny, tmp_path, capsys, change, said):
    assert distill(tiny, folder / "1", tmp_path / "run") == 0
    path = tmp_path / "run" / TARGETS
    kept = load_file(path)
    change(kept)
    save_file(kept, path)
    (tmp_path / "run" / "result.json").unlink()
    assert main(["--resume", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(said, error), error


def test_a_run_that_was_killed_before_it_began_asks_the_teacher_that_is_named_now(folder, tiny, tmp_path):
    """The folder holds another teacher's outputs, and no settings."""
    assert distill(tiny, folder / "1", tmp_path / "first") == 0
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "first" / TARGETS, tmp_path / "run")
    assert distill(tiny, folder / "2", tmp_path / "run", "--resume") == 0
    found, of_second = (
        json.loads((run / "result.json").read_text()) for run in (tmp_path / "run", folder / "2")
    )
    r, wanted = found["teacher"]["similarity"]["pearson"], of_second["dev"]["similarity"]["pearson"]
    assert r == pytest.approx(wanted, abs=1e-5)


def test_outputs_that_are_gone_with_their_teacher(folder, tiny, tmp_path, capsys):
    shutil.copytree(folder / "1", tmp_path / "teacher")
    assert distill(tiny, tmp_path / "teacher", tmp_path / "run") == 0
    for name in (TARGETS, "result.json"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "teacher").rename(tmp_path / "moved")
    assert main(["--resume", "--out", str(tmp_path / "run")]) == 2
    assert f"{TARGETS}: is gone, and so is the teacher {tmp_path}/teacher" in capsys.readouterr().err


def test_the_report_has_the_teachers_scores_beside_the_students(folder, tiny, tmp_path):
    assert distill(tiny, folder / "both", tmp_path / "run") == 0
    page = write_report(tmp_path / "run", None, torch.device("cpu")).read_text()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    student, of_teacher = (result[who]["score"] for who in ("dev", "teacher"))
    assert re.search(rf"score                     {student:.3f}  \[.+\]  +{of_teacher:.3f}\n", page)
    assert str(folder / "both") in page
    other = write_tables(tmp_path / "other", sizes={"train": 12, "dev": 9})
    page = write_report(tmp_path / "run", str(other), torch.device("cpu")).read_text()
    assert "Student and teacher" not in page  # its outputs on these rows are not known


def test_a_teacher_without_the_task_as_it_is_defined_is_refused(folder, tiny, tmp_path, capsys):
    own = tmp_path / "tasks.toml"
    own.write_text('[similarity]\nkind = "regression"\ntexts = ["sentence1", "sentence2"]\n'
                   'label = "similarity"\nfiles = "sts-{split}.csv"\nlow = 0\nhigh = 10\n')  # fmt: skip
    assert distill(tiny, folder / "1", tmp_path / "run", "--task-file", own) == 2
    assert "does not have the task similarity as it is defined here" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_tasks_and_the_bad_rows_of_own_tables_are_the_teachers(tiny, tmp_path, monkeypatch):
    """The commands that follow training need not repeat --task-file and --skip-bad-rows."""
    monkeypatch.chdir(tmp_path)
    data = write_tables(tmp_path / "data")
    own = BUILT_IN["similarity"]
    Path("own.toml").write_text(to_toml([Guess(replace(own, name="mine"))], "data"))
    for split in ("train", "dev"):
        with own.path(data, split).open("a") as file:
            file.write("bad\n")
    words = ["finetune", "--data", "data", "--task-file", "own.toml", "--skip-bad-rows", *STUDENT]
    assert main([*words, "--weights", str(tiny), "--out", "teacher"]) == 0
    assert main(["ensemble", "--run", "teacher", "--copy", "--out", "both"]) == 0
    for run in ("teacher", "both"):
        assert main(["evaluate", "--run", run]) == 0
    assert distill(tiny, "both", "student") == 0
    assert set(MultitaskBert.load("student").tasks) == {"mine"}


def test_a_student_may_learn_some_of_its_teachers_tasks(folder, tiny, tmp_path):
    assert distill(tiny, folder / "1", tmp_path / "run", "--tasks", "similarity") == 0
    assert set(MultitaskBert.load(tmp_path / "run").tasks) == {"similarity"}
    assert set(load_file(tmp_path / "run" / TARGETS)) == {"train/similarity", "dev/similarity"}


def test_the_teachers_examples_need_not_be_cut_as_the_students_are(folder, tiny, tmp_path):
    """The student reads 8 tokens; the teacher all of them."""
    assert distill(tiny, folder / "1", tmp_path / "run", "--max-length", "8", "--tasks", "paraphrase") == 0
    teacher, table = MultitaskBert.load(folder / "1"), read_split(folder / "data", "dev", BUILT_IN, False)
    assert max(make_examples(table["paraphrase"], teacher.tokenizer, 512).tokens.lengths) > 8
    kept = load_file(tmp_path / "run" / TARGETS)["dev/paraphrase"]
    torch.testing.assert_close(kept, teacher.logits_of_table("paraphrase", table["paraphrase"]).float())
