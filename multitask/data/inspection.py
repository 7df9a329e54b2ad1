"""What a task's tables hold, and what in them may spoil a training or the trust in its scores.

Every row of every table is read, by the same code as in training. What is kept of a row is its line, its
label and a hash of each text: 32 bytes at most. Only the tokens, and the columns that a task does not use,
are those of a sample. Texts are compared without regard to case and spacing, as where dev is held out.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minbert.errors import InputError, counted, short_line, shown
from minbert.tokenizer import in_chunks
from multitask.data.formats import Problem, lines_of, read_sheet
from multitask.data.problems import BadRows
from multitask.data.survey import IMBALANCED, LONGEST_VALUE, MOST_COLUMNS, Watch, alike, number_of
from multitask.data.tables import SPLITS, Source, normalized, opened, source_of
from multitask.data.tasks import Task

MOST_SAMPLED = 20_000  # rows of a table that are tokenised, or whose other columns are read
PLACES = 3  # that are named as examples
FEW_ROWS = 100  # for training
FEW_DEV_ROWS = 100
FEW_OF_CLASS = 20
OFTEN = 0.05  # a share of rows above which it matters that they are cut or unknown
GIVEAWAY = 0.9  # of the errors of a constant prediction that a column saves
BY_CHANCE = 0.001  # the probability below which other shares of labels are reported
LEAST_EXPECTED = 5  # rows of a class, in the test for that; rarer ones are taken together
FEWEST = 50  # rows from which that is told
BINS = 50  # of a column of numbers

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclass(frozen=True)
class Finding:
    """Something that the user should know. `code` never changes its meaning; the message may."""

    level: str  # error: training would stop; warning: it would suffer, or its scores; note: to be known
    code: str
    message: str
    rows: int = 0  # how many it concerns
    places: Sequence[Sequence[str]] = ()  # FILE:LINE of a few of them, each with that of its partner, if any


@dataclass(frozen=True)
class Lengths:
    """How long the texts of a sample of rows are, in tokens, those that mark ends included."""

    rows: int
    median: int
    most: int  # of 95% of the rows
    longest: int
    cut: float  # the share of rows longer than --max-length
    unknown: float  # the share of tokens that the vocabulary lacks


@dataclass(frozen=True)
class TableFacts:
    """What one table, or the part of it that is train or dev, holds."""

    file: str
    rows: int  # that can be used
    bad: int  # those that cannot
    empty: int  # of these, with an empty text or label
    labels: Mapping[str, float]  # rows by class, or figures of a regression; empty if test has none
    lengths: Lengths


@dataclass(frozen=True)
class Inspection:
    """What is known of a task's tables."""

    task: Task
    tables: Mapping[str, TableFacts]  # by split
    findings: Sequence[Finding]


# (the texts of some rows) -> how many tokens each has, and how many of all are unknown
Count = Callable[[Sequence[tuple[str, ...]]], tuple[np.ndarray, int]]


@dataclass(frozen=True)
class RowFacts:
    """What is kept of the N rows of a table."""

    source: Source
    file: str  # below the data folder
    lines: np.ndarray  # (N,) int64
    texts: np.ndarray  # (N, 1 or 2) uint64: hashes
    labels: np.ndarray  # (N,) float64; NaN if the table has none
    bad: BadRows

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def same(self) -> np.ndarray:
        """(N,) hashes of the text or pair."""
        return _joined(self.texts)

    @property
    def swapped(self) -> np.ndarray:
        """(N,) hashes of the pair in the other order."""
        return _joined(self.texts[:, ::-1])

    def place(self, row: int) -> str:
        return f"{self.file}:{self.lines[row]}"


def _joined(texts: np.ndarray) -> np.ndarray:
    """Return one hash for the texts of each row, (N, k) -> (N,), which depends on their order."""
    joined = texts[:, 0]
    for column in texts.T[1:]:
        joined = joined * np.uint64(0x9E3779B97F4A7C15) + column  # modulo 2**64
    return joined


