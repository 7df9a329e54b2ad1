"""bert.py: attention by hand, and the whole encoder beside `transformers.BertModel` on the same weights."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minbert import BertConfig, BertModel, BertTokenizer, InputError, attention, bert, hub
from minbert.checkpoint import to_hugging_face
from minbert.memory import check_memory

ROOT = Path(__file__).resolve().parent.parent
EXACT = 2e-6  # the bound on every hidden state in float32
GRADIENT = 1e-5  # relative to a parameter's largest gradient

SHAPES = {
    "small": BertConfig(90, 32, 2, 4, 64),
    "one layer, one head": BertConfig(60, 24, 1, 1, 100, type_vocab_size=3),
    "deep, thin heads": BertConfig(70, 24, 4, 12, 16, layer_norm_eps=1e-5),
}
MASKS = {
    "full": [[1] * 7] * 4,
    "ragged": [[1] * 7, [1] * 2 + [0] * 5, [1] + [0] * 6, [1] * 6 + [0]],
    "holes": [[1, 0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1], [1] * 7, [1, 0, 1, 0, 1, 0, 1]],
    "left padding": [[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0] * 6 + [1], [0, 1, 1, 1, 0, 1, 0]],
    "batch of one": [[1] * 5],
    "one token": [[1]],
    "512 positions": [[1] * 512, [1] * 300 + [0] * 212],
}


# Attention


def test_attention_by_hand() -> None:
    """d = 4, so scores are halved: q = (2, 0, 0, 0) gives k1 = (ln 3, 0, 0, 0) the score ln 3 and k2 = 0 the
    score 0, hence weights 3/4 and 1/4; from values (4, 0, 0, 0) and (0, 8, 0, 0) they mix (3, 2, 0, 0). With
    k1 masked, all weight is on the second value."""
    query = torch.tensor([[[[2.0, 0, 0, 0]]]])
    key = torch.tensor([[[[math.log(3), 0, 0, 0], [0, 0, 0, 0]]]])
    value = torch.tensor([[[[4.0, 0, 0, 0], [0, 8, 0, 0]]]])
    context, weights = attention(query, key, value)
    torch.testing.assert_close(weights, torch.tensor([[[[0.75, 0.25]]]]))
    torch.testing.assert_close(context, torch.tensor([[[[3.0, 2, 0, 0]]]]))
    context, weights = attention(query, key, value, torch.tensor([False, True]))
    assert weights.tolist() == [[[[0.0, 1.0]]]]
    assert torch.equal(context, value[:, :, 1:])


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The same, one query at a time over the keys it sees, in float64 NumPy."""
    q, k, v, sees = (tensor.double().numpy() for tensor in (query, key, value, mask))
    weights = np.zeros((*q.shape[:3], k.shape[2]))
    for b, h, i in np.ndindex(*q.shape[:3]):
        seen = np.flatnonzero(sees[b, h, i])
        e = np.exp([q[b, h, i] @ k[b, h, j] / np.sqrt(q.shape[3]) for j in seen])
        weights[b, h, i, seen] = e / e.sum()
    return torch.from_numpy(np.einsum("bhij,bhjd->bhid", weights, v)), torch.from_numpy(weights)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (2, 1, 1, 6), (2, 1, 5, 6), (2, 3, 5, 6)])
def test_attention_in_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    mask = torch.rand(shape) < 0.5
    mask[..., 2] = True
    expected = plain_attention(query, key, value, mask.expand(2, 3, 5, 6))
    for given, wanted in zip(attention(query, key, value, mask.to(dtype)), expected, strict=True):
        torch.testing.assert_close(given.double(), wanted, rtol=0, atol=1e-6)


def test_attention_without_mask_sees_all() -> None:
    query, key, value = torch.randn(3, 2, 1, 4, 8).unbind()
    every = torch.ones(4, dtype=torch.bool)
    for given, wanted in zip(attention(query, key, value), attention(query, key, value, every), strict=True):
        assert torch.equal(given, wanted)


@pytest.mark.parametrize("mask", [torch.rand(2, 1, 5, 6) < 0.8, torch.randn(5, 6), None])
def test_attention_takes_the_masks_of_torch(mask: Tensor | None) -> None:
    """Boolean: True where a key may be seen; float: added to the scores."""
    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 6, 8), torch.randn(2, 3, 6, 8)
    if mask is not None and mask.dtype == torch.bool:
        mask[..., 0] = True
    expected = F.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(attention(query, key, value, mask)[0], expected, rtol=0, atol=1e-6)


