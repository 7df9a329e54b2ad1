"""survey.py: which files belong together, and what is known of their columns."""

import pytest

from minbert.errors import InputError
from multitask.data.survey import MOST_VALUES, find_groups, profile


def watch(items, name):
    return items


def groups_of(folder, *names):
    """The groups that these files make: name -> split -> file, and the files that are left over."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text,label\n")
    groups, unread = find_groups(folder)
    found = {group.name: {split: path.name for split, path in group.files.items()} for group in groups}
    return found, [path.name for group in groups for path in group.others] + [path.name for path in unread]


@pytest.mark.parametrize("names, groups, others", [
    (["a-train.csv", "a-valid.jsonl", "a_TEST.tsv.gz"],
     {"a": {"train": "a-train.csv", "dev": "a-valid.jsonl", "test-student": "a_TEST.tsv.gz"}}, []),
    (["contest.csv", "trainer.csv"],
     {"contest": {"train": "contest.csv"}, "trainer": {"train": "trainer.csv"}}, []),
    (["a.csv", "a-test-student.csv"], {"a": {"train": "a.csv", "test-student": "a-test-student.csv"}}, []),
    (["a.csv", "a.train.csv", "a.train.jsonl"], {"a": {"train": "a.train.csv"}}, ["a.csv", "a.train.jsonl"]),
    (["b/train.csv", "b/dev.csv", "b/c/train.csv"], {"b": {"train": "train.csv", "dev": "dev.csv"}}, []),
    ([".hidden.csv", "notes.txt", "train_v2.csv"], {"v2": {"train": "train_v2.csv"}}, ["notes.txt"]),
])  # fmt: skip
def test_splits_are_told_from_names(tmp_path, names, groups, others):
    (tmp_path / "b" / "c").mkdir(parents=True)
    assert groups_of(tmp_path, *names) == (groups, others)


def test_a_table_called_train_has_the_name_of_its_folder(tmp_path):
    assert list(groups_of(tmp_path, "train.csv")[0]) == [tmp_path.name]


def profile_of(folder, **tables):
    for split, text in tables.items():
        (folder / f"a-{split}.csv").write_text(text)
    (group,) = find_groups(folder)[0]
    return profile(group, watch)


def test_columns_of_train_and_dev_together(tmp_path):
    known = profile_of(
        tmp_path,
        train="id,text,label,extra\n1,a b c,2,x\n2,d e,,x\n1,,3,y\n",
        dev="id,text,label,more\n1,f g h,0.5,x\n",
        test="id,text\n1,x\n",
    )
    key, text, label = known.columns
    assert (known.rows, known.ids, known.in_test, known.problem) == (4, [], {"id", "text"}, "")
    assert (text.name, text.filled, text.mean_words, text.is_numeric) == ("text", 3, 8 / 3, False)
    assert (label.low, label.high, label.is_whole) == (0.5, 3, False)
    assert label.counts == {"2": 1, "3": 1, "0.5": 1}
    assert key.counts == {"1": 3, "2": 1}


def test_ids_are_compared_within_each_table(tmp_path):
    rows = "text,row_id,idea\na b,1,1\nb c,2,2\n"
    known = profile_of(tmp_path, train=rows, dev=rows)
    assert (known.ids, known.unique) == (["row_id"], ["idea"])
    known = profile_of(tmp_path, test="text\na\n")  # which lacks both
    assert (known.ids, known.unique) == ([], [])


def test_ids_are_words_or_whole_numbers_that_are_not_repeated(tmp_path):
    columns = {"order_no": "R1 R2", "ref": "a a", "Code": "1 2", "size": "0.5 1", "sku": "x y", "late": "1 "}
    first, second = zip(*(cells.split(" ") for cells in columns.values()), strict=True)
    known = profile_of(tmp_path, train="\n".join(map(",".join, (columns, first, second))) + "\n")
    assert (known.ids, known.unique) == (["order_no", "Code"], ["sku"])


def test_of_many_values_only_the_bounds_are_kept(tmp_path):
    rows = "".join(f"{number},word{number}\n" for number in range(2 * MOST_VALUES))
    number, word = profile_of(tmp_path, train=f"number,word\n{rows}").columns
    assert number.has_many and number.is_numeric and (number.low, number.high) == (0, 2 * MOST_VALUES - 1)
    assert word.has_many and not word.is_numeric and not word.counts and word.variety == 1


def test_a_bad_row_is_left_out_and_named_and_a_bad_file_refused(tmp_path):
    known = profile_of(tmp_path, train="text,label\na,1\nb,1,2\n")
    assert known.rows == 1
    assert known.problem.startswith(f"{tmp_path / 'a-train.csv'}:3: 3 comma-separated fields")
    with pytest.raises(InputError, match=r'a-train.csv:2: a quote \("\) in this row is not closed'):
        profile_of(tmp_path, train='text,label\n"a,1\n')
