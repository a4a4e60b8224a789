"""Curves for TensorBoard, written while they come about."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

_FLUSH_SECONDS: Final = 10


def write(folder: Path, values: Mapping[str, float]) -> None:
    """Single figures, in place of those that the folder had.

    Raises:
        OSError: as ``Board``.
    """
    board = Board(folder)
    board.add(0, values)
    board.close()


class Board:
    """One folder of event files. Whoever adds never waits for the disk; what went wrong there is raised later.

    TensorBoard's own writer, and not a lighter one: it tells of a disk that is full, where others stop or hang.

    Args:
        folder: one run's, of this machine; made at the first value.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventFileWriter | None = None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Values at a step. The first hides what an earlier process had written from that step on.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._writer is None:
            self._writer = self._begin(step)
        found = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=found)))

    def _begin(self, step: int) -> EventFileWriter:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(self._folder), max_queue_size=0, flush_secs=_FLUSH_SECONDS)
        begun = SessionLog(status=SessionLog.START)
        writer.add_event(Event(wall_time=time.time(), step=step, session_log=begun))
        return writer

    def close(self) -> None:
        """Everything on the disk.

        Raises:
            OSError: as ``add``.
        """
        if self._writer is not None:
            self._writer.flush()
            self._writer.close()
