"""Training an encoder with MNRL before any head sees it ("Jack of All Trades, Master of Some: Improving BERT
for Multitask Learning", Stanford CS224N, section 3.4); the loss itself is in mnrl.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multitask.config import Config
from multitask.data import Examples
from multitask.distributed import part_of, total
from multitask.evaluate import in_length_order, to_device
from multitask.mnrl import draw_groups, group_loss, knn_accuracy, retrieval_accuracy
from multitask.model import MultitaskBert
from multitask.sampling import random_generator
from multitask.train import Terms


class Ranking:
    """The `Method` of mnrl: sentences of one class come together, those of others move apart."""

    def __init__(self, model: MultitaskBert, train: Examples, dev: Examples, config: Config):
        self.model, self.train, self.dev, self.config = model, train, dev, config

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"model": self.model}

    @property
    def evaluated(self) -> Sequence[Examples]:
        return self.train, self.dev

    def planned(self, step: int) -> Iterator[np.ndarray]:
        """The rows of each batch of an update."""
        generator = random_generator(self.config.seed, "groups", step)
        for _ in range(self.config.accumulate):
            yield draw_groups(self.train.labels, self.config.groups, generator)

    def losses(self, step: int) -> Iterator[tuple[Tensor, Terms]]:
        self.model.train()
        for rows in self.planned(step):
            part, weight = part_of(self.config.groups)
            mine = rows.reshape(self.config.groups, -1)[part]
            inputs = self.train.tokens.batch(mine.ravel(), self.model.tokenizer.pad_token_id)
            loss = group_loss(self.vectors_of(inputs), len(mine), self.config.scale)
            whole = total(loss * weight)
            yield whole, {"objective/all": whole.item()}

    def vectors_of(self, inputs: Mapping[str, Tensor]) -> Tensor:
        inputs = to_device(inputs, self.model.device)
        return self.model.pooled_from_embeddings(*self.model.encoder.embed(**inputs))

    def after_update(self, step: int) -> None:
        pass

    def evaluate(self, step: int) -> dict[str, Any]:
        """How well the nearest sentence, and the nearest training sentences, tell a dev sentence's class."""
        train, dev = self.embeddings(self.train), self.embeddings(self.dev)
        knn = knn_accuracy(train, self.train.labels, dev, self.dev.labels)
        return {"dev": {"retrieval": retrieval_accuracy(dev, self.dev.labels), "knn": knn, "score": knn}}

    @torch.inference_mode()
    def embeddings(self, examples: Examples) -> Tensor:
        """(N, H), in the examples' own order."""
        self.model.eval()
        return in_length_order(examples.tokens, self.model.tokenizer.pad_token_id, self.vectors_of)

    def describe(self, record: Mapping[str, Any]) -> str:
        scores = record["dev"]
        return f"same class nearest {scores['retrieval']:.3f}, kNN probe {scores['knn']:.3f}"

    def warnings(self, record: Mapping[str, Any]) -> Sequence[str]:
        return ()

    def rows(self, step: int) -> str:
        return f"rows {', '.join(map(str, np.concatenate(list(self.planned(step))) + 1))}"
