"""distributed.py: several processes on one run do what one does. They are started by torchrun, on the CPU."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, metrics_without_clock, write_tables
from safetensors.torch import load_file

from minbert import AdamW
from minbert.errors import InputError
from multitask import distributed, finetune, train
from multitask.distributed import Part, collect, deal, part_of
from multitask.launcher import NEEDED
from multitask.run import main, settings

STEPS = 20
PLAIN = ["--epochs", "2", "--steps-per-epoch", str(STEPS // 2), "--encoder-dropout", "0", "--lr", "1e-4"]
METHODS = ["--smart-weight", "5", "--smart-steps", "2", "--bregman-weight", "1", "--accumulate", "2"]
# Differences of nearly equal numbers, directions, and ratios of such: less exact.
DIAGNOSTICS = ("/r", "/d", "/cosine", "/variance")
OF_EACH_PROCESS = ("/gain", "/gradient_ratio")  # ratios whose mean is not the ratio of the whole batch

FATAL = """
import os, signal, sys
from multitask import train
from multitask.run import main

real, calls = train.update, []
def deadly(*args):
    calls.append(0)
    again = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if len(calls) == {call} and os.environ["RANK"] == "{rank}" and not again:
        {harm}
    return real(*args)
train.update = deadly
sys.exit(main())
"""

OVERFLOWS = """
import math, os, sys
from multitask import finetune
from multitask.run import main

real = finetune.adversarial_noise
def overflow(*args, **settings):
    noise, found = real(*args, **settings)
    return noise * math.inf, found
if os.environ["RANK"] == "1":
    finetune.adversarial_noise = overflow
sys.exit(main())
"""

WATCHED = """
import sys
from pathlib import Path
from multitask.run import main

status = main()
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
sys.exit(status or any("gloo" in name for name in threads))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_tables(tmp_path_factory.mktemp("data"))


@pytest.fixture
def words(tiny, data) -> list[str]:
    return [
        "--option",
        "finetune",
        "--weights",
        str(tiny),
        "--data",
        str(data),
        "--threads",
        "1",
        "--no-report",
        "--keep-state",
        *PLAIN,
    ]


