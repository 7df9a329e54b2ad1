"""config.py: where a setting may come from, what beats what, and every value that is refused."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from helpers import ROOT

from minbert.errors import InputError
from multitask.command_line import resolve
from multitask.config import OPTIONS, RECIPES, Config, read_recipe, read_toml

FINETUNE = Config("finetune")


def finetune(*words: str) -> Config:
    return resolve(["--option", "finetune", *words])


@pytest.mark.parametrize("option", ["pretrain", "mnrl", "finetune"])
def test_a_training_option_alone_gives_the_defaults(option):
    rate = {"pretrain": 1e-3, "mnrl": 5e-5, "finetune": 5e-5}[option]
    assert resolve(["--option", option]) == Config(option, lr=rate)
    assert resolve(["--option", option, "--lr", "0"]).lr == 0


@pytest.mark.parametrize("option, needed", [("evaluate", ["run"]), ("predict", ["run", "task"])])
def test_other_options_need_what_they_work_on(option, needed):
    words = ["--option", option, *(f"--{name}=x" for name in needed)]
    assert resolve(words) == Config(option, **dict.fromkeys(needed, "x") | {"run": ("x",)})
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
    assert finetune(*words) == replace(FINETUNE, **settings)


def test_a_flag_beats_the_recipe_and_the_recipe_the_defaults(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'option = "finetune"\nlr = 1\nepochs = 3\ntasks = ["similarity"]\nskip_bad_rows = true\n'
    )
    config = resolve(["--recipe", str(recipe), "--epochs", "4", "--no-skip-bad-rows"])
    assert config == replace(FINETUNE, lr=1.0, epochs=4, tasks=("similarity",), skip_bad_rows=False)
    assert isinstance(config.lr, float)
    assert resolve(["--recipe", str(recipe), "--option", "pretrain"]).option == "pretrain"


@pytest.mark.parametrize(
    "recipe", sorted(path.stem for path in RECIPES.glob("*.toml") if path.stem != "paper")
)
def test_shipped_recipes_resolve(recipe):
    needed = ["--run", "a", "b", "--out", "c"] if recipe == "ensemble" else []
    path = RECIPES / f"{recipe}.toml"
    assert resolve(["--recipe", recipe, *needed]).settings.items() >= read_recipe(path).items()


def test_a_recipe_extends_another(tmp_path):
    base, mine = tmp_path / "base.toml", tmp_path / "mine.toml"
    base.write_text('option = "finetune"\nepochs = 3\nlr = 1e-3\nweights = "bert-tiny"\n')
    mine.write_text(f'extends = "{base}"\nepochs = 4\ninit = "runs/a"\n')
    config = resolve(["--recipe", str(mine), "--lr", "1e-2"])
    assert (config.epochs, config.lr, config.init) == (4, 1e-2, str(Path("runs/a").resolve()))
    assert "weights" not in config.settings  # init displaces the base's


def test_a_recipe_extends_several_the_later_over_the_earlier(tmp_path):
    one, two, mine = (tmp_path / f"{name}.toml" for name in ("one", "two", "mine"))
    one.write_text('option = "finetune"\nepochs = 3\nlr = 1e-3\nbatch_size = 8\n')
    two.write_text("epochs = 4\nlr = 1e-2\nmax_tokens = 512\n")
    mine.write_text(f'extends = ["{one}", "{two}"]\nepochs = 5\n')
    config = resolve(["--recipe", str(mine)])
    assert (config.epochs, config.lr, config.max_tokens) == (5, 1e-2, 512)
    assert "batch_size" not in config.settings  # displaced by the later recipe


def test_recipes_that_extend_the_same_ones_over_and_over_are_read_at_once(tmp_path):
    """Thirty recipes, each extending the next one twice: reading each anew would be 2 ** 30 readings."""
    for number in range(30):
        after = str(tmp_path / f"{number + 1}.toml")
        (tmp_path / f"{number}.toml").write_text(f'extends = ["{after}", "{after}"]\n')
    (tmp_path / "30.toml").write_text('option = "finetune"\nepochs = 7\n')
    assert resolve(["--recipe", str(tmp_path / "0.toml")]).epochs == 7


def test_recipes_that_differ_in_one_thing():
    """The baseline takes whole passes; the row of equal updates differs from it in the order of tasks and the
    number of updates, and from `annealed` in the sampling alone. The control differs from BPPO in mu alone,
    and a ball recipe from the paper's in the mode of SMART and its lambda."""

    def difference(one: str, other: str) -> set[str]:
        settings = [resolve(["--recipe", name]).settings.items() for name in (one, other)]
        return {name for name, _ in settings[0] ^ settings[1]}

    baseline = resolve(["--recipe", "baseline"])
    assert (baseline.sampling, baseline.steps_per_epoch, baseline.epochs) == ("full-pass", None, 10)
    assert difference("baseline", "round-robin") == {"sampling", "steps_per_epoch"}
    assert difference("round-robin", "annealed") == {"sampling"}
    for name in ("baseline", "round-robin", "annealed"):
        assert difference(name, f"{name}-smart") == {"smart_mode", "smart_weight"}
    assert resolve(["--recipe", "mnrl-control"]).bregman_weight == 0
    assert difference("mnrl-control", "mnrl-bregman") == {"bregman_weight", "bregman_beta"}
    for name in ("baseline-smart", "annealed-smart", "mnrl-annealed-smart", "mnrl-control", "mnrl-bregman"):
        assert difference(name, f"{name}-ball") == {"smart_mode", "smart_weight"}


