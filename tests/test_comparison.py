"""comparison.py: models that agree, planted mistakes and the stage that they are found at; the command."""

import math
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import minbert
from minbert import BertConfig, BertModel, InputError, bert, compare, comparison
from minbert.comparison import difference, first_difference, main, recording, trace
from minbert.packing import Packing

BATCHES = {
    "padded": [[1] * 7, [1] * 2 + [0] * 5, [1] + [0] * 6],
    "holes": [[1, 0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1], [1] * 7],
    "one token each": [[1], [1]],
}


def make_batch(mask: list[list[int]]) -> dict[str, Tensor]:
    shape = torch.tensor(mask).shape
    return {
        "input_ids": torch.randint(1200, shape),
        "attention_mask": torch.tensor(mask),
        "token_type_ids": torch.randint(2, shape),
    }


@pytest.fixture(scope="module")
def model(tiny: Path) -> BertModel:
    return BertModel.from_pretrained(tiny)


@pytest.fixture(scope="module")
def theirs(tiny: Path) -> Any:
    return transformers.BertModel.from_pretrained(tiny, attn_implementation="eager")


# Models that agree


@pytest.mark.parametrize("mask", BATCHES.values(), ids=BATCHES)
def test_every_stage_of_both_is_the_same(mask: list[list[int]], model: BertModel, theirs: Any) -> None:
    """5 stages of embeddings, 11 of each of 2 layers, and the pooler; both ways round. All are seen, and
    each is different from the one before, so none is compared with itself."""
    batch = make_batch(mask)
    for one, other in ((model, theirs), (theirs, model)):
        found = compare(one, other, batch)
        assert found.first is None and found.unseen == ()
        assert len(found.differences) == 5 + 2 * 11 + 1
        assert str(found).endswith("no stage differs")
    stages = list(trace(model, batch).values())
    assert stages[-1].shape == (len(mask), 32)
    for one, next_one in pairwise(stages):
        assert one.shape != next_one.shape or not torch.equal(one.nan_to_num(), next_one.nan_to_num())


def test_what_is_traced_is_what_the_model_returns(model: BertModel) -> None:
    batch = make_batch(BATCHES["holes"])
    real = batch["attention_mask"].bool()
    stages = trace(model, batch)
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    for name, state in zip(
        ("embeddings", "layer 0, second add-and-norm"), output.hidden_states, strict=False
    ):
        assert torch.equal(stages[name][real], state[real])
        assert stages[name][~real].isnan().all()
    assert torch.equal(stages["pooler"], output.pooler_output)
    weights, scores = stages["layer 1, weights"], stages["layer 1, scores"]
    queries = real[:, None, :, None].expand_as(weights)
    assert torch.equal(weights[queries], output.attentions[1][queries])
    assert torch.equal(scores.softmax(dim=-1)[queries], weights[queries])
    assert (scores == -math.inf)[queries].sum() == 4 * (
        5 * 2 + 3 * 4
    )  # heads, of real queries and hidden keys
    assert weights[~queries].isnan().all() and scores[~queries].isnan().all()


def test_a_model_is_left_as_it_was(model: BertModel) -> None:
    """Without dropout, but back in training after; no hook stays, and no gradient is made."""
    trained = BertModel(model.config).train()
    trained.layers[0].eval()
    batch = make_batch(BATCHES["padded"])
    assert compare(trained, trained, batch).first is None
    assert trained.training and not trained.layers[0].training and trained.layers[1].output_norm.training
    assert not any(module._forward_hooks for module in trained.modules())
    assert not any(tensor.requires_grad for tensor in trace(trained, batch).values())


def test_mask_and_types_are_optional(model: BertModel, theirs: Any) -> None:
    assert minbert.compare(model, theirs, {"input_ids": torch.tensor([[5, 6, 7]])}).first is None


def test_of_sdpa_there_are_no_scores(tiny: Path, model: BertModel) -> None:
    fused = transformers.BertModel.from_pretrained(tiny, attn_implementation="sdpa")
    found = compare(model, fused, make_batch(BATCHES["padded"]))
    assert found.first is None and found.unseen == ("scores", "weights")
    assert "only one of them shows it: scores, weights" in str(found)


