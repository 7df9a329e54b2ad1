"""smart.py and its use in finetune.py: a test for every mistake found in public implementations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import collate, make_config, make_finetuning, make_model, planned, sentence
from torch import Tensor, tensor
from torch.utils.flop_counter import FlopCounterMode

from minbert import AdamW
from minbert.packing import Packing
from multitask import finetune, train
from multitask.config import Smart
from multitask.data.tasks import BUILT_IN
from multitask.finetune import Finetuning
from multitask.methods import smart
from multitask.methods.losses import squared_difference, symmetric_kl
from multitask.methods.sampling import random_generator
from multitask.methods.smart import (
    LEAST_CHANCE,
    MODES,
    NORMS,
    Diagnostics,
    adversarial_noise,
    ascent_gain,
    project,
    smart_regularizer,
    token_norm,
)
from multitask.state import Progress

FINETUNE = make_config("finetune", encoder_dropout=0.0, batch_size=4, steps_per_epoch=300, smart_weight=1.0)
QUIET_STEP = 3  # a step of round-robin without the diagnostics that need extra passes
OF_PARAPHRASE = QUIET_STEP + list(BUILT_IN).index("paraphrase")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ascent(mode="ball", **changes):
    """Return the settings of the ascent: the defaults of `Smart` with a test's changes."""
    return {**Smart(mode=mode).ascent(32), "generator": seeded(), **changes}


def on_tiny(tiny, name="sentiment", rows=3):
    """The tiny model in float64, and what it passes to SMART: encode, embeddings, clean logits,
    divergence."""
    model = make_model(tiny).eval().double()
    columns = len(BUILT_IN[name].texts)
    texts = [tuple(sentence(row + 40 * place) for place in range(columns)) for row in range(rows)]
    inputs = model.tokenizer.pad(model.token_ids(name, texts))

    def start():
        embeddings, packing = model.encoder.embed(**inputs)

        def encode(embeddings):
            return model.logits_from_embeddings(name, embeddings, packing)

        return encode, embeddings, encode(embeddings), BUILT_IN[name].kind.divergence

    return model, inputs, start


def toy(mask=None, width=4, outputs=3):
    """Return a small `encode` in float64, for (B, L, H), or with a mask also for packed (T, H)."""
    torch.manual_seed(1)
    matrix = torch.randn(width, outputs, dtype=torch.float64)
    packing = None if mask is None else Packing.from_mask(mask)

    def encode(x):
        if packing is not None:
            x = packing.unpack(packing.pack(x) if x.ndim == 3 else x)
        return torch.tanh(x @ matrix).sum(dim=1)

    return encode


