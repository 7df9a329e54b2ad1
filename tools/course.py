"""A course out of this library: an assignment for students, and a grader for what they hand in.

    python tools/course.py make DIR                    # the assignment, in a new folder
    python tools/course.py grade FILE.zip ... [--csv FILE] [--feedback DIR] [--data DIR]
                                                       [--seconds N] [--memory GIB]

See docs/teaching.md. The table of the parts is in tools/assignment/parts.py. Grading runs the code of the
submissions: do it in a container.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from minbert.command import Parser, carry_out
from minbert.errors import InputError
from minbert.files import named_folder, write_text

# What imports torch is imported where it is used, so that help and errors are immediate.
SECONDS, GIBIBYTES = 60, 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""

    def work() -> int:
        chosen = parse(arguments)
        if chosen.command == "make":
            from assignment.making import make

            make(chosen.folder)
            print(f"{chosen.folder}: the assignment; start with README.md there")
        else:
            grade_all(chosen)
        return 0

    return carry_out(work)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write the assignment into a new folder")
    making.add_argument("folder", type=Path, metavar="DIR")
    grading = commands.add_parser("grade", help="run submissions and print a table of their points")
    grading.add_argument("zips", nargs="+", type=Path, metavar="FILE.zip")
    grading.add_argument("--csv", type=Path, metavar="FILE", help="write the table there, too")
    grading.add_argument("--feedback", type=Path, metavar="DIR", help="write what check.py would say there")
    grading.add_argument(
        "--data", type=Path, metavar="DIR", help="tables of the predictions (default: the sample)"
    )
    grading.add_argument("--seconds", type=int, default=SECONDS, help="for a part (default: %(default)s)")
    grading.add_argument("--memory", type=int, default=GIBIBYTES, help="GiB (default: %(default)s)")
    return parser.parse_args(arguments)


def grade_all(chosen: argparse.Namespace) -> None:
    """Grade the submissions one by one, and print the table."""
    from assignment.grading import Limits, as_csv, as_text, cells, feedback, grade
    from assignment.making import record
    from assignment.parts import EXERCISES
    from checks.predictions import expected_files
    from multitask.data.tables import SAMPLE

    names = [path.stem for path in chosen.zips]
    if len({*names}) < len(names):
        raise InputError("two submissions have the same file name; rename one")
    if missing := [path for path in chosen.zips if not path.is_file()]:
        raise InputError(f"{missing[0]}: no such file; nothing was graded")
    if chosen.seconds < 1 or chosen.memory < 1:
        raise InputError("--seconds and --memory must be at least 1")
    expected = expected_files(chosen.data or SAMPLE)
    folder = named_folder(chosen.feedback) if chosen.feedback else None
    seed = secrets.randbelow(2**31)
    recorded = record(EXERCISES, seed)
    limits = Limits(chosen.seconds, chosen.memory << 30)
    grades = []
    for path in chosen.zips:
        print(f"{path} ...", file=sys.stderr)
        grades.append(grade(path, recorded, seed, expected, limits))
        if folder is not None:
            write_text(folder / f"{path.stem}.txt", feedback(grades[-1], list(recorded)))
    rows = cells(grades, list(recorded))
    print(as_text(rows))
    if chosen.csv:
        write_text(chosen.csv, as_csv(rows))


if __name__ == "__main__":
    sys.exit(main())
