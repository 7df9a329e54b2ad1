"""The report of a run or an ensemble: one self-contained HTML file, figures included."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from minbert.errors import InputError
from minbert.files import write_text
from minbert.hub import CHECKPOINTS
from minbert.reading import read_text, reason
from multitask import evaluate, targets, tasks
from multitask.build import build_model
from multitask.config import TRAINING, Config, read_toml
from multitask.data import SAMPLE, Row, Table, make_examples, read_split
from multitask.ensemble_model import Ensemble, is_ensemble
from multitask.figures import (
    BESIDE,
    PANELS,
    SINGLE,
    Records,
    best_record,
    confusion_matrix,
    learning_curves,
    plotting,
    sampling_shares,
    save_figure,
    similarity_scatter,
    tsne,
)
from multitask.finetune import plan_over
from multitask.mnrl import retrieval_accuracy
from multitask.model import MultitaskBert
from multitask.ranking import Ranking
from multitask.tasks import OVERALL, PARAPHRASE, SENTIMENT, SIMILARITY, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_NUMBER = 2**53  # in a record; up to here a float holds every integer exactly
WORST, LONGEST = 10, 600  # mistakes shown per task; characters shown per text
PAPER_NAMES = {SENTIMENT: "SST", PARAPHRASE: "QQP", SIMILARITY: "STS"}


@plotting()
def write_report(
    run: Path,
    data: str | None,
    device: torch.device,
    skip_bad_rows: bool = False,
    perplexity: float = Config.perplexity,
    iterations: int = Config.iterations,
) -> Path:
    """Write RUN/report.html and RUN/figures/ for a training run or an ensemble. Return the report's path.

    The report scores the model on the dev tables in `data`, or else in the folder the run was trained on.
    `perplexity` and `iterations` (at least 250) are those of t-SNE, for runs of mnrl. Raises InputError if
    the run or its tables cannot be read.
    """
    if is_ensemble(run):
        config = read_config(run, skip_bad_rows, "ensemble")
        title, parts = "Ensemble", ensemble_parts(run, config, data or config.data, device)
    else:
        records = read_metrics(run / "metrics.jsonl")
        config = read_config(run, skip_bad_rows, *TRAINING)
        embedding = (perplexity, iterations)
        title, parts = "Run", run_parts(run, config, records, data or config.data, device, *embedding)
    name = escape(run.resolve().name)
    settings = ["<h2>Settings</h2>", html_table(["setting", "value"], config.settings.items())]
    body = "\n".join([f"<h1>{title} {name}</h1>", *parts, *settings])
    write_text(run / "report.html", PAGE.format(policy=POLICY, title=name, body=body))
    return run / "report.html"


def read_config(run: Path, skip_bad_rows: bool, *options: str) -> Config:
    """Read the settings of a run. Raises InputError if it is not a run of one of these options."""
    settings = read_toml(run / "config.toml")
    if settings.get("option") not in options:
        raise InputError(
            f"{run / 'config.toml'}: its option must be {' or '.join(options)}; name another --run"
        )
    config = Config(**settings)
    return replace(config, skip_bad_rows=config.skip_bad_rows or skip_bad_rows)


def run_parts(
    run: Path,
    config: Config,
    records: Records,
    data: str | None,
    device: torch.device,
    perplexity: float,
    iterations: int,
) -> Iterator[str]:
    """Yield the parts of a training run's report: what the run was, and how its best model does on dev."""
    model = load_model(run, config, device)
    check_scores(run / "metrics.jsonl", records, model.tasks, config.choose_by)
    yield from overview(config, records, data)
    folder = SAMPLE if data is None else Path(data)
    if model.tasks:
        yield from task_sections(model, config, records, folder, run / "figures")
    else:
        figures = run / "figures"
        yield from embedding_section(model, config, records, folder, figures, perplexity, iterations)


