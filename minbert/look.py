"""A page about what a BERT makes of one text or pair: its tokens, and where every head looks.

    python -m minbert.look "The bank raised its rates." --out look.html

The page, look.html beside this file, is one file that needs no network. `look` finds what it shows, as a
table that JSON can hold; `page` puts the table into it.
"""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from unicodedata import combining

import torch
from torch import Tensor

from minbert.bert import BertModel
from minbert.command import Parser, print_answer
from minbert.errors import InputError, counted
from minbert.files import resolved, write_text
from minbert.hub import DEFAULT
from minbert.policy import scripts_of
from minbert.tokenizer import BertTokenizer, cut

TEMPLATE = Path(__file__).with_name("look.html")
OUT = "look.html"
LONGEST = 128  # tokens of an input: BERT-base has 2.4 million weights for them, 3 MB of the page
LONGEST_TITLE = 200  # characters
SLOT = re.compile("@(policy|title|data)@")


@torch.inference_mode()
def look(
    model: BertModel, tokenizer: BertTokenizer, texts: Sequence[str], most: int = LONGEST
) -> dict[str, Any]:
    """Return what the page shows of a text, or of a pair: its words with their tokens, as in `spell`, and the
    attention weights of every layer and head, as in `packed`.

    The model is given at most `most` tokens; `uncut` says how many there are. Raises InputError for a text
    that is blank, or that is not valid Unicode.
    """
    if any(not text.strip() for text in texts):
        raise InputError("a text is blank; put each text in quotes")
    most = min(most, model.config.max_position_embeddings)
    batch = tokenizer(texts[:1], texts[1:] or None, most)
    words, uncut = spell(tokenizer, texts, most)
    attentions = model.eval()(**batch, output_attentions=True).attentions
    return {
        "texts": list(texts),
        "lowercase": tokenizer.lowercase,
        "words": words,
        "uncut": uncut,
        "layers": len(attentions),
        "heads": attentions[0].shape[1],
        "weights": packed(torch.cat(attentions)),
    }


def spell(tokenizer: BertTokenizer, texts: Sequence[str], most: int) -> tuple[list[dict[str, Any]], int]:
    """Return the words of the input, and how many tokens it has before it is cut to `most`.

    A word has the `text` as it was written, what normalisation made of it (`normal`), its `pieces` as
    [token, id], and its `segment`, 0 or 1. `[CLS]` and `[SEP]` are words without a `text`.
    """
    encoding = tokenizer.backend.encode(texts[0], texts[1] if len(texts) == 2 else None)
    places, _ = cut([*range(len(encoding.ids))], encoding.type_ids, most, len(texts) == 2)

    def word_of(place: int) -> tuple[int | None, int]:
        """The text that a token is of, and the number of its word there; [CLS] and [SEP] are of neither."""
        number = encoding.word_ids[place]
        return encoding.sequence_ids[place], place if number is None else number

    words = []
    for (source, _), group in groupby(places, word_of):
        own = [*group]
        word: dict[str, Any] = {"segment": encoding.type_ids[own[0]]}
        if source is not None:
            text = written(texts[source], encoding.offsets[own[0]][0], encoding.offsets[own[-1]][1])
            word |= {"text": text, "normal": tokenizer.backend.normalizer.normalize_str(text).strip()}
        words.append(word | {"pieces": [[encoding.tokens[place], encoding.ids[place]] for place in own]})
    return words, len(encoding.ids)


def written(text: str, start: int, end: int) -> str:
    """Return these characters of a text with the accents that combine with the last, which the tokenizer
    has taken off."""
    while end < len(text) and combining(text[end]):
        end += 1
    return text[start:end]


def packed(weights: Tensor) -> str:
    """Attention weights (layers, heads, L, L) -> base64 of a byte round(255 sqrt(w)) each, in this order.

    The root keeps small weights apart: one of .01 is off by at most .0004, and one near 1 by .004.
    """
    return base64.b64encode((weights.sqrt() * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def page(found: Mapping[str, Any]) -> str:
    """Return the page about what `look` found. Nothing in it can run or load but its own script."""
    template = TEMPLATE.read_text(encoding="utf-8")
    values = {
        "policy": f"default-src 'none'; script-src {scripts_of(template)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        "title": html.escape(" · ".join(found["texts"])[:LONGEST_TITLE]),
        "data": json.dumps(found, ensure_ascii=False).replace("<", "\\u003c"),  # so no tag ends the data
    }
    return SLOT.sub(lambda slot: values[slot[1]], template)


def new_file(name: str, force: bool) -> Path:
    """Return where the page is to be written. Raises InputError if it exists, unless `force` replaces it."""
    path = resolved(Path(name).parent) / Path(name).name
    if path.exists() and not force:
        raise InputError(f"{name}: exists; replace it with --force, or name another --out")
    return path


def write_page(path: Path, found: Mapping[str, Any]) -> str:
    """Write the page, and return what to say about it."""
    try:
        write_text(path, page(found))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); name another --out") from None
    read = sum(len(word["pieces"]) for word in found["words"])
    of = "" if read == found["uncut"] else f" of {found['uncut']:,}"
    return f"wrote {path}: {counted(read, 'token')}{of}, {found['layers']} layers of {found['heads']} heads"


def parser_of(program: str, description: str) -> Parser:
    """Return a parser of what each command that writes such a page takes."""
    parser = Parser(program, description=description)
    parser.add_argument("text", nargs="+", help="a text, or two for a pair; put each in quotes")
    parser.add_argument("--out", default=OUT, help=f"page to write (default: {OUT})")
    parser.add_argument("--force", action="store_true", help="replace the page, if it exists")
    return parser


def check_texts(texts: Sequence[str]) -> None:
    """Raise InputError unless these are one text or two."""
    if len(texts) > 2:
        raise InputError(f"{len(texts)} texts were given, but a BERT reads one, or two; put each in quotes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page about a text or a pair. Return the exit status."""
    parser = parser_of(
        "python -m minbert.look", "Write a page about a text: its tokens, and where every head looks."
    )
    parser.add_argument(
        "--weights",
        default=DEFAULT,
        help=f"a name of `python -m minbert.hub`, a folder, or ORG/NAME (default: {DEFAULT})",
    )

    def write() -> str:
        given = parser.parse_args(arguments)
        check_texts(given.text)
        path = new_file(given.out, given.force)
        model = BertModel.from_pretrained(given.weights)
        found = look(model, BertTokenizer.from_pretrained(given.weights), given.text)
        return write_page(path, {"model": Path(given.weights).name, **found})

    return print_answer(write)


if __name__ == "__main__":
    sys.exit(main())
