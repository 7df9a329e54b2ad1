"""The saved state from which a run resumes exactly. The last two states are kept, with checksums.

A state is a folder `state/step-N` with the tensors of the model, the optimizer, a teacher and the best model
so far (safetensors), `progress.json`, the run's `config.toml`, and a manifest of their SHA-256s. It is
written under another name, flushed to disk and renamed; then the pointer `state/latest` is switched to it,
and all older states but one are removed. Random numbers need not be saved: they are functions of (seed,
step, purpose).

A run resumes from the newest state alone. `best/` and `metrics.jsonl` are written from it, and rewritten if
they are missing or damaged.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from minbert.checkpoint import Stored, contents
from minbert.command import is_lack_of_memory
from minbert.errors import InputError, short_line, shown
from minbert.files import UNFINISHED, is_real_folder, remove, write_tensors, write_text
from minbert.reading import load_json, read_text
from multitask.config import decisive
from multitask.distributed import is_writer
from multitask.folder import MARK, check_held, make_marked, mark
from multitask.layout import BEST, CALIBRATION, CARD, CONFIG, METRICS, STATE
from multitask.messages import warn
from multitask.model import MultitaskBert
from multitask.progress import Progress, check_progress, read_progress
from multitask.recipes import read_settings
from multitask.replacement import digests, write_folder
from multitask.saved import MODEL_FILES

KEPT = 2  # states on disk
FORMAT = 4  # of a state, in its manifest; raise it when the names or the meaning of what a state holds change
PROGRESS, MANIFEST, LATEST = "progress.json", "manifest.json", "latest"
PIECES = (  # of a state; few have a teacher
    *(f"{name}.safetensors" for name in ("model", "teacher", "optimizer", BEST)), PROGRESS, CONFIG, MANIFEST
)  # fmt: skip
NAME = re.compile(r"step-\d{8,}")  # of a state
SECONDS = 45  # between saved states, unless --save-every is set; writing one may take longer

Tensors = dict[str, dict[str, Tensor]]  # file -> name -> tensor


class States:
    """The saved states of one run. `save` copies the state, and a thread writes it while training continues.

    If the disk fails, a warning is printed and the next save tries again.
    """

    def __init__(
        self,
        run: Path,
        parts: Mapping[str, nn.Module],
        optimizer: Optimizer,
        settings: Mapping[str, Any],
    ):
        """`parts` are the model, which `optimizer` trains, and any other modules to save, such as a teacher.
        `settings` are those of config.toml, in case it gets lost."""
        self.run, self.parts, self.optimizer, self.settings = run, parts, optimizer, settings
        self.best: MultitaskBert | None = None
        self._published: dict[str, str] | None = None  # the digests of best/, if it holds that model
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="states")
        self._writing: Future[None] | None = None
        self._kept: list[Path] = []  # the states on disk that are known to be complete
        self._written = -1  # the step whose state is completely on disk
        self._saved_at = time.monotonic()
        self._problem: int | None = None  # why the last save failed, if it did

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
            tensors[BEST] = self.best.state_dict()  # only keep_best changes it, and that waits
        text = json.dumps(asdict(progress))
        self._writing = self._thread.submit(self._write, progress.step, tensors, text, progress.metrics)

    def wait(self) -> None:
        """Wait until nothing is being written, and warn if writing failed."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
            self._problem = None
        except OSError as error:
            if self._problem != error.errno:  # once, however often it is tried
                warn(
                    f"{self.run}: the state cannot be saved ({error}); training continues, and the next "
                    "save tries again"
                )
            self._problem = error.errno

    def finish_or_rescue(self, progress: Progress) -> Path:
        """Make sure that the last state and the best model are on disk, and return the folder they are in.

        It is the run's folder, or if that cannot be written, another one from which the run can be resumed.
        Raises OSError if no folder can be written.
        """
        self._finish(progress)
        if self._is_whole(progress) or not is_writer():
            return self.run
        for parent in (tempfile.gettempdir, os.getcwd, lambda: os.path.expanduser("~")):
            try:
                place = Path(tempfile.mkdtemp(prefix="minbert-run-", dir=parent()))
            except OSError:
                continue
            if self._rescue(place, progress):
                return place
            shutil.rmtree(place, ignore_errors=True)
        raise OSError("the last state could not be written anywhere")

    def _rescue(self, place: Path, progress: Progress) -> bool:
        """Write the whole run into a new folder. Return whether that could be done."""
        self.run, self._kept, self._published, self._written = place, [], None, -1
        with suppress(OSError):
            mark(place)
            self._finish(progress)
        return self._is_whole(progress)

    def _finish(self, progress: Progress) -> None:
        self.wait()
        if self._published is not None and digests(self.run / BEST, MODEL_FILES) != self._published:
            warn(f"{self.run / BEST}: has changed since it was written; writing it again")
            self._published = None
        if not self._is_whole(progress):
            self.save(progress)
            self.wait()

    def _is_whole(self, progress: Progress) -> bool:
        published = self.best is None or self._published is not None
        return self._written == progress.step and published and (self.run / CONFIG).exists()

    def _write(self, step: int, tensors: Tensors, progress: str, metrics: str) -> None:
        check_held(self.run)
        folder = _folder(self.run, step)
        make_marked(folder.parent)

        def write(partial: Path) -> None:
            for name, found in tensors.items():
                write_tensors(partial / f"{name}.safetensors", found)
            write_text(partial / PROGRESS, progress)
            write_text(partial / CONFIG, tomli_w.dumps(self.settings))
            manifest = {"format": FORMAT, "files": digests(partial, PIECES)}
            write_text(partial / MANIFEST, json.dumps(manifest))
            check_held(self.run)  # writing takes a while

        write_folder(folder, write, PIECES)
        check_held(self.run)
        write_text(folder.parent / LATEST, folder.name)
        self._kept = [*(path for path in self._kept if path != folder), folder][-KEPT:]
        if not (self.run / CONFIG).exists():
            write_text(self.run / CONFIG, tomli_w.dumps(self.settings))
        if self._published is None or not (self.run / BEST).exists():
            self._publish()
        check_held(self.run)
        write_text(self.run / METRICS, metrics)
        remove_states(folder.parent, self._kept)
        self._written = step

    def _publish(self) -> None:
        """Write best/ from the best model."""
        if self.best is None:
            return
        best = self.best

        def write(partial: Path) -> None:
            best.save(partial)
            check_held(self.run)

        write_folder(self.run / BEST, write, (*MODEL_FILES, CALIBRATION, CARD))  # those of another model go
        self._published = digests(self.run / BEST, MODEL_FILES)

    # Loading

    def load(
        self, facts: Mapping[str, str], check_record: Callable[[dict[str, Any]], object]
    ) -> Progress | None:
        """Load the newest intact state into the parts and the optimizer, and return its progress.

        Rewrites best/ and metrics.jsonl from that state. Returns None if nothing has been saved. A state must
        have these `facts`, the fingerprints of what the run learns from, and records of epochs for which
        `check_record` raises no exception. Raises InputError if there are states but none is usable.
        """
        problems = []
        for folder in _newest_first(self.run):
            try:
                progress = self._read(folder, facts, check_record)
            except Exception as error:  # whatever a damaged or hostile state may cause
                if is_lack_of_memory(error):
                    raise
                problems.append(f"{folder}: {short_line(error)}")
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
        if (self.run / METRICS).exists():
            raise InputError(
                f"{self.run}: was saved before, but its folder state/ is gone; restore it, or start "
                "again with another --out"
            )
        return None

    def _read(
        self, folder: Path, facts: Mapping[str, str], check_record: Callable[[dict[str, Any]], object]
    ) -> Progress:
        """Return the progress of a state, and load its tensors. Raises some exception if it is not one that
        this run has saved. What a text or a header says is checked before anything large is read."""
        manifest = load_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ValueError("was saved by another version of minbert, whose states this one cannot resume")
        progress = read_progress(folder / PROGRESS)
        changed = [
            name for name in {**facts, **progress.facts} if facts.get(name) != progress.facts.get(name)
        ]
        if changed:
            raise ValueError(f"the {' and the '.join(changed)} are not what the run was started with")
        check_settings_same(self.settings, read_settings(folder / CONFIG))
        check_progress(progress, self.settings, check_record)

        names = [PROGRESS, CONFIG, *(f"{name}.safetensors" for name in (*self.parts, "optimizer"))]
        if progress.best_epoch:
            names.append(f"{BEST}.safetensors")
        if other := {*names} ^ {*manifest["files"]}:
            raise ValueError(f"does not hold this run's files ({', '.join(sorted(other))})")
        wanted = {name: module.state_dict() for name, module in self.parts.items()}
        if progress.best_epoch:
            wanted[BEST] = wanted["model"]
        stored = {name: contents(folder / f"{name}.safetensors") for name in (*wanted, "optimizer")}
        wanted["optimizer"] = _moments_like(self.parts["model"], stored["optimizer"])
        if not wanted["optimizer"] and progress.step > progress.skipped_in_a_row:
            raise ValueError(f"optimizer.safetensors holds no moments after step {progress.step}")
        for name, tensors in wanted.items():
            check_tensors(f"{name}.safetensors", tensors, stored[name])
        found = digests(folder, names)
        if changed := [
            name for name in names if name not in found or found[name] != manifest["files"].get(name)
        ]:
            raise ValueError(f"changed since it was written ({', '.join(changed)})")

        tensors = {name: read_finite(f"{name}.safetensors", stored[name]) for name in wanted}
        for name, module in self.parts.items():
            module.load_state_dict(tensors[name])
        _set_moments(self.parts["model"], self.optimizer, tensors["optimizer"], progress.step)
        if progress.best_epoch:
            self.best = copy.deepcopy(self.parts["model"]).cpu()  # type: ignore[assignment]
            self.best.load_state_dict(tensors[BEST])  # type: ignore[union-attr]
        return progress

    def _restore_files(self, progress: Progress) -> None:
        """Write best/ and metrics.jsonl from this state."""
        if not is_writer():
            return
        before = digests(self.run / BEST, MODEL_FILES)
        try:
            self._publish()
            write_text(self.run / METRICS, progress.metrics)
            self._written = progress.step
        except OSError as error:
            warn(f"{self.run}: cannot be written ({error}); the next save tries again")
        if self._published is not None and before != self._published:
            warn(f"{self.run / BEST}: was not the best model of the saved state; rewritten from it")

    def _tensors(self) -> Tensors:
        model = {name: module.state_dict() for name, module in self.parts.items()}
        return model | {"optimizer": _moments(self.parts["model"], self.optimizer)}


