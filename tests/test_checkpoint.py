"""checkpoint.py and the config: every layout that BERT is published in, and a clear no to everything else."""

import json
import pickle
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from minbert import BertConfig, BertModel, InputError, checkpoint, hub

Tensors = dict[str, Tensor]
IDS = torch.tensor([[2, 70, 80, 90, 3]])


@pytest.fixture
def weights(tiny: Path) -> Tensors:
    return load_file(tiny / "model.safetensors")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint folder that holds no weights yet."""
    shutil.copy(tiny / "config.json", tmp_path)
    return tmp_path


def assert_equal(found: BertModel, expected: BertModel) -> None:
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name]), name


# What is read


def prefixed(weights: Tensors) -> Tensors:
    return {f"bert.{name}": tensor for name, tensor in weights.items()}


def old_norms(weights: Tensors) -> Tensors:
    new_to_old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    return {
        re.sub("LayerNorm.*", lambda found: new_to_old[found[0]], name): tensor
        for name, tensor in weights.items()
    }


def with_positions(weights: Tensors) -> Tensors:
    return weights | {"embeddings.position_ids": torch.arange(512)[None]}


def with_heads(weights: Tensors) -> Tensors:
    return weights | {
        "cls.predictions.bias": torch.zeros(1200),
        "cls.predictions.decoder.weight": torch.zeros(1200, 32),
        "cls.predictions.transform.dense.weight": torch.zeros(32, 32),
        "cls.predictions.transform.LayerNorm.gamma": torch.ones(32),
        "cls.seq_relationship.weight": torch.zeros(2, 32),
    }


def published_2018(weights: Tensors) -> Tensors:
    heads = {name: tensor for name, tensor in with_heads(weights).items() if name.startswith("cls.")}
    return prefixed(with_positions(old_norms(weights))) | heads


@pytest.mark.parametrize("variant", [dict, prefixed, old_norms, with_positions, with_heads, published_2018])
def test_layouts(variant: Callable[[Tensors], Tensors], weights: Tensors, tiny: Path, folder: Path) -> None:
    save_file(variant(weights), folder / "model.safetensors")
    assert_equal(BertModel.from_pretrained(folder), BertModel.from_pretrained(tiny))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, weights: Tensors, folder: Path) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in weights.items()}, folder / "model.safetensors")
    model = BertModel.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.pooler.weight, weights["pooler.dense.weight"].to(dtype).float())


# What is refused


PROBLEMS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda found: found.pop("pooler.dense.bias"), "pooler.dense.bias is missing"),
    "unexpected": (
        lambda found: found.update({"encoder.layer.2.output.dense.bias": torch.zeros(32)}),
        "encoder.layer.2.output.dense.bias is unexpected",
    ),
    "misshapen": (
        lambda found: found.update({"encoder.layer.1.intermediate.dense.weight": torch.zeros(32, 64)}),
        r"encoder.layer.1.intermediate.dense.weight has shape \(32, 64\), config.json wants \(64, 32\)",
    ),
    "twice": (
        lambda found: found.update({"embeddings.LayerNorm.gamma": torch.zeros(32)}),
        "embeddings.LayerNorm.(gamma|weight) is given twice",
    ),
    "integers": (
        lambda found: found.update({"embeddings.word_embeddings.weight": torch.zeros(1200, 32).int()}),
        "embeddings.word_embeddings.weight holds I32, not floats",
    ),
    "not quite a head": (lambda found: found.update({"cls.mine": torch.zeros(1)}), "cls.mine is unexpected"),
}


@pytest.mark.parametrize(
    "names", [*([name] for name in PROBLEMS), list(PROBLEMS)], ids=[*PROBLEMS, "all at once"]
)
def test_every_wrong_key_is_named(names: list[str], weights: Tensors, folder: Path) -> None:
    for name in names:
        PROBLEMS[name][0](weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: not a BERT encoder that fits") as caught:
        BertModel.from_pretrained(folder)
    message = str(caught.value)
    for name in names:
        assert re.search(PROBLEMS[name][1], message)
    assert message.count(";") == len(names) - 1  # and nothing else is


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_torn_safetensors(keep: int, tiny: Path, folder: Path) -> None:
    whole = (tiny / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: not a whole safetensors file"):
        BertModel.from_pretrained(folder)


def test_no_weights(folder: Path) -> None:
    with pytest.raises(InputError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        BertModel.from_pretrained(folder)


def test_a_config_that_asks_for_terabytes_is_refused_before_they_are_taken(tiny: Path, folder: Path) -> None:
    """Words of 13 TB, and 256 layers, beside the weights of the tiny one. Taking them would be killed,
    and is here refused by the system, as an error of torch or of Python."""
    shutil.copy(tiny / "model.safetensors", folder)
    config = json.loads((folder / "config.json").read_text())
    large = {"vocab_size": 10**8, "hidden_size": 2**15, "num_hidden_layers": 256}
    (folder / "config.json").write_text(json.dumps(config | large))
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, before[1]))
    try:
        with pytest.raises(InputError, match=r"model\.safetensors: not a BERT encoder that fits") as caught:
            BertModel.from_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "has shape (1200, 32), config.json wants (100000000, 32768)" in str(caught.value)
    assert str(caught.value).endswith(" more") and len(str(caught.value)) < 5000


def test_shapes_are_refused_before_a_tensor_is_read(weights: Tensors, folder: Path) -> None:
    """Where a header tells a wrong shape, no byte behind it is asked for."""
    save_file(weights | {"pooler.dense.bias": torch.zeros(33)}, folder / "model.safetensors")
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(InputError, match=r"has shape \(33,\), config.json wants \(32,\)"),
    ):
        patch.setattr(checkpoint, "partial", lambda *_: lambda: pytest.fail("a tensor is read"))
        BertModel.from_pretrained(folder)


# Pickles


def test_pickle_only_when_allowed(weights: Tensors, tiny: Path, folder: Path) -> None:
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: a pickle, read only with allow_pickle=True"):
        BertModel.from_pretrained(folder)
    assert_equal(BertModel.from_pretrained(folder, allow_pickle=True), BertModel.from_pretrained(tiny))


def test_safetensors_come_first(weights: Tensors, tiny: Path, folder: Path) -> None:
    """Where both are there the pickle is not even opened."""
    shutil.copy(tiny / "model.safetensors", folder)
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert_equal(BertModel.from_pretrained(folder, allow_pickle=True), BertModel.from_pretrained(tiny))


class Hostile:
    """Unpickling one creates a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple:
        return open, (str(self.target), "w")


