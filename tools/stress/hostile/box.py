"""A box for one case: a temporary folder with a user's home, a victim's files, tables and trained runs, in
which commands are carried out and judged.

A command is right if it ends with an expected status, says what is wrong in a line that begins with
"error: ", shows no traceback and no control characters, and leaves all that is outside the run's folder as it
was.
"""

from __future__ import annotations

import atexit
import hashlib
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
import tty
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from crash import ROWS, TINY, timeless
from multitask.data.tables import SAMPLE
from multitask.data.tasks import BUILT_IN
from multitask.run import main as run_main

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 20  # of CPU time that a command may take, unless its case says otherwise
WAITING = 20  # seconds of wall time, more for commands that may take more of the processor's
MEMORY = 6 << 30  # most bytes a command may map, so that no case exhausts the machine
LARGEST_FILE = 256 << 20  # that a command may write: a copied hole of a terabyte would fill the disk
RESULTS = ("best", "predictions", "metrics.jsonl")  # of a run
LINES = 30  # in a message, at most
WIDTH = 3000  # of a line of a message, at most
TRAIN = "--option finetune --weights {weights} --data {data} --batch-size 4 --epochs 3 --steps-per-epoch 8 "
TRAIN += "--lr 3e-3 --seed 3 --save-every 1 --keep-state --no-report --threads 1"
STAGES = """
[stages.first]
option = "finetune"
[stages.second]
option = "finetune"
init = "@first"
"""
MADE = {  # the runs that cases start from
    "run": TRAIN + " --out {run}",
    "other": TRAIN.replace("--seed 3", "--seed 4") + " --out {other}",
    "stopped": TRAIN + " --out {stopped}",
    "ensemble": "--option ensemble --run {run} {other} --out {ensemble} --threads 1",
    "student": TRAIN.replace("finetune", "distill --run {run}") + " --out {student}",
    "stages": TRAIN.replace("--option finetune", "--recipe {recipe}/stages.toml") + " --out {stages}",
}
BAD_SIGNS = ("Traceback (most recent call last)", "Exception ignored", "Fatal Python error", "core dumped")

Snapshot = dict[str, tuple[Any, ...]]
Case = Callable[["Box"], None]
Cases = Iterator[tuple[str, Case]]


class Wrong(Exception):
    """What a case has seen that must not be."""


class Skipped(Exception):
    """Why a case cannot be carried out on this machine."""


@dataclass(frozen=True)
class Done:
    """What a command has left. A negative status is the signal that killed it."""

    status: int
    out: str
    err: str
    seconds: float  # of CPU time
    peak: int  # bytes of memory

    @property
    def last_words(self) -> str:
        lines = [line for line in self.err.splitlines() if line.strip()] or [""]
        return ascii(lines[-1])[1:-1][-200:]


class Process:
    """A command at work: forked from this process, which has imported torch, or started afresh."""

    def __init__(self, box: Box, words: list[str], fresh: bool, before: Callable[[], object], terminal: bool):
        """`before` is called in the new process, its output already redirected. With `terminal`, what it
        prints goes to one."""
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115  closed by kill
        self.master, slave = os.openpty() if terminal else (-1, -1)
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                if terminal:
                    tty.setraw(slave)
                for number, file in (
                    (0, os.open(os.devnull, os.O_RDONLY)),
                    (1, slave if terminal else self.out.fileno()),
                    (2, self.err.fileno()),
                ):
                    os.dup2(file, number)
                box.enter()
                before()
                if fresh:
                    os.execve(sys.executable, [sys.executable, *words], box.environment)
                _carry_out(words, box.environment)
            except BaseException as error:
                os.write(2, f"the case itself: {error!r}\n".encode())
            finally:
                os._exit(99)
        if terminal:
            os.close(slave)
            os.set_blocking(self.master, False)
        self.started, self.printed = time.monotonic(), b""
        self.done: Done | None = None

    def ended(self) -> bool:
        if self.done is None:
            self._read_terminal()
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._read_terminal()
                self.done = Done(
                    os.waitstatus_to_exitcode(status),
                    self.printed.decode("utf-8", "replace") if self.master >= 0 else _text(self.out),
                    _text(self.err),
                    usage.ru_utime + usage.ru_stime,
                    usage.ru_maxrss << 10,
                )
        return self.done is not None

    def _read_terminal(self) -> None:
        while self.master >= 0:
            try:
                read = os.read(self.master, 1 << 16)
            except OSError:  # nothing there, or closed at the other end
                return
            self.printed += read
            if not read:
                return

    def wait(self, seconds: float = WAITING) -> Done:
        """Return what the process leaves. Raises Wrong if it does not end in time, and kills it."""
        while not self.ended():
            if time.monotonic() - self.started > seconds:
                self.kill()
                raise Wrong(f"still at work after {seconds:.0f} seconds")
            time.sleep(0.002)
        assert self.done is not None
        return self.done

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds. Raises Wrong if the process ends before."""
        while not condition():
            if self.ended():
                assert self.done is not None
                raise Wrong(f"ended too early, status {self.done.status}: {self.done.last_words}")
            if time.monotonic() - self.started > WAITING:
                self.kill()
                raise Wrong("did not get as far as the case needs it")
            time.sleep(0.0005)

    def kill(self) -> None:
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            while not self.ended():
                time.sleep(0.002)
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
        self.out.close()
        self.err.close()


def _text(file: Any) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _carry_out(words: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Do what `python -m multitask.run` does with these words, in a forked process, and end it."""
    atexit._clear()  # what the parent has registered is not for this process
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8")
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), "utf-8", errors="backslashreplace", line_buffering=True
    )
    status = 1
    try:
        status = run_main(words)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        with suppress(OSError):  # nobody may read it
            traceback.print_exc()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        status = 120
        with suppress(OSError):
            print("Exception ignored in", error, file=sys.stderr)
    os._exit(status)


