"""Single flight, and vectors from store, flight or computation: each is computed once, and nobody's trouble spreads."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from tastetwin.serving.gateway.outputs import CachedVectors, MemoryOutputs, OutputMetrics, SingleFlight

Floats = npt.NDArray[np.float32]
DIM = 4
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


class Work:
    """A computation that waits to be let go, and counts."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked: list[list[bytes]] = []
        self.cancelled = 0
        self.error: Exception | None = None

    async def __call__(self, keys: list[bytes]) -> dict[bytes, bytes]:
        self.asked.append(keys)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return {key: key.upper() for key in keys}


def run(body: Callable[[SingleFlight, Work], Awaitable[None]]) -> None:
    async def whole() -> None:
        flight = SingleFlight()
        async with asyncio.timeout(10):
            await body(flight, Work())
            await asyncio.sleep(0)
            assert len(flight) == 0, "nothing is kept"
            assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing runs on"

    asyncio.run(whole())


Found = tuple[list[bytes], int]


async def begun(*calls: Coroutine[Any, Any, Found]) -> list[asyncio.Task[Found]]:
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0.01)
    return tasks


def test_concurrent_askers_of_a_key_share_one_computation() -> None:
    """A stampede on a place that everybody has just liked costs one call of the model."""

    async def body(flight: SingleFlight, work: Work) -> None:
        tasks = await begun(*(flight.ask([A, B], work) for _ in range(100)))
        work.go.set()
        found = await asyncio.gather(*tasks)
        assert work.asked == [[A, B]]
        assert found == [([A.upper(), B.upper()], own) for own in [2] + [0] * 99]

    run(body)


def test_only_keys_that_nobody_computes_are_computed() -> None:
    """Requests that overlap in part share that part."""

    async def body(flight: SingleFlight, work: Work) -> None:
        tasks = await begun(flight.ask([A, B], work), flight.ask([C, B, C, A], work))
        work.go.set()
        assert await asyncio.gather(*tasks) == [
            ([A.upper(), B.upper()], 2),
            ([C.upper(), B.upper(), C.upper(), A.upper()], 1),
        ]
        assert work.asked == [[A, B], [C]]
        await flight.ask([A], work)
        assert work.asked[2:] == [[A]], "what ended is not remembered"

    run(body)


def test_an_exception_reaches_all_askers_and_is_not_remembered() -> None:
    """The next asker may have more luck."""

    async def body(flight: SingleFlight, work: Work) -> None:
        work.error = OSError("told to")
        tasks = await begun(*(flight.ask([A], work) for _ in range(3)))
        work.go.set()
        assert await asyncio.gather(*tasks, return_exceptions=True) == [work.error] * 3
        work.error = None
        assert await flight.ask([A], work) == ([A.upper()], 1)

    run(body)


@pytest.mark.parametrize("leaving", [0, 1, 2])
def test_an_asker_that_is_cancelled_leaves_the_others_theirs(leaving: int) -> None:
    """Whoever came first may hang up: the others did not."""

    async def body(flight: SingleFlight, work: Work) -> None:
        tasks = await begun(*(flight.ask([A], work) for _ in range(3)))
        tasks.pop(leaving).cancel()
        await asyncio.sleep(0.01)
        work.go.set()
        assert [values for values, _ in await asyncio.gather(*tasks)] == [[A.upper()]] * 2
        assert len(work.asked) == 1 and work.cancelled == 0

    run(body)


def test_the_last_to_leave_cancels_and_whoever_comes_then_begins_anew() -> None:
    """Nobody computes for nobody, and nobody joins what is being cancelled."""

    async def body(flight: SingleFlight, work: Work) -> None:
        tasks = await begun(flight.ask([A], work), flight.ask([A], work))
        for task in tasks:
            task.cancel()
        work.go.clear()
        later = asyncio.ensure_future(flight.ask([A], work))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert work.cancelled == 1
        await asyncio.sleep(0.01)
        work.go.set()
        assert await later == ([A.upper()], 1)

    run(body)


