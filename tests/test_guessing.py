"""guessing.py: columns, kinds and labels, and the task file that is written of them."""

import tomllib

import pytest
from helpers import write_tables
from hypothesis import given
from hypothesis import strategies as st

from minbert.errors import InputError
from multitask.data.guessing import Guess, guess, guess_folder, task_name, to_toml
from multitask.data.survey import find_groups, profile
from multitask.data.tasks import BUILT_IN, Task, read_task_file, task_from_toml


def watch(items, name):
    return items


TEXT = "some words that say {} things"


def guessed(folder, **columns):
    """The guess for one table with these columns, each a list of cells."""
    rows = [columns.keys(), *zip(*columns.values(), strict=True)]
    (folder / "mine.csv").write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    (group,) = find_groups(folder)[0]
    return guess(group, profile(group, watch), folder, ())


def with_labels(folder, name, labels, times=10):
    labels = list(labels) * times
    return guessed(folder, text=[TEXT.format(number) for number in range(len(labels))], **{name: labels}).task


@pytest.mark.parametrize("name, labels, kind, fields", [
    ("mood", ["good", "bad", "so-so"], "classification", {"labels": ("bad", "good", "so-so")}),
    ("spam", ["spam", "ham"], "binary", {"labels": ("ham", "spam")}),
    ("verdict", ["rare", "common", "common"], "binary", {"labels": ("common", "rare")}),
    ("same", ["true", "False"], "binary", {"labels": ("False", "true")}),
    ("same", ["TRUE", "FALSE"], "binary", {"labels": ("FALSE", "TRUE")}),
    ("same", ["true", "True", "false"], "binary", {"labels": ("false", "true")}),
    ("same", ["0", "1.0"], "binary", {"labels": ()}),
    ("polarity", [1, 2], "binary", {"labels": ("1", "2")}),
    ("sentiment", range(5), "classification", {"num_classes": 5}),
    ("topic", [1, 2, 3, 4], "classification", {"labels": ("1", "2", "3", "4")}),
    ("class", ["10 l", "9 l", "1 l"], "classification", {"labels": ("1 l", "9 l", "10 l")}),
    ("score", range(1, 11), "regression", {"low": 1, "high": 10}),
    ("rating", range(6), "regression", {"low": 0, "high": 5}),
    ("label", [0.6, 4.2, 2.0], "regression", {"low": 0, "high": 5}),
    ("label", [-3, 800, 12, 13, 14], "regression", {"low": -3, "high": 800}),
    ("label", ["nan", "1", "2"], "classification", {"labels": ("1", "2", "nan")}),
])  # fmt: skip
def test_kind_and_labels(tmp_path, name, labels, kind, fields):
    task = with_labels(tmp_path, name, labels)
    assert (task.label, task.kind.name) == (name, kind)
    assert {key: getattr(task, key) for key in fields} == fields
    for label in labels:
        task.parse_label(str(label))


@pytest.mark.parametrize("stray", ["n/a", "4,5", "nan", "none"])
def test_a_few_labels_of_another_form_do_not_make_scores_classes(tmp_path, stray):
    scores = [1 + number % 61 / 10 for number in range(200)]
    found = guessed(
        tmp_path,
        id=[*range(199), 7],
        text=[TEXT.format(number) for number in range(200)],
        score=[*scores[:-1], f'"{stray}"'],
    )
    assert (found.task.kind.name, found.task.low, found.task.high) == ("regression", 1, 7)
    assert found.notes["kind"] == "numbers from 1 to 7; 1 label of another form will be refused"
    assert (found.task.id, found.notes["id"]) == ("id", "a row that repeats an id will be refused")


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ([0] * 97 + ["toxic"] * 3, "binary", ("0", "toxic")),
        ([0, 1, 2] * 33 + ["off_topic"], "classification", ("0", "1", "2", "off_topic")),
        ([1, 2, 3, 4] * 30 + ["n/a"], "classification", ("1", "2", "3", "4")),
    ],
)
def test_a_rare_class_may_be_a_word_among_numbers(tmp_path, labels, kind, classes):
    """Unless the word says that there is no label."""
    task = with_labels(tmp_path, "topic", labels, times=1)
    assert (task.kind.name, task.labels) == (kind, classes)


def test_rare_classes_change_the_metric_and_weights_are_offered(tmp_path):
    columns = {"text": [TEXT.format(number) for number in range(30)], "label": ["a"] * 27 + ["b"] * 3}
    found = guessed(tmp_path, **columns)
    assert found.task.kind.metric == "f1_macro" and found.offers == {"class_weights": "balanced"}
    assert found.notes["metric"] == "every label counts the same; or accuracy, f1, mcc"
    assert with_labels(tmp_path, "label", "ab").kind.metric == "accuracy"


def test_labels_that_differ_only_in_case_or_spaces_are_remarked(tmp_path):
    labels = ["Good", "good", "very bad", "verybad", "so-so"]
    found = guessed(tmp_path, text=[TEXT.format(number) for number in range(50)], label=labels * 10)
    groups = "'Good' and 'good', 'very bad' and 'verybad'"
    note = f"{groups} are different labels here; write them alike in the tables"
    assert found.task.labels == ("Good", "good", "so-so", "very bad", "verybad")
    assert f"  # {note}\n" in to_toml([found], "here")


