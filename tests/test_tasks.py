"""tasks.py: which tasks are valid, which labels they accept, and the way through TOML and back."""

import math
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from helpers import ROOT

from minbert.errors import InputError
from multitask.data.kinds import BINARY, CLASSIFICATION, REGRESSION
from multitask.data.tasks import (
    BUILT_IN,
    PARAPHRASE,
    SENTIMENT,
    SIMILARITY,
    Task,
    first_of_single_texts_in_classes,
    read_task_file,
    select,
    task_from_toml,
    task_to_toml,
)

TOPIC = '[topic]\nkind = "binary"\ntexts = ["text"]\nlabel = "topic"\nfiles = "topic-{split}.csv"\n'
CLASSES = TOPIC.replace("binary", "classification")
REAL = TOPIC.replace("binary", "regression")
COUNT = "a whole number, at least 0 and at most 10,000"


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"name": "my task"}, "invalid name"),
        ({"name": ""}, "invalid name"),
        ({"texts": ()}, "one or two columns, not 0"),
        ({"texts": ("a", "b", "c")}, "one or two columns, not 3"),
        ({"files": "train.csv"}, "files needs {split}"),
        ({"files": "../{split}.csv"}, "without folders"),
        ({"num_classes": 1}, "from 2 to 10,000"),
        ({"files": ""}, "name its tables, with files or with train, dev and test"),
        ({"files": "", "train": "a.csv"}, "lacks dev; name a table, or hold out a part of train with dev_fr"),
        ({"dev": "b.csv", "dev_fraction": 0.1}, "dev and dev_fraction exclude each other"),
        ({"train": "../a.csv"}, "must be files in the data folder"),
        ({"test": "/a.csv"}, "must be files in the data folder"),
        ({"labels": ("bad", "good")}, "has 5 classes, not 2"),
        ({"labels": ("a", "b", "c", "d", "d")}, "labels must differ"),
        ({"labels": ("a", "b", "c", "d", " e")}, "label ' e' has spaces at its ends"),
        ({"class_weights": (1.0, 2.0)}, "class_weights must have 5 numbers, not 2"),
        ({"metric": "pearson"}, "metric of a classification must be one of accuracy, f1_macro, mcc"),
        ({"output": "a\0b"}, "not contain control characters"),
        ({"header": "a\nb"}, "not contain control characters"),
        ({"output": "a" * 101}, "up to 100 bytes"),
        ({"name": "a" * 101}, "up to 100 bytes"),
        ({"kind": BINARY}, "num_classes is for a classification only"),
        ({"high": 5.0}, "high is for a regression only"),
        ({"low": 5.0, "high": 5.0}, "low must be below high"),
        ({"low": math.nan}, "low must be below high"),
        ({"texts": ("a", "a")}, "columns must differ"),
        ({"label": "sentence"}, "columns must differ"),
        ({"id": "sentiment"}, "columns must differ"),
    ],
)
def test_a_task_that_cannot_be_is_refused(change, problem):
    with pytest.raises(InputError, match=r"^task .*" + problem.replace("{", r"\{")):
        replace(SENTIMENT, **change)


def test_outputs_metric_and_score():
    assert [task.outputs for task in BUILT_IN.values()] == [5, 1, 1]
    assert [task.kind.metric for task in BUILT_IN.values()] == ["accuracy", "accuracy", "pearson"]
    assert SENTIMENT.kind.score(0.5) == PARAPHRASE.kind.score(0.5) == 0.5
    assert SIMILARITY.kind.score(0.5) == 0.75  # (1 + r) / 2


def test_classes():
    assert [task.classes for task in BUILT_IN.values()] == [5, 2, 0]


def test_unit_is_a_fifth_of_a_regressions_range():
    assert [task.unit for task in BUILT_IN.values()] == [1, 1, 1]
    assert replace(SIMILARITY, low=0.0, high=100.0).unit == 20
    assert replace(SIMILARITY, low=-math.inf).unit == 1


