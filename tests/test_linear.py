"""linear.py beside torch.nn.Linear, with oneDNN's products wherever torch has oneDNN."""

import pytest
import torch
from helpers import make_model
from torch import Tensor, nn
from torch.profiler import profile

from minbert import linear, products
from minbert.linear import ROWS, Linear, fast_products, onednn_is_here
from minbert.products import PRODUCTS

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
ONEDNN = "mkldnn::_linear_pointwise"


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, *PRODUCTS)


def choose(monkeypatch: pytest.MonkeyPatch, *taken: str) -> None:
    """Let oneDNN compute these products of every layer."""
    monkeypatch.setattr(linear, "chosen", lambda *_: frozenset(taken))


def products_of(work) -> int:
    """Return how many products oneDNN computes meanwhile."""
    with profile() as watched:
        work()
    return sum(event.count for event in watched.key_averages() if event.key == ONEDNN)


def results(layer: nn.Linear, rows: Tensor) -> list[Tensor]:
    """Return the product, and the gradients of input, weight and bias."""
    layer.zero_grad()
    x = rows.clone().requires_grad_()
    y = layer(x)
    (y.sin() * torch.arange(y.numel()).view_as(y)).sum().backward()
    return [y, x.grad, layer.weight.grad, layer.bias.grad]


@needs_onednn
@pytest.mark.parametrize("taken", [(), ("output",), ("input",), ("weight",), PRODUCTS])
@pytest.mark.parametrize("count", [1, ROWS - 1, ROWS, ROWS + 1, 100])
def test_equals_torch_in_value_and_gradients(monkeypatch, taken, count):
    choose(monkeypatch, *taken)
    ours, theirs = Linear(12, 7), nn.Linear(12, 7)
    theirs.load_state_dict(ours.state_dict())
    rows = torch.randn(count, 12)
    with fast_products():
        used = products_of(lambda: results(ours, rows))
        for mine, other in zip(results(ours, rows), results(theirs, rows), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.detach().abs().max()))
        with torch.inference_mode():
            torch.testing.assert_close(ours(rows), theirs(rows))
    assert used == (len(taken) if count >= ROWS else 0)


@needs_onednn
def test_computes_no_gradient_that_nobody_wants(onednn):
    """SMART's ascent needs only the gradient of the input; a frozen layer needs none of its weights."""
    layer, rows = Linear(12, 7), torch.randn(ROWS, 12, requires_grad=True)
    with fast_products():
        assert products_of(layer(rows).sum().backward) == 2
        assert products_of(lambda: torch.autograd.grad(layer(rows).sum(), rows)) == 2  # one is the output
        assert products_of(lambda: torch.autograd.grad(layer(rows).sum(), layer.weight)) == 2
        layer.requires_grad_(False)
        assert products_of(layer(rows).sum().backward) == 1


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
def test_outputs_may_be_changed_and_biases_left_out(onednn):
    rows = torch.randn(ROWS + 1, 12, requires_grad=True)
    with fast_products():
        Linear(12, 7)(rows).relu_().sum().backward()
        Linear(12, 7, bias=False)(rows).sum().backward()


@needs_onednn
@pytest.mark.parametrize("count, padded", [(ROWS, ROWS), (ROWS + 1, 2 * ROWS), (3 * ROWS - 1, 3 * ROWS)])
def test_rows_come_in_multiples(onednn, monkeypatch, count, padded):
    taken = []

    def watched(a, b, bias=None):
        taken.append((tuple(a.shape), tuple(b.shape)))
        return products.onednn(a, b, bias)

    monkeypatch.setattr(linear, "onednn", watched)
    with fast_products():
        x = torch.randn(count, 12, requires_grad=True)
        y = Linear(12, 7)(x)
        y.sum().backward()
    assert y.shape == (count, 7) and x.grad.shape == (count, 12)
    assert taken == [((padded, 12), (7, 12)), ((padded, 7), (12, 7)), ((7, padded), (12, padded))]


def test_nothing_is_taken_while_torch_compile_looks_on(onednn, monkeypatch):
    layer, rows = Linear(12, 7), torch.randn(ROWS, 12)
    with fast_products():  # entered before
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert products_of(lambda: layer(rows)) == 0
    with fast_products():
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
        assert products_of(lambda: layer(rows)) == 0


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32")
def test_torchs_own_switch_turns_it_off(monkeypatch):
    choose(monkeypatch, *PRODUCTS)
    layer, rows = Linear(12, 7), torch.randn(ROWS, 12)
    assert onednn_is_here()
    with torch.backends.mkldnn.flags(enabled=False), fast_products():
        assert products_of(lambda: layer(rows)) == 0


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
        choose(monkeypatch, *(PRODUCTS if faster else ()))
        with torch.no_grad():
            outputs = model.encoder(**batch)
            found[faster] = [outputs.last_hidden_state, outputs.pooler_output]
            found[faster] += [model.encoder.pooled(**batch, pooling=name) for name in ("cls", "mean")]
    for plain, fast in zip(found[False][:2], found[True][:2], strict=True):
        assert torch.equal(plain, fast)
    for plain, fast in zip(found[False][2:], found[True][2:], strict=True):
        torch.testing.assert_close(fast, plain, rtol=0, atol=2e-6)
