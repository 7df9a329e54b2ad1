"""The saved state from which a run resumes exactly. The last two states are kept, with checksums.

A state is a folder `state/step-N` with the tensors of the model, the optimizer, a teacher and the best model
so far (safetensors), `progress.json`, and a manifest of their SHA-256s. It is written under another name,
flushed to disk and renamed; then the pointer `state/latest` is switched to it, and all older states but one
are removed. Random numbers need not be saved: they are functions of (seed, step, purpose).

A run resumes from the newest state alone. `best/` and `metrics.jsonl` are written from it, and rewritten if
they are missing or damaged.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from minbert.errors import InputError
from minbert.files import remove, write_tensors, write_text
from multitask.distributed import is_writer
from multitask.folder import CONFIG
from multitask.messages import warn
from multitask.model import MultitaskBert
from multitask.replacement import digests, write_folder

KEPT = 2  # states on disk
FORMAT = 2  # of a state, in its manifest; raise it when the names or the meaning of what a state holds change
SECONDS = 45  # between saved states, unless --save-every is set; writing one may take longer

Tensors = dict[str, dict[str, Tensor]]  # file -> name -> tensor


@dataclass
class Progress:
    """A run's progress after `step` updates. Floats survive JSON to the last bit."""

    step: int = 0
    # Of this epoch: term -> [sum, sum of squares, updates]; term -> all values, for a median; training time.
    sums: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    best_score: float | None = None
    best_epoch: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)  # one per epoch: the lines of metrics.jsonl
    data: str = ""  # the fingerprint of the training and dev rows
    config: str = ""  # the fingerprint of the settings that affect the result
    skipped_in_a_row: int = 0  # consecutive skipped updates up to now

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch."""
        return self.records[self.best_epoch - 1]

    @property
    def metrics(self) -> str:
        """The content of metrics.jsonl."""
        return "".join(json.dumps(record, allow_nan=False) + "\n" for record in self.records)

    def add(self, terms: Mapping[str, float], seconds: float) -> None:
        """Count one more update, with the terms of its loss."""
        self.step += 1
        self.seconds += seconds
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if "skipped" in terms else 0
        for name, value in terms.items():
            if name.endswith("/gradient_ratio"):
                self.ratios.setdefault(name, []).append(value)
                continue
            sums = self.sums.setdefault(name, [0.0, 0.0, 0])
            sums[0] += value
            sums[1] += value * value
            sums[2] += 1

    def mean(self, name: str) -> float:
        """Return a term's mean over the updates of this epoch that had it, or NaN if none had."""
        total, _, updates = self.sums.get(name, (math.nan, 0.0, 1))
        return total / updates

    def end_epoch(self) -> dict[str, Any]:
        """Return the epoch's terms, nested by the slashes in their names, and start the next epoch.

        A term is its mean over the updates that had it, a gradient ratio its median, `skipped` a count. A
        task's objective is its mean, variance and number of updates, which give the error of the mean.
        """
        nested: dict[str, Any] = {}
        for name in sorted(self.sums.keys() | self.ratios.keys()):
            *path, last = name.split("/")
            level = nested
            for part in path:
                level = level.setdefault(part, {})
            level[last] = self._summary(name)
        self.sums, self.ratios, self.seconds = {}, {}, 0.0
        return nested

    def _summary(self, name: str) -> Any:
        if name in self.ratios:
            return median(self.ratios[name])
        total, squares, updates = self.sums[name]
        if name.endswith("skipped"):
            return int(total)
        mean = self.mean(name)
        if not name.startswith("objective/"):
            return mean
        variance = max(0.0, squares - total * mean) / max(1, updates - 1)
        return {"mean": mean, "variance": variance, "updates": updates}


