"""A real redis-server for tests."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis


class RedisServer:
    """At a port of its own; with a folder it keeps an append-only file there, synced at every write."""

    def __init__(self, folder: Path | None = None, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://:s3cret@127.0.0.1:{self.port}/0"
        kept = ["--appendonly", "no"]
        if folder is not None:
            kept = ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder)]
        self._words = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", "s3cret"]
        self._words += [*kept, *options, "--save", ""]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._words, stdout=subprocess.DEVNULL)
        client = redis.Redis.from_url(self.url)
        for _ in range(200):
            try:
                client.ping()
                return client.close()
            except redis.RedisError:
                time.sleep(0.05)
        raise AssertionError("redis-server does not start")

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(name="redis_server", scope="module")
def running_redis() -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    server = RedisServer()
    yield server
    server.kill()
