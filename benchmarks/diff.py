"""How long the diff of two runs of a million lists takes, beside the bare read of both tables, and how long a rollback.

    OMP_NUM_THREADS=1 python benchmarks/diff.py [--users 1000000] [--twins 10] [--opted-out 0.01]

The second run keeps seven of ten twins of each list, as a full training does. Limit: 30 s and 4 GB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Final

import numpy as np
import pyarrow as pa

from tastetwin.delivery.diff import diff_runs
from tastetwin.delivery.publish import roll_back
from tastetwin.generations import FOLDERS, STAGES, Manifest, Stage, finish, read_manifest
from tastetwin.privacy.opt_out import OptOuts, name_of
from tastetwin.runs import StageRecord, new_run, publish, published_run, read_run, write_run
from tastetwin.schema import TWINS
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table, read_files

BUCKETS: Final = 8
KEPT: Final = 0.7
DAY: Final = date(2026, 6, 1)


def write_runs(store: Store, users: int, twins: int) -> None:
    """Two published runs; only their lists are more than a manifest."""
    random = np.random.default_rng(1)
    ids = np.char.mod("%08d", np.arange(users)).astype(object)
    bucket = np.array([bucket_of(user, BUCKETS) for user in ids])
    before = random.integers(0, users, (users, twins))
    after = np.where(random.random(before.shape) < KEPT, before, random.integers(0, users, before.shape))
    for name, lists in (("before", before), ("after", after)):
        for stage in STAGES:
            store.make_folder(f"{FOLDERS[stage]}/{name}")
            written = []
            for number in range(BUCKETS) if stage == "analyze" else ():
                table = rows(ids, lists, np.flatnonzero(bucket == number))
                written.append(put_table(store, f"{FOLDERS[stage]}/{name}/twins/{bucket_name(number)}", table))
            finish(store, Manifest(stage, name, str(DAY), {}, {}, {"twins": written}, {"buckets": BUCKETS}))
        stages: dict[str, StageRecord] = {stage: StageRecord(name, 0.0) for stage in STAGES}
        publish(store, write_run(store, replace(new_run(store, DAY), status="delivered", stages=stages)).run_id)


def rows(ids: np.ndarray, lists: np.ndarray, mine: np.ndarray) -> pa.Table:
    """``TWINS`` of some users."""
    k = lists.shape[1]
    scores = np.linspace(0.9, 0.5, k, dtype=np.float32)
    columns = {
        "user_idno": pa.array(np.repeat(ids[mine], k)),
        "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), len(mine)),
        "twin_idno": pa.array(ids[lists[mine].ravel()]),
        **dict.fromkeys(("score", "percentile", "taste", "home"), np.tile(scores, len(mine))),
    }
    return pa.table(columns, schema=TWINS)


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_both(store: Store) -> None:
    """Every column that the diff needs, and nothing done with it."""
    needed = pa.schema([TWINS.field(name) for name in ("user_idno", "rank", "twin_idno")])
    for name in ("before", "after"):
        stage: Stage = "analyze"
        for path in read_manifest(store, stage, name).paths("twins"):
            read_files(store, [path], needed)


def measure(store: Store, opted_out: int) -> None:
    """One line each."""
    run, other = read_run(store, f"{DAY}.2"), read_run(store, f"{DAY}.1")
    opt_outs = OptOuts(frozenset(name_of(f"{number:08d}") for number in range(opted_out)))
    print(f"bare read of both tables   {seconds(lambda: read_both(store)):6.1f} s")
    took = seconds(lambda: diff_runs(store, run, other, opt_outs))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"diff, {opted_out:,} opted out {took:14.1f} s, peak {memory:.2f} GB   (limit 30 s, 4 GB)", flush=True)


def main() -> None:
    """Measure in processes of their own, so that the peak is theirs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--twins", type=int, default=10)
    parser.add_argument("--opted-out", type=float, default=0.01, help="share of users")
    parser.add_argument("--of", metavar="STORE", help="measure in a store that is there")
    arguments = parser.parse_args()
    hidden = int(arguments.opted_out * arguments.users)
    if arguments.of:
        measure(Store.open(arguments.of), hidden)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(f"{folder}/store")
        write_runs(store, arguments.users, arguments.twins)
        print(f"{arguments.users:,} lists of {arguments.twins}, {BUCKETS} buckets")
        for share in (0.0, arguments.opted_out):
            given = ["--users", str(arguments.users), "--opted-out", str(share), "--of", store.root]
            subprocess.run([sys.executable, __file__, *given], check=True)
        print(f"rollback                   {seconds(lambda: roll_back(store)):6.3f} s")
        assert published_run(store).run_id == f"{DAY}.1"


if __name__ == "__main__":
    main()
