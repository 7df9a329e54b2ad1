"""Hostile folders: pieces of a run that are links, pipes, devices, giants or rubbish; folders that are not
the run's own; several processes in one folder.

Whatever a command finds, it may refuse with one line, or do its work and write regular files into the run's
folder. It never writes, removes or makes anything elsewhere.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hostile.box import RESULTS, TRAIN, Box, Cases, Skipped, Wrong, changes, judged, saved_step, write

TERABYTE = 1 << 40
RESCUED = "tmp/minbert-run-"  # where a training puts its model if its own folder fails


def hole(path: Path) -> None:
    path.touch()
    try:
        os.truncate(path, TERABYTE)
    except OSError:
        raise Skipped("this file system has no files of a terabyte") from None


SHAPES: Mapping[str, Callable[[Box, Path, bytes], object]] = {
    "a link to a file": lambda box, path, content: path.symlink_to(box / "victim/letter.txt"),
    "a link to a folder": lambda box, path, content: path.symlink_to(box / "victim/folder"),
    "a link to nothing": lambda box, path, content: path.symlink_to(box / "victim/new"),
    "a hard link": lambda box, path, content: os.link(box / "victim/letter.txt", path),
    "a pipe": lambda box, path, content: os.mkfifo(path),
    "a folder": lambda box, path, content: write(path / "notes.txt", "a user's notes"),
    "/dev/zero": lambda box, path, content: path.symlink_to("/dev/zero"),
    "/dev/null": lambda box, path, content: path.symlink_to("/dev/null"),
    "a hole of a terabyte": lambda box, path, content: hole(path),
    "empty": lambda box, path, content: write(path, b""),
    "cut": lambda box, path, content: write(path, content[: len(content) // 2]),
    "noise": lambda box, path, content: write(path, random.Random(0).randbytes(5000)),
}
LINKS = ("a link to a file", "a link to a folder", "a link to nothing", "a hard link")
ODD = ("a pipe", "a folder", "/dev/zero", "/dev/null", "a hole of a terabyte")
READ = ("a link to a file", *ODD, "empty", "cut", "noise")


@dataclass(frozen=True)
class Target:
    """A command, and the pieces of folders that it reads and writes. NEWEST and NEXT are names of states."""

    command: str
    takes: tuple[str, ...]  # runs of the template
    writes: tuple[str, ...]  # where it may write
    read: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    results: tuple[str, ...] = ()  # what must be as in the undisturbed run, in the first of `writes`


def under(folder: str, names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names.split())


MODEL = (
    "best best/tasks.toml best/model.safetensors best/heads.safetensors best/config.json best/tokenizer.json"
)
FEW = "best best/tasks.toml best/model.safetensors best/config.json"
NEW_ENSEMBLE = (
    "predictions members members/1-run members/1-run.partial ensemble.toml.partial config.toml.partial "
    "result.json.partial .lock"
)
STATES = (
    "state state/latest state/latest.partial state/NEWEST state/NEWEST/manifest.json "
    "state/NEWEST/progress.json state/NEWEST/model.safetensors state/NEWEST/optimizer.safetensors state/NEXT "
    "state/NEXT.partial state/photos"
)
OWN = (
    "config.toml metrics.jsonl result.json report.html figures predictions state best best.old "
    "teacher.safetensors ensemble.toml pipeline.toml"
)  # pieces that show that a folder is somebody's run
TARGETS = {
    "evaluate": Target(
        "--option evaluate --run {run} --threads 1",
        ("run",),
        ("run",),
        under("run", f"config.toml {MODEL} best/vocab.txt"),
        under(
            "run",
            "predictions predictions/sst-dev-output.csv predictions/sst-dev-output.csv.partial "
            "predictions/sst-dev-probabilities.csv.partial .lock",
        ),
        ("predictions",),
    ),
    "evaluate an ensemble": Target(
        "--option evaluate --run {ensemble} --threads 1",
        ("run", "other", "ensemble"),
        ("ensemble",),
        ("ensemble/ensemble.toml", "ensemble/config.toml", "run/best", "run/best/tasks.toml"),
        under("ensemble", "predictions predictions/sst-dev-output.csv.partial"),
    ),
    "report": Target(
        "--option report --run {run} --threads 1",
        ("run",),
        ("run",),
        under("run", "config.toml metrics.jsonl best/tasks.toml"),
        under("run", "report.html report.html.partial figures figures/sampling.svg figures/sampling.png"),
    ),
    "predict": Target(
        "--option predict --run {run} --task sentiment --input {data}/ids-sst-test-student.csv --threads 1 "
        "--output {work}/out.tsv",
        ("run",),
        ("work/out.tsv",),
        under("run", FEW),
        ("work/out.tsv.partial",),
    ),
    "ensemble": Target(
        "--option ensemble --run {run} {other} --out {out} --threads 1",
        ("run", "other"),
        ("out",),
        under("run", f"config.toml {FEW}"),
    ),
    "ensemble --copy": Target(
        "--option ensemble --copy --run {run} {other} --out {out} --threads 1",
        ("run", "other"),
        ("out",),
        under("run", "best/vocab.txt best/tokenizer.json"),
        under("out", NEW_ENSEMBLE),
    ),
    "distill": Target(
        TRAIN.replace("finetune", "distill --run {run}") + " --out {out}",
        ("run",),
        ("out", RESCUED),
        under("run", FEW),
        under("out", "teacher.safetensors.partial"),
    ),
    "resume a student": Target(
        "--resume --out {student}", ("student",), ("student", RESCUED), ("student/teacher.safetensors",)
    ),
    "--init": Target(
        TRAIN.replace("--weights {weights}", "--init {run}") + " --out {out}",
        ("run",),
        ("out", RESCUED),
        under("run", FEW),
        under("out", "state best .lock"),
    ),
    "--resume": Target(
        "--resume --out {stopped}",
        ("stopped",),
        ("stopped", RESCUED),
        (),
        under(
            "stopped",
            f"config.toml config.toml.partial metrics.jsonl metrics.jsonl.partial result.json {STATES} best "
            "best.partial best.old predictions predictions/sst-dev-output.csv.partial .lock",
        ),
        RESULTS,
    ),
    "a recipe of stages": Target(
        "--resume --out {stages}",
        ("stages",),
        ("stages", RESCUED),
        ("stages/pipeline.toml", "stages/first/config.toml"),
        under("stages", "pipeline.toml.partial second first/result.json second/state .lock"),
    ),
}


def cases() -> Cases:
    for name, target in TARGETS.items():
        shapes = dict.fromkeys(target.read, READ) | dict.fromkeys(target.written, tuple(SHAPES))
        for piece in shapes:
            for shape in shapes[piece]:
                yield f"{name}: {piece} is {shape}", partial(replaced, target, piece, shape)
    for piece in OWN.split():
        for shape in SHAPES:
            yield f"--out: {piece} is {shape}", partial(somebody_s, piece, shape)
    for piece in OWN.split():
        yield f"--out: of a run only {piece} is left", partial(leftover, piece)
    for name, words in ELSEWHERE.items():
        yield f"--out: a user's folder, {name}", partial(a_user_s_folder, words)
    for shape in READ:
        yield f"cache: every entry is {shape}", partial(cache_entries, shape)
    for name, member in MEMBERS.items():
        yield f"evaluate an ensemble: a member is {name}", partial(strange_member, member)
    for function in SINGLE:
        yield f"{function.__name__.replace('_', ' ')}", function


def reshape(box: Box, piece: str, shape: str) -> Path:
    """Put something hostile in the place of a piece of a run, and return its path."""
    path = box / piece
    if "/NE" in piece:
        step = saved_step(box / "stopped")
        path = box / piece.replace("NEWEST", f"step-{step:08d}").replace("NEXT", f"step-{step + 1:08d}")
    content = path.read_bytes() if path.is_file() else b"something else\n"
    box.put_away(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    SHAPES[shape](box, path, content)
    return path


def replaced(target: Target, piece: str, shape: str, box: Box) -> None:
    box.take(*target.takes)
    reshape(box, piece, shape)
    done = box.command(target.command, writes=target.writes)
    if done.status == 0 and target.results:
        box.check_results(target.writes[0], target.results)


def somebody_s(piece: str, shape: str, box: Box) -> None:
    """A folder with a piece of a run that is not ours."""
    reshape(box, f"new/{piece}", shape)
    box.command(TRAIN + " --out {new}", expect=(2,), writes=("new/.lock",))


def leftover(piece: str, box: Box) -> None:
    source = {"teacher.safetensors": "student", "ensemble.toml": "ensemble", "pipeline.toml": "stages"}
    run = source.get(piece, "run")
    box.take(run)
    if not (box / run / piece).exists():
        write(box / run / piece, "made by hand")
    (box / "new").mkdir()
    os.rename(box / run / piece, box / "new" / piece)
    box.command(TRAIN + " --out {new}", expect=(2,), writes=("new/.lock",))


ELSEWHERE = {
    "finetune": TRAIN,
    "pretrain": TRAIN.replace("finetune", "pretrain"),
    "mnrl": "--option mnrl --weights {weights} --data {data} --epochs 1 --no-report",
    "distill": TRAIN.replace("finetune", "distill --run {run}"),
    "ensemble": "--option ensemble --run {run} {other}",
    "ensemble --copy": "--option ensemble --copy --run {run} {other}",
    "a recipe": TRAIN.replace("--option finetune", "--recipe {recipe}/stages.toml"),
    "--resume": "--resume",
    "--resume finetune": TRAIN + " --resume",
}


def a_user_s_folder(words: str, box: Box) -> None:
    """It has folders named state/ and best/ of its own."""
    box.take("run", "other")
    shutil.copytree(box / "victim/folder", box / "new/state")
    write(box / "new/best/photo.jpg", "a photo")
    write(box / "new/predictions/weather.csv", "rain")
    write(box / "new/notes.txt", "notes")
    box.command(words + " --out {new}", expect=(2,), writes=("new/.lock",))


def cache_entries(shape: str, box: Box) -> None:
    box.take("run")
    box.environment["MINBERT_CACHE"] = str(box / "cache")
    box.command("--option evaluate --run {run} --threads 1", expect=(0,), writes=("run", "cache"))
    for path in [path for path in (box / "cache").rglob("*") if path.is_file()]:
        reshape(box, str(path.relative_to(box.root)), shape)
    box.command("--option evaluate --run {run} --threads 1", expect=(0,), writes=("run", "cache"))
    box.check_results("run", ("predictions",))


MEMBERS = {
    "absolute": "{box}/victim/folder",
    "the victim's folder": "../victim/folder",
    "the ensemble itself": ".",
    "an ensemble": "../ensemble",
    "a link to a run": "../link",
    "a pipe": "../pipe",
    "a file": "../victim/letter.txt",
    "far above the root": "../" * 300 + "etc",
    "too long": "x" * 300,
    "a control character": "../\\u001b]0;x\\u0007",
    "NUL": "../\\u0000",
    "no UTF-8": "../\\ufffd",
}


def strange_member(member: str, box: Box) -> None:
    box.take("run", "other", "ensemble")
    (box / "link").symlink_to(box / "run")
    os.mkfifo(box / "pipe")
    path = box / "ensemble/ensemble.toml"
    path.write_text(path.read_text().replace("../run", member.replace("{box}", str(box))))
    box.command("--option evaluate --run {ensemble} --threads 1", writes=("ensemble",))


# Cases on their own


def resume_where_state_links_to_a_home(box: Box) -> None:
    box.take("stopped")
    (box / "new").mkdir()
    os.rename(box / "stopped/config.toml", box / "new/config.toml")
    (box / "new/state").symlink_to(box / "home")
    box.command("--resume --out {new}", writes=("new",))


def resume_leaves_what_is_not_its_own_in_state(box: Box) -> None:
    box.take("stopped")
    for name in ("photos/cat.jpg", "notes.txt", "step-x/keepsake.txt", "step-00000001/keepsake.txt"):
        write(box / "stopped/state" / name, "the user's")
    before = box.snapshot(
        ("stopped/state/step-0000000", "stopped/state/step-0000001", "stopped/state/latest")
    )
    box.command("--resume --out {stopped}", writes=("stopped",))
    kept = {name: found for name, found in before.items() if name.startswith("stopped/state/")}
    if problems := [*changes(kept, {name: found for name, found in box.snapshot().items() if name in kept})]:
        raise Wrong(*problems)
    if not (box / "stopped/state/step-00000001/keepsake.txt").exists():
        raise Wrong("removed a folder that is no state of its own")


def resume_leaves_a_note_in_best(box: Box) -> None:
    box.take("stopped")
    write(box / "stopped/best/notes.txt", "the user's")
    box.command("--resume --out {stopped}", writes=("stopped",))
    if not [*(box / "stopped").rglob("notes.txt")]:
        raise Wrong("removed a note of the user's")


def a_stage_s_folder_is_a_link_to_another_run(box: Box) -> None:
    box.take("stages", "other")
    (box / "other/result.json").unlink()  # so that the stage is carried out
    box.put_away(box / "stages/second")
    (box / "stages/second").symlink_to(box / "other")
    box.command("--resume --out {stages}", writes=("stages",))


def a_run_s_folder_is_a_link_to_a_run(box: Box) -> None:
    """This is the user's own link, which names the folder that is meant."""
    box.take("stopped")
    (box / "link").symlink_to(box / "stopped")
    if box.command("--resume --out {link}", writes=("stopped",)).status == 0:
        box.check_results("stopped")


