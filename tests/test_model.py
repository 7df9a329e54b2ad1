"""model.py: what the heads see, what `predict` returns, and a saved model that is the same model."""

import math
import shutil
import tomllib
from dataclasses import replace

import pytest
import tomli_w
import torch
import transformers
from helpers import make_model, sentence
from safetensors.torch import load_file, save_file

from minbert import BertConfig, BertModel
from minbert.errors import InputError
from multitask import MultitaskBert
from multitask.data.kinds import REGRESSION
from multitask.data.tasks import BUILT_IN, SENTIMENT, SIMILARITY, Task

SINGLES = [sentence(number) for number in range(9)]
PAIRS = [(sentence(number), sentence(number + 30)) for number in range(9)]
TEXTS = {"sentiment": SINGLES, "paraphrase": PAIRS, "similarity": PAIRS}
NO_TASKS = r"not a saved model's \(it lacks sections \[tasks\.NAME\]\); name a run"


@pytest.fixture(scope="module")
def model(tiny):
    return make_model(tiny).eval()


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "best")
    return tmp_path / "best"


def logits(model, task, texts):
    with torch.no_grad():
        return model(task, model.tokenizer.pad(model.token_ids(task, texts)))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("task, outputs", [("sentiment", 5), ("paraphrase", 1), ("similarity", 1)])
def test_a_head_gives_its_tasks_outputs(tiny, pooling, task, outputs):
    result = logits(make_model(tiny, pooling=pooling).eval(), task, TEXTS[task])
    assert result.shape == (9, outputs)
    assert result.std(dim=0).min() > 0.01  # not the same for every text


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_head_is_linear_on_the_pooled_vector(tiny, pooling):
    model = make_model(tiny, pooling=pooling).eval()
    batch = model.tokenizer(SINGLES)
    out = model.encoder(**batch)
    mask = batch["attention_mask"].unsqueeze(2)
    mean = (out.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    pooled = {"cls": out.pooler_output, "mean": mean}[pooling]
    wanted = pooled @ model.heads["sentiment"].weight.T + model.heads["sentiment"].bias
    torch.testing.assert_close(logits(model, "sentiment", SINGLES), wanted)


def test_a_pair_is_read_together_with_token_types(model):
    [(ids, types)] = model.token_ids("similarity", [("a film", "the movie")])
    assert ids.count(ids[-1]) == 2  # [CLS] a [SEP] b [SEP]
    second = ids.index(ids[-1]) + 1
    assert types == [0] * second + [1] * (len(ids) - second)

    there, back = logits(model, "similarity", [("a film", "the movie"), ("the movie", "a film")])
    assert (there - back).abs() > 1e-3
    batch = model.tokenizer.pad([(ids, types)])
    untyped = batch | {"token_type_ids": torch.zeros_like(batch["token_type_ids"])}
    with torch.no_grad():
        assert (model("similarity", batch) - model("similarity", untyped)).abs() > 1e-3
    other = logits(model, "similarity", [("a film", "the movie"), ("a film", "how do i learn")])
    assert (other[0] - other[1]).abs() > 1e-3


def test_logits_from_embeddings_are_forwards(model):
    batch = model.tokenizer.pad(model.token_ids("paraphrase", PAIRS))
    with torch.no_grad():
        embeddings, packing = model.encoder.embed(**batch)
        assert torch.equal(
            model.logits_from_embeddings("paraphrase", embeddings, packing), model("paraphrase", batch)
        )
        shifted = model.logits_from_embeddings("paraphrase", embeddings + 0.1, packing)
    assert not torch.allclose(shifted, model("paraphrase", batch), atol=1e-3)


def test_head_dropout_acts_in_training_alone(tiny):
    model = make_model(tiny, head_dropout=0.5).eval()
    model.dropout.train()
    assert not torch.equal(*(logits(model, "sentiment", SINGLES) for _ in range(2)))
    model.eval()
    assert torch.equal(*(logits(model, "sentiment", SINGLES) for _ in range(2)))


def test_predict_gives_ints_for_classes_and_floats_for_values(model):
    sentiment, paraphrase, similarity = (model.predict(name, TEXTS[name]) for name in BUILT_IN)
    assert all(type(value) is int and 0 <= value < 5 for value in sentiment)
    assert all(type(value) is int and 0 <= value < 2 for value in paraphrase)
    assert all(type(value) is float for value in similarity)
    assert len(sentiment) == len(paraphrase) == len(similarity) == 9
    assert sentiment == logits(model, "sentiment", SINGLES).argmax(dim=1).tolist()
    assert model.predict("sentiment", []) == []


@pytest.mark.parametrize("task, classes", [("sentiment", 5), ("paraphrase", 2)])
def test_probabilities_sum_to_1_and_agree_with_predict(model, task, classes):
    rows = torch.tensor(model.predict_proba(task, TEXTS[task]))
    assert rows.shape == (9, classes)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(9))
    assert rows.argmax(dim=1).tolist() == model.predict(task, TEXTS[task])


