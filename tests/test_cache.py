"""tokens.py and cache.py: flat arrays hold what lists would, and the cache returns exactly what was built."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, write_table

from minbert import BertTokenizer, InputError
from minbert.tokenizer import LEAST_CHARACTERS
from multitask.data import cache as cache_module
from multitask.data import tables, tokens
from multitask.data.cache import cached
from multitask.data.tables import Strings, read_table
from multitask.data.tasks import PARAPHRASE, SENTIMENT
from multitask.data.tokens import Tokens, length_sorted_batches, make_examples

ENCODED = [([2, 9, 3], [0, 0, 0]), ([2, 8, 3, 7, 7, 3], [0, 0, 0, 1, 1, 1]), ([2, 3], [0, 0])]
ARRAYS = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3), "b": np.array([0.5, np.nan]), "c": np.array(7)}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache for this test only, empty so far."""
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tables"


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.is_dir() else []


def bytes_of(arrays) -> dict[str, tuple]:
    return {name: (one.dtype, one.shape, one.tobytes()) for name, one in arrays.items()}


def never():
    raise AssertionError("built although the cache holds it")


def write_pairs(path: Path, count: int = 40) -> Path:
    rows = (
        [f"p{row}", "how do i " * (row % 5 + 1), "a good film " * (row % 3 + 1), row % 2]
        for row in range(count)
    )
    return write_table(path, [["id", *PARAPHRASE.texts, PARAPHRASE.label], *rows])


def contents(path: Path, tokenizer: BertTokenizer, max_length: int = 64, task=PARAPHRASE) -> dict:
    """Return everything that is kept of a table."""
    table = read_table(path, task, labelled=True)
    examples = make_examples(table, tokenizer, max_length)
    kept = {"labels": examples.labels, **vars(examples.tokens)}
    return bytes_of(kept) | {"ids": list(examples.ids), "dropped": table.dropped}


@pytest.fixture
def tokenizer(tiny) -> BertTokenizer:
    return BertTokenizer.from_pretrained(tiny)


# Flat arrays


@pytest.mark.parametrize("vocab_size, dtype", [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_tokens_are_as_narrow_as_the_vocabulary_allows(vocab_size, dtype):
    largest = vocab_size - 1
    tokens = Tokens.join([[([largest, 0], [0, 0])]], vocab_size)
    assert tokens.ids.dtype == dtype
    assert tokens.batch([0], 0)["input_ids"].tolist() == [[largest, 0]]


@pytest.mark.parametrize("chunks", [[ENCODED], [ENCODED[:1], [], ENCODED[1:]]])
def test_tokens_join_what_comes_in_pieces(chunks):
    tokens = Tokens.join(chunks, 100)
    assert tokens.ids.tolist() == [2, 9, 3, 2, 8, 3, 7, 7, 3, 2, 3]
    assert tokens.offsets.tolist() == [0, 3, 9, 11] and tokens.firsts.tolist() == [3, 3, 2]
    assert len(tokens) == 3 and tokens.lengths.tolist() == [3, 6, 2]


@pytest.mark.parametrize("rows", [[0], [2, 0, 1], [1, 1], range(3), np.array([0, 2])])
def test_a_batch_is_what_the_tokenizer_makes_of_lists(tokenizer, rows):
    tokens = Tokens.join([ENCODED], tokenizer.vocab_size)
    batch, wanted = tokens.batch(rows, 5), dict(tokenizer.pad([ENCODED[row] for row in rows]))
    wanted["input_ids"][wanted["attention_mask"] == 0] = 5
    assert list(batch) == list(wanted)
    for name in wanted:
        assert batch[name].dtype == torch.int64 and torch.equal(batch[name], wanted[name])


def test_no_tokens_and_an_empty_batch():
    assert len(Tokens.join([], 100)) == 0 and Tokens.join([], 100).lengths.tolist() == []
    assert Tokens.join([ENCODED], 100).batch([], 0)["input_ids"].shape == (0, 0)


def test_strings():
    words = ["a", "", "zwölf", "日本", "b" * 300]
    encoded = [word.encode() for word in words]
    strings = Strings(np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(word) for word in encoded]))
    assert list(strings) == words and strings[-1] == words[-1] and strings[1:3] == words[1:3]
    with pytest.raises(IndexError):
        strings[5]


def test_length_sorted_batches_take_every_row_once_longest_first():
    lengths = np.random.default_rng(0).integers(3, 60, size=101)
    batches = length_sorted_batches(lengths, 8, 1000)
    assert [len(batch) for batch in batches] == [8] * 12 + [5]
    order = np.concatenate(batches)
    assert sorted(order) == list(range(101))
    assert lengths[order].tolist() == sorted(lengths, reverse=True)
    assert length_sorted_batches(np.empty(0), 8, 1000) == []


def test_length_sorted_batches_hold_no_more_than_the_tokens_allow_but_one_row_at_least():
    batches = length_sorted_batches(np.array([2, 9, 3, 3, 4, 2, 2]), batch_size=3, max_tokens=8)
    assert [batch.tolist() for batch in batches] == [[1], [4, 2], [3, 0], [5, 6]]


