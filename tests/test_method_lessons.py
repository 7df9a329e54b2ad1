"""docs/lessons/07 to 11: their code runs and prints what they say, and what they quote is in the code."""

import re
import textwrap
from pathlib import Path

import pytest
from helpers import ROOT

import lesson_figures

LESSONS = sorted(ROOT.glob("docs/lessons/[01][0-9]-*.md"))
SOURCES = [textwrap.dedent(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("m*/**/*.py"))]


def quoted(code: str) -> bool:
    """Return whether these lines are in a source, at whatever indentation."""
    lines = [line.strip() for line in code.splitlines()]
    return any("\n".join(lines) in re.sub(r"^ +", "", text, flags=re.MULTILINE) for text in SOURCES)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_code_of_a_lesson_prints_what_it_says(lesson: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    quotes = 0
    blocks = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    for code, printed in re.findall(blocks, lesson.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if quoted(code):
            quotes += 1
            continue
        exec(compile(code, str(lesson), "exec"), names)
        assert capsys.readouterr().out == printed, code
    assert quotes >= 2


def test_the_figures_are_in_the_lessons(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["lesson_figures.py", "--out", str(tmp_path)])
    assert lesson_figures.main() == 0
    text = "".join(lesson.read_text(encoding="utf-8") for lesson in LESSONS)
    for path in tmp_path.iterdir():
        assert f"../images/{path.name}" in text and (ROOT / "docs" / "images" / path.name).exists()
    light, dark = (tmp_path / f"lesson-smart-{theme}.svg" for theme in ("light", "dark"))
    assert light.read_text() != dark.read_text()
