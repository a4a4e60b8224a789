"""How long the page takes to answer for a run of 200,000 users, beside a bare route of the same server.

    OMP_NUM_THREADS=1 python benchmarks/page.py [--users 200000] [--of STORE]

The run's tables are drawn at random and written directly: histories of 30 favors of 20,000 places, vectors of 192
dimensions, lists of 100. Limit: 100 ms a page. ``--of`` measures in a store that is there.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tastetwin.analysis.evidence import count_visitors
from tastetwin.analysis.lookup import TwinLists
from tastetwin.analysis.parts import unit, write_axes
from tastetwin.analysis.standing import EXPOSURE
from tastetwin.analysis.stored import vectors_table
from tastetwin.analysis.visitors import write_visitors
from tastetwin.evaluation.records import Coverage, Evaluation, Health, Histogram, VectorHealth, to_json
from tastetwin.features.histories import Vocabulary, joined
from tastetwin.features.taste import from_arrow, taste_histories, to_arrow
from tastetwin.features.user_favor import group_favors
from tastetwin.features.vocabulary import PlaceRows, assign_rows, empty_vocabulary, grow, write_vocabulary
from tastetwin.generations import FOLDERS, STAGES, FileEntry, Manifest, Stage, finish
from tastetwin.page.atlas import draw as draw_map
from tastetwin.page.view import View
from tastetwin.runs import Run, StageRecord, new_run, publish, published_run, write_run
from tastetwin.schema import PLACES, TIME, TWINS
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table

BUCKETS: Final = 8
N_PLACES: Final = 20_000
GROUPS: Final = 12
REGIONS: Final = 40
FAVORS: Final = 30
DIM: Final = 192
K: Final = 100
DAY: Final = date(2026, 6, 1)
SETTINGS: Final = {"min_favors": 3, "analyze": {"k": K, "csls_neighbours": 10}}
LIMIT_MS: Final = 100

Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class World:
    """What is drawn once: users and places by taste group and region."""

    ids: np.ndarray[Any, np.dtype[np.object_]]
    groups: Ints
    homes: Ints
    place_groups: Ints
    place_regions: Ints
    places: pa.Table
    rows: PlaceRows
    vocabulary: Vocabulary


def draw(users: int, random: np.random.Generator) -> World:
    """Users and places."""
    place_groups, place_regions = random.integers(0, GROUPS, N_PLACES), random.integers(0, REGIONS, N_PLACES)
    names = [f"p{number:05d}" for number in range(N_PLACES)]
    columns = [
        names,
        [[1000 + int(group)] for group in place_groups],
        [f"11000000{int(region):02d}" for region in place_regions],
        [f"골목 Table {number}" for number in range(N_PLACES)],
        37.4 + 0.02 * (place_regions // 8) + 0.006 * random.standard_normal(N_PLACES),
        126.8 + 0.03 * (place_regions % 8) + 0.008 * random.standard_normal(N_PLACES),
    ]
    places = pa.table(columns, schema=PLACES)
    visitors = pa.table({"place_id": names, "visitors": np.full(N_PLACES, 50)})
    vocabulary = grow(empty_vocabulary(), places, visitors, 3)
    ids = np.char.mod("%08d", np.arange(users)).astype(object)
    groups, homes = random.integers(0, GROUPS, users), random.integers(0, REGIONS, users)
    return World(ids, groups, homes, place_groups, place_regions, places, assign_rows(vocabulary, places), vocabulary)


def write_features(store: Store, name: str, world: World, random: np.random.Generator) -> Manifest:
    """Histories, favors, places, vocabulary; returns with them what analysis needs besides."""
    folder = f"{FOLDERS['features']}/{name}"
    cells = [np.flatnonzero(world.place_groups == g) for g in range(GROUPS)]
    tables: dict[str, list[FileEntry]] = {"user_favor": [], "history": []}
    for number, mine in by_bucket(world):
        drawn = np.stack([random.choice(cells[world.groups[user]], FAVORS) for user in mine]).ravel()
        at = random.integers(0, 500, len(drawn)) * 86_400_000_000 + 1_740_000_000_000_000
        owner = np.repeat(world.ids[mine], FAVORS)
        rows = {
            "user_idno": pa.array(owner),
            "is_like": random.random(len(drawn)) < 0.2,
            "at": pa.array(at).cast(TIME),
            "name": np.char.mod("r%09d", np.arange(len(drawn))),
            "place": world.places.column(0).take(pa.array(drawn)).combine_chunks(),
            "rating": random.integers(3, 6, len(drawn)).astype(float),
        }
        favors = group_favors(pa.table(rows))
        history = pa.Table.from_batches([to_arrow(*taste_histories(favors, world.rows))])
        tables["user_favor"].append(put_table(store, f"{folder}/user_favor/{bucket_name(number)}", favors))
        tables["history"].append(put_table(store, f"{folder}/history/{bucket_name(number)}", history))
    tables["place"] = [put_table(store, f"{folder}/place/{bucket_name(0)}", world.places)]
    tables["vocabulary"] = [write_vocabulary(store, f"{folder}/vocabulary.parquet", world.vocabulary)]
    return finish(store, Manifest("features", name, str(DAY), {}, {}, tables, {"buckets": BUCKETS}))


def by_bucket(world: World) -> Iterator[tuple[int, Ints]]:
    """Positions of the users of each bucket."""
    bucket = np.array([bucket_of(str(user), BUCKETS) for user in world.ids])
    for number in range(BUCKETS):
        yield number, np.flatnonzero(bucket == number)


def write_analysis(store: Store, name: str, features: Manifest, world: World, random: np.random.Generator) -> None:
    """Vectors that know group and region, and lists drawn among the users of the same group."""
    folder, n = f"{FOLDERS['analyze']}/{name}", len(world.ids)
    around = unit(random.standard_normal((GROUPS, DIM)))
    axes = unit(np.linalg.qr(random.standard_normal((DIM, 8)))[0].T)
    areas = unit(random.standard_normal((REGIONS, 8))) @ axes
    vectors = unit(
        around[world.groups] + 0.5 * areas[world.homes] + 0.06 * random.standard_normal((n, DIM), np.float32)
    )
    order = np.argsort(world.groups, kind="stable")
    start = np.searchsorted(world.groups[order], np.arange(GROUPS + 1))
    tables: dict[str, list[FileEntry]] = {"vectors": [], "twins": [], **write_axes(store, folder, axes)}
    for number, mine in by_bucket(world):
        low, high = start[world.groups[mine]], start[world.groups[mine] + 1]
        twins = order[low[:, None] + (random.random((len(mine), K)) * (high - low)[:, None]).astype(np.int64)]
        file = bucket_name(number)
        tables["vectors"].append(
            put_table(store, f"{folder}/vectors/{file}", vectors_table(pa.array(world.ids[mine]), vectors[mine]))
        )
        tables["twins"].append(put_table(store, f"{folder}/twins/{file}", list_rows(world.ids, mine, twins)))
    exposure = [list(world.ids), np.full(n, K, np.int32), *(pa.nulls(n, field.type) for field in list(EXPOSURE)[2:])]
    tables["exposure"] = [put_table(store, f"{folder}/exposure.parquet", pa.table(exposure, schema=EXPOSURE))]
    histories = [from_arrow(pa.parquet.read_table(store.path(path))) for path in features.paths("history")]
    everybody = histories[0]
    for each in histories[1:]:
        everybody = joined(everybody, each)
    tables["visitors"] = [
        write_visitors(store, f"{folder}/visitors.parquet", count_visitors(everybody, world.vocabulary))
    ]
    finish(store, Manifest("analyze", name, str(DAY), {}, SETTINGS, tables, {"buckets": BUCKETS, "chance": None}))


def list_rows(ids: np.ndarray[Any, Any], mine: Ints, twins: Ints) -> pa.Table:
    """``TWINS`` of some users."""
    scores = np.tile(np.linspace(0.9, 0.5, K, dtype=np.float32), len(mine))
    columns = {
        "user_idno": pa.array(np.repeat(ids[mine], K)),
        "rank": np.tile(np.arange(1, K + 1, dtype=np.int32), len(mine)),
        "twin_idno": pa.array(ids[twins.ravel()]),
        **dict.fromkeys(("score", "percentile", "taste", "home", "chance"), scores),
    }
    return pa.table(columns, schema=TWINS)


def write_evaluation(store: Store, name: str, users: int) -> None:
    """A record of the usual size, with made-up numbers."""
    health = Health(
        users, K, users, 0, 0, 0, 0.1, 0.5, 1.2, 0.01, 0.4, 1.0, [1.0] * 1000, [0.1] * 1000, 0.7,
        np.linspace(0, 1, 101).tolist(), [Coverage("activity", "20-49", users, 1.0, 0.9)],
    )  # fmt: skip
    vectors = VectorHealth(users, 0, 0.0, 0.1, 40.0)
    histogram = Histogram([-1.0, 1.0], [1.0], [1.0])
    found = Evaluation("rule", [], users, [], [], health, vectors, vectors, histogram)
    relative = f"{FOLDERS['evaluate']}/{name}/evaluation.json"
    store.write_bytes(relative, to_json(found))
    entry = FileEntry(relative, store.size(relative), store.sha256(relative))
    facts = {"verdict": {"publish": True, "first_run": True, "findings": []}}
    finish(store, Manifest("evaluate", name, str(DAY), {}, {}, {"evaluation": [entry]}, facts))


def write_run_of(store: Store, name: str, users: int) -> Run:
    """A delivered run whose tables hold what the page reads."""
    random = np.random.default_rng(1)
    world = draw(users, random)
    features = write_features(store, name, world, random)
    write_analysis(store, name, features, world, random)
    write_evaluation(store, name, users)
    others: tuple[Stage, ...] = ("collect", "mart", "train", "deliver")
    for stage in others:
        store.make_folder(f"{FOLDERS[stage]}/{name}")
        finish(store, Manifest(stage, name, str(DAY), {}, {}, {}, {}))
    stages: dict[str, StageRecord] = {
        stage: StageRecord(name, 0.0, {"users_served": users} if stage == "analyze" else {}) for stage in STAGES
    }
    return write_run(store, replace(new_run(store, DAY), status="delivered", stages=stages))


def ask(port: int, path: str) -> float:
    """Milliseconds of one request over a connection of its own, as the answer's last byte comes."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request("GET", path)
    found = connection.getresponse()
    found.read()
    connection.close()
    assert found.status == 200, (path, found.status)
    return 1000 * (time.perf_counter() - start)


