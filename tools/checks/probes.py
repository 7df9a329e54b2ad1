"""The probes: each runs one part of the assignment on small random inputs and notes what it computes.

The same probe is run three times: on the library, which gives the numbers that are right; on the library with
a classic mistake planted in it, which gives the numbers by which that mistake is recognised; and on the
student's code. Whatever else a part calls is replaced by a simple stand-in, so that it can be checked while
the others are still to do.

Modules are imported inside the probes, so that an error in one file spoils the parts in that file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"  # in the assignment's folder


class Unfit(Exception):
    """What a part returns, or keeps, is not what its docstring says; the message says how."""


class Steps(dict[str, Tensor]):
    """What a part computes, by name, in the order of computation; `axes` names the dimensions of each."""

    def __init__(self) -> None:
        super().__init__()
        self.axes: dict[str, str] = {}

    def note(self, name: str, value: Any, axes: str = "") -> None:
        """Add a step: a tensor or a number. Raises Unfit if it is something else."""
        if isinstance(value, bool | int | float | np.ndarray | np.number):
            value = torch.as_tensor(value)
        if not isinstance(value, Tensor):
            raise Unfit(f"{name}: is of type {type(value).__name__}, not a tensor")
        self[name] = value.detach().clone()
        self.axes[name] = axes


class Draw:
    """Random inputs, a function of the seed and the part's name."""

    def __init__(self, seed: int, part: str):
        # RandomState is frozen: it gives the same numbers with every version of numpy.
        self.random = np.random.RandomState([seed, crc32(part.encode())])

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.random.standard_normal(shape).astype(np.float32))

    def fill(self, module: nn.Module) -> None:
        """Give random values to every parameter of a module."""
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(self.normal(*parameter.shape))


Probe = Callable[[Draw, Steps], None]


class Dropping(nn.Module):
    """A stand-in for dropout, by which the result tells what has gone through it and what has not: the
    elements of a row are multiplied by 2 and 3 in turn."""

    p = 0.3  # what torch's dropout function is to be called with

    def forward(self, x: Tensor) -> Tensor:
        return x * (2 + torch.arange(x.shape[-1]) % 2) if self.training else x


@contextmanager
def dropping(bert: Any) -> Iterator[None]:
    """A context in which the dropout functions of torch and of the module `bert`, too, do what `Dropping`
    does: a part may call one with the probability of its layer."""

    def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if p != Dropping.p:
            raise Unfit(f"dropout with p = {p:g}, not with that of the layer: use self.dropout")
        return Dropping().train(training)(x)

    with patch.object(nn.functional, "dropout", dropout), patch.object(bert, "drop", dropout, create=True):
        yield


