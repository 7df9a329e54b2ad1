"""A page about what a trained model makes of one text or pair: `minbert.look`'s, with its predictions and the
effect of each word on them.

    python -m multitask.look --run runs/first "A warm, funny film."

The effect of a word is how much the prediction changes if it is left out: the probability of the predicted
class, or the value of a regression.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minbert import look as minbert_look
from minbert.command import print_answer
from minbert.errors import InputError
from multitask.data.tasks import Task
from multitask.ensemble_model import Ensemble, load
from multitask.model import MultitaskBert
from multitask.output import described
from multitask.predictor import Predictor

# A word as people see it, with its apostrophe; a Chinese character; or any other sign.
WORD = re.compile(r"([\u3400-\u9fff\uf900-\ufaff]|\w+(?:['’]\w+)*|[^\w\s])")
MOST_WORDS = 256  # left out, each of which is another prediction


def look(model: Predictor, texts: Sequence[str], names: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the page shows: `minbert.look.look` of the model's encoder, and in `predictions` what
    `explain_prediction` returns for each of these tasks, or else each task of so many texts. Of an ensemble,
    the attention is that of the first task's first member. Raises InputError if a task does not take such
    texts, or none does."""
    tasks = [model.task_of(name) for name in names] or of_so_many(model, len(texts))
    network, shown = attending(model, tasks[0].name)
    most = min(minbert_look.LONGEST, network.max_length)
    found = minbert_look.look(network.encoder, network.tokenizer, texts, most)
    predictions = [explain_prediction(model, task, texts) for task in tasks]
    return {**found, "shown": shown, "predictions": predictions}


def of_so_many(model: Predictor, count: int) -> list[Task]:
    """Return the tasks of one text, or of pairs. Raises InputError if there are none."""
    fitting = [task for task in model.tasks.values() if len(task.texts) == count]
    if not fitting:
        kind, known = ("single texts", "pairs")[count - 1], ", ".join(model.tasks)
        remedy = known or "it has none, as after mnrl; python -m minbert.look shows its encoder"
        raise InputError(f"none of this model's tasks takes {kind}: {remedy}")
    return fitting


def attending(model: Predictor, task: str) -> tuple[MultitaskBert, str]:
    """Return the network whose attention is shown, and for an ensemble which of its members that is."""
    if isinstance(model, Ensemble):
        return next(model.models(task)), model.panels[task].members[0]
    assert isinstance(model, MultitaskBert)
    return model, ""


def explain_prediction(model: Predictor, task: Task, texts: Sequence[str]) -> dict[str, Any]:
    """Return the prediction and what it depends on: the task as `described`, and

    - `answer`: the class as the task names it, or the value; `probabilities`: of all classes, if it has any;
    - `parts`: each text, in turn what is between words and a word;
    - `whole`: the probability of the predicted class, or the value;
    - `without`: the same without each word, for the first `MOST_WORDS`;
    - `cut`: whether the model reads only a part of the texts.
    """
    parts = [WORD.split(text) for text in texts]
    words = [(text, place) for text, split in enumerate(parts) for place in range(1, len(split), 2)]
    rows = [tuple(texts), *(leave_out(parts, *word) for word in words[:MOST_WORDS])]
    given = rows if len(texts) == 2 else [row[0] for row in rows]
    answers = model.answers(task.name, model.logits(task.name, given))
    found = {**described(task), "answer": answers.values[0], "parts": parts}
    values = answers.numbers
    if answers.probabilities is not None:
        found["probabilities"] = answers.probabilities[0].tolist()
        values = answers.probabilities[:, int(answers.numbers[0])]
    whole, *without = values.tolist()
    return found | {"whole": whole, "without": without, "cut": model.are_cut(task.name, given[:1])[0]}


def leave_out(parts: Sequence[Sequence[str]], text: int, place: int) -> tuple[str, ...]:
    """Return the texts without one word; a space is left, so that its neighbours do not become one word."""
    return tuple(
        "".join(" " if (number, other) == (text, place) else part for other, part in enumerate(split))
        for number, split in enumerate(parts)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page about a text or a pair. Return the exit status."""
    parser = minbert_look.parser_of(
        "python -m multitask.look",
        "Write a page about a text: a run's predictions, each word's effect on them, its tokens, and where "
        "every head looks.",
    )
    parser.add_argument("--run", required=True, help="a finished run, its best/, or an ensemble")
    parser.add_argument(
        "--task", action="append", default=[], help="a task to predict (default: all that take so many texts)"
    )

    def write() -> str:
        given = parser.parse_args(arguments)
        minbert_look.check_texts(given.text)
        path = minbert_look.new_file(given.out, given.force)
        found = look(load(given.run), given.text, given.task)
        return minbert_look.write_page(path, {"model": Path(given.run).resolve().name, **found})

    return print_answer(write)


if __name__ == "__main__":
    sys.exit(main())
