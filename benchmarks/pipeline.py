"""collect + mart + features beside a hand-written DuckDB script, the same code on Spark, and the limit.

Run: python benchmarks/pipeline.py [--users 120000] [--folder DIR] [--spark sc://host:port]

ours     the three stages on embedded Sail, manifests, hashes and quarantine included
spark    the same on the given Spark Connect server (its CPU time is not seen from here)
DuckDB   read_json as text, TRY_CAST, dedupe, grouped and sorted lists, Parquet out; no reasons, no quarantine, no fsync
read     the limit: reading the raw files once
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb

from tastetwin.config import Config
from tastetwin.engine import Engine, connect
from tastetwin.features.stage import build_features
from tastetwin.mart.stage import build_mart
from tastetwin.sources.collect import collect
from tastetwin.sources.synthetic import TownConfig, write_town
from tastetwin.store import Store

_READ = "read_json('{folder}/{kind}*.jsonl', format='newline_delimited', ignore_errors=true, columns={{{columns}}})"
_COLUMNS = {
    "reviews": ("review_id", "user_idno", "review_rating", "review_visited_date", "review_place_id"),
    "likes": ("user_idno", "like_regymdt", "like_displayid", "like_contentsid"),
    "places": ("place_id", "place_category_code_list", "place_dongcode", "place_name", "place_lat", "place_lon"),
}
_TABLES = {
    "reviews": "SELECT review_id, user_idno, try_cast(review_rating AS double) AS review_rating, "
    "try_cast(review_visited_date AS timestamp) AS review_visited_date, review_place_id FROM {raw} "
    "WHERE user_idno IS NOT NULL AND review_place_id IS NOT NULL QUALIFY row_number() OVER (PARTITION BY user_idno, "
    "review_id ORDER BY review_visited_date DESC, review_rating DESC) = 1",
    "likes": "SELECT DISTINCT user_idno, try_cast(like_regymdt AS timestamp) AS like_regymdt, like_displayid, "
    "like_contentsid FROM {raw} WHERE user_idno IS NOT NULL AND like_contentsid IS NOT NULL",
    "places": "SELECT place_id, try_cast(place_category_code_list AS bigint[]) AS place_category_code_list, "
    "place_dongcode, place_name, try_cast(place_lat AS double) AS place_lat, "
    "try_cast(place_lon AS double) AS place_lon FROM {raw} WHERE place_id IS NOT NULL "
    "QUALIFY row_number() OVER (PARTITION BY place_id ORDER BY place_dongcode) = 1",
}
_USER_FAVOR = """
WITH r AS (SELECT user_idno, list({review_id: review_id, review_rating: review_rating, review_visited_date:
    review_visited_date, review_place_id: review_place_id} ORDER BY review_visited_date, review_id) AS review_list
    FROM reviews WHERE review_rating IS NULL OR review_rating >= 3 GROUP BY user_idno),
l AS (SELECT user_idno, list({like_regymdt: like_regymdt, like_displayid: like_displayid, like_contentsid:
    like_contentsid} ORDER BY like_regymdt) AS like_list FROM likes GROUP BY user_idno),
s AS (SELECT user_idno, list({like_displayid: like_displayid, n: n}) AS like_stat_list FROM
    (SELECT user_idno, like_displayid, count(*) AS n FROM likes GROUP BY ALL) GROUP BY user_idno)
SELECT * FROM r FULL JOIN (l JOIN s USING (user_idno)) USING (user_idno) ORDER BY user_idno
"""


def ours(engine: Engine, source: Path, folder: Path) -> object:
    """The three stages; their counts."""
    store, config = Store.create(folder), Config()
    lake = collect(store, str(source), date(2026, 6, 30), config=config.collect)
    mart = build_mart(engine, store, lake, None, config)
    return build_features(engine, store, mart, None, config).facts["counts"]


def peer(source: Path, folder: Path) -> object:
    """The same tables by hand."""
    folder.mkdir()
    base = duckdb.connect()
    base.execute("SET threads = 2")
    for kind, query in _TABLES.items():
        columns = ", ".join(f"{name}: 'varchar'" for name in _COLUMNS[kind])
        raw = _READ.format(folder=source, kind=kind, columns=columns)
        base.execute(f"CREATE TABLE {kind} AS {query.format(raw=raw)}")
        base.execute(f"COPY {kind} TO '{folder}/{kind}.parquet' (COMPRESSION zstd)")
    base.execute(f"COPY ({_USER_FAVOR}) TO '{folder}/user_favor.parquet' (COMPRESSION zstd)")
    base.execute(f"COPY places TO '{folder}/place.parquet' (COMPRESSION zstd)")
    return base.execute(f"SELECT count(*) FROM '{folder}/user_favor.parquet'").fetchone()


def read(source: Path) -> int:
    """Bytes of all raw files."""
    return sum(len(path.read_bytes()) for path in source.iterdir())


def timed(name: str, work: Callable[[], object]) -> float:
    """Run, print wall and CPU seconds, return the wall seconds."""
    wall, cpu = time.monotonic(), _cpu()
    result = work()
    wall, cpu = time.monotonic() - wall, _cpu() - cpu
    print(f"{name:<8} {wall:8.2f} s wall {cpu:8.2f} s CPU   {result}", flush=True)
    return wall


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=120_000, help="25 events each")
    parser.add_argument("--folder", type=Path, help="keeps the town from one run to the next")
    parser.add_argument("--spark", help="sc://host:port")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        town = (options.folder or Path(scratch)) / f"town-{options.users}"
        if not town.exists():
            town.parent.mkdir(parents=True, exist_ok=True)
            write_town(TownConfig(users=options.users), town)
        engine = connect(None, Config().engine.partitions)
        timed("read", lambda: read(town))
        our_seconds = timed("ours", lambda: ours(engine, town, Path(scratch) / "ours"))
        print(f"ours / DuckDB {our_seconds / timed('DuckDB', lambda: peer(town, Path(scratch) / 'peer')):.2f}")
        if options.spark:
            spark = connect(options.spark, Config().engine.partitions)
            print(
                f"spark / ours {timed('spark', lambda: ours(spark, town, Path(scratch) / 'spark')) / our_seconds:.2f}"
            )


if __name__ == "__main__":
    main()
