"""Peak memory of mart and features, each size in a process of its own, and of one endless line.

Run: python benchmarks/memory.py [--events 1000000 3000000 10000000] [--folder DIR]

Memory is the peak resident set of the process, engine included; the limit is what importing and connecting take.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from tastetwin.config import Config
from tastetwin.engine import connect
from tastetwin.features.stage import build_features
from tastetwin.mart.stage import build_mart
from tastetwin.sources.collect import collect
from tastetwin.sources.synthetic import TownConfig, write_town
from tastetwin.store import Store

LONG_LINE: int = 40 << 20


def measure(source: Path) -> None:
    """Run mart and features over a folder, print this process's peak before and after."""
    config = Config()
    engine = connect(None, config.engine.partitions)
    engine.spark.range(1).collect()
    idle = _peak()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        store = Store.create(Path(folder) / "store")
        lake = collect(store, str(source), date(2026, 6, 30), config=config.collect)
        mart = build_mart(engine, store, lake, None, config)
        after_mart = _peak()
        build_features(engine, store, mart, None, config)
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"idle {idle:5.0f} MiB   mart {after_mart:6.0f} MiB   mart + features {_peak():6.0f} MiB   "
        f"{time.monotonic() - began:6.1f} s wall {used.ru_utime + used.ru_stime:6.1f} s CPU",
        flush=True,
    )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a line per size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="*", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="keeps the towns from one run to the next")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        sources = {f"{events} events": folder / f"town-{events // 25}" for events in options.events}
        for source in sources.values():
            if not source.exists():
                source.parent.mkdir(parents=True, exist_ok=True)
                write_town(TownConfig(users=int(source.name.removeprefix("town-"))), source)
        long = Path(scratch) / "long"
        long.mkdir()
        good = b'{"user_idno": "u", "review_place_id": "p"}\n'
        (long / "reviews.jsonl").write_bytes(good * 9 + b'{"user_idno": "' + b"x" * LONG_LINE + b'"}\n' + good)
        for name, source in {"a 40 MiB line": long, **sources}.items():
            print(f"{name:>15}: ", end="", flush=True)
            subprocess.run([sys.executable, __file__, "--measure", str(source)], check=True)


if __name__ == "__main__":
    main()
