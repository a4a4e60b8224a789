"""What every contender of ``bert4rec.py`` shares: histories in, user vectors at several times out, an honest clock.

Runs inside the peers' environments, which know numpy but not tastetwin.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

WIDTH, LAYERS, HEADS, MAX_LENGTH = 128, 2, 4, 100

Floats = npt.NDArray[np.float32]
Sequences = list[npt.NDArray[np.int32]]
Encode = Callable[[str], dict[str, Floats]]
"""The name of a half -> [n, dim] vectors by each way of making a user's vector."""


@dataclass(frozen=True)
class Task:
    """One contender's work, as the driver gave it on the command line."""

    folder: Path
    """Holds ``learners.npz``, ``a.npz`` and ``b.npz``: the arrays of ``tastetwin.features.histories.Histories``."""
    to: Path
    threads: int
    size: int
    """Sequences per training step; for ours, which has a batch of its own, epochs."""
    seconds: float
    """CPU time of training, at most: wall time would give less work on a busy machine."""
    every: float
    """CPU time between two snapshots."""

    def sequences(self, name: str) -> Sequences:
        """The places of each history, oldest first."""
        with np.load(self.folder / f"{name}.npz") as arrays:
            return np.split(arrays["places"], arrays["offsets"][1:-1])


def parse(description: str | None) -> Task:
    """The driver's arguments; numeric libraries read their number of threads from the environment it sets."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path)
    parser.add_argument("to", type=Path)
    for name, kind in (("threads", int), ("size", int), ("seconds", float), ("every", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    task = Task(**vars(parser.parse_args()))
    task.to.mkdir(parents=True, exist_ok=True)
    return task


@dataclass
class Diary:
    """Counts training steps, takes snapshots when they are due, and says when time is up.

    Its clocks show wall and CPU seconds of training alone: they stand still while a snapshot is taken.
    """

    task: Task
    encode: Encode
    spent: Counter[str] = field(default_factory=Counter)
    """``wall``, ``cpu``, ``histories`` and ``favors`` so far."""
    first: dict[str, float] = field(default_factory=dict)
    """The same after the first step, where the rate of the loop begins, and after the last so far."""
    last: dict[str, float] = field(default_factory=dict)
    entries: list[dict[str, dict[str, float]]] = field(default_factory=list)
    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)

    def step(self, histories: float, favors: float) -> bool:
        """After each training step of so many sequences with so many places; true when training must end."""
        self._tick()
        self.spent.update({"histories": histories, "favors": favors})
        self.last = dict(self.spent)
        self.first = self.first or self.last
        over = self.spent["cpu"] >= self.task.seconds
        if over or self.spent["cpu"] >= self.task.every * (len(self.entries) + 1):
            self.snapshot()
        return over

    def snapshot(self) -> None:
        """Write the vectors of both halves, and what training took up to here."""
        self._tick()
        number = len(self.entries)
        for half in ("a", "b"):
            for way, vectors in self.encode(half).items():
                np.save(self.task.to / f"{number}-{way}-{half}.npy", unit(vectors), allow_pickle=False)
        self.entries.append({"first": self.first, "last": self.last, "spent": dict(self.spent)})
        (self.task.to / "record.json").write_text(json.dumps(self.entries))
        self.start()

    def start(self) -> None:
        """Let the clocks run from now."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _tick(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        self.spent.update({"wall": wall - self._wall, "cpu": cpu - self._cpu})
        self._wall, self._cpu = wall, cpu


def unit(vectors: Floats) -> Floats:
    """Rows at unit length; a row of zeros stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)


def by_length(sequences: Sequences, size: int = 64) -> list[npt.NDArray[np.int64]]:
    """Positions in batches of similar length, so that encoding wastes little on padding."""
    order = np.argsort([len(sequence) for sequence in sequences], kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