# The perturbation


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_steps", [0, 1, 3])
@pytest.mark.parametrize("epsilon, step_size", [(1e-6, 0.5), (0.3, 0.2)])
def test_the_search_equals_an_implementation_in_numpy(mode, norm, num_steps, epsilon, step_size):
    """f(x) = the sum of x_t^T M x_t over an example's real tokens, l = the mean of (f(x + n) - f(x))^2 over
    the B examples, so dl/dn_t = 2 / B (f(x + n) - f(x)) (M + M^T) (x_t + n_t). Everything below is in NumPy,
    except the first noise."""
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    random = np.random.default_rng(3)
    x, matrix = random.normal(size=(2, 3, 4)), random.normal(size=(4, 4))
    first = torch.randn(2, 3, 4, generator=seeded(5), dtype=torch.float64).numpy()
    real, order = mask[..., None], float(norm)

    def f(x):
        return (np.einsum("blh,hk,blk->bl", x, matrix, x) * mask).sum(axis=1)

    def norms(x):
        return np.linalg.norm(x, ord=order, axis=-1, keepdims=True)

    def bounded(noise):
        if norm == "inf":
            return np.clip(noise, -epsilon, epsilon)
        return noise * np.minimum(1, epsilon / np.maximum(norms(noise), 1e-300))

    noise, gradient = 0.1 * first * real, np.zeros_like(x)
    noise = bounded(noise) if mode == "ball" else noise
    for _ in range(num_steps):
        change = (f(x + noise) - f(x))[:, None, None]
        gradient = 2 / 2 * change * ((x + noise) @ (matrix + matrix.T)) * real
        if mode == "ball":
            length = norms(gradient)
            steepest = np.sign(gradient) if norm == "inf" else gradient / np.where(length == 0, 1, length)
            noise = bounded(noise + step_size * steepest)
        else:
            noise = (noise + step_size * gradient) / (norms(noise + step_size * gradient) + epsilon)
    products = (noise * gradient).sum(axis=-1)
    lengths = np.linalg.norm(noise, axis=-1) * np.linalg.norm(gradient, axis=-1)
    cosine = (products / np.where(lengths == 0, 1, lengths)).sum() / mask.sum()

    matrices, at_real = tensor(matrix), tensor(mask)

    def encode(x):
        return (torch.einsum("blh,hk,blk->bl", x, matrices, x) * at_real).sum(dim=1, keepdim=True)

    settings = {"num_steps": num_steps, "step_size": step_size, "epsilon": epsilon, "noise_std": 0.1}
    settings |= {"norm": norm, "mode": mode, "generator": seeded(5)}
    found, said = adversarial_noise(
        encode, tensor(x), encode(tensor(x)), squared_difference, at_real, **settings
    )
    np.testing.assert_allclose(found.numpy(), noise, rtol=1e-9, atol=1e-15)
    assert said.noise_norm == pytest.approx(norms(noise).sum() / mask.sum())
    assert said.cosine == pytest.approx(cosine, rel=1e-6) and said.finite
    settings["generator"] = seeded(5)
    r = smart_regularizer(encode, tensor(x), encode(tensor(x)), squared_difference, at_real, **settings)
    assert r.item() == pytest.approx(((f(x + noise) - f(x)) ** 2).mean(), rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("noise_std, num_steps", [(1.0, 0), (1e-3, 1), (1.0, 3)])
def test_in_ball_mode_every_token_stays_within_epsilon_and_padding_stays(norm, packed, noise_std, num_steps):
    """Steps of five epsilon and a first noise of up to hundreds of epsilon: both are projected back."""
    mask = tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    encode, packing = toy(mask), Packing.from_mask(mask)
    x = torch.randn(2, 4, 4, dtype=torch.float64)
    x = packing.pack(x) if packed else x
    changes = {"norm": norm, "noise_std": noise_std, "num_steps": num_steps, "step_size": 0.05}
    noise, found = adversarial_noise(
        encode, x, encode(x) + 0.1, symmetric_kl, None if packed else mask, **ascent(**changes, epsilon=0.01)
    )
    sizes = torch.linalg.vector_norm(noise, ord=float(norm), dim=-1)
    sizes = packing.unpack(sizes) if packed else sizes
    assert sizes.max() <= 0.01 * (1 + 1e-9)
    assert torch.equal(sizes > 0, mask.bool())
    assert found.noise_norm == pytest.approx(sizes.sum().item() / 6)
    if noise_std == 1:  # then every token reaches the bound
        assert sizes[mask.bool()].min() > 0.0099


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_padding_stays_where_it_is_though_encode_looks_at_it(mode, norm):
    """Here l has a gradient at padding, which must not be perturbed; and R is l at exactly that noise."""

    def encode(x):
        return x.sin().sum(dim=1)

    x, mask = torch.randn(2, 3, 4, dtype=torch.float64), tensor([[1, 1, 0], [1, 0, 0]])
    given = encode, x, torch.zeros(2, 4), symmetric_kl, mask
    noise, _ = adversarial_noise(*given, **ascent(mode, norm=norm))
    assert torch.equal((noise != 0).all(dim=-1), mask.bool())
    r = smart_regularizer(*given, **ascent(mode, norm=norm))
    torch.testing.assert_close(r, symmetric_kl(encode(x + noise), torch.zeros(2, 4)))


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_is_as_long_for_every_token(norm):
    """||noise after - noise before||_p = step_size at each token, however small its gradient is beside its
    neighbour's: norms are per token, not over the batch."""
    scales = tensor([1.0, 1e-3, 1e-6, 10.0], dtype=torch.float64)[None, :, None]

    def encode(x):
        return (x * scales).sum(dim=(1, 2))[:, None]

    x = torch.randn(3, 4, 5, dtype=torch.float64)
    changes = {"norm": norm, "epsilon": 100.0, "step_size": 0.25, "noise_std": 0.1}
    before, after = (
        adversarial_noise(encode, x, encode(x), squared_difference, **ascent(**changes, num_steps=number))[0]
        for number in (0, 1)
    )
    torch.testing.assert_close(
        token_norm(after - before, float(norm)), torch.full((3, 4, 1), 0.25, dtype=torch.float64)
    )


@pytest.mark.parametrize("norm", NORMS)
def test_in_normalize_mode_every_token_has_norm_1(norm):
    """||n / (||n|| + epsilon)|| is 1 up to epsilon, whatever the step: here epsilon bounds nothing."""
    encode, x = toy(), torch.randn(2, 4, 4, dtype=torch.float64)
    noise, found = adversarial_noise(
        encode, x, encode(x), symmetric_kl, **ascent("normalize", norm=norm, noise_std=1.0)
    )
    torch.testing.assert_close(
        token_norm(noise, float(norm)), torch.ones(2, 4, 1, dtype=torch.float64), rtol=1e-4, atol=0
    )
    assert found.noise_norm == pytest.approx(1, rel=1e-4)


def test_project():
    """p = 2: (3, 4) has norm 5, so onto radius 1 it is (.6, .8), and (5, -12), of norm 13, (5, -12) / 13;
    p = inf: each coordinate separately. Points inside the ball do not move."""
    noise = tensor([[3.0, 4.0], [0.3, -0.4], [5.0, -12.0], [0.0, 0.0]])
    wanted = tensor([[0.6, 0.8], [0.3, -0.4], [5 / 13, -12 / 13], [0.0, 0.0]])
    torch.testing.assert_close(project(noise, 1.0, 2.0), wanted)
    wanted = tensor([[1.0, 1.0], [0.3, -0.4], [1.0, -1.0], [0.0, 0.0]])
    assert torch.equal(project(noise, 1.0, math.inf), wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("num_steps", [0, 2])
def test_packed_and_padded_give_the_same(mode, norm, num_steps, monkeypatch):
    """Both layouts start from the same first noise."""
    mask = tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    encode, packing = toy(mask), Packing.from_mask(mask)
    x, first = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def given(shape, **_):
        return (first if len(shape) == 3 else packing.pack(first)).clone()

    monkeypatch.setattr(smart.torch, "randn", given)
    settings = ascent(mode, norm=norm, num_steps=num_steps, noise_std=0.1, step_size=0.3, epsilon=0.2)
    padded = smart_regularizer(encode, x, encode(x), symmetric_kl, mask, **settings)
    packed = smart_regularizer(encode, packing.pack(x), encode(x), symmetric_kl, **settings)
    assert padded.item() > 0
    torch.testing.assert_close(packed, padded)


@pytest.mark.parametrize("mode", MODES)
def test_the_generator_makes_it_reproducible_and_leaves_torchs_own_alone(mode):
    encode, x = toy(), torch.randn(2, 4, 4, dtype=torch.float64)
    before = torch.get_rng_state()
    first, again, other = (
        adversarial_noise(encode, x, encode(x), symmetric_kl, **ascent(mode, generator=seeded(seed)))[0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("change", [{"mode": "sphere"}, {"norm": "1"}, {"norm": 2.0}])
def test_unknown_modes_and_norms_are_refused(change):
    encode, x = toy(), torch.randn(2, 4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"not .*{next(iter(change.values()))}"):
        adversarial_noise(encode, x, encode(x), symmetric_kl, **ascent() | change)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_where_the_gradient_is_0_there_is_no_step(mode, norm):
    """Only the first token matters here: the others keep their first noise, scaled to norm 1 by
    `normalize`."""

    def encode(x):
        return x[:, 0].sin() + 0 * x.sum(dim=1)

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    settings = ascent(mode, norm=norm, epsilon=0.01, noise_std=1e-3, step_size=1.0)
    noise, found = adversarial_noise(encode, x, encode(x), symmetric_kl, **settings)
    first = torch.randn(2, 3, 4, generator=seeded(), dtype=torch.float64) * 1e-3
    wanted = first if mode == "ball" else first / (token_norm(first, float(norm)) + 0.01)
    assert found.finite and noise.isfinite().all()
    torch.testing.assert_close(noise[:, 1:], wanted[:, 1:])
    assert not torch.allclose(noise[:, 0], wanted[:, 0], rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", NORMS)
def test_without_any_noise_and_any_gradient_nothing_is_divided_by_0(mode, norm):
    encode, x = toy(), torch.randn(2, 3, 4, dtype=torch.float64)
    settings = ascent(mode, norm=norm, noise_std=0.0, num_steps=2)
    noise, found = adversarial_noise(encode, x, encode(x), symmetric_kl, **settings)
    assert torch.equal(noise, torch.zeros_like(x))
    assert (found.noise_norm, found.cosine, found.finite) == (0, 0, True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_skips_the_regulariser(mode, value):
    """A single bad entry makes R 0, with no effect on a loss's gradient."""
    weight = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)

    def encode(x):
        broken = x.clone()
        if x.requires_grad and x.is_leaf is False and x.grad_fn is not None:
            broken.register_hook(lambda gradient: gradient.index_fill(1, tensor([1]), value))
        return (broken @ weight).sum(dim=1).tanh()

    x = torch.randn(2, 3, 4, dtype=torch.float64)
    noise, found = adversarial_noise(encode, x, encode(x), symmetric_kl, **ascent(mode))
    assert found == Diagnostics(0.0, 0.0, finite=False) and torch.equal(noise, torch.zeros_like(x))
    r = smart_regularizer(encode, x, encode(x), symmetric_kl, **ascent(mode))
    assert r.shape == () and r.item() == 0 and not r.requires_grad
    (weight.sum() + 15 * r).backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones_like(weight))


# The regulariser


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_r_is_0_at_zero_noise(tiny, name, mode):
    _, _, start = on_tiny(tiny, name)
    for num_steps in (0, 1):
        assert smart_regularizer(*start(), **ascent(mode, noise_std=0.0, num_steps=num_steps)).item() == 0


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_gradient_of_r_reaches_every_weight_through_both_passes(tiny, name):
    """Compared with finite differences along a random direction of all weights, with fixed noise. `.item()`
    on R would leave no gradient, a detached target only part of it, and detached embeddings none for their
    own weights."""
    model, _, start = on_tiny(tiny, name)

    def regularizer():
        return smart_regularizer(*start(), **ascent(num_steps=0, noise_std=0.1, epsilon=0.2))

    parameters = [*model.encoder.parameters(), *model.heads[name].parameters()]
    gradients = torch.autograd.grad(regularizer(), parameters, allow_unused=True)
    reached = dict(zip((id(p) for p in parameters), gradients, strict=True))
    for weight in (model.encoder.embeddings.word.weight, model.encoder.layers[0].output.weight):
        assert reached[id(weight)] is not None and reached[id(weight)].abs().max() > 0

    directions = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None)
    values, h = [], 1e-6
    for sign in (2, -1):  # up by h, then down to -h
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.add_(direction, alpha=h if sign > 0 else -2 * h)
        values.append(regularizer().item())
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4)


@pytest.mark.parametrize("name", BUILT_IN)
def test_both_sides_of_r_carry_gradient(name):
    """R = l(f(x + n), f(x)): its gradient at the clean logits is l's own, and not 0."""
    columns = BUILT_IN[name].outputs
    encode, x = toy(outputs=columns), torch.randn(2, 3, 4, dtype=torch.float64)
    clean = encode(x).requires_grad_()
    settings = ascent(num_steps=0, noise_std=0.1, epsilon=1.0)
    divergence = BUILT_IN[name].kind.divergence
    smart_regularizer(encode, x, clean, divergence, **settings).backward()
    noise = torch.randn(2, 3, 4, generator=seeded(), dtype=torch.float64) * 0.1
    (wanted,) = torch.autograd.grad(divergence(encode(x + noise), clean), clean)
    assert clean.grad is not None and wanted.abs().min() > 0
    torch.testing.assert_close(clean.grad, wanted)


@pytest.mark.parametrize("mode", MODES)
def test_no_weight_gets_a_gradient_from_the_search(tiny, mode):
    model, _, start = on_tiny(tiny)
    adversarial_noise(*start(), **ascent(mode, num_steps=3))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_search_leaves_what_it_was_given_as_it_was(tiny):
    """This includes the graph of the clean pass, which the task's loss still needs to go backward."""
    _, _, start = on_tiny(tiny)
    encode, embeddings, logits, divergence = start()
    before = embeddings.detach().clone(), logits.detach().clone()
    noise, _ = adversarial_noise(encode, embeddings, logits, divergence, **ascent())
    assert torch.equal(embeddings, before[0]) and torch.equal(logits, before[1])
    assert not noise.requires_grad
    logits.sum().backward()


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("norm", NORMS)
def test_in_ball_mode_the_ascent_raises_l_above_random_noise_of_the_same_norm(tiny, name, norm):
    """By far, averaged over ten seeds. Both are recomputed here, and `ascent_gain` must agree."""
    _, _, start = on_tiny(tiny, name)
    encode, embeddings, logits, divergence = start()
    found, chance, said = [], [], []
    for seed in range(10):
        settings = ascent(norm=norm, generator=seeded(seed))
        noise, _ = adversarial_noise(encode, embeddings, logits, divergence, **settings)
        random = torch.randn_like(noise)
        random *= token_norm(noise, float(norm)) / token_norm(random, float(norm))
        with torch.no_grad():
            found.append(divergence(encode(embeddings + noise), logits).item())
            chance.append(divergence(encode(embeddings + random), logits).item())
        reached = torch.tensor(found[-1])
        normal = torch.randn(noise.shape, generator=seeded(seed), dtype=noise.dtype)
        said.append(ascent_gain(encode, embeddings, logits, divergence, noise, reached, norm, normal))
    assert np.mean(found) > 5 * np.mean(chance)
    assert np.median(said) > 5


def test_the_cosine_of_a_gradient_however_small():
    """Starting from no noise, a step in the 2-norm is along the gradient."""
    x, target = torch.randn(2, 3, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    settings = ascent(norm="2", noise_std=0.0, num_steps=1)
    _, found = adversarial_noise(lambda x: 1e-8 * x.sum(dim=1), x, target, squared_difference, **settings)
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_gain_by_hand(norm):
    """f(x) = 3 - x_1 - x_2 and l its square. Random numbers (3, 4) brought to the norm of the noise (.3, .4)
    are the noise itself, and f((1, 0) + (.3, .4)) = 1.3: l = 1.69, so that 3.38 is a gain of 2."""
    x, noise, normal = tensor([[[1.0, 0.0]]]), tensor([[[0.3, 0.4]]]), tensor([[[3.0, 4.0]]])
    given = x, torch.zeros(1, 1), squared_difference, noise, tensor(3.38), norm, normal
    assert ascent_gain(lambda x: 3 - x.sum(dim=(1, 2))[:, None], *given) == pytest.approx(2)


@pytest.mark.parametrize("chance, gain", [(0.0, math.nan), (LEAST_CHANCE, math.nan), (2 * LEAST_CHANCE, 2.0)])
def test_a_gain_that_is_lost_in_rounding_is_not_a_number(chance, gain):
    x, found = torch.randn(1, 2, 4), tensor(4 * LEAST_CHANCE, dtype=torch.float64)
    given = x, x, lambda p, q: tensor(chance, dtype=torch.float64), x, found, "2", x
    assert ascent_gain(lambda x: x, *given) == pytest.approx(gain, nan_ok=True)


def test_the_gain_of_noise_that_never_ascended_is_about_1(tiny):
    """Random noise against other random noise of the same norm, over forty seeds."""
    encode, embeddings, logits, divergence = on_tiny(tiny)[2]()
    gains = []
    for seed in range(40):
        settings = ascent(num_steps=0, noise_std=1e-3, norm="2", generator=seeded(seed))
        noise, _ = adversarial_noise(encode, embeddings, logits, divergence, **settings)
        reached = divergence(encode(embeddings + noise), logits)
        other = torch.randn(noise.shape, generator=seeded(1000 + seed), dtype=noise.dtype)
        gains.append(ascent_gain(encode, embeddings, logits, divergence, noise, reached, "2", other))
    assert 0.6 < np.exp(np.mean(np.log(gains))) < 1.6


@pytest.mark.parametrize("mode", MODES)
def test_r_is_not_0_for_a_single_logit(tiny, mode):
    """A softmax over one logit is always 1, so R would always be 0; a Bernoulli distribution changes."""
    encode, embeddings, logits, divergence = on_tiny(tiny, "paraphrase")[2]()
    assert logits.shape == (3, 1)
    assert smart_regularizer(encode, embeddings, logits, divergence, **ascent(mode)).item() > 1e-9


def test_feeding_embeddings_back_in_as_word_embeddings_is_another_function(tiny):
    """`encode` takes the output of the embedding layer. Passed through that layer again, as `inputs_embeds`
    is, positions and LayerNorm would act twice, and the logits would differ even without noise."""
    model, inputs, start = on_tiny(tiny)
    encode, embeddings, _, _ = start()
    assert torch.equal(encode(embeddings), model("sentiment", inputs))
    layer, (_, packing) = model.encoder.embeddings, model.encoder.embed(**inputs)
    positions = packing.tokens % packing.mask.shape[1]
    twice = layer.norm(embeddings + layer.position(positions) + layer.token_type.weight[0])
    assert (encode(twice) - encode(embeddings)).abs().max() > 0.01


# In the update


def make_method(tiny, tmp_path, **changes) -> Finetuning:
    """Return the method of a run on small tables."""
    return make_finetuning(FINETUNE.changed(weights=str(tiny), **changes), tmp_path)


def one_loss(method, step=QUIET_STEP) -> tuple[Tensor, dict[str, float]]:
    ((loss, terms),) = method.losses(step)
    return loss, terms


def diverge_by(method, divergence) -> None:
    """Give paraphrase another divergence than that of its kind."""
    task = BUILT_IN["paraphrase"]
    method.model.tasks["paraphrase"] = replace(task, kind=replace(task.kind, divergence=divergence))


def watch(monkeypatch):
    """Record the arguments and results of every call of `adversarial_noise`."""
    calls = []

    def spy(encode, embeddings, logits, *rest, **settings):
        result = adversarial_noise(encode, embeddings, logits, *rest, **settings)
        calls.append({"encode": encode, "embeddings": embeddings, "logits": logits, "noise": result[0]})
        return result

    monkeypatch.setattr(finetune, "adversarial_noise", spy)
    return calls


@pytest.mark.parametrize("task", range(3))
def test_the_loss_is_the_tasks_plus_lambda_r(tiny, tmp_path, task):
    """The same batch and noise with lambda 0, 1 and 15."""
    losses = {}
    for weight in (0.0, 1.0, 15.0):
        loss, terms = one_loss(make_method(tiny, tmp_path, smart_weight=weight), QUIET_STEP + task)
        losses[weight] = loss.item()
    name = list(BUILT_IN)[task]
    r = terms[f"smart/{name}/r"]
    assert r > 0 and terms[f"smart/{name}/skipped"] == 0
    assert losses[0] == pytest.approx(terms[f"loss/{name}"], abs=1e-6)
    assert losses[1] == pytest.approx(losses[0] + r, abs=1e-5)
    assert losses[15] == pytest.approx(losses[0] + 15 * r, abs=1e-5)


@pytest.mark.parametrize("task", range(3))
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_updates_gradient_has_lambda_times_that_of_r(tiny, tmp_path, monkeypatch, task, dropout):
    """The gradient with lambda = 15 less that with 0 is 15 times that of l(f(x + n), f(x)), both passes
    without dropout, at the noise that was found; x itself depends on the weights."""
    calls, gradients = watch(monkeypatch), []
    for weight in (0.0, 15.0):
        method = make_method(tiny, tmp_path, smart_weight=weight, smart_epsilon=0.5, encoder_dropout=dropout)
        torch.manual_seed(0)
        one_loss(method, QUIET_STEP + task)[0].backward()
        gradients.append({name: parameter.grad for name, parameter in method.model.named_parameters()})
    model, (name, (rows,)), (call,) = method.model.eval(), planned(method, QUIET_STEP + task), calls
    model.zero_grad(set_to_none=True)
    inputs, _ = collate(model, method.train[name], rows)
    embeddings, packing = model.encoder.embed(**inputs)
    moved = model.logits_from_embeddings(name, embeddings + call["noise"], packing)
    (15 * BUILT_IN[name].kind.divergence(moved, model(name, inputs))).backward()
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            change = gradients[1][key] - gradients[0][key]
            size, rounded = float(parameter.grad.abs().max()), float(gradients[0][key].abs().max())
            atol = 1e-3 * size + 1e-5 * max(1.0, rounded)  # `change` is a difference of float32 numbers
            torch.testing.assert_close(change, parameter.grad, rtol=1e-3, atol=atol, msg=key)


def test_a_pairs_two_halves_share_one_perturbation(tiny, tmp_path, monkeypatch):
    """One ascent per update, on one joint input, that perturbs every token of both sentences. (The previous
    test checks that R uses this noise.)"""
    calls, method = watch(monkeypatch), make_method(tiny, tmp_path)
    step = QUIET_STEP + list(BUILT_IN).index("similarity")
    one_loss(method, step)
    (call,) = calls
    name, (rows,) = planned(method, step)
    inputs, _ = collate(method.model, method.train[name], rows)
    types = inputs["token_type_ids"][inputs["attention_mask"].bool()]
    assert call["embeddings"].shape == call["noise"].shape == (len(types), 32)
    sizes = call["noise"].abs().amax(dim=1)
    assert sizes[types == 0].min() > 0 and sizes[types == 1].min() > 0


@pytest.mark.parametrize("task", range(3))
def test_the_seam_gives_the_models_own_logits_at_zero_noise(tiny, tmp_path, monkeypatch, task):
    calls, method = watch(monkeypatch), make_method(tiny, tmp_path)
    one_loss(method, QUIET_STEP + task)
    name, (rows,) = planned(method, QUIET_STEP + task)
    inputs, _ = collate(method.model, method.train[name], rows)
    (call,) = calls
    wanted = method.model.eval()(name, inputs)
    assert torch.equal(call["encode"](call["embeddings"]), wanted) and torch.equal(call["logits"], wanted)


@pytest.mark.parametrize("task", range(3))
@pytest.mark.parametrize("dropout", [{"encoder_dropout": 0.3}, {"head_dropout": 0.3}])
def test_dropout_is_off_in_every_pass_of_the_regulariser(tiny, tmp_path, task, dropout):
    """At zero noise two passes with dropout would differ. Afterwards the model is back in training mode."""
    method = make_method(tiny, tmp_path, smart_steps=0, smart_noise_std=0.0, **dropout)
    _, terms = one_loss(method, QUIET_STEP + task)
    assert terms[f"smart/{list(BUILT_IN)[task]}/r"] == 0
    assert all(module.training for module in method.model.modules())


def test_dropout_stays_on_in_the_tasks_own_pass(tiny, tmp_path):
    method = make_method(tiny, tmp_path, encoder_dropout=0.3)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(one_loss(method)[1]["loss/sentiment"])
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("dropout, passes", [(0.0, 3), (0.1, 4)])
@pytest.mark.parametrize("mode", MODES)
def test_passes_of_an_update(tiny, tmp_path, dropout, passes, mode):
    """The clean pass, the ascent and the adversarial pass; with dropout, the task's pass comes on top."""
    method = make_method(tiny, tmp_path, encoder_dropout=dropout, smart_mode=mode)
    calls = []
    method.model.encoder.layers[0].register_forward_hook(lambda *_: calls.append(0))
    for task in range(3):
        calls.clear()
        one_loss(method, QUIET_STEP + task)
        assert len(calls) == passes


def test_the_search_computes_no_gradient_of_weights(tiny):
    """It takes as many multiplications as with frozen weights; with the weights' gradients, half as many
    again."""
    counts = []
    for trains in (True, False):
        model, _, start = on_tiny(tiny)
        given = start()
        model.requires_grad_(trains)
        with FlopCounterMode(display=False) as counter:
            adversarial_noise(*given, **ascent())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("dropout, most", [(0.0, 8), (0.1, 11)])
def test_multiplications_of_an_update(tiny, tmp_path, dropout, most):
    """A pass forward is 1, backward 2, so a plain update is 3. SMART's without dropout: clean, ascent forward
    and back to the noise only, adversarial, 2 * 2 back: 8. With dropout the task's pass comes on top: 11.
    Attention, which has no weights, costs 2 back to the noise: a twentieth more."""
    counts = []
    for weight in (0.0, 1.0):
        method = make_method(tiny, tmp_path, encoder_dropout=dropout, smart_weight=weight)
        with FlopCounterMode(display=False) as counter:
            one_loss(method)[0].backward()
        counts.append(counter.get_total_flops())
    assert most - 0.5 < 3 * counts[1] / counts[0] < 1.05 * most


def test_a_gradient_that_is_not_finite_is_counted_and_does_not_poison_the_update(tiny, tmp_path):
    """The divergence is finite but its gradient is not: the update is then that of the task alone."""
    weights = []
    for broken in (True, False):
        method = make_method(tiny, tmp_path, smart_weight=float(broken))
        diverge_by(method, lambda p, q: (p - q).abs().sqrt().sum() * 0 + (p * 0).sum().sqrt())
        optimizer = AdamW(method.model.parameters(), lr=0.01)
        terms = train.update(optimizer, method.losses(OF_PARAPHRASE), 1, 1.0)
        assert terms.get("smart/paraphrase/skipped") == (1 if broken else None)
        assert "smart/paraphrase/r" not in terms
        weights.append(torch.cat([parameter.detach().flatten() for parameter in method.model.parameters()]))
    assert weights[0].isfinite().all() and torch.equal(*weights)


def test_an_r_that_is_not_finite_is_counted_and_does_not_poison_the_update(tiny, tmp_path):
    """For example if the perturbation makes a finite value overflow."""
    method = make_method(tiny, tmp_path)
    diverge_by(method, lambda p, q: (p - q).sum() * 0 + math.nan)
    terms = train.update(AdamW(method.model.parameters()), method.losses(OF_PARAPHRASE), 1, 1.0)
    assert terms["smart/paraphrase/skipped"] == 1 and "smart/paraphrase/r" not in terms
    assert math.isfinite(terms["loss/all"])


def test_what_is_skipped_in_one_of_two_batches_counts_once(tiny, tmp_path, monkeypatch):
    """R is the mean over the batches that have one, here only the first."""
    method = make_method(tiny, tmp_path, accumulate=2)
    found = []

    def fail_second(*args, **settings):
        noise, diagnostics = adversarial_noise(*args, **settings)
        found.append(replace(diagnostics, finite=not found))
        return noise, found[-1]

    first = next(iter(method.losses(QUIET_STEP)))[1]["smart/sentiment/r"]
    monkeypatch.setattr(finetune, "adversarial_noise", fail_second)
    progress = Progress()
    progress.add(train.update(AdamW(method.model.parameters()), method.losses(QUIET_STEP), 2, 1.0), 0.1)
    found = progress.end_epoch()["smart"]["sentiment"]
    assert found["skipped"] == 1 and found["r"] == pytest.approx(first)


def smoothed(method, step: int, count: int) -> np.ndarray:
    """The places of the rows that SMART takes of the only batch of an update."""
    return method.smoothed_rows(count, random_generator(method.plan.seed, "smoothed rows", step))


@pytest.mark.parametrize("count, wanted, start, rows", [
    (16, 4, 0, [0, 4, 8, 12]), (16, 4, 6, [2, 6, 10, 14]), (5, 2, 0, [0, 2]), (5, 2, 3, [0, 3]),
    (5, 3, 0, [0, 1, 3]), (4, 9, 2, [0, 1, 2, 3]),
])  # fmt: skip
def test_the_rows_to_regularise_are_evenly_spaced(count, wanted, start, rows):
    assert finetune.spread_rows(count, wanted, start).tolist() == rows


@pytest.mark.parametrize("count, wanted", [(16, 4), (7, 3), (5, 2)])
def test_every_row_is_as_likely_to_be_regularised(count, wanted):
    """Batches by tokens begin with a row that did not fit before, longer than the others: no place may be
    preferred. Over all starts each row is taken as often as any other."""
    taken = [row for start in range(count) for row in finetune.spread_rows(count, wanted, start)]
    assert np.bincount(taken, minlength=count).tolist() == [wanted] * count


@pytest.mark.parametrize("task", range(3))
@pytest.mark.parametrize(
    "changes", [{}, {"encoder_dropout": 0.3}, {"bregman_weight": 1.0, "encoder_dropout": 0.3}]
)
def test_smart_on_some_rows_is_smart_on_a_batch_of_them(tiny, tmp_path, monkeypatch, task, changes):
    """2 of 4 rows. The ascent sees only their tokens, and R is the mean over the two."""
    calls = watch(monkeypatch)
    method = make_method(tiny, tmp_path, smart_rows=2, **changes)
    _, terms = one_loss(method, QUIET_STEP + task)
    name, (rows,) = planned(method, QUIET_STEP + task)
    chosen = smoothed(method, QUIET_STEP + task, len(rows))
    inputs, _ = collate(method.model.eval(), method.train[name], rows[chosen])
    embeddings, packing = method.model.encoder.embed(**inputs)
    (call,) = calls
    torch.testing.assert_close(call["embeddings"], embeddings)
    torch.testing.assert_close(call["logits"], method.model(name, inputs))
    moved = method.model.logits_from_embeddings(name, embeddings + call["noise"], packing)
    r = BUILT_IN[name].kind.divergence(moved, method.model(name, inputs))
    assert terms[f"smart/{name}/r"] == pytest.approx(r.item(), rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_a_rows_noise_is_the_same_whatever_rows_are_regularised(tiny, tmp_path, monkeypatch, mode):
    """Also in `normalize`, where the size of the gradient of the mean over the whole batch matters."""
    calls = watch(monkeypatch)
    for some in (None, 2):
        method = make_method(tiny, tmp_path, smart_rows=some, smart_mode=mode, smart_step_size=0.1)
        one_loss(method)
    every, few = calls
    name, (rows,) = planned(method, QUIET_STEP)
    of_rows = every["noise"].split(method.train[name].tokens.lengths_of(rows).tolist())
    one, other = smoothed(method, QUIET_STEP, len(rows))
    torch.testing.assert_close(few["noise"], torch.cat([of_rows[one], of_rows[other]]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("dropout, passes", [(0.0, 5), (0.1, 8)])
def test_multiplications_of_an_update_with_one_of_four_rows(tiny, tmp_path, dropout, passes):
    """A plain update is 3. On the tokens of the one row: the ascent 1 forward and 1 back, the adversarial
    pass 1 and 2 back, 5 in all; with dropout its clean pass, 1 and 2 back, too."""
    counts = []
    for weight in (0.0, 1.0):
        method = make_method(tiny, tmp_path, encoder_dropout=dropout, smart_weight=weight, smart_rows=1)
        with FlopCounterMode(display=False) as counter:
            one_loss(method)[0].backward()
        counts.append(counter.get_total_flops())
    name, (rows,) = planned(method, QUIET_STEP)
    lengths = method.train[name].tokens.lengths_of(rows)
    (chosen,) = smoothed(method, QUIET_STEP, len(rows))
    expected = 3 + passes * lengths[chosen] / lengths.sum()
    assert 3 * counts[1] / counts[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("task", range(3))
def test_the_gradient_ratios(tiny, tmp_path, monkeypatch, task):
    """The norms of the gradients of lambda R and mu D over that of the task's loss, with each term
    recomputed from the teacher and the noise that was found."""
    calls = watch(monkeypatch)
    weights = {"smart_weight": 2.0, "bregman_weight": 3.0, "smart_epsilon": 0.5}
    method = make_method(tiny, tmp_path, steps_per_epoch=3, **weights)
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    _, terms = one_loss(method, task)
    name, (rows,) = planned(method, task)
    model, noise = method.model, calls[0]["noise"]
    inputs, labels = collate(model, method.train[name], rows)
    embeddings, packing = model.encoder.embed(**inputs)
    clean, divergence = model(name, inputs), BUILT_IN[name].kind.divergence
    r = divergence(model.logits_from_embeddings(name, embeddings + noise, packing), clean)
    d = divergence(clean, method.teacher(name, inputs))

    def norm(value):
        gradients = torch.autograd.grad(value, [*model.parameters()], retain_graph=True, allow_unused=True)
        return torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm().item()

    of_loss = norm(BUILT_IN[name].kind.loss(clean, labels))
    assert terms[f"smart/{name}/gradient_ratio"] == pytest.approx(2 * norm(r) / of_loss, rel=1e-3)
    assert terms[f"bregman/{name}/gradient_ratio"] == pytest.approx(3 * norm(d) / of_loss, rel=1e-3)


def test_an_idle_or_a_skipped_regulariser_is_named(tiny, tmp_path):
    """Idle means an epoch's median below .01. A task without a measurement is not judged."""
    method = make_method(tiny, tmp_path)
    record = {
        "smart": {"a": {"gradient_ratio": 0.009}, "b": {"gradient_ratio": 0.011}, "c": {"skipped": 2}},
        "bregman": {"a": {"gradient_ratio": 0.5}},
    }
    skipped, idle = method.warnings(record)
    assert skipped == "SMART was left out of 2 updates of c: it was not finite"
    assert idle.startswith("SMART is idle for a: its gradient is under 1% of the task loss's")
    record["bregman"]["b"] = {"gradient_ratio": 0.0}
    assert [line.partition(":")[0] for line in method.warnings(record)][2:] == ["BPPO is idle for b"]


def test_an_r_that_was_skipped_has_no_gradient_ratio(tiny, tmp_path):
    """Counted as 0, it would make a healthy epoch look idle."""
    method = make_method(tiny, tmp_path, steps_per_epoch=3)
    _, terms = one_loss(method, 1)
    assert terms["smart/paraphrase/gradient_ratio"] > 0
    diverge_by(method, lambda p, q: (p - q).sum() * 0 + math.nan)
    _, terms = one_loss(method, 1)
    assert terms["smart/paraphrase/skipped"] == 1 and "smart/paraphrase/gradient_ratio" not in terms


def test_any_nonzero_value_of_the_mask_marks_a_real_token():
    encode, x = toy(), torch.randn(2, 3, 4, dtype=torch.float64)
    mask = tensor([[1, 1, 1], [1, 0, 0]])
    one, two = (
        adversarial_noise(encode, x, encode(x) + 1, symmetric_kl, mask * value, **ascent())
        for value in (1, 2)
    )
    assert torch.equal(one[0], two[0]) and one[1] == two[1]


def test_what_is_logged(tiny, tmp_path):
    """Diagnostics that need extra passes run in each task's last update of an epoch and every hundredth
    before."""
    method = make_method(tiny, tmp_path, steps_per_epoch=600)
    for step, name in ((0, "sentiment"), (296, "similarity"), (299, "similarity"), (597, "sentiment")):
        _, terms = one_loss(method, step)
        names = {key.removeprefix(f"smart/{name}/") for key in terms if key.startswith("smart/")}
        measured = {"gain", "gradient_ratio"} if step in (299, 597) else set()
        assert names == {"r", "noise_norm", "cosine", "skipped"} | measured
        assert 0 < terms[f"smart/{name}/noise_norm"] <= 0.01 * (1 + 1e-5)
        assert 0.3 < terms[f"smart/{name}/cosine"] <= 1
