"""Machines that lack what POSIX systems have: it is hidden before the program starts."""

from __future__ import annotations

from functools import partial

from hostile.box import TRAIN, Box, Cases, write

MODULES = ("fcntl", "resource", "pwd", "grp", "termios")
NAMES = (
    "os.sched_getaffinity", "os.O_NONBLOCK", "os.O_NOFOLLOW", "os.O_DIRECTORY", "os.O_CLOEXEC", "os.getuid",
    "os.geteuid", "os.fork", "os.fchmod", "os.chown", "os.mkfifo", "os.statvfs", "os.killpg", "signal.SIGHUP",
    "signal.SIGPIPE", "signal.SIGKILL", "signal.SIGALRM", "signal.pthread_sigmask",
)  # fmt: skip
NO_DIR_FD = """
def without_dir_fd(function):
    def call(*args, dir_fd=None, src_dir_fd=None, dst_dir_fd=None, **kwargs):
        if (dir_fd, src_dir_fd, dst_dir_fd) != (None, None, None):
            raise NotImplementedError("dir_fd unavailable on this platform")
        return function(*args, **kwargs)
    return call
names = "open stat lstat mkdir rmdir unlink remove rename replace link symlink readlink chmod utime"
for name in names.split():
    setattr(os, name, without_dir_fd(getattr(os, name)))
for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
    known.clear()
"""
NO_FOLDERS = """
real_open = os.open
def open_file(path, flags, *args, **kwargs):
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.isdir(path):
        raise PermissionError(13, "Permission denied", os.fspath(path))  # as on Windows
    return real_open(path, flags, *args, **kwargs)
os.open = open_file
"""
NO_LINKS = """
def refused(*args, **kwargs):
    raise OSError(1, "Operation not permitted")
os.symlink = os.link = refused
"""


def hidden(*names: str) -> str:
    return "".join(f"del {name}\n" if "." in name else f"sys.modules['{name}'] = None\n" for name in names)


ODDITIES = {
    **{f"no {name}": hidden(name) for name in (*MODULES[:2], NAMES[0], *NAMES[2:4], "signal.SIGHUP")},
    "no os.O_NONBLOCK": hidden("fcntl", "os.O_NONBLOCK"),  # filelock takes both or neither
    "no dir_fd": NO_DIR_FD,
    "folders cannot be opened": NO_FOLDERS,
    "no links": NO_LINKS,
    "all of this": hidden(*MODULES, *NAMES) + NO_DIR_FD + NO_FOLDERS + NO_LINKS,
}
IMPORT = "import minbert, multitask; [getattr(m, name) for m in (minbert, multitask) for name in m.__all__]"
SEVERAL = """
import sys
from multitask.run import main
words = sys.argv[1:]
while words:
    end = words.index("then") if "then" in words else len(words)
    if status := main(words[:end]):
        sys.exit(status)
    words = words[end + 1:]
"""
COMMANDS = (
    TRAIN + " --out {run} then --resume --out {run} then --option evaluate --run {run} --threads 1 then "
    "--option ensemble --copy --run {run} {other} --out {out} --threads 1 then "
    "--option report --run {run} --threads 1 then "
    "--option predict --run {out} --task sentiment --input {data}/ids-sst-dev.csv --output {work}/out.tsv"
)


def odd(source: str, box: Box) -> None:
    """Import everything, then make a tiny run and use it: the results are those of every machine."""
    box.take("other")
    write(box / "odd/sitecustomize.py", "import os, signal, sys\n" + source)
    box.environment["PYTHONPATH"] = f"{box / 'odd'}:{box.environment['PYTHONPATH']}"
    box.environment["PYTHONDONTWRITEBYTECODE"] = "1"
    words = box.words(COMMANDS)
    code = f"{IMPORT}\n{SEVERAL}"
    box.command(words, expect=(0,), writes=("run", "out", "work/out.tsv"), fresh=["-c", code], seconds=60)
    box.check_results()


def cases() -> Cases:
    for name, source in ODDITIES.items():
        yield f"a tiny run: {name}", partial(odd, source)
