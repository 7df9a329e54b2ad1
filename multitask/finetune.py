"""Multitask fine-tuning: one task an update, task loss + lambda R + mu D ("Jack of All Trades, Master of
Some: Improving BERT for Multitask Learning", Stanford CS224N, sections 3.1 to 3.3)."""

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
from multitask.config import Bppo, Distillation, Rows, Smart, Training
from multitask.data.tasks import Task
from multitask.data.tokens import Examples
from multitask.distributed import Part
from multitask.inference import to_device
from multitask.methods.bregman import MomentumTeacher, beta_at
from multitask.methods.sampling import (
    FULL_PASS,
    Plan,
    RowBatches,
    TokenBatches,
    Walk,
    expected_rows,
    pass_updates,
    random_generator,
    random_seed,
)
from multitask.methods.smart import adversarial_noise, ascent_gain
from multitask.model import MultitaskBert
from multitask.train import Terms, epoch_steps

IDLE = 1e-2  # of the norm of the task loss's gradient: below it a regulariser has no effect
REGULARISERS = {"smart": "SMART", "bregman": "BPPO"}  # their names in metrics.jsonl and in messages
DIAGNOSE_EVERY = 100  # updates of a task; what is measured then costs passes of its own
SAMPLED_ROWS = 1000  # of each task's training rows, scored like dev's to show overfitting


@dataclass(frozen=True)
class Batch:
    """This process's rows of a batch, B of them, on the model's device."""

    task: Task
    inputs: Mapping[str, Tensor]  # input_ids, attention_mask, token_type_ids, each (B, L)
    labels: Tensor  # (B,), in the task's unit
    taught: Tensor | None  # a teacher's outputs (B, C), in the task's unit
    part: Part  # of all the batch's rows
    smoothed: Part  # of the rows that SMART takes
    places: Tensor  # of the smoothed rows among the B
    measured: bool  # whether to measure how strong the regularisers are
    noise: Tensor | None  # standard normal (T, H) for the smoothed rows' tokens: where SMART's search starts
    chance: Tensor | None  # another such draw, with which the search is compared, if the batch is measured


@dataclass(frozen=True)
class Pass:
    """One pass of B examples through the model, cut at the seam where embeddings can be perturbed."""

    head: Callable[[Tensor, Packing], Tensor]  # embeddings (T, H) -> outputs (B, C), in the task's unit
    embeddings: Tensor  # (T, H), packed
    packing: Packing
    outputs: Tensor  # (B, C)

    def outputs_of(self, embeddings: Tensor) -> Tensor:
        """Return the outputs (B, C) that other embeddings (T, H) would give."""
        return self.head(embeddings, self.packing)

    def take(self, rows: Tensor) -> Pass:
        """Return the part of the pass that belongs to these rows, which are in order."""
        if len(rows) == len(self.outputs):
            return self
        taken = torch.zeros(len(self.outputs), dtype=torch.bool, device=rows.device)
        taken.index_fill_(0, rows, True)
        tokens = taken.repeat_interleave(self.packing.mask.sum(dim=1))
        packing = Packing.from_mask(self.packing.mask[rows])
        return Pass(self.head, self.embeddings[tokens], packing, self.outputs[rows])


