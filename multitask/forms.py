"""The forms in which a model leaves: each is written, and then run again, by the library that is to load it.

Heads leave with their outputs in the labels' own unit, divided by the temperature fitted on dev if there is
one, and a binary task's output z as the logits 0 and z, so that a softmax gives the probabilities of every
task with classes. What is too long is cut at the end, whatever the run read of it. C is the number of a
task's classes, or 1.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from minbert.errors import InputError
from multitask.data.calibration import UNCHANGED
from multitask.data.tasks import Task
from multitask.data.tokens import Tokens
from multitask.model import MultitaskBert
from multitask.ranking import sentence_vectors
from multitask.report.card import Usage, example

EXTRA = 'pip install "minbert[export]"'
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
MODEL, TOKENIZER = "model.onnx", "tokenizer.json"  # in the folder of an ONNX export
BATCH = 16  # rows

Texts = list[tuple[str, ...]]
Rows = Mapping[str, Texts]  # task -> the texts of some of its rows


def for_each_class(task: Task, outputs: Tensor) -> Tensor:
    """Return a head's outputs with one for each class, in the last dimension: that of a binary task becomes
    the second of two, beside 0; those of other tasks stay as they are."""
    return F.pad(outputs, (max(task.classes, 1) - task.outputs, 0))


def head_of(model: MultitaskBert, task: Task) -> nn.Linear:
    """Return a linear layer from the pooled vector (B, H) to what leaves, (B, C)."""
    scale = task.unit / temperature_of(model, task)
    ours = {name: part.cpu() * scale for name, part in model.heads[task.name].state_dict().items()}
    weight, bias = (for_each_class(task, part) for part in (ours["weight"].T, ours["bias"]))
    head = nn.Linear(*weight.shape)
    head.load_state_dict({"weight": weight.T, "bias": bias})
    return head


def temperature_of(model: MultitaskBert, task: Task) -> float:
    """Return what the task's logits are divided by, as fitted on dev; 1 if nothing was."""
    return model.calibrations.get(task.name, UNCHANGED).temperature


def labels_of(task: Task) -> dict[str, Any]:
    """Return what the config.json of a `transformers` model says of a task."""
    names = task.class_names or ("score",)
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification" if task.classes else "regression",
    }


def in_batches(compute: Callable[[Texts], Tensor], texts: Texts) -> Tensor:
    """Return what `compute` gives for all rows, a few at a time."""
    starts = range(0, len(texts), BATCH)
    return torch.cat([compute(texts[start : start + BATCH]) for start in starts])


@dataclass(frozen=True)
class Exported(ABC):
    """A model, and those of its heads that leave with it."""

    model: MultitaskBert
    tasks: Mapping[str, Task]

    title: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]  # modules of the extra

    @property
    @abstractmethod
    def usage(self) -> Usage:
        """How it is used, for its card."""

    @abstractmethod
    def write(self, source: Path, folder: Path) -> None:
        """Write it into an empty folder, from another with the encoder and the tokenizer in Hugging Face's
        format."""

    @abstractmethod
    def outputs(self, folder: Path, rows: Rows) -> dict[str, Tensor]:
        """Return what the library computes with what was written, like `expected`."""

    def expected(self, rows: Rows) -> dict[str, Tensor]:
        """Return what our model computes on these rows, on the CPU: (N, C) for each task."""
        return {
            name: for_each_class(task, self.model.logits(name, rows[name]) / temperature_of(self.model, task))
            for name, task in self.tasks.items()
        }

    def check_libraries(self) -> None:
        """Raise InputError if a library is missing or too old."""
        for name in self.needs:
            try:
                importlib.import_module(name)
            except ImportError as missing:
                raise InputError(f"the export needs other libraries ({missing}): {EXTRA}") from None

    @property
    def task(self) -> Task:
        """The only task."""
        (task,) = self.tasks.values()
        return task


