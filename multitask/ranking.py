"""Training an encoder with MNRL before any head sees it ("Jack of All Trades, Master of Some: Improving BERT
for Multitask Learning", Stanford CS224N, section 3.4); the loss itself is in mnrl.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multitask.config import Mnrl
from multitask.data.tokens import Examples, Tokens
from multitask.distributed import part_of
from multitask.inference import in_length_order, to_device
from multitask.methods.mnrl import draw_groups, group_loss, knn_accuracy, retrieval_accuracy
from multitask.methods.sampling import random_generator
from multitask.model import MultitaskBert
from multitask.train import Terms


class Ranking:
    """The `Method` of mnrl: sentences of one class come together, those of others move apart."""

    def __init__(
        self, model: MultitaskBert, train: Examples, dev: Examples, mnrl: Mnrl, accumulate: int, seed: int
    ):
        self.model, self.train, self.dev = model, train, dev
        self.mnrl, self.accumulate, self.seed = mnrl, accumulate, seed

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"model": self.model}

    @property
    def evaluated(self) -> Sequence[Examples]:
        return self.train, self.dev

    def planned(self, step: int) -> Iterator[np.ndarray]:
        """Yield the rows of each batch of an update."""
        generator = random_generator(self.seed, "groups", step)
        for _ in range(self.accumulate):
            yield draw_groups(self.train.labels, self.mnrl.groups, generator)

    def losses(self, step: int) -> Iterator[tuple[Tensor, Terms]]:
        self.model.train()
        for rows in self.planned(step):
            part, weight = part_of(self.mnrl.groups)
            mine = rows.reshape(self.mnrl.groups, -1)[part]
            inputs = self.train.tokens.batch(mine.ravel(), self.model.tokenizer.pad_token_id)
            loss = weight * group_loss(vectors_of(self.model, inputs), len(mine), self.mnrl.scale)
            yield loss, {"objective/all": loss.item()}

    def after_update(self, step: int) -> None:
        pass

    def evaluate(self, step: int) -> dict[str, Any]:
        """Return how well the nearest sentence, and the nearest training sentences, tell a dev sentence's
        class."""
        train, dev = (sentence_vectors(self.model, examples.tokens) for examples in (self.train, self.dev))
        knn = knn_accuracy(train, self.train.labels, dev, self.dev.labels)
        return {"dev": {"retrieval": retrieval_accuracy(dev, self.dev.labels), "knn": knn, "score": knn}}

    def describe(self, record: Mapping[str, Any]) -> str:
        scores = record["dev"]
        return f"same class nearest {scores['retrieval']:.3f}, kNN probe {scores['knn']:.3f}"

    def warnings(self, record: Mapping[str, Any]) -> Sequence[str]:
        return ()

    def rows(self, step: int) -> str:
        return f"rows {', '.join(map(str, np.concatenate(list(self.planned(step))) + 1))}"


def vectors_of(model: MultitaskBert, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the sentence vectors (B, H) of a padded batch."""
    return model.pooled_from_embeddings(*model.encoder.embed(**to_device(inputs, model.device)))


@torch.inference_mode()
def sentence_vectors(model: MultitaskBert, tokens: Tokens) -> Tensor:
    """Return the sentence vectors (N, H) of tokenised examples, on the CPU and in their own order; leave the
    model in evaluation mode."""
    model.eval()
    return in_length_order(tokens, model.tokenizer.pad_token_id, partial(vectors_of, model))