def test_submission_is_the_output_or_the_name():
    assert [task.submission for task in BUILT_IN.values()] == ["sst", "para", "sts"]
    assert replace(SENTIMENT, output="").submission == "sentiment"


@pytest.mark.parametrize(
    "task, text, value",
    [
        (SENTIMENT, "3", 3),
        (SENTIMENT, "3.0", 3),
        (SENTIMENT, "0", 0),
        (SENTIMENT, "4", 4),
        (PARAPHRASE, "1.0", 1),
        (PARAPHRASE, "0", 0),
        (SIMILARITY, "3.5", 3.5),
        (SIMILARITY, "0", 0),
        (SIMILARITY, "5.0", 5),
    ],
)
def test_labels_that_are_read(task, text, value):
    assert task.parse_label(text) == value


@pytest.mark.parametrize("task", BUILT_IN.values(), ids=BUILT_IN)
@pytest.mark.parametrize("text", ["good", "", "NaN", "nan", "inf", "-inf", "-1", "6", "1e400", "0x1", "0_1"])
def test_labels_that_no_kind_takes(task, text):
    with pytest.raises(ValueError, match=task.label):
        task.parse_label(text)


@pytest.mark.parametrize(
    "task, text, problem",
    [
        (SENTIMENT, "3.5", "sentiment 3.5 is not a whole number from 0 to 4"),
        (SENTIMENT, "5", "sentiment 5 is not a whole number from 0 to 4"),
        (PARAPHRASE, "0.5", "is_duplicate 0.5 is not a whole number from 0 to 1"),
        (PARAPHRASE, "2", "is_duplicate 2 is not a whole number from 0 to 1"),
        (SIMILARITY, "5.01", "similarity 5.01 is outside 0 to 5"),
        (SIMILARITY, "warm", "similarity 'warm' is not a number"),
    ],
)
def test_labels_that_their_kind_refuses(task, text, problem):
    with pytest.raises(ValueError, match=problem.replace(".", r"\.")):
        task.parse_label(text)


@pytest.mark.parametrize("text", ["inf", "1e300", "-1e16", "nan"])
def test_an_unbounded_regression_takes_numbers_whose_squares_float32_can_add(text):
    task = replace(SIMILARITY, low=-math.inf, high=math.inf)
    assert task.parse_label("-1e15") == -1e15
    with pytest.raises(ValueError, match=r"similarity .* is outside -1e\+15 to 1e\+15"):
        task.parse_label(text)


@pytest.mark.parametrize(
    "low, high", [(0, 1e300), (-1e308, 1e308), (-math.inf, 1e16), (0, 5e-324), (1, 1 + 1e-15)]
)
def test_a_range_in_which_labels_are_too_large_is_refused(low, high):
    """Labels are learned in fifths of the range: 1 is 5e15 of them, where the range is 1e-15 wide."""
    with pytest.raises(InputError, match="low and high are too large, or too close together"):
        replace(SIMILARITY, low=low, high=high)


def test_only_split_is_filled_in_in_a_tables_name():
    task = replace(SENTIMENT, files="{split}-{a}{.csv")
    assert task.path(Path("data"), "dev") == Path("data/dev-{a}{.csv")


def test_select_keeps_the_order_asked_for():
    assert list(select(["similarity", "sentiment"])) == ["similarity", "sentiment"]
    assert select([]) == BUILT_IN
    with pytest.raises(InputError, match="unknown task 'sst'; known are sentiment, paraphrase, similarity"):
        select(["sst"])


def test_mnrl_trains_on_the_first_classification_of_single_texts():
    pairs = replace(SENTIMENT, name="pairs", texts=("a", "b"))
    other = replace(SENTIMENT, name="other")
    known = {task.name: task for task in (PARAPHRASE, pairs, other, SENTIMENT)}
    assert first_of_single_texts_in_classes(known) == other
    with pytest.raises(
        InputError, match="needs a task with classes and one text column; name one with --tasks"
    ):
        first_of_single_texts_in_classes({"pairs": pairs, "paraphrase": PARAPHRASE})


