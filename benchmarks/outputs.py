"""Gets and puts per CPU-second of each prediction-output store, beside the limit: a bare dict.

    python benchmarks/outputs.py [--entries 20000]

Values of 768 bytes, a vector of 192 float32; 776 with the seal. CPU is this process's, and with the server's for Redis.
``hit`` is a vector through ``CachedVectors``, ``bare hit`` a get and ``np.frombuffer`` alone. ``miss`` adds an empty
computation: what the front costs where the model is asked. In turn, several times; medians.

Evictions count: the stores have room for all entries but ``lmdb full``, which drops a generation every few thousand.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from tastetwin.serving.gateway.outputs import CachedVectors, MemoryOutputs, OutputMetrics, Outputs, key_of
from tastetwin.serving.gateway.outputs_lmdb import LmdbOutputs
from tastetwin.serving.gateway.outputs_redis import RedisOutputs

ROUNDS, DIM = 3, 192
Pairs = list[tuple[bytes, bytes]]


class Dict:
    """The limit: neither bound nor seal."""

    blocking = False

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """All at once."""
        return [self._values.get(key) for key in keys]

    def put(self, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        """All at once."""
        self._values.update(pairs)

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def redis_server() -> Iterator[tuple[str, int] | None]:
    """Address and process of a server of its own; None where it is not installed."""
    if shutil.which("redis-server") is None:
        yield None
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    words = f"redis-server --port {port} --bind 127.0.0.1 --appendonly no".split()
    with subprocess.Popen([*words, "--save", ""], stdout=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        yield f"redis://127.0.0.1:{port}", process.pid
        process.terminate()


def cpu_of(process: int | None) -> float:
    """Seconds of this process, and of another."""
    own = time.process_time()
    if process is None:
        return own
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return own + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rate(count: int, work: Callable[[], object], server: int | None = None) -> float:
    """Per CPU-second."""
    start = cpu_of(server)
    work()
    return count / max(cpu_of(server) - start, 1e-9)


def split(items: Sequence[tuple[bytes, bytes]], size: int) -> list[Pairs]:
    """In calls of ``size``."""
    return [list(items[at : at + size]) for at in range(0, len(items), size)]


def put_all(store: Outputs, calls: Sequence[Pairs]) -> None:
    """Call by call."""
    for pairs in calls:
        store.put(pairs)


def get_all(store: Outputs, calls: Sequence[Sequence[bytes]]) -> None:
    """Call by call."""
    for keys in calls:
        store.get(keys)


def measure(store: Outputs, pairs: Pairs, server: int | None) -> list[float]:
    """Puts of 1 and 16, gets of 1 and 16."""
    calls = [split(pairs, size) for size in (1, 16)]
    keys = [[[key for key, _ in each] for each in found] for found in calls]
    puts = [rate(len(pairs), partial(put_all, store, found), server) for found in calls]
    return puts + [rate(len(pairs), partial(get_all, store, found), server) for found in keys]


async def front(store: Outputs, pairs: Pairs) -> list[float]:
    """Microseconds of CPU for a hit of one key, a vector among 16 hits, and a miss of one key whose model is free."""
    cached = CachedVectors(store, OutputMetrics(CollectorRegistry()))

    async def none(_: list[int]) -> npt.NDArray[np.float32]:
        raise AssertionError("all are there")

    async def free(missing: list[int]) -> npt.NDArray[np.float32]:
        return np.zeros((len(missing), DIM), np.float32)

    found = []
    for size in (1, 16):
        calls = [[key for key, _ in each] for each in split(pairs, size)]
        start = time.process_time()
        for keys in calls:
            await cached.get(keys, DIM, none)
        found.append((time.process_time() - start) / len(pairs) * 1e6)
    others = [key_of("other", key) for key, _ in pairs[:4_000]]
    start = time.process_time()
    for key in others:
        await cached.get([key], DIM, free)
    return [*found, (time.process_time() - start) / len(others) * 1e6]


def bare(store: Outputs, pairs: Pairs) -> float:
    """Microseconds of CPU for a get and a view."""

    def work() -> None:
        for key, _ in pairs:
            np.frombuffer(store.get([key])[0] or b"", "<f4")

    return 1e6 / rate(len(pairs), work)


def stores(folder: str, address: str | None) -> dict[str, Callable[[], Outputs]]:
    """Each anew for a round."""
    metrics = OutputMetrics(CollectorRegistry())
    made: dict[str, Callable[[], Outputs]] = {
        "dict": Dict,
        "memory": lambda: MemoryOutputs(256 << 20),
        "lmdb": lambda: LmdbOutputs(tempfile.mkdtemp(dir=folder), 256 << 20, metrics),
        "lmdb full": lambda: LmdbOutputs(tempfile.mkdtemp(dir=folder), 8 << 20, metrics),
    }
    return made if address is None else {**made, "redis": lambda: RedisOutputs(address, metrics)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=20_000)
    entries: int = parser.parse_args().entries
    rng = np.random.default_rng(1)
    pairs = [(key_of("v", b"%d" % at), rng.bytes(4 * DIM)) for at in range(entries)]
    rates: dict[str, list[list[float]]] = {}
    costs: dict[str, list[list[float]]] = {}
    with redis_server() as server, tempfile.TemporaryDirectory() as folder:
        address, process = server or (None, None)
        for _ in range(ROUNDS):
            for name, make in stores(folder, address).items():
                store = make()
                rates.setdefault(name, []).append(measure(store, pairs, process if name == "redis" else None))
                if name != "lmdb full":
                    costs.setdefault(name, []).append([*asyncio.run(front(store, pairs)), bare(store, pairs)])
                store.close()
    print("thousands per CPU-second   put 1   put 16    get 1   get 16   get 1 / dict")
    middle = {name: [median(column) / 1e3 for column in zip(*found, strict=True)] for name, found in rates.items()}
    for name, values in middle.items():
        print(f"{name:<24}", *(f"{each:8.0f}" for each in values), f"{values[2] / middle['dict'][2]:13.1%}")
    print("\nCachedVectors, us of CPU   hit 1   hit/16   miss 1   bare hit")
    for name, found in costs.items():
        print(f"{name:<24}", *(f"{median(column):8.1f}" for column in zip(*found, strict=True)))


if __name__ == "__main__":
    main()