def pair(found: Any, what: str, kinds: tuple[type, type] = (Tensor, Tensor)) -> tuple[Any, Any]:
    """Return the two things that a part returns, such as "the context and the weights". Raises Unfit if it
    returns something else, or these in the other order, where their types tell it."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        length = f" of {len(found)}" if isinstance(found, tuple | list) else ""
        raise Unfit(f"returns {type(found).__name__}{length}, not a tuple of two: {what}")
    if kinds[0] is not kinds[1] and isinstance(found[0], kinds[1]):
        raise Unfit(f"returns a tuple of two in the wrong order: it is {what}")
    return found[0], found[1]


TAKES, MAKES = "takes", "makes"


@contextmanager
def noting(steps: Steps, *watched: tuple[str, nn.Module, str], padded: Any = None) -> Iterator[None]:
    """Note what modules take or make, each under a name, while the context lasts. It is packed, (T, ...), or,
    where a packing is given as `padded`, it may be (B, L, ...), too."""

    def note(way: str, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        value = inputs[0] if way == TAKES else output
        if padded is not None and value.shape[:2] == padded.mask.shape:
            value = padded.pack(value)
        steps.note(name, value, "token dimension")

    hooks = [module.register_forward_hook(partial(note, way, name)) for way, module, name in watched]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# The encoder


def attention(draw: Draw, steps: Steps) -> None:
    from minbert import bert

    query, key, value = draw.normal(2, 2, 3, 4), draw.normal(2, 2, 5, 4), draw.normal(2, 2, 5, 4)
    seen = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])[:, None, None].bool()  # (B, 1, 1, L)
    hiding = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]])[:, None, None] * -10_000.0
    masks = {
        "no mask": None,
        "a float mask": draw.normal(2, 1, 3, 5),
        "a float mask of 0 and -10,000": hiding,
        "a boolean mask": seen,
    }
    for case, mask in masks.items():
        context, weights = pair(bert.attention(query, key, value, mask), "the context and the weights")
        steps.note(f"weights with {case}", weights, "example head query key")
        steps.note(f"context with {case}", context, "example head query dimension")
    # Dropout may be drawn in any way. With the unit matrix, twice, as the values, the context shows what has
    # become of each of some thousands of weights.
    query, key, value = draw.normal(1, 1, 64, 4), draw.normal(1, 1, 64, 4), torch.eye(64).repeat(1, 2)
    value = value[None, None]
    torch.manual_seed(int(draw.random.randint(2**31)))
    _, before = bert.attention(query, key, value)
    context, weights = bert.attention(query, key, value, None, dropout=0.4)
    steps.note("whether the weights with dropout are those from before it", torch.allclose(weights, before))
    once, again = context.split(64, dim=-1)
    steps.note("whether dropout falls on the weights, not on the context", torch.allclose(once, again))
    kept = once != 0
    steps.note("the share of the weights that dropout .4 keeps", tenths(kept.float().mean()))
    steps.note("by how much dropout .4 multiplies those", tenths((once / before)[kept].mean()))


def tiny_config() -> Any:
    from minbert.config import BertConfig

    return BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16,
    )  # fmt: skip


def embed(draw: Draw, steps: Steps) -> None:
    from minbert import bert
    from minbert.bert import BertEmbeddings
    from minbert.packing import Packing

    embeddings = BertEmbeddings(tiny_config())
    draw.fill(embeddings)
    embeddings.dropout = Dropping()  # type: ignore[assignment]
    ids = torch.tensor([[2, 7, 5, 9, 3], [2, 8, 3, 0, 0]])
    types = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    packing = Packing.from_mask(ids != 0)
    watched = TAKES, embeddings.norm, "the sum, before the norm"
    with dropping(bert), noting(steps, watched, padded=packing):
        result = embeddings(ids, types, packing)
    steps.note("the result", result, "token dimension")


class Context(nn.Module):
    """A stand-in for self-attention."""

    def forward(self, hidden_states: Tensor, packing: Any, first_only: bool = False) -> Any:
        rows = hidden_states[packing.first] if first_only else hidden_states
        return rows.flip(-1) + 0.5, [rows[:, :1]]


def layer(draw: Draw, steps: Steps) -> None:
    from minbert import bert
    from minbert.bert import BertLayer
    from minbert.packing import Packing

    layer = BertLayer(tiny_config())
    draw.fill(layer)
    layer.attention = Context()  # type: ignore[assignment]
    layer.dropout = Dropping()  # type: ignore[assignment]
    packing = Packing.from_mask(torch.tensor([[1, 1, 1], [1, 1, 0]]))
    returned = "the result and the weights"
    with (
        dropping(bert),
        noting(
            steps,
            (MAKES, layer.attention_output, "attention output"),
            (TAKES, layer.intermediate, "add-and-norm"),
            (TAKES, layer.output, "intermediate, after GELU"),
            (MAKES, layer.output, "feed-forward output"),
        ),
    ):
        result, weights = pair(layer(draw.normal(5, 8), packing), returned, (Tensor, list))
    steps.note("second add-and-norm", result, "token dimension")
    steps.note("attention weights", weights[0], "token dimension")
    try:
        with dropping(bert):
            first, _ = pair(layer(draw.normal(5, 8), packing, first_only=True), returned, (Tensor, list))
    except Exception as error:
        error.add_note("in the call with first_only=True")
        raise
    steps.note("the result with first_only", first, "example dimension")


def model(draw: Draw, steps: Steps) -> None:
    """The whole encoder, on two sentences and a padded one: every stage of every layer."""
    from minbert import BertModel
    from minbert.comparison import recording

    model = BertModel.from_pretrained(TINY)
    ids = torch.from_numpy(draw.random.randint(5, model.config.vocab_size, (3, 6)))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    types = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    axes = {2: "example dimension", 3: "example position dimension", 4: "example head query key"}
    with torch.no_grad(), recording(model, batch) as stages:
        try:
            model(**batch)
        finally:
            for name, stage in stages.items():
                steps.note(name, stage, axes.get(stage.ndim, ""))


# The optimizer


def adamw(draw: Draw, steps: Steps) -> None:
    from minbert.optim import AdamW

    cases: dict[str, dict[str, Any]] = {
        "": {"weight_decay": 0.5},
        " without weight decay": {},
        " with correct_bias=False": {"weight_decay": 0.5, "correct_bias": False},
    }
    for case, settings in cases.items():
        parameter = nn.Parameter(draw.normal(2, 3))
        optimizer = AdamW([parameter], lr=0.1, betas=(0.8, 0.95), eps=0.1, **settings)
        for number in (1, 2, 3):
            parameter.grad = draw.normal(2, 3)
            optimizer.step(scale=0.5 if number == 3 else 1.0)
            state = optimizer.state[parameter]
            step = f"update {number}{' (scale .5)' if number == 3 else ''}{case}"
            for key in ("exp_avg", "exp_avg_sq"):
                if key not in state:
                    raise Unfit(f"self.state[parameter] has no {key!r} after {step}: see the docstring")
                steps.note(f"{key} after {step}", state[key], "row column")
            steps.note(f"the parameter after {step}", parameter, "row column")
            steps.note(f"the gradient after {step}", parameter.grad, "row column")


# The methods


def heads(draw: Draw, steps: Steps) -> None:
    from multitask.data.tasks import Task
    from multitask.model import MultitaskBert

    kinds: dict[str, dict[str, Any]] = {
        "classification": {"num_classes": 3},
        "regression": {"low": 0, "high": 20},
        "binary": {},
    }
    tasks = {
        kind: Task(f"a_{kind}", kind=kind, texts=("a",), label="y", files="{split}", **settings)  # type: ignore[arg-type]
        for kind, settings in kinds.items()
    }

    class Encoder(nn.Module):
        config = tiny_config()

    tokenizer = SimpleNamespace(vocab_size=11)
    model = MultitaskBert(Encoder(), tokenizer, tasks, "mean")  # type: ignore[arg-type]
    draw.fill(model.heads)
    pooled = draw.normal(4, 8)
    model.pooled_from_embeddings = lambda embeddings, packing: pooled  # type: ignore[method-assign]
    for case, dropout in (("", nn.Identity()), (", with dropout", Dropping())):
        model.dropout = dropout  # type: ignore[assignment]
        for task in tasks:
            logits = model.logits_from_embeddings(task, draw.normal(9, 8), None)  # type: ignore[arg-type]
            steps.note(f"logits of a {task}{case}", logits, "example output")


def annealed(draw: Draw, steps: Steps) -> None:
    from multitask.methods import sampling

    for epochs in (5, 3, 1):
        for epoch in range(1, epochs + 1):
            alpha = sampling.annealed_alpha(epoch, epochs)
            steps.note(f"alpha in epoch {epoch} of {epochs}", float(alpha))
    sizes = [int(size) for size in draw.random.randint(10, 5000, 3)]
    for alpha in (1.0, 0.6, 0.2, 0.0):
        steps.note(f"probabilities with alpha {alpha:g}", sampling.task_probabilities(sizes, alpha), "task")


def gradients(loss: Tensor, **inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradient of a loss on each input, by name: zeros where it has none."""
    found = torch.autograd.grad(loss, tuple(inputs.values()), materialize_grads=True)
    yield from zip(inputs, found, strict=True)


