"""config.py, command_line.py and the recipes: where a setting may come from, what beats what, and every
value that is refused."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w
from helpers import ROOT, make_config

from minbert.bert import POOLINGS
from minbert.errors import InputError
from multitask.command_line import resolve
from multitask.config import FIELDS, OPTIONS, SETTINGS, Config, Training, decisive
from multitask.methods.sampling import ALPHAS, FULL_PASS
from multitask.methods.smart import MODES, NORMS
from multitask.recipes import SHIPPED, read_recipe, read_settings
from multitask.train import rate_schedule

FINETUNE = make_config("finetune")


def finetune(*words: str) -> Config:
    return resolve(["--option", "finetune", *words])


@pytest.mark.parametrize("option", ["pretrain", "mnrl", "finetune"])
def test_a_training_option_alone_gives_the_defaults(option):
    rate = {"pretrain": 1e-3, "mnrl": 5e-5, "finetune": 5e-5}[option]
    assert resolve(["--option", option]) == make_config(option, lr=rate)
    assert resolve(["--option", option, "--lr", "0"]).training.lr == 0


@pytest.mark.parametrize(
    "option, needed",
    [("evaluate", ["run"]), ("predict", ["run", "task"]), ("export", ["run", "to", "out"])],
)
def test_other_options_need_what_they_work_on(option, needed):
    values = dict.fromkeys(needed, "x") | {name: "onnx" for name in needed if name == "to"}
    words = ["--option", option, *(f"--{name}={value}" for name, value in values.items())]
    assert resolve(words) == make_config(option, **values | {"run": ("x",)})
    with pytest.raises(InputError, match=f"--option {option} needs --{needed[-1]}"):
        resolve(words[:-1])


@pytest.mark.parametrize(
    "words, settings",
    [
        (["--batch-size", "8"], {"batch_size": 8}),
        (["--batch_size", "8"], {"batch_size": 8}),
        (["--batch-size=8"], {"batch_size": 8}),
        (["--batch_size=8"], {"batch_size": 8}),
        (["--batch-size", "4", "--batch-size", "8"], {"batch_size": 8}),
        (["--out", "my_run"], {"out": "my_run"}),
        (["--out=my_run"], {"out": "my_run"}),
        (["--tasks", "similarity,sentiment"], {"tasks": ("similarity", "sentiment")}),
        (["--lr", "3e-4", "--epochs", "2"], {"lr": 3e-4, "epochs": 2}),
        (["--lr", "0"], {"lr": 0.0}),
        (["--skip-bad-rows"], {"skip_bad_rows": True}),
        (["--skip_bad_rows"], {"skip_bad_rows": True}),
        (["--skip-bad-rows", "--no-skip-bad-rows"], {"skip_bad_rows": False}),
    ],
)
def test_flags(words, settings):
    assert finetune(*words) == FINETUNE.changed(**settings)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_may_come_first_and_bare(option):
    words = [f"--{name}={'hf' if name == 'to' else 'x'}" for name in OPTIONS[option].needs]
    assert resolve([option, *words]) == resolve(["--option", option, *words])
    assert resolve([option, *words]).option == option
    assert resolve(["finetune", "--batch-size", "8"]) == finetune("--batch-size", "8")


def test_only_the_first_word_may_be_a_bare_option():
    with pytest.raises(InputError, match="unknown argument finetune"):
        resolve(["--batch-size", "8", "finetune"])
    with pytest.raises(InputError, match="unknown argument tune"):
        resolve(["tune", "--batch-size", "8"])


def test_betas_and_thresholds_are_numbers():
    assert resolve(["--option", "finetune"]).bppo.betas == (0.99,)
    changing = resolve(["--option", "finetune", "--bregman-weight", "1", "--bregman-beta", "0.99:0.999"])
    assert changing.bppo.betas == (0.99, 0.999)
    ensemble = resolve(["--option", "ensemble", "--run", "a", "--thresholds", "sentiment=.5,similarity=-1"])
    assert ensemble.choice.least_scores == {"sentiment": 0.5, "similarity": -1}


def test_settings_are_changed_by_the_names_of_their_flags():
    """The groups that hold them, and no others, are replaced."""
    changed = FINETUNE.changed(lr=0.25, smart_weight=2.0, bregman_beta="0.5", seed=3)
    assert (changed.training.lr, changed.training.seed, changed.smart.weight) == (0.25, 3, 2.0)
    assert (changed.bppo.beta, changed.training.epochs) == ("0.5", FINETUNE.training.epochs)
    assert changed.batches is FINETUNE.batches
    differing = dict(changed.settings.items() - FINETUNE.settings.items())
    assert differing == {"lr": 0.25, "seed": 3, "smart_weight": 2.0, "bregman_beta": "0.5"}


def test_a_flag_beats_the_recipe_and_the_recipe_the_defaults(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'option = "finetune"\nlr = 1\nepochs = 3\ntasks = ["similarity"]\nskip_bad_rows = true\n'
    )
    config = resolve(["--recipe", str(recipe), "--epochs", "4", "--no-skip-bad-rows"])
    assert config == FINETUNE.changed(lr=1.0, epochs=4, tasks=("similarity",), skip_bad_rows=False)
    assert isinstance(config.training.lr, float)
    assert resolve(["--recipe", str(recipe), "--option", "pretrain"]).option == "pretrain"


@pytest.mark.parametrize(
    "recipe", sorted(path.stem for path in SHIPPED.glob("*.toml") if "[stages." not in path.read_text())
)
def test_shipped_recipes_resolve(recipe):
    needed = ["--run", "a", "b", "--out", "c"] if recipe == "ensemble" else []
    path = SHIPPED / f"{recipe}.toml"
    assert resolve(["--recipe", recipe, *needed]).settings.items() >= read_recipe(path).items()


def test_a_recipe_extends_another(tmp_path):
    base, mine = tmp_path / "base.toml", tmp_path / "mine.toml"
    base.write_text('option = "finetune"\nepochs = 3\nlr = 1e-3\nweights = "bert-tiny"\n')
    mine.write_text(f'extends = "{base}"\nepochs = 4\ninit = "runs/a"\n')
    config = resolve(["--recipe", str(mine), "--lr", "1e-2"])
    assert (config.training.epochs, config.training.lr) == (4, 1e-2)
    assert config.start.init == str(Path("runs/a").resolve())
    assert "weights" not in config.settings  # init displaces the base's


def test_what_a_recipe_extends_is_relative_to_it(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "base.toml").write_text("epochs = 7\n")
    (tmp_path / "mine" / "a.toml").write_text('option = "finetune"\nextends = "../base.toml"\n')
    monkeypatch.chdir(tmp_path / "mine")
    for path in ("a.toml", str(tmp_path / "mine" / "a.toml")):
        found = resolve(["--recipe", path])
        assert isinstance(found, Config) and found.training.epochs == 7
    (tmp_path / "mine" / "a.toml").write_text('extends = "../mine/a.toml"\n')
    with pytest.raises(InputError, match=r"a\.toml: extends itself"):
        resolve(["--recipe", "a.toml"])


def test_a_recipe_extends_several_the_later_over_the_earlier(tmp_path):
    one, two, mine = (tmp_path / f"{name}.toml" for name in ("one", "two", "mine"))
    one.write_text('option = "finetune"\nepochs = 3\nlr = 1e-3\nbatch_size = 8\n')
    two.write_text("epochs = 4\nlr = 1e-2\nmax_tokens = 512\n")
    mine.write_text(f'extends = ["{one}", "{two}"]\nepochs = 5\n')
    config = resolve(["--recipe", str(mine)])
    assert (config.training.epochs, config.training.lr, config.batches.max_tokens) == (5, 1e-2, 512)
    assert "batch_size" not in config.settings  # displaced by the later recipe


def test_recipes_that_extend_the_same_ones_over_and_over_are_read_at_once(tmp_path):
    """Thirty recipes, each extending the next one twice: reading each anew would be 2 ** 30 readings."""
    for number in range(30):
        after = str(tmp_path / f"{number + 1}.toml")
        (tmp_path / f"{number}.toml").write_text(f'extends = ["{after}", "{after}"]\n')
    (tmp_path / "30.toml").write_text('option = "finetune"\nepochs = 7\n')
    assert resolve(["--recipe", str(tmp_path / "0.toml")]).training.epochs == 7


def test_recipes_that_differ_in_one_thing():
    """The baseline takes whole passes; the row of equal updates differs from it in the order of tasks and the
    number of updates, and from `annealed` in the sampling alone. The control differs from BPPO in mu alone,
    and a ball recipe from the paper's in the mode of SMART and its lambda."""

    def difference(one: str, other: str) -> set[str]:
        settings = [resolve(["--recipe", name]).settings.items() for name in (one, other)]
        return {name for name, _ in settings[0] ^ settings[1]}

    baseline = resolve(["--recipe", "baseline"])
    assert baseline.batches.sampling == "full-pass"
    assert (baseline.training.steps_per_epoch, baseline.training.epochs) == (None, 10)
    assert difference("baseline", "round-robin") == {"sampling", "steps_per_epoch"}
    assert difference("round-robin", "annealed") == {"sampling"}
    for name in ("baseline", "round-robin", "annealed"):
        assert difference(name, f"{name}-smart") == {"smart_mode", "smart_weight"}
    assert resolve(["--recipe", "mnrl-control"]).bppo.weight == 0
    assert difference("mnrl-control", "mnrl-bregman") == {"bregman_weight", "bregman_beta"}
    for name in ("baseline-smart", "annealed-smart", "mnrl-annealed-smart", "mnrl-control", "mnrl-bregman"):
        assert difference(name, f"{name}-ball") == {"smart_mode", "smart_weight"}