def remove_states(states: Path, kept: Collection[Path] = ()) -> None:
    """Remove the states in a run's state/ that are not kept, and what was never finished; with none kept,
    also state/ itself, unless it holds something else."""
    if not is_real_folder(states):
        return
    for path in states.iterdir():
        unfinished = UNFINISHED.fullmatch(path.name)
        name = path.name if unfinished is None else unfinished["name"] or ""
        if NAME.fullmatch(name.removesuffix(".old")) and path not in kept:
            remove(path, PIECES)
    if not kept and {*os.listdir(states)} <= {LATEST, MARK}:
        for name in (LATEST, MARK):  # in this order: a folder without its mark is nobody's
            remove(states, (name,))


def _folder(run: Path, step: int) -> Path:
    return run / STATE / f"step-{step:08d}"


def _newest_first(run: Path) -> Iterator[Path]:
    """Yield the state that the pointer names, then the others, newest first."""
    saved = [
        path for path in (run / STATE).glob("step-*") if NAME.fullmatch(path.name) and is_real_folder(path)
    ]
    saved.sort(reverse=True)
    with suppress(OSError, ValueError):
        named = read_text(run / STATE / LATEST, 100)
        saved.sort(key=lambda path: path.name != named)
    yield from saved


def check_settings_same(ours: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise ValueError if settings that decide the result differ from those of a saved state."""
    ours, saved = decisive(ours), decisive(saved)
    for name in ours | saved:
        if ours.get(name) != saved.get(name):
            raise ValueError(f"was saved with {name} = {shown(saved.get(name))}, not {shown(ours.get(name))}")


def check_tensors(file: str, wanted: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> None:
    """Raise ValueError unless a file's header describes tensors of these names, shapes and types."""
    if wanted.keys() != stored.keys():
        raise ValueError(f"{file} does not hold this run's tensors")
    for name, tensor in wanted.items():
        if (stored[name].shape, stored[name].dtype) != (tuple(tensor.shape), tensor.dtype):
            raise ValueError(f"{file}: {name} has another shape or type")


def read_finite(file: str, stored: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Read the tensors of a file. Raises ValueError if a value is not finite."""
    tensors = {name: one.read() for name, one in stored.items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} holds values that are not finite")
    return tensors


def _moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return AdamW's state as named tensors: PARAMETER/exp_avg, PARAMETER/exp_avg_sq, PARAMETER/step."""
    return {
        f"{name}/{key}": torch.tensor(float(value), dtype=torch.float64) if key == "step" else value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _moments_like(model: nn.Module, stored: Collection[str]) -> dict[str, Tensor]:
    """Return tensors like those of `_moments`, of each parameter that has a step in `stored`."""
    step = torch.zeros((), dtype=torch.float64)
    return {
        f"{name}/{key}": like
        for name, parameter in model.named_parameters()
        if f"{name}/step" in stored
        for key, like in (("step", step), ("exp_avg", parameter), ("exp_avg_sq", parameter))
    }


def _set_moments(model: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor], steps: int) -> None:
    """Set AdamW's state from what `_moments` returned. Raises ValueError if it cannot be that after so many
    steps."""
    optimizer.state.clear()
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        name, _, moment = key.rpartition("/")
        parameter = parameters[name]
        if moment == "step" and not (1 <= tensor <= steps and tensor == tensor.round()):
            raise ValueError(f"optimizer.safetensors: {key} is not a step up to {steps}")
        if moment == "exp_avg_sq" and tensor.min() < 0:
            raise ValueError(f"optimizer.safetensors: {key} is negative")
        optimizer.state[parameter][moment] = int(tensor) if moment == "step" else tensor.to(parameter.device)
