"""Multitask fine-tuning: one task an update, task loss + lambda R + mu D (paper, sections 3.1 to 3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from multitask import evaluate
from multitask.bregman import MomentumTeacher, beta_at
from multitask.config import Config
from multitask.data import Examples
from multitask.distributed import Share, total
from multitask.losses import DIVERGENCES, LOSSES
from multitask.model import MultitaskBert
from multitask.sampling import Batches, Plan, RowBatches, TokenBatches, random_seed
from multitask.smart import Divergence, Encode, adversarial_noise, ascent_gain
from multitask.tasks import Task
from multitask.train import Terms

IDLE = 1e-3  # of the task loss: lambda R below it does nothing
COMPARE_EVERY = 100  # updates of a task between comparisons with random noise, which cost a pass


class Finetuning:
    """The `Method` of pretrain and finetune."""

    def __init__(
        self,
        model: MultitaskBert,
        train: Mapping[str, Examples],
        dev: Mapping[str, Examples],
        config: Config,
    ):
        assert config.steps_per_epoch is not None, "resolved before training starts"
        self.model, self.train, self.dev, self.config = model, train, dev, config
        self.names = list(train)
        self.teacher = MomentumTeacher(model, config.betas[0]) if config.bregman_weight else None
        self.total_steps = config.epochs * config.steps_per_epoch
        self.sizes = [len(train[name]) for name in self.names]
        walks = walks_over(train, config)
        self.plan = Plan(
            config.sampling, self.sizes, walks, config.accumulate,
            config.steps_per_epoch, config.epochs, config.seed,
        )  # fmt: skip

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"model": self.model} | ({"teacher": self.teacher.model} if self.teacher else {})

    @property
    def evaluated(self) -> Sequence[Examples]:
        return list(self.dev.values())

    def planned(self, step: int) -> tuple[str, list[np.ndarray]]:
        """The task of a step and the rows of its batches."""
        return self.names[self.plan.task(step)], self.plan.batches(step)

    def compares(self, step: int) -> bool:
        """Whether SMART's ascent is compared with random noise: at each task's first update of an epoch, and
        every hundredth after."""
        return self.plan.earlier(step) % COMPARE_EVERY == 0

    def losses(self, step: int) -> Iterator[tuple[Tensor, Terms]]:
        name, batches = self.planned(step)
        self.model.train()
        self.model.encoder.train(not self.model.frozen)
        seed = random_seed(self.config.seed, "noise", step)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        for batch in batches:
            share = Share.of(self.train[name].tokens.lengths_of(batch).tolist(), generator)
            inputs, labels = collate(self.model, self.train[name], batch[share.rows])
            yield self.objective(self.model.tasks[name], inputs, labels, share, self.compares(step))

    def objective(
        self,
        task: Task,
        inputs: Mapping[str, Tensor],
        labels: Tensor,
        share: Share,
        compare: bool,
    ) -> tuple[Tensor, Terms]:
        """The loss to minimise on one batch, of which `inputs` and `labels` are this process's share. Without
        dropout one clean pass serves all three terms."""
        model, config = self.model, self.config

        def divergence(p: Tensor, q: Tensor) -> Tensor:  # this share's part of the mean over the batch
            return DIVERGENCES[task.kind](p, q) * share.weight

        def outputs(embeddings: Tensor) -> Tensor:  # in the task's unit, so that any range weighs the same
            return model.logits_from_embeddings(task.name, embeddings, packing) / task.unit

        embeddings, packing = model.encoder.embed(**inputs)
        clean = outputs(embeddings)
        loss = total(LOSSES[task.kind](clean, labels / task.unit) * share.weight)
        terms = {f"loss/{task.name}": loss.item()}
        if not config.smart_weight and self.teacher is None:
            return loss, terms
        with without_dropout(model):
            if model.drops:
                embeddings, packing = model.encoder.embed(**inputs)
                clean = outputs(embeddings)
            if config.smart_weight:
                r, found = self.smoothness(outputs, embeddings, clean, divergence, share, compare)
                loss = loss + config.smart_weight * r
                terms |= {f"smart/{task.name}/{name}": value for name, value in found.items()}
            if self.teacher is not None:
                d = total(divergence(clean, self.teacher(task.name, inputs) / task.unit))
                loss = loss + config.bregman_weight * d
                terms[f"bregman/{task.name}"] = d.item()
        return loss, terms

    def smoothness(
        self,
        outputs: Encode,
        embeddings: Tensor,
        clean: Tensor,
        divergence: Divergence,
        share: Share,
        compare: bool,
    ) -> tuple[Tensor, Terms]:
        """R, and what is known of the search for it; 0 where a gradient was not finite, in whatever process.
        `divergence` gives this process's part of l."""

        def whole_divergence(p: Tensor, q: Tensor) -> Tensor:
            return total(divergence(p, q))

        noise, found = adversarial_noise(
            outputs, embeddings, clean, divergence, **self.config.ascent, normal=share.normal(embeddings)
        )
        means = torch.tensor([found.noise_norm, found.cosine, not found.finite], dtype=torch.float64)
        noise_norm, cosine, broken = total(means * share.token_weight).tolist()
        if broken:
            return clean.new_zeros(()), {"skipped": 1.0}
        r = whole_divergence(outputs(embeddings + noise), clean)
        if not r.isfinite():
            return clean.new_zeros(()), {"skipped": 1.0}
        terms = {"r": r.item(), "noise_norm": noise_norm, "cosine": cosine, "skipped": 0.0}
        if compare:
            norm = self.config.smart_norm
            gain = ascent_gain(
                outputs, embeddings, clean, whole_divergence, noise, r, norm, share.normal(embeddings)
            )
            terms |= {"gain": gain} if math.isfinite(gain) else {}
        return r, terms

    def after_update(self, step: int) -> None:
        if self.teacher is not None:
            self.teacher.beta = beta_at(step, self.total_steps, *self.config.betas)
            self.teacher.update()

    def evaluate(self) -> dict[str, Any]:
        return evaluate.scores(self.model.tasks, evaluate.all_logits(self.model, self.dev), self.dev)

    def describe(self, record: Mapping[str, Any]) -> str:
        line, weight = evaluate.summary(self.model.tasks, record["dev"]), self.config.smart_weight
        idle = [
            name
            for name, terms in record.get("smart", {}).items()
            if weight * terms.get("r", 0.0) < IDLE * record["loss"][name]
        ]
        return line + f"; SMART adds under a thousandth to the loss of {', '.join(idle)}" * bool(idle)

    def rows(self, step: int) -> str:
        name, batches = self.planned(step)
        return f"rows {', '.join(map(str, np.concatenate(batches) + 1))} of {name}"


def walks_over(train: Mapping[str, Examples], config: Config) -> list[Batches]:
    """Each task's walk through its rows, in batches as the settings want them."""
    return [
        RowBatches(config.seed, task, len(examples), config.batch_size)
        if config.max_tokens is None
        else TokenBatches(config.seed, task, examples.tokens.lengths, config.max_tokens)
        for task, examples in enumerate(train.values())
    ]


def collate(model: MultitaskBert, examples: Examples, rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
    """These rows as one padded batch and its labels, on the model's device."""
    inputs = examples.tokens.batch(rows, model.tokenizer.pad_token_id)
    labels = torch.as_tensor(examples.labels[rows], dtype=torch.float32)
    return evaluate.to_device(inputs, model.device), labels.to(model.device)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and each module's own mode again after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
