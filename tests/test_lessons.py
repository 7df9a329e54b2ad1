"""docs/lessons: their code runs and prints what they say, and what they quote is in the code.

A block ```python PATH quotes the file PATH. All other Python of a lesson runs, block after block. A block
```text has what the block before it prints, with any checkpoint; ```text minilm-l6 has what it prints with
that one, and the block before it is left out where that is not here.
"""

import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import ROOT

import lesson_figures

LESSONS = sorted(ROOT.glob("docs/lessons/[01][0-9]-*.md"))
MINILM = ROOT / "weights" / "minilm-l6"
BLOCKS = re.compile(
    r"^```python ?(\S*)\n(.*?)^```\n(?:\n```text ?(\S*)\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
NUMBER = re.compile(r"-?\d*\.\d*(?:e[-+]\d+)?")


def read(path: Path | str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def flat(code: str) -> str:
    """Return the lines without their indentation."""
    return re.sub(r"^ +", "", code, flags=re.MULTILINE)


def agree(printed: str, said: str) -> bool:
    """Return whether these are equal, but for the last digit of numbers that have a point."""
    if NUMBER.sub("#", printed) != NUMBER.sub("#", said):
        return False
    pairs = zip(NUMBER.findall(printed), NUMBER.findall(said), strict=True)
    return all(one == other or abs(float(one) - float(other)) <= 1.01 * unit(other) for one, other in pairs)


def unit(number: str) -> float:
    """Return what 1 is worth in a number's last place: .01 in 1.25, and .001 in 1.2e-2."""
    digits, _, exponent = number.partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_code_of_a_lesson_prints_what_it_says(lesson: Path, tiny, monkeypatch, capsys) -> None:
    """With the checkpoint of the tests in place of minilm-l6, unless what is printed is the latter's."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    names: dict[str, object] = {}
    quotes = 0
    of_minilm = "```text minilm-l6" in read(lesson) and MINILM.is_dir()
    for path, code, checkpoint, said in BLOCKS.findall(read(lesson)):
        if path:
            quotes += 1
            assert flat(code) in flat(read(path)), (path, code)
        elif of_minilm or not checkpoint:
            usable = code if of_minilm else code.replace("minilm-l6", str(tiny))
            exec(compile(usable, str(lesson), "exec"), names)
            printed = capsys.readouterr().out
            assert agree(printed, said), (code, printed)
    assert quotes >= 2


def test_numbers_agree_to_their_last_digit() -> None:
    assert agree("tensor(0.7617) 3 1.9e-02\n", "tensor(0.7616) 3 1.8e-02\n")
    assert not agree("0.7618", "0.7616") and not agree("3", "4") and not agree("a 1.0", "b 1.0")


def test_each_lesson_is_in_the_index_and_leads_to_the_next() -> None:
    index = read("docs/lessons/README.md")
    assert re.findall(r"\]\((\d\d-[\w-]+\.md)\)", index) == [lesson.name for lesson in LESSONS]
    for lesson, following in pairwise(LESSONS):
        text = read(lesson)
        assert text.startswith(f"# {int(lesson.name[:2])}. ")
        if int(following.name[:2]) == int(lesson.name[:2]) + 1:
            assert f"]({following.name})" in text.splitlines()[-1]


def test_mybert_has_200_lines_that_the_lessons_show_and_learns(monkeypatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    source = read("docs/lessons/mybert.py")
    assert len(source.splitlines()) <= 200
    shown = "".join(code for lesson in LESSONS for _, code, *_ in BLOCKS.findall(read(lesson)))
    for part in source.split("\n\n\n"):
        if part.startswith(("class ", "def train(")):
            assert part in shown
    import_module("docs.lessons.mybert").main(str(ROOT / "weights" / "tiny"), passes=1)
    assert re.fullmatch(r"loss 1\.61 -> 1\.\d\d, dev accuracy 0\.\d\d\n", capsys.readouterr().out)


def test_the_figures_are_in_the_lessons(tmp_path: Path, monkeypatch) -> None:
    here = {
        name for name in lesson_figures.FIGURES if MINILM.is_dir() or name not in lesson_figures.OF_MINILM
    }
    monkeypatch.setattr("sys.argv", ["lesson_figures.py", *here, "--out", str(tmp_path)])
    assert lesson_figures.main() == 0
    files = {f"lesson-{name}-{theme}.svg" for name in lesson_figures.FIGURES for theme in ("light", "dark")}
    assert files == {path.name for path in (ROOT / "docs" / "images").glob("lesson-*")}
    assert {path.name for path in tmp_path.iterdir()} <= files
    text = "".join(map(read, LESSONS))
    assert all(f"../images/{name}" in text for name in files)
    light, dark = (tmp_path / f"lesson-smart-{theme}.svg" for theme in ("light", "dark"))
    assert light.read_text() != dark.read_text()