def test_mnrl_starts_from_what_the_paper_states():
    """Section 3.4: 2K sentences a batch, that is one group; section 4.3: 1e-5, decay 1e-4."""
    config = resolve(["--recipe", "mnrl"])
    assert (config.mnrl.groups, config.training.lr, config.training.weight_decay) == (1, 1e-5, 1e-4)


@pytest.mark.parametrize(
    "text, problem",
    [
        ("extends = 3", "extends must be a recipe's name or a list of names, not 3"),
        ("extends = [3]", r"extends must be a recipe's name or a list of names, not \[3\]"),
        ('extends = "{mine}"', "extends itself"),
        ('extends = "paper"', "paper.toml: a recipe with stages cannot be extended"),
        ('extends = "nowhere"', "mine.toml: extends: 'nowhere' is neither a file nor a shipped recipe"),
    ],
)
def test_a_recipe_that_extends_nothing(tmp_path, text, problem):
    mine = tmp_path / "mine.toml"
    mine.write_text(text.format(mine=mine))
    with pytest.raises(InputError, match=problem):
        resolve(["--recipe", str(mine)])


@pytest.mark.parametrize("beta", ["x", "1.5", "-0.1", "0.9:", "0.9:0.99:0.999", "nan"])
def test_a_bad_beta_is_refused(beta):
    with pytest.raises(InputError, match="--bregman-beta must be X or X:X with numbers from 0 to 1, not "):
        resolve(["--option", "finetune", "--bregman-weight", "1", f"--bregman-beta={beta}"])


