"""minbert/look.py and multitask/look.py: the numbers in the page are the model's, and the page shows them."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from helpers import make_model

from minbert import BertModel, BertTokenizer, InputError
from minbert.look import LONGEST, look, main, page
from multitask import MultitaskBert, load
from multitask.data.calibration import Calibration
from multitask.data.kinds import BINARY
from multitask.data.tasks import BUILT_IN, Task
from multitask.ensemble_model import Panel, write_ensemble
from multitask.look import MOST_WORDS, explain_prediction
from multitask.look import look as look_at
from multitask.look import main as main_of_run

HOSTILE = "</script><script>alert(1)</script> @data@ <!-- the film"
SPECIAL = ["a [SEP] film [MASK]", "漢字[CLS] 🙂"]
MOOD = Task("mood", BINARY, ("text",), "mood", "mood-{split}.csv", labels=("grim", "glad"), calibrate=True)


@pytest.fixture(scope="module")
def parts(tiny: Path) -> tuple[BertModel, BertTokenizer]:
    return BertModel.from_pretrained(tiny), BertTokenizer.from_pretrained(tiny)


@pytest.fixture(scope="module")
def model(tiny: Path) -> MultitaskBert:
    """Heads large enough for words to matter, and a task that is calibrated."""
    model = make_model(tiny, {**BUILT_IN, MOOD.name: MOOD}).eval()
    model.calibrations = {MOOD.name: Calibration(temperature=0.05)}
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight)
    return model


def data_of(text: str) -> dict[str, Any]:
    """What the page's script reads, as a browser would: up to the first end of a script."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def weights_of(found: dict[str, Any]) -> np.ndarray:
    size = sum(len(word["pieces"]) for word in found["words"])
    roots = np.frombuffer(base64.b64decode(found["weights"]), np.uint8) / 255
    return (roots**2).reshape(found["layers"], found["heads"], size, size)


# The attention


@pytest.mark.parametrize(
    "texts", [["the film was good"], ["a man plays", "a woman eats what"], [HOSTILE], SPECIAL]
)
def test_the_page_has_the_models_tokens_and_weights(parts: Any, texts: list[str]) -> None:
    model, tokenizer = parts
    found = data_of(page({"model": "tiny", **look(model, tokenizer, texts)}))
    batch = tokenizer(texts[:1], texts[1:] or None)
    pieces = [(*piece, word["segment"]) for word in found["words"] for piece in word["pieces"]]
    ids = batch["input_ids"][0]
    expected = zip(tokenizer.tokens(ids), ids.tolist(), batch["token_type_ids"][0].tolist(), strict=True)
    assert found["texts"] == texts and pieces == list(expected)
    true = torch.cat(model(**batch, output_attentions=True).attentions).detach().numpy()
    assert np.abs(weights_of(found) - true).max() < 1 / 255


def test_words_are_told_as_written_and_as_normalised(parts: Any) -> None:
    found = look(*parts, ["The Fi\u0301lm\u0301 wasn't"])["words"]
    assert [(word.get("text"), word.get("normal")) for word in found] == [
        (None, None),
        *[("The", "the"), ("Fi\u0301lm\u0301", "film"), ("wasn", "wasn"), ("'", "'"), ("t", "t")],
        (None, None),
    ]


@pytest.mark.parametrize("texts", [["film " * 200], ["film " * 200, "good " * 90]])
def test_a_long_input_is_cut_as_the_tokenizer_cuts_it(parts: Any, texts: list[str]) -> None:
    model, tokenizer = parts
    found = look(model, tokenizer, texts, most=20)
    ids = [number for word in found["words"] for _, number in word["pieces"]]
    assert ids == tokenizer(texts[:1], texts[1:] or None, max_length=20)["input_ids"][0].tolist()
    assert found["uncut"] == (202 if len(texts) == 1 else 293)
    assert weights_of(look(*parts, texts)).shape == (2, 4, LONGEST, LONGEST)


