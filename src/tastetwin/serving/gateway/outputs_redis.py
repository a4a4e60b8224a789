"""Outputs in Redis: the gateways of several machines share them.

A Redis that cannot be reached, or is slow, costs its time-out once; then it is left alone for a moment, so that
requests do not each wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tastetwin.serving.gateway.outputs import OutputMetrics, seal, unseal
from tastetwin.serving.redis_client import ERRORS, client_of

PREFIX: Final = b"tastetwin:output:"
SECONDS: Final = 0.05
"""That one call may wait for the connection, and again for the answer."""
PAUSE: Final = 1.0
"""Seconds without calls after one that failed."""
EXPIRY: Final = 2 * 24 * 3_600
"""Seconds that an output is kept: a version mostly answers for a day."""


class RedisOutputs:
    """A Redis server, by its address."""

    blocking = True

    def __init__(
        self, address: str, metrics: OutputMetrics, *, expiry: int = EXPIRY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare a client; nothing is connected yet.

        Raises:
            UsageError: OUTPUTS-ADDRESS.
        """
        self._metrics, self._expiry, self._clock = metrics, expiry, clock
        self._paused_until = -1.0
        self._client = client_of(address, SECONDS, "OUTPUTS-ADDRESS", "gateway.outputs")

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As ``Outputs`` says."""
        if not keys:
            return []
        sealed = self._call("get", lambda: self._client.mget([PREFIX + key for key in keys]))
        return [unseal(key, each) for key, each in zip(keys, sealed or [None] * len(keys), strict=True)]

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """As ``Outputs`` says."""
        pipeline = self._client.pipeline(transaction=False)
        for key, value in pairs:
            pipeline.set(PREFIX + key, seal(key, value), ex=self._expiry)
        self._call("put", pipeline.execute)

    def close(self) -> None:
        """As ``Outputs`` says."""
        self._client.close()

    def _call(self, action: str, call: Callable[[], Any]) -> Any:
        """What Redis answers; None when it does not, or is left alone."""
        if self._clock() < self._paused_until:
            return None
        try:
            return call()
        except ERRORS:
            self._paused_until = self._clock() + PAUSE
            self._metrics.failed(action)
            return None