@pytest.mark.parametrize(
    "task",
    [
        *BUILT_IN.values(),
        Task("plain", REGRESSION, ("a", "b"), "y", "{split}.tsv"),
        Task("full", REGRESSION, ("a",), "y", "{split}.tsv", "o", "H", "key", 0, -1.5, 2.0),
        Task("two", CLASSIFICATION, ("a",), "y", "{split}.tsv", num_classes=2),
        Task(
            "named",
            BINARY,
            ("a",),
            "y",
            train="a.csv",
            dev_fraction=0.1,
            labels=("no", "yes"),
            metric="f1",
            weight=2.0,
            class_weights="balanced",
            label_smoothing=0.1,
        ),
        Task("error", REGRESSION, ("a",), "y", train="a", dev="b", test="c", low=0.0, high=9.0, metric="mae"),
        Task("heavy", CLASSIFICATION, ("a",), "y", "{split}", labels=("1", "2"), class_weights=(1.0, 2.0)),
    ],
    ids=lambda task: task.name,
)
def test_a_task_survives_toml(task):
    table = tomllib.loads(tomli_w.dumps(task_to_toml(task)))
    assert task_from_toml(task.name, table, Path("tasks.toml")) == task


def test_the_papers_tasks():
    """As every run before this file existed had them: facts of saved states are made of their repr."""
    assert [repr(task) for task in BUILT_IN.values()] == [
        "Task(name='sentiment', kind='classification', texts=('sentence',), label='sentiment', "
        "files='ids-sst-{split}.csv', output='sst', header='Predicted_Sentiment', id='id', num_classes=5, "
        "low=-inf, high=inf)",
        "Task(name='paraphrase', kind='binary', texts=('sentence1', 'sentence2'), label='is_duplicate', "
        "files='quora-{split}.csv', output='para', header='Predicted_Is_Paraphrase', id='id', num_classes=0, "
        "low=-inf, high=inf)",
        "Task(name='similarity', kind='regression', texts=('sentence1', 'sentence2'), label='similarity', "
        "files='sts-{split}.csv', output='sts', header='Predicted_Similiary', id='id', num_classes=0, "
        "low=0.0, high=5.0)",
    ]
    assert repr(replace(SENTIMENT, weight=2.0)).endswith("low=-inf, high=inf, weight=2.0)")


def test_labels_are_words():
    task = replace(SENTIMENT, num_classes=0, labels=("bad", "so, so", "good"))
    assert (task.outputs, task.classes, task.class_names) == (3, 3, ("bad", "so, so", "good"))
    assert [task.parse_label(label) for label in task.labels] == [0, 1, 2]
    for text in ("1", "Good", ""):
        with pytest.raises(ValueError, match=f"sentiment '{text}' is not one of bad, so, so, good"):
            task.parse_label(text)
    found = task.answers(torch.tensor([[0.0, 1, 2], [2, 1, 0]]))
    assert found.values == ["good", "bad"] and found.numbers.tolist() == [2, 0]
    assert replace(PARAPHRASE, labels=("no", "yes")).answers(torch.tensor([[1.0]])).values == ["yes"]
    assert SIMILARITY.answers(torch.tensor([[1.5]])).values == [1.5]


@pytest.mark.parametrize("labels", [(), ("False", "True"), ("false", "true")])
@pytest.mark.parametrize("text, value", [("true", 1), ("False", 0), ("TRUE", 1), ("false", 0)])
def test_booleans_are_labels_of_a_binary_task(labels, text, value):
    assert replace(PARAPHRASE, labels=labels).parse_label(text) == value
    with pytest.raises(ValueError, match="not a number"):
        SENTIMENT.parse_label(text)