def test_predictions_depend_on_neither_batch_nor_order(model):
    wanted = model.predict("similarity", PAIRS)
    for batch_size in (1, 2, 100):
        assert model.predict("similarity", PAIRS, batch_size) == pytest.approx(wanted, abs=1e-5)
    assert model.predict("similarity", PAIRS[::-1])[::-1] == pytest.approx(wanted, abs=1e-5)
    longer = [*PAIRS, ("very " * 200, "good " * 200)]
    assert model.predict("similarity", longer)[:-1] == pytest.approx(wanted, abs=1e-5)


def test_a_model_that_was_training_predicts_without_dropout(model):
    wanted = model.predict("similarity", PAIRS)
    assert model.train().predict("similarity", PAIRS) == wanted


@pytest.mark.parametrize(
    "task, texts, problem",
    [
        ("mood", ["a"], "no task 'mood'; it has sentiment, paraphrase, similarity"),
        ("similarity", ["a"], "similarity takes pairs; item 0 is 'a'"),
        ("similarity", [("a", "b"), ("a", "b", "c")], "similarity takes pairs; item 1 is"),
        ("sentiment", ["a", ("a", "b")], "sentiment takes single texts; item 1 is"),
        ("sentiment", "a film", "texts is one string; pass a list"),
        ("similarity", "ab", "texts is one string; pass a list"),
        ("sentiment", [("a",), (3,)], r"texts\[1\] is int, not a string"),
        ("sentiment", [3], "sentiment takes single texts; item 0 is 3"),
        ("similarity", [["a", "b"], "ab"], "item 1 is 'ab'"),
    ],
)
def test_texts_that_do_not_fit_the_task(model, task, texts, problem):
    with pytest.raises(InputError, match=problem):
        model.predict(task, texts)


def test_a_regression_has_no_probabilities(model):
    with pytest.raises(InputError, match="similarity is a regression task"):
        model.predict_proba("similarity", PAIRS)


def test_long_texts_are_cut_at_max_length(tiny):
    model = make_model(tiny, max_length=16)
    [(ids, _)] = model.token_ids("sentiment", ["very good " * 300])
    assert len(ids) == 16
    assert make_model(tiny, max_length=4096).max_length == 512  # what the encoder has positions for


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_saved_model_is_the_same_model(tiny, tmp_path, pooling):
    own = Task("mood", REGRESSION, ("text",), "mood", "mood-{split}.csv", low=-1.5, high=2)
    model = make_model(tiny, BUILT_IN | {"mood": own}, pooling=pooling, head_dropout=0.25, max_length=64)
    model.save(tmp_path / "best")
    loaded = MultitaskBert.load(tmp_path / "best")
    assert not loaded.training
    assert loaded.tasks == model.tasks
    assert (loaded.pooling, loaded.max_length, loaded.dropout.p) == (pooling, 64, 0.25)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    for task, texts in (TEXTS | {"mood": SINGLES}).items():
        assert loaded.predict(task, texts) == model.predict(task, texts)
    assert loaded.predict_proba("sentiment", SINGLES) == model.predict_proba("sentiment", SINGLES)


def test_a_saved_model_is_a_hugging_face_directory(model, saved):
    theirs = transformers.BertModel.from_pretrained(saved).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    batch = model.tokenizer(["a film", "the movie was very good"], ["how do i", "a man"])
    encoded = tokenizer(["a film", "the movie was very good"], ["how do i", "a man"], padding=True)
    assert encoded["input_ids"] == batch["input_ids"].tolist()
    with torch.no_grad():
        wanted = theirs(**batch).pooler_output
        torch.testing.assert_close(model.encoder(**batch).pooler_output, wanted, atol=1e-5, rtol=1e-5)


