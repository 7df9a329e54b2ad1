"""inspection.py: what is wrong with tables is found, counted and located, and nothing else is."""

import math
from dataclasses import replace

import numpy as np
import pytest

from multitask.data import inspection
from multitask.data.inspection import Lengths, inspect, share_told, text_hash
from multitask.data.tasks import Task

FILES = {"train": "t.csv", "dev": "d.csv"}
CLASSES = Task("a", "classification", ("text",), "label", id="", labels=("x", "y"), **FILES)
PAIRS = Task("a", "binary", ("one", "two"), "label", id="", test="e.csv", **FILES)
NUMBERS = Task("a", "regression", ("text",), "label", id="", low=0, high=5, **FILES)


def count_words(texts):
    return np.array([sum(len(text.split()) for text in row) for row in texts]), 0


def inspected(folder, task, train, dev, test="", skip=False, **settings):
    """Inspect tables of these rows below a header with the task's columns, and `more` if there are more."""
    for name, rows in (("t.csv", train), ("d.csv", dev), ("e.csv", test)):
        header = [*task.texts, task.label][: len(task.texts) + (name != "e.csv")]
        (folder / name).write_text("\n".join([",".join([*header, *settings.get("more", [])]), *rows]) + "\n")
    limit = settings.get("max_length", 512)
    return inspect(task, folder, skip, count_words, limit, lambda items, name: items)


def found(result, *codes):
    """The findings of these codes: code -> (level, rows, places)."""
    return {one.code: (one.level, one.rows, one.places) for one in result.findings if one.code in codes}


TRAIN = [f"text {number},{'xy'[number % 2]}" for number in range(200)]
DEV = [f"dev {number},{'xy'[number % 2]}" for number in range(100)]


def test_nothing_is_found_where_nothing_is_wrong(tmp_path):
    result = inspected(tmp_path, CLASSES, TRAIN, DEV)
    assert result.findings == []
    train = result.tables["train"]
    assert (train.file, train.rows, train.bad, train.labels) == ("t.csv", 200, 0, {"x": 100, "y": 100})
    assert train.lengths == Lengths(200, 2, 2, 2, 0, 0)
    assert list(result.tables) == ["train", "dev"]


def test_bad_rows_are_counted_and_the_others_inspected(tmp_path):
    result = inspected(tmp_path, CLASSES, [*TRAIN, ",x", "a,z", "b,"], DEV)
    train = result.tables["train"]
    assert (train.rows, train.bad, train.empty) == (200, 3, 2)
    (one,) = result.findings
    assert (one.level, one.rows, one.places) == ("error", 3, [["t.csv:202"], ["t.csv:203"], ["t.csv:204"]])
    assert one.message.startswith(f"{tmp_path / 't.csv'}:202: text is empty, and 2 more bad rows; fix them")
    (one,) = inspected(tmp_path, CLASSES, [*TRAIN, ",x", "a,z", "b,"], DEV, skip=True).findings
    assert one.level == "warning"


def test_a_table_that_cannot_be_read_does_not_keep_the_others_from_it(tmp_path):
    result = inspected(tmp_path, PAIRS, ["a,b,0"] * 3, ['"a,b,1'], ["c,d"])
    assert list(result.tables) == ["train", "test"]
    (one,) = [one for one in result.findings if one.level == "error"]
    assert one.message.startswith(f'{tmp_path / "d.csv"}:2: a quote (") in this row is not closed')
    (tmp_path / "d.csv").unlink()
    (one,) = inspect(PAIRS, tmp_path, False, count_words, 9, lambda items, name: items).findings[:1]
    assert one.code == "unreadable" and str(tmp_path / "d.csv") in one.message


def test_repeated_and_leaked_texts_without_regard_to_case_and_spacing(tmp_path):
    result = inspected(tmp_path, CLASSES, [*TRAIN, "TEXT  3,y"], [*DEV, "Text 5,y", "text 7,y"])
    assert found(result, "repeated", "leak", "contradiction") == {
        "repeated": ("note", 1, [["t.csv:202", "t.csv:5"]]),
        "leak": ("warning", 2, [["d.csv:102", "t.csv:7"], ["d.csv:103", "t.csv:9"]]),
    }