class Box:
    """A fresh folder `root` for one case; `template` is the box whose runs it copies."""

    def __init__(self, folder: Path, template: Box | None = None):
        self.folder, self.template = folder, template
        self.root, self.away = folder / "box", folder / "away"
        self.processes: list[Process] = []
        self.away.mkdir(parents=True)
        for name in ("home", "victim", "data", "weights", "work", "tmp"):
            (self.root / name).mkdir(parents=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "HOME": str(self / "home"),
            "USER": "victim",
            "TMPDIR": str(self / "tmp"),
            "MINBERT_CACHE": str((template or self).folder / "cache"),
            "MPLCONFIGDIR": str((template or self).folder / "matplotlib"),
            "TORCHINDUCTOR_CACHE_DIR": str((template or self).folder / "inductor"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",  # results are compared with those of the same processor
            "HF_HUB_OFFLINE": "1",  # no case may reach the network
            "PIP_NO_INDEX": "1",
        }
        write(self / "recipe/stages.toml", STAGES)
        write(self / "home/.bashrc", "export PATH\n")
        write(self / "home/state/photo.jpg", "a photo")
        write(self / "victim/letter.txt", "a letter\n" * 20)
        for name in ("step-00000001/keepsake.txt", "photos/cat.jpg", "best/tasks.toml", "1-run/note"):
            write(self / "victim/folder" / name, f"the victim's {name}\n")
        for task in BUILT_IN.values():
            for split, count in ROWS.items():
                lines = task.path(SAMPLE, split).read_text().splitlines(keepends=True)
                write(task.path(self / "data", split), "".join(lines[: count + 1]))
        shutil.copytree(TINY, self / "weights", dirs_exist_ok=True)

    def __truediv__(self, name: str) -> Path:
        return self.root / name

    def __str__(self) -> str:
        return str(self.root)

    def words(self, command: str, **places: object) -> list[str]:
        """Return a command line's words, in which {data} stands for the box's folder of this name, and {box}
        for the box's own."""
        names = re.findall(r"\{(\w+)\}", command)
        known = {name: self / name for name in names} | {"box": self.root} | places
        return [word.format(**known) for word in command.split()]

    def made(self, name: str) -> Path:
        """Return the folder of a run that cases start from, which is made when it is first needed."""
        if not (self / name).exists():
            for needed in re.findall(r"\{(\w+)\}", MADE[name]):
                if needed in MADE and needed != name:
                    self.made(needed)
            if name == "stopped":
                self.stopped(MADE[name], self / name)
            elif (done := self.start(MADE[name]).wait()).status:
                raise SystemExit(f"{MADE[name]}: ended with status {done.status}: {done.err}")
        return self / name

    def take(self, *names: str) -> None:
        """Copy these runs of the template into this box, with its own paths in their settings."""
        assert self.template is not None
        for name in names:
            shutil.copytree(self.template.made(name), self / name, symlinks=True)
            for path in (self / name).rglob("*.toml"):
                path.write_text(path.read_text().replace(str(self.template), str(self)))
                if path.parent.parent.name == "state":
                    put_hashes_right(path.parent)

    def put_away(self, path: Path) -> None:
        """Move something out of the box, if it is there."""
        if os.path.lexists(path):
            os.rename(path, self.away / str(next(_numbers)))

    # Commands

    def enter(self) -> None:
        """Give this process the box's limits and working folder."""
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(self / "work")

    def start(
        self,
        words: list[str] | str,
        fresh: bool | list[str] = False,
        before: Callable[[], object] = lambda: None,
        terminal: bool = False,
    ) -> Process:
        """Start `python -m multitask.run` with these words: in a fork of this process or, with `fresh`, in a
        new interpreter; or start that with the words of `fresh`."""
        listed = self.words(words) if isinstance(words, str) else words
        if fresh:
            listed = [*(fresh if isinstance(fresh, list) else ["-m", "multitask.run"]), *listed]
        self.processes.append(Process(self, listed, bool(fresh), before, terminal))
        return self.processes[-1]

    def command(
        self,
        words: list[str] | str,
        expect: Collection[int] = (0, 2),
        writes: Collection[str] = ("run",),
        seconds: float = SECONDS,
        peak: float = MEMORY,
        quiet: bool = False,
        **how: Any,
    ) -> Done:
        """Carry out a command and judge it; return what it left. Raises Wrong.

        It may write to what begins with one of `writes`, and take so many seconds of CPU time and bytes of
        memory. `quiet`: its error output cannot be read.
        """
        before = self.snapshot(writes)
        done = self.start(words, **how).wait(WAITING + 2 * max(0, seconds - SECONDS))
        problems = [*judged(done, expect, quiet), *changes(before, self.snapshot(writes))]
        if done.seconds > seconds:
            problems.append(f"took {done.seconds:.0f} seconds of CPU time, of {seconds:.0f}")
        if done.peak > peak:
            problems.append(f"took {done.peak >> 20} MB of memory")
        if problems:
            raise Wrong("; ".join(problems) + (f" [{done.last_words}]" if done.last_words else ""))
        return done

    def stopped(self, words: str, run: Path) -> None:
        """Train until the second epoch has begun, then stop with SIGTERM."""
        process = self.start(words)
        process.until(lambda: saved_step(run) >= 9)
        os.kill(process.pid, signal.SIGTERM)
        if process.wait().status != 128 + signal.SIGTERM:
            raise Wrong(f"could not be stopped: status {process.wait().status}")

    # What is there

    def snapshot(self, leave_out: Collection[str] = ()) -> Snapshot:
        """Return what the box holds, by path, without following a link, and without what begins so."""
        found = {}
        for folder, folders, files in os.walk(os.fsencode(self.root)):
            for name in sorted([*folders, *files]):
                path = os.path.join(folder, name)
                inside = os.fsdecode(os.path.relpath(path, os.fsencode(self.root)))
                if not inside.startswith(tuple(leave_out)):
                    found[inside] = _described(path)
        return found

    def check_results(
        self, run: str = "run", parts: Collection[str] = RESULTS, wanted: Path | None = None
    ) -> None:
        """Raise Wrong unless these parts of a run are those of `wanted`, by default the template's run, in
        regular files. There may be other files beside them."""
        assert self.template is not None
        right, found = results(wanted or self.template.made("run"), parts), results(self / run, parts)
        if different := sorted(name for name in right if right[name] != found.get(name)):
            raise Wrong(f"not the results of the undisturbed run: {', '.join(different)}")

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for path in (self.root, self.away):  # what a case has made read-only
            for folder, _, _ in os.walk(path):
                os.chmod(folder, 0o700)


_numbers = itertools.count()


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def _described(path: bytes) -> tuple[Any, ...]:
    status = os.lstat(path)
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return "link", os.readlink(path)
    if stat.S_ISREG(mode):
        small = status.st_size <= LARGEST_FILE
        return (
            "file",
            mode,
            status.st_size,
            hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).digest() if small else b"",
        )
    return stat.S_IFMT(mode), mode


