"""The report of a run or an ensemble: one self-contained HTML file, figures included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minbert.errors import InputError
from minbert.files import write_text
from minbert.hub import CHECKPOINTS
from multitask import evaluate, targets
from multitask.config import TRAINING, Config, Start, Tsne
from multitask.data.calibration import UNCHANGED
from multitask.data.tables import SAMPLE, Row, Table, read_split
from multitask.data.tasks import OVERALL, PARAPHRASE, SENTIMENT, SIMILARITY, Answers, Task
from multitask.data.tokens import make_examples
from multitask.ensemble_model import Ensemble, is_ensemble
from multitask.finetune import plan_over
from multitask.judgement import Judgement, describe, fit_calibrations, judge, judged_answers
from multitask.layout import CONFIG, FIGURES, METRICS, REPORT, TARGETS
from multitask.methods.mnrl import retrieval_accuracy
from multitask.model import MultitaskBert
from multitask.preparation import build_model, tasks_of
from multitask.ranking import sentence_vectors
from multitask.recipes import read_settings
from multitask.report.figures import (
    BESIDE,
    MOST_CLASSES,
    MOST_EPOCHS,
    Records,
    best_record,
    confusion_matrix,
    learning_curves,
    plotting,
    reliability_curve,
    sampling_shares,
    similarity_scatter,
    tsne,
)
from multitask.report.html import PAGE, POLICY, embed, escape, html_table
from multitask.report.records import check_scores, is_number, read_metrics

WORST = 10  # mistakes shown per task
PAPER_NAMES = {SENTIMENT: "SST", PARAPHRASE: "QQP", SIMILARITY: "STS"}


@plotting()
def write_report(
    run: Path,
    data: str | None,
    device: torch.device,
    skip_bad_rows: bool = False,
    embedding: Tsne = Tsne(),
) -> Path:
    """Write RUN/report.html and RUN/figures/ for a training run or an ensemble. Return the report's path.

    The report scores the model on the dev tables in `data`, or else in the folder the run was trained on.
    `embedding` is for runs of mnrl. Raises InputError if the run or its tables cannot be read.
    """
    if is_ensemble(run):
        config = read_config(run, skip_bad_rows, "ensemble")
        title, parts = "Ensemble", ensemble_parts(run, config, data or config.tables.data, device)
    else:
        records = read_metrics(run / METRICS)
        config = read_config(run, skip_bad_rows, *TRAINING)
        data = data or config.tables.data
        title, parts = "Run", run_parts(run, config, records, data, device, embedding)
    name = escape(run.resolve().name)
    settings = ["<h2>Settings</h2>", html_table(["setting", "value"], config.settings.items())]
    body = "\n".join([f"<h1>{title} {name}</h1>", *parts, *settings])
    write_text(run / REPORT, PAGE.format(policy=POLICY, title=name, body=body))
    return run / REPORT


def read_config(run: Path, skip_bad_rows: bool, *options: str) -> Config:
    """Read the settings of a run. Raises InputError if it is not a run of one of these options."""
    settings = read_settings(run / CONFIG)
    if settings.get("option") not in options:
        raise InputError(f"{run / CONFIG}: its option must be {' or '.join(options)}; name another --run")
    config = Config.of(settings)
    return config.changed(skip_bad_rows=config.reading.skip_bad_rows or skip_bad_rows)


def run_parts(
    run: Path,
    config: Config,
    records: Records,
    data: str | None,
    device: torch.device,
    embedding: Tsne,
) -> Iterator[str]:
    """Yield the parts of a training run's report: what the run was, and how its best model does on dev."""
    model = load_model(run, config, device)
    check_scores(run / METRICS, records, model.tasks, config.batches.choose_by)
    yield from overview(config, records, data)
    folder = SAMPLE if data is None else Path(data)
    if model.tasks:
        yield from task_sections(model, config, records, folder, run / FIGURES)
    elif config.option == "mlm":
        yield embed(
            learning_curves(records), run / FIGURES, "learning-curves", "loss, perplexity and rate by epoch"
        )
        yield epochs_table(records)
    else:
        yield from embedding_section(model, config, records, folder, run / FIGURES, embedding)