# The cache


def test_what_is_built_is_kept(cache):
    built = cached("0" * 64, lambda: ARRAYS)
    kept = cached("0" * 64, never)
    assert bytes_of(built) == bytes_of(kept) == bytes_of(ARRAYS)
    assert [path.name for path in entries(cache)] == ["0" * 64 + ".safetensors"]
    assert cache.stat().st_mode & 0o077 == 0  # tokens reveal the texts


def damage_first(content: bytearray) -> bytearray:
    content[0] ^= 1
    return content


def damage_last(content: bytearray) -> bytearray:
    content[-1] ^= 1
    return content


def damage_middle(content: bytearray) -> bytearray:
    content[len(content) // 2] ^= 1
    return content


@pytest.mark.parametrize(
    "damage",
    [damage_first, damage_middle, damage_last, lambda content: content[:-1], lambda content: content[:100],
     lambda content: b"", lambda content: bytes(len(content)), lambda content: content + b"x"],
    ids=["first", "middle", "last", "torn", "short", "empty", "zeros", "longer"],
)  # fmt: skip
def test_a_damaged_entry_is_built_anew(cache, damage):
    cached("0" * 64, lambda: ARRAYS)
    (path,) = entries(cache)
    sound = path.read_bytes()
    path.write_bytes(damage(bytearray(sound)))
    assert bytes_of(cached("0" * 64, lambda: ARRAYS)) == bytes_of(ARRAYS)
    assert path.read_bytes() == sound
    cached("0" * 64, never)


def test_an_entry_may_be_truncated_under_a_running_process(cache):
    """A page of a mapped file that is gone ends the process with SIGBUS."""
    numbers = {"a": np.arange(100_000)}
    cached("0" * 64, lambda: numbers)
    kept = cached("0" * 64, never)
    os.truncate(*entries(cache), 0)
    reader = multiprocessing.get_context("fork").Process(target=kept["a"].sum)
    reader.start()
    reader.join(30)
    assert reader.exitcode == 0 and np.array_equal(kept["a"], numbers["a"])


def test_an_entry_under_another_name_is_not_trusted(cache):
    cached("0" * 64, lambda: ARRAYS)
    (path,) = entries(cache)
    os.link(path, path.with_name("1" * 64 + ".safetensors"))
    other = {"a": np.zeros(3)}
    assert bytes_of(cached("1" * 64, lambda: other)) == bytes_of(other)


@pytest.mark.parametrize("unwritable", ["a file", "no rights"])
def test_a_cache_that_cannot_be_written_costs_one_line(tmp_path, monkeypatch, capsys, unwritable):
    home = tmp_path / "cache"
    monkeypatch.setenv("MINBERT_CACHE", str(home))
    cache_module._warn.cache_clear()
    if unwritable == "a file":
        home.write_text("")
    else:  # root may write anywhere, so the failure is simulated
        monkeypatch.setattr(cache_module, "write_tensors", refuse)
    for key in ("0" * 64, "1" * 64):
        assert bytes_of(cached(key, lambda: ARRAYS)) == bytes_of(ARRAYS)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{home / 'tables'}: cannot cache tables there (") and "MINBERT_CACHE" in line
    assert not entries(home / "tables")


def refuse(path, tensors):
    raise OSError(28, "No space left on device")


def build_slowly(start, results):
    """In another process: build once all are ready, and report what the cache returned."""
    start.wait()
    results.put(bytes_of(cached("0" * 64, lambda: time.sleep(0.2) or ARRAYS)))


def test_two_processes_at_once(cache):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=build_slowly, args=(start, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    assert [results.get(timeout=30) for _ in workers] == [bytes_of(ARRAYS)] * 3
    for worker in workers:
        worker.join(30)
    assert len(entries(cache)) == 1
    cached("0" * 64, never)


def test_what_nobody_has_used_for_long_is_removed_and_nothing_else(cache):
    for digit in "012":
        cached(digit * 64, lambda: ARRAYS)
    old, used, _ = entries(cache)
    foreign, torn = cache / "model.safetensors", cache / ".partial-x"
    foreign.write_text("somebody's")
    torn.mkdir()
    for path in (old, used, foreign, torn):
        os.utime(path, (0, 0))
    cached("1" * 64, never)  # counts as a use
    cached("3" * 64, lambda: ARRAYS)
    assert [path.name[:1] for path in entries(cache)] == ["1", "2", "3", "m"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    for name in ("MINBERT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_module.cache_folder() == tmp_path / ".cache" / "minbert" / "tables"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_module.cache_folder() == Path("/xdg/minbert/tables")
    monkeypatch.setenv("MINBERT_CACHE", "~/mine")
    assert cache_module.cache_folder() == tmp_path / "mine" / "tables"


# Tables in the cache


def test_a_table_from_the_cache_is_the_table_to_the_byte(cache, tmp_path, tokenizer, monkeypatch):
    path = write_pairs(tmp_path / "t.csv")
    monkeypatch.setattr("minbert.tokenizer.CHARACTERS", 7 * LEAST_CHARACTERS)  # 40 rows in six chunks
    first = contents(path, tokenizer)
    assert len(entries(cache)) == 2  # the check, and the tokens
    monkeypatch.setattr(tables, "parse", lambda *args: never())
    monkeypatch.setattr(tokens, "tokenize", lambda *args: never())
    assert contents(path, tokenizer) == first
    monkeypatch.undo()
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path / "another"))
    assert contents(path, tokenizer) == first


def test_tokens_are_those_of_the_tokenizer(cache, tmp_path, tokenizer):
    table = read_table(write_pairs(tmp_path / "t.csv"), PARAPHRASE, labelled=True)
    rows = list(table.rows())
    wanted = tokenizer.token_ids(*zip(*(row.texts for row in rows), strict=True), max_length=12)
    for examples in (make_examples(table, tokenizer, 12), make_examples(table, tokenizer, 12)):
        batch = examples.tokens.batch(range(len(rows)), tokenizer.pad_token_id)
        assert all(torch.equal(batch[name], value) for name, value in tokenizer.pad(wanted).items())


def test_an_entry_of_a_task_has_the_same_name_in_every_process(tmp_path):
    """It is a hash of the task's `repr`, which must not hold the address of a function or an object."""
    path = write_pairs(tmp_path / "t.csv")
    code = "import sys; from pathlib import Path; from multitask.data.tables import read_table\n"
    code += "from multitask.data.tasks import PARAPHRASE\n"
    code += "print(read_table(Path(sys.argv[1]), PARAPHRASE, labelled=True).source.key)"
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == read_table(path, PARAPHRASE, labelled=True).source.key


def test_another_file_tokenizer_or_option_is_another_entry(cache, tmp_path, tokenizer, tiny, monkeypatch):
    path = write_pairs(tmp_path / "t.csv")
    table = read_table(path, PARAPHRASE, labelled=True)
    make_examples(table, tokenizer, 64)
    count = len(entries(cache))

    def fresh() -> bool:
        """Return whether entries were added."""
        nonlocal count
        before, count = count, len(entries(cache))
        return count > before

    make_examples(read_table(path, PARAPHRASE, labelled=True), BertTokenizer.from_pretrained(tiny), 64)
    assert not fresh()
    make_examples(table, tokenizer, 32)
    assert fresh()
    cased = BertTokenizer.from_pretrained(tiny)
    cased.backend.normalizer = None
    make_examples(table, cased, 64)
    assert fresh()
    read_table(path, PARAPHRASE, labelled=False)
    assert fresh()
    read_table(path, PARAPHRASE, labelled=True, skip_bad_rows=True)
    assert fresh()
    for module in (tables, tokens):
        monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    read_table(path, PARAPHRASE, labelled=True)
    assert fresh()
    path.write_bytes(path.read_bytes().replace(b"film", b"filn", 1))
    read_table(path, PARAPHRASE, labelled=True)
    assert fresh()


def test_a_table_with_bad_rows_is_never_taken_for_good(cache, tmp_path):
    """Dropping its bad rows once must not make it pass the strict check, and their number is remembered."""
    path = write_table(tmp_path / "t.csv", [["id", "sentence", "sentiment"], ["a", "x", 1], ["a", "y", 9]])
    for _ in range(2):
        table = read_table(path, SENTIMENT, labelled=True, skip_bad_rows=True)
        assert (len(table), table.dropped) == (1, 1)
        with pytest.raises(InputError, match="bad rows: 1 of 2"):
            read_table(path, SENTIMENT, labelled=True)


def test_a_table_that_changes_under_a_run_is_noticed(cache, tmp_path, tokenizer):
    path = write_pairs(tmp_path / "t.csv")
    table = read_table(path, PARAPHRASE, labelled=True)
    write_pairs(path, 41)
    with pytest.raises(InputError, match=r"t\.csv: has changed since this run first read it"):
        make_examples(table, tokenizer, 64)
    assert len(entries(cache)) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_table_costs_memory_by_its_tokens_and_starts_at_once_the_next_time(
    cache, tmp_path, tokenizer
):
    """200,000 pairs: as Python lists, their ids alone would take more than 100 MB."""
    path = write_pairs(tmp_path / "t.csv", 200_000)
    first, again = (seconds_and_memory(path, tokenizer) for _ in range(2))
    assert first[1] < 250 << 20
    assert again[0] < 1 and again[0] < first[0] / 20


def seconds_and_memory(path: Path, tokenizer: BertTokenizer) -> tuple[float, int]:
    """Return what it costs to read and tokenise a table, in a process of its own."""

    def peak() -> int:
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) << 10

    def work(results) -> None:
        before, started = peak(), time.perf_counter()
        contents(path, tokenizer)
        results.put((time.perf_counter() - started, peak() - before))

    context = multiprocessing.get_context("fork")
    results = context.Queue()
    worker = context.Process(target=work, args=(results,))
    worker.start()
    found = results.get(timeout=300)
    worker.join(30)
    return found