def write_plain(content: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))  # the one that torch expects


@pytest.mark.parametrize("write", [torch.save, write_plain])
def test_hostile_pickle_does_not_run(
    write: Callable[[Any, Path], None], weights: Tensors, folder: Path
) -> None:
    """Python's own reader falls for it, which shows that the trap works; ours does not, even when allowed."""
    path, target = folder / "pytorch_model.bin", folder / "was-here"
    write(weights | {"extra": Hostile(target)} if write is torch.save else Hostile(target), path)
    if write is torch.save:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert target.exists()
    target.unlink()
    with pytest.raises(InputError, match=r"pytorch_model\.bin: not a plain file of tensors") as caught:
        BertModel.from_pretrained(folder, allow_pickle=True)
    assert not target.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, -10])
def test_torn_pickle(keep: int, weights: Tensors, folder: Path) -> None:
    """In the format of PyTorch before 1.6; of an empty file the reader says EOFError, and nothing else."""
    path = folder / "pytorch_model.bin"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"pytorch_model\.bin: not a plain file of tensors"):
        BertModel.from_pretrained(folder, allow_pickle=True)


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], {"epoch": 3}, {3: torch.zeros(2)}, {"a": torch.eye(2).to_sparse()}],
)
def test_pickle_of_something_else(content: Any, folder: Path) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds something else than named tensors"):
        BertModel.from_pretrained(folder, allow_pickle=True)


# What is written