def ensemble_parts(run: Path, config: Config, data: str | None, device: torch.device) -> Iterator[str]:
    """Yield the parts of an ensemble's report: scores, members, and each task's figure and mistakes."""
    ensemble = Ensemble(run, lambda folder: load_model(folder, config, device))
    tables = read_dev(SAMPLE if data is None else Path(data), ensemble.tasks, config)
    of_members = {name: ensemble.logits_of_members(name, tables[name]) for name in tables}
    logits = {name: ensemble.mean(name, of_members[name]) for name in tables}
    judged = judge(ensemble.tasks, logits, tables, ensemble.calibrations)

    yield html_table([], [["data", "the shipped sample" if data is None else data]])
    chosen = "The members were chosen on the dev tables, so the dev scores are slightly optimistic."
    firsts = dict.fromkeys(first_checkpoint(str(place)) for place in ensemble.places.values())
    yield from notes(data, chosen, *(text for first in firsts for text in pretraining(first)))
    yield dev_scores(ensemble.tasks, tables, judged)
    yield "<h2>Members</h2>"
    yield members_table(ensemble, of_members, tables)
    for name, task in ensemble.tasks.items():
        answers = judged_answers(task, logits[name], tables[name], ensemble.calibrations[name])
        yield from task_section(task, tables[name], answers, judged, run / FIGURES)


def load_model(folder: Path, config: Config, device: torch.device) -> MultitaskBert:
    model = MultitaskBert.load(folder, device)
    model.precision = config.products.precision
    return model


def members_table(
    ensemble: Ensemble, logits: Mapping[str, Sequence[Tensor]], tables: Mapping[str, Table]
) -> str:
    """Return a table of each task's members: their weight, score on these tables, and the score required."""
    lines = []
    for name, panel in ensemble.panels.items():
        for member, weight, one in zip(panel.members, panel.weights, logits[name], strict=True):
            score = evaluate.scores(ensemble.tasks, {name: one}, tables)["score"]
            fraction = f"{weight / sum(panel.weights):.3f}"
            lines.append([title_of(panel.task), member, fraction, f"{score:.3f}", f"{panel.threshold:g}"])
    return html_table(["task", "member", "weight", "score", "threshold"], lines)


def overview(config: Config, records: Records, data: str | None) -> list[str]:
    """Return what the run was, and what a reader of its scores must know."""
    source = config.start.weights if config.start.init is None else config.start.init
    first, best = first_checkpoint(source), best_record(records, config.batches.choose_by)
    facts = {
        "option": config.option,
        **({"teacher": config.runs.run[0]} if config.runs.run else {}),
        "weights": source if first == source else f"{source}, which started from {first}",
        "data": "the shipped sample" if data is None else data,
        "seed": config.training.seed,
        "device": config.machine.device,
        "epochs": f"{len(records)} of {config.training.epochs}, {records[-1]['step']:,} updates",
        "best epoch": best["epoch"],
        "training time": training_time(records),
    }
    chosen = "The best epoch was chosen on the dev tables, so the dev scores are slightly optimistic."
    return [html_table([], facts.items()), *notes(data, chosen, *pretraining(first))]


def pretraining(checkpoint: str) -> list[str]:
    """Return a sentence on what a known checkpoint was pre-trained on, in a list; none for an unknown one."""
    known = CHECKPOINTS.get(Path(checkpoint).name)
    return [f"Pre-training of {known.name}: {known.pretraining}."] if known else []


def training_time(records: Records) -> str:
    """Return how long the updates took, without evaluations, and how many rows they saw."""
    seconds = [record.get("seconds", 0) for record in records]
    rates = [record.get("examples_per_second", 0) for record in records]
    rows = sum(rate * time for rate, time in zip(rates, seconds, strict=True))
    time = f"{sum(seconds) / 60:,.1f} minutes" if sum(seconds) > 90 else f"{sum(seconds):.0f} seconds"
    return f"{time}, {rows:,.0f} rows seen"


def notes(data: str | None, *texts: str) -> list[str]:
    """Return notes that a reader of the scores needs."""
    sample = (
        ["This is the shipped sample, too small for its scores to mean anything."] if data is None else []
    )
    return [f'<p class="note">{escape(text)}</p>' for text in (*sample, *texts)]


def first_checkpoint(source: str) -> str:
    """Return the checkpoint at the start of a chain of runs, each the --init or --weights of the next."""
    for _ in range(20):
        saved = [folder / CONFIG for folder in (Path(source), Path(source).parent)]
        path = next((path for path in saved if source not in CHECKPOINTS and path.is_file()), None)
        if path is None:
            break
        settings = read_settings(path)
        source = settings.get("init") or settings.get("weights") or Start().weights
    return source