def test_nothing_in_the_page_can_run_or_load(parts: Any) -> None:
    text = page({"model": HOSTILE, **look(*parts, [HOSTILE])})
    assert text.count("<script") == 2 and "<!-- the" not in text and not re.findall(r"https?://", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy[1].partition("style-src")[0]


# Effects


def test_effects_are_the_predictions_of_the_shortened_texts(model: MultitaskBert) -> None:
    text = "the film wasn't good, a bad-movie"
    found = explain_prediction(model, model.tasks["sentiment"], [text])
    assert found["parts"][0][1::2] == ["the", "film", "wasn't", "good", ",", "a", "bad", "-", "movie"]
    assert "".join(found["parts"][0]) == text
    label = found["answer"]
    assert label == model.predict("sentiment", [text])[0]
    assert found["probabilities"] == pytest.approx(model.predict_proba("sentiment", [text])[0])
    assert found["whole"] == found["probabilities"][label]
    shorter = [
        "film wasn't good, a bad-movie",
        "the film good, a bad-movie",
        "the film wasn't good, a bad movie",
    ]
    expected = [row[label] for row in model.predict_proba("sentiment", shorter)]
    assert [found["without"][place] for place in (0, 2, 7)] == pytest.approx(expected, abs=1e-6)
    assert max(abs(found["whole"] - value) for value in found["without"]) > 1e-3


def test_effects_of_a_pair_and_of_a_calibrated_task(model: MultitaskBert) -> None:
    found = explain_prediction(model, model.tasks["similarity"], ["a man eats", "a woman"])
    assert (found["low"], found["high"]) == (0, 5) and "probabilities" not in found
    shorter = [("a man eats", "a woman"), ("a man", "a woman"), ("a man eats", "woman")]
    whole, *expected = model.predict("similarity", shorter)
    assert (found["answer"], found["whole"]) == pytest.approx((whole, whole))
    assert [found["without"][place] for place in (2, 3)] == pytest.approx(expected, abs=1e-5)
    mood = explain_prediction(model, model.tasks["mood"], ["a bad film"])
    label = ("grim", "glad").index(mood["answer"])
    assert mood["without"][1] == pytest.approx(model.predict_proba("mood", ["a film"])[0][label], abs=1e-6)


def test_many_words_are_bounded_and_a_cut_is_told(model: MultitaskBert) -> None:
    found = explain_prediction(model, model.tasks["sentiment"], ["film " * (MOST_WORDS + 300)])
    assert len(found["without"]) == MOST_WORDS and found["cut"]
    assert not explain_prediction(model, model.tasks["sentiment"], ["film"])["cut"]


def test_each_task_that_takes_so_many_texts(model: MultitaskBert, tiny: Path) -> None:
    def names(texts: list[str], *wanted: str) -> list[str]:
        return [task["name"] for task in look_at(model, texts, wanted)["predictions"]]

    assert names(["a film"]) == ["sentiment", "mood"] and names(["a", "b"]) == ["paraphrase", "similarity"]
    assert names(["a film"], "mood") == ["mood"]
    with pytest.raises(InputError, match="takes pairs: it has none, as after mnrl"):
        look_at(make_model(tiny, {}), ["a", "b"])


def test_an_ensemble(model: MultitaskBert, tiny: Path, tmp_path: Path) -> None:
    """Effects are those of the average, the maps those of the first member."""
    other = make_model(tiny, model.tasks)
    torch.nn.init.normal_(other.heads["mood"].weight, std=3)
    for name, member in (("one", other), ("two", model)):
        member.save(tmp_path / name)
    (tmp_path / "both").mkdir()
    write_ensemble(tmp_path / "both", {"mood": Panel(MOOD, 0.0, ("../one", "../two"), (1.0, 3.0))})
    ensemble = load(tmp_path / "both")
    found = look_at(ensemble, ["a bad film"])
    assert found["shown"] == "../one"
    assert found["weights"] == look(other.encoder, other.tokenizer, ["a bad film"])["weights"]
    label = ("grim", "glad").index(ensemble.predict("mood", ["a bad film"])[0])
    expected = ensemble.predict_proba("mood", ["a film"])[0][label]
    assert found["predictions"][0]["without"][1] == pytest.approx(expected, abs=1e-6)


# The commands


def test_the_commands_write_a_page(tiny: Path, model: MultitaskBert, tmp_path: Path, capsys: Any) -> None:
    model.save(tmp_path / "run" / "best")
    out = tmp_path / "page.html"
    assert main(["a good film", "--weights", str(tiny), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out}: 5 tokens, 2 layers of 4 heads\n")
    assert "predictions" not in data_of(out.read_text())
    words = ["a bad film", "--run", str(tmp_path / "run"), "--task", "mood", "--out", str(out), "--force"]
    assert main_of_run(words) == 0
    found = data_of(out.read_text())
    assert (found["model"], found["predictions"][0]["name"]) == ("run", "mood")


def test_mistakes_are_one_line(tiny: Path, model: MultitaskBert, tmp_path: Path, capsys: Any) -> None:
    model.save(tmp_path / "run")
    (tmp_path / "old.html").write_text("mine")
    weights, run = ["--weights", str(tiny)], ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "new")]
    cases: list[tuple[Any, list[str], str]] = [
        (main, [], "the following arguments are required: text (--help lists the flags)"),
        (main, ["a", "b", "c"], "3 texts were given"),
        (main, [" ", *weights, "--out", str(tmp_path / "new")], "a text is blank"),
        (main, ["a", "--weights", "nowhere"], "nowhere"),
        (main, ["a", *weights, "--out", str(tmp_path / "old.html")], "replace it with --force"),
        (main, ["a", *weights, "--out", str(tmp_path / "no" / "new")], "name another --out"),
        (main, ["a", *weights, "--out", ".", "--force"], ".: cannot be written (Is a directory)"),
        (main_of_run, ["a"], "required: --run"),
        (main_of_run, ["a", *run, "--task", "nope"], "this model has no task 'nope'"),
        (main_of_run, ["a", *run, "--task", "similarity"], "similarity takes pairs"),
        (main_of_run, ["a", "--run", "nowhere"], "nowhere: no such folder"),
    ]
    for program, words, reason in cases:
        assert program(words) == 2, words
        err = capsys.readouterr().err
        assert reason in err and err.count("\n") == 1, err
    assert (tmp_path / "old.html").read_text() == "mine" and not (tmp_path / "new").exists()


