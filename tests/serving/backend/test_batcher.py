"""The queue: what is computed together, what fails alone, and what is not computed at all."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastetwin.config import BackendConfig
from tastetwin.errors import StoreError, UsageError
from tastetwin.serving.backend.batcher import CALL_COST, Batcher, Item, plan
from tastetwin.serving.backend.metrics import Metrics
from tastetwin.serving.backend.model import Model
from tests.serving.backend.fakes import HOLLOW, POISON, Session, fake_model, rows, vector_of

A_WHILE = 20.0


def items(known: list[tuple[int, int]]) -> list[Item]:
    models = [SimpleNamespace(version=f"v{number}") for number in range(3)]
    return [Item(SimpleNamespace(model=models[which]), row, length) for row, (which, length) in enumerate(known)]  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), min_size=1, max_size=60), st.integers(1, 500))
def test_every_row_is_computed_once_with_its_like(known: list[tuple[int, int]], tokens: int) -> None:
    """A row left out would wait for ever, and padding is what batching is to save."""
    given_items = items(known)
    calls = plan(given_items, tokens)
    assert sorted(item.row for call in calls for item in call) == list(range(len(known)))
    for call in calls:
        lengths = [item.length for item in call]
        assert len({item.job.model.version for item in call}) == 1
        assert len(call) == 1 or len(call) * max(lengths) <= tokens
        assert len(call) * max(lengths) - sum(lengths) <= CALL_COST


def run(work: Any, **settings: Any) -> Any:
    """Run ``work(batcher, model, session)`` with one worker."""

    async def main() -> Any:
        batcher = Batcher(BackendConfig(**settings), 1, Metrics())
        model, session = fake_model()
        try:
            return await work(batcher, model, session)
        finally:
            session.go.set()
            batcher.close()

    return asyncio.run(main())


async def held(batcher: Batcher, model: Model, session: Session) -> asyncio.Task[Any]:
    """A request that the only worker is busy with until ``session.go`` is set."""
    session.go.clear()
    task = asyncio.create_task(batcher.infer(model, rows(model, [[1]]), A_WHILE))
    assert await asyncio.to_thread(session.entered.wait, 30)
    return task


def test_rows_come_back_in_the_requests_order() -> None:
    """Calls are made by length, answers by row."""
    histories = [[5, 1, 1, 1], [6], [7, 1] * 30, [8], []]

    async def work(batcher: Batcher, model: Model, session: Session) -> Any:
        return await batcher.infer(model, rows(model, histories), A_WHILE)

    assert np.allclose(run(work), [vector_of(place) for place in (5, 6, 7, 8, 0)])


def test_a_request_without_rows_has_an_answer_without_rows() -> None:
    """An empty batch is no error, and no call of the model."""

    async def work(batcher: Batcher, model: Model, session: Session) -> Any:
        return (await batcher.infer(model, rows(model, []), A_WHILE)).shape, session.calls

    assert run(work) == ((0, 2), [])


def test_requests_that_wait_are_computed_together() -> None:
    """What a busy server saves."""

    async def work(batcher: Batcher, model: Model, session: Session) -> Any:
        first = await held(batcher, model, session)
        others = [asyncio.create_task(batcher.infer(model, rows(model, [[place]]), A_WHILE)) for place in (2, 3, 4)]
        await asyncio.sleep(0)
        session.go.set()
        return await asyncio.gather(first, *others), [len(call) for call in session.calls]

    answers, sizes = run(work)
    assert sizes == [1, 3]
    assert np.allclose(np.concatenate(answers), [vector_of(place) for place in (1, 2, 3, 4)])


@pytest.mark.parametrize(("bad", "error"), [(POISON, RuntimeError), (HOLLOW, StoreError)])
def test_a_bad_row_fails_alone(bad: int, error: type[Exception]) -> None:
    """Else one strange history would fail the requests of thirty others."""

    async def work(batcher: Batcher, model: Model, session: Session) -> Any:
        first = await held(batcher, model, session)
        asked = [asyncio.create_task(batcher.infer(model, rows(model, [[p]]), A_WHILE)) for p in (2, bad, 4)]
        await asyncio.sleep(0)
        session.go.set()
        await first
        return await asyncio.gather(*asked, return_exceptions=True)

    before, failed, after = run(work)
    assert np.allclose([before[0], after[0]], [vector_of(2), vector_of(4)])
    assert isinstance(failed, error)


def test_a_full_queue_refuses_at_once() -> None:
    """A queue without end is a promise that nobody keeps."""

    async def work(batcher: Batcher, model: Model, session: Session) -> Any:
        first = await held(batcher, model, session)
        waiting = asyncio.create_task(batcher.infer(model, rows(model, [[2]] * 3), A_WHILE))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="BACKEND-BUSY"):
            await batcher.infer(model, rows(model, [[3]] * 2), A_WHILE)
        fits = asyncio.create_task(batcher.infer(model, rows(model, [[3]]), A_WHILE))
        await asyncio.sleep(0)
        session.go.set()
        return [len(found) for found in await asyncio.gather(first, waiting, fits)]

    assert run(work, queue_rows=4) == [1, 3, 1]


def test_what_is_past_its_deadline_is_not_computed() -> None:
    """Nobody waits for it; others do."""

    async def work(batcher: Batcher, model: Model, session: Session) -> Any:
        first = await held(batcher, model, session)
        with pytest.raises(UsageError, match="DEADLINE-PASSED"):
            await batcher.infer(model, rows(model, [[2]]), 0.01)
        with pytest.raises(UsageError, match="DEADLINE-PASSED"):
            await batcher.infer(model, rows(model, [[2]]), 0)
        session.go.set()
        await first
        await batcher.infer(model, rows(model, [[3]]), A_WHILE)
        return [int(place) for call in session.calls for place in call[:, 0]]

    assert run(work) == [1, 3]


def test_a_budget_of_waiting_fills_a_call() -> None:
    """With ``batch_wait_ms`` an idle worker gives others time to join."""

    async def work(batcher: Batcher, model: Model, session: Session) -> Any:
        first = asyncio.create_task(batcher.infer(model, rows(model, [[2]]), A_WHILE))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, batcher.infer(model, rows(model, [[3]]), A_WHILE))
        return [len(call) for call in session.calls]

    assert run(work, batch_wait_ms=300) == [2]
