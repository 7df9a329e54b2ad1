"""What each `--option` does, from reading its tables to writing its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from minbert.errors import InputError, counted
from minbert.files import write_text
from multitask import distributed, machine, targets
from multitask.advice import command, resume
from multitask.config import PATHS, Config
from multitask.data import tasks
from multitask.data.tables import SPLITS, Splits
from multitask.data.tasks import Task
from multitask.ensemble_model import is_ensemble
from multitask.ensembling import run_ensemble
from multitask.export import run_export
from multitask.finished import drop_state, finished_run, print_done, print_end
from multitask.folder import check_held
from multitask.inspecting import run_inspection
from multitask.judgement import fit_calibrations, judge
from multitask.layout import BEST, CONFIG, PREDICTIONS, RESULT, TARGETS
from multitask.model import MultitaskBert
from multitask.predict import predict
from multitask.predictor import Predictor
from multitask.preparation import prepare, tasks_of, with_commit
from multitask.progress import Progress
from multitask.report.card import write_card
from multitask.report.drawing import can_plot
from multitask.report.page import write_report
from multitask.reporting import run_report
from multitask.runs import (
    claim_folder,
    load_run,
    outputs_of,
    place_of_run,
    print_if_sample,
    print_scores,
    read_and_print_notes,
    set_up,
    settings_of,
    with_tables_of,
    write_all_predictions,
    write_result,
)
from multitask.saved import write_calibrations
from multitask.serve import run_server
from multitask.state import States
from multitask.streams import check_paths
from multitask.train import TrainingRun, fit

# Training


def unless_done(job: Callable[[Config], None]) -> Callable[[Config], None]:
    """Return the job of an option that trains, without the work for a run that --resume finds done."""

    def done(config: Config) -> bool:
        run = finished_run(config)
        if run is None:
            return False
        drop_state(config, run)  # which a kill may have left
        print_done(run)
        return True

    def job_unless_done(config: Config) -> None:
        if not distributed.from_writer(lambda: done(config)):
            job(config)

    return job_unless_done


def run_training(config: Config) -> None:
    """pretrain and finetune: train, then predict dev and test with the best model."""
    print_if_sample(config)
    selected = tasks_of(config)
    rows = read_and_print_notes(config, SPLITS, selected)
    config = with_commit(config)
    device, run = set_up(config), claim_folder(config)
    progress = train(prepare(config, selected, rows, device), config, run)
    predict_with_best(config, run, device, selected, rows, progress)


def run_distillation(config: Config) -> None:
    """distill: as `run_training`, with the outputs of a teacher beside the labels. They are kept in the run's
    folder, so that a resumed run does not need the teacher."""
    device = set_up(config)
    teacher = None if has_targets(config) else load_run(Path(config.runs.run[0]), config, device)
    if teacher is not None:
        config = taught_by(teacher, config)
    print_if_sample(config)
    selected = tasks_of(config)
    rows = read_and_print_notes(config, SPLITS, selected)
    learned = {split: rows[split] for split in SPLITS[:2]}
    config = with_commit(config)
    run = claim_folder(config)
    if teacher is not None:
        print(f"computing {config.runs.run[0]}'s outputs on the training and dev rows", flush=True)
        outputs = targets.compute_targets(teacher, learned)
        distributed.from_writer(lambda: targets.write_targets(run, outputs))
    outputs = targets.read_targets(run, selected, learned)
    training = prepare(config, selected, rows, device, outputs["train"])
    facts = {**training.facts, "teacher's outputs": targets.digest_of(outputs)}
    progress = train(replace(training, facts=facts), config, run)
    fitted = fit_calibrations(selected, outputs["dev"], rows["dev"])
    of_teacher = judge(selected, outputs["dev"], rows["dev"], fitted).dev
    predict_with_best(config, run, device, selected, rows, progress, of_teacher)


def run_encoder_training(config: Config) -> None:
    """mnrl and mlm: train an encoder, which has no heads."""
    print_if_sample(config)
    selected = tasks_of(config)
    rows = read_and_print_notes(config, SPLITS[:2], selected)
    config = with_commit(config)
    device, run = set_up(config), claim_folder(config)
    progress = train(prepare(config, selected, rows, device), config, run)
    print(f"best epoch {progress.best_epoch} of {len(progress.records)}")
    found = {"dev": progress.best["dev"], "best_epoch": progress.best_epoch}
    distributed.from_writer(lambda: finish(config, run, device, selected={}, progress=progress, found=found))


def has_targets(config: Config) -> bool:
    """Whether a resumed run has its teacher's outputs. Raises InputError if they and the teacher are gone."""
    run = None if config.output.out is None else Path(config.output.out)
    if not config.saving.resume or run is None or not (run / CONFIG).is_file():
        return False
    kept = (run / TARGETS).is_file()
    if not kept and not Path(config.runs.run[0]).exists():
        raise InputError(
            f"{run / TARGETS}: is gone, and so is the teacher {config.runs.run[0]} that could compute "
            "it again; restore one of them"
        )
    return kept


