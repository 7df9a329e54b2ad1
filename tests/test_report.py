"""Figures, tested by their contents, and the report as a reader and a browser see it."""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import matplotlib.colors
import matplotlib.text
import numpy as np
import pytest
import torch
from helpers import HOSTILE, Page, parse, sentence, table_rows, write_table, write_tables

from minbert import BertModel, BertTokenizer
from minbert.errors import InputError
from multitask import jobs
from multitask.config import Tsne
from multitask.data.tables import Row, read_table
from multitask.data.tasks import BUILT_IN, SENTIMENT, SIMILARITY
from multitask.judgement import judge
from multitask.report import drawing, figures
from multitask.report.errors import by_label, by_length, equal_groups, hardest_examples, wilson
from multitask.report.html import PAGE, POLICY, escape, html_table
from multitask.report.origin import first_checkpoint
from multitask.report.page import write_report
from multitask.report.records import read_metrics
from multitask.report.sections import task_section
from multitask.run import main

CPU = torch.device("cpu")


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def record(epoch: int, score: float, **parts) -> dict:
    loss = {"sentiment": 2.0 / epoch, "similarity": 1.0 / epoch, "all": 1.5 / epoch}
    dev = {"sentiment": {"accuracy": score}, "similarity": {"pearson": score / 2}, "score": 0.8 * score}
    return {"epoch": epoch, "step": 9 * epoch, "seconds": 60.0, "loss": loss, "dev": dev, **parts}


# Figures


def test_learning_curves_draw_every_value_and_mark_the_first_best_epoch():
    records = [record(1, 0.4), record(2, 0.6), record(3, 0.6)]
    loss, dev = figures.learning_curves(records).axes
    assert (loss.get_title("left"), dev.get_title("left")) == ("Training loss", "Dev scores")
    drawn = {line.get_label(): list(line.get_ydata()) for line in loss.lines[1:]}
    assert drawn == {"sentiment": [2, 1, 2 / 3], "similarity": [1, 0.5, 1 / 3], "all": [1.5, 0.75, 0.5]}
    assert texts(dev)[0] == "best epoch 2" and list(dev.lines[0].get_xdata()) == [2, 2]
    assert sorted(texts(dev)[1:]) == ["score", "sentiment accuracy", "similarity r"]
    assert loss.get_ylim()[0] == 0


def test_small_differences_of_scores_do_not_fill_the_panel_and_epochs_are_whole():
    _, dev = figures.learning_curves([record(1, 0.5)]).axes
    assert dev.get_ylim()[1] - dev.get_ylim()[0] >= 0.1
    assert all(tick == round(tick) for tick in dev.get_xticks())


def test_learning_curves_show_smart_and_bppo_where_the_run_had_them():
    """An epoch without updates of a task leaves a gap in its line; diagnostics other than R are not lines."""
    smart = {"sentiment": {"r": 0.2, "cosine": 0.9, "skipped": 0}}
    bregman = {"sentiment": {"d": 0.1, "gradient_ratio": 0.5}}
    records = [record(1, 0.4, smart=smart, bregman=bregman), record(2, 0.5, smart={}, bregman={})]
    axes = figures.learning_curves(records).axes
    titles = ["Training loss", "Dev scores", "SMART", "BPPO", "BPPO's strength"]
    assert [one.get_title("left") for one in axes] == titles
    assert [one.get_ylabel() for one in axes[2:]] == ["R", "D", "gradient relative to the task loss's"]
    for one, value in zip(axes[2:], (0.2, 0.1, 0.5), strict=True):
        (curve,) = one.lines[1:]
        np.testing.assert_equal(curve.get_ydata(), [value, np.nan])
        assert texts(one)[1:] == ["sentiment"]


def test_learning_curves_show_rate_and_beta():
    records = [record(1, 0.4, lr=2e-5, beta=0.99), record(2, 0.5, lr=1e-5, beta=0.999)]
    *_, rate, beta = figures.learning_curves(records).axes
    assert (rate.get_title("left"), beta.get_title("left")) == ("Learning rate", "Momentum of BPPO's teacher")
    assert list(rate.lines[1].get_ydata()) == [2e-5, 1e-5]
    assert list(beta.lines[1].get_ydata()) == [0.99, 0.999]


def test_training_rows_and_the_teacher_are_drawn_beside_dev():
    """In the colours of the dev lines; for the teacher only the score. `worst` and `spread` have no lines."""
    records = [record(1, 0.4, train=record(1, 0.6)["dev"], teacher=record(1, 0.5)["dev"])]
    records[0]["dev"] |= {"worst": 0.2, "spread": 0.2}
    dev = figures.learning_curves(records).axes[1]
    drawn = {line.get_label(): line for line in dev.lines[1:]}
    assert set(drawn) == {
        "sentiment/accuracy", "similarity/pearson", "score", "train sentiment/accuracy",
        "train similarity/pearson", "train score", "teacher score",
    }  # fmt: skip
    assert drawn["train sentiment/accuracy"].get_color() == drawn["sentiment/accuracy"].get_color()
    assert drawn["teacher score"].get_ydata()[0] == pytest.approx(0.4)
    assert dev.get_ylabel() == "dashed: training rows\ndotted: averaged weights"