def out_is_a_link_to_a_user_s_folder(box: Box) -> None:
    (box / "link").symlink_to(box / "victim/folder")
    box.command(TRAIN + " --out {link}", expect=(2,), writes=("victim/folder/.lock",))


def out_with_notes_keeps_them(box: Box) -> None:
    write(box / "new/notes.txt", "notes")
    box.command(TRAIN + " --out {new}", writes=("new",))
    if (box / "new/notes.txt").read_text() != "notes":
        raise Wrong("the notes have changed")


def out_is_a_finished_run(box: Box) -> None:
    box.take("run")
    box.command(TRAIN + " --out {run}", expect=(2,), writes=("run/.lock",))


def out_is_a_run_that_lost_config_toml(box: Box) -> None:
    box.take("run")
    box.put_away(box / "run/config.toml")
    box.command(TRAIN + " --out {run}", expect=(2,), writes=("run/.lock",))


def ensemble_out_is_a_finished_run(box: Box) -> None:
    box.take("run", "other")
    box.command("--option ensemble --run {run} {other} --out {other}", expect=(2,), writes=("other/.lock",))


def a_run_s_folder_is_taken_while_the_old_process_lives(box: Box) -> None:
    old = box.start(TRAIN.replace("epoch 8", "epoch 40") + " --seed 5 --out {run}")
    old.until(lambda: saved_step(box / "run") >= 5)
    os.kill(old.pid, signal.SIGSTOP)
    box.put_away(box / "run")
    box.command(TRAIN + " --out {run}", expect=(0,), writes=("run",))
    before = box.snapshot(("tmp", "home", "work"))
    os.kill(old.pid, signal.SIGCONT)
    done = old.wait()
    problems = [*changes(before, box.snapshot(("tmp", "home", "work"))), *judged(done, (0, 2))]
    if problems:
        raise Wrong(*problems)
    box.check_results()


