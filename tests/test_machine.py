"""machine.py: devices, bf16 only where it pays, layers that compile in their place."""

import copy

import pytest
import torch
from helpers import make_config, make_model

from minbert.errors import InputError
from multitask import MultitaskBert, machine
from multitask.config import Config

CPU = torch.device("cpu")
TEXTS = ["a good film", "the man plays a guitar and eats", "bad"]


def set_up(config: Config) -> torch.device:
    return machine.set_up(config.machine, config.products, config.saving.resume)


def prepared(model: MultitaskBert, config: Config) -> MultitaskBert:
    return machine.place(model, config.products, CPU)


@pytest.fixture
def speeds(monkeypatch):
    """The seconds of a product by precision, instead of this machine's own."""
    seconds = {torch.float32: 1.0, torch.bfloat16: 0.5}
    monkeypatch.setattr(machine, "product_seconds", lambda dtype, device: seconds[dtype])
    machine.bf16_gain.cache_clear()
    yield seconds
    machine.bf16_gain.cache_clear()


def test_bf16_is_refused_where_it_is_slower_by_measurement(speeds):
    assert set_up(make_config("finetune", device="cpu", precision="bf16")) == CPU
    machine.bf16_gain.cache_clear()
    speeds[torch.bfloat16] = 4.0
    with pytest.raises(InputError, match=r"--precision bf16: measured at 0\.25 times the speed of float32"):
        set_up(make_config("finetune", device="cpu", precision="bf16"))
    assert set_up(make_config("finetune", device="cpu")) == CPU
    assert set_up(make_config("finetune", device="cpu", precision="bf16", resume=True)) == CPU  # has begun


def test_a_product_takes_time():
    assert 0 < machine.product_seconds(torch.float32, CPU) < 10


def test_bf16_reaches_the_encoder_and_leaves_weights_and_outputs_in_float32(tiny):
    """Its 8 bits of precision show in the logits: near those of float32, and not the same."""
    exact = make_model(tiny).eval()
    rounded = prepared(make_model(tiny).eval(), make_config("finetune", precision="bf16"))
    batch = exact.tokenizer(TEXTS)
    with torch.no_grad():
        expected, found = exact("sentiment", batch), rounded("sentiment", batch)
    assert found.dtype == torch.float32 and not found.equal(expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.02)
    rounded("sentiment", batch).sum().backward()
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.float32}
    assert rounded.encoder.layers[0].output.weight.grad is not None


def test_without_a_compiler_it_says_so(monkeypatch):
    def missing(function, **_):
        raise RuntimeError("no working\nC++ compiler")

    monkeypatch.setattr(torch, "compile", missing)
    with pytest.raises(InputError, match=r"--compile: torch\.compile does not work here \(no working C\+\+"):
        set_up(make_config("finetune", device="cpu", compile=True))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, from inside the compiler
def test_compiled_layers_compute_the_same_under_the_same_names(tiny, monkeypatch):
    monkeypatch.setattr(machine, "onednn_is_faster", lambda: False)
    config = make_config("finetune", device="cpu", compile=True)
    set_up(config)
    plain, compiled = make_model(tiny), prepared(make_model(tiny), config)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for texts in (TEXTS, TEXTS[:2], [*TEXTS, "is it very good"]):
        batch = plain.tokenizer(texts)
        results = []
        for model in (plain, compiled):
            model.zero_grad()
            logits = model.eval()("sentiment", batch)
            logits.square().sum().backward()
            results.append((logits, model.encoder.layers[0].output.weight.grad))
        torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "precision, faster, compiles", [("float32", True, 0), ("bf16", True, 2), ("float32", False, 2)]
)
def test_layers_compile_where_that_takes_no_faster_products_away(
    tiny, monkeypatch, precision, faster, compiles
):
    monkeypatch.setattr(machine, "onednn_is_faster", lambda: faster)
    config = make_config("finetune", compile=True, precision=precision)
    layers = prepared(make_model(tiny), config).encoder.layers
    assert sum(layer._compiled_call_impl is not None for layer in layers) == compiles


def test_a_copy_of_a_compiled_model_has_layers_of_its_own(tiny, monkeypatch):
    """BPPO's teacher is a copy: were its layers the compiled ones of the model, it would be the model."""
    monkeypatch.setattr(machine, "onednn_is_faster", lambda: False)
    model = prepared(make_model(tiny).eval(), make_config("finetune", compile=True))
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in teacher.encoder.layers.parameters():
            parameter.zero_()
        batch = model.tokenizer(TEXTS)
        zeros = make_model(tiny).eval()
        for parameter in zeros.encoder.layers.parameters():
            parameter.zero_()
        torch.testing.assert_close(teacher("sentiment", batch), zeros("sentiment", batch))
