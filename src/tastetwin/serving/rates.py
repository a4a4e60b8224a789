"""How often a caller may ask: a token bucket each."""

from __future__ import annotations

import math
from typing import Final

from tastetwin.serving.keys import Caller

MAX_BUCKETS: Final = 100_000


class Rates:
    """Tokens left, by the caller's bucket: a key that is read anew does not start with a full one.

    No more than ``MAX_BUCKETS`` are kept: those that were used longest ago go first, and start full when they come
    back.
    """

    def __init__(self, most: int = MAX_BUCKETS) -> None:
        self._most = most
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, caller: Caller, now: float) -> int:
        """Take a token and return 0; or whole seconds until there is one, at least 1."""
        tokens, since = self._buckets.pop(caller.bucket, (float(caller.burst), now))
        left = min(float(caller.burst), tokens + (now - since) * caller.per_second)
        granted = left >= 1.0
        self._buckets[caller.bucket] = (left - 1.0, now) if granted else (tokens, since)
        if len(self._buckets) > self._most:
            del self._buckets[next(iter(self._buckets))]
        return 0 if granted else max(1, math.ceil((1.0 - left) / caller.per_second))
