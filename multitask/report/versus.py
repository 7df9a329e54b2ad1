"""Runs and ensembles side by side on one page; the first is the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from multitask.config import NEUTRAL
from multitask.data.tasks import Task
from multitask.evaluate import scores
from multitask.pairing import Difference
from multitask.report.drawing import plotting
from multitask.report.figures import Curve, Estimate, curves_of_runs, scores_of_runs
from multitask.report.html import escape, html_table, note, picture, verdict, whole_page
from multitask.report.scored import OpenRun, Scored, check_comparable, difference, open_run, score
from multitask.report.sections import interval_of, title_of

Named = Mapping[str, Scored]  # the runs in order, by the names that the page gives them


@plotting()
def comparison(
    runs: Sequence[Path], data: str | None, device: torch.device, skip_bad_rows: bool = False
) -> tuple[str, list[str]]:
    """Return a page that puts runs side by side, on the dev tables in `data` or else on their own; and in
    sentences which of them beat the first.

    Raises InputError if a run cannot be read, or does not have the tasks and dev tables of the first.
    """
    opened = [open_run(run, device, skip_bad_rows) for run in runs]
    tables = [one.dev(data) for one in opened]
    for one, theirs in zip(opened[1:], tables[1:], strict=True):
        check_comparable(opened[0], tables[0], one, theirs)
    names = names_of(runs)
    scored = {name: score(one, theirs) for name, one, theirs in zip(names, opened, tables, strict=True)}
    base = scored[names[0]]
    ahead = {name: difference(base, scored[name]) for name in names[1:]}
    verdicts = [found["score"].in_words(name, names[0]) for name, found in ahead.items()]
    parts = comparison_parts(scored, ahead, verdicts, data)
    title = " and ".join(names) if len(names) == 2 else f"{len(names)} runs"
    body = "\n".join([f"<h1>{escape(title)}, side by side</h1>", *parts])
    return whole_page(title, body), verdicts


def names_of(runs: Sequence[Path]) -> list[str]:
    """Return the name of each run's folder, or its whole path if two have the same name."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def comparison_parts(
    scored: Named, ahead: Mapping[str, Mapping[str, Difference]], verdicts: Sequence[str], data: str | None
) -> Iterator[str]:
    """Yield the parts of the page: the verdicts first, then scores, differences, settings and curves."""
    base, *_ = scored
    yield from map(verdict, verdicts)
    rows = sum(map(len, scored[base].tables.values()))
    where = scored[base].run.data(data) or "the shipped sample"
    yield f'<p class="about">Baseline: {escape(base)}. On {rows:,} dev rows of {escape(where)}.</p>'
    if scored[base].run.data(data) is None:
        yield note("This is the shipped sample, too small for its scores to mean anything.")
    yield "<h2>Scores</h2>"
    panels = score_panels(scored)
    figure = partial(scores_of_runs, panels)
    yield picture("scores of the runs with their intervals", figure, partial(figure, columns=1))
    yield scores_table(panels)
    yield "<h2>Differences</h2>"
    for name, found in ahead.items():
        yield f"<h3>{escape(name)} against {escape(base)}</h3>"
        yield differences_table(scored[base].tasks, found)
    yield (
        '<p class="about">Each difference is to the baseline, with the interval of a paired bootstrap: both '
        "runs are scored on the same 1,000 draws of the dev rows. It tells how far other rows might change "
        "the difference, not how far another seed would. Of many comparisons, one in twenty looks clear by "
        "chance.</p>"
    )
    yield "<h2>Settings that differ</h2>"
    yield settings_table({name: one.run for name, one in scored.items()})
    curves = curve_panels(scored)
    if curves:
        yield "<h2>Learning curves</h2>"
        figure = partial(curves_of_runs, curves)
        yield picture("scores and losses of the runs by update", figure, partial(figure, columns=1))
        yield (
            '<p class="about">As the runs recorded them, before what is fitted on dev. A dashed line is an '
            "ensemble, which has no epochs.</p>"
        )


def score_panels(scored: Named) -> dict[str, dict[str, Estimate]]:
    """Return the score of all tasks and the metric of each with their intervals, by run."""
    panels: dict[str, dict[str, Estimate]] = {"score": {}, "worst task": {}}
    for run, one in scored.items():
        dev, ends = one.judged.dev, one.judged.intervals
        panels["score"][run] = dev["score"], ends["score"]
        panels["worst task"][run] = dev["worst"], ends["worst"]
        for name, task in one.tasks.items():
            metric = task.kind.metric
            panels.setdefault(titled(task), {})[run] = dev[name][metric], ends[name][metric]
    if len(next(iter(scored.values())).tasks) == 1:
        del panels["worst task"]
    return panels


def scores_table(panels: Mapping[str, Mapping[str, Estimate]]) -> str:
    runs = next(iter(panels.values()))
    lines = [
        [title, *(f"{scores[run][0]:.3f} ({interval_of(scores[run][1])})" for run in runs)]
        for title, scores in panels.items()
    ]
    return html_table(["", *runs], lines, "figures")


def differences_table(tasks: Mapping[str, Task], found: Mapping[str, Difference]) -> str:
    """Return a table of how far a run is ahead of the baseline, in all and in each task."""
    titles = {"score": "score", **({"worst": "worst task"} if len(tasks) > 1 else {})}
    titles |= {name: titled(task) for name, task in tasks.items()}
    lines = [
        [title, f"{found[name].value:+.3f}", found[name].verdict, found[name].ends]
        for name, title in titles.items()
    ]
    return html_table(["", "difference", "verdict", "95% interval"], lines, "figures")


def titled(task: Task) -> str:
    """Return a task's name and metric."""
    return f"{title_of(task)}, {task.kind.scoring.symbol or task.kind.metric}"


def settings_table(runs: Mapping[str, OpenRun]) -> str:
    """Return a table of the settings in which the runs differ, but for those that do not matter. An ensemble
    was not trained, so only what it is and its members are compared."""
    settings = {name: one.config.settings for name, one in runs.items()}
    trained = [settings[name] for name, one in runs.items() if one.records]
    keys = dict.fromkeys(key for values in settings.values() for key in values if key not in NEUTRAL)
    lines = []
    for key in keys:
        compared = settings.values() if key in ("option", "run") else trained
        if len({said(values.get(key)) for values in compared}) > 1:
            lines.append([key, *(said(values.get(key)) for values in settings.values())])
    return html_table(["setting", *runs], lines, "settings") if lines else "<p>None.</p>"


def said(value: object) -> str:
    return "–" if value in (None, (), "") else " ".join(value) if isinstance(value, tuple) else str(value)


def curve_panels(scored: Named) -> dict[str, dict[str, Curve]]:
    """Return what the runs recorded, by update, and the score of those that recorded nothing."""
    panels: dict[str, dict[str, Curve]] = {"Dev score": {}}
    if not any(one.run.records for one in scored.values()):
        return {}
    for run, one in scored.items():
        records = one.run.records
        updates = [record["step"] for record in records]
        dev = [record["dev"] for record in records] or [scores(one.tasks, one.logits, one.tables)]
        panels["Dev score"][run] = updates, [found["score"] for found in dev]
        for name, task in one.tasks.items():
            values = [found[name][task.kind.metric] for found in dev]
            panels.setdefault(f"{titled(task)} on dev", {})[run] = updates, values
        if records:
            losses = [record["loss"]["all"] for record in records]
            panels.setdefault("Training loss", {})[run] = updates, losses
    return panels
