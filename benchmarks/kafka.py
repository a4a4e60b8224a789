"""How fast lists are pushed, beside a bare producer loop over the same bytes (``python benchmarks/kafka.py``).

    OMP_NUM_THREADS=1 python benchmarks/kafka.py [--users 200000] [--twins 10]

The cluster is librdkafka's mock in a process of its own: one broker, on the same cores. "To a sink that takes
everything" is our part without Kafka's: reading, comparing, writing JSON, noting what is there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date
from multiprocessing.connection import Connection
from typing import Final

import numpy as np
import pyarrow as pa
from confluent_kafka import Producer

from tastetwin.delivery.kafka import DEFAULTS, FIXED, Address, Keyed, Topic
from tastetwin.delivery.push import push
from tastetwin.generations import Manifest, finish
from tastetwin.runs import StageRecord, new_run, publish, write_run
from tastetwin.schema import RESULT
from tastetwin.store import Store
from tastetwin.tables import bucket_name, bucket_of, put_table

BUCKETS: Final = 8
DAY: Final = date(2026, 6, 1)


class Taker:
    """A sink that takes everything, and keeps it."""

    def __init__(self) -> None:
        self.messages: list[Keyed] = []

    def send(self, messages: Iterable[Keyed]) -> int:
        """As a topic does."""
        before = len(self.messages)
        self.messages += messages
        return len(self.messages) - before


def publish_lists(store: Store, name: str, lists: np.ndarray) -> None:
    """A published run with these lists."""
    users, k = lists.shape
    ids = np.char.mod("%08d", np.arange(users)).astype(object)
    bucket = np.array([bucket_of(user, BUCKETS) for user in ids])
    folder = f"results/{name}"
    store.make_folder(folder)
    written = []
    for number in range(BUCKETS):
        mine = np.flatnonzero(bucket == number)
        table = rows(ids[mine], ids[lists[mine].ravel()], k)
        written.append(put_table(store, f"{folder}/result/{bucket_name(number)}", table))
    finish(store, Manifest("deliver", name, str(DAY), {}, {}, {"result": written}, {"buckets": BUCKETS}))
    run = replace(new_run(store, DAY), status="delivered", stages={"deliver": StageRecord(name, 0.0)})
    publish(store, write_run(store, run).run_id)


def rows(users: np.ndarray, twins: np.ndarray, k: int) -> pa.Table:
    """``RESULT`` of some users."""
    payload = RESULT.field("payload").type
    twin = payload.field("twins").type.value_type
    falling = np.tile(np.linspace(99.99, 90, k, dtype=np.float32), len(users))
    entries = pa.StructArray.from_arrays([pa.array(twins, pa.string()), *[pa.array(falling)] * 4], fields=list(twin))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(len(users) + 1, dtype=np.int32) * k), entries)
    empty = [pa.nulls(len(users), payload.field(at).type) for at in range(payload.num_fields - 1)]
    structs = pa.StructArray.from_arrays([*empty, lists], fields=list(payload))
    return pa.table([pa.array(users, pa.string()), structs], schema=RESULT)


def timed(name: str, work: Callable[[], int]) -> None:
    """One line."""
    start = time.perf_counter()
    messages = work()
    seconds = time.perf_counter() - start
    print(f"{name:48} {messages:>9,} messages {seconds:7.1f} s {messages / seconds:>10,.0f}/s", flush=True)


def bare(brokers: str, topic: str, messages: list[Keyed]) -> int:
    """The producer's own speed: the same settings and bytes, reports counted by nobody."""
    producer = Producer({**DEFAULTS, **FIXED, "bootstrap.servers": brokers})
    for key, value in messages:
        while True:
            try:
                producer.produce(topic, value=value, key=key)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
    return len(messages)


def serve(there: Connection) -> None:
    """A mock cluster, until the other side hangs up."""
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 2})
    for name in ("ours", "bare"):
        metadata = owner.list_topics(name, timeout=10)
    there.send(",".join(f"127.0.0.1:{broker.port}" for broker in metadata.brokers.values()))
    there.recv()


def main() -> None:
    """First push, bare loop, a push of what changed, a push of nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--twins", type=int, default=10)
    arguments = parser.parse_args()
    random = np.random.default_rng(1)
    lists = random.integers(0, arguments.users, (arguments.users, arguments.twins))
    here, there = multiprocessing.Pipe()
    cluster = multiprocessing.get_context("spawn").Process(target=serve, args=(there,))
    cluster.start()
    brokers = here.recv()
    target = f"kafka://{brokers}/ours"
    topic, taker = Topic(Address.of(target), {}), Taker()
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(f"{folder}/store")
        publish_lists(store, "first", lists)
        timed("to a sink that takes everything", lambda: push(store, "sink", taker).values)
        size = sum(len(key) + len(value or b"") for key, value in taker.messages)
        print(f"{size / len(taker.messages):.0f} bytes a message")
        timed("bare producer loop", lambda: bare(brokers, "bare", taker.messages))
        timed("push: first", lambda: push(store, target, topic).values)
        changed = random.random(arguments.users) < 0.25
        lists[changed, 0] = random.integers(0, arguments.users, int(changed.sum()))
        publish_lists(store, "second", lists)
        timed("push: a quarter changed", lambda: push(store, target, topic).values)
        timed("push: nothing changed (users looked at)", lambda: push(store, target, topic).unchanged)
    here.send(None)
    cluster.join()


if __name__ == "__main__":
    main()