MANY = 20
WORDS = [TEXT.format(number) for number in range(MANY)]
OTHERS = [f"other words of {number} kinds" for number in range(MANY)]
HALVES, SIZES = ["a", "b"] * (MANY // 2), [number % 3 for number in range(MANY)]
ONES = [f"w{number}" for number in range(MANY)]


@pytest.mark.parametrize("columns, texts, label", [
    ({"a": WORDS, "b": HALVES}, ["a"], "b"),
    ({"mood": HALVES, "size": SIZES, "text": WORDS}, ["text"], "mood"),
    ({"n": range(MANY), "text": WORDS, "word": ONES, "label": SIZES, "label_2": HALVES}, ["text"], "label"),
    ({"sentence1": WORDS, "sentence2": OTHERS, "gold": HALVES}, ["sentence1", "sentence2"], "gold"),
    ({"text_b": OTHERS, "text_a": WORDS, "note": OTHERS, "y": SIZES}, ["text_b", "text_a"], "y"),
    ({"hypothesis": OTHERS, "why": WORDS, "premise": WORDS, "y": HALVES}, ["hypothesis", "premise"], "y"),
    ({"review": WORDS, "notes": [f"{text} and more" for text in OTHERS], "y": HALVES}, ["review"], "y"),
    ({"isDuplicate": HALVES, "shop": HALVES, "q": WORDS}, ["q"], "isDuplicate"),
])  # fmt: skip
def test_columns(tmp_path, columns, texts, label):
    found = guessed(tmp_path, **columns).task
    assert (list(found.texts), found.label) == (texts, label)


def test_what_test_lacks_is_the_label(tmp_path):
    (tmp_path / "mine-test.csv").write_text("text,stars\nx,1\n")
    assert guessed(tmp_path, text=WORDS, kind=HALVES, stars=SIZES).task.label == "kind"


@pytest.mark.parametrize("columns, problem", [
    ({"text": WORDS, "label": ["a"] * MANY}, "mine.csv: no column looks like labels"),
    ({"text": WORDS, "index": range(MANY)}, "no column looks like labels"),
    ({"text": WORDS, "n": range(MANY)}, "no column looks like labels"),
    ({"word": ONES, "label": HALVES}, r"no column looks like texts \('word', 'label'\)"),
    ({"text": [], "label": []}, "mine.csv: has no rows"),
])  # fmt: skip
def test_what_cannot_be_guessed(tmp_path, columns, problem):
    with pytest.raises(InputError, match=problem):
        guessed(tmp_path, **columns)


def test_files_and_ids(tmp_path):
    (tmp_path / "mine-test.csv").write_text("key,text\n1,x\n")
    task = guessed(tmp_path, key=range(MANY), text=WORDS, label=HALVES).task
    assert (task.id, task.train, task.test, task.dev_fraction) == ("key", "mine.csv", "mine-test.csv", 0.2)
    (tmp_path / "mine-dev.csv").write_text("key,text,label\n1,x,a\n1,y,b\n")
    task = guessed(tmp_path, key=range(MANY), text=WORDS, label=HALVES).task
    assert (task.id, task.dev, task.dev_fraction) == ("", "mine-dev.csv", 0)


def test_a_column_with_another_value_in_every_row_is_the_id(tmp_path):
    """Unless it is one of texts or labels, or a measure."""
    found = guessed(tmp_path, stars=range(MANY), sku=ONES, text=WORDS, label=HALVES)
    assert (found.task.id, found.notes["id"]) == ("sku", "has another value in every row")
    found = guessed(tmp_path, stars=range(MANY), text=WORDS, label=HALVES)
    assert (found.task.id, found.notes["id"]) == (
        "",
        "no column looks like an id: the rows are numbered by line",
    )


@pytest.mark.parametrize("stem, name", [
    ("My reviews (2)", "my_reviews_2"), ("2020", "task_2020"), ("score", "task_score"), ("--", "task"),
    ("a", "a_3"),
])  # fmt: skip
def test_names(stem, name):
    assert task_name(stem, {"a", "a_2"}) == name


def test_the_courses_tables_are_the_built_in_tasks(tmp_path):
    write_tables(tmp_path)
    (tmp_path / "sts-test.csv").touch()
    found = guess_folder(tmp_path, watch)
    assert {name: one.task for name, one in found.guesses.items()} == BUILT_IN
    assert found.notes == [f"{tmp_path / 'sts-test.csv'}: is not read"]
    (tmp_path / "sts-train.csv").write_text('text,label\n"a,1\n')
    found = guess_folder(tmp_path, watch)
    assert list(found.guesses) == ["sentiment", "paraphrase"]
    (error,) = found.errors
    assert error.startswith(f"{tmp_path / 'sts-train.csv'}:2: a quote")


NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=9)


@given(NAMES, NAMES, st.lists(NAMES.filter(lambda name: name.isprintable()), min_size=3, max_size=3))
def test_a_task_file_says_what_was_guessed(tmp_path_factory, column, label, labels):
    try:
        task = Task("é1", "classification", (column,), label, labels=tuple(labels), train="a", dev="b")
    except InputError:
        return
    notes = {"kind": "x" * 90, "label": "or 'b'"}
    text = to_toml([Guess(task, notes, {"class_weights": "balanced"})], "a\nb")
    assert task_from_toml("é1", tomllib.loads(text)["é1"], tmp_path_factory.getbasetemp()) == task


def test_every_note_stands_beside_its_field_or_above_a_long_one(tmp_path):
    labels = tuple(f"label {number}" for number in range(9))
    task = Task("a", "classification", ("text",), "b", labels=labels, train="a.csv", dev_fraction=0.1)
    text = to_toml([Guess(task, {"label": "or 'c'", "labels": "why"}, {"metric": "mcc"})], "here")
    assert text.splitlines()[3:8] == [
        "[a]", 'kind = "classification"', 'texts = ["text"]', "label = \"b\"  # or 'c'", "# why:"
    ]  # fmt: skip
    assert text.endswith('dev_fraction = 0.1\n# metric = "mcc"\n')
    (tmp_path / "tasks.toml").write_text(text)
    assert read_task_file(tmp_path / "tasks.toml") == {"a": task}
