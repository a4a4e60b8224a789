"""The line gate beside its peer and its limits: CPU microseconds per review line with 2 % dirt.

Run: python benchmarks/gate.py [--lines 1000000]

ours        both paths, as the daily job runs it
slow only   every line through the strict parser and the coercion table
DuckDB      read_json of the same columns as text, TRY_CAST, ignore_errors: no reasons, rows of nulls, no duplicate keys
newlines    the limit: finding the line ends with numpy
memcpy      the limit's limit: reading the file once
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from tastetwin.config import CollectConfig, MartConfig
from tastetwin.mart import fast
from tastetwin.mart.gate import GateRules, gate_split, plan_splits

_DIRT = (
    lambda line: line.replace("4.5", '"bad"'),
    lambda line: line.replace("4.5", "999"),
    lambda line: line.replace("4.5", "NaN"),
    lambda line: line.replace("2013", "1913"),
    lambda line: line.replace('"u', '"\\ud800'),
    lambda line: line[: len(line) // 2],
    lambda line: line + line,
    lambda line: line[:-1] + ', "user_idno": "u1"}',
)


def write_lines(path: Path, lines: int, seed: int) -> None:
    """Reviews, 2 % of them spoilt in eight ways."""
    rng = random.Random(seed)
    with path.open("w") as handle:
        for number in range(lines):
            line = (
                f'{{"review_id": "r{number:08d}", "user_idno": "u{rng.randrange(100_000)}", "review_rating": 4.5, '
                f'"review_visited_date": "2013-{rng.randrange(1, 13):02d}-{rng.randrange(1, 29):02d}T23:00:00", '
                f'"review_place_id": "p{rng.randrange(20_000)}"}}'
            )
            handle.write((rng.choice(_DIRT)(line) if rng.random() < 0.02 else line) + "\n")


def gate(path: Path) -> Counter[str]:
    """Counts of the whole file."""
    rules = GateRules.of(MartConfig(), CollectConfig(), date(2020, 1, 1))
    counts: Counter[str] = Counter()
    for split in plan_splits("reviews", str(path), path.stat().st_size, MartConfig().split_bytes):
        for batch in gate_split(split, rules):
            counts += batch.counts
    return counts


def duckdb_peer(path: Path) -> int:
    """Rows that DuckDB makes of the same file."""
    fields = ("review_id", "user_idno", "review_rating", "review_visited_date", "review_place_id")
    columns = ", ".join(f"{field}: 'varchar'" for field in fields)
    query = (
        "SELECT review_id, user_idno, try_cast(review_rating AS double) AS rating, "
        "try_cast(review_visited_date AS timestamp) AS visited, review_place_id "
        f"FROM read_json('{path}', format='newline_delimited', ignore_errors=true, columns={{{columns}}})"
    )
    relation = duckdb.sql(query)
    assert relation is not None  # a SELECT always gives one
    table: pa.Table = relation.to_arrow_table()
    return int(table.num_rows)


def cpu(name: str, lines: int, work: Callable[[], object]) -> object:
    """Run, print CPU time per line, return what came out."""
    start = time.process_time()
    result = work()
    print(f"{name:<10} {(time.process_time() - start) / lines * 1e6:8.3f} us/line")
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    lines = parser.parse_args().lines
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reviews.jsonl"
        write_lines(path, lines, seed=1)
        data = path.read_bytes()
        print(f"{lines} lines, {len(data) / lines:.0f} bytes each")
        ours = cpu("ours", lines, lambda: gate(path))
        fast.WORTHWHILE = 1 << 62  # type: ignore[misc]  # no batch is that large: the fast path never starts
        slow = cpu("slow only", lines, lambda: gate(path))
        rows = cpu("DuckDB", lines, lambda: duckdb_peer(path))
        cpu("newlines", lines, lambda: np.flatnonzero(np.frombuffer(data, np.uint8) == 10))
        cpu("memcpy", lines, lambda: bytearray(data))
    print(f"same counts on both paths: {ours == slow}; DuckDB rows {rows}")
    print(dict(sorted(slow.items())) if isinstance(slow, Counter) else slow)


if __name__ == "__main__":
    main()
