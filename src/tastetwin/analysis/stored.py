"""How taste vectors lie in files, and the one place where they are read: always as float32 unit vectors.

- ``float32``: a list of floats, bytes as the model gave them.
- ``float16``: a list of half floats (IEEE 754 binary16).
- ``int8``: one byte a dimension and one scale a vector, its largest component / 127 (symmetric, vector by vector;
  Dettmers et al. 2022, LLM.int8). A scale of its own needs no second pass over all users, and a row can be read alone.

A file says by its columns which of them it is.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tastetwin.analysis.index import Floats
from tastetwin.analysis.parts import unit
from tastetwin.schema import USER, VECTORS
from tastetwin.store import Store
from tastetwin.tables import read_files

Form = Literal["float32", "float16", "int8"]
_LARGEST: Final = np.float32(127)


def vectors_table(user_ids: pa.Array | pa.ChunkedArray, vectors: Floats) -> pa.Table:
    """``VECTORS`` rows of [n, dim] vectors."""
    return pa.table([user_ids.cast(pa.string()), _lists(vectors)], schema=VECTORS)


def packed(user_ids: pa.Array | pa.ChunkedArray, vectors: Floats, form: Form) -> pa.Table:
    """Rows of [n, dim] vectors as they are stored."""
    table = vectors_table(user_ids, vectors)
    if form == "float32":
        return table
    if form == "float16":
        return table.set_column(1, "vector", _lists(vectors.astype(np.float16)))
    scales = np.abs(vectors).max(axis=1, initial=0) / _LARGEST
    codes = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None]).astype(np.int8)
    # Parquet has no integers of one byte: as 32-bit ones they would take half as much again, even compressed.
    kind = pa.binary(max(vectors.shape[1], 1))
    data = pa.FixedSizeBinaryArray.from_buffers(kind, len(codes), [None, pa.py_buffer(codes.tobytes())])
    return table.set_column(1, "vector", data).append_column("scale", pa.array(scales, pa.float32()))


def unpacked(table: pa.Table) -> pa.Table:
    """``VECTORS`` rows of stored rows of any form."""
    kind = table.schema.field("vector").type
    if kind == VECTORS.field("vector").type:
        return table.select(VECTORS.names).cast(VECTORS)
    if pa.types.is_fixed_size_binary(kind):
        data = table.column("vector").combine_chunks()
        codes = np.frombuffer(b"".join(data.to_pylist()), np.int8).reshape(len(data), kind.byte_width)
        return vectors_table(table.column(USER), unit(codes * table.column("scale").to_numpy()[:, None]))
    return vectors_table(table.column(USER), unit(as_matrix(table)))


def read_vectors_table(store: Store, paths: list[str], filters: Any = None) -> pa.Table:
    """``VECTORS`` rows of files of one generation; ``filters`` as in ``read_files``."""
    if not paths:
        return VECTORS.empty_table()
    schema = pq.read_schema(store.path(paths[0]), filesystem=store.arrow)
    return unpacked(read_files(store, paths, schema, filters))


def read_vectors(store: Store, paths: list[str]) -> tuple[npt.NDArray[np.object_], Floats]:
    """[n] user ids, ascending, and [n, dim] their vectors."""
    table = read_vectors_table(store, paths)
    table = table.take(pc.sort_indices(table.column(USER)))
    return np.array(table.column(USER).to_pylist(), dtype=object), as_matrix(table)


def as_matrix(table: pa.Table) -> Floats:
    """[n, dim] the lists of a column ``vector``, all of one length."""
    rows = table.num_rows
    values = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values.astype(np.float32, copy=False).reshape(rows, len(values) // max(rows, 1)))


def _lists(vectors: npt.NDArray[Any]) -> pa.ListArray:
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * np.int32(vectors.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))
