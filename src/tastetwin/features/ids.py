"""Ids in files that are memory-mapped: open in milliseconds, shared by processes, found in well under a microsecond.

A hash table that never changes: ``starts`` says which ``slots`` belong to a bucket, a slot is a position, ``offsets``
and ``bytes`` are the ids themselves, so a found id is compared, never guessed. Within a bucket the ids ascend: ids
chosen to share a bucket cost a binary search and no more.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tastetwin.features.vocabulary import NO_ROW

NO_POSITION: Final = -1

_FILES: Final = ("starts", "slots", "offsets", "bytes")
_HASHED_AT_ONCE: Final = 1 << 16
_NO_ROW: Final = int(NO_ROW)


class IdIndex:
    """Id to position and back, in a list of distinct ids that is given once and never changes."""

    def __init__(self, starts: memoryview, slots: memoryview, offsets: memoryview, data: memoryview) -> None:
        """Over the four parts as ``write`` made them; see ``open``."""
        self._starts = starts
        self._slots = slots
        self._offsets = offsets
        self._data = data
        self._mask = len(starts) - 2

    @staticmethod
    def write(folder: Path, ids: pa.Array | pa.ChunkedArray) -> list[Path]:
        """Write the index of ``ids`` into ``folder``, made if it is not there; returns its files.

        Args:
            folder: where to.
            ids: [n] strings, distinct, none null, in any order; fewer than 2**32. Position is the place in this list.
        """
        texts = _one_array(ids)
        offsets, data = _utf8(texts)
        buckets = 1 << max(len(texts) - 1, 0).bit_length()
        bucket = _hashes(texts) & np.uint32(buckets - 1)
        starts = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=buckets))]).astype(np.uint32)
        ascending = pc.array_sort_indices(texts).to_numpy()
        slots = ascending[np.argsort(bucket[ascending], kind="stable")].astype(np.uint32)
        folder.mkdir(parents=True, exist_ok=True)
        parts = dict(zip(_FILES, (starts, slots, offsets, data), strict=True))
        return [_save(folder, name, part) for name, part in parts.items()]

    @classmethod
    def open(cls, folder: Path) -> IdIndex:
        """What ``write`` wrote, memory-mapped; the files are trusted, so their hashes are the caller's to check.

        Raises:
            OSError: a file is not there.
            ValueError: a file is cut off or none of ours.
        """
        return cls(*(memoryview(_load(folder, name)) for name in _FILES))

    def __len__(self) -> int:
        """Ids."""
        return len(self._slots)

    def position(self, name: str) -> int:
        """Where ``name`` is in the list of ids; ``NO_POSITION`` where it is not. Any text may be asked for."""
        key = name.encode("utf-8", "surrogatepass")
        bucket = _hash(key) & self._mask
        low, high = self._starts[bucket], self._starts[bucket + 1]
        while low < high:
            middle = (low + high) >> 1
            at: int = self._slots[middle]
            found = self._data[self._offsets[at] : self._offsets[at + 1]].tobytes()
            if found == key:
                return at
            if found < key:
                low = middle + 1
            else:
                high = middle
        return NO_POSITION

    def positions(self, names: Iterable[str]) -> list[int]:
        """``position`` of each."""
        return [self.position(name) for name in names]

    def name(self, position: int) -> str:
        """The id at a position, 0 .. n - 1.

        Raises:
            IndexError: there is no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(position)
        return str(self._data[self._offsets[position] : self._offsets[position + 1]], "utf-8")


class PlaceIndex:
    """Which vocabulary row each known place id is read as: ``PlaceRows``, from files and for a few ids at a time."""

    def __init__(self, ids: IdIndex, rows: memoryview) -> None:
        """``rows``: [n_ids] int32; see ``open``."""
        self._ids = ids
        self._rows = rows

    @staticmethod
    def write(folder: Path, place_ids: pa.Array | pa.ChunkedArray, rows: npt.NDArray[np.int32]) -> list[Path]:
        """Write into ``folder``; returns the files. Arguments as in ``PlaceRows``."""
        return [*IdIndex.write(folder, place_ids), _save(folder, "rows", rows)]

    @classmethod
    def open(cls, folder: Path) -> PlaceIndex:
        """What ``write`` wrote, memory-mapped; errors as ``IdIndex.open``."""
        return cls(IdIndex.open(folder), memoryview(_load(folder, "rows")))

    def __len__(self) -> int:
        """Places."""
        return len(self._ids)

    def of(self, place_ids: Iterable[str]) -> list[int]:
        """Rows of the given ids; ``NO_ROW`` for ids never heard of."""
        rows = self._rows
        return [_NO_ROW if at < 0 else rows[at] for at in map(self._ids.position, place_ids)]


def _hash(key: bytes) -> int:
    return zlib.crc32(key)


def _hashes(texts: pa.LargeStringArray) -> npt.NDArray[np.uint32]:
    """[n] hashes of the ids' UTF-8 bytes."""
    parts = (texts.slice(first, _HASHED_AT_ONCE) for first in range(0, len(texts), _HASHED_AT_ONCE))
    keys = (key for part in parts for key in part.cast(pa.large_binary()).to_pylist())
    return np.fromiter((_hash(key) for key in keys), np.uint32, len(texts))


def _one_array(ids: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    whole = ids.cast(pa.large_string())
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole


def _utf8(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """[n + 1] offsets into the bytes of all ids, end to end; and those."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    cuts = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
    return cuts - cuts[0], np.frombuffer(data, np.uint8, int(cuts[-1] - cuts[0]), int(cuts[0]))


def _save(folder: Path, name: str, values: npt.NDArray[Any]) -> Path:
    path = folder / f"{name}.npy"
    np.save(path, values, allow_pickle=False)
    return path


def _load(folder: Path, name: str) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return found
