"""Arrays in files (NumPy's .npy): memory-mapped where the store is a local disk, else read by range."""

from __future__ import annotations

import io
import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tastetwin.store import Store

_HEAD: Final = 128
"""Bytes before the numbers of an array of few dimensions: the format pads its header to 64."""


def put_array(store: Store, relative: str, array: npt.NDArray[Any]) -> None:
    """Write an array, whole or not at all."""
    with store.open_write(relative) as handle:
        np.save(handle, np.ascontiguousarray(array), allow_pickle=False)


def read_array(store: Store, relative: str, start: int = 0, stop: int | None = None) -> npt.NDArray[Any]:
    """The rows ``start`` to ``stop`` of an array; not to be written to."""
    if store.is_local:
        mapped: npt.NDArray[Any] = np.load(store.path(relative), mmap_mode="r", allow_pickle=False)
        return mapped[start:stop].view(np.ndarray)
    head = io.BytesIO(store.read_range(relative, 0, _HEAD))
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    first, last, _ = slice(start, stop).indices(shape[0])
    row = dtype.itemsize * math.prod(shape[1:])
    data = store.read_range(relative, head.tell() + first * row, head.tell() + max(first, last) * row)
    return np.frombuffer(data, dtype).reshape(max(last - first, 0), *shape[1:])
