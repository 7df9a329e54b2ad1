"""Kill training runs at random moments, resume them, and compare their bytes with those of an uninterrupted
run: `python tools/stress/crash.py --kills 200`.

Every process is forked from one that has already imported torch, so that a kill costs a second instead of a
start of the interpreter; it is killed by SIGKILL, which no program can handle. A run is killed several times,
then resumed to its end. The exit status is 1 if any byte differs, clock fields aside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it; done here, so that no process repeats it

from multitask import jobs, pipeline  # noqa: F401  for the same reason
from multitask.data.tables import SAMPLE
from multitask.data.tasks import BUILT_IN
from multitask.run import main as run_main

TINY = Path(__file__).resolve().parents[2] / "weights" / "tiny"
ROWS = {"train": 60, "dev": 20, "test-student": 5}
KILLS_A_RUN = 8
RECIPE = """
[stages.first]
option = "mnrl"

[stages.second]
option = "finetune"
init = "@first"
sampling = "annealed"

[stages.both]
option = "ensemble"
run = ["@second"]
"""
VARIANTS = {  # whose states are compared where they are kept, and otherwise gone
    "baseline": "--option finetune --batch-size 4 --keep-state",
    "annealed sampling, SMART, BPPO, accumulation": "--option finetune --batch-size 4 --sampling annealed "
    "--smart-weight 1 --bregman-weight 1 --bregman-beta .9:.99 --accumulate 2 --keep-state",
    "halve-on-rise, patience": "--option finetune --batch-size 4 --schedule halve-on-rise --patience 2 "
    "--lr 1e-2 --sampling sqrt --keep-state",
    "heads alone": "--option pretrain --batch-size 4 --sampling proportional --schedule constant",
    "mnrl": "--option mnrl --accumulate 2 --keep-state",
    "mlm": "--option mlm --batch-size 4 --accumulate 2 --keep-state",
    "a recipe of stages": "--recipe {recipe}",
}
EVERYWHERE = (
    "--weights {tiny} --data {data} --threads 1 --epochs 3 --steps-per-epoch 16 --save-every 2 --no-report"
)


@dataclass
class Tally:
    kills: int = 0
    in_saves: int = 0
    right: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    tally, draw = Tally(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="minbert-crash-") as folder:
        commands = prepare(Path(folder))
        references: dict[str, tuple[dict[str, Any], float]] = {}
        for number, name in zip(itertools.count(), itertools.cycle(VARIANTS)):
            if tally.kills >= arguments.kills:
                break
            if name not in references:
                reference = Path(folder) / f"reference-{len(references)}"
                pid = start([*commands[name], "--out", str(reference)], reference)
                until_it_trains(pid, reference)
                started = time.monotonic()
                if code := wait(pid):
                    raise SystemExit(
                        f"{name}: the uninterrupted run ended with status {code}: {log(reference)}"
                    )
                references[name] = contents(reference), time.monotonic() - started
            wanted, seconds = references[name]
            run = Path(folder) / f"run-{number}"
            kills = min(KILLS_A_RUN, arguments.kills - tally.kills)
            done, in_saves = kill(commands[name], run, kills, seconds, draw)
            code = wait(start([*commands[name], "--out", str(run), "--resume"], run))
            found = contents(run)
            different = sorted(
                path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)
            )
            tally.kills, tally.in_saves = tally.kills + done, tally.in_saves + in_saves
            tally.right += done * (code == 0 and not different)
            verdict = (
                "same bytes"
                if code == 0 and not different
                else f"DIFFERENT, status {code}: {different} {log(run)}"
            )
            print(f"{tally.kills:4} {name}: {done} kills, {in_saves} during a save: {verdict}", flush=True)
            shutil.rmtree(run)
    print(f"{tally.right} of {tally.kills} kills resumed to identical bytes; {tally.in_saves} hit a save")
    return int(tally.right < tally.kills)


def prepare(folder: Path) -> dict[str, list[str]]:
    """Write small tables and a recipe; return the command line of every variant."""
    data, recipe = folder / "data", folder / "stages.toml"
    data.mkdir()
    recipe.write_text(RECIPE)
    for task in BUILT_IN.values():
        for split, count in ROWS.items():
            lines = task.path(SAMPLE, split).read_text().splitlines(keepends=True)
            task.path(data, split).write_text("".join(lines[: count + 1]))
    places = {"tiny": TINY, "data": data, "recipe": recipe}
    return {name: f"{words} {EVERYWHERE}".format(**places).split() for name, words in VARIANTS.items()}


def start(words: list[str], run: Path) -> int:
    """Start a process with this command line, its output in a file beside the run; return its pid."""
    run.with_suffix(".log").write_text("")
    if pid := os.fork():
        return pid
    try:
        descriptor = os.open(run.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        status = run_main(words)
        sys.stdout.flush()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def log(run: Path) -> str:
    return run.with_suffix(".log").read_text()


def until_it_trains(pid: int, run: Path) -> None:
    """Wait until the process has started its updates, or has ended."""
    while "updates on" not in log(run) and not ended(pid):
        time.sleep(0.001)


def ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(words: list[str], run: Path, kills: int, seconds: float, draw: random.Random) -> tuple[int, int]:
    """Start the run and resume it until it has been killed this many times, or has ended.

    Return the number of kills, and how many of them came while something was being written. One in four may
    come before the first update.
    """
    done = in_saves = 0
    while done < kills:
        before = half_written(run)
        pid = start([*words, "--out", str(run), "--resume"], run)
        if draw.random() > 0.25:
            until_it_trains(pid, run)
        deadline = time.monotonic() + draw.uniform(0, seconds / 3)
        while time.monotonic() < deadline and not ended(pid):
            time.sleep(0.0005)
        os.kill(pid, signal.SIGKILL)
        if wait(pid) != -signal.SIGKILL:
            break
        done += 1
        in_saves += bool(half_written(run) - before)
    return done, in_saves


def half_written(run: Path) -> set[tuple[Path, int]]:
    """Return files not yet renamed, with their times, so that a leftover is counted only once."""
    return {(path, path.stat().st_mtime_ns) for path in run.rglob("*.partial-*")}


def contents(run: Path) -> dict[str, Any]:
    """Return what a run has written, without older states, clock times and the name of its folder."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        is_old = path.parent.name.startswith("step-") and path.parent != newest(path.parent.parent)
        if path.is_dir() or is_old or path.name in ("config.toml", "pipeline.toml", "manifest.json", ".lock"):
            continue
        if path.suffix in (".json", ".jsonl"):
            text = path.read_text().replace(str(run), "RUN")
            values = [json.loads(text)] if path.suffix == ".json" else map(json.loads, text.splitlines())
            found[name] = [timeless(value) for value in values]
        else:
            found[name] = path.read_bytes()
    return found


def newest(states: Path) -> Path:
    return states / (states / "latest").read_text()


def timeless(value: Any) -> Any:
    """Return a JSON value without the fields that have `second` in their names."""
    if isinstance(value, dict):
        return {name: timeless(item) for name, item in value.items() if "second" not in name}
    return [timeless(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
