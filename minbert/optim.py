"""AdamW written out, the parameters that decay, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.optim import Optimizer

CHUNK = 2**19  # elements of a parameter updated at a time: five tensors of 2 MB each


class AdamW(Optimizer):
    """Adam with decoupled weight decay: algorithm 2 of Loshchilov & Hutter 2019, arxiv.org/abs/1711.05101.

    With g the gradient at a parameter's own step t, and the moments m and v starting from zero:

        m = b1 m + (1 - b1) g                        v = b2 v + (1 - b2) g^2
        m' = m / (1 - b1^t)                          v' = v / (1 - b2^t)
        theta = theta - lr weight_decay theta - lr m' / (sqrt(v') + eps)

    `correct_bias=False` sets m' = m and v' = v: the update BERT was pre-trained with. Weight decay applies to
    every parameter of a group; `parameter_groups` leaves biases and LayerNorm out. A parameter without a
    gradient is skipped: it does not decay, and its moments and step count stay as they are. With `compiled`,
    torch.compile fuses the update's eight passes over memory into one.

    With the moments corrected, a first step is of size lr, whatever the size of the gradient:

    >>> theta = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> (theta * torch.tensor([5.0, -0.01])).sum().backward()
    >>> AdamW([theta], lr=0.1).step()
    >>> theta.data
    tensor([0.9000, 1.1000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        compiled: bool = False,
    ):
        if not (lr >= 0 and eps >= 0 and weight_decay >= 0):
            raise ValueError(f"lr {lr}, eps {eps} and weight_decay {weight_decay} must not be negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must lie in [0, 1), not {betas}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"correct_bias": correct_bias, "compiled": compiled})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # for a state dict without this setting
            group.setdefault("compiled", False)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Tensor] | None = None, scale: float = 1.0
    ) -> Tensor | None:
        """Update every parameter that has a gradient. Return the loss of `closure`, if one is given.

        Each gradient is multiplied by `scale` as it is read, and is itself left unchanged: see `clip_scale`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, scale, group)
        return loss

    def _update(self, parameter: Tensor, grad: Tensor, scale: float, group: dict[str, Any]) -> None:
        """Take one step of the class's algorithm on one parameter, in place.

        The gradient is `scale` times `grad`, which is left unchanged. `self.state[parameter]`, empty at
        first, keeps "step" (t, an int), "exp_avg" (m) and "exp_avg_sq" (v); `group` has "lr", "betas", "eps",
        "weight_decay" and "correct_bias". Raises ValueError if the gradient is sparse.
        """
        if grad.is_sparse:
            raise ValueError("AdamW does not support sparse gradients")
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        correction1, correction2 = 1.0, 1.0
        if group["correct_bias"]:
            correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        # lr m' / (sqrt(v') + eps) with the corrections factored out: rate m / (sqrt(v) + floor)
        rate = group["lr"] * math.sqrt(correction2) / correction1
        floor = group["eps"] * math.sqrt(correction2)
        decay = 1 - group["lr"] * group["weight_decay"]
        tensors = parameter, grad, state["exp_avg"], state["exp_avg_sq"]
        if group["compiled"] and all(tensor.is_contiguous() for tensor in tensors):
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            numbers = torch.tensor(
                [scale, 1 - beta1, 1 - beta2, rate, floor, decay], dtype=dtype, device=parameter.device
            )
            _compiled()(*(tensor.detach().flatten() for tensor in tensors), numbers)
            return
        decays = 1 - decay > torch.finfo(parameter.dtype).eps / 4  # otherwise the factor rounds to 1
        for theta, g, m, v in _chunks(*tensors):
            if scale != 1:
                g = g * scale
            m.lerp_(g, 1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            if decays:
                theta.mul_(decay)
            # 1 / rsqrt(v) for sqrt(v): MKL's sqrt is 5 times as slow at 0, 30 times at denormal numbers.
            theta.addcdiv_(m, v.rsqrt().reciprocal_().add_(floor), value=-rate)


def _chunks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Split tensors of one shape into matching views, small enough to stay in the CPU's cache.

    An update passes over them several times, and its speed is limited by memory. Tensors on other devices, or
    not contiguous, are returned whole.
    """
    if tensors[0].device.type != "cpu" or not all(tensor.is_contiguous() for tensor in tensors):
        return [tensors]
    return zip(*(tensor.view(-1).split(CHUNK) for tensor in tensors), strict=True)


def _in_one_pass(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: Tensor) -> None:
    """Do the same in a form for torch.compile.

    The numbers come in a tensor, because each new Python number would be compiled into a new program.
    """
    scale, new1, new2, rate, floor, decay = numbers.unbind()
    g = g * scale
    m.lerp_(g, new1)
    v.lerp_(g * g, new2)
    theta.mul_(decay).sub_(rate * m / (v.sqrt() + floor))


@cache
def _compiled() -> Callable[..., None]:
    return torch.compile(_in_one_pass, dynamic=True)


def clip_scale(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Return the factor that brings the 2-norm of all gradients together down to at most `max_norm`.

    It is NaN or 0 if that norm is not finite. Pass it to `AdamW.step`, which saves the extra pass in which
    torch's `clip_grad_norm_` rewrites all gradients. Source: Pascanu et al. 2013, algorithm 1
    (https://arxiv.org/abs/1211.5063).

    >>> theta = torch.ones(2, requires_grad=True)
    >>> (theta * torch.tensor([3.0, 4.0])).sum().backward()  # a gradient of norm 5
    >>> round(clip_scale([theta], max_norm=1.0), 4)
    0.2
    """
    norms = [vector_norm(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return (max_norm / (vector_norm(torch.stack(norms)) + 1e-6)).clamp(max=1.0).item() if norms else 1.0


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters as two groups: matrices decay, vectors (biases and LayerNorm) do not.

    Frozen parameters are left out.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def constant_schedule(step: int, warmup_steps: int = 0) -> float:
    """Return the factor on the learning rate at `step`, counted from 0.

    It rises linearly to 1 over the warm-up and stays there.

    >>> [constant_schedule(step, warmup_steps=3) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (step + 1) / (warmup_steps + 1))


def linear_schedule(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Return the factor on the learning rate at `step`, counted from 0.

    It rises linearly to 1 over the warm-up, then falls linearly and would reach 0 at `total_steps`.

    >>> [linear_schedule(step, total_steps=6, warmup_steps=1) for step in range(6)]
    [0.5, 1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if step < warmup_steps:
        return constant_schedule(step, warmup_steps)
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
