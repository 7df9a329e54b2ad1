"""paper/reproduce.py: the grid's commands, the tables made from run folders, the budget, and mistakes."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import SIZES, make_config, write_tables

import budget
import grid as grid_module
import pages
import paper
import reproduce
import runs
from budget import idle_rules, scaled
from cells import Figure, PaperTable, Row, cell
from grid import RESULT, Grid, Job, carry_out, jobs_of, pooled
from multitask import run
from multitask.command_line import resolve
from multitask.config import SETTINGS, Config, Training
from multitask.data.tasks import BUILT_IN
from multitask.forecast import Cost
from overrides import changed, changed_table, read_changes
from paper import FIGURES, TABLES
from reproduce import main

TARGETS: dict[str, PaperTable | Figure] = {**TABLES, **FIGURES}
SCORES = {"paraphrase": "accuracy", "sentiment": "accuracy", "similarity": "pearson"}


def finish(folder: Path, qqp: float, sst: float, r: float, **more) -> None:
    """Write a run folder as a finished run leaves it."""
    dev = {name: {SCORES[name]: value} for name, value in zip(SCORES, (qqp, sst, r), strict=True)}
    dev["score"] = (qqp + sst + (1 + r) / 2) / 3
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps({"dev": dev, "best_epoch": 1, **more}))


def flat(words: Sequence[str]) -> SimpleNamespace:
    """What a command line resolves to, by the flat names of flags."""
    config = resolve(words)
    assert isinstance(config, Config)
    values = {name: getattr(getattr(config, one.group), one.attribute) for name, one in SETTINGS.items()}
    return SimpleNamespace(**values, betas=config.bppo.betas, least_scores=config.choice.least_scores)


def configs(name: str, grid: Grid) -> list[SimpleNamespace]:
    return [flat(grid.job(row.cell, 0).words) for row in TABLES[name].rows]


@pytest.fixture
def grid(tmp_path) -> Grid:
    return Grid(tmp_path / "out")


@pytest.fixture
def started(monkeypatch) -> list[Path]:
    """The folders of the jobs that were started; each finishes at once."""
    folders = []

    def execute(job: Job) -> str:
        folders.append(job.run)
        finish(job.run, 0.5, 0.25, 0.5)
        return "done"

    monkeypatch.setattr(grid_module, "execute", execute)
    monkeypatch.setattr(pages, "save_figure", lambda *_: None)
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
        config = flat(words)
        assert config.threads == 2
        needed = {*config.run, *([config.init] if config.init else [])}
        assert needed <= made and all(folder in line.partition("# after")[2] for folder in map(str, needed))
        made.add(config.out)
    assert not out.exists()  # nothing is run or written


def test_cells_have_the_settings_that_the_paper_states(grid):
    """Section 4.3: 1e-5 constant, decay 1e-4, 10 epochs of 2,000 steps, 16 rows, unless a table varies it.
    Table 6 ends with our rows: beta .99:.999, and the controls with mu = 0."""
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
        (10, 1e-5, 1, (0.99, 0.999)),
        (10, 1e-5, 0, (0.99,)),
        (25, 1e-6, 0, (0.99,)),
    ]
    assert {(c.init, c.steps_per_epoch, c.schedule) for c in six} == {
        (str(grid.run(paper.TUNED, 0)), 1000, "halve-on-rise")
    }


def test_rows_state_the_mode_of_smart_and_ours_have_no_figures(grid):
    """In Tables 2 to 6 the mode is normalize, as in the paper; in Table 7 each row states it, or none."""
    for name in ("table2", "table3", "table4", "table5", "table6"):
        assert {c.smart_mode for c in configs(name, grid)} == {"normalize"}
    ours = ["round-robin", "round-robin-smart", "mnrl-control"]
    for name in ("table7", "table7-ball"):
        for row in TABLES[name].rows:
            config = flat(grid.job(row.cell, 0).words)
            assert row.labels[1] == (config.smart_mode if config.smart_weight else "–")
            assert (row.paper is None) == (row.cell.recipe in ours or row.labels[1] == "ball")
    modes = [row.labels[1] for row in TABLES["table7-ball"].rows]
    assert (modes.count("ball"), modes.count("normalize")) == (4, 3)


def test_the_baseline_is_a_full_pass_and_the_row_of_equal_updates_stands_beside_it(grid):
    baseline, equal, annealed = (configs("table7", grid)[place] for place in (0, 1, 4))
    assert (baseline.sampling, baseline.steps_per_epoch) == ("full-pass", None)
    assert (equal.sampling, equal.steps_per_epoch) == ("round-robin", 2000)
    assert (annealed.sampling, annealed.steps_per_epoch) == ("annealed", 2000)


def test_a_run_that_tables_share_is_one_cell():
    last = {name: [row.cell for row in TABLES[name].rows if row.paper][-1] for name in TABLES}
    seven = [row.cell for row in TABLES["table7"].rows if row.paper]
    assert TABLES["table1"].rows[3].cell == seven[2] == cell("annealed", batch_size=16, steps_per_epoch=2000)
    assert last["table2"] == seven[3] and last["table6"] == seven[5] and last["table8"] == seven[6]
    assert TABLES["table4"].rows[1].cell == seven[4]
    assert last["table3"] not in TABLES["table2"].cells and last["table3"].name == "annealed-smart-epochs-15"
    cells = {one for target in TARGETS.values() for one in target.cells}
    assert len({one.name for one in cells}) == len(cells)


def test_the_papers_figures_are_copied_right():
    """A row's last score is the mean of the others, within the paper's own errors: up to .003, and Table 7's
    MNRL row has the mean of Table 4's, where QQP is .010 higher."""
    for name, table in TABLES.items():
        for row in table.rows:
            if row.paper is None:
                continue
            off = 0.0061 if name.startswith("table7") and row.cell == paper.TUNED else 0.003
            assert np.mean(row.paper[:3]) == pytest.approx(row.paper[3], abs=off), (name, row.labels)


