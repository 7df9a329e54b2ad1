"""Measure a server under load: `python tools/load.py --run RUN`.

Clients that each send one row after another, on a connection of their own, ask a server whose requests share
batches, and one that computes each alone (`--max-batch 1`). Then more clients ask than may wait (`--queue`).
Client and server share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from multitask.data.tables import SAMPLE
from multitask.data.tasks import SENTIMENT

CLIENTS = (1, 8, 32)
SHORT_QUEUE = 8


@dataclass
class Seen:
    """What the clients have seen."""

    seconds: float
    latencies: list[float] = field(default_factory=list)  # of the requests that were answered, in order
    statuses: Counter[int] = field(default_factory=Counter)

    def __str__(self) -> str:
        self.latencies.sort()
        middle, late = (self.latencies[int(part * len(self.latencies))] * 1000 for part in (0.5, 0.95))
        rate = len(self.latencies) / self.seconds
        return f"{rate:7.1f} answers/s, median {middle:6.1f} ms, 95% within {late:6.1f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="run or ensemble to serve")
    parser.add_argument("--task", default="sentiment", help="task to ask for; it must take single texts")
    parser.add_argument("--threads", default="2", help="processor threads of the server")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    arguments = parser.parse_args()
    with SENTIMENT.path(SAMPLE, "dev").open(encoding="utf-8") as file:
        texts = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
    words = ["--run", arguments.run, "--threads", arguments.threads]
    with served(words) as shared, served([*words, "--max-batch", "1"]) as alone:
        for clients in CLIENTS:
            for name, port in (("shared batches", shared), ("each alone", alone)):
                seen = asyncio.run(ask(port, arguments.task, texts, clients, arguments.seconds))
                print(f"{name:14} {clients:3} clients: {seen}", flush=True)
    with served([*words, "--queue", str(SHORT_QUEUE), "--max-rows", "1"]) as port:
        seen = asyncio.run(ask(port, arguments.task, texts, max(CLIENTS), arguments.seconds))
        print(f"queue of {SHORT_QUEUE:5} {max(CLIENTS):3} clients: {seen}; {refused(seen)}")


def refused(seen: Seen) -> str:
    counts = (f"{count:,} with status {status}" for status, count in sorted(seen.statuses.items()))
    return ", ".join(counts)


@contextmanager
def served(words: list[str]) -> Iterator[int]:
    """Start a server with these words; yield its port."""
    command = [sys.executable, "-m", "multitask.serve", *words, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            found = re.search(r":(\d+),", said)
            if found is None:
                raise SystemExit(f"the server has not started: {said}")
            yield int(found[1])
        finally:
            server.terminate()


async def ask(port: int, task: str, texts: list[str], clients: int, seconds: float) -> Seen:
    """Ask with so many clients for so long, after a second that is not counted."""
    turn = itertools.cycle(texts)
    await asyncio.gather(*(client(port, task, turn, Seen(1)) for _ in range(clients)))
    seen = Seen(seconds)
    await asyncio.gather(*(client(port, task, turn, seen) for _ in range(clients)))
    return seen


async def client(port: int, task: str, texts: Iterator[str], seen: Seen) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    until = time.perf_counter() + seen.seconds
    while (begun := time.perf_counter()) < until:
        body = json.dumps([next(texts)]).encode()
        head = f"POST /predict/{task} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = re.search(r"content-length: (\d+)", answer)
        assert length is not None, answer
        await reader.readexactly(int(length[1]))
        status = int(answer.split()[1])
        seen.statuses[status] += 1
        if status == 200:
            seen.latencies.append(time.perf_counter() - begun)
        else:
            await asyncio.sleep(0.1)  # a client that is refused waits before it asks again
    writer.close()


if __name__ == "__main__":
    main()
