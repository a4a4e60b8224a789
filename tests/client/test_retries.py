"""The retry budget under a simulated clock, against a slow twin that keeps every event; and how long is waited."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.client.retries import CAP_SECONDS, SPAN, SPARE, RetryBudget, wait


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0, 1),
    st.lists(
        st.one_of(
            st.tuples(st.just("request"), st.integers(1, 300)),
            st.tuples(st.just("retry"), st.integers(1, 60)),
            st.tuples(st.just("wait"), st.floats(0, 4)),
        ),
        max_size=40,
    ),
)
def test_the_budget_does_what_its_slow_twin_does(share: float, steps: list[tuple[str, float]]) -> None:
    """In no span of whole seconds are there more retries than the share of its requests, and the spare ones."""
    clock = Clock()
    budget = RetryBudget(share, clock)
    events: list[tuple[int, str]] = []
    for what, value in steps:
        second = int(clock.now)
        if what == "wait":
            clock.now += value
        for _ in range(int(value) if what == "request" else 0):
            budget.request()
            events.append((second, "request"))
        for _ in range(int(value) if what == "retry" else 0):
            recent = [name for when, name in events if when > second - SPAN]
            allowed = recent.count("retry") + 1 <= share * recent.count("request") + SPARE
            assert budget.retry() is allowed
            events += [(second, "retry")] * allowed


def test_a_budget_of_nothing_has_its_spare_retries_and_gets_them_back() -> None:
    """A quiet night's single failure is retried, a storm is not."""
    clock = Clock()
    budget = RetryBudget(0.0, clock)
    assert [budget.retry() for _ in range(SPARE + 2)] == [True] * SPARE + [False] * 2
    clock.now += SPAN
    assert budget.retry()


@given(st.integers(1, 50), st.none() | st.floats(0, 60))
def test_no_retry_comes_before_the_server_wants_it(tries: int, told: float | None) -> None:
    """Nor much later, however often it was tried."""
    assert (told or 0.0) <= wait(tries, told) <= (told or 0.0) + CAP_SECONDS


def test_waits_double_up_to_the_cap_and_begin_anywhere_below(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers who failed together must not come back together, nor a thousand times a second."""
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    assert [wait(tries, None) for tries in (1, 2, 3, 5, 6, 50)] == [0.05, 0.1, 0.2, 0.8, 1.0, 1.0]
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    assert wait(3, None) == 0 and wait(3, 2.0) == 2
