"""optim.py: AdamW against torch.optim.AdamW and numbers worked out by hand; the schedules."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minbert import AdamW, BertConfig, BertModel, optim
from minbert.optim import clip_scale, constant_schedule, linear_schedule, parameter_groups

SHAPES = [(4, 3), (5,), ()]


def run(
    optimizer: Callable[..., torch.optim.Optimizer],
    steps: int,
    groups: list[dict[str, Any]],
    rates: list[float] | None = None,
    scale: float | None = None,
    **options: Any,
) -> list[Tensor]:
    """Return the parameters, three for each of `groups`, after these steps on fixed random gradients."""
    generator = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for _ in groups for shape in SHAPES]
    each = len(SHAPES)
    chosen = [{"params": parameters[i * each :][:each]} | group for i, group in enumerate(groups)]
    updates = optimizer(chosen, **options)
    for step in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10 ** (step % 3 - 1)
        if rates is not None:
            for group in updates.param_groups:
                group["lr"] = rates[step]
        updates.step() if scale is None else updates.step(scale=scale)  # type: ignore[call-arg]
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(
    ("steps", "groups", "options"),
    [
        pytest.param(1, [{}], {}, id="one step"),
        pytest.param(20, [{}], {}, id="twenty steps"),
        pytest.param(5, [{}], {"lr": 0.3}, id="lr"),
        pytest.param(5, [{}], {"lr": 0.0}, id="lr 0"),
        pytest.param(5, [{}], {"betas": (0.5, 0.7)}, id="betas"),
        pytest.param(5, [{}], {"betas": (0.0, 0.0)}, id="betas 0"),
        pytest.param(5, [{}], {"eps": 0.1}, id="eps"),
        pytest.param(5, [{}], {"lr": 0.1, "weight_decay": 0.2}, id="weight decay"),
        pytest.param(
            5, [{"lr": 0.1}, {"weight_decay": 0.5}, {"betas": (0.1, 0.2), "eps": 1.0}], {}, id="groups"
        ),
        pytest.param(4, [{}], {"rates": [0.1, 0.0, 0.2, 0.01], "weight_decay": 0.3}, id="lr changes"),
    ],
)
def test_equals_torch(steps: int, groups: list[dict[str, Any]], options: dict[str, Any]) -> None:
    options = {"eps": 1e-6, "weight_decay": 0.0} | options  # torch's defaults differ
    for ours, theirs in zip(
        run(AdamW, steps, groups, **options), run(torch.optim.AdamW, steps, groups, **options), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_in_pieces_and_out_of_order_it_computes_the_same(
    compiled: bool, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 elements in pieces of 5, or transposed in memory and so not cut, equal 12 in one piece."""
    monkeypatch.setattr(optim, "_compiled", lambda: optim._in_one_pass)
    values, gradient = torch.randn(2, 4, 3)
    one = nn.Parameter(values.clone())
    other = nn.Parameter(values.t().contiguous().t() if transposed else values.clone())
    whole = AdamW([one], lr=0.1, weight_decay=0.1)
    cut = AdamW([other], lr=0.1, weight_decay=0.1, compiled=compiled)
    for step in range(3):
        one.grad = other.grad = gradient * (step + 1)
        whole.step(scale=0.5)
        with monkeypatch.context() as patch:
            patch.setattr(optim, "CHUNK", 5)
            cut.step(scale=0.5)
    torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)


