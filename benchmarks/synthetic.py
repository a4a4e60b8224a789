"""How fast the synthetic town is written, beside a peer and the limit (``python benchmarks/synthetic.py``).

Ours: ``write_town``, all of it (draws, text, dirt, truth, files). Peer: one ``json.dumps`` and one write per event, on
events already drawn. Limit: the same bytes copied in memory, and written from memory in one go. Process CPU time, one
core; the disk's own speed shows only in the kernel's share of the writes.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from tastetwin.sources.synthetic import TownConfig, write_town
from tastetwin.sources.synthetic_world import World

PEER_EVENTS: Final = 200_000


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, kernel included, spent on ``work``."""
    start = time.process_time()
    work()
    return time.process_time() - start


def row(name: str, events: float, size: float, seconds: float) -> None:
    """One line of the table."""
    print(f"{name:<34}{events / seconds / 1e3:>12,.0f} k events/s{size / seconds / 1e6:>10,.0f} MB/s{seconds:>9.2f} s")


def peer(config: TownConfig, path: Path) -> tuple[int, int, float]:
    """Events, bytes and CPU seconds of writing the first events with the standard library."""
    _, events = World(config).events(0)
    rows = list(zip(events.users.tolist(), events.places.tolist(), events.seconds.tolist(), strict=True))[:PEER_EVENTS]

    def write() -> None:
        with path.open("w") as file:
            for number, (user, place, second) in enumerate(rows):
                visited = str(np.datetime64(second, "s"))
                names = {"review_id": f"r{number:016d}", "user_idno": str(10_000_000 + user), "review_rating": 4.5}
                visit = {"review_visited_date": visited, "review_place_id": str(100_000_000 + place)}
                file.write(json.dumps({**names, **visit}) + "\n")

    seconds = cpu_seconds(write)
    return len(rows), path.stat().st_size, seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; by default the temporary folder")
    arguments = parser.parse_args()
    config = TownConfig(users=arguments.users)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        start = time.process_time()
        report = write_town(config, Path(scratch) / "town")
        ours = time.process_time() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{report.users:,} users, {report.places:,} places, {report.events:,} events, {report.bytes / 1e6:,.0f} MB"
        )
        row("write_town", report.events, report.bytes, ours)
        row("peer: json.dumps per event", *peer(config, Path(scratch) / "peer.jsonl"))
        data = np.full(min(report.bytes, 1 << 28), 32, np.uint8)
        target = np.zeros_like(data) + 1  # touched, so that page faults are not counted as copying
        events = report.events * data.nbytes / report.bytes
        row("limit: copy in memory", events, data.nbytes, cpu_seconds(lambda: np.copyto(target, data)))
        row("limit: write from memory", events, data.nbytes, cpu_seconds(lambda: data.tofile(Path(scratch) / "raw")))
        print(f"peak memory of write_town {memory:,.0f} MiB; aim: 200 k events/s on one core")


if __name__ == "__main__":
    main()
