"""machine.py: devices, bf16 only where it pays, layers that compile in their place."""

import copy
import math

import pytest
import torch
from helpers import make_config, make_model

from minbert import BertModel, products
from minbert.errors import InputError
from multitask import MultitaskBert, distributed, machine, run
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


@pytest.fixture
def mac(monkeypatch):
    """A function that has torch see a Mac's GPU, which differs from the CPU by this much."""
    machine._agrees_with_cpu.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    def differing(by: float | Exception) -> None:
        def difference(device: torch.device) -> float:
            assert device == torch.device("mps")
            if isinstance(by, Exception):
                raise by
            return by

        monkeypatch.setattr(machine, "difference_from_cpu", difference)

    yield differing
    machine._agrees_with_cpu.cache_clear()


def test_auto_takes_a_macs_gpu_that_computes_what_the_cpu_does(mac, monkeypatch, capsys):
    mac(1e-4)
    assert set_up(make_config("finetune")) == torch.device("mps")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(distributed, "several", lambda: True)  # who need a GPU each
    assert machine._found_device() == CPU


@pytest.mark.parametrize(
    "by, said",
    [
        (0.02, "differ from the CPU's by 0.02 of"),
        (math.nan, "by nan"),
        (NotImplementedError("no\nerf"), "no erf"),
    ],
)
def test_auto_takes_no_other_macs_gpu_and_says_so_once(mac, capsys, by, said):
    mac(by)
    assert [set_up(make_config("finetune")) for _ in range(2)] == [CPU, CPU]
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert (
        err.startswith("warning: --device auto: computing on the CPU, because a test on mps") and said in err
    )


@pytest.mark.parametrize("error, accepted", [(0.0, True), (1e-6, True), (1e-2, False), (math.nan, False)])
def test_a_device_is_compared_with_the_cpu_in_vectors_and_gradients(monkeypatch, error, accepted):
    """A fake that rounds: the copy that goes to it has weights that are off."""
    real, fake = BertModel.to, torch.device("cpu:0")

    def to(model, device):
        off = error if device == fake else 0
        with torch.no_grad():
            for parameter in model.parameters() if off else ():
                parameter *= 1 + off * torch.randn_like(parameter)
        return real(model, device)

    monkeypatch.setattr(BertModel, "to", to)
    state = torch.get_rng_state()
    difference = machine.difference_from_cpu(fake)
    assert (difference <= machine.TOLERANCE) is accepted
    assert error != 0 or difference == 0
    assert error != 0 or torch.get_rng_state().equal(state)


@pytest.mark.parametrize("name", ["gpu", "abacus", "meta", "cuda:", "cuda:-1", "cuda:99999", "cpu:0"])
def test_a_device_that_is_none_is_told_from_those_that_are(name):
    with pytest.raises(InputError, match=f"--device must be auto, cpu, cuda, cuda:N or mps, not '{name}'"):
        set_up(make_config("finetune", device=name))


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
    monkeypatch.setattr(machine, "_choices", lambda *_: {})
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
    "precision, faster, compiles", [("float32", ["output"], 0), ("bf16", ["output"], 2), ("float32", [], 2)]
)
def test_layers_compile_where_that_takes_no_faster_products_away(
    tiny, monkeypatch, precision, faster, compiles
):
    monkeypatch.setattr(products, "choices", lambda _: {"32 x 32, 32 rows or more": faster})
    monkeypatch.setattr(machine, "onednn_is_here", lambda: True)
    config = make_config("finetune", compile=True, precision=precision)
    layers = prepared(make_model(tiny), config).encoder.layers
    assert sum(layer._compiled_call_impl is not None for layer in layers) == compiles


def test_a_copy_of_a_compiled_model_has_layers_of_its_own(tiny, monkeypatch):
    """BPPO's teacher is a copy: were its layers the compiled ones of the model, it would be the model."""
    monkeypatch.setattr(machine, "_choices", lambda *_: {})
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


@pytest.fixture
def measured(monkeypatch) -> dict[str, list[str]]:
    """What the machine would choose if asked; nothing is measured, and nothing stays chosen."""
    found = {"32 x 32, 32 rows or more": ["output"]}
    monkeypatch.setattr(machine, "onednn_is_here", lambda: True)
    monkeypatch.setattr(products, "choices", lambda shapes: found)
    monkeypatch.setattr(products, "_adopted", {})
    return found


def test_a_run_keeps_the_products_that_it_has_recorded(tiny, monkeypatch, measured):
    model = make_model(tiny)
    first = machine.choose_products(model, {})
    assert first == {"machine": products.machine(), "onednn": measured}
    measured["32 x 32, 32 rows or more"] = ["weight"]  # a later measurement
    kept = {"32 x 32, 32 rows or more": ["output"]}
    assert machine.choose_products(model, {**first, "onednn": kept})["onednn"] == kept
    assert products.chosen(32, 32, 40) == {"output"}
    assert machine.choose_products(model, {**first, "onednn": {}})["onednn"] == measured  # begun on a GPU
    monkeypatch.setattr(products, "machine", lambda: "another machine")
    assert machine.choose_products(model, first) == {"machine": "another machine", "onednn": measured}
    assert products.chosen(32, 32, 40) == {"weight"}


def test_products_in_bf16_are_not_chosen(tiny, measured):
    model = make_model(tiny)
    model.precision = "bf16"
    assert machine.choose_products(model, {})["onednn"] == {}


def test_verbose_prints_the_chosen_products(tmp_path, capsys, tiny, measured):
    measured["32 x 64, 32 rows or more"] = []
    words = f"--option pretrain --weights {tiny} --epochs 1 --steps-per-epoch 2 --no-report".split()
    assert run.main([*words, "--out", str(tmp_path / "silent")]) == 0
    assert "products by oneDNN" not in capsys.readouterr().out
    assert run.main([*words, "--verbose", "--out", str(tmp_path / "verbose")]) == 0
    out = capsys.readouterr().out
    assert f"products by oneDNN ({products.machine()}):\n  32 x 32, 32 rows or more: output\n" in out
    assert "  32 x 64, 32 rows or more: none\n" in out
