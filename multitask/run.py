"""The command line: settings in, one of the options carried out. `python -m multitask.run --help`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from minbert.command import explain, guarded, is_lack_of_memory, print_answer
from minbert.errors import InputError
from multitask import advice
from multitask.command_line import Pipeline, resolve
from multitask.config import OPTIONS, TRAINING, WRITE_FOLDERS, Config
from multitask.launcher import GRACE_SECONDS, launched
from multitask.layout import CONFIG, PIPELINE
from multitask.stopping import Stopped, terminable

LESS_MEMORY = "a smaller --batch-size, --max-tokens or --max-length and another --out"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0; that of `minbert.command.explain`, which prints one line,
    after an error; 143 after SIGTERM, 129 after SIGHUP."""
    command, argv = None, sys.argv[1:] if argv is None else argv
    if not argv:
        return print_answer(first_help)
    with guarded() as output:
        try:
            command = settings(argv)
            with terminable():
                carry_out(command)
            output.flush()
            if output.lost is not None:
                report_lost(output.lost, command)
            return 0
        except Stopped as stopped:
            if stopped.run is not None:
                remedy = f"; resume with {advice.resume(resumable(stopped.run))}"
            else:
                remedy = how_to_resume(command)
            print(f"stopped{remedy}", file=sys.stderr)
            return 128 + stopped.number
        except (Exception, KeyboardInterrupt) as error:
            remedy = how_to_resume(command)
            if remedy and is_lack_of_memory(error):
                remedy += f"; or train with {LESS_MEMORY}"
            return explain(error, remedy)


def first_help() -> str:
    """Return what someone who does not know the program needs first."""
    program = advice.command()
    return f"""\
Fine-tune one BERT for several tasks at once: the course's three, or your own.

  {program} finetune                               train on the shipped sample: a first look
  {program} inspect --data DIR                     look at your tables, write a task file
  {program} finetune --data DIR --out runs/first   train on the tables in DIR
  {program} --resume --out runs/first              resume after a stop
  {program} serve --run runs/first                 answer over HTTP, with a page to try it on

What to do is one of {", ".join(OPTIONS)}.
Add --help for its flags, or use --help alone for all of them. The guide is docs/running.md of the sources."""


def carry_out(command: Config | Pipeline) -> None:
    # These bring torch, which help and usage errors do without.
    from multitask.distributed import processes
    from multitask.jobs import JOBS
    from multitask.pipeline import run_pipeline

    with processes():
        if isinstance(command, Pipeline):
            run_pipeline(command)
        else:
            JOBS[command.option](command)


def report_lost(error: OSError, command: Config | Pipeline) -> None:
    """Print that not all of the output could be written, if what counts is in a folder, which is complete.
    Raise the error if the output was what the command is for."""
    if not isinstance(command, Pipeline) and command.option not in WRITE_FOLDERS:
        raise error
    print(f"warning: not all of the output could be written ({error}); the run is complete", file=sys.stderr)


def how_to_resume(command: Config | Pipeline | None) -> str:
    """Return what to do after an unforeseen stop, as the end of a message."""
    if command is None or not trains(command):
        return ""
    out = out_of(command) or claimed()
    if out is None:  # in a process that leaves the folder to another, or before there is one
        return "; --resume resumes the folder named above, if there is one, from its last saved state"
    if not any((Path(out) / name).is_file() for name in (CONFIG, PIPELINE)):
        return "; nothing was saved yet: start again with the same command"
    return f"; resume from the last saved state with {advice.resume(out)}"


def claimed() -> Path | None:
    """Return the folder that this process has claimed, if any."""
    from multitask.folder import last_claimed

    return None if (run := last_claimed()) is None else resumable(run)


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
        os.getcwd()
    except FileNotFoundError:
        raise InputError("the working directory no longer exists; change to another one") from None
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