def test_files_of_any_name():
    task = replace(SENTIMENT, files="", train="a/reviews.csv", dev_fraction=0.2)
    paths = [task.path(Path("data"), split) for split in ("train", "dev", "test-student")]
    assert paths == [Path("data/a/reviews.csv")] * 2 + [Path("data")]
    task = replace(SENTIMENT, test="held out.jsonl")
    assert task.path(Path("data"), "test-student") == Path("data/held out.jsonl")
    assert task.path(Path("data"), "dev") == Path("data/ids-sst-dev.csv")


def test_the_training_loss():
    """Balanced over labels 0, 0, 0, 1: weights 4 / (2 x 3) and 4 / (2 x 1)."""
    logits, labels = torch.tensor([[1.0], [-2.0]]), torch.tensor([0, 1])
    each = torch.stack([PARAPHRASE.kind.loss(logits[i : i + 1], labels[i : i + 1]) for i in (0, 1)])
    balanced = replace(PARAPHRASE, class_weights="balanced").training_loss(np.array([0.0, 0, 0, 1]))
    torch.testing.assert_close(balanced(logits, labels), (each[0] * 2 / 3 + each[1] * 2) / 2)
    listed = replace(PARAPHRASE, class_weights=(2.0, 5.0)).training_loss(np.array([0.0]))
    torch.testing.assert_close(listed(logits, labels), (each[0] * 2 + each[1] * 5) / 2)
    assert PARAPHRASE.training_loss(np.array([0.0])) is PARAPHRASE.kind.loss
    smooth = replace(PARAPHRASE, label_smoothing=0.5).training_loss(np.array([0.0]))
    assert smooth(logits, labels) != PARAPHRASE.kind.loss(logits, labels)


def test_a_table_holds_no_defaults():
    assert task_to_toml(Task("plain", BINARY, ("a",), "y", "{split}.tsv")).keys() == {
        "kind", "texts", "label", "files"
    }  # fmt: skip


def test_a_task_file_defines_tasks(tmp_path):
    path = tmp_path / "tasks.toml"
    path.write_text(CLASSES + 'num_classes = 7\n[mood]\nkind = "regression"\ntexts = ["a", "b"]\n'
                    'label = "mood"\nfiles = "mood-{split}.tsv"\nlow = -1\nhigh = 1.5\n')  # fmt: skip
    topic, mood = read_task_file(path).values()
    assert topic == Task("topic", CLASSIFICATION, ("text",), "topic", "topic-{split}.csv", num_classes=7)
    assert mood == Task("mood", REGRESSION, ("a", "b"), "mood", "mood-{split}.tsv", low=-1, high=1.5)


