"""What the app itself remembers: whom a user dismissed, and whom they follow."""

from __future__ import annotations

import threading
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


class MemoryState:
    """Gone with the process: for trials and tests."""

    def __init__(self) -> None:
        self._lists: dict[tuple[Kind, str], dict[str, None]] = {}
        self._lock = threading.Lock()

    def add(self, kind: Kind, user: str, other: str) -> None:
        """As ``State`` says."""
        with self._lock:
            mine = self._lists.setdefault((kind, user), {})
            if other not in mine and len(mine) >= LIMIT:
                if not DROPS[kind]:
                    raise full(kind)
                del mine[next(iter(mine))]
            mine[other] = None

    def remove(self, kind: Kind, user: str, other: str) -> None:
        """As ``State`` says."""
        with self._lock:
            self._lists.get((kind, user), {}).pop(other, None)

    def of(self, kind: Kind, user: str) -> list[str]:
        """As ``State`` says."""
        with self._lock:
            return list(reversed(self._lists.get((kind, user), {})))

    def forget(self, user: str) -> None:
        """As ``State`` says."""
        with self._lock:
            self._lists = {key: mine for key, mine in self._lists.items() if key[1] != user}
            for mine in self._lists.values():
                mine.pop(user, None)

    def close(self) -> None:
        """Nothing is held."""


def open_state(address: str | None) -> State:
    """``app.state``: a folder, redis://..., or nothing for memory.

    Raises:
        UsageError: STATE-ADDRESS.
        StoreError: STATE-UNAVAILABLE.
        MissingExtra: without redis (``tastetwin[serve]``).
    """
    if address is None:
        return MemoryState()
    if is_redis(address, "STATE-ADDRESS", "app.state"):
        from tastetwin.serving.app.state_redis import RedisState

        return RedisState(address)
    from tastetwin.serving.app.state_sqlite import SqliteState

    return SqliteState(Path(address))


def full(kind: Kind) -> UsageError:
    """No room for one more."""
    return UsageError("FOLLOWS-FULL", place=kind, rule=f"at most {LIMIT} users", fix="take somebody off the list first")
