"""The breaker under a simulated clock, against a slow twin that keeps every event."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tastetwin.serving.gateway.breaker import COOL_DOWN, FAILURES, SHARE, WINDOW, Breaker, State


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def called(breaker: Breaker, succeeded: bool | None) -> bool:
    """One whole call, if it is let."""
    if not breaker.allows():
        return False
    breaker.end(breaker.begin(), succeeded)
    return True


def state(breaker: Breaker) -> State:
    """Looked at anew: it changes with time."""
    return breaker.state


def test_failures_in_a_row_open_it_and_time_and_one_success_close_it() -> None:
    """The circle that everybody expects, in order."""
    clock = Clock()
    breaker = Breaker(clock)
    states = [breaker.state]
    for _ in range(FAILURES):
        called(breaker, False)
        states.append(breaker.state)
    assert states == [State.CLOSED] * FAILURES + [State.OPEN]
    clock.now += COOL_DOWN / 2
    assert not called(breaker, True)
    clock.now += COOL_DOWN / 2
    assert state(breaker) is State.HALF_OPEN
    assert called(breaker, False) and state(breaker) is State.OPEN, "a trial that fails: from the beginning"
    clock.now += COOL_DOWN
    assert called(breaker, True) and state(breaker) is State.CLOSED


def test_half_of_the_calls_failing_opens_it_though_never_many_in_a_row() -> None:
    """A backend that answers every other call is no backend."""
    breaker = Breaker(Clock())
    for at in range(WINDOW - 1):
        assert called(breaker, at % 2 == 0) and state(breaker) is State.CLOSED
    called(breaker, False)
    assert state(breaker) is State.OPEN


def test_half_open_lets_one_call_and_an_abandoned_one_does_not_count() -> None:
    """A trial whose asker went away must neither shut the backend out for ever nor let everybody in."""
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        called(breaker, False)
    clock.now += COOL_DOWN
    trial = breaker.begin()
    assert not breaker.allows()
    breaker.end(trial, None)
    assert state(breaker) is State.HALF_OPEN and breaker.allows()


def test_answers_to_calls_of_an_earlier_state_change_nothing() -> None:
    """Slow failures of before the repair would open a breaker that has just closed."""
    clock = Clock()
    breaker = Breaker(clock)
    old = [breaker.begin() for _ in range(3 * FAILURES)]
    for _ in range(FAILURES):
        called(breaker, False)
    breaker.end(old.pop(), True)
    assert state(breaker) is State.OPEN
    clock.now += COOL_DOWN
    called(breaker, True)
    for began in old:
        breaker.end(began, False)
    assert state(breaker) is State.CLOSED


@dataclass
class Twin:
    """The state worked out anew, each time, from all that happened."""

    events: list[tuple[float, str, int, bool | None]] = field(default_factory=list)
    """When, 'begin' or 'end', of which call, how it ended."""

    def state(self, now: float) -> tuple[State, bool]:
        """And whether a call is let."""
        state, opened, trial = State.CLOSED, 0.0, None
        counted: list[bool] = []
        of_this_state: set[int] = set()
        for when, what, call, succeeded in [*self.events, (now, "look", -1, None)]:
            if state is State.OPEN and when - opened >= COOL_DOWN:
                state, trial, of_this_state = State.HALF_OPEN, None, set()
            if what == "begin":
                of_this_state.add(call)
                trial = call if state is State.HALF_OPEN else None
            if what != "end" or call not in of_this_state:
                continue
            trial = None
            if succeeded is None:
                continue
            counted.append(succeeded)
            recent = counted[-WINDOW:]
            row = counted[-FAILURES:]
            many = row == [False] * FAILURES or (len(recent) == WINDOW and recent.count(False) >= SHARE * WINDOW)
            if (state is State.HALF_OPEN and not succeeded) or (state is State.CLOSED and many):
                state, opened, counted, of_this_state = State.OPEN, when, [], set()
            elif state is State.HALF_OPEN:
                state, counted, of_this_state = State.CLOSED, [], set()
        return state, state is State.CLOSED or (state is State.HALF_OPEN and trial is None)


STEPS = st.lists(
    st.one_of(
        st.just(("begin", None)),
        st.tuples(st.just("end"), st.sampled_from([True, False, False, False, None])),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 0.5, 1.0])),
    ),
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.randoms(use_true_random=False))
def test_the_breaker_does_what_its_slow_twin_does(steps: list[tuple[str, float | bool | None]], draw: object) -> None:
    """Every interleaving of calls, ends and waits."""
    clock, twin = Clock(), Twin()
    breaker = Breaker(clock)
    under_way: list[tuple[int, int]] = []
    for number, (what, value) in enumerate(steps):
        if what == "wait":
            clock.now += float(value or 0)
        elif what == "begin" and breaker.allows():
            under_way.append((number, breaker.begin()))
            twin.events.append((clock.now, "begin", number, None))
        elif what == "end" and under_way:
            call, began = under_way.pop(draw.randrange(len(under_way)))  # type: ignore[attr-defined]
            succeeded = None if value is None else bool(value)
            breaker.end(began, succeeded)
            twin.events.append((clock.now, "end", call, succeeded))
        assert (breaker.state, breaker.allows()) == twin.state(clock.now)
