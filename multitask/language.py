"""Further pre-training: masked language modelling on the texts of a task's domain (Gururangan et al. 2020,
"Don't Stop Pretraining", https://arxiv.org/abs/2004.10964); head and masking are in minbert/mlm.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minbert.errors import InputError
from minbert.mlm import BertForMaskedLM, Masking
from minbert.tokenizer import BertTokenizer
from multitask.data.tokens import Examples, Tokens, length_sorted_batches
from multitask.distributed import add_up, part_of, rank, size
from multitask.inference import EVALUATION_BATCH, EVALUATION_TOKENS, to_device
from multitask.methods.sampling import Plan, random_seed
from multitask.model import MultitaskBert
from multitask.train import Terms

HELD_OUT_SEED = 0  # of the masks of held-out text: the same for every run, so that perplexities compare


class LanguageModel(MultitaskBert):
    """An encoder without tasks, and the head that guesses its masked tokens. What `save` writes is also a
    `BertForMaskedLM`."""

    def __init__(self, model: BertForMaskedLM, tokenizer: BertTokenizer, **settings: Any):
        super().__init__(model.bert, tokenizer, {}, **settings)
        self.language_head = model.head

    @property
    def language(self) -> BertForMaskedLM:
        return BertForMaskedLM(self.encoder, self.language_head)

    @property
    def layer_shapes(self) -> set[tuple[int, int]]:
        decoder = self.encoder.config.hidden_size, self.encoder.config.vocab_size
        return super().layer_shapes | {decoder}

    def guesses(self, chosen: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the logits (N, V) of a batch's chosen tokens, through encoder and head in the model's
        precision."""
        with self.autocast():
            return self.language.guesses(chosen, **batch).float()

    def save_encoder(self, directory: Path) -> None:
        self.language.save_pretrained(directory)


class MaskedLanguageModelling:
    """The `Method` of mlm: each update masks its texts anew, as a function of (seed, step)."""

    def __init__(
        self,
        model: LanguageModel,
        train: Mapping[str, Examples],
        dev: Mapping[str, Examples],
        plan: Plan,
        masking: Masking,
    ):
        self.model, self.train, self.dev, self.plan, self.masking = model, train, dev, plan, masking

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"model": self.model}

    @property
    def evaluated(self) -> Sequence[Examples]:
        return list(self.dev.values())

    def losses(self, step: int) -> Iterator[tuple[Tensor, Terms]]:
        """The mean over a batch's chosen tokens: each process adds up those of its rows."""
        self.model.train()
        tokens = list(self.train.values())[self.plan.task(step)].tokens
        generator = torch.Generator().manual_seed(random_seed(self.plan.seed, "masks", step))
        for batch, masked, chosen in self.masked(tokens, self.plan.batches(step), generator):
            part, weight = part_of(len(chosen))
            total, _ = self.summed({name: x[part] for name, x in batch.items()}, masked[part], chosen[part])
            loss = total * (weight > 0) / max(1, int(chosen.sum()))
            yield loss, {"objective/all": loss.item()}

    def masked(
        self, tokens: Tokens, batches: Iterable[np.ndarray], generator: torch.Generator
    ) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Yield batches of these rows: as they are, their masked ids, and which tokens are to be guessed."""
        for rows in batches:
            batch = tokens.batch(rows, self.model.tokenizer.pad_token_id)
            yield batch, *self.masking(batch["input_ids"], generator)

    def summed(self, batch: Mapping[str, Tensor], masked: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of the chosen tokens' losses, and how many the model has guessed."""
        inputs = to_device({**batch, "input_ids": masked, "chosen": chosen}, self.model.device)
        logits = self.model.guesses(inputs.pop("chosen"), inputs)
        truth = batch["input_ids"][chosen].to(logits.device)
        return F.cross_entropy(logits, truth, reduction="sum"), (logits.argmax(dim=-1) == truth).sum()

    def after_update(self, step: int) -> None:
        pass

    @torch.inference_mode()
    def evaluate(self, step: int) -> dict[str, Any]:
        """Return the perplexity of the held-out texts' masked tokens, e^loss, and how many of them are
        guessed. The score is 1 / perplexity: the mean probability, geometrically, of the right token."""
        self.model.eval()
        sums = {"loss": 0.0, "right": 0.0, "tokens": 0.0}
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        for examples in self.dev.values():
            rows = length_sorted_batches(examples.tokens.lengths, EVALUATION_BATCH, EVALUATION_TOKENS)
            ours = islice(self.masked(examples.tokens, rows, generator), rank(), None, size())
            for batch, masked, chosen in ours:
                total, right = self.summed(batch, masked, chosen)
                found = {"loss": total.item(), "right": right.item(), "tokens": chosen.sum().item()}
                sums = {name: sums[name] + value for name, value in found.items()}
        sums = add_up(sums)
        if not sums["tokens"]:
            raise InputError(
                "held-out text has no token to be guessed: --weights does not know its characters"
            )
        loss = sums["loss"] / sums["tokens"]
        perplexity = torch.tensor(loss, dtype=torch.float64).exp().item()  # infinite if it is too large
        scores = {"perplexity": perplexity, "accuracy": sums["right"] / sums["tokens"]}
        return {"dev": {**scores, "score": 1 / perplexity}, "dev_loss": {"all": loss}}

    def describe(self, record: Mapping[str, Any]) -> str:
        dev = record["dev"]
        return f"perplexity {dev['perplexity']:.2f}, masked tokens guessed {dev['accuracy']:.3f}"

    def warnings(self, record: Mapping[str, Any]) -> Sequence[str]:
        return ()

    def rows(self, step: int) -> str:
        name = list(self.train)[self.plan.task(step)]
        return f"{name}, rows {', '.join(map(str, np.concatenate(self.plan.batches(step)) + 1))}"


def log_frequencies(tokens: Iterable[Tokens], never: np.ndarray, vocab_size: int) -> Tensor:
    """Return the logarithm of each token's share of these texts, (V,), as if each token of the vocabulary
    stood once more in them: where a fresh head's bias starts. The ids in `never`, which are never to be
    guessed, do not count."""
    counts = sum(np.bincount(some.ids, minlength=vocab_size) for some in tokens) + np.ones(vocab_size)
    counts[never] = 1
    return torch.from_numpy(np.log(counts / counts.sum())).float()
