"""Failing streams, signals, names, environments, little memory and disks that give up.

Nothing that is printed can end a run before it is saved; what was stopped resumes to the results of the
undisturbed run; and no failure shows a traceback.
"""

from __future__ import annotations

import os
import pwd
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from hostile.box import TRAIN, Box, Case, Cases, Done, Skipped, Wrong, judged, saved_step, write

RUN = TRAIN + " --out {run}"
RESUME = "--resume --out {run}"
EVALUATE = "--option evaluate --threads 1 --run {run}"
PREDICT = "--option predict --threads 1 --task sentiment --run {run} --input {data}/ids-sst-dev.csv"


# Streams


def redirect(path: str, *numbers: int) -> None:
    for number in numbers:
        os.dup2(os.open(path, os.O_WRONLY), number)


def close(*numbers: int) -> None:
    for number in numbers:
        os.close(number)


def unread(*numbers: int) -> None:
    """Put pipes that nobody reads in the place of these streams."""
    for number in numbers:
        reader, writer = os.pipe()
        os.dup2(writer, number)
        os.close(writer)
        os.close(reader)


STREAMS: Mapping[str, tuple[Callable[..., None], tuple[int, ...]]] = {
    "stdout is closed": (close, (1,)),
    "stderr is closed": (close, (2,)),
    "stdout and stderr are closed": (close, (1, 2)),
    "all three are closed": (close, (0, 1, 2)),
    "stdout is full": (partial(redirect, "/dev/full"), (1,)),
    "stderr is full": (partial(redirect, "/dev/full"), (2,)),
    "both are full": (partial(redirect, "/dev/full"), (1, 2)),
    "stdout has no reader": (unread, (1,)),
    "stderr has no reader": (unread, (2,)),
    "neither has a reader": (unread, (1, 2)),
}
USES = {
    "evaluate": EVALUATE,
    "report": "--option report --threads 1 --run {run}",
    "predict": PREDICT + " --output {work}/out.tsv",
    "predict to stdout": PREDICT,
    "a mistake": "--option evaluate --run {nothing}",
    "--help": "--help",
}


def stream_of_a_run(break_stream: Callable[..., None], numbers: tuple[int, ...], box: Box) -> None:
    fresh, broken = break_stream is close, partial(break_stream, *numbers)
    box.command(RUN, (0, 2, 141), fresh=fresh, before=broken, quiet=2 in numbers)
    if saved_step(box / "run") < 8:
        raise Wrong("ended before an epoch was saved")
    box.command(RESUME, expect=(0,))
    box.check_results()


def stream_of_a_use(
    break_stream: Callable[..., None], numbers: tuple[int, ...], words: str, box: Box
) -> None:
    box.take("run")
    fresh, broken = break_stream is close, partial(break_stream, *numbers)
    writes = ("run", "work/out.tsv")
    box.command(words, (0, 2, 141), writes, fresh=fresh, before=broken, quiet=2 in numbers)


def reader_leaves(text: str, box: Box) -> None:
    """The reader of a run's output leaves once it has read this text, before the end of an epoch."""
    reader, writer = os.pipe()
    process = box.start(RUN.replace("every 1 ", "every 1000 "), before=partial(os.dup2, writer, 1))
    os.close(writer)
    read = b""
    while text.encode() not in read and (more := os.read(reader, 1 << 16)):
        read += more
    os.close(reader)
    check_judged(process.wait(), (0, 141))
    if not (box / "run/metrics.jsonl").exists():
        raise Wrong("the epoch was announced before it was saved")
    box.command(RESUME, expect=(0,))
    box.check_results()


def check_judged(done: Done, *how: object) -> None:
    if problems := [*judged(done, *how)]:  # type: ignore[arg-type]
        raise Wrong(*problems, f"[{done.last_words}]")


# Signals