def inspect(
    task: Task, directory: Path, skip_bad_rows: bool, count: Count, max_length: int, watch: Watch
) -> Inspection:
    """Read all tables of a task and return what is in them. Bad rows, unreadable and missing tables are
    findings."""
    read: dict[str, RowFacts] = {}
    tables: dict[str, TableFacts] = {}
    findings: list[Finding] = []
    for split in SPLITS:
        path, name = task.path(directory, split), split.removesuffix("-student")
        if split == "test-student" and not task.test and not path.is_file():
            continue
        try:
            rows = facts_of_rows(task, directory, split, watch)
            lengths = measure(rows, count, max_length, watch)
        except InputError as error:
            unreadable = Finding(ERROR, "unreadable", str(error))
            if unreadable not in findings:  # as where dev is held out of the same file
                findings.append(unreadable)
            continue
        read[name] = rows
        bad = rows.bad
        tables[name] = TableFacts(rows.file, len(rows), bad.count, bad.empty, labels_of(task, rows), lengths)
        findings += bad_rows(rows, skip_bad_rows)
        findings += repeated(rows, name)
        findings += read_badly(lengths, name, max_length)
    findings += leaks(read)
    if "train" in read:
        labelled = [read[split] for split in ("train", "dev") if split in read]
        findings += [*contradictions(task, labelled), *labels_at_fault(task, tables)]
        if len(labelled) == 2:
            findings += shifted_labels(task, *labelled)
        findings += giveaways(read["train"])
    order = (ERROR, WARNING, NOTE)
    return Inspection(task, tables, sorted(findings, key=lambda finding: order.index(finding.level)))


# Reading


def facts_of_rows(task: Task, directory: Path, split: str, watch: Watch) -> RowFacts:
    """Read a table, or its part that is train or dev, to its end. Raises InputError if it has no good row."""
    path, labelled = task.path(directory, split), split != "test-student"
    part = split if labelled and task.dev_fraction else None
    file = path.relative_to(directory).as_posix()
    source = source_of(path, task, labelled, skip_bad_rows=True, part=part)
    lines, texts, labels = array("q"), array("Q"), array("d")
    bad = BadRows(task)
    try:
        for item in watch(source.items(), file):
            if isinstance(item, Problem):
                if part != "dev":  # else it is in the same file as train, which has counted it
                    bad.add(item)
            else:
                lines.append(item.line)
                texts.extend(map(text_hash, item.texts))
                labels.append(math.nan if item.label is None else item.label)
    except InputError as error:
        firsts = [f" (line {one.lines[0]}: {one.in_words(task)})" for one in bad.problems[:1]]
        raise InputError(f"{error}{''.join(firsts)}") from None
    shape = (len(lines), len(task.texts))
    hashes = np.frombuffer(texts, np.uint64).reshape(shape)
    return RowFacts(source, file, np.array(lines), hashes, np.array(labels), bad)


def text_hash(text: str) -> int:
    """Return 64 bits in which different texts differ, but for case and spacing."""
    return int.from_bytes(hashlib.blake2b(normalized(text).encode(), digest_size=8).digest())


def measure(rows: RowFacts, count: Count, max_length: int, watch: Watch) -> Lengths:
    """Return how long the texts are, in a sample of at most `MOST_SAMPLED` rows at equal distances."""
    step = math.ceil(len(rows) / MOST_SAMPLED)
    name = f"{rows.file}, tokens"
    sample = (row for number, row in enumerate(watch(rows.source.rows(), name)) if number % step == 0)
    found, unknown = [], 0
    for chunk in in_chunks(sample, lambda row: row.characters):
        lengths, more = count([row.texts for row in chunk])
        found.append(lengths)
        unknown += more
    lengths = np.concatenate(found)
    median, most, longest = map(int, np.quantile(lengths, (0.5, 0.95, 1), method="higher"))
    cut = float(np.mean(lengths > max_length))
    return Lengths(len(lengths), median, most, longest, cut, unknown / int(lengths.sum()))


def labels_of(task: Task, rows: RowFacts) -> dict[str, float]:
    """Return the number of rows of each class or, for a regression, figures of the labels."""
    if np.isnan(rows.labels).any():
        return {}
    if task.classes:
        counts = np.bincount(rows.labels.astype(int), minlength=task.classes)
        return dict(zip(task.class_names, counts.tolist(), strict=True))
    labels = rows.labels
    figures = np.min(labels), np.median(labels), np.max(labels), np.mean(labels), np.std(labels)
    names = ("least", "median", "greatest", "mean", "deviation")
    return dict(zip(names, map(float, figures), strict=True))


# Findings


