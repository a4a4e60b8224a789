"""How a stage tells how far it is; what is done with it (a bar, a log line, nothing) is the caller's business."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tastetwin.generations import Stage
    from tastetwin.runs import StageRecord


class Progress(Protocol):
    """Hears how far a stage is."""

    def __call__(self, done: int, total: int | None, phase: str = "", /) -> None:
        """``done`` so far of ``total`` where known, in rows, lines, users or steps, whatever the stage counts.

        ``phase`` names what is being done where a stage is more than one thing; counts begin anew with each.
        """


def silent(done: int, total: int | None, phase: str = "", /) -> None:
    """Tell nobody."""


class Reporter:
    """Hears what a job is doing; this one tells nobody."""

    def started(self, stage: Stage) -> Progress:
        """A stage begins; the returned function hears how far it is."""
        return silent

    def finished(self, stage: Stage, record: StageRecord) -> None:
        """A stage ended well."""

    def stop(self) -> None:
        """Nothing more comes, however the job ended."""
