"""Compare what a part of the assignment computes with what is right, and say where and how it goes wrong."""

from __future__ import annotations

import json
import linecache
import math
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from checks.probes import PROBES, Draw, Steps, Unfit
from checks.submission import PACKAGES

RELATIVE, ABSOLUTE = 1e-4, 1e-5  # differences up to these are rounding
TODO = "TODO"  # how the error begins that an emptied body raises
FIRST_SEED = 0  # of the inputs that students check with; a grader draws others
WIDTH = 14  # of the column with the parts' names
RECORD = "record"  # the name of what `make` writes beside this module: .json and .safetensors
FOLDER = Path(__file__).resolve().parent.parent  # of the assignment


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the assignment, as the student sees it."""

    name: str
    title: str
    points: int
    where: str  # what is to be filled in, such as "attention in minbert/bert.py"
    hint: str
    questions: Mapping[str, str] = field(default_factory=dict)  # by a word in the name of a step
    needs: tuple[str, ...] = ()  # the parts without which it cannot be checked


@dataclass(frozen=True)
class Known:
    """What a part computes if it is right and, by what is wrong, with each of the classic mistakes."""

    right: Mapping[str, Tensor]
    mistakes: Mapping[str, Mapping[str, Tensor]]
    axes: Mapping[str, str] = field(default_factory=dict)  # the names of each step's dimensions


PASSES, TO_DO, WRONG, WAITS = "passes", "to do:", "not yet", "waits for"


@dataclass(frozen=True)
class Verdict:
    state: str  # one of the four above
    lines: tuple[str, ...] = ()  # what there is to say
    mistake: str = ""  # the classic mistake that was recognised, if one was


@dataclass(frozen=True)
class Outcome:
    """What a probe noted, and how it ended."""

    steps: Steps
    stopped: tuple[str, ...] = ()  # what there is to say about the exception that ended it, if one did
    to_do: bool = False  # whether it met a body that is still to be filled in


def run(part: str, seed: int) -> Outcome:
    """Run a part's probe on the code that is here."""
    steps = Steps()
    random = torch.get_rng_state()
    try:
        PROBES[part](Draw(seed, part), steps)
    except (Exception, SystemExit) as error:
        to_do = isinstance(error, NotImplementedError) and str(error).startswith(TODO)  # not one of torch's
        return Outcome(steps, to_do=True) if to_do else Outcome(steps, tuple(explain(error)))
    finally:
        torch.set_rng_state(random)
    return Outcome(steps)


def same(ours: Tensor, right: Tensor) -> bool:
    """Return whether these are equal but for rounding."""
    if ours.shape != right.shape:
        return False
    return torch.allclose(ours.double(), right.double(), RELATIVE, ABSOLUTE, equal_nan=True)