def changes(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """Say what differs between two snapshots."""
    gone, new = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
    changed = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    for what, names in (("removed", gone), ("made", new), ("changed", changed)):
        if names:
            yield ascii(f"{what} {', '.join(names[:3])}{' ...' * (len(names) > 3)}")[1:-1]


def judged(done: Done, expect: Collection[int], quiet: bool = False) -> Iterator[str]:
    """Say what is wrong with a command's status and messages."""
    if done.status not in expect:
        yield f"status {done.status}"
    for sign in BAD_SIGNS:
        if sign in done.err + done.out:
            yield sign.split(" (")[0].lower()
    lines = done.err.splitlines()
    if done.status == 2 and not quiet and not any(line.startswith("error: ") for line in lines):
        yield "no line that begins with error:"
    if len(lines) > LINES or any(len(line) > WIDTH for line in lines):
        yield "a long message"
    if rude := re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", done.out + done.err):
        yield f"printed the control character {rude[0]!a}"


def results(run: Path, parts: Collection[str]) -> dict[str, object]:
    """Return the contents of these parts of a run, without clock fields. Raises Wrong for what is no regular
    file or folder."""
    found: dict[str, object] = {}
    for part in parts:
        top = run / part
        inside = sorted(top.iterdir()) if top.is_dir() else []
        for path in [top, *(path for path in inside if path.suffix != ".partial")]:  # a case's own
            mode = os.lstat(path).st_mode if os.path.lexists(path) else 0
            if stat.S_ISREG(mode) and path.suffix == ".jsonl":
                found[str(path.relative_to(run))] = [timeless(json.loads(line)) for line in path.open()]
            elif stat.S_ISREG(mode):
                found[str(path.relative_to(run))] = path.read_bytes()
            elif not stat.S_ISDIR(mode):
                raise Wrong(f"{path.relative_to(run)} is {'no regular file' if mode else 'missing'}")
    return found


def put_hashes_right(state: Path) -> None:
    manifest = json.loads((state / "manifest.json").read_text())
    files = sorted(path for path in state.iterdir() if path.name != "manifest.json")
    manifest["files"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (state / "manifest.json").write_text(json.dumps(manifest))


def saved_step(run: Path) -> int:
    """Return the step of the newest state, or -1."""
    try:
        return int((run / "state" / "latest").read_text().removeprefix("step-"))
    except (OSError, ValueError):
        return -1
