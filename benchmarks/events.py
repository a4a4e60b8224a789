"""How many events a CPU-second carries from Kafka to changed twin lists (``python benchmarks/events.py --store DIR``).

    OMP_NUM_THREADS=1 python benchmarks/events.py --store store/ [--events 5000] [--per-user 1] [--twins 20]

Consumer, gateway and backend are the real processes, started as a user would; the cluster is librdkafka's mock in this
process, which is not counted. Every event is a like of a place by a user of the published run. What is counted is the
user and system time of each process between the first event written and the last one committed, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from confluent_kafka import Consumer, Producer, TopicPartition

from tastetwin.delivery.pack import pack_folder
from tastetwin.features.ids import IdIndex
from tastetwin.runs import published_run
from tastetwin.store import Store

PARTITIONS: Final = 4
TOPICS: Final = {"EVENTS_TOPIC": "events", "TWINS_TOPIC": "twins", "DEAD_LETTER_TOPIC": "dead"}
PORTS: Final = {"backend": 19_301, "gateway": 19_302, "metrics": 19_304}
TICKS: Final = os.sysconf("SC_CLK_TCK")


class Cluster:
    """A mock cluster in this process."""

    def __init__(self) -> None:
        self._owner = Producer({"test.mock.num.brokers": 1, "log_level": 2})
        ports = [broker.port for broker in self._owner.list_topics(timeout=10).brokers.values()]
        self.brokers = ",".join(f"127.0.0.1:{port}" for port in ports)
        for topic in TOPICS.values():
            self._owner.list_topics(topic, timeout=10)
        self._group = Consumer({"bootstrap.servers": self.brokers, "group.id": "events", "log_level": 2})

    def write(self, events: list[tuple[str, str]]) -> None:
        """User and place of each."""
        for user, place in events:
            value = json.dumps({"user_idno": user, "like_contentsid": place, "like_displayid": "place"})
            self._owner.produce(TOPICS["EVENTS_TOPIC"], key=user, value=value)
        self._owner.flush()

    def committed(self) -> int:
        """Messages of which the group is done with."""
        asked = [TopicPartition(TOPICS["EVENTS_TOPIC"], number) for number in range(PARTITIONS)]
        return sum(max(each.offset, 0) for each in self._group.committed(asked, timeout=10))


def cpu(process: subprocess.Popen[bytes]) -> float:
    """Seconds, all threads."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


@contextmanager
def running(verb: list[str], more: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """``tastetwin serve VERB`` until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "tastetwin", "serve", *verb],
                                   env={**os.environ, **more}, stderr=out, stdout=out)  # fmt: skip
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def key_file(folder: Path) -> tuple[Path, Path]:
    """Of keys, and of the one that the consumer has."""
    keys = folder / "keys.json"
    made = subprocess.run(
        [sys.executable, "-m", "tastetwin", "keys", "add", "events", "--scope", "favors", "--per-second", "1e6",
         "--burst", "1000000", "--file", str(keys), "--json"],
        check=True, capture_output=True,
    )  # fmt: skip
    key = folder / "key"
    key.write_text(json.loads(made.stdout)["key"])
    return keys, key


def some_events(store: Store, number: int, per_user: int) -> list[tuple[str, str]]:
    """Likes of places by users of the published run, ``per_user`` in a row."""
    folder = Path(store.root) / pack_folder(published_run(store).run_id)
    people, places = IdIndex.open(folder / "people"), IdIndex.open(folder / "places")
    chance = random.Random(1)
    found: list[tuple[str, str]] = []
    while len(found) < number:
        user = people.name(chance.randrange(len(people)))
        found += [(user, places.name(chance.randrange(len(places)))) for _ in range(per_user)]
    return found[:number]


def until(cluster: Cluster, number: int, watched: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Until so many are committed."""
    while cluster.committed() < number:
        for name, process in watched.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with {process.returncode}; its log: see --logs")
        time.sleep(0.05)


def outcomes() -> list[str]:
    """What the consumer counted, warm-up included: no dead letters, and lists, or the figure means nothing."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORTS['metrics']}/metrics") as said:
        lines = said.read().decode().splitlines()
    wanted = ("tastetwin_events_messages_total", "tastetwin_events_updates_total", "tastetwin_events_dead_total")
    return [line for line in lines if line.startswith(wanted)]


def measure(cluster: Cluster, processes: Mapping[str, subprocess.Popen[bytes]], events: list[tuple[str, str]],
            warm: int) -> None:  # fmt: skip
    """Write, wait, and tell."""
    cluster.write(events[:warm])
    until(cluster, warm, processes)
    before, began = {name: cpu(process) for name, process in processes.items()}, time.perf_counter()
    cluster.write(events[warm:])
    until(cluster, len(events), processes)
    seconds = time.perf_counter() - began
    number = len(events) - warm
    spent = {name: cpu(process) - before[name] for name, process in processes.items()}
    print(f"{number} events in {seconds:.1f} s of wall clock")
    for name, used in spent.items():
        print(f"{name:<28} {used:7.2f} CPU-s  {number / max(used, 1e-9):9,.0f} events a CPU-second")
    total = sum(spent.values())
    print("; ".join(line.removeprefix("tastetwin_events_") for line in outcomes()))
    print(f"{' + '.join(spent):<28} {total:7.2f} CPU-s  {number / total:9,.0f} events a CPU-second")


def main() -> None:
    """Parse, start, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--events", type=int, default=5_000)
    parser.add_argument("--warm", type=int, default=500)
    parser.add_argument("--per-user", type=int, default=1, help="events of a user in a row")
    parser.add_argument("--twins", type=int, default=20)
    parser.add_argument("--logs", type=Path, default=None, help="folder to keep what the processes say")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = given.logs or Path(made)
        run(given, Path(made), folder, Cluster())


def run(given: Any, folder: Path, logs: Path, cluster: Cluster) -> None:
    """With all processes."""
    keys, key = key_file(folder)
    settings = {f"TASTETWIN_APP__{name}": topic for name, topic in TOPICS.items()} | {
        "TASTETWIN_APP__BROKERS": cluster.brokers,
        "TASTETWIN_APP__GROUP": "events",
        "TASTETWIN_APP__EVENTS_TWINS": str(given.twins),
        "TASTETWIN_APP__GATEWAY": f"http://127.0.0.1:{PORTS['gateway']}",
        "TASTETWIN_GATEWAY__BACKENDS": json.dumps([f"http://127.0.0.1:{PORTS['backend']}"]),
    }
    backend = ["backend", "--store", given.store, "--port", str(PORTS["backend"])]
    gateway = ["gateway", "--store", given.store, "--keys", str(keys), "--port", str(PORTS["gateway"])]
    events = ["events", "--gateway-key", str(key), "--metrics-port", str(PORTS["metrics"])]
    with (
        running(backend, settings, logs / "backend.log") as first,
        running(gateway, settings, logs / "gateway.log") as second,
        running(events, settings, logs / "events.log") as third,
    ):
        processes = {"consumer": third, "gateway": second, "backend": first}
        measure(cluster, processes, some_events(Store.open(given.store), given.events, given.per_user), given.warm)


if __name__ == "__main__":
    main()