class States:
    """The saved states of one run. `save` copies the state, and a thread writes it while training continues.

    If the disk fails, a warning is printed and the next save tries again.
    """

    def __init__(
        self,
        run: Path,
        parts: Mapping[str, nn.Module],
        optimizer: Optimizer,
        settings: Mapping[str, Any] | None = None,
    ):
        """`parts` are the model, which `optimizer` trains, and any other modules to save, such as a teacher.
        `settings` are those of config.toml, in case it gets lost."""
        self.run, self.parts, self.optimizer, self.settings = run, parts, optimizer, settings or {}
        self.best: MultitaskBert | None = None
        self._published: dict[str, str] | None = None  # the digests of best/, if it holds that model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="states")
        self._writing: Future[None] | None = None
        self._kept: list[Path] = []  # the states on disk that are known to be complete
        self._written = -1  # the step whose state is completely on disk
        self._saved_at = time.monotonic()

    def __enter__(self) -> States:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    # Saving

    def keep_best(self) -> None:
        """Keep a copy of the current model as the best so far."""
        if not is_writer():
            return
        self.wait()
        if self.best is None:
            self.best = copy.deepcopy(self.parts["model"]).cpu()  # type: ignore[assignment]
        else:
            self.best.load_state_dict(self.parts["model"].state_dict())
        self._published = None

    def due(self, progress: Progress, every: int | None) -> bool:
        """Return whether to save a state after this step: every `every` steps, or if `every` is None, often
        enough to lose at most a minute of work. Never while updates are skipped, to keep a good state."""
        if progress.skipped_in_a_row:
            return False
        if every is not None:
            return progress.step % every == 0
        return time.monotonic() - self._saved_at >= SECONDS

    def save(self, progress: Progress) -> None:
        """Copy the state of this step, and write it while training continues."""
        if not is_writer():
            return
        self.wait()
        self._saved_at = time.monotonic()
        tensors = {
            name: {key: tensor.detach().to("cpu", copy=True) for key, tensor in found.items()}
            for name, found in self._tensors().items()
        }
        if self.best is not None:
            tensors["best"] = self.best.state_dict()  # only keep_best changes it, and that waits
        text = json.dumps(asdict(progress))
        self._writing = self._thread.submit(self._write, progress.step, tensors, text, progress.metrics)

    def wait(self) -> None:
        """Wait until nothing is being written, and warn if writing failed."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except OSError as error:
            warn(
                f"{self.run}: the state cannot be saved ({error}); training continues, and the next save "
                "tries again"
            )

    def finish_or_rescue(self, progress: Progress) -> Path:
        """Make sure that the last state and the best model are on disk, and return the folder they are in.

        It is the run's folder, or if that cannot be written, another one from which the run can be resumed.
        Raises OSError if no folder can be written.
        """
        self._finish(progress)
        if self._is_whole(progress) or not is_writer():
            return self.run
        for place in (None, Path.cwd(), Path.home()):
            with suppress(OSError):
                self.run = Path(tempfile.mkdtemp(prefix="minbert-run-", dir=place))
                self._kept, self._published, self._written = [], None, -1
                self._finish(progress)
                if self._is_whole(progress):
                    return self.run
        raise OSError("the last state could not be written anywhere")

    def _finish(self, progress: Progress) -> None:
        self.wait()
        if self._published is not None and digests(self.run / "best") != self._published:
            warn(f"{self.run / 'best'}: has changed since it was written; writing it again")
            self._published = None
        if not self._is_whole(progress):
            self.save(progress)
            self.wait()

    def _is_whole(self, progress: Progress) -> bool:
        published = self.best is None or self._published is not None
        return self._written == progress.step and published and (self.run / CONFIG).exists()

    def _write(self, step: int, tensors: Tensors, progress: str, metrics: str) -> None:
        folder = _folder(self.run, step)

        def write(partial: Path) -> None:
            for name, found in tensors.items():
                write_tensors(partial / f"{name}.safetensors", found)
            write_text(partial / "progress.json", progress)
            write_text(partial / "manifest.json", json.dumps({"format": FORMAT, "files": digests(partial)}))

        write_folder(folder, write)
        write_text(folder.parent / "latest", folder.name)
        self._kept = [*(path for path in self._kept if path != folder), folder][-KEPT:]
        if not (self.run / CONFIG).exists():
            write_text(self.run / CONFIG, tomli_w.dumps(self.settings))
        if self._published is None or not (self.run / "best").exists():
            self._publish()
        write_text(self.run / "metrics.jsonl", metrics)
        for path in folder.parent.iterdir():
            if path.is_dir() and path not in self._kept:
                remove(path)
        self._written = step

    def _publish(self) -> None:
        """Write best/ from the best model."""
        if self.best is not None:
            write_folder(self.run / "best", self.best.save)
            self._published = digests(self.run / "best")

    # Loading

    def load(self, fresh: Progress) -> Progress | None:
        """Load the newest intact state into the parts and the optimizer, and return its progress.

        Rewrites best/ and metrics.jsonl from that state. Returns None if nothing has been saved. `fresh` has
        the fingerprints that a state must have. Raises InputError if there are states but none is usable.
        """
        problems = []
        for folder in _newest_first(self.run):
            try:
                progress = self._read(folder, fresh)
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
                problems.append(f"{folder}: {' '.join(str(error).split())}")
                continue
            for problem in problems:
                warn(f"{problem}; resuming from the state before it")
            self._kept = [folder]
            self._restore_files(progress)
            return progress
        if problems:
            raise InputError(
                f"no saved state can be resumed: {'; '.join(problems)}; restore what has changed, or "
                "start again with another --out"
            )
        if (self.run / "metrics.jsonl").exists():
            raise InputError(
                f"{self.run}: was saved before, but its folder state/ is gone; restore it, or start "
                "again with another --out"
            )
        return None

    def _read(self, folder: Path, fresh: Progress) -> Progress:
        written = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if not isinstance(written, dict) or written.get("format") != FORMAT:
            raise ValueError("was saved by another version of minbert, whose states this one cannot resume")
        manifest, found = written["files"], digests(folder)
        del found["manifest.json"]
        if found != manifest:
            changed = sorted(
                name for name in found.keys() | manifest.keys() if found.get(name) != manifest.get(name)
            )
            raise ValueError(f"changed since it was written ({', '.join(changed)})")
        progress = Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
        if progress.data != fresh.data:
            raise ValueError("the tables or the teacher's outputs are not those the run was started with")
        if progress.config != fresh.config:
            raise ValueError("its settings differ from the run's")
        for name, module in self.parts.items():
            module.load_state_dict(load_file(folder / f"{name}.safetensors"))
        _set_moments(self.parts["model"], self.optimizer, load_file(folder / "optimizer.safetensors"))
        if progress.best_epoch:
            self.best = copy.deepcopy(self.parts["model"]).cpu()  # type: ignore[assignment]
            self.best.load_state_dict(load_file(folder / "best.safetensors"))  # type: ignore[union-attr]
        return progress

    def _restore_files(self, progress: Progress) -> None:
        """Write best/ and metrics.jsonl from this state."""
        if not is_writer():
            return
        before = digests(self.run / "best")
        try:
            self._publish()
            write_text(self.run / "metrics.jsonl", progress.metrics)
            self._written = progress.step
        except OSError as error:
            warn(f"{self.run}: cannot be written ({error}); the next save tries again")
        if self._published is not None and before != self._published:
            warn(f"{self.run / 'best'}: was not the best model of the saved state; rewritten from it")

    def _tensors(self) -> Tensors:
        model = {name: module.state_dict() for name, module in self.parts.items()}
        return model | {"optimizer": _moments(self.parts["model"], self.optimizer)}


def _folder(run: Path, step: int) -> Path:
    return run / "state" / f"step-{step:08d}"


def _saved(run: Path) -> list[Path]:
    """Return the folders of a run's states, oldest first."""
    return sorted(path for path in run.glob("state/step-*") if path.name.removeprefix("step-").isdigit())


def _newest_first(run: Path) -> Iterator[Path]:
    """Yield the state that the pointer names, then the others, newest first."""
    saved = _saved(run)[::-1]
    with suppress(OSError):
        named = (run / "state" / "latest").read_text(encoding="utf-8", errors="replace")
        saved.sort(key=lambda path: path.name != named)
    yield from saved


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state as named tensors: PARAMETER/exp_avg, PARAMETER/exp_avg_sq, PARAMETER/step."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _set_moments(model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Set AdamW's state from what `_moments` returned."""
    optimizer.state.clear()
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        value = int(tensor) if moment == "step" else tensor.to(parameter.device)
        optimizer.state[parameter][moment] = value
