"""Where something is kept: a folder, or a Redis server."""

from __future__ import annotations

from tastetwin.errors import UsageError
from tastetwin.masks import masked


def is_redis(address: str, code: str, setting: str) -> bool:
    """Whether an address is one of a Redis server; otherwise it is a folder.

    Raises:
        UsageError: ``code``, for an address of something else.
    """
    if "://" in address and not address.startswith(("redis://", "rediss://", "unix://")):
        raise UsageError(
            code,
            place=setting,
            value=masked(address),
            rule="a folder, redis://..., rediss://... or unix://...",
            fix=f"correct {setting}, or leave it empty: it is memory then, gone with the process",
        )
    return "://" in address
