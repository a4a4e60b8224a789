"""When to stop calling a backend: a circuit breaker."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Final

Clock = Callable[[], float]
"""Seconds, never backwards."""

FAILURES: Final = 5
"""Failures in a row that open a breaker."""
WINDOW: Final = 20
"""Last outcomes that the share of failures is taken of, once there are so many."""
SHARE: Final = 0.5
"""Failures among them that open a breaker."""
COOL_DOWN: Final = 1.0
"""Seconds that a breaker stays open before one call may try."""


class State(IntEnum):
    """Of a breaker."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Closed: calls go through. Open: none does. Half open: a single one may, and decides.

    An outcome counts only in the state its call began in: answers to old calls neither open nor close anything.
    """

    _state: State
    _row: int
    _last: deque[bool]

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._opened = 0.0
        self._began = 0
        self._trying = False
        self._shut()

    @property
    def state(self) -> State:
        """Open turns half open by time alone."""
        if self._state is State.OPEN and self._clock() - self._opened >= COOL_DOWN:
            self._state, self._trying = State.HALF_OPEN, False
            self._began += 1
        return self._state

    def allows(self) -> bool:
        """Whether a call may begin now."""
        state = self.state
        return state is State.CLOSED or (state is State.HALF_OPEN and not self._trying)

    def begin(self) -> int:
        """A call begins, which ``allows`` let; returns what ``end`` wants."""
        self._trying = self.state is State.HALF_OPEN
        return self._began

    def end(self, began: int, succeeded: bool | None) -> None:
        """How the call went; None = it says nothing about the backend."""
        if began != self._began:
            return
        self._trying = False
        if succeeded is None:
            return
        if self._state is State.HALF_OPEN and succeeded:
            self._shut()
        elif self._state is State.HALF_OPEN or self._too_many(succeeded):
            self._open()

    def _too_many(self, succeeded: bool) -> bool:
        self._row = 0 if succeeded else self._row + 1
        self._last.append(succeeded)
        failed = self._last.count(False)
        return self._row >= FAILURES or (len(self._last) == WINDOW and failed >= SHARE * WINDOW)

    def _shut(self) -> None:
        self._state = State.CLOSED
        self._row, self._last = 0, deque(maxlen=WINDOW)
        self._began += 1

    def _open(self) -> None:
        self._state, self._opened = State.OPEN, self._clock()
        self._began += 1