def ensemble_parts(run: Path, config: Config, data: str | None, device: torch.device) -> Iterator[str]:
    """Yield the parts of an ensemble's report: scores, members, and each task's figure and mistakes."""
    ensemble = Ensemble(run, lambda folder: load_model(folder, config, device))
    tables = read_dev(SAMPLE if data is None else Path(data), ensemble.tasks, config)
    of_members = {name: ensemble.logits_of_members(name, tables[name]) for name in tables}
    logits = {name: ensemble.mean(name, of_members[name]) for name in tables}
    scores = evaluate.scores(ensemble.tasks, logits, tables)

    yield html_table([], [["data", "the shipped sample" if data is None else data]])
    chosen = "The members were chosen on the dev tables, so the dev scores are slightly optimistic."
    firsts = dict.fromkeys(first_checkpoint(str(place)) for place in ensemble.places.values())
    yield from notes(data, chosen, *(text for first in firsts for text in pretraining(first)))
    yield dev_scores(ensemble.tasks, tables, scores)
    yield "<h2>Members</h2>"
    yield members_table(ensemble, of_members, tables)
    for name, task in ensemble.tasks.items():
        yield from task_section(task, tables[name], logits[name], scores[name][task.metric], run / "figures")


def load_model(folder: Path, config: Config, device: torch.device) -> MultitaskBert:
    model = MultitaskBert.load(folder, device)
    model.precision = config.precision
    return model


def members_table(
    ensemble: Ensemble, logits: Mapping[str, Sequence[Tensor]], tables: Mapping[str, Table]
) -> str:
    """Return a table of each task's members: their weight, score on these tables, and the score required."""
    lines = []
    for name, panel in ensemble.panels.items():
        for member, weight, one in zip(panel.members, panel.weights, logits[name], strict=True):
            score = evaluate.scores(ensemble.tasks, {name: one}, tables)["score"]
            share = f"{weight / sum(panel.weights):.3f}"
            lines.append([title_of(panel.task), member, share, f"{score:.3f}", f"{panel.threshold:g}"])
    return html_table(["task", "member", "weight", "score", "threshold"], lines)