def stopped_by(number: signal.Signals, step: int, before: Callable[[], None], box: Box) -> None:
    process = box.start(RUN, before=before)
    process.until(lambda: saved_step(box / "run") >= step)
    os.kill(process.pid, number)
    check_judged(process.wait(), (128 + number,))
    box.command(RESUME, expect=(0,))
    box.check_results()


def hangup_is_ignored(box: Box) -> None:
    """As under nohup."""
    process = box.start(RUN, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.until(lambda: saved_step(box / "run") >= 3)
    os.kill(process.pid, signal.SIGHUP)
    check_judged(process.wait(), (0,))
    box.check_results()


def stopped_while_it_starts(number: signal.Signals, words: str, box: Box) -> None:
    """The signal comes while torch is being imported."""
    box.take("run")
    process = box.start(words, fresh=True)

    def imports_torch() -> bool:
        folder = Path("/proc", str(process.pid))
        return (
            b"multitask.run" in (folder / "cmdline").read_bytes()
            and "libtorch" in (folder / "maps").read_text()
        )

    if not Path("/proc/self/maps").exists():
        raise Skipped("no /proc")
    process.until(imports_torch)
    os.kill(process.pid, number)
    check_judged(process.wait(), (128 + number, -number))


# Names and locales

BAD_NAME = os.fsdecode(b"caf\xe9")  # not UTF-8
NAMES = {
    "--out": TRAIN + " --out {bad}",
    "--data, missing": RUN.replace("{data}", "{bad}"),
    "--data": RUN.replace("{data}", "{box}/data{bad}"),
    "--run, missing": EVALUATE.replace("{run}", "{bad}"),
    "--run, evaluate": EVALUATE.replace("{run}", "{box}/run{bad}"),
    "--run, report": USES["report"].replace("{run}", "{box}/run{bad}"),
    "--run, predict": PREDICT.replace("{run}", "{box}/run{bad}"),
    "--run, ensemble": "--option ensemble --threads 1 --run {run} {box}/run{bad} --out {out}",
    "--run, ensemble --copy": "--option ensemble --threads 1 --copy --run {run} {box}/run{bad} --out {out}",
    "--run, distill": TRAIN.replace("finetune", "distill --run {box}/run{bad}") + " --out {out}",
    "--init": TRAIN.replace("--weights {weights}", "--init {box}/run{bad}") + " --out {out}",
    "--resume": "--resume --out {box}/run{bad}",
    "--weights": RUN.replace("{weights}", "{box}/weights{bad}"),
    "--weights, missing": RUN.replace("{weights}", "{bad}"),
    "--task-file": RUN + " --task-file {bad}",
    "--recipe": RUN + " --recipe {bad}",
    "--recipe of stages": TRAIN.replace("--option finetune", "--recipe {box}/recipe{bad}/stages.toml")
    + " --out {out}",
    "--tasks": RUN + " --tasks {bad}",
    "--option": "--option {bad}",
    "an unknown flag": "--{bad} 1",
    "--task": PREDICT + " --task {bad}",
    "--input": PREDICT + " --input {bad}",
    "--output": PREDICT + " --output {bad}",
    "--device": EVALUATE + " --device {bad}",
    "--thresholds": "--option ensemble --run {run} --thresholds {bad}=1",
    "a drive's letter": TRAIN.replace("{weights}", "C:\\models\\bert") + " --out {out}",
}


def named(words: str, box: Box) -> None:
    """Names that are not UTF-8, of what exists and of what does not."""
    box.take("run")
    for name in ("run", "data", "weights"):
        os.symlink(box / name, f"{box / name}{BAD_NAME}")
    writes = ("run", "out", f"work/{BAD_NAME}")
    box.command(box.words(words, bad=BAD_NAME), writes=writes)


def in_a_badly_named_run(box: Box) -> None:
    for words in (TRAIN + " --out {bad}", "--resume --out {bad}", USES["evaluate"].replace("{run}", "{bad}")):
        done = box.command(box.words(words, bad=BAD_NAME), writes=(f"work/{BAD_NAME}",))
        if done.status == 2:
            return
    box.check_results(f"work/{BAD_NAME}")


LOCALES = {
    "LC_ALL=C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
    "Latin-1 output": {"PYTHONIOENCODING": "latin-1"},
}


def locale(settings: Mapping[str, str], box: Box) -> None:
    box.environment.update(settings)
    table = box / "data/ids-sst-dev.csv"
    write(table, table.read_text().replace("film", "Größe 日本").replace("\t", "\té", 3))
    box.command(TRAIN + " --tasks paraphrase,similarity --out {größe}", writes=("größe",), fresh=True)
    box.command(PREDICT.replace("{run}", "{größe}"), writes=(), fresh=True)
    box.take("run")
    box.command(PREDICT, writes=(), fresh=True)


# The environment

VARIABLES = {
    "WORLD_SIZE": ("", "x", "-1", "0", "1.5", "2", "9" * 30, "é"),
    "RANK": ("", "x"),
    "LOCAL_RANK": ("", "x", "-1"),
    "TORCHELASTIC_MAX_RESTARTS": ("", "x", "3"),
    "TORCHELASTIC_RESTART_COUNT": ("", "x", "1"),
    "MINBERT_CACHE": ("", "/dev/null", "/proc", "nowhere/\udce9", "~nobody/x", "x" * 300),
    "MINBERT_HOME": ("", "/dev/null", "\udce9"),
    "XDG_CACHE_HOME": ("", "/dev/null"),
    "TMPDIR": ("", "/dev/null", "/nowhere"),
    "HOME": ("", "nowhere", "/dev/null", "/nowhere", "\udce9"),
    "COLUMNS": ("", "x", "-1"),
    "OMP_NUM_THREADS": ("", "x"),
    "NO_COLOR": ("1",),
}


def environment(name: str, value: str, box: Box) -> None:
    if name in ("HOME", "XDG_CACHE_HOME"):
        del box.environment["MINBERT_CACHE"]
    box.environment[name] = value
    box.command(RUN, writes=("run", "work/nowhere", "work/\udce9", "home/.cache"))


def nobody_s_home(name: str, words: str, box: Box) -> None:
    """Neither HOME nor an entry for the user, as in a container."""
    box.take("run", "other")
    for variable in ("HOME", "USER", "MINBERT_CACHE", "MPLCONFIGDIR"):
        box.environment.pop(variable, None)
    box.command(words, writes=("out", "run", "work/out.tsv"), before=forget_users)


def forget_users() -> None:
    def unknown(key: object) -> pwd.struct_passwd:
        raise KeyError(f"unknown: {key}")

    pwd.getpwuid = pwd.getpwnam = unknown


# Memory, files, folders


def limit(kind: int, amount: int, words: str, box: Box, fresh: bool = False) -> None:
    """Allow this much; of address space, beyond what this process has mapped, or in all if `fresh`. Native
    code that gets no memory may end the process by itself, of which Python never learns."""
    box.take("run", "other")
    above = kind == resource.RLIMIT_AS and not fresh

    def before() -> None:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if above else 0
        resource.setrlimit(kind, (mapped + amount, mapped + amount))

    expect = (0, 2, -signal.SIGABRT, -signal.SIGSEGV) if kind == resource.RLIMIT_AS else (0, 2)
    quiet = kind == resource.RLIMIT_FSIZE  # its messages go to a file, too
    box.command(words, expect, ("out", "run", "work/out.tsv"), quiet=quiet, before=before, fresh=fresh)


ROOMY = {
    "finetune": TRAIN + " --out {out}",
    "evaluate": EVALUATE,
    "report": USES["report"],
    "predict": USES["predict"],
    "ensemble": "--option ensemble --threads 1 --run {run} {other} --out {out}",
}


def a_run_that_cannot_write_much(box: Box) -> None:
    """Every file may have 64 KB, so no model can be saved. Nothing is left behind elsewhere."""
    box.command(RUN, (2,), before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)))
    box.command(RUN + " --resume", expect=(0,))
    box.check_results()


