"""A client of the Redis server that an address names: the same for all that is kept there."""

from __future__ import annotations

from typing import Any, Final

from tastetwin.errors import MissingExtra, UsageError
from tastetwin.masks import masked

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtra.of("redis", "serve") from error

ERRORS: Final = (redis.RedisError, OSError)
"""Whatever a call may raise when Redis cannot be reached or will not."""


def client_of(address: str, seconds: float, code: str, setting: str, retries: int = 0, *, text: bool = False) -> Any:
    """A ``redis.Redis``; nothing is connected yet.

    Args:
        address: ``redis://``, ``rediss://`` or ``unix://``.
        seconds: that one call may wait for the connection, and again for the answer.
        code: of the error.
        setting: that holds the address, for the error.
        retries: of a call whose connection broke.
        text: whether answers are text rather than bytes.

    Raises:
        UsageError: ``code``, for an address or an option of it that is none.
    """
    try:
        client = redis.Redis.from_url(
            address,
            decode_responses=text,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), retries),
            protocol=2,  # a server that speaks 3 may make the client wait longer, for its maintenance
        )
        client.connection_pool.make_connection()  # connects not yet, but refuses unknown options
    except (ValueError, TypeError) as error:
        raise UsageError(
            code,
            place=setting,
            value=masked(address),
            rule="redis://[[user]:password@]host:port[/number], rediss://... or unix://...; or a folder",
            fix=f"correct {setting}",
        ) from error
    return client
