"""linear.py beside torch.nn.Linear, with oneDNN's products wherever torch has oneDNN."""

import platform
from pathlib import Path

import pytest
import torch
from helpers import make_model
from torch import Tensor, nn
from torch.profiler import profile

from minbert import linear
from minbert.linear import ROWS, Linear, fast_products, onednn_is_faster

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
BACKWARD_WEIGHTS = "aten::mkldnn_linear_backward_weights"


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_is_faster", lambda: True)


def results(layer: nn.Linear, rows: Tensor) -> list[Tensor]:
    """Return the product, and the gradients of input, weight and bias."""
    x = rows.clone().requires_grad_()
    y = layer(x)
    (y.sin() * torch.arange(y.numel()).view_as(y)).sum().backward()
    return [y, x.grad, layer.weight.grad, layer.bias.grad]


def operators(work) -> set[str]:
    with profile() as watched:
        work()
    return {event.key for event in watched.key_averages()}


@needs_onednn
@pytest.mark.parametrize("count", [1, ROWS - 1, ROWS, ROWS + 1, 100])
def test_equals_torch_in_value_and_gradients(onednn, count):
    ours, theirs = Linear(12, 7), nn.Linear(12, 7)
    theirs.load_state_dict(ours.state_dict())
    rows = torch.randn(count, 12)
    with fast_products():
        used = operators(lambda: ours(rows))
        for mine, other in zip(results(ours, rows), results(theirs, rows), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))
        with torch.inference_mode():
            torch.testing.assert_close(ours(rows), theirs(rows))
    assert ("aten::mkldnn_linear" in used) == (count >= ROWS)


@needs_onednn
def test_computes_no_gradient_that_nobody_wants(onednn):
    """SMART's ascent needs only the gradient of the input; a frozen layer needs none of its weights."""
    layer, rows = Linear(12, 7), torch.randn(ROWS, 12, requires_grad=True)
    with fast_products():
        assert BACKWARD_WEIGHTS in operators(layer(rows).sum().backward)
        assert BACKWARD_WEIGHTS not in operators(lambda: torch.autograd.grad(layer(rows).sum(), rows))
        layer.requires_grad_(False)
        assert BACKWARD_WEIGHTS not in operators(layer(rows).sum().backward)


@needs_onednn
def test_what_is_not_plain_float32_goes_to_torch(onednn):
    rows = torch.randn(ROWS, 12, dtype=torch.float64)
    with fast_products():
        assert Linear(12, 7, dtype=torch.float64)(rows).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert Linear(12, 7)(rows.float()).dtype == torch.bfloat16


@needs_onednn
def test_what_is_not_a_list_of_rows_goes_to_torch(onednn):
    layer = Linear(12, 7)
    with fast_products():
        for shape in ((ROWS + 1, 5, 12), (12,)):
            x = torch.randn(shape)
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@needs_onednn
@pytest.mark.parametrize("count, padded", [(ROWS, ROWS), (ROWS + 1, 2 * ROWS), (3 * ROWS - 1, 3 * ROWS)])
def test_rows_come_in_multiples(onednn, monkeypatch, count, padded):
    taken, product = [], torch._C._nn.mkldnn_linear

    def watched(x, weight, bias):
        taken.append(tuple(x.shape))
        return product(x, weight, bias)

    monkeypatch.setattr(torch._C._nn, "mkldnn_linear", watched)
    with fast_products():
        assert Linear(12, 7)(torch.randn(count, 12)).shape == (count, 7)
    assert taken == [(padded, 12)]


def test_nothing_is_taken_while_torch_compile_looks_on(onednn, monkeypatch):
    layer, rows = Linear(12, 7), torch.randn(ROWS, 12)
    with fast_products():  # entered before
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert "aten::mkldnn_linear" not in operators(lambda: layer(rows))
    with fast_products():
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
        assert "aten::mkldnn_linear" not in operators(lambda: layer(rows))


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32")
def test_torchs_own_switch_turns_it_off(monkeypatch):
    monkeypatch.setattr(linear, "_has_amds_avx512", lambda: True)
    assert onednn_is_faster()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not onednn_is_faster()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own warnings, from inside the compiler
def test_the_fast_path_compiles_into_one_graph(tiny, onednn):
    model = make_model(tiny).eval()
    with torch.no_grad():
        embedded = model.encoder.embed(**model.tokenizer(["is it a good film"] * 16))
        compiled = torch.compile(model.encoder.pooled_from_embeddings, fullgraph=True)
        expected = model.encoder.pooled_from_embeddings(*embedded, "cls")
        torch.testing.assert_close(compiled(*embedded, "cls"), expected)


@needs_onednn
def test_only_inside_fast_products(onednn):
    layer, rows = Linear(12, 7), torch.randn(ROWS, 12)
    plain = nn.functional.linear(rows, layer.weight, layer.bias)
    with pytest.raises(ZeroDivisionError), fast_products(), fast_products():
        assert layer(rows).numel() / 0
    assert torch.equal(layer(rows), plain)


@needs_onednn
def test_the_reference_path_keeps_its_bits_and_the_fast_one_its_numbers(tiny, monkeypatch):
    model = make_model(tiny).eval()
    batch = model.tokenizer(["is it a good film", "very good"] * 16)
    assert batch["attention_mask"].sum() > ROWS
    found = {}
    for faster in (False, True):
        monkeypatch.setattr(linear, "onednn_is_faster", lambda faster=faster: faster)
        with torch.no_grad():
            outputs = model.encoder(**batch)
            found[faster] = [outputs.last_hidden_state, outputs.pooler_output]
            found[faster] += [model.encoder.pooled(**batch, pooling=name) for name in ("cls", "mean")]
    for plain, fast in zip(found[False][:2], found[True][:2], strict=True):
        assert torch.equal(plain, fast)
    for plain, fast in zip(found[False][2:], found[True][2:], strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "maker, capability, here, faster",
    [
        ("vendor_id : AuthenticAMD", "AVX512", True, True),
        ("vendor_id : AuthenticAMD", "AVX2", True, False),
        ("vendor_id : AuthenticAMD", "AVX512", False, False),
        ("vendor_id : GenuineIntel", "AVX512", True, False),
    ],
)
@pytest.mark.parametrize("linux", [True, False])
def test_where_onednn_is_faster(monkeypatch, maker, capability, here, faster, linux):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: here)
    monkeypatch.setattr(Path, "exists", lambda path: linux and path == Path("/proc/cpuinfo"))
    monkeypatch.setattr(Path, "read_text", lambda _: maker if linux else pytest.fail("no such file"))
    monkeypatch.setattr(platform, "processor", lambda: "x86_64" if linux else maker)
    linear._has_amds_avx512.cache_clear()
    assert onednn_is_faster() == faster
    linear._has_amds_avx512.cache_clear()
