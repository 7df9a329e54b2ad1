"""WordPiece tokenisation for BERT, built on the `tokenizers` library.

A single sentence becomes `[CLS] a [SEP]`, with token type 0 throughout; a pair becomes `[CLS] a [SEP] b
[SEP]`, with type 1 from b on. Text that is too long is cut, at its end unless told otherwise; in a pair, the
longer sentence is cut first. Special tokens are always kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from minbert import hub
from minbert.config import BertConfig
from minbert.errors import InputError, short_line, shown
from minbert.fields import LONE_SURROGATE
from minbert.files import named_folder, write_text
from minbert.reading import load_json, read_text, reason

Item = TypeVar("Item")
Keep = Callable[[list[int], int], list[int]]  # a text's tokens, and how many there is room for -> those kept

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LONGEST_WORD = 200  # characters; WordPiece's time grows with their square, and BERT's limit is 100
CHARACTERS = 1 << 20  # read and tokenised at a time, which takes up to half a gigabyte
LEAST_CHARACTERS = 128  # that an item counts for, so that a chunk of short ones is not endless either
# The only components a tokenizer.json may have. Others read text differently from BERT, or can run forever.
COMPONENTS = {
    "normalizer": {"BertNormalizer"},
    "pre_tokenizer": {"BertPreTokenizer"},
    "model": {"WordPiece"},
    "post_processor": {"TemplateProcessing", "BertProcessing"},
}


def first_tokens(ids: list[int], room: int) -> list[int]:
    """Return as many of a text's first tokens as there is room for."""
    return ids[:room]


