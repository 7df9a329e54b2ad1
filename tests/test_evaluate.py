"""evaluate.py: numbers by hand, rows in their own order, and the course's files to the byte."""

import csv
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from multitask import MultitaskBert, inference
from multitask.data.tables import Row, parse
from multitask.data.tasks import BUILT_IN
from multitask.data.tokens import Examples, Tokens
from multitask.evaluate import all_logits, format_scores, losses, scores, summary, write_predictions


class Stub:
    """A model whose logits are the first token's number, times 1, 2, ... by column."""

    tasks = BUILT_IN
    device = torch.device("cpu")
    max_length = 512
    tokenizer = SimpleNamespace(pad_token_id=0)
    logits_of_tokens = MultitaskBert.logits_of_tokens

    def eval(self) -> None:
        pass

    def __call__(self, task: str, batch: dict[str, Tensor]) -> Tensor:
        return batch["input_ids"][:, :1].float() * torch.arange(1, self.tasks[task].outputs + 1)


def tokens(count: int) -> Tokens:
    """Row n begins with token n; the lengths go up and down."""
    return Tokens.join([[([row] * (1 + row * 7 % 5), [0] * (1 + row * 7 % 5)) for row in range(count)]], 100)


def test_scores_are_over_whole_splits_and_average_shares_of_1(monkeypatch):
    """40 rows, more than one batch. Every logit is positive but row 0's, so sentiment predicts class 4 for 39
    rows, and class 0 for the row of zeros; paraphrase says 0 once and 1 after that. Similarity predicts
    0..39; where the second half's labels start anew at 0, each half correlates perfectly and the whole does
    not."""
    labels = {"sentiment": np.full(40, 4.0), "paraphrase": np.ones(40), "similarity": np.arange(40.0) % 20}
    data = {name: Examples([str(row) for row in range(40)], tokens(40), labels[name]) for name in BUILT_IN}
    monkeypatch.setattr(inference, "EVALUATION_TOKENS", 40)
    model = cast(MultitaskBert, Stub())
    result = scores(BUILT_IN, all_logits(model, data), data)
    r = np.corrcoef(np.arange(40), np.arange(40) % 20)[0, 1]
    assert 0.4 < r < 0.6
    assert result["sentiment"] == {"accuracy": 39 / 40}
    assert result["paraphrase"] == {"accuracy": 39 / 40}
    assert result["similarity"] == {"pearson": pytest.approx(r)}
    assert result["score"] == pytest.approx((39 / 40 + 39 / 40 + (1 + r) / 2) / 3)
    assert result["worst"] == pytest.approx((1 + r) / 2)
    assert result["spread"] == pytest.approx(39 / 40 - (1 + r) / 2)


def test_losses():
    """-ln 3/4 and -ln 1/4 of a class, -ln 1/2 of a logit 0, and (2 - 4)^2 = 4: means over the examples. A
    task from 0 to 10 counts in fifths of its range, 2: its squared error (4 / 2 - 8 / 2)^2 is the same 4."""
    two = replace(BUILT_IN["sentiment"], num_classes=2)
    wide = replace(BUILT_IN["similarity"], high=10.0)
    tasks = {
        "two": two,
        "paraphrase": BUILT_IN["paraphrase"],
        "similarity": BUILT_IN["similarity"],
        "wide": wide,
    }
    row = torch.tensor([0.0, math.log(3)])
    logits = {
        "two": torch.stack([row, row]), "paraphrase": torch.zeros(3, 1), "similarity": torch.tensor([[2.0]]),
        "wide": torch.tensor([[4.0]]),
    }  # fmt: skip
    labels = {"two": [1, 0], "paraphrase": [0, 1, 1], "similarity": [4], "wide": [8]}
    data = {name: Examples([], tokens(0), np.array(values, float)) for name, values in labels.items()}
    wanted = {"two": -math.log(3 / 16) / 2, "paraphrase": math.log(2), "similarity": 4.0, "wide": 4.0}
    assert losses(tasks, logits, data) == pytest.approx(wanted)


def test_the_table_shows_r_and_its_share():
    dev = {"sentiment": {"accuracy": 0.5}, "similarity": {"pearson": 0.8}}
    dev |= {"score": 0.7, "worst": 0.5, "spread": 0.4}
    tasks = {name: BUILT_IN[name] for name in ("sentiment", "similarity")}
    lines = [line.split() for line in format_scores(tasks, dev).split("\n")]
    assert lines == [
        ["sentiment", "accuracy", "0.500"],
        ["similarity", "pearson", "0.800"],
        ["(1", "+", "r)", "/", "2", "0.900"],
        ["score", "0.700"],
        ["worst", "0.500"],
        ["spread", "0.400"],
    ]
    both = format_scores(tasks, dev, {**dev, "score": 0.6}).split("\n")
    assert both[0].split()[2:] == ["0.500", "0.500"] and both[3].split() == ["score", "0.700", "0.600"]
    ends = {name: [0.4, 0.75] for name in ("score", "worst", "spread")}
    ends |= {"sentiment": {"accuracy": [0.25, 0.5]}, "similarity": {"pearson": [-1.0, -0.5]}}
    lines = format_scores(tasks, dev, dev, intervals=ends).split("\n")
    assert lines[0] == "  sentiment    accuracy     0.500  [0.250, 0.500]    0.500"
    assert lines[1] == "  similarity   pearson      0.800  [-1.000, -0.500]  0.800"
    assert lines[2] == "               (1 + r) / 2  0.900                    0.900"
    line = (
        "sentiment accuracy 0.500, similarity pearson 0.800 ((1 + r) / 2 = 0.900), "
        "score 0.700, worst 0.500, spread 0.400"
    )
    assert summary(tasks, dev) == line


