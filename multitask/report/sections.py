"""The parts of a report that are about tasks: the scores of all of them, and what each does on dev."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from multitask.data.tables import Table
from multitask.data.tasks import PARAPHRASE, SENTIMENT, SIMILARITY, Answers, Task
from multitask.judgement import Judgement, describe
from multitask.report.errors import errors_section
from multitask.report.figures import MOST_CLASSES, confusion_matrix, reliability_curve, similarity_scatter
from multitask.report.html import embed, escape, html_table

PAPER_NAMES = {SENTIMENT: "SST", PARAPHRASE: "QQP", SIMILARITY: "STS"}


def title_of(task: Task) -> str:
    """Return the name the paper gives a task ("Jack of All Trades, Master of Some"), or else its own."""
    return PAPER_NAMES.get(task, task.name)


def dev_scores(
    selected: Mapping[str, Task],
    tables: Mapping[str, Table],
    judged: Judgement,
    train: Mapping[str, Any] | None = None,
) -> str:
    """Return a table of every task's score, its interval, and what it contributes to the overall score.

    Given `train`, also show the scores on training rows of the epoch that was kept, and how far dev is below
    them.
    """
    lines, scores, ends = [], judged.dev, judged.intervals
    for name, task in selected.items():
        metric, score = task.kind.metric, task.kind.score
        scoring, value = task.kind.scoring, scores[name][metric]
        entering = score(value)
        within = interval_of(ends[name][metric])
        line = [title_of(task), f"{len(tables[name]):,}", scoring.symbol or metric, f"{value:.3f}", within]
        line.append(f"{entering:.3f} = {scoring.formula}" if scoring.formula else f"{entering:.3f}")
        lines.append(line + ([] if train is None else _beside(score(train[name][metric]), entering)))
    for name, meaning in (("worst", "worst task"), ("spread", "best less worst"), ("score", "mean")):
        line = [name, "", meaning, "", interval_of(ends[name]), f"{scores[name]:.3f}"]
        lines.append(line + ([] if train is None else _beside(train[name], scores[name])))
    head = ["task", "rows", "metric", "value", "95% interval", "in the score"] + (
        ["training rows", "train − dev"] if train else []
    )
    return "<h2>Dev scores</h2>\n" + html_table(head, lines, "figures total")


def interval_of(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _beside(train: float, dev: float) -> list[str]:
    return [f"{train:.3f}", f"{train - dev:+.3f}"]


def task_section(
    task: Task, table: Table, answers: Answers, judged: Judgement, figures: Path
) -> Iterator[str]:
    """Yield a task's figure, predicted against true labels, what was found of its classes and probabilities,
    and where its errors are.

    The figure is like Figure 1b of "Jack of All Trades, Master of Some: Improving BERT for Multitask
    Learning" (Stanford CS224N).
    """
    labels, predictions = table.labels, answers.numbers.double().numpy()
    yield f"<h2>{escape(title_of(task))}</h2>"
    described = f"{title_of(task)}: predicted against true, on dev"
    if task.classes > MOST_CLASSES:
        yield f"<p>No figure: {task.classes:,} classes are more than {MOST_CLASSES} that can be drawn.</p>"
    elif task.classes:
        matrix = partial(confusion_matrix, labels, predictions, task.class_names)
        yield embed(figures, task.name, described, matrix)
    else:
        value = judged.dev[task.name][task.kind.metric]
        caption = f"{task.kind.scoring.symbol or task.kind.metric} = {value:.3f}"
        yield embed(figures, task.name, described, partial(similarity_scatter, labels, predictions, caption))
    if task.name in judged.classes:
        yield classes_table(judged.classes[task.name])
        yield from calibration_section(task, judged, figures)
    yield from errors_section(task, list(table.rows()), labels, answers)


def classes_table(classes: Mapping[str, Mapping[str, float]]) -> str:
    """Return a table of precision, recall and F1 of each class; of the most frequent ones, if there are very
    many."""
    shown = sorted(classes, key=lambda name: -classes[name]["rows"])[:MOST_CLASSES]
    figures = ("precision", "recall", "f1")
    lines = [
        [name, f"{found['rows']:,}", *(f"{found[figure]:.3f}" for figure in figures)]
        for name, found in classes.items()
        if name in shown
    ]
    return "<h3>Classes</h3>\n" + html_table(["class", "rows", *figures], lines, "figures")


def calibration_section(task: Task, judged: Judgement, figures: Path) -> Iterator[str]:
    """Yield how far a task's probabilities can be believed, and what was fitted on dev."""
    found = judged.calibration[task.name]
    yield "<h3>Calibration</h3>"
    if line := describe(judged, task.name):
        yield f"<p>{escape(line)}.</p>"
    curves = {name: found[name] for name in ("before", "after") if name in found}
    described = f"{title_of(task)}: the share of right predictions by confidence"
    yield embed(figures, f"{task.name}-reliability", described, partial(reliability_curve, curves))
