"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805), read from the top: attention, layer, model.

Axes: B examples, L positions, H width, T real tokens of the batch (see packing.py), h heads, d = H / h.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minbert import checkpoint, hub
from minbert.dropout import Dropout, dropout
from minbert.embedding import Embedding
from minbert.errors import InputError, shown
from minbert.files import write_text
from minbert.linear import Linear, fast_products
from minbert.packing import Packing, visible_bias
from minbert.reading import load_json

POOLINGS = ("cls", "mean")  # how one vector is made of a sentence's tokens: `BertModel.pool`


# Far beyond every BERT there is: what a config.json may ask for before its weights are looked at.
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


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT, with Hugging Face's names; the defaults are BERT-base, uncased."""

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
            value = getattr(self, field.name)
            number = int if field.type == "int" else (int, float)
            if (
                isinstance(value, bool)
                or not isinstance(value, number)
                or value != value
                or abs(value) == math.inf
            ):
                raise InputError(f"{field.name} must be a finite {field.type}, not {shown(value)}")
            least = 0 if field.type == "float" or field.name == "pad_token_id" else 1
            if value < least:
                raise InputError(f"{field.name} must be at least {least}, not {shown(value)}")
            if value > LARGEST.get(field.name, math.inf):
                raise InputError(f"{field.name} must be at most {LARGEST[field.name]:g}, not {shown(value)}")
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
        """Read a Hugging Face `config.json`; InputError where it is not of a BERT as we build it."""
        path = directory / "config.json"
        values = load_json(path, hint="; is this a checkpoint folder?")
        if not isinstance(values, dict):
            raise InputError(f"{path}: holds no JSON object; is this a checkpoint's config?")
        for key, ours in {
            "model_type": "bert",
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
        }.items():
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


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1).

    query (B, h, Lq, d), key and value (B, h, Lk, d); mask broadcasts to (B, h, Lq, Lk) and is True or 1 where
    a key may be seen. Returns the context (B, h, Lq, d) and the weights (B, h, Lq, Lk), which sum to 1 over
    the keys and are returned as they were before dropout. InputError where a query may see no key at all.
    """
    mask = query.new_ones(()) if mask is None else mask
    if not mask.bool().any(dim=-1).all():
        raise InputError("a query may see no key: every row of the mask needs at least one True")
    return biased_attention(query, key, value, visible_bias(mask), dropout)


def biased_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout_prob: float
) -> tuple[Tensor, Tensor]:
    """`attention` where each query sees a key: softmax(Q K^T / sqrt(d) + bias) V, with a bias of 0 where a
    key may be seen and of -inf elsewhere. The layers of a model share one such bias."""
    scores = torch.add(bias, query @ key.transpose(-2, -1), alpha=query.shape[-1] ** -0.5)
    weights = scores.softmax(dim=-1)
    return dropout(weights, dropout_prob) @ value, weights


class SelfAttention(nn.Module):
    """Multi-head attention: h independent attentions, each on its own d of the H dimensions."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        # One product for keys and values; queries apart, since the last layer may ask for few of them.
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key_value = Linear(config.hidden_size, 2 * config.hidden_size)

    def forward(
        self, queries: Tensor, layout: Packing, hidden_states: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor]:
        """Every row of `queries`, placed by `layout`, looks at its own example's tokens in `hidden_states`
        (T, H).

        Returns the context, shaped as `queries`, and the weights (B, h, Lq, L).
        """
        size = queries.shape[1] // self.num_heads

        def heads(rows: Tensor, layout: Packing) -> Tensor:  # (T, n H) -> (n, B, h, L, d)
            return layout.unpack(rows).unflatten(-1, (-1, self.num_heads, size)).permute(2, 0, 3, 1, 4)

        (query,) = heads(self.query(queries), layout)
        key, value = heads(self.key_value(hidden_states), packing)
        dropout_prob = self.dropout if self.training else 0.0
        context, weights = biased_attention(query, key, value, packing.bias, dropout_prob)
        return layout.pack(context.transpose(1, 2).flatten(2)), weights


class BertLayer(nn.Module):
    """Attention, then a two-layer network on each token; each is added to its input and normalised after."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_output = Linear(config.hidden_size, config.hidden_size)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.intermediate = Linear(config.hidden_size, config.intermediate_size)
        self.output = Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: Tensor, packing: Packing, first_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(T, H) -> (T, H) and the attention weights (B, h, L, L).

        With `first_only`, (B, H) and (B, h, 1, L): only the row of each example's first token is computed. It
        is exact, since a row depends on the other tokens through their keys and values alone.
        """
        rows, layout = hidden_states, packing
        if first_only:
            rows, layout = hidden_states[packing.first], packing.first_tokens()
        context, weights = self.attention(rows, layout, hidden_states, packing)
        rows = self.attention_norm(rows + self.dropout(self.attention_output(context)))
        feed_forward = self.output(F.gelu(self.intermediate(rows)))
        return self.output_norm(rows + self.dropout(feed_forward)), weights