def test_pairs_are_told_from_swapped_ones_and_from_those_with_one_text_in_common(tmp_path):
    train = [f"a {n},b {n},{n % 2}" for n in range(200)]
    dev = [f"c {n},d {n},{n % 2}" for n in range(100)]
    test = ["a 1,b 1", "b 2,a 2", "a 3,x", "y,a 4", "d 5,c 5", "a 6,a 6"]
    result = inspected(tmp_path, PAIRS, [*train, "b 9,a 9,1"], dev, test)
    leaks = [(one.code, one.rows, one.places) for one in result.findings if one.code not in ("few_rows",)]
    assert leaks == [
        ("leak", 1, [["e.csv:2", "t.csv:3"]]),
        ("leak_swapped", 1, [["e.csv:3", "t.csv:4"]]),
        ("leak_swapped", 1, [["e.csv:6", "d.csv:7"]]),
        ("repeated_swapped", 2, [["t.csv:11", "t.csv:202"], ["t.csv:202", "t.csv:11"]]),
        ("shared_text", 3, [["e.csv:4", "t.csv:5"], ["e.csv:5", "t.csv:6"], ["e.csv:7", "t.csv:8"]]),
    ]


def test_contradictions_between_and_within_tables(tmp_path):
    """Of "text 2", two rows differ within train; of "text 4", those of train and dev. A pair that is swapped
    may have another label."""
    result = inspected(tmp_path, CLASSES, [*TRAIN, "text 2,y", "text 2,x"], [*DEV, "text 4,y"])
    level, rows, places = found(result, "contradiction")["contradiction"]
    assert (level, rows) == ("warning", 5)
    assert sorted(places) == [["t.csv:4", "t.csv:202"], ["t.csv:6", "d.csv:102"]]
    assert not found(inspected(tmp_path, PAIRS, ["a,b,0", "b,a,1"], ["c,d,1"], ["e,f"]), "contradiction")


@pytest.mark.parametrize("other, contradicts", [(2, False), (2.1, True)])
def test_numbers_contradict_each_other_if_more_than_a_fifth_of_the_range_apart(tmp_path, other, contradicts):
    result = inspected(tmp_path, NUMBERS, ["a,1", f"a,{other}"], ["b,1"])
    assert bool(found(result, "contradiction")) == contradicts


def test_rare_labels_and_small_tables(tmp_path):
    result = inspected(tmp_path, CLASSES, [f"t {n},{'y' if n == 3 else 'x'}" for n in range(99)], DEV[:25])
    assert found(result, "few_rows", "few_dev_rows", "rare_label", "imbalance", "constant_label") == {
        "few_rows": ("warning", 99, ()), "few_dev_rows": ("warning", 25, ()),
        "rare_label": ("warning", 1, ()), "imbalance": ("note", 98, ()),
    }  # fmt: skip
    assert "accuracy may be off by 20 percentage points" in str(result.findings)  # 1 / sqrt(25)
    result = inspected(tmp_path, NUMBERS, [f"t {n},3" for n in range(100)], [f"d {n},1" for n in range(100)])
    assert found(result, "constant_label", "rare_label") == {"constant_label": ("warning", 100, ())}
    train = result.tables["train"].labels
    assert train == {"least": 3, "median": 3, "greatest": 3, "mean": 3, "deviation": 0}


def test_a_bad_row_whose_message_has_a_remedy_is_given_no_second_one(tmp_path):
    (one,) = inspected(tmp_path, CLASSES, [*TRAIN, "a,b,x"], DEV).findings
    assert one.message.endswith("; quote a field that holds one, or leave it out with --skip-bad-rows")


def test_many_unknown_labels_are_not_to_be_dropped(tmp_path):
    rows = [f"new {number},xx" for number in range(9)]
    (one,) = inspected(tmp_path, CLASSES, [*TRAIN, "z,", *rows], DEV).findings
    assert (one.code, one.rows, one.places) == (
        "many_bad_rows",
        10,
        [["t.csv:203"], ["t.csv:204"], ["t.csv:205"]],
    )
    assert one.message.startswith(
        f"{tmp_path / 't.csv'}:203: label 'xx' is not one of x, y (did you mean x?)"
    )
    assert one.message.endswith("; 10 rows are bad: fix labels of task a, or the file")