def bad_rows(rows: RowFacts, skip: bool) -> Iterator[Finding]:
    """Yield a finding about the rows that training would refuse, or leave out with --skip-bad-rows."""
    bad = rows.bad
    if not bad.count:
        return
    first, cause = bad.problems[0], bad.cause(len(rows))
    message = f"{rows.source.path}:{first.lines[0]}: {first.in_words(rows.source.task)}"
    rest = f", and {counted(bad.count - 1, 'more bad row')}" if bad.count > 1 else ""
    lines = sorted(line for problem in bad.problems for line in problem.lines)[:PLACES]
    level, code = (WARNING if skip else ERROR), "bad_rows"
    if skip:
        message += f"{rest}; left out"
    elif cause:
        code, lines = "many_bad_rows", first.lines[:PLACES]
        message += f"; {counted(bad.count, 'row')} are bad: {cause}"
    elif rest:
        message += f"{rest}; fix them, or leave them out with --skip-bad-rows"
    else:
        has_remedy = "; " in first.first.message
        message += f"{'' if has_remedy else '; fix it'}, or leave it out with --skip-bad-rows"
    yield Finding(level, code, message, bad.count, [[f"{rows.file}:{line}"] for line in lines])


def repeated(rows: RowFacts, split: str) -> Iterator[Finding]:
    """Yield findings about rows that repeat the text or the pair of another row of their table."""
    keys, firsts, owners = np.unique(rows.same, return_index=True, return_inverse=True)
    again = np.flatnonzero(firsts[owners] != np.arange(len(rows)))
    if len(again):
        message = f"{of_rows(len(again), rows, split)}: repeats the {_unit(rows)} of an earlier row"
        places = [[rows.place(row), rows.place(firsts[owners[row]])] for row in again[:PLACES]]
        level = WARNING if len(again) >= OFTEN * len(rows) else NOTE
        yield Finding(level, "repeated", message, len(again), places)
    swapped = np.isin(rows.swapped, keys) & (rows.swapped != rows.same)
    if swapped.any():
        message = f"{of_rows(int(swapped.sum()), rows, split)}: also there with the texts swapped"
        places = _beside(rows, swapped, rows.swapped[:, None], rows, rows.same[:, None])
        yield Finding(NOTE, "repeated_swapped", message, int(swapped.sum()), places)


def leaks(read: Mapping[str, RowFacts]) -> Iterator[Finding]:
    """Yield findings about rows of dev and test whose texts are also in a table that is learned, or chosen,
    from."""
    for split, other in (("dev", "train"), ("test", "train"), ("test", "dev")):
        if {split, other} <= read.keys():
            yield from _leak(read[split], split, read[other], other)


def _leak(rows: RowFacts, split: str, seen: RowFacts, other: str) -> Iterator[Finding]:
    same, swapped, of_seen = (keys[:, None] for keys in (rows.same, rows.swapped, seen.same))
    flatters = f"which flatters the scores on {split}"
    told = np.zeros(len(rows), dtype=bool)
    for level, code, ours, theirs, what in (
        (WARNING, "leak", same, of_seen, f"also in {other}, {flatters}"),
        (WARNING, "leak_swapped", swapped, of_seen, f"also in {other} with the texts swapped, {flatters}"),
        (NOTE, "shared_text", rows.texts, seen.texts, f"one of the two texts is also in {other}"),
    ):
        found = np.isin(ours, theirs).any(axis=1) & ~told
        told |= found
        if number := int(found.sum()):
            places = _beside(rows, found, ours, seen, theirs)
            yield Finding(level, code, f"{of_rows(number, rows, split)}: {what}", number, places)


def _beside(
    rows: RowFacts, chosen: np.ndarray, ours: np.ndarray, others: RowFacts, theirs: np.ndarray
) -> list[list[str]]:
    """Return where the first chosen rows (N,) bool are, each beside the first row of `others` that has a hash
    in common: one of `theirs` (M, k) is one of `ours` (N, k)."""
    first = np.flatnonzero(chosen)[:PLACES]
    partners = [int(np.isin(theirs, ours[row]).any(axis=1).argmax()) for row in first]
    return [[rows.place(row), others.place(partner)] for row, partner in zip(first, partners, strict=True)]


def of_rows(number: int, rows: RowFacts, split: str) -> str:
    """Return a number of rows and their share, such as 12 of 340 rows of dev (3.5%)."""
    return f"{number:,} of {counted(len(rows), 'row')} of {split} ({number / len(rows):.1%})"


