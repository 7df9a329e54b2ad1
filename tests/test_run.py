"""The command line end to end, on small tables and a tiny model: files, exit status, one-line errors."""

import contextlib
import csv
import errno
import gzip
import io
import json
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import pytest
from helpers import ROOT, contents, metrics_without_clock, sentence, write_table, write_tables
from safetensors.torch import load_file, save_file

from multitask import MultitaskBert, advice, folder, jobs, state, train
from multitask import predict as prediction
from multitask.config import OPTIONS
from multitask.data import cache
from multitask.data.tables import Row
from multitask.data.tasks import BUILT_IN, SENTIMENT, read_task_file
from multitask.run import main
from multitask.streams import Input

SMALL = ["--threads", "1", "--batch-size", "4", "--epochs", "2"]
BEST = ["README.md", "config.json", "heads.safetensors", "model.safetensors", "tasks.toml", "tokenizer.json",
        "tokenizer_config.json", "vocab.txt"]  # fmt: skip
PREDICTIONS = sorted(
    f"{task}-{split}-{what}.csv"
    for split in ("dev", "test")
    for task, what in [("sst", "output"), ("para", "output"), ("sts", "output"), ("sst", "probabilities"),
                       ("para", "probabilities")]
)  # fmt: skip

TOPIC = (
    '[topic]\nkind = "classification"\ntexts = ["text"]\nlabel = "topic"\nnum_classes = 3\nid = "key"\n'
    'files = "topic-{split}.tsv"\noutput = "t"\nheader = "Topic"\n'
    '[closeness]\nkind = "regression"\ntexts = ["one", "two"]\nlabel = "y"\nfiles = "close-{split}.tsv"\n'
)


OWN_TASKS = """
[review]
kind = "classification"
texts = ["text"]
label = "mood"
labels = ["bad", "so, so", "good"]
train = "reviews.csv"
dev_fraction = 0.3
metric = "f1_macro"
class_weights = "balanced"

[pair]
kind = "binary"
texts = ["q1", "q2"]
label = "same"
labels = ["false", "true"]
train = "pairs-train.jsonl"
dev = "pairs-valid.jsonl"
metric = "mcc"
label_smoothing = 0.1

[stars]
kind = "regression"
texts = ["text"]
label = "stars"
files = "stars-{split}.csv.gz"
dev = "stars-valid.csv.gz"
low = 1
high = 10
metric = "rmse"
weight = 2.0
"""


def names(folder: Path) -> list[str]:
    """What a user sees in a folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tables(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finetune(tiny, data) -> list[str]:
    return ["--option", "finetune", "--weights", str(tiny), "--data", str(data), *SMALL]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, finetune) -> Path:
    """A run of 2 epochs of 9 updates with its state; not to be changed."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*finetune, "--keep-state", "--out", str(run)]) == 0
    (run.parent / "said.txt").write_text(out.getvalue())
    return run


@pytest.fixture
def unfinished(finished, tmp_path) -> Path:
    """A copy of that run as if it had been killed before its result."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "result.json").unlink()
    return run


@pytest.fixture
def call(capsys):
    """A function that runs a command line in this process: (exit status, standard output, standard error)."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return call


# Training


def test_finetune_leaves_a_whole_run_directory(finished, data, tiny):
    assert names(finished) == ["best", "config.toml", "metrics.jsonl", "predictions", "result.json", "state"]
    assert names(finished / "best") == BEST
    assert names(finished / "predictions") == PREDICTIONS
    assert names(finished / "state") == ["latest", "step-00000009", "step-00000018"]
    config = tomllib.loads((finished / "config.toml").read_text())
    assert (config["option"], config["data"], config["weights"]) == ("finetune", str(data), str(tiny))
    assert (config["epochs"], config["batch_size"], config["seed"]) == (2, 4, 0)
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [9, 18]


def test_finetune_says_what_it_does(finished):
    said = (finished.parent / "said.txt").read_text()
    assert "shipped sample" not in said
    for name in BUILT_IN:
        assert f"  {name:12} {12:9,} rows" in said
    for words in ("sampling round-robin:", "2 epochs of 9 updates on cpu",
                  "epoch 1: loss", "(1 + r) / 2"):  # fmt: skip
        assert words in said


def test_the_result_is_the_best_epochs(finished):
    result = json.loads((finished / "result.json").read_text())
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["dev"]["score"])
    assert (result["best_epoch"], result["dev"]) == (best["epoch"], best["dev"])


def test_predictions_are_the_best_models_on_every_row_in_file_order(finished, data):
    model = MultitaskBert.load(finished / "best")
    for name, task in BUILT_IN.items():
        for split, suffix, count in (("dev", "dev", 6), ("test-student", "test", 3)):
            lines = (
                (finished / "predictions" / f"{task.submission}-{suffix}-output.csv").read_text().splitlines()
            )
            rows = [line.split(" , ") for line in lines[1:]]
            assert [row_id for row_id, _ in rows] == [f"{name}-{split}-{number}" for number in range(count)]
            table = [line.split("\t") for line in task.path(data, split).read_text().splitlines()[1:]]
            texts = [tuple(row[1 : 1 + len(task.texts)]) for row in table]
            assert [float(value) for _, value in rows] == pytest.approx(model.predict(name, texts), abs=1e-5)


def test_the_best_epoch_is_the_one_that_is_kept(finished, call):
    records = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    best = max(record["dev"]["score"] for record in records)
    _, out, _ = call("--option", "evaluate", "--run", finished)
    assert f"{best:.3f}" in out.split("score")[-1]


def test_pretrain_then_finetune_from_it(call, tiny, data, finetune, tmp_path):
    status, _, _ = call("--option", "pretrain", "--weights", tiny, "--data", data, *SMALL,
                        "--out", tmp_path / "heads")  # fmt: skip
    assert status == 0
    frozen = (tmp_path / "heads" / "best" / "model.safetensors").read_bytes()
    assert frozen == (tiny / "model.safetensors").read_bytes()
    words = [word for word in finetune if word not in ("--weights", str(tiny))]
    status, _, err = call(*words, "--init", tmp_path / "heads", "--out", tmp_path / "all")
    assert (status, err) == (0, "")
    assert (tmp_path / "all" / "best" / "model.safetensors").read_bytes() != frozen


def test_the_shipped_sample_runs_without_data_in_the_next_free_folder_and_says_so(
    call, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "finetune-1").mkdir(parents=True)
    status, out, err = call("--option", "finetune", "--weights", tiny, "--threads", 1, "--epochs", 1,
                            "--steps-per-epoch", 3)  # fmt: skip
    assert (status, err) == (0, "")
    assert "shipped sample" in out.split("\n")[0]
    assert names(tmp_path / "runs" / "finetune-2" / "predictions") == PREDICTIONS
    status, out, err = call("--option", "evaluate", "--run", "runs/finetune-2", "--threads", 1)
    assert (status, err) == (0, "") and "the shipped sample" in out


