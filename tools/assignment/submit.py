"""Check your predictions and pack your submission.

    python submit.py runs/finetune-1              # a run's folder, or a folder of prediction files
    python submit.py runs/finetune-1 --data DIR   # if it was trained on other tables than the sample
    python submit.py --code-only                  # what there is of the code, without predictions

Writes submission.zip: the Python files of minbert/ and multitask/ and the prediction files, and nothing else.
Nothing is written if a prediction file is missing or has a mistake; every mistake is listed, with its line.
"""

# Old versions of Python must be able to read this file: `checks` says which one is needed.

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from checks.predictions import TRAIN, expected_files, read_predictions
    from checks.submission import PREDICTIONS, Refused, code_files, pack
    from minbert.errors import InputError, counted
    from multitask.data.tables import SAMPLE
except ModuleNotFoundError as error:
    sys.exit(
        f"{error}: submit.py needs what stands beside it in the assignment, and what requirements.txt lists"
    )

FOLDER = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and pack, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="submit.py RUN [--data DIR] [--out FILE] | submit.py --code-only [--out FILE]",
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN")
    parser.add_argument("--code-only", action="store_true", help="leave out the predictions")
    parser.add_argument("--data", type=Path, default=SAMPLE, metavar="DIR", help="default: the sample")
    parser.add_argument("--out", type=Path, default=Path("submission.zip"), metavar="FILE")
    chosen = parser.parse_args(arguments)
    if (chosen.run is None) != chosen.code_only:
        parser.error(f"name a run's folder, or --code-only alone; {TRAIN} makes a run")
    try:
        answers = {}
        if chosen.run is not None:
            inside = chosen.run / PREDICTIONS
            answers = read_predictions(inside if inside.is_dir() else chosen.run, expected_files(chosen.data))
        files = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in code_files(FOLDER)}
        files |= {f"{PREDICTIONS}/{name}": content for name, content in answers.items()}
        pack(files, chosen.out)
    except (InputError, Refused, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{chosen.out}: {counted(len(files), 'file')}, {chosen.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