def torchrun(processes: int, program: list[str], *words: object, restarts: int = 0):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--max-restarts={restarts}"]
    command = [*launcher, f"--nproc-per-node={processes}", *program, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


RUN = ["-m", "multitask.run"]


def fatal(folder: Path, rank: int, call: int, harm: str) -> list[str]:
    """A program in which one process comes to harm at its update of this number, when first started."""
    path = folder / "fatal.py"
    path.write_text(FATAL.format(rank=rank, call=call, harm=harm))
    return [str(path)]


def same_state(one: Path, several: Path) -> None:
    """Weights, teacher and moments to 1e-5."""
    folder = f"state/step-{STEPS:08d}"
    paths = list((one / folder).glob("*.safetensors"))
    assert paths
    for path in paths:
        mine, theirs = load_file(path), load_file(several / folder / path.name)
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(theirs[name], mine[name], rtol=0, atol=1e-5)


def same_run(one: Path, several: Path) -> None:
    """The same state, metrics as near as their terms allow, the same predictions."""
    same_state(one, several)
    for line, other in zip(metrics_without_clock(one), metrics_without_clock(several), strict=True):
        mine, theirs = flat(json.loads(line)), flat(json.loads(other))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if name.endswith(OF_EACH_PROCESS):
                assert value > 0 and theirs[name] > 0, name
                continue
            tolerance = 1e-2 if name.endswith(DIAGNOSTICS) else 2e-5
            if name.endswith("/pearson"):  # of six rows: it magnifies their rounding
                tolerance = 2e-4
            assert theirs[name] == pytest.approx(value, rel=tolerance), name
    for path in (one / "predictions").glob("*output.csv"):
        rows, others = (
            [line.split(" , ") for line in (run / "predictions" / path.name).read_text().splitlines()[1:]]
            for run in (one, several)
        )
        assert [row_id for row_id, _ in rows] == [row_id for row_id, _ in others]
        assert [float(value) for _, value in others] == pytest.approx([float(v) for _, v in rows], abs=1e-4)


def flat(nested: dict, path: str = "") -> dict[str, float]:
    found = {}
    for key, value in nested.items():
        found |= flat(value, f"{path}{key}/") if isinstance(value, dict) else {path + key: value}
    return found


def without_numbers(said: str) -> list[str]:
    """The lines without the scores; but for those that a slow machine shows more of, and for the warnings
    that follow from each process's own gradient ratios."""
    lines = [line for line in said.splitlines() if "examples/s" not in line and " is idle for " not in line]
    return [re.sub(r"\d\.\d+", "", line) for line in lines]


# Processes


def test_two_processes_train_as_one(words, tmp_path, capsys):
    """Five rows a batch, so two and three; tasks drawn by size; all methods; and the writer alone speaks.
    None of gloo's threads is left for the end of Python, which they would turn into an abort."""
    words = [*words, *METHODS, "--batch-size", "5", "--sampling", "annealed", "--weight-decay", "0.1"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    (tmp_path / "watched.py").write_text(WATCHED)
    done = torchrun(2, [str(tmp_path / "watched.py")], *words, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    same_run(tmp_path / "one", tmp_path / "two")
    said = capsys.readouterr().out.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    assert without_numbers(done.stdout) == without_numbers(said)


def test_two_processes_of_which_one_is_killed_train_as_one_that_lives(words, tmp_path):
    """One row a batch, so that the first process has none. It dies in the second epoch; torchrun starts both
    again, and they go on after step 12, whose state it has seen written to the end."""
    words = [*words, "--batch-size", "1", "--smart-weight", "5", "--save-every", "4"]
    latest = f"open({str(tmp_path / 'two' / 'state' / 'latest')!r}).read()"
    harm = f"while {latest} != 'step-00000012': pass\n        os.kill(os.getpid(), signal.SIGKILL)"
    done = torchrun(2, fatal(tmp_path, 0, 15, harm), *words, "--out", tmp_path / "two", restarts=1)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/two: resuming after step 12\n" in done.stdout
    complaints = done.stderr.count("error: ")  # none where torchrun ends the other before that has noticed
    assert complaints == done.stderr.count("error: another process of this run has ended") <= 1
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    same_run(tmp_path / "one", tmp_path / "two")


def test_an_r_that_is_not_finite_in_one_process_is_left_out_there(words, tmp_path, monkeypatch):
    """Of four rows the second process has two, whose R always overflows. The update takes place with the
    first's: lambda 2/4 R of its two rows. That is half of lambda times R on these rows alone, which one
    process computes below."""
    words = [*words, "--batch-size", "4"]
    (tmp_path / "overflows.py").write_text(OVERFLOWS)
    program = [str(tmp_path / "overflows.py")]
    done = torchrun(2, program, *words, "--smart-weight", "5", "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    half = lambda method, count, generator: np.arange(count // 2)  # noqa: E731
    monkeypatch.setattr(finetune.Finetuning, "smoothed_rows", half)
    assert main([*words, "--smart-weight", "2.5", "--out", str(tmp_path / "one")]) == 0
    same_state(tmp_path / "one", tmp_path / "two")
    ours, theirs = (
        [json.loads(line) for line in metrics_without_clock(tmp_path / name)] for name in ("one", "two")
    )
    for one, two in zip(ours, theirs, strict=True):
        assert "skipped" not in two  # no update was
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-5)
        for name, found in two["smart"].items():
            assert found["skipped"] == two["objective"][name]["updates"] > 0
            assert one["smart"][name]["skipped"] == 0
            assert found["r"] == pytest.approx(one["smart"][name]["r"] / 2, rel=1e-2)
    assert "SMART was left out of 4 updates of sentiment: it was not finite" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_worker_of_three_changes_no_number(words, tmp_path, rank):
    """Two rows a batch over three processes, with dropout: equal bytes, killed or not."""
    words = [*words, *METHODS, "--batch-size", "2", "--save-every", "4", "--encoder-dropout", "0.1"]
    assert torchrun(3, RUN, *words, "--out", tmp_path / "whole").returncode == 0
    program = fatal(tmp_path, rank, 15, "os.kill(os.getpid(), signal.SIGKILL)")
    assert torchrun(3, program, *words, "--out", tmp_path / "killed", restarts=1).returncode == 0
    assert metrics_without_clock(tmp_path / "killed") == metrics_without_clock(tmp_path / "whole")
    path = f"state/step-{STEPS:08d}/model.safetensors"
    assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, sampling, mode",
    [
        (3, "round-robin", "normalize"),
        (2, "proportional", "ball"),
        (2, "sqrt", "ball"),
        (3, "uniform", "ball"),
    ],
)
def test_every_sampling_and_mode(words, tmp_path, processes, sampling, mode):
    words = [*words, *METHODS, "--batch-size", "5", "--sampling", sampling, "--smart-mode", mode]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    assert torchrun(processes, RUN, *words, "--out", tmp_path / "several").returncode == 0
    same_run(tmp_path / "one", tmp_path / "several")


@pytest.mark.slow
@pytest.mark.parametrize(
    "option, changes",
    [
        ("pretrain", []),
        ("mlm", []),
        ("mnrl", ["--groups", "3", "--accumulate", "2"]),
        ("mnrl", ["--groups", "1"]),
    ],
)
def test_the_other_ways_to_train(words, tmp_path, option, changes):
    words = [*words, *changes, "--option", option]
    if option == "pretrain":
        dropout = words.index("--encoder-dropout")
        del words[dropout : dropout + 2]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = torchrun(2, RUN, *words, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rank, harm, said",
    [
        (1, "args[0].param_groups[0]['params'][0].data.fill_(float('nan'))", "updates in a row were skipped"),
        (1, "raise OSError('disk full')", "disk full; resume from the last saved state"),
        (0, "raise OSError('disk full')", "disk full; resume from the last saved state"),
        (0, "raise KeyboardInterrupt", "stopped; resume from the last saved state"),
    ],
)
def test_an_error_of_one_process_ends_all_with_one_line(words, tmp_path, rank, harm, said):
    done = torchrun(2, fatal(tmp_path, rank, 3, harm), *words, "--out", tmp_path / "run")
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "stopped"))]
    assert len(lines) == 1 and said in lines[0]
    assert done.stderr.count("Traceback") == 1, "torchrun's own"
    assert "multitask/train.py" not in done.stderr