class SequenceClassifier(Exported):
    """The encoder with one head on its pooled first token."""

    title = "a transformers.AutoModelForSequenceClassification"
    needs = ("transformers",)

    @property
    def usage(self) -> Usage:
        pair = '{"text": "One text.", "text_pair": "Another text."}'
        code = f"""from transformers import pipeline

classify = pipeline("text-classification", "FOLDER")  # this folder
classify([{pair if len(self.task.texts) == 2 else example(self.task)}], truncation=True)"""
        return Usage("transformers", "text-classification", code)

    def write(self, source: Path, folder: Path) -> None:
        from transformers import AutoTokenizer, BertForSequenceClassification

        classifier = BertForSequenceClassification.from_pretrained(source, **labels_of(self.task))
        classifier.classifier.load_state_dict(head_of(self.model, self.task).state_dict())
        # Otherwise a CrossEncoder would put a sigmoid on a single output.
        classifier.config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}
        classifier.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)

    @torch.inference_mode()
    def outputs(self, folder: Path, rows: Rows) -> dict[str, Tensor]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        classifier = AutoModelForSequenceClassification.from_pretrained(folder)

        def logits(texts: Texts) -> Tensor:
            columns = map(list, zip(*texts, strict=True))
            return classifier(
                **tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")
            ).logits

        return {self.task.name: in_batches(logits, rows[self.task.name])}


class ModularCrossEncoder(Exported):
    """The encoder with one head on the mean over its tokens, as a chain of modules."""

    title = "a sentence_transformers.CrossEncoder"
    needs = ("sentence_transformers.sentence_transformer.modules",)

    @property
    def usage(self) -> Usage:
        pairs = len(self.task.texts) == 2
        texts = f"[{example(self.task)}]" if pairs else example(self.task)
        softmax = ", apply_softmax=True" if self.task.classes else ""
        code = f"""from sentence_transformers import CrossEncoder

model = CrossEncoder("FOLDER")  # this folder
model.predict({texts}{softmax})"""
        notes = []
        if self.task.classes:
            notes.append("The probabilities are in the order of `model.config.id2label`.")
        if not pairs:
            notes.append("`predict` takes single texts one at a time: it reads a list of two as a pair.")
        return Usage("sentence-transformers", "text-classification", code, " ".join(notes))

    def write(self, source: Path, folder: Path) -> None:
        from sentence_transformers import CrossEncoder
        from sentence_transformers.sentence_transformer.modules import Dense

        transformer, *pooling = encoder_modules(self.model, source)
        transformer.model.config.update(labels_of(self.task))
        head = head_of(self.model, self.task)
        dense = Dense(
            head.in_features,
            head.out_features,
            activation_function=None,
            init_weight=head.weight,
            init_bias=head.bias,
            module_output_name="scores",
        )
        modules = [transformer, *pooling, dense]
        chain = CrossEncoder(modules=modules, activation_fn=nn.Identity(), device="cpu")
        chain.save_pretrained(str(folder), create_model_card=False)

    def outputs(self, folder: Path, rows: Rows) -> dict[str, Tensor]:
        from sentence_transformers import CrossEncoder

        model, texts = CrossEncoder(str(folder), device="cpu"), rows[self.task.name]
        if len(self.task.texts) == 2:
            found = model.predict(texts, convert_to_tensor=True)
        else:
            found = torch.stack([model.predict(text, convert_to_tensor=True) for (text,) in texts])
        return {self.task.name: found.reshape(len(texts), -1)}


class SentenceEncoder(Exported):
    """The encoder and its pooling, without heads: one vector (H,) for each text."""

    title = "a sentence_transformers.SentenceTransformer"
    needs = ModularCrossEncoder.needs

    @property
    def usage(self) -> Usage:
        code = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("FOLDER")  # this folder
model.encode(["A text.", "Another text."])"""
        return Usage("sentence-transformers", "feature-extraction", code)

    def write(self, source: Path, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        chain = SentenceTransformer(modules=encoder_modules(self.model, source), device="cpu")
        chain.save_pretrained(str(folder), create_model_card=False)

    def outputs(self, folder: Path, rows: Rows) -> dict[str, Tensor]:
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(folder), device="cpu")
        return {
            name: encoder.encode(first_texts(texts), convert_to_tensor=True) for name, texts in rows.items()
        }

    def expected(self, rows: Rows) -> dict[str, Tensor]:
        """Return our vectors (N, H) of each row's first text, on the CPU."""

        def vectors(texts: Texts) -> Tensor:
            tokenizer, longest = self.model.tokenizer, self.model.max_length
            token_ids = tokenizer.token_ids(first_texts(texts), max_length=longest)
            return sentence_vectors(self.model, Tokens.join([token_ids], tokenizer.vocab_size))

        return {name: vectors(texts) for name, texts in rows.items()}


