"""Model cards: README.md in a run's best/ and in every export, with the front matter of the Hugging Face hub.

A card may be published with its model, so it names tables and runs by their own names, not by where they are.
Equal runs have equal cards, wherever they are.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minbert.config import BertConfig
from minbert.errors import visible
from minbert.files import write_text
from minbert.hub import REPOSITORY, find_checkpoint
from multitask.config import DEFAULTS, NEUTRAL, SETTINGS, Start, flag
from multitask.data.tables import SPLITS
from multitask.data.tasks import Task
from multitask.layout import BEST, CARD, CONFIG
from multitask.recipes import read_settings
from multitask.report.origin import first_checkpoint, pretraining
from multitask.report.records import is_number
from multitask.report.sections import interval_of
from multitask.saved import read_definitions

MOST_LABELS, MOST_NAMES = 20, 5  # spelled out


@dataclass(frozen=True)
class Usage:
    """How a model is used in the form in which it is stored."""

    library: str  # as the hub names it
    pipeline: str  # what the hub calls that for which it is used
    code: str  # Python that uses it
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """What a card is about."""

    settings: Mapping[str, Any]  # of the run's config.toml; empty if that is not known
    result: Mapping[str, Any]  # of its result.json; empty before the run is done
    shape: BertConfig
    pooling: str
    max_length: int
    trained: Mapping[str, Task]  # the tasks of the run
    tasks: Mapping[str, Task]  # those of them whose heads are there

    @classmethod
    def of(
        cls,
        best: Path,
        settings: Mapping[str, Any],
        result: Mapping[str, Any],
        tasks: Mapping[str, Task] | None = None,
    ) -> Subject:
        """Read the rest from the folder of a saved model. `tasks` are those whose heads are there, if not
        all."""
        saved, trained = read_definitions(best / "tasks.toml")
        shape, tasks = BertConfig.from_pretrained(best), trained if tasks is None else tasks
        return cls(settings, result, shape, saved["pooling"], saved["max_length"], trained, tasks)

    @property
    def checkpoint(self) -> str:
        """The checkpoint that the run, or the first of a chain of runs, started from; empty if unknown."""
        return first_checkpoint(self.start) if self.settings else ""

    @property
    def start(self) -> str:
        """What the run started from: a checkpoint, or another run."""
        return self.settings.get("init") or self.settings.get("weights") or Start().weights

    @property
    def title(self) -> str:
        """What the model is, in a few words."""
        first = last_part(self.checkpoint) or "BERT"
        if not self.tasks:
            return f"{first}, an encoder"
        names = ", ".join(self.tasks) if len(self.tasks) <= MOST_NAMES else f"{len(self.tasks)} tasks"
        return f"{first} for {names}"

    @property
    def scores(self) -> Iterator[tuple[str, str, float, str]]:
        """Yield each dev score: its task, if it is of one, its metric, its value, its interval, if known."""
        dev, intervals = (_mapping(self.result, part) for part in ("dev", "intervals"))
        for name, found in dev.items():
            if name in self.tasks and isinstance(found, Mapping):
                for metric, value in found.items():
                    if is_number(value):
                        yield name, metric, value, _interval(_mapping(intervals, name).get(metric))
            elif is_number(found) and self.tasks == self.trained and len(self.tasks) != 1:
                yield "", name, found, _interval(intervals.get(name))


def write_card(run: Path, found: Mapping[str, Any]) -> None:
    """Write the card of a run's best model, given what the run `found`. Raises InputError if the run, or one
    that it started from, cannot be read."""
    subject = Subject.of(run / BEST, read_settings(run / CONFIG), found)
    write_text(run / BEST / CARD, card(subject, usage_of_run(subject)))


def usage_of_run(subject: Subject) -> Usage:
    """Return how a run's best/ is used."""
    if subject.settings.get("option") == "mlm":
        load = """from minbert import BertForMaskedLM, BertTokenizer, fill

model, tokenizer = BertForMaskedLM.from_pretrained("FOLDER"), BertTokenizer.from_pretrained("FOLDER")
fill(model, tokenizer, "A [MASK] film.")"""
        return Usage("minbert", "fill-mask", load)
    if not subject.tasks:
        load = 'from minbert import BertModel\n\nencoder = BertModel.from_pretrained("FOLDER")  # this folder'
        return Usage("minbert", "feature-extraction", load)
    lines = ["from multitask import load", "", 'model = load("FOLDER")  # this folder']
    lines += [f'model.predict("{name}", [{example(task)}])' for name, task in subject.tasks.items()]
    return Usage("minbert", "text-classification", "\n".join(lines))


