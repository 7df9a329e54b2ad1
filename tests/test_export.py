"""export.py and forms.py: each form is loaded by its library, which then computes what the run does."""

import ast
import json
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, make_config, make_model, write_tables

from multitask import MultitaskBert, forms
from multitask.data.calibration import Calibration
from multitask.data.kinds import BINARY, CLASSIFICATION, REGRESSION
from multitask.data.tasks import Task
from multitask.export import choose
from multitask.run import main

TASKS = {
    "stars": Task(
        "stars", CLASSIFICATION, ("review",), "stars", "stars-{split}.csv", num_classes=3, calibrate=True
    ),
    "same": Task(
        "same", BINARY, ("one", "other"), "same", "same-{split}.csv", labels=("no", "yes"), calibrate=True
    ),
    "close": Task("close", REGRESSION, ("one", "other"), "close", "close-{split}.csv", low=0.0, high=100.0),
}
TEXTS: dict[str, Sequence[Any]] = {
    "stars": ["the film was good", "a Man, é", "very bad " * 20],
    "same": [("how do i learn", "what"), ("a film " * 20, "a movie"), ("good", "good")],
    "close": [("a man plays", "the woman eats guitar"), ("a", "was " * 30), ("bad", "very bad movie")],
}
MAX_LENGTH = 16  # fewer than the longest texts have