def test_a_folder_that_is_not_a_model(tiny, tmp_path):
    with pytest.raises(InputError, match=rf"^{tiny}: holds no finished model \(tasks.toml, here or in"):
        MultitaskBert.load(tiny)
    with pytest.raises(InputError, match=rf"^{tmp_path}/nothing: no such folder"):
        MultitaskBert.load(tmp_path / "nothing")


def test_a_runs_folder_stands_for_its_best_model(model, saved):
    assert MultitaskBert.load(saved.parent).predict("similarity", PAIRS) == model.predict("similarity", PAIRS)


def test_who_may_read_one_file_may_read_all(saved):
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_heads_that_do_not_fit(saved, tiny, tmp_path):
    make_model(tiny, {"sentiment": SENTIMENT}).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "heads.safetensors", saved)
    with pytest.raises(
        InputError, match=r"heads\.safetensors: .*head for paraphrase is not the one of tasks"
    ) as caught:
        MultitaskBert.load(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-4]),
        lambda path: path.write_bytes(b""),
    ],
)
def test_heads_that_are_missing_or_torn(saved, spoil):
    spoil(saved / "heads.safetensors")
    with pytest.raises(InputError, match=r"heads\.safetensors: not a saved model's"):
        MultitaskBert.load(saved)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"pooling": 3}, "pooling must be one of cls, mean, not 3"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"max_len": 12}, r"unknown key 'max_len'; did you mean max_length\?"),
        ({"tasks": 3}, NO_TASKS),
        ({"pooling": None}, "lacks pooling"),
        ({"head_dropout": None, "max_length": None}, "lacks head_dropout, max_length"),
        ({"tasks": None}, NO_TASKS),
        ({"pooling": "max"}, "pooling must be one of cls, mean, not 'max'"),
        ({"head_dropout": 2.0}, "head_dropout must be a number, at least 0 and below 1, not 2.0"),
        ({"head_dropout": math.nan}, "head_dropout must be a number, at least 0 and below 1, not nan"),
        ({"max_length": 3}, "max_length must be a whole number, at least 4 and .*"),  # special tokens alone
        ({"max_length": 10**12}, "max_length must be a whole number, .* at most .*, not 1000000000000"),
        ({"tasks": {"sentiment": 3}}, NO_TASKS),
    ],
)
def test_a_task_file_that_is_not_one(saved, change, problem):
    path = saved / "tasks.toml"
    values = tomllib.loads(path.read_text()) | change
    path.write_text(tomli_w.dumps({name: value for name, value in values.items() if value is not None}))
    with pytest.raises(InputError, match=f"^{path}: {problem}$"):
        MultitaskBert.load(saved)


def test_heads_of_another_shape(saved):
    path = saved / "heads.safetensors"
    heads = load_file(path)
    save_file({name: tensor[:1] for name, tensor in heads.items()}, path)
    with pytest.raises(InputError, match=r"head for sentiment is not the one of tasks\.toml"):
        MultitaskBert.load(saved)
    save_file(heads | {"sentiment.weight": heads["sentiment.weight"][:, :1].clone()}, path)
    with pytest.raises(InputError, match=r"tasks\.toml disagree .*size mismatch for sentiment"):
        MultitaskBert.load(saved)


def test_heads_of_other_numbers(saved):
    path = saved / "heads.safetensors"
    save_file({name: tensor.int() for name, tensor in load_file(path).items()}, path)
    with pytest.raises(InputError, match=r"heads\.safetensors: not a saved model's .holds something else"):
        MultitaskBert.load(saved)


def test_a_task_of_a_model_that_lacks_a_key_is_named(saved):
    path = saved / "tasks.toml"
    path.write_text(path.read_text().replace('label = "similarity"\n', ""))
    with pytest.raises(InputError, match=rf"{path}: \[similarity\]: lacks label"):
        MultitaskBert.load(saved)


@pytest.mark.parametrize("name", ["type", "train", "keys"])
def test_a_task_that_torch_cannot_name(tiny, name):
    with pytest.raises(InputError, match=name):
        make_model(tiny, {name: replace(SENTIMENT, name=name)})


def test_a_tokenizer_of_another_checkpoint(model):
    small = BertModel(BertConfig(vocab_size=99, hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    with pytest.raises(InputError, match="the tokenizer has 1200 tokens, the encoder 99"):
        MultitaskBert(small, model.tokenizer, {"similarity": SIMILARITY}, "mean")