# Mistakes, and where they are found


def attention_with(change: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """An attention in which `change` makes (scores, weights) of the raw products, d and the mask."""

    def attention(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float = 0
    ) -> tuple[Tensor, Tensor]:
        weights = change(query @ key.mT, math.sqrt(query.shape[-1]), mask)
        return weights @ value, weights

    return attention


ATTENTIONS = {
    "no scale": (lambda raw, d, mask: (raw + mask).softmax(-1), "layer 0, scores"),
    "mask forgotten": (lambda raw, d, mask: (raw / d).softmax(-1), "layer 0, scores"),
    "mask of the wrong sign": (lambda raw, d, mask: (raw / d - mask).softmax(-1), "layer 0, scores"),
    "wrong axis": (lambda raw, d, mask: (raw / d + mask.clamp(-1e4)).softmax(-2), "layer 0, weights"),
    "scaled after": (lambda raw, d, mask: (raw / d + mask).softmax(-1) / d, "layer 0, weights"),
    "another way to hide": (lambda raw, d, mask: F.softmax(raw / d + mask.clamp(-1e4), dim=-1), None),
    "softmax by hand": (lambda raw, d, mask: _by_hand(raw / d + mask), None),
    "by hand, over all": (lambda raw, d, mask: (raw / d + mask).exp() / 9, "layer 0, weights"),
}


def _by_hand(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)


@pytest.mark.parametrize(("change", "stage"), ATTENTIONS.values(), ids=ATTENTIONS)
def test_mistakes_in_attention(
    change: Any, stage: str | None, model: BertModel, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bert, "attention", attention_with(change))
    found = compare(model, theirs, make_batch(BATCHES["padded"]))
    assert (found.first.stage if found.first else None) == stage


class NormThenAdd(bert.BertLayer):
    def forward(self, hidden_states: Tensor, packing: Packing, first_only: bool = False) -> Any:
        context, weights = self.attention(hidden_states, packing)
        rows = hidden_states + self.attention_norm(self.attention_output(context))
        return self.output_norm(rows + self.output(F.gelu(self.intermediate(rows)))), weights


class AddsTwice(bert.BertLayer):
    def forward(self, hidden_states: Tensor, packing: Packing, first_only: bool = False) -> Any:
        context, weights = self.attention(hidden_states, packing)
        rows = hidden_states + self.attention_norm(hidden_states + self.attention_output(context))
        return self.output_norm(rows + self.output(F.gelu(self.intermediate(rows)))), weights


class AddsTheInput(bert.BertLayer):
    def forward(self, hidden_states: Tensor, packing: Packing, first_only: bool = False) -> Any:
        context, weights = self.attention(hidden_states, packing)
        rows = self.attention_norm(hidden_states + self.attention_output(context))
        return self.output_norm(hidden_states + self.output(F.gelu(self.intermediate(rows)))), weights


class Relu(bert.BertLayer):
    def forward(self, hidden_states: Tensor, packing: Packing, first_only: bool = False) -> Any:
        context, weights = self.attention(hidden_states, packing)
        rows = self.attention_norm(hidden_states + self.attention_output(context))
        return self.output_norm(rows + self.output(F.relu(self.intermediate(rows)))), weights


LAYERS = {
    NormThenAdd: "add-and-norm",
    AddsTwice: "add-and-norm",
    AddsTheInput: "second add-and-norm",
    Relu: "intermediate",
}


@pytest.mark.parametrize(("layer", "stage"), LAYERS.items())
def test_mistakes_in_one_layer(layer: type[bert.BertLayer], stage: str, tiny: Path, theirs: Any) -> None:
    student = BertModel.from_pretrained(tiny)
    student.layers[1].__class__ = layer
    found = compare(student, theirs, make_batch(BATCHES["padded"])).first
    assert found is not None and found.stage == f"layer 1, {stage}"


class NoPositions(bert.BertEmbeddings):
    def forward(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        return self.norm(self.word(packing.pack(input_ids)) + self.token_type(packing.pack(token_type_ids)))


class TwoNorms(bert.BertEmbeddings):
    def forward(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        return 2 * super().forward(input_ids, token_type_ids, packing)


@pytest.mark.parametrize(("part", "stage"), [(NoPositions, "sum of embeddings"), (TwoNorms, "embeddings")])
def test_mistakes_in_the_embeddings(part: type, stage: str, tiny: Path, theirs: Any) -> None:
    student = BertModel.from_pretrained(tiny)
    student.embeddings.__class__ = part
    found = compare(student, theirs, make_batch(BATCHES["padded"])).first
    assert found is not None and found.stage == stage


def test_the_place_of_the_difference(tiny: Path, model: BertModel) -> None:
    """Of three examples, only the second, at position 3, has the token whose embedding is off by .25."""
    other = BertModel.from_pretrained(tiny)
    with torch.no_grad():
        other.embeddings.word.weight[77] += 0.25
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 77, 5], [1, 2, 3, 4, 5]])}
    found = compare(model, other, batch)
    assert str(found.first) == "word embeddings: off by 0.25 at example 1, token 3"
    assert str(found).endswith("the first that differs is word embeddings: off by 0.25 at example 1, token 3")
    lines = {line.split("  ")[0]: line.split()[-1] for line in str(found).splitlines()}
    assert (lines["word embeddings"], lines["segment embeddings"]) == ("differs", "same")