def test_labels_that_are_absent_or_alike(tmp_path):
    task = replace(CLASSES, labels=("x", "X", "y y", "yY", "z"))
    rows = [f"text {number},{('x', 'X', 'y y')[number % 3]}" for number in range(300)]
    result = inspected(tmp_path, task, rows, [f"dev {row}" for row in rows])
    assert [(one.code, one.rows) for one in result.findings] == [("similar_labels", 0), ("rare_label", 0)]
    assert result.findings[0].message.startswith("'x' and 'X' count as different labels")
    assert result.findings[1].message == "no row of train has these labels: 'yY', 'z'"


def test_dev_with_other_shares_of_labels_than_train(tmp_path):
    """A fifth of the rows of train are y. 40 of 100 in dev are no accident, but 25 may be one, and so may 40
    of which 20 repeat a text."""
    train = [f"text {number},{'y' if number % 5 == 0 else 'x'}" for number in range(400)]

    def shifted(*texts):
        dev = [f"dev {number},x" for number in range(100 - len(texts))]
        result = inspected(tmp_path, CLASSES, train, [*dev, *(f"{text},y" for text in texts)])
        return found(result, "shifted_labels")

    assert shifted(*map(str, range(40))) == {"shifted_labels": ("warning", 100, ())}
    assert not shifted(*map(str, range(20)), *["again"] * 20) and not shifted(*map(str, range(25)))


def test_lengths_are_those_of_a_sample(tmp_path, monkeypatch):
    """Every third row of 100 is 34 rows; ten of all have six words."""
    monkeypatch.setattr(inspection, "MOST_SAMPLED", 40)
    rows = [f"{'long ' * 5 * (n % 10 == 0)}{n},{'xy'[n % 2]}" for n in range(120)]
    result = inspected(tmp_path, CLASSES, rows, DEV, max_length=5)
    assert result.tables["train"].lengths == Lengths(40, 1, 6, 6, 0.1, 0)
    assert found(result, "long") == {"long": ("warning", 4, ())}


def test_what_is_held_out_is_a_table_of_its_own(tmp_path):
    task = Task("a", "binary", ("text",), "label", id="", labels=("x", "y"), train="t.csv", dev_fraction=0.5)
    tables = inspected(tmp_path, task, TRAIN, []).tables
    assert tables["train"].rows + tables["dev"].rows == 200
    assert tables["train"].file == tables["dev"].file == "t.csv"


# Columns that give the label away


def test_a_column_that_gives_the_label_away(tmp_path):
    """It is named, and neither one that does not nor the columns that the task reads."""
    rows = [f"{row},{row[-1]}{n % 3},{n}" for n, row in enumerate(TRAIN)]
    result = inspected(tmp_path, CLASSES, rows, [f"{row},a,b" for row in DEV], more=["hint", "number"])
    (one,) = result.findings
    assert (one.level, one.code) == ("note", "giveaway")
    assert "'hint' gives the label away (100%)" in one.message


GENERATOR = np.random.default_rng(0)
SIGNS = GENERATOR.integers(0, 2, 1000).astype(float)
SIZES = GENERATOR.uniform(0, 10, 1000)


@pytest.mark.parametrize("values, labels, is_class, least, most", [
    ([f"v{sign:.0f}" for sign in SIGNS], SIGNS, True, 1, 1),
    ([str(number) for number in range(1000)], SIGNS, True, -0.3, 0.3),
    ([f"w{number}" for number in range(1000)], SIGNS, True, 0, 0),
    (["same"] * 1000, SIGNS, True, 0, 0),
    ([str(size + 10 * sign) for size, sign in zip(SIZES, SIGNS, strict=True)], SIGNS, True, 0.95, 1),
    ([str(-2 * size) for size in SIZES], SIZES, False, 0.98, 1),
    ([f"{size > 5}" for size in SIZES], SIZES, False, 0.7, 0.8),  # halves of a range keep 1/4 of the variance
    ([f"{size > 5}" for size in SIZES], np.ones(1000), False, 0, 0),
])  # fmt: skip
def test_the_share_of_errors_that_a_column_saves(values, labels, is_class, least, most):
    assert least <= share_told(values, labels, is_class) <= most


def test_hashes_of_texts():
    assert text_hash("A  ﬁlm") == text_hash("a film\n") != text_hash("a films")
    assert math.log2(max(text_hash(str(number)) for number in range(1000))) > 63
