"""tables.py: every way in which a table can be wrong, what is accepted, and the shipped sample."""

import os
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from helpers import write_table, write_tables

from minbert.errors import InputError
from multitask.data.kinds import BINARY
from multitask.data.tables import (
    SAMPLE,
    SPLITS,
    Problem,
    Row,
    fingerprint,
    is_held_out,
    is_table,
    parse,
    parse_plain,
    parse_texts,
    print_dropped,
    print_held_out,
    read_split,
    read_splits,
    read_table,
    unread_files,
)
from multitask.data.tasks import BUILT_IN, PARAPHRASE, SENTIMENT, SIMILARITY, Task

HEADER = b"id\tsentence\tsentiment\n"
GOOD = [b"a\tfine\t3\n", b"z\tdull\t1\n"]


def read(path: Path, task: Task, labelled: bool, skip_bad_rows: bool = False) -> tuple[list[Row], int]:
    """Return a table's rows and the number of bad ones dropped. Its ids and labels must match the rows."""
    table = read_table(path, task, labelled, skip_bad_rows)
    rows = list(table.rows())
    assert list(table.ids) == [row.id for row in rows] and len(table) == len(rows)
    assert [None if np.isnan(label) else label for label in table.labels] == [row.label for row in rows]
    return rows, table.dropped


