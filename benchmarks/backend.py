"""The model backend beside mosec, LitServe and KServe's Python server: requests per CPU-second of the process tree.

    make serving-peers-env && OMP_NUM_THREADS=1 .venv/bin/python benchmarks/backend.py [--seconds 5] [--only NAME ...]

All serve the same ONNX file (2 layers x 128, untrained: its speed is that of a trained one) one history a request, the
same histories of the length mix we plan for (mean 19, at most 100) in the same order; mosec and LitServe batch up to 32
and wait 1 ms, and their JSON is leaner than the protocol's. Requests come from this process, with 1 and with 32
connections that each ask again once answered; only the servers' CPU counts. "half load" sends at half the rate of the
32 connections, at random moments, and compares the 99th percentile with that of one connection. Targets: >= 1.5 times
mosec, >= 3 times the others, half load's p99 <= 3 times batch-1 latency.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from encode import histories, make_model
from tastetwin.config import TrainConfig
from tastetwin.generations import Manifest, entry_of, finish
from tastetwin.model.batches import pad
from tastetwin.serving.protocol import DTYPES, infer_request
from tastetwin.store import Store

HERE: Final = Path(__file__).parent
VERSION: Final = "2026-06-01-000000000000"
USERS: Final = 4_000
TICKS: Final = os.sysconf("SC_CLK_TCK")
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}

Rows = Sequence[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Contender:
    """A server: how it starts, where it answers, and the requests as it wants them."""

    name: str
    command: list[str]
    port: int
    path: str
    requests: list[bytes]


@dataclass
class Result:
    """Of one run."""

    answered: int
    seconds: float
    cpu: float
    latencies: np.ndarray

    @property
    def per_cpu(self) -> float:
        """Requests per CPU-second of the server."""
        return self.answered / max(self.cpu, 1e-9)


def request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of a POST."""
    lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def plain(rows: Rows, path: str) -> list[bytes]:
    """JSON lists by input, as mosec and LitServe are given."""
    bodies = [orjson.dumps({name: values[0].tolist() for name, values in row.items()}) for row in rows]
    return [request(path, body, {"content-type": "application/json"}) for body in bodies]


def protocol_json(rows: Rows, path: str) -> list[bytes]:
    """The protocol's JSON."""
    made = []
    for row in rows:
        inputs = [
            {"name": name, "datatype": NAMES[values.dtype], "shape": values.shape, "data": values.ravel().tolist()}
            for name, values in row.items()
        ]
        made.append(request(path, orjson.dumps({"id": "1", "inputs": inputs}), {"content-type": "application/json"}))
    return made


def binary(rows: Rows, path: str) -> list[bytes]:
    """The protocol's binary extension."""
    return [request(path, body, headers) for headers, body in (infer_request(row, ["vector"]) for row in rows)]


class Connection(asyncio.Protocol):
    """One connection that has one request at a time; reads no more of an answer than its length."""

    def __init__(self) -> None:
        """Not connected yet."""
        self._buffer = b""
        self._wanted = 0
        self._answer: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Of the event loop."""
        self._transport = transport

    def ask(self, sent: bytes) -> asyncio.Future[None]:
        """Send; done when the answer is there."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(sent)
        return self._answer

    def data_received(self, data: bytes) -> None:
        """Of the event loop."""
        self._buffer += data
        if not self._wanted and (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            if not head.startswith(b"http/1.1 200") and self._answer is not None:
                self._answer.set_exception(ConnectionError(self._buffer[:500]))
                return
            length = head.split(b"content-length:")[1].split(b"\r\n")[0]
            self._wanted = end + 4 + int(length)
        if self._wanted and len(self._buffer) >= self._wanted and self._answer is not None:
            self._buffer, self._wanted = b"", 0
            self._answer.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Of the event loop."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed"))


async def connections(port: int, count: int) -> list[Connection]:
    """Open ones."""
    loop = asyncio.get_running_loop()
    return [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(count)]