@pytest.mark.parametrize("thresholds", ["sentiment", "sentiment=x", "a=1=2", "a=nan", "a=inf", "a=0,a=1"])
def test_bad_thresholds_are_refused(thresholds):
    with pytest.raises(InputError, match="--thresholds must be TASK=X,TASK=X with one number"):
        resolve(["--option", "ensemble", "--run", "a", "--out", "b", "--thresholds", thresholds])


def test_smart_settings_depend_on_the_mode():
    """In a ball: epsilon .01, steps of epsilon, noise of epsilon / 10; normalize as in public code."""
    ball = finetune().smart.ascent(384)
    assert (ball["epsilon"], ball["step_size"], ball["noise_std"]) == (1e-2, 1e-2, 1e-3)
    wide = finetune("--smart-weight", "1", "--smart-epsilon", "0.5").smart.ascent(384)
    assert (wide["step_size"], wide["noise_std"]) == (0.5, 0.05)
    public = resolve(["--recipe", "baseline-smart"]).smart.ascent(384)
    assert (public["epsilon"], public["step_size"], public["noise_std"]) == (1e-6, 1e-3, 1e-5)


def test_smart_is_as_strong_a_coordinate_in_either_norm():
    """A token of 100 coordinates of .01 has the norm .01 for p = inf and .01 sqrt(100) = .1 for p = 2; the
    first noise is a tenth of the radius in both."""
    words = ["--option", "finetune", "--smart-weight", "1", "--smart-norm", "2"]
    search = resolve(words).smart.ascent(100)
    assert [search[name] for name in ("epsilon", "step_size", "noise_std")] == pytest.approx([0.1, 0.1, 1e-3])
    search = resolve([*words, "--smart-epsilon", "3"]).smart.ascent(100)
    assert [search[name] for name in ("epsilon", "step_size", "noise_std")] == pytest.approx([3, 3, 0.03])


