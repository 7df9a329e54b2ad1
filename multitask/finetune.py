"""Multitask fine-tuning: one task an update, task loss + lambda R + mu D (paper, sections 3.1 to 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from minbert.packing import Packing
from multitask import evaluate
from multitask.bregman import MomentumTeacher, beta_at
from multitask.config import Config
from multitask.data import Examples
from multitask.distillation import DISTILLATION_LOSSES
from multitask.distributed import Share, total
from multitask.losses import DIVERGENCES, LOSSES
from multitask.model import MultitaskBert
from multitask.sampling import (
    FULL_PASS,
    Batches,
    Plan,
    RowBatches,
    TokenBatches,
    expected_rows,
    pass_updates,
    random_generator,
    random_seed,
)
from multitask.smart import Divergence, adversarial_noise, ascent_gain
from multitask.tasks import Task
from multitask.train import Terms, epoch_steps

IDLE = 1e-2  # of the task loss's gradient: a regulariser with a shorter one does nothing
REGULARISERS = {"smart": "SMART", "bregman": "BPPO"}  # as metrics.jsonl and as a reader calls them
DIAGNOSE_EVERY = 100  # updates of a task; what is measured then costs passes of its own
SAMPLED_ROWS = 1000  # of each task's training rows, scored like dev's to show overfitting


@dataclass(frozen=True)
class Pass:
    """One pass of B examples through the model, cut at the seam where embeddings can be perturbed."""

    head: Callable[[Tensor, Packing], Tensor]  # embeddings (T, H) -> outputs (B, C), in the task's unit
    embeddings: Tensor  # (T, H), packed
    packing: Packing
    outputs: Tensor  # (B, C)

    def encode(self, embeddings: Tensor) -> Tensor:
        return self.head(embeddings, self.packing)

    def take(self, rows: Tensor) -> Pass:
        """The part of the pass that belongs to these rows, which are in order."""
        taken = torch.zeros(len(self.outputs), dtype=torch.bool, device=rows.device).index_fill_(
            0, rows, True
        )
        tokens = taken.repeat_interleave(self.packing.mask.sum(dim=1))
        packing = Packing.from_mask(self.packing.mask[rows])
        return Pass(self.head, self.embeddings[tokens], packing, self.outputs[rows])


class Finetuning:
    """The `Method` of pretrain, finetune and distill, where `taught` has a teacher's logits (N, C) on each
    task's training rows."""

    def __init__(
        self,
        model: MultitaskBert,
        train: Mapping[str, Examples],
        dev: Mapping[str, Examples],
        config: Config,
        taught: Mapping[str, Tensor] | None = None,
    ):
        assert config.steps_per_epoch is not None, "resolved before training starts"
        self.model, self.train, self.dev, self.config, self.taught = model, train, dev, config, taught
        self.names = list(train)
        self.sample = {
            name: examples.take(sampled_rows(task, len(examples)))
            for task, (name, examples) in enumerate(train.items())
        }
        self.teacher = MomentumTeacher(model, config.betas[0]) if config.bregman_weight else None
        self.total_steps = config.epochs * config.steps_per_epoch
        self.plan = plan_over(train, config)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"model": self.model} | ({"teacher": self.teacher.model} if self.teacher else {})

    @property
    def evaluated(self) -> Sequence[Examples]:
        times_dev = 1 if self.teacher is None else 2
        return [*self.sample.values(), *(times_dev * list(self.dev.values()))]

    def planned(self, step: int) -> tuple[str, list[np.ndarray]]:
        """The task of a step and the rows of its batches."""
        return self.names[self.plan.task(step)], self.plan.batches(step)

    def diagnoses(self, step: int) -> bool:
        """Whether the regularisers are measured in this update: each task's last one of an epoch, when
        the model has moved away from BPPO's teacher, and every hundredth before it."""
        return self.plan.later(step) % DIAGNOSE_EVERY == 0

    def losses(self, step: int) -> Iterator[tuple[Tensor, Terms]]:
        name, batches = self.planned(step)
        self.model.train()
        self.model.encoder.train(not self.model.frozen)
        seed = random_seed(self.config.seed, "noise", step)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        for batch in batches:
            share = Share.of(self.train[name].tokens.lengths_of(batch).tolist(), generator)
            rows = batch[share.rows]
            inputs, labels = collate(self.model, self.train[name], rows)
            taught = None if self.taught is None else self.taught[name][rows].to(self.model.device)
            yield self.objective(self.model.tasks[name], inputs, labels, taught, share, self.diagnoses(step))

    def objective(
        self,
        task: Task,
        inputs: Mapping[str, Tensor],
        labels: Tensor,
        taught: Tensor | None,
        share: Share,
        diagnose: bool,
    ) -> tuple[Tensor, Terms]:
        """L + lambda R + mu D on one batch, of which `inputs`, `labels` and `taught` are this process's
        share. With `diagnose`, also how strong R and D are: the norm of their gradient over that of L."""
        clean = self.forward(task, inputs)
        loss = total(LOSSES[task.kind](clean.outputs, labels / task.unit) * share.weight)
        terms = {f"loss/{task.name}": loss.item()}
        if taught is not None:
            weight, temperature = self.config.distill_weight, self.config.distill_temperature
            distance = DISTILLATION_LOSSES[task.kind](clean.outputs, taught / task.unit, temperature)
            distance = total(distance * share.weight)
            loss = (1 - weight) * loss + weight * distance
            terms[f"distill/{task.name}"] = distance.item()
        regularisers, found = self.regularisers(task, inputs, clean, share, diagnose)
        whole = loss
        for name, value in regularisers.items():
            whole = whole + value
            terms |= {f"{name}/{task.name}/{term}": known for term, known in found[name].items()}
        if diagnose and regularisers:
            for name, ratio in self.strengths(loss, regularisers).items():
                terms[f"{name}/{task.name}/gradient_ratio"] = ratio
        return whole, terms | {f"objective/{task.name}": whole.item()}

    def strengths(self, loss: Tensor, regularisers: Mapping[str, Tensor]) -> dict[str, float]:
        """The norm of each regulariser's gradient over that of the loss; none for an R that was skipped,
        which is a constant."""
        weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        of_loss = gradient_norm(loss, weights)
        moving = {name: value for name, value in regularisers.items() if value.requires_grad and of_loss > 0}
        ratios = {name: gradient_norm(value, weights) / of_loss for name, value in moving.items()}
        return {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)}

    def forward(self, task: Task, inputs: Mapping[str, Tensor]) -> Pass:
        embeddings, packing = self.model.encoder.embed(**inputs)

        def head(embeddings: Tensor, packing: Packing) -> Tensor:  # any range of values weighs the same
            return self.model.logits_from_embeddings(task.name, embeddings, packing) / task.unit

        return Pass(head, embeddings, packing, head(embeddings, packing))

    def regularisers(
        self, task: Task, inputs: Mapping[str, Tensor], clean: Pass, share: Share, diagnose: bool
    ) -> tuple[dict[str, Tensor], dict[str, Terms]]:
        """lambda R and mu D, of those that are on, and what is known of each. Dropout is off in all their
        passes: where the model has none, `clean` serves them too, else a second clean pass does, of the rows
        that are asked for."""
        config, divergence = self.config, DIVERGENCES[task.kind]
        if not config.smart_weight and self.teacher is None:
            return {}, {}
        smoothed = share.among(spread_rows(len(share.lengths), config.smart_rows))
        places = torch.from_numpy(np.searchsorted(share.rows, smoothed.rows)).to(self.model.device)
        values, found = {}, {}
        with without_dropout(self.model):
            if self.model.drops and self.teacher is None:
                smooth = self.forward(task, {name: tensor[places] for name, tensor in inputs.items()})
            else:
                clean = self.forward(task, inputs) if self.model.drops else clean
                smooth = clean if len(places) == len(share.rows) else clean.take(places)
            if config.smart_weight:
                r, found["smart"] = self.smoothness(smooth, divergence, smoothed, diagnose)
                values["smart"] = config.smart_weight * r
            if self.teacher is not None:
                averaged = self.teacher(task.name, inputs) / task.unit
                d = total(divergence(clean.outputs, averaged) * share.weight)
                values["bregman"], found["bregman"] = config.bregman_weight * d, {"d": d.item()}
        return values, found

    def smoothness(
        self, clean: Pass, divergence: Divergence, share: Share, diagnose: bool
    ) -> tuple[Tensor, Terms]:
        """R on the rows of a clean pass, this process's `share`, and what is known of the search for it; 0
        where a gradient was not finite, in whatever process."""

        def whole_divergence(p: Tensor, q: Tensor) -> Tensor:
            return total(divergence(p, q) * share.weight)

        noise, found = adversarial_noise(
            clean.encode,
            clean.embeddings,
            clean.outputs,
            lambda p, q: divergence(p, q) * share.batch_weight,
            **self.config.ascent(clean.embeddings.shape[1]),
            normal=share.normal(clean.embeddings),
        )
        means = torch.tensor([found.noise_norm, found.cosine, not found.finite], dtype=torch.float64)
        noise_norm, cosine, broken = total(means * share.token_weight).tolist()
        if broken:
            return clean.outputs.new_zeros(()), {"skipped": 1.0}
        r = whole_divergence(clean.encode(clean.embeddings + noise), clean.outputs)
        if not r.isfinite():
            return clean.outputs.new_zeros(()), {"skipped": 1.0}
        terms = {"r": r.item(), "noise_norm": noise_norm, "cosine": cosine, "skipped": 0.0}
        if diagnose:
            normal = share.normal(clean.embeddings)
            gain = ascent_gain(
                clean.encode, clean.embeddings, clean.outputs, whole_divergence, noise, r,
                self.config.smart_norm, normal,
            )  # fmt: skip
            terms |= {"gain": gain} if math.isfinite(gain) else {}
        return r, terms

    def after_update(self, step: int) -> None:
        if self.teacher is not None:
            self.teacher.beta = self.beta(step)
            self.teacher.update()

    def beta(self, step: int) -> float:
        return beta_at(step, self.total_steps, *self.config.betas)

    def evaluate(self, step: int) -> dict[str, Any]:
        """After `step` updates: scores and losses on dev, scores on the sampled training rows, and with BPPO
        the dev scores of the teacher's averaged weights."""
        tasks = self.model.tasks
        dev, sample = (evaluate.all_logits(self.model, data) for data in (self.dev, self.sample))
        found: dict[str, Any] = {
            "dev": evaluate.scores(tasks, dev, self.dev),
            "dev_loss": evaluate.losses(tasks, dev, self.dev),
            "train": evaluate.scores(tasks, sample, self.sample),
        }
        if self.teacher is not None:
            averaged = evaluate.all_logits(cast(MultitaskBert, self.teacher.model), self.dev)
            found |= {"teacher": evaluate.scores(tasks, averaged, self.dev), "beta": self.beta(step - 1)}
        return found

    def describe(self, record: Mapping[str, Any]) -> str:
        line = evaluate.summary(self.model.tasks, record["dev"])
        line += f"; score on training rows {record['train']['score']:.3f}"
        if "teacher" in record:
            line += f", of averaged weights on dev {record['teacher']['score']:.3f}"
        return line

    def warnings(self, record: Mapping[str, Any]) -> Iterator[str]:
        for part, name in REGULARISERS.items():
            found = record.get(part, {})
            for task, terms in found.items():
                if skipped := terms.get("skipped"):
                    yield f"{name} was skipped in {skipped} updates of {task}: a gradient was not finite"
            idle = [task for task, terms in found.items() if terms.get("gradient_ratio", 1.0) < IDLE]
            if idle:
                yield (
                    f"{name} is idle for {', '.join(idle)}: its gradient is under {IDLE:.0%} of the task "
                    "loss's; raise its weight, or leave it out"
                )

    def rows(self, step: int) -> str:
        name, batches = self.planned(step)
        return f"rows {', '.join(map(str, np.concatenate(batches) + 1))} of {name}"


