"""tools/reproduce.py: the grid's commands, the tables made of run folders, the budget, and mistakes."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import SIZES, write_tables

import budget
import grid as grid_module
import paper
import reproduce
from budget import scaled
from grid import RESULT, Grid, Job, carry_out, jobs_of
from multitask import run
from multitask.command_line import resolve
from multitask.config import Config
from multitask.forecast import Cost
from multitask.tasks import BUILT_IN
from paper import TABLES, TARGETS, Table, cell
from reproduce import main

SCORES = {"paraphrase": "accuracy", "sentiment": "accuracy", "similarity": "pearson"}


def finish(folder: Path, qqp: float, sst: float, r: float, **more) -> None:
    """A run folder as a finished run leaves it."""
    dev = {name: {SCORES[name]: value} for name, value in zip(SCORES, (qqp, sst, r), strict=True)}
    dev["score"] = (qqp + sst + (1 + r) / 2) / 3
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps({"dev": dev, "best_epoch": 1, **more}))


def configs(name: str, grid: Grid) -> list[Config]:
    found = [resolve(grid.job(row.cell, 0).words) for row in TABLES[name].rows]
    return [config for config in found if isinstance(config, Config)]


@pytest.fixture
def grid(tmp_path) -> Grid:
    return Grid(tmp_path / "out")


@pytest.fixture
def started(monkeypatch) -> list[Path]:
    """The folders of the jobs that are started; each is finished at once."""
    folders = []

    def execute(job: Job) -> str:
        folders.append(job.run)
        finish(job.run, 0.5, 0.25, 0.5)
        return "done"

    monkeypatch.setattr(grid_module, "execute", execute)
    monkeypatch.setattr(reproduce, "save_figure", lambda *_: None)
    return folders


# The grid


@pytest.mark.parametrize("target", TARGETS)
def test_every_listed_command_is_one_and_comes_after_those_it_needs(target, tmp_path, capsys):
    out = tmp_path / "a folder"
    assert main([target, "--list", "--seeds", "0,3", "--out", str(out), "--threads", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(lines) == len(set(lines)) >= 4
    made = set()
    for line in lines:
        python, dash_m, module, *words = shlex.split(line, comments=True)
        assert (python, dash_m, module) == ("python", "-m", "multitask.run")
        config = resolve(words)
        assert isinstance(config, Config) and config.threads == 2
        needed = {*config.run, *([config.init] if config.init else [])}
        assert needed <= made and all(folder in line.partition("# after")[2] for folder in map(str, needed))
        made.add(config.out)
    assert not out.exists()  # nothing is run or written


def test_cells_have_the_settings_that_the_paper_states(grid):
    """Section 4.3: 1e-5 constant, decay 1e-4, 10 epochs of 2,000 steps, 16 rows, unless a table varies it."""
    one = configs("table1", grid)
    assert [(c.batch_size, c.steps_per_epoch) for c in one] == [
        (rows, steps) for steps in (1000, 2000, 3000, 4000) for rows in (8, 16)
    ]
    assert {(c.sampling, c.lr, c.schedule, c.weight_decay, c.epochs) for c in one} == {
        ("annealed", 1e-5, "constant", 1e-4, 10)
    }
    assert [c.smart_weight for c in configs("table2", grid)] == [1, 3, 5, 7, 10, 15]
    assert [(c.smart_weight, c.epochs) for c in configs("table3", grid)] == [(10, 15), (15, 15)]
    four = configs("table4", grid)
    assert [c.epochs for c in four] == [15, 25, 50]
    assert {(c.init, c.sampling, c.smart_weight) for c in four} == {
        (str(grid.run(paper.MNRL, 0)), "annealed", 15)
    }
    five = configs("table5", grid)
    assert [(c.schedule, c.bregman_weight, c.betas) for c in five] == [
        ("constant", 0.3, (0.75,)),
        ("constant", 3, (0.3,)),
        ("halve-on-rise", 0.3, (0.75,)),
    ]
    assert {(c.init, c.weights, c.lr, c.epochs) for c in five} == {(None, "bert-base-uncased", 1e-4, 10)}
    six = configs("table6", grid)
    assert [(c.epochs, c.lr, c.bregman_weight, c.betas) for c in six] == [
        (10, 1e-5, 3, (0.99,)),
        (10, 1e-5, 1, (0.9,)),
        (10, 1e-5, 1, (0.75,)),
        (25, 1e-6, 1, (0.75,)),
    ]
    assert {(c.init, c.steps_per_epoch, c.schedule) for c in six} == {
        (str(grid.run(paper.TUNED, 0)), 1000, "halve-on-rise")
    }


def test_a_run_that_tables_share_is_one_cell():
    last = {name: TABLES[name].rows[-1].cell for name in TABLES}
    seven = [row.cell for row in TABLES["table7"].rows]
    assert TABLES["table1"].rows[3].cell == seven[2] == cell("annealed", batch_size=16, steps_per_epoch=2000)
    assert last["table2"] == seven[3] and last["table6"] == seven[5] and last["table8"] == seven[6]
    assert TABLES["table4"].rows[1].cell == seven[4]
    assert last["table3"] not in TABLES["table2"].cells and last["table3"].name == "annealed-smart-epochs-15"
    cells = {one for target in TARGETS.values() for one in target.cells}
    assert len({one.name for one in cells}) == len(cells)


def test_the_papers_figures_are_copied_right():
    """A row's last figure is the mean of the others, as far as it is in the paper: it drifts by up to .003,
    and Table 7's MNRL row has the mean of Table 4's, where QQP is .010 higher."""
    for name, table in TABLES.items():
        for row in table.rows:
            off = 0.0061 if (name, row.cell) == ("table7", paper.TUNED) else 0.003
            assert np.mean(row.paper[:3]) == pytest.approx(row.paper[3], abs=off), (name, row.labels)


# Running


def test_finished_cells_are_skipped_and_seeds_share_nothing(grid, started):
    jobs = jobs_of(TABLES["table3"], Grid(grid.out, seeds=(0, 1)))
    finish(jobs[0].run, 0.5, 0.5, 0.5)
    assert carry_out(jobs) == 0
    assert started == [job.run for job in jobs[1:]] and len({job.run for job in jobs}) == 4


def test_a_failure_stops_only_what_needs_it(grid, monkeypatch, capsys):
    started = []

    def execute(job: Job) -> str:
        started.append(job.run.parent.name)
        if job.run.parent.name == "mnrl":
            return "failed with status 2"
        finish(job.run, 0.5, 0.5, 0.5)
        return "1 s"

    monkeypatch.setattr(grid_module, "execute", execute)
    assert carry_out(jobs_of(TABLES["table7"], grid)) == 4
    assert started == ["baseline", "baseline-smart", "annealed", "annealed-smart", "mnrl"]
    said = capsys.readouterr().out.splitlines()
    assert "mnrl-annealed-smart/seed-0 ... not run, for lack of" in said[5] and "mnrl/seed-0" in said[5]


def test_a_command_that_fails_is_one_line_with_its_log(grid):
    job = Job(["--option", "nonsense"], grid.out / "bad" / "seed-0", grid.out / "never", [])
    said = grid_module.execute(job)
    assert said.startswith("failed with status 2 (error: --option: 'nonsense'") and "\n" not in said
    assert said.endswith(f"see {job.run / 'log.txt'}")


def test_a_small_grid_for_real(tmp_path, tiny, monkeypatch, capsys):
    """An encoder of mnrl and a model from it, stopped once and gone on with; then all is found done."""
    data = write_tables(tmp_path / "data", sizes=SIZES | {"train": 20})
    first = cell("mnrl", epochs=1, steps_per_epoch=2)
    second = cell("mnrl-annealed-smart", first, epochs=2, steps_per_epoch=3)
    table = Table("Small", ("model",), tuple(paper.Row((one,), second, (0.5,) * 4) for one in "ab"))
    monkeypatch.setitem(TARGETS, "table1", table)
    begun = []

    def execute(job: Job) -> str:
        begun.append(job.run.parent.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return f"status {run.main(job.words)}"

    monkeypatch.setattr(grid_module, "execute", execute)
    monkeypatch.setattr(reproduce, "save_figure", lambda *_: None)
    words = ["table1", "--data", str(data), "--weights", str(tiny), "--out", str(tmp_path / "out")]
    assert main(words) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    assert main(words) == 0
    assert begun == [first.name, second.name, second.name]
    assert main(words) == 0 and len(begun) == 3
    page = (tmp_path / "out" / "table1.md").read_text()
    score = json.loads((tmp_path / "out" / second.name / "seed-0" / RESULT).read_text())["dev"]["score"]
    assert f"| a |{page.split('| a |')[1].splitlines()[0]}".endswith(f" {score:.3f} | 0.500 | 1 |")


# Tables and figures


def test_mean_spread_and_n_of_the_seeds(grid):
    """QQP .8, .9, 1: mean .9, deviations -.1, 0, .1, so sqrt(.02 / 2) = .1. STS of r = -1, 0, 1 is 0, .5, 1:
    mean .5, spread .5. SST .5 thrice: 0. The model's scores .4333, .6333, .8333: mean .6333, spread .2.
    The second row has one run, the third none."""
    table = TABLES["table4"]
    three = Grid(grid.out, seeds=(0, 1, 2))
    for seed, (qqp, r) in enumerate([(0.8, -1), (0.9, 0), (1.0, 1)]):
        finish(three.run(table.rows[0].cell, seed), qqp, 0.5, r)
    finish(three.run(table.rows[1].cell, 2), 0.75, 0.25, 0.5)
    page = reproduce.write_table(table, three, reproduce.dev_scores, ["A note."], grid.out / "table4")
    assert page == (grid.out / "table4.md").read_text()
    lines = page.splitlines()
    assert "- A note." in lines and "![" + table.title + "](table4.png)" in lines
    first = (
        "| 15 | 0.900 ± 0.100 | 0.877 | 0.500 ± 0.000 | 0.536 | 0.500 ± 0.500 | 0.940 | 0.633 ± 0.200 | 0.784"
    )
    assert lines[6:9] == [
        f"{first} | 3 |",
        "| 25 | 0.750 | 0.887 | 0.250 | 0.546 | 0.750 | 0.935 | 0.583 | 0.792 | 1 |",
        "| 50 | – | 0.877 | – | 0.542 | – | 0.941 | – | 0.787 | 0 |",
    ]
    assert lines[4].startswith(
        "| epochs | QQP ours† | paper | SST ours† | paper | STS ours† | paper | Model ours†"
    )
    assert all((grid.out / f"table4.{ending}").stat().st_size > 1000 for ending in ("png", "svg"))


def test_the_members_of_an_ensemble_are_named(grid):
    chosen = {"sentiment": {"members": ["x/annealed/seed-0", "x/mnrl-bregman/seed-0"]}}
    finish(grid.run(paper.ENSEMBLE, 0), 0.9, 0.5, 0.5, tasks=chosen)
    page = reproduce.write_table(TABLES["table7"], grid, reproduce.dev_scores, [], grid.out / "table7")
    assert "- seed-0, members for sentiment: annealed, mnrl-bregman.\n" in page


def test_table_8_scores_the_test_predictions(tmp_path, started, capsys):
    """Of three rows a task: classes 0, 1, 2 against 0, 1, 1, two right; 0, 1, 0 against 0, 1, 0, all right;
    values 0, 1, 2 against 5, 3, 1, r = -1, which counts 0. Their mean is (2/3 + 1 + 0) / 3 = .556."""
    labels, out = tmp_path / "labels", tmp_path / "out"
    write_tables(labels, sizes={"train": 3})
    for task in BUILT_IN.values():
        task.path(labels, "train").rename(task.path(labels, "test-student"))
    predicted = {"sentiment": (0, 1, 1), "paraphrase": (0, 1, 0), "similarity": (5, 3, 1)}
    folder = out / "ensemble" / "seed-0" / "predictions"
    folder.mkdir(parents=True)
    for name, values in predicted.items():
        rows = [f"{name}-train-{number} , {value} \n" for number, value in enumerate(values)]
        path = folder / f"{BUILT_IN[name].submission}-test-output.csv"
        path.write_text("".join(["id \t Value \n", *reversed(rows)]))
    words = ["table8", "--weights", str(tmp_path), "--out", str(out)]
    assert main([*words, "--test-labels", str(labels)]) == 0
    ensemble = "| Ensemble | 1.000 | 0.895 | 0.667 | 0.556 | 0.000 | 0.944 | 0.556 | 0.798 | 1 |"
    assert ensemble in capsys.readouterr().out

    assert main(words) == 0
    said = capsys.readouterr().out
    assert "| Ensemble | – | 0.895 |" in said and f"are {out}/ensemble/seed-N/predictions/" in said

    path.write_text("id \t Value \n")
    assert main([*words, "--test-labels", str(labels)]) == 2
    assert f"error: {path}: lacks row 'similarity-train-0'" in capsys.readouterr().err


def test_figure_1b_is_of_the_best_run_with_its_shares(grid, tmp_path):
    """Labels go 0, 1, 2, 3, 4, 0: of the two of class 0 one is taken for 1, and the one of class 4 for 3."""
    data = write_tables(tmp_path / "data")
    two = Grid(grid.out, data=str(data), seeds=(0, 1))
    for seed in two.seeds:
        folder = two.run(paper.FINAL, seed)
        finish(folder, 0.5, 0.5 + seed / 4, 0.5)
        (folder / "figures").mkdir()
        (folder / "predictions").mkdir()
        for ending in ("png", "svg"):
            (folder / "figures" / f"sentiment.{ending}").write_text(f"drawn {seed}")
        rows = [f"sentiment-dev-{row} , {value} \n" for row, value in enumerate((1, 1, 2, 3, 3, 0))]
        (folder / "predictions" / "sst-dev-output.csv").write_text("".join(["id \t P \n", *rows]))
    page = reproduce.write_figure(TARGETS["figure1b"], two, [], grid.out / "figure1b")
    assert (grid.out / "figure1b.svg").read_text() == "drawn 1"
    assert "| 0 | 1 | 0.50 | 0.62 |\n| 4 | 3 | 1.00 | 0.43 |\n| 2 | 2 | 1.00 | 0.34 |" in page


# The budget


def test_the_steps_of_all_cells_are_scaled_alike():
    """Two cells, 1 s to start and 2 x .5 s to end each, so 100 s leave 96. Evaluations take 2 x 10 x .5 = 10,
    less than half, so all epochs stay; 86 are left for 10 x 100 x .1 + 10 x 50 x .2 = 200 s of updates:
    .43."""
    costs = [Cost(1, 0.1, 0.5, 10, 100), Cost(1, 0.2, 0.5, 10, 50)]
    found = scaled(costs, 100)
    assert [(cost.epochs, cost.steps_per_epoch) for cost in found] == [(10, 43), (10, 21)]
    assert 97 < sum(cost.seconds() for cost in found) <= 100
    assert scaled(costs, 1e6) == costs


def test_epochs_are_fewer_where_evaluations_would_take_over_half():
    """50 s, 10 to start and 2 x 1 to end: 38 are left, 19 for evaluations, of 40 x 1: 19 of 40 epochs. The
    other 19 s make 1 step of .1 s in each epoch cost 1.9: 10 steps."""
    (found,) = scaled([Cost(10, 0.1, 1, 40, 2000)], 50)
    assert (found.epochs, found.steps_per_epoch) == (19, 10)


def test_no_budget_is_too_small_for_two_epochs_of_a_step():
    found = scaled([Cost(10, 0.1, 1, 40, 2000), Cost(10, 0.1, 1, 1, 9)], 1)
    assert [(cost.epochs, cost.steps_per_epoch) for cost in found] == [(2, 1), (1, 1)]


@pytest.fixture
def measured(monkeypatch) -> list:
    """Every training starts in 1 s, updates in .01 s, and scores dev in .1 s; an ensemble takes 2 s."""
    calls = []

    def measure(grid: Grid, cells: list) -> tuple[dict, float]:
        calls.append(len(cells))
        trained = {one: Cost(1, 0.01, 0.1, 10, 1000) for one in cells if one.trains}
        return trained, 2.0 * (len(cells) - len(trained))

    monkeypatch.setattr(budget, "measure_cells", measure)
    return calls


def test_a_budget_is_planned_once_and_kept_apart(tmp_path, tiny, measured, started, capsys):
    """One minute less a tenth, 54 s; 2 for the ensemble; each of 7 trainings starts and ends in 1.2: 43.6 are
    left. Evaluations take 7 x 10 x .1 = 7, and 36.6 remain for 700 s of updates: 52 of 1,000 steps."""
    words = ["--weights", str(tiny), "--out", str(tmp_path)]
    assert main(["table7", "--budget", "1", *words]) == 0
    said = capsys.readouterr().out
    assert "Scaled to 5.20% of the paper's steps, to fit into 1 minutes (all of them: some 0.2 hours)" in said
    assert "the methods run, not what they reach" in (tmp_path / "table7-budget-1.md").read_text()
    assert "Fewer epochs" not in said and "longer" not in said
    sizes = json.loads((tmp_path / "table7-budget-1" / "plan.json").read_text())["sizes"]
    assert len(sizes) == 7
    assert all(size == {"epochs": 10, "steps_per_epoch": 52} for size in sizes.values())
    assert len(started) == 8 and {folder.parent.parent for folder in started} == {
        tmp_path / "table7-budget-1"
    }

    assert main(["table7", "--budget", "1", *words]) == 0
    assert main(["table8", "--budget", "1", *words]) == 0  # the same cells
    assert measured == [8] and len(started) == 8
    assert main(["table7", "--list", *words]) == 0
    assert "--steps-per-epoch" not in capsys.readouterr().out.split("# Table 7")[-1]
    assert main(["table7", "--budget", "1", "--data", str(write_tables(tmp_path / "d")), *words]) == 2
    assert "was made for other --data or --weights" in capsys.readouterr().err
    (tmp_path / "table7-budget-1" / "plan.json").write_text("{")
    assert main(["table7", "--budget", "1", *words]) == 2
    assert "plan.json: not a plan; delete it" in capsys.readouterr().err


def test_listed_commands_of_a_budget_have_its_sizes(tmp_path, tiny, measured, capsys):
    words = ["figure1b", "--budget", "0.2", "--list", "--weights", str(tiny), "--out", str(tmp_path)]
    assert main(words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python")]
    assert len(lines) == 4 and all(" --epochs 10 --steps-per-epoch 1" in line for line in lines[:3])


def test_a_budget_that_holds_the_whole_grid_scales_nothing(tmp_path, tiny, measured, started, capsys):
    """Table 3: two trainings of 1 + 10 x (1000 x .01 + .1) + .2 = 102.2 s; one is done, and 102.2 < 108."""
    out = Grid(tmp_path)
    finish(out.run(TABLES["table3"].rows[0].cell, 0), 0.5, 0.5, 0.5)
    assert main(["table3", "--budget", "2", "--weights", str(tiny), "--out", str(tmp_path)]) == 0
    assert "The whole grid fits into 2 minutes: nothing is scaled." in capsys.readouterr().out
    assert started == [out.run(TABLES["table3"].rows[1].cell, 0)]


# Mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["table9"], "invalid choice: 'table9'"),
        (["table7", "--data", "no/such"], "no/such is not a folder"),
        (["table7", "--weights", "no-such"], "no-such: no such checkpoint"),
        (["table7", "--budget", "0"], "'0' is not a number of minutes"),
        (["table7", "--budget", "nan"], "'nan' is not a number of minutes"),
        (["table7", "--seeds", "0;1"], "'0;1' is not N,N,..."),
        (["table7", "--seeds", "-1"], "--seed: -1 must be"),
        (["table7", "--threads", "many"], "'many'"),
        (["table7", "--test-labels", "x"], "--test-labels belongs to table8"),
        (["table8", "--test-labels", "no/such"], "no/such"),
        (["table7", "--bugdet", "10"], "--bugdet"),
    ],
)
def test_a_mistake_is_one_line(words, said, tmp_path, tiny, started, capsys):
    weights = [] if "--weights" in words else ["--weights", str(tiny)]
    assert main([*words, *weights, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not started


def test_runs_on_other_weights_or_tables_are_not_mixed(tmp_path, tiny, started, capsys):
    run = Grid(tmp_path).run(paper.BASELINE, 0)
    finish(run, 0.5, 0.5, 0.5)
    (run / "config.toml").write_text('option = "finetune"\nweights = "minilm-l6"\n')
    words = ["table7", "--weights", str(tiny), "--out", str(tmp_path)]
    assert main(words) == 2
    assert "the run was made with weights minilm-l6; name another --out" in capsys.readouterr().err
    (run / "config.toml").write_text(
        'option = "finetune"\nweights = "/elsewhere/tiny"\ndata = "/elsewhere/d"\n'
    )
    assert main(words) == 2
    assert "the run was made with data /elsewhere/d; name another --out" in capsys.readouterr().err
    (run / "config.toml").write_text('option = "finetune"\nweights = "/elsewhere/tiny"\n')
    assert main(words) == 0 and len(started) == 7


@pytest.mark.slow
def test_table_7_end_to_end(tmp_path, tiny, capsys):
    words = ["table7", "--budget", "0.1", "--weights", str(tiny), "--out", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "| Ensemble | 0." in said and "members for sentiment" in said and "fewer" in said.lower()
    assert main(words) == 0 and capsys.readouterr().out.count("done before") == 8