@pytest.mark.parametrize(
    "flag", ["--smart-epsilon=0.1", "--smart-rows=4", "--smart-mode=normalize", "--bregman-beta=0.9"]
)
def test_a_regularisers_setting_without_its_weight_is_refused(flag):
    weight = f"--{flag[2:].partition('-')[0]}-weight"
    with pytest.raises(InputError, match=f"{flag.partition('=')[0]} does nothing without {weight}"):
        resolve(["--option", "finetune", flag])
    for value in ("1", "0"):
        resolve(["--option", "finetune", flag, weight, value])


def test_a_flag_turns_off_what_a_recipe_turns_on():
    assert resolve(["--recipe", "annealed-smart", "--smart-weight", "0"]).smart.weight == 0
    assert resolve(["--recipe", "mnrl-bregman", "--bregman-weight", "0", "--init", "x"]).bppo.weight == 0


def test_options_on_one_run_refuse_several():
    with pytest.raises(InputError, match="--option evaluate works on one run, not on 2"):
        resolve(["--option", "evaluate", "--run", "a", "b"])


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--epochs", "two"], "--epochs must be a whole number, at least 1 and below 100,000, not 'two'"),
        (["--epochs", "1.5"], "--epochs must be a whole number, at least 1 and below 100,000, not '1.5'"),
        (["--epochs", "0"], "--epochs must be a whole number, at least 1 and below 100,000, not 0"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--lr", "fast"], "--lr must be a number, at least 0 and at most 1, not 'fast'"),
        (["--lr", "nan"], "--lr must be a number, at least 0 and at most 1, not nan"),
        (["--lr", "inf"], "--lr must be a number, at least 0 and at most 1, not inf"),
        (["--lr=-1e-5"], "--lr must be a number, at least 0 and at most 1, not -1e-05"),
        (["--encoder-dropout", "1"], "--encoder-dropout must be a number, at least 0 and below 1, not 1.0"),
        (["--seed", str(2**63)], f"at least 0 and below 9,223,372,036,854,775,808, not {2**63}"),
        (["--max-length", "7"], "--max-length must be a whole number, at least 8 and below 4,097, not 7"),
        (["--threads", "100000"], "--threads must be a whole number, at least 1 and below 1,025, not 100000"),
        (["--batch-size", "1000000000"], "--batch-size must be a whole number, at least 1 and below 100,000"),
        (["--epochs", "99999", "--steps-per-epoch", "99999"], "--epochs times --steps-per-epoch is 9,999"),
        (["--data", ""], "--data must be non-empty UTF-8 text without NUL, not ''"),
        (["--out", "a\0b"], r"--out must be non-empty UTF-8 text without NUL, not 'a\x00b'"),
        (
            ["--tasks", "sentiment,"],
            "--tasks must be a list of non-empty UTF-8 texts",
        ),
        (["--\x1b[31m"], r"unknown argument --\x1b[31m"),
        (["--recipe", "a" * 5000], "is neither a file nor a shipped recipe"),
        (["--pooling", "max"], "--pooling must be one of cls, mean, not 'max'"),
        (["--schedule", "cosine"], "--schedule must be one of constant, linear, halve-on-rise, not 'cosine'"),
        (["--epoch", "3"], "unknown argument --epoch; did you mean --epochs? (--help lists the flags)"),
        (["--batchsize=3"], "unknown argument --batchsize; did you mean --batch-size? (--help lists"),
        (["--learning_rates", "3"], "unknown argument --learning-rates"),
        (["--skip", "--res"], "unknown argument --skip"),
        (["--colour", "red"], "unknown argument --colour"),
        (["stray"], "unknown argument stray (--help lists the flags)"),
        (["--lr", "1", "mnrl"], "unknown argument mnrl; it goes before the flags (--help lists the flags)"),
        (["--skip-bad-rows=yes"], "ignored explicit argument 'yes'"),
        (["--recipe", "nope"], "--recipe: 'nope' is neither a file nor a shipped recipe (annealed"),
        (["--init", "runs/a", "--weights", "runs/b"], "--init replaces --weights: give only one of them"),
        (["--resume"], "--resume needs --out"),
        (["--task", "sentiment"], "--option finetune does not use --task"),
        (["--run", "r", "--input", "f"], "--option finetune does not use --run, --input"),
        (["--option", "train"], "--option must be one of inspect, pretrain, mnrl, mlm, finetune"),
        (["--option", "evaluate", "--epochs", "3"], "--option evaluate does not use --epochs"),
        (["--option", "predict", "--data", "d"], "--option predict does not use --data"),
        (
            ["--option", "pretrain", "--encoder-dropout", "0"],
            "--option pretrain does not use --encoder-dropout",
        ),
    ],
)
def test_bad_flags(words, problem):
    with pytest.raises(InputError) as caught:
        finetune(*words)
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_no_option():
    with pytest.raises(InputError, match="choose what to do with --option, one of inspect, pretrain, mnrl"):
        resolve([])


