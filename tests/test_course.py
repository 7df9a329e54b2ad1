"""tools/course.py: the assignment, what check.py says, submissions and their grades."""

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

import course
from assignment import submit
from assignment.blanking import Drift, blanked, function, planted
from assignment.grading import (
    Grade,
    Limits,
    as_csv,
    as_text,
    cells,
    feedback,
    grade,
    read_answer,
    run_parts,
)
from assignment.making import check_that_mistakes_differ, emptied, make, record
from assignment.parts import EXERCISES, Exercise, Mistake
from checks import judging
from checks.judging import PASSES, TO_DO, WRONG, Known, Outcome, Part, explain, judge, read_record, run
from checks.predictions import expected_files, problems, read_predictions
from checks.probes import Steps
from checks.submission import MOST_FILES, Refused, pack, unpack
from minbert import BertConfig, BertModel, bert
from minbert.errors import InputError
from minbert.packing import Packing
from multitask.data.tables import SAMPLE
from multitask.data.tasks import SENTIMENT, SIMILARITY

TO_FILL = {one.name: one for one in EXERCISES if one.functions}
NAMES = [
    "attention", "embed", "layer", "model", "adamw", "heads",
    "annealed", "symmetric-kl", "smart", "mnrl", "teacher", "mlm",
]  # fmt: skip
LIMITS = Limits(seconds=60, memory=8 << 30)


@pytest.fixture(scope="module")
def assignment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assignment as students get it; not to be changed."""
    folder = tmp_path_factory.mktemp("course") / "assignment"
    make(folder)
    return folder


@pytest.fixture(scope="module")
def known() -> dict[Part, Known]:
    """What the library computes with a seed that is not the assignment's."""
    return record(EXERCISES, 7)


def filled(assignment: Path, folder: Path, names: Collection[str]) -> Path:
    """A copy of the assignment in which these parts are solved, and no others."""
    shutil.copytree(assignment, folder)
    for path in {task.path for task in TO_FILL.values()}:
        source = (ROOT / path).read_text(encoding="utf-8")
        for task in TO_FILL.values():
            if task.path == path and task.name not in names:
                source = emptied(source, task)
        (folder / path).write_text(source, encoding="utf-8")
    return folder


def check(folder: Path, *parts: str) -> tuple[list[str], int]:
    """What check.py prints there, and its exit status."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(folder / "check.py"), *parts]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert not any(line.startswith("note: ") for line in done.stdout.splitlines())
    return done.stdout.splitlines(), done.returncode


def zipped(folder: Path, target: Path, **more: bytes) -> Path:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in submit.code_files(folder)}
    pack(files | more, target)
    return target


# The assignment


def test_the_names_of_the_parts_are_stable() -> None:
    """The lessons' exercises refer to them."""
    assert [task.name for task in EXERCISES] == NAMES
    assert sum(task.points for task in EXERCISES) == 100


def test_a_blank_assignment_scores_nothing_and_says_what_to_do(assignment: Path) -> None:
    lines, status = check(assignment)
    assert status == 1 and lines[-1].split() == ["total", "0", "of", "100"]
    assert lines[0].split(None, 4) == ["attention", "0", "of", "15", "to do: attention in minbert/bert.py"]
    assert sum("to do: " in line for line in lines) == len(TO_FILL)


def test_the_handout_names_every_part_and_place(assignment: Path) -> None:
    text = (assignment / "README.md").read_text()
    for task in EXERCISES:
        assert f"python check.py {task.name}" in text and task.about.strip() in text
        assert all(f"`{name}`" in text for name in task.functions)
    assert "torch==" in (assignment / "requirements.txt").read_text()


def test_no_line_of_a_solution_is_left(assignment: Path) -> None:
    """Whatever is in the body of an emptied function is in no file of the folder, but for what is common."""
    given = {
        line.strip()
        for path in assignment.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
    }
    secret = set()
    for task in TO_FILL.values():
        source = (ROOT / task.path).read_text(encoding="utf-8")
        for name in task.functions:
            body = function(source, name).body[1:]
            lines = source.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
            secret |= {line.strip() for line in lines if len(line.strip()) > 25}
    assert len(secret) > 50
    assert secret & given == {"rows = hidden_states[packing.first] if first_only else hidden_states"}


