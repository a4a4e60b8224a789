"""How a stage tells how far it is; what is done with it (a bar, a log line, nothing) is the caller's business."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Hears how far a stage is."""

    def __call__(self, done: int, total: int | None, phase: str = "", /) -> None:
        """``done`` so far of ``total`` where known, in rows, lines, users or steps, whatever the stage counts.

        ``phase`` names what is being done where a stage is more than one thing; counts begin anew with each.
        """


def silent(done: int, total: int | None, phase: str = "", /) -> None:
    """Tell nobody."""