@pytest.mark.parametrize(
    "text, problem",
    [
        ("epochs = 3\nepochs = 4", "cannot be read as TOML"),
        ("batchsize = 3", "unknown key 'batchsize'; did you mean batch_size?"),
        ("batch-size = 3", "unknown key 'batch-size'; did you mean batch_size?"),
        ("zzz = 3", "unknown key 'zzz'"),
        ("[model]\nlr = 1.0", "unknown key 'model'"),
        ('epochs = "3"', "epochs must be a whole number, at least 1 and below 100,000, not '3'"),
        ("epochs = 3.0", "epochs must be a whole number, at least 1 and below 100,000, not 3.0"),
        ("epochs = true", "epochs must be a whole number, at least 1 and below 100,000, not True"),
        ("lr = true", "lr must be a number, at least 0 and at most 1, not True"),
        ("lr = nan", "lr must be a number, at least 0 and at most 1, not nan"),
        ("lr = inf", "lr must be a number, at least 0 and at most 1, not inf"),
        ("skip_bad_rows = 1", "skip_bad_rows must be true or false, not 1"),
        ("data = 3", "data must be non-empty UTF-8 text without NUL, not 3"),
        ('tasks = "sentiment"', "tasks must be a list of non-empty UTF-8 texts without NUL, not 'sentiment'"),
        ("tasks = [1]", "tasks must be a list of non-empty UTF-8 texts without NUL, not [1]"),
        ('pooling = "max"', "pooling must be one of cls, mean, not 'max'"),
        ("head_dropout = 1", "head_dropout must be a number, at least 0 and below 1, not 1"),
        ('option = "train"', "option must be one of inspect, pretrain, mnrl, mlm, finetune"),
        ("option = [1]", "option must be one of inspect, pretrain, mnrl, mlm, finetune"),
        ('data = "a\\u0000"', r"data must be non-empty UTF-8 text without NUL, not 'a\x00'"),
        ('tasks = [""]', "tasks must be a list of non-empty UTF-8 texts without NUL, not ['']"),
        (f"epochs = 0x{'f' * 5000}", "below 100,000, not int too long to be shown"),
        (f"tasks = {'[' * 5000}", "cannot be read as TOML (nested too deeply)"),
        ("#" * (1 << 20) + "\n", "cannot be read as TOML (larger than 1 MB)"),
        (f"lr = 1{'0' * 400}", "lr must be a number, at least 0 and at most 1, not 1000"),
    ],
)
def test_a_bad_recipe_is_named_with_its_key(tmp_path, text, problem):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        finetune("--recipe", str(path))
    assert str(caught.value).startswith(f"{path}: ") and problem in str(caught.value)


