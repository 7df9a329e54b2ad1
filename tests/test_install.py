"""What a user's installation gives."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


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
