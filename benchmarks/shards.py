"""Memory and seconds of lists made in shards, for more and more users in shards and blocks of one size.

    OMP_NUM_THREADS=1 python benchmarks/shards.py [--users 50000 100000 200000] [--shard 25000] [--cells]

The vectors are those of neighbours.py; lists of 100 with a cap of 2. Each number comes from a process of its own: peak
resident memory (VmHWM, mapped files included), driver, embedded engine and its two workers together, and above what
the process held before; core-seconds of all threads. Beside it find_twins in one process. Target: memory does not grow
with the users, core-seconds are those of one process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tastetwin.analysis.pairs import no_rules
from tastetwin.analysis.sharded import find_sharded
from tastetwin.analysis.shards import write_shards
from tastetwin.analysis.stored import packed, read_vectors
from tastetwin.analysis.twins import find_twins
from tastetwin.config import AnalyzeConfig, ListsConfig
from tastetwin.engine import connect
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table

sys.path.insert(0, str(Path(__file__).parent))
from neighbours import clustered

DIM: Final = 192
BLOCK: Final = 12_500
"""Users per file of vectors."""


def names(users: int) -> list[str]:
    """Ids, ascending."""
    return [f"user{number:09d}" for number in range(users)]


def make(store: Store, users: int) -> None:
    """Files of vectors, as ``analyze`` writes them."""
    vectors, ids = clustered(users, DIM, seed=1), np.array(names(users), object)
    buckets = -(-users // BLOCK)
    bucket = np.array([bucket_of(user, buckets) for user in ids])
    for number in range(buckets):
        mine = np.flatnonzero(bucket == number)
        put_table(store, f"vectors/{bucket_name(number)}", packed(pa.array(ids[mine]), vectors[mine], "float32"))


def peak(work: Callable[[], Any]) -> dict[str, float]:
    """MB above what was held before, core-seconds and seconds."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here (proc_pid_clear_refs(5))
    before, cpu, wall = _resident("VmRSS"), time.process_time(), time.monotonic()
    work()
    spent = {"core_s": time.process_time() - cpu, "s": time.monotonic() - wall}
    return {"mb": _resident("VmHWM") - before, **spent}


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def in_shards(store: Store, users: int, shard: int, config: AnalyzeConfig) -> dict[str, Any]:
    """Shards written, and lists made in them."""
    engine, ids, paths = connect(None, 2), np.array(names(users), object), store.files("vectors")
    list(engine.table(pa.table({"a": [1]})).collect())
    made: list[Any] = []
    writing = peak(lambda: made.append(write_shards(engine, store, paths, ids, DIM, -(-users // shard), "shards")))
    labels, shown = np.arange(users), np.ones(users, bool)
    finding = peak(
        lambda: made.append(
            find_sharded(engine, made[0], paths, ids, config, labels, shown, no_rules(users), ListsConfig())
        )
    )
    return {"writing": writing, "finding": finding, "facts": made[1].facts.to_json()}


def alone(store: Store, config: AnalyzeConfig) -> dict[str, Any]:
    """The same lists in one process."""
    made: list[Any] = []
    paths = store.files("vectors")
    return {
        "finding": peak(lambda: made.append(find_twins(read_vectors(store, paths)[1], config, lists=ListsConfig()))),
        "facts": made[0].facts.to_json(),
    }


def main() -> None:
    """A line per number of users."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--shard", type=int, default=25_000, help="users per shard")
    parser.add_argument(
        "--cells", action="store_true", help="approximate, as the daily job; else everybody is looked at"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    config = AnalyzeConfig() if options.cells else AnalyzeConfig(exact_below=10**9)
    if options.part:
        store, users = Store.create(options.store), options.users[0]
        parts: dict[str, Callable[[], Any]] = {
            "make": lambda: make(store, users),
            "shards": lambda: in_shards(store, users, options.shard, config),
            "alone": lambda: alone(store, config),
        }
        print(json.dumps(parts[options.part]()))
        return
    print(f"| users, blocks of {BLOCK:,} | shards of {options.shard:,} | MB writing them | MB | core-s | s | ", end="")
    print("one process: MB | core-s | s |\n|---|---|---|---|---|---|---|---|---|")
    for users in options.users:
        with tempfile.TemporaryDirectory() as folder:
            told = {}
            for part in ("make", "shards", "alone"):
                command = [sys.executable, __file__, "--users", str(users), "--shard", str(options.shard)]
                command += ["--part", part, "--store", folder, *(["--cells"] if options.cells else [])]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                told[part] = json.loads(said.splitlines()[-1])
        shards, one = told["shards"], told["alone"]
        cells = [f"{users:,}", str(-(-users // options.shard)), f"{shards['writing']['mb']:.0f}"]
        cells += [f"{made['finding'][key]:.0f}" for made in (shards, one) for key in ("mb", "core_s", "s")]
        print(f"| {' | '.join(cells)} |", flush=True)
        print(f"<!-- {json.dumps({part: told[part]['facts'] for part in ('shards', 'alone')})} -->", flush=True)


if __name__ == "__main__":
    main()