def table(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize(
    "line, problem",
    [
        (b"b\tgood\t5\n", "sentiment 5 is not a whole number from 0 to 4"),
        (b"b\tgood\t-1\n", "sentiment -1 is not a whole number"),
        (b"b\tgood\t2.5\n", "sentiment 2.5 is not a whole number"),
        (b"b\tgood\tNaN\n", "sentiment NaN is not a whole number"),
        (b"b\tgood\tinf\n", "sentiment inf is not a whole number"),
        (b"b\tgood\tgreat\n", "sentiment 'great' is not a number"),
        (b"b\tgood\t\n", "sentiment is empty"),
        (b"b\t\t3\n", "sentence is empty"),
        (b"b\t \xc2\xa0 \t3\n", "sentence is empty"),
        (b'b\t""\t3\n', "sentence is empty"),
        (b"\tgood\t3\n", "id is empty"),
        (b'b\t"good\t3\n', 'a quote (") is not closed on the same line'),
        (b'b\t"good" film\t3\n', 'text follows a closing quote (")'),
        (b"b\tcaf\xe9\t3\n", "not UTF-8 (byte 6 of the line)"),
        (b"b\tgood\n", "2 tab-separated fields, but the header has 3"),
        (b"b\tgood\t3\t\n", "4 tab-separated fields, but the header has 3"),
        (b"\n", "0 tab-separated fields, but the header has 3"),
        (b"a\tgood\t3\n", "id a duplicates line 2"),
        (b'"b\tc"\tgood\t3\n', r"id 'b\tc' contains a control character or a line break"),
        (b'"b\rc"\tgood\t3\n', r"id 'b\rc' contains a control character or a line break"),
        ("b\u2028c\tgood\t3\n".encode(), r"id 'b\u2028c' contains a control character or a line break"),
        (b"b\x1b[2Jc\tgood\t3\n", r"id 'b\x1b[2Jc' contains a control character"),
        ("b\x9fc\tgood\t3\n".encode(), r"id 'b\x9fc' contains a control character"),
        (b"b\tgood\t\x1b[31m\n", r"sentiment '\x1b[31m' is not a number"),
        (b"b\tgood\t" + b"x" * 500 + b"\n", f"sentiment '{99 * 'x'}... is not a number"),
    ],
)
def test_a_bad_row_is_reported_with_its_line_or_dropped_alone(tmp_path, line, problem):
    path = table(tmp_path / "t.csv", HEADER, GOOD[0], line, GOOD[1])
    with pytest.raises(InputError) as caught:
        read(path, SENTIMENT, labelled=True)
    report = str(caught.value).split("\n")
    assert report[0].startswith(f"{path}:3: ") and problem in report[0]
    assert report[1:] == [f"{path}: bad rows: 1 of 3; fix them, or drop them with --skip-bad-rows"]

    rows, dropped = read(path, SENTIMENT, labelled=True, skip_bad_rows=True)
    assert rows == [Row(2, "a", ("fine",), 3), Row(4, "z", ("dull",), 1)]
    assert dropped == 1


@pytest.mark.parametrize("label", ["-0.1", "5.1", "nan"])
def test_a_regression_label_outside_its_range(tmp_path, label):
    header = ["id", "sentence1", "sentence2", "similarity"]
    path = write_table(tmp_path / "t.csv", [header, ["a", "one", "two", label]])
    with pytest.raises(InputError, match=f":2: similarity {label} is outside 0 to 5"):
        read(path, SIMILARITY, labelled=True)


@pytest.mark.parametrize(
    "header, problem",
    [
        (b"id\tsentence\n", ":1: needs exactly one column named sentiment; the tab-separated header names"),
        (b"id,text,sentiment\n", "exactly one column named sentence; the comma-separated header names 'id',"),
        (b"id\tsentence\tsentiment\tsentence\n", "needs exactly one column named sentence;"),
        (b"id\tid\tsentence\tsentiment\n", "needs exactly one column named id;"),
        (b"ID\tsentence\tsentiment\n", "needs exactly one column named id;"),
        (b"", "the file is empty"),
        (
            b"id\tsentence\tsentiment\ra\tgood\t3\r",
            ":1: in the header: a carriage return (CR)",
        ),
        (b"key\tsentence\tsentiment\n", 'if the rows have no ids, say id = "" in a task file'),
        (b'{"id": 1, "sentence": "a"}\n', "column named sentiment; the first object names 'id', 'sentence'"),
        (b"\n", "needs exactly one column named id"),
        (b"id\tsent\xe9nce\tsentiment\n", ":1: in the header: not UTF-8"),
        (b'id\t"sentence\tsentiment\n', ":1: in the header: a quote"),
    ],
)
@pytest.mark.parametrize("skip_bad_rows", [False, True])
def test_a_bad_header_stops_the_reading(tmp_path, header, problem, skip_bad_rows):
    path = table(tmp_path / "t.csv", header, *GOOD if header else [])
    with pytest.raises(InputError) as caught:
        read(path, SENTIMENT, labelled=True, skip_bad_rows=skip_bad_rows)
    assert str(caught.value).startswith(f"{path}:1: ") and problem in str(caught.value)


def test_an_excel_export_in_utf16_is_recognised(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("id\tsentence\tsentiment\na\tgood\t3\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"t\.csv: is UTF-16.*save it as UTF-8"):
        read(path, SENTIMENT, labelled=True)


@pytest.mark.parametrize(
    "lines, problem", [([], "has no rows below"), ([b"a\tgood\t9\n"], "has no usable rows")]
)
def test_a_table_without_rows(tmp_path, lines, problem):
    path = table(tmp_path / "t.csv", HEADER, *lines)
    with pytest.raises(InputError, match=rf"t\.csv: {problem}"):
        read(path, SENTIMENT, labelled=True, skip_bad_rows=True)


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "directory"])
def test_a_table_that_cannot_be_read(tmp_path, make):
    make(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"t\.csv: cannot be read"):
        read(tmp_path / "t.csv", SENTIMENT, labelled=True)


def test_a_line_that_no_text_can_be_is_not_read_to_its_end(tmp_path):
    path = table(tmp_path / "t.csv", HEADER, GOOD[0], b"a" * (1 << 20))
    with pytest.raises(InputError, match=r"t\.csv:3: a line of more than 1 MB; is this a table of text"):
        read_table(path, SENTIMENT, labelled=True, skip_bad_rows=True)


def test_a_hole_of_a_terabyte_is_refused_at_once(tmp_path):
    path = table(tmp_path / "t.csv", HEADER, *GOOD)
    os.truncate(path, 1 << 40)
    with pytest.raises(InputError, match=r"t\.csv: a line of more than 1 MB; is this a table of text"):
        read_table(path, SENTIMENT, labelled=True)


def test_a_header_of_many_columns_is_named_in_short(tmp_path):
    path = table(tmp_path / "t.csv", b"\t".join([b"column"] * 10**5) + b"\n")
    with pytest.raises(InputError) as caught:
        read_table(path, SENTIMENT, labelled=True)
    assert len(str(caught.value)) < 1000


def test_one_report_spells_out_the_first_20_problems_and_counts_all(tmp_path):
    path = table(tmp_path / "t.csv", HEADER, GOOD[0], *[b"a\tgood\t%d\n" % row for row in range(9, 34)])
    with pytest.raises(InputError) as caught:
        read(path, SENTIMENT, labelled=True)
    report = str(caught.value).split("\n")
    problem = "is not a whole number from 0 to 4"
    assert report[:20] == [f"{path}:{line}: sentiment {line + 6} {problem}" for line in range(3, 23)]
    assert report[20] == "... and 5 more"
    assert report[21] == f"{path}: bad rows: 25 of 26; fix num_classes of task sentiment, or the file"
    assert len(report) == 22
    rows, dropped = read(path, SENTIMENT, labelled=True, skip_bad_rows=True)
    assert (len(rows), dropped) == (1, 25)


MOODS = Task("mood", BINARY, ("text",), "mood", id="", labels=("good", "baad"), train="t.csv", dev="d.csv")


@pytest.mark.parametrize("bad, good, remedy", [
    (4, 40, "fix them, or drop them with --skip-bad-rows"), (5, 40, "fix labels of task mood, or the file"),
    (5, 600, "fix them, or drop them with --skip-bad-rows"),
])  # fmt: skip
def test_many_rows_with_an_unknown_label_are_one_problem_that_is_not_to_be_dropped(
    tmp_path, bad, good, remedy
):
    rows = [b"x,good\n"] * good + [b"x,Bad\n"] * bad + [b",good\n"]
    path = table(tmp_path / "t.csv", b"text,mood\n", *rows)
    with pytest.raises(InputError) as caught:
        read(path, MOODS, labelled=True)
    *report, empty, total = str(caught.value).split("\n")
    problem = f"{path}:{good + 2}: mood 'Bad' is not one of good, baad"
    assert len(report) == (1 if bad >= 5 else bad) and report[0].startswith(problem)
    assert report[0].endswith("did you mean baad?)") and ("5 rows: " in report[0]) == (bad >= 5)
    assert empty == f"{path}:{good + bad + 2}: text is empty"
    assert total == f"{path}: bad rows: {bad + 1} of {good + bad + 1}; {remedy}"


def test_rows_with_few_problems_are_reported_in_the_order_of_the_table(tmp_path):
    path = table(tmp_path / "t.csv", b"text,mood\n", *[b"x,good\n"] * 30, *[b",good\n", b"x,y\n"] * 3)
    with pytest.raises(InputError) as caught:
        read(path, MOODS, labelled=True)
    report = str(caught.value).split("\n")
    assert [line.split(":")[1] for line in report[:6]] == ["32", "33", "34", "35", "36", "37"]


def test_a_large_share_of_bad_rows_is_not_to_be_dropped(tmp_path):
    path = table(tmp_path / "t.csv", b"text,mood\n", *[b"x,good\n"] * 10, *[b"x,y,good\n"] * 5)
    with pytest.raises(InputError, match=r"bad rows: 5 of 15; fix the file$"):
        read(path, MOODS, labelled=True)


def test_a_stray_quote_costs_only_its_own_line(tmp_path):
    lines = [b"%d\tgood\t3\n" % row for row in range(50)]
    path = table(tmp_path / "t.csv", HEADER, b'q\t"lost\t3\n', *lines, b'r\tend"\t2\n')
    rows, dropped = read(path, SENTIMENT, labelled=True, skip_bad_rows=True)
    assert (len(rows), dropped) == (51, 1)
    assert rows[-1] == Row(53, "r", ('end"',), 2)  # a quote inside a field is only a character


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last_end", [True, False])
def test_byte_order_mark_line_ends_and_a_missing_last_one(tmp_path, bom, end, last_end):
    content = bom + b"".join([HEADER, *GOOD]).replace(b"\n", end)
    path = table(tmp_path / "t.csv", content if last_end else content.removesuffix(end))
    rows, _ = read(path, SENTIMENT, labelled=True)
    assert [(row.id, row.texts, row.label) for row in rows] == [("a", ("fine",), 3), ("z", ("dull",), 1)]


def test_quoted_fields_columns_by_name_and_stripped_cells(tmp_path):
    path = table(
        tmp_path / "t.csv",
        b"sentiment\textra\tsentence\tid\n",
        b'1\t\t"""No,"" she said.\tcaf\xc3\xa9"\t x1 \n',
    )
    rows, _ = read(path, SENTIMENT, labelled=True)
    assert rows == [Row(2, "x1", ('"No," she said.\tcafé',), 1)]


def test_the_courses_test_header(tmp_path):
    path = table(tmp_path / "t.csv", b"0\t\tid\tsentence\n", b"1\t0.0\tb75\t Effective , but tepid\n")
    rows, _ = read(path, SENTIMENT, labelled=False)
    assert rows == [Row(2, "b75", ("Effective , but tepid",), None)]


def test_pairs_and_a_test_table_without_labels(tmp_path):
    path = table(tmp_path / "t.csv", b"\tid\tsentence1\tsentence2\n", b"0\tp\tone\ttwo\n")
    assert read(path, PARAPHRASE, labelled=False) == ([Row(2, "p", ("one", "two"), None)], 0)
    with pytest.raises(InputError, match="column named is_duplicate"):
        read(path, PARAPHRASE, labelled=True)


def test_rows_without_an_id_column_are_numbered_by_line():
    lines = [b"sentence\n", b"good\n", b"\n", b"bad\n"]
    items = list(parse(lines, "t", SENTIMENT, labelled=False, with_id=False))
    assert [item.id for item in items if isinstance(item, Row)] == ["2", "4"]
    with pytest.raises(InputError, match="column named id"):
        list(parse(lines, "t", SENTIMENT, labelled=False))


@pytest.mark.parametrize("first, table", [
    (b"sentence\n", True), (b"Sentence\n", True), (b"a,sentence\n", True), (b"sentence;b\n", True),
    (b'\xef\xbb\xbf{"text": "good"}\n', True), (b"one, sentence of plain text\n", False),
    (b"{laughs} good\n", False),
])  # fmt: skip
def test_a_table_to_predict_is_told_from_its_first_line_or_its_name(first, table):
    assert is_table(first, "standard input", SENTIMENT) == is_table(first, "x.txt", SENTIMENT) == table
    for name in ("x.csv", "x.csv.gz", "x.jsonl"):
        assert is_table(first, name, SENTIMENT)


@pytest.mark.parametrize("lines, problem", [
    ([b"sentence,other\n", b"good, but long,1\n"], ":2: 3 comma-separated fields, but the header has 2;"),
    ([b"one,two\n", b"good,bad\n"], "t.csv:1: needs exactly one column named sentence; the comma-separated"),
    ([b"id,Sentence\n", b"1,good\n"], "t.csv:1: needs exactly one column named sentence; the comma-"),
    ([b"[\n", b'{"sentence": "good"}\n', b"]\n"], "t.csv: is a JSON array; write one object on each line"),
])  # fmt: skip
def test_a_table_is_never_predicted_as_plain_lines(lines, problem):
    try:
        found = [f"t.csv:{row.line}: {row.message}" for row in parse_texts(lines, "t.csv", SENTIMENT)]
    except InputError as error:
        found = [str(error)]
    assert len(found) == 1 and problem in found[0]


def test_ids_may_be_left_out_but_for_tab_separated_tables(tmp_path):
    path = table(tmp_path / "t.csv", b"sentence,sentiment\n", b"fine,3\n", b"\n", b"dull,1\n")
    assert [row.id for row in read(path, SENTIMENT, labelled=True)[0]] == ["2", "4"]
    path = table(tmp_path / "t.tsv", b"sentence\tsentiment\n", b"fine\t3\n")
    assert [row.id for row in read(path, replace(SENTIMENT, id=""), labelled=True)[0]] == ["2"]
    with pytest.raises(InputError, match="needs exactly one column named key"):
        read(table(tmp_path / "t.csv", b"sentence,sentiment\n"), replace(SENTIMENT, id="key"), labelled=True)


# Held out


def test_what_is_held_out_depends_on_the_texts_alone():
    texts = [f"text {number}" for number in range(2000)]
    held_out = {text for text in texts if is_held_out([text], 0.2)}
    assert 340 < len(held_out) < 460
    assert all(is_held_out([f"  {text.upper()}\t\n".replace(" ", "\u00a0 ")], 0.2) for text in held_out)
    assert all(is_held_out([text], 0.3) for text in held_out)
    assert all(is_held_out([a, b], 0.5) == is_held_out([b, a], 0.5) for a, b in pairwise(texts))


def test_a_part_of_a_table_is_held_out_as_dev(tmp_path, capsys):
    """Rows added later change the side of none, and a text that occurs twice is on one side."""
    task = Task("mood", BINARY, ("text",), "y", train="t.csv", dev_fraction=0.3, labels=("no", "yes"))
    rows = [f"{text},{'yes' if text % 4 else 'no'}\n".encode() for text in [*range(60), *range(10)]]
    table(tmp_path / "t.csv", b"text,y\n", *rows)
    splits = read_splits(str(tmp_path), SPLITS, {"mood": task}, skip_bad_rows=False)
    train, dev = (list(splits[split]["mood"].rows()) for split in ("train", "dev"))
    assert splits["test-student"] == {} and len(train) + len(dev) == 70 and 10 < len(dev) < 35
    assert not {row.texts for row in train} & {row.texts for row in dev}
    table(tmp_path / "t.csv", b"text,y\n", b"new,yes\n", *rows)
    longer = read_split(tmp_path, "dev", {"mood": task}, skip_bad_rows=False)["mood"]
    assert {row.texts for row in dev} == {row.texts for row in longer.rows()} - {("new",)}

    print_held_out(splits)
    said = capsys.readouterr().out.splitlines()
    share = sum(row.label == 0 for row in dev) / len(dev)
    assert said[0] == "mood: 30% of t.csv is held out as dev"
    assert said[2] == f"  dev   {len(dev)} rows: no {share:.1%}, yes {1 - share:.1%}"

    tiny = replace(task, dev_fraction=1e-9)
    with pytest.raises(InputError, match=r"t\.csv: dev_fraction = 1e-09 leaves none of its rows for dev;"):
        read_splits(str(tmp_path), SPLITS, {"mood": tiny}, skip_bad_rows=False)


def test_a_file_that_looks_meant_and_is_not_read_is_mentioned(tmp_path):
    for name in ("ids-sst-train.csv", "ids-sst-test.csv", "ids-sst-valid.csv.gz", "ids-other-test.csv"):
        (tmp_path / name).touch()
    assert unread_files(tmp_path, BUILT_IN) == [
        (tmp_path / "ids-sst-test.csv", tmp_path / "ids-sst-test-student.csv"),
        (tmp_path / "ids-sst-valid.csv.gz", tmp_path / "ids-sst-dev.csv"),
    ]
    named = {"sentiment": replace(SENTIMENT, test="ids-sst-test.csv", dev="ids-sst-valid.csv.gz")}
    assert unread_files(tmp_path, named) == []


def test_plain_lines():
    lines = [b'He said "no\r\n', b"  \n", b"two\tcolumns\n", b"\xff\n", b"last"]
    good, empty, columns, encoding, last = parse_plain(lines, SENTIMENT)
    assert good == Row(1, "1", ('He said "no',), None)
    assert empty == Problem(2, "sentence is empty")
    assert isinstance(columns, Problem) and "2 tab-separated fields, but sentiment" in columns.message
    assert isinstance(encoding, Problem) and encoding.message.startswith("not UTF-8")
    assert last == Row(5, "5", ("last",), None)


def test_plain_pairs():
    pair, single, half = parse_plain([b"one\t two \n", b"one\n", b"one\t\n"], SIMILARITY)
    assert pair == Row(1, "1", ("one", "two"), None)
    assert isinstance(single, Problem) and "1 tab-separated field, but similarity takes 2" in single.message
    assert half == Problem(3, "sentence2 is empty")


def test_plain_lines_after_a_byte_order_mark():
    assert list(parse_plain([b"\xef\xbb\xbfgood\n"], SENTIMENT)) == [Row(1, "1", ("good",), None)]


def test_read_split_leaves_out_tables_that_are_not_there(tmp_path):
    table(SENTIMENT.path(tmp_path, "dev"), HEADER, *GOOD)
    assert list(read_split(tmp_path, "dev", BUILT_IN, skip_bad_rows=False)) == ["sentiment"]


def test_what_was_dropped_is_printed_once_for_each_file_that_lost_rows(tmp_path, capsys):
    path = table(SENTIMENT.path(tmp_path, "dev"), HEADER, *GOOD, b"b\tgood\t9\n")
    clean = read_table(table(tmp_path / "clean.csv", HEADER, *GOOD), SENTIMENT, True)
    tables = read_split(tmp_path, "dev", BUILT_IN, skip_bad_rows=True)
    assert capsys.readouterr().out == ""
    print_dropped({"train": {"sentiment": clean}, "dev": tables})
    assert capsys.readouterr().out == f"{path}: dropped 1 bad row, kept 2\n"
    one = replace(SENTIMENT, files="", train=path.name, dev_fraction=0.5)
    rows = b"".join(b"%d\tgood %d\t1\n" % (number, number) for number in range(2, 40))
    path.write_bytes(path.read_bytes() + rows)
    print_dropped({split: read_split(tmp_path, split, {"one": one}, True) for split in SPLITS[:2]})
    assert capsys.readouterr().out == f"{path}: dropped 1 bad row, kept 40\n"


def test_read_splits_reads_every_table_and_needs_all_but_the_test_tables(tmp_path):
    tasks = {"sentiment": SENTIMENT}
    for split in SPLITS:
        table(SENTIMENT.path(tmp_path, split), HEADER, *GOOD)
    splits = read_splits(str(tmp_path), SPLITS, tasks, skip_bad_rows=False)
    assert [(split, *found) for split, found in splits.items()] == [(split, "sentiment") for split in SPLITS]
    labelled = {split: not np.isnan(found["sentiment"].labels).any() for split, found in splits.items()}
    assert labelled == {"train": True, "dev": True, "test-student": False}

    SENTIMENT.path(tmp_path, "test-student").unlink()
    assert read_splits(str(tmp_path), SPLITS, tasks, skip_bad_rows=False)["test-student"] == {}
    missing = SENTIMENT.path(tmp_path, "dev")
    missing.unlink()
    assert list(read_splits(str(tmp_path), ["train"], tasks, skip_bad_rows=False)) == ["train"]
    with pytest.raises(InputError) as caught:
        read_splits(str(tmp_path), SPLITS, tasks, skip_bad_rows=False)
    remedy = "add it, or leave task sentiment out with --tasks"
    assert str(caught.value) == f"{missing}: no such file; {remedy}"
    missing.with_name("ids-sst-valid.csv").touch()
    with pytest.raises(InputError, match=r"no such file; name ids-sst-valid\.csv in a task file, add"):
        read_splits(str(tmp_path), SPLITS, tasks, skip_bad_rows=False)


def test_read_splits_names_the_problems_of_every_table_once(tmp_path):
    tasks = {task.name: task for task in (SENTIMENT, PARAPHRASE)}
    folder = write_tables(tmp_path / "data")
    for task, split in product(tasks.values(), ("train", "dev")):
        with task.path(folder, split).open("a") as file:
            file.write("bad\n")
    with pytest.raises(InputError) as caught:
        read_splits(str(folder), SPLITS, tasks, False)
    named = [line.partition(": bad rows: 1 of")[0] for line in str(caught.value).splitlines()[1::2]]
    assert named == [str(task.path(folder, split)) for split in ("train", "dev") for task in tasks.values()]
    own = replace(SENTIMENT, name="mine", files="mine-{split}.csv")
    with pytest.raises(InputError, match="no such file; name the folder of your tables with --data"):
        read_splits(None, SPLITS, {"mine": own}, False)


def test_read_splits_takes_the_shipped_sample_if_there_is_no_folder(tmp_path):
    splits = read_splits(None, ["dev"], BUILT_IN, skip_bad_rows=False)
    assert [one.source.path.parent for one in splits["dev"].values()] == [SAMPLE] * 3
    with pytest.raises(InputError, match=f"^--data: {tmp_path}/nope is not a folder$"):
        read_splits(str(tmp_path / "nope"), ["dev"], BUILT_IN, skip_bad_rows=False)


def test_the_fingerprint_depends_on_every_byte_and_every_name(tmp_path):
    """But not on the table's folder: a run may be resumed after its data has moved."""
    first = read_table(table(tmp_path / "a.csv", HEADER, *GOOD), SENTIMENT, True)
    moved = read_table(table(tmp_path / "b.csv", HEADER, *GOOD), SENTIMENT, True)
    other = read_table(table(tmp_path / "c.csv", HEADER, GOOD[0], b"z\tdull\t2\n"), SENTIMENT, True)
    before = fingerprint([{"sentiment": first}])
    assert before == fingerprint([{"sentiment": moved}])
    assert before != fingerprint([{"sentiment": other}])
    assert before != fingerprint([{"mood": first}])
    assert fingerprint([{"a": first}, {"a": other}]) != fingerprint([{"a": other}, {"a": first}])


@pytest.mark.parametrize("task", BUILT_IN.values(), ids=BUILT_IN)
def test_the_shipped_sample_is_clean_large_enough_and_leaks_nothing(task):
    splits = {split: read(task.path(SAMPLE, split), task, split != "test-student")[0]
              for split in SPLITS}  # fmt: skip
    for split, least in {"train": 240, "dev": 80, "test-student": 40}.items():
        assert len(splits[split]) >= least
    rows = [row for split in splits.values() for row in split]
    assert len({row.id for row in rows}) == len(rows)
    assert len({row.texts for row in rows}) == len(rows)
    trained = {text.lower() for row in splits["train"] for text in row.texts}
    seen = {text.lower() for split in ("dev", "test-student") for row in splits[split] for text in row.texts}
    assert not trained & seen