def test_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 elements in pieces of 4: 4, 4 and 2. Tensors that are not on the CPU, or not contiguous, stay
    whole."""
    monkeypatch.setattr(optim, "CHUNK", 4)
    whole = torch.arange(10.0).view(5, 2)
    assert [[len(a), len(b)] for a, b in optim._chunks(whole, whole)] == [[4, 4], [4, 4], [2, 2]]
    assert torch.equal(torch.cat([piece for (piece,) in optim._chunks(whole)]), whole.flatten())
    for tensors in ((whole.t(), whole.t()), (whole, whole.t().contiguous().t()), (whole.to("meta"),)):
        (pieces,) = optim._chunks(*tensors)
        assert all(piece is tensor for piece, tensor in zip(pieces, tensors, strict=True))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_scale_multiplies_the_gradient(scale: float) -> None:
    """theta = 1, g = 3, lr = .1, b1 = .5, b2 = .75, eps = 1, no correction. With a scale of 2, m = .5 x 6 = 3
    and v = .25 x 36 = 9: theta = 1 - .1 x 3 / (3 + 1) = .925. In general m = v^(1/2) = 3 scale / 2."""
    parameter = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    parameter.grad = torch.tensor(3.0, dtype=torch.float64)
    AdamW([parameter], 0.1, (0.5, 0.75), 1.0, correct_bias=False).step(scale=scale)
    assert parameter.item() == pytest.approx(1 - 0.1 * 1.5 * scale / (1.5 * scale + 1))


@pytest.mark.parametrize(
    ("correct_bias", "weight_decay", "expected"),
    [(False, 0.0, 0.98), (False, 0.5, 0.93), (True, 0.0, 0.9), (True, 0.5, 0.85)],
)
def test_first_step_by_hand(correct_bias: bool, weight_decay: float, expected: float) -> None:
    """theta = 1, g = 2, lr = .1, b1 = .9, b2 = .75, eps = 0: m = .1 x 2 = .2 and v = .25 x 4 = 1.

    Without correction the step is .1 x .2 / sqrt(1) = .02. With it, m' = .2 / .1 = 2, v' = 1 / .25 = 4, and
    the step is .1 x 2 / sqrt(4) = .1. A decay of .5 takes another .1 x .5 x 1 = .05.
    """
    parameter = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    parameter.grad = torch.tensor(2.0, dtype=torch.float64)
    AdamW([parameter], 0.1, (0.9, 0.75), 0.0, weight_decay, correct_bias).step()
    assert parameter.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correct_bias", [True, False])
def test_equals_the_equations(correct_bias: bool) -> None:
    """AdamW follows the equations of its docstring, in float64, over 10 steps."""
    lr, beta1, beta2, eps, decay = 0.05, 0.8, 0.95, 1e-3, 0.1
    random = np.random.default_rng(0)
    theta = random.normal(size=6)
    parameter = nn.Parameter(torch.tensor(theta))
    optimizer = AdamW([parameter], lr, (beta1, beta2), eps, decay, correct_bias)
    m, v = np.zeros(6), np.zeros(6)
    for t in range(1, 11):
        g = random.normal(size=6)
        parameter.grad = torch.tensor(g)
        optimizer.step()
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = (m / (1 - beta1**t), v / (1 - beta2**t)) if correct_bias else (m, v)
        theta = theta - lr * decay * theta - lr * m_hat / (np.sqrt(v_hat) + eps)
        np.testing.assert_allclose(parameter.detach().numpy(), theta, rtol=1e-12, atol=1e-14)


def test_parameter_without_gradient_is_left_alone() -> None:
    """The idle parameter neither decays nor gets a state; its first gradient is its own first step: with
    eps 0, of size lr whatever the gradient (see above), so 3 - .1 x .5 x 3 - .1 = 2.75."""
    busy, idle = (nn.Parameter(torch.tensor([3.0])) for _ in range(2))
    optimizer = AdamW([busy, idle], lr=0.1, eps=0.0, weight_decay=0.5)
    for _ in range(3):
        busy.grad = torch.tensor([1.0])
        optimizer.step()
    assert idle.item() == 3.0
    assert idle not in optimizer.state
    idle.grad = torch.tensor([0.01])
    optimizer.step()
    assert idle.item() == pytest.approx(2.75)
    assert (optimizer.state[busy]["step"], optimizer.state[idle]["step"]) == (4, 1)
    moments = {name: tensor.clone() for name, tensor in optimizer.state[idle].items() if name != "step"}
    idle.grad, before = None, idle.item()
    optimizer.step()
    assert idle.item() == before
    assert all(torch.equal(optimizer.state[idle][name], tensor) for name, tensor in moments.items())


def test_parameter_groups() -> None:
    model = BertModel(BertConfig(20, 8, 2, 2, 16, 10))
    model.embeddings.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, others = parameter_groups(model, 0.25)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    found = [{names[id(parameter)] for parameter in group["params"]} for group in (decaying, others)]
    trained = {name for name in names.values() if not name.startswith("embeddings.")}
    assert found[1] == {name for name in trained if name.endswith("bias") or "norm" in name}
    assert found[0] == trained - found[1]
    assert {"pooler.weight", "layers.1.attention.key.weight"} <= found[0]


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -0.1},
        {"lr": float("nan")},
        {"eps": -1e-8},
        {"weight_decay": -1.0},
        {"betas": (1.0, 0.9)},
        {"betas": (0.9, -0.1)},
    ],
)
def test_bad_arguments(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        AdamW([nn.Parameter(torch.zeros(1))], **options)


def test_sparse_gradient_is_refused() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"^AdamW does not support sparse gradients$"):
        AdamW(table.parameters()).step()


def test_closure() -> None:
    """With b1 = b2 = eps = 0 a step is lr x sign(g): the closure's own gradient, 2 x 3, moves 3 to 2."""
    parameter = nn.Parameter(torch.tensor([3.0]))
    optimizer = AdamW([parameter], lr=1.0, betas=(0.0, 0.0), eps=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 9.0
    assert parameter.item() == 2.0
    assert optimizer.step() is None


compiler = pytest.param(True, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore")], id="compiler")


@pytest.fixture(params=[False, compiler], ids=str)
def _compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function for torch.compile, compiled (slow; the warnings are torch's own) or run eagerly."""
    if not request.param:
        monkeypatch.setattr(optim, "_compiled", lambda: optim._in_one_pass)


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize("options", [{}, {"correct_bias": False}, {"weight_decay": 0.1}, {"scale": 0.01}])
def test_compiled_it_computes_the_same(options: dict[str, Any]) -> None:
    rates = [0.1 / (step + 1) for step in range(20)]
    groups: list[dict[str, Any]] = [{}, {"lr": 0.01}]
    compiled = run(AdamW, 20, groups, rates, compiled=True, **options)
    for mine, other in zip(compiled, run(AdamW, 20, groups, rates, **options), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_compiler")
def test_compiled_it_is_exact_in_double_precision() -> None:
    moved = []
    for compiled in (True, False):
        parameter = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        optimizer = AdamW([parameter], lr=0.1, betas=(0.9, 0.9999999), compiled=compiled)
        for _ in range(3):
            parameter.grad = torch.arange(6.0, dtype=torch.float64).view(3, 2) + 1
            optimizer.step()
        moved.append(parameter.detach())
    torch.testing.assert_close(*moved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_and_a_state_of_before_it_could_be_compiled(compiled: bool) -> None:
    optimizer = copy.deepcopy(AdamW([nn.Parameter(torch.ones(2))], compiled=compiled))
    assert optimizer.param_groups[0]["compiled"] == compiled
    assert not AdamW([nn.Parameter(torch.ones(2))]).param_groups[0]["compiled"]
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["compiled"]
    optimizer.load_state_dict(saved)
    assert not optimizer.param_groups[0]["compiled"]
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_compiles_once_for_all_rates_and_sizes() -> None:
    """For matrices; torch compiles once more for vectors."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        parameters = [nn.Parameter(torch.randn(shape)) for shape in ((50, 3), (7, 5), (2, 9))]
        optimizer = AdamW(parameters, compiled=True)
        for step in range(5):
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step(scale=0.5 + 0.1 * step)


@pytest.mark.parametrize("max_norm", [0.1, 7.0, 1e9, float("inf")])
def test_clipping_in_the_step_equals_torchs_before_it(max_norm: float) -> None:
    moved = []
    for ours in (True, False):
        generator = torch.Generator().manual_seed(1)
        parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
        optimizer = AdamW([*parameters, nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.1)
        for _ in range(3):
            for parameter in parameters:  # and one parameter without a gradient
                parameter.grad = torch.randn(parameter.shape, generator=generator) * 5
            if ours:
                before = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
                optimizer.step(scale=clip_scale(parameters, max_norm))
                for parameter, grad in zip(parameters, before, strict=True):
                    assert torch.equal(grad, parameter.grad), "left as they are"  # type: ignore[arg-type]
            else:
                nn.utils.clip_grad_norm_(parameters, max_norm)
                optimizer.step()
        moved.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    torch.testing.assert_close(*moved)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_norm", [1.0, float("inf")])
def test_no_scale_above_0_where_the_norm_is_not_finite(bad: float, max_norm: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, bad])
    assert not clip_scale([parameter], max_norm) > 0


@pytest.mark.parametrize(
    ("lengths", "max_norm", "scale"),
    [((3.0, 4.0), 2.5, 0.5), ((3.0, 4.0), 5.1, 1.0), ((1e-6,), 1e-6, 0.5), ((0.0,), 1.0, 1.0)],
)
def test_clip_scale_by_hand(lengths: tuple[float, ...], max_norm: float, scale: float) -> None:
    """Gradients of norm 3 and 4 have norm 5 together: half of it is 2.5, and a limit of 5.1 needs no scaling.
    The divisor is the norm + 1e-6, as in torch: 1e-6 / 2e-6 = .5."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in lengths]
    for parameter, length in zip(parameters, lengths, strict=True):
        parameter.grad = torch.tensor([-length])
    assert clip_scale(parameters, max_norm) == pytest.approx(scale, rel=1e-5)


def test_nothing_to_clip() -> None:
    assert clip_scale([nn.Parameter(torch.ones(2))], 0.1) == 1


def test_state_dict_goes_on_exactly() -> None:
    """Four steps in a row equal two, a reload into new objects, and two more."""

    def advance(parameter: nn.Parameter, optimizer: AdamW, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.tensor([1.0, -2.0]) / (step + 1)
            optimizer.step()

    options = {"lr": 0.1, "weight_decay": 0.1}
    whole, half = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    advance(whole, AdamW([whole], **options), range(4))
    first = AdamW([half], **options, correct_bias=True)
    advance(half, first, range(2))
    rest = nn.Parameter(half.detach().clone())
    second = AdamW([rest], lr=9.0, correct_bias=False)  # the saved settings win
    second.load_state_dict(first.state_dict())
    advance(rest, second, range(2, 4))
    assert torch.equal(rest, whole)


def test_constant_schedule_by_hand() -> None:
    """A warm-up of 4 climbs in fifths, so that the first step after it is the first at 1."""
    factors = [constant_schedule(step, 4) for step in range(7)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert [constant_schedule(step) for step in (0, 1, 99)] == [1.0, 1.0, 1.0]


def test_linear_schedule_by_hand() -> None:
    """10 steps, 4 of them warm-up: up in fifths, then 6 steps, down in sixths; 0 from step 10 on."""
    factors = [linear_schedule(step, 10, 4) for step in range(12)]
    up, down = [1 / 5, 2 / 5, 3 / 5, 4 / 5], [6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]
    assert factors == pytest.approx([*up, *down, 0, 0])
    assert [linear_schedule(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert linear_schedule(4, 4, 4) == 0.0  # only warm-up
    assert [linear_schedule(step, 5, 4) for step in (4, 5)] == [1.0, 0.0]  # one step after the warm-up
