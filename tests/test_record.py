"""tools/paper/record.py: a record holds what the run wrote, without any path of the machine."""

import json

import numpy as np
import pytest
from helpers import write_tables

import record
from multitask.run import main


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("record")
    data = write_tables(folder / "data")
    words = ["--option", "finetune", "--weights", str(tiny), "--data", str(data), "--epochs", "2"]
    assert main([*words, "--steps-per-epoch", "3", "--seed", "4", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_record_is_what_the_run_wrote(run, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    path = record.record("baseline", run, "abc")
    (line,) = record.lines_of(path)
    assert (line["cell"], line["seed"], line["commit"]) == ("baseline", 4, "abc")
    assert line["epochs"] == [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert line["dev"] == json.loads((run / "result.json").read_text())["dev"]
    assert line["settings"]["epochs"] == 2 and line["settings"]["weights"] == "tiny"
    assert str(run.parent) not in path.read_text() and line["machine"]["processor"]

    kept = np.load(tmp_path / "outputs" / "baseline-seed-4.npz")
    assert set(kept) == {f"{task}-{split}" for task in ("sst", "para", "sts") for split in ("dev", "test")}
    assert kept["sst-dev"].shape == (6, 5) and kept["para-test"].shape == (3, 2)
    values = (run / "predictions" / "sts-dev-output.csv").read_text().splitlines()[1:]
    np.testing.assert_allclose(kept["sts-dev"], [float(row.split(" , ")[1]) for row in values], rtol=1e-3)


def test_a_run_recorded_again_replaces_its_line_and_others_stay(run, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    path = record.record("baseline", run, "abc")
    other = {**record.lines_of(path)[0], "seed": 2}
    path.write_text(path.read_text() + json.dumps(other) + "\n")
    record.record("baseline", run, "def", "another processor", "2.11")
    kept, new = record.lines_of(path)
    assert (kept["seed"], kept["commit"], new["seed"], new["commit"]) == (2, "abc", 4, "def")
    assert new["machine"] == {"processor": "another processor", "torch": "2.11"} != kept["machine"]


def test_the_record_of_an_ensemble_has_its_members(run, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    both = tmp_path / "both"
    assert main(["--option", "ensemble", "--run", str(run), "--out", str(both)]) == 0
    (line,) = record.lines_of(record.record("ensemble", both, "abc"))
    assert line["members"] == {task: ["run"] for task in ("sentiment", "paraphrase", "similarity")}
    assert (line["seed"], line["epochs"]) == (0, []) and "run" not in line["settings"]
    assert (tmp_path / "outputs" / "ensemble-seed-0.npz").exists()
