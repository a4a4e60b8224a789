"""Ids in files that are memory-mapped: open in milliseconds, shared by processes, an id found in about a microsecond.

A hash table that never changes: ``starts`` says which ``slots`` belong to a bucket, a slot is a position, ``offsets``
and ``bytes`` are the ids themselves, so an id that is found was compared, not guessed. Within a bucket the ids ascend:
ids chosen so that they share a bucket cost a binary search and no more.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
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
_TOGETHER: Final = 128
"""From so many names on, array kernels cost less than a loop."""
_COMPARED_AT_ONCE: Final = 2
_hash = zlib.crc32


class IdIndex:
    """Id to position and back, in a list of distinct ids that is given once and never changes."""

    def __init__(self, parts: Sequence[npt.NDArray[Any]]) -> None:
        """Over the parts that ``write`` made, in the order of its files; see ``open``."""
        self._start, self._slot, self._start_of, self._byte = parts
        self._starts, self._slots, self._offsets, self._data = (part.data for part in parts)
        buffers = [None, pa.py_buffer(self._start_of), pa.py_buffer(self._byte)]
        self._keys = pa.Array.from_buffers(pa.large_binary(), len(self._slot), buffers)

    @staticmethod
    def write(folder: Path, ids: pa.Array | pa.ChunkedArray) -> list[Path]:
        """Write the index of ``ids`` into ``folder``, made if it is not there; returns its files.

        ``ids`` [n] are distinct strings, none null, in any order, fewer than 2**31. Position is the place in this list.
        """
        texts = _one_array(ids)
        offsets, data = _utf8(texts)
        buckets = 2 << max(len(texts) - 1, 0).bit_length()  # two to four per id: most hold one at most
        bucket = _hashes(texts) & np.uint32(buckets - 1)
        starts = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=buckets))]).astype(np.uint32)
        ascending = pc.array_sort_indices(texts).to_numpy()
        slots = ascending[np.argsort(bucket[ascending], kind="stable")].astype(np.uint32)
        folder.mkdir(parents=True, exist_ok=True)
        return [_save(folder, *part) for part in zip(_FILES, (starts, slots, offsets, data), strict=True)]

    @classmethod
    def open(cls, folder: Path) -> IdIndex:
        """What ``write`` wrote, memory-mapped; the files are trusted: their hashes are the caller's to check.

        Raises:
            OSError: a file is not there.
            ValueError: a file is cut off or none of ours.
        """
        return cls([_load(folder, name) for name in _FILES])

    def check(self) -> None:
        """See that no look-up can lead out of the files, whatever is in them: what reads them does not look.

        Raises:
            ValueError: the parts do not belong together.
        """
        starts, slots, offsets, data = self._start, self._slot, self._start_of, self._byte
        kinds = [part.dtype.name for part in (starts, slots, offsets, data)]
        if kinds != ["uint32", "uint32", "int64", "uint8"] or any(part.ndim != 1 for part in (starts, slots, offsets)):
            raise ValueError(f"an index of ids of {kinds}")
        n, buckets = len(slots), len(starts) - 1
        if buckets < 2 or buckets & (buckets - 1) or len(offsets) != n + 1 or (n and slots.max() >= n):
            raise ValueError(f"{buckets} buckets and {len(offsets)} offsets of {n} ids")
        check_offsets(starts, n)
        check_offsets(offsets, len(data))
        self._keys.cast(pa.large_string())  # or an id that is no UTF-8 fails whoever meets it

    def __len__(self) -> int:
        """Ids."""
        return len(self._slots)

    def position(self, name: str) -> int:
        """Where ``name`` is in the list of ids; ``NO_POSITION`` where it is not. Any text may be asked for."""
        return self._one_by_one((name,))[0]

    def positions(self, names: Sequence[str]) -> list[int]:
        """``position`` of each."""
        return self._together(names) if len(names) >= _TOGETHER else self._one_by_one(names)

    def name(self, position: int) -> str:
        """The id at a position, 0 .. n - 1.

        Raises:
            IndexError: there is no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(position)
        return str(self._data[self._offsets[position] : self._offsets[position + 1]], "utf-8")

    def _one_by_one(self, names: Sequence[str]) -> list[int]:
        starts, slots, offsets, data = self._starts, self._slots, self._offsets, self._data
        mask, last = len(starts) - 2, len(slots) - 1
        positions = []
        for name in names:
            key = name.encode("utf-8", "surrogatepass")
            bucket = _hash(key) & mask
            low, high, position = starts[bucket], starts[bucket + 1], NO_POSITION
            if low == high and last >= 0:  # a look at another's id: who is known is not to be seen by the time
                low, high = min(low, last), min(low, last) + 1
            while low < high:
                middle = (low + high) >> 1
                at = slots[middle]
                found = data[offsets[at] : offsets[at + 1]].tobytes()
                if found == key:
                    position = at
                    break
                if found < key:
                    low = middle + 1
                else:
                    high = middle
            positions.append(position)
        return positions

    def _together(self, names: Sequence[str]) -> list[int]:
        """The first id of every bucket is compared at once, then every second; the few others are looked for singly."""
        keys = [name.encode("utf-8", "surrogatepass") for name in names]
        asked = pa.array(keys, pa.large_binary())
        bucket = np.fromiter(map(_hash, keys), np.int64, len(keys)) & (len(self._start) - 2)
        first, end = self._start[bucket].astype(np.int64), self._start[bucket + 1]
        positions = np.full(len(keys), NO_POSITION)
        left = np.arange(len(keys))
        for depth in range(_COMPARED_AT_ONCE):
            left = left[first[left] + depth < end[left]]
            at = self._slot[first[left] + depth]
            same = pc.equal(self._keys.take(pa.array(at)), asked.take(pa.array(left))).to_numpy(zero_copy_only=False)
            positions[left[same]] = at[same]
            left = left[~same]
        others = left[first[left] + _COMPARED_AT_ONCE < end[left]].tolist()
        positions[others] = self._one_by_one([names[at] for at in others])
        found: list[int] = positions.tolist()
        return found


