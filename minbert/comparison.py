"""Where two BERTs part: every step of both on one batch, side by side, and the first that differs.

    print(minbert.compare(model, other, tokenizer(["A man is eating."])))
    python -m minbert.comparison minilm-l6 hf:minilm-l6

Nothing is computed again: `trace` watches a model while it runs, through hooks on its modules and, for the
scores, through the call of softmax. So it sees what a model really does, mistakes and all. It reads this
library's `BertModel`, a copy of it that is half done, and `transformers.BertModel`.

Axes: B examples, L positions, H width, A heads; T real tokens, as this library packs them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from minbert import hub
from minbert.bert import BertModel
from minbert.checkpoint import MODULES
from minbert.command import Parser, carry_out
from minbert.errors import InputError, short_line
from minbert.sanity import print_sanity
from minbert.tokenizer import BertTokenizer

TOLERANCE = 1e-5  # two ways to compute the same in float32 differ by a few 1e-6 of the largest number
HIDDEN = -1000.0  # a score below this hides its key: real ones are nearer to 0, whatever a mask adds
SHAPE = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")


# What a model computes


class Softmax(TorchFunctionMode):
    """A context that keeps what softmax was last called with, by whatever name."""

    scores: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "softmax":
            self.scores = args[0] if args else kwargs["input"]
        return func(*args, **kwargs)

    def take(self) -> Tensor | None:
        """Return it, (B, A, L, L) in attention, and forget it; None if there was no call since."""
        scores, self.scores = self.scores, None
        return scores


@dataclass(frozen=True)
class Call:
    """What a module was given, what it returned, and what softmax was given in it."""

    inputs: tuple[Any, ...]
    output: Any
    softmax: Softmax


def taken(call: Call) -> Any:
    """Return the first thing that a module was given."""
    return next(iter(call.inputs), None)


def made(call: Call) -> Any:
    """Return what a module made, or the first of several things."""
    return next(iter(call.output), None) if isinstance(call.output, tuple) else call.output


def scores(call: Call) -> Any:
    """Return the scores of attention, with the mask in them."""
    return call.softmax.take()


def weights(call: Call) -> Any:
    """Return the weights of attention. Ours are in a list, of one group of examples here."""
    attended = call.output[1] if isinstance(call.output, tuple) and len(call.output) > 1 else None
    return next(iter(attended), None) if isinstance(attended, list) else attended


def pooler_output(call: Call) -> Any:
    """Return the vectors that the whole model made of its examples, if it has a pooler."""
    return getattr(call.output, "pooler_output", None)


# Each stage with the module to read it from, by our names, and how; {} is a layer's number.
Read = Callable[[Call], Any]
Stage = tuple[str, str, Read]
EMBEDDING_STAGES: tuple[Stage, ...] = (
    ("word embeddings", "embeddings.word", made),
    ("segment embeddings", "embeddings.token_type", made),
    ("position embeddings", "embeddings.position", made),
    ("sum of embeddings", "embeddings.norm", taken),
    ("embeddings", "embeddings", made),
)
LAYER_STAGES: tuple[Stage, ...] = (
    ("query", "layers.{}.attention.query", made),
    ("key", "layers.{}.attention.key", made),
    ("value", "layers.{}.attention.value", made),
    ("scores", "layers.{}.attention", scores),
    ("weights", "layers.{}.attention", weights),
    ("context", "layers.{}.attention", made),
    ("attention output", "layers.{}.attention_output", made),
    ("add-and-norm", "layers.{}.intermediate", taken),
    ("intermediate", "layers.{}.output", taken),
    ("feed-forward output", "layers.{}.output", made),
    ("second add-and-norm", "layers.{}", made),
)
POOLER_STAGE: Stage = ("pooler", "", pooler_output)
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
    _is_ours(model)
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
    ours = _is_ours(model)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().cpu()
    stages: dict[str, Tensor] = {}
    softmax = Softmax()

    def watch(stage: str, module: nn.Module, read: Read) -> RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tensor = read(Call(inputs, output, softmax))
            if isinstance(tensor, Tensor):
                found = tensor.detach().float().cpu()
                stages[stage] = found if read is pooler_output else _padded(found, mask, packed=ours)

        return module.register_forward_hook(hook)

    try:
        watched = list(_stages(model, ours))
    except AttributeError as error:
        raise InputError(f"{type(model).__name__} is not built as a BertModel: {error}") from None
    hooks = [watch(stage, module, read) for stage, module, read in watched]
    try:
        with softmax:
            yield stages
    finally:
        for hook in hooks:
            hook.remove()


def _is_ours(model: nn.Module) -> bool:
    """Return whether a model is built as minbert's BertModel is, or else as that of transformers. Raises
    InputError if it is neither."""
    if hasattr(model, "layers"):
        return True
    if hasattr(getattr(model, "encoder", None), "layer"):
        return False
    problem = "is no BertModel of minbert or transformers; of a model with a head, pass its encoder"
    raise InputError(f"{type(model).__name__} {problem}")


def _stages(model: nn.Module, ours: bool) -> Iterator[tuple[str, nn.Module, Read]]:
    """Yield every stage of a model with the module to read it from, and how."""
    for stage, place, read in (*EMBEDDING_STAGES, POOLER_STAGE):
        yield stage, model.get_submodule(place if ours else HUGGING_FACE[place]), read
    layers: Any = model.get_submodule("layers" if ours else "encoder.layer")
    for layer in range(len(layers)):
        for stage, place, read in LAYER_STAGES:
            name = (place if ours else HUGGING_FACE[place]).format(layer)
            yield f"layer {layer}, {stage}", model.get_submodule(name), read


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
    shapes: tuple[tuple[int, ...], tuple[int, ...]]  # ours and theirs

    def exceeds(self, tolerance: float) -> bool:
        """Return whether the difference is more than this, relative to the scale."""
        return self.largest > tolerance * self.scale

    def __str__(self) -> str:
        if self.shapes[0] != self.shapes[1]:
            return f"{self.stage}: has shape {self.shapes[0]}, not {self.shapes[1]}"
        where = ", ".join(f"{axis} {index}" for axis, index in self.position.items())
        return f"{self.stage}: off by {self.largest:.3g} at {where}"


AXES = {3: ("example", "token"), 4: ("example", "head", "query", "key")}  # of tensors with so many


def difference(stage: str, ours: Tensor, theirs: Tensor) -> Difference:
    """Return the largest difference |ours - theirs| of a stage as `trace` returns it, and where it is: of
    (B, L, ...), (B, A, L, L) or (B, H). Equal infinities and two NaNs are no difference."""
    shapes = tuple(ours.shape), tuple(theirs.shape)
    if ours.shape != theirs.shape:
        return Difference(stage, math.inf, 1.0, {}, shapes)
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())  # infinities too
    distance = (ours - theirs).abs().nan_to_num(math.inf, posinf=math.inf).masked_fill(same, 0)
    indices = torch.unravel_index(distance.argmax(), distance.shape)
    position = dict(zip(AXES.get(ours.ndim, ("example",)), map(int, indices), strict=False))
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
    unseen: tuple[str, ...]  # what only one of them shows, in whatever layer
    tolerance: float

    @property
    def first(self) -> Difference | None:
        """The first stage that differs by more than the tolerance, or None."""
        return next((one for one in self.differences if one.exceeds(self.tolerance)), None)

    def __str__(self) -> str:
        width = max(len(one.stage) for one in self.differences)
        lines = [f"{'stage':{width}}  largest difference"]
        for one in self.differences:
            verdict = "differs" if one.exceeds(self.tolerance) else "same"
            lines.append(f"{one.stage:{width}}  {one.largest:18.1e}  {verdict}")
        if self.unseen:
            lines.append(f"not compared, because only one of them shows it: {', '.join(self.unseen)}")
        lines.append(f"the first that differs is {self.first}" if self.first else "no stage differs")
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
    for name, mine, its in zip(SHAPE, _shape(model), _shape(other), strict=True):
        if mine != its:
            raise InputError(
                f"{name} is {mine} in one model and {its} in the other; compare models of one shape"
            )
    ours, theirs = trace(model, batch), trace(other, batch)
    differences = tuple(difference(stage, ours[stage], theirs[stage]) for stage in ours if stage in theirs)
    unseen = sorted({stage.rpartition(", ")[2] for stage in ours.keys() ^ theirs.keys()})
    return Comparison(differences, tuple(unseen), tolerance)


def _shape(model: nn.Module) -> list[int]:
    _is_ours(model)  # or there may be no config
    return [getattr(model.config, name) for name in SHAPE]


# The command


TEXTS = ["A man is eating.", "The film was long, and the end of it surprised nobody at all."]
PAIRS = ["Someone eats something.", "It was short."]
THEIRS = "hf:"


def load(name: str, allow_pickle: bool) -> Any:
    """Load a checkpoint into minbert's BertModel or, if it is called hf:NAME, into that of transformers.

    Raises InputError if there is no such checkpoint, or no transformers.
    """
    if not name.startswith(THEIRS):
        return BertModel.from_pretrained(name, allow_pickle)
    folder = hub.resolve(name.removeprefix(THEIRS), allow_pickle)
    try:
        import transformers
    except ImportError:
        raise InputError(f'{name}: transformers is missing; run: pip install "transformers>=4.48"') from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loader: Any = transformers.BertModel
    settings = {"attn_implementation": "eager", "use_safetensors": None if allow_pickle else True}
    try:
        model, keys = loader.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **settings
        )
    except Exception as error:  # it reads many formats, each of which fails in its own ways
        raise InputError(f"{name}: transformers cannot load it ({short_line(error)})") from None
    if keys["missing_keys"]:
        raise InputError(f"{name}: lacks {short_line(', '.join(sorted(keys['missing_keys'])))}")
    return model


def compare_checkpoints(given: argparse.Namespace) -> bool:
    """Print where two checkpoints part on some texts. Return whether they are the same."""
    first, second = (load(name, given.allow_pickle) for name in given.checkpoints)
    tokenizer = BertTokenizer.from_pretrained(given.checkpoints[0].removeprefix(THEIRS))
    most = min(model.config.max_position_embeddings for model in (first, second))
    pairs = given.pair or (None if given.text else PAIRS)
    batch = tokenizer(given.text or TEXTS, pairs, max_length=most)
    found = compare(first, second, batch, given.tolerance)
    print(found)
    return found.first is None


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two checkpoints, or make the sanity check. Return the exit status: 0 if all is the same, 1 if
    not, 2 after a mistake in the input."""
    parser = Parser(
        "python -m minbert.comparison", description="Print where two BERTs part, or check this one."
    )
    name = f"a name, a folder or ORG/NAME; with {THEIRS} before it, transformers runs it"
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help=f"two of them: {name}")
    parser.add_argument("--text", nargs="+", help="texts to run them on (default: two pairs)")
    parser.add_argument("--pair", nargs="+", help="a partner for each text")
    tolerance = f"the largest difference, relative to a stage's largest number (default: {TOLERANCE})"
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=tolerance)
    parser.add_argument("--allow-pickle", action="store_true", help=f"accept a {hub.PICKLE} (can run code)")
    sanity = "instead, check this BERT against recorded outputs of Hugging Face's, offline"
    parser.add_argument("--sanity", action="store_true", help=sanity)

    def work() -> int:
        given = parser.parse_args(arguments)
        check_arguments(parser, given)
        same = print_sanity() if given.sanity else compare_checkpoints(given)
        return 0 if same else 1

    return carry_out(work)


def check_arguments(parser: Parser, given: argparse.Namespace) -> None:
    """Raise InputError unless these arguments go together."""
    if given.sanity:
        if given != parser.parse_args(["--sanity"]):
            parser.error("--sanity stands alone")
        return
    if len(given.checkpoints) != 2:
        parser.error("name two checkpoints, or --sanity alone")
    if given.pair and not given.text:
        parser.error("--pair needs --text")
    if not given.tolerance >= 0:
        parser.error("--tolerance is a number, at least 0")


if __name__ == "__main__":
    sys.exit(main())