def test_the_best_epoch_is_marked_by_what_chose_it():
    records = [record(1, 0.6), record(2, 0.4)]
    records[0]["dev"]["worst"], records[1]["dev"]["worst"] = 0.1, 0.3
    assert figures.best_record(records)["epoch"] == 1
    assert figures.best_record(records, "worst")["epoch"] == 2
    assert "best epoch 2" in texts(figures.learning_curves(records, "worst").axes[0])


def test_a_line_that_is_another_under_a_second_name_is_drawn_once():
    records = [{"epoch": 1, "loss": {"all": 2.0}, "dev": {"retrieval": 0.3, "knn": 0.4, "score": 0.4}}]
    loss, dev = figures.learning_curves(records).axes
    assert sorted(texts(dev)[1:]) == ["kNN accuracy", "same class nearest"]
    assert len(loss.lines[1:]) == 1 and texts(loss)[1:] == ["objective"]


def test_names_at_the_ends_of_lines_keep_apart_and_in_order():
    scores = {f"task{number}": {"accuracy": 0.5 + number / 1000} for number in range(3)} | {"score": 0.9}
    dev = figures.learning_curves([{"epoch": 1, "loss": {"all": 1.0}, "dev": scores}]).axes[1]
    places = [text.xy[1] for text in dev.texts[1:]]
    low, high = dev.get_ylim()
    assert texts(dev)[1:] == ["task0 accuracy", "task1 accuracy", "task2 accuracy", "score"]
    assert min(np.diff(places)) >= 0.0749 * (high - low)


def test_sampling_shares_are_stacked_to_one():
    """Two epochs of two tasks: a's bars stand on 0, b's on a's; each task is labelled with its last share."""
    shares = np.array([[0.25, 0.75], [0.45, 0.55]])
    (axes,) = figures.sampling_shares("annealed", ["a", "b"], np.array([1, 2]), shares).axes
    a, b = ([bar.get_height() for bar in bars] for bars in axes.containers)
    assert a == pytest.approx([0.25, 0.45]) and b == pytest.approx([0.75, 0.55])
    assert [bar.get_y() for bar in axes.containers[1]] == pytest.approx(a)
    assert sorted(texts(axes)) == ["a 45%", "b 55%"]
    assert "annealed" in axes.get_title("left")


def test_a_panel_draws_so_many_lines_and_so_much_of_a_name():
    """A hostile record may name thousands of tasks, or one by a megabyte."""
    loss = {"a" * 50: 1.0, **{f"b{number}": 2.0 + number for number in range(99)}}
    drawn = figures.learning_curves([{"epoch": 1, "loss": loss, "dev": {"score": 0.5}}]).axes[0]
    assert len(texts(drawn)) == 1 + figures.MOST_LINES
    assert f"{'a' * 40}…" in texts(drawn)


def test_confusion_matrix_has_the_truth_down_and_fractions_of_rows():
    """True class 0 three times, twice predicted as 1; class 1 once, correct; class 2 never."""
    labels, predictions = np.array([0.0, 0, 0, 1]), np.array([0.0, 1, 1, 1])
    (axes,) = figures.confusion_matrix(labels, predictions, ["0", "1", "2"]).axes
    assert texts(axes) == ["0.33", "0.67", "0.00", "0.00", "1.00", "0.00", "–", "–", "–"]
    assert axes.images[0].get_array()[0, 1] == pytest.approx(2 / 3)
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "0  (n = 3)",
        "1  (n = 1)",
        "2  (n = 0)",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # class 0 on top
    assert not texts(figures.confusion_matrix(labels, predictions, [str(n) for n in range(31)]).axes[0])


def test_similarity_scatter_has_every_point_and_the_line_of_equals():
    labels, predictions = np.array([0.0, 2, 5]), np.array([1.0, 2, 6])
    (axes,) = figures.similarity_scatter(labels, predictions, "r = 0.500").axes
    assert axes.collections[0].get_offsets().tolist() == [[0, 1], [2, 2], [5, 6]]
    assert axes.get_title("left") == "r = 0.500, 3 rows"
    assert axes.get_xlim() == axes.get_ylim() and axes.get_xlim()[0] < 0 and axes.get_xlim()[1] > 6
    (line,) = axes.lines
    assert line.get_xy1() == pytest.approx((axes.get_xlim()[0],) * 2)
    assert line.get_slope() is None and len(set(line.get_xy2())) == 1


