"""SMART: smoothness-inducing adversarial regularisation (Jiang et al. 2020, https://arxiv.org/abs/1911.03437,
eq. 2).

    R = 1/n sum_i  max over ||x'_i - x_i||_p <= epsilon  of  l(f(x'_i), f(x_i))

x is the output of the embedding layer, f the rest of the model (`encode`) and l the `divergence`. The maximum
is approximated by projected gradient ascent on a perturbation of every real token (`noise`):

    noise ~ N(0, noise_std^2), then num_steps times, with g the gradient of l with respect to noise,
    "ball":       noise = project(noise + step_size steepest(g))      onto ||noise||_p <= epsilon
    "normalize":  noise = (noise + step_size g) / (||noise + step_size g||_p + epsilon)

steepest(g) is the direction of norm 1 in which l rises fastest: sign(g) for p = inf, g / ||g||_2 for p = 2.
Every norm is that of one token. "ball" is the method as published. "normalize" is what the public
implementations do: epsilon only guards the division, so a perturbation always has norm 1, whatever the step
size. The size of g matters there, so `divergence` must be the mean over the whole batch.

There are two departures from Jiang et al. The caller must switch dropout off in every pass, because two
passes with dropout differ even at zero noise. And gradient flows to the weights through both sides of l, as
in the true gradient of R.

Axes: B examples, L positions, H width, T real tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]
Divergence = Callable[[Tensor, Tensor], Tensor]

MODES = ("ball", "normalize")
NORMS = {"inf": math.inf, "2": 2.0}
LEAST_CHANCE = 1e-12  # below this, l in float32 is only the rounding error of the logits
TINY = 1e-30  # smaller than any norm that matters; makes 0 / 0 equal 0


@dataclass(frozen=True)
class Diagnostics:
    """How the ascent went. The numbers are means over the real tokens."""

    noise_norm: float  # ||noise||_p
    cosine: float  # between the perturbation and the gradient of the last step
    finite: bool  # False if a gradient was not finite, in which case the perturbation is zero


def adversarial_noise(
    encode: Encode,
    embeddings: Tensor,
    clean_logits: Tensor,
    divergence: Divergence,
    mask: Tensor | None = None,
    *,
    num_steps: int,
    step_size: float,
    epsilon: float,
    noise_std: float,
    norm: str,
    mode: str,
    generator: torch.Generator | None = None,
    normal: Tensor | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Return the perturbation found by gradient ascent, shaped as `embeddings`, and how the ascent went.

    `embeddings` are (B, L, H), with a mask (B, L) that is nonzero at real tokens, or packed (T, H) without a
    mask. `encode` maps perturbed embeddings to logits (B, C). `normal` holds the standard normal numbers to
    start from, in the same shape; if it is None they are drawn from `generator`. No weight gets a gradient.
    Raises ValueError if `mode` or `norm` is unknown.
    """
    if mode not in MODES or norm not in NORMS:
        raise ValueError(f"mode must be in {MODES} and norm in {tuple(NORMS)}, not {mode!r} and {norm!r}")
    p = NORMS[norm]
    real = torch.ones_like(embeddings[..., :1]) if mask is None else mask[..., None].bool()
    start, target = embeddings.detach(), clean_logits.detach()
    if normal is None:
        normal = torch.randn(embeddings.shape, generator=generator, dtype=start.dtype, device=start.device)
    noise = normal * noise_std * real
    if mode == "ball":
        noise = project(noise, epsilon, p)
    gradient = torch.zeros_like(noise)
    for _ in range(num_steps):
        noise, gradient = ascend(
            lambda moved: divergence(encode(start + moved), target), noise, real, step_size, epsilon, p, mode
        )
        if not gradient.isfinite().all():
            return torch.zeros_like(start), Diagnostics(0.0, 0.0, finite=False)
    tokens = real.sum()
    size = token_norm(noise, p).sum() / tokens
    cosine = torch.cosine_similarity(noise, gradient, dim=-1, eps=TINY).sum() / tokens
    return noise, Diagnostics(size.item(), cosine.item(), finite=True)