def test_the_stages_before_an_error_are_recorded(
    model: BertModel, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attention(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(bert, "attention", attention)
    batch = make_batch(BATCHES["padded"])
    with pytest.raises(NotImplementedError), recording(model, batch) as stages:
        model(**batch)
    assert list(stages)[-1] == "layer 0, value"
    assert first_difference(stages, trace(theirs, batch)) is None


def test_a_part_that_returns_nothing(tiny: Path, theirs: Any) -> None:
    student = BertModel.from_pretrained(tiny)
    student.layers[1].attention.forward = lambda *_: None
    batch = make_batch(BATCHES["padded"])
    with pytest.raises(TypeError), recording(student, batch) as stages:
        student(**batch)
    assert list(stages)[-1] == "layer 0, second add-and-norm"
    assert first_difference(stages, trace(theirs, batch)) is None


# The measure


def test_differences_by_hand() -> None:
    """The scale is 4, so a tolerance of .25 allows 1. Equal infinities and NaNs are no difference."""
    theirs = torch.tensor([[[[1.0, -math.inf, math.nan, -4.0]]]])
    found = difference("scores", theirs + torch.tensor([0, 0, 0, 1.0]), theirs)
    assert (found.largest, found.scale) == (1, 4)
    assert found.position == {"example": 0, "head": 0, "query": 0, "key": 3}
    assert not found.exceeds(0.25) and found.exceeds(0.24)
    for wrong in (math.nan, math.inf, -math.inf):
        found = difference("scores", torch.tensor([[[[1, -math.inf, math.nan, wrong]]]]), theirs)
        assert found.largest == math.inf and found.exceeds(1e9) and found.position["key"] == 3
    found = difference("query", torch.ones(2, 3), torch.ones(2, 4))
    assert str(found) == "query: has shape (2, 3), not (2, 4)" and found.exceeds(1e9)


@pytest.mark.parametrize("field", comparison.SHAPE)
def test_models_of_two_shapes(field: str) -> None:
    shape = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    shape["num_attention_heads"] = 2
    one, other = BertConfig(**shape), BertConfig(**shape | {field: 4 * shape[field]})
    with pytest.raises(
        InputError, match=f"^{field} is {shape[field]} in one model and {4 * shape[field]} in"
    ):
        compare(BertModel(one), BertModel(other), make_batch([[1]]))


def test_what_is_no_bert(model: BertModel) -> None:
    for one, other in ((model, nn.Linear(2, 2)), (nn.Linear(2, 2), model)):
        with pytest.raises(InputError, match=r"^Linear is no BertModel of minbert or transformers"):
            compare(one, other, make_batch([[1]]))
    with pytest.raises(InputError, match=r"^Identity is no BertModel"):
        trace(nn.Identity(), make_batch([[1]]))
    half = BertModel(model.config)
    del half.layers[1].output_norm, half.layers[1].attention_norm, half.layers[1].intermediate
    with pytest.raises(InputError, match=r"^BertModel is not built as a BertModel: .*intermediate"):
        compare(half, model, make_batch([[1]]))
    assert not any(module._forward_hooks for module in half.modules())


# The command


def test_two_checkpoints_that_agree(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny), f"hf:{tiny}"]) == 0
    assert capsys.readouterr().out.endswith("no stage differs\n")
    texts = ["--text", "One film.", "Another.", "--pair", "Late.", "Two trains."]
    assert main([str(tiny), str(tiny), *texts]) == 0