def test_what_is_not_emptied_is_the_library(assignment: Path) -> None:
    changed = {task.path for task in TO_FILL.values()}
    for package in ("minbert", "multitask"):
        for path in (ROOT / package).rglob("*"):
            own = path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in path.parts:
                same = (assignment / own).read_bytes() == path.read_bytes()
                assert same is (own not in changed), own
    for path in changed:
        ast.parse((assignment / path).read_text())


def test_an_assignment_takes_no_folder_that_holds_something(assignment: Path) -> None:
    with pytest.raises(InputError, match="is there already"):
        make(assignment)


def test_a_table_that_does_not_fit_the_library_is_an_error() -> None:
    """So the course cannot drift: neither a name nor a mistake may be missing, or change nothing."""
    source = 'def one():\n    """Do."""\n    return 1\n\n\ndef two():\n    return 2\n'
    assert blanked(source, "one", "TODO") == source.replace("return 1", 'raise NotImplementedError("TODO")')
    for name in ("three", "two"):  # not there, without a docstring
        with pytest.raises(Drift, match=name):
            blanked(source, name, "TODO")
    task = TO_FILL["teacher"]
    with pytest.raises(Drift, match=r"part teacher, .*MomentumTeacher\.forget"):
        emptied(
            (ROOT / task.path).read_text(),
            Exercise("teacher", "", 1, task.path, ("MomentumTeacher.forget",), "", ""),
        )
    with (
        pytest.raises(Drift, match="0 times 'gone'"),
        planted(task.path, "MomentumTeacher.update", "gone", ""),
    ):
        pass
    idle = Mistake("when nothing is wrong", "MomentumTeacher.update", "1 - self.beta", "(1 - self.beta)")
    changed = Exercise("teacher", "", 1, task.path, task.functions, "", "", mistakes=(idle,))
    with pytest.raises(Drift, match="would be taken for ''"):
        check_that_mistakes_differ(record([changed], 0))


# What check.py says


@pytest.mark.parametrize("name", TO_FILL)
def test_every_classic_mistake_is_named(name: str, assignment: Path) -> None:
    """And nothing is wrong with the library, whose recorded numbers are those of the folder."""
    part, recorded = next(item for item in read_record(assignment / "checks").items() if item[0].name == name)
    task = TO_FILL[name]
    assert judge(part, run(name, 0), recorded).state == PASSES
    assert len(task.mistakes) >= 5
    for mistake in task.mistakes:
        with planted(task.path, mistake.function, mistake.old, mistake.new), np.errstate(all="ignore"):
            verdict = judge(part, run(name, 0), recorded)
        assert verdict.state == WRONG
        assert verdict.lines[-1] == f"This is what comes out {mistake.text}."


def test_mistakes_are_told_apart_with_other_inputs_too(known: dict[Part, Known]) -> None:
    check_that_mistakes_differ(known)


def steps(**values: float | list[float]) -> Steps:
    made = Steps()
    for name, value in values.items():
        made.note(name, torch.tensor(value), "row column")
    return made


PART = Part("a", "", 1, "a in b.py", "think", {"second": "is it so?"})


def test_the_first_difference_is_told_with_its_place() -> None:
    given = steps(first=1.0, second=[[1.0, 2.0], [3.0, 4.0]], third=0.0)
    right = Known(given, {}, given.axes)
    wrong = steps(first=1.0, second=[[1.0, 2.0], [3.31, 4.0]], third=9.0)
    assert judge(PART, Outcome(wrong), right).lines == (
        "second: off by 0.31, in 1 of 4 numbers",
        "first at row 1, column 0: is 3.31, should be 3",
        "What comes before is right: 1 of 3 steps.",
        "is it so?",
    )
    wrong = steps(first=1.0, second=[[1.0, 2.0]], third=0.0)
    assert judge(PART, Outcome(wrong), right).lines[0] == "second: has the shape (1, 2), not (2, 2)"
    wrong = steps(first=1.0, second=[[1.0, float("nan")], [3.0, 4.0]], third=0.0)
    assert judge(PART, Outcome(wrong), right).lines[0] == "second: not finite, in 1 of 4 numbers"
    assert "never computed" in judge(PART, Outcome(steps(second=1.0)), right).lines[0]


