"""How far each partition is: what is under way, what is done, and so what may be committed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple


class _Batch(NamedTuple):
    end: int
    at: int


class Lane:
    """One partition, for as long as this member holds it. Batches begin and end in the partition's order."""

    __slots__ = ("_under_way", "committed", "done", "gone", "high", "partition", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.done: int | None = None
        """The next offset to read after a crash; None = nothing has been read yet."""
        self.committed: int | None = None
        """Of it, what the cluster knows."""
        self.high = 0
        """Where the partition ends, when last seen."""
        self.gone = False
        """Held by somebody else, perhaps: nothing of it may have an effect any more."""
        self._under_way: deque[_Batch] = deque()

    def begin(self, offsets: Iterable[int], at: int) -> None:
        """Messages came, of which the first was written at ``at`` (milliseconds)."""
        found = list(offsets)
        if self.done is None:
            self.done = self.committed = found[0]
        self._under_way.append(_Batch(found[-1] + 1, at))
        self.high = max(self.high, found[-1] + 1)

    def end(self) -> None:
        """The oldest of what is under way has had all its effects."""
        self.done = self._under_way.popleft().end

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._under_way

    @property
    def behind(self) -> bool:
        """Whether there is something to commit."""
        return self.done != self.committed

    @property
    def oldest(self) -> int | None:
        """When the oldest message under way was written."""
        return self._under_way[0].at if self._under_way else None

    @property
    def lag(self) -> int:
        """Messages that have not had their effects."""
        return 0 if self.done is None else max(self.high - self.done, 0)