def contradictions(task: Task, tables: Sequence[RowFacts]) -> Iterator[Finding]:
    """Yield a finding about texts with different labels; of a regression, with labels further apart than a
    fifth of the range, or of what occurs."""
    same, labels = (np.concatenate([getattr(rows, name) for rows in tables]) for name in ("same", "labels"))
    order = np.argsort(same, kind="stable")
    starts = np.flatnonzero(np.diff(same[order], prepend=~same[order[0]]))
    spread = np.maximum.reduceat(labels[order], starts) - np.minimum.reduceat(labels[order], starts)
    apart = 0.0 if task.classes else task.unit if math.isfinite(task.high - task.low) else np.ptp(labels) / 5
    groups = [order[members] for members in _ranges(starts, len(order), spread > apart)]
    if not groups:
        return
    places = [
        [_place(tables, group[labels[group].argmin()]), _place(tables, group[labels[group].argmax()])]
        for group in groups[:PLACES]
    ]
    rows = sum(map(len, groups))
    texts = counted(len(groups), _unit(tables[0]))
    message = f"{texts}, in {counted(rows, 'row')}: labels that contradict each other"
    yield Finding(WARNING, "contradiction", message, rows, places)


def _ranges(starts: np.ndarray, end: int, chosen: np.ndarray) -> Iterator[slice]:
    """Yield the chosen ones of the ranges that begin at these starts, up to the next start or the end."""
    ends = np.append(starts[1:], end)
    yield from map(slice, starts[chosen], ends[chosen])


def _place(tables: Sequence[RowFacts], row: int) -> str:
    """Return where a row of several tables is, counted from the first row of the first table."""
    first, *rest = tables
    return first.place(row) if row < len(first) else _place(rest, row - len(first))


def _unit(rows: RowFacts) -> str:
    return "text" if rows.texts.shape[1] == 1 else "pair"


def labels_at_fault(task: Task, tables: Mapping[str, TableFacts]) -> Iterator[Finding]:
    """Yield findings about tables with few rows, and labels that are rare or always the same."""
    train = tables["train"]
    if train.rows < FEW_ROWS:
        message = f"train has only {counted(train.rows, 'row')}: scores will hardly mean anything"
        yield Finding(WARNING, "few_rows", message, train.rows)
    dev = tables.get("dev")
    if dev is not None and dev.rows < FEW_DEV_ROWS:
        rough = "scores are rough, as their intervals will show"
        if task.classes:
            rough = f"accuracy may be off by {100 / dev.rows**0.5:.0f} percentage points"
        message = f"dev has only {counted(dev.rows, 'row')}: {rough}"
        yield Finding(WARNING, "few_dev_rows", message, dev.rows)
    if task.classes:
        if found := alike(name for name, count in train.labels.items() if count):
            message = f"{found} count as different labels; write them alike in the tables"
            yield Finding(WARNING, "similar_labels", message)
        yield from _rare(task, train.labels)
    elif train.labels["least"] == train.labels["greatest"]:
        yield Finding(WARNING, "constant_label", "all labels of train are equal", train.rows)


def _rare(task: Task, counts: Mapping[str, float]) -> Iterator[Finding]:
    absent = [shown(name, 40) for name, count in counts.items() if not count]
    if absent:
        message = f"no row of train has these labels: {short_line(', '.join(absent))}"
        yield Finding(WARNING, "rare_label", message)
    counts = {name: count for name, count in counts.items() if count}
    rarest, commonest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    least, most = counts[rarest], counts[commonest]
    rare = {name: count for name, count in counts.items() if count < FEW_OF_CLASS}
    if rare:
        listed = short_line(", ".join(f"{shown(name, 40)} {count}" for name, count in rare.items()))
        message = f"fewer than {FEW_OF_CLASS} rows of train have these labels: {listed}"
        yield Finding(WARNING, "rare_label", message, int(sum(rare.values())))
    if most >= IMBALANCED * least:
        message = (
            f"train has {most:,} rows of {shown(commonest, 40)} and only {least:,} of {shown(rarest, 40)}"
        )
        if not task.class_weights:
            message += '; class_weights = "balanced" makes them weigh the same'
        if task.kind.metric == "accuracy":
            message += "; accuracy says little here, f1_macro more"
        yield Finding(NOTE, "imbalance", message, int(most))


