"""The shape of a BERT, and the config.json that describes it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from minbert.errors import InputError, shown
from minbert.files import write_text
from minbert.reading import load_json

# Far beyond any real BERT: what a config.json may ask for before its weights have been looked at.
LARGEST = {
    "vocab_size": 10**8,
    "hidden_size": 2**16,
    "num_hidden_layers": 256,
    "intermediate_size": 2**20,
    "max_position_embeddings": 2**20,
    "type_vocab_size": 2**16,
    "layer_norm_eps": 1,
    "initializer_range": 1e3,
}
SUPPORTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT, with Hugging Face's names; the defaults are BERT-base, uncased. Raises InputError
    if a value is not one that a BERT can have."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    pad_token_id: int = 0
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            check_number(field.name, getattr(self, field.name), whole=field.type == "int")
        if self.pad_token_id >= self.vocab_size:
            raise InputError(
                f"pad_token_id {shown(self.pad_token_id)} is not one of {self.vocab_size} tokens"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {shown(self.num_attention_heads)}"
            )
        if max(self.hidden_dropout_prob, self.attention_probs_dropout_prob) >= 1:
            raise InputError("dropout probabilities must be below 1")

    @classmethod
    def from_pretrained(cls, directory: Path) -> BertConfig:
        """Read a Hugging Face `config.json`. Raises InputError if it does not describe a BERT of the kind
        built here."""
        path = directory / "config.json"
        values = load_json(path, hint="; is this a checkpoint folder?")
        if not isinstance(values, dict):
            raise InputError(f"{path}: holds no JSON object; is this a checkpoint's config?")
        for key, ours in SUPPORTED.items():
            if values.get(key, ours) != ours:
                raise InputError(f"{path}: {key} is {shown(values[key])}; only {ours!r} is supported")
        names = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in names})
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def save_pretrained(self, directory: Path) -> None:
        """Write a `config.json` that `transformers` reads."""
        values = {"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu"} | asdict(self)
        write_text(directory / "config.json", json.dumps(values, indent=2) + "\n")


def check_number(name: str, value: object, whole: bool) -> None:
    """Raise InputError unless this is a finite number, or integer, within the bounds of its field."""
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or value != value or abs(value) == math.inf:
        raise InputError(f"{name} must be a finite {'int' if whole else 'float'}, not {shown(value)}")
    least = 1 if whole and name != "pad_token_id" else 0
    if value < least:
        raise InputError(f"{name} must be at least {least}, not {shown(value)}")
    if value > LARGEST.get(name, math.inf):
        raise InputError(f"{name} must be at most {LARGEST[name]:g}, not {shown(value)}")
