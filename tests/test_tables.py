"""Tables in buckets: where a key lies, and that the same rows give the same bytes."""

from __future__ import annotations

import random
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tastetwin.engine import Engine
from tastetwin.generations import Manifest
from tastetwin.store import Store
from tastetwin.tables import Layout, bucket_name, bucket_of, put_table, read_bucket, read_files, write_frame

SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("n", pa.int64())])
IDS = [f"사용자 {number}" for number in range(500)]


def test_a_bucket_is_the_checksum_of_the_key() -> None:
    """The number is part of the format: a reader computes it without the engine."""
    assert bucket_of("골목", 7) == zlib.crc32("골목".encode()) % 7 and bucket_name(3) == "bucket-00003.parquet"


@pytest.mark.parametrize("chunks", [1, 9])
def test_rows_lie_sorted_in_the_bucket_a_reader_looks_in(engine: Engine, tmp_path: Path, chunks: int) -> None:
    """Whatever order and pieces they came in, the bytes are the same, and one user's row is found in one file."""
    store = Store.create(tmp_path / "store")
    rows = [{"id": name, "n": None if at % 7 == 0 else at} for at, name in enumerate(IDS)]
    random.Random(chunks).shuffle(rows)
    frame = engine.table(pa.Table.from_pylist(rows, SCHEMA)).repartition(chunks)
    layout = Layout(SCHEMA, ("id",))
    entries = write_frame(engine, frame, store, "one", layout)
    again = write_frame(engine, engine.table(pa.Table.from_pylist(sorted(rows, key=str), SCHEMA)), store, "two", layout)
    assert [entry.sha256 for entry in entries] == [entry.sha256 for entry in again]
    for entry in entries:
        found = pq.read_table(store.path(entry.path)).column("id").to_pylist()
        assert found == sorted(found) and store.sha256(entry.path) == entry.sha256
        assert {bucket_name(bucket_of(name, engine.partitions)) for name in found} == {entry.path.split("/")[1]}
    assert sorted(read_files(store, [entry.path for entry in entries], SCHEMA).to_pylist(), key=str) == sorted(
        rows, key=str
    )


def test_a_column_that_earlier_versions_did_not_write_is_null(memory_store: Store) -> None:
    """Stores outlive versions; what may be null may be missing."""
    put_table(memory_store, "old.parquet", pa.table({"key": ["a", "b"]}))
    new = pa.schema([pa.field("key", pa.string(), nullable=False), pa.field("since", pa.float32())])
    assert read_files(memory_store, ["old.parquet"], new).to_pylist() == [
        {"key": "a", "since": None},
        {"key": "b", "since": None},
    ]


def test_a_file_without_a_column_that_must_be_there_is_refused(memory_store: Store) -> None:
    """Nobody would notice nulls in its place."""
    put_table(memory_store, "strange.parquet", pa.table({"since": [1.0]}))
    with pytest.raises(ValueError, match="key"):
        read_files(memory_store, ["strange.parquet"], pa.schema([pa.field("key", pa.string(), nullable=False)]))


def test_no_rows_are_no_files(engine: Engine, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store")
    assert write_frame(engine, engine.table(SCHEMA.empty_table()), store, "none", Layout(SCHEMA, ("id",))) == []
    assert read_files(store, [], SCHEMA).num_rows == 0


@pytest.mark.parametrize("own", [1, 4, 6, 8])
@pytest.mark.parametrize("buckets", [1, 3, 4, 8])
def test_a_table_can_be_read_in_another_number_of_buckets(memory_store: Store, own: int, buckets: int) -> None:
    """A setting changed between two runs that are compared: every key once, where the other number has it."""
    rows = [[name for name in IDS if bucket_of(name, own) == number] for number in range(own)]
    written = [
        put_table(memory_store, f"t/{bucket_name(number)}", pa.table({"id": names, "n": range(len(names))}, SCHEMA))
        for number, names in enumerate(rows)
        if number or own == 1  # a bucket without rows has no file
    ]
    made = Manifest("mart", "g", "2026-06-01", {}, {}, {"t": written}, {"buckets": own})
    found = [
        read_bucket(memory_store, made, "t", SCHEMA, number, buckets)["id"].to_pylist() for number in range(buckets)
    ]
    assert all(bucket_of(name, buckets) == number for number, names in enumerate(found) for name in names)
    wanted = [name for number, names in enumerate(rows) for name in names if number or own == 1]
    assert sorted(name for names in found for name in names) == sorted(wanted)
