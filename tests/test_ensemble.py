"""ensemble.py: which runs are members and what is averaged; and the option from end to end."""

import json
import math

import pytest
import torch
from helpers import write_tables

from minbert.errors import InputError
from multitask.data.kinds import BINARY, CLASSIFICATION
from multitask.methods.ensemble import average, mean_bernoulli, mean_outputs, mean_probabilities, members
from multitask.run import main


def test_members_reach_the_threshold():
    scores = {"a": 0.52, "b": 0.53, "c": 0.9}
    assert members("sentiment", scores, 0.53) == ["b", "c"]


def test_no_member_lists_every_score():
    with pytest.raises(
        InputError,
        match=r"^sentiment: no run reaches the threshold 0\.53 \(a 0\.500, b 0\.100\); "
        r"lower --thresholds, or take the best run with --or-best$",
    ):
        members("sentiment", {"a": 0.5, "b": 0.1}, 0.53)


def test_the_best_run_stands_in_where_it_may():
    assert members("sentiment", {"a": 0.1, "b": 0.5}, 0.53, or_best=True) == ["b"]
    assert members("sentiment", {"a": 0.5, "b": 0.1}, 0.53, or_best=True) == ["a"]
    assert members("sentiment", {"a": 0.1, "b": 0.5}, 0.05, or_best=True) == ["a", "b"]


def test_classes_average_their_probabilities():
    """(.75, .25), (.75, .25) and (.001, .999) give (.5003, .4997): class 0. The mean of the logits would say
    class 1, since ln .001 outweighs the rest."""
    rows = [[0.75, 0.25], [0.75, 0.25], [0.001, 0.999]]
    logits = average(mean_probabilities, [torch.tensor([row]).log() for row in rows])
    torch.testing.assert_close(
        CLASSIFICATION.probabilities(logits).float(), torch.tensor([[0.50033, 0.49967]])
    )
    assert CLASSIFICATION.decode(logits).item() == 0


def test_a_binary_task_averages_its_probabilities():
    """sigmoid(ln 3) = .75 and sigmoid(0) = .5: .625, whose logit is ln(5/3)."""
    logits = average(mean_bernoulli, [torch.tensor([[math.log(3)]]), torch.tensor([[0.0]])])
    assert logits.item() == pytest.approx(math.log(5 / 3))


def test_a_regression_averages_its_outputs():
    assert average(mean_outputs, [torch.tensor([[1.0]]), torch.tensor([[4.0]])]).item() == 2.5
    values = [torch.tensor([[1.0]]), torch.tensor([[4.0]])]  # (1 + 2 * 4) / 3, in double precision
    assert average(mean_outputs, values, [1.0, 2.0]).item() == pytest.approx(3, rel=1e-12)
    assert average(mean_outputs, [*values, torch.tensor([[4.0]])]).item() == pytest.approx(3, rel=1e-12)


def test_weights_are_fractions_up_to_a_factor():
    """Weights 3 and 1, or 6 and 2, are fractions of 3/4 and 1/4. Classes: 3/4 (.8, .2) + 1/4 (.4, .6) =
    (.7, .3).
    Binary: sigmoid(ln 4) = .8 and sigmoid(0) = .5 give .725, whose logit is ln(.725 / .275). Values: 1 and 5
    give 2."""
    rows = [torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]]).log()]
    for weights in ([3.0, 1.0], [6.0, 2.0]):
        mixed = CLASSIFICATION.probabilities(average(mean_probabilities, rows, weights))
        torch.testing.assert_close(mixed.float(), torch.tensor([[0.7, 0.3]]))
        logit = average(mean_bernoulli, [torch.tensor([[math.log(4)]]), torch.tensor([[0.0]])], weights)
        assert logit.item() == pytest.approx(math.log(0.725 / 0.275))
        value = average(mean_outputs, [torch.tensor([[1.0]]), torch.tensor([[5.0]])], weights)
        assert value.item() == pytest.approx(2)


def test_certainty_survives():
    """A probability that rounds to 0 or 1 stays so, and its logit stays finite: two members that both give
    class 0 a probability of e^-2000 give it e^-2000 on average."""
    sure = [torch.tensor([[1000.0, -1000.0]])] * 2
    assert CLASSIFICATION.probabilities(average(mean_probabilities, sure)).tolist() == [[1.0, 0.0]]
    torch.testing.assert_close(
        average(mean_probabilities, sure), torch.tensor([[0.0, -2000.0]], dtype=torch.float64)
    )
    assert BINARY.probabilities(average(mean_bernoulli, [torch.tensor([[1000.0]])])).tolist() == [[0.0, 1.0]]
    assert average(mean_bernoulli, [torch.tensor([[1000.0]])] * 2).item() == pytest.approx(1000)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("ensemble")
    data = write_tables(folder / "data")
    for seed in (1, 2):
        words = ["--option", "finetune", "--weights", str(tiny), "--data", str(data), "--epochs", "1"]
        assert (
            main([*words, "--steps-per-epoch", "6", "--seed", str(seed), "--out", str(folder / str(seed))])
            == 0
        )
    return folder