def test_transformers_reads_what_we_write(tiny: Path, tmp_path: Path) -> None:
    ours = BertModel.from_pretrained(tiny)
    ours.save_pretrained(tmp_path / "new" / "folder")
    theirs, report = transformers.BertModel.from_pretrained(
        tmp_path / "new" / "folder", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report  # nothing missing, unexpected or misshapen
    assert torch.equal(theirs(IDS).last_hidden_state, ours(IDS).last_hidden_state)
    assert vars(ours.config).items() <= theirs.config.to_dict().items()


def test_we_read_what_transformers_writes(tiny: Path, tmp_path: Path) -> None:
    transformers.BertModel.from_pretrained(tiny).save_pretrained(tmp_path)
    assert_equal(BertModel.from_pretrained(tmp_path), BertModel.from_pretrained(tiny))


def test_we_read_a_masked_language_model(tiny: Path, tmp_path: Path) -> None:
    """BertForPreTraining has the prefix and both heads, but a pooler as well."""
    config = transformers.BertConfig.from_pretrained(tiny)
    theirs = transformers.BertForPreTraining(config)
    theirs.save_pretrained(tmp_path)
    ours = BertModel.from_pretrained(tmp_path)
    assert torch.equal(ours.pooler.weight, theirs.bert.pooler.dense.weight)


def test_save_keeps_every_bit(tiny: Path, tmp_path: Path) -> None:
    """Through a load and a save the files stay as they are; and numbers no arithmetic would keep survive."""
    model = BertModel.from_pretrained(tiny)
    model.save_pretrained(tmp_path)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tiny / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    odd = torch.tensor([-0.0, 1e-45, -3e38, 1 + 2**-23])
    with torch.no_grad():
        model.pooler.bias[:4] = odd
    model.save_pretrained(tmp_path)
    again = BertModel.from_pretrained(tmp_path).pooler.bias[:4]
    assert torch.equal(again.view(torch.int32), odd.view(torch.int32))


def test_failed_save_keeps_the_old_file(tiny: Path, tmp_path: Path) -> None:
    """The system refuses to let a file grow beyond 20,000 bytes, as a full disk would."""
    model = BertModel.from_pretrained(tiny)
    model.save_pretrained(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors"):
            model.save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert (tmp_path / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_weights_are_read_into_memory_whatever_the_default_device(tiny: Path) -> None:
    with torch.device("meta"):
        model = BertModel.from_pretrained(tiny)
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_pickle_is_fetched_only_where_it_may_be_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []

    def resolve(name: str, allow_pickle: bool, revision: str | None) -> Path:
        allowed.append(allow_pickle)
        return tiny

    monkeypatch.setattr(hub, "resolve", resolve)
    BertModel.from_pretrained("someone/bert")
    BertModel.from_pretrained("someone/bert", allow_pickle=True)
    assert allowed == [False, True]


# config.json


def test_config_round_trip(tmp_path: Path) -> None:
    config = BertConfig(99, 24, 3, 6, 48, 128, 3, 7, 1e-7, 0.2, 0.3, 0.4)
    config.save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path) == config
    theirs = transformers.BertConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path) == config


def test_config_defaults_are_theirs(tmp_path: Path) -> None:
    """A config.json says only what differs."""
    (tmp_path / "config.json").write_text("{}")
    config = BertConfig.from_pretrained(tmp_path)
    assert config == BertConfig()
    assert vars(config).items() <= transformers.BertConfig().to_dict().items()


def test_a_config_may_say_what_goes_without_saying(tmp_path: Path) -> None:
    said = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert BertConfig.from_pretrained(tmp_path) == BertConfig()


TOKENS = r"a whole number, at least 1 and at most 100,000,000"
WIDTH = "a whole number, at least 1 and at most 65,536"
LAYERS = "a whole number, at least 1 and at most 256"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"cannot be read as JSON \(.*\); is this a checkpoint folder\?$"),
        ("", "cannot be read as JSON"),
        ("{'single': 'quotes'}", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        ("[1, 2]", "holds no JSON object"),
        ('{"model_type": "roberta"}', "model_type is 'roberta'; only 'bert' is supported"),
        ('{"hidden_act": "relu"}', "hidden_act is 'relu'; only 'gelu' is supported"),
        (
            '{"position_embedding_type": "relative_key"}',
            "position_embedding_type is 'relative_key'; only 'absolute'",
        ),
        ('{"hidden_size": "768"}', f"hidden_size must be {WIDTH}, not '768'"),
        ('{"hidden_size": 768.5}', f"hidden_size must be {WIDTH}, not 768.5"),
        ('{"num_hidden_layers": null}', f"num_hidden_layers must be {LAYERS}, not None"),
        (
            '{"num_attention_heads": 0}',
            "num_attention_heads must be a whole number, at least 1 and .*, not 0",
        ),
        ('{"vocab_size": -1}', f"vocab_size must be {TOKENS}, not -1"),
        ('{"vocab_size": true}', f"vocab_size must be {TOKENS}, not True"),
        ('{"vocab_size": 1000000000}', f"vocab_size must be {TOKENS}, not 1000000000"),
        ('{"num_hidden_layers": 1000000000}', f"num_hidden_layers must be {LAYERS}, not 1000000000"),
        ('{"hidden_dropout_prob": 1}', "hidden_dropout_prob must be a number, at least 0 and below 1, not 1"),
        ('{"layer_norm_eps": 1%s}' % ("0" * 400), "layer_norm_eps must be a number, .* at most 1, not 1000"),
        ('{"pad_token_id": 30522}', "pad_token_id 30522 is not one of 30522 tokens"),
        ("[" * 100_000, r"cannot be read as JSON \(nested too deeply\)"),
        (
            '{"hidden_size": "\\u001b' + "x" * 500 + '"}',
            rf"hidden_size must be {WIDTH}, not '\\x1bx{{95}}\.\.\.$",
        ),
        ('{"layer_norm_eps": NaN}', "layer_norm_eps must be a number, at least 0 and at most 1, not nan"),
        ('{"hidden_size": 100}', "hidden_size 100 is not a multiple of num_attention_heads 12"),
    ],
)
def test_bad_config(text: str | bytes | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError, match=f"config.json: {message}"):
        BertModel.from_pretrained(tmp_path)


def test_a_config_in_the_program_has_the_bounds_of_one_in_a_file() -> None:
    with pytest.raises(InputError, match=f"^hidden_size must be {WIDTH}, not 0$"):
        BertConfig(hidden_size=0)
    with pytest.raises(InputError, match=r"^hidden_size 770 is not a multiple of num_attention_heads 12$"):
        BertConfig(hidden_size=770)


def test_config_must_fit_the_weights(tiny: Path, folder: Path) -> None:
    """A third layer that config.json promises is 16 keys short."""
    shutil.copy(tiny / "model.safetensors", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError) as caught:
        BertModel.from_pretrained(folder)
    assert str(caught.value).count(" is missing") == 16