def test_the_task_file_in_the_docs(tmp_path):
    text = (ROOT / "docs" / "data.md").read_text()
    (tmp_path / "tasks.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    review, duplicate, stars = read_task_file(tmp_path / "tasks.toml").values()
    assert (review.outputs, duplicate.weight, stars.kind.score(1.8)) == (3, 2.0, 0.8)
    assert duplicate.path(tmp_path, "test-student").name == "pairs-test.jsonl"


@pytest.mark.parametrize(
    "text, problem",
    [
        ("[topic", "cannot be read as TOML"),
        ("", "defines no tasks"),
        ("kind = 'binary'", "defines no tasks"),
        (TOPIC + "colour = 1\n", "[topic]: unknown key 'colour'"),
        (TOPIC + "text = 'text'\n", "[topic]: unknown key 'text'; did you mean texts?"),
        (TOPIC + "name = 'x'\n", "[topic]: unknown key 'name'"),
        (
            TOPIC.replace("binary", "ranking"),
            "[topic]: kind must be one of classification, binary, regression, not 'ranking'",
        ),
        (CLASSES + "num_classes = '7'\n", f"[topic]: num_classes must be {COUNT}, not '7'"),
        (CLASSES + "num_classes = true\n", f"[topic]: num_classes must be {COUNT}, not True"),
        (CLASSES + "num_classes = 10001\n", f"[topic]: num_classes must be {COUNT}, not 10001"),
        (CLASSES + f"num_classes = 0x{'f' * 5000}\n", f"[topic]: num_classes must be {COUNT}, not int too"),
        (REAL + f"low = -1{'0' * 400}\n", "[topic]: low must be a number, at least -inf and at most inf"),
        (REAL + "low = nan\n", "[topic]: low must be a number, at least -inf and at most inf, not nan"),
        (REAL + "low = 3\nhigh = 2.5\n", "task topic: low must be below high"),
        (TOPIC + f"low = {'[' * 5000}", "cannot be read as TOML (nested too deeply)"),
        (TOPIC.replace("[topic]", '["a\\u001bb"]'), r"'a\x1bb': invalid task name"),
        (REAL + "low = 'a'\n", "[topic]: low must be a number, at least -inf and at most inf, not 'a'"),
        (
            TOPIC.replace('["text"]', '"text"'),
            "[topic]: texts must be a list of non-empty UTF-8 texts without NUL, not 'text'",
        ),
        (TOPIC.replace('label = "topic"\n', ""), "[topic]: lacks label"),
        ("[topic]\n", "[topic]: lacks kind, texts, label"),
        (CLASSES, "task topic: a classification needs labels, or num_classes from 2 to 10,000"),
        (CLASSES + "num_classes = 1\n", "a classification needs labels, or num_classes from 2 to 10,000"),
        (TOPIC + "labels = [1, 2]\n", "[topic]: labels must be a list of non-empty UTF-8 texts"),
        (TOPIC + "labels = ['a', 'b', 'c']\n", "task topic: has 2 classes, not 3"),
        (TOPIC + "class_weights = 'balance'\n", "[topic]: class_weights must be 'balanced' or a list of num"),
        (TOPIC + "class_weights = [0, 1]\n", "[topic]: class_weights must be 'balanced' or a list of num"),
        (
            TOPIC + "metric = 'bleu'\n",
            "metric of a binary must be one of accuracy, f1_macro, f1, mcc, not 'bleu'",
        ),
        (TOPIC + "metric = 'rmse'\n", "task topic: metric of a binary must be one of accuracy, f1_macro, f1"),
        (TOPIC + "weight = 0\n", "[topic]: weight must be a number, at least 0.001"),
        (TOPIC + "dev_fraction = 1\n", "[topic]: dev_fraction must be a number, at least 0 and below 1"),
        (REAL + "metric = 'mse'\n", "one of pearson, spearman, rmse, mae, not 'mse'; did you mean rmse?"),
        (REAL + "metric = 'mae'\n", "task topic: metric mae needs low and high"),
        (REAL + "class_weights = 'balanced'\n", "class_weights is for a classification or binary only"),
        (
            TOPIC.replace('["text"]', "[1, 2]"),
            "[topic]: texts must be a list of non-empty UTF-8 texts without NUL, not [1, 2]",
        ),
        (
            TOPIC.replace('["text"]', '["text", 1]'),
            "[topic]: texts must be a list of non-empty UTF-8 texts without NUL, not [",
        ),
        (TOPIC.replace('["text"]', "[]"), "task topic: texts must name one or two columns, not 0"),
        (
            TOPIC.replace("[topic]", "[score]"),
            "task score: this name is reserved",
        ),  # a key of dev
        (TOPIC.replace("[topic]", "[all]"), "task all: this name is reserved"),  # a key of loss
        (TOPIC + "output = '../../topic'", "task topic: output must be the start of a file name"),
        (
            TOPIC + "output = 'x'\n" + TOPIC.replace("[topic]", "[other]") + "output = 'x'",
            "two tasks share an output",
        ),
    ],
)
def test_a_bad_task_file_is_named_with_its_key(tmp_path, text, problem):
    path = tmp_path / "tasks.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_task_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, lambda path: path.write_bytes(b"\xff")])
def test_a_task_file_that_cannot_be_read(tmp_path, make):
    make(tmp_path / "tasks.toml")
    with pytest.raises(InputError, match=r"tasks\.toml: cannot be read"):
        read_task_file(tmp_path / "tasks.toml")
