"""The command line: settings in, one of the options carried out. `python -m multitask.run --help`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from minbert.errors import InputError
from multitask.command_line import PIPELINE, Pipeline, resolve
from multitask.config import TRAINING, Config
from multitask.stopping import Stopped, terminable


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 after a mistake in the input or an error of the disk, with one line that says which;
    130 after Ctrl-C, 143 after SIGTERM and 141 where nobody reads the output any more."""
    plan = None
    try:
        plan = settings(sys.argv[1:] if argv is None else argv)
        with terminable():
            # These bring torch, which help and usage errors do without.
            from multitask.distributed import processes
            from multitask.jobs import JOBS
            from multitask.pipeline import run_pipeline

            with processes():
                run_pipeline(plan) if isinstance(plan, Pipeline) else JOBS[plan.option](plan)
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"stopped: nobody reads the output{way_on(plan)}", file=sys.stderr)
        return 141
    except OSError as error:  # such as a full disk
        print(f"error: {error}{way_on(plan)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped{way_on(plan)}", file=sys.stderr)
        return 130
    except Stopped as stopped:
        if stopped.run is not None:
            print(f"stopped; go on with --resume --out {resumable(stopped.run)}", file=sys.stderr)
        else:
            print(f"stopped{way_on(plan)}", file=sys.stderr)
        return 128 + stopped.number


def way_on(plan: Config | Pipeline | None) -> str:
    """What to do after a stop at an unforeseen place, to put behind the word of it."""
    if plan is None or not trains(plan):
        return ""
    if plan.out is None:
        return "; go on from the last saved state with --resume --out and the folder named above"
    if not any((Path(plan.out) / name).is_file() for name in ("config.toml", PIPELINE)):
        return "; nothing was saved yet: start again with the same command"
    return f"; go on from the last saved state with --resume --out {plan.out}"


def resumable(run: Path) -> Path:
    """The folder to go on with after a stop in this run, which may be a stage's."""
    return run.parent if (run.parent / PIPELINE).is_file() else run


def trains(plan: Config | Pipeline) -> bool:
    return isinstance(plan, Pipeline) or plan.option in TRAINING


def settings(argv: Sequence[str]) -> Config | Pipeline:
    """The command line's settings. Where torchrun has started several processes, one a machine says what
    is wrong with them; where it has started them again, after one had died, the run goes on."""

    def launcher(name: str, default: int = 0) -> int:
        return int(os.environ.get(name, default))

    try:
        plan = resolve(argv)
        if launcher("WORLD_SIZE", 1) > 1 and not trains(plan):
            raise InputError(f"{' '.join(argv)}: works in one process: start it without torchrun")
        if launcher("TORCHELASTIC_MAX_RESTARTS") > 0 and plan.out is None:
            raise InputError("torchrun --max-restarts needs --out, the folder that a restart goes on with")
        return resolve([*argv, "--resume"]) if launcher("TORCHELASTIC_RESTART_COUNT") > 0 else plan
    except InputError:
        if launcher("LOCAL_RANK") > 0:
            time.sleep(5)  # torchrun ends all at the first exit, which must not come before the message
            raise SystemExit(2) from None
        raise


if __name__ == "__main__":
    sys.exit(main())
