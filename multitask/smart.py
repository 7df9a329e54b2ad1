"""SMART: smoothness-inducing adversarial regularisation (Jiang et al. 2020, https://arxiv.org/abs/1911.03437,
eq. 2).

    R = 1/n sum_i  max over ||x'_i - x_i||_p <= epsilon  of  l(f(x'_i), f(x_i))

x is the output of the embedding layer and f the rest of the model, `encode`; l is `divergence`. The maximum
is approached by projected gradient ascent on a perturbation, `noise`, of every real token:

    noise ~ N(0, noise_std^2), then num_steps times, with g the gradient of l with respect to noise,
    "ball":       noise = project(noise + step_size steepest(g))      onto ||noise||_p <= epsilon
    "normalize":  noise = (noise + step_size g) / (||noise + step_size g||_p + epsilon)

steepest(g) is the direction of norm 1 in which l rises fastest: sign(g) for p = inf, g / ||g||_2 for p = 2.
Norms are taken token by token. "ball" is the method as published. "normalize" is what the public
implementations do: epsilon only guards the division there, so a perturbation always has norm 1, however long
the step, and the size of g matters: `divergence` must be the mean over the whole batch. Where this departs
from the paper: dropout must be off in every pass (the caller sees to it), since with dropout two passes
differ even at zero noise; and both sides of l carry gradient to the weights, as the gradient of R does.

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
LEAST_CHANCE = 1e-12  # of l: below it float32 gives the rounding of the logits
TINY = 1e-30  # below any norm that matters; keeps 0 / 0 at 0


@dataclass(frozen=True)
class Diagnostics:
    """How the ascent went; means over the real tokens."""

    noise_norm: float  # ||noise||_p
    cosine: float  # of the perturbation with the gradient of its last step
    finite: bool  # False where a gradient was not, and the perturbation is therefore zero


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
    """The perturbation found by gradient ascent, shaped as `embeddings`: (B, L, H) with a mask (B, L) that is
    nonzero at real tokens, or packed (T, H). `encode` takes perturbed embeddings to logits (B, C). `normal`
    are the standard normal numbers to start from, shaped so too; without them `generator` gives them. No
    weight gets a gradient."""
    if mode not in MODES or norm not in NORMS:
        raise ValueError(f"mode is one of {MODES} and norm one of {tuple(NORMS)}, not {mode!r} and {norm!r}")
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
        noise.requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(divergence(encode(start + noise), target), noise)
        gradient = gradient * real
        if not gradient.isfinite().all():
            return torch.zeros_like(start), Diagnostics(0.0, 0.0, finite=False)
        noise = noise.detach()
        if mode == "ball":
            noise = project(noise + step_size * steepest(gradient, p), epsilon, p)
        else:
            stepped = noise + step_size * gradient
            noise = stepped / (token_norm(stepped, p) + epsilon)
    tokens = real.sum()
    size = token_norm(noise, p).sum() / tokens
    cosine = torch.cosine_similarity(noise, gradient, dim=-1, eps=TINY).sum() / tokens
    return noise, Diagnostics(size.item(), cosine.item(), finite=True)


def smart_regularizer(
    encode: Encode,
    embeddings: Tensor,
    clean_logits: Tensor,
    divergence: Divergence,
    mask: Tensor | None = None,
    **ascent: Any,
) -> Tensor:
    """R, a scalar; every argument is `adversarial_noise`'s. 0, without a gradient, where the ascent met a
    gradient that is not finite."""
    noise, found = adversarial_noise(encode, embeddings, clean_logits, divergence, mask, **ascent)
    return divergence(encode(embeddings + noise), clean_logits) if found.finite else embeddings.new_zeros(())


def token_norm(x: Tensor, p: float) -> Tensor:
    """(..., H) -> (..., 1)"""
    return torch.linalg.vector_norm(x, ord=p, dim=-1, keepdim=True)


def steepest(gradient: Tensor, p: float) -> Tensor:
    """The direction of steepest ascent in the p-norm, of norm 1 at each token; 0 where the gradient is 0."""
    if p == math.inf:
        return gradient.sign()
    return gradient / token_norm(gradient, p).clamp_min(TINY)


def project(noise: Tensor, epsilon: float, p: float) -> Tensor:
    """The nearest point of each token's ball ||noise||_p <= epsilon (p = inf: a cube; p = 2: a sphere)."""
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
    """What the ascent was worth: `found`, l at its noise, over l at random noise of the same norm at every
    token, made of the standard normal numbers `normal`; NaN where that is lost in rounding."""
    p = NORMS[norm]
    random = normal * token_norm(noise, p) / token_norm(normal, p).clamp_min(TINY)
    with torch.no_grad():
        chance = divergence(encode(embeddings + random), clean_logits)
    return (found.detach() / chance).item() if chance > LEAST_CHANCE else math.nan
