"""Check your work, part by part.

    python check.py              # every part
    python check.py attention    # one part, or several
    python check.py --list       # the parts, their points, and what each has you fill in

Each part is checked by itself, with stand-ins for what the others do, so they can be solved in any order.
The exit status is 0 if everything that was checked passes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from checks.judging import FIRST_SEED, PASSES, WIDTH, check, read_record, report, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the parts that are named, or all, and return the exit status."""
    record = read_record(Path(__file__).resolve().parent / "checks")
    parts = {part.name: part for part in record}
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="check.py [PART ...] [--list]",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--list", action="store_true", help="print the parts and check nothing")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.parts if name not in parts]:
        parser.error(f"no part {unknown[0]}; the parts are {', '.join(parts)}")
    if chosen.list:
        for part in record:
            print(f"{part.name:{WIDTH}}{part.points:4}  {part.where or part.title}")
        return 0

    verdicts = check(record, chosen.parts or parts, lambda name: run(name, FIRST_SEED))
    for name, verdict in verdicts.items():
        print("\n".join(report(parts[name], verdict)))
    passed = [name for name, verdict in verdicts.items() if verdict.state == PASSES]
    points, total = (sum(parts[name].points for name in names) for names in (passed, verdicts))
    print(f"{'total':{WIDTH}}{points:3} of {total:2}")
    return 0 if len(passed) == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