transformers = pytest.importorskip("transformers", reason="the extra export is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
pytest.importorskip("onnxscript", reason="the extra export is not installed")
sentence_transformers = pytest.importorskip("sentence_transformers", "6", reason="too old, or not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny) -> Path:
    """A folder with tables in data, and a saved model of each pooling, calibrated; not to be changed."""
    place = tmp_path_factory.mktemp("export")
    write_tables(place / "data", TASKS)
    for name, task in TASKS.items():  # long texts among the dev rows, too
        label = task.labels[1] if task.labels else "1"
        with task.path(place / "data", "dev").open("a") as file:
            for number, texts in enumerate(TEXTS[name]):
                row = [f"more-{number}", *([texts] if isinstance(texts, str) else texts), label]
                file.write("\t".join(row) + "\n")
    for pooling in ("mean", "cls"):
        model = make_model(tiny, TASKS, pooling=pooling, max_length=MAX_LENGTH)
        model.calibrations = {"stars": Calibration(temperature=0.05), "same": Calibration(temperature=3.0)}
        model.save(place / pooling)
    return place


@pytest.fixture
def export(place, tmp_path, capsys):
    """A function that exports, and returns status, folder, and what was printed."""

    def run(pooling: str, *words: str) -> tuple[int, Path, str, str]:
        capsys.readouterr()
        out = tmp_path / "out"
        status = main(["--option", "export", "--run", str(place / pooling), "--data", str(place / "data"),
                       "--out", str(out), "--threads", "1", *words])  # fmt: skip
        return status, out, *capsys.readouterr()

    return run


def largest_differences(printed: str) -> dict[str, float]:
    found = re.findall(r"^(\w+): 9 dev rows, largest difference (\S+)$", printed, re.MULTILINE)
    return {name: float(value) for name, value in found}


def run_the_card(folder: Path, example: str, texts: Sequence[Any]) -> Any:
    """What the last line of the card's Python gives, with our texts in place of its example."""
    (code,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert "FOLDER" in code and example in code
    code = code.replace("FOLDER", str(folder)).replace(example, repr(texts))
    body, _, last = code.rpartition("\n")
    names: dict[str, Any] = {}
    exec(body, names)
    return eval(last, names)


def answers_of(place: Path, pooling: str, name: str) -> np.ndarray:
    """Our own probabilities or values for TEXTS, (N, C)."""
    model = MultitaskBert.load(place / pooling)
    predict = model.predict_proba if TASKS[name].classes else model.predict
    return np.array(predict(name, TEXTS[name])).reshape(len(TEXTS[name]), -1)


@pytest.mark.parametrize("name", TASKS)
def test_a_classifier_of_transformers(export, place, name):
    """Its pipeline gives the probabilities of the labels, and a regression's value without an activation. It
    takes pairs as mappings."""
    status, out, printed, _ = export("cls", "--to", "hf", "--task", name)
    assert status == 0 and largest_differences(printed)[name] <= 1e-4
    config = transformers.AutoModelForSequenceClassification.from_pretrained(out).config
    labels = {"stars": ["0", "1", "2"], "same": ["no", "yes"], "close": ["score"]}[name]
    assert list(config.id2label.values()) == labels and config.label2id[labels[-1]] == len(labels) - 1
    assert config.problem_type == ("regression" if name == "close" else "single_label_classification")
    classify = transformers.pipeline("text-classification", str(out), top_k=None, truncation=True)
    assert classify.tokenizer.model_max_length == MAX_LENGTH
    texts = [x if isinstance(x, str) else {"text": x[0], "text_pair": x[1]} for x in TEXTS[name]]
    found = [{one["label"]: one["score"] for one in row} for row in classify(texts)]
    expected = answers_of(place, "cls", name)
    np.testing.assert_allclose([[row[label] for label in labels] for row in found], expected, atol=1e-4)
    (best,) = run_the_card(
        out,
        '{"text": "One text.", "text_pair": "Another text."}' if name != "stars" else '"A text."',
        texts[0],
    )
    assert best["label"] == labels[expected[0].argmax()]


def test_a_classifier_is_a_cross_encoder_too(export, place):
    _, out, _, _ = export("cls", "--to", "hf", "--task", "close")
    found = sentence_transformers.CrossEncoder(str(out), device="cpu").predict(TEXTS["close"])
    np.testing.assert_allclose(found, answers_of(place, "cls", "close")[:, 0], atol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_a_cross_encoder(export, place, name):
    status, out, printed, _ = export("mean", "--to", "hf", "--task", name)
    assert status == 0 and largest_differences(printed)[name] <= 1e-4
    expected = answers_of(place, "mean", name)
    if name == "stars":  # one text at a time
        found = [run_the_card(out, '"A text."', text) for text in TEXTS[name]]
    else:
        found = run_the_card(out, '[("One text.", "Another text.")]', TEXTS[name])
    np.testing.assert_allclose(np.reshape(found, expected.shape), expected, atol=1e-4)
    assert list(transformers.AutoConfig.from_pretrained(out).id2label.values())[-1] == {
        "stars": "2", "same": "yes", "close": "score"
    }[name]  # fmt: skip


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_sentence_transformer(export, place, pooling):
    status, out, printed, _ = export(pooling, "--to", "hf")
    assert status == 0 and max(largest_differences(printed).values()) <= 1e-4
    found = run_the_card(out, '["A text.", "Another text."]', TEXTS["stars"])
    model = MultitaskBert.load(place / pooling)
    with torch.no_grad():
        batch = model.tokenizer(TEXTS["stars"], max_length=MAX_LENGTH)
        np.testing.assert_allclose(found, model.encoder.pooled(**batch, pooling=pooling), atol=1e-5)
    assert "heads of its tasks" in (out / "README.md").read_text()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_onnx_file(export, place, pooling):
    """One row or several, of any length; and what is beyond the longest is cut by the tokenizer."""
    status, out, printed, _ = export(pooling, "--to", "onnx")
    assert status == 0 and largest_differences(printed).keys() == TASKS.keys()
    assert {path.name for path in out.iterdir()} == {"README.md", "model.onnx", "tokenizer.json"}
    expected = answers_of(place, pooling, "stars")
    for rows in (slice(0, 1), slice(0, 3)):
        (logits,) = run_the_card(out, '["A text."]', TEXTS["stars"][rows])
        np.testing.assert_allclose(torch.tensor(logits).softmax(dim=1), expected[rows], atol=1e-5)
    session = onnxruntime.InferenceSession(out / "model.onnx")
    described = json.loads(session.get_modelmeta().custom_metadata_map["tasks"])
    assert described["same"]["id2label"] == {"0": "no", "1": "yes"} and described["stars"]["texts"] == 1


def test_an_onnx_file_of_one_task(place):
    config = make_config("export", run=("x",), to="onnx", task="close")
    assert choose(config, MultitaskBert.load(place / "mean")).tasks == {"close": TASKS["close"]}


def test_its_files_have_the_mode_of_others(export):
    """The libraries leave weights that only their owner may read."""
    _, out, _, _ = export("mean", "--to", "hf", "--task", "close")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*") if path.is_file()}
    (out / "new").touch()
    assert modes == {stat.S_IMODE((out / "new").stat().st_mode)}


def test_an_export_that_differs_is_not_kept(export, place, monkeypatch):
    """A head whose bias is off by 2e-4 in the label's unit, 20."""
    right = forms.head_of

    def wrong(model: MultitaskBert, task: Task) -> torch.nn.Linear:
        head = right(model, task)
        torch.nn.init.constant_(head.bias, head.bias.item() + 2e-4)
        return head

    monkeypatch.setattr(forms, "head_of", wrong)
    status, out, printed, err = export("mean", "--to", "hf", "--task", "close")
    assert status == 2 and largest_differences(printed)["close"] == pytest.approx(2e-4, rel=0.2)
    assert err.startswith("error: close: the export differs") and "not kept" in err
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    "pooling, words, problem",
    [
        ("mean", ["--to", "hf", "--task", "mood"], "unknown task 'mood'; known are stars, same, close"),
        ("mean", ["--to", "pickle"], "--to must be one of hf, onnx"),
        ("nowhere", ["--to", "hf"], "no such folder"),
        ("ensemble", ["--to", "hf"], "is an ensemble.* distil it first"),
        ("encoder", ["--to", "onnx"], "has no heads; export its encoder with --to hf"),
    ],
)
def test_what_cannot_be_exported(export, place, tiny, pooling, words, problem):
    (place / "ensemble").mkdir(exist_ok=True)
    (place / "ensemble" / "ensemble.toml").touch()
    make_model(tiny, {}).save(place / "encoder")
    status, out, _, err = export(pooling, *words)
    assert status == 2 and re.search(problem, err) and not out.exists()


def test_a_folder_that_exists_is_left_alone(export, tmp_path):
    (tmp_path / "out").mkdir()
    status, out, _, err = export("mean", "--to", "hf")
    assert status == 2 and "exists already; choose another --out" in err and list(out.iterdir()) == []


def test_a_missing_library_is_named_with_the_extra(export, monkeypatch):
    monkeypatch.setattr(forms.SentenceEncoder, "needs", ("sentence_transformers.not_there",))
    status, out, _, err = export("mean", "--to", "hf")
    assert status == 2 and 'pip install "minbert[export]"' in err and "not_there" in err and not out.exists()


def test_an_encoder_of_mnrl(place, tiny, tmp_path, capsys):
    """It has no heads; its dev rows are those of the task that it was trained on."""
    run, out = tmp_path / "run", tmp_path / "out"
    words = ["--weights", str(tiny), "--epochs", "1", "--steps-per-epoch", "1", "--threads", "1"]
    assert main(["mnrl", "--out", str(run), *words]) == 0
    capsys.readouterr()
    assert (
        main(["export", "--run", str(run / "best"), "--to", "hf", "--out", str(out), "--threads", "1"]) == 0
    )
    assert re.match(r"sentiment: 89 dev rows, largest difference \d\.\de-0[5-9]\n", capsys.readouterr().out)
    assert "texts of one class are close" in (out / "README.md").read_text()
    MultitaskBert.load(run).save(tmp_path / "alone")
    words = ["--run", str(tmp_path / "alone"), "--data", str(place / "data"), "--out", str(tmp_path / "x")]
    assert main(["export", "--to", "hf", *words]) == 2
    assert "name the whole run" in capsys.readouterr().err


def test_an_encoder_of_plain_text(tiny, tmp_path, capsys):
    """It is compared on the lines that mlm has held out."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("".join(f"a film of {number} parts\n" for number in range(40)))
    words = ["--weights", str(tiny), "--data", str(tmp_path / "data"), "--held-out", "0.5", "--epochs", "1"]
    assert main(["mlm", *words, "--threads", "1", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    words = ["--run", str(tmp_path / "run"), "--to", "hf", "--out", str(tmp_path / "out"), "--threads", "1"]
    assert main(["export", *words]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^a\.txt: \d\d dev rows, largest difference \d\.\de-0[5-9]", printed, re.MULTILINE)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Data: texts in `data`" in card and "with the head" not in card  # it stays behind


def test_other_libraries_are_imported_inside_functions():
    """Without the extra, everything but an export works."""
    for path in [*ROOT.glob("minbert/*.py"), *ROOT.glob("multitask/**/*.py")]:
        for node in ast.parse(path.read_text()).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {name.split(".")[0] for name in names} & {
                "transformers", "sentence_transformers", "onnx", "onnxruntime", "onnxscript"
            }, path  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_minilm_in_every_form(pooling, tmp_path, capsys):
    words = ["--epochs", "1", "--steps-per-epoch", "6", "--pooling", pooling, "--no-report"]
    assert main(["finetune", "--out", str(tmp_path / "run"), *words]) == 0
    forms_of = [["hf", "--task", name] for name in ("sentiment", "paraphrase", "similarity")] + [
        ["hf"],
        ["onnx"],
    ]
    for number, form in enumerate(forms_of):
        capsys.readouterr()
        out = tmp_path / f"out-{number}"
        assert main(["export", "--run", str(tmp_path / "run"), "--out", str(out), "--to", *form]) == 0
        differences = re.findall(r"largest difference (\S+)", capsys.readouterr().out)
        assert differences and max(map(float, differences)) <= 1e-4
        card = (out / "README.md").read_text()
        assert "scores on QQP are not clean" in card
        assert 'base_model: "sentence-transformers/all-MiniLM-L6-v2"' in card