def cpu_ms(pid: int) -> float:
    """Processor time that a process has had; other than wall time, it does not grow when others work too."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, pid: int, ids: Sequence[str], requests: int) -> None:
    """p50 and p95 of every kind of page, each request for other users."""

    def user(number: int) -> str:
        return ids[number * 7919 % len(ids)]

    kinds: dict[str, Callable[[int], str]] = {
        "bare route": lambda at: "/static/icon.svg",
        "/": lambda at: "/",
        "/suggest": lambda at: f"/suggest?q={user(at)[:5]}",
        "/users": lambda at: f"/users/{user(at)}",
        "/users, last page": lambda at: f"/users/{user(at)}?at=5",
        "/users, near": lambda at: f"/users/{user(at)}?by=near",
        "/users, far": lambda at: f"/users/{user(at)}?by=far",
        "/pairs": lambda at: f"/pairs/{user(at)}/{user(at + 1)}",
        "/map": lambda at: f"/map?user={user(at)}",
        "/health": lambda at: "/health",
        "/diff": lambda at: "/diff",
    }
    print(f"{'':20} {'p50':>8} {'p95':>8} {'CPU':>8}   ms, {requests} requests, one by one (limit {LIMIT_MS} ms)")
    for name, path in kinds.items():
        ask(port, path(requests))
        before = cpu_ms(pid)
        took = sorted(ask(port, path(number)) for number in range(requests))
        used = (cpu_ms(pid) - before) / requests
        print(f"{name:20} {statistics.median(took):8.1f} {took[int(0.95 * requests)]:8.1f} {used:8.1f}", flush=True)


def kept(store: Store) -> None:
    """Mean cosine in taste of the ten nearest on the map, beside what two principal components keep."""
    lists = TwinLists(store, published_run(store))
    ids, vectors, axes = lists.space
    histories = lists.hold()
    mine = histories.select(np.searchsorted(histories.user_ids, ids))
    atlas = draw_map(vectors, axes, mine, lists.vocabulary, lists.explainer)
    taste = unit(vectors - (vectors @ axes.T) @ axes)
    directions = np.linalg.eigh(np.cov(taste.T))[1][:, -2:]
    asked = np.random.default_rng(0).permutation(len(ids))[:500]
    cosines = taste[asked] @ taste.T
    cosines[np.arange(len(asked)), asked] = np.nan

    def nearest(points: np.ndarray[Any, Any]) -> float:
        apart = ((points[asked][:, None] - points[None]) ** 2).sum(axis=2)
        apart[np.arange(len(asked)), asked] = np.inf
        return float(np.take_along_axis(cosines, np.argpartition(apart, 10, axis=1)[:, :10], axis=1).mean())

    best = np.sort(np.nan_to_num(cosines, nan=-1), axis=1)[:, -10:].mean()
    said = {"map": nearest(atlas.points), "two principal components": nearest(taste @ directions)}
    said |= {"true nearest": float(best), "at random": float(np.nanmean(cosines))}
    print(f"{len(ids):,} users, mean cosine in taste of the ten nearest: {said}")


def main() -> None:
    """Write the runs, or take what is there, start the server and ask every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--of", metavar="STORE", help="measure in a store that is there")
    parser.add_argument("--map", metavar="STORE", help="only say what the taste map of a (small) run keeps")
    arguments = parser.parse_args()
    if arguments.map:
        kept(Store.open(arguments.map))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(arguments.of) if arguments.of else Store.create(f"{folder}/store")
        if not arguments.of:
            publish(store, write_run_of(store, "run", arguments.users).run_id)
        start = time.perf_counter()
        command = [sys.executable, "-m", "tastetwin", "page", "--store", store.root, "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            told = server.stderr.readline()
            port = int(told.split("/")[2].rpartition(":")[2])
            ask(port, "/")
            print(f"first page after {time.perf_counter() - start:.1f} s", end=", ", flush=True)
            while b"refresh" in urllib.request.urlopen(f"http://127.0.0.1:{port}/map").read():
                time.sleep(0.1)
            peak = int(Path(f"/proc/{server.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
            print(f"map after {time.perf_counter() - start:.1f} s, peak {peak:.2f} GB")
            measure(port, server.pid, View(store, published_run(store)).ids, arguments.requests)
            server.terminate()


if __name__ == "__main__":
    main()