# Settings for all cells


def test_a_setting_goes_to_every_cell_that_uses_it_but_those_whose_table_states_it(grid):
    """Table 1 varies the rows per batch, so it keeps them, even where they are the recipe's 16; Table 7
    states the mode of SMART. Settings of mnrl apply only to mnrl, and those of SMART to cells with SMART."""
    changes = read_changes(["batch_size=4", "epochs=2", "groups=5", "pooling=mean", "smart_weight=7"])

    def found(name: str) -> dict[str, SimpleNamespace]:
        table = changed_table(TABLES[name], changes)
        pairs = ((one, flat(grid.job(one, 0).words)) for one in table.cells)
        return {one.recipe: config for one, config in pairs}

    one = [flat(grid.job(row.cell, 0).words) for row in changed_table(TABLES["table1"], changes).rows]
    assert [config.batch_size for config in one] == [8, 16] * 4
    assert {(config.epochs, config.pooling) for config in one} == {(2, "mean")}
    seven = found("table7")
    ensemble = seven.pop("ensemble")
    assert ensemble.epochs == Training().epochs
    assert {config.epochs for config in seven.values()} == {2}
    assert (seven["mnrl"].groups, seven["mnrl"].batch_size) == (5, 16) and seven["baseline"].batch_size == 4
    assert (seven["baseline"].smart_weight, seven["annealed-smart"].smart_weight) == (0, 7)
    mode = changed(paper.FINAL, read_changes(["smart_mode=ball"]))
    assert mode == paper.FINAL


def test_a_rate_as_a_ratio_multiplies_what_row_or_recipe_states(grid):
    """Five times the recipes' 1e-5 and 1e-6; Table 6 varies the rate, 1e-5 and 1e-6, and Table 5 states 1e-4.
    An absolute rate does not replace what a table states."""

    def rates(name: str, change: str) -> set[float]:
        table = changed_table(TABLES[name], read_changes([change]))
        return {flat(grid.job(row.cell, 0).words).lr for row in table.rows if row.cell.trains}

    assert rates("table7", "lr=5x") == {5e-5, 5e-6} and rates("table7", "lr=3e-5") == {3e-5}
    assert rates("table6", "lr=5x") == {5e-5, 5e-6} and rates("table6", "lr=3e-5") == {1e-5, 1e-6}
    assert rates("table5", "lr=.5x") == {5e-5} and rates("table5", "lr=3e-5") == {1e-4}