def test_the_layers_call_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a student can put their own in its place: one that looks at the first token alone makes every
    token's context that token's value."""

    def first_token_only(query, key, value, mask=None, dropout=0.0):
        weights = torch.zeros(*query.shape[:3], key.shape[2])
        weights[..., 0] = 1
        return weights @ value, weights

    model = BertModel(SHAPES["small"]).eval()
    input_ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids, output_attentions=True)
    monkeypatch.setattr(bert, "attention", first_token_only)
    after = model(input_ids, output_attentions=True)
    assert not torch.equal(after.last_hidden_state, before.last_hidden_state)
    assert all(torch.equal(weights[..., 0], torch.ones(1, 4, 3)) for weights in after.attentions)
    assert not torch.equal(model.pooled(input_ids), before.pooler_output)


def test_outputs_by_number_and_name() -> None:
    model = BertModel(SHAPES["small"]).eval()
    out = model(torch.tensor([[5, 6]]), output_attentions=True)
    assert out[0] is out.last_hidden_state is out["last_hidden_state"]
    assert out[1] is out.pooler_output and out[2] is out[-1] is out.attentions
    last, pooled = out[:2]
    assert last is out[0] and pooled is out[1]
    with pytest.raises(IndexError):
        out[3]
    assert "pooler_output" in out and "hidden_states" not in out
    with pytest.raises(KeyError):
        out["poolr_output"]


def test_a_whole_batch_as_input_ids_says_what_to_write() -> None:
    batch = {"input_ids": torch.tensor([[5, 6]])}
    for call in (BertModel(SHAPES["small"]), BertModel(SHAPES["small"]).pooled):
        with pytest.raises(InputError, match=r"write model\(\*\*batch\)"):
            call(batch)


NO_KEY = [
    torch.zeros(4, dtype=torch.int64),
    torch.eye(5, 4).bool(),
    torch.zeros(2, 1, 1, 4, dtype=torch.bool),
]


@pytest.mark.parametrize("mask", NO_KEY)
def test_attention_needs_a_key(mask: Tensor) -> None:
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 4, 8)
    with pytest.raises(
        InputError, match=r"^a query may see no key: every row of the mask needs at least one True$"
    ):
        attention(query, key, key, mask)


def test_attention_dropout() -> None:
    """Of 20,000 equal rows a third of the weights each is dropped, and the rest grown by 3/2: the mean stays
    (the standard deviation of a mean is about .01), and the weights come back as they were."""
    query, key, value = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    context, weights = attention(query, key, value)
    many = query.expand(20_000, 1, 1, 4), key.expand(20_000, 1, 3, 4), value.expand(20_000, 1, 3, 4)
    dropped, kept = attention(*many, dropout=1 / 3)
    assert torch.equal(kept[0], weights[0])
    assert len(dropped.flatten(1).unique(dim=0)) == 8  # each of three weights is dropped or not
    torch.testing.assert_close(dropped.mean(dim=0), context[0], rtol=0, atol=0.05)


# Parity with transformers


def random_model(config: BertConfig) -> BertModel:
    """Random in every parameter, biases and LayerNorm too, so that none can be mistaken for another."""
    model = BertModel(replace(config, initializer_range=0.2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def twins(
    config: BertConfig, folder: Path, implementation: str = "eager"
) -> tuple[BertModel, transformers.BertModel]:
    """The same random weights in both: saved by us and loaded by them, saved by them and loaded by us."""
    random_model(config).save_pretrained(folder / "ours")
    theirs = transformers.BertModel.from_pretrained(folder / "ours", attn_implementation=implementation)
    theirs.save_pretrained(folder / "theirs")
    return BertModel.from_pretrained(folder / "theirs"), theirs.eval()


def random_inputs(config: BertConfig, mask: list[list[int]]) -> dict[str, Tensor]:
    attention_mask = torch.tensor(mask)
    return {
        "input_ids": torch.randint(config.vocab_size, attention_mask.shape),
        "attention_mask": attention_mask,
        "token_type_ids": torch.randint(config.type_vocab_size, attention_mask.shape),
    }


def outputs(model: Any, inputs: dict[str, Tensor], attentions: bool = True) -> dict[str, Tensor]:
    """Every output of either library, by name."""
    output = model(**inputs, output_hidden_states=True, output_attentions=attentions)
    named = {"last_hidden_state": output.last_hidden_state, "pooler_output": output.pooler_output}
    named |= {f"hidden_states.{i}": state for i, state in enumerate(output.hidden_states)}
    return named | {f"attentions.{i}": weights for i, weights in enumerate(output.attentions or [])}


def our_conventions(
    named: dict[str, Tensor], mask: Tensor, theirs: transformers.BertModel
) -> dict[str, Tensor]:
    """Their outputs with 0 at padding; and pooled at the first real token, where theirs takes position 0."""
    real = mask.bool()
    first = named["last_hidden_state"][torch.arange(len(real)), real.int().argmax(dim=1)]
    pooled = {"pooler_output": theirs.pooler(first[:, None])}
    return {
        name: tensor * (real[:, None, :, None] if name.startswith("attentions") else real[:, :, None])
        for name, tensor in named.items()
        if name not in pooled
    } | pooled


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = EXACT) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert (found[name] - tensor).abs().max() <= tolerance, name


def loss(named: dict[str, Tensor], mask: Tensor) -> Tensor:
    """A scalar to which every output at a real token counts, as in tools/make_reference.py."""
    return named["last_hidden_state"][mask.bool()].sin().sum() + named["pooler_output"].sum()


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-5 of the largest of each parameter's. A shift of all of a query's scores changes no weight,
    so a key's bias has the gradient 0; its rounding error is measured on its weight's scale."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = expected[name.replace("key.bias", "key.weight")].abs().max()
        assert (found[name] - gradient).abs().max() <= GRADIENT * scale, name


def gradients(model: BertModel) -> dict[str, Tensor]:
    return to_hugging_face({name: parameter.grad for name, parameter in model.named_parameters()})


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_equals_transformers(config: BertConfig, mask: list[list[int]], tmp_path: Path) -> None:
    ours, theirs = twins(config, tmp_path)
    inputs = random_inputs(config, mask)
    found = outputs(ours, inputs)
    expected = our_conventions(outputs(theirs, inputs), inputs["attention_mask"], theirs)
    assert_same(found, expected)
    loss(found, inputs["attention_mask"]).backward()
    loss(expected, inputs["attention_mask"]).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert_same_gradients(gradients(ours), their_gradients)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_equals_transformers_sdpa(mask: list[list[int]], tmp_path: Path) -> None:
    """Their default, which adds up in another order than eager attention and we do: it differs from either by
    up to 3.3e-6 here, about as float32 itself differs from float64, so the bound is 1e-5. (A wrong mask
    or scale shows as .1 and more.)"""
    ours, theirs = twins(SHAPES["small"], tmp_path, "sdpa")
    inputs = random_inputs(SHAPES["small"], mask)
    expected = outputs(theirs, inputs, attentions=False)
    expected = our_conventions(expected, inputs["attention_mask"], theirs)
    assert_same(outputs(ours, inputs, attentions=False), expected, tolerance=1e-5)


@pytest.mark.parametrize(
    "left_out", [{"attention_mask"}, {"token_type_ids"}, {"attention_mask", "token_type_ids"}]
)
def test_optional_inputs(left_out: set[str], tmp_path: Path) -> None:
    """Without a mask every token is real, [PAD] too; without types all are 0."""
    ours, theirs = twins(SHAPES["small"], tmp_path)
    inputs = random_inputs(SHAPES["small"], MASKS["ragged"])
    inputs["input_ids"][0, 2] = SHAPES["small"].pad_token_id
    given = {name: tensor for name, tensor in inputs.items() if name not in left_out}
    mask = given.get("attention_mask", torch.ones(4, 7))
    assert_same(outputs(ours, given), our_conventions(outputs(theirs, given), mask, theirs))
    defaults = {"attention_mask": torch.ones(4, 7), "token_type_ids": torch.zeros(4, 7, dtype=torch.int64)}
    explicit = inputs | {name: defaults[name] for name in left_out}
    assert_same(outputs(ours, given), outputs(ours, explicit), tolerance=0)


@pytest.mark.parametrize("case", ["single", "pair", "one", "long"])
def test_equals_reference(case: str, tiny: Path) -> None:
    """What transformers gave when tools/make_reference.py ran: the check that needs no transformers."""
    stored = {
        name.removeprefix(f"{case}."): tensor
        for name, tensor in load_file(ROOT / "tests" / "reference.safetensors").items()
        if name.startswith(f"{case}.")
    }
    model = BertModel.from_pretrained(tiny)
    inputs = {name: stored.pop(name) for name in ("input_ids", "attention_mask", "token_type_ids")}
    slopes = {name: tensor for name, tensor in stored.items() if name.startswith("gradients.")}
    found = outputs(model, inputs)
    mask = inputs["attention_mask"]
    for name in stored.keys() - slopes.keys():
        real = mask[:, None, :, None] if name.startswith("attentions") else mask[:, :, None]
        expected = stored[name] * (1 if name == "pooler_output" else real)
        assert_same({name: found[name]}, {name: expected})
    assert bool(slopes) == (case == "pair")
    loss(found, mask).backward()
    mine = {f"gradients.{name}": gradient for name, gradient in gradients(model).items()}
    assert_same_gradients({name: mine[name] for name in slopes}, slopes)


def sample(pattern: str, most: int) -> list[tuple[str, ...]]:
    """Sentences, or pairs of them, from the shipped sample."""
    (path,) = (ROOT / "multitask" / "data" / "sample").glob(pattern)
    with path.open(encoding="utf-8", newline="") as table:
        rows = [row for row, _ in zip(csv.DictReader(table, delimiter="\t"), range(most), strict=False)]
    return [tuple(text for name, text in row.items() if name.startswith("sentence")) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["ids-sst-dev.csv", "quora-dev.csv", "sts-dev.csv"])
def test_equals_transformers_on_real_weights(pattern: str) -> None:
    """Real weights make scores of up to 230, whose rounding errors the softmax hands on: transformers' own
    two implementations differ by up to 9e-6 here, so sdpa is held to 2e-5. Eager sums as we do: 2e-6."""
    folder = hub.resolve("minilm-l6")
    ours = BertModel.from_pretrained("minilm-l6")
    inputs = BertTokenizer.from_pretrained("minilm-l6")(*map(list, zip(*sample(pattern, 24), strict=True)))
    mask = inputs["attention_mask"]
    found = outputs(ours, inputs)
    for implementation, tolerance in (("sdpa", 2e-5), ("eager", EXACT)):
        theirs = transformers.BertModel.from_pretrained(folder, attn_implementation=implementation).eval()
        eager = implementation == "eager"
        expected = our_conventions(outputs(theirs, inputs, attentions=eager), mask, theirs)
        assert_same({name: found[name] for name in expected}, expected, tolerance)
    loss(found, mask).backward()
    loss(expected, mask).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert_same_gradients(gradients(ours), their_gradients)


# What we promise beyond them


@pytest.fixture
def model() -> BertModel:
    return random_model(SHAPES["small"])


@pytest.mark.parametrize("name", ["ragged", "holes", "left padding"])
def test_padding_is_zero_and_changes_nothing(name: str, model: BertModel) -> None:
    inputs = random_inputs(model.config, MASKS[name])
    padding = inputs["attention_mask"] == 0
    found = outputs(model, inputs)
    for key, tensor in found.items():
        if key.startswith("attentions"):
            assert (tensor.transpose(1, 2)[padding] == 0).all()  # rows of padding queries
            assert (tensor.permute(0, 3, 1, 2)[padding] == 0).all()  # columns of padding keys
            torch.testing.assert_close(tensor.sum(dim=-1), (~padding).float()[:, None].expand(-1, 4, -1))
        elif key != "pooler_output":
            assert (tensor[padding] == 0).all()
            assert (tensor[~padding] != 0).all()
    inputs["input_ids"][padding] = 3
    inputs["token_type_ids"][padding] = 1
    assert_same(outputs(model, inputs), found, tolerance=0)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_pooled(config: BertConfig, mask: list[list[int]]) -> None:
    model = random_model(config)
    inputs = random_inputs(config, mask)
    output = model(**inputs)
    assert_same({"cls": model.pooled(**inputs)}, {"cls": output.pooler_output})
    means = [
        states[real.bool()].mean(dim=0)
        for states, real in zip(output.last_hidden_state, inputs["attention_mask"], strict=True)
    ]
    assert_same({"mean": model.pooled(**inputs, pooling="mean")}, {"mean": torch.stack(means)})


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02), (torch.float64, 1e-5)]
)
def test_other_precisions(dtype: torch.dtype, tolerance: float, model: BertModel) -> None:
    inputs = random_inputs(model.config, MASKS["holes"])
    exact = model(**inputs).last_hidden_state
    rounded = model.to(dtype)
    assert rounded.pooled(**inputs, pooling="mean").dtype == dtype
    found, pooled = rounded(**inputs)[:2]
    torch.testing.assert_close(found, exact.to(dtype), rtol=0, atol=tolerance)
    (found.sum() + pooled.sum()).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_second_derivatives(model: BertModel) -> None:
    """A penalty on the length of the gradient has the gradient that float64 has, which takes torch's own
    embedding."""
    inputs = random_inputs(model.config, MASKS["ragged"])

    def of_penalty() -> dict[str, Tensor]:
        model.zero_grad()
        loss = model(**inputs).pooler_output.sin().sum()
        first = torch.autograd.grad(loss, [*model.parameters()], create_graph=True)
        torch.stack([one.square().sum() for one in first]).sum().backward()
        return gradients(model)

    found = of_penalty()
    model.double()
    expected = of_penalty()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].double(), gradient, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_first_token_path_has_the_same_gradients(mask: list[list[int]], model: BertModel) -> None:
    """`pooled` computes one row an example in the last layer; nothing that trains may notice."""
    inputs = random_inputs(model.config, mask)
    model.pooled(**inputs).sin().sum().backward()
    short = gradients(model)
    model.zero_grad()
    model(**inputs).pooler_output.sin().sum().backward()
    assert_same_gradients(short, gradients(model))


def test_first_token_path_spares_the_other_rows(model: BertModel) -> None:
    """Of 7 tokens, with H = 32 and an inner width of 64: 6 rows less of query and output (32 x 32 each), of
    the inner and the outer product (32 x 64 each), and of scores and context (7 x 32 each). A multiplication
    counts twice, with its addition."""
    counts = []
    for work in (model, model.pooled):
        with FlopCounterMode(display=False) as counter:
            work(torch.ones(1, 7, dtype=torch.int64))
        counts.append(counter.get_total_flops())
    assert counts[0] - counts[1] == 2 * 6 * 2 * (32 * 32 + 32 * 64 + 7 * 32)


def test_output_by_name(model: BertModel) -> None:
    output = model(torch.tensor([[1, 2]]))
    assert output["pooler_output"] is output.pooler_output
    assert output["last_hidden_state"] is output.last_hidden_state
    assert output.hidden_states is None
    assert output["attentions"] is None


# Dropout


def with_dropout(model: BertModel, hidden: float, attention: float) -> BertModel:
    config = replace(model.config, hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
    other = BertModel(config)
    other.load_state_dict(model.state_dict())
    return other.train()


def test_no_dropout_trains_as_it_evaluates(model: BertModel) -> None:
    inputs = random_inputs(model.config, MASKS["holes"])
    assert_same(outputs(with_dropout(model, 0, 0), inputs), outputs(model, inputs), tolerance=0)
    assert_same(outputs(with_dropout(model, 0.5, 0.5).eval(), inputs), outputs(model, inputs), tolerance=0)


@pytest.mark.parametrize(("hidden", "attention"), [(0.1, 0.0), (0.0, 0.1), (0.1, 0.3)])
def test_dropout_falls_where_transformers_drops(
    hidden: float, attention: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without padding, and with torch's dropout in the place of ours, both draw the same numbers in the same
    order, so that in training, from one seed, every output is the same: dropout is at the same places, at the
    same rates."""
    for function in ("minbert.bert.drop", "minbert.dropout.dropout"):
        monkeypatch.setattr(function, torch.nn.functional.dropout)
    config = replace(SHAPES["small"], hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
    ours, theirs = twins(config, tmp_path)
    inputs = random_inputs(config, MASKS["full"])
    calm = ours(**inputs).last_hidden_state
    torch.manual_seed(1)
    found = ours.train()(**inputs).last_hidden_state
    torch.manual_seed(1)
    expected = theirs.train()(**inputs).last_hidden_state
    assert_same({"state": found}, {"state": expected})
    assert (found - calm).abs().max() > 0.1


def test_dropout_averages_out(model: BertModel) -> None:
    """Of 4,000 equal rows, .1 of each embedding is dropped and the rest is 1/.9 of itself: the standard
    deviation of a mean is |x| sqrt(.1 / .9 / 4000) = .005 |x|, and |x| is below 4."""
    inputs = torch.tensor([[5, 6, 7]])
    expected, _ = model.embed(inputs)
    found, _ = with_dropout(model, 0.1, 0.0).embed(inputs.expand(4000, 3))
    assert (found == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    torch.testing.assert_close(found.view(4000, 3, -1).mean(dim=0), expected, rtol=0, atol=0.1)


# Mistakes


IDS = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((IDS[0],), r"share one non-empty shape \(B, L\), not \(3,\)"),
        (([[]],), r"non-empty shape \(B, L\), not \(1, 0\)"),
        ((IDS, [[1, 1], [1, 1]]), r"not \(2, 3\), \(2, 2\) and \(2, 3\)"),
        ((IDS, None, [[0, 0, 0]]), r"not \(2, 3\), \(2, 3\) and \(1, 3\)"),
        (([[1] * 513],), "513 positions are more than this model's 512: truncate with max_length=512"),
        (([[1, 90]],), r"input_ids must lie in 0\.\.89"),
        (([[1, -1]],), r"input_ids must lie in 0\.\.89"),
        ((IDS, None, [[0, 0, 0], [0, 0, 2]]), r"token_type_ids must lie in 0\.\.1"),
        ((IDS, [[1, 0, 0], [0, 0, 0]]), "row 1 of attention_mask is all zeros"),
    ],
)
def test_bad_inputs(inputs: tuple, message: str, model: BertModel) -> None:
    tensors = [None if given is None else torch.tensor(given, dtype=torch.int64) for given in inputs]
    for call in (model, model.pooled, model.embed):
        with pytest.raises(InputError, match=message):
            call(*tensors)


