"""Compare the speed of minbert with its peers, on identical real batches, in one run.

    python tools/bench.py --data DIR                                  everything, for both shapes
    python tools/bench.py --data DIR --shapes minilm --only step,forward        a quick look

All contestants of a part take turns on every batch, so that a noisy machine slows them all alike: read the
ratios. A time is a median with its quartiles. The floor of an encoder's work is the time that the matrix
products of its real tokens would take at the rate of one large product, measured in the same run. All
contestants share the same random weights. `transformers` is `BertModel` (sdpa) with torch's fused AdamW, each
batch padded to its longest row; ours is `BertModel.pooled` ("cls") with our AdamW; both use dropout .1. SMART
and BPPO are whole multitask updates without dropout. The extra `bench` installs the peers; missing ones are
reported as such.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minbert import AdamW, BertConfig, BertModel, BertTokenizer, hub
from minbert.command import explain
from minbert.errors import InputError
from minbert.optim import parameter_groups
from minbert.products import machine
from multitask.config import Batches, Config, Start, Training
from multitask.data.tables import SAMPLE, read_split
from multitask.data.tasks import BUILT_IN
from multitask.data.tokens import Examples, make_examples
from multitask.finetune import Finetuning, plan_over
from multitask.inference import to_device
from multitask.machine import product_seconds
from multitask.preparation import build_model
from multitask.train import update

SHAPES = {"minilm": BertConfig(30522, 384, 6, 12, 1536), "base": BertConfig()}
METHODS: dict[str, dict[str, Any]] = {
    "plain": {},
    "SMART": {"smart_weight": 1.0},
    "SMART, 4 rows": {"smart_weight": 1.0, "smart_rows": 4},
    "BPPO": {"bregman_weight": 1.0},
}
BATCH = 16
REST = 0.05  # seconds between turns: a thread pool that spins while it waits must not take its rival's cores
WARM_UP = 3  # turns that are not counted, one of each task
Batch = dict[str, Tensor]
Turn = Callable[
    [int], object
]  # one contestant's work on batch number i; a float it returns is the time in seconds


@dataclass(frozen=True)
class Bench:
    """The data and settings that every part uses."""

    shape: str
    config: BertConfig
    folder: Path  # random weights of this shape, and the tokenizer
    data: Path
    train: Mapping[str, Examples]
    batches: list[Batch]
    repeats: int
    device: torch.device
    precision: str
    rate: float  # flop/s of one large product

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


@dataclass(frozen=True)
class Result:
    """One contestant's line, in milliseconds, or MB for memory."""

    part: str
    shape: str
    name: str
    median: float | None = None
    low: float | None = None
    high: float | None = None
    ratio: float | None = None  # the first contestant's median over this one's: above 1 is faster
    floor_percent: float | None = None  # time at the machine's own product rate, in % of the median
    note: str = ""


# Timing


def take_turns(bench: Bench, contestants: Mapping[str, Turn], repeats: int, warm_up: int) -> dict[str, list]:
    """Return the seconds of every contestant on every batch; on each batch they go one after another."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(warm_up + repeats):
        for name, turn in contestants.items():
            time.sleep(REST)
            started = time.perf_counter()
            own = turn(number)
            if bench.device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(own if isinstance(own, float) else time.perf_counter() - started)
    return {name: seconds[warm_up:] for name, seconds in times.items()}


def race(
    bench: Bench,
    part: str,
    contestants: Mapping[str, Turn],
    missing: Mapping[str, str] | None = None,
    flops: float = 0.0,
    repeats: int | None = None,
    warm_up: int = WARM_UP,
) -> Iterator[Result]:
    """Time the contestants and yield their lines; `flops` is the mean of the products in one turn."""
    times = take_turns(bench, contestants, repeats or bench.repeats, warm_up)
    first = statistics.median(next(iter(times.values())))
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4)
        floor = 100 * flops / bench.rate / median if flops else None
        yield Result(part, bench.shape, name, 1000 * median, 1000 * low, 1000 * high, first / median, floor)
    for name, note in (missing or {}).items():
        yield Result(part, bench.shape, name, note=note)


def product_rate(device: torch.device, precision: str) -> float:
    """Return the flop/s of a product of two 2048 x 2048 matrices by the faster library."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return 2 * 2048**3 / product_seconds(dtype, device, 2048, 2048, 2048)


def product_flops(config: BertConfig, batch: Batch) -> float:
    """Return the flops of a forward pass over the real tokens; the last layer's are for first tokens only."""
    lengths = batch["attention_mask"].sum(dim=1).double()
    tokens, rows, width = float(lengths.sum()), float(len(lengths)), config.hidden_size
    per_row = 2 * (2 * width**2 + 2 * width * config.intermediate_size)  # query, output; feed-forward
    key_value = 2 * 2 * width**2
    attention = 4 * width * float((lengths**2).sum())  # Q K^T, and the weights times V
    last = tokens * key_value + rows * per_row + 4 * width * tokens
    whole = tokens * (key_value + per_row) + attention
    return (config.num_hidden_layers - 1) * whole + last + 2 * rows * width**2