def example(task: Task) -> str:
    """Return what a task reads, as Python."""
    return '("One text.", "Another text.")' if len(task.texts) == 2 else '"A text."'


def card(subject: Subject, usage: Usage) -> str:
    """Return the text of a model card."""
    parts = [
        front_matter(subject, usage),
        f"# {one_line(subject.title)}",
        description(subject),
        scores_table(subject),
        f"## How to use it\n\n```python\n{usage.code}\n```",
        usage.note,
        training(subject),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits(subject)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def front_matter(subject: Subject, usage: Usage) -> str:
    """Return what the hub reads, in YAML."""
    fields: dict[str, Any] = {"library_name": usage.library, "pipeline_tag": usage.pipeline}
    base = repository_of(subject.checkpoint)
    if base:
        fields["base_model"] = base
    fields["tags"] = ["bert", "minbert", *(["multitask"] if len(subject.tasks) > 1 else [])]
    results = [
        {
            "task": {"type": "text-classification", "name": name},
            "dataset": {
                "type": "unknown",
                "name": subject.tasks[name].path(Path(), "dev").name,
                "split": "dev",
            },
            "metrics": [{"type": one_line(metric), "value": round(value, 4)}],
        }
        for name, metric, value, _ in subject.scores
        if name
    ]
    if results:
        fields["model-index"] = [{"name": one_line(subject.title), "results": results}]
    return "\n".join(["---", *yaml(fields), "---"])


def repository_of(checkpoint: str) -> str:
    """Return the repository of the hub that has a checkpoint, if there is one."""
    if found := find_checkpoint(checkpoint):
        return found.repository
    return checkpoint if REPOSITORY.fullmatch(checkpoint) else ""


def description(subject: Subject) -> str:
    """Return what the model is, and what it reads and gives."""
    shape = subject.shape
    what = (
        f"A BERT encoder ({shape.num_hidden_layers} layers, width {shape.hidden_size}, pooling "
        f"{code(subject.pooling)}, inputs of up to {subject.max_length} tokens)"
    )
    if subject.settings.get("option") == "mlm":
        return f"{what}, trained further with minbert to guess masked words."
    if not subject.trained:
        return f"{what}, trained with minbert so that texts of one class are close to each other."
    if not subject.tasks:
        return f"{what}, fine-tuned with minbert. The heads of its tasks are not here."
    what += " with a linear head for each task, fine-tuned with minbert."
    rows = [
        [code(name), "a pair of texts" if len(task.texts) == 2 else "a text", answers(task)]
        for name, task in subject.tasks.items()
    ]
    return f"{what}\n\n{markdown_table(['task', 'reads', 'gives'], rows)}"


def answers(task: Task) -> str:
    """Return what a task's predictions may be, in words."""
    if task.classes > MOST_LABELS:
        return f"one of {task.classes:,} classes"
    if task.classes:
        return ", ".join(map(code, task.class_names))
    ends = [f" {word} {end:g}" for word, end in (("from", task.low), ("to", task.high)) if math.isfinite(end)]
    return "a number" + "".join(ends)


def scores_table(subject: Subject) -> str:
    """Return the dev scores under a heading, if the run has any yet."""
    rows = [
        [code(name) if name else "", code(metric), f"{value:.3f}", interval]
        for name, metric, value, interval in subject.scores
    ]
    if not rows:
        return ""
    head = ["task", "metric", "on dev", "95% interval"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return f"## Scores\n\n{markdown_table(head, rows)}\n\n{what_score_is(subject)}".strip()


def what_score_is(subject: Subject) -> str:
    """Return how the figures over all tasks are made, if they are shown."""
    if not subject.tasks or not any(not name for name, *_ in subject.scores):
        return ""
    kinds = {task.kind.metric: task.kind.scoring.formula for task in subject.tasks.values()}
    formulas = ", ".join(f"{code(metric)} as {formula}" for metric, formula in kinds.items() if formula)
    weighted = "weighted " if len({task.weight for task in subject.tasks.values()}) > 1 else ""
    return (
        f"`score` is the {weighted}mean over the tasks, `worst` the least of them and `spread` the best less "
        f"the worst, each task on a scale from 0 to 1{f' ({formulas})' if formulas else ''}."
    )


def training(subject: Subject) -> str:
    """Return the data, and the command that trains such a model."""
    if not subject.settings:
        return ""
    data = subject.settings.get("data")
    tables = "the sample tables that ship with minbert (CC0)"
    if data is not None:
        names = ", ".join(dict.fromkeys(name for task in subject.tasks.values() for name in tables_of(task)))
        what = names or ("texts" if subject.settings["option"] == "mlm" else "tables")
        tables = f"{what} in {code(last_part(data))}"
    start, first = last_part(subject.start), last_part(subject.checkpoint)
    chain = code(start) if start == first else f"{code(start)}, which started from {code(first)}"
    epoch = subject.result.get("best_epoch")
    best = f" This is the model of epoch {epoch}, the best on dev." if is_number(epoch) else ""
    return (
        f"## Training\n\nData: {tables}. Started from {chain}.{best}\n\n"
        f"```sh\n{training_command(subject.settings)}\n```"
    )


def tables_of(task: Task) -> list[str]:
    """Return the names of the training and the dev table, or of the one that is both."""
    train, dev = (code(str(task.path(Path(), split))) for split in SPLITS[:2])
    if task.dev_fraction:
        return [f"{train} ({task.dev_fraction:.0%} of it held out as dev)"]
    return [train, dev]


def training_command(settings: Mapping[str, Any]) -> str:
    """Return the command line of these settings, without those at their defaults."""
    option = settings["option"]
    words = ["python", "-m", "multitask.run", "--option", option]
    for name, value in settings.items():
        if name == "option" or name in NEUTRAL:
            continue
        field = SETTINGS[name].field
        if value == DEFAULTS.get(option, {}).get(name, field.default):
            continue
        if field.kind is bool:
            words.append(flag(name if value else f"no_{name}"))
        elif field.kind is tuple:
            items = [last_part(str(item)) for item in value]
            words += [flag(name), *(items if field.separator == " " else [field.separator.join(items)])]
        else:
            words += [flag(name), last_part(str(value))]
    return one_line(shlex.join(words))


def limits(subject: Subject) -> Iterator[str]:
    """Yield what a user of the model must know."""
    if subject.result:
        yield "The best epoch was chosen on the dev tables, so the dev scores are slightly optimistic."
    else:
        yield "Its scores are not known: the run had not finished, or its folder was not here."
    if subject.settings and subject.settings.get("data") is None:
        yield "It was trained on a sample, too small for its scores to mean anything."
    if subject.trained and not subject.tasks:
        yield "Its vectors served the heads of its tasks; how well they compare texts was not measured."
    yield from pretraining(subject.checkpoint)
    for name in (name for name, task in subject.tasks.items() if task.threshold):
        yield (
            f"{code(name)}: its run predicts the second class from a threshold on that was fitted on dev; a "
            "library that takes the more probable class knows nothing of it."
        )
    yield f"Inputs of more than {subject.max_length} tokens are cut: what is beyond is not seen."
    yield "It is tested on texts like those of its tables alone: measure it on yours before you rely on it."


# Markdown and YAML


def yaml(value: Any) -> list[str]:
    """Return the lines of a value in YAML, whose scalars may be those of JSON."""
    lines = []
    if isinstance(value, Mapping):
        for name, item in value.items():
            inner = yaml(item)
            if isinstance(item, Mapping | list):
                lines += [f"{name}:", *(f"  {line}" for line in inner)]
            else:
                lines.append(f"{name}: {inner[0]}")
    elif isinstance(value, list):
        for item in value:
            first, *rest = yaml(item)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
    else:
        lines.append(json.dumps(value, ensure_ascii=False))
    return lines


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def code(text: str) -> str:
    """Return any text as code, in a table or out of it."""
    return "`" + one_line(text).replace("`", "'").replace("|", "\\|") + "`"


def one_line(text: str) -> str:
    """Return any text on one line, without control characters."""
    return visible(text).replace("\n", " ")


def last_part(value: str) -> str:
    """Return a file's or folder's own name; any other text as it is."""
    return os.path.basename(value) if os.path.isabs(value) else value


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def _interval(ends: Any) -> str:
    """Return an interval, [low, high], in words, if this is one."""
    if isinstance(ends, list | tuple) and len(ends) == 2 and all(map(is_number, ends)):
        return interval_of(ends)
    return ""