def leave(folder: Path) -> None:
    """Make this folder, enter it and remove it."""
    folder.mkdir()
    os.chdir(folder)
    folder.rmdir()


def without_a_working_folder(words: str, box: Box) -> None:
    box.take("run", "other")
    box.command(words, writes=("out", "run", "work/out.tsv"), before=partial(leave, box / "work/gone"))


def without_temporary_folders() -> None:
    """Leave TMPDIR as the only one, whether it exists or not."""
    tempfile._candidate_tempdir_list = lambda: [os.environ["TMPDIR"]]  # type: ignore[attr-defined]


def check_read_only(folder: Path) -> None:
    if os.access(folder, os.W_OK):
        raise Skipped("root may write everywhere")


def read_only(command: str, box: Box) -> None:
    box.take("run", "other", "stopped")
    for name in ("run", "stopped"):
        for path in (box / name, *(path for path in (box / name).rglob("*") if path.is_dir())):
            path.chmod(0o555)
    check_read_only(box / "run")
    box.command(command, writes=("out", "work/out.tsv"))


READ_ONLY = {
    **ROOMY,
    "--resume": "--resume --out {stopped}",
    "--init": TRAIN.replace("--weights {weights}", "--init {run}") + " --out {out}",
    "--out inside": TRAIN + " --out {run}/below",
    "distill": TRAIN.replace("finetune", "distill --run {run}") + " --out {out}",
}