def test_comparison_draws_ours_with_its_spread_beside_the_papers():
    """Two rows, three columns; the second row was not run, and only the first column has a spread."""
    paper = np.array([[0.9, 0.5, 0.7], [0.8, 0.6, 0.7]])
    ours = np.full((2, 3, 2), np.nan)
    ours[0] = [[0.7, 0.1], [0.4, np.nan], [0.6, np.nan]]
    figure = figures.comparison("rows", ["first", "second"], ["a", "b", "c"], paper, ours)
    assert [axes.get_title("left") for axes in figure.axes] == ["a", "b", "c"]
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["first", "second"]
    assert first.get_ylim()[0] > first.get_ylim()[1]  # the first row on top
    theirs, (mine, _, (bars,)) = first.lines[0], first.containers[0]
    assert theirs.get_xdata().tolist() == [0.9, 0.8] and theirs.get_ydata().tolist() == [0, 1]
    np.testing.assert_equal(mine.get_xdata(), [0.7, np.nan])
    assert bars.get_segments()[0].tolist() == [[pytest.approx(0.6), 0], [pytest.approx(0.8), 0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["paper", "ours"]


def test_tsne_draws_both_in_the_colours_of_the_classes():
    before, after = np.random.default_rng(0).normal(size=(2, 13, 2))
    figure = figures.tsne(before, after, np.arange(13) % 3.0, ["ham", "spam", "other"], "how")
    assert [axes.get_title("left") for axes in figure.axes] == ["Before", "After"]
    first, second = (axes.collections[0] for axes in figure.axes)
    assert (first.get_offsets() == before).all() and (second.get_offsets() == after).all()
    colours = first.get_facecolors()
    assert len(np.unique(colours, axis=0)) == 3 and (colours[0] == colours[3]).all()
    assert figure.legends[0].get_title().get_text() == "class (how)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ham", "spam", "other"]


def test_tsne_has_a_seed_and_says_when_the_perplexity_is_reduced():
    """13 rows allow a perplexity of at most (13 - 1) / 3 = 4."""
    vectors = np.random.default_rng(0).normal(size=(13, 5))
    (first, said), (second, _) = (figures.tsne_places(vectors, 50, 250, seed=2**40) for _ in range(2))
    assert first.shape == (13, 2) and (first == second).all()
    assert said == f"t-SNE, perplexity 4 (not 50: only 13 rows), 250 iterations, seed {2**40}"
    assert figures.tsne_places(vectors**2, 4, 250)[1] == "t-SNE, perplexity 4, 250 iterations, seed 0"


def test_names_are_never_read_as_formulas_and_equal_figures_are_equal_bytes(tmp_path):
    records = [{"epoch": 1, "loss": {"all": 1.0, "$\\broken{$": 2.0}, "dev": {"score": 0.5}}]
    first = drawing.save_figure(figures.learning_curves(records), tmp_path, "curves")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "curves.svg").read_bytes() == first
    assert drawing.save_figure(figures.learning_curves(records), tmp_path, "curves") == first


def test_the_reliability_curve_is_the_bins_in_either_theme():
    curves = {
        "before": {"confidence": [0.6, 0.9], "accuracy": [0.5, 0.7], "error": 0.15},
        "after": {"confidence": [0.5, 0.7], "accuracy": [0.5, 0.7], "error": 0.0},
    }
    colours = set()
    for theme in (drawing.LIGHT, drawing.DARK):
        axes = figures.reliability_curve(curves, theme=theme).axes[0]
        lines = [line for line in axes.lines if line.get_marker() == "o"]
        drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in lines]
        assert drawn == [(curve["confidence"], curve["accuracy"]) for curve in curves.values()]
        assert [line.get_label() for line in lines] == ["before: error 0.150", "after: error 0.000"]
        assert axes.get_xlim()[0] == pytest.approx(0.45)
        colours.add(lines[1].get_color())
    assert len(colours) == 2


def test_errors_have_a_panel_of_their_own():
    """An RMSE of 2 is no score from 0 to 1."""
    dev = {"stars": {"rmse": 2.0}, "mood": {"accuracy": 0.5}, "score": 0.6}
    records = [{"epoch": 1, "loss": {"all": 1.0}, "dev": dev, "train": {"stars": {"rmse": 1.5}}}]
    _, scores, errors = figures.learning_curves(records).axes
    assert sorted(texts(scores)[1:]) == ["mood accuracy", "score"] and scores.get_ylim()[1] < 1
    assert texts(errors)[1:] == ["stars"] and errors.get_ylim()[0] == 0
    assert [line.get_ydata()[0] for line in errors.lines[1:]] == [2.0, 1.5]
    assert errors.get_ylabel() == "RMSE, in the unit of the labels\ndashed: training rows"


def test_runs_are_drawn_on_one_axis_in_colours_of_their_own():
    """Two runs of other lengths, and an ensemble, which is a level."""
    curves = {"a": ([5, 10], [0.1, 0.2]), "b": ([7], [0.3]), "both": ([], [0.4])}
    figure = figures.curves_of_runs({"score": curves})
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.1, 0.2], [0.3], [0.4, 0.4]]
    assert list(axes.lines[0].get_xdata()) == [5, 10] and axes.lines[2].get_linestyle() == "--"
    assert len({line.get_color() for line in axes.lines}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "both"]