def test_one_mistake_is_named_where_a_second_follows() -> None:
    right = Known(steps(first=1.0, second=2.0), {"when halved": steps(first=0.5, second=2.0)})
    assert judge(PART, Outcome(steps(first=0.5, second=7.0)), right).mistake == "when halved"
    assert judge(PART, Outcome(steps(first=0.6, second=2.0)), right).mistake == ""


def test_an_exception_is_told_with_the_students_line() -> None:
    """Not with a mistake or a question: the exception says more."""
    right = Known(steps(first=1.0), {"when halved": steps()})
    told = tuple(explain(ValueError("no\nsuch thing")))
    assert judge(PART, Outcome(steps(), told), right).lines == told == ("ValueError: no such thing",)
    assert judge(PART, Outcome(steps(), to_do=True), right).state == TO_DO
    assert judge(PART, Outcome(steps(first=1.0), told), right).state == WRONG


def test_an_exception_is_told_with_its_lines_in_the_two_packages(monkeypatch) -> None:
    """Where a student's code was entered, and where it failed; nothing of torch."""
    monkeypatch.setattr(judging, "FOLDER", ROOT)
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(RuntimeError) as found:
        BertModel(config).pool(torch.ones(2, 7), Packing.from_mask(torch.ones(1, 2)), "cls")
    told = explain(found.value)
    assert len(told) == 3 and told[0].startswith("RuntimeError: mat1 and mat2")
    assert re.fullmatch(r"in minbert/bert\.py:\d+: return self\._pool_first\(.*", told[1])
    assert told[2].startswith("in minbert/linear.py:")


@pytest.mark.parametrize(
    ("part", "path", "returned", "told"),
    [
        ("attention", "attention", lambda context, weights: context, "returns Tensor, not a tuple of two"),
        ("attention", "attention", lambda context, weights: None, "returns NoneType, not a tuple of two"),
        ("attention", "attention", lambda context, weights: sys.exit(), "SystemExit: the code ends Python"),
        ("layer", "BertLayer.forward", lambda result, weights: result, "returns Tensor, not a tuple of two"),
        (
            "layer",
            "BertLayer.forward",
            lambda result, weights: (weights, result),
            "returns a tuple of two in the wrong order",
        ),
    ],
)
def test_a_part_that_does_not_return_two_things_is_told(
    part: str, path: str, returned, told: str, monkeypatch
) -> None:
    *owner, name = path.split(".")
    place = getattr(bert, owner[0]) if owner else bert
    right = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *given, **more: returned(*right(*given, **more)))
    assert judging.run(part, 0).stopped[0].startswith(told)


ATTENTION_DROPOUT = "kept = (torch.rand_like(weights) >= dropout) / (1 - dropout)\n    "
PADDED = """self.position(torch.arange(input_ids.shape[1])).expand(*input_ids.shape, -1)
        padded = self.word(input_ids) + self.token_type(token_type_ids) + words
        return packing.pack(self.dropout(self.norm(padded)))"""
RIGHT = {
    "dropout by hand": ("attention", "attention", "return drop(weights, dropout)",
                        f"{ATTENTION_DROPOUT}return (weights * kept)"),
    "torch's function": ("layer", "BertLayer.forward", "self.dropout(feed_forward)",
                         "F.dropout(feed_forward, self.dropout.p, self.training)"),
    "drop": ("embed", "BertEmbeddings.forward", "return self.dropout(",
             "return (lambda x: drop(x, self.dropout.p) if self.training else x)("),
    "packed last": ("embed", "BertEmbeddings.forward", "self.word(packing.pack(input_ids))", PADDED),
}  # fmt: skip


@pytest.mark.parametrize("way", RIGHT)
def test_other_ways_to_the_right_result_pass(way: str, known: dict[Part, Known]) -> None:
    name, function_name, old, new = RIGHT[way]
    part, recorded = next(item for item in known.items() if item[0].name == name)
    with planted(TO_FILL[name].path, function_name, old, new):
        assert judge(part, run(name, 7), recorded).state == PASSES