def test_texts_are_cut_to_what_both_checkpoints_read(tiny: Path, tmp_path: Path) -> None:
    model = BertModel(replace(BertConfig.from_pretrained(tiny), max_position_embeddings=6))
    model.load_state_dict({
        name: tensor[:6] if name == "embeddings.position.weight" else tensor
        for name, tensor in BertModel.from_pretrained(tiny).state_dict().items()
    })  # fmt: skip
    model.save_pretrained(tmp_path)
    shutil.copy(tiny / "tokenizer.json", tmp_path)
    assert main([str(tiny), str(tmp_path)]) == main([str(tmp_path), f"hf:{tiny}"]) == 0


def test_two_checkpoints_that_differ(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = BertModel.from_pretrained(tiny)
    with torch.no_grad():
        other.layers[1].attention.key.weight[0, 0] += 1
    other.save_pretrained(tmp_path)
    assert main([str(tiny), str(tmp_path)]) == 1
    assert "the first that differs is layer 1, key: off by " in capsys.readouterr().out
    assert main([str(tiny), str(tmp_path), "--tolerance", "100"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["TINY"], "name two checkpoints, or --sanity alone"),
        (["TINY", "TINY", "--sanity"], "--sanity stands alone"),
        (["--sanity", "--text", "hi"], "--sanity stands alone"),
        (["TINY", "TINY", "--pair", "x"], "--pair needs --text"),
        (["TINY", "TINY", "--tolerance", "nan"], "--tolerance is a number, at least 0"),
        (["TINY", "nowhere"], "error: nowhere: neither a checkpoint's name"),
        (["TINY", "hf:nowhere"], "error: nowhere: neither a checkpoint's name"),
        (["TINY", "TINY", "--text", "a", "--pair", "b", "c"], "error: texts has 1 items, but pairs has 2"),
    ],
)
def test_mistakes_end_in_one_line(
    words: list[str], message: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.replace("TINY", str(tiny)) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_what_transformers_cannot_load(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pickle that was not allowed, and a checkpoint without a pooler, which it would draw at random."""
    pickled, headless = tmp_path / "pickled", tmp_path / "headless"
    for folder in (pickled, headless):
        shutil.copytree(tiny, folder)
    stored = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(stored, pickled / "pytorch_model.bin")
    assert main([str(tiny), f"hf:{pickled}"]) == 2
    assert f"hf:{pickled}: transformers cannot load it" in capsys.readouterr().err
    assert main([str(tiny), f"hf:{pickled}", "--allow-pickle"]) == 0
    save_file(
        {name: tensor for name, tensor in stored.items() if not name.startswith("pooler")},
        headless / "model.safetensors",
    )
    assert main([str(tiny), f"hf:{headless}"]) == 2
    assert f"hf:{headless}: lacks pooler.dense.bias, pooler.dense.weight" in capsys.readouterr().err


def test_without_transformers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main([str(tiny), f"hf:{tiny}"]) == 2
    assert 'transformers is missing; run: pip install "transformers' in capsys.readouterr().err
    assert main([str(tiny), str(tiny)]) == 0