async def closed_loop(contender: Contender, count: int, seconds: float) -> list[float]:
    """Latencies with ``count`` connections that ask again at once."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    numbers = iter(range(1 << 40))

    async def client(connection: Connection) -> None:
        while (began := time.perf_counter()) < until:
            await connection.ask(contender.requests[next(numbers) % len(contender.requests)])
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*map(client, await connections(contender.port, count)))
    return latencies


async def open_loop(contender: Contender, rate: float, seconds: float) -> list[float]:
    """Latencies at ``rate`` requests a second, with what a request waits for a connection; not how late we send it."""
    rng = np.random.default_rng(1)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    free: asyncio.LifoQueue[Connection] = asyncio.LifoQueue()
    for connection in await connections(contender.port, 128):
        free.put_nowait(connection)
    latencies: list[float] = []
    began = time.perf_counter()

    async def one(number: int) -> None:
        at = time.perf_counter()
        connection = await free.get()
        await connection.ask(contender.requests[number % len(contender.requests)])
        latencies.append(time.perf_counter() - at)
        free.put_nowait(connection)

    tasks = []
    for number, at in enumerate(began + due):
        if (wait := at - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return latencies


async def grpc_loop(rows: Rows, port: int, count: int, seconds: float) -> list[float]:
    """As ``closed_loop``, over gRPC with raw contents."""
    import grpc.aio

    from tastetwin.serving.backend.wire import open_inference_pb2 as messages

    requests = [grpc_request(messages, row) for row in rows]
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    numbers = iter(range(1 << 40))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def client() -> None:
            while (began := time.perf_counter()) < until:
                await infer(requests[next(numbers) % len(requests)])
                latencies.append(time.perf_counter() - began)

        await asyncio.gather(*(client() for _ in range(count)))
    return latencies


def grpc_request(messages: Any, row: dict[str, np.ndarray]) -> bytes:
    """A serialized ``ModelInferRequest``."""
    made = messages.ModelInferRequest(model_name="taste")
    for name, values in row.items():
        made.inputs.add(name=name, datatype=NAMES[values.dtype], shape=values.shape)
        made.raw_input_contents.append(values.tobytes())
    serialized: bytes = made.SerializeToString()
    return serialized


def tree(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents.setdefault(int(_stat(folder)[1]), []).append(int(folder.name))
        except OSError:
            continue
    found = [root]
    for process in found:
        found += parents.get(process, [])
    return found


def cpu_seconds(root: int) -> float:
    """Of a process tree so far."""
    spent = 0.0
    for process in tree(root):
        stat = _stat(Path("/proc") / str(process))
        spent += (int(stat[11]) + int(stat[12])) / TICKS
    return spent


def _stat(folder: Path) -> list[str]:
    return (folder / "stat").read_text().rpartition(")")[2].split()


@contextmanager
def running(contender: Contender, folder: Path) -> Iterator[int]:
    """The server's process id, once it answers a request."""
    environment = {**os.environ, "MODEL": str(folder / "2x128.onnx"), "OMP_NUM_THREADS": "1"}
    log = (folder / f"{contender.name.split()[0]}.log").open("wb")
    with (
        log,
        subprocess.Popen(contender.command, env=environment, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            wait_until_it_answers(contender, server)
            yield server.pid
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, number)
                time.sleep(2)


def wait_until_it_answers(contender: Contender, server: subprocess.Popen[bytes]) -> None:
    """Or fail."""
    for _ in range(600):
        assert server.poll() is None, f"{contender.name} has ended"
        try:
            asyncio.run(closed_loop(contender, 1, 0.3))
            return
        except ConnectionError:
            time.sleep(0.1)
    raise SystemExit(f"{contender.name} does not answer")


def measured(loop: Any, process: int) -> Result:
    """Run a load, and note what the server spent."""
    gc.collect()
    gc.freeze()  # to look through all our requests takes a tenth of a second, which no server spends
    spent, began = cpu_seconds(process), time.perf_counter()
    latencies = asyncio.run(loop)
    seconds = time.perf_counter() - began
    return Result(len(latencies), seconds, cpu_seconds(process) - spent, 1_000 * np.sort(latencies))


def show(name: str, load: str, result: Result) -> None:
    """One line."""
    p50, p99 = np.percentile(result.latencies, [50, 99])
    wall = result.answered / result.seconds
    print(
        f"{name:16} {load:10} {result.per_cpu:7.0f} per CPU-s {wall:7.0f} per s   p50 {p50:6.2f}  p99 {p99:6.2f} ms",
        flush=True,
    )


def write_bundle(folder: Path) -> None:
    """A store with one bundle of the model in ``folder``."""
    store = Store.create(folder / "store")
    store.make_folder(f"bundles/{VERSION}")
    relative = f"bundles/{VERSION}/encoder.onnx"
    store.write_bytes(relative, (folder / "2x128.onnx").read_bytes())
    tables = {"model": [entry_of(store, relative)]}
    finish(store, Manifest("train", VERSION, "2026-06-01", {}, {}, tables, {}))


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        return int(bound.getsockname()[1])


def contenders(folder: Path, rows: Rows, peers: str, grpc_port: int) -> list[Contender]:
    """All, ours in each of its forms."""
    path = "/v2/models/taste/infer"
    command = [sys.executable, "-m", "tastetwin", "serve", "backend", "--store", str(folder / "store")]
    command += ["--version", VERSION]

    def ours(name: str, requests: list[bytes], *options: str) -> Contender:
        port = free_port()
        return Contender(f"ours, {name}", [*command, "--port", str(port), *options], port, path, requests)

    def peer(name: str, option: str, where: str, requests: list[bytes]) -> Contender:
        port, script = free_port(), str(HERE / "peers" / f"serving_{name}.py")
        return Contender(name, [peers, script, option, str(port)], port, where, requests)

    return [
        ours("JSON", protocol_json(rows, path)),
        ours("binary", binary(rows, path)),
        ours("gRPC", binary(rows, path), "--grpc-port", str(grpc_port)),
        peer("mosec", "--port", "/inference", plain(rows, "/inference")),
        peer("litserve", "--port", "/predict", plain(rows, "/predict")),
        peer("kserve", "--http_port", path, protocol_json(rows, path)),
    ]


def measure(contender: Contender, folder: Path, seconds: float) -> Result:
    """One contender's lines; the result of 32 connections."""
    with running(contender, folder) as process:
        one = measured(closed_loop(contender, 1, seconds), process)
        many = measured(closed_loop(contender, 32, seconds), process)
        half = measured(open_loop(contender, many.answered / many.seconds / 2, seconds), process)
        for load, result in (("c=1", one), ("c=32", many), ("half load", half)):
            show(contender.name, load, result)
        p50, p99 = np.percentile(one.latencies, [50, 99])
        high = np.percentile(half.latencies, 99)
        print(f"{contender.name:16} half load's p99: {high / p99:.2f} x batch-1 p99, {high / p50:.2f} x its median")
        return many


def measure_grpc(contender: Contender, folder: Path, rows: Rows, port: int, seconds: float) -> None:
    """Its lines."""
    with running(contender, folder) as process:
        for count in (1, 32):
            show(contender.name, f"c={count}", measured(grpc_loop(rows, port, count, seconds), process))


def main() -> None:
    """All of them in turn, on one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--peers", default=".venv-serving-peers/bin/python", help="Python that has the peers")
    parser.add_argument("--only", nargs="*", default=[], help="names, such as mosec")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = make_model(folder, TrainConfig(layers=2, width=128, dim=128, threads=1))
        write_bundle(folder)
        known = histories(USERS, model.rows, 100, seed=1)
        rows = [pad(known, np.array([user]), 100).inputs() for user in range(USERS)]
        grpc_port = free_port()
        results = {}
        for contender in contenders(folder, rows, options.peers, grpc_port):
            if options.only and not any(contender.name.startswith(name) for name in options.only):
                continue
            if contender.name == "ours, gRPC":
                measure_grpc(contender, folder, rows, grpc_port, options.seconds)
            else:
                results[contender.name] = measure(contender, folder, options.seconds)
        for name, result in results.items():
            print(f"ours, JSON / {name}: {results['ours, JSON'].per_cpu / result.per_cpu:.2f} x at c=32")


if __name__ == "__main__":
    main()
