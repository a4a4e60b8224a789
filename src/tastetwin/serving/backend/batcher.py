"""Length-aware dynamic batching: rows of all waiting requests, computed in calls of similar lengths.

Greedy: a server that is idle begins at once and adds no delay; a busy one makes bigger calls, and more workers join as
more waits. Everything but the calls themselves happens on the event loop's thread; ONNX Runtime lets go of Python's
lock while it computes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from tastetwin.config import BackendConfig
from tastetwin.serving.backend.metrics import Metrics
from tastetwin.serving.backend.model import Floats, Model, Rows, are_sound
from tastetwin.serving.backend.refusals import busy, deadline_passed

CALL_COST: Final = 32
"""What a call of the model costs before its first favor, in padded favors: where rows of a call would be padded by more
than that, two calls are cheaper."""
SHARE: Final = 512
"""Favors that must wait before another worker joins those at work: a few milliseconds of theirs. With less, it would
make smaller calls of rows less alike, for the same vectors."""


@dataclass(eq=False, slots=True)
class Job:
    """One request on its way."""

    model: Model
    rows: Rows
    answer: asyncio.Future[Floats]
    vectors: Floats
    left: int


class Item(NamedTuple):
    """One row of a request."""

    job: Job
    row: int
    length: int


Outcome = tuple[Sequence[Item], Floats | Exception]
"""Rows of a call, and their vectors or what went wrong."""


def plan(items: Sequence[Item], tokens: int) -> list[list[Item]]:
    """Calls of the model: rows of one model and of similar lengths, at most ``tokens`` padded favors (or one row)."""
    order = sorted(items, key=lambda item: (item.job.model.version, item.length))
    calls = [[order[0]]]
    padding = 0
    for item in order[1:]:
        call = calls[-1]
        padding += (item.length - call[-1].length) * len(call)
        other = item.job.model is not call[-1].job.model
        if other or padding > CALL_COST or item.length * (len(call) + 1) > tokens:
            calls.append([item])
            padding = 0
        else:
            call.append(item)
    return calls


class Batcher:
    """The queue and the workers; lives on one event loop."""

    def __init__(self, config: BackendConfig, threads: int, metrics: Metrics) -> None:
        self._config, self._metrics = config, metrics
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="model")
        self._free = self._threads = threads
        self._waiting: deque[Item] = deque()
        self._favors = 0
        self._woken = False
        self._loop = asyncio.get_running_loop()
        metrics.queue_rows.set_function(lambda: len(self._waiting))

    async def infer(self, model: Model, rows: Rows, seconds: float) -> Floats:
        """[n, dim] vectors of a request's rows.

        Args:
            model: computes them.
            rows: checked by it.
            seconds: until nobody waits for the answer any more; what is not computed by then never is.

        Raises:
            UsageError: BACKEND-BUSY, DEADLINE-PASSED.
            StoreError: BAD-VECTOR, BAD-MODEL.
        """
        count = len(rows.lengths)
        if len(self._waiting) + count > self._config.queue_rows:
            raise busy(len(self._waiting), self._config.queue_rows)
        if seconds <= 0:
            raise deadline_passed(seconds)
        if count == 0:
            return np.empty((0, model.dim), np.float32)
        job = Job(model, rows, self._loop.create_future(), np.empty((count, model.dim), np.float32), count)
        self._waiting.extend(Item(job, row, length) for row, length in enumerate(rows.lengths))
        self._favors += sum(rows.lengths)
        self._wake()
        timer = self._loop.call_later(seconds, _expire, job, seconds)
        try:
            return await job.answer
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the workers; nothing may be waiting any more."""
        self._pool.shutdown()

    def _wake(self) -> None:
        """Soon, not now: requests that arrived together are taken together."""
        is_full = self._favors >= self._config.batch_tokens
        if self._free and (is_full or not self._woken):
            self._woken = True
            self._loop.call_later(0 if is_full else self._config.batch_wait_ms / 1_000, self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False
        while self._waiting and (self._free == self._threads or (self._free and self._favors >= SHARE)):
            items = self._take(min(self._config.batch_tokens, max(SHARE, self._favors // self._free)))
            if items:
                self._free -= 1
                calls = plan(items, self._config.batch_tokens)
                self._pool.submit(self._compute, calls)

    def _take(self, favors: int) -> list[Item]:
        """The oldest rows that somebody still waits for, of about so many favors together."""
        taken: list[Item] = []
        while self._waiting and favors > 0:
            item = self._waiting.popleft()
            self._favors -= item.length
            if not item.job.answer.done():
                taken.append(item)
                favors -= max(1, item.length)
        return taken

    def _compute(self, calls: Sequence[Sequence[Item]]) -> None:
        """On a worker's thread; every call's vectors go out as soon as they are there."""
        for number, call in enumerate(calls, 1):
            outcomes = _outcomes([item for item in call if not item.job.answer.done()])
            self._loop.call_soon_threadsafe(self._deliver, outcomes, number == len(calls))

    def _deliver(self, outcomes: Sequence[Outcome], is_last: bool) -> None:
        for items, found in outcomes:
            self._metrics.called([item.length for item in items])
            for at, item in enumerate(items):
                if isinstance(found, Exception):
                    _fail(item.job, found)
                else:
                    _add(item, found[at])
        if is_last:
            self._free += 1
            self._hand_out()


def _outcomes(call: Sequence[Item]) -> list[Outcome]:
    """One call of the model; where it fails, its rows one by one, so that only a bad one fails."""
    if not call:
        return []
    model = call[0].job.model
    try:
        vectors = model.vectors([(item.job.rows, item.row) for item in call])
        sound = are_sound(vectors)
        if sound.all():
            return [(call, vectors)]
        if len(call) == 1:
            return [(call, model.bad(vectors))]
    except Exception as error:  # ONNX Runtime's errors have no common class
        if len(call) == 1:
            return [(call, error)]
    return [outcome for item in call for outcome in _outcomes([item])]


def _add(item: Item, vector: Floats) -> None:
    job = item.job
    job.vectors[item.row] = vector
    job.left -= 1
    if job.left == 0 and not job.answer.done():
        job.answer.set_result(job.vectors)


def _expire(job: Job, seconds: float) -> None:
    _fail(job, deadline_passed(seconds))


def _fail(job: Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
