"""The shape of a BERT, and the config.json that describes it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from minbert.errors import InputError, shown
from minbert.fields import check, field, fields_of
from minbert.files import resolved, write_text
from minbert.hub import check_supported
from minbert.reading import load_json


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT, with Hugging Face's names; the defaults are BERT-base, uncased. The bounds lie far
    beyond any real BERT: they are what a config.json may ask for before its weights have been looked at.
    Raises InputError for a value outside them.

    >>> BertConfig(hidden_size=10)
    Traceback (most recent call last):
    ...
    minbert.errors.InputError: hidden_size 10 is not a multiple of num_attention_heads 12
    """

    vocab_size: int = field(30522, low=1, most=10**8)
    hidden_size: int = field(768, low=1, most=2**16)
    num_hidden_layers: int = field(12, low=1, most=256)
    num_attention_heads: int = field(12, low=1)
    intermediate_size: int = field(3072, low=1, most=2**20)
    max_position_embeddings: int = field(512, low=1, most=2**20)
    type_vocab_size: int = field(2, low=1, most=2**16)
    pad_token_id: int = field(0)
    layer_norm_eps: float = field(1e-12, most=1)
    hidden_dropout_prob: float = field(0.1, below=1)
    attention_probs_dropout_prob: float = field(0.1, below=1)
    initializer_range: float = field(0.02, most=1e3)

    def __post_init__(self) -> None:
        for name, wanted in fields_of(BertConfig).items():
            check(getattr(self, name), wanted, name)
        if self.pad_token_id >= self.vocab_size:
            raise InputError(
                f"pad_token_id {shown(self.pad_token_id)} is not one of {self.vocab_size} tokens"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {shown(self.num_attention_heads)}"
            )

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> BertConfig:
        """Read a Hugging Face `config.json`. Raises InputError if it does not describe a BERT of the kind
        built here."""
        path = Path(directory) / "config.json"
        values = load_json(path, hint="; is this a checkpoint folder?")
        check_supported(values, path)
        names = fields_of(cls)
        try:
            return cls(**{name: value for name, value in values.items() if name in names})
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def save_pretrained(self, directory: str | Path, architecture: str = "BertModel") -> None:
        """Write a `config.json` that `transformers` reads."""
        values = {"model_type": "bert", "architectures": [architecture], "hidden_act": "gelu"} | asdict(self)
        write_text(resolved(Path(directory)) / "config.json", json.dumps(values, indent=2) + "\n")
