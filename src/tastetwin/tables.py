"""Parquet tables of a generation: who writes them, how, and how one user's rows are found again.

A table is cut into buckets by a hash of its key, one file each, rows sorted within. Workers write with PyArrow on
either engine, so that the same rows give the same bytes wherever they were made, and no engine's writer decides about
order or names.
"""

from __future__ import annotations

import functools
import hashlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tastetwin.engine import Engine
from tastetwin.generations import FileEntry, Manifest
from tastetwin.store import Store

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

Work = Callable[[pa.Table], pa.Table]
"""What a worker does with the rows of a bucket; must travel there, so a function or a ``functools.partial`` of one."""

_BUCKET: Final = "_bucket"
_ROW_GROUP: Final = 1 << 16
_GROUP_BYTES: Final = 1 << 20
_BYTES_PER_PASS: Final = 32 << 20
PARQUET: Final[dict[str, Any]] = {"compression": "zstd", "use_dictionary": False}
"""How all tables are written. Ids hardly repeat within a row group, and where values do, zstd alone finds it:
dictionaries made our tables larger and slower to write and to read."""


@dataclass(frozen=True)
class Layout:
    """How the rows of a table lie in its files."""

    schema: pa.Schema
    sort: tuple[str, ...]
    """The order within a file, nulls first; the first column is the one that rows are bucketed by."""
    key: tuple[str, ...] = ()
    """Rows with the same key, no part of it null, are one row, and so are rows with every column equal: the last by
    ``sort`` stays. A prefix of ``sort``; empty = rows are distinct already."""


def write_frame(
    engine: Engine,
    frame: DataFrame,
    store: Store,
    folder: str,
    layout: Layout,
    inputs: Sequence[str] = (),
    make: Work | None = None,
) -> list[FileEntry]:
    """Write a DataFrame as ``folder/bucket-<n>.parquet``; returns the files that hold rows, by name.

    Args:
        engine: its ``partitions`` is the number of buckets.
        frame: columns by the names of the layout's schema; with ``make``, the columns that takes.
        store: where to.
        folder: relative to the store's root.
        layout: types, order and what makes two rows one.
        inputs: the large files that the frame is made from. The embedded engine keeps in memory what it shuffles, so a
            table of large inputs is written in several passes over them, some of the buckets each.
        make: the rows of the table, in order, from all rows of a bucket; by default the layout's order and one per key.
    """
    from pyspark.sql import functions as F

    made = make or functools.partial(_laid_out, layout=layout)
    work = functools.partial(_write_buckets, root=store.url(""), folder=folder, make=made)
    placed = frame.select(_bucket(engine, layout), "*")
    passes = _passes(engine, store, inputs)
    entries: list[FileEntry] = []
    for number in range(passes):
        part = placed if passes == 1 else placed.where(F.col(_BUCKET) % passes == number)
        part = part.repartition(engine.partitions, _BUCKET)
        entries += [FileEntry(**orjson.loads(text)) for text in engine.gather(part, work)]
    return sorted(entries, key=lambda entry: entry.path)


def map_files(engine: Engine, store: Store, paths: Sequence[str], folder: str, work: Work) -> list[FileEntry]:
    """Each file of a bucketed table through ``work``, on the engine, into a file of the same name in ``folder``.

    Nothing is shuffled: what belongs to one user stays in one bucket. Files without rows are left out.
    """
    job = functools.partial(_map_file, root=store.url(""), folder=folder, work=work)
    entries = [FileEntry(**orjson.loads(text)) for text in engine.each(paths, job) if text]
    return sorted(entries, key=lambda entry: entry.path)


