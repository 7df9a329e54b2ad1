"""report/card.py: the hub reads the front matter, the command trains such a model, nothing is left out."""

import json
import shlex
from pathlib import Path

import pytest
from helpers import make_config, make_model

from minbert.errors import InputError
from multitask import jobs
from multitask.command_line import resolve
from multitask.config import PATHS, Config, decisive
from multitask.data.kinds import BINARY, CLASSIFICATION, REGRESSION
from multitask.data.tasks import BUILT_IN, Task
from multitask.report.card import (
    Subject,
    answers,
    card,
    repository_of,
    tables_of,
    training_command,
    usage_of_run,
)
from multitask.report.origin import pretraining
from multitask.run import main

yaml = pytest.importorskip("yaml", reason="comes with the extra export")
RESULT = {
    "dev": {
        "sentiment": {"accuracy": 0.51},
        "paraphrase": {"accuracy": 0.8, "f1": 0.75},
        "similarity": {"pearson": 0.9},
        "score": 0.7533, "worst": 0.51, "spread": 0.44,
    },
    "best_epoch": 3,
}  # fmt: skip


def subject(folder: Path, tiny: Path, settings=None, result=None, tasks=None) -> Subject:
    make_model(tiny, max_length=64).save(folder)
    settings = make_config("finetune", data="/home/me/tables").settings if settings is None else settings
    return Subject.of(folder, settings, RESULT if result is None else result, tasks)


def text_of(one: Subject) -> str:
    return card(one, usage_of_run(one))


def front(text: str) -> dict:
    _, head, _ = text.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_hub_reads_every_score(tiny, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="the extra hub is not installed")
    text = text_of(subject(tmp_path, tiny))
    data = hub.ModelCard(text, ignore_metadata_errors=False).data
    assert data.base_model == "sentence-transformers/all-MiniLM-L6-v2" and data.library_name == "minbert"
    found = [(one.dataset_name, one.metric_type, one.metric_value) for one in data.eval_results]
    assert found == [
        ("ids-sst-dev.csv", "accuracy", 0.51),
        ("quora-dev.csv", "accuracy", 0.8),
        ("quora-dev.csv", "f1", 0.75),
        ("sts-dev.csv", "pearson", 0.9),
    ]


def test_it_says_what_a_reader_needs(tiny, tmp_path):
    text = text_of(subject(tmp_path, tiny))
    for said in (
        "# minilm-l6 for sentiment, paraphrase, similarity\n",
        "2 layers, width 32, pooling `mean`, inputs of up to 64 tokens",
        "| `sentiment` | a text | `0`, `1`, `2`, `3`, `4` |",
        "| `similarity` | a pair of texts | a number from 0 to 5 |",
        "| `similarity` | `pearson` | 0.900 |", "|  | `score` | 0.753 |",
        "each task on a scale from 0 to 1 (`pearson` as (1 + r) / 2).",
        'model.predict("paraphrase", [("One text.", "Another text.")])', 
        "`sts-train.csv`, `sts-dev.csv` in `tables`.",
        "the model of epoch 3", "scores on QQP are not clean", "slightly optimistic",
    ):  # fmt: skip
        assert said in text, said
    assert "interval" not in text and "/home/me" not in text


def test_intervals_stand_beside_the_scores(tiny, tmp_path):
    result = RESULT | {"intervals": {"sentiment": {"accuracy": [0.48, 0.541]}, "score": [0.7, "?"]}}
    text = text_of(subject(tmp_path, tiny, result=result))
    assert "| `sentiment` | `accuracy` | 0.510 | 0.480 to 0.541 |" in text
    assert "| `similarity` | `pearson` | 0.900 |  |" in text and "|  | `score` | 0.753 |  |" in text


def test_a_part_of_a_model_has_its_own_scores_alone(tiny, tmp_path):
    one = subject(tmp_path, tiny, tasks={"similarity": BUILT_IN["similarity"]})
    assert [(name, value) for name, _, value, _ in one.scores] == [("similarity", 0.9)]
    none = subject(tmp_path, tiny, tasks={})
    assert list(none.scores) == [] and "how well they compare texts was not measured" in text_of(none)


@pytest.mark.parametrize(
    "result", [{}, {"dev": 3}, {"dev": {"sentiment": "1", "score": None}}, {"intervals": []}]
)
def test_results_of_another_form(tiny, tmp_path, result):
    text = text_of(subject(tmp_path, tiny, result=result))
    assert "## Scores" not in text and "model-index" not in front(text)


