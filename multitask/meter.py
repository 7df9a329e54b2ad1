"""What a run shows while it trains: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from minbert.command import unguarded
from multitask.messages import has_room
from multitask.progress import Progress

SECONDS_BETWEEN_LINES = 10


class Meter:
    """Shows the loss, examples per second and time left, step by step."""

    def __init__(self, steps_per_epoch: int, epochs: int, rows_per_step: float):
        self.steps_per_epoch = steps_per_epoch
        self.total = steps_per_epoch * epochs
        self.epochs = epochs
        self.rows_per_step = rows_per_step
        self.started = self.shown = time.perf_counter()
        self.first_step = -1
        self.bar: tqdm | None = None

    def update(self, progress: Progress) -> None:
        """Show the state after a step."""
        if self.first_step < 0:
            self.first_step = progress.step - 1
            if has_room(sys.stderr):
                self.bar = tqdm(
                    total=self.total,
                    initial=self.first_step,
                    unit="step",
                    dynamic_ncols=True,
                    file=unguarded(sys.stderr),  # its carriage returns are to be obeyed
                )
        loss = progress.mean("loss/all")
        done = progress.step - self.first_step
        seconds = time.perf_counter() - self.started
        rate = done * self.rows_per_step / seconds
        epoch = (progress.step - 1) // self.steps_per_epoch + 1
        if self.bar is not None:
            self.bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
            self.bar.set_postfix_str(f"loss {loss:.4f}, {rate:.0f} examples/s", refresh=False)
            self.bar.update()
            return
        if time.perf_counter() - self.shown >= SECONDS_BETWEEN_LINES:
            self.shown = time.perf_counter()
            left = tqdm.format_interval((self.total - progress.step) * seconds / done)
            print(
                f"epoch {epoch}/{self.epochs}, step {progress.step}/{self.total}: "
                f"loss {loss:.4f}, {rate:.0f} examples/s, {left} left",
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