def test_an_error_with_first_only_says_so(known: dict[Part, Known]) -> None:
    ignoring = "hidden_states[packing.first] if first_only else hidden_states", "hidden_states"
    with planted(TO_FILL["layer"].path, "BertLayer.forward", *ignoring):
        assert run("layer", 7).stopped[1] == "in the call with first_only=True"


def in_folder(folder: Path, *arguments: str) -> tuple[str, str, int]:
    """What a command of the assignment prints, on both streams, and its exit status."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    return done.stdout, done.stderr, done.returncode


def test_code_that_exits_hangs_or_is_stopped_ends_in_a_line(assignment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faulty"
    shutil.copytree(assignment, folder)
    (folder / "check.py").write_text((folder / "check.py").read_text().replace("SECONDS = 60", "SECONDS = 1"))
    (folder / "minbert/dropout.py").write_text("# mine\n" + (folder / "minbert/dropout.py").read_text())
    for task, line in {
        "attention": "exit()", "mnrl": "while True: pass", "teacher": "raise KeyboardInterrupt"
    }.items():  # fmt: skip
        path = folder / TO_FILL[task].path
        path.write_text(path.read_text().replace(f'raise NotImplementedError("TODO {task}")', line))
    out, _, status = in_folder(folder, "check.py", "attention", "heads", "mnrl")
    lines = out.splitlines()
    assert status == 1 and lines[1] == "    SystemExit: the code ends Python"
    assert re.fullmatch(r"    in minbert/bert\.py:\d+: exit\(\)", lines[2])
    assert lines[5].startswith("    TimeoutError: ") and lines[6].endswith("while True: pass")
    assert lines[-2] == "note: these files differ from the assignment's: minbert/dropout.py"
    out, err, status = in_folder(folder, "check.py", "heads", "teacher")
    assert out.startswith("heads") and (err, status) == ("stopped in teacher\n", 1)
    shutil.rmtree(folder / "checks")
    out, err, status = in_folder(folder, "check.py")
    assert (out, status) == ("", 1) and err.startswith("No module named 'checks': check.py needs")


def test_a_run_that_meets_a_part_to_do_says_so(assignment: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blank"
    shutil.copytree(assignment, folder)
    run = ["-m", "multitask.run", "--option", "finetune", "--weights", "weights/tiny"]
    _, err, status = in_folder(folder, *run)
    assert status == 2
    assert re.fullmatch(r"still to do: \w+ \(m\w+/[\w/]+\.py:\d+\)", err.splitlines()[-1])


@pytest.mark.parametrize("name", ["check.py", "submit.py"])
def test_an_old_python_can_read_the_commands(name: str, assignment: Path) -> None:
    """So that what is said about the version is said: here as far as Python can tell."""
    text = (assignment / name).read_text()
    ast.parse(text, feature_version=(3, 6))
    assert "import annotations" not in text  # 3.6 has no such feature
    ast.parse((assignment / "checks/__init__.py").read_text(), feature_version=(3, 6))


@pytest.mark.slow
def test_a_part_needs_the_others_that_it_is_made_of(assignment: Path, tmp_path: Path) -> None:
    """Half of the parts solved: their points, the whole encoder, and the rest still to do."""
    solved = ["attention", "embed", "layer", "symmetric-kl"]
    lines, status = check(filled(assignment, tmp_path / "half", solved))
    states = {line.split()[0]: line for line in lines}
    assert all(states[name].endswith("passes") for name in (*solved, "model"))
    assert status == 1 and states["total"].split() == ["total", "45", "of", "100"]
    lines, status = check(tmp_path / "half", "layer")
    assert status == 0 and lines[-1].split() == ["total", "15", "of", "15"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TO_FILL)
def test_each_part_alone_has_its_own_points(name: str, assignment: Path, tmp_path: Path) -> None:
    lines, _ = check(filled(assignment, tmp_path / "one", [name]))
    assert [line.split()[0] for line in lines if line.endswith("passes")] == [name]
    assert lines[-1].split() == ["total", str(TO_FILL[name].points), "of", "100"]


# Predictions and submissions


def predictions(folder: Path) -> Path:
    """Valid prediction files for the sample."""
    folder.mkdir(parents=True)
    for name, (task, ids) in expected_files(SAMPLE).items():
        lines = (f"{row_id} , {number % 2} \n" for number, row_id in enumerate(ids))
        (folder / name).write_text(f"id \t {task.header} \n" + "".join(lines))
    return folder


@pytest.mark.parametrize(
    ("task", "lines", "told"),
    [
        (SENTIMENT, "id\tPredicted_Sentiment\na , 4\nb,0\n", ""),
        (SIMILARITY, "id \t Predicted_Similiary \na , -0.5 \n\nb , 5.25 \n", ""),
        (SENTIMENT, "", "p:1: the header is ''; write: id \\t Predicted_Sentiment"),
        (SENTIMENT, "id \t Predicted_Sentiment\na , 5\nb , 0\n", "p:2: '5' is none of the classes 0 to 4"),
        (
            SENTIMENT,
            "id \t Predicted_Sentiment\na , 0.5\nb , 0\n",
            "p:2: '0.5' is none of the classes 0 to 4",
        ),
        (SENTIMENT, "id \t Predicted_Sentiment\na , good\nb , 0\n", "p:2: 'good' is not a number"),
        (SIMILARITY, "id \t Predicted_Similiary\na , nan\nb , 0\n", "p:2: 'nan' is not finite"),
        (SENTIMENT, "id \t Predicted_Sentiment\na 1\nb , 0\n", "p:2: has no comma; a line is: id , value"),
        (SENTIMENT, "id \t Predicted_Sentiment\na , 1\n", "p: 1 row of 2 not answered, the first 'b'"),
        (SENTIMENT, "id \t Predicted_Sentiment\na , 1\nb , 1\na , 2\n", "p:4: id 'a' was answered in line 2"),
        (SENTIMENT, "id \t Predicted_Sentiment\na , 1\nb , 1\nc , 2\n", "p:4: id 'c' is not in the table"),
    ],
)
def test_a_prediction_file_is_taken_or_its_mistake_is_told(task, lines: str, told: str) -> None:
    found = list(problems("p", lines.encode(), task, ["a", "b"]))
    assert found[0].startswith(told) if told else not found
    assert [*problems("p", b"\xff", task, [])] == ["p: not UTF-8 (byte 1); save the file as UTF-8"]


def test_submit_packs_code_alone_if_asked(assignment: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(submit, "FOLDER", assignment)
    assert submit.main(["--code-only", "--out", str(tmp_path / "out.zip")]) == 0
    assert set(unpack(tmp_path / "out.zip")) == {
        path.relative_to(assignment).as_posix() for path in submit.code_files(assignment)
    }
    with pytest.raises(SystemExit, match="2"):
        submit.main([])
    assert "name a run's folder, or --code-only alone" in capsys.readouterr().err
    assert submit.main([str(tmp_path / "none")]) == 2
    assert "no such folder; train first (python -m multitask.run" in capsys.readouterr().err
    assert submit.main([str(tmp_path)]) == 2
    assert "holds no prediction files; name a run's" in capsys.readouterr().err


def test_submit_packs_code_and_predictions_and_nothing_else(
    assignment: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    predictions(tmp_path / "run" / "predictions")
    (tmp_path / "run" / "predictions" / "sst-dev-probabilities.csv").write_text("not asked for")
    monkeypatch.setattr(submit, "FOLDER", assignment)
    target = tmp_path / "submission.zip"
    assert submit.main([str(tmp_path / "run"), "--out", str(target)]) == 0
    files = unpack(target)
    assert {name.partition("/")[0] for name in files} == {"minbert", "multitask", "predictions"}
    assert {Path(name).suffix for name in files} == {".py", ".csv"}
    assert files["minbert/bert.py"] == (assignment / "minbert" / "bert.py").read_bytes()
    assert sorted(name for name in files if "predictions/" in name) == sorted(
        f"predictions/{name}" for name in expected_files(SAMPLE)
    )
    (tmp_path / "run" / "predictions" / "sts-dev-output.csv").unlink()
    (tmp_path / "run" / "predictions" / "para-dev-output.csv").write_text("id \t Predicted_Is_Paraphrase \n")
    target.unlink()
    assert submit.main([str(tmp_path / "run"), "--out", str(target)]) == 2
    told = capsys.readouterr().err
    assert "sts-dev-output.csv: No such file" in told and "para-dev-output.csv: 120 rows of 120" in told
    assert not target.exists()


def archive(
    path: Path,
    name: str,
    content: bytes = b"",
    mode: int = 0o100644,
    times: int = 1,
    method: int = zipfile.ZIP_DEFLATED,
) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for number in range(times):
            entry = zipfile.ZipInfo(name.format(number))
            entry.external_attr, entry.compress_type = mode << 16, method
            made.writestr(entry, content)
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "more", "told"),
    [
        ("../minbert/bert.py", {}, "no part of a submission"),
        ("/minbert/bert.py", {}, "no part of a submission"),
        ("minbert/../../bert.py", {}, "no part of a submission"),
        ("minbert\\bert.py", {}, "no part of a submission"),
        ("checks/judging.py", {}, "no part of a submission"),
        ("minbert/data.bin", {}, "no part of a submission"),
        ("elsewhere/", {}, "no part of a submission"),
        ("minbert/bert.py", {"content": b"/etc/passwd", "mode": 0o120777}, "a link"),
        ("minbert/bert.py", {"times": 2}, "is in it twice"),
        ("minbert/bert.py", {"method": zipfile.ZIP_LZMA}, "compressed in an unusual way"),
        ("minbert/bert.py", {"content": bytes(8 << 20)}, "larger than 4 MB"),
        ("minbert/a{}.py", {"content": bytes(4 << 20), "times": 8}, "larger than 24 MB together"),
        ("minbert/a{}.py", {"times": MOST_FILES + 1}, "more than 500 files"),
    ],
)
def test_an_archive_that_is_no_submission_is_refused(tmp_path: Path, name: str, more, told: str) -> None:
    with pytest.raises(Refused, match=re.escape(told)):
        unpack(archive(tmp_path / "a.zip", name, **more))


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    whole = archive(tmp_path / "a.zip", "minbert/bert.py", b"x = 1\n" * 1000).read_bytes()
    for content in (b"", b"no zip", whole[:-30], whole[:60] + b"\xff" * 20 + whole[80:]):
        (tmp_path / "b.zip").write_bytes(content)
        with pytest.raises(Refused, match="a damaged zip"):
            unpack(tmp_path / "b.zip")
    for missing in (tmp_path, tmp_path / "none.zip"):
        with pytest.raises(Refused, match="cannot be read"):
            unpack(missing)


# Grades


def test_the_filled_assignment_has_full_marks(assignment: Path, tmp_path: Path, known) -> None:
    folder = filled(assignment, tmp_path / "filled", TO_FILL)
    answers = read_predictions(predictions(tmp_path / "answers"), expected_files(SAMPLE))
    more = {f"predictions/{name}": content for name, content in answers.items()}
    one = grade(zipped(folder, tmp_path / "ann.zip", **more), known, 7, expected_files(SAMPLE), LIMITS)
    assert {verdict.state for verdict in one.verdicts.values()} == {PASSES}
    rows = cells([one], list(known))
    assert rows[0] == ["submission", *(name for name in NAMES if name != "model"), "total", "predictions"]
    assert rows[1][0] == "ann" and rows[1][-2:] == ["100", "6 of 6"]


CHEAT = """
import sys
from pathlib import Path
import torch
from checks import judging, probes
judging.same = judging.judge = torch.allclose = lambda *args, **kwargs: True
print("attention 15 of 15 passes\\ntotal 100 of 100")
Path(sys.argv[2], "mnrl.safetensors").write_bytes(b"passes")
"""


def test_a_dishonest_submission_gains_nothing(assignment: Path, tmp_path: Path, known) -> None:
    """`teacher` is solved, and `attention` claims all the rest."""
    folder = filled(assignment, tmp_path / "cheat", ["teacher"])
    with (folder / "minbert/bert.py").open("a") as file:
        file.write(CHEAT)
    some = {part: found for part, found in known.items() if part.name in ("attention", "mnrl", "teacher")}
    one = grade(zipped(folder, tmp_path / "bob.zip"), some, 7, expected_files(SAMPLE), LIMITS)
    assert [name for name, verdict in one.verdicts.items() if verdict.state == PASSES] == ["teacher"]
    assert one.predictions == "0 of 6 (sst-dev-output.csv is missing)"
    assert "mnrl            0 of 10  to do: multiple_negatives" in feedback(one, list(some))


PARTS_WITH_FAULTS = """
import os, sys, time
from pathlib import Path
_, _, out, *parts = sys.argv
Path(out, "started").touch()
for part in parts:
    if part == "hangs":
        time.sleep(600)
    if part == "ends":
        os._exit(0)
    if part == "crashes":
        os.abort()
    Path(out, "partial").write_bytes((2).to_bytes(8, "little") + b"{}")  # safetensors without tensors
    Path(out, "partial").rename(Path(out, f"{part}.safetensors"))
