"""The sanity check: this BERT and its AdamW beside recorded outputs of Hugging Face's, a line for each stage.

    python -m minbert.comparison --sanity

`tools/make_reference.py` has recorded what `transformers.BertModel` computes with the weights of
`weights/tiny`, so this needs neither transformers nor the network. AdamW goes beside `torch.optim.AdamW`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minbert.bert import BertModel, BertOutput
from minbert.checkpoint import contents, to_hugging_face
from minbert.errors import InputError, short_line
from minbert.mlm import BertForMaskedLM
from minbert.optim import AdamW

CHECKOUT = Path(__file__).resolve().parent.parent
TINY = CHECKOUT / "weights" / "tiny"
REFERENCE = CHECKOUT / "tests" / "reference.safetensors"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
EXACT = 2e-6  # on every number of the encoder, in float32
LOGITS = 1e-5  # sums over the width of a head whose weights are random
GRADIENT = 1e-5  # relative to a parameter's largest gradient
ALL_THE_SAME = "all the same as Hugging Face's BERT and torch's AdamW"
UPDATES, UPDATED = 1000, 1e-6  # of AdamW: how many, and how far its parameters may be off then


@dataclass(frozen=True)
class Check:
    """A line of the sanity check: how far a stage is off at most, and how far it may be."""

    stage: str
    largest: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether it is within the bound; NaN is not."""
        return self.largest <= self.bound

    def __str__(self) -> str:
        verdict = "same" if self.passed else "differs"
        return f"{self.stage:18}  {self.largest:18.1e}  {self.bound:7.0e}  {verdict}"


def read_reference() -> dict[str, Tensor]:
    """Return the recorded inputs, outputs and gradients by CASE.NAME. Raises InputError outside a
    checkout."""
    try:
        return {name: stored.read() for name, stored in contents(REFERENCE).items()}
    except (OSError, SafetensorError) as error:
        remedy = "run the check in a checkout of minbert, or compare with transformers"
        example = "python -m minbert.comparison minilm-l6 hf:minilm-l6"
        raise InputError(f"{REFERENCE}: {short_line(error)}; {remedy} ({example})") from None


def reference_loss(last_hidden_state: Tensor, pooler_output: Tensor, attention_mask: Tensor) -> Tensor:
    """Return a scalar to differentiate, of (B, L, H), (B, H) and (B, L): every output at a real token counts,
    hidden states not linearly."""
    return last_hidden_state[attention_mask.bool()].sin().sum() + pooler_output.sum()


def check_encoder(model: BertModel, recorded: Mapping[str, Tensor]) -> Iterator[Check]:
    """Compare embeddings, attention weights, layers and pooler with those recorded, at real tokens."""
    off: dict[str, list[Tensor]] = {}  # by the stage, in each case
    for case in ("single", "pair", "one"):
        batch = {name: recorded[f"{case}.{name}"] for name in INPUTS}
        real = batch["attention_mask"].bool()
        with torch.no_grad():
            output = model(**batch, output_hidden_states=True, output_attentions=True)
        for stage, name, ours in _outputs(output):
            theirs = recorded[f"{case}.{name}"]
            if name.startswith("attentions"):  # (B, A, L, L): the queries are the rows that are real or not
                ours, theirs = ours.transpose(1, 2), theirs.transpose(1, 2)
            distance = (ours - theirs).abs() if name == "pooler_output" else (ours - theirs).abs()[real]
            off.setdefault(stage, []).append(distance.max())
    for stage, found in off.items():
        yield Check(stage, _largest(found), EXACT)


def _largest(found: list[Tensor]) -> float:
    """Return the largest of these scalars, or NaN if one is; Python's max passes over NaN."""
    return torch.stack(found).max().item()


def _outputs(output: BertOutput) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (stage, name in the reference, tensor) in the order of computation."""
    assert output.hidden_states is not None and output.attentions is not None  # they were asked for
    embeddings, *states = output.hidden_states
    yield "embeddings", "hidden_states.0", embeddings
    for layer, (attended, state) in enumerate(zip(output.attentions, states, strict=True)):
        yield f"layer {layer}, weights", f"attentions.{layer}", attended
        yield f"layer {layer}", f"hidden_states.{layer + 1}", state
    if output.pooler_output is not None:
        yield "pooler", "pooler_output", output.pooler_output


def check_gradients(model: BertModel, recorded: Mapping[str, Tensor]) -> Iterator[Check]:
    """Compare the gradients of `reference_loss` with those recorded, relative to each parameter's largest."""
    batch = {name: recorded[f"pair.{name}"] for name in INPUTS}
    output = model(**batch)
    assert output.pooler_output is not None
    loss = reference_loss(output.last_hidden_state, output.pooler_output, batch["attention_mask"])
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)  # 0 where there is none
    found = to_hugging_face(dict(zip(names, gradients, strict=True)))
    prefix = "pair.gradients."
    theirs = {name.removeprefix(prefix): grad for name, grad in recorded.items() if name.startswith(prefix)}
    off = [(found[name] - grad).abs().max() / grad.abs().max() for name, grad in theirs.items()]
    yield Check("gradients", _largest(off), GRADIENT)


def check_adamw(model: BertModel, recorded: Mapping[str, Tensor]) -> Iterator[Check]:
    """Fit a small regression with this AdamW and torch's, and compare the parameters after every update."""
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
    generator = torch.Generator().manual_seed(0)
    start, truth = torch.randn(2, 4, 3, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = AdamW([ours], **settings), torch.optim.AdamW([theirs], **settings)
    off = []
    for _ in range(UPDATES):
        x = torch.randn(8, 3, generator=generator)
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = 2 * (x @ (weight.detach() - truth).T).T @ x / len(x)
            optimizer.step()
        off.append((ours - theirs).detach().abs().max())
    yield Check("AdamW", _largest(off), UPDATED)


@torch.no_grad()
def check_masked(model: BertModel, recorded: Mapping[str, Tensor]) -> Iterator[Check]:
    """Compare the logits of masked tokens with those recorded, given the head that is recorded with them."""
    masked = BertForMaskedLM(model)
    for name, parameter in masked.head.named_parameters():
        (theirs,) = to_hugging_face({f"head.{name}": parameter})
        parameter.copy_(recorded[f"masked.{theirs}"])
    batch = {name: recorded[f"masked.{name}"] for name in INPUTS}
    real = batch["attention_mask"].bool()
    off = (masked(**batch) - recorded["masked.logits"]).abs()[real]
    yield Check("masked tokens", off.max().item(), LOGITS)


CHECKS = (check_encoder, check_gradients, check_adamw, check_masked)


def print_sanity() -> bool:
    """Print a line for each stage, and return whether all are as recorded. Raises InputError outside a
    checkout."""
    recorded = read_reference()
    model = BertModel.from_pretrained(TINY)
    found = [one for check in CHECKS for one in check(model, recorded)]
    print(f"{'stage':18}  {'largest difference':18}  allowed", *found, sep="\n")
    wrong = next((one.stage for one in found if not one.passed), None)
    print(f"the first that differs is {wrong}" if wrong else ALL_THE_SAME)
    return wrong is None