def test_mnrl_starts_from_what_the_paper_states():
    """Section 3.4: 2K sentences a batch, that is one group; section 4.3: 1e-5, decay 1e-4."""
    config = resolve(["--recipe", "mnrl"])
    assert (config.groups, config.lr, config.weight_decay) == (1, 1e-5, 1e-4)


@pytest.mark.parametrize(
    "text, problem",
    [("extends = 3", "extends: 3 is not a recipe's name"), ("extends = [3]", "is not a recipe's name"),
     ('extends = "{mine}"', "extends itself"),
     ('extends = "paper"', "paper.toml has stages, which no recipe extends"),
     ('extends = "nowhere"', "'nowhere' is neither a file nor a shipped recipe")],
)  # fmt: skip
def test_a_recipe_that_extends_nothing(tmp_path, text, problem):
    mine = tmp_path / "mine.toml"
    mine.write_text(text.format(mine=mine))
    with pytest.raises(InputError, match=problem):
        resolve(["--recipe", str(mine)])


@pytest.mark.parametrize("beta", ["x", "1.5", "-0.1", "0.9:", "0.9:0.99:0.999", "nan"])
def test_a_bad_beta_is_refused(beta):
    with pytest.raises(InputError, match=r"--bregman-beta: .* is not X or X:X"):
        resolve(["--option", "finetune", "--bregman-weight", "1", f"--bregman-beta={beta}"])


@pytest.mark.parametrize("thresholds", ["sentiment", "sentiment=x", "a=1=2", "a=nan", "a=inf", "a=0,a=1"])
def test_bad_thresholds_are_refused(thresholds):
    with pytest.raises(InputError, match=r"--thresholds: .* is not TASK=X,TASK=X"):
        resolve(["--option", "ensemble", "--run", "a", "--out", "b", "--thresholds", thresholds])


def test_smart_settings_depend_on_the_mode():
    """In a ball: epsilon .01, steps of epsilon, noise of epsilon / 10; normalize as in public code."""
    ball = resolve(["--option", "finetune"]).ascent(384)
    assert (ball["epsilon"], ball["step_size"], ball["noise_std"]) == (1e-2, 1e-2, 1e-3)
    wide = resolve(["--option", "finetune", "--smart-weight", "1", "--smart-epsilon", "0.5"]).ascent(384)
    assert (wide["step_size"], wide["noise_std"]) == (0.5, 0.05)
    public = resolve(["--recipe", "baseline-smart"]).ascent(384)
    assert (public["epsilon"], public["step_size"], public["noise_std"]) == (1e-6, 1e-3, 1e-5)


def test_smart_is_as_strong_a_coordinate_in_either_norm():
    """A token of 100 coordinates of .01 has the norm .01 for p = inf and .01 sqrt(100) = .1 for p = 2; the
    first noise is a tenth of the radius in both."""
    words = ["--option", "finetune", "--smart-weight", "1", "--smart-norm", "2"]
    search = resolve(words).ascent(100)
    assert [search[name] for name in ("epsilon", "step_size", "noise_std")] == pytest.approx([0.1, 0.1, 1e-3])
    search = resolve([*words, "--smart-epsilon", "3"]).ascent(100)
    assert [search[name] for name in ("epsilon", "step_size", "noise_std")] == pytest.approx([3, 3, 0.03])


