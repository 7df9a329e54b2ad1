"""The job of `--option report`: the page of a run or an ensemble, or of several side by side."""

from __future__ import annotations

import os
from pathlib import Path

from minbert.errors import InputError
from minbert.files import named_folder, write_text
from multitask.config import Config, Replacing, Tsne
from multitask.ensemble_model import is_ensemble
from multitask.layout import COMPARISON, CONFIG, REPORT
from multitask.report.page import write_report
from multitask.report.versus import comparison
from multitask.runs import data_of, place_of_run, set_up, settings_of
from multitask.saved import best_folder, read_definitions

PAGES = (".html", ".htm")  # endings of an --out that is a file


def run_report(config: Config) -> None:
    """Write the report of a run, and the figures beside it; or a page that compares several runs."""
    runs = [folder_of_run(Path(run)) for run in config.runs.run]
    if len(runs) > 1:
        compare(config, runs)
        return
    if config.output.out is not None or config.replacing != Replacing():
        raise InputError(f"--out and --force are for several runs; that of one is {runs[0] / REPORT}")
    run, device = runs[0], set_up(config)
    if config.tsne != Tsne() and settings_of(run).get("option") != "mnrl":
        raise InputError(f"--perplexity and --iterations are for t-SNE of a run of mnrl, not for {run}")
    baseline = config.baseline.baseline
    other = None if baseline is None else folder_of_run(Path(baseline))
    if other is not None and has_no_tasks(run):
        raise InputError(f"{run}: is an encoder, without tasks to compare with a --baseline")
    skip, data = config.reading.skip_bad_rows, config.tables.data or data_of(run)
    print(f"report {write_report(run, data, device, skip, config.tsne, other)}")


def compare(config: Config, runs: list[Path]) -> None:
    """Write the page of several runs, and print which of them beat the first."""
    if config.baseline.baseline is not None:
        raise InputError("--baseline is for a single --run; of several, the first is the baseline")
    if config.tsne != Tsne():
        raise InputError("--perplexity and --iterations are for the report of one run of mnrl")
    if len({os.path.realpath(run) for run in runs}) < len(runs):
        raise InputError("--run names one run twice; name each once")
    for run in runs:
        if has_no_tasks(run):
            raise InputError(f"{run}: is an encoder, without tasks to compare; leave it out")
    page = page_of(config.output.out, runs[0])
    if config.output.out is not None and page.exists() and not config.replacing.force:
        raise InputError(f"{page}: exists; replace it with --force, or name another --out")
    data, skip = config.tables.data, config.reading.skip_bad_rows
    html, verdicts = comparison(runs, data, set_up(config), skip)
    try:
        write_text(named_folder(page.parent) / page.name, html)
    except OSError as error:
        raise InputError(f"{page}: cannot be written ({error.strerror}); name another --out") from None
    print(*verdicts, f"report {page}", sep="\n")


def folder_of_run(run: Path) -> Path:
    """Return where a run is, given its folder or its best/."""
    if not (run / CONFIG).is_file() and (run.parent / CONFIG).is_file():
        run = run.parent
    return place_of_run(run)


def has_no_tasks(run: Path) -> bool:
    """Return whether a run is an encoder, as after mnrl and mlm. Raises InputError if it is no run at all."""
    return not is_ensemble(run) and not read_definitions(best_folder(run) / "tasks.toml")[1]


def page_of(out: str | None, first: Path) -> Path:
    """Return where the page of several runs is written: to a file, or into a folder."""
    if out is None:
        return first / COMPARISON
    is_file = Path(out).suffix in PAGES and not os.path.isdir(out)
    return Path(out) if is_file else Path(out) / COMPARISON
