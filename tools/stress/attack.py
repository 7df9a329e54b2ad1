"""Attack the program with hostile folders, failing streams and odd machines; print a line for each case.

    python tools/stress/attack.py [--only WORD] [--list]

Every case starts commands of the real command line in a folder of its own, which also holds a user's home and
a victim's files. A case fails if a command ends with another status than expected, shows a traceback or a
control character, gives no line that says what is wrong, takes too much time or memory, or changes anything
outside the run's folder (hostile/box.py). Cases whose line contains WORD are carried out, or all. The exit
status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it; done here, so that no process repeats it

from hostile import failures, folders, machines, states, work
from hostile.box import Box, Case, Skipped, Wrong
from multitask import jobs, pipeline  # noqa: F401  for the same reason

GROUPS = {"folders": folders, "states": states, "failures": failures, "work": work, "machines": machines}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", metavar="WORD", default="", help="carry out the cases with WORD in their line"
    )
    parser.add_argument("--list", action="store_true", help="print the cases' names instead")
    arguments = parser.parse_args()
    chosen = {name: case for name, case in all_cases() if arguments.only in name}
    if arguments.list:
        print(*chosen, sep="\n")
        return 0
    give_up_rights()
    torch.set_num_threads(1)
    import_plots()
    started, failed, skipped = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="minbert-attack-") as folder:
        template = Box(Path(folder, "template"))
        for name, case in chosen.items():
            verdict = carry_out(case, Path(folder), template)
            failed, skipped = failed + verdict.startswith("FAIL"), skipped + verdict.startswith("skip")
            print(f"{verdict[:4]} {name}{verdict[4:]}", flush=True)
    right = len(chosen) - failed - skipped
    seconds = time.monotonic() - started
    print(f"{right} of {len(chosen)} right, {failed} failed, {skipped} skipped; {seconds:.0f} seconds")
    return int(failed > 0)


def all_cases() -> Iterator[tuple[str, Case]]:
    for group, module in GROUPS.items():
        for name, case in module.cases():
            yield f"{group}: {name}", case


def carry_out(case: Case, folder: Path, template: Box) -> str:
    """Carry out a case in a box of its own; return "ok  ", "skip: WHY" or "FAIL: WHAT WAS SEEN"."""
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as fresh:
        box = Box(Path(fresh), template)
        try:
            case(box)
            return "ok  "
        except Skipped as reason:
            return f"skip: {reason}"
        except Wrong as wrong:
            return f"FAIL: {'; '.join(map(str, wrong.args))}"
        except Exception as error:
            return f"FAIL: the case itself: {error!r}"
        finally:
            box.close()


def give_up_rights() -> None:
    """Give up root's capabilities, here and in all that is started from here, so that a folder that is
    read-only cannot be written. Does nothing for other users, and where the system has no capabilities."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(28, 0b11)  # PR_SET_SECUREBITS: a program does not get them back because root starts it
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def import_plots() -> None:
    """Import what reports need, if it is installed, so that no process repeats it."""
    with suppress(ImportError):
        import matplotlib.backends.backend_agg
        import matplotlib.backends.backend_svg  # noqa: F401
        import sklearn.manifold  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
