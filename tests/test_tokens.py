"""tokens.py: what is read of texts that are too long."""

import numpy as np
import pytest
import torch
from helpers import make_model, write_tables

from minbert.tokenizer import rooms
from multitask import MultitaskBert
from multitask.data.tables import read_split
from multitask.data.tasks import BUILT_IN, SENTIMENT
from multitask.data.tokens import WHOLE, Tokens, first_and_last_tokens, tokenize
from multitask.run import main

CLS, SEP = 101, 102
LONG = "the to in do an is how of on it what and my for be can with you are at"


def single(count: int) -> tuple[list[int], list[int]]:
    return [CLS, *range(count), SEP], [0] * (count + 2)


def pair(first: int, second: int) -> tuple[list[int], list[int]]:
    ids = [CLS, *range(first), SEP, *range(50, 50 + second), SEP]
    return ids, [0] * (first + 2) + [1] * (second + 1)


def windows_of(rows: list, most: int) -> tuple[list[list[int]], list[int], list[int]]:
    """Each window's ids, how many of them have type 0, and its example."""
    found, owners = Tokens.join([rows], 1000).windows(most)
    ids = [row.tolist() for row in np.split(found.ids, found.offsets[1:-1])]
    return ids, found.firsts.tolist(), owners.tolist()


def test_a_quarter_from_the_beginning_and_the_rest_from_the_end():
    assert first_and_last_tokens([*range(20)], 8) == [0, 1, 14, 15, 16, 17, 18, 19]
    assert first_and_last_tokens([*range(600)], 510)[:128] == [*range(127), 600 - 383]


def test_windows_of_a_text_are_evenly_spaced_and_overlap_by_a_quarter():
    """Room for 8 of 20 tokens at a time: they may start 6 apart at most, so at 0, 6 and 12. A text that fits
    is its own window."""
    ids, firsts, owners = windows_of([single(20), single(8), single(9)], 10)
    starts = [0, 6, 12]
    assert ids[:3] == [[CLS, *range(start, start + 8), SEP] for start in starts]
    assert ids[3] == [CLS, *range(8), SEP]
    assert ids[4:] == [[CLS, *range(8), SEP], [CLS, *range(1, 9), SEP]]
    assert owners == [0, 0, 0, 1, 2, 2] and firsts == [10] * 6


def test_in_a_pair_the_longer_text_passes_by_the_shorter():
    """Room for 9 tokens: 2 of the first text, and 7 of the second's 16, at 0, 4 or 5, and 9."""
    ids, firsts, _ = windows_of([pair(2, 16)], 12)
    assert [row[:4] for row in ids] == [[CLS, 0, 1, SEP]] * 3 and firsts == [4] * 3
    assert [row[4:-1] for row in ids] == [[*range(start, start + 7)] for start in (50, 54, 59)]
    assert all(row[-1] == SEP for row in ids)


@pytest.mark.parametrize("most", [8, 9, 12, 31])
def test_no_token_is_lost_and_no_window_too_long(most):
    rows = [single(count) for count in range(1, 40)]
    rows += [pair(first, second) for first in range(0, 40, 3) for second in range(0, 40, 4)]
    ids, firsts, owners = windows_of(rows, most)
    assert set(owners) == set(range(len(rows))) and owners == sorted(owners)
    for number, (row, types) in enumerate(rows):
        mine = [window for window, owner in enumerate(owners) if owner == number]
        assert {one for window in mine for one in ids[window]} == set(row)
        assert (len(mine) > 1) == (len(row) > most)
        for window in mine:
            assert len(ids[window]) <= most and ids[window][0] == CLS and ids[window][-1] == SEP
            assert ids[window][firsts[window] - 1] == SEP
            assert len(ids[window]) - firsts[window] <= sum(types)


def test_rooms_are_what_a_cut_leaves():
    assert rooms(10, 2, 6) == (4, 2) and rooms(2, 10, 6) == (2, 4) and rooms(10, 10, 7) == (3, 4)


def test_nothing_is_copied_if_all_texts_fit():
    tokens = Tokens.join([[single(3)]], 1000)
    assert tokens.windows(5)[0] is tokens


@pytest.mark.parametrize("long", ["head", "head-tail", "windows"])
def test_what_a_model_says_of_a_long_text(tiny, tmp_path, long):
    """Windows are averaged; the ends that are kept are those of the text; what is saved says so."""
    model = make_model(tiny, {"sentiment": SENTIMENT}, max_length=10, long=long)
    torch.nn.init.normal_(model.heads["sentiment"].weight)
    model.save(tmp_path)
    model = MultitaskBert.load(tmp_path)
    words = LONG.split()
    parts = {
        "head": [words[:8]],
        "head-tail": [words[:2] + words[14:]],
        "windows": [words[start : start + 8] for start in (0, 6, 12)],
    }[long]
    wanted = model.logits("sentiment", [" ".join(part) for part in parts]).mean(dim=0)
    found = model.logits("sentiment", ["good", LONG, "bad"])
    torch.testing.assert_close(found[1], wanted)
    torch.testing.assert_close(found[::2], model.logits("sentiment", ["good", "bad"]))
    assert model.are_cut("sentiment", ["good", LONG]) == [False, long != "windows"]


def test_older_models_read_the_head(tiny, tmp_path):
    make_model(tiny, BUILT_IN).save(tmp_path)
    path = tmp_path / "tasks.toml"
    path.write_text(path.read_text().replace('long = "head"\n', ""))
    assert MultitaskBert.load(tmp_path).long == "head"


def test_whole_texts_for_windows(tiny):
    tokenizer = make_model(tiny).tokenizer
    for long, length in (("head", 10), ("head-tail", 10), ("windows", 22)):
        ((ids, types),) = tokenize([[LONG]], tokenizer, 10, long)
        assert len(ids) == len(types) == length
    assert np.iinfo(np.int32).max < WHOLE


def test_a_run_with_windows_trains_on_heads_and_reads_all_of_dev(tiny, tmp_path, capsys):
    data = write_tables(tmp_path / "data")
    short = ["--epochs", "1", "--steps-per-epoch", "3", "--max-length", "8", "--threads", "1"]
    words = ["--weights", str(tiny), "--data", str(data), *short, "--long", "windows"]
    assert main(["finetune", *words, "--batch-size", "4", "--out", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "of 8 tokens, the limit; longer ones are cut" in out
    assert "of more than 8 tokens, read in windows" in out
    model = MultitaskBert.load(tmp_path / "run")
    table = read_split(data, "dev", BUILT_IN, False)["similarity"]
    wanted = model.predict("similarity", [row.texts for row in table.rows()])
    lines = (tmp_path / "run" / "predictions" / "sts-dev-output.csv").read_text().splitlines()[1:]
    assert [float(line.split(" , ")[1]) for line in lines] == pytest.approx(wanted, abs=1e-5)
    assert main(["mnrl", *words, "--out", str(tmp_path / "mnrl")]) == 2
    assert "reads one window of a text; use --long head" in capsys.readouterr().err
