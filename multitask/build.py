"""The model that a run starts from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from minbert.bert import BertModel
from minbert.errors import InputError
from minbert.tokenizer import BertTokenizer
from multitask.config import Start
from multitask.data.kinds import REGRESSION
from multitask.data.tasks import Task
from multitask.data.tokens import Examples
from multitask.methods.sampling import random_seed
from multitask.model import MultitaskBert, best_folder, load_heads


def build_model(
    start: Start,
    tasks: Mapping[str, Task],
    seed: int,
    encoder_dropout: float = 0.0,
    head_dropout: float = 0.0,
) -> MultitaskBert:
    """Return a model with a pretrained encoder, or --init's encoder, and randomly initialised heads."""
    source = start.weights if start.init is None else best_folder(start.init)
    if (Path(source) / "best" / "config.json").is_file():  # --weights names a run
        source = Path(source) / "best"
    encoder = BertModel.from_pretrained(
        source,
        start.allow_pickle,
        hidden_dropout_prob=encoder_dropout,
        attention_probs_dropout_prob=encoder_dropout,
    )
    tokenizer = BertTokenizer.from_pretrained(source, start.allow_pickle)
    torch.manual_seed(random_seed(seed, "heads"))
    return MultitaskBert(encoder, tokenizer, tasks, start.pooling, head_dropout, start.max_length)


def start_heads(model: MultitaskBert, train: Mapping[str, Examples], init: str | None) -> None:
    """Set the heads' initial weights: a regression's bias to its labels' mean, and the heads of --init.

    A small learning rate would take long to move a bias to the mean. A head that --init has trained starts
    from its trained weights. Raises InputError if --init's pooling or one of its tasks differs.
    """
    for name, task in model.tasks.items():
        if task.kind == REGRESSION:
            bias = cast(Tensor, model.heads[name].bias)
            torch.nn.init.constant_(bias, float(np.mean(train[name].labels)) / task.unit)
    if init is not None:
        settings, tasks, heads = load_heads(best_folder(init))
        if settings["pooling"] != model.pooling:
            raise InputError(f"--init {init}: its --pooling is {settings['pooling']}; use the same")
        for name in model.tasks.keys() & tasks.keys():
            ours, theirs = model.tasks[name], tasks[name]
            if (ours.kind, ours.outputs) != (theirs.kind, theirs.outputs):
                raise InputError(
                    f"--init {init}: its task {name} is {theirs.kind.name} with {theirs.outputs} outputs"
                )
            model.heads[name].load_state_dict({key: heads[f"{name}.{key}"] for key in ("weight", "bias")})
