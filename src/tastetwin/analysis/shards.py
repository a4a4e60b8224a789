"""Everybody's vectors in shards: files of a range of positions each, memory-mapped by whoever looks for neighbours.

The vectors that are kept lie in buckets by user, compressed. A shard is the same vectors as plain float32, in the order
of user ids, so that it can be mapped into memory, or a part of it read, and multiplied as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tastetwin.analysis.arrays import put_array, read_array
from tastetwin.analysis.encode import check_vectors
from tastetwin.analysis.index import Floats, Ints
from tastetwin.analysis.parts import reweighted
from tastetwin.analysis.stored import as_matrix, read_vectors_table
from tastetwin.engine import Engine
from tastetwin.errors import StoreError
from tastetwin.progress import Progress, silent
from tastetwin.schema import USER
from tastetwin.store import Store
from tastetwin.tables import put_table, read_files

IN_ONE_PROCESS: Final = 500_000
"""Up to this many users, 15 kB each, the lists are made in one process, unless the configuration says otherwise."""
SHARD_USERS: Final = 250_000
"""Users per shard where the configuration leaves it open."""
IDS: Final = pa.schema([pa.field(USER, pa.string(), nullable=False)])
"""What of a file of vectors says whose they are."""

Job = Callable[[int], str]
"""What a worker does about one shard or block, by its number; must travel there."""


@dataclass(frozen=True)
class Shards:
    """[n, dim] unit vectors, see ``index.Vectors``."""

    root: str
    """The store's, as workers open it."""
    folder: str
    starts: tuple[int, ...]
    """The first position of each shard, then n."""
    dim: int
    axes: Floats
    """[rank, dim] and ``weight``: see ``parts.reweighted``, which rows go through when they are read."""
    weight: float = 1.0

    @property
    def store(self) -> Store:
        """Opened where it is asked for."""
        return Store(self.root)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, dim)."""
        return self.starts[-1], self.dim

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def numbers(self) -> range:
        """Of the shards."""
        return range(len(self.starts) - 1)

    def bounds(self, number: int) -> tuple[int, int]:
        """First position of a shard, and of the next."""
        return self.starts[number], self.starts[number + 1]

    def read(self, number: int) -> Floats:
        """[size, dim] a shard's vectors; memory-mapped where the store is local and they are as they were stored."""
        return self.seen(self._rows(number))

    def seen(self, stored: Floats) -> Floats:
        """Stored vectors as they are looked at."""
        return reweighted(stored, self.axes, self.weight)

    def ids(self, number: int) -> pa.ChunkedArray:
        """[size] a shard's user ids."""
        return read_files(self.store, [self._file(number, "ids", "parquet")], IDS).column(USER)

    def __getitem__(self, at: slice | Ints, /) -> Floats:
        positions = np.arange(*at.indices(len(self))) if isinstance(at, slice) else at
        rows = gather(positions, self, self._rows, np.empty((len(positions), self.dim), np.float32))
        return self.seen(rows)

    def reweighted(self, axes: Floats, weight: float) -> Shards:
        """As ``parts.reweighted``."""
        return replace(self, axes=axes, weight=weight)

    def stored(self) -> Shards:
        """The vectors themselves."""
        return replace(self, weight=1.0)

    def _rows(self, number: int) -> Floats:
        return read_array(self.store, self._file(number, "vectors", "npy"))

    def _file(self, number: int, name: str, suffix: str) -> str:
        return f"{self.folder}/{name}-{number:05d}.{suffix}"


def shards_for(asked: int, users: int, *, mutual: bool) -> int:
    """How many shards; 0 = one process does without.

    ``asked`` by the configuration, 0 where it leaves it open; lists in ``mutual`` order only one process can make.
    """
    if asked or mutual or users <= IN_ONE_PROCESS:
        return min(asked, users)
    return -(-users // SHARD_USERS)


def write_shards(
    engine: Engine,
    store: Store,
    paths: Sequence[str],
    user_ids: npt.NDArray[np.object_],
    dim: int,
    shards: int,
    folder: str,
) -> Shards:
    """Cut the vectors in files ``paths``, those of ``user_ids`` [n] in ascending order, into shards of equal size.

    Raises:
        StoreError: ENGINE-LOST-ROWS when a user has no vector; BAD-VECTOR.
    """
    n = len(user_ids)
    made = Shards(
        store.url(""),
        folder,
        tuple(n * number // shards for number in range(shards + 1)),
        dim,
        np.empty((0, dim), np.float32),
    )
    ends = [(str(user_ids[low]), str(user_ids[high - 1])) for low, high in map(made.bounds, made.numbers)]
    for_each(engine, functools.partial(_write_shard, shards=made, paths=tuple(paths), ends=ends), made.numbers)
    return made


def _write_shard(number: int, *, shards: Shards, paths: tuple[str, ...], ends: list[tuple[str, str]]) -> str:
    store, (low, high) = shards.store, shards.bounds(number)
    first, last = ends[number]
    table = read_vectors_table(store, list(paths), [(USER, ">=", first), (USER, "<=", last)])
    table = table.sort_by(USER)
    if table.num_rows != high - low:
        raise lost_rows(shards.folder)
    vectors = as_matrix(table)
    check_vectors(vectors, shards.folder)
    put_array(store, shards._file(number, "vectors", "npy"), vectors)
    put_table(store, shards._file(number, "ids", "parquet"), table.select(IDS.names))
    return ""


def lost_rows(place: str) -> StoreError:
    """The error for vectors that are not those of the users asked for."""
    return StoreError("ENGINE-LOST-ROWS", place=place, rule="every eligible user has a vector", fix="run it again")


def by_shard(positions: npt.NDArray[np.integer[Any]], shards: Shards) -> Iterator[tuple[int, Ints]]:
    """Each shard that holds some of the ``positions`` [m], with where in them its own are."""
    order = np.argsort(positions, kind="stable")
    ends = np.searchsorted(positions[order], shards.starts)
    for number in shards.numbers:
        if ends[number] < ends[number + 1]:
            yield number, order[ends[number] : ends[number + 1]]


def gather(
    positions: npt.NDArray[np.integer[Any]], shards: Shards, read: Callable[[int], Any], out: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Fill ``out`` [m, ...] with the rows of ``positions`` [m], where ``read`` gives a shard's; one at a time."""
    for number, mine in by_shard(positions, shards):
        out[mine] = read(number)[positions[mine] - shards.starts[number]]
    return out


def for_each(engine: Engine, job: Job, numbers: Sequence[int], progress: Progress = silent) -> list[str]:
    """What workers tell of each number, in any order; ``progress`` is told of numbers done."""
    told: list[str] = []
    for text in engine.each([str(number) for number in numbers], functools.partial(_do, job=job)):
        told.append(text)
        progress(len(told), len(numbers))
    return told


def _do(number: str, *, job: Job) -> str:
    return job(int(number))