def overview(config: Config, records: Records, data: str | None) -> list[str]:
    """Return what the run was, and what a reader of its scores must know."""
    source = config.weights if config.init is None else config.init
    first, best = first_checkpoint(source), best_record(records, config.choose_by)
    facts = {
        "option": config.option,
        **({"teacher": config.run[0]} if config.run else {}),
        "weights": source if first == source else f"{source}, which started from {first}",
        "data": "the shipped sample" if data is None else data,
        "seed": config.seed,
        "device": config.device,
        "epochs": f"{len(records)} of {config.epochs}, {records[-1]['step']:,} updates",
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
        saved = [folder / "config.toml" for folder in (Path(source), Path(source).parent)]
        path = next((path for path in saved if source not in CHECKPOINTS and path.is_file()), None)
        if path is None:
            break
        settings = read_toml(path)
        source = settings.get("init") or settings.get("weights") or Config.weights
    return source


def task_sections(
    model: MultitaskBert, config: Config, records: Records, folder: Path, figures: Path
) -> Iterator[str]:
    """Yield scores, curves and the sampling plan, then each task's figure and worst mistakes."""
    tables = read_dev(folder, model.tasks, config)
    examples = {name: make_examples(tables[name], model.tokenizer, model.max_length) for name in tables}
    logits = evaluate.all_logits(model, examples)
    scores = evaluate.scores(model.tasks, logits, examples)
    best = best_record(records, config.choose_by)
    yield dev_scores(model.tasks, tables, scores, best.get("train"))
    own_tables = folder == (SAMPLE if config.data is None else Path(config.data))
    if own_tables and (figures.parent / targets.FILE).is_file():  # its outputs are known for these only
        taught = targets.read_targets(figures.parent, model.tasks, {"dev": tables})
        teacher = evaluate.scores(model.tasks, taught["dev"], tables)
        yield "<h2>Student and teacher</h2>"
        yield f"<pre>{escape(evaluate.format_scores(model.tasks, scores, teacher))}</pre>"
    recorded = best["dev"]["score"]
    if abs(recorded - scores["score"]) > 1e-3:
        yield f'<p class="note">The run recorded {recorded:.3f}, so these are not its own dev tables.</p>'
    drawing = learning_curves(records, config.choose_by)
    yield embed(drawing, figures, "learning-curves", "losses, scores and rate by epoch")
    yield epochs_table(records)

    train = read_split(folder, "train", model.tasks, config.skip_bad_rows)
    if train.keys() == model.tasks.keys():
        data = {name: make_examples(train[name], model.tokenizer, model.max_length) for name in model.tasks}
        plan, names = plan_over(data, replace(config, steps_per_epoch=records[0]["step"])), list(model.tasks)
        yield f"<h2>Sampling plan</h2>\n<pre>{escape(plan.describe(names))}</pre>"
        shares = np.array([plan.shares(epoch) for epoch in range(1, config.epochs + 1)])
        drawing = sampling_shares(config.sampling, names, shares)
        yield embed(drawing, figures, "sampling", "each task's share of the updates by epoch")

    for name, task in model.tasks.items():
        yield from task_section(task, tables[name], logits[name], scores[name][task.metric], figures)


def title_of(task: Task) -> str:
    """Return the name the paper gives a task ("Jack of All Trades, Master of Some"), or else its own."""
    return PAPER_NAMES.get(task, task.name)


def dev_scores(
    selected: Mapping[str, Task],
    tables: Mapping[str, Table],
    scores: Mapping[str, Any],
    train: Mapping[str, Any] | None = None,
) -> str:
    """Return a table of every task's score and what it contributes to the overall score.

    Given `train`, also show the scores on training rows of the epoch that was kept, and how far dev is below
    them.
    """
    lines = []
    for name, task in selected.items():
        value, correlation = scores[name][task.metric], task.metric == "pearson"
        entering = task.score(value)
        line = [title_of(task), f"{len(tables[name]):,}", "r" if correlation else task.metric, f"{value:.3f}"]
        line.append(f"{entering:.3f} = (1 + r) / 2" if correlation else f"{entering:.3f}")
        lines.append(
            line + ([] if train is None else _beside(task.score(train[name][task.metric]), entering))
        )
    for name, meaning in (("worst", "worst task"), ("spread", "best less worst"), ("score", "mean")):
        line = [name, "", meaning, "", f"{scores[name]:.3f}"]
        lines.append(line + ([] if train is None else _beside(train[name], scores[name])))
    head = ["task", "rows", "metric", "value", "in the score"] + (
        ["training rows", "train − dev"] if train else []
    )
    return f'<h2>Dev scores</h2>\n<div class="scores">{html_table(head, lines)}</div>'


def _beside(train: float, dev: float) -> list[str]:
    return [f"{train:.3f}", f"{train - dev:+.3f}"]


def epochs_table(records: Records) -> str:
    """Return a table with one row per epoch: overall scores on dev and training rows, rate, beta and time.

    Older runs lack some of these columns.
    """
    head = {"epoch": "epoch", "step": "updates", "minutes": "minutes", "dev/score": "score",
            "dev/worst": "worst task", "dev/spread": "spread", "train/score": "training rows",
            "teacher/score": "averaged weights", "lr": "rate", "beta": "beta"}  # fmt: skip
    lines = []
    for record in records:
        parts = {
            f"{part}/{name}": record[part][name]
            for part in ("dev", *BESIDE)
            for name in OVERALL
            if _is_number(record.get(part, {}).get(name))
        }
        lines.append({**record, **parts, "minutes": record.get("seconds", 0) / 60})
    columns = [name for name in head if all(name in line for line in lines)]
    formats = {"epoch": "d", "step": ",d", "minutes": ".1f", "lr": ".2g", "beta": "g"}
    rows = [[format(line[name], formats.get(name, ".3f")) for name in columns] for line in lines]
    return "<h2>Epochs</h2>\n" + html_table([head[name] for name in columns], rows)


def task_section(task: Task, rows: Table, logits: Tensor, value: float, figures: Path) -> Iterator[str]:
    """Yield a task's figure, predicted against true labels, and its worst mistakes. `value` is its metric.

    The figure is like Figure 1b of "Jack of All Trades, Master of Some: Improving BERT for Multitask
    Learning" (Stanford CS224N).
    """
    labels, predictions = rows.labels, evaluate.decode(task.kind, logits).double().numpy()
    if task.kind == "regression":
        drawing = similarity_scatter(labels, predictions, value)
    else:
        classes = range(task.num_classes if task.kind == "classification" else 2)
        drawing = confusion_matrix(labels, predictions, [str(number) for number in classes])
    yield f"<h2>{escape(title_of(task))}</h2>"
    yield embed(drawing, figures, task.name, f"{title_of(task)}: predicted against true, on dev")
    yield worst_mistakes(task, list(rows.rows()), labels, logits)


def worst_mistakes(task: Task, rows: Sequence[Row], labels: np.ndarray, logits: Tensor) -> str:
    """Return a table of the rows with the largest error: |predicted - true|, or 1 - p(true class)."""
    predictions = evaluate.decode(task.kind, logits).double().numpy()
    if task.kind == "regression":
        measure, badness = "off by", np.abs(predictions - labels)
    else:
        probabilities = evaluate.probabilities(task.kind, logits).double().numpy()
        of_truth = probabilities[np.arange(len(labels)), labels.astype(int)]
        measure, badness = "p(true)", np.where(predictions == labels, 0, 1 - of_truth)
    worst = [row for row in np.argsort(-badness, kind="stable")[:WORST] if badness[row] > 0]
    if not worst:
        return "<p>No mistakes.</p>"
    values = badness if task.kind == "regression" else 1 - badness
    lines = [
        [rows[i].line, f"{labels[i]:g}", f"{predictions[i]:.3g}", f"{values[i]:.3f}", *rows[i].texts]
        for i in worst
    ]
    head = ["line", "true", "predicted", measure, *task.texts]
    return "<h3>Worst mistakes</h3>\n" + html_table(head, lines)


def embedding_section(
    model: MultitaskBert,
    config: Config,
    records: Records,
    folder: Path,
    figures: Path,
    perplexity: float,
    iterations: int,
) -> Iterator[str]:
    """Yield what MNRL did to the sentence vectors of the dev table.

    The figure is like Figure 1a of "Jack of All Trades, Master of Some: Improving BERT for Multitask
    Learning" (Stanford CS224N).
    """
    known = tasks.read_task_file(Path(config.task_file)) if config.task_file else tasks.BUILT_IN
    task = tasks.first_of_single_texts_in_classes(tasks.select(config.tasks, known))
    dev_table = read_dev(folder, {task.name: task}, config)[task.name]
    examples = make_examples(dev_table, model.tokenizer, model.max_length)
    first = build_model(config, {}).to(model.device)
    before, after = (Ranking(it, examples, examples, config).embeddings(examples) for it in (first, model))

    dev, epochs = best_record(records)["dev"], ("before", "best epoch")
    nearest = [f"{retrieval_accuracy(vectors, examples.labels):.3f}" for vectors in (before, after)]
    yield f"<h2>{escape(title_of(task))} on dev, {len(examples):,} rows</h2>"
    yield html_table(
        ["", *epochs],
        [["nearest sentence has the same class", *nearest], ["kNN accuracy", "", f"{dev['knn']:.3f}"]],
    )
    yield embed(learning_curves(records), figures, "learning-curves", "loss, retrieval and kNN by epoch")
    if len(examples) >= 4:
        drawing = tsne(before.numpy(), after.numpy(), examples.labels, perplexity, iterations, config.seed)
        yield embed(drawing, figures, "tsne", "dev sentence vectors before and after training, by class")
        yield "<p>t-SNE shows which sentences are close; the sizes and distances of groups mean nothing.</p>"


def read_dev(folder: Path, selected: Mapping[str, Task], config: Config) -> dict[str, Table]:
    """Read the dev tables of these tasks. Raises InputError if one is missing."""
    tables = read_split(folder, "dev", selected, config.skip_bad_rows)
    for name in selected.keys() - tables.keys():
        raise InputError(f"{selected[name].path(folder, 'dev')}: no such file; name its folder with --data")
    return tables


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records in a metrics.jsonl, one per epoch. Raises InputError if one is not valid."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({reason(error)}); has the run completed an epoch?"
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            good = _is_record(record)
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise InputError(f"{path}:{number}: not the record of an epoch; restore the file") from None
        records.append(record)
    if not records:
        raise InputError(f"{path}: holds no epoch yet; make the report when the run has completed one")
    return records


def _is_record(record: Any) -> bool:
    """Return whether a record has everything that is plotted, in numbers that can be plotted.

    Raises KeyError or TypeError if it does not look like a record at all.
    """
    counts = record["epoch"], record["step"]
    singles = [*counts, *(record.get(name, 0) for name in ("seconds", "examples_per_second", *SINGLE))]
    singles += [record["loss"]["all"], record["dev"]["score"]]
    parts = {panel.partition("/")[0] for panel in PANELS} | {*BESIDE}
    return (
        all(isinstance(count, int) and count > 0 for count in counts)
        and all(map(_is_number, singles))
        and all(_holds_numbers(record.get(part, {}), 2) for part in parts - {*SINGLE})
    )


def check_scores(path: Path, records: Records, selected: Mapping[str, Task], choose_by: str) -> None:
    """Raise InputError if a record lacks a score of these tasks that the report shows."""
    for number, record in enumerate(records, start=1):
        beside = [record[part] for part in BESIDE if part in record]
        if not _is_number(record["dev"].get(choose_by)) or not all(_scores(one, selected) for one in beside):
            raise InputError(f"{path}:{number}: not the record of an epoch of this run; restore the file")


def _scores(scores: Mapping[str, Any], selected: Mapping[str, Task]) -> bool:
    """Return whether each of these tasks has its metric here, and the overall scores are there too."""
    metrics = [(scores.get(name), task.metric) for name, task in selected.items()]
    return all(_is_number(scores.get(name)) for name in OVERALL) and all(
        isinstance(found, dict) and _is_number(found.get(metric)) for found, metric in metrics
    )


def _holds_numbers(values: Any, levels: int) -> bool:
    """Return whether this maps names to numbers, or to such mappings, at most `levels` deep."""
    return isinstance(values, dict) and all(
        _is_number(value) or (levels > 1 and _holds_numbers(value, levels - 1)) for value in values.values()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def embed(figure: Figure, folder: Path, name: str, alternative: str) -> str:
    """Save the figure and return an image element that contains it."""
    code = base64.b64encode(save_figure(figure, folder, name)).decode()
    return f'<figure><img alt="{escape(alternative)}" src="data:image/svg+xml;base64,{code}"></figure>'


def html_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table. Every cell is escaped."""
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"] if head else []
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def escape(value: object) -> str:
    """Return any value as HTML text, shortened if very long. A file name's undecodable bytes become ?."""
    text = str(value).encode("utf-8", "replace").decode()
    return html.escape(text if len(text) <= LONGEST else text[:LONGEST] + " …")


# Forbids scripts and all external loads, in case something is not escaped.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="{policy}">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }}
h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #ddd; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #eee; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }}
th {{ border-bottom-color: #999; white-space: nowrap; }}
td:first-child {{ min-width: 3.5rem; }}
.scores tr:last-child {{ font-weight: bold; }}
.note {{ padding: .3rem .8rem; margin: .5rem 0; border-left: 3px solid #d55e00; background: #fdf6ee; }}
figure {{ margin: 1rem 0; }}
img {{ max-width: 100%; height: auto; }}
pre {{ overflow-x: auto; }}
@media print {{ body {{ margin: 0; font-size: 12px; }} figure, tr, .note {{ break-inside: avoid; }}
  h2, h3 {{ break-after: avoid; }} }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