def rescued(places: tuple[str, ...], box: Box) -> None:
    """The run's folder cannot be written any more; only these places are left."""
    for place in {"tmp", "home"} - {*places}:
        (box / place).chmod(0o555)
    (box / "work").chmod(0o755 if "work" in places else 0o555)

    def before() -> None:
        without_temporary_folders()
        if "work" not in places:  # in training: no command starts in a folder that is gone
            threading.Thread(target=leave_later, daemon=True).start()

    def leave_later() -> None:
        while saved_step(box / "run") < 2:
            time.sleep(0.001)
        leave(box.away / "gone")

    process = box.start(RUN, before=before)
    process.until(lambda: saved_step(box / "run") >= 5)
    os.kill(process.pid, signal.SIGSTOP)
    for folder in (box / "run", box / "run/state"):
        folder.chmod(0o555)
    check_read_only(box / "run")
    beforehand = box.snapshot(("run",))
    os.kill(process.pid, signal.SIGCONT)
    done = process.wait()
    check_judged(done, (2,))
    new = [name for name in box.snapshot(("run",)).keys() - beforehand.keys() if name.count("/") == 1]
    if len(new) != min(1, len(places)):
        raise Wrong(f"made {sorted(new)}")
    if places:
        if not new[0].startswith(places[0]) or str(box / new[0]) not in done.err:
            raise Wrong(f"made {new[0]}, and said: {done.last_words}")
        box.command(["--resume", "--out", str(box / new[0])], expect=(0,), writes=(new[0],))
        box.check_results(new[0])


RESCUES = (("tmp", "work", "home"), ("tmp",), ("work", "home"), ("work",), ("home",), ())


# Labels

HUGE = """
[price]
kind = "regression"
texts = ["sentence"]
label = "sentiment"
files = "ids-sst-{split}.csv"
"""


def labelled(label: str, splits: tuple[str, ...], bounds: str, box: Box) -> None:
    write(box / "tasks.toml", HUGE + bounds)
    for split in splits:
        path = box / f"data/ids-sst-{split}.csv"
        head, *rows = [line.split("\t") for line in path.read_text().splitlines()]
        place = head.index("sentiment")
        for number, row in enumerate(rows):
            row[place] = label if number % 2 else f"-{label}"
        write(path, "".join("\t".join(row) + "\n" for row in [head, *rows]))
    box.command(RUN + " --task-file {box}/tasks.toml", expect=(0, 2))