@pytest.mark.parametrize(
    "flag", ["--smart-epsilon=0.1", "--smart-rows=4", "--smart-mode=normalize", "--bregman-beta=0.9"]
)
def test_a_regularisers_setting_without_its_weight_is_refused(flag):
    weight = f"--{flag[2:].partition('-')[0]}-weight"
    with pytest.raises(InputError, match=f"{flag.partition('=')[0]} does nothing without {weight}"):
        resolve(["--option", "finetune", flag])
    resolve(["--option", "finetune", flag, weight, "1"])


def test_options_on_one_run_refuse_several():
    with pytest.raises(InputError, match="--option evaluate works on one run, not on 2"):
        resolve(["--option", "evaluate", "--run", "a", "b"])


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--epochs", "two"], "--epochs: invalid int value: 'two'"),
        (["--epochs", "1.5"], "--epochs: invalid int value: '1.5'"),
        (["--epochs", "0"], "--epochs: 0 must be a finite number, at least 1"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--lr", "fast"], "--lr: invalid float value: 'fast'"),
        (["--lr", "nan"], "--lr: nan must be a finite number"),
        (["--lr", "inf"], "--lr: inf must be a finite number"),
        (["--lr=-1e-5"], "--lr: -1e-05 must be a finite number, at least 0"),
        (
            ["--encoder-dropout", "1"],
            "--encoder-dropout: 1.0 must be a finite number, at least 0 and below 1",
        ),
        (["--seed", str(2**63)], f"--seed: {2**63} must be a finite number"),
        (["--max-length", "7"], "--max-length: 7 must be a finite number, at least 8 and below 4097"),
        (["--threads", "100000"], "--threads: 100000 must be a finite number, at least 1 and below 1025"),
        (["--batch-size", "1000000000"], "--batch-size: 1000000000 must be a finite number, at least 1"),
        (["--epochs", "99999", "--steps-per-epoch", "99999"], "--epochs times --steps-per-epoch is 9,999"),
        (["--data", ""], "--data: '' is empty"),
        (["--out", "a\0b"], r"--out: 'a\x00b' is no name: it holds a NUL"),
        (["--\x1b[31m"], r"unrecognized arguments: --\x1b[31m"),
        (["--recipe", "a" * 5000], "is neither a file nor a shipped recipe"),
        (["--pooling", "max"], "--pooling: 'max' is none of cls, mean"),
        (["--schedule", "cosine"], "--schedule: 'cosine' is none of constant, linear"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3 (--help lists the flags)"),
        (["--skip", "--res"], "unrecognized arguments: --skip --res"),
        (["--colour", "red"], "unrecognized arguments: --colour red"),
        (["stray"], "unrecognized arguments: stray"),
        (["--skip-bad-rows=yes"], "ignored explicit argument 'yes'"),
        (["--recipe", "nope"], "--recipe: 'nope' is neither a file nor a shipped recipe (annealed"),
        (
            ["--init", "runs/a", "--weights", "runs/b"],
            "init brings its own encoder: name it or weights, not both",
        ),
        (["--resume"], "--resume needs --out"),
        (["--task", "sentiment"], "--option finetune does not use --task"),
        (["--run", "r", "--input", "f"], "--option finetune does not use --run, --input"),
        (["--option", "train"], "--option: 'train' is none of pretrain, mnrl, finetune"),
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
    with pytest.raises(InputError, match="name what to do with --option, one of pretrain, mnrl, finetune"):
        resolve([])


@pytest.mark.parametrize(
    "text, problem",
    [
        ("epochs = 3\nepochs = 4", "cannot be read as TOML"),
        ("batchsize = 3", "unknown key 'batchsize'; did you mean batch_size?"),
        ("batch-size = 3", "unknown key 'batch-size'; did you mean batch_size?"),
        ("zzz = 3", "unknown key 'zzz'"),
        ("[model]\nlr = 1.0", "unknown key 'model'"),
        ('epochs = "3"', "epochs: '3' is not of type int"),
        ("epochs = 3.0", "epochs: 3.0 is not of type int"),
        ("epochs = true", "epochs: True is not of type int"),
        ("lr = true", "lr: True is not of type float"),
        ("lr = nan", "lr: nan must be a finite number"),
        ("lr = inf", "lr: inf must be a finite number"),
        ("skip_bad_rows = 1", "skip_bad_rows: 1 is not of type bool"),
        ("data = 3", "data: 3 is not of type str"),
        ('tasks = "sentiment"', "tasks: 'sentiment' is not a list of names"),
        ("tasks = [1]", "tasks: [1] is not a list of names"),
        ('pooling = "max"', "pooling: 'max' is none of cls, mean"),
        ("head_dropout = 1", "head_dropout: 1 must be a finite number, at least 0 and below 1"),
        ('option = "train"', "option: 'train' is none of"),
        ("option = [1]", "option: [1] is none of"),
        ('data = "a\\u0000"', r"data: 'a\x00' is no name: it holds a NUL"),
        ('tasks = [""]', "tasks: '' is empty"),
        (f"epochs = 0x{'f' * 5000}", "epochs: a int too long to be shown must be a finite number"),
        (f"tasks = {'[' * 5000}", "cannot be read as TOML (nested too deeply)"),
        ("#" * (1 << 20) + "\n", "cannot be read as TOML (larger than 1 MB)"),
        (f"lr = 1{'0' * 400}", "must be a finite number, at least 0 and below 1e+09"),
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
    with pytest.raises(InputError, match=f"^{path}: stages are tables"):
        resolve(["--recipe", str(path)])


def test_a_recipe_may_not_hold_what_its_option_would_ignore(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('option = "evaluate"\nlr = 1e-3\n')
    with pytest.raises(InputError, match="--option evaluate does not use --lr"):
        resolve(["--recipe", str(path)])


def test_init_and_weights_displace_each_other_in_a_recipe(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('init = "a"\n')
    assert finetune("--recipe", str(recipe), "--weights", "minilm-l6").init is None
    recipe.write_text('weights = "w"\n')
    config = finetune("--recipe", str(recipe), "--init", "a")
    assert config.init is not None and "weights" not in config.settings
    recipe.write_text('init = "a"\nweights = "w"\n')
    with pytest.raises(InputError, match="name it or weights, not both"):
        finetune("--recipe", str(recipe))


def test_max_tokens_and_batch_size_displace_each_other(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text("batch_size = 8\n")
    config = finetune("--recipe", str(recipe), "--max-tokens", "512")
    assert config.max_tokens == 512 and "batch_size" not in config.settings
    recipe.write_text("max_tokens = 512\n")
    config = finetune("--recipe", str(recipe), "--batch-size", "8")
    assert (config.max_tokens, config.settings["batch_size"]) == (None, 8)
    with pytest.raises(InputError, match="name it or batch-size, not both"):
        finetune("--batch-size", "8", "--max-tokens", "512")


def test_paths_hold_from_every_folder_and_names_of_checkpoints_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").mkdir()
    config = finetune("--data", "d", "--task-file", "t.toml", "--weights", "w")
    assert config == replace(
        FINETUNE, data=f"{tmp_path}/d", task_file=f"{tmp_path}/t.toml", weights=f"{tmp_path}/w"
    )
    assert finetune("--init", "runs/a").init == f"{tmp_path}/runs/a"
    (tmp_path / "minilm-l6").mkdir()
    assert finetune("--weights", "minilm-l6").weights == "minilm-l6"


@pytest.mark.parametrize(
    "words", [[], ["--tasks=similarity,sentiment", "--skip-bad-rows", "--lr=1e-7", "--out=r", "--epochs=3"]]
)
@pytest.mark.parametrize("option", ["pretrain", "finetune"])
def test_a_saved_config_reads_back_to_the_same(tmp_path, option, words):
    config = resolve(["--option", option, *words])
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(config.settings))
    assert Config(**read_toml(path)) == config


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
    assert resume(tmp_path) == replace(config, resume=True)
    same = ["--option=finetune", "--lr=1e-4", "--epochs=10", "--tasks=sentiment"]
    assert resume(tmp_path, *same) == replace(config, resume=True)


def test_resume_may_change_what_does_not_change_the_result(tmp_path, started):
    config = started()
    changed = resume(tmp_path, "--threads=1", "--device=cpu", "--save-every=3")
    assert changed == replace(config, resume=True, threads=1, device="cpu", save_every=3)


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
        assert resume(tmp_path, "--epochs=20") == replace(config, resume=True, epochs=20)
    else:
        with pytest.raises(
            InputError, match=r"started with epochs = 10, not 20.*device, save_every, threads"
        ):
            resume(tmp_path, "--epochs=20")


def test_resume_of_a_torn_config(tmp_path):
    (tmp_path / "config.toml").write_text("lr = ")
    with pytest.raises(InputError, match=r"config\.toml: cannot be read as TOML"):
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
