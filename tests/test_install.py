"""What a user's installation gives."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from urllib.request import urlopen

import pytest
from helpers import ROOT, write_tables


def copy_of_the_project(place: Path) -> Path:
    ignored = shutil.ignore_patterns(".*", "weights", "results", "*.egg-info", "__pycache__")
    return Path(shutil.copytree(ROOT, place, ignore=ignored))


@pytest.mark.slow
def test_a_wheel_works_from_any_folder(tiny: Path, tmp_path: Path) -> None:
    """It trains, predicts, is loaded and serves; of the other libraries it takes those of the tests."""
    project, environment, place = (tmp_path / name for name in ("project", "venv", "place"))
    copy_of_the_project(project)
    place.mkdir()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    (found,) = environment.glob("lib/*/site-packages")
    (found / "others.pth").write_text(sysconfig.get_path("purelib"))
    python, multitask = environment / "bin" / "python", environment / "bin" / "multitask"
    pip = [python, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path / "dist", project], check=True)
    subprocess.run([*pip, "install", "--no-deps", *(tmp_path / "dist").glob("*.whl")], check=True)
    shutil.rmtree(project)

    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: object, said: str = "") -> str:
        command = [*map(str, words)]
        done = subprocess.run(command, cwd=place, env=without, input=said, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(found) in run(python, "-c", "import multitask; print(multitask.__file__)")
    words = ["finetune", "--weights", tiny, "--epochs", 1, "--steps-per-epoch", 3, "--out", "run"]
    assert "shipped sample" in run(multitask, *words, "--no-report", "--threads", 1)
    predicted = run(multitask, "predict", "--run", "run", "--task", "sentiment", said="a good film\n")
    code = "from multitask import load; print(load('run').predict('sentiment', ['a good film'])[0])"
    assert predicted.splitlines()[1].split("\t")[1] == run(python, "-c", code).strip()
    serve = [python, "-m", "multitask.serve", "--run", "run", "--port", "0"]
    with subprocess.Popen(serve, cwd=place, env=without, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split(" at ")[1].split(",")[0]
        with urlopen(address) as page:
            assert b"Try the model" in page.read()
        server.terminate()
        assert server.wait(30) == 0


@pytest.mark.slow
def test_import_works_from_the_folder_that_holds_the_clone(tmp_path: Path) -> None:
    """There the clone's own folder, minbert/, has no `__init__` and must not hide the package inside it."""
    clone, environment = tmp_path / "minbert", tmp_path / "venv"
    copy_of_the_project(clone)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-e", clone], check=True)
    code = "import minbert, multitask; print(minbert.__file__)"
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == clone / "minbert" / "__init__.py"
    done = subprocess.run([environment / "bin" / "multitask", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--option" in done.stdout


WITHOUT_POSIX = """
import os, sys

sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "O_CLOEXEC", "sched_getaffinity"):
    delattr(os, name)
os.supports_dir_fd = set()

import minbert
from multitask.run import main

run = sys.argv[-1]
longer = ["--resume", "--out", run, "--epochs", "2"]
sys.exit(main(sys.argv[1:]) or main(longer) or main(["evaluate", "--run", run]))
"""


def test_a_run_on_a_system_without_posix(tiny, tmp_path):
    """By design also on Windows; no test has run there yet."""
    words = ["--option", "finetune", "--weights", tiny, "--data", write_tables(tmp_path / "data")]
    words += ["--epochs", 1, "--threads", 1, "--no-report", "--schedule", "constant", "--warmup", 0]
    words += ["--keep-state", "--out", tmp_path / "run"]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_POSIX, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "resuming after step" in done.stdout and (tmp_path / "run" / "result.json").is_file()