def symmetric_kl(draw: Draw, steps: Steps) -> None:
    from multitask.methods import losses

    for case, columns in (("three classes", 3), ("a single column", 1)):
        p, q = draw.normal(4, columns).requires_grad_(), draw.normal(4, columns).requires_grad_()
        loss = losses.symmetric_kl(p, q)
        steps.note(f"{case}: the divergence", loss)
        for name, gradient in gradients(loss, P=p, Q=q):
            steps.note(f"{case}: its gradient on {name}", gradient, "example class")


def smart(draw: Draw, steps: Steps) -> None:
    from multitask.methods import smart

    gradient = draw.normal(3, 4)
    gradient[1] = 0
    for name, p in smart.NORMS.items():
        steps.note(f"steepest, p = {name}", smart.steepest(gradient, p), "token dimension")
    inside_and_outside = draw.normal(3, 4) * torch.tensor([[0.1], [1.0], [3.0]])
    for name, p in smart.NORMS.items():
        steps.note(f"project, p = {name}", smart.project(inside_and_outside, 0.5, p), "token dimension")
    weight = draw.normal(4, 4)
    real = torch.tensor([1.0, 1.0, 0.0])[:, None]
    for mode, name in (("ball", "2"), ("ball", "inf"), ("normalize", "2"), ("normalize", "inf")):
        start = (0.2 * draw.normal(3, 4) * real).requires_grad_()

        def divergence(noise: Tensor) -> Tensor:
            return ((noise @ weight).sin() + noise.roll(1, 0) * noise).sum()

        ascended = smart.ascend(divergence, start, real, 0.5, 0.4, smart.NORMS[name], mode)
        noise, gradient = pair(ascended, "the new noise and the gradient")
        case = f"ascend, {mode}, p = {name}"
        steps.note(f"{case}: the gradient", gradient, "token dimension")
        steps.note(f"{case}: the new noise", noise, "token dimension")
        steps.note(f"{case}: whether the new noise requires a gradient", noise.requires_grad)


