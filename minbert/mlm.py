"""Masked language modelling, BERT's pre-training (Devlin et al. 2019, section 3.1 and appendix A.1,
https://arxiv.org/abs/1810.04805): hide some tokens of a text, and have the model guess them.

    ids (B, L) -> mask_tokens -> masked ids (B, L) and which N tokens are to be guessed
    masked ids -> encoder -> (T, H) -> the N chosen tokens -> head -> logits (N, V) -> cross-entropy

V is the size of the vocabulary; other axes as in bert.py. A row of logits has 30,522 numbers, as many as 80
hidden states of MiniLM, so only the chosen tokens, about one in seven, have any. The head's last layer is the
word embeddings, transposed: a token is likely if its embedding points the way that the head's output does.

`python -m minbert.mlm WEIGHTS "A [MASK] film."` prints a checkpoint's guesses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minbert import checkpoint, hub
from minbert.bert import BertModel
from minbert.command import Parser, carry_out
from minbert.config import BertConfig
from minbert.errors import InputError, shown
from minbert.files import named_folder, write_tensors
from minbert.linear import Linear, fast_products, linear
from minbert.tokenizer import SPECIAL_TOKENS, BertTokenizer

# Masking


def mask_tokens(
    input_ids: Tensor,
    words: Tensor,
    mask_token_id: int,
    vocab_size: int,
    generator: torch.Generator,
    rate: float = 0.15,
) -> tuple[Tensor, Tensor]:
    """Return the ids with some tokens masked, (B, L), and which tokens are to be guessed, (B, L) bool.

    Of each row's tokens, a fraction `rate` is chosen, at least one. Of those chosen, 80% become [MASK], 10% a
    random token, and 10% stay as they are, so that the model cannot tell a token that it must guess by its
    look. `words` (B, L) has the position of the first token of each token's word, and -1 where nothing may be
    chosen; see `words_in`. Words are chosen whole, so the last one may go beyond the rate. The result is a
    function of the arguments and the generator's state alone.

    >>> ids, words = torch.full((1, 8), 7), torch.tensor([[-1, 1, 2, 2, 4, 5, 6, -1]])  # 3 belongs to 2
    >>> masked, chosen = mask_tokens(ids, words, 4, 1000, torch.Generator().manual_seed(0), rate=1.0)
    >>> chosen.long()
    tensor([[0, 1, 1, 1, 1, 1, 1, 0]])
    """
    draws = torch.rand(input_ids.shape, generator=generator)
    lots = torch.rand(input_ids.shape, generator=generator)
    replacements = torch.randint(vocab_size, input_ids.shape, generator=generator)

    maskable, first = words >= 0, words.clamp(min=0)
    of_word = draws.gather(1, first).masked_fill(~maskable, 1.0)  # all tokens of a word share its draw
    rank = of_word.argsort(dim=1, stable=True).argsort(dim=1)  # and so stand next to each other in this order
    wanted = (rate * maskable.sum(dim=1, keepdim=True)).round().clamp(min=1)
    chosen = maskable & (rank.gather(1, first) < wanted)

    masked = input_ids.masked_fill(chosen & (lots < 0.8), mask_token_id)
    return torch.where(chosen & (lots >= 0.9), replacements, masked), chosen


def words_in(input_ids: Tensor, special: Tensor, continues: Tensor | None = None) -> Tensor:
    """Return the position of the first token of each token's word, (B, L), and -1 at special tokens.

    `special` and `continues` (V,) bool say of each token of the vocabulary whether it is special, and whether
    it continues a word, like ##ing; what follows a special token begins a word in any case. Without
    `continues`, each token is a word of its own.

    >>> special, continues = torch.tensor([True, False, False]), torch.tensor([False, False, True])
    >>> words_in(torch.tensor([[0, 1, 2, 1, 0]]), special, continues)
    tensor([[-1,  1,  1,  3, -1]])
    """
    positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    of_no_word = special[input_ids]
    if continues is not None:
        after_special = of_no_word.roll(1, dims=1)
        within = continues[input_ids] & ~after_special  # a window of a long text may begin inside a word
        positions = positions.masked_fill(within, 0).cummax(dim=1).values
    return positions.masked_fill(of_no_word, -1)


class Masking:
    """`mask_tokens` for the vocabulary of a tokenizer, with a generator's next numbers: `masking(input_ids,
    generator)`. [CLS], [SEP], [PAD], [UNK] and [MASK] itself are never chosen."""

    def __init__(self, tokenizer: BertTokenizer, rate: float = 0.15, whole_words: bool = False):
        tokens = tokenizer.tokens(range(tokenizer.vocab_size))
        self.mask_token_id, self.rate = tokens.index("[MASK]"), rate
        self.special = torch.tensor([token in SPECIAL_TOKENS for token in tokens])
        self.continues = torch.tensor([token.startswith("##") for token in tokens]) if whole_words else None

    def __call__(self, input_ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        words = words_in(input_ids, self.special, self.continues)
        vocab_size = len(self.special)
        return mask_tokens(input_ids, words, self.mask_token_id, vocab_size, generator, self.rate)


# The model


class MaskedLanguageHead(nn.Module):
    """What guesses a token from its last hidden state: a layer, GELU, LayerNorm, and the word embeddings.

    A fresh one passes the hidden states on: the matrix is the identity.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))  # of each token
        if not self.bias.is_meta:
            nn.init.eye_(self.dense.weight)
            nn.init.zeros_(self.dense.bias)

    def forward(self, hidden_states: Tensor, word_embeddings: Tensor) -> Tensor:
        """(N, H) and (V, H) -> logits (N, V)"""
        directions = self.norm(F.gelu(self.dense(hidden_states)))
        return linear(directions, word_embeddings, self.bias)


class BertForMaskedLM(nn.Module):
    """An encoder and the head that guesses its masked tokens: a fresh one, if none is given.

    >>> encoder = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2))
    >>> ids = torch.tensor([[2, 4, 3]])
    >>> BertForMaskedLM(encoder).guesses(ids == 4, ids).shape  # of the token that is 4
    torch.Size([1, 9])
    """

    def __init__(self, bert: BertModel, head: MaskedLanguageHead | None = None):
        super().__init__()
        self.bert = bert
        self.head = MaskedLanguageHead(bert.config) if head is None else head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the logits of every token, (B, L, V), zeros at padding; inputs as in `BertModel`."""
        embeddings, packing = self.bert.embed(input_ids, attention_mask, token_type_ids)
        hidden_states = self.bert.encode(embeddings, packing)
        return packing.unpack(self.head(hidden_states, self.bert.embeddings.word.weight))

    def guesses(
        self,
        chosen: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return the logits (N, V) of the N tokens that are True in `chosen` (B, L), row after row, in a
        fraction of the time of `forward`."""
        embeddings, packing = self.bert.embed(input_ids, attention_mask, token_type_ids)
        with fast_products():
            hidden_states = self.bert.encode(embeddings, packing.by_length())
            return self.head(hidden_states[packing.pack(chosen)], self.bert.embeddings.word.weight)

    @classmethod
    def from_pretrained(
        cls,
        name_or_directory: str | Path,
        allow_pickle: bool = False,
        revision: str | None = None,
        **config_changes: Any,
    ) -> BertForMaskedLM:
        """Load encoder and head, in evaluation mode, as `BertModel.from_pretrained` does. A checkpoint
        without the head, such as minilm-l6, gets a fresh one. Raises InputError if a part of the head is
        missing or misshapen, or if its decoder is not the word embeddings."""
        directory = hub.resolve(name_or_directory, allow_pickle, revision)
        model = cls(BertModel.from_pretrained(directory, allow_pickle, **config_changes))
        state = {f"head.{name}": tensor for name, tensor in model.head.state_dict().items()}
        stored = checkpoint.find(directory, state, allow_pickle, within="cls.predictions.")
        if "cls.predictions.bias" in stored:
            checkpoint.fill(state, stored, directory)
        table = model.bert.embeddings.word.weight
        decoder = stored.get("cls.predictions.decoder.weight")
        if decoder and not (decoder.shape == table.shape and torch.equal(decoder.read().float(), table)):
            raise InputError(f"{directory}: its decoder is not its word embeddings, which is not supported")
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which `transformers.BertForMaskedLM` reads, and as an
        encoder also `BertModel`, ours and theirs."""
        directory = named_folder(directory)
        self.bert.config.save_pretrained(directory, type(self).__name__)
        encoder = checkpoint.to_hugging_face(self.bert.state_dict())
        head = checkpoint.to_hugging_face({f"head.{name}": x for name, x in self.head.state_dict().items()})
        named = {f"bert.{name}": tensor for name, tensor in encoder.items()}
        write_tensors(directory / "model.safetensors", named | head)


# Guessing


@torch.inference_mode()
def fill(
    model: BertForMaskedLM, tokenizer: BertTokenizer, text: str, k: int = 5
) -> list[list[tuple[str, float]]]:
    """Return for each [MASK] in a text the k most likely tokens with their probabilities, best first. Leaves
    the model in evaluation mode. Raises InputError if there is no [MASK], or none before the text is cut, or
    if k is less than 1.

    >>> model = BertForMaskedLM.from_pretrained("minilm-l6")
    >>> ((first, second),) = fill(model, BertTokenizer.from_pretrained("minilm-l6"), "A [MASK] film.", k=2)
    >>> first[1] > second[1]  # each is a token and its probability
    True
    """
    if k < 1:
        raise InputError(f"k, the number of guesses, must be at least 1, not {k}")
    model.eval()
    most = model.bert.config.max_position_embeddings
    batch = tokenizer([text], max_length=most)
    chosen = batch["input_ids"] == tokenizer.mask_token_id
    if not chosen.any():
        raise InputError(f"{shown(text)}: has no [MASK] among its first {most} tokens")
    logits = model.guesses(chosen, **batch)[:, : tokenizer.vocab_size]  # some models have rows to spare
    best = logits.softmax(dim=-1).topk(min(k, tokenizer.vocab_size))
    return [
        list(zip(tokenizer.tokens(ids), values.tolist(), strict=True))
        for values, ids in zip(*best, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a checkpoint, and print its guesses for each text. Return the exit status."""
    parser = Parser("python -m minbert.mlm", description="Guess the words behind [MASK].")
    parser.add_argument("weights", help="a name of `python -m minbert.hub`, a folder, or ORG/NAME on the hub")
    parser.add_argument("texts", nargs="+", metavar="text", help='such as "A [MASK] film."')
    parser.add_argument(
        "--best", type=int, default=5, metavar="K", help="guesses for each [MASK] (default 5)"
    )

    def work() -> int:
        given = parser.parse_args(arguments)
        print_guesses(given.weights, given.texts, given.best)
        return 0

    return carry_out(work)


def print_guesses(weights: str, texts: Sequence[str], k: int) -> None:
    """Print each text, and below it a line of the k best guesses for each [MASK]."""
    model, tokenizer = BertForMaskedLM.from_pretrained(weights), BertTokenizer.from_pretrained(weights)
    if not model.head.bias.any():
        print(f"{weights}: has no trained head for masked tokens, so these are poor guesses", file=sys.stderr)
    for text in texts:
        print(text)
        for guesses in fill(model, tokenizer, text, k):
            print("  " + "  ".join(f"{token} {probability:.3f}" for token, probability in guesses))


if __name__ == "__main__":
    sys.exit(main())