def task_sections(
    model: MultitaskBert, config: Config, records: Records, folder: Path, figures: Path
) -> Iterator[str]:
    """Yield scores, curves and the sampling plan, then each task's figure and worst mistakes."""
    tables = read_dev(folder, model.tasks, config)
    reading = model.tokenizer, model.max_length, model.long
    examples = {name: make_examples(tables[name], *reading) for name in tables}
    logits = evaluate.all_logits(model, examples)
    judged = judge(model.tasks, logits, tables, model.calibrations)
    scores = judged.dev
    best = best_record(records, config.batches.choose_by)
    yield dev_scores(model.tasks, tables, judged, best.get("train"))
    own_tables = folder == (SAMPLE if config.tables.data is None else Path(config.tables.data))
    if own_tables and (figures.parent / TARGETS).is_file():  # its outputs are known for these only
        taught = targets.read_targets(figures.parent, model.tasks, {"dev": tables})
        fitted = fit_calibrations(model.tasks, taught["dev"], tables)
        teacher = judge(model.tasks, taught["dev"], tables, fitted).dev
        yield "<h2>Student and teacher</h2>"
        beside = evaluate.format_scores(model.tasks, scores, teacher, intervals=judged.intervals)
        yield f"<pre>{escape(beside)}</pre>"
    recorded, found = best["dev"]["score"], evaluate.scores(model.tasks, logits, tables)["score"]
    if abs(recorded - found) > 1e-3:
        yield f'<p class="note">The run recorded {recorded:.3f}, so these are not its own dev tables.</p>'
    plot = learning_curves(records, config.batches.choose_by)
    yield embed(plot, figures, "learning-curves", "losses, scores and rate by epoch")
    yield epochs_table(records)

    train = read_split(folder, "train", model.tasks, config.reading.skip_bad_rows)
    if train.keys() == model.tasks.keys():
        reading = model.tokenizer, model.max_length, model.long_in_training
        data = {name: make_examples(train[name], *reading) for name in model.tasks}
        training = replace(config.training, steps_per_epoch=records[0]["step"])
        plan, names = plan_over(data, config.batches, training), list(model.tasks)
        yield f"<h2>Sampling plan</h2>\n<pre>{escape(plan.describe(names))}</pre>"
        planned = config.training.epochs
        epochs = np.linspace(1, planned, min(planned, MOST_EPOCHS)).round().astype(int)
        plot = sampling_shares(config.batches.sampling, names, epochs, np.array([*map(plan.shares, epochs)]))
        yield embed(plot, figures, "sampling", "each task's share of the updates by epoch")

    for name, task in model.tasks.items():
        calibration = model.calibrations.get(name, UNCHANGED)
        answers = judged_answers(task, logits[name], tables[name], calibration)
        yield from task_section(task, tables[name], answers, judged, figures)


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
    return f'<h2>Dev scores</h2>\n<div class="scores">{html_table(head, lines)}</div>'