def test_one_of_two_flights_failing_gives_up_the_other_without_a_word_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio complains of exceptions that nobody looked at; those are noise to whoever is on call."""

    async def body(flight: SingleFlight, work: Work) -> None:
        other = Work()
        other.error = ValueError("told to, too")
        work.error = OSError("told to")
        tasks = await begun(flight.ask([A], work), flight.ask([B], other), flight.ask([A, B], work))
        tasks[1].cancel()
        work.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert found[0] is found[2] is work.error and other.cancelled == 1

    with caplog.at_level(logging.DEBUG, "asyncio"):
        run(body)
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@settings(max_examples=50, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(2, 30))
def test_no_interleaving_gives_a_wrong_value_or_leaves_a_trace(draw: random.Random, askers: int) -> None:
    """Random askers, failures and cancellations: whoever is answered is answered rightly."""

    async def compute(keys: list[bytes]) -> dict[bytes, bytes]:
        for _ in range(draw.randrange(4)):
            await asyncio.sleep(0)
        if draw.random() < 0.2:
            raise OSError("told to")
        return {key: key * 2 for key in keys}

    async def body(flight: SingleFlight, work: Work) -> None:
        wanted, tasks = [], []
        for _ in range(askers):
            wanted.append([bytes([draw.randrange(5)]) for _ in range(draw.randrange(1, 4))])
            tasks.append(asyncio.ensure_future(flight.ask(wanted[-1], compute)))
            for _ in range(draw.randrange(3)):
                await asyncio.sleep(0)
            if draw.random() < 0.3:
                draw.choice(tasks).cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for keys, each in zip(wanted, found, strict=True):
            if isinstance(each, BaseException):
                assert isinstance(each, (OSError, asyncio.CancelledError))
            else:
                assert each[0] == [key * 2 for key in keys]
        await asyncio.sleep(0)

    run(body)


# -- vectors --------------------------------------------------------------------------------------------------------


def vectors(keys: Sequence[bytes]) -> Floats:
    return np.array([[key[0], len(key), 0.5, -1] for key in keys], np.float32)


class Cached:
    """``CachedVectors`` over memory, or a store that must be called beside the event loop."""

    def __init__(self, blocking: bool = False) -> None:
        self.store = MemoryOutputs(1 << 20)
        vars(self.store).update(blocking=blocking)
        self.registry = CollectorRegistry()
        self.cached = CachedVectors(self.store, OutputMetrics(self.registry))
        self.computed: list[list[bytes]] = []

    async def get(self, keys: list[bytes], dim: int = DIM) -> Floats:
        async def compute(missing: list[int]) -> Floats:
            self.computed.append([keys[at] for at in missing])
            await asyncio.sleep(0.005)
            return vectors([keys[at] for at in missing])

        return await self.cached.get(keys, dim, compute)

    def counts(self) -> tuple[float, ...]:
        name = "tastetwin_gateway_outputs_total"
        return tuple(self.registry.get_sample_value(name, {"result": each}) or 0 for each in ("hit", "miss", "shared"))


@pytest.mark.parametrize("blocking", [False, True])
def test_vectors_come_in_the_order_of_the_keys_and_only_the_missing_are_computed(blocking: bool) -> None:
    """In one call, for the model is at its best with many."""
    subject = Cached(blocking)

    async def body() -> None:
        np.testing.assert_array_equal(await subject.get([A, B]), vectors([A, B]))
        found = await subject.get([C, A, C, b"d" * 16, B])
        np.testing.assert_array_equal(found, vectors([C, A, C, b"d" * 16, B]))
        assert subject.computed == [[A, B], [C, b"d" * 16]] and found.dtype == np.float32
        found[:] = 0  # the caller's own
        np.testing.assert_array_equal(await subject.get([A]), vectors([A]))
        assert subject.counts() == (3, 4, 1)
        assert (await subject.get([])).shape == (0, DIM)

    asyncio.run(body())


def test_a_stampede_computes_once() -> None:
    """A thousand askers of one history, one call of the model."""
    subject = Cached()

    async def body() -> None:
        found = await asyncio.gather(*(subject.get([A]) for _ in range(1_000)))
        assert all(np.array_equal(each, vectors([A])) for each in found)
        assert subject.computed == [[A]] and subject.counts() == (0, 1, 999)
        await subject.get([A])
        assert subject.counts() == (1, 1, 999)

    asyncio.run(body())


def test_a_value_of_another_length_is_a_miss() -> None:
    """Whatever wrote it, it is no vector of this version."""
    subject = Cached()
    subject.store.put([(A, b"\0" * 12)])
    np.testing.assert_array_equal(asyncio.run(subject.get([A])), vectors([A]))
    assert subject.counts() == (0, 1, 0)


def test_what_was_not_computed_is_not_kept() -> None:
    """A failure that is cached is an outage that stays."""
    subject = Cached()

    async def fail(_: list[int]) -> Floats:
        raise OSError("told to")

    async def short(_: list[int]) -> Floats:
        return vectors([A])

    async def body() -> None:
        with pytest.raises(OSError, match="told to"):
            await subject.cached.get([A], DIM, fail)
        with pytest.raises(ValueError, match="wanted"):
            await subject.cached.get([A, B], DIM, short)
        assert subject.store.get([A, B]) == [None, None]

    asyncio.run(body())
