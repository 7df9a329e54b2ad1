"""reporting.py: runs side by side on one page, what is refused, and the pages on a phone."""

import json
import shutil
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from helpers import HOSTILE, Page, parse, write_tables

from multitask.data.tasks import SENTIMENT
from multitask.run import main

TASKS = """
[mood]
kind = "classification"
texts = ["sentence"]
label = "sentiment"
labels = ["0", "1", "2", "3", "4"]
files = "ids-sst-{split}.csv"
calibrate = true
weight = %s
"""
NAMES = ("base", "<b>other", "both")


def command(*words: object) -> int:
    return main([str(word) for word in words])


def train(out: Path, data: Path, tiny: Path, *words: object) -> Path:
    fixed = ["--data", data, "--weights", tiny, "--epochs", 2, "--steps-per-epoch", 4, "--threads", 1]
    assert command("finetune", *fixed, *words, "--out", out) == 0
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny) -> Path:
    """A folder with two runs and their ensemble; the first sentence of a dev table is hostile."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_tables(folder / "data", sizes={"train": 12, "dev": 12})
    path = SENTIMENT.path(data, "dev")
    lines = path.read_text().splitlines()
    fields = lines[1].split("\t")
    fields[1] = '"' + HOSTILE.replace('"', '""') + '"'
    path.write_text("\n".join([lines[0], "\t".join(fields), *lines[2:]]) + "\n")
    train(folder / "base", data, tiny)
    train(folder / "<b>other", data, tiny, "--lr", 0.01, "--seed", 1)
    assert command("ensemble", "--run", folder / "base", folder / "<b>other", "--out", folder / "both") == 0
    return folder


@pytest.fixture(scope="module")
def page(runs) -> Page:
    out = runs / "pages" / "three.html"
    assert command("report", "--run", *(runs / name for name in NAMES), "--out", out) == 0
    return parse(out.read_text())


def test_runs_and_an_ensemble_stand_side_by_side(page, runs):
    """With the scores that each recorded itself, and only the settings that differ."""
    head = page.cells.index(["", *NAMES])
    found = {row[0]: row[1:] for row in page.cells[head + 1 : head + 6]}
    assert [*found] == ["score", "worst task", "SST, accuracy", "QQP, accuracy", "STS, r"]
    for place, name in enumerate(NAMES):
        result = json.loads((runs / name / "result.json").read_text())
        low, high = result["intervals"]["score"]
        assert found["score"][place] == f"{result['dev']['score']:.3f} ({low:.3f} to {high:.3f})"
    settings = page.cells[page.cells.index(["setting", *NAMES]) + 1 :]
    assert [row[:3] for row in settings[:3]] == [
        ["option", "finetune", "finetune"], ["lr", "5e-05", "0.01"], ["seed", "0", "1"]
    ]  # fmt: skip
    assert [row[0] for row in settings] == ["option", "lr", "seed", "run"]
    assert settings[3][3].split() == [str(runs / "base"), str(runs / "<b>other")]
    differences = page.cells[page.cells.index(["", "difference", "verdict", "95% interval"]) :]
    assert [row[0] for row in differences[1:6]] == [*found]
    dev = [json.loads((runs / name / "result.json").read_text())["dev"]["score"] for name in NAMES]
    assert differences[1][1] == f"{dev[1] - dev[0]:+.3f}"
    assert "<b>other against base" in page.text and "both against base" in page.text
    assert "b" not in {tag for tag, _ in page.elements} and "script" not in {tag for tag, _ in page.elements}
    assert sum(tag == "img" for tag, _ in page.elements) == 2


def test_the_default_page_is_in_the_folder_of_the_first_and_the_verdict_is_printed(runs, tmp_path, capsys):
    for name in ("base", "<b>other"):
        shutil.copytree(runs / name, tmp_path / name)
    assert command("report", "--run", tmp_path / "base", tmp_path / "<b>other") == 0
    *verdicts, last = capsys.readouterr().out.splitlines()
    assert last == f"report {tmp_path / 'base' / 'comparison.html'}"
    page = parse((tmp_path / "base" / "comparison.html").read_text())
    assert verdicts[-1] in page.text and verdicts[-1].startswith("<b>other ") and "score" in verdicts[-1]
    assert not (tmp_path / "base" / "figures").exists()
    assert command("report", "--run", tmp_path / "<b>other", "--baseline", tmp_path / "base") == 0
    assert verdicts[-1] in parse((tmp_path / "<b>other" / "report.html").read_text()).text


def test_what_cannot_be_compared_is_refused_in_a_line(runs, tmp_path, tiny, capsys):
    other = write_tables(tmp_path / "other", sizes={"train": 12, "dev": 11})
    for weight in (1, 2):
        (tmp_path / f"{weight}.toml").write_text(TASKS % weight)
    moods = [
        train(tmp_path / f"mood{weight}", runs / "data", tiny, "--task-file", tmp_path / f"{weight}.toml")
        for weight in (1, 2)
    ]
    elsewhere = train(tmp_path / "elsewhere", other, tiny)
    mnrl = tmp_path / "mnrl"
    assert command("mnrl", "--weights", tiny, "--data", runs / "data", "--epochs", 1, "--steps-per-epoch", 1,
                   "--out", mnrl) == 0  # fmt: skip
    base = runs / "base"
    capsys.readouterr()

    def refusal(*words: object) -> str:
        assert command("report", "--run", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "mood1: cannot be compared with" in refusal(base, moods[0])
    assert "its tasks are mood, not sentiment, paraphrase, similarity" in refusal(base, moods[0])
    assert "the task mood has other labels, another metric or another weight" in refusal(*moods)
    assert "the dev table of sentiment is another; name a folder for all runs with --data" in refusal(
        base, elsewhere
    )
    assert "is an encoder" in refusal(base, mnrl) and "is an encoder" in refusal(mnrl, "--baseline", base)
    assert "names one run twice" in refusal(base, base / "best")
    assert "--baseline is for a single --run" in refusal(base, runs / "both", "--baseline", base)
    assert "--out and --force are for several runs" in refusal(base, "--out", tmp_path / "x.html")
    assert "of one run of mnrl" in refusal(base, runs / "both", "--perplexity", 9)
    kept = tmp_path / "kept.html"
    kept.write_text("mine")
    assert "kept.html: exists; replace it with --force" in refusal(base, runs / "both", "--out", kept)
    assert kept.read_text() == "mine"
    assert command("report", "--run", base, elsewhere, "--data", other, "--out", kept, "--force") == 0
    assert "side by side" in kept.read_text()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_runs_off_a_phone(runs, page, scheme, tmp_path):
    """Tables scroll in boxes of their own; every figure is drawn, in the colours of the scheme."""
    shutil.copytree(runs / "base", tmp_path / "base")
    assert command("report", "--run", tmp_path / "base") == 0
    for path in (tmp_path / "base" / "report.html", runs / "pages" / "three.html"):
        with Browser() as browser:
            for width in (390, 1200):
                browser.look(width, scheme=scheme)
                browser.open(path.as_uri())
                browser.wait("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
                assert browser.value("document.documentElement.scrollWidth") <= width
                wide = "[...document.querySelectorAll('body *')].filter(one => !one.closest('.table, pre') "
                assert browser.value(f"{wide}&& one.getBoundingClientRect().right > {width}).length") == 0
                assert browser.value("Math.max(...[...document.images].map(one => one.width))") <= width
            dark = browser.value("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
            assert dark == (scheme == "dark")
            assert not browser.errors
