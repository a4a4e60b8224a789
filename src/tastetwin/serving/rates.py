"""How often a caller may ask: a token bucket each."""

from __future__ import annotations

import math

from tastetwin.serving.keys import Caller


class Rates:
    """Tokens left, by the caller's name: a key that is read anew does not start with a full bucket."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, caller: Caller, now: float) -> int:
        """Take a token and return 0; or whole seconds until there is one, at least 1."""
        tokens, since = self._buckets.get(caller.name, (float(caller.burst), now))
        tokens = min(float(caller.burst), tokens + (now - since) * caller.per_second)
        if tokens < 1.0:
            return max(1, math.ceil((1.0 - tokens) / caller.per_second))
        self._buckets[caller.name] = (tokens - 1.0, now)
        return 0
