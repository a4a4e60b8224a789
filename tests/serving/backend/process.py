"""The backend as a process of its own, started as its users start it."""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from tastetwin.store import Store
from tests.serving.processes import started

SECONDS = 60


@dataclass(frozen=True)
class Process:
    """A running backend."""

    popen: subprocess.Popen[str]
    ports: dict[str, int]
    """Of ``http``, ``admin``, ``grpc``."""

    def ask(self, method: str, path: str, body: bytes = b"", where: str = "http", **headers: str) -> tuple[int, Any]:
        """Status and JSON of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports[where], timeout=SECONDS)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, orjson.loads(data) if data[:1] in (b"{", b"[") else data.decode()

    def admin(self, what: str, version: str) -> tuple[int, Any]:
        """Load or unload."""
        body = orjson.dumps({"parameters": {"version": version}})
        return self.ask("POST", f"/v2/repository/models/taste/{what}", body, "admin")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(SECONDS)


@contextmanager
def backend(store: Store, *options: str, **settings: object) -> Iterator[Process]:
    """A ready one; killed at the end if it has not been stopped."""
    values = {f"TASTETWIN_BACKEND__{name.upper()}": str(value) for name, value in settings.items()}
    environment = {"TASTETWIN_BACKEND__DRAIN_SECONDS": "0.2", **values}
    with started(["serve", "backend", "--store", store.root, "--port", "0", *options], environment) as server:
        server.wait_for(re.compile("^ready$"), SECONDS)
        yield Process(server.process, dict(filter(None, map(_port, server.lines))))


def _port(line: str) -> tuple[str, int] | None:
    """Of one of the addresses that it tells."""
    what, _, address = line.rpartition("://")
    return ("admin" if what.startswith("admin") else what, int(address.rpartition(":")[2])) if what else None
