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
from multitask.config import Config
from multitask.data import Examples
from multitask.model import MultitaskBert, best_folder, load_heads
from multitask.sampling import random_seed
from multitask.tasks import Task


def build_model(config: Config, tasks: Mapping[str, Task]) -> MultitaskBert:
    """Return a model with a pretrained encoder, or --init's encoder, and randomly initialised heads."""
    source = config.weights if config.init is None else best_folder(config.init)
    if (Path(source) / "best" / "config.json").is_file():  # --weights names a run
        source = Path(source) / "best"
    encoder = BertModel.from_pretrained(
        source,
        config.allow_pickle,
        hidden_dropout_prob=config.encoder_dropout,
        attention_probs_dropout_prob=config.encoder_dropout,
    )
    tokenizer = BertTokenizer.from_pretrained(source, config.allow_pickle)
    torch.manual_seed(random_seed(config.seed, "heads"))
    model = MultitaskBert(encoder, tokenizer, tasks, config.pooling, config.head_dropout, config.max_length)
    encoder.requires_grad_(config.option != "pretrain")
    return model


def start_heads(model: MultitaskBert, train: Mapping[str, Examples], config: Config) -> None:
    """Set the heads' initial weights: a regression's bias to its labels' mean, and the heads of --init.

    A small learning rate would take long to move a bias to the mean. A head that --init has trained starts
    from its trained weights. Raises InputError if --init's pooling or one of its tasks differs.
    """
    for name, task in model.tasks.items():
        if task.kind == "regression":
            bias = cast(Tensor, model.heads[name].bias)
            torch.nn.init.constant_(bias, float(np.mean(train[name].labels)) / task.unit)
    if config.init is not None:
        settings, tasks, heads = load_heads(best_folder(config.init))
        if settings["pooling"] != model.pooling:
            raise InputError(f"--init {config.init}: its --pooling is {settings['pooling']}; use the same")
        for name in model.tasks.keys() & tasks.keys():
            ours, theirs = model.tasks[name], tasks[name]
            if (ours.kind, ours.outputs) != (theirs.kind, theirs.outputs):
                raise InputError(
                    f"--init {config.init}: its task {name} is {theirs.kind} with {theirs.outputs} outputs"
                )
            model.heads[name].load_state_dict({key: heads[f"{name}.{key}"] for key in ("weight", "bias")})
