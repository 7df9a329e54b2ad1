"""The command line: settings in, one of the options carried out. `python -m multitask.run --help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from minbert.errors import InputError
from multitask.command_line import Pipeline, resolve
from multitask.config import TRAINING


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0; 2 after a mistake in the input or an error of the disk, with one line that says which;
    130 after Ctrl-C and 141 where nobody reads the output any more."""
    go_on = ""
    try:
        plan = resolve(sys.argv[1:] if argv is None else argv)
        if isinstance(plan, Pipeline) or plan.option in TRAINING:
            go_on = f"; go on from the last saved state with --resume --out {plan.out or 'RUN'}"
        # These bring torch, which help and usage errors do without.
        from multitask.jobs import JOBS
        from multitask.pipeline import run_pipeline

        run_pipeline(plan) if isinstance(plan, Pipeline) else JOBS[plan.option](plan)
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"stopped: nobody reads the output{go_on}", file=sys.stderr)
        return 141
    except OSError as error:  # such as a full disk
        print(f"error: {error}{go_on}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped{go_on}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
