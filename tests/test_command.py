"""command.py: output that cannot end a command, errors in one line, exit statuses."""

import errno
import io
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import ROOT

from minbert.command import Guarded, carry_out, explain, guarded, unguarded
from minbert.errors import InputError


class Failing(io.StringIO):
    """A stream that fails as long as there is an error to fail with."""

    error: Exception | None = None

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


# Streams


def test_control_characters_are_escaped_and_lines_stay():
    stream = io.StringIO()
    print("a\x1b[2Jb\r\u202ec\udcff", "é", file=Guarded(stream, "out"))  # type: ignore[arg-type]
    assert stream.getvalue() == "a\\x1b[2Jb\\r\\u202ec\\udcff é\n"


def test_what_the_encoding_lacks_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Guarded(stream, "out").write("é\n")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\xe9\n"  # type: ignore[attr-defined]


def test_what_cannot_be_written_is_lost_and_the_rest_is_not():
    """As in a log whose disk is full for a while; the first error is the one that is kept."""
    stream = Failing()
    out = Guarded(stream, "<stdout>")
    for text, error in (
        ("a", None),
        ("b", OSError(errno.ENOSPC, "")),
        ("c", OSError(errno.EIO, "")),
        ("d", None),
    ):
        stream.error = error
        assert out.write(text) == 1
    assert stream.getvalue() == "ad"
    assert str(out.lost) == "[Errno 28] No space left on device: '<stdout>'"


def test_streams_are_guarded_within_and_as_before_after(monkeypatch):
    before = Failing()
    monkeypatch.setattr(sys, "stdout", before)
    monkeypatch.setattr(sys, "stderr", None)  # as Python sets it if it was closed
    with guarded() as out:
        assert (sys.stdout, unguarded(sys.stdout), unguarded(before)) == (out, before, before)
        print("lost", file=sys.stderr, flush=True)
        assert not sys.stderr.isatty()
        assert out.lost is None
        before.close()
        print("lost")
        assert out.lost is not None and out.lost.errno == errno.EBADF
    assert (sys.stdout, sys.stderr) == (before, None)


def run(program: str, redirection: str = "") -> tuple[int, str]:
    """Run a program in another process; its exit status and standard error."""
    command = f'exec "$0" -c "$1" {redirection}'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, f"from minbert.command import *\n{program}"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("redirection", ["", ">&-", "> /dev/full", "> >(true)"])
def test_python_does_not_complain_at_its_end(redirection):
    """It tries once more to write what is left; what a command prints may be less than a buffer."""
    assert run("with guarded() as out: print('x' * 100)", redirection) == (0, "")


def test_the_first_help_on_a_full_disk_is_an_error():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "multitask.run"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"No space left" in done.stderr


def test_no_file_gets_the_number_of_a_closed_standard_stream():
    program = "with guarded(), open('README.md') as file: os._exit(file.fileno())"
    assert [run(program, closed)[0] for closed in ("", "<&- >&- 2>&-")] == [3, 3]


# Errors

CASES = {
    "mistake": (InputError("x: no"), 2, "error: x: no"),
    "disk": (OSError(errno.ENOSPC, "No space", "f"), 2, "error: f: No space; resume"),
    "reader": (BrokenPipeError(), 141, "stopped: the reader of the output has gone; resume"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "\nstopped; resume"),
    "Python": (MemoryError(), 2, "error: not enough memory (MemoryError); resume"),
    "torch": (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        2,
        "error: not enough memory ([enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't "
        "allocate memory); resume",
    ),
    "CUDA": (
        RuntimeError("CUDA out of memory. Tried to\nallocate"),
        2,
        "error: not enough memory (CUDA out of memory. Tried to allocate); resume",
    ),
    "system": (
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        2,
        "error: not enough memory ([Errno 12] Cannot allocate memory); resume",
    ),
}


@pytest.mark.parametrize("error, status, line", CASES.values(), ids=CASES)
def test_an_error_is_one_line_and_a_status(capsys, error, status, line):
    assert explain(error, "; resume") == status
    assert capsys.readouterr().err == f"{line}\n"


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_a_part_of_the_assignment_that_is_to_do_is_no_bug(capsys):
    def attention():
        raise NotImplementedError("TODO attention")

    assert carry_out(attention) == 2
    assert re.fullmatch(r"still to do: attention \(tests/test_command.py:\d+\)\n", capsys.readouterr().err)


def test_a_bug_is_one_line_that_names_a_file_with_its_details(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for number in (1, 2):
        with guarded():
            assert explain(raised(ValueError(f"one\n{number}\udcff")), "; resume") == 70
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: a bug in minbert: ValueError in test_command.py:")
    assert first.endswith("which has the details; resume")
    files = sorted(tmp_path.iterdir(), key=lambda path: str(path) in second)
    assert [str(path) in line for path, line in zip(files, (first, second), strict=True)] == [True, True]
    text = files[0].read_text(encoding="utf-8")
    for part in (
        "Traceback (most",
        "raise error",
        "ValueError: one\n1\\udcff\n",
        "torch      2.",
        str(sys.orig_argv),
    ):
        assert part in text
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600


def test_a_bug_whose_details_cannot_be_written_is_still_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    assert explain(raised(KeyError("x"))) == 70
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "its details could not be written ([Errno 2]" in err


def test_the_hub_command_has_one_line_too(tmp_path):
    """Where even the list of checkpoints cannot be printed."""
    command = [sys.executable, "-m", "minbert.hub"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, env=os.environ
        )
    assert (done.returncode, done.stderr) == (2, "error: <stdout>: No space left on device\n")
