"""What several test files need: small tables, the command line in-process, metrics without clock fields."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minbert import BertModel, BertTokenizer
from multitask import MultitaskBert
from multitask.config import Config
from multitask.data.tables import read_split
from multitask.data.tasks import BUILT_IN, Task
from multitask.data.tokens import Examples, make_examples
from multitask.finetune import Finetuning, plan_over
from multitask.preparation import build_model

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"train": 12, "dev": 6, "test-student": 3}
WORDS = [
    "the", "film", "was", "good", "a", "bad", "movie", "is", "very", "man",
    "plays", "and", "guitar", "woman", "eats", "how", "do", "i", "learn", "what",
]  # fmt: skip
HOSTILE = (
    "<script>document.title = 1</script><img src=x onerror='document.title = 2'> \" onload=\"alert(3) </td>"
    " https://evil.example"
)


def sentence(seed: int) -> str:
    """Words in an order that depends on the seed, and more of them for some seeds than for others."""
    return " ".join(WORDS[(seed * 7 + place * (seed % 5 + 1)) % len(WORDS)] for place in range(3 + seed % 4))


def write_table(path: Path, rows: Iterable[Sequence[object]], end: str = "\n") -> Path:
    """A tab-separated table whose first row is its header."""
    lines = ("\t".join(map(str, row)) + end for row in rows)
    path.write_bytes("".join(lines).encode())
    return path


def table_rows(task: Task, split: str, count: int) -> list[list[object]]:
    """Header and rows of one table; the labels go through the task's range."""
    labels = task.class_names or range(6)
    rows: list[list[object]] = [[task.id, *task.texts] + [task.label] * (split != "test-student")]
    for number in range(count):
        texts = [sentence(number + 40 * place + len(split)) for place in range(len(task.texts))]
        label = [labels[number % len(labels)]] * (split != "test-student")
        rows.append([f"{task.name}-{split}-{number}", *texts, *label])
    return rows


def write_tables(
    directory: Path, tasks: Mapping[str, Task] = BUILT_IN, sizes: Mapping[str, int] = SIZES
) -> Path:
    """Small tables of every split of these tasks."""
    directory.mkdir(parents=True, exist_ok=True)
    for task in tasks.values():
        for split, count in sizes.items():
            write_table(task.path(directory, split), table_rows(task, split, count))
    return directory


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def metrics_without_clock(run: Path) -> list[str]:
    """The lines of metrics.jsonl, but for the fields that tell time."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [json.dumps({key: record[key] for key in record if "second" not in key}) for record in records]


def make_model(checkpoint: Path, tasks: Mapping[str, Task] = BUILT_IN, **settings: Any) -> MultitaskBert:
    """The tiny encoder with fresh heads, always the same."""
    torch.manual_seed(0)
    encoder, tokenizer = BertModel.from_pretrained(checkpoint), BertTokenizer.from_pretrained(checkpoint)
    return MultitaskBert(encoder, tokenizer, tasks, **{"pooling": "mean"} | settings)


def make_config(option: str, **settings: Any) -> Config:
    """The option's defaults, with other values for these settings."""
    return Config(option).changed(**settings)


def make_finetuning(config: Config, folder: Path, taught: Mapping[str, Tensor] | None = None) -> Finetuning:
    """The method of a run with this config, on small tables that it writes into the folder."""
    dropout = config.encoder.dropout, config.batches.head_dropout
    model = build_model(config.start, BUILT_IN, config.training.seed, *dropout)
    write_tables(folder)
    train, dev = (
        {
            name: make_examples(rows, model.tokenizer, 64)
            for name, rows in read_split(folder, split, BUILT_IN, False).items()
        }
        for split in ("train", "dev")
    )
    return method_of(config, model, train, dev, taught)


def method_of(
    config: Config,
    model: MultitaskBert,
    train: Mapping[str, Examples],
    dev: Mapping[str, Examples],
    taught: Mapping[str, Tensor] | None = None,
) -> Finetuning:
    """The method of a run with this config, on tokenised examples."""
    plan = plan_over(train, config.batches, config.training)
    return Finetuning(model, train, dev, plan, config.smart, config.bppo, config.distillation, taught)


def planned(method: Finetuning, step: int) -> tuple[str, list[np.ndarray]]:
    """The task of an update and the rows of its batches."""
    return method.names[method.plan.task(step)], method.plan.batches(step)


def collate(
    model: MultitaskBert, examples: Examples, rows: Sequence[int] | np.ndarray
) -> tuple[dict[str, Tensor], Tensor]:
    """These rows as one padded batch, and their labels."""
    rows = np.asarray(rows)
    inputs = examples.tokens.batch(rows, model.tokenizer.pad_token_id)
    return dict(inputs), torch.as_tensor(examples.labels[rows], dtype=torch.float32)


class Page(HTMLParser):
    """Collects elements with their attributes, all text, and the cells of all tables."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self.text, self.in_cell = "", False

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.cells[-1][-1] += data


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    return page