def test_scores_of_runs_have_their_intervals():
    (axes,) = figures.scores_of_runs({"score": {"a": (0.5, [0.4, 0.7]), "b": (0.6, [0.5, 0.8])}}).axes
    bars = [bar.get_segments()[0].tolist() for bar in axes.collections]
    assert bars == [[[0.4, 0], [0.7, 0]], [[0.5, 1], [0.8, 1]]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top


def contrast(colour, ground) -> float:
    """The contrast ratio of the web's accessibility guidelines, from 1 to 21."""

    def luminance(one) -> float:
        parts = np.array(matplotlib.colors.to_rgb(one))
        return np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    low, high = sorted([luminance(colour), luminance(ground)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [drawing.LIGHT, drawing.DARK], ids=["light", "dark"])
def test_every_word_and_line_of_a_figure_can_be_seen_on_its_ground(theme):
    curve = {"confidence": [0.6, 0.9], "accuracy": [0.5, 0.7], "error": 0.15}
    labels = np.array([0.0, 1, 1])
    drawn = [
        figures.learning_curves([record(1, 0.4), record(2, 0.5)], theme=theme),
        figures.sampling_shares("annealed", ["a", "b"], np.array([1]), np.array([[0.5, 0.5]]), theme=theme),
        figures.similarity_scatter(labels, labels, "r", theme=theme),
        figures.reliability_curve({"before": curve, "after": curve}, theme=theme),
        figures.curves_of_runs({"score": {"a": ([1], [0.5])}}, theme=theme),
        figures.scores_of_runs({"score": {"a": (0.5, [0.4, 0.6])}}, theme=theme),
        figures.tsne(np.eye(3, 2), np.eye(3, 2), labels, ["a", "b"], "", theme=theme),
    ]
    for figure in drawn:
        assert matplotlib.colors.to_hex(figure.get_facecolor()) == theme.ground
        words = [one for one in figure.findobj(matplotlib.text.Text) if one.get_text()]
        assert all(contrast(word.get_color(), theme.ground) >= 2.9 for word in words)
        lines = [line for axes in figure.axes for line in axes.lines]
        assert all(contrast(line.get_color(), theme.ground) >= 2.2 for line in lines)
    (axes,) = figures.confusion_matrix(labels, labels, ["0", "1"], theme=theme).axes
    assert contrast(axes.images[0].cmap(1.0), theme.ground) > 5  # on which the words have the ground's colour
    assert contrast(axes.images[0].cmap(0.0), theme.ink) > 5


# Where the errors are


def test_the_hardest_examples_have_the_largest_loss():
    """Rows 2 to 5 of class 0: its logit is behind by 1, ahead by 2, behind by 1.5 and by 3."""
    logits = torch.tensor([[0.0, 1], [2, 0], [0, 1.5], [0, 3]])
    logits = torch.cat([logits, torch.full((4, 3), -50.0)], dim=1)
    rows = [Row(number, "", (f"text {number} {'long ' * 99}",), 0.0) for number in range(2, 6)]
    found = parse(hardest_examples(SENTIMENT, rows, np.zeros(4), SENTIMENT.answers(logits))).cells
    assert found[0] == ["line", "true", "predicted", "loss", "sentence"]
    assert [row[:3] for row in found[1:]] == [
        ["5", "0", "1"], ["4", "0", "1"], ["2", "0", "1"], ["3", "0", "0"]
    ]  # fmt: skip
    assert found[1][3] == f"{np.log(1 + np.exp(3)):.2f}"
    assert found[1][4].startswith("text 5 long") and found[1][4].endswith(" …") and len(found[1][4]) < 300


def test_the_hardest_examples_of_a_regression_are_the_farthest_at_most_ten():
    rows = [Row(number, "", ("a", "b"), 0.0) for number in range(20)]
    answers = SIMILARITY.answers(torch.arange(20.0)[:, None])
    cells = parse(hardest_examples(SIMILARITY, rows, np.zeros(20), answers)).cells
    assert cells[0] == ["line", "true", "predicted", "error", "sentence1", "sentence2"]
    assert [row[0] for row in cells[1:]] == [str(number) for number in range(19, 9, -1)]


def test_errors_by_length_and_by_label():
    """Rows of 1 to 10 words, two of each group; of class 0 the even rows, of which 4 of 5 are taken for 1."""
    rows = [Row(number, "", ("word " * (number + 1),), 0.0) for number in range(10)]
    labels = np.arange(10) % 2.0
    predictions = np.where(np.arange(10) == 0, 0.0, 1.0)
    cells = parse(by_length(SENTIMENT, rows, labels, predictions)).cells
    assert [row[0] for row in cells] == ["words", "1 to 2", "3 to 4", "5 to 6", "7 to 8", "9 to 10"]
    assert [row[1:3] for row in cells[1:3]] == [["2", "100.0%"], ["2", "50.0%"]]
    cells = parse(by_label(SENTIMENT, labels, predictions)).cells
    low, high = wilson(1, 5)
    assert cells[1] == ["0", "5", "20.0%", f"{low:.1%} to {high:.1%}", "1 (80%)"]
    assert cells[2][:3] == ["1", "5", "100.0%"] and cells[2][4] == "–"
    cells = parse(by_label(SIMILARITY, np.arange(10.0), np.arange(10.0) + 0.5)).cells
    assert cells[1] == ["0 to 1", "2", "0.500", "0.500 to 0.500", "+0.500"]


def test_the_interval_of_a_share_is_wilsons():
    """For 1 of 5: (.2 + z2/10 -+ z sqrt(.16/5 + z2/100)) / (1 + z2/5) with z = 1.96 and z2 = 3.8415."""
    assert wilson(1, 5) == pytest.approx((0.0362, 0.6245), abs=1e-4)
    assert wilson(5, 5)[0] == pytest.approx(5 / (5 + 3.8415), abs=1e-4)


def test_rows_of_one_value_are_one_group():
    groups = equal_groups(np.array([3, 3, 3, 3, 3, 7, 1.5]))
    assert [(name, rows.tolist()) for name, rows in groups] == [("1.5 to 3", [0, 1, 2, 3, 4, 6]), ("7", [5])]


def test_groups_of_large_neighbouring_values_are_all_there():
    """Although six digits do not tell their ends apart."""
    assert [len(rows) for _, rows in equal_groups(1e9 + np.arange(100))] == [20] * 5


def test_a_matrix_of_too_many_classes_is_left_out_and_said_so(tmp_path):
    task = replace(SENTIMENT, num_classes=301)
    logits, path = torch.eye(301)[:2], write_table(tmp_path / "t.csv", table_rows(SENTIMENT, "dev", 2))
    table = read_table(path, task, labelled=True)
    judged = judge({"sentiment": task}, {"sentiment": logits}, {"sentiment": table}, {})
    html = "".join(task_section(task, table, task.answers(logits), judged, tmp_path))
    assert "301 classes are more than 300 that can be drawn" in html
    assert [path.name for path in tmp_path.glob("*.svg")] == ["sentiment-reliability.svg"]


# The report


def run_quietly(*words: object) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Small tables whose first sentence of every dev table is hostile, in a folder with a hostile name."""
    folder = write_tables(tmp_path_factory.mktemp("data") / "<script>alert(0)<%2fscript>\"onload='x'")
    for task in BUILT_IN.values():
        path = task.path(folder, "dev")
        lines = path.read_text().splitlines()
        fields = lines[1].split("\t")
        fields[1] = '"' + HOSTILE.replace('"', '""') + '"'
        path.write_text("\n".join([lines[0], "\t".join(fields), *lines[2:]]) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data, tiny) -> Path:
    """A run of 2 epochs of 9 updates; tests must not change it."""
    run = tmp_path_factory.mktemp("runs") / "<img src=x onerror=alert(4)>"
    run_quietly("--option", "finetune", "--weights", tiny, "--data", data, "--threads", 1, "--batch-size", 4,
                "--epochs", 2, "--out", run)  # fmt: skip
    return run


def test_a_run_ends_with_its_report(data, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "can_plot", lambda: True)
    words = ["--option", "finetune", "--weights", tiny, "--data", data, "--epochs", 1, "--steps-per-epoch", 2]
    run_quietly(*words, "--out", tmp_path / "drawn")
    assert "<h1>Run drawn</h1>" in (tmp_path / "drawn" / "report.html").read_text(encoding="utf-8")
    run_quietly(*words, "--out", tmp_path / "bare", "--no-report")
    assert (tmp_path / "bare" / "result.json").exists()
    assert not (tmp_path / "bare" / "report.html").exists()


def test_without_the_libraries_that_draw_it_says_how_to_get_them(data, tiny, tmp_path, capsys):
    words = ["--option", "finetune", "--weights", tiny, "--data", data, "--epochs", 1, "--steps-per-epoch", 2]
    assert main(list(map(str, [*words, "--out", tmp_path / "run"]))) == 0
    assert 'no report: pip install "minbert[plots]"' in capsys.readouterr().out


@pytest.fixture(scope="module")
def page(finished) -> Page:
    path = write_report(finished, None, CPU)
    assert path == finished / "report.html"
    return parse(path.read_text(encoding="utf-8"))


def test_the_report_says_what_the_run_was_and_its_scores_in_the_papers_terms(page, finished, data, tiny):
    for fact in (["option", "finetune"], ["weights", str(tiny)], ["data", str(data)], ["seed", "0"],
                 ["epochs", "2 of 2, 18 updates"], ["batch_size", "4"]):  # fmt: skip
        assert fact in page.cells
    records = read_metrics(finished / "metrics.jsonl")
    best = figures.best_record(records)
    dev, train = best["dev"], best["train"]
    head = ["task", "rows", "metric", "value", "95% interval", "in the score", "training rows", "train − dev"]
    start = page.cells.index(head)
    rows = page.cells[start + 1 : start + 7]
    assert [row[:3] for row in rows] == [
        ["SST", "6", "accuracy"], ["QQP", "6", "accuracy"], ["STS", "6", "r"],
        ["worst", "", "worst task"], ["spread", "", "best less worst"], ["score", "", "mean"],
    ]  # fmt: skip
    r, seen = (scores["similarity"]["pearson"] for scores in (dev, train))
    ends = json.loads((finished / "result.json").read_text())["intervals"]
    within = "{:.3f} to {:.3f}".format(*ends["similarity"]["pearson"])
    assert rows[2][3:6] == [f"{r:.3f}", within, f"{(1 + r) / 2:.3f} = (1 + r) / 2"]
    assert rows[2][6:] == [f"{(1 + seen) / 2:.3f}", f"{(seen - r) / 2:+.3f}"]
    for row, name in zip(rows[3:], ("worst", "spread", "score"), strict=True):
        assert row[4] == "{:.3f} to {:.3f}".format(*ends[name])
        assert row[5:] == [f"{dev[name]:.3f}", f"{train[name]:.3f}", f"{train[name] - dev[name]:+.3f}"]
    head = ["epoch", "updates", "minutes", "score", "worst task", "spread", "training rows", "rate"]
    start = page.cells.index(head)
    assert [row[:2] + row[3:6] for row in page.cells[start + 1 : start + 3]] == [
        [str(one["epoch"]), str(one["step"])] + [f"{one['dev'][n]:.3f}" for n in ("score", "worst", "spread")]
        for one in records
    ]
    assert "shipped sample" not in page.text and "not its tables" not in page.text
    found = json.loads((finished / "result.json").read_text())["classes"]["paraphrase"]["1"]
    figures_of = [f"{found[name]:.3f}" for name in ("precision", "recall", "f1")]
    assert ["1", f"{found['rows']}", *figures_of] in page.cells


def test_the_report_holds_its_figures_and_keeps_them_as_files(page, finished):
    of_tasks = ["paraphrase", "paraphrase-reliability", "sentiment", "sentiment-reliability", "similarity"]
    names = sorted(["learning-curves", "sampling", *of_tasks])
    folder = finished / "figures"
    assert {path.name for path in folder.iterdir()} == {f"{n}.{e}" for n in names for e in ("png", "svg")}
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    kept = {base64.b64encode((folder / f"{name}.svg").read_bytes()).decode() for name in names}
    assert {image["src"].removeprefix("data:image/svg+xml;base64,") for image in images} == kept
    assert all(image["alt"] for image in images)


def test_hostile_sentences_and_file_names_stay_text(page):
    assert page.text.count(HOSTILE) >= 1 and "<script>alert(0)" in page.text
    assert "Run <img src=x onerror=alert(4)>" in page.text
    tags = {tag for tag, _ in page.elements}
    assert tags <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "pre", "div",
                    "table", "tr", "th", "td", "figure", "picture", "source", "img"}  # fmt: skip
    attributes = {(tag, name) for tag, names in page.elements for name in names}
    assert {name for _, name in attributes} <= {
        "lang", "charset", "http-equiv", "content", "name", "class", "alt", "src", "media", "srcset"
    }  # fmt: skip


def test_the_report_loads_nothing_from_elsewhere(page, finished):
    for _, attributes in page.elements:
        assert "href" not in attributes
        for name in ("src", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    policies = [attributes["content"] for _, attributes in page.elements if "http-equiv" in attributes]
    assert policies == [POLICY]
    html = (finished / "report.html").read_text().replace(escape(HOSTILE), "")
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def opened(path: Path) -> str:
    """Return the page as a browser has it after running its scripts and loading its images."""
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run([BROWSER, *words, profile, path.as_uri()], capture_output=True, timeout=300)
    if done.returncode or b"</html>" not in done.stdout:
        pytest.skip(f"{BROWSER} does not run here")
    return done.stdout.decode()


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_in_a_browser_no_sentence_runs_a_script_and_nothing_is_asked_of_the_network(finished, page, tmp_path):
    """The run's own report, and two pages that are not escaped: one without the policy, to show that the trap
    works, and one with it, to show that the policy would protect a reader even then."""
    asked = []

    class Beacon(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Beacon)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    hostile = f'{HOSTILE}<img src="http://127.0.0.1:{server.server_port}/beacon">'
    titles = {}
    for name, policy, text in (
        ("escaped", POLICY, html_table([], [[hostile]])),
        ("forgotten", POLICY, hostile),
        ("open", "", hostile),
    ):
        path = tmp_path / f"{name}.html"
        path.write_text(PAGE.format(policy=policy, style="", title="untouched", body=text), encoding="utf-8")
        titles[name] = (re.search("<title>(.*?)</title>", opened(path))[1], len(asked) > 0)
    server.shutdown()
    server.server_close()
    assert titles == {"escaped": ("untouched", False), "forgotten": ("untouched", False), "open": ("2", True)}
    shutil.copy(finished / "report.html", tmp_path)
    assert "<title>&lt;img src=x onerror=alert(4)&gt;</title>" in opened(tmp_path / "report.html")


@pytest.mark.parametrize("hostile", [HOSTILE, "\udcff.tsv", "a" * 10_000, "'", "&lt;b&gt;"])
def test_escaped_text_is_only_text(hostile):
    """Also when a file name is not UTF-8, as Python reads it."""
    page = parse(f'<p title="{escape(hostile)}">{escape(hostile)}</p>')
    shown = hostile.replace("\udcff", "?")
    shown = shown if len(shown) <= 600 else shown[:600] + " …"
    assert page.elements == [("p", {"title": shown})] and page.text == shown
    escape(hostile).encode("utf-8")


def test_the_shipped_sample_is_named_and_its_kin_to_qqp_too(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = (run / "config.toml").read_text().splitlines()
    kept = [line for line in config if not line.startswith(("data =", "weights ="))]
    (run / "config.toml").write_text("\n".join([*kept, 'weights = "minilm-l6"']))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record["dev"]["score"] += 0.5  # a barely trained model cannot score this on its own tables
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = parse(write_report(run, None, CPU).read_text()).text
    assert "This is the shipped sample, too small for its scores to mean anything" in text
    assert "scores on QQP are not clean" in text
    assert "these are not its own dev tables" in text


def test_a_run_from_a_run_names_the_checkpoint_it_began_with(tmp_path):
    for name, line in (("first", 'weights = "minilm-l6"'), ("second", f'init = "{tmp_path}/first"')):
        (tmp_path / name / "best").mkdir(parents=True)
        (tmp_path / name / "config.toml").write_text(f'option = "finetune"\n{line}\ncompile = false\n')
    assert first_checkpoint(str(tmp_path / "second")) == "minilm-l6"
    assert first_checkpoint(str(tmp_path / "first" / "best")) == "minilm-l6"
    assert first_checkpoint("minilm-l6") == "minilm-l6"


def test_without_training_tables_there_is_no_sampling_plan(finished, data, tmp_path):
    run, dev = tmp_path / "run", tmp_path / "dev"
    shutil.copytree(finished, run, ignore=shutil.ignore_patterns("figures"))
    dev.mkdir()
    for task in BUILT_IN.values():
        shutil.copy(task.path(data, "dev"), dev)
    text = parse(write_report(run, str(dev), CPU).read_text()).text
    assert "Sampling plan" not in text and "Dev scores" in text
    assert not (run / "figures" / "sampling.svg").exists()


def test_a_run_of_mnrl_has_the_two_maps_of_its_dev_sentences(tmp_path, tiny, monkeypatch):
    data, run = tmp_path / "data", tmp_path / "mnrl"
    write_tables(data, {"sentiment": SENTIMENT}, {"train": 20, "dev": 12})
    run_quietly("--option", "mnrl", "--weights", tiny, "--data", data, "--tasks", "sentiment", "--epochs", 2,
                "--steps-per-epoch", 2, "--threads", 1, "--out", run)  # fmt: skip
    drawn, place = [], figures.tsne_places
    monkeypatch.setattr(
        "multitask.report.page.tsne_places", lambda *args: drawn.append(args[0]) or place(*args)
    )
    page = parse(write_report(run, None, CPU, embedding=Tsne(iterations=250)).read_text())
    path = SENTIMENT.path(data, "dev")
    sentences = [line.split("\t")[1] for line in path.read_text().splitlines()[1:]]
    for vectors, folder in zip(drawn, (tiny, run / "best"), strict=True):
        inputs = BertTokenizer.from_pretrained(folder)(sentences)
        expected = BertModel.from_pretrained(folder).eval().pooled(**inputs, pooling="mean").detach().numpy()
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert not np.allclose(*drawn, atol=1e-4)
    assert {path.stem for path in (run / "figures").iterdir()} == {"learning-curves", "tsne"}
    run_quietly("--option", "report", "--run", run, "--perplexity", 3, "--iterations", 260, "--threads", 1)
    assert "perplexity 3, 260 iterations" in (run / "figures" / "tsne.svg").read_text()
    assert "SST on dev, 12 rows" in page.text
    best = figures.best_record(read_metrics(run / "metrics.jsonl"))["dev"]
    for name, value in (("nearest sentence has the same class", "retrieval"), ("kNN accuracy on dev", "knn")):
        assert f"{name}{best[value]:.3f}" in page.text


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(train={"x": 1}),
        lambda record: record["train"].pop("worst"),
        lambda record: record["train"].pop("similarity"),
        lambda record: record["train"].update(similarity=0.5),
        lambda record: record["dev"].update(score={"a": 1}),
        lambda record: record["dev"].pop("sentiment"),
    ],
)
def test_records_without_the_scores_of_the_runs_tasks_are_refused(finished, tmp_path, change):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    change(records[1])
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not the record of an epoch"):
        write_report(run, None, CPU)


def test_the_report_of_a_run_that_chose_by_its_worst_task(finished, tmp_path):
    """The first epoch is better by the worst task, the second by the score."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('choose_by = "score"', 'choose_by = "worst"'))
    first, second = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    first["dev"] |= {"score": 0.4, "worst": 0.3}
    second["dev"] |= {"score": 0.5, "worst": 0.2}
    (run / "metrics.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    page = parse(write_report(run, None, CPU).read_text())
    assert ["best epoch", "1"] in page.cells
    del second["dev"]["worst"]
    (run / "metrics.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not the record of an epoch"):
        write_report(run, None, CPU)


def test_an_ensembles_report_has_its_scores_its_members_and_a_figure_for_each_task(finished, data, tmp_path):
    """Two copies of one run average to that run's predictions; each has half the weight. Every sentiment
    score reaches the threshold 0, and the figures are those of the run."""
    shutil.copytree(finished, tmp_path / "<b>twin")
    out = tmp_path / "both"
    run_quietly("--option", "ensemble", "--run", finished, tmp_path / "<b>twin", "--copy", "--out", out)
    run_quietly("--option", "report", "--run", out)
    page, single = (parse(write_report(run, None, CPU).read_text("utf-8")) for run in (out, finished))
    head = ["task", "rows", "metric", "value", "95% interval", "in the score"]
    starts = page.cells.index(head), single.cells.index([*head, "training rows", "train − dev"])
    own, theirs = (one.cells[start : start + 7] for one, start in zip((page, single), starts, strict=True))
    assert own == [row[:6] for row in theirs]
    start = page.cells.index(["task", "member", "weight", "score", "threshold"])
    score = single.cells[starts[1] + 1][5]
    assert page.cells[start + 1] == ["SST", f"members/1-{finished.name}", "0.500", score, "0"]
    assert page.cells[start + 2] == ["SST", "members/2-<b>twin", "0.500", score, "0"]
    assert [row[0] for row in page.cells[start + 1 : start + 7]] == ["SST", "SST", "QQP", "QQP", "STS", "STS"]
    names = ["paraphrase", "paraphrase-reliability", "sentiment", "sentiment-reliability", "similarity"]
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"{name}.{ending}" for name in names for ending in ("png", "svg")
    }
    drawn = [(run / "figures" / "sentiment.png").read_bytes() for run in (out, finished)]
    assert drawn[0] == drawn[1]
    assert "Ensemble both" in page.text and HOSTILE in page.text and f"those of {data}." in page.text
    assert not {"b", "script"} & {tag for tag, _ in page.elements}


# What cannot be reported on

HOSTILE_PARTS = [
    ("epoch", 0), ("epoch", 1.5), ("epoch", True), ("step", -9), ("seconds", "long"), ("seconds", 10**400),
    ("loss", 3), ("loss", {"all": 1, "x": [1]}), ("loss", {"all": float("nan")}), ("loss", {"all": 2**64}),
    ("dev", {"score": 1e99}), ("step", 10**9),
    ("dev", {"score": {"a": 1}}), ("dev", {"score": 1, "a": {"b": {"c": 1}}}), ("smart", []), ("bregman", 1),
]  # fmt: skip


def record_with(part: str, value: object) -> bytes:
    return json.dumps(record(1, 0.5) | {part: value}).encode() + b"\n"


def refusal(run: Path, data: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        write_report(run, data, CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_extra_is_one_line(finished, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = 'matplotlib, needed for figures, is not installed: pip install "minbert[plots]"'
    assert said in refusal(finished)
    with pytest.raises(InputError, match="minbert"):
        figures.similarity_scatter(np.zeros(2), np.ones(2), "")


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (None, "cannot be read .*completed an epoch"),
        (b"", "holds no epoch yet"),
        (b"{}\n", ":1: not the record of an epoch"),
        (b'{"epoch": 1, "step": 9, "loss": {"all": 1}, "dev": {"score": "high"}}\n', ":1: not the record"),
        (
            b'{"epoch": 1, "step": 9, "loss": {"all": 1}, "dev": {"score": 1}}\n\xff\n',
            "cannot be read .*utf-8",
        ),
        (b'{"epoch": 1, "step": 9, "loss": {"all": 1}, "dev": {"score": 1}}\n[[\n', ":2: not the record"),
        (b"[]\n", ":1: not the record"),
        (b"[" * 100_000, ":1: not the record"),
        *((record_with(part, value), ":1: not the record") for part, value in HOSTILE_PARTS),
    ],
)
def test_a_run_without_good_metrics_is_refused(tmp_path, metrics, said):
    if metrics is not None:
        (tmp_path / "metrics.jsonl").write_bytes(metrics)
    with pytest.raises(InputError, match=rf"^{tmp_path}/metrics\.jsonl.*{said}"):
        write_report(tmp_path, None, CPU)


def test_a_missing_table_model_or_kind_of_run_is_named(finished, tmp_path):
    run, dev = tmp_path / "run", tmp_path / "dev"
    dev.mkdir()
    write_table(dev / "ids-sst-dev.csv", [["id", "sentence", "sentiment"], ["1", sentence(1), 0]])
    assert "quora-dev.csv: no such file" in refusal(
        finished, str(dev)
    ) or "sts-dev.csv: no such file" in refusal(finished, str(dev))
    run.mkdir()
    shutil.copy(finished / "metrics.jsonl", run)
    assert "config.toml" in refusal(run)
    (run / "config.toml").write_text('option = "evaluate"\ncompile = false\n')
    assert "config.toml: its option must be pretrain or mnrl or mlm or finetune or distill" in refusal(run)
    shutil.copy(finished / "config.toml", run)
    assert "best" in refusal(run)