def first_wrong(steps: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first step that is missing or differs from what is right, or None."""
    return next((name for name in right if name not in steps or not same(steps[name], right[name])), None)


def judge(part: Part, outcome: Outcome, known: Known) -> Verdict:
    """Say whether a part computes what is right and, if not, where it first goes wrong."""
    steps = outcome.steps
    if outcome.to_do:
        return Verdict(TO_DO, (part.where,))
    wrong = first_wrong(steps, known.right)
    if wrong is None:
        return Verdict(WRONG, outcome.stopped) if outcome.stopped else Verdict(PASSES)
    stopped = bool(outcome.stopped) and wrong not in steps
    if stopped:
        lines = [*outcome.stopped]
    elif wrong in steps:
        lines = difference(wrong, steps[wrong], known.right[wrong], known.axes.get(wrong, ""))
    else:
        lines = [f"{wrong}: never computed: is its module called?"]
    if before := list(known.right).index(wrong):
        lines.append(f"What comes before is right: {before} of {len(known.right)} steps.")
    mistake = recognise(steps, known, stopped)
    if mistake:
        lines.append(f"This is what comes out {mistake}.")
    elif not stopped:
        lines.append(next((text for word, text in part.questions.items() if word in wrong), part.hint))
    return Verdict(WRONG, tuple(lines), mistake)


def report(part: Part, verdict: Verdict) -> list[str]:
    """Return what there is to say about a part, in lines."""
    score = f"{part.points if verdict.state == PASSES else 0:3} of {part.points:2}" if part.points else ""
    head = f"{part.name:{WIDTH}}{score:9}  {verdict.state}"
    if verdict.state in (TO_DO, WAITS):
        return [f"{head} {', '.join(verdict.lines)}"]
    return [head, *(f"    {line}" for line in verdict.lines)]


def recognise(steps: Mapping[str, Tensor], known: Known, stopped: bool = False) -> str:
    """Return the mistake that gives these numbers up to the first step that is wrong, and of several the one
    that agrees with most of the others, or "" if there is none. If an exception `stopped` the steps, the
    mistake must stop them at the same place, and not before the first."""
    wrong = first_wrong(steps, known.right)
    agreeing = {}
    for mistake, made in known.mistakes.items():
        alike = steps.keys() == made.keys() and len(steps) > 0 if stopped else wrong is not None
        if alike and first_wrong(made, known.right) == wrong and agree(steps, made, wrong):
            agreeing[mistake] = sum(agree(steps, made, name) for name in steps)
    return max(agreeing, key=agreeing.__getitem__, default="")


def agree(steps: Mapping[str, Tensor], made: Mapping[str, Tensor], name: str | None) -> bool:
    """Return whether a step is the same in both, or missing in both."""
    if name is None or name not in steps or name not in made:
        return name not in steps and name not in made
    return same(steps[name], made[name])


def difference(name: str, ours: Tensor, right: Tensor, axes: str) -> list[str]:
    """Say how much a step differs, and at which place first."""
    if ours.shape != right.shape:
        return [f"{name}: has the shape {tuple(ours.shape)}, not {tuple(right.shape)}"]
    if right.dtype == torch.bool:
        return [f"{name}: is {bool(ours)}, not {bool(right)}"]
    ours, right = ours.double(), right.double()
    wrong = ~torch.isclose(ours, right, RELATIVE, ABSOLUTE, equal_nan=True)
    off = (ours - right).abs()[wrong].nan_to_num(math.inf, posinf=math.inf).max().item()
    place = wrong.nonzero()[0].tolist()
    numbers = f"is {ours[tuple(place)]:.4g}, should be {right[tuple(place)]:.4g}"
    if not place:
        return [f"{name}: off by {off:.2g}: {numbers}"]
    where = ", ".join(f"{axis} {index}" for axis, index in zip(axes.split(), place, strict=False))
    size = f"off by {off:.2g}" if math.isfinite(off) else "not finite"
    return [f"{name}: {size}, in {wrong.sum()} of {wrong.numel()} numbers", f"first at {where}: {numbers}"]


def explain(error: BaseException) -> list[str]:
    """Return an exception, and the first and the last line of the two packages that it came through; or, if
    what they return does not fit, the line that calls them."""
    if isinstance(error, Unfit):
        return [str(error), *getattr(error, "__notes__", ())]
    if isinstance(error, SyntaxError) and error.filename:
        place = Path(error.filename)
        place = place.relative_to(FOLDER) if FOLDER in place.parents else place
        return [f"{type(error).__name__} in {place}:{error.lineno}: {error.msg}", (error.text or "").strip()]
    said = "the code ends Python" if isinstance(error, SystemExit) else " ".join(str(error).split())[:300]
    lines = [f"{type(error).__name__}: {said}", *getattr(error, "__notes__", ())]
    called, within = [], []
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        top = path.relative_to(FOLDER).parts[0] if FOLDER in path.parents else ""
        text = linecache.getline(frame.filename, frame.lineno or 0).strip()
        if top in PACKAGES:
            within.append(f"in {path.relative_to(FOLDER)}:{frame.lineno}: {text}")
        elif top == "checks":
            called.append(f"where it is called: {text}")
    lines += dict.fromkeys([within[0], within[-1]]) if within else called[-1:]
    return lines


# What `make` records


def record_to_files(record: Mapping[Part, Known]) -> tuple[str, dict[str, Tensor]]:
    """Return a record as the text of a JSON file and the tensors of a safetensors file."""
    parts, tensors = [], {}
    for part, known in record.items():
        parts.append({**asdict(part), "mistakes": list(known.mistakes), "axes": dict(known.axes)})
        for number, steps in enumerate([known.right, *known.mistakes.values()]):
            for place, (name, tensor) in enumerate(steps.items()):
                tensors[f"{part.name}/{number}/{place:03}/{name}"] = tensor
    return json.dumps(parts, indent=1), tensors


def read_record(folder: Path) -> dict[Part, Known]:
    """Return the record in the folder of this module."""
    found: dict[str, dict[int, dict[str, Tensor]]] = {}
    for key, tensor in sorted(load_file(folder / f"{RECORD}.safetensors").items()):
        name, number, _, step = key.split("/", 3)
        found.setdefault(name, {}).setdefault(int(number), {})[step] = tensor
    record = {}
    for values in json.loads((folder / f"{RECORD}.json").read_text(encoding="utf-8")):
        mistakes, axes = values.pop("mistakes"), values.pop("axes")
        steps = found[values["name"]]
        part = Part(**{**values, "needs": tuple(values["needs"])})
        made = {text: steps.get(number, {}) for number, text in enumerate(mistakes, start=1)}
        record[part] = Known(steps[0], made, axes)
    return record


def check(
    record: Mapping[Part, Known], chosen: Collection[str], outcome_of: Callable[[str], Outcome]
) -> Iterator[tuple[Part, Verdict]]:
    """Judge the chosen parts, one after the other; one that needs others only if those pass, as far as they
    are chosen."""
    verdicts: dict[str, Verdict] = {}
    for part, known in record.items():
        if part.name in chosen:
            missing = [one for one in part.needs if one in verdicts and verdicts[one].state != PASSES]
            waits = Verdict(WAITS, tuple(missing))
            verdicts[part.name] = waits if missing else judge(part, outcome_of(part.name), known)
            yield part, verdicts[part.name]