def a_run_s_folder_is_removed_while_it_trains(box: Box) -> None:
    process = box.start(TRAIN.replace("epoch 8", "epoch 40") + " --out {run}")
    process.until(lambda: saved_step(box / "run") >= 5)
    box.put_away(box / "run")
    if problems := [*judged(process.wait(), (0, 2))]:
        raise Wrong(*problems)


def a_second_process_resumes_a_run_at_work(box: Box) -> None:
    first = box.start(TRAIN + " --out {run}")
    first.until(lambda: saved_step(box / "run") >= 3)
    os.kill(first.pid, signal.SIGSTOP)
    box.command("--resume --out {run}", expect=(2,), writes=())
    box.command(TRAIN + " --out {run}", expect=(2,), writes=())
    box.command("--option evaluate --run {run} --threads 1", writes=("run",))
    os.kill(first.pid, signal.SIGCONT)
    if problems := [*judged(first.wait(), (0,))]:
        raise Wrong(*problems)
    box.check_results()


def four_evaluations_at_once(box: Box) -> None:
    box.take("run")
    before = box.snapshot(("run/predictions", "run/.lock"))
    processes = [box.start("--option evaluate --run {run} --threads 1") for _ in range(4)]
    problems = [problem for process in processes for problem in judged(process.wait(), (0, 2))]
    problems += changes(before, box.snapshot(("run/predictions", "run/.lock")))
    if problems:
        raise Wrong(*problems)
    box.check_results("run", ("predictions",))


def two_reports_at_once(box: Box) -> None:
    box.take("run")
    processes = [box.start("--option report --run {run} --threads 1") for _ in range(2)]
    if problems := [problem for process in processes for problem in judged(process.wait(), (0, 2))]:
        raise Wrong(*problems)


SINGLE = (
    resume_where_state_links_to_a_home,
    resume_leaves_what_is_not_its_own_in_state,
    resume_leaves_a_note_in_best,
    a_stage_s_folder_is_a_link_to_another_run,
    a_run_s_folder_is_a_link_to_a_run,
    out_is_a_link_to_a_user_s_folder,
    out_with_notes_keeps_them,
    out_is_a_finished_run,
    out_is_a_run_that_lost_config_toml,
    ensemble_out_is_a_finished_run,
    a_run_s_folder_is_taken_while_the_old_process_lives,
    a_run_s_folder_is_removed_while_it_trains,
    a_second_process_resumes_a_run_at_work,
    four_evaluations_at_once,
    two_reports_at_once,
)
