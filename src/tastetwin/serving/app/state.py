"""What the app itself remembers: whom a user dismissed, and whom they follow."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Protocol, get_args

from tastetwin.errors import UsageError
from tastetwin.serving.addresses import is_redis

Kind = Literal["dismissed", "follows"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
LIMIT: Final = 1_000
"""Of each kind and user."""
DROPS: Final[dict[Kind, bool]] = {"dismissed": True, "follows": False}
"""Whether the oldest makes room for one more.

Nobody misses the oldest of a thousand dismissals: at worst somebody is shown once more and dismissed again. A follow
that vanished would be an unfollowing that nobody asked for, so one more is refused instead.
"""


class State(Protocol):
    """Lists of users, by kind and user. Calls may wait for a disk or a server: not for an event loop's thread.

    All raise StoreError STATE-UNAVAILABLE when the state cannot be read or written. What returned is kept.
    """

    def add(self, kind: Kind, user: str, other: str) -> None:
        """Put another user on a list; one who is there already stays where they are.

        Raises:
            UsageError: FOLLOWS-FULL.
        """

    def remove(self, kind: Kind, user: str, other: str) -> None:
        """Take another user off a list, if they are on it."""

    def of(self, kind: Kind, user: str) -> list[str]:
        """A list, the newest first."""

    def forget(self, user: str) -> None:
        """Remove a user's own lists, and the user from everybody else's."""

    def close(self) -> None:
        """Let go of files and connections."""


def open_state(address: str | None) -> State:
    """``app.state``: a folder, redis://..., or nothing for this process's memory.

    Raises:
        UsageError: STATE-ADDRESS.
        StoreError: STATE-UNAVAILABLE.
        MissingExtra: without redis (``tastetwin[serve]``).
    """
    if address is not None and is_redis(address, "STATE-ADDRESS", "app.state"):
        from tastetwin.serving.app.state_redis import RedisState

        return RedisState(address)
    from tastetwin.serving.app.state_sqlite import SqliteState

    return SqliteState(None if address is None else Path(address))


def full(kind: Kind) -> UsageError:
    """No room for one more."""
    return UsageError("FOLLOWS-FULL", place=kind, rule=f"at most {LIMIT} users", fix="take somebody off the list first")