def test_an_ensemble_of_two_runs(runs, capsys):
    out = runs / "both"
    assert main(["--option", "ensemble", "--run", str(runs / "1"), str(runs / "2"), "--out", str(out)]) == 0
    report = json.loads((out / "result.json").read_text())
    assert report["tasks"]["similarity"]["members"] == [str(runs / "1"), str(runs / "2")]
    assert set(report["dev"]) == {"sentiment", "paraphrase", "similarity", "score", "worst", "spread"}
    values = [
        [
            float(line.split(" , ")[1])
            for line in (run / "predictions" / "sts-dev-output.csv").read_text().splitlines()[1:]
        ]
        for run in (runs / "1", runs / "2", out)
    ]
    for one, two, mean in zip(*values, strict=True):
        assert mean == pytest.approx((one + two) / 2, abs=1e-5)
    assert (out / "predictions" / "para-test-output.csv").is_file()
    assert "sentiment: 2 of 2 runs" in capsys.readouterr().out


def test_an_ensemble_of_one_run_repeats_it(runs):
    out = runs / "alone"
    assert main(["--option", "ensemble", "--run", str(runs / "1"), "--out", str(out)]) == 0
    for name in (
        "sst-dev-output.csv",
        "sst-test-output.csv",
        "para-dev-output.csv",
        "para-dev-probabilities.csv",
    ):
        assert (out / "predictions" / name).read_text() == (runs / "1" / "predictions" / name).read_text()


def test_a_threshold_that_no_run_reaches(runs, capsys):
    words = ["--option", "ensemble", "--run", str(runs / "1"), "--out", str(runs / "none")]
    assert main([*words, "--thresholds", "sentiment=1"]) == 2
    assert "sentiment: no run reaches the threshold 1 (" in capsys.readouterr().err


def test_a_threshold_of_an_unknown_task(runs, capsys):
    words = ["--option", "ensemble", "--run", str(runs / "1"), "--out", str(runs / "typo")]
    assert main([*words, "--thresholds", "sentimnt=0.5"]) == 2
    assert "sentimnt" in capsys.readouterr().err


def test_runs_named_one_by_one_are_all_members(runs, capsys):
    words = ["--option", "ensemble", "--run", str(runs / "1"), "--run", str(runs / "2" / "best")]
    assert main([*words, "--out", str(runs / "apart")]) == 0
    said = capsys.readouterr().out
    assert "sentiment: 2 of 2 runs" in said and f"on the dev tables of {runs / 'data'}" in said


def test_runs_that_define_a_task_differently_are_refused(runs, tiny, tmp_path, capsys):
    own = tmp_path / "tasks.toml"
    own.write_text('[similarity]\nkind = "regression"\ntexts = ["sentence1", "sentence2"]\n'
                   'label = "similarity"\nfiles = "sts-{split}.csv"\nlow = 0\nhigh = 10\n')  # fmt: skip
    train = ["--option", "finetune", "--weights", str(tiny), "--data", str(runs / "data"), "--epochs", "1"]
    assert main([*train, "--task-file", str(own), "--out", str(tmp_path / "own")]) == 0
    both = ["--run", str(runs / "1"), str(tmp_path / "own")]
    assert main(["--option", "ensemble", *both, "--out", str(tmp_path / "both")]) == 2
    assert "defines its task similarity differently" in capsys.readouterr().err


def test_a_run_of_mnrl_has_nothing_to_evaluate(runs, tiny, tmp_path, capsys):
    train = ["--option", "mnrl", "--weights", str(tiny), "--epochs", "1", "--steps-per-epoch", "1"]
    assert main([*train, "--out", str(tmp_path / "mnrl")]) == 0
    for words in (
        ["evaluate"],
        ["ensemble", "--out", str(tmp_path / "e")],
        ["predict", "--task", "sentiment"],
    ):
        assert main(["--option", *words, "--run", str(tmp_path / "mnrl")]) == 2
        assert "is an encoder and has no heads, as after mnrl and mlm" in capsys.readouterr().err
    start = ["--option", "pretrain", "--weights", str(tmp_path / "mnrl"), "--epochs", "1"]
    assert main([*start, "--steps-per-epoch", "1", "--out", str(tmp_path / "heads")]) == 0
