"""Token buckets: whose requests count together, and how much memory they take."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tastetwin.serving.keys import Caller
from tastetwin.serving.rates import Rates


@dataclass(frozen=True)
class Somebody(Caller):
    """One of many behind one name."""

    who: str = ""

    @property
    def bucket(self) -> str:
        return self.who


def somebody(who: str) -> Somebody:
    return Somebody("user", frozenset(), 1.0, 2, who)


def test_one_somebody_does_not_use_up_anothers_requests() -> None:
    """They have one name in the log, and a bucket each."""
    rates = Rates()
    assert [rates.wait(somebody("a"), 0.0) for _ in range(3)] == [0, 0, 1]
    assert rates.wait(somebody("b"), 0.0) == 0


def test_a_refusal_costs_nothing() -> None:
    """Whoever goes on asking is let in as soon as whoever waited."""
    rates = Rates()
    waits = [rates.wait(somebody("a"), at / 10) for at in range(13)]
    assert waits == [0, 0, *[1] * 8, 0, 1, 1]


@pytest.mark.parametrize(("per_second", "seconds"), [(0.1, 10), (0.3, 4), (2.0, 1), (1e6, 1)])
def test_who_waits_as_long_as_told_is_let_in(per_second: float, seconds: int) -> None:
    """Retry-After: sooner is refused again, later is time lost."""
    slow, rates = Caller("slow", frozenset(), per_second, 1), Rates()
    assert [rates.wait(slow, 0.0), rates.wait(slow, 0.0)] == [0, seconds]
    assert rates.wait(slow, float(seconds)) == 0


def test_buckets_do_not_pile_up() -> None:
    """A million users a day must not be a million buckets for ever; who asks all the time keeps theirs."""
    rates = Rates(most=10)
    for at in range(1_000):
        rates.wait(somebody(f"u{at}"), 0.0)
        rates.wait(somebody("busy"), 0.0)
    assert len(rates._buckets) == 10
    assert rates.wait(somebody("busy"), 0.0) == 1