def first_texts(texts: Texts) -> list[str]:
    return [first for first, *_ in texts]


def encoder_modules(model: MultitaskBert, source: Path) -> list[Any]:
    """Return the modules of sentence-transformers that compute the pooled vector; "cls" ends in the layer
    and the tanh of BERT's pooler."""
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    width = model.encoder.config.hidden_size
    modules: list[Any] = [Transformer(str(source)), Pooling(width, model.pooling)]
    pooler = model.encoder.pooler
    if model.pooling == "cls" and pooler is not None:
        weight, bias = pooler.weight.detach().cpu(), pooler.bias.detach().cpu()
        modules.append(Dense(width, width, init_weight=weight, init_bias=bias, activation_function=nn.Tanh()))
    return modules


class HeadsOnEncoder(nn.Module):
    """A `transformers.BertModel`, its pooling and our heads: (B, L) three times -> (B, C) for each task."""

    def __init__(self, encoder: nn.Module, pooling: str, heads: Sequence[nn.Linear]):
        super().__init__()
        self.encoder, self.pooling, self.heads = encoder, pooling, nn.ModuleList(heads)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        found = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        if self.pooling == "cls":
            pooled = found.pooler_output
        else:
            mask = attention_mask[:, :, None].to(found.last_hidden_state.dtype)
            pooled = (found.last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
        return tuple(head(pooled) for head in self.heads)


class OnnxFile(Exported):
    """The encoder with all heads in one file, and a tokenizer that cuts and pads: neither needs torch."""

    title = "an ONNX file"
    needs = ("transformers", "onnx", "onnxscript", "onnxruntime")

    @property
    def usage(self) -> Usage:
        name, task = next(iter(self.tasks.items()))
        code = f"""import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("FOLDER/{TOKENIZER}")  # in this folder
session = onnxruntime.InferenceSession("FOLDER/{MODEL}")
found = tokenizer.encode_batch([{example(task)}])
inputs = {{
    "input_ids": np.array([one.ids for one in found]),
    "attention_mask": np.array([one.attention_mask for one in found]),
    "token_type_ids": np.array([one.type_ids for one in found]),
}}
session.run(["{name}"], inputs)"""
        note = (
            "Each task is an output. A softmax makes probabilities of its logits; the labels are in "
            "the file's metadata, under `tasks`."
        )
        return Usage("onnx", "text-classification", code, note)

    def write(self, source: Path, folder: Path) -> None:
        from transformers import BertModel

        heads = [head_of(self.model, task) for task in self.tasks.values()]
        whole = HeadsOnEncoder(BertModel.from_pretrained(source), self.model.pooling, heads).eval()
        batch = self.model.tokenizer(["a b", "a"], ["c", "b"])
        program = torch.onnx.export(
            whole,
            tuple(batch[name] for name in INPUTS),
            input_names=INPUTS,
            output_names=[*self.tasks],
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in INPUTS},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        described = {name: labels_of(task) | {"texts": len(task.texts)} for name, task in self.tasks.items()}
        program.model.metadata_props["tasks"] = json.dumps(described)
        program.save(folder / MODEL, external_data=False)
        tokenizer = Tokenizer.from_file(str(source / TOKENIZER))
        tokenizer.enable_truncation(self.model.max_length)
        tokenizer.enable_padding(pad_id=self.model.tokenizer.pad_token_id, pad_token="[PAD]")
        tokenizer.save(str(folder / TOKENIZER))

    def outputs(self, folder: Path, rows: Rows) -> dict[str, Tensor]:
        import onnxruntime

        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        session = onnxruntime.InferenceSession(folder / MODEL)

        def logits(name: str, texts: Texts) -> Tensor:
            found = tokenizer.encode_batch(texts if len(self.tasks[name].texts) == 2 else first_texts(texts))
            columns = zip(*((one.ids, one.attention_mask, one.type_ids) for one in found), strict=True)
            inputs = {column: np.array(values) for column, values in zip(INPUTS, columns, strict=True)}
            return torch.from_numpy(session.run([name], inputs)[0])

        return {name: in_batches(partial(logits, name), rows[name]) for name in self.tasks}