def shifted_labels(task: Task, train: RowFacts, dev: RowFacts) -> Iterator[Finding]:
    """Yield a finding if the classes of dev have other shares than those of train, by a chi-square test. Each
    text counts once in it: rows that repeat one are no further evidence."""
    if not task.classes:
        return
    from scipy.stats import chi2_contingency

    counts, shares = np.empty((2, task.classes)), np.empty((2, task.classes))
    for number, rows in enumerate((train, dev)):
        _, firsts = np.unique(rows.same, return_index=True)
        counts[number] = np.bincount(rows.labels[firsts].astype(int), minlength=task.classes)
        shares[number] = np.bincount(rows.labels.astype(int), minlength=task.classes) / len(rows)
    expected = counts.sum(0) * counts.sum(1, keepdims=True) / counts.sum()
    often = expected.min(0) >= LEAST_EXPECTED
    pooled = np.column_stack([counts[:, often], counts[:, ~often].sum(1)])
    pooled = pooled[:, pooled.any(0)]
    apart = shares[1] - shares[0]
    most = int(np.abs(apart).argmax())
    if pooled.shape[1] < 2 or abs(apart[most]) < OFTEN or chi2_contingency(pooled).pvalue >= BY_CHANCE:
        return
    remedy = (
        "raise dev_fraction, or name a dev table" if task.dev_fraction else "sample both from the same rows"
    )
    label = shown(task.class_names[most], 40)
    message = (
        f"{label} has {shares[1, most]:.1%} of the rows of dev, but {shares[0, most]:.1%} of train; {remedy}"
    )
    yield Finding(WARNING, "shifted_labels", message, len(dev))


def read_badly(lengths: Lengths, split: str, max_length: int) -> Iterator[Finding]:
    """Yield findings about texts that the model would not read to their ends, or not know the words of."""
    if lengths.cut >= OFTEN:
        message = (
            f"{lengths.cut:.0%} of the rows of {split}: longer than --max-length {max_length}; see --long"
        )
        yield Finding(WARNING, "long", message, round(lengths.cut * lengths.rows))
    if lengths.unknown >= OFTEN:
        message = f"{lengths.unknown:.0%} of the tokens of {split} are unknown to the vocabulary of --weights"
        yield Finding(WARNING, "unknown_tokens", message)


# Columns that give the label away


def giveaways(rows: RowFacts) -> Iterator[Finding]:
    """Yield a finding for each column beside texts and label from which the label can be told nearly always,
    in a sample of at most `MOST_SAMPLED` rows at equal distances."""
    task, path = rows.source.task, rows.source.path
    step = math.ceil((len(rows) + rows.bad.count) / MOST_SAMPLED)
    labels: list[float] = []
    with opened(path) as file:
        sheet = read_sheet(lines_of(file, str(path)), str(path), [*task.texts, task.label])
        used = {"", task.id, task.label, *task.texts}
        others = [name for name in sheet.columns if name not in used]
        columns: dict[str, list[str]] = {name: [] for name in others[:MOST_COLUMNS]}
        for number, record in enumerate(sheet.records if columns else ()):
            if number % step or isinstance(record, Problem):
                continue
            try:
                labels.append(task.parse_label(record.cells.get(task.label, "")))
            except ValueError:
                continue
            for name, values in columns.items():
                values.append(record.cells.get(name, "")[:LONGEST_VALUE])
    if len(labels) < FEWEST:
        return
    for name, values in columns.items():
        told = share_told(values, np.array(labels), bool(task.classes))
        if told >= GIVEAWAY:
            message = f"the column {shown(name)} gives the label away ({told:.0%}): keep it out of the texts"
            yield Finding(NOTE, "giveaway", message, len(labels))


def share_told(values: Sequence[str], labels: np.ndarray, is_class: bool) -> float:
    """Return the share of the errors of a constant prediction that are saved if a column is known.

    Half of the rows tell which label, or mean of the labels, goes with each value; the errors are counted on
    the other half. Errors are wrong classes or, for a regression, squared differences.
    """
    codes = _codes(values)
    halves = np.random.default_rng(0).permutation(len(labels)) % 2 == 0
    known, asked = labels[halves], labels[~halves]

    def best(chosen: np.ndarray) -> float:
        if not is_class:
            return float(chosen.mean())
        classes, counts = np.unique(chosen, return_counts=True)
        return float(classes[counts.argmax()])

    constant = best(known)
    order = np.argsort(codes[halves], kind="stable")
    seen, starts = np.unique(codes[halves][order], return_index=True)
    table = np.full(codes.max() + 1, constant)
    table[seen] = [best(part) for part in np.split(known[order], starts[1:])]

    def error(predicted: np.ndarray | float) -> float:
        return float(np.mean(predicted != asked if is_class else (predicted - asked) ** 2))

    least = error(constant)
    return 1 - error(table[codes[~halves]]) / least if least else 0.0


def _codes(values: Sequence[str]) -> np.ndarray:
    """Return a number for each value: the same for equal ones, or for near ones if there are many numbers."""
    _, codes = np.unique(values, return_inverse=True)
    numbers = [number_of(value) for value in values]
    if codes.max() < BINS or None in numbers:
        return codes
    sizes = np.array(numbers, dtype=np.float64)
    return np.searchsorted(np.quantile(sizes, np.linspace(0, 1, BINS)), sizes)