def mean_flops(bench: Bench) -> float:
    return statistics.fmean(product_flops(bench.config, batch) for batch in bench.batches[WARM_UP:])


# Contestants


def load_theirs(bench: Bench) -> Any:
    import transformers

    model: Any = transformers.BertModel.from_pretrained(bench.folder, attn_implementation="sdpa")
    return model.to(bench.device)


def encoder_step(
    bench: Bench, model: nn.Module, pooled: Callable[..., Tensor], optimizer: torch.optim.Optimizer
) -> Turn:
    """Return a turn that trains an encoder alone for a step, on the mean square of its vectors."""
    model.train()

    def turn(number: int) -> None:
        with bench.autocast():
            loss = pooled(**bench.batches[number % len(bench.batches)]).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return turn


def our_step(bench: Bench) -> Turn:
    model = BertModel.from_pretrained(bench.folder).to(bench.device)
    return encoder_step(bench, model, model.pooled, AdamW(parameter_groups(model, 1e-4), lr=1e-5))


def their_step(bench: Bench) -> Turn:
    model = load_theirs(bench)
    fused = torch.optim.AdamW(parameter_groups(model, 1e-4), lr=1e-5, fused=True)
    return encoder_step(bench, model, lambda **batch: model(**batch).pooler_output, fused)


def cross_encoder_step(bench: Bench) -> Turn:
    """Return a turn of what CrossEncoder.fit repeats: its model's logits, a loss, the update."""
    model = cross_encoder(bench).model
    fused = torch.optim.AdamW(parameter_groups(model, 1e-4), lr=1e-5, fused=True)
    return encoder_step(bench, model, lambda **batch: model(**batch).logits, fused)


def cross_encoder(bench: Bench) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(bench.folder), num_labels=1, max_length=512, device=bench.device.type)


def inference(bench: Bench, model: nn.Module, pooled: Callable[..., Tensor]) -> Turn:
    model.eval()

    def turn(number: int) -> None:
        with torch.inference_mode(), bench.autocast():
            pooled(**bench.batches[number % len(bench.batches)])

    return turn


def our_forward(bench: Bench) -> Turn:
    model = BertModel.from_pretrained(bench.folder).to(bench.device)
    return inference(bench, model, model.pooled)


def their_forward(bench: Bench) -> Turn:
    model = load_theirs(bench)
    return inference(bench, model, lambda **batch: model(**batch).pooler_output)


def onnx_forward(bench: Bench) -> Turn:
    """Return a forward turn of `transformers`' model, exported with dynamic batch size and length."""
    import onnxruntime

    path, names = bench.folder / "model.onnx", ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in names}
    inputs = {name: bench.batches[0][name].cpu() for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            load_theirs(bench).cpu().eval(),
            (),
            str(path),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=axes,
            input_names=names,
            external_data=True,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    arrays = [{name: batch[name].cpu().numpy() for name in names} for batch in bench.batches]
    return lambda number: session.run(None, arrays[number % len(arrays)])


def method_step(bench: Bench, settings: Mapping[str, Any]) -> Turn:
    """Return a turn of a whole multitask fine-tuning update without dropout, collation included."""
    steps = bench.repeats + WARM_UP + 30  # the last updates of an epoch do extra work: they measure
    config = Config("finetune").changed(steps_per_epoch=steps, epochs=1, **settings)
    model = build_model(Start(weights=str(bench.folder), pooling="cls"), BUILT_IN, seed=0).to(bench.device)
    plan = plan_over(bench.train, config.batches, config.training)
    method = Finetuning(model, bench.train, {}, plan, config.smart, config.bppo)
    optimizer = AdamW(parameter_groups(model, config.training.weight_decay), lr=1e-5)

    def turn(number: int) -> None:
        update(optimizer, method.losses(number), 1, config.training.clip_norm)
        method.after_update(number)

    return turn


def present(makers: Mapping[str, tuple[str, Callable[[], Turn]]]) -> tuple[dict[str, Turn], dict[str, str]]:
    """Return the contestants whose package is installed, and a note on each of the others."""
    turns = {name: make() for name, (package, make) in makers.items() if find_spec(package)}
    missing = {name: f"no {package}" for name, (package, _) in makers.items() if name not in turns}
    return turns, missing


# Parts


def step(bench: Bench) -> Iterator[Result]:
    """Time a training step of the encoder."""
    turns, missing = present(
        {
            "transformers": ("transformers", lambda: their_step(bench)),
            "sentence-transformers": ("sentence_transformers", lambda: cross_encoder_step(bench)),
            "minbert": ("minbert", lambda: our_step(bench)),
        }
    )
    yield from race(bench, "step", turns, missing, 3 * mean_flops(bench))


def forward(bench: Bench) -> Iterator[Result]:
    """Time inference on batches of the training tables."""
    turns, missing = present(
        {
            "transformers": ("transformers", lambda: their_forward(bench)),
            "onnxruntime": ("onnxruntime", lambda: onnx_forward(bench)),
            "minbert": ("minbert", lambda: our_forward(bench)),
        }
    )
    yield from race(bench, "forward", turns, missing, mean_flops(bench))


def methods(bench: Bench) -> Iterator[Result]:
    """Time an update of each method, beside a plain training step of `transformers`."""
    turns, missing = present({"transformers": ("transformers", lambda: their_step(bench))})
    turns |= {name: method_step(bench, settings) for name, settings in METHODS.items()}
    yield from race(bench, "methods", turns, missing)


def adamw(bench: Bench) -> Iterator[Result]:
    """Time the optimizer's update alone, within training steps; the part `step` times the whole step."""
    turns: dict[str, Turn] = {}
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "torch fused": partial(torch.optim.AdamW, fused=True),
        "minbert": AdamW,
        "minbert compiled": partial(AdamW, compiled=True),
    }
    for name, kind in kinds.items():
        model = BertModel.from_pretrained(bench.folder).to(bench.device)
        optimizer = kind(parameter_groups(model, 1e-4), lr=1e-5)
        turns[name] = partial(update_seconds, encoder_step(bench, model, model.pooled, optimizer), optimizer)
    yield from race(bench, "adamw", turns)


