"""Outputs in Redis: the gateways of several machines share them.

A Redis that cannot be reached, or is slow, costs its time-out once; then it is left alone for a moment, so that
requests do not each wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tastetwin.config import masked
from tastetwin.errors import MissingExtra, UsageError
from tastetwin.serving.gateway.outputs import OutputMetrics, seal, unseal

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtra.of("redis", "serve") from error

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
        try:
            self._client: Any = redis.Redis.from_url(
                address,
                socket_timeout=SECONDS,
                socket_connect_timeout=SECONDS,
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # a server that speaks 3 may make the client wait longer, for its maintenance
            )
            self._client.connection_pool.make_connection()  # connects not yet, but refuses unknown options
        except (ValueError, TypeError) as error:
            raise UsageError(
                "OUTPUTS-ADDRESS",
                place="gateway.outputs",
                value=masked(address),
                rule="redis://[[user]:password@]host:port[/number]",
                fix="correct gateway.outputs",
            ) from error

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
        except (redis.RedisError, OSError):
            self._paused_until = self._clock() + PAUSE
            self._metrics.failed(action)
            return None
