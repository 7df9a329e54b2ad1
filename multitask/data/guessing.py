"""Tasks guessed from tables that nobody has described, and the task file that says what was guessed and why.

A guess is a `Task` with a note for each field that might well be something else. It rests on the names of the
columns and on every value in the tables of train and dev; nothing in it depends on the order of the rows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from minbert.errors import InputError, counted, short_line, shown
from multitask.data.kinds import BINARY, CLASSIFICATION, REGRESSION, Kind
from multitask.data.survey import (
    Column,
    Group,
    Profile,
    Watch,
    alike,
    find_groups,
    header,
    number_of,
    profile,
)
from multitask.data.tables import SPLITS
from multitask.data.tasks import BOOLEANS, BUILT_IN, RESERVED, Task, task_to_toml

TEXTS = {  # what columns of texts are called, but for digits and single letters at the end
    *("text", "texts", "sentence", "question", "review", "comment", "body", "content", "title", "message"),
    *("tweet", "utterance", "query", "passage", "document", "description", "headline", "abstract", "summary"),
    *("premise", "hypothesis", "answer", "context", "source", "target", "reply", "response", "post"),
}
PAIRS = [  # of names that go together, apart from those that differ in their ends alone
    ("premise", "hypothesis"), ("question", "answer"), ("question", "context"), ("question", "sentence"),
    ("query", "passage"), ("query", "document"), ("source", "target"), ("context", "response"),
    ("title", "body"), ("title", "text"), ("title", "content"), ("title", "description"),
    ("headline", "body"), ("post", "reply"),
]  # fmt: skip
LABELS = {  # what labels are called
    *("label", "labels", "target", "class", "category", "gold", "sentiment", "mood", "emotion", "topic"),
    *("intent", "polarity", "stance", "duplicate", "same", "similarity", "score", "rating", "stars", "star"),
    *("grade", "quality", "relevance", "toxic", "spam", "verdict", "entailment", "relatedness"),
}
SCORES = {  # what labels are called that are numbers, not classes
    *("score", "rating", "stars", "star", "grade", "points", "similarity", "relatedness", "relevance"),
    *("quality", "price", "percent", "rank", "temperature", "age"),
}
MISSING = {"n/a", "na", "nan", "null", "none", "-", "?"}  # labels of rows that have none, among numbers
NEGATIVE = {"no", "not", "non", "false", "negative", "neg", "ham", "bad", "none", "different", "n", "un"}
LEAST_WORDS = 3  # on average, of a column of texts that is not called like one
LEAST_VARIETY = 0.2  # of such a column
MOST_NUMBERED = 20  # classes that are numbers
UNEVEN = 3  # times as many rows of one class as of another; what is left of train may be IMBALANCED
FEW_ROWS = 500  # of which a fifth is held out as dev; of more, a tenth


@dataclass(frozen=True)
class Guess:
    task: Task
    notes: Mapping[str, str] = field(default_factory=dict)  # field -> why, or what else it might be
    offers: Mapping[str, Any] = field(default_factory=dict)  # fields that are offered as comments


@dataclass(frozen=True)
class Folder:
    """The tasks that the tables in a folder are for."""

    guesses: Mapping[str, Guess]  # by the tasks' names
    notes: Sequence[str]  # files that are not read, with the reason
    errors: Sequence[str]  # files that cannot be read


def guess_folder(directory: Path, watch: Watch) -> Folder:
    """Return the tasks that the tables in a folder are for: built-in ones, if their tables are there, and one
    for each other group of tables. A bad file does not keep the others from being looked at."""
    guesses = {one.name: Guess(one) for one in BUILT_IN.values() if _is_there(one, directory)}
    read = {one.task.path(directory, split) for one in guesses.values() for split in SPLITS}
    groups, others = find_groups(directory)
    notes, errors = [f"{path}: is in no format of tables" for path in others], list[str]()
    for group in groups:
        if read & {*group.files.values()}:
            notes += [f"{path}: is not read" for path in group.paths if path not in read]
            continue
        try:
            known = profile(group, watch)
        except InputError as error:
            errors.append(str(error))
            continue
        try:
            found = guess(group, known, directory, guesses)
        except InputError as error:
            if known.problem:
                errors.append(known.problem)
            else:
                notes.append(str(error))
            continue
        guesses[found.task.name] = found
        notes += [f"{path}: is not read; {group.files['train'].name} is" for path in group.others]
    return Folder(guesses, notes, errors)


def _is_there(task: Task, directory: Path) -> bool:
    """Whether a folder has the tables of train and dev of a built-in task."""
    train, dev = (task.path(directory, split) for split in ("train", "dev"))
    try:
        return dev.is_file() and train.is_file() and {*task.texts, task.label} <= {*header(train)}
    except InputError:
        return False


def guess(group: Group, known: Profile, directory: Path, taken: Collection[str]) -> Guess:
    """Return the task that a group of tables is for, under a name that is not `taken`. Raises InputError if
    it has no table for training, or no column that looks like texts or labels."""
    if "train" not in group.files:
        first = next(iter(group.files.values()))
        raise InputError(f"{first}: has no table for training beside it, such as {group.name}-train.csv")
    place = group.files["train"]
    if not known.rows:
        raise InputError(f"{place}: has no rows")
    texts, more_texts = choose_texts(known, place)
    label, more_labels = choose_label(known, [*texts, *more_texts], place)
    key = choose_id(known, [*texts, *more_texts, label])
    meaning = meaning_of(label)
    names = {split: path.relative_to(directory).as_posix() for split, path in group.files.items()}
    notes = {
        "texts": _or_columns(more_texts),
        "label": _or_columns(column for column in more_labels if column.name != key),
        "id": _of_id(key, known),
        **meaning.notes,
    }
    files: dict[str, Any] = {"train": names["train"]}
    if "dev" in names:
        files["dev"] = names["dev"]
    else:
        files["dev_fraction"] = 0.2 if known.rows < FEW_ROWS else 0.1
        notes["dev_fraction"] = "of the rows of train are held out; or name a table, as dev"
    if "test-student" in names:
        files["test"] = names["test-student"]
        notes["test"] = "is predicted, not scored"
    try:
        task = Task(
            task_name(group.name, taken),
            texts=tuple(column.name for column in texts),
            label=label.name,
            id=key,
            **{"metric": meaning.fields["kind"].metric, **meaning.fields},
            **files,
        )
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    others = [metric.name for metric in task.kind.metrics if metric.name != task.kind.metric]
    why = "every label counts the same; " if meaning.offers.get("class_weights") else ""
    return Guess(task, notes | {"metric": f"{why}or {', '.join(others)}"}, meaning.offers)


def _or_columns(columns: Iterable[Column]) -> str:
    names = ", ".join(shown(column.name) for column in columns)
    return f"or {short_line(names, 60)}" if names else ""


def task_name(stem: str, taken: Collection[str]) -> str:
    """Return a task's name that is not taken, made of the common part of its files' names."""
    name = re.sub(r"\W+", "_", stem).strip("_").lower()[:50] or "task"
    if not name.isidentifier() or name in RESERVED:
        name = f"task_{name}"
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(one for one in numbered if one not in taken)


# Columns


def words_of(name: str) -> set[str]:
    """Return the words in a column's name, such as is_duplicate or questionText."""
    return {*re.findall("[^\\W\\d_]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())}


def choose_texts(known: Profile, place: Path) -> tuple[list[Column], list[Column]]:
    """Return the one or two columns of texts, and other columns that look like texts."""
    found = [column for column in known.columns if _is_text(column)]
    if not found:
        names = short_line(", ".join(shown(column.name) for column in known.columns)) or "none"
        raise InputError(f"{place}: no column looks like texts ({names}); describe it in a task file")
    chosen = next(([a, b] for a, b in combinations(found, 2) if _are_pair(a.name, b.name)), None)
    if chosen is None:
        chosen = [max(found, key=lambda column: (bool(words_of(column.name) & TEXTS), column.mean_words))]
    return chosen, [column for column in found if column not in chosen]


def _is_text(column: Column) -> bool:
    if column.is_numeric:
        return False
    if words_of(column.name) & TEXTS and column.mean_words >= LEAST_WORDS / 2:
        return True
    return column.mean_words >= LEAST_WORDS and column.variety >= LEAST_VARIETY


def _are_pair(one: str, other: str) -> bool:
    """Whether two columns are read together: sentence1 and sentence2, text_a and text_b, or known words."""
    stems = {re.sub(r"[\W_]*(\d|(?<![^\W_])[ab])$", "", name.lower()) for name in (one, other)}
    a, b = words_of(one), words_of(other)
    known = any((x in a and y in b) or (y in a and x in b) for x, y in PAIRS)
    return len(stems) == 1 or known


def choose_label(known: Profile, texts: Collection[Column], place: Path) -> tuple[Column, list[Column]]:
    """Return the column of labels, and others that may be it, the likeliest first: one that test lacks, one
    that is called like a label, one with few values, one of words, the last one."""

    def likelihood(numbered: tuple[int, Column]) -> tuple[bool, int, bool, bool, int]:
        number, column = numbered
        is_absent = known.in_test is not None and column.name not in known.in_test
        called = 2 if column.name.lower() in ("label", "labels") else bool(words_of(column.name) & LABELS)
        is_few = 0 < len(column.counts) <= MOST_NUMBERED
        return is_absent, called, is_few, not column.is_numeric, number

    found = [
        (number, column)
        for number, column in enumerate(known.columns)
        if column not in texts and column.name not in known.ids and _is_label(column, known.rows)
    ]
    if not found:
        raise InputError(f"{place}: no column looks like labels; describe it in a task file")
    first, *rest = [column for _, column in sorted(found, key=likelihood, reverse=True)]
    return first, rest


def choose_id(known: Profile, others: Collection[Column]) -> str:
    """Return the column of ids: one that is called so or else has another value in each row, and is none of
    the others; or nothing."""
    taken = {column.name for column in others}
    called = LABELS | SCORES | TEXTS
    unique = [name for name in known.unique if name not in taken and not words_of(name) & called]
    ids = sorted(known.ids, key=lambda name: (name != "id", name in known.repeating))
    return next(iter(ids + unique), "")


def _of_id(key: str, known: Profile) -> str:
    if not key:
        return "no column looks like an id: the rows are numbered by line"
    if key in known.repeating:
        return "a row that repeats an id will be refused"
    return "" if key in known.ids else "has another value in every row"


def _is_label(column: Column, rows: int) -> bool:
    if 2 * column.filled < rows or len(column.counts) == 1:
        return False
    if column.is_numeric:
        numbers_rows = column.is_whole and column.variety > 0.9 and column.high - column.low < rows
        return not numbers_rows or bool(words_of(column.name) & LABELS)
    return not column.has_many and (column.variety <= 0.5 or len(column.counts) == 2)


# Labels


@dataclass(frozen=True)
class Meaning:
    """What a column of labels says about its task."""

    fields: Mapping[str, Any]
    notes: Mapping[str, str]
    offers: Mapping[str, Any] = field(default_factory=dict)


def meaning_of(label: Column) -> Meaning:
    """Return the kind of task and its labels, told from all values of a column."""
    values = sorted(label.counts, key=_naturally)
    words = {value.lower() for value in values}
    if words and words <= BOOLEANS.keys():
        spelled = values if len(values) == len(words) == len(BOOLEANS) else BOOLEANS
        return _binary(label, sorted(spelled, key=str.lower))
    if label.is_numeric and not label.strays:
        return _numbers(label, values)
    numbers = [value for value in values if number_of(value) is not None]
    others = words - {value.lower() for value in numbers}
    if label.is_numeric and (others <= MISSING or len(numbers) > MOST_NUMBERED):  # and no class is a word
        found = _numbers(label, numbers)
        note = f"{found.notes['kind']}; {counted(label.strays, 'label')} of another form will be refused"
        return replace(found, notes={**found.notes, "kind": note})
    if len(values) == 2:
        pair = sorted(values, key=lambda value: (not words_of(value) & NEGATIVE, -label.counts[value]))
        return _binary(label, pair)
    return _classes(label, CLASSIFICATION, {"labels": tuple(values)}, _of_alike(values))


def _binary(label: Column, pair: Sequence[str]) -> Meaning:
    note = {"labels": "the second counts as positive"}
    return _classes(label, BINARY, {"labels": tuple(pair)}, note | _of_alike(pair))


def _of_alike(labels: Sequence[str]) -> dict[str, str]:
    """Return a note on labels that differ only in case or spaces."""
    found = alike(labels)
    return {"labels": f"{found} are different labels here; write them alike in the tables"} if found else {}


def _naturally(value: str) -> tuple[float, str]:
    """Sort numbers, also at the beginning of a value, by size, and the rest by letters."""
    match = re.match(r"-?\d{1,15}(\.\d+)?", value)
    return (float(match[0]) if match else math.inf), value


def _numbers(label: Column, values: list[str]) -> Meaning:
    numbers = {number_of(value) for value in values}
    low, high = math.floor(label.low), math.ceil(label.high)
    is_few = label.is_whole and 0 < len(numbers) <= MOST_NUMBERED
    is_score = bool(words_of(label.name) & SCORES)
    scale = f"low = {low} and high = {high}"
    if numbers == {0, 1}:
        return _classes(label, BINARY, {}, {"kind": "labels are 0 and 1"})
    if is_few and not is_score and low == 0 and len(numbers) == high + 1:
        note = f'0 to {high}; or "regression" with {scale}, without num_classes'
        return _classes(label, CLASSIFICATION, {"num_classes": high + 1}, {"kind": note})
    if is_few and len(values) == len(numbers) and (len(numbers) == 2 or (not is_score and len(numbers) < 5)):
        kind = BINARY if len(numbers) == 2 else CLASSIFICATION
        note = f'or "regression" with {scale}, without labels'
        return _classes(label, kind, {"labels": tuple(values)}, {"kind": note})
    note = f"numbers from {label.low:g} to {label.high:g}"
    if is_few:
        note += '; or "classification" with labels, without low and high'
    offers = {"labels": tuple(values)} if is_few and len(values) == len(numbers) else {}
    bounds = {"kind": REGRESSION, "low": float(low), "high": float(high)}
    return Meaning(bounds, {"kind": note, "low": "a label outside of low and high is an error"}, offers)


def _classes(label: Column, kind: Kind, fields: Mapping[str, Any], notes: Mapping[str, str]) -> Meaning:
    counts = label.counts.values()
    if max(counts) < UNEVEN * min(counts):
        return Meaning({"kind": kind, **fields}, notes)
    offers = {"class_weights": "balanced"}
    return Meaning({"kind": kind, **fields, "metric": "f1_macro"}, notes, offers)


# The task file

ORDER = (
    *("kind", "texts", "label", "labels", "num_classes", "low", "high", "id", "files"),
    *("train", "dev", "dev_fraction", "test", "metric", "class_weights", "output", "header"),
)
WIDEST = 60  # characters of a line that has its note beside it


def to_toml(guesses: Iterable[Guess], source: str) -> str:
    """Return a task file with these tasks, found in `source`: every field on a line, with its note; what is
    only offered is a comment."""
    head = f"# The tasks that `inspect` found in {short_line(shown(source))}.\n"
    head += "# Change what it got wrong; docs/data.md explains the fields.\n"
    return head + "".join("\n" + "".join(f"{line}\n" for line in _lines(one)) for one in guesses)


def _lines(guess: Guess) -> Iterator[str]:
    yield f"[{json.dumps(guess.task.name) if not guess.task.name.isascii() else guess.task.name}]"
    values = sorted(task_to_toml(guess.task).items(), key=lambda item: ORDER.index(item[0]))
    written = [(f"{name} = {_toml(value)}", guess.notes.get(name, "")) for name, value in values]
    written += [(f"# {name} = {_toml(value)}", "") for name, value in guess.offers.items()]
    beside = [len(line) for line, note in written if note and len(line) <= WIDEST]
    for line, note in written:
        if not note:
            yield line
        elif len(line) <= WIDEST:
            yield f"{line:{max(beside)}}  # {note}"
        else:
            yield f"# {note}:"
            yield line


def _toml(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)
