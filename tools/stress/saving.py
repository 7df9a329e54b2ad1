"""Measure what saving costs a training run, in percent: `python tools/stress/saving.py --data DIR`.

Stretches of updates with and without a save at their start alternate; a stretch ends once the state is on
the disk. A save costs the difference between their medians.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from multitask import machine
from multitask.config import Config
from multitask.data.tables import SPLITS, read_splits
from multitask.preparation import prepare, tasks_of
from multitask.state import SECONDS, Progress, States
from multitask.train import train_step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder of tables (default: the shipped sample)")
    parser.add_argument("--weights", default="minilm-l6")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--updates", type=int, default=15, help="updates per stretch")
    arguments = parser.parse_args()
    config = Config("finetune").changed(
        data=arguments.data, weights=arguments.weights, threads=arguments.threads, device="cpu"
    )
    device = machine.set_up(config.machine)
    selected = tasks_of(config)
    rows = read_splits(arguments.data, SPLITS[:2], selected, skip_bad_rows=False)
    run = prepare(config, selected, rows, device)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        states = States(Path(folder), run.method.parts, run.optimizer, {"option": "finetune"})
        states.keep_best()  # every state includes its copy
        progress = Progress()
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * arguments.rounds + 1):
            saved = number % 2 == 1
            started = time.perf_counter()
            if saved:
                states.save(progress)
            for _ in range(arguments.updates):
                train_step(run, progress.step % 10)
                progress.step += 1
            states.wait()
            if number:  # the first is a warm-up
                seconds[saved].append(time.perf_counter() - started)
        size = sum(path.stat().st_size for path in Path(folder).rglob("step-*/*")) / 2
    plain, saving = median(seconds[False]), median(seconds[True])
    print(f"{arguments.updates} updates: {plain:.2f} s, with a save of {size / 1e6:.0f} MB {saving:.2f} s")
    print(f"a save every {SECONDS} s costs {100 * (saving - plain) / SECONDS:.2f}% of the training time")


if __name__ == "__main__":
    main()