def taught_by(teacher: Predictor, config: Config) -> Config:
    """Return the settings, with the teacher's data and tasks in place of the defaults. Raises InputError if
    it does not have a task as it is defined here."""
    run = config.runs.run[0]
    config = config.changed(task_file=config.start.task_file or task_file_of(Path(run)))
    known = tasks_of(config)
    names = config.selection.tasks or tuple(name for name in known if name in teacher.tasks)
    for name in names or known:
        if teacher.tasks.get(name) != known[name]:
            raise InputError(
                f"{run}: does not have the task {name} as it is defined here; its tasks are "
                f"{', '.join(teacher.tasks)}: choose with --tasks, or name the --task-file of its training"
            )
    return with_tables_of(config, Path(run)).changed(tasks=names)


def task_file_of(run: Path) -> str | None:
    """Return the task file that a run, or the first run of an ensemble, was trained with, if it is known."""
    if is_ensemble(run) and (runs := settings_of(run).get("run")):
        run = Path(runs[0])
    return settings_of(run).get("task_file")


def train(training: TrainingRun, config: Config, run: Path) -> Progress:
    """Train from step 0, or from the last saved state, to the end. Raises InputError if the disk failed and
    the model had to be saved elsewhere."""
    config = config.changed(out=str(run), steps_per_epoch=training.steps_per_epoch)
    states = States(run, training.method.parts, training.optimizer, config.settings)
    progress = start_or_resume(config, states, training)
    progress.products = machine.choose_products(training.method.model, progress.products)
    if config.saving.verbose:
        print(machine.describe_products(progress.products))
    local = dict.fromkeys((*PATHS, "out", "threads", "device"))  # these may differ between machines
    distributed.check_same(config.settings | local | progress.facts | {"saved step": progress.step})
    distributed.from_writer(lambda: write_settings_and_remove_result(config, run))
    print(training.summary)
    print(
        f"{counted(config.training.epochs, 'epoch')} of {counted(training.steps_per_epoch, 'update')} on "
        f"{training.method.model.device}, writing {run}",
        flush=True,
    )
    rescued = fit(training, states, progress, config.saving.save_every)
    if rescued != run:
        raise InputError(
            f"{run}: cannot be written; the trained model is in {rescued / BEST}: finish the run with "
            f"{resume(rescued)}"
        )
    return progress


def write_settings_and_remove_result(config: Config, run: Path) -> None:
    """Write the settings of a run that is about to train, which is not done until it has a new result."""
    (run / RESULT).unlink(missing_ok=True)
    write_text(run / CONFIG, tomli_w.dumps(config.settings))


def start_or_resume(config: Config, states: States, training: TrainingRun) -> Progress:
    """Return step 0 or, with --resume, the last saved state, loaded into the method's parts and the
    optimizer."""
    fresh = Progress(facts=dict(training.facts))
    if not config.saving.resume:
        return fresh
    progress = states.load(training.facts, training.method.describe)
    if progress is None:
        print(f"{states.run}: nothing saved yet, starting at step 0")
        return fresh
    if len(progress.records) > config.training.epochs:
        raise InputError(
            f"{states.run}: has completed {len(progress.records)} epochs, more than --epochs "
            f"{config.training.epochs}"
        )
    print(f"{states.run}: resuming after step {progress.step}")
    return progress