def test_attention_larger_than_the_machines_memory_is_refused_before_it_is_made() -> None:
    model = BertModel(BertConfig(9, 2, 1, 2, 2, max_position_embeddings=2**20))
    ids = torch.ones(1, 2**20, dtype=torch.int64)
    for call in (model, model.pooled, model.embed):
        with pytest.raises(InputError, match=r"^1 x 1,048,576 positions need 8,192\.0 GiB"):
            call(ids)


def test_where_the_memory_is_unknown_nothing_is_too_large(
    model: BertModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_memory(model.config, 1, 512)
    monkeypatch.delattr("os.sysconf")
    check_memory(model.config, 10**9, 512)


def test_unknown_pooling(model: BertModel) -> None:
    with pytest.raises(InputError, match="pooling is one of cls, mean, not 'max'"):
        model.pooled(torch.tensor(IDS), pooling="max")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size 30 is not a multiple of num_att.* 4"),
        ({"vocab_size": 0}, "vocab_size must be a whole number, at least 1 and at most 100,000,000, not 0"),
        (
            {"num_hidden_layers": 257},
            "num_hidden_layers must be a whole number, .* at most 256, not 257",
        ),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers must be a whole number, .*, not 2.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number, .*, not True"),
        ({"intermediate_size": "64"}, "intermediate_size must be a whole number, .*, not '64'"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps must be a number, at least 0 and at most 1, not nan"),
        (
            {"hidden_dropout_prob": 1.0},
            "hidden_dropout_prob must be a number, .* below 1, not 1.0",
        ),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob must be a number, at least 0"),
        ({"pad_token_id": -1}, "pad_token_id must be a whole number, at least 0"),
    ],
)
def test_bad_config(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BertConfig(**values)


def test_the_largest_config_is_not_too_large() -> None:
    assert BertConfig(num_hidden_layers=256).num_hidden_layers == 256


def test_a_new_model_starts_as_bert_did() -> None:
    """Matrices from N(0, .1^2), of 118,144 numbers in all, biases 0, LayerNorm 1 and 0."""
    model = BertModel(replace(SHAPES["small"], hidden_size=64, vocab_size=500, initializer_range=0.1))
    matrices = torch.cat([p.flatten() for p in model.parameters() if p.ndim > 1])
    assert matrices.mean().item() == pytest.approx(0, abs=0.002)
    assert matrices.std().item() == pytest.approx(0.1, abs=0.002)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (1 if name.endswith("norm.weight") else 0)).all(), name


def test_pretrained_model_is_ready(tiny: Path) -> None:
    """In evaluation mode, and with fields of its config changed as asked."""
    model = BertModel.from_pretrained(tiny, hidden_dropout_prob=0.25)
    assert not model.training
    assert model.embeddings.dropout.p == model.config.hidden_dropout_prob == 0.25
