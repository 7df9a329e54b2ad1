"""The multitask model: one encoder that all tasks share, and one linear head for each ("Jack of All Trades,
Master of Some: Improving BERT for Multitask Learning", Stanford CS224N, section 3).

Pairs are read together, `[CLS] a [SEP] b [SEP]`, so that every token of a attends to every token of b (a
cross-encoder). Axes as in minbert/bert.py; C is the number of a head's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tomli_w
import torch
from torch import Tensor, nn

from minbert.bert import POOLINGS, BertModel
from minbert.errors import InputError, counted, short_line, shown
from minbert.files import named_folder, write_tensors, write_text
from minbert.linear import Linear
from minbert.packing import Packing
from minbert.tokenizer import BertTokenizer
from multitask import distributed
from multitask.advice import resume
from multitask.config import LONG
from multitask.data.calibration import Calibration
from multitask.data.tables import Table
from multitask.data.tasks import Task, task_to_toml
from multitask.data.tokens import HEAD, HEAD_TAIL, WINDOWS, Examples, Tokens, make_examples, tokenize
from multitask.inference import EVALUATION_BATCH, in_length_order, to_device
from multitask.layout import STATE
from multitask.messages import progress_bar
from multitask.predictor import Predictor, Texts
from multitask.saved import best_folder, load_heads, read_calibrations, write_calibrations

MOST_PIECES = 4  # tokens that a character may become: three, where a syllable of Hangul is taken apart
FULL = {  # what is said of rows that fill the longest input, so that they may be cut, or are longer
    HEAD: "{} tokens, the limit; longer ones are cut",
    HEAD_TAIL: "{} tokens, the limit; longer ones are cut in their middle",
    WINDOWS: "more than {} tokens, read in windows",
}


class MultitaskBert(nn.Module, Predictor):
    """`model(task, batch)` gives logits (B, C); `predict` takes text. `tasks` maps names to `Task`s."""

    def __init__(
        self,
        encoder: BertModel,
        tokenizer: BertTokenizer,
        tasks: Mapping[str, Task],
        pooling: str,
        head_dropout: float = 0.0,
        max_length: int = 512,
        long: str = HEAD,
    ):
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.tasks = dict(tasks)
        self.pooling = pooling
        self.calibrations: Mapping[str, Calibration] = {}
        self.precision = "float32"  # or "bf16", of the encoder's products
        self.max_length = min(max_length, encoder.config.max_position_embeddings)
        self.long = long  # what is read of texts that are longer
        self.dropout = nn.Dropout(float(head_dropout))
        heads = {name: nn.Linear(encoder.config.hidden_size, task.outputs) for name, task in tasks.items()}
        for head in heads.values():
            nn.init.normal_(head.weight, std=encoder.config.initializer_range)
            nn.init.zeros_(head.bias)
        try:
            self.heads = nn.ModuleDict(heads)
        except KeyError as error:  # torch keeps modules as attributes
            raise InputError(f"invalid task name: {error.args[0]}; choose another") from None
        if pooling not in POOLINGS:
            raise InputError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}")
        if pooling == "cls" and encoder.pooler is None:
            raise InputError("the encoder's checkpoint has no pooler, which --pooling cls needs; use mean")
        if long not in LONG:
            raise InputError(f"long is one of {', '.join(LONG)}, not {long!r}")
        if tokenizer.vocab_size > encoder.config.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the encoder {encoder.config.vocab_size}: "
                "they are not of one checkpoint"
            )

    @property
    def drops(self) -> bool:
        """Whether there is dropout anywhere in training."""
        config = self.encoder.config
        encoder = (config.hidden_dropout_prob, config.attention_probs_dropout_prob)
        return self.dropout.p > 0 or (max(encoder) > 0 and not self.frozen)

    @property
    def frozen(self) -> bool:
        """Whether only the heads are trained."""
        return not self.encoder.embeddings.word.weight.requires_grad

    @property
    def layer_shapes(self) -> set[tuple[int, int]]:
        """The (inputs, outputs) of the layers whose products may be those of another library."""
        layers = [module for module in self.encoder.modules() if isinstance(module, Linear)]
        return {(layer.in_features, layer.out_features) for layer in layers}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.encoder.embeddings.word.weight.device

    def forward(self, task: str, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of a padded batch, as `tokenizer.pad` makes it."""
        return self.logits_from_embeddings(task, *self.encoder.embed(**batch))

    def logits_from_embeddings(self, task: str, embeddings: Tensor, packing: Packing) -> Tensor:
        """Logits (B, C) of packed embeddings (T, H): the seam at which embeddings can be perturbed.

        They are pooled by `pooled_from_embeddings`, then pass dropout and the task's head, whose outputs
        count in the task's `unit`.
        """
        pooled = self.pooled_from_embeddings(embeddings, packing)
        return self.heads[task](self.dropout(pooled)) * self.tasks[task].unit

    def pooled_from_embeddings(self, embeddings: Tensor, packing: Packing) -> Tensor:
        """(T, H) -> (B, H), through the encoder in the model's precision."""
        with self.autocast():
            pooled = self.encoder.pooled_from_embeddings(embeddings, packing, self.pooling)
        return pooled.to(embeddings.dtype)

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products have the model's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def logits(self, task: str, texts: Texts, batch_size: int = EVALUATION_BATCH) -> Tensor:
        tokens = Tokens.join([self.token_ids(task, texts)], self.tokenizer.vocab_size)
        return self.logits_of_tokens(task, tokens, batch_size)

    def logits_of_table(self, task: str, table: Table) -> Tensor:
        tokens = self.tokenize_and_print_cuts(table, self.long).tokens
        watch = partial(progress_bar, desc=task, unit="batch", shown=distributed.is_writer())
        return self.logits_of_tokens(task, tokens, watch=watch)

    @torch.inference_mode()
    def logits_of_tokens(
        self,
        task: str,
        tokens: Tokens,
        batch_size: int = EVALUATION_BATCH,
        watch: Callable[[Sequence[np.ndarray]], Iterable[np.ndarray]] = iter,
    ) -> Tensor:
        """Return logits (N, C) of tokenised examples, on the CPU and in their own order; leave the model in
        evaluation mode. Examples of more than `max_length` tokens are read in windows, whose logits are
        averaged. `watch` may show the progress of the batches."""
        self.eval()
        if not len(tokens):
            return torch.empty(0, self.tasks[task].outputs)

        def logits(batch: Mapping[str, Tensor]) -> Tensor:
            return self(task, to_device(batch, self.device))

        windows, owners = tokens.windows(self.max_length)
        of_windows = in_length_order(windows, self.tokenizer.pad_token_id, logits, batch_size, watch)
        if len(windows) == len(tokens):
            return of_windows
        sums = of_windows.new_zeros(len(tokens), of_windows.shape[1])
        sums.index_add_(0, torch.from_numpy(owners), of_windows)
        return sums / torch.from_numpy(np.bincount(owners))[:, None]

    @property
    def long_in_training(self) -> str:
        """What training reads of texts that are longer than the model's input: one window is its head."""
        return HEAD if self.long == WINDOWS else self.long

    def tokenize_and_print_cuts(self, table: Table, long: str) -> Examples:
        """Return a table's rows, tokenised; `long` says what is read of those that are too long. Print how
        many fill the longest input, so that they may be cut, or how many are read in windows."""
        examples = make_examples(table, self.tokenizer, self.max_length, long)
        lengths, most = examples.tokens.lengths, self.max_length
        full = int((lengths > most if long == WINDOWS else lengths == most).sum())
        if full:
            print(f"{table.source.task.name}: {counted(full, 'row')} of {FULL[long].format(most)}")
        return examples

    def token_ids(
        self, task: str, texts: Texts, max_length: int | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Return (input_ids, token_type_ids) for each text or pair, cut to the model's `max_length` or this
        one unless they are read in windows. Raises InputError if they do not fit the task."""
        wanted = len(self.task_of(task).texts)
        if isinstance(texts, str):
            raise InputError("texts is one string; pass a list")
        columns: list[list[str]] = [[] for _ in range(wanted)]
        for number, text in enumerate(texts):
            parts = (text,) if isinstance(text, str) else text
            if not isinstance(parts, list | tuple) or len(parts) != wanted:
                kind = "pairs" if wanted == 2 else "single texts"
                raise InputError(f"{task} takes {kind}; item {number} is {shown(text)}")
            for column, part in zip(columns, parts, strict=True):
                column.append(part)
        return tokenize(columns, self.tokenizer, max_length or self.max_length, self.long)

    def are_cut(self, task: str, texts: Texts) -> list[bool]:
        if self.long == WINDOWS:
            return [False] * len(texts)
        characters = [sum(map(len, (text,) if isinstance(text, str) else text)) for text in texts]
        long = [row for row, count in enumerate(characters) if MOST_PIECES * count + 3 > self.max_length]
        found = self.token_ids(task, [texts[row] for row in long], self.max_length + 1)  # type: ignore[arg-type]
        cut = {row for row, (ids, _) in zip(long, found, strict=True) if len(ids) > self.max_length}
        return [row in cut for row in range(len(texts))]

    def save(self, directory: str | Path) -> None:
        """Write a Hugging Face directory of the encoder, and beside it the heads and the tasks'
        definitions."""
        directory = named_folder(directory)
        self.save_encoder(directory)
        self.tokenizer.save_pretrained(directory, self.max_length)
        write_tensors(directory / "heads.safetensors", self.heads.state_dict())
        settings = {
            "pooling": self.pooling,
            "head_dropout": self.dropout.p,
            "max_length": self.max_length,
            "long": self.long,
        }
        tables = {name: task_to_toml(task) for name, task in self.tasks.items()}
        write_text(directory / "tasks.toml", tomli_w.dumps(settings | {"tasks": tables}))
        write_calibrations(directory, self.calibrations)

    def save_encoder(self, directory: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        self.encoder.save_pretrained(directory)

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device = "cpu") -> MultitaskBert:
        """Load what `save` wrote, in evaluation mode: from a run's folder, its `best/`, or any other folder
        that holds a saved model."""
        directory = best_folder(directory)
        try:
            return cls._load(directory).to(device).eval()
        except InputError as error:
            if not (directory.parent / STATE).is_dir():
                raise
            remedy = f"{resume(directory.parent)} writes {directory} again from the saved state"
            raise InputError(f"{error}; {remedy}") from None

    @classmethod
    def _load(cls, directory: Path) -> MultitaskBert:
        settings, tasks, heads = load_heads(directory)
        encoder, tokenizer = BertModel.from_pretrained(directory), BertTokenizer.from_pretrained(directory)
        model = cls(encoder, tokenizer, tasks, **settings)
        model.calibrations = read_calibrations(directory, tasks)
        try:
            model.heads.load_state_dict(heads)
        except RuntimeError as error:
            raise InputError(
                f"{directory}: heads.safetensors and tasks.toml disagree ({short_line(error)})"
            ) from None
        return model