def test_tasks_are_left_out_with_their_tables(call, finetune, data, tmp_path):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("quora-*"))
    words = [*finetune, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    status, _, err = call(*words)
    assert status == 2 and "--tasks" in err
    assert err.startswith(f"error: {tmp_path}/data/quora-train.csv: no such file")
    assert not (tmp_path / "run").exists()
    status, _, err = call(*words, "--tasks", "sentiment,similarity")
    assert (status, err) == (0, "")
    assert not [name for name in names(tmp_path / "run" / "predictions") if name.startswith("para")]


@pytest.mark.parametrize("table", ["ids-sst-train.csv", "sts-dev.csv"])
def test_a_missing_table_is_named(call, finetune, data, tmp_path, table):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns(table))
    status, _, err = call(*finetune, "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {tmp_path}/data/{table}: no such file")


def test_a_folder_without_any_of_the_courses_tables(call, finetune, tmp_path):
    (tmp_path / "my data").mkdir()
    words = [*finetune, "--data", tmp_path / "my data", "--out", tmp_path / "run"]
    status, _, err = call(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert "has none of the course's tables, such as ids-sst-train.csv; describe yours first: " in err
    assert f"inspect --data '{tmp_path}/my data' --out tasks.toml" in err
    (tmp_path / "my data" / "tasks.toml").touch()
    assert f"name its task file: --task-file '{tmp_path}/my data/tasks.toml'" in call(*words)[2]


def test_a_missing_test_table_only_means_no_test_predictions(call, finetune, data, tmp_path):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("sts-test*", "quora-test*"))
    status, _, err = call(*finetune, "--data", tmp_path / "data", "--out", tmp_path / "run", "--epochs", 1)
    assert (status, err) == (0, "")
    missing = {"sts-test-output.csv", "para-test-output.csv", "para-test-probabilities.csv"}
    assert set(names(tmp_path / "run" / "predictions")) == set(PREDICTIONS) - missing


def test_inputs_that_fill_the_longest_length_are_counted(call, finetune, data, tmp_path):
    status, out, _ = call(
        *finetune, "--data", data, "--out", tmp_path / "run", "--epochs", 1, "--max-length", 8
    )
    assert status == 0
    assert "similarity: 12 rows of 8 tokens, the limit; longer ones are cut" in out


def test_resuming_what_is_no_run_is_refused(call, tmp_path):
    status, _, err = call("--resume", "--out", tmp_path / "typo")
    assert (status, err) == (2, f"error: {tmp_path / 'typo'}: holds no run to resume (no config.toml)\n")