def cache_is_cut(size: int, box: Box) -> None:
    """Another process cuts the entries of the cache while a run reads them."""
    box.environment["MINBERT_CACHE"] = str(box / "cache")
    process = box.start(RUN)
    process.until(lambda: saved_step(box / "run") >= 3)
    os.kill(process.pid, signal.SIGSTOP)
    entries = [path for path in (box / "cache").rglob("*") if path.is_file()]
    for path in entries:
        os.truncate(path, min(size, path.stat().st_size))
    os.kill(process.pid, signal.SIGCONT)
    check_judged(process.wait(), (0,))
    box.check_results()


def cases() -> Cases:
    for name, (function, numbers) in STREAMS.items():
        yield f"{name}: finetune", partial(stream_of_a_run, function, numbers)
        for use, words in USES.items():
            if function is not close or use in ("evaluate", "predict to stdout", "a mistake"):
                yield f"{name}: {use}", partial(stream_of_a_use, function, numbers, words)
    for text in ("updates on", "updates in the first"):
        yield f"the reader leaves after {text!r}", partial(reader_leaves, text)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for step in (1, 9):
            yield f"{number.name} after step {step}", partial(stopped_by, number, step, lambda: None)
        yield (
            f"{number.name}, stderr is full",
            partial(stopped_by, number, 5, partial(redirect, "/dev/full", 2)),
        )
        yield (
            f"{number.name}, neither stream has a reader",
            partial(stopped_by, number, 5, partial(unread, 1, 2)),
        )
        yield (
            f"{number.name} at the start of a run",
            partial(stopped_while_it_starts, number, TRAIN + " --out {out}"),
        )
        yield f"{number.name} at the start of evaluate", partial(stopped_while_it_starts, number, EVALUATE)
    yield "SIGHUP is ignored", hangup_is_ignored
    for name, words in NAMES.items():
        yield f"a name that is not UTF-8: {name}", partial(named, words)
    yield "a run whose name is not UTF-8, all of it", in_a_badly_named_run
    for name, settings in LOCALES.items():
        yield f"{name} and other letters", partial(locale, settings)
    for name, values in VARIABLES.items():
        for value in values:
            yield f"{name}={ascii(value)[1:-1][:20]}", partial(environment, name, value)
    for name, words in {**ROOMY, "--weights": RUN.replace("{weights}", "minilm-l6")}.items():
        yield f"no HOME, no such user: {name}", partial(nobody_s_home, name, words)
        yield f"the working folder is gone: {name}", partial(without_a_working_folder, words)
    for name, words in ROOMY.items():
        for megabytes in (0, 4, 64):
            yield (
                f"{megabytes} MB of memory: {name}",
                partial(limit, resource.RLIMIT_AS, megabytes << 20, words),
            )
        yield f"12 open files: {name}", partial(limit, resource.RLIMIT_NOFILE, 12, words)
        yield f"files of 1 KB: {name}", partial(limit, resource.RLIMIT_FSIZE, 1 << 10, words)
    for megabytes in (300, 1500):
        words = ROOMY["evaluate"]
        case: Case = partial(limit, resource.RLIMIT_AS, megabytes << 20, words, fresh=True)
        yield f"{megabytes} MB of memory in all: evaluate", case
    yield "files of 64 KB: a run, and the same resumed with more", a_run_that_cannot_write_much
    for name, words in READ_ONLY.items():
        yield f"the run's folder is read-only: {name}", partial(read_only, words)
    for places in RESCUES:
        yield (
            f"the disk fails in training, {', '.join(places) or 'nothing'} can be written",
            partial(rescued, places),
        )
    for label in ("1e300", "1e39", "1.7e308", "1e-320"):
        for splits in (("train",), ("dev",), ("train", "dev")):
            yield f"labels of {label} in {' and '.join(splits)}", partial(labelled, label, splits, "")
        bounds = "low = -1.7e308\nhigh = 1.7e308"
        yield f"labels of {label}, and bounds", partial(labelled, label, ("train", "dev"), bounds)
    for size in (0, 100):
        yield f"the cache is cut to {size} bytes in training", partial(cache_is_cut, size)
