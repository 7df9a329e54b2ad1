"""Where a model's errors are on dev: among which lengths, among which labels, and in which rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from multitask.data.resampling import LEVEL, interval, resampled, weighted_mae
from multitask.data.tables import Row
from multitask.data.tasks import Answers, Task
from multitask.report.html import escape, html_table, shortened

BINS = 5  # of lengths, and of a regression's labels, with about equally many rows
HARDEST = 10  # examples shown of a task
LONGEST = 280  # characters shown of an example's text
MOST_LABELS = 30  # shown; of more, those with the most errors
LEAST = 1e-12  # probability, so that a loss is finite

Group = tuple[str, np.ndarray]  # its name, and the numbers of its rows


def errors_section(task: Task, rows: Sequence[Row], labels: np.ndarray, answers: Answers) -> Iterator[str]:
    """Yield where a task's errors are."""
    predictions = answers.numbers.double().numpy()
    measured = "the share of right predictions" if task.classes else "the mean absolute error"
    yield "<h3>Where the errors are</h3>"
    yield f'<p class="about">By length and by label: rows, {measured} and its 95% interval.</p>'
    yield by_length(task, rows, labels, predictions)
    yield by_label(task, labels, predictions)
    yield hardest_examples(task, rows, labels, answers)


def by_length(task: Task, rows: Sequence[Row], labels: np.ndarray, predictions: np.ndarray) -> str:
    """Return a table of the errors among rows of several lengths, in words of all the row's texts."""
    lengths = np.array([sum(len(text.split()) for text in row.texts) for row in rows])
    lines = [[name, *_measured(task, labels[of], predictions[of])] for name, of in equal_groups(lengths)]
    return html_table(["words", *_head(task)], lines, "figures")


def by_label(task: Task, labels: np.ndarray, predictions: np.ndarray) -> str:
    """Return a table of the errors among rows of each class, and for which one it is mistaken most often; or,
    for a regression, of ranges of the label, and how far the predictions are above it on average."""
    if not task.classes:
        lines = [
            [name, *_measured(task, labels[of], predictions[of]), f"{(predictions - labels)[of].mean():+.3f}"]
            for name, of in equal_groups(labels)
        ]
        return html_table([task.label, *_head(task), "predicted − true"], lines, "figures")
    classes = np.unique(labels).astype(int)
    missed = [np.sum(predictions[labels == number] != number) for number in classes]
    shown = sorted(classes[np.argsort(missed, kind="stable")[::-1][:MOST_LABELS]])
    lines = []
    for number in shown:
        of = np.flatnonzero(labels == number)
        lines.append([task.class_names[number], *_measured(task, labels[of], predictions[of])])
        lines[-1].append(mistaken_for(task, number, predictions[of]))
    return html_table([task.label, *_head(task), "most often mistaken for"], lines, "figures")


def mistaken_for(task: Task, true: int, predictions: np.ndarray) -> str:
    """Return the wrong class that is predicted most often in rows of a class, and the share of these rows."""
    wrong, counts = np.unique(predictions[predictions != true].astype(int), return_counts=True)
    if not len(wrong):
        return "–"
    most = int(np.argmax(counts))
    return f"{task.class_names[wrong[most]]} ({counts[most] / len(predictions):.0%})"


def equal_groups(values: np.ndarray) -> Iterator[Group]:
    """Yield up to `BINS` groups of rows with neighbouring values, of about equally many rows. Rows with one
    value are in one group, which is named by the least and the greatest of its values."""
    cuts = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
    numbers = np.searchsorted(cuts, values)
    for number in np.unique(numbers):
        rows = np.flatnonzero(numbers == number)
        low, high = values[rows].min(), values[rows].max()
        yield f"{low:g}" if low == high else f"{low:g} to {high:g}", rows


def _head(task: Task) -> list[str]:
    return ["rows", "right" if task.classes else "error", "95% interval"]


def _measured(task: Task, labels: np.ndarray, predictions: np.ndarray) -> list[str]:
    """Return the number of rows, the share of right predictions or the mean absolute error, and its
    interval."""
    if task.classes:
        hits = int(np.sum(predictions == labels))
        low, high = wilson(hits, len(labels))
        return [f"{len(labels):,}", f"{hits / len(labels):.1%}", f"{low:.1%} to {high:.1%}"]
    low, high = interval(resampled(weighted_mae, predictions, labels, task.name))
    error = np.abs(predictions - labels).mean()
    return [f"{len(labels):,}", f"{error:.3f}", f"{low:.3f} to {high:.3f}"]


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share, which is also right for few rows (Wilson 1927)."""
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def hardest_examples(task: Task, rows: Sequence[Row], labels: np.ndarray, answers: Answers) -> str:
    """Return a table of the rows with the largest loss, -ln p(true label), or the largest error."""
    predictions = answers.numbers.double().numpy()
    if answers.probabilities is None:
        measure, values = "error", np.abs(predictions - labels)
        meaning = "The largest errors, |predicted − true|."
    else:
        of_truth = answers.probabilities.double().numpy()[np.arange(len(labels)), labels.astype(int)]
        measure, values = "loss", -np.log(np.maximum(of_truth, LEAST))
        meaning = "The largest losses, −ln of the probability of the true label."
    names = task.class_names

    def said(value: float) -> str:
        return names[int(value)] if names else f"{value:.3g}"

    lines = [
        [rows[row].line, said(labels[row]), said(predictions[row]), f"{values[row]:.2f}"]
        + [shortened(text, LONGEST) for text in rows[row].texts]
        for row in np.argsort(-values, kind="stable")[:HARDEST]
    ]
    head = ["line", "true", "predicted", measure, *task.texts]
    about = f'<p class="about">{escape(meaning)}</p>'
    return f"<h3>Hardest examples</h3>\n{about}\n{html_table(head, lines, 'examples')}"
