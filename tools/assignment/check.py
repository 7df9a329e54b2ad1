"""Check your work, part by part.

    python check.py              # every part
    python check.py attention    # one part, or several
    python check.py --list       # the parts, their points, and what each has you fill in

Each part is checked by itself, with stand-ins for what the others do, so they can be solved in any order.
The exit status is 0 if everything that was checked passes.
"""

# Old versions of Python must be able to read this file: `checks` says which one is needed.

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from checks.judging import FIRST_SEED, PASSES, WIDTH, Outcome, check, read_record, report, run
    from checks.submission import changed_files
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}: check.py needs what stands beside it in the assignment, and what requirements.txt lists"
    )

FOLDER = Path(__file__).resolve().parent
SECONDS = 60  # that a part may take


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the parts that are named, or all, and return the exit status."""
    record = read_record(FOLDER / "checks")
    parts = {part.name: part for part in record}
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="check.py [PART ...] [--list]",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--list", action="store_true", help="print the parts and check nothing")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.parts if name not in parts]
    if unknown:
        parser.error(f"no part {unknown[0]}; the parts are {', '.join(parts)}")
    if chosen.list:
        for part in record:
            print(f"{part.name:{WIDTH}}{part.points:4}  {part.where or part.title}")
        return 0

    checked, passed = [], []
    for part, verdict in check(record, chosen.parts or parts, run_for_a_while):
        print("\n".join(report(part, verdict)), flush=True)
        checked.append(part)
        if verdict.state == PASSES:
            passed.append(part)
    changed = changed_files(FOLDER)
    if changed:
        print(f"note: these files differ from the assignment's: {', '.join(changed)}")
    points, total = (sum(part.points for part in some) for some in (passed, checked))
    print(f"{'total':{WIDTH}}{points:3} of {total:2}")
    return 0 if len(passed) == len(checked) else 1


def run_for_a_while(part: str) -> Outcome:
    """Run a part, and stop it after `SECONDS`, where the system can. Ctrl-C ends the program in a line."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {SECONDS} seconds: does a loop never end?")

    limited = hasattr(signal, "SIGALRM")
    try:
        if limited:
            signal.signal(signal.SIGALRM, stop)
            signal.alarm(SECONDS)
        return run(part, FIRST_SEED)
    except KeyboardInterrupt:
        sys.exit(f"stopped in {part}")
    finally:
        if limited:
            signal.alarm(0)


if __name__ == "__main__":
    sys.exit(main())
