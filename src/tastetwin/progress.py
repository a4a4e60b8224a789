"""How a stage tells how far it is; what is done with it (a bar, a log line, nothing) is the caller's business."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], None]
"""Called with (done so far, total where known), in rows, lines, users or steps, whatever the stage counts."""


def silent(done: int, total: int | None) -> None:
    """Tell nobody."""