class BertTokenizer:
    """Turns text into token ids: `tokenizer(...)` returns padded tensors, `token_ids` plain lists.

    >>> tokenizer = BertTokenizer.from_pretrained("minilm-l6")
    >>> batch = tokenizer(["The train was late.", "Why?"])
    >>> batch["attention_mask"]
    tensor([[1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 0, 0, 0]])
    >>> tokenizer.tokens(batch["input_ids"][1])
    ['[CLS]', 'why', '?', '[SEP]', '[PAD]', '[PAD]', '[PAD]']
    """

    def __init__(self, backend: Tokenizer):
        self.backend = backend
        vocabulary = backend.get_vocab()
        self.pad_token_id, self.mask_token_id = vocabulary["[PAD]"], vocabulary["[MASK]"]

    @classmethod
    def from_pretrained(cls, name_or_directory: str | Path, revision: str | None = None) -> BertTokenizer:
        """Load a name from `hub.py`, a directory with `tokenizer.json` (preferred) or `vocab.txt`, or a hub
        repository "org/name" at a `revision`, whose weights are not fetched.

        For a bare `vocab.txt`, `tokenizer_config.json` says how text is normalised. If it does not say
        whether text is lowercased, the vocabulary does: an uncased one has no capital letters outside the
        special tokens. Raises InputError if there is no such checkpoint, or its tokenizer is not BERT's.
        """
        directory = hub.resolve_tokenizer(name_or_directory, revision)
        path = directory / "tokenizer.json"
        if path.is_file():
            backend = _read_tokenizer(path)
        else:
            path = directory / "vocab.txt"
            vocabulary = _read_vocabulary(path)
            backend = _wordpiece(vocabulary, _normalizer(directory / "tokenizer_config.json", vocabulary))
        _check(backend, path)
        return cls(backend)

    @property
    def lowercase(self) -> bool:
        """Whether text is lowercased."""
        return self.backend.normalizer.lowercase

    @property
    def vocab_size(self) -> int:
        """How many tokens it knows; ids are 0 ... vocab_size - 1."""
        return self.backend.get_vocab_size()

    def token_ids(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int = 512,
        keep: Keep = first_tokens,
    ) -> list[tuple[list[int], list[int]]]:
        """Return (input_ids, token_type_ids) of each text, or text and partner in `pairs`, unpadded.

        No example is longer than `max_length` tokens, special tokens included: of a text that is too long,
        those that `keep` returns remain. Raises InputError if an item
        is not a string, if `pairs` has another length, or if `max_length` leaves no room for text.
        """
        inputs = _checked(texts, pairs)
        needed = 2 if pairs is None else 3
        if max_length <= needed:
            raise InputError(f"max_length {max_length} leaves no room beside {needed} special tokens")
        return [
            cut(encoding.ids, encoding.type_ids, max_length, pairs is not None, keep)
            for chunk in in_chunks(inputs, len if pairs is None else lambda pair: len(pair[0]) + len(pair[1]))
            for encoding in self.backend.encode_batch_fast(chunk)
        ]

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 512
    ) -> dict[str, Tensor]:
        """Return input_ids, attention_mask and token_type_ids, each (B, L) int64, padded to the longest."""
        return self.pad(self.token_ids(texts, pairs, max_length))

    def pad(self, encoded: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Tensor]:
        """Return the lists from `token_ids` as padded tensors, the same as a call of the tokenizer."""
        length = max((len(ids) for ids, _ in encoded), default=0)
        batch = {
            "input_ids": torch.full((len(encoded), length), self.pad_token_id),
            "attention_mask": torch.zeros(len(encoded), length, dtype=torch.int64),
            "token_type_ids": torch.zeros(len(encoded), length, dtype=torch.int64),
        }
        for row, (ids, types) in enumerate(encoded):
            batch["input_ids"][row, : len(ids)] = torch.as_tensor(ids)
            batch["attention_mask"][row, : len(ids)] = 1
            batch["token_type_ids"][row, : len(ids)] = torch.as_tensor(types)
        return batch

    def fingerprint(self) -> str:
        """Return a SHA-256 of all that decides a text's ids: vocabulary, normalisation and templates."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def tokens(self, input_ids: Sequence[int] | Tensor) -> list[str]:
        """Return the tokens of one row of ids, (L,), as they stand in the vocabulary, such as `play`, `##ing`
        and `[SEP]`. Raises InputError for an id that the vocabulary does not have."""
        tokens = []
        for number in map(int, input_ids):
            token = self.backend.id_to_token(number) if number >= 0 else None
            if token is None:
                raise InputError(f"id {number} is not one of this tokenizer's {self.vocab_size} tokens")
            tokens.append(token)
        return tokens

    def decode(self, input_ids: Sequence[int]) -> str:
        """Return the text of the ids, without special tokens."""
        return self.backend.decode(list(input_ids))

    def save_pretrained(self, directory: str | Path, max_length: int = 512) -> None:
        """Write `tokenizer.json`, `vocab.txt` and `tokenizer_config.json`, as `transformers` reads them. That
        cuts texts at `max_length` tokens if it is asked to truncate."""
        directory = named_folder(directory)
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=True))
        vocabulary = self.backend.get_vocab()
        words = sorted(vocabulary, key=vocabulary.__getitem__)
        write_text(directory / "vocab.txt", "".join(f"{word}\n" for word in words))
        normalizer = self.backend.normalizer
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer.lowercase,
            "strip_accents": normalizer.strip_accents,
            "tokenize_chinese_chars": normalizer.handle_chinese_chars,
            "model_max_length": max_length,
        }
        write_text(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def rooms(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of a pair are kept of each text, given how many each has and how many there is
    room for: the longer one is cut first.

    >>> rooms(3, 50, room=20), rooms(40, 50, room=20)
    ((3, 17), (10, 10))
    """
    short = min(first, second, room // 2)
    kept = short if first <= second else room - short
    return kept, room - kept


def cut(
    ids: list[int], types: list[int], most: int, pair: bool, keep: Keep = first_tokens
) -> tuple[list[int], list[int]]:
    """Return `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]` and its types, at most `most` long; see the module.

    The library would do the same, but it also makes what it cuts off into further inputs: of a pair, one for
    each piece of a with each piece of b, which takes gigabytes if both are long.
    """
    if len(ids) <= most:
        return ids, types
    if not pair:
        return [ids[0], *keep(ids[1:-1], most - 2), ids[-1]], types[:most]
    start = types.count(0)
    a, b = ids[1 : start - 1], ids[start:-1]
    first, second = rooms(len(a), len(b), most - 3)
    ids = [ids[0], *keep(a, first), ids[-1], *keep(b, second), ids[-1]]
    return ids, [0] * (first + 2) + [1] * (second + 1)


def in_chunks(items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield the items in lists of at most `CHARACTERS` characters each, or of one item that is longer.
    `length` gives an item's characters."""
    chunk: list[Item] = []
    left = CHARACTERS
    for item in items:
        cost = max(length(item), LEAST_CHARACTERS)
        if chunk and cost > left:
            yield chunk
            chunk, left = [], CHARACTERS
        chunk.append(item)
        left -= cost
    if chunk:
        yield chunk


def _checked(texts: Sequence[str], pairs: Sequence[str] | None) -> list:
    for name, column in (("texts", texts), ("pairs", pairs)):
        if isinstance(column, str):
            raise InputError(f"{name} is one string; pass a list of strings")
        for position, text in enumerate(column or ()):
            if not isinstance(text, str):
                raise InputError(f"{name}[{position}] is {type(text).__name__}, not a string")
            if LONE_SURROGATE.search(text):
                raise InputError(f"{name}[{position}] contains a lone surrogate; fix its encoding")
    if pairs is None:
        return list(texts)
    if len(texts) != len(pairs):
        raise InputError(f"texts has {len(texts)} items, but pairs has {len(pairs)}")
    return list(zip(texts, pairs, strict=True))


def _read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json. Its components are checked before the library builds any of
    them."""
    content = load_json(path, hint="; not a valid BERT tokenizer")
    try:
        for part, known in COMPONENTS.items():
            found = (content[part] or {}).get("type")
            if found not in known:
                raise ValueError(f"its {part} is {shown(found)}, not {' or '.join(sorted(known))}")
        model = content["model"]
        if (model["unk_token"], model["continuing_subword_prefix"]) != ("[UNK]", "##"):
            raise ValueError("its unk_token and continuing_subword_prefix are not [UNK] and ##")
        if not 0 < model["max_input_chars_per_word"] <= LONGEST_WORD:
            raise ValueError(f"max_input_chars_per_word is not between 1 and {LONGEST_WORD}")
        template = content["post_processor"]
        pieces = [*template.get("single", ()), *template.get("pair", ())]
        named = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
        if not named <= template.get("special_tokens", {}).keys():  # the library would panic
            raise ValueError("its post_processor uses special tokens that it does not define")
        plain = content | {"truncation": None, "padding": None}  # some files set both
        return Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises bare Exception
        problem = f"lacks {error}" if isinstance(error, KeyError) else short_line(error)
        raise InputError(f"{path}: not a valid BERT tokenizer ({problem})") from None


def _check(backend: Tokenizer, path: Path) -> None:
    """Raise InputError unless the tokenizer fits BERT and the model beside it.

    It must have BERT's special tokens, number its tokens without gaps, have no more of them than the model,
    and read sentences and pairs as BERT does.
    """
    vocabulary = backend.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise InputError(f"{path}: the vocabulary lacks {', '.join(missing)}")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise InputError(
            f"{path}: the {len(vocabulary)} tokens are not numbered from 0 without gaps or repeats"
        )
    if (path.parent / "config.json").is_file():
        known = BertConfig.from_pretrained(path.parent).vocab_size
        if len(vocabulary) > known:
            raise InputError(
                f"{path}: has {len(vocabulary)} tokens, more than the {known} in its config.json"
            )
    single, pair = backend.encode("a"), backend.encode("a", "b")
    first, second = single.tokens[1:-1], pair.tokens[len(single.tokens) : -1]
    if (
        pair.tokens != ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
        or pair.type_ids != [0] * len(single.tokens) + [1] * (len(second) + 1)
        or single.tokens != ["[CLS]", *first, "[SEP]"]
        or any(single.type_ids)
        or pair.ids != [vocabulary[token] for token in pair.tokens]
    ):
        raise InputError(f"{path}: does not read a pair as [CLS] a [SEP] b [SEP] with types 0 and 1")


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Read one token per line; its id is its line number, from 0."""
    try:
        tokens = read_text(path).removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise InputError(f"{path.parent}: contains neither tokenizer.json nor vocab.txt") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from None
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(token.rstrip("\r") for token in tokens):
        if token in vocabulary:
            raise InputError(f"{path}:{number + 1}: {shown(token)} duplicates line {vocabulary[token] + 1}")
        vocabulary[token] = number
    return vocabulary


def _normalizer(config: Path, vocabulary: dict[str, int]) -> BertNormalizer:
    """Return the normaliser that a tokenizer_config.json describes, if there is one."""
    settings = load_json(config) if config.is_file() else {}
    if not isinstance(settings, dict):
        raise InputError(f"{config}: holds no JSON object")
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    for name in names:
        if not isinstance(settings.get(name), bool | None):
            raise InputError(f"{config}: {name} is not true or false")
    lowercase, strip_accents, chinese = map(settings.get, names)
    if lowercase is None:
        lowercase = not any(token != token.lower() for token in vocabulary if not token.startswith("["))
    return BertNormalizer(
        lowercase=lowercase,
        strip_accents=strip_accents,  # None: if text is lowercased
        handle_chinese_chars=chinese is not False,
    )


def _wordpiece(vocabulary: dict[str, int], normalizer: BertNormalizer) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocabulary])
    if "[CLS]" in vocabulary and "[SEP]" in vocabulary:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
        )
    return tokenizer