def mnrl(draw: Draw, steps: Steps) -> None:
    from multitask.methods import mnrl

    for scale in (20.0, 1.0):
        a, b = draw.normal(4, 3).requires_grad_(), draw.normal(4, 3).requires_grad_()
        loss = mnrl.multiple_negatives_ranking_loss(a, b, scale)
        steps.note(f"the loss with scale {scale:g}", loss)
        for name, gradient in gradients(loss, a=a, b=b):
            steps.note(f"its gradient on {name} with scale {scale:g}", gradient, "sentence dimension")


def teacher(draw: Draw, steps: Steps) -> None:
    from multitask.methods.bregman import MomentumTeacher

    student = nn.Linear(3, 2)
    draw.fill(student)
    teacher = MomentumTeacher(student, beta=0.9)
    for number in (1, 2):
        draw.fill(student)
        teacher.update()
        steps.note(f"the teacher's weight after update {number}", teacher.model.weight, "row column")
        steps.note(f"the student's weight after update {number}", student.weight, "row column")
        steps.note(f"the teacher's bias after update {number}", teacher.model.bias, "row")


def tenths(share: Tensor) -> float:
    return round(share.item(), 1)


def mlm(draw: Draw, steps: Steps) -> None:
    """Students draw differently, so only what does not depend on the draws is noted: exact counts, and shares
    of some thousands of tokens, rounded to tenths."""
    from minbert import mlm

    vocab_size, mask_id, lengths = 1000, 4, [64] * 500 + [1, 2, 3, 5, 9, 20, 40]
    special = torch.arange(vocab_size) < 5
    ids = torch.from_numpy(draw.random.randint(5, vocab_size, (len(lengths), 66)))
    last = torch.tensor(lengths)[:, None] + 1
    places = torch.arange(66)
    ids[:, 0] = 2  # [CLS], and behind the row [SEP] and padding
    ids = ids.where(places != last, 3).where(places <= last, 0)
    words = mlm.words_in(ids, special)
    given = ids.clone()
    seed = int(draw.random.randint(2**31))
    generator = torch.Generator().manual_seed(seed)
    masked, chosen = pair(
        mlm.mask_tokens(ids, words, mask_id, vocab_size, generator), "the ids and which are chosen"
    )
    if masked.dtype == torch.bool:
        raise Unfit("returns a tuple of two in the wrong order: it is the ids and which are chosen")
    again, _ = mlm.mask_tokens(ids, words, mask_id, vocab_size, torch.Generator().manual_seed(seed))
    steps.note("whether the given ids are left alone", torch.equal(ids, given))
    steps.note("how many special tokens are chosen", (chosen & (words < 0)).sum())
    steps.note("how many tokens change that are not chosen", ((masked != ids) & ~chosen).sum())
    changed = (masked != ids) & (masked != mask_id)
    for what, which in {
        "becomes [MASK]": masked == mask_id, "becomes another token": changed, "stays as it is": masked == ids
    }.items():  # fmt: skip
        steps.note(
            f"the share of the chosen tokens that {what}", tenths((which & chosen).sum() / chosen.sum())
        )
    steps.note("how many tokens are chosen, by row", chosen.sum(dim=1), "row")
    other = masked[changed].double().mean() / vocab_size
    steps.note("the mean of the other tokens, as a share of the vocabulary", tenths(other))
    place = (chosen[:500] * places).sum() / chosen[:500].sum() / 66
    steps.note("the mean place of the chosen tokens, as a share of the row", tenths(place))
    steps.note("whether an equal generator gives equal ids", torch.equal(masked, again))
    pairs = torch.where(words >= 0, words - (words + 1) % 2, -1)  # words of two tokens
    _, chosen = mlm.mask_tokens(ids, pairs, mask_id, vocab_size, torch.Generator().manual_seed(seed))
    halves = (chosen[:500, 1:65:2] != chosen[:500, 2:65:2]).sum()
    steps.note("with words of two tokens, how many are chosen by half", halves)


PROBES: dict[str, Probe] = {
    probe.__name__.replace("_", "-"): probe
    for probe in (
        attention, embed, layer, adamw, heads, annealed, symmetric_kl, smart, mnrl, teacher, mlm, model,
    )
}  # fmt: skip