def update_seconds(turn: Turn, optimizer: torch.optim.Optimizer, number: int) -> float:
    """Return the seconds that the optimizer takes in a training step."""
    clock: list[float] = []
    marks = [
        register(lambda *_: clock.append(time.perf_counter()))
        for register in (optimizer.register_step_pre_hook, optimizer.register_step_post_hook)
    ]
    turn(number)
    for mark in marks:
        mark.remove()
    return clock[1] - clock[0]


def predict(bench: Bench) -> Iterator[Result]:
    """Time all pairs of quora-dev, for BERT-base every eighth, from texts to probabilities."""
    rows = read_split(bench.data, "dev", {"paraphrase": BUILT_IN["paraphrase"]}, skip_bad_rows=False)
    pairs: list[Any] = [row.texts for row in rows["paraphrase"].rows()][:: 8 if bench.shape == "base" else 1]
    model = build_model(Start(weights=str(bench.folder), pooling="cls"), BUILT_IN, seed=0)
    model = model.to(bench.device).eval()

    def theirs() -> Turn:
        encoder = cross_encoder(bench)
        return lambda _: encoder.predict(pairs, batch_size=32, show_progress_bar=False)

    turns, missing = present(
        {
            "sentence-transformers": ("sentence_transformers", theirs),
            "minbert": ("minbert", lambda: lambda _: model.predict_proba("paraphrase", pairs)),
        }
    )
    encoded = model.token_ids("paraphrase", pairs)
    lengths = {"attention_mask": model.tokenizer.pad(encoded)["attention_mask"]}
    flops = product_flops(bench.config, lengths)
    yield from race(bench, f"predict {len(pairs)}", turns, missing, flops, repeats=3, warm_up=0)


def load(bench: Bench) -> Iterator[Result]:
    """Time loading a model from a folder."""
    turns, missing = present(
        {
            "transformers": ("transformers", lambda: lambda _: load_theirs(bench)),
            "minbert": ("minbert", lambda: lambda _: BertModel.from_pretrained(bench.folder)),
        }
    )
    yield from race(bench, "load", turns, missing, repeats=5, warm_up=1)


