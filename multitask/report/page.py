"""The report of a run or an ensemble: one self-contained HTML file, figures included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minbert.files import write_text
from multitask import evaluate, targets
from multitask.config import Config, Tsne
from multitask.data.tables import Table, read_split
from multitask.data.tasks import OVERALL
from multitask.data.tokens import make_examples
from multitask.ensemble_model import Ensemble
from multitask.finetune import plan_over
from multitask.judgement import fit_calibrations, judge
from multitask.layout import FIGURES, REPORT, TARGETS
from multitask.methods.mnrl import retrieval_accuracy
from multitask.methods.sampling import Plan
from multitask.model import MultitaskBert
from multitask.preparation import build_model, tasks_of
from multitask.ranking import sentence_vectors
from multitask.report.drawing import plotting
from multitask.report.figures import (
    BESIDE,
    MOST_EPOCHS,
    Records,
    best_record,
    learning_curves,
    sampling_shares,
    tsne,
    tsne_places,
)
from multitask.report.html import embed, escape, headline, html_table, note, verdict, whole_page
from multitask.report.origin import first_checkpoint, pretraining
from multitask.report.records import is_number
from multitask.report.scored import (
    OpenRun,
    Scored,
    check_comparable,
    difference,
    folder_of,
    open_run,
    read_dev,
    score,
)
from multitask.report.sections import dev_scores, interval_of, task_section, title_of


@plotting()
def write_report(
    run: Path,
    data: str | None,
    device: torch.device,
    skip_bad_rows: bool = False,
    embedding: Tsne = Tsne(),
    baseline: Path | None = None,
) -> Path:
    """Write RUN/report.html and RUN/figures/ for a training run or an ensemble. Return the report's path.

    The report scores the model on the dev tables in `data`, or else in the folder the run was trained on; and
    beside it the `baseline`, another run or ensemble. `embedding` is for runs of mnrl. Raises InputError if
    the run or its tables cannot be read, or if the baseline does not have its tasks and dev tables.
    """
    one = open_run(run, device, skip_bad_rows)
    other = None if baseline is None else open_run(baseline, device, skip_bad_rows)
    title = "Run" if one.records else "Ensemble"
    if one.tasks:
        parts = report_parts(one, data, other)
    elif one.config.option == "mlm":
        parts = language_parts(one, data)
    else:
        parts = embedding_parts(one, data, embedding)
    settings = html_table(["setting", "value"], one.config.settings.items(), "settings")
    body = "\n".join([f"<h1>{title} {escape(one.name)}</h1>", *parts, "<h2>Settings</h2>", settings])
    write_text(run / REPORT, whole_page(one.name, body))
    return run / REPORT


def report_parts(one: OpenRun, data: str | None, other: OpenRun | None) -> Iterator[str]:
    """Yield the parts of a report on tasks: what it found first, then what the model was and did."""
    tables = one.dev(data)
    if other is not None:
        theirs = other.dev(data)
        check_comparable(one, tables, other, theirs)
    of_members: dict[str, list[Tensor]] = {}
    if isinstance(one.model, Ensemble):
        of_members = {name: one.model.logits_of_members(name, tables[name]) for name in tables}
        scored = Scored.of(one, tables, {name: one.model.mean(name, of_members[name]) for name in tables})
    else:
        scored = score(one, tables)
    yield headline(headline_facts(scored, data))
    if other is not None:
        ahead = difference(score(other, theirs), scored)["score"]
        yield verdict(ahead.in_words(one.name, other.name))
    yield from notes(one, data)
    best = best_record(one.records, one.config.batches.choose_by) if one.records else {}
    yield dev_scores(one.tasks, tables, scored.judged, best.get("train"))
    if isinstance(one.model, Ensemble):
        where = "the shipped sample" if one.data(data) is None else one.data(data)
        yield f'<p class="about">The dev tables are those of {escape(where)}.</p>'
        yield "<h2>Members</h2>"
        yield members_table(one.model, of_members, tables)
    else:
        yield from training_parts(one, one.model, scored, data)
    for name, task in one.tasks.items():
        yield from task_section(task, tables[name], scored.answers[name], scored.judged, one.folder / FIGURES)
    if one.records:
        yield overview(one.config, one.records, one.data(data))


def headline_facts(scored: Scored, given: str | None) -> list[tuple[str, str, str]]:
    """Return the score, the worst task, and where they come from."""
    one, dev, ends = scored.run, scored.judged.dev, scored.judged.intervals
    scores = {name: task.kind.score(dev[name][task.kind.metric]) for name, task in scored.tasks.items()}
    worst = title_of(scored.tasks[min(scores, key=lambda name: scores[name])])
    rows = sum(map(len, scored.tables.values()))
    facts = [("score on dev", f"{dev['score']:.3f}", f"95% interval {interval_of(ends['score'])}")]
    if len(scores) > 1:
        within = f"95% interval {interval_of(ends['worst'])}"
        facts.append((f"worst task: {worst}", f"{dev['worst']:.3f}", within))
    if one.records:
        choose_by = one.config.batches.choose_by
        best = best_record(one.records, choose_by)["epoch"]
        facts.append(("best epoch", str(best), f"of {len(one.records)}, chosen by {choose_by}"))
    elif isinstance(one.model, Ensemble):
        facts.append(("members", str(len(one.model.places)), ", ".join(one.model.places)))
    return [*facts, ("data", data_name(one, given), f"{rows:,} dev rows")]


def data_name(one: OpenRun, given: str | None) -> str:
    data = one.data(given)
    return "the shipped sample" if data is None else "/".join(Path(data).parts[-2:])


def notes(one: OpenRun, data: str | None) -> Iterator[str]:
    """Yield what a reader of the scores must know."""
    if one.data(data) is None:
        yield note("This is the shipped sample, too small for its scores to mean anything.")
    if isinstance(one.model, Ensemble):
        yield note("The members were chosen on the dev tables, so the dev scores are slightly optimistic.")
        sources = [str(place) for place in one.model.places.values()]
    else:
        yield note("The best epoch was chosen on the dev tables, so the dev scores are slightly optimistic.")
        sources = [source_of(one.config)]
    for text in dict.fromkeys(text for source in sources for text in pretraining(first_checkpoint(source))):
        yield note(text)


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


def source_of(config: Config) -> str:
    """Return the checkpoint or the run that a run started from."""
    return config.start.init or config.start.weights


def overview(config: Config, records: Records, data: str | None) -> str:
    """Return what a training run was."""
    source = source_of(config)
    first = first_checkpoint(source)
    facts = {
        "option": config.option,
        **({"teacher": config.runs.run[0]} if config.runs.run else {}),
        "weights": source if first == source else f"{source}, which started from {first}",
        "data": "the shipped sample" if data is None else data,
        "seed": config.training.seed,
        "device": config.machine.device,
        "epochs": f"{len(records)} of {config.training.epochs}, {records[-1]['step']:,} updates",
        "best epoch": best_record(records, config.batches.choose_by)["epoch"],
        "training time": training_time(records),
    }
    return "<h2>The run</h2>\n" + html_table([], facts.items(), "settings")


def training_time(records: Records) -> str:
    """Return how long the updates took, without evaluations, and how many rows they saw."""
    seconds = [record.get("seconds", 0) for record in records]
    rates = [record.get("examples_per_second", 0) for record in records]
    rows = sum(rate * time for rate, time in zip(rates, seconds, strict=True))
    time = f"{sum(seconds) / 60:,.1f} minutes" if sum(seconds) > 90 else f"{sum(seconds):.0f} seconds"
    return f"{time}, {rows:,.0f} rows seen"


def training_parts(one: OpenRun, model: MultitaskBert, scored: Scored, given: str | None) -> Iterator[str]:
    """Yield how a run was trained: its teacher, its curves and its sampling plan."""
    config, records, figures = one.config, one.records, one.folder / FIGURES
    folder, dev = folder_of(one.data(given)), scored.judged.dev
    own_tables = folder == folder_of(config.tables.data)
    if own_tables and (one.folder / TARGETS).is_file():  # its outputs are known for these only
        taught = targets.read_targets(one.folder, one.tasks, {"dev": scored.tables})
        fitted = fit_calibrations(one.tasks, taught["dev"], scored.tables)
        teacher = judge(one.tasks, taught["dev"], scored.tables, fitted).dev
        yield "<h2>Student and teacher</h2>"
        beside = evaluate.format_scores(one.tasks, dev, teacher, intervals=scored.judged.intervals)
        yield f"<pre>{escape(beside)}</pre>"
    recorded = best_record(records, config.batches.choose_by)["dev"]["score"]
    found = evaluate.scores(one.tasks, scored.logits, scored.tables)["score"]  # before calibration
    if abs(recorded - found) > 1e-3:
        yield note(f"The run recorded {recorded:.3f}, so these are not its own dev tables.")
    yield "<h2>Training</h2>"
    yield curves(records, config.batches.choose_by, figures, "losses, scores and rate by epoch")
    yield epochs_table(records)
    yield from sampling_parts(one, model, folder)


def curves(records: Records, choose_by: str, figures: Path, alternative: str) -> str:
    return embed(
        figures,
        "learning-curves",
        alternative,
        partial(learning_curves, records, choose_by),
        partial(learning_curves, records, choose_by, columns=1),
    )


def sampling_parts(one: OpenRun, model: MultitaskBert, folder: Path) -> Iterator[str]:
    """Yield the sampling plan of a run, if its training tables are in this folder."""
    config = one.config
    train = read_split(folder, "train", one.tasks, config.reading.skip_bad_rows)
    if train.keys() != one.tasks.keys():
        return
    reading = model.tokenizer, model.max_length, model.long_in_training
    data = {name: make_examples(train[name], *reading) for name in one.tasks}
    training = replace(config.training, steps_per_epoch=one.records[0]["step"])
    plan, names = plan_over(data, config.batches, training), list(one.tasks)
    planned = config.training.epochs
    epochs = np.linspace(1, planned, min(planned, MOST_EPOCHS)).round().astype(int)
    drawn = config.batches.sampling, names, epochs, np.array([*map(plan.shares, epochs)])
    yield f"<h2>Sampling plan</h2>\n{sampling_table(plan, names)}"
    yield embed(
        one.folder / FIGURES,
        "sampling",
        "each task's share of the updates by epoch",
        partial(sampling_shares, *drawn),
        partial(sampling_shares, *drawn, width=3.2),
    )


def sampling_table(plan: Plan, names: Sequence[str]) -> str:
    """Return a table of what will be sampled of each task: see `Plan.describe`."""
    columns = zip(
        names, plan.sizes, plan.shares(1), plan.shares(plan.epochs), plan.rows, plan.passes, strict=True
    )
    lines = [
        [name, f"{size:,}", f"{first:.1%}", f"{last:.1%}", f"{rows:.4g}", f"{passes:.2f}"]
        for name, size, first, last, rows, passes in columns
    ]
    head = ["task", "rows", "of the first epoch", "of the last", "rows an update", "passes over all rows"]
    return html_table(head, lines, "figures")


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
    return html_table([head[name] for name in columns], rows, "figures")


def embedding_parts(one: OpenRun, data: str | None, embedding: Tsne) -> Iterator[str]:
    """Yield what MNRL did to the sentence vectors of the dev table.

    The figure is like Figure 1a of "Jack of All Trades, Master of Some: Improving BERT for Multitask
    Learning" (Stanford CS224N).
    """
    config, model, records, figures = one.config, one.model, one.records, one.folder / FIGURES
    assert isinstance(model, MultitaskBert)
    (task,) = tasks_of(config).values()
    dev_table = read_dev(folder_of(one.data(data)), {task.name: task}, config)[task.name]
    examples = make_examples(dev_table, model.tokenizer, model.max_length, model.long)
    first = build_model(config.start, {}, config.training.seed).to(model.device)
    before, after = (sentence_vectors(it, examples.tokens) for it in (first, model))
    nearest = [f"{retrieval_accuracy(vectors, examples.labels):.3f}" for vectors in (before, after)]
    best = best_record(records)
    yield headline(
        [
            ("kNN accuracy on dev", f"{best['dev']['knn']:.3f}", "a vote of the nearest training sentences"),
            ("nearest sentence has the same class", nearest[1], f"{nearest[0]} before training"),
            ("best epoch", str(best["epoch"]), f"of {len(records)}"),
            ("data", data_name(one, data), f"{len(examples):,} dev rows"),
        ]
    )
    yield from notes(one, data)
    yield "<h2>Training</h2>"
    yield curves(records, "score", figures, "loss, retrieval and kNN by epoch")
    if len(examples) >= 4:
        yield f"<h2>{escape(title_of(task))} on dev, {len(examples):,} rows</h2>"
        how = embedding.perplexity, embedding.iterations, config.training.seed
        (left, caption), (right, _) = (tsne_places(vectors.numpy(), *how) for vectors in (before, after))
        yield embed(
            figures,
            "tsne",
            "dev sentence vectors before and after training, by class",
            partial(tsne, left, right, examples.labels, task.class_names, caption),
            partial(tsne, left, right, examples.labels, task.class_names, caption, columns=1),
        )
        yield "<p>t-SNE shows which sentences are close; the sizes and distances of groups mean nothing.</p>"
    yield overview(one.config, one.records, one.data(data))


def language_parts(one: OpenRun, data: str | None) -> Iterator[str]:
    """Yield how well a masked language model guesses the words of held-out text, epoch by epoch."""
    best = best_record(one.records)
    yield headline(
        [
            ("perplexity of held-out text", f"{best['dev']['perplexity']:.1f}", "of its masked tokens"),
            ("masked tokens guessed", f"{best['dev']['accuracy']:.3f}", "at the first attempt"),
            ("best epoch", str(best["epoch"]), f"of {len(one.records)}"),
            ("data", data_name(one, data), "its texts, without labels"),
        ]
    )
    yield from notes(one, data)
    yield "<h2>Training</h2>"
    yield curves(one.records, "score", one.folder / FIGURES, "loss, perplexity and rate by epoch")
    yield epochs_table(one.records)
    yield overview(one.config, one.records, one.data(data))
