"""docs/lessons: their code runs and prints what they say, and what they quote is in the code."""

import re
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import ROOT

import lesson_figures

LESSONS = sorted(ROOT.glob("docs/lessons/[01][0-9]-*.md"))
SOURCES = [
    textwrap.dedent(path.read_text(encoding="utf-8"))
    for package in ("minbert", "multitask")
    for path in ROOT.glob(f"{package}/**/*.py")
]
BLOCKS = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def quoted(code: str) -> bool:
    """Return whether these lines are in a source, at whatever indentation."""
    lines = [line.strip() for line in code.splitlines()]
    return any("\n".join(lines) in re.sub(r"^ +", "", text, flags=re.MULTILINE) for text in SOURCES)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_code_of_a_lesson_prints_what_it_says(lesson: Path, tiny, monkeypatch, capsys) -> None:
    """With the checkpoint of the tests for the one to be fetched: what is printed is true of both."""
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    quotes = 0
    for code, printed in BLOCKS.findall(lesson.read_text(encoding="utf-8")):
        if quoted(code):
            quotes += 1
            continue
        exec(compile(code.replace("minilm-l6", str(tiny)), str(lesson), "exec"), names)
        assert capsys.readouterr().out == printed, code
    assert quotes >= 2


def test_each_lesson_is_in_the_index_and_leads_to_the_next() -> None:
    index = (ROOT / "docs" / "lessons" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d\d-[\w-]+\.md)\)", index) == [lesson.name for lesson in LESSONS]
    for lesson, following in pairwise(LESSONS):
        text = lesson.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(lesson.name[:2])}. ")
        if int(following.name[:2]) == int(lesson.name[:2]) + 1:
            assert f"]({following.name})" in text.splitlines()[-1]


def test_the_figures_are_in_the_lessons(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["lesson_figures.py", "--out", str(tmp_path)])
    assert lesson_figures.main() == 0
    text = "".join(lesson.read_text(encoding="utf-8") for lesson in LESSONS)
    for path in tmp_path.iterdir():
        assert f"../images/{path.name}" in text and (ROOT / "docs" / "images" / path.name).exists()
    light, dark = (tmp_path / f"lesson-smart-{theme}.svg" for theme in ("light", "dark"))
    assert light.read_text() != dark.read_text()