"""


def test_a_part_that_hangs_or_ends_the_process_costs_only_itself(tmp_path: Path) -> None:
    (tmp_path / "answer.py").write_text(PARTS_WITH_FAULTS)
    parts = ["one", "hangs", "two", "ends", "crashes", "three"]
    outcomes = run_parts(tmp_path, tmp_path, parts, 0, Limits(seconds=3, memory=8 << 30))
    assert {part: outcome.stopped for part, outcome in outcomes.items()} == {
        **dict.fromkeys(("one", "two", "three"), ()),
        "hangs": ("took longer than 3 seconds",),
        "ends": ("ended the process, status 0",),
        "crashes": ("ended the process by signal 6",),
    }


def test_answers_that_are_not_answers_are_wrong(tmp_path: Path) -> None:
    """A submission may have written them itself."""
    link, large, text = (tmp_path / name for name in ("link", "large", "text"))
    link.symlink_to(ROOT / "weights" / "tiny" / "model.safetensors")
    large.write_bytes(bytes(2 << 20))
    text.write_text("passes")
    header = b'{"0/x":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'  # a type that torch cannot convert
    (tmp_path / "half bytes").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    for path in (link, large, text, tmp_path, tmp_path / "missing", tmp_path / "half bytes"):
        assert read_answer(path).stopped


def test_the_table_of_a_class() -> None:
    part = Part("a", "", 5, "", "")
    grades = [
        Grade("=SUM(A1)", {"a": judge(part, Outcome(Steps()), Known({}, {}))}, "6 of 6"),
        Grade("b", refused="no"),
    ]
    rows = cells(grades, [part])
    assert rows[1:] == [["=SUM(A1)", "5", "5", "6 of 6"], ["b", "0", "0", "refused: no"]]
    assert as_text(rows).splitlines()[1] == "=SUM(A1)    5      5  6 of 6"
    assert as_csv(rows).splitlines()[1] == "'=SUM(A1),5,5,6 of 6"
    assert feedback(grades[1], [part]) == "refused: no\n"


def test_the_command_grades_what_it_is_given_and_refuses_the_rest(tmp_path: Path, capsys) -> None:
    bad = archive(tmp_path / "bad.zip", "../x.py")
    table = tmp_path / "grades.csv"
    assert course.main(["grade", str(bad), "--csv", str(table), "--feedback", str(tmp_path / "words")]) == 0
    assert "refused: '../x.py' is no part of a submission" in capsys.readouterr().out
    assert table.read_text().splitlines()[1].startswith("bad,0,0,")
    assert (tmp_path / "words" / "bad.txt").read_text().startswith("refused")
    assert course.main(["grade", str(bad), str(bad)]) == 2
    assert "the same file name" in capsys.readouterr().err
    assert course.main(["grade", str(bad), str(tmp_path / "typo.zip")]) == 2
    assert "typo.zip: no such file; nothing was graded" in capsys.readouterr().err
    assert course.main(["grade", str(bad), "--data", str(tmp_path)]) == 2  # before anything is run
    assert "holds no dev or test tables" in capsys.readouterr().err


def test_an_empty_working_folder_is_no_new_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert course.main(["make", "."]) == 2
    assert capsys.readouterr().err == "error: .: Is a directory\n"