def test_max_tokens_displaces_the_rows_of_a_batch_but_not_where_a_table_varies_them(grid):
    tokens = read_changes(["max_tokens=512"])
    job = grid.job(changed(paper.BASELINE, tokens), 0)
    assert flat(job.words).max_tokens == 512
    (first, *_) = changed_table(TABLES["table1"], tokens).rows
    assert flat(grid.job(first.cell, 0).words).batch_size == 8


def test_runs_of_other_settings_share_no_folder(tmp_path, tiny, capsys):
    """Even if only the run that a cell starts from differs: --set groups applies only to mnrl."""
    folders = []
    for change in ([], ["--set", "groups=2"], ["--set", "groups=3"], ["--set", "lr=5x", "--set", "groups=3"]):
        words = ["table6", "--list", "--weights", str(tiny), "--out", str(tmp_path)]
        assert main([*words, *change]) == 0
        said = capsys.readouterr().out
        jobs = [shlex.split(line, comments=True) for line in said.splitlines() if line.startswith("python")]
        folders.append({job[job.index("--out") + 1] for job in jobs})
        assert ("Set for these runs" in said) == bool(change)
    assert len(set.union(*folders)) == sum(map(len, folders)) == 4 * 9
    assert all("set-groups=3,lr=5x" in folder for folder in folders[-1])
    assert main(["table1", "--list", "--set", "groups=2,batch_size=4", "--out", str(tmp_path)]) == 0
    assert "No cell here uses batch_size, groups from --set." in capsys.readouterr().out


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
    assert carry_out(jobs_of(TABLES["table7"], grid)) == 5
    plain = ["baseline", "round-robin", "baseline-smart", "round-robin-smart", "annealed", "annealed-smart"]
    assert started == [*plain, "mnrl"]
    said = capsys.readouterr().out.splitlines()
    assert "mnrl-annealed-smart/seed-0 ... not run, missing" in said[7] and "mnrl/seed-0" in said[7]


def test_a_command_that_fails_is_one_line_with_its_log(grid):
    job = Job(["--option", "nonsense"], grid.out / "bad" / "seed-0", grid.out / "never", [])
    said = grid_module.execute(job)
    assert said.startswith("failed with status 2 (error: --option must be one of") and "\n" not in said
    assert said.endswith(f"see {job.run / 'log.txt'}")


def test_a_small_grid_for_real(tmp_path, tiny, monkeypatch, capsys):
    """An encoder of mnrl and a model from it, stopped once and resumed; the third time all is finished."""
    data = write_tables(tmp_path / "data", sizes=SIZES | {"train": 20})
    first = cell("mnrl", epochs=1, steps_per_epoch=2)
    second = cell("mnrl-annealed-smart", first, epochs=2, steps_per_epoch=3)
    table = PaperTable("Small", ("model",), tuple(Row((one,), second, (0.5,) * 4) for one in "ab"))
    monkeypatch.setitem(reproduce.TABLES, "table1", table)
    begun = []

    def execute(job: Job) -> str:
        begun.append(job.run.parent.name)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return f"status {run.main(job.words)}"

    monkeypatch.setattr(grid_module, "execute", execute)
    monkeypatch.setattr(pages, "save_figure", lambda *_: None)
    words = ["table1", "--data", str(data), "--weights", str(tiny), "--out", str(tmp_path / "out")]
    assert main(words) == 130
    assert "stopped; run the same command to resume" in capsys.readouterr().err
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
    page = pages.write_table(table, three, runs.dev_scores, ["A note."], grid.out / "table4")
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


