"""Requests that wait for one model at the same time share a batch.

The model computes one batch at a time, in a thread of its own. What arrives meanwhile waits; when the batch
is done, the next one takes the oldest request and all others of its task that fit. So a request that comes
alone is computed at once, and batches grow as the load does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from multitask.predictor import Texts

Compute = Callable[[str, Texts], Sequence[Any]]  # a task and N texts or pairs -> N answers


class Full(Exception):
    """As many rows are waiting as may wait."""


@dataclass(frozen=True)
class Request:
    """Rows of one task, and where their answers go."""

    task: str
    texts: Texts
    answers: asyncio.Future[Sequence[Any]]


class Batches:
    """Answers requests by calling `compute` on several of them at once. Belongs to one event loop."""

    def __init__(self, compute: Compute, most_rows: int, most_waiting: int):
        """A batch is a single request, or several of at most `most_rows` rows. At most `most_waiting` rows
        wait or are being computed."""
        self.compute, self.most_rows, self.most_waiting = compute, most_rows, most_waiting
        self.rows = 0  # waiting, or being computed
        self._waiting: deque[Request] = deque()
        self._worker: asyncio.Task[None] | None = None
        threads = torch.get_num_threads()  # a new thread would have its own number
        self._thread = ThreadPoolExecutor(1, "model", torch.set_num_threads, (threads,))

    async def answer(self, task: str, texts: Texts) -> Sequence[Any]:
        """Return the answer to each text or pair. Raises Full if too many rows are waiting already."""
        if self.rows + len(texts) > self.most_waiting:
            raise Full(f"{self.rows:,} rows are waiting, and at most {self.most_waiting:,} may")
        request = Request(task, texts, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self.rows += len(texts)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await request.answers

    def close(self) -> None:
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = self._next()
            texts: Any = [text for request in batch for text in request.texts]
            try:
                answers = await loop.run_in_executor(self._thread, self.compute, batch[0].task, texts)
            except Exception as error:
                for request in batch:
                    if not request.answers.done():
                        request.answers.set_exception(error)
            else:
                for request in batch:
                    if not request.answers.done():  # nobody waits for it any more
                        request.answers.set_result(answers[: len(request.texts)])
                    answers = answers[len(request.texts) :]
            self.rows -= len(texts)

    def _next(self) -> list[Request]:
        """Take the oldest request, and those of its task that fit beside it, from those that wait."""
        batch = [self._waiting.popleft()]
        rows, passed = len(batch[0].texts), deque[Request]()
        while self._waiting:
            request = self._waiting.popleft()
            if request.task == batch[0].task and rows + len(request.texts) <= self.most_rows:
                batch.append(request)
                rows += len(request.texts)
            else:
                passed.append(request)
        self._waiting = passed
        return batch