def interval_of(ends: Sequence[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


def _beside(train: float, dev: float) -> list[str]:
    return [f"{train:.3f}", f"{train - dev:+.3f}"]


def epochs_table(records: Records) -> str:
    """Return a table with one row per epoch: overall scores on dev and training rows, rate, beta and time.

    Runs lack some of these columns.
    """
    head = {"epoch": "epoch", "step": "updates", "minutes": "minutes", "dev/score": "score",
            "dev/worst": "worst task", "dev/spread": "spread", "dev/perplexity": "perplexity",
            "dev/accuracy": "masked tokens guessed", "train/score": "training rows",
            "teacher/score": "averaged weights", "lr": "rate", "beta": "beta"}  # fmt: skip
    lines = []
    for record in records:
        parts = {
            f"{part}/{name}": record[part][name]
            for part in ("dev", *BESIDE)
            for name in (*OVERALL, "perplexity", "accuracy")
            if is_number(record.get(part, {}).get(name))
        }
        lines.append({**record, **parts, "minutes": record.get("seconds", 0) / 60})
    columns = [name for name in head if all(name in line for line in lines)]
    formats = {"epoch": "d", "step": ",d", "minutes": ".1f", "lr": ".2g", "beta": "g"}
    rows = [[format(line[name], formats.get(name, ".3f")) for name in columns] for line in lines]
    return "<h2>Epochs</h2>\n" + html_table([head[name] for name in columns], rows)


def task_section(
    task: Task, rows: Table, answers: Answers, judged: Judgement, figures: Path
) -> Iterator[str]:
    """Yield a task's figure, predicted against true labels, what was found of its classes and probabilities,
    and its worst mistakes.

    The figure is like Figure 1b of "Jack of All Trades, Master of Some: Improving BERT for Multitask
    Learning" (Stanford CS224N).
    """
    labels, predictions = rows.labels, answers.numbers.double().numpy()
    yield f"<h2>{escape(title_of(task))}</h2>"
    if task.classes > MOST_CLASSES:
        yield f"<p>No figure: {task.classes:,} classes are more than {MOST_CLASSES} that can be drawn.</p>"
    else:
        if task.classes:
            plot = confusion_matrix(labels, predictions, task.class_names)
        else:
            value = judged.dev[task.name][task.kind.metric]
            caption = f"{task.kind.scoring.symbol or task.kind.metric} = {value:.3f}"
            plot = similarity_scatter(labels, predictions, caption)
        yield embed(plot, figures, task.name, f"{title_of(task)}: predicted against true, on dev")
    if task.name in judged.classes:
        yield classes_table(judged.classes[task.name])
        yield from calibration_section(task, judged, figures)
    yield worst_mistakes(task, list(rows.rows()), labels, answers)


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
    return "<h3>Classes</h3>\n" + html_table(["class", "rows", *figures], lines)


def calibration_section(task: Task, judged: Judgement, figures: Path) -> Iterator[str]:
    """Yield how far a task's probabilities can be believed, and what was fitted on dev."""
    found = judged.calibration[task.name]
    yield "<h3>Calibration</h3>"
    if line := describe(judged, task.name):
        yield f"<p>{escape(line)}.</p>"
    plot = reliability_curve({name: found[name] for name in ("before", "after") if name in found})
    described = f"{title_of(task)}: the share of right predictions by confidence"
    yield embed(plot, figures, f"{task.name}-reliability", described)


def worst_mistakes(task: Task, rows: Sequence[Row], labels: np.ndarray, answers: Answers) -> str:
    """Return a table of the rows with the largest error: |predicted - true|, or 1 - p(true class)."""
    predictions = answers.numbers.double().numpy()
    if answers.probabilities is None:
        measure, badness = "off by", np.abs(predictions - labels)
    else:
        probabilities = answers.probabilities.double().numpy()
        of_truth = probabilities[np.arange(len(labels)), labels.astype(int)]
        measure, badness = "p(true)", np.where(predictions == labels, 0, 1 - of_truth)
    worst = [row for row in np.argsort(-badness, kind="stable")[:WORST] if badness[row] > 0]
    if not worst:
        return "<p>No mistakes.</p>"
    values = 1 - badness if task.classes else badness

    names = task.class_names
    truth = [names[int(labels[i])] if names else f"{labels[i]:g}" for i in worst]
    guess = [names[int(predictions[i])] if names else f"{predictions[i]:.3g}" for i in worst]
    lines = [
        [rows[i].line, true, predicted, f"{values[i]:.3f}", *rows[i].texts]
        for i, true, predicted in zip(worst, truth, guess, strict=True)
    ]
    head = ["line", "true", "predicted", measure, *task.texts]
    return "<h3>Worst mistakes</h3>\n" + html_table(head, lines)


def embedding_section(
    model: MultitaskBert,
    config: Config,
    records: Records,
    folder: Path,
    figures: Path,
    embedding: Tsne,
) -> Iterator[str]:
    """Yield what MNRL did to the sentence vectors of the dev table.

    The figure is like Figure 1a of "Jack of All Trades, Master of Some: Improving BERT for Multitask
    Learning" (Stanford CS224N).
    """
    (task,) = tasks_of(config).values()
    dev_table = read_dev(folder, {task.name: task}, config)[task.name]
    examples = make_examples(dev_table, model.tokenizer, model.max_length, model.long)
    first = build_model(config.start, {}, config.training.seed).to(model.device)
    before, after = (sentence_vectors(it, examples.tokens) for it in (first, model))

    dev, epochs = best_record(records)["dev"], ("before", "best epoch")
    nearest = [f"{retrieval_accuracy(vectors, examples.labels):.3f}" for vectors in (before, after)]
    yield f"<h2>{escape(title_of(task))} on dev, {len(examples):,} rows</h2>"
    yield html_table(
        ["", *epochs],
        [["nearest sentence has the same class", *nearest], ["kNN accuracy", "", f"{dev['knn']:.3f}"]],
    )
    yield embed(learning_curves(records), figures, "learning-curves", "loss, retrieval and kNN by epoch")
    if len(examples) >= 4:
        seed, perplexity, iterations = config.training.seed, embedding.perplexity, embedding.iterations
        plot = tsne(before.numpy(), after.numpy(), examples.labels, perplexity, iterations, seed)
        yield embed(plot, figures, "tsne", "dev sentence vectors before and after training, by class")
        yield "<p>t-SNE shows which sentences are close; the sizes and distances of groups mean nothing.</p>"


def read_dev(folder: Path, selected: Mapping[str, Task], config: Config) -> dict[str, Table]:
    """Read the dev tables of these tasks. Raises InputError if one is missing."""
    tables = read_split(folder, "dev", selected, config.reading.skip_bad_rows)
    for name in selected.keys() - tables.keys():
        raise InputError(f"{selected[name].path(folder, 'dev')}: no such file; name its folder with --data")
    return tables