@pytest.mark.slow
def test_stopped_through_torchrun_they_go_on_as_if_they_had_not_been(words, tmp_path):
    """SIGTERM to the launcher, who hands it on: all save one state, and say so once."""
    harm = "os.kill(os.getppid(), signal.SIGTERM); __import__('time').sleep(2)"
    done = torchrun(2, fatal(tmp_path, 1, 7, harm), *words, "--out", tmp_path / "two")
    how = f"-m multitask.run --resume --out {tmp_path}/two\n"
    assert done.stderr.count(how) == 1
    assert not (tmp_path / "two" / "result.json").exists()
    done = torchrun(2, RUN, "--resume", "--out", tmp_path / "two", "--threads", "1")
    assert done.returncode == 0 and "resuming after step" in done.stdout, done.stderr
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [["--lr", "much"], ["--data", "/nowhere"], ["--lr", "1e8"]])
def test_a_mistake_is_said_once(words, tmp_path, wrong):
    done = torchrun(2, RUN, *words, "--out", tmp_path / "run", "--clip-norm", "0", *wrong)
    assert done.stderr.count("error: ") == 1
    assert len(re.findall(r"exitcode *: 2", done.stderr)) >= 1


# Parts


@pytest.fixture
def as_process(monkeypatch):
    """A function that makes this process number `rank` of `size`, who cannot talk to the others."""

    def become(rank: int, size: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "size", lambda: size)

    return become


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("lengths", [[5], [3, 4], [2, 9, 4, 4, 7], list(range(1, 17))])
def test_the_parts_of_a_batch_make_it_up(as_process, size, lengths):
    """Every row, every token's noise and a weight of 1 in all; a process without rows takes the first, for
    nothing."""

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    count, tokens, rows, parts = len(lengths), sum(lengths), [], []
    for rank in range(size):
        as_process(rank, size)
        parts.append(Part.of(lengths))
    whole = torch.randn((tokens, 4), generator=seeded())
    noise = []
    for part in parts:
        mine = part.rows.tolist()
        its_tokens = sum(lengths[row] for row in mine)
        drawn = part.normal(4, seeded())
        assert drawn.shape == (its_tokens, 4)
        if part.weight:
            rows += mine
            noise.append(drawn)
            assert (part.weight, part.token_weight) == (len(mine) / count, its_tokens / tokens)
        else:
            assert mine == [0] and part.token_weight == 0
            assert torch.equal(drawn, whole[: lengths[0]])
    assert rows == list(range(count))
    assert torch.equal(torch.cat(noise), whole)
    assert sum(part.weight for part in parts) == pytest.approx(1)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_the_parts_of_some_of_a_batchs_rows_make_them_up(as_process, size):
    """Rows 1, 3 and 4 of five, of 9, 4 and 7 tokens. Their noise is what they get where all rows count, and
    their weights in the whole batch add up to 3/5."""
    lengths, counting = [2, 9, 4, 4, 7], np.array([1, 3, 4])

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    whole = torch.randn((sum(lengths), 4), generator=seeded()).split(lengths)
    rows, weight, token_weight, batch_weight = [], 0.0, 0.0, 0.0
    for rank in range(size):
        as_process(rank, size)
        all_rows = Part.of(lengths)
        part = all_rows.among(counting)
        assert set(part.rows) <= set(all_rows.rows)
        drawn = part.normal(4, seeded()).split([lengths[row] for row in part.rows])
        assert all(torch.equal(one, whole[row]) for one, row in zip(drawn, part.rows, strict=True))
        if part.weight:
            rows += part.rows.tolist()
        else:
            assert len(part.rows) == 1
        weight, token_weight = weight + part.weight, token_weight + part.token_weight
        batch_weight += part.batch_weight
    assert rows == counting.tolist()
    assert (weight, token_weight, batch_weight) == (pytest.approx(1), pytest.approx(1), pytest.approx(3 / 5))