def ascend(
    divergence: Encode, noise: Tensor, real: Tensor, step_size: float, epsilon: float, p: float, mode: str
) -> tuple[Tensor, Tensor]:
    """Take one step of gradient ascent. Return the new noise, detached, and the gradient at the old one.

    `divergence` maps noise to the scalar l; `noise` is (..., H), and `real`, (..., 1), is 0 at padding, where
    the gradient is set to 0. `step_size`, `epsilon`, `p` and `mode` are those of the module's equations.
    """
    noise = noise.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(divergence(noise), noise)
    gradient = gradient * real
    noise = noise.detach()
    if mode == "ball":
        return project(noise + step_size * steepest(gradient, p), epsilon, p), gradient
    stepped = noise + step_size * gradient
    return stepped / (token_norm(stepped, p) + epsilon), gradient


def smart_regularizer(
    encode: Encode,
    embeddings: Tensor,
    clean_logits: Tensor,
    divergence: Divergence,
    mask: Tensor | None = None,
    **ascent: Any,
) -> Tensor:
    """Return R, a scalar. The arguments are those of `adversarial_noise`.

    If the ascent met a gradient that is not finite, R is 0, without a gradient.

    f(x) = 3 sum x of one token with H = 2 rises by at most 3 x .1 x 2 = .6 in the cube of .1 around x:

    >>> x = torch.tensor([[1.0, 2.0]])
    >>> def f(x):
    ...     return 3 * x.sum(dim=1, keepdim=True)
    >>> def distance(p, q):
    ...     return (p - q).abs().mean()
    >>> settings = {"num_steps": 1, "step_size": 1.0, "epsilon": 0.1, "noise_std": 1e-3}
    >>> round(smart_regularizer(f, x, f(x), distance, **settings, norm="inf", mode="ball").item(), 4)
    0.6
    """
    noise, found = adversarial_noise(encode, embeddings, clean_logits, divergence, mask, **ascent)
    return divergence(encode(embeddings + noise), clean_logits) if found.finite else embeddings.new_zeros(())


def token_norm(x: Tensor, p: float) -> Tensor:
    """Return the p-norm of each token: (..., H) -> (..., 1)."""
    return torch.linalg.vector_norm(x, ord=p, dim=-1, keepdim=True)


def steepest(gradient: Tensor, p: float) -> Tensor:
    """Return the direction of steepest ascent, (..., H): of p-norm 1 at each token, or 0 where the gradient
    is 0.

    >>> steepest(torch.tensor([[3.0, -4.0]]), p=2), steepest(torch.tensor([[3.0, -4.0]]), p=math.inf)
    (tensor([[ 0.6000, -0.8000]]), tensor([[ 1., -1.]]))
    """
    if p == math.inf:
        return gradient.sign()
    return gradient / token_norm(gradient, p).clamp_min(TINY)


def project(noise: Tensor, epsilon: float, p: float) -> Tensor:
    """Return the nearest point in each token's ball ||noise||_p <= epsilon (a cube for p = inf), (..., H).

    >>> project(torch.tensor([[3.0, -4.0]]), epsilon=1, p=2)
    tensor([[ 0.6000, -0.8000]])
    """
    if p == math.inf:
        return noise.clamp(-epsilon, epsilon)
    return noise * (epsilon / token_norm(noise, p).clamp_min(TINY)).clamp_max(1.0)


def ascent_gain(
    encode: Encode,
    embeddings: Tensor,
    clean_logits: Tensor,
    divergence: Divergence,
    noise: Tensor,
    found: Tensor,
    norm: str,
    normal: Tensor,
) -> float:
    """Return how much better than chance the ascent was: `found` over l at random noise.

    `found`, a scalar, is l at the ascent's `noise`, which is shaped as `embeddings`. The random noise has the
    same norm at every token, and is made from the standard normal numbers `normal`. NaN if l at random noise
    is lost in rounding.
    """
    p = NORMS[norm]
    random = normal * token_norm(noise, p) / token_norm(normal, p).clamp_min(TINY)
    with torch.no_grad():
        chance = divergence(encode(embeddings + random), clean_logits)
    return (found.detach() / chance).item() if chance > LEAST_CHANCE else math.nan
