"""Whether, and when, to try a call again."""

from __future__ import annotations

import random
from typing import Final

BASE_SECONDS: Final = 0.05
"""Before the first retry, at most; twice as long before each further one."""
CAP_SECONDS: Final = 1.0
RESERVE: Final = 10.0
"""Retries that are there before any request was made, and that can be saved up."""
EARNED: Final = 0.1
"""Retries that a request adds: a server in trouble gets a tenth more requests, not several times as many."""


class Budget:
    """Of the retries of one client."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._left = RESERVE
        self._rng = rng or random.Random()

    def earn(self) -> None:
        """For a request."""
        self._left = min(RESERVE, self._left + EARNED)

    def wait(self, tries: int, retry_after: float | None) -> float | None:
        """Take a retry: seconds to wait after so many tries, full jitter above what the server asked for; None =
        there is none left."""
        if self._left < 1.0:
            return None
        self._left -= 1.0
        jitter = self._rng.uniform(0, min(CAP_SECONDS, BASE_SECONDS * 2 ** (tries - 1)))
        return (retry_after or 0.0) + jitter
