"""The planner's desk: how long a question about one user takes, from opening the store to the answer.

Run: python benchmarks/desk.py [--users 200000]

ours        the median of ten users; opted out: the same while a thousand people have opted out
session     what opening a session takes, which every answer pays once
limit       PyArrow reading the one user's rows from the one bucket they lie in
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tastetwin.analysis.standing import EXPOSURE
from tastetwin.delivery.sql import connect, query
from tastetwin.features.user_favor import USER_FAVOR
from tastetwin.generations import FOLDERS, STAGES, FileEntry, Manifest, Stage, finish, read_manifest
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import StageRecord, new_run, publish, published_run, write_run
from tastetwin.schema import PLACES, RESULT, TWINS, USER
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table, read_files

BUCKETS: Final = 8
K: Final = 100
FAVORS: Final = 20
QUESTIONS: Final = {
    "result": "SELECT idno, payload.* FROM result WHERE idno = '{}'",
    "twins": "SELECT * FROM twins WHERE user_idno = '{}'",
    "exposure": "SELECT * FROM exposure WHERE user_idno = '{}'",
    "user_favor": "SELECT * FROM user_favor WHERE user_idno = '{}'",
    "favors": "SELECT * FROM favors WHERE user_idno = '{}'",
}
Rows = npt.NDArray[np.int64]
Tables = dict[str, list[FileEntry]]


def _made(store: Store, stage: Stage, tables: Tables) -> StageRecord:
    store.make_folder(f"{FOLDERS[stage]}/{stage}")
    finish(store, Manifest(stage, stage, "2026-06-01", {}, {}, tables, {"buckets": BUCKETS}))
    return StageRecord(stage, 1.0)


def _twins(ids: pa.Array, mine: Rows, draw: np.random.Generator) -> pa.Table:
    n = len(mine) * K
    ranks, scores = np.tile(np.arange(1, K + 1, dtype=np.int32), len(mine)), draw.random((n, 5), np.float32)
    columns = [ids.take(np.repeat(mine, K)), ranks, ids.take(draw.integers(0, len(ids), n)), *scores.T]
    return pa.table([pa.array(each) for each in columns], schema=TWINS)


def _results(twins: pa.Table) -> pa.Table:
    offsets = pa.array(np.arange(0, len(twins) + 1, K, dtype=np.int32))
    kind = RESULT.field("payload").type
    inner = kind.field("twins").type.value_type
    entries = [twins.column(field.name).combine_chunks().cast(field.type) for field in inner]
    lists = pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(entries, fields=list(inner)))
    n = len(lists)
    parts = [pa.array(["2026-06-01"] * n), *(pa.array(np.full(n, FAVORS, np.int32)),) * 2, pa.array(["r"] * n), lists]
    payload = pa.StructArray.from_arrays(
        [each.cast(f.type) for each, f in zip(parts, kind, strict=True)], fields=list(kind)
    )
    return pa.table([twins.column(USER).take(pa.array(np.arange(0, len(twins), K))), payload], schema=RESULT)


def _favors(ids: pa.Array, mine: Rows, places: int, draw: np.random.Generator) -> pa.Table:
    when = datetime(2026, 5, 1)
    rows = [
        {
            USER: ids[at].as_py(),
            "like_list": [],
            "like_stat_list": [],
            "review_list": [
                {"review_id": str(n), "review_rating": 4.5, "review_visited_date": when, "review_place_id": f"p{place}"}
                for n, place in enumerate(draw.integers(0, places, FAVORS))
            ],
        }
        for at in mine
    ]
    return pa.Table.from_pylist(rows, USER_FAVOR)


def _store(folder: str, users: int) -> Store:
    """A published run of users with ``K`` twins and ``FAVORS`` favors each, and a tenth as many places."""
    store, draw = Store.create(folder), np.random.default_rng(0)
    names = sorted(f"{10**7 + number}" for number in range(users))
    ids, places = pa.array(names), users // 10
    bucket = np.array([bucket_of(name, BUCKETS) for name in names])
    tables: Tables = {"twins": [], "result": [], "user_favor": []}
    for number in range(BUCKETS):
        mine = np.flatnonzero(bucket == number)
        twins = _twins(ids, mine, draw)
        tables["twins"].append(put_table(store, f"analysis/analyze/twins/{bucket_name(number)}", twins))
        tables["result"].append(put_table(store, f"results/deliver/result/{bucket_name(number)}", _results(twins)))
        favors = _favors(ids, mine, places, draw)
        tables["user_favor"].append(put_table(store, f"features/features/user_favor/{bucket_name(number)}", favors))
    about = [{"place_id": f"p{n}", "place_category_code_list": [n % 50], "place_name": "x"} for n in range(places)]
    place = [put_table(store, "features/features/place/bucket-00000.parquet", pa.Table.from_pylist(about, PLACES))]
    unknown = (pa.nulls(users, field.type) for field in list(EXPOSURE)[2:])
    shown = pa.table([ids, pa.array(np.full(users, K, np.int32)), *unknown], EXPOSURE)
    exposure = [put_table(store, "analysis/analyze/exposure.parquet", shown)]
    made: dict[Stage, Tables] = {
        "features": {"user_favor": tables["user_favor"], "place": place},
        "analyze": {"twins": tables["twins"], "exposure": exposure},
        "deliver": {"result": tables["result"]},
    }
    stages: dict[str, StageRecord] = {stage: _made(store, stage, made.get(stage, {})) for stage in STAGES}
    run = write_run(store, replace(new_run(store, date(2026, 6, 1)), status="delivered", stages=stages))
    publish(store, run.run_id)
    return store


def _median_ms(work: Callable[[str], object], users: list[str]) -> float:
    took = []
    for user in users:
        began = time.perf_counter()
        work(user)
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def _limit(store: Store, user: str) -> object:
    twins = read_manifest(store, "analyze", published_run(store).generation("analyze")).paths("twins")
    return read_files(store, [twins[bucket_of(user, BUCKETS)]], TWINS, [(USER, "==", user)])


def _ask(store: Store, question: str, user: str) -> None:
    assert query(store, question.format(user)).num_rows, f"{user}: {question}"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=200_000)
    n = parser.parse_args().users
    some = [str(10**7 + at) for at in np.random.default_rng(1).integers(0, n, 11)]
    with tempfile.TemporaryDirectory() as folder:
        store = _store(f"{folder}/store", n)

        def measured() -> dict[str, float]:
            def ask(question: str) -> float:
                return _median_ms(lambda user: _ask(store, question, user), some)

            session = _median_ms(lambda _: connect(store), some)
            return {"session": session, **{view: ask(question) for view, question in QUESTIONS.items()}}

        plain = measured()
        opt_out(store, (str(2 * 10**7 + at) for at in range(1_000)))
        hidden = measured()
        print(f"{n:,} users: milliseconds, the median of {len(some)}")
        for what, took in plain.items():
            limit = f"   limit {_median_ms(lambda user: _limit(store, user), some):6.1f}" if what == "twins" else ""
            print(f"{what:12} ours {took:6.1f}   opted out {hidden[what]:6.1f}{limit}")


if __name__ == "__main__":
    _main()
