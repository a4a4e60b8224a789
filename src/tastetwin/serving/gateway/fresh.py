"""Favors that came since the run: kept, so that neither a restart nor another gateway loses them.

One record a user: all that came, merged as the mart would merge it. Once the run that has them is published they say
nothing new, and go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tastetwin.features.favors import Favors, merged


@dataclass(frozen=True)
class FreshRecord:
    """What came of one user."""

    user: str
    favors: Favors
    arrived: float
    """When the last of it came, seconds since 1970."""
    number: int
    """Of its last change: ascends over all users, from 1."""


class FreshLog(Protocol):
    """Records by user, and in the order of their last change. What ``add`` returned from is durable."""

    def add(self, user: str, new: Favors, arrived: float) -> FreshRecord:
        """Merge what came into the user's record; returns the whole of it."""

    def since(self, cursor: int) -> tuple[list[FreshRecord], int]:
        """Records of which the number is beyond ``cursor`` (0 = all), and the cursor to ask with next time."""

    def remove(self, users: Sequence[str]) -> None:
        """Drop records."""

    def close(self) -> None:
        """Give back what is held open."""


class MemoryLog:
    """Of this process alone, for as long as it lives: for trying things out."""

    def __init__(self) -> None:
        self._records: dict[str, FreshRecord] = {}
        self._last = 0

    def add(self, user: str, new: Favors, arrived: float) -> FreshRecord:
        """As ``FreshLog`` says."""
        known = self._records.pop(user, None)
        self._last += 1
        record = FreshRecord(user, new if known is None else merged(known.favors, new), arrived, self._last)
        self._records[user] = record
        return record

    def since(self, cursor: int) -> tuple[list[FreshRecord], int]:
        """As ``FreshLog`` says."""
        return [record for record in self._records.values() if record.number > cursor], self._last

    def remove(self, users: Sequence[str]) -> None:
        """As ``FreshLog`` says."""
        for user in users:
            self._records.pop(user, None)

    def close(self) -> None:
        """Nothing is open."""


KEPT_DAYS: Final = 1
"""Favors of the day before the run's last are kept yet: the source may have delivered them late."""