@pytest.mark.parametrize(
    "text", ["stages = 3", "stages = []", "[stages]", f"[stages.{'a' * 101}]", "[stages.'a b']"]
)
def test_stages_that_are_none(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{path}: stages must be tables"):
        resolve(["--recipe", str(path)])


def test_a_recipe_may_not_hold_what_its_option_would_ignore(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('option = "evaluate"\nlr = 1e-3\n')
    with pytest.raises(InputError, match="--option evaluate does not use --lr"):
        resolve(["--recipe", str(path)])


def test_init_and_weights_displace_each_other_in_a_recipe(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('init = "a"\n')
    assert finetune("--recipe", str(recipe), "--weights", "minilm-l6").start.init is None
    recipe.write_text('weights = "w"\n')
    config = finetune("--recipe", str(recipe), "--init", "a")
    assert config.start.init is not None and "weights" not in config.settings
    recipe.write_text('init = "a"\nweights = "w"\n')
    with pytest.raises(InputError, match="--init replaces --weights: give only one of them"):
        finetune("--recipe", str(recipe))


def test_a_revision_belongs_to_its_weights(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('weights = "org/name"\nrevision = "v1"\n')
    assert finetune("--recipe", str(recipe)).start.revision == "v1"
    assert finetune("--recipe", str(recipe), "--revision", "v2").start.revision == "v2"
    for words in (["--weights", "org/other"], ["--init", "a"]):
        assert finetune("--recipe", str(recipe), *words).start.revision is None
    for words in ([], ["--init", "a"]):
        with pytest.raises(InputError, match="--revision does nothing without --weights"):
            finetune("--revision", "v2", *words)


def test_max_tokens_and_batch_size_displace_each_other(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("batch_size = 8\n")
    config = finetune("--recipe", str(recipe), "--max-tokens", "512")
    assert config.batches.max_tokens == 512 and "batch_size" not in config.settings
    recipe.write_text("max_tokens = 512\n")
    config = finetune("--recipe", str(recipe), "--batch-size", "8")
    assert (config.batches.max_tokens, config.settings["batch_size"]) == (None, 8)
    with pytest.raises(InputError, match="--max-tokens replaces --batch-size: give only one of them"):
        finetune("--batch-size", "8", "--max-tokens", "512")


def test_paths_hold_from_every_folder_and_names_of_checkpoints_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    config = finetune("--data", "d", "--task-file", "t.toml", "--weights", "w")
    assert config == FINETUNE.changed(
        data=f"{tmp_path}/d", task_file=f"{tmp_path}/t.toml", weights=f"{tmp_path}/w"
    )
    assert finetune("--init", "runs/a").start.init == f"{tmp_path}/runs/a"
    (tmp_path / "minilm-l6").mkdir()
    assert finetune("--weights", "minilm-l6").start.weights == "minilm-l6"
    assert finetune("--weights", "org/name").start.weights == "org/name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert finetune("--weights", "org/name").start.weights == f"{tmp_path}/org/name"


@pytest.mark.parametrize(
    "words", [[], ["--tasks=similarity,sentiment", "--skip-bad-rows", "--lr=1e-7", "--out=r", "--epochs=3"]]
)
@pytest.mark.parametrize("option", ["pretrain", "finetune"])
def test_a_saved_config_reads_back_to_the_same(tmp_path, option, words):
    config = resolve(["--option", option, *words])
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(config.settings))
    assert make_config(**read_settings(path)) == config


@pytest.fixture
def started(tmp_path):
    """A function that leaves the config.toml of a run in tmp_path."""

    def start(*words: str) -> Config:
        config = finetune("--out", str(tmp_path), *words)
        (tmp_path / "config.toml").write_text(tomli_w.dumps(config.settings))
        return config

    return start


def resume(folder, *words: str) -> Config:
    return resolve(["--resume", "--out", str(folder), *words])


def test_resume_takes_over_what_the_run_was_started_with(tmp_path, started):
    config = started("--lr=1e-4", "--tasks=sentiment", "--save-every=7")
    assert resume(tmp_path) == config.changed(resume=True)
    same = ["--option=finetune", "--lr=1e-4", "--epochs=10", "--tasks=sentiment"]
    assert resume(tmp_path, *same) == config.changed(resume=True)


def test_resume_may_change_what_does_not_change_the_result(tmp_path, started):
    config = started()
    changed = resume(tmp_path, "--threads=1", "--device=cpu", "--save-every=3")
    assert changed == config.changed(resume=True, threads=1, device="cpu", save_every=3)


def test_a_resumed_run_keeps_its_commit_although_a_branch_has_moved(tmp_path, started):
    commit = "0123456789abcdef" * 2 + "01234567"
    config = started("--weights=org/name", f"--revision={commit}")
    for words in ([], ["--weights=org/name"], ["--revision=main"], [f"--revision={commit}"]):
        assert resume(tmp_path, *words) == config.changed(resume=True)
    with pytest.raises(InputError, match=f"started with revision = '{commit}', not '{'f' * 40}'"):
        resume(tmp_path, f"--revision={'f' * 40}")
    # A state holds all weights, wherever they came from.
    assert decisive(config.settings) == decisive(FINETUNE.settings)
    started("--weights=folder")
    with pytest.raises(InputError, match="started with revision = None, not 'main'"):
        resume(tmp_path, "--revision=main")


@pytest.mark.parametrize(
    "word", ["--lr=1", "--seed=1", "--batch-size=8", "--data=d", "--tasks=sentiment", "--option=pretrain"]
)
def test_resume_may_change_nothing_else(tmp_path, started, word):
    started()
    with pytest.raises(InputError, match=r"config\.toml: the run was started with .* = .*, not "):
        resume(tmp_path, word)


@pytest.mark.parametrize(
    "words, allowed",
    [
        (["--schedule=constant", "--warmup=0"], True),
        (["--schedule=constant"], False),
        (["--schedule=linear", "--warmup=0"], False),
        ([], False),
    ],
)
def test_resume_may_change_epochs_where_the_rate_does_not_look_ahead(tmp_path, started, words, allowed):
    config = started(*words)
    if allowed:
        assert resume(tmp_path, "--epochs=20") == config.changed(resume=True, epochs=20)
    else:
        with pytest.raises(
            InputError, match=r"started with epochs = 10, not 20.*--device, --keep-state, --save-every"
        ):
            resume(tmp_path, "--epochs=20")


@pytest.mark.parametrize(
    "content, problem",
    [
        ("lr = ", "cannot be read as TOML"),
        ("lr = 1.0\n", "was cut, since it lacks option"),
        ("", "was cut, since it lacks option"),
    ],
)
def test_resume_of_a_torn_config(tmp_path, content, problem):
    (tmp_path / "config.toml").write_text(content)
    with pytest.raises(InputError, match=rf"config\.toml: {problem}"):
        resume(tmp_path)


@pytest.mark.parametrize("words, status", [(["--help"], 0), (["--epochs", "two"], 2), (["--option", "x"], 2)])
def test_help_and_usage_errors_come_without_torch(words, status):
    code = (
        "import sys; from multitask.run import main\n"
        "try: status = main()\n"
        "except SystemExit as stop: status = stop.code\n"
        "print(sorted({'torch', 'numpy', 'tokenizers', 'safetensors'} & sys.modules.keys()))\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == status, done.stderr
    assert done.stdout.endswith("[]\n")


def test_help_is_quick_and_complete():
    times = []
    for _ in range(3):
        started = time.perf_counter()
        command = [sys.executable, "-m", "multitask.run", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 1.0
    for word in (*OPTIONS, "--batch-size", "--recipe", "(default 16)"):
        assert word in done.stdout


def flags_in_help(capsys, *words: str) -> set[str]:
    """Return the flags that the help lists, each where it is explained."""
    with pytest.raises(SystemExit) as stop:
        resolve([*words, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    return set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", said, flags=re.MULTILINE))


def test_the_help_of_an_option_lists_what_it_uses_and_nothing_else(capsys):
    listed = flags_in_help(capsys, "--option", "predict")
    assert "--task" in listed and "--epochs" not in listed
    for option in OPTIONS:
        used = {"--" + name.replace("_", "-") for name, one in SETTINGS.items() if one.used_by(option)}
        for words in (["--option", option], [f"--option={option}"], [option]):
            assert flags_in_help(capsys, *words) == used | {"--help", "--option", "--recipe"}
    every = {"--" + name.replace("_", "-") for name in SETTINGS}
    for words in ([], ["--option", "tune"]):
        assert flags_in_help(capsys, *words) == every | {"--help", "--option", "--recipe"}


@pytest.mark.parametrize("option, rate", [("pretrain", "0.001"), ("finetune", "5e-05")])
def test_the_help_of_an_option_states_its_own_defaults(capsys, option, rate):
    with pytest.raises(SystemExit):
        resolve(["--option", option, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"highest learning rate (default {rate})" in said


def test_choices_are_those_of_the_code():
    """config.py imports no torch, so it names them again."""
    assert FIELDS["smart_mode"].choices == MODES and FIELDS["smart_norm"].choices == tuple(NORMS)
    assert FIELDS["pooling"].choices == POOLINGS
    assert {*FIELDS["sampling"].choices} == {"round-robin", FULL_PASS, *ALPHAS}
    for name in FIELDS["schedule"].choices:
        assert 0 < rate_schedule(Training(schedule=name, warmup=0.5), 10)(0, []) < 1
