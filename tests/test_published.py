"""tools/paper/published.py: the published tables are what the records say."""

import json

import numpy as np
import pytest
from scipy.stats import pearsonr

import measures
import pool
import published
from record import RESULTS, lines_of


def test_the_pages_are_what_the_records_draw(tmp_path):
    (tmp_path / "docs" / "images").mkdir(parents=True)
    for page in ("README.md", "docs/results.md"):
        (tmp_path / page).write_text((published.ROOT / page).read_text())
    published.draw(json.loads(published.JUDGED.read_text()), tmp_path)
    for page in ("README.md", "docs/results.md"):
        assert (tmp_path / page).read_text() == (published.ROOT / page).read_text(), f"{page}: draw it again"
    assert len(list((tmp_path / "docs" / "images").glob("results-*.svg"))) == 4


def test_the_records_agree_with_what_was_judged():
    judged = json.loads(published.JUDGED.read_text())["rows"]
    averages = [line.cell for line in published.LINES if line.members]
    for cell, found in judged.items():
        seeds = lines_of(RESULTS / f"{cell}.jsonl")
        if cell in averages:
            assert not seeds
        else:
            assert found["score"]["n"] == len(seeds)
            scores = [one["dev"]["score"] for one in seeds]
            assert found["score"]["each"] == pytest.approx(scores, abs=1e-3)  # float16 outputs


def outputs(generator, truth, noise):
    def classes(labels, count):
        logits = np.eye(count)[labels] * 2 + noise * generator.normal(size=(len(labels), count))
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    return {
        "sst-dev": classes(truth["sst"], 5),
        "para-dev": classes(truth["para"], 2),
        "sts-dev": truth["sts"] + noise * generator.normal(size=len(truth["sts"])),
    }


def test_a_better_row_is_beyond_noise_and_an_equal_one_is_not():
    generator = np.random.default_rng(0)
    truth = {"sst": generator.integers(0, 5, 400), "para": generator.integers(0, 2, 400)}
    truth["sts"] = generator.uniform(0, 5, 400)
    draws = {name: measures.drawn_rows(400, name) for name in truth}
    worse, same, better = (
        {seed: measures.measure(outputs(generator, truth, noise), truth, draws) for seed in "012"}
        for noise in (2.0, 2.0, 1.0)
    )
    accuracy, _, half, score, likelihood, _ = worse["0"][:, 0]
    assert worse["0"].shape == (6, 1 + measures.DRAWS)
    one = outputs(np.random.default_rng(1), truth, 1.0)
    first = measures.measure(one, truth, draws)[:, 0]
    assert first[0] == np.mean(one["sst-dev"].argmax(1) == truth["sst"])
    assert first[2] == pytest.approx((1 + pearsonr(one["sts-dev"], truth["sts"])[0]) / 2)
    assert first[4] == pytest.approx(-np.mean(np.log(one["sst-dev"][np.arange(400), truth["sst"]])))
    assert score == pytest.approx((accuracy + worse["0"][1, 0] + half) / 3) and likelihood > first[4]

    gain = measures.summary(measures.paired(better, worse))["score"]
    assert gain["interval"][0] > 0 and gain["n"] == 3 and published.signed(gain).startswith("**+")
    shifted = {str(int(seed) + 1): found for seed, found in better.items()}
    assert len(measures.paired(shifted, worse)) == 2  # seeds 1 and 2
    assert len(measures.paired({"9": better["0"]}, worse)) == 1  # no common seed: of the means
    low, high = measures.summary(measures.paired(same, worse))["score"]["interval"]
    assert low < 0 < high


def test_a_page_without_its_marks_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("no marks\n")
    with pytest.raises(published.InputError, match="lacks the lines <!-- scores -->"):
        published.fill(tmp_path / "page.md", {"scores": []})


def test_averages_become_the_logits_of_their_probabilities():
    classes, binary, values = np.array([[0.2, 0.3, 0.5]]), np.array([[0.25, 0.75]]), np.array([2.5])
    assert pool.to_logits(classes, 3).softmax(dim=1).numpy() == pytest.approx(classes)
    assert pool.to_logits(binary, 1).sigmoid().item() == pytest.approx(0.75)
    assert pool.to_logits(values, 1).item() == 2.5


def test_a_pool_of_unknown_cells_or_without_a_task_is_refused(tmp_path):
    for cells, why in ((["recipe-sst", "nosuch"], "outputs of nosuch"), (["recipe-sst"], "for para, sts")):
        with pytest.raises(pool.InputError, match=why):
            pool.pool("new", cells, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (RESULTS / "new.jsonl").exists()