def predict_with_best(
    config: Config,
    run: Path,
    device: torch.device,
    selected: Mapping[str, Task],
    rows: Splits,
    progress: Progress,
    teacher: Mapping[str, Any] | None = None,
) -> None:
    """Predict dev and test with a run's best model, calibrated on dev if the tasks say so; print its dev
    scores, beside those of its teacher if it had one, and finish the run."""
    distributed.wait()  # until the best model is on the disk
    best = machine.place(MultitaskBert.load(run / BEST), config.products, device)
    logits = outputs_of(best, rows)
    fitted = fit_calibrations(selected, logits["dev"], rows["dev"])
    distributed.from_writer(lambda: check_held(run))
    distributed.from_writer(lambda: write_calibrations(run / BEST, fitted))
    judged = write_all_predictions(run / PREDICTIONS, selected, rows, logits, fitted)
    compared = {} if teacher is None else {"teacher": teacher}
    columns = ", student and teacher" if compared else ""
    print(f"best epoch {progress.best_epoch} of {len(progress.records)}, on dev{columns}:")
    print_scores(selected, judged, *compared.values())
    for name, task in selected.items():
        metric, score = task.kind.metric, task.kind.score
        top = max(progress.records, key=lambda record: score(record["dev"][name][metric]))
        print(f"  best {name} {metric} {top['dev'][name][metric]:.3f} in epoch {top['epoch']}")
    found = {**asdict(judged), **compared, "best_epoch": progress.best_epoch}
    distributed.from_writer(lambda: finish(config, run, device, selected, progress, found))


def finish(
    config: Config,
    run: Path,
    device: torch.device,
    selected: Mapping[str, Task],
    progress: Progress,
    found: Mapping[str, Any],
) -> None:
    """Write the run's report, if the libraries that plot are installed, and its model's card; then what the
    run `found`, which says that it is done; then remove the state, which only an unfinished run needs."""
    if config.saving.report and not can_plot():
        write = command("report", "--run", run)
        print(f'no report: pip install "minbert[plots]", then write it with {write}')
    elif config.saving.report:
        try:
            print(f"report {write_report(run, config.tables.data, device, config.reading.skip_bad_rows)}")
        except InputError as error:
            print(f"no report: {error}")
    try:
        write_card(run, found)
    except InputError as error:
        print(f"no model card: {error}")
    write_result(run, **found)
    drop_state(config, run)
    print_end(config, run, selected, progress)


# Using trained models


def run_evaluation(config: Config) -> None:
    """Score a finished run or an ensemble on the dev tables and write its dev and test predictions again."""
    run, device = place_of_run(Path(config.runs.run[0])), set_up(config)
    config = with_tables_of(config, run)
    model = load_run(run, config, device)
    if (run / CONFIG).is_file() and not (run / RESULT).is_file():
        print(f"{run}: is not finished; this is the best model of its epochs so far")
    selected = tasks.select(config.selection.tasks, model.tasks)
    rows = read_and_print_notes(config, SPLITS[1:], selected)
    logits = outputs_of(model, rows)
    judged = write_all_predictions(run / PREDICTIONS, selected, rows, logits, model.calibrations)
    print(f"{run} on the dev tables of {config.tables.data or 'the shipped sample'}:")
    print_scores(selected, judged)
    print(f"predictions {run / PREDICTIONS}")


def run_prediction(config: Config) -> None:
    """Read a stream of texts, write predictions."""
    given, name, force = config.prediction, config.one_task.task, config.replacing.force
    check_paths(given.input, given.output, force)
    model = load_run(Path(config.runs.run[0]), config, set_up(config))
    task = tasks.select([name], model.tasks)[name]
    predict(model, task, given.input, given.output, config.reading.skip_bad_rows, force)


JOBS: dict[str, Callable[[Config], None]] = {
    "inspect": run_inspection,
    "pretrain": unless_done(run_training),
    "mnrl": unless_done(run_encoder_training),
    "mlm": unless_done(run_encoder_training),
    "finetune": unless_done(run_training),
    "distill": unless_done(run_distillation),
    "evaluate": run_evaluation,
    "ensemble": run_ensemble,
    "report": run_report,
    "predict": run_prediction,
    "export": run_export,
    "serve": run_server,
}