def test_rows_are_divided_as_evenly_as_they_go(as_process):
    parts = []
    for rank in range(3):
        as_process(rank, 3)
        parts.append(part_of(8)[0])
    assert sorted(part.stop - part.start for part in parts) == [2, 3, 3]


def test_what_was_dealt_comes_back_in_order(as_process, monkeypatch):
    """Five items over two processes, and one over three, of which two get none."""
    for items, size in (("abcde", 2), ("a", 3)):
        hands = []
        for rank in range(size):
            as_process(rank, size)
            hands.append(list(deal(items)))
        monkeypatch.setattr(distributed, "several", lambda: True)
        monkeypatch.setattr(
            dist, "all_gather_object", lambda out, _, hands=hands: out.__setitem__(slice(None), hands)
        )
        assert "".join(collect(hands[0])) == items


def test_one_process_is_the_identity():
    assert distributed.add_up({"loss/all": 0.1, "skipped": 1.0}) == {"loss/all": 0.1, "skipped": 1.0}
    assert part_of(5) == (slice(0, 5), 1.0)
    assert deal([1, 2]) == collect([1, 2]) == [1, 2]
    assert distributed.from_writer(lambda: 7) == 7
    assert distributed.is_writer()
    assert distributed.own_device(torch.device("cuda:3")) == torch.device("cuda:3")
    assert distributed.default_threads() is None
    distributed.check_same({"--lr": 1})


@pytest.fixture
def beside(monkeypatch):
    """A function that sets another process beside this one, whose terms are these and whose gradients 1."""

    def beside(theirs: dict[str, float]) -> None:
        def gather(found: list, mine: dict[str, float]) -> None:
            found[:] = [mine, theirs]

        monkeypatch.setattr(distributed, "several", lambda: True)
        monkeypatch.setattr(distributed, "size", lambda: 2)
        monkeypatch.setattr(dist, "all_gather_object", gather)
        monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(1))

    return beside


def test_terms_are_added_up_over_the_processes(beside):
    """Each has its own part of a mean. A process may lack a term, as it does where R was left out."""
    beside({"loss/a": 2.0, "smart/a/r": 0.5, "smart/a/skipped": 0.0})
    found = distributed.add_up({"loss/a": 1.0, "smart/a/skipped": 1.0})
    assert found == {"loss/a": 3.0, "smart/a/r": 0.5, "smart/a/skipped": 1.0}


def test_an_update_is_of_the_whole_batch(beside):
    """Losses of 3 w and, in the other process, w (so that its gradient is 1): terms and gradients are sums.
    A step of plain descent would show a mean or a gradient added twice."""
    beside({"loss/all": 2.0, "loss/a": 5.0})
    weight = torch.nn.Parameter(torch.tensor(2.0))

    class Descent(torch.optim.SGD):
        def step(self, scale):
            assert scale == 1
            super().step()

    terms = train.update(Descent([weight], lr=0.125), [(3 * weight, {"loss/a": 1.0})], 1, 0.0)
    assert terms == {"loss/all": 8.0, "loss/a": 6.0}
    assert weight.item() == 2 - (3 + 1) / 8


def test_an_update_that_is_not_finite_in_another_process_is_skipped_in_this_one(beside):
    beside({"loss/all": float("nan")})
    weight = torch.nn.Parameter(torch.tensor(2.0))
    assert train.update(AdamW([weight]), [(3 * weight, {})], 1, 0.0) == {"skipped": 1.0}
    assert weight.item() == 2


