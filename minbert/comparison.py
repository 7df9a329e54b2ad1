"""Where two BERTs part: every step of both on one batch, side by side, and the first that differs.

    print(minbert.compare(model, other, tokenizer(["A man is eating."])))

Nothing is computed again: `trace` watches a model while it runs, through hooks on its modules and, for the
scores, through the call of softmax. So it sees what a model really does, mistakes and all. It reads this
library's `BertModel`, a copy of it that is half done, and `transformers.BertModel`.

Axes: B examples, L positions, H width, A heads; T real tokens, as this library packs them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minbert.checkpoint import MODULES
from minbert.errors import InputError

TOLERANCE = 1e-5  # two ways to compute the same in float32 differ by a few 1e-6 of the largest number
HIDDEN = -1000.0  # a score below this hides its key: real ones are nearer to 0, whatever a mask adds
SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")


# What a model computes


def taken(inputs: Any, output: Any) -> Any:
    return inputs[0]


def made(inputs: Any, output: Any) -> Any:
    return output if isinstance(output, Tensor) else output[0]


def weights_made(inputs: Any, output: Any) -> Any:
    """Ours are in a list, with one tensor for each group of examples; `forward` makes one group."""
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    return weights[0] if isinstance(weights, list) else weights


def pooler_output(inputs: Any, output: Any) -> Any:
    return getattr(output, "pooler_output", None)


# Each stage by the module that takes or makes it, by our names; checkpoint.MODULES has Hugging Face's.
Read = Callable[[Any, Any], Any]  # (a module's inputs, its output) -> the stage
EMBEDDING_STAGES: tuple[tuple[str, str, Read], ...] = (
    ("word embeddings", "embeddings.word", made),
    ("segment embeddings", "embeddings.token_type", made),
    ("position embeddings", "embeddings.position", made),
    ("sum of embeddings", "embeddings.norm", taken),
    ("embeddings", "embeddings", made),
)
LAYER_STAGES: tuple[tuple[str, str, Read], ...] = (  # and, before the weights, the scores
    ("query", "layers.{}.attention.query", made),
    ("key", "layers.{}.attention.key", made),
    ("value", "layers.{}.attention.value", made),
    ("weights", "layers.{}.attention", weights_made),
    ("context", "layers.{}.attention", made),
    ("attention output", "layers.{}.attention_output", made),
    ("add-and-norm", "layers.{}.intermediate", taken),
    ("intermediate", "layers.{}.output", taken),
    ("feed-forward output", "layers.{}.output", made),
    ("second add-and-norm", "layers.{}", made),
)
POOLER_STAGE = ("pooler", "", pooler_output)
HUGGING_FACE = {
    **MODULES,
    "embeddings": "embeddings",
    "layers.{}": "encoder.layer.{}",
    "layers.{}.attention": "encoder.layer.{}.attention.self",
    "": "",
}


def trace(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a model computes on a batch, without dropout: its stages by name, in the order of
    computation.

    `batch` is what the tokenizer returns: input_ids and, optionally, attention_mask and token_type_ids,
    (B, L) each. The stages are float32 tensors on the CPU:

    - "word embeddings", "segment embeddings", "position embeddings", "sum of embeddings" and, normalised,
      "embeddings": (B, L, H);
    - of each layer, as in "layer 0, query": query, key and value, (B, L, H); scores, as softmax gets them,
      and weights, (B, A, L, L); context, attention output, add-and-norm (what the feed-forward network gets),
      intermediate (after GELU, and as wide as that is), feed-forward output and second add-and-norm,
      (B, L, H);
    - "pooler": (B, H).

    Padding is NaN; in scores and weights only padded queries are. A score that hides its key is -inf, however
    the model hides it. A tensor of an unexpected shape is returned as it is. What cannot be seen is left out:
    the scores of a model that does not call softmax; scores and weights of one of `transformers` that was not
    loaded with attn_implementation="eager". Raises InputError if `model` is of neither kind.

    >>> from minbert import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    >>> stages = trace(model, {"input_ids": torch.tensor([[2, 5, 3]])})
    >>> stages["layer 0, weights"].shape
    torch.Size([1, 2, 3, 3])
    >>> list(stages)[-2:]
    ['layer 0, second add-and-norm', 'pooler']
    """
    device = next(model.parameters()).device
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), recording(model, batch) as stages:
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
    finally:
        for module in trained:
            module.training = True
    return stages


