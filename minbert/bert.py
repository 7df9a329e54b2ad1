"""BERT's encoder (Devlin et al. 2019, https://arxiv.org/abs/1810.04805): attention, layer, embeddings, model.

    ids (B, L) -> embed -> (T, H) -> every layer -> (T, H) -> unpack -> (B, L, H), or pool -> (B, H)

B examples, L positions, H width, A heads of d = H / A dimensions; in BERT-base H = 768, A = 12, d = 64.
Padding is never computed: of a batch such as [[a b c], [d e -]], all T = 5 real tokens are packed in one
list, [a b c d e]. `packing.pack` makes it, `packing.unpack` lays it out as a batch again, zeros at padding,
and `packing.first` has the place of each example's first token. Linear, Embedding and Dropout are torch's,
only faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minbert import checkpoint, hub
from minbert.config import BertConfig
from minbert.dropout import Dropout
from minbert.dropout import dropout as drop
from minbert.embedding import Embedding
from minbert.errors import InputError
from minbert.files import named_folder
from minbert.linear import Linear, fast_products
from minbert.memory import check_memory
from minbert.packing import Packing, added_to_scores

POOLINGS = ("cls", "mean")  # the ways to make one vector of a sentence's tokens: see `BertModel.pool`


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax(Q K^T / sqrt(d)) V (Vaswani et al. 2017, equation 1).

    query (B, A, Lq, d), key and value (B, A, L, d); the mask broadcasts to (B, A, Lq, L). A boolean or
    integer mask is True or 1 where a key may be seen; a float mask is added to the scores. Returns the
    context (B, A, Lq, d) and the weights (B, A, Lq, L) before dropout, which sum to 1 over the keys. Raises
    InputError if a boolean or integer mask lets a query see no key.

    >>> query, key = torch.zeros(1, 1, 1, 4), torch.randn(1, 1, 3, 4)  # every score is 0
    >>> context, weights = attention(query, key, key, mask=torch.tensor([True, True, False]))
    >>> weights
    tensor([[[[0.5000, 0.5000, 0.0000]]]])
    """
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]))
    if mask is not None:
        scores = scores + added_to_scores(mask).to(scores.dtype)
    weights = scores.softmax(dim=-1)
    return drop(weights, dropout) @ value, weights


class SelfAttention(nn.Module):
    """Multi-head attention: A attentions side by side, each on its own d of the H dimensions.

    >>> layer = SelfAttention(BertConfig(hidden_size=8, num_attention_heads=2))
    >>> layer.split_heads(torch.zeros(1, 5, 8)).shape
    torch.Size([1, 2, 5, 4])
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = Linear(config.hidden_size, config.hidden_size)
        self.key = Linear(config.hidden_size, config.hidden_size)
        self.value = Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: Tensor, packing: Packing, first_only: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """(T, H) -> the context (T, H), and the weights (b, A, l, l) of each group of examples. With
        `first_only`, only the first token of each example is a query: (B, H) and (b, A, 1, l)."""
        queries = hidden_states[packing.first] if first_only else hidden_states
        layout = packing.first_layout if first_only else packing.layout
        query = layout.spread(self.query(queries))
        key = packing.layout.spread(self.key(hidden_states))
        value = packing.layout.spread(self.value(hidden_states))
        dropout = self.dropout_prob if self.training else 0.0
        contexts, weights = [], []
        for q, k, v, mask in zip(query, key, value, packing.key_masks, strict=True):
            q, k, v = (self.split_heads(x) for x in (q, k, v))
            context, attended = attention(q, k, v, mask, dropout)
            contexts.append(context.transpose(1, 2).flatten(2))  # (b, A, l, d) -> (b, l, H)
            weights.append(attended)
        return layout.collect(contexts), weights

    def split_heads(self, x: Tensor) -> Tensor:
        """(b, l, H) -> (b, A, l, d)"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


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
    ) -> tuple[Tensor, list[Tensor]]:
        """(T, H) -> (T, H) and the attention weights, (b, A, l, l) for each group of examples.

        With `first_only`, (B, H) and (b, A, 1, l): only each example's first token is computed. That will do
        in the last layer, which needs just the keys and values of the others.
        """
        context, weights = self.attention(hidden_states, packing, first_only)
        rows = hidden_states[packing.first] if first_only else hidden_states
        rows = self.attention_norm(rows + self.dropout(self.attention_output(context)))
        feed_forward = self.output(F.gelu(self.intermediate(rows)))
        return self.output_norm(rows + self.dropout(feed_forward)), weights