def plan_over(train: Mapping[str, Examples], config: Config) -> Plan:
    """The updates of a run on these rows, in epochs as the settings want them."""
    sizes, walks = [len(examples) for examples in train.values()], walks_over(train, config)
    rows = [config.accumulate * walk.mean_rows for walk in walks]
    if config.sampling == FULL_PASS:
        steps = config.steps_per_epoch or sum(pass_updates(sizes, rows))
    else:
        steps = epoch_steps(sum(sizes), expected_rows(config.sampling, sizes, rows, config.epochs), config)
    return Plan(config.sampling, sizes, walks, config.accumulate, steps, config.epochs, config.seed)


def walks_over(train: Mapping[str, Examples], config: Config) -> list[Batches]:
    """Each task's walk through its rows, in batches as the settings want them."""
    return [
        RowBatches(config.seed, task, len(examples), config.batch_size)
        if config.max_tokens is None
        else TokenBatches(config.seed, task, examples.tokens.lengths, config.max_tokens)
        for task, examples in enumerate(train.values())
    ]


def sampled_rows(task: int, count: int) -> np.ndarray:
    """The training rows of a task that are scored, the same whatever the run's seed."""
    return np.sort(random_generator(0, "training sample", task).permutation(count)[:SAMPLED_ROWS])


def spread_rows(count: int, wanted: int | None) -> np.ndarray:
    """As many of a batch's rows as are wanted, all for None, at even distances. A batch's rows are in random
    order, so these are a random choice; and each process gets as even a part of them as of the batch."""
    wanted = min(count, wanted or count)
    return np.arange(wanted) * count // wanted


def gradient_norm(value: Tensor, weights: Sequence[Tensor]) -> float:
    """The norm of a loss's gradient with respect to these weights, before clipping."""
    gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    return total(flat).norm().item()


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