def test_predict_does_not_write_over_its_input(call, finished, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("good\n")
    predict = ["--option", "predict", "--run", finished, "--task", "sentiment"]
    status, _, err = call(*predict, "--input", texts, "--output", texts)
    assert status == 2 and "is also the input" in err
    assert texts.read_text() == "good\n"


@pytest.mark.parametrize(
    "source, target, said",
    [
        ("nix.csv", "out.tsv", "nix.csv: no such file; correct --input"),
        ("in.txt", "old.tsv", "old.tsv: exists; replace it with --force, or name another --output"),
        ("in.txt", "out.xlsx", "out.xlsx: predictions are tab-separated text, CSV (.csv) and JSON lines "),
        ("in.txt", "no/out.tsv", "no: no such folder; make it, or name another --output"),
    ],
)
def test_predict_finds_wrong_paths_before_it_loads_a_model(call, tmp_path, monkeypatch, source, target, said):
    monkeypatch.chdir(tmp_path)
    for name in ("in.txt", "old.tsv"):
        Path(name).write_text("good\n")
    predict = ["--option", "predict", "--run", "no-run", "--task", "sentiment"]
    status, _, err = call(*predict, "--input", source, "--output", target)
    assert status == 2 and err.startswith(f"error: {said}")


def test_bad_rows_stop_a_run_before_it_starts_or_are_dropped(call, finetune, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    path = SENTIMENT.path(tmp_path / "data", "train")
    path.write_text(path.read_text() + "x\tgood\t9\n")
    words = [*finetune, "--data", tmp_path / "data", "--out", tmp_path / "run", "--epochs", 1]
    status, _, err = call(*words)
    assert status == 2 and not (tmp_path / "run").exists()
    assert err.startswith(f"error: {path}:14: sentiment 9") and "bad rows: 1 of 13" in err
    status, out, err = call(*words, "--skip-bad-rows")
    assert (status, err) == (0, "")
    assert f"{path}: dropped 1 bad row, kept 12" in out


def test_a_folder_that_holds_a_run_is_not_written_over(call, finetune, finished):
    before = contents(finished / "best"), (finished / "config.toml").read_bytes()
    status, _, err = call(*finetune, "--out", finished, "--lr", "1e-3")
    assert status == 2
    remedy = f"resume it with {advice.resume(finished)}, or choose another --out"
    assert err == f"error: {finished}: holds a run already; {remedy}\n"
    assert before == (contents(finished / "best"), (finished / "config.toml").read_bytes())


# Going on after a stop

KILL = """
import os, signal, sys
from minbert import files
from multitask import state, train
from multitask.run import main
from multitask.streams import Input

module, name, about, fatal = {"train": train, "state": state, "files": files}[sys.argv[1]], *sys.argv[2:5]
real, calls = getattr(module, name), []

def counted(*args, **keywords):
    calls.extend([0] * (about in str(args)))
    if len(calls) == int(fatal):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **keywords)

setattr(module, name, counted)
main(sys.argv[5:])
"""


@pytest.mark.parametrize(
    "module, function, about, call_number, going_on",
    [
        pytest.param("state", "_moments", "", 5, "resuming after step 12", id="in mid-epoch"),
        pytest.param("files", "flush", "step-00000012.p", 3, "resuming after step 9", id="in saving a state"),
        pytest.param("files", "rename", "latest", 4, "resuming after step 9", id="before its pointer"),
        pytest.param("files", "rename", "metrics", 3, "resuming after step 9", id="before its metrics"),
        pytest.param("files", "rename", "/best')", 3, "resuming after step 18",
                     id="between the renames of best"),
        pytest.param("train", "update", "", 2, "nothing saved yet, starting at step 0", id="before a state"),
    ],
)  # fmt: skip
def test_a_killed_run_goes_on_to_what_an_uninterrupted_one_gives(
    call, finetune, finished, tmp_path, module, function, about, call_number, going_on
):
    words = [*finetune, "--save-every", "4", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-c", KILL, module, function, about, str(call_number), *words]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "predictions").exists()

    status, out, err = call("--resume", "--out", tmp_path / "run")
    assert status == 0 and "damaged" not in err
    assert going_on in out
    assert metrics_without_clock(tmp_path / "run") == metrics_without_clock(finished)
    assert contents(tmp_path / "run" / "best") == contents(finished / "best")
    assert contents(tmp_path / "run" / "predictions") == contents(finished / "predictions")


def test_batches_by_tokens_on_resume(call, tiny, data, tmp_path, monkeypatch):
    """Updates of any number of rows, entered within a pass: what comes next depends on the step alone."""
    small = [word for word in SMALL if word not in SMALL[SMALL.index("--batch-size") :][:2]]
    words = ["--option", "finetune", "--weights", tiny, "--data", data, *small, "--max-tokens", 40,
             "--accumulate", 2, "--sampling", "annealed", "--save-every", 2]  # fmt: skip
    status, out, _ = call(*words, "--out", tmp_path / "whole")
    assert status == 0 and "rows each" in out
    real, calls = train.update, []

    def stop(*rest):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*rest)

    monkeypatch.setattr(train, "update", stop)
    assert call(*words, "--out", tmp_path / "cut")[0] == 130
    status, out, _ = call("--resume", "--out", tmp_path / "cut")
    assert status == 0 and "resuming after step 2" in out
    assert metrics_without_clock(tmp_path / "cut") == metrics_without_clock(tmp_path / "whole")
    assert contents(tmp_path / "cut" / "best") == contents(tmp_path / "whole" / "best")


def test_resume_with_nothing_there_starts_at_step_0_and_says_so(call, finetune, finished, tmp_path):
    status, out, _ = call(*finetune, "--out", tmp_path / "run", "--resume")
    assert status == 0
    assert f"{tmp_path}/run: nothing saved yet, starting at step 0" in out
    assert metrics_without_clock(tmp_path / "run") == metrics_without_clock(finished)


def test_resume_of_a_run_without_a_result_trains_no_more(call, finished, unfinished, monkeypatch):
    shutil.rmtree(unfinished / "predictions")
    (unfinished / "metrics.jsonl").unlink()  # the state remembers its lines
    monkeypatch.setattr(train, "update", None)
    status, out, err = call("--resume", "--out", unfinished)
    assert (status, err) == (0, "")
    assert "resuming after step 18" in out
    assert (unfinished / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert contents(unfinished / "best") == contents(finished / "best")
    assert contents(unfinished / "predictions") == contents(finished / "predictions")


def test_more_epochs_on_resume_equal_a_longer_run(call, finetune, tmp_path):
    words = [*finetune, "--schedule", "constant", "--warmup", "0", "--tasks", "similarity"]
    assert call(*words, "--out", tmp_path / "short", "--epochs", 1, "--keep-state")[0] == 0
    assert call("--resume", "--out", tmp_path / "short", "--epochs", 2)[0] == 0
    assert call(*words, "--out", tmp_path / "long")[0] == 0
    assert metrics_without_clock(tmp_path / "short") == metrics_without_clock(tmp_path / "long")
    assert contents(tmp_path / "short" / "best") == contents(tmp_path / "long" / "best")
    assert tomllib.loads((tmp_path / "short" / "config.toml").read_text())["epochs"] == 2
    status, _, err = call("--resume", "--out", tmp_path / "short", "--epochs", 1)
    assert status == 2 and "has completed 2 epochs, more than --epochs 1" in err


@pytest.mark.parametrize("split", ["train", "dev"])
def test_other_tables_on_resume_are_refused(call, finetune, data, tmp_path, split):
    shutil.copytree(data, tmp_path / "data")
    words = [*finetune, "--data", tmp_path / "data", "--out", tmp_path / "run", "--epochs", 1]
    assert call(*words, "--keep-state")[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    path = SENTIMENT.path(tmp_path / "data", split)
    path.write_text(path.read_text().replace("\t3\n", "\t2\n"))
    status, _, err = call("--resume", "--out", tmp_path / "run")
    assert status == 2 and "the tables are not what the run was started with" in err


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "progress.json", "manifest.json"])
def test_a_damaged_state_is_passed_over_for_the_one_before(call, finished, unfinished, file):
    run = unfinished
    flip_a_bit(run / "state" / "step-00000018" / file)
    status, out, err = call("--resume", "--out", run)
    assert status == 0
    assert err.startswith(f"warning: {run}/state/step-00000018: ") and "the state before it" in err
    assert "resuming after step 9" in out
    assert metrics_without_clock(run) == metrics_without_clock(finished)
    assert contents(run / "best") == contents(finished / "best")


def test_a_run_never_starts_again_in_silence(call, finished, unfinished):
    run = unfinished
    for step in (9, 18):
        flip_a_bit(run / "state" / f"step-{step:08d}" / "model.safetensors")
    status, _, err = call("--resume", "--out", run)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(
        f"error: no saved state can be resumed: {run}/state/step-00000018: changed since it was"
    )
    shutil.rmtree(run / "state")
    status, _, err = call("--resume", "--out", run)
    assert status == 2 and "its folder state/ is gone" in err
    assert contents(run / "best") == contents(finished / "best")


def test_a_state_of_other_settings_is_refused(call, unfinished):
    run = unfinished
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace("seed = 0", "seed = 1"))
    status, _, err = call("--resume", "--out", run)
    assert status == 2 and "was saved with seed = 0, not 1" in err


@pytest.mark.parametrize("lines", [None, 0, 1, 9, -1])
def test_a_config_that_is_lost_or_cut_is_restored_from_a_state(call, unfinished, lines):
    """After so many of its lines. Nothing else trusts what is left of it."""
    run = unfinished
    whole = (run / "config.toml").read_text()
    (run / "config.toml").unlink()
    if lines is not None:
        (run / "config.toml").write_text("".join(whole.splitlines(keepends=True)[:lines]))
    for option in ("evaluate", "report"):
        status, _, err = call("--option", option, "--run", run)
        assert status == 2 and "config.toml" in err
    status, _, err = call("--resume", "--out", run)
    assert (status, err.count("\n")) == (0, 1) and "config.toml is lost or cut; restored from" in err
    assert tomllib.loads((run / "config.toml").read_text()) == tomllib.loads(whole) | {"out": str(run)}


@pytest.mark.parametrize(
    "what, file, old, new",
    [
        ("tokenizer", "tokenizer.json", '"lowercase": true', '"lowercase": false'),
        ("encoder's config.json", "config.json", '"layer_norm_eps": 1e-12', '"layer_norm_eps": 1e-3'),
        ("task definitions", "tasks.toml", "num_classes = 3", "num_classes = 4"),
    ],
)
def test_what_a_run_was_made_from_may_not_change_on_resume(call, tiny, tmp_path, what, file, old, new):
    shutil.copytree(tiny, tmp_path / "weights")
    (tmp_path / "tasks.toml").write_text(TOPIC)
    write_tables(tmp_path / "data", read_task_file(tmp_path / "tasks.toml"))
    words = ["--option", "finetune", "--weights", tmp_path / "weights", "--data", tmp_path / "data"]
    words += ["--task-file", tmp_path / "tasks.toml", *SMALL, "--epochs", 1, "--out", tmp_path / "run"]
    assert call(*words, "--keep-state")[0] == 0
    (tmp_path / "run" / "result.json").unlink()
    path = tmp_path / file if file == "tasks.toml" else tmp_path / "weights" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    status, _, err = call("--resume", "--out", tmp_path / "run")
    assert status == 2 and err.count("\n") == 1 and what in err, err


@pytest.mark.parametrize("file", ["recipe.toml", "run/config.toml"])
def test_no_file_allows_to_read_pickles(call, finished, tmp_path, file):
    run = shutil.copytree(finished, tmp_path / "run")
    (tmp_path / file).write_text((run / "config.toml").read_text() + "allow_pickle = true\n")
    words = ["--recipe", tmp_path / file] if file == "recipe.toml" else ["--resume"]
    status, _, err = call(*words, "--out", run)
    assert status == 2 and f"{tmp_path / file}: allow_pickle may be set on the command line alone" in err


@pytest.mark.parametrize("file", ["model.safetensors", "heads.safetensors"])
def test_weights_that_are_not_finite_are_refused(call, finished, tmp_path, file):
    run = shutil.copytree(finished, tmp_path / "run")
    tensors = load_file(run / "best" / file)
    tensors[min(tensors)][0] = float("nan")
    save_file(tensors, run / "best" / file)
    (tmp_path / "in").write_text("a film\n")
    predict = ["--option", "predict", "--run", run, "--task", "sentiment", "--input", tmp_path / "in"]
    for words in (predict, ["--option", "evaluate", "--run", run]):
        status, out, err = call(*words)
        assert (status, out) == (2, "") and "not" in err and "finite" in err and str(run) in err


def test_two_tasks_of_a_model_may_not_share_a_file(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "best" / "tasks.toml"
    path.write_text(path.read_text().replace('output = "para"', 'output = "sst"'))
    status, _, err = call("--option", "evaluate", "--run", run)
    assert status == 2 and "tasks.toml: two tasks share an output" in err


def test_a_users_files_in_best_stay(call, unfinished):
    run = unfinished
    (run / "best" / "notes").mkdir()
    (run / "best" / "notes" / "mine.txt").write_text("mine")
    flip_a_bit(run / "best" / "heads.safetensors")
    assert call("--resume", "--out", run)[0] == 0
    assert (run / "best" / "notes" / "mine.txt").read_text() == "mine"
    assert MultitaskBert.load(run).tasks


def test_a_damaged_best_model_is_written_anew(call, finished, unfinished):
    run = unfinished
    flip_a_bit(run / "best" / "model.safetensors")
    (run / "best" / "heads.safetensors").unlink()
    status, _, err = call("--resume", "--out", run)
    assert status == 0 and f"{run}/best: was not the best model of the saved state; rewritten" in err
    assert contents(run / "best") == contents(finished / "best")
    assert contents(run / "predictions") == contents(finished / "predictions")


LATER = """
import os, signal, sys
from multitask import train
from multitask.run import main
from multitask.streams import Input

real, calls, (number, at) = train.update, [], map(int, sys.argv[1:3])

def signalled(*args):
    calls.append(0)
    if len(calls) == at:
        for _ in range(2 if number == signal.SIGHUP else 1):  # the shell sends one, and the kernel another
            os.kill(os.getpid(), number)
    return real(*args)

train.update = signalled
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    "number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_step_and_saves(call, finetune, finished, tmp_path, number, status):
    command = [sys.executable, "-c", LATER, str(int(number)), "5", *finetune, "--out", str(tmp_path / "run")]
    stopped = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert stopped.returncode == status
    assert stopped.stderr.splitlines() == [
        "", "stopping after this step; a second signal stops at once",
        f"stopped; resume with {advice.resume(tmp_path / 'run')}",
    ]  # fmt: skip
    status, out, err = call("--resume", "--out", tmp_path / "run")
    assert (status, err) == (0, "") and "resuming after step 5" in out
    assert metrics_without_clock(tmp_path / "run") == metrics_without_clock(finished)
    assert contents(tmp_path / "run" / "best") == contents(finished / "best")


def without_a_reader() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


BROKEN = [  # how standard output may fail, what is then reported, and the status if it was what counts
    (lambda: os.fdopen(os.open("/dev/full", os.O_WRONLY), "w"), "No space left on device", 2),
    (without_a_reader, "Broken pipe", 141),
    (lambda: None, "Bad file descriptor", 2),
]


@pytest.mark.parametrize("broken, problem, _", BROKEN)
def test_a_run_goes_on_without_its_output(
    call, finetune, finished, tmp_path, monkeypatch, broken, problem, _
):
    monkeypatch.setattr(sys, "stdout", broken())
    status, _, err = call(*finetune, "--out", tmp_path / "run")
    assert status == 0
    assert err.startswith("warning: not all of the output could be written") and err.count("\n") == 1
    assert problem in err and err.endswith("the run is complete\n")
    assert metrics_without_clock(tmp_path / "run") == metrics_without_clock(finished)
    assert contents(tmp_path / "run" / "predictions") == contents(finished / "predictions")


def test_a_run_goes_on_without_its_standard_error(call, finetune, finished, tmp_path, monkeypatch):
    """Which is to get a warning: the first state cannot be saved."""
    real, calls = state.States._write, []

    def write(self, *rest):
        calls.append(0)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *rest)

    monkeypatch.setattr(state.States, "_write", write)
    monkeypatch.setattr(sys, "stderr", without_a_reader())
    assert call(*finetune, "--out", tmp_path / "run")[0] == 0
    assert len(calls) == 2 and contents(tmp_path / "run" / "best") == contents(finished / "best")


@pytest.mark.parametrize("broken, problem, status", BROKEN)
def test_what_a_command_is_for_must_be_written(
    call, finished, tmp_path, monkeypatch, broken, problem, status
):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "predictions")
    monkeypatch.setattr(sys, "stdout", broken())
    found, _, err = call("--option", "evaluate", "--run", run, "--threads", 1)
    assert (found, err.count("\n")) == (status, 1)
    assert ("stopped: the reader of the output has gone" if status == 141 else problem) in err
    assert contents(run / "predictions") == contents(finished / "predictions")


def test_predict_without_standard_streams(call, finished, tmp_path, monkeypatch):
    (tmp_path / "in").write_text("a good film\n")
    words = ["--option", "predict", "--run", finished, "--task", "sentiment"]
    monkeypatch.setattr(sys, "stdin", None)
    assert call(*words)[::2] == (2, "error: standard input is closed; name a file with --input\n")
    words += ["--input", tmp_path / "in"]
    monkeypatch.setattr(sys, "stdout", None)
    assert call(*words)[::2] == (2, "error: standard output is closed; name a file with --output\n")
    assert call(*words, "--output", tmp_path / "out")[::2] == (0, "")


def test_no_control_character_reaches_the_terminal(call, finetune, tmp_path):
    """Here from the name of a folder; a newline would begin a line of its own."""
    run = tmp_path / "run\x1b[2J"
    for words in ([*finetune, "--epochs", 1, "--out", run], ["--option", "evaluate", "--run", run]):
        status, out, err = call(*words)
        assert (status, err) == (0, "") and "run\\x1b[2J" in out and "\x1b" not in out


def test_data_on_standard_output_are_left_as_they_are(call, finished, tmp_path):
    source = write_table(tmp_path / "in", [["id", "sentence"], ["\u202e\u200b", "good"]])
    _, out, _ = call("--option", "predict", "--run", finished, "--task", "sentiment", "--input", source)
    assert out.splitlines()[1].startswith("\u202e\u200b\t")


ODD = {
    "no stream": "{python} {words} <&- >&- 2>&-",
    "C": "LC_ALL=C {python} {words}",
    "ASCII": "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii {python} {words}",
    "no torchrun": "WORLD_SIZE= LOCAL_RANK= RANK= {python} {words}",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ODD.values(), ids=ODD)
def test_a_run_on_an_odd_machine(finetune, finished, tmp_path, command):
    words = shlex.join(["-m", "multitask.run", *finetune, "--no-report", "--out", str(tmp_path / "run")])
    line = command.format(python=shlex.quote(sys.executable), words=words)
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(tmp_path / "run" / "best") == contents(finished / "best")


def test_a_run_of_a_user_without_a_home_folder(call, finetune, finished, tmp_path, monkeypatch):
    """As in a container that runs under a number that has no name there."""
    for name in ("HOME", "MINBERT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    cache._warn.cache_clear()
    status, _, err = call(*finetune, "--out", tmp_path / "run")
    assert (status, err.count("\n")) == (0, 1)
    assert err.startswith("~/.cache: cannot cache tables there (this user has no home folder)")
    assert contents(tmp_path / "run" / "best") == contents(finished / "best")


def test_a_second_process_is_refused(call, finetune, tmp_path):
    """A process that sleeps in its first update holds the folder; killed, it holds it no more."""
    sleep = "import sys, time; from multitask import train; from multitask.run import main\n"
    sleep += "train.update = lambda *_: time.sleep(60)\nmain(sys.argv[1:])"
    words = [*finetune, "--out", str(tmp_path / "run")]
    first = subprocess.Popen(
        [sys.executable, "-c", sleep, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    for line in first.stdout:
        if "updates on cpu" in line:
            break
    try:
        for arguments in (words, ["--resume", "--out", tmp_path / "run"]):
            status, _, err = call(*arguments)
            assert status == 2
            assert err == f"error: {words[-1]}: in use by another process; wait, or choose another --out\n"
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert call("--resume", "--out", tmp_path / "run")[0] == 0


# Evaluating


def test_evaluate_writes_the_same_predictions_again(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "predictions")
    status, out, err = call("--option", "evaluate", "--run", run, "--threads", 1)
    assert (status, err) == (0, "")
    assert contents(run / "predictions") == contents(finished / "predictions")
    for word in ("sentiment", "paraphrase", "similarity", "score"):
        assert word in out


def test_evaluate_says_that_a_run_is_not_finished(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    words = ("--option", "evaluate", "--run", run, "--tasks", "sentiment")
    assert "is not finished" not in call(*words)[1]
    (run / "result.json").unlink()
    assert f"{run}: is not finished; this is the best model of its epochs so far" in call(*words)[1]


def test_evaluate_on_other_tables_and_fewer_tasks(call, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "predictions")
    write_tables(tmp_path / "data", {"sentiment": SENTIMENT}, {"dev": 9})
    words = ("--option", "evaluate", "--run", run, "--data", tmp_path / "data", "--tasks", "sentiment")
    status, out, err = call(*words)
    assert (status, err) == (0, "") and str(tmp_path / "data") in out
    assert names(run / "predictions") == ["sst-dev-output.csv", "sst-dev-probabilities.csv"]
    assert len((run / "predictions" / "sst-dev-output.csv").read_text().splitlines()) == 10


# Predicting

TEXTS = {name: [[sentence(row + 50 * place) for place in range(len(task.texts))] for row in range(7)]
         for name, task in BUILT_IN.items()}  # fmt: skip


@pytest.fixture
def stdin(monkeypatch):
    """A function that puts bytes on standard input."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def expected(run: Path, name: str) -> list[float]:
    model = MultitaskBert.load(run / "best")
    return model.predict(name, [tuple(texts) for texts in TEXTS[name]])


@pytest.mark.parametrize("name, columns", [("sentiment", 7), ("paraphrase", 4), ("similarity", 2)])
@pytest.mark.parametrize("is_table", [True, False], ids=["table", "plain lines"])
@pytest.mark.parametrize("through", ["files", "pipes"])
def test_predict(call, stdin, finished, tmp_path, name, columns, is_table, through):
    task = BUILT_IN[name]
    rows = [[f"row {number}", *texts, "more"] for number, texts in enumerate(TEXTS[name])]
    header = ["id", *task.texts, "extra"]
    source = write_table(tmp_path / "in", [header, *rows] if is_table else TEXTS[name])
    words = ["--option", "predict", "--run", finished, "--task", name, "--threads", 1]
    if through == "pipes":
        stdin(source.read_bytes())
        status, out, err = call(*words)
    else:
        status, out, err = call(*words, "--input", source, "--output", tmp_path / "out")
        assert out == ""
        out = (tmp_path / "out").read_text()
    assert (status, err) == (0, "")
    head, *lines = [line.split("\t") for line in out.splitlines()]
    assert head == ["id", task.label, *(f"class_{number}" for number in range(columns - 2))]
    assert {len(line) for line in lines} == {columns}
    assert [line[0] for line in lines] == [f"row {row}" if is_table else f"{row + 1}" for row in range(7)]
    assert [float(line[1]) for line in lines] == pytest.approx(expected(finished, name), abs=1e-5)
    if columns > 2:
        assert all(sum(map(float, line[2:])) == pytest.approx(1, abs=1e-5) for line in lines)
        assert all(line[1].isdigit() for line in lines)
    assert not [*tmp_path.glob("out.partial-*")]


def test_predict_takes_a_table_without_ids(call, stdin, finished):
    stdin(b"sentence\r\ngood film\r\nbad film\r\n")
    status, out, _ = call("--option", "predict", "--run", finished, "--task", "sentiment")
    assert status == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == ["id", "2", "3"]


@pytest.mark.parametrize("content", [b"", b"id\tsentence\n"])
def test_predict_on_nothing(call, stdin, finished, content):
    stdin(content)
    status, out, err = call("--option", "predict", "--run", finished, "--task", "sentiment")
    assert (status, err) == (0, "")
    assert out.splitlines() == ["id\tsentiment\tclass_0\tclass_1\tclass_2\tclass_3\tclass_4"]


@pytest.mark.parametrize("bad", [b"\xff\n", b" \n", b"one\ttwo\n"])
def test_a_bad_row_ends_predict_and_keeps_the_rows_before_it(call, finished, tmp_path, bad):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"good film\n" * 3 + bad + b"bad film\n" * 2)
    words = ["--option", "predict", "--run", finished, "--task", "sentiment", "--input", source]
    status, out, err = call(*words)
    assert status == 2 and err.startswith(f"error: {source}:4: ") and "--skip-bad-rows" in err
    assert [line.split("\t")[0] for line in out.splitlines()] == ["id", "1", "2", "3"]

    status, _, err = call(*words, "--output", target)
    (partial,) = tmp_path.glob("out.partial-*")
    assert status == 2 and str(partial) in err
    assert not target.exists() and partial.read_text() == out

    target.write_text("mine")
    status, _, err = call(*words, "--output", target, "--skip-bad-rows")
    assert (status, target.read_text()) == (2, "mine")
    assert err == f"error: {target}: exists; replace it with --force, or name another --output\n"
    status, _, err = call(*words, "--output", target, "--skip-bad-rows", "--force")
    assert (status, err) == (0, f"{source}: dropped 1 bad row\n")
    assert [line.split("\t")[0] for line in target.read_text().splitlines()] == [
        "id",
        "1",
        "2",
        "3",
        "5",
        "6",
    ]


def test_tables_of_any_kind_from_a_task_file_to_predictions(call, tiny, tmp_path):
    """Labels that are words, in CSV of which a part is held out; pairs in JSON lines with booleans; scores
    from 1 to 10 in a compressed table; other metrics, weights and losses. The labels come out as words."""
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    moods = ["so, so", "good", "bad"]
    rows = [f'"{sentence(row)},\n{row}","{moods[row % 3]}"\n' for row in range(60)]
    (data / "reviews.csv").write_text("text,mood\n" + "".join(rows))
    for split in ("train", "valid"):
        pairs = ({"q1": sentence(row), "q2": sentence(row + 1), "same": row % 2 == 0} for row in range(20))
        (data / f"pairs-{split}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        scores = "".join(f"{row};{sentence(row)};{row % 10 + 1}\n" for row in range(20))
        (data / f"stars-{split}.csv.gz").write_bytes(gzip.compress(b"id;text;stars\n" + scores.encode()))
    (tmp_path / "tasks.toml").write_text(OWN_TASKS)
    words = [
        "--option",
        "finetune",
        "--weights",
        tiny,
        "--data",
        data,
        "--task-file",
        tmp_path / "tasks.toml",
    ]
    status, out, err = call(*words, *SMALL, "--out", run)
    assert (status, err) == (0, "") and "review: 30% of reviews.csv is held out as dev" in out
    dev = json.loads((run / "result.json").read_text())["dev"]
    assert [list(dev[name]) for name in ("review", "pair", "stars")] == [["f1_macro"], ["mcc"], ["rmse"]]
    parts = dev["review"]["f1_macro"], (1 + dev["pair"]["mcc"]) / 2, 1 - dev["stars"]["rmse"] / 9
    assert dev["score"] == pytest.approx((parts[0] + parts[1] + 2 * parts[2]) / 4)
    assert "1 - m/range" in out and "(1 + m) / 2" in out

    assert names(run / "predictions") == [
        "pair-dev-output.csv",
        "review-dev-output.csv",
        "stars-dev-output.csv",
    ]
    with (run / "predictions" / "review-dev-output.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["id", "mood", "class_bad", "class_so, so", "class_good"]
    assert 5 < len(lines) < 35 and {line[1] for line in lines} <= {*moods}
    model = MultitaskBert.load(run)
    assert {*model.predict("pair", [("a", "b")])} <= {"false", "true"}
    assert model.tasks == read_task_file(tmp_path / "tasks.toml")
    before = contents(run / "predictions")
    assert call("--option", "evaluate", "--run", run, "--threads", 1)[::2] == (0, "")
    assert contents(run / "predictions") == before
    source = data / "reviews.csv"
    _, out, _ = call("--option", "predict", "--run", run, "--task", "review", "--input", source)
    found = list(csv.reader(io.StringIO(out), delimiter="\t"))[1:]
    assert len(found) == 60 and {line[1] for line in found} <= {*moods}


@pytest.mark.parametrize("name, packed", [("in.csv", False), ("in.jsonl.gz", True), ("in", True)])
@pytest.mark.parametrize("through", ["files", "pipes"])
def test_predict_reads_the_formats_of_tables(call, stdin, finished, tmp_path, name, packed, through):
    texts, source = ["A film, and good", "bad"], tmp_path / name
    if ".jsonl" in name:
        content = "".join(
            json.dumps({"id": f"r{row}", "sentence": text}) + "\n" for row, text in enumerate(texts)
        )
    else:
        content = "id,sentence\n" + "".join(f'r{row},"{text}"\n' for row, text in enumerate(texts))
    source.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    stdin(source.read_bytes())
    words = ["--option", "predict", "--run", finished, "--task", "sentiment"]
    status, out, err = call(*words, *(["--input", source] if through == "files" else []))
    assert (status, err) == (0, "")
    wanted = MultitaskBert.load(finished / "best").predict("sentiment", texts)
    assert [line.split("\t")[:2] for line in out.splitlines()[1:]] == [
        ["r0", str(wanted[0])], ["r1", str(wanted[1])]
    ]  # fmt: skip


def test_predict_writes_the_form_that_the_output_is_named_for(call, finished, tmp_path):
    source = tmp_path / "in"
    source.write_text("good film\n")
    for name in ("paraphrase", "similarity"):
        write_table(source, [["good film", "a film"]])
        words = ["--option", "predict", "--run", finished, "--task", name, "--input", source, "--output"]
        for ending in (".tsv", ".csv", ".jsonl"):
            assert call(*words, tmp_path / f"{name}{ending}")[::2] == (0, "")
        plain = (tmp_path / f"{name}.tsv").read_text()
        assert (tmp_path / f"{name}.csv").read_text() == plain.replace("\t", ",")
        head, row = (line.split("\t") for line in plain.splitlines())
        found = json.loads((tmp_path / f"{name}.jsonl").read_text())
        probabilities = found.pop("probabilities", {})
        assert found == {"id": "1", head[1]: float(row[1])}
        assert [f"{value:.6f}" for value in probabilities.values()] == row[2:]
        assert list(probabilities) == (["0", "1"] if name == "paraphrase" else [])


def test_predict_says_how_many_texts_were_cut(call, finished, tmp_path):
    source = tmp_path / "in"
    source.write_text("good film\n" + "good film " * 400 + "\n")
    words = ["--option", "predict", "--run", finished, "--task", "sentiment", "--input", source]
    said = f"{source}: 1 of 2 texts longer than the model reads, and cut\n"
    assert call(*words)[::2] == (0, said)


def test_predict_writes_as_it_reads_and_holds_no_more_than_a_window(finished, tmp_path, monkeypatch):
    """A thousand rows through windows of 8: when row n is read, all but the last window before it stand in
    the output, and the rows in memory are one window's."""
    monkeypatch.setattr(prediction, "WINDOW", 8)
    target = tmp_path / "out"
    behind, windows = [], []

    class Source(io.BufferedIOBase):
        lines = iter(b"film %d\n" % number for number in range(1000))
        read_so_far = 0

        def readline(self, *_) -> bytes:
            return next(self, b"")

        def __iter__(self) -> Iterator[bytes]:
            return self

        def __next__(self) -> bytes:
            line = next(self.lines)
            written = sum(path.read_bytes().count(b"\n") - 1 for path in tmp_path.glob("out.partial-*"))
            behind.append(self.read_so_far - written)
            self.read_so_far += 1
            return line

    model = MultitaskBert.load(finished / "best")
    real = model.logits

    def logits(task: str, texts: Sequence[tuple[str, ...]]):
        windows.append(len(texts))
        return real(task, texts)

    monkeypatch.setattr(model, "logits", logits)
    given = Input(cast(BinaryIO, Source()), "rows", None)
    monkeypatch.setattr(prediction, "open_input", lambda source: contextlib.nullcontext(given))
    prediction.predict(model, model.tasks["sentiment"], "rows", str(target), skip_bad_rows=False)
    assert len(target.read_text().splitlines()) == 1001
    assert len(behind) == 1000 and max(behind[2:]) <= 8
    assert [size for size in windows if size] == [8] * 125


@pytest.mark.parametrize("head, first", [(b"", 1), (b"sentence\n", 2)])
def test_predict_leaves_out_empty_lines_at_the_end_only(call, stdin, finished, head, first):
    words = ("--option", "predict", "--run", finished, "--task", "sentiment")
    stdin(head + b"good film\n\r\n\n")
    status, out, err = call(*words)
    assert (status, err, len(out.splitlines())) == (0, "", 2)
    stdin(head + b"good film\n\n\nbad film\n\n")
    status, out, err = call(*words)
    assert status == 2 and err.startswith(f"error: standard input:{first + 1}: ")


def test_a_window_of_predict_is_bounded_in_characters_too(monkeypatch):
    monkeypatch.setattr(prediction, "CHARACTERS", 100)
    rows = [
        Row(number, str(number), ("x" * length,), None) for number, length in enumerate((60, 40, 1, 500, 9))
    ]
    windows = prediction._windows(rows, "rows", lambda: True, skip_bad_rows=False)
    assert list(windows) == [rows[:2], rows[2:4], rows[4:]]


def test_predict_answers_every_line_that_is_fed_by_hand(finished):
    """Through a pipe that stays open; and lines that come together are answered together."""
    command = [sys.executable, "-m", "multitask.run", "--option", "predict", "--run", str(finished), "--task",
               "sentiment", "--threads", "1"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write("a good film\n")
        assert process.stdout.readline().startswith("id\tsentiment")
        assert process.stdout.readline().startswith("1\t")
        process.stdin.write("a bad film\na film\n")
        assert [process.stdout.readline()[:2] for _ in range(2)] == ["2\t", "3\t"]
        process.stdin.close()
        assert process.wait(60) == 0


def test_predict_ends_in_one_line_when_its_reader_leaves(finished, tmp_path):
    source = tmp_path / "in"
    source.write_text("a good film\n" * 20_000)
    command = [sys.executable, "-m", "multitask.run", "--option", "predict", "--run", str(finished), "--task",
               "sentiment", "--threads", "1", "--input", str(source)]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("id\tsentiment")
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read().startswith("stopped: the reader of the output has gone")
    process.stderr.close()


# Mistakes


def test_without_words_it_prints_ten_lines_that_help(call):
    status, out, err = call()
    assert (status, err) == (0, "") and out.count("\n") <= 10
    for words in ("finetune --data DIR --out runs/first", "--resume --out runs/first", *OPTIONS):
        assert words in out


@pytest.mark.parametrize(
    "words, hint",
    [
        ("--no-reprot", "--no-report"),
        ("--epoch 3", "--epochs"),
        ("-epochs 3", "--epochs"),
        ("fintune", "finetune"),
        ("--option fintune", "finetune"),
        ("finetune --sampling aneal", "annealed"),
        ("serve --prot 80", "--port"),
    ],
)
def test_a_slip_of_the_finger_is_told(call, words, hint):
    status, _, err = call(*words.split())
    assert status == 2 and f"did you mean {hint}?" in err


TEXT = "non-empty UTF-8 text without NUL"
MISTAKES = {
    "unknown flag": "--option finetune --colour red",
    "unknown option": "--option train",
    "abbreviated flag": "--option finetune --epoch 3",
    "not a number": "--option finetune --epochs many",
    "out of range": "--option finetune --lr=-1",
    "unused setting": "--option predict --run {run} --task sentiment --lr 1",
    "no such recipe": "--recipe nope",
    "no such data": "{finetune} --data {tmp}/nope",
    "data is a file": "{finetune} --data {run}/config.toml",
    "empty data": "{finetune} --data {tmp}",
    "data for out": "{finetune} --out {data}",
    "unknown task": "{finetune} --tasks sentiment,mood",
    "empty task": "{finetune} --tasks sentiment,",
    "no such task file": "{finetune} --task-file {tmp}/nope.toml",
    "task file is no toml": "{finetune} --task-file {data}/sts-dev.csv",
    "no such weights": "--option finetune --weights {tmp}/nope --data {data}",
    "weights without files": "--option finetune --weights {tmp} --data {data}",
    "no such init": "--option finetune --init {tmp}/nope --data {data}",
    "init of another pooling": "--option finetune --init {run} --pooling cls --data {data} --threads 1",
    "init and weights": "{finetune} --init {run}",
    "no such device": "{finetune} --device abacus",
    "device is not there": "{finetune} --device cuda:99",
    "device without numbers": "{finetune} --device meta",
    "rate too high": "{finetune} --lr 1e30 --out {tmp}/run",
    "resume with fewer epochs": "--resume --out {run} --epochs 1",
    "out is a file": "{finetune} --out {run}/config.toml",
    "out is below a file": "{finetune} --out {run}/config.toml/x",
    "out holds a run": "{finetune} --out {run}",
    "resume without out": "{finetune} --resume",
    "resume what is not there": "--resume --out {tmp}/nope",
    "resume with another rate": "--resume --out {run} --lr 1",
    "evaluate no run": "--option evaluate",
    "evaluate what is not there": "--option evaluate --run {tmp}/nope",
    "evaluate bare weights": "--option evaluate --run {tiny}",
    "evaluate without its data": "--option evaluate --run {run} --data {tmp}",
    "evaluate an unknown task": "--option evaluate --run {run} --tasks mood",
    "predict no task": "--option predict --run {run}",
    "predict an unknown task": "--option predict --run {run} --task mood",
    "predict from nothing": "--option predict --run {run} --task sentiment --input {tmp}/nope",
    "predict from a folder": "--option predict --run {run} --task sentiment --input {tmp}",
    "predict a pair for one": "--option predict --run {run} --task sentiment --input {data}/sts-dev.csv",
    "predict one for a pair": "--option predict --run {run} --task similarity --input {data}/ids-sst-dev.csv",
    "predict into nothing": "--option predict --run {run} --task sentiment --input {sst} --output {tmp}/a/b",
    "predict into a folder": "--option predict --run {run} --task sentiment --input {sst} --output {tmp}",
}  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_status_2(
    call, finished, finetune, data, tiny, tmp_path, monkeypatch, words
):
    monkeypatch.chdir(tmp_path)
    places = {"finetune": " ".join(finetune), "run": finished, "data": data, "tiny": tiny, "tmp": tmp_path,
              "sst": data / "ids-sst-dev.csv"}  # fmt: skip
    before = contents(finished / "best"), (finished / "config.toml").read_bytes()
    status, _, err = call(*words.format(**places).split())
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) > 20
    assert before == (contents(finished / "best"), (finished / "config.toml").read_bytes())


def test_a_folder_whose_name_is_not_utf8(call, finetune, tmp_path, monkeypatch):
    """Given, or found on the way to what was given: config.toml could not hold it."""
    odd = tmp_path / "caf\udce9"
    assert call(*finetune, "--out", odd)[::2] == (2, f"error: --out must be {TEXT}, not {str(odd)!r}\n")
    (odd / "data").mkdir(parents=True)
    monkeypatch.chdir(odd)
    status, _, err = call("--option", "finetune", "--data", "data")
    assert (status, err) == (2, f"error: --data must be {TEXT}, not {str(odd / 'data')!r}\n")


def test_a_working_directory_that_is_gone(call, finetune, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    status, _, err = call(*finetune)
    assert (status, err) == (2, "error: the working directory no longer exists; change to another one\n")


def test_the_process_prints_its_error_without_a_traceback(tmp_path):
    command = [
        sys.executable,
        "-m",
        "multitask.run",
        "--option",
        "finetune",
        "--data",
        str(tmp_path / "nope"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: --data: {tmp_path}/nope is not a folder\n"


@pytest.mark.parametrize(
    "error, status, said",
    [
        (KeyboardInterrupt(), 130, "--resume"),
        (OSError(28, "No space left on device"), 2, "error: "),
        (
            MemoryError(),
            2,
            "--resume resumes the folder named above, if there is one, from its last saved "
            "state; or train with a smaller --batch-size",
        ),
        (KeyError("x"), 70, "error: a bug in minbert: KeyError in test_run.py:"),
    ],
)
def test_a_stop_from_outside_is_one_message(call, monkeypatch, tmp_path, error, status, said):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(folder, "_held", {})

    def stop(_):
        raise error

    monkeypatch.setitem(jobs.JOBS, "finetune", stop)
    found, _, err = call("--option", "finetune")
    assert found == status and said in err and "Traceback" not in err


# Tasks of one's own


def test_tasks_of_ones_own_end_to_end(call, tiny, tmp_path):
    path = tmp_path / "tasks.toml"
    path.write_text(TOPIC)
    data, run = write_tables(tmp_path / "data", read_task_file(path)), tmp_path / "run"
    status, out, err = call("--option", "finetune", "--weights", tiny, "--data", data, "--task-file", path,
                            "--out", run, *SMALL)  # fmt: skip
    assert (status, err) == (0, "")
    assert "  topic               12 rows" in out and "  closeness           12 rows" in out
    assert names(run / "predictions") == [
        "closeness-dev-output.csv", "closeness-test-output.csv", "t-dev-output.csv",
        "t-dev-probabilities.csv", "t-test-output.csv", "t-test-probabilities.csv",
    ]  # fmt: skip
    lines = (run / "predictions" / "t-dev-output.csv").read_text().splitlines()
    assert lines[0] == "id \t Topic " and lines[1].startswith("topic-dev-0 , ")
    path.unlink()  # from here on, the model knows its tasks
    assert call("--option", "evaluate", "--run", run)[0] == 0
    source = write_table(tmp_path / "in", [["key", "text"], ["k1", "a good film"]])
    status, out, _ = call("--option", "predict", "--run", run, "--task", "topic", "--input", source)
    assert status == 0 and out.splitlines()[1].startswith("k1\t")
    assert len(MultitaskBert.load(run / "best").predict_proba("topic", ["a man eats"])[0]) == 3


def area_under_curve(probabilities: Path, table: Path) -> float:
    """How often a pair of class 1 is given more of class 1 than a pair of class 0: chance is 1/2, whatever
    the classes' shares."""
    given = [float(line.split("\t")[2]) for line in probabilities.read_text().splitlines()[1:]]
    labels = [float(line.split("\t")[-1]) for line in table.read_text().splitlines()[1:]]
    ones = [value for value, label in zip(given, labels, strict=True) if label == 1]
    zeros = [value for value, label in zip(given, labels, strict=True) if label == 0]
    return sum((one > zero) + (one == zero) / 2 for one in ones for zero in zeros) / len(ones) / len(zeros)


@pytest.mark.slow
def test_the_main_job_learns_every_task_of_the_shipped_sample(call, tmp_path):
    """The README's command: default flags, the sample, real weights. Always giving the largest class would
    reach .236 on sentiment and .575 on paraphrase, and a correlation of 0 on similarity."""
    status, _, err = call("--option", "finetune", "--threads", "2", "--out", tmp_path / "run")
    assert (status, err) == (0, "")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    dev = max((record["dev"] for record in records), key=lambda dev: dev["score"])
    assert dev["sentiment"]["accuracy"] > 0.5
    assert dev["similarity"]["pearson"] > 0.6
    assert dev["paraphrase"]["accuracy"] > 0.75