class BertEmbeddings(nn.Module):
    """The sum of what a token is, where it stands and which of two sentences it belongs to, normalised."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word = Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position = Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, packing: Packing) -> Tensor:
        """(B, L) ids -> (T, H)"""
        words = self.word(packing.pack(input_ids))
        types = self.token_type(packing.pack(token_type_ids))
        return self.dropout(self.norm(words + types + self.position(packing.positions)))


@dataclass(frozen=True)
class BertOutput:
    """The result of `BertModel`: `out.pooler_output`, `out["pooler_output"]` or `out[1]`. Padded positions
    are 0 in every tensor.

    >>> out = BertOutput(torch.zeros(1, 3, 8), torch.zeros(1, 8))
    >>> last, pooled = out[:2]
    >>> pooled is out.pooler_output is out["pooler_output"]
    True
    """

    last_hidden_state: Tensor  # (B, L, H)
    pooler_output: Tensor | None  # (B, H); None if the checkpoint has no pooler
    hidden_states: tuple[Tensor, ...] | None = None  # embeddings, then each layer's: (B, L, H)
    attentions: tuple[Tensor, ...] | None = None  # one (B, A, L, L) for each layer

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return vars(self)[key]
        return tuple(value for value in vars(self).values() if value is not None)[key]

    def __contains__(self, name: str) -> bool:
        return vars(self).get(name) is not None


class BertModel(nn.Module):
    """The encoder: `embed`, `encode` and `pool` packed tokens; `forward` takes and returns padded ones.

    >>> model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)).eval()
    >>> out = model(torch.tensor([[1, 2, 3], [4, 5, 0]]), attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    >>> out.last_hidden_state.shape, out.pooler_output.shape
    (torch.Size([2, 3, 8]), torch.Size([2, 8]))
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler: Linear | None = Linear(config.hidden_size, config.hidden_size)
        self.apply(self._initialize)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertOutput:
        """All of input_ids, attention_mask (1 at real tokens) and token_type_ids are (B, L) integers.

        Without a mask every token is real; without types all are 0. Raises InputError for shapes that do not
        fit, more positions or larger ids than the model has, and an example without a real token.
        """
        embeddings, packing = self.embed(input_ids, attention_mask, token_type_ids)
        trace: list[tuple[Tensor, list[Tensor]]] = []  # what each layer returns, kept only if it is asked for
        kept = trace if output_hidden_states or output_attentions else None
        last = self.encode(embeddings, packing, trace=kept)
        states = attentions = None
        if output_hidden_states:
            states = tuple(packing.unpack(state) for state in (embeddings, *(state for state, _ in trace)))
        if output_attentions:
            attentions = tuple(packing.unpack_weights(weights) for _, (weights,) in trace)
        pooler_output = None if self.pooler is None else self.pool(last, packing, "cls")
        return BertOutput(packing.unpack(last), pooler_output, states, attentions)

    def pooled(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pooling: str = "cls",
    ) -> Tensor:
        """Return one vector for each example, (B, H), faster than `forward`; inputs as there, pooling as in
        `pool`. It can be differentiated once; for second derivatives call `forward`."""
        return self.pooled_from_embeddings(*self.embed(input_ids, attention_mask, token_type_ids), pooling)

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Packing]:
        """Return the packed embeddings (T, H) and where their tokens stand."""
        if isinstance(input_ids, Mapping):
            raise InputError("model(batch) got the whole batch as input_ids; write model(**batch)")
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        self._check(input_ids, attention_mask, token_type_ids)
        packing = Packing.from_mask(attention_mask)
        return self.embeddings(input_ids, token_type_ids, packing), packing

    def encode(
        self,
        hidden_states: Tensor,
        packing: Packing,
        first_only: bool = False,
        trace: list[tuple[Tensor, list[Tensor]]] | None = None,
    ) -> Tensor:
        """(T, H) -> (T, H), through every layer; what each layer returns is appended to `trace`.

        With `first_only` the last layer computes each example's first token alone, (B, H).
        """
        for layer in self.layers:
            hidden_states, weights = layer(hidden_states, packing, first_only and layer is self.layers[-1])
            if trace is not None:
                trace.append((hidden_states, weights))
        return hidden_states

    def pool(self, hidden_states: Tensor, packing: Packing, pooling: str) -> Tensor:
        """(T, H) -> (B, H). "cls": tanh(W x + b) of the first token; "mean": the mean over an example's
        tokens."""
        if pooling == "cls":
            return self._pool_first(hidden_states[packing.first])
        if pooling == "mean":
            return packing.unpack(hidden_states).sum(dim=1) / packing.mask.sum(dim=1, keepdim=True)
        raise InputError(f"pooling is one of {', '.join(POOLINGS)}, not {pooling!r}")

    def pooled_from_embeddings(self, embeddings: Tensor, packing: Packing, pooling: str) -> Tensor:
        """(T, H) -> (B, H): `encode`, then `pool`, with the fastest matrix products of this processor and
        examples of like lengths in groups; for "cls" the last layer computes only the rows that are used."""
        packing = packing.by_length()
        with fast_products():
            if pooling == "cls":
                return self._pool_first(self.encode(embeddings, packing, first_only=True))
            return self.pool(self.encode(embeddings, packing), packing, pooling)

    def _pool_first(self, first: Tensor) -> Tensor:
        """tanh(W x + b) of first tokens (B, H)."""
        if self.pooler is None:
            raise InputError("this checkpoint has no pooler, which pooling cls needs; use pooling mean")
        return torch.tanh(self.pooler(first))

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
        if input_ids.is_cpu:
            check_memory(self.config, *shape)
        for name, ids, size in (
            ("input_ids", input_ids, self.config.vocab_size),
            ("token_type_ids", token_type_ids, self.config.type_vocab_size),
        ):
            if ids.min() < 0 or ids.max() >= size:
                raise InputError(f"{name} must lie in 0..{size - 1}; is this the tokenizer of another model?")

    def _initialize(self, module: nn.Module) -> None:
        """Draw fresh weights, unless there is no memory for them: see `from_pretrained`."""
        if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | Path,
        allow_pickle: bool = False,
        revision: str | None = None,
        **config_changes: Any,
    ) -> BertModel:
        """Load a pretrained encoder, in evaluation mode: a name from `hub.py`, a directory that
        `save_pretrained` or Hugging Face wrote, or a hub repository "org/name" at a `revision`: a branch, a
        tag or a commit (default: main). `pytorch_model.bin` is read only with `allow_pickle`, and then with
        `weights_only=True`. `config_changes` replace fields of its config, such as hidden_dropout_prob.
        A checkpoint without a pooler, such as a BertForMaskedLM, gives a model without one: its `pooler` and
        `pooler_output` are None, and only "mean" pools. Raises InputError that lists the keys that are
        missing, unexpected or misshapen.
        """
        directory = hub.resolve(name_or_directory, allow_pickle, revision)
        config = replace(BertConfig.from_pretrained(directory), **config_changes)
        with torch.device("meta"):  # shapes without memory, until the file is known to hold them all
            model = cls(config)
        stored = checkpoint.find(directory, model.state_dict(), allow_pickle)  # raises if it does not fit
        if "pooler.dense.weight" not in stored:
            model.pooler = None
        shapes = model.state_dict()
        weights = {name: torch.empty(shape.shape, device="cpu") for name, shape in shapes.items()}
        checkpoint.fill(weights, stored, directory)
        model.load_state_dict(weights, assign=True)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which `transformers.BertModel` reads."""
        directory = named_folder(directory)
        self.config.save_pretrained(directory)
        checkpoint.save(directory, self.state_dict())
