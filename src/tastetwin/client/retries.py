"""Whether, and when, to try a call again."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Final

BASE_SECONDS: Final = 0.05
"""Before the first retry, at most; twice as long before each further one."""
CAP_SECONDS: Final = 1.0
SPAN: Final = 10
"""Seconds that a retry budget looks back."""
SPARE: Final = 10
"""Retries in that time that are free: few requests could never pay for one."""


def wait(tries: int, retry_after: float | None) -> float:
    """Seconds to wait after so many tries: full jitter above what the server asked for."""
    return (retry_after or 0.0) + random.uniform(0, min(CAP_SECONDS, BASE_SECONDS * 2 ** (tries - 1)))


def bare(error: BaseException) -> BaseException:
    """The error, without the frames that it and its causes came through.

    aiohttp's name the error that left them. Such a circle is there until a full collection, and those are rare: what
    every call of a dead server leaves would pile up.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__, each = None, each.__cause__
    return error


class RetryBudget:
    """Retries are at most ``share`` of the requests of the last ten seconds, and a few more.

    Seconds are counted whole: the span reaches back nine to ten of them.
    """

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self._share, self._clock = share, clock
        self._requests: deque[list[int]] = deque()
        """[second, requests, retries], ascending."""

    def request(self) -> None:
        """One more request."""
        self._now()[1] += 1

    def allows(self) -> bool:
        """Whether one more retry is within the budget."""
        self._now()
        requests, retries = (sum(second[at] for second in self._requests) for at in (1, 2))
        return retries + 1 <= self._share * requests + SPARE

    def retry(self) -> bool:
        """Whether one more retry is within the budget; it is counted then."""
        allowed = self.allows()
        self._now()[2] += allowed
        return allowed

    def _now(self) -> list[int]:
        second = int(self._clock())
        while self._requests and self._requests[0][0] <= second - SPAN:
            self._requests.popleft()
        if not self._requests or self._requests[-1][0] != second:
            self._requests.append([second, 0, 0])
        return self._requests[-1]
