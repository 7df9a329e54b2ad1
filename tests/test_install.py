"""What a user's installation gives."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, write_tables


@pytest.mark.slow
def test_import_works_from_the_folder_that_holds_the_clone(tmp_path: Path) -> None:
    """There the clone's own folder, minbert/, has no `__init__` and must not hide the package inside it."""
    clone, environment = tmp_path / "minbert", tmp_path / "venv"
    ignored = shutil.ignore_patterns(".*", "weights", "results", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignored)
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
sys.exit(main(sys.argv[1:]) or main(["--resume", "--out", run]) or main(["evaluate", "--run", run]))
"""


def test_a_run_on_a_system_without_posix(tiny, tmp_path):
    """By design also on Windows; no test has run there yet."""
    words = ["--option", "finetune", "--weights", tiny, "--data", write_tables(tmp_path / "data")]
    words += ["--epochs", 1, "--threads", 1, "--no-report", "--out", tmp_path / "run"]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_POSIX, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "resuming after step" in done.stdout and (tmp_path / "run" / "result.json").is_file()