@contextmanager
def recording(model: nn.Module, batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the dictionary that `trace` returns, which a call of the model on this batch then fills.

    If that call raises, as it may in a model that is half done, the stages before the error are in it.
    """
    ours = hasattr(model, "layers")
    if not ours and not hasattr(getattr(model, "encoder", None), "layer"):
        name = type(model).__name__
        raise InputError(
            f"{name} is no BertModel, of minbert or transformers; of a model with a head, pass .bert"
        )
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().cpu()
    stages: dict[str, Tensor] = {}
    softmax = _Softmax()
    hooks = []

    def record(stage: str, tensor: Any) -> None:
        if isinstance(tensor, Tensor):
            tensor = tensor.detach().float().cpu()
            stages[stage] = tensor if stage == "pooler" else _padded(tensor, mask, packed=ours)

    def watch(stage: str, place: str, read: Read) -> None:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            record(stage, read(inputs, output))

        hooks.append(model.get_submodule(place).register_forward_hook(hook))

    def watch_scores(stage: str, place: str) -> None:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            record(stage, softmax.scores)
            softmax.scores = None

        hooks.append(model.get_submodule(place).register_forward_hook(hook))

    def place(name: str, layer: int | None = None) -> str:
        return (name if ours else HUGGING_FACE[name]).format(layer)

    for layer in range(len(model.layers if ours else model.encoder.layer)):  # type: ignore[union-attr, arg-type]
        watch_scores(f"layer {layer}, scores", place("layers.{}.attention", layer))
        for stage, name, read in LAYER_STAGES:
            watch(f"layer {layer}, {stage}", place(name, layer), read)
    for stage, name, read in (*EMBEDDING_STAGES, POOLER_STAGE):
        watch(stage, place(name), read)
    try:
        with softmax:
            yield stages
    finally:
        for hook in hooks:
            hook.remove()


class _Softmax(TorchFunctionMode):
    """Keeps what softmax was last called with, by whatever name."""

    scores: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "softmax":
            self.scores = args[0] if args else kwargs["input"]
        return func(*args, **kwargs)


def _padded(tensor: Tensor, mask: Tensor, packed: bool) -> Tensor:
    """Return a stage as `trace` does: of tokens (T, ...) or (B, L, ...), or of pairs of them (B, A, L, L)."""
    batch, length = mask.shape
    if tensor.ndim == 2 and len(tensor) == mask.sum():
        padded = tensor.new_full((batch, length, tensor.shape[1]), math.nan)
        padded[mask] = tensor
        return padded
    if tensor.ndim == 3 and tensor.shape[1] == length and len(tensor) in (1, batch):
        return tensor.expand(batch, -1, -1).masked_fill(~mask[..., None], math.nan)
    if tensor.ndim == 4 and (len(tensor), *tensor.shape[2:]) == (batch, length, length):
        if packed:  # the layers have an example's tokens first and its padding after them
            places = (~mask).int().argsort(dim=1, stable=True).argsort(dim=1)[:, None]  # (B, 1, L)
            tensor = tensor.gather(2, places[..., None].expand_as(tensor))
            tensor = tensor.gather(3, places[..., None, :].expand_as(tensor))
        hidden = tensor.masked_fill(tensor < HIDDEN, -math.inf)
        return hidden.masked_fill(~mask[:, None, :, None], math.nan)
    return tensor


# Where two models part


@dataclass(frozen=True)
class Difference:
    """How far one stage of two models differs at most, and where. `str` says it in words."""

    stage: str
    largest: float  # inf where only one is NaN or infinite, or the shapes differ
    scale: float  # the largest finite number of theirs, at least 1
    position: Mapping[str, int]  # example, then token, or head, query and key; empty if the shapes differ
    shapes: tuple[tuple[int, ...], tuple[int, ...]]

    def exceeds(self, tolerance: float) -> bool:
        """Return whether the difference is more than this, relative to the scale."""
        return self.largest > tolerance * self.scale

    def __str__(self) -> str:
        if not self.position:
            return f"{self.stage}: has shape {self.shapes[0]}, not {self.shapes[1]}"
        where = ", ".join(f"{axis} {index}" for axis, index in self.position.items())
        return f"{self.stage}: off by {self.largest:.2g} at {where}"


AXES = {2: ("example",), 3: ("example", "token"), 4: ("example", "head", "query", "key")}


def difference(stage: str, ours: Tensor, theirs: Tensor) -> Difference:
    """Return the largest difference |ours - theirs| of a stage as `trace` returns it, and where it is."""
    shapes = tuple(ours.shape), tuple(theirs.shape)
    if ours.shape != theirs.shape:
        return Difference(stage, math.inf, 1.0, {}, shapes)
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())  # infinities too
    distance = (ours - theirs).abs().nan_to_num(math.inf).masked_fill(same, 0)
    indices = torch.unravel_index(distance.argmax(), distance.shape)
    position = dict(zip(AXES[ours.ndim], map(int, indices), strict=False))
    scale = theirs.abs().nan_to_num(0, posinf=0).max().clamp(min=1).item()
    return Difference(stage, distance.max().item(), scale, position, shapes)


def first_difference(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], tolerance: float = TOLERANCE
) -> Difference | None:
    """Return the first stage of `ours`, in its order, that differs by more than the tolerance, or None.

    Both are what `trace` returns, or what was kept of it; a stage that one of them lacks is passed over. The
    tolerance is relative to the largest number of the stage in `theirs`, if that is above 1.

    >>> first_difference({"a": torch.ones(2, 3)}, {"a": torch.ones(2, 3)}) is None
    True
    >>> print(first_difference({"a": torch.ones(2, 3)}, {"a": torch.tensor([[1, 1, 1], [1, 1, 1.5]])}))
    a: off by 0.5 at example 1
    """
    for stage, tensor in ours.items():
        if stage in theirs and (found := difference(stage, tensor, theirs[stage])).exceeds(tolerance):
            return found
    return None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found. `str` is a table of the stages, and the first that differs."""

    differences: tuple[Difference, ...]  # of each stage that both have, in the order of computation
    unseen: tuple[str, ...]  # the stages that only one of them shows
    tolerance: float

    @property
    def first(self) -> Difference | None:
        """The first stage that differs by more than the tolerance, or None."""
        return next((one for one in self.differences if one.exceeds(self.tolerance)), None)

    def __str__(self) -> str:
        width = max(len(one.stage) for one in self.differences)
        lines = [
            f"{one.stage:{width}}  {one.largest:8.1e}  {'differs' if one.exceeds(self.tolerance) else 'same'}"
            for one in self.differences
        ]
        if self.unseen:
            lines.append(f"not compared, because only one of them shows it: {', '.join(self.unseen)}")
        first = self.first
        lines.append("no stage differs" if first is None else f"the first that differs is {first}")
        return "\n".join(lines)


def compare(
    model: nn.Module, other: nn.Module, batch: Mapping[str, Tensor], tolerance: float = TOLERANCE
) -> Comparison:
    """Run two models on a batch and compare what they compute, stage by stage.

    Each is a `minbert.BertModel` or a `transformers.BertModel`; `batch` is what the tokenizer returns:
    input_ids and, optionally, attention_mask and token_type_ids, (B, L) each. See `trace` for the stages, and
    `first_difference` for the tolerance. Raises InputError if the models differ in shape.

    >>> from minbert import BertConfig, BertModel
    >>> model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    >>> compare(model, model, {"input_ids": torch.tensor([[2, 5, 3]])}).first is None
    True
    """
    for field in SHAPE:
        values = [getattr(one.config, field, None) for one in (model, other)]
        if values[0] != values[1]:
            raise InputError(
                f"{field} is {values[0]} in one model and {values[1]} in the other: they must agree"
            )
    ours, theirs = trace(model, batch), trace(other, batch)
    differences = tuple(difference(stage, ours[stage], theirs[stage]) for stage in ours if stage in theirs)
    return Comparison(differences, tuple(sorted(ours.keys() ^ theirs.keys())), tolerance)