def test_submission_files_are_the_courses(tmp_path):
    ids = ["a1", "b2"]
    two = tensor([[0.0, 0, 0, 9, 0], [9.0, 0, 0, 0, 0]])
    path = write_predictions(tmp_path / "new", BUILT_IN["sentiment"], "dev", ids, two)
    assert path == tmp_path / "new" / "sst-dev-output.csv"
    assert path.read_bytes() == b"id \t Predicted_Sentiment \na1 , 3 \nb2 , 0 \n"
    path = write_predictions(tmp_path, BUILT_IN["paraphrase"], "test", ids, tensor([[-1.0], [2.0]]))
    assert path == tmp_path / "para-test-output.csv"
    assert path.read_bytes() == b"id \t Predicted_Is_Paraphrase \na1 , 0 \nb2 , 1 \n"
    path = write_predictions(tmp_path, BUILT_IN["similarity"], "dev", ids, tensor([[2.5], [-1.0]]))
    assert path == tmp_path / "sts-dev-output.csv"
    assert path.read_bytes() == b"id \t Predicted_Similiary \na1 , 2.5 \nb2 , -1.0 \n"


def test_a_submission_file_reads_back(tmp_path):
    values = torch.randn(50, 1)
    path = write_predictions(tmp_path, BUILT_IN["similarity"], "dev", map(str, range(50)), values)
    rows = [line.split(" , ") for line in path.read_text().splitlines()[1:]]
    assert [row_id for row_id, _ in rows] == [str(row) for row in range(50)]
    assert [float(value) for _, value in rows] == values.squeeze(1).tolist()


@given(st.lists(st.text() | st.text('a ,\r\n\t\x85\u2028"', min_size=1), min_size=1, max_size=8), st.data())
def test_whatever_ids_a_table_may_have_its_submission_file_reads_back(ids, data):
    """From a table, whose reader refuses what a line cannot hold, through the file and back: every id with
    its value, in order."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [
            "id\tsentence1\tsentence2",
            *(f'"{text.replace(chr(34), 2 * chr(34))}"\ta\tb' for text in ids),
        ]
        items = parse([line.encode() for line in lines], "t", BUILT_IN["similarity"], labelled=False)
        taken = [item.id for item in items if isinstance(item, Row)]
        values = tensor([[data.draw(st.floats(width=32, allow_nan=False))] for _ in taken]).reshape(-1, 1)
        path = write_predictions(Path(folder), BUILT_IN["similarity"], "dev", taken, values)
        with path.open(encoding="utf-8") as file:  # with every line end that Python knows
            rows = [line.rstrip("\n").rsplit(" , ", 1) for line in file][1:]
        assert [row_id for row_id, _ in rows] == taken
        assert [float(value) for _, value in rows] == values.squeeze(1).tolist()
        assert len(path.read_text(encoding="utf-8").splitlines()) == len(taken) + 1


def test_probabilities_lie_beside_the_predictions_of_classes(tmp_path):
    write_predictions(tmp_path, BUILT_IN["paraphrase"], "dev", ["a"], tensor([[math.log(3)]]))
    assert (tmp_path / "para-dev-probabilities.csv").read_text() == (
        "id\tclass_0\tclass_1\na\t0.250000\t0.750000\n"
    )
    write_predictions(tmp_path, BUILT_IN["sentiment"], "dev", ["a"], torch.zeros(1, 5))
    assert (tmp_path / "sst-dev-probabilities.csv").read_text().splitlines()[1] == "a" + "\t0.200000" * 5
    write_predictions(tmp_path, BUILT_IN["similarity"], "dev", ["a"], torch.zeros(1, 1))
    assert not (tmp_path / "sts-dev-probabilities.csv").exists()


@pytest.mark.parametrize("name", ['"', "=1+1", "a , b", "'a"])
def test_probabilities_read_back_whatever_the_id(tmp_path, name):
    write_predictions(tmp_path, BUILT_IN["paraphrase"], "dev", [name, "b"], torch.zeros(2, 1))
    with (tmp_path / "para-dev-probabilities.csv").open(newline="") as file:
        assert [row[0] for row in csv.reader(file, delimiter="\t")] == ["id", name, "b"]


def test_an_id_for_every_row(tmp_path):
    with pytest.raises(ValueError):
        write_predictions(tmp_path, BUILT_IN["similarity"], "dev", ["a"], torch.zeros(2, 1))