def test_hostile_names_stay_text(tiny, tmp_path):
    settings = make_config("finetune", weights='/x"\n---\nlicense: mit\n# \x1b[2J `|').settings
    result = {"dev": {"sentiment": {"acc|\n`uracy": 0.5}}}
    text = text_of(subject(tmp_path, tiny, settings=settings, result=result))
    assert "\x1b" not in text and "license" not in front(text)
    assert front(text)["model-index"][0]["name"].startswith('x" --- license: mit')
    assert "| `acc\\| 'uracy` |" in text


def test_a_run_without_its_folder_and_one_of_the_sample(tiny, tmp_path):
    assert "Its scores are not known" in text_of(subject(tmp_path, tiny, settings={}, result={}))
    sample = make_config("finetune", weights="bert-tiny").settings
    text = text_of(subject(tmp_path, tiny, settings=sample))
    assert "too small for its scores to mean anything" in text and "QQP" not in text
    assert front(text)["base_model"] == "google/bert_uncased_L-2_H-128_A-2"


@pytest.mark.parametrize(
    ("weights", "base", "what"),
    [
        ("prajjwal1/bert-tiny", "prajjwal1/bert-tiny", None),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "Quora"),
        ("/models/minilm-l6", "sentence-transformers/all-MiniLM-L6-v2", "Quora"),
        ("bert-tiny", "google/bert_uncased_L-2_H-128_A-2", "BooksCorpus"),
    ],
)
def test_a_repository_of_another_owner_is_another_checkpoint(weights, base, what):
    assert repository_of(weights) == base
    said = pretraining(weights)
    assert what in said[0] if what else said == []


def test_a_table_that_is_divided_is_named_once():
    one = Task("t", BINARY, ("a",), "b", train="all.csv", dev_fraction=0.2)
    assert tables_of(one) == ["`all.csv` (20% of it held out as dev)"]
    assert tables_of(BUILT_IN["similarity"]) == ["`sts-train.csv`", "`sts-dev.csv`"]


def test_many_classes_are_counted():
    assert (
        answers(Task("t", CLASSIFICATION, ("a",), "b", "{split}", num_classes=1000)) == "one of 1,000 classes"
    )
    assert answers(Task("t", BINARY, ("a",), "b", "{split}", labels=("no", "yes"))) == "`no`, `yes`"
    assert answers(Task("t", REGRESSION, ("a",), "b", "{split}", low=-1.0)) == "a number from -1"


@pytest.mark.parametrize(
    "words",
    [
        "--option pretrain --lr 0.001",
        "--option finetune --tasks similarity,sentiment --skip-bad-rows --no-report --max-tokens 512",
        "--option finetune --smart-weight 1.5 --smart-norm 2 --bregman-weight 1 --bregman-beta 0.99:0.999",
        "--option mnrl --groups 2 --weights bert-tiny --lr 5e-06",
        "--option mlm --whole-words --mask-rate 0.2 --sampling proportional",
        "--option distill --run {0}/both --distill-weight 0.5",
    ],
)
def test_the_command_trains_such_a_model(words, tmp_path):
    config = resolve(shlex.split(words.format(tmp_path)))
    assert isinstance(config, Config)
    program, again = training_command(config.settings).split(" --", 1)
    assert program == "python -m multitask.run" and str(tmp_path) not in again
    same = resolve(shlex.split("--" + again))
    assert isinstance(same, Config)
    assert decisive(same.settings) == decisive(config.settings)
    assert not {"--out", "--threads", "--lr 0.001"} & {*again.split()}


def test_paths_are_told_by_their_names():
    settings = make_config("finetune", data="/a/my tables", init="/b/heads").settings
    again = training_command(settings).removeprefix("python -m multitask.run ")
    assert again == "--option finetune --data 'my tables' --init heads"
    assert {"data", "init"} <= {*PATHS}


def test_a_finished_run_has_its_card_and_an_unfinished_one_none(tiny, tmp_path, monkeypatch):
    """A run that is resumed writes best/ anew, without the card of before."""
    words = ["--option", "finetune", "--weights", str(tiny), "--steps-per-epoch", "2", "--threads", "1",
             "--schedule", "constant", "--warmup", "0", "--keep-state",
             "--out", str(tmp_path / "run")]  # fmt: skip
    assert main([*words, "--epochs", "1"]) == 0
    path = tmp_path / "run" / "best" / "README.md"
    (model,) = front(path.read_text())["model-index"]
    scores = {one["task"]["name"]: one["metrics"][0]["value"] for one in model["results"]}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert scores == {name: round(*result["dev"][name].values(), 4) for name in BUILT_IN}

    def cannot(run: Path, found: object) -> None:
        raise InputError("config.toml: was cut")

    monkeypatch.setattr(jobs, "write_card", cannot)
    assert main([*words, "--epochs", "2", "--resume"]) == 0
    assert not path.exists() and (tmp_path / "run" / "result.json").exists()