# The page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(model: MultitaskBert, tmp_path: Path) -> None:
    """By keyboard alone, wide and on a phone, light and dark: heads, tokens and words, with their numbers."""
    texts = ["a bad film, </script><img src=x onerror=alert(1)>", "what a good man"]
    found = look_at(model, texts, ["similarity"])
    (tmp_path / "page.html").write_text(page({"model": "tiny", **found}), encoding="utf-8")
    weights, tokens = weights_of(found), [piece for word in found["words"] for piece, _ in word["pieces"]]
    whole, without = found["predictions"][0]["whole"], found["predictions"][0]["without"]

    def percent(share: float) -> float:
        return round(100 * share, 1)

    with Browser() as browser:

        def shown() -> tuple[str, list[float]]:
            """The focused element's name, and each token's share."""
            labels = browser.value("[...document.querySelectorAll('.token')].map(one => one.ariaLabel)")
            focused = browser.value("document.activeElement.ariaLabel")
            return focused, [float(label.rpartition(", ")[2].rstrip("%")) for label in labels]

        colours = set()
        for width, scheme in ((1200, "light"), (390, "light"), (1200, "dark"), (390, "dark")):
            browser.look(width, scheme=scheme)
            browser.open((tmp_path / "page.html").as_uri())
            browser.press("Tab")
            browser.press("ArrowRight")
            said = browser.value("document.querySelector('.said').textContent")
            assert f"“bad”, similarity is {without[1]:.2f} instead of {whole:.2f}" in said
            browser.press("Tab")
            average = weights.mean(axis=(0, 1))
            assert shown()[1] == pytest.approx([percent(share) for share in average[1]], abs=0.11)
            for key in ("ArrowUp", *["ArrowLeft"] * 4, "ArrowUp"):
                browser.press(key)
            name, shares = shown()
            assert name.startswith("Layer 0, head 0: ")
            assert shares == pytest.approx([percent(share) for share in weights[0, 0, 1]], abs=0.11)
            browser.press("Tab")
            browser.press("Tab")
            assert browser.value("document.activeElement.textContent") == "is looked at by"
            browser.press(" ")
            browser.press("Tab")
            browser.press("End")
            assert shown()[1] == pytest.approx([percent(share) for share in weights[0, 0, :, -1]], abs=0.11)
            assert shown()[0].startswith("[SEP], ")
            assert browser.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            assert browser.value("document.querySelectorAll('.token').length") == len(tokens)
            assert browser.value("document.querySelectorAll('img').length") == 0
            assert browser.value("document.documentElement.scrollWidth") <= width
            colours.add((scheme, browser.value("getComputedStyle(document.body).backgroundColor")))
        assert len({colour for _, colour in colours}) == len(colours) == 2
        assert browser.errors == []