class PlaceIndex:
    """Which vocabulary row each known place id is read as: ``PlaceRows`` in files, for a few ids at a time."""

    def __init__(self, ids: IdIndex, rows: npt.NDArray[np.int32]) -> None:
        """``rows``: [n_ids + 1], ``NO_ROW`` at the end, where ``NO_POSITION`` leads; see ``open``."""
        self._ids = ids
        self._rows = rows.data

    @staticmethod
    def write(folder: Path, place_ids: pa.Array | pa.ChunkedArray, rows: npt.NDArray[np.int32]) -> list[Path]:
        """Write into ``folder``; returns the files. What is written is what ``PlaceRows`` holds."""
        return [*IdIndex.write(folder, place_ids), _save(folder, "rows", np.append(rows, NO_ROW).astype(np.int32))]

    @classmethod
    def open(cls, folder: Path) -> PlaceIndex:
        """What ``write`` wrote, memory-mapped; errors as ``IdIndex.open``."""
        return cls(IdIndex.open(folder), _load(folder, "rows"))

    def check(self, n_rows: int) -> None:
        """As ``IdIndex.check``; rows are below ``n_rows``.

        Raises:
            ValueError: they are not, or the parts do not belong together.
        """
        self._ids.check()
        rows = np.asarray(self._rows)
        if rows.dtype != np.int32 or rows.shape != (len(self) + 1,) or rows.min() < NO_ROW or rows.max() >= n_rows:
            raise ValueError("rows of places that there are not")

    def __len__(self) -> int:
        """Places."""
        return len(self._ids)

    def of(self, place_ids: Sequence[str]) -> list[int]:
        """Rows of the given ids; ``NO_ROW`` for ids never heard of."""
        rows = self._rows
        return [rows[at] for at in self._ids.positions(place_ids)]


def check_offsets(offsets: npt.NDArray[Any], n: int) -> None:
    """See that [m + 1] offsets cut ``n`` things into m lists.

    Raises:
        ValueError: they do not.
    """
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != n or (offsets[1:] < offsets[:-1]).any():
        raise ValueError(f"offsets that do not ascend from 0 to {n}")


def _hashes(texts: pa.LargeStringArray) -> npt.NDArray[np.uint32]:
    """[n] hashes of the ids' UTF-8 bytes."""
    parts = (texts.slice(first, _HASHED_AT_ONCE) for first in range(0, len(texts), _HASHED_AT_ONCE))
    keys = (key for part in parts for key in part.cast(pa.large_binary()).to_pylist())
    return np.fromiter(map(_hash, keys), np.uint32, len(texts))


def _one_array(ids: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    whole = ids.cast(pa.large_string())
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole


def _utf8(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """[n + 1] offsets into the bytes of all ids, end to end; and those."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    cuts = np.frombuffer(offsets, np.int64, len(texts) + 1, texts.offset * 8)
    if data is None:  # nothing but the empty id
        return cuts - cuts[0], np.empty(0, np.uint8)
    return cuts - cuts[0], np.frombuffer(data, np.uint8, int(cuts[-1] - cuts[0]), int(cuts[0]))


def _save(folder: Path, name: str, values: npt.NDArray[Any]) -> Path:
    path = folder / f"{name}.npy"
    np.save(path, values, allow_pickle=False)
    return path


def _load(folder: Path, name: str) -> npt.NDArray[Any]:
    """A plain view: numpy's class of mapped arrays costs twice at every step."""
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