def test_gradients_are_added_up_where_there_are_any(monkeypatch):
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.mul_(2))
    used, idle, matrix = (torch.nn.Parameter(torch.zeros(shape)) for shape in ((3,), (2,), (2, 2)))
    used.grad, matrix.grad = torch.arange(3.0), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    distributed.sum_gradients([used, idle, matrix])
    assert used.grad.tolist() == [0, 2, 4] and matrix.grad.tolist() == [[2, 4], [6, 8]]
    assert idle.grad is None


def test_the_writer_works_by_itself_and_tells_the_others(monkeypatch):
    """In `make` it is as one process; the others take what comes over the wire, and never call it."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    sent = []
    monkeypatch.setattr(dist, "broadcast_object_list", sent.extend)
    assert distributed.from_writer(lambda: (distributed.several(), distributed.size())) == (False, 1)
    assert distributed.several() and sent == [(False, 1)]
    with pytest.raises(ZeroDivisionError):
        distributed.from_writer(lambda: 1 // 0)
    assert distributed.several()
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda box: box.__setitem__(0, "theirs"))
    assert distributed.from_writer(lambda: pytest.fail("called")) == "theirs"


@pytest.mark.parametrize(
    "theirs, named",
    [
        ({"seed": 1, "lr": 1.0, "saved step": 400}, "seed, saved step"),
        ({"lr": 1.0, "saved step": 0}, "seed"),  # a setting without a value is not among the facts
        ({"seed": 0, "lr": 1.0, "saved step": 0, "smart_rows": 4}, "smart_rows"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_differs_is_refused_in_every_process(monkeypatch, theirs, named, rank):
    """Both see the facts of both, so neither goes on to what the other will never join."""
    ours = {"seed": 0, "lr": 1.0, "saved step": 0}
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(
        dist, "all_gather_object", lambda box, mine: box.__setitem__(slice(2), [ours, theirs])
    )
    message = f"process 1 differs from process 0 in {named}: start all machines"
    with pytest.raises(InputError, match=message):
        distributed.check_same((ours, theirs)[rank])


def test_processes_that_agree_are_the_same(monkeypatch):
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda box, mine: box.__setitem__(slice(2), [mine, mine]))
    distributed.check_same({"seed": 0})


@pytest.mark.parametrize("name, said", [("cuda", "2 processes need a GPU each"), ("mps", "need a GPU each")])
def test_a_gpu_each(monkeypatch, name, said):
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(InputError, match=said):
        distributed.own_device(torch.device(name))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    if name == "cuda":
        assert distributed.own_device(torch.device("cuda")) == torch.device("cuda:1")


def test_the_cores_are_divided_unless_the_user_says(monkeypatch):
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for processes, threads in ((2, 4), (3, 2), (16, 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's doing
        assert distributed.default_threads() == threads
    monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
    assert distributed.default_threads() == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert distributed.default_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert distributed.default_threads() is None


def test_the_first_to_fail_is_told_from_the_others():
    store = dist.HashStore()
    assert [distributed._first_to_fail(store) for _ in range(3)] == [True, False, False]


# What torchrun's environment changes


def test_started_again_a_run_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    words = ["--option", "finetune", "--out", str(tmp_path)]
    assert not settings(words).saving.resume
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert settings(words).saving.resume
    with pytest.raises(InputError, match="--max-restarts needs --out"):
        settings(words[:2])


def test_one_process_of_a_machine_speaks_of_wrong_flags(monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(InputError, match="bogus"):
        settings(["--option", "bogus"])
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as caught:
        settings(["--option", "bogus"])
    assert caught.value.code == 2 and slept, "torchrun would end the one that speaks"


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "²", "9" * 5000])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"])
def test_a_variable_of_torchrun_that_is_no_number_is_named(monkeypatch, name, text):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(name, text)
    with pytest.raises(InputError, match=f"^{name} is '.*, not a number as torchrun sets it"):
        settings(["--option", "bogus" if name == "LOCAL_RANK" else "finetune"])


def test_an_empty_variable_is_none(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "")
    assert settings(["--option", "finetune"]).option == "finetune"
    with distributed.processes():
        assert not distributed.several()


def test_several_processes_that_cannot_meet_are_told_to_use_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in NEEDED:
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("MASTER_PORT", "none")
    with (
        pytest.raises(InputError, match=r"the processes cannot meet .*none.*torchrun"),
        distributed.processes(),
    ):
        pass
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.delenv("RANK")
    with (
        pytest.raises(InputError, match="WORLD_SIZE is 2, but RANK, MASTER_PORT are"),
        distributed.processes(),
    ):
        pass


def test_what_does_not_train_works_in_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="needs a single process"):
        settings(["--option", "evaluate", "--run", "x"])
