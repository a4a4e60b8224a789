"""What the benchmarks of serving share: tiers as processes, and a load that does not wait for answers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tastetwin.serving.keys import SCOPES, add_key

Question = tuple[str, bytes]
"""Path and body."""


@dataclass
class Process:
    """One tier; killed and started again at will."""

    arguments: Sequence[str]
    ready_at: str
    environment: dict[str, str] = field(default_factory=dict)
    _running: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin; not ready yet."""
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        words = [sys.executable, "-m", "tastetwin", "serve", *self.arguments]
        self._running = subprocess.Popen(words, env={**os.environ, **self.environment}, **quiet)

    def kill(self) -> None:
        """As by a power cut."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.pid, number)

    @property
    def port(self) -> int:
        """Where it listens."""
        port = urllib.parse.urlsplit(self.ready_at).port
        assert port is not None
        return port

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        assert self._running is not None
        return self._running.pid

    def wait_until_ready(self) -> float:
        """Seconds until it answered."""
        began = time.monotonic()
        wait_for(self.ready_at)
        return time.monotonic() - began

    def cpu(self) -> float:
        """CPU seconds so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> float:
        """MB of memory in use, mapped files apart."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@dataclass(frozen=True)
class Stack:
    """A gateway and its backends."""

    gateway: Process
    backends: list[Process]
    url: str
    """Of the model at the gateway."""
    key: str


@contextlib.contextmanager
def serving(store: str, folder: Path, backends: int = 1, **settings: str) -> Iterator[Stack]:
    """Tiers on ports that are free, nothing logged; ``settings`` as of the section ``gateway``."""
    key = add_key(folder / "keys.json", "bench", SCOPES, 1e6, 1_000_000)
    first_port, *ports = free_ports(1 + backends)
    workers = [
        Process(["backend", "--store", store, "--port", str(port)], f"http://127.0.0.1:{port}/v2/health/ready")
        for port in ports
    ]
    environment = {
        "TASTETWIN_GATEWAY__BACKENDS": orjson.dumps([f"http://127.0.0.1:{port}" for port in ports]).decode(),
        "TASTETWIN_SERVE__LOG_SHARE": "0",
        **{f"TASTETWIN_GATEWAY__{name.upper()}": value for name, value in settings.items()},
    }
    words = ["gateway", "--store", store, "--keys", str(folder / "keys.json"), "--port", str(first_port)]
    gateway = Process(words, f"http://127.0.0.1:{first_port}/readyz", environment)
    try:
        for each in (*workers, gateway):
            each.start()
            each.wait_until_ready()
        yield Stack(gateway, workers, f"http://127.0.0.1:{first_port}/v1/models/taste", key)
    finally:
        for each in (gateway, *workers):
            each.kill()


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(n)]


@contextlib.contextmanager
def product(stack: Stack, folder: Path, **settings: str) -> Iterator[tuple[Process, str]]:
    """An app in front of a gateway, and the key of the product's server; ``settings`` as of the section ``app``."""
    (port,) = free_ports(1)
    keys, gateway = folder / "app-keys.json", stack.url.partition("/v1/")[0]
    key = add_key(keys, "shop", ["app"], 1e6, 1_000_000)
    (folder / "gateway.key").write_text(stack.key)
    environment = {
        "TASTETWIN_APP__GATEWAY": gateway,
        "TASTETWIN_SERVE__LOG_SHARE": "0",
        **{f"TASTETWIN_APP__{name.upper()}": value for name, value in settings.items()},
    }
    words = ["app", "--keys", str(keys), "--secret", str(folder / "secret"), "--port", str(port)]
    words += ["--gateway-key", str(folder / "gateway.key")]
    app = Process(words, f"http://127.0.0.1:{port}/readyz", environment)
    try:
        app.start()
        app.wait_until_ready()
        yield app, key
    finally:
        app.kill()


def wait_for(url: str, method: str = "GET") -> None:
    """Until it answers 200."""
    for _ in range(6_000):
        with contextlib.suppress(urllib.error.URLError, OSError):
            data = b"" if method == "POST" else None
            with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=5):
                return
        time.sleep(0.01)
    raise SystemExit(f"{url} did not get ready")


class Wire:
    """Questions to a gateway over connections that are kept: as little work as there can be in Python."""

    def __init__(self, stack: Stack) -> None:
        address = urllib.parse.urlsplit(stack.url)
        self._host, self._port = address.hostname, address.port
        lines = [f"POST {address.path}/%s HTTP/1.1", "host: x", f"authorization: Bearer {stack.key}"]
        self._head = "\r\n".join([*lines, "content-length: %d", "", ""])
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: bytes) -> tuple[str, bytes, bytes]:
        """Status, head in lower case, and body of the answer.

        Raises:
            OSError, EOFError: what became of the connection.
        """
        reader, writer = await self._connection()
        writer.write((self._head % (path, len(body))).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        said = await reader.readexactly(int(head.partition(b"content-length: ")[2].split(b"\r\n")[0]))
        self._idle.append((reader, writer))
        return head[9:12].decode(), head, said

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
        return await asyncio.open_connection(self._host, self._port)


@dataclass
class Answers:
    """What became of the questions."""

    milliseconds: list[float] = field(default_factory=list)
    """Of those answered with 200, from the moment they were due."""
    refused: list[float] = field(default_factory=list)
    """Milliseconds of those answered with 503 or 429."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Status, or what went wrong with the connection."""
    codes: Counter[str] = field(default_factory=Counter)
    """Of the errors."""

    def percentile(self, level: float) -> float:
        """Milliseconds."""
        return float(np.percentile(self.milliseconds, level)) if self.milliseconds else float("nan")


def _code_of(said: bytes) -> str:
    try:
        return str(orjson.loads(said)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "none of ours"


async def arrive(
    stack: Stack, questions: Sequence[Question], rate: float, seconds: float, done: Callable[[], bool] = lambda: False
) -> Answers:
    """Ask at ``rate`` a second, arrivals at random, whether or not answers come; no question is asked twice."""
    answers, wire = Answers(), Wire(stack)
    gc.collect()
    gc.freeze()  # to look through all the questions takes a tenth of a second, which no server spends

    async def ask(question: Question, due: float) -> None:
        try:
            async with asyncio.timeout(30):
                status, _, said = await wire.post(*question)
            if status != "200":
                answers.codes[_code_of(said)] += 1
        except (OSError, EOFError) as error:
            status = type(error).__name__
        taken = (time.perf_counter() - due) * 1e3
        answers.statuses[status] += 1
        if status == "200":
            answers.milliseconds.append(taken)
        elif status in ("503", "429"):
            answers.refused.append(taken)

    tasks: set[asyncio.Task[None]] = set()
    due, end, at = time.perf_counter(), time.perf_counter() + seconds, 0
    while due < end and not done():
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        task = asyncio.create_task(ask(questions[at % len(questions)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        at, due = at + 1, due + random.expovariate(rate)
    await asyncio.gather(*tasks)
    return answers
