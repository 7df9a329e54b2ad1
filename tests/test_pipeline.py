"""Recipes of several stages: what they resolve to, how they run, stop and go on, and the forecast."""

import itertools
import json
import pkgutil
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tomli_w
from helpers import contents, make_config, metrics_without_clock, write_tables

from minbert.errors import InputError
from multitask import forecast, load, pipeline
from multitask.advice import resume
from multitask.command_line import Pipeline, resolve
from multitask.config import Config
from multitask.forecast import Cost
from multitask.run import main

RECIPE = """
[stages.first]
option = "mnrl"
epochs = 2
steps_per_epoch = 4

[stages.second]
option = "finetune"
init = "@first"
epochs = 2
steps_per_epoch = 5
smart_weight = 1.0

[stages.both]
option = "ensemble"
run = ["@second"]
thresholds = ["sentiment=1"]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    sizes = {"train": 20, "dev": 10, "test-student": 3}
    return write_tables(tmp_path_factory.mktemp("pipeline") / "data", sizes=sizes)


@pytest.fixture(scope="module")
def words(tmp_path_factory, data, tiny):
    path = tmp_path_factory.mktemp("recipe") / "mine.toml"
    path.write_text(RECIPE)
    return ["--recipe", str(path), "--weights", str(tiny), "--data", str(data), "--threads", "1"]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "whole"
    assert main([*words, "--out", str(out)]) == 0
    return out


def stages_of(*words: str) -> dict[str, Config]:
    found = resolve(words)
    assert isinstance(found, Pipeline)
    return found.stages


def test_the_papers_pipeline():
    """Sections 4.3.3 and 4.3.4: MNRL; 25 epochs of annealed sampling and SMART, lambda 15; BPPO with mu 1,
    beta .75, rate 1e-6, 1,000 updates an epoch, 25 epochs; the ensemble of section 4.4."""
    mnrl, smart, bregman, ensemble = stages_of("--recipe", "paper").values()
    assert (mnrl.option, mnrl.start.weights) == ("mnrl", "bert-base-uncased")
    assert (smart.option, smart.start.init) == ("finetune", "@mnrl")
    assert (smart.training.epochs, smart.training.steps_per_epoch) == (25, 2000)
    assert (smart.batches.sampling, smart.smart.weight, smart.bppo.weight) == ("annealed", 15, 0)
    assert (bregman.option, bregman.start.init) == ("finetune", "@annealed-smart")
    assert (bregman.training.epochs, bregman.training.steps_per_epoch) == (25, 1000)
    assert (bregman.training.lr, bregman.training.schedule) == (1e-6, "halve-on-rise")
    assert (bregman.bppo.weight, bregman.bppo.betas) == (1, (0.75,))
    assert (ensemble.option, ensemble.runs.run) == ("ensemble", ("@annealed-smart", "@bregman"))
    assert ensemble.choice.least_scores == {"sentiment": 0.53, "paraphrase": 0.88, "similarity": 0.87}


def test_a_recipe_with_stages_may_extend_another(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'extends = "paper"\n[stages.mnrl]\noption = "mnrl"\nlr = 1e-3\npooling = "cls"\n'
        '[stages.student]\noption = "distill"\nrun = ["@ensemble"]\n'
    )
    stages, papers = stages_of("--recipe", str(path)), stages_of("--recipe", "paper")
    assert [*stages] == [*papers, "student"] and stages["student"].runs.run == ("@ensemble",)
    assert stages["mnrl"].training.lr == 1e-3 and stages["mnrl"].start.weights == "minilm-l6"  # in its place
    assert stages["bregman"] == papers["bregman"]


def test_the_best_recipes():
    """Specialists start from the checkpoint, or from the model of all tasks; the student learns from all."""
    stages = stages_of("--recipe", "best")
    assert stages["similarity"].start.init == stages["student"].start.init == "@further"
    shifted = stages_of("--recipe", "best", "--seed", "7")  # the specialists still differ
    for some, first in ((stages, 0), (shifted, 7)):
        seeds = [some[name].training.seed for name in ("sentiment-0", "sentiment-1", "paraphrase")]
        assert seeds == [first, first + 1, first]
    (ensemble,) = (one for one in stages.values() if one.option == "ensemble")
    assert [*stages][-1] == "student" and [*stages_of("--recipe", "best-ensemble")] == [*stages][:-1]
    others = {"ranking", "all", "further", "ensemble", "student"}
    assert ensemble.runs.run == tuple(f"@{name}" for name in stages if name not in others)


def test_a_flag_goes_to_every_stage_that_uses_it():
    words = ["--epochs", "3", "--weights", "bert-mini", "--revision", "main", "--seed", "7"]
    stages = stages_of("--recipe", "paper", *words)
    training = [stages[name].training for name in ("mnrl", "annealed-smart", "bregman")]
    assert [(one.epochs, one.seed) for one in training] == [(3, 7)] * 3
    first = stages["mnrl"].start
    assert (first.weights, first.revision) == ("bert-mini", "main")
    later = stages["bregman"].start  # --weights begins the first stage, and only that
    assert later.init == "@annealed-smart" and later.weights != "bert-mini" and later.revision is None


def test_the_forecast_starts_every_stage_from_the_first_ones_weights():
    stages = stages_of("--recipe", "paper", "--weights", "bert-mini", "--revision", "v1")
    alone = pipeline.standalone(stages, "bregman")
    assert (alone.start.init, alone.start.weights, alone.bppo.weight) == (None, "bert-mini", 1)
    assert alone.start.revision == "v1"


@pytest.mark.parametrize(
    "text, flags, problem",
    [
        ("[stages.a]\nlr = 1\n", [], "stage a: choose what to do with --option"),
        ('[stages.a]\noption = "mnrl"\nlearning = 1\n', [], "stage a: unknown key 'learning'"),
        ('[stages.a]\noption = "mnrl"\nseed = 1\n', ["--seed", str(2**63 - 1)], "--seed must be"),
        ('[stages.a]\noption = "mnrl"\nlr = "x"\n', [], "stage a: lr must be a number, at least 0 and"),
        (
            '[stages.a]\noption = "finetune"\ninit = "@b"\n',
            [],
            "stage a: @b: no stage of that name",
        ),
        ('[stages.a]\noption = "mnrl"\nhead_dropout = 0.1\n', [], "stage a: --option mnrl does not use"),
        ('[stages."a/b"]\noption = "mnrl"\n', [], r"stages must be tables, \[stages.NAME\]"),
        (
            '[stages.a]\noption = "mnrl"\nout = "x"\n',
            [],
            "stage a: out and resume belong to the whole recipe",
        ),
        (
            '[stages.a]\noption = "mnrl"\n[stages.b]\noption = "finetune"\ninit = "@a"\npooling = "cls"\n',
            [],
            "stage b: its pooling is cls, but that of @a is mean",
        ),
        ("stages = 3\n", [], r"stages must be tables, \[stages.NAME\]"),
        ('lr = 1\n[stages.a]\noption = "mnrl"\n', [], r"lr must be in a stage, \[stages.NAME\]"),
        ('extends = "mine.toml"\n[stages.a]\noption = "mnrl"\n', [], "mine.toml: extends itself"),
        ('extends = ["paper"]\n[stages.a]\noption = "mnrl"\n', [], "extends must be the name of one recipe"),
        ('extends = "annealed"\n[stages.a]\noption = "mnrl"\n', [], r"annealed.toml: .* must be in a stage"),
        ('[stages.a]\nextends = "nowhere"\n', [], "'nowhere' is neither a file nor a shipped recipe"),
        ('[stages.a]\noption = "mnrl"\n', ["--head-dropout", "0.1"], "no stage uses --head-dropout"),
        ('[stages.a]\noption = "mnrl"\n', ["--init", "x"], "--init: the stages of .* set this themselves"),
    ],
)
def test_a_bad_pipeline_ends_in_one_line_that_names_the_recipe(tmp_path, text, flags, problem):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=problem):
        resolve(["--recipe", str(path), *flags])


def test_every_stage_is_a_run_of_its_own(finished, data):
    assert {path.name for path in finished.iterdir()} == {
        ".lock", ".minbert", "pipeline.toml", "first", "second", "both"
    }  # fmt: skip
    for stage in ("first", "second", "both"):
        assert (finished / stage / "result.json").exists()
    second = tomllib.loads((finished / "second" / "config.toml").read_text())
    assert second["init"] == str(finished / "first")
    both = json.loads((finished / "both" / "result.json").read_text())
    assert both["tasks"]["sentiment"]["members"] == [str(finished / "second")]
    assert (finished / "both" / "predictions" / "sst-test-output.csv").exists()


def test_a_pipelines_ensemble_moves_with_its_stages(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "moved")
    models = load(tmp_path / "moved" / "both"), load(finished / "second")
    rows = [model.predict_proba("sentiment", ["a good film"])[0] for model in models]
    assert rows[0] == pytest.approx(rows[1], abs=1e-6)


def test_it_says_how_long_it_will_take_and_where_the_best_run_stood_in(words, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.index("on this machine: first ") < out.index("stage first")
    assert "warning: no run reaches sentiment's threshold 1; using its best run instead" in out


@contextmanager
def stopped_at(place: str, call: int) -> Iterator[None]:
    """A context in which Ctrl-C comes at this call, from 1, of a function."""
    calls, goes_on = itertools.count(1), pkgutil.resolve_name(place)

    def stop(*args):
        if next(calls) == call:
            raise KeyboardInterrupt
        return goes_on(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, stop)
        yield


@pytest.mark.parametrize(
    "place, call, done",
    [
        ("multitask.train.end_epoch", 2, []),  # in the last epoch of the first stage
        ("multitask.train.end_epoch", 4, ["first"]),
        ("multitask.ensembling.average", 1, ["first", "second"]),
    ],
)
def test_it_goes_on_where_it_was_stopped(words, finished, tmp_path, place, call, done):
    """The resumed command says nothing of the settings: the folder holds them."""
    out = tmp_path / "out"
    with stopped_at(place, call):
        assert main([*words, "--out", str(out)]) == 130
    assert [name for name in ("first", "second", "both") if (out / name / "result.json").exists()] == done
    assert main(["--resume", "--out", str(out)]) == 0
    for name in ("first", "second"):
        assert metrics_without_clock(out / name) == metrics_without_clock(finished / name)
        assert contents(out / name / "best") == contents(finished / name / "best")
    assert contents(out / "both" / "predictions") == contents(finished / "both" / "predictions")


def test_a_stage_that_distils_is_resumed_with_what_its_teacher_gave_it(tiny, data, tmp_path):
    """Also in a copy, and when it was stopped before the student began."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[stages.one]\noption = "finetune"\n[stages.two]\noption = "distill"\nrun = ["@one"]\n')
    words = ["--recipe", str(recipe), "--weights", str(tiny), "--data", str(data)]
    words += ["--threads", "1", "--epochs", "2", "--steps-per-epoch", "3"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    for place, call in (("multitask.jobs.train", 2), ("multitask.train.end_epoch", 4)):
        out = tmp_path / place
        with stopped_at(place, call):
            assert main([*words, "--out", str(out)]) == 130
        moved = shutil.copytree(out, tmp_path / f"moved-{place}")
        assert main(["--resume", "--out", str(moved)]) == 0
        assert metrics_without_clock(moved / "two") == metrics_without_clock(tmp_path / "whole" / "two")


def test_a_finished_pipeline_is_done(words, finished, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "measure", None)  # nothing to measure, nothing to do
    assert main(["--resume", "--out", str(finished)]) == 0
    assert "done before: first, second, both" in capsys.readouterr().out


def test_a_folder_that_holds_a_pipeline_is_not_written_over(words, finished, data, tiny, capsys):
    assert main([*words, "--out", str(finished)]) == 2
    assert f"holds a run already; resume it with {resume(finished)}, or" in capsys.readouterr().err
    single = ["--option", "finetune", "--weights", str(tiny), "--data", str(data), "--epochs", "1"]
    assert main([*single, "--out", str(finished)]) == 2
    assert "holds the stages of a recipe; choose another --out" in capsys.readouterr().err
    assert main([*words, "--out", str(finished / "second"), "--resume"]) == 2
    assert "holds a single run; choose another --out" in capsys.readouterr().err


def test_a_stage_that_had_all_but_its_result_is_done_again(words, finished, tmp_path):
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "both" / "result.json").unlink()
    assert main(["--resume", "--out", str(out)]) == 0
    assert (out / "both" / "result.json").exists()