def sweep(bench: Bench) -> Iterator[Result]:
    """Time training steps on full rows, where there is no padding to skip."""
    for length in (16, 64, 128, 256, 512):
        shape = (max(1, BATCH * 64 // length), length)
        ones = torch.ones(shape, dtype=torch.int64, device=bench.device)
        batch = {
            "input_ids": torch.randint(1000, 30000, shape, device=bench.device),
            "attention_mask": ones,
            "token_type_ids": torch.zeros_like(ones),
        }
        full = replace(bench, batches=[batch])
        turns, missing = present(
            {
                "transformers": ("transformers", lambda full=full: their_step(full)),  # type: ignore[misc]
                "minbert": ("minbert", lambda full=full: our_step(full)),  # type: ignore[misc]
            }
        )
        flops = 3 * product_flops(bench.config, batch)
        yield from race(full, f"step {shape[0]}x{length}", turns, missing, flops, repeats=5, warm_up=1)


def memory(bench: Bench) -> Iterator[Result]:
    """Measure how much training adds to the peak memory of a process; each contestant gets its own."""
    makers = {"transformers": their_step, "minbert": our_step}
    found: dict[str, float] = {}
    for name, make in makers.items():
        if find_spec(name):
            with ProcessPoolExecutor(1, get_context("spawn")) as child:
                found[name] = child.submit(peak_memory, bench, make, torch.get_num_threads()).result()
    first = next(iter(found.values()))
    for name, megabytes in found.items():
        yield Result("memory (MB)", bench.shape, name, megabytes, ratio=first / megabytes)


def peak_memory(bench: Bench, make: Callable[[Bench], Turn], threads: int) -> float:
    """Return the MB that six training steps add to this process's peak, or on a GPU their peak."""
    torch.set_num_threads(threads)
    with suppress(ImportError):
        import transformers  # noqa: F401  (so that loading its code is not counted)

    before = resident_peak()
    turn = make(bench)
    for number in range(6):
        turn(number)
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident_peak() - before


def resident_peak() -> float:
    """Return this process's peak memory in MB. On Linux, getrusage's figure is inherited from the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


PARTS = {part.__name__: part for part in (step, forward, methods, adamw, predict, load, memory, sweep)}


# Command line


def main() -> None:
    args = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    tokenizer = BertTokenizer.from_pretrained(hub.resolve(args.weights))
    rate = product_rate(device, args.precision)
    print(f"{machine()}: {rate / 1e9:.0f} GFLOP/s in one large {args.precision} product\n")
    results: list[Result] = []
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            bench = prepare(args, shape, Path(folder), tokenizer, device, rate)
            for part in args.only:
                for result in PARTS[part](bench):
                    results.append(result)
                    print(line(result), file=sys.stderr, flush=True)
    print(table(results))
    if args.json:
        found = {"machine": machine(), "gflops": rate / 1e9}
        found |= {"device": args.device, "precision": args.precision}
        args.json.write_text(json.dumps(found | {"results": [asdict(r) for r in results]}, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=SAMPLE, help="folder of tables (default: the sample)")
    parser.add_argument(
        "--weights", default=hub.DEFAULT, help="checkpoint to take the tokenizer from: a name or a folder"
    )
    parser.add_argument("--only", type=listed(PARTS), default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--shapes", type=listed(SHAPES), default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--repeats", type=int, default=12, help="timed turns of each contestant")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"], help="bf16: autocast")
    parser.add_argument("--json", type=Path, help="write the results here as well")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error("--repeats: quartiles need at least 2")
    if not args.data.is_dir():
        parser.error(f"--data: {args.data} is not a folder")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA GPU is available")
    return args


def listed(names: Mapping[str, Any]) -> Callable[[str], list[str]]:
    """Return an argparse type for a comma-separated list of these names."""

    def parse(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; choose from {', '.join(names)}")
        return text.split(",")

    return parse


def prepare(
    args: argparse.Namespace,
    shape: str,
    folder: Path,
    tokenizer: BertTokenizer,
    device: torch.device,
    rate: float,
) -> Bench:
    """Make random weights of a shape, and batches of the three tasks in turn, as in a run with seed 0."""
    torch.manual_seed(0)
    BertModel(SHAPES[shape]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = read_split(args.data, "train", BUILT_IN, skip_bad_rows=False)
    train = {name: make_examples(rows[name], tokenizer, 512) for name in rows}
    count = args.repeats + WARM_UP
    plan = plan_over(train, Batches(batch_size=BATCH), Training(steps_per_epoch=count, epochs=1))
    names = list(train)
    batches = [
        to_device(train[names[plan.task(step)]].tokens.batch(rows, tokenizer.pad_token_id), device)
        for step in range(count)
        for rows in plan.batches(step)
    ]
    return Bench(
        shape,
        SHAPES[shape],
        folder,
        args.data,
        train,
        batches,
        args.repeats,
        device,
        args.precision,
        rate,
    )


def line(result: Result) -> str:
    """Return the result as a row of Markdown."""
    if result.median is None:
        cells = [result.note, "", "", ""]
    else:
        spread = f"{result.low:.0f} to {result.high:.0f}" if result.low is not None else ""
        floor = f"{result.floor_percent:.0f}%" if result.floor_percent else ""
        cells = [f"{result.median:.1f}", spread, f"{result.ratio:.2f}", floor]
    return "| " + " | ".join([result.shape, result.part, result.name, *cells]) + " |"


def table(results: list[Result]) -> str:
    head = ["shape", "part", "who", "median ms", "quartiles", "times as fast as the first", "of the floor"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *map(line, results)]
    return "\n".join(rows)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(explain(error))
