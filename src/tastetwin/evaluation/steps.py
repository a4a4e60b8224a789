"""The steps of a long measurement: each kept as soon as it is done, found again by a repeat, and told to who waits."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from tastetwin.errors import InputError

Step = tuple[str, str]
"""Part of the measurement ("seed 1", "lists") and method."""
Tell = Callable[[str], None]

HEARTBEAT: Final = 60.0
"""Seconds between signs of life of a step."""


class Steps:
    """Does steps, or finds them done.

    The folder holds one JSON file per step, written whole or not at all; it must belong to one dataset, one
    configuration and one version of the code.
    """

    def __init__(self, plan: Sequence[Step], tell: Tell, folder: Path | None = None, *, again: bool = False) -> None:
        """Name all steps to come, who hears of them, where they are kept (None: nowhere), whether to do all anew.

        Raises:
            InputError: KEEP-UNWRITABLE when the folder cannot be made.
        """
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    "KEEP-UNWRITABLE", place=str(folder), value=str(error), rule="a folder", fix="give another --keep"
                ) from error
        self.plan = list(plan)
        self.folder = folder
        self.done: dict[Step, float] = {}
        """Seconds each finished step took, whenever that was."""
        self._tell = tell
        self._again = again
        self._to_do = {step for step in self.plan if again or self._read(step) is None}

    def kept(self) -> int:
        """How many steps lie in the folder."""
        return 0 if self._again else sum(self._read(step) is not None for step in self.plan)

    def do(self, step: Step, work: Callable[[], Any]) -> Any:
        """What ``work`` found (JSON but for NumPy arrays and numbers), now or before; arrays come back as lists."""
        record = None if self._again else self._read(step)
        known = "" if record is None else ", kept"
        if record is None:
            began = time.monotonic()
            with self._heartbeat(step):
                found = work()
            record = {"seconds": round(time.monotonic() - began, 3), "found": found}
            self._write(step, record)
        self.done[step] = record["seconds"]
        self._tell(f"{_name(step)}, {spoken(self.done[step])}{known} ({self._progress()})")
        return record["found"]

    def _progress(self) -> str:
        count = f"{len(self.done)} of {len(self.plan)}"
        left = self._to_do - self.done.keys()
        if not left:
            return count
        seconds = {method: took for (_, method), took in self.done.items()}
        is_known = all(method in seconds for _, method in left)
        most = sum(seconds.get(method, 0) for _, method in left)
        if not is_known and most < 1:
            return count
        return f"{count}, {'about' if is_known else 'at least'} {spoken(most)} left"

    @contextmanager
    def _heartbeat(self, step: Step) -> Iterator[None]:
        ended = threading.Event()

        def beat() -> None:
            began = time.monotonic()
            while not ended.wait(HEARTBEAT):
                self._tell(f"{_name(step)}, still at it after {spoken(time.monotonic() - began)}")

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def _path(self, step: Step) -> Path | None:
        if self.folder is None:
            return None
        return self.folder / f"{'.'.join(re.sub(r'[^A-Za-z0-9]+', '-', part).strip('-') for part in step)}.json"

    def _read(self, step: Step) -> dict[str, Any] | None:
        path = self._path(step)
        if path is None or not path.is_file():
            return None
        try:
            record: dict[str, Any] = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError:  # a disk gave up on it: one step more to do
            return None
        return record

    def _write(self, step: Step, record: dict[str, Any]) -> None:
        path = self._path(step)
        if path is None:
            return
        aside = path.with_suffix(f".{os.getpid()}.part")
        aside.write_bytes(orjson.dumps(record, default=lambda array: array.tolist()))
        aside.replace(path)


def spoken(seconds: float) -> str:
    """A duration for people: seconds below 90 s, minutes below 90 min, else hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _name(step: Step) -> str:
    return ": ".join(step)