def test_a_resumed_pipeline_keeps_its_settings_but_for_the_machines(words, finished):
    same = resolve([*words, "--resume", "--out", str(finished), "--save-every", "3"])
    assert isinstance(same, Pipeline) and same.stages["first"].saving.save_every == 3
    for change in (["--epochs", "3"], ["--seed", "1"]):
        with pytest.raises(InputError, match=r"stage .* was started with"):
            resolve([*words, *change, "--resume", "--out", str(finished)])
        with pytest.raises(InputError, match=r"stage .* was started with|the seeds of the stages"):
            resolve([*change, "--resume", "--out", str(finished)])


def test_the_seconds_of_a_run():
    """start 5, epochs of 10 updates of 2 s and an evaluation of 3 s; two predictions at the end."""
    cost = Cost(start=5, update=2, evaluation=3, epochs=4, steps_per_epoch=10)
    assert cost.seconds() == 5 + 4 * (20 + 3) + 2 * 3
    assert cost.seconds(epochs_done=3) == 5 + 23 + 6


def test_a_measured_run(words, tiny, data, monkeypatch, tmp_path):
    """A clock that ticks once a reading: every update takes a tick. An evaluation is timed on every fifth row
    of the three dev tables of 10 rows, and every tenth of the three samples of 20 training rows, a tick each:
    3 * 5 + 3 * 10."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(forecast, "TRIED_ROWS", 2)
    monkeypatch.chdir(tmp_path)
    config = make_config("finetune", weights=str(tiny), data=str(data), epochs=2, batch_size=4)
    cost = forecast.measure(config)
    assert (cost.update, cost.evaluation) == (1, 45)
    assert (cost.epochs, cost.steps_per_epoch) == (2, 15)  # all 60 rows in batches of 4
    assert not list(tmp_path.iterdir())  # nothing is written


def test_a_threshold_of_no_task_is_refused_before_anything_is_trained(tiny, tmp_path, capsys):
    words = ["--recipe", "paper", "--weights", str(tiny), "--epochs", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--thresholds", "sentment=.5"]) == 2
    assert "unknown task 'sentment'; known are sentiment" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "seconds, text", [(20, "20 seconds"), (90, "90 seconds"), (120, "2.0 minutes"), (7200, "2.0 hours")]
)
def test_durations(seconds, text):
    assert pipeline.duration(seconds) == text


def test_a_resumed_student_keeps_what_it_took_from_its_teacher(tmp_path):
    stage = stages_of("--recipe", "best")["student"]
    taken = {"data": "d", "tasks": ("mine",), "task_file": "mine.toml", "skip_bad_rows": True}
    begun = tmp_path / "student" / "config.toml"
    begun.parent.mkdir()
    begun.write_text(tomli_w.dumps(stage.changed(**taken).settings))
    resumed = pipeline.placed(stage, tmp_path, "student")
    assert {name: resumed.settings[name] for name in taken} == taken and resumed.saving.resume