class Finetuning:
    """The `Method` of pretrain, finetune and distill."""

    def __init__(
        self,
        model: MultitaskBert,
        train: Mapping[str, Examples],
        dev: Mapping[str, Examples],
        plan: Plan,
        smart: Smart = Smart(),
        bppo: Bppo = Bppo(),
        distillation: Distillation = Distillation(),
        taught: Mapping[str, Tensor] | None = None,
    ):
        """`taught` are a teacher's logits (N, C) on each task's training rows, for distillation."""
        self.model, self.train, self.dev, self.plan = model, train, dev, plan
        self.smart, self.bppo, self.distillation, self.taught = smart, bppo, distillation, taught
        self.names = list(train)
        self.task_losses = {
            name: model.tasks[name].training_loss(examples.labels) for name, examples in train.items()
        }
        self.sample = {
            name: examples.take(sampled_rows(task, len(examples)))
            for task, (name, examples) in enumerate(train.items())
        }
        self.teacher = MomentumTeacher(model, bppo.betas[0]) if bppo.weight else None

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"model": self.model} | ({"teacher": self.teacher.model} if self.teacher else {})

    @property
    def evaluated(self) -> Sequence[Examples]:
        times_dev = 1 if self.teacher is None else 2
        return [*self.sample.values(), *(times_dev * list(self.dev.values()))]

    def losses(self, step: int) -> Iterator[tuple[Tensor, Terms]]:
        self.model.train()
        self.model.encoder.train(not self.model.frozen)
        name = self.names[self.plan.task(step)]
        measured = self.plan.later(step) % DIAGNOSE_EVERY == 0  # each task's last update of an epoch is
        seed = random_seed(self.plan.seed, "noise", step)
        generator = torch.Generator(self.model.device).manual_seed(seed)
        starts = random_generator(self.plan.seed, "smoothed rows", step)
        for rows in self.plan.batches(step):
            smoothed = self.smoothed_rows(len(rows), starts)
            yield self.objective(self.batch(name, rows, smoothed, generator, measured))

    def smoothed_rows(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return which of a batch's `count` rows SMART takes: the same in every process."""
        if self.smart.rows is None:
            return np.arange(count)
        return spread_rows(count, self.smart.rows, int(generator.integers(count)))

    def batch(
        self, name: str, rows: np.ndarray, smoothed: np.ndarray, generator: torch.Generator, measured: bool
    ) -> Batch:
        """Return this process's part of these rows of a task's training table, of which SMART takes those at
        the places `smoothed`. Its random numbers are drawn for the whole batch, in every process."""
        task, examples, device = self.model.tasks[name], self.train[name], self.model.device
        part = Part.of(examples.tokens.lengths_of(rows).tolist())
        for_smart = part.among(smoothed)
        places = torch.from_numpy(np.searchsorted(part.rows, for_smart.rows)).to(device)
        width, smart = self.model.encoder.config.hidden_size, self.smart.weight > 0
        noise = for_smart.normal(width, generator) if smart else None
        chance = for_smart.normal(width, generator) if smart and measured else None
        mine = rows[part.rows]
        inputs = to_device(examples.tokens.batch(mine, self.model.tokenizer.pad_token_id), device)
        labels = torch.as_tensor(examples.labels[mine], dtype=torch.float32).to(device) / task.unit
        taught = None if self.taught is None else self.taught[name][mine].to(device) / task.unit
        return Batch(task, inputs, labels, taught, part, for_smart, places, measured, noise, chance)

    def objective(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Return L + lambda R + mu D on this process's rows, weighted by its part of the batch, and what is
        known of each term; of a measured batch also the norm of each regulariser's gradient over that of L.

        R is left out if it is not finite (see `smoothness`). If L or D is not, neither is the whole, and the
        loop skips the update.
        """
        training = self.forward(batch.task, batch.inputs)
        loss, of_loss = self.task_loss(batch, training)
        with without_dropout(self.model):
            for_r, for_d = self.passes_without_dropout(batch, training)
            r, of_r = self.smoothness(batch, for_r)
            d, of_d = self.distance_to_teacher(batch, for_d)
        whole = loss + self.smart.weight * r + self.bppo.weight * d
        if batch.measured and (r.requires_grad or d.requires_grad):
            of_l = gradient_norm(loss, self.weights)
            of_r |= self.strength(batch, self.smart.weight * r, of_l)
            of_d |= self.strength(batch, self.bppo.weight * d, of_l)
        name, parts = batch.task.name, {"smart": of_r, "bregman": of_d}
        terms = {f"{part}/{name}/{term}": known for part, of in parts.items() for term, known in of.items()}
        return whole, of_loss | terms | {f"objective/{name}": whole.item()}

    def forward(self, task: Task, inputs: Mapping[str, Tensor]) -> Pass:
        embeddings, packing = self.model.encoder.embed(**inputs)

        def head(embeddings: Tensor, packing: Packing) -> Tensor:  # any range of values weighs the same
            return self.model.logits_from_embeddings(task.name, embeddings, packing) / task.unit

        return Pass(head, embeddings, packing, head(embeddings, packing))

    def task_loss(self, batch: Batch, training: Pass) -> tuple[Tensor, Terms]:
        """Return L: the loss on the labels or, of a student, its weighted mean with the loss on the teacher's
        outputs."""
        kind, name, part = batch.task.kind, batch.task.name, batch.part
        loss = self.task_losses[name](training.outputs, batch.labels) * part.weight
        terms = {f"loss/{name}": loss.item()}
        if batch.taught is not None:
            weight, temperature = self.distillation.weight, self.distillation.temperature
            distance = kind.distillation(training.outputs, batch.taught, temperature) * part.weight
            loss = (1 - weight) * loss + weight * distance
            terms[f"distill/{name}"] = distance.item()
        return loss, terms

    def passes_without_dropout(self, batch: Batch, training: Pass) -> tuple[Pass, Pass]:
        """Return the pass that R starts from, of the smoothed rows, and the one that D compares, of all rows.

        They are parts of the `training` pass if the model has no dropout. If it has, only the rows that are
        needed are computed again.
        """
        smart, bppo = self.smart.weight > 0, self.teacher is not None
        if self.model.drops and smart and not bppo:
            inputs = {name: tensor[batch.places] for name, tensor in batch.inputs.items()}
            return self.forward(batch.task, inputs), training
        steady = self.forward(batch.task, batch.inputs) if self.model.drops and bppo else training
        return steady.take(batch.places), steady

    def smoothness(self, batch: Batch, clean: Pass) -> tuple[Tensor, Terms]:
        """Return SMART's R on this process's smoothed rows, and what is known of the search for it.

        If a gradient of the search or R itself is not finite, R is left out of this process's loss: 0, with
        the term `skipped`. The other processes keep theirs, and the update takes place; the update's R and
        objective then lack that part.
        """
        if batch.noise is None:
            return clean.outputs.new_zeros(()), {}
        part, divergence = batch.smoothed, batch.task.kind.divergence
        # In mode "normalize" the size of the gradient matters: as in a mean over all rows of the batch.
        noise, found = adversarial_noise(
            clean.outputs_of,
            clean.embeddings,
            clean.outputs,
            lambda p, q: divergence(p, q) * part.batch_weight,
            **self.smart.ascent(clean.embeddings.shape[1]),
            normal=batch.noise,
        )
        r = divergence(clean.outputs_of(clean.embeddings + noise), clean.outputs)
        if not (found.finite and r.isfinite()):
            return clean.outputs.new_zeros(()), {"skipped": float(part.weight > 0)}
        norm, cosine = found.noise_norm * part.token_weight, found.cosine * part.token_weight
        terms = {"r": r.item() * part.weight, "noise_norm": norm, "cosine": cosine, "skipped": 0.0}
        if batch.chance is not None:
            passed = clean.outputs_of, clean.embeddings, clean.outputs, divergence
            gain = ascent_gain(*passed, noise, r, self.smart.norm, batch.chance)
            terms |= {"gain": gain * part.weight} if math.isfinite(gain) else {}
        return r * part.weight, terms

    def distance_to_teacher(self, batch: Batch, clean: Pass) -> tuple[Tensor, Terms]:
        """Return BPPO's D on this process's rows, and its value as a term."""
        if self.teacher is None:
            return clean.outputs.new_zeros(()), {}
        averaged = self.teacher(batch.task.name, batch.inputs) / batch.task.unit
        d = batch.task.kind.divergence(clean.outputs, averaged) * batch.part.weight
        return d, {"d": d.item()}

    def strength(self, batch: Batch, regulariser: Tensor, of_loss: float) -> Terms:
        """Return the norm of a regulariser's gradient over `of_loss`, that of the loss, as a term; none if
        the loss has no gradient, or the regulariser is off or was left out and thus a constant."""
        if not regulariser.requires_grad or not of_loss:
            return {}
        ratio = gradient_norm(regulariser, self.weights) / of_loss
        return {"gradient_ratio": ratio * batch.part.weight} if math.isfinite(ratio) else {}

    @property
    def weights(self) -> list[Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def after_update(self, step: int) -> None:
        if self.teacher is not None:
            self.teacher.beta = self.beta(step)
            self.teacher.update()

    def beta(self, step: int) -> float:
        return beta_at(step, self.plan.total_steps, *self.bppo.betas)

    def evaluate(self, step: int) -> dict[str, Any]:
        """Return scores and losses on dev and scores on the sampled training rows, after `step` updates; with
        BPPO also the dev scores of the teacher's averaged weights."""
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
                    yield f"{name} was left out of {skipped} updates of {task}: it was not finite"
            idle = [task for task, terms in found.items() if terms.get("gradient_ratio", 1.0) < IDLE]
            if idle:
                yield (
                    f"{name} is idle for {', '.join(idle)}: its gradient is under {IDLE:.0%} of the task "
                    "loss's; raise its weight, or leave it out"
                )

    def rows(self, step: int) -> str:
        rows = np.concatenate(self.plan.batches(step)) + 1
        return f"rows {', '.join(map(str, rows))} of {self.names[self.plan.task(step)]}"


def plan_over(train: Mapping[str, Examples], batches: Rows, training: Training) -> Plan:
    """Return the updates of a run on these rows, in the epochs that the settings ask for."""
    sizes = [len(examples) for examples in train.values()]
    walks: list[Walk] = [
        RowBatches(training.seed, task, len(examples), batches.batch_size)
        if batches.max_tokens is None
        else TokenBatches(training.seed, task, examples.tokens.lengths, batches.max_tokens)
        for task, examples in enumerate(train.values())
    ]
    rows = [training.accumulate * walk.mean_rows for walk in walks]
    if batches.sampling == FULL_PASS:
        steps = training.steps_per_epoch or sum(pass_updates(sizes, rows))
    else:
        expected = expected_rows(batches.sampling, sizes, rows, training.epochs)
        steps = epoch_steps(sum(sizes), expected, training.steps_per_epoch)
    return Plan(batches.sampling, sizes, walks, training.accumulate, steps, training.epochs, training.seed)


def sampled_rows(task: int, count: int) -> np.ndarray:
    """Return the training rows of a task that are scored, the same for every seed of a run."""
    return np.sort(random_generator(0, "training sample", task).permutation(count)[:SAMPLED_ROWS])


def spread_rows(count: int, wanted: int, start: int) -> np.ndarray:
    """Return as many of a batch's `count` rows as are wanted, in order: evenly spaced from `start` on, and
    from the last row back to the first. From a random start every row is as likely to be taken as any other,
    and each process gets as even a part of the choice as of the batch."""
    wanted = min(count, wanted)
    return np.sort((start + np.arange(wanted) * count // wanted) % count)


def gradient_norm(value: Tensor, weights: Sequence[Tensor]) -> float:
    """Return the norm of a loss's gradient with respect to these weights, before clipping."""
    gradients = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
    flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
    return flat.norm().item()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode inside, and restore each module's own mode after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