class BertEmbeddings(nn.Module):
    """What the token is, where it stands, and which of the two sentences it belongs to: summed,
    normalised."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word = Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        """(B, L) ids -> (T, H)"""
        positions = packing.tokens % packing.mask.shape[1]
        meaning = self.word(packing.pack(input_ids)) + self.token_type(packing.pack(token_type_ids))
        return self.dropout(self.norm(meaning + self.position(positions)))


@dataclass(frozen=True)
class BertOutput:
    """What `BertModel` returns; `out["pooler_output"]` works too. Padded positions are 0 in every tensor."""

    last_hidden_state: Tensor  # (B, L, H)
    pooler_output: Tensor  # (B, H)
    hidden_states: tuple[Tensor, ...] | None = (
        None  # layers + 1 of (B, L, H): the embeddings, then every layer's output
    )
    attentions: tuple[Tensor, ...] | None = None  # layers of (B, h, L, L)

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class BertModel(nn.Module):
    """The encoder: `embed` -> `encode` -> `pool`, on packed tokens; `forward` takes and returns padded
    ones."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler = Linear(config.hidden_size, config.hidden_size)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:  # see Embedding
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertOutput:
        """All of input_ids, attention_mask (1 at real tokens) and token_type_ids are (B, L) integers.

        Without a mask every token is real; without types all are 0. InputError for shapes that do not fit,
        more positions or larger ids than the model has, and an example without a real token.
        """
        hidden_states, packing = self.embed(input_ids, attention_mask, token_type_ids)
        states, attentions = [hidden_states], []
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, packing)
            if output_hidden_states:
                states.append(hidden_states)
            if output_attentions:
                attentions.append(weights * packing.mask[:, None, :, None])
        return BertOutput(
            packing.unpack(hidden_states),
            self.pool(hidden_states, packing, "cls"),
            tuple(packing.unpack(state) for state in states) if output_hidden_states else None,
            tuple(attentions) if output_attentions else None,
        )

    def pooled(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pooling: str = "cls",
    ) -> Tensor:
        """One vector an example, (B, H), the fast way: inputs as in `forward`, pooling as in `pool`. Take
        `forward` for second derivatives (see `fast_products`)."""
        return self.pooled_from_embeddings(*self.embed(input_ids, attention_mask, token_type_ids), pooling)

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Packing]:
        """The packed embeddings (T, H) and where their tokens stand."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        self._check(input_ids, attention_mask, token_type_ids)
        packing = Packing.from_mask(attention_mask)
        return self.embeddings(input_ids, token_type_ids, packing), packing

    def encode(self, embeddings: Tensor, packing: Packing) -> Tensor:
        """(T, H) -> (T, H), through every layer."""
        for layer in self.layers:
            embeddings, _ = layer(embeddings, packing)
        return embeddings

    def pool(self, hidden_states: Tensor, packing: Packing, pooling: str) -> Tensor:
        """(T, H) -> (B, H). "cls": tanh(W x + b) of the first token; "mean": the mean over an example's
        tokens."""
        if pooling == "cls":
            return torch.tanh(self.pooler(hidden_states[packing.first]))
        if pooling == "mean":
            return packing.unpack(hidden_states).sum(dim=1) / packing.mask.sum(dim=1, keepdim=True)
        raise InputError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}")

    def pooled_from_embeddings(self, embeddings: Tensor, packing: Packing, pooling: str) -> Tensor:
        """`encode` and `pool` in one, with the fastest products that the processor has; with "cls" the last
        layer computes only the rows that are used."""
        with fast_products():
            if pooling != "cls":
                return self.pool(self.encode(embeddings, packing), packing, pooling)
            for layer in self.layers[:-1]:
                embeddings, _ = layer(embeddings, packing)
            first, _ = self.layers[-1](embeddings, packing, first_only=True)
            return self.pool(first, packing.first_tokens(), pooling)

    def _check(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> None:
        shape, most = input_ids.shape, self.config.max_position_embeddings
        if len(shape) != 2 or 0 in shape or attention_mask.shape != shape or token_type_ids.shape != shape:
            raise InputError(
                "input_ids, attention_mask and token_type_ids must share one non-empty shape (B, L), not "
                f"{tuple(shape)}, {tuple(attention_mask.shape)} and {tuple(token_type_ids.shape)}"
            )
        if shape[1] > most:
            raise InputError(
                f"{shape[1]} positions are more than this model's {most}: truncate with max_length={most}"
            )
        for name, ids, size in (
            ("input_ids", input_ids, self.config.vocab_size),
            ("token_type_ids", token_type_ids, self.config.type_vocab_size),
        ):
            if ids.min() < 0 or ids.max() >= size:
                raise InputError(f"{name} must lie in 0..{size - 1}; is this the tokenizer of another model?")

    @classmethod
    def from_pretrained(
        cls, name_or_directory: str | Path, allow_pickle: bool = False, **config_changes: Any
    ) -> BertModel:
        """A pretrained encoder, in evaluation mode: a name from `hub.py` (fetched once) or a directory as
        `save_pretrained` or Hugging Face write it. `pytorch_model.bin` is read only with `allow_pickle`, and
        then with `weights_only=True`. `config_changes` replace fields of its config, such as
        hidden_dropout_prob. InputError names every key that is missing, unexpected or misshapen."""
        directory = hub.resolve(name_or_directory, allow_pickle)
        config = replace(BertConfig.from_pretrained(directory), **config_changes)
        with torch.device("meta"):  # shapes without memory, until the file is known to hold them all
            model = cls(config)
        stored = checkpoint.find(directory, model.state_dict(), allow_pickle)
        state = {name: torch.empty(tensor.shape, device="cpu") for name, tensor in model.state_dict().items()}
        checkpoint.fill(state, stored)
        model.load_state_dict(state, assign=True)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which `transformers.BertModel.from_pretrained`
        reads."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(directory)
        checkpoint.save(directory, self.state_dict())