def metrics(run: Path, config: str, records: list[dict]) -> None:
    (run / "config.toml").write_text(config + "compile = false\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def epoch(number: int, step: int, seconds: float, **parts) -> dict:
    base = {"epoch": number, "step": step, "seconds": seconds, "loss": {"all": 1.0}}
    return base | {"dev": {"score": 0.5}} | parts


def test_a_page_shows_how_even_and_how_overfitted_a_model_is_and_what_training_took(grid):
    """Dev .9, .5 and (1 + .2) / 2 = .6: worst .5, spread .4; the paper's .877, .536 and .94: .536 and .404.
    In the best epoch, 1, training rows gave .95, .8 and r = .6, that is .8: .05, .3 and .2 more. 20 updates
    of 2 x 16 rows, and 90 + 30 s. The second row's records have no scores on training rows, and its batches
    are by tokens: 100 examples a second for 30 s. The third row has no records."""
    table = TABLES["table4"]
    for row in table.rows:
        finish(grid.run(row.cell, 0), 0.9, 0.5, 0.2)
    dev = {"paraphrase": {"accuracy": 0.9}, "sentiment": {"accuracy": 0.5}, "similarity": {"pearson": 0.2}}
    train = {"paraphrase": {"accuracy": 0.95}, "sentiment": {"accuracy": 0.8}, "similarity": {"pearson": 0.6}}
    later = train | {"paraphrase": {"accuracy": 1.0}}
    metrics(
        grid.run(table.rows[0].cell, 0),
        'option = "finetune"\nbatch_size = 16\naccumulate = 2\n',
        [
            epoch(1, 10, 90.0, dev=dev | {"score": 0.7}, train=train),
            epoch(2, 20, 30.0, dev=dev | {"score": 0.6}, train=later),
        ],
    )
    tokens = epoch(1, 7, 30.0, dev=dev | {"score": 0.7}, examples_per_second=100.0)
    metrics(grid.run(table.rows[1].cell, 0), 'option = "finetune"\nmax_tokens = 512\n', [tokens])
    page = pages.write_table(table, grid, runs.dev_scores, [], grid.out / "table4")
    even = "0.500 | 0.536 | 0.400 | 0.404"
    assert f"| 15 | {even} | 0.050 | 0.300 | 0.200 | 20 | 640 | 2.0 |" in page
    assert "| 25 | 0.500 | 0.546 | 0.400 | 0.389 | – | – | – | 7 | 3,000 | 0.5 |" in page
    assert "| 50 | 0.500 | 0.542 | 0.400 | 0.399 | – | – | – | – | – | – |" in page


def test_the_papers_times_stand_beside_ours_with_all_the_runs_that_a_model_starts_from(grid):
    """MNRL: 5 updates of 1 group of 2 x 5 sentences, 60 s; the model from it: 10 of 16 rows, 120 s; BPPO: 20,
    180 s. Together 35 updates, 50 + 160 + 320 = 530 rows, 6 minutes. The baseline: 40 of 16 rows, 240 s."""
    trained = {paper.MNRL: ("mnrl", 5), paper.TUNED: ("finetune", 10), paper.FINAL: ("finetune", 20)}
    for number, (one, (option, updates)) in enumerate({**trained, paper.BASELINE: ("finetune", 40)}.items()):
        finish(grid.run(one, 0), 0.5, 0.5, 0.5)
        batch = "groups = 1\n" if option == "mnrl" else "batch_size = 16\n"
        metrics(grid.run(one, 0), f'option = "{option}"\n{batch}', [epoch(1, updates, 60.0 * (number + 1))])
    page = pages.write_table(TABLES["table7"], grid, runs.dev_scores, [], grid.out / "table7")
    assert "| Baseline | 10 hours | 40 | 640 | 4.0 |" in page
    assert "| Annealed | 90 minutes | – | – | – |" in page
    assert "| MNRL + Bregman, with all that it starts from | 6 hours | 35 | 530 | 6.0 |" in page


def test_every_page_names_the_paper_and_the_tables_it_was_made_of(tmp_path, tiny, started, capsys):
    """12 rows of each task are one batch of 16 each. Table 7's page also says where the paper contradicts
    itself, and what was assumed."""
    data = write_tables(tmp_path / "data")
    words = ["--data", str(data), "--weights", str(tiny), "--out", str(tmp_path / "out")]
    assert main(["table7", *words]) == 0
    page = (tmp_path / "out" / "table7.md").read_text()
    assert '"Jack of All Trades, Master of Some: Improving BERT for Multitask Learning"' in page
    assert "QQP 12 and 6 (141,498 and 20,212), SST 12 and 6 (8,544 and 1,101)" in page
    assert "A full pass in batches of 16: 3 updates (9,756)." in page
    for said in (".887", ".877", "raw r", "Assumed", "9,756 updates"):
        assert said in page
    assert "| Baseline of 2,000 updates an epoch | – | 0.500 | – | 0.250 | – |" in page
    for name, said in (("table4", "Assumed: 2,000 updates"), ("table5", "Assumed: SMART")):
        assert said in " ".join(TABLES[name].notes)


# The ensemble


def test_a_pooled_ensemble_draws_on_the_finished_cells_of_all_tables(grid):
    """Besides Table 7's own nine models, these are the cells finished with every seed, but not mnrl, which
    has no heads, nor a cell with one of two seeds. Another member means another folder. Table 8, with six
    models of its own, chooses from the same ones once these are finished."""
    two = Grid(grid.out, seeds=(0, 1))
    done, half = TABLES["table2"].rows[0].cell, TABLES["table2"].rows[1].cell
    for one, seeds in ((done, (0, 1)), (half, (0,)), (paper.MNRL, (0, 1)), (paper.ANNEALED, (0, 1))):
        for seed in seeds:
            finish(two.run(one, seed), 0.5, 0.5, 0.5)
    table = pooled(TABLES["table7"], TABLES.values(), two)
    first = table.rows[-1].cell
    own = {row.cell for row in TABLES["table7"].rows[:-1]}
    assert set(first.needs) == {*own, done} and len(first.needs) == 10
    assert table.rows[:-1] == TABLES["table7"].rows[:-1]
    config = flat(two.job(first, 1).words)
    assert str(two.run(done, 1)) in config.run
    finish(two.run(half, 1), 0.5, 0.5, 0.5)
    second = pooled(TABLES["table7"], TABLES.values(), two).rows[-1].cell
    for one in own:
        for seed in two.seeds:
            finish(two.run(one, seed), 0.5, 0.5, 0.5)
    assert pooled(TABLES["table8"], TABLES.values(), two).rows[-1].cell == second
    assert set(second.needs) == {*first.needs, half} and second.name != first.name != paper.ENSEMBLE.name


def test_the_thresholds_of_the_ensemble_are_given(tmp_path, tiny, capsys):
    words = ["table8", "--list", "--weights", str(tiny), "--out", str(tmp_path)]
    assert main([*words, "--thresholds", "sentiment=.4,similarity=.9", "--pool"]) == 0
    said = capsys.readouterr().out
    config = flat(shlex.split(said.splitlines()[-1], comments=True)[3:])
    assert config.least_scores == {"sentiment": 0.4, "similarity": 0.9}
    assert "ensemble-thresholds-" in config.out
    assert "chooses from 6 models, all finished cells of all" in said


def test_the_members_of_an_ensemble_are_named(grid):
    chosen = {"sentiment": {"members": ["x/annealed/seed-0", "x/mnrl-bregman/seed-0"]}}
    finish(grid.run(paper.ENSEMBLE, 0), 0.9, 0.5, 0.5, tasks=chosen)
    page = pages.write_table(TABLES["table7"], grid, runs.dev_scores, [], grid.out / "table7")
    assert "- seed-0, members for sentiment: annealed, mnrl-bregman.\n" in page


def test_table_8_scores_the_test_predictions(tmp_path, started, capsys):
    """Three rows per task: classes 0, 1, 2 against 0, 1, 1, two right; 0, 1, 0 against 0, 1, 0, all right;
    values 0, 1, 2 against 5, 3, 1, r = -1, which counts as 0. Their mean is (2/3 + 1 + 0) / 3 = .556."""
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
    """Labels are 0, 1, 2, 3, 4, 0: one of the two 0s is predicted as 1, and the 4 as 3."""
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
    page = pages.write_figure(FIGURES["figure1b"], two, [], data, grid.out / "figure1b")
    assert (grid.out / "figure1b.svg").read_text() == "drawn 1"
    assert "| 0 | 1 | 0.50 | 0.62 |\n| 4 | 3 | 1.00 | 0.43 |\n| 2 | 2 | 1.00 | 0.34 |" in page


# The budget


def test_the_steps_of_all_cells_are_scaled_alike():
    """Two cells take 1 s to start and 2 x .5 s to end each, so 96 of 100 s are left. Evaluations take
    2 x 10 x .5 = 10, less than half, so all epochs stay; 86 s are left for 10 x 100 x .1 + 10 x 50 x .2 =
    200 s of updates: .43."""
    costs = [Cost(1, 0.1, 0.5, 10, 100), Cost(1, 0.2, 0.5, 10, 50)]
    found = scaled(costs, 100)
    assert [(cost.epochs, cost.steps_per_epoch) for cost in found] == [(10, 43), (10, 21)]
    assert 97 < sum(cost.seconds() for cost in found) <= 100
    assert scaled(costs, 1e6) == costs


def test_epochs_are_fewer_where_evaluations_would_take_over_half():
    """50 s, 10 to start and 2 x 1 to end: 38 are left, 19 for evaluations, of 40 x 1: 19 of 40 epochs. In
    these 19 epochs, one step of .1 s each costs 1.9 s, so the other 19 s allow 10 steps."""
    (found,) = scaled([Cost(10, 0.1, 1, 40, 2000)], 50)
    assert (found.epochs, found.steps_per_epoch) == (19, 10)


def test_no_budget_is_too_small_for_two_epochs_of_a_step():
    found = scaled([Cost(10, 0.1, 1, 40, 2000), Cost(10, 0.1, 1, 1, 9)], 1)
    assert [(cost.epochs, cost.steps_per_epoch) for cost in found] == [(2, 1), (1, 1)]


@pytest.mark.parametrize(
    ("settings", "size", "said"),
    [
        ({"schedule": "halve-on-rise"}, (4, 100, 100), "halve-on-rise acts from epoch 5 on"),
        ({"schedule": "halve-on-rise"}, (5, 100, 100), ""),
        ({"sampling": "annealed"}, (1, 100, 100), "annealing needs 2 epochs"),
        ({"sampling": "annealed"}, (2, 100, 100), ""),
        ({"bregman_weight": 1, "bregman_beta": "0.9:0.99"}, (3, 3, 100), "a tenth of at least 10 updates"),
        ({"bregman_weight": 1, "bregman_beta": "0.9:0.99"}, (2, 5, 100), ""),
        ({"bregman_weight": 1, "bregman_beta": "0.9"}, (2, 1, 100), ""),
        ({"sampling": "full-pass"}, (3, 33, 100), "a full pass takes 100 updates, not 99"),
        ({"sampling": "full-pass"}, (4, 25, 100), ""),
    ],
)
def test_a_run_too_short_for_a_rule_to_act(settings, size, said):
    """Halving needs three rises in a row, so the losses of four epochs, and takes effect in the fifth."""
    found = list(idle_rules(make_config("finetune", **settings), *size))
    assert len(found) == bool(said) and all(said in rule for rule in found)


@pytest.fixture
def measured(monkeypatch) -> list:
    """Every training run takes 1 s to start, .01 s per update and .1 s to score dev; an ensemble 2.5 s."""
    calls = []

    def measure(grid: Grid, cells: list) -> tuple[dict, float]:
        calls.append(len(cells))
        trained = {one: Cost(1, 0.01, 0.1, 10, 1000) for one in cells if one.trains}
        return trained, 2.5 * (len(cells) - len(trained))

    monkeypatch.setattr(budget, "measure_cells", measure)
    return calls


def test_a_budget_is_planned_once_and_kept_apart(tmp_path, tiny, measured, started, capsys):
    """One minute less a tenth is 54 s; the ensemble takes 2.5, and each of 10 runs 1.2 to start and end: 39.5
    are left. Evaluations take 10 x 10 x .1 = 10, and 29.5 remain for 1,000 s of updates: 29 of 1,000."""
    words = ["--weights", str(tiny), "--out", str(tmp_path)]
    assert main(["table7", "--budget", "1", *words]) == 0
    said = capsys.readouterr().out
    assert (
        "Scaled to 2.90% of the paper's steps, to fit into 1 minutes (all of them: about 0.3 hours)" in said
    )
    assert "the methods run, not what they achieve" in (tmp_path / "table7-budget-1.md").read_text()
    assert "Fewer epochs" not in said and "longer" not in said
    full_pass = "a full pass takes 1,000 updates, not 290 (baseline, baseline-smart)"
    assert f"Too short for a rule to take effect: {full_pass}." in said
    sizes = json.loads((tmp_path / "table7-budget-1" / "plan.json").read_text())["sizes"]
    assert len(sizes) == 10
    assert all(size == {"epochs": 10, "steps_per_epoch": 29} for size in sizes.values())
    assert len(started) == 11 and {folder.parent.parent for folder in started} == {
        tmp_path / "table7-budget-1"
    }

    assert main(["table7", "--budget", "1", *words]) == 0
    assert measured == [11] and len(started) == 11
    assert main(["table7", "--list", *words]) == 0
    assert "--steps-per-epoch" not in capsys.readouterr().out.split("# Table 7")[-1]
    assert main(["table7", "--budget", "1", "--data", str(write_tables(tmp_path / "d")), *words]) == 2
    assert "made with a different --data or --weights" in capsys.readouterr().err
    plan = tmp_path / "table7-budget-1" / "plan.json"
    found = json.loads(plan.read_text())
    del found["sizes"]["annealed"]  # as if from a version with other cells
    plan.write_text(json.dumps(found))
    assert main(["table7", "--budget", "1", *words]) == 2
    assert "plan.json: not a plan of these cells; delete it" in capsys.readouterr().err
    plan.write_text("{")
    assert main(["table7", "--budget", "1", *words]) == 2
    assert "plan.json: not a plan of these cells; delete it" in capsys.readouterr().err


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
        (["table7", "--weights", "no-such"], "no-such: neither a checkpoint's name"),
        (["table7", "--budget", "0"], "'0' is not a number of minutes"),
        (["table7", "--budget", "nan"], "'nan' is not a number of minutes"),
        (["table7", "--seeds", "0;1"], "'0;1' is not N,N,..."),
        (["table7", "--seeds", "-1"], "--seed must be a whole number"),
        (["table7", "--threads", "many"], "'many'"),
        (["table7", "--test-labels", "x"], "--test-labels applies only to table8"),
        (["table8", "--test-labels", "no/such"], "no/such"),
        (["table7", "--set", "lr"], "--set: 'lr': not NAME=VALUE"),
        (
            ["table7", "--set", "lr=fast"],
            "--set: lr must be a number, at least 0",
        ),
        (["table7", "--set", "lr=-1x"], "--set: lr must be a number, at least 0 and at most 1,000, not -1.0"),
        (["table7", "--set", "lr=1e-5", "--set", "lr=2x"], "--set: 'lr=2x': set twice"),
        (
            ["table7", "--set", "epochs=2x"],
            "--set: epochs must be a whole number, at least 1",
        ),
        (["table7", "--set", "poling=mean"], "--set: unknown key 'poling'; did you mean pooling?"),
        (["table7", "--set", "seed=3"], "--set: seed is not a training setting; use --seeds"),
        (["table7", "--set", "option=mnrl"], "--set: option is not a training setting"),
        (["table7", "--set", "out=x"], "--set: out is not a training setting"),
        (
            ["table7", "--set", "bregman_beta=../x"],
            "--bregman-beta must be X or X:X",
        ),
        (["table7", "--thresholds", "sentiment"], "--thresholds must be TASK=X,TASK=X"),
        (["table7", "--thresholds", "feeling=.5"], "unknown task 'feeling'"),
        (["table1", "--thresholds", "sentiment=.5"], "--thresholds applies only to table7 and table8"),
        (["table1", "--pool"], "--pool applies only to table7 and table8"),
        (["table7", "--pool", "--budget", "1"], "--pool cannot be combined with --budget"),
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
    (run / "config.toml").write_text('option = "finetune"\nweights = "minilm-l6"\ncompile = false\n')
    words = ["table7", "--weights", str(tiny), "--out", str(tmp_path)]
    assert main(words) == 2
    assert "the run was made with weights minilm-l6; choose another --out" in capsys.readouterr().err
    (run / "config.toml").write_text(
        'option = "finetune"\nweights = "/elsewhere/tiny"\ndata = "/elsewhere/d"\ncompile = false\n'
    )
    assert main(words) == 2
    assert "the run was made with data /elsewhere/d; choose another --out" in capsys.readouterr().err
    (run / "config.toml").write_text('option = "finetune"\nweights = "/elsewhere/tiny"\ncompile = false\n')
    assert main(words) == 0 and len(started) == 10


@pytest.mark.slow
def test_table_7_end_to_end(tmp_path, tiny, capsys):
    words = ["table7", "--budget", "0.1", "--weights", str(tiny), "--out", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "| Ensemble | – | 0." in said and "members for sentiment" in said and "fewer" in said.lower()
    assert main(words) == 0 and capsys.readouterr().out.count("done before") == 11