def _passes(engine: Engine, store: Store, inputs: Sequence[str]) -> int:
    if not engine.is_embedded:
        return 1
    return max(1, min(engine.partitions, sum(store.size(path) for path in inputs) // _BYTES_PER_PASS))


def one_per_key(engine: Engine, frame: DataFrame, layout: Layout) -> DataFrame:
    """The rows that ``write_frame`` would keep."""
    work = functools.partial(_keep_one_per_key, layout=layout)
    placed = frame.select(_bucket(engine, layout), *layout.schema.names).repartition(engine.partitions, _BUCKET)
    return engine.map_arrow(placed, work, layout.schema)


def _bucket(engine: Engine, layout: Layout) -> Column:
    from pyspark.sql import functions as F

    return F.pmod(F.crc32(F.col(layout.sort[0])), F.lit(engine.partitions)).cast("int").alias(_BUCKET)


def _keep_one_per_key(batches: Iterator[pa.RecordBatch], *, layout: Layout) -> Iterator[pa.RecordBatch]:
    found = list(batches)
    if found:
        rows = pa.Table.from_batches(found).select(layout.schema.names).cast(layout.schema)
        yield from lay_out(rows, layout).to_batches(_ROW_GROUP)


def _write_buckets(batches: Iterator[pa.RecordBatch], *, root: str, folder: str, make: Work) -> Iterator[str]:
    """The worker's side: the rows of some buckets in, one file entry per bucket out."""
    found = list(batches)
    if not found:
        return
    rows = pa.Table.from_batches(found)
    del found
    store = Store(root)
    for bucket in sorted(pc.unique(rows.column(_BUCKET)).to_pylist()):
        mine = rows.filter(pc.equal(rows.column(_BUCKET), bucket))
        yield told(put_table(store, f"{folder}/{bucket_name(bucket)}", make(mine)))


def _map_file(path: str, *, root: str, folder: str, work: Work) -> str:
    """The worker's side: tells the file entry; "" where there are no rows."""
    store = Store(root)
    made = work(pq.read_table(store.path(path), filesystem=store.arrow))
    return told(put_table(store, f"{folder}/{path.rsplit('/', 1)[-1]}", made)) if made.num_rows else ""


def told(entry: FileEntry) -> str:
    """A file entry as a worker tells it."""
    return orjson.dumps(asdict(entry)).decode()


def _laid_out(rows: pa.Table, *, layout: Layout) -> pa.Table:
    return lay_out(rows.select(layout.schema.names).cast(layout.schema), layout)


def lay_out(rows: pa.Table, layout: Layout) -> pa.Table:
    """Rows in the layout's order, one per key."""
    comparable = [_comparable(rows.column(name)) for name in layout.sort]
    names = [str(place) for place in range(len(comparable))]
    keys = [(name, "ascending", "at_start") for name in names]
    order = pc.sort_indices(pa.table(comparable, names=names), sort_keys=keys)
    if layout.key and len(order) > 1:
        in_order = [column.take(order) for column in comparable]
        order = order.filter(pc.invert(_repeats(in_order, len(layout.key))))
    return rows.take(order)


def _comparable(column: pa.ChunkedArray) -> pa.Array:
    """The column itself, or one string per list."""
    array = column.combine_chunks()
    return pc.binary_join(array.cast(pa.list_(pa.string())), ",") if pa.types.is_list(array.type) else array


def _repeats(columns: Sequence[pa.Array], key: int) -> pa.BooleanArray:
    """[n] whether the next row has the same key (the first ``key`` columns, none null) or is equal throughout."""
    pairs = [(column.slice(0, len(column) - 1), column.slice(1)) for column in columns]
    same_key = functools.reduce(pc.and_, (pc.fill_null(pc.equal(*pair), False) for pair in pairs[:key]))
    equal = functools.reduce(pc.and_, (_equal(*pair) for pair in pairs))
    return pa.concat_arrays([pc.or_(same_key, equal), pa.array([False])])


def _equal(left: pa.Array, right: pa.Array) -> pa.BooleanArray:
    return pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(pc.is_null(left), pc.is_null(right)))


def bucket_name(bucket: int) -> str:
    """The file name of a bucket."""
    return f"bucket-{bucket:05d}.parquet"


def bucket_of(key: str, buckets: int) -> int:
    """The bucket that holds a key: CRC-32 of its UTF-8 bytes, modulo the number of buckets."""
    return zlib.crc32(key.encode()) % buckets


def put_table(store: Store, relative: str, table: pa.Table) -> FileEntry:
    """Write one Parquet file, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **PARQUET, row_group_size=_group_rows(table))
    data = sink.getvalue().to_pybytes()
    store.write_bytes(relative, data)
    return FileEntry(relative, len(data), hashlib.sha256(data).hexdigest())


def _group_rows(table: pa.Table) -> int:
    """Rows per row group: rows are sorted, so who asks for one user reads one group of each file and no more."""
    return max(1, min(_ROW_GROUP, _GROUP_BYTES * len(table) // max(1, int(table.nbytes))))


def read_files(store: Store, paths: Sequence[str], schema: pa.Schema, filters: Any = None) -> pa.Table:
    """Parquet files on the driver, in the given schema; ``filters`` as in ``pyarrow.parquet.read_table``.

    A nullable column that a file of an earlier version lacks is null.
    """
    if not paths:
        return schema.empty_table()
    how = {"filesystem": store.arrow, "columns": schema.names, "schema": schema, "filters": filters}
    return pa.concat_tables([pq.read_table(store.path(path), **how).cast(schema) for path in paths]).combine_chunks()


def read_table(store: Store, manifest: Manifest, table: str, schema: pa.Schema) -> pa.Table:
    """A generation's whole table on the driver."""
    return read_files(store, manifest.paths(table), schema)


def read_bucket(store: Store, manifest: Manifest, table: str, schema: pa.Schema, number: int, buckets: int) -> pa.Table:
    """The rows whose first column, the key, is of bucket ``number`` of ``buckets``, however many the table lies in."""
    own = int(manifest.facts["buckets"])
    common = math.gcd(own, buckets)
    rows = [
        _of_bucket(read_files(store, [path], schema), number, buckets, everybody=buckets == common)
        for path in manifest.paths(table)
        if (int(path[-len("00000.parquet") : -len(".parquet")]) - number) % common == 0
    ]
    return pa.concat_tables([schema.empty_table(), *rows]).combine_chunks()


def _of_bucket(rows: pa.Table, number: int, buckets: int, *, everybody: bool) -> pa.Table:
    if everybody:
        return rows
    keys = pc.unique(rows.column(0))
    mine = keys.filter(pa.array([bucket_of(key, buckets) == number for key in keys.to_pylist()], pa.bool_()))
    return rows.filter(pc.is_in(rows.column(0), value_set=mine))
