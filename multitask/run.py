"""The command line: settings in, one of the options carried out. `python -m multitask.run --help`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from minbert.errors import InputError
from multitask.command_line import Pipeline, resolve
from multitask.config import TRAINING, Config
from multitask.folder import CONFIG, PIPELINE
from multitask.launcher import GRACE_SECONDS, launched
from multitask.stopping import Stopped, terminable

RESUME = "python -m multitask.run --resume --out"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; 2 after a mistake in the input or an error of the disk,
    with one line that says which; 130 after Ctrl-C, 143 after SIGTERM, 141 if nobody reads the output."""
    command = None
    try:
        command = settings(sys.argv[1:] if argv is None else argv)
        with terminable():
            # These bring torch, which help and usage errors do without.
            from multitask.distributed import processes
            from multitask.jobs import JOBS
            from multitask.pipeline import run_pipeline

            with processes():
                if isinstance(command, Pipeline):
                    run_pipeline(command)
                else:
                    JOBS[command.option](command)
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"stopped: nobody reads the output{how_to_resume(command)}", file=sys.stderr)
        return 141
    except OSError as error:  # such as a full disk
        print(f"error: {error}{how_to_resume(command)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped{how_to_resume(command)}", file=sys.stderr)
        return 130
    except Stopped as stopped:
        if stopped.run is not None:
            print(f"stopped; resume with {RESUME} {resumable(stopped.run)}", file=sys.stderr)
        else:
            print(f"stopped{how_to_resume(command)}", file=sys.stderr)
        return 128 + stopped.number


def how_to_resume(command: Config | Pipeline | None) -> str:
    """Return what to do after an unforeseen stop, as the end of a message."""
    if command is None or not trains(command):
        return ""
    out = out_of(command)
    if out is None:
        return f"; resume from the last saved state with {RESUME} and the folder named above"
    if not any((Path(out) / name).is_file() for name in (CONFIG, PIPELINE)):
        return "; nothing was saved yet: start again with the same command"
    return f"; resume from the last saved state with {RESUME} {out}"


def out_of(command: Config | Pipeline) -> str | None:
    return command.out if isinstance(command, Pipeline) else command.output.out


def resumable(run: Path) -> Path:
    """Return the folder to resume after a stop in this run, which may be a stage's."""
    return run.parent if (run.parent / PIPELINE).is_file() else run


def trains(command: Config | Pipeline) -> bool:
    return isinstance(command, Pipeline) or command.option in TRAINING


def settings(argv: Sequence[str]) -> Config | Pipeline:
    """Return the command line's settings. Under torchrun, one process of each machine says what is wrong with
    them; and if torchrun has restarted the processes after one had died, the run is resumed."""

    try:
        command = resolve(argv)
        if launched("WORLD_SIZE", 1) > 1 and not trains(command):
            raise InputError(f"{' '.join(argv)}: needs a single process: start it without torchrun")
        if launched("TORCHELASTIC_MAX_RESTARTS") > 0 and out_of(command) is None:
            raise InputError("torchrun --max-restarts needs --out, the folder that a restart resumes")
        return resolve([*argv, "--resume"]) if launched("TORCHELASTIC_RESTART_COUNT") > 0 else command
    except InputError:
        if launched("LOCAL_RANK") > 0:
            time.sleep(GRACE_SECONDS)
            raise SystemExit(2) from None
        raise


if __name__ == "__main__":
    sys.exit(main())
