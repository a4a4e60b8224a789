"""Rows per second of a load into PostgreSQL, beside the limit: a bare COPY of the same bytes.

    python benchmarks/load.py [--users 20000] [--twins 100] [--to postgresql://user@host/database]

ours        tastetwin load: opt-outs left out, COPY, primary key, statistics, count, rows read back, swap
psycopg     the limit: CREATE TABLE and COPY of ready bytes, nothing else
psql        the same by psql's \\copy, where psql is there

In turn, several times; medians. Without --to a server of its own (pgserver) as it comes: fsync is on. Target: ours at
least 50 % of psycopg's. ``encode`` is the share of our time that making the bytes would take alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import psycopg
import pyarrow as pa
from pgserver.postgres_server import get_server

from tastetwin.delivery.load import BATCH_ROWS, load_published
from tastetwin.delivery.targets.postgresql import copy_lines
from tastetwin.generations import FOLDERS, Manifest, Stage, finish
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import Run, StageRecord, publish, write_run
from tastetwin.schema import RESULT, USER
from tastetwin.store import Store
from tastetwin.tables import bucket_name, put_table

ROUNDS, BUCKETS, DAY = 3, 8, "2026-11-22"
COLUMNS = "idno text, logical_date date, favors int, places int, home_region text, twins jsonb"


def results(users: int, twins: int, seed: int) -> pa.Table:
    """``RESULT`` of invented users."""
    rng = np.random.default_rng(seed)
    kind = RESULT.field("payload").type
    lists = kind.field("twins").type
    names = pa.array(rng.integers(10**9, 10**9 + users, users * twins)).cast(pa.string())
    numbers = [pa.array(rng.random(users * twins).astype(np.float32)) for _ in range(4)]
    listed = pa.StructArray.from_arrays([names, *numbers], fields=list(lists.value_type))
    counts = [pa.array(rng.integers(3, 300, users).astype(np.int32)) for _ in range(2)]
    regions = pa.array(np.char.mod("r%03d", rng.integers(0, 200, users)))
    found = pa.ListArray.from_arrays(pa.array(np.arange(users + 1, dtype=np.int32) * twins), listed).cast(lists)
    payload = pa.StructArray.from_arrays([pa.array([DAY] * users), *counts, regions, found], fields=list(kind))
    return pa.table([pa.array(np.arange(10**9, 10**9 + users)).cast(pa.string()), payload], schema=RESULT)


def store_of(folder: Path, table: pa.Table) -> Store:
    """A store in which this table is published, and one user in a thousand has opted out."""
    store = Store.create(folder / "store")
    share = -(-table.num_rows // BUCKETS)
    parts = [table.slice(at * share, share) for at in range(BUCKETS)]
    users = table.select(["idno"]).rename_columns([USER])
    tables: dict[Stage, tuple[str, list[pa.Table]]] = {"deliver": ("result", parts), "features": ("history", [users])}
    for stage, (name, found) in tables.items():
        folder_of = f"{FOLDERS[stage]}/g/{name}"
        files = [put_table(store, f"{folder_of}/{bucket_name(at)}", part) for at, part in enumerate(found)]
        finish(store, Manifest(stage, "g", DAY, {}, {}, {name: files}, {}))
    opt_out(store, users.column(USER).to_pylist()[::1000])
    stages: dict[str, StageRecord] = {stage: StageRecord("g", 0.0) for stage in tables}
    write_run(store, Run(f"{DAY}.1", DAY, "delivered", f"{DAY}T00:00:00", stages))
    publish(store, f"{DAY}.1")
    return store


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(address: str, data: bytes) -> None:
    """CREATE TABLE and COPY."""
    with psycopg.connect(address) as connection:
        connection.execute("DROP TABLE IF EXISTS bare")
        connection.execute(f"CREATE TABLE bare ({COLUMNS})")
        with connection.cursor().copy("COPY bare FROM STDIN (FREEZE)") as copy:
            copy.write(data)


def by_psql(address: str, path: Path) -> None:
    """The same by psql."""
    steps = ["DROP TABLE IF EXISTS bare", f"CREATE TABLE bare ({COLUMNS})", f"\\copy bare from '{path}'"]
    subprocess.run(["psql", "-q", *(word for step in steps for word in ("-c", step)), address], check=True)


def clear(address: str) -> None:
    """Nothing of a load is left."""
    with psycopg.connect(address) as connection:
        connection.execute("DROP VIEW IF EXISTS result")


@contextmanager
def server(address: str | None, folder: str) -> Iterator[str]:
    """The given one, or one of its own."""
    if address is not None:
        yield address
        return
    found = get_server(folder)
    yield found.get_uri()
    found.cleanup()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--twins", type=int, default=100)
    parser.add_argument("--to", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as own, server(given.to, own + "/pg") as address:
        table = results(given.users, given.twins, 1)
        store = store_of(Path(own), table)
        data = b"".join(bytes(copy_lines(table.slice(at, BATCH_ROWS))) for at in range(0, given.users, BATCH_ROWS))
        path = Path(own) / "rows.copy"
        path.write_bytes(data)
        ways: dict[str, Callable[[], object]] = {
            "ours": lambda: load_published(store, address),
            "psycopg": lambda: bare(address, data),
        }
        if shutil.which("psql"):
            ways["psql"] = lambda: by_psql(address, path)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, work in ways.items():
                clear(address)
                times[name].append(seconds(work))
        encode = seconds(lambda: [copy_lines(table.slice(at, BATCH_ROWS)) for at in range(0, given.users, BATCH_ROWS)])
    print(f"{given.users:,} users x {given.twins} twins, {len(data) / 1e6:,.0f} MB of COPY text")
    limit = median(times["psycopg"])
    for name, found in times.items():
        print(f"{name:8} {given.users / median(found):8,.0f} rows/s  {limit / median(found):4.0%} of psycopg  {found}")
    print(f"encode   {encode:.2f} s of ours")


if __name__ == "__main__":
    main()
