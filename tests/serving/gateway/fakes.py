"""Backends that misbehave as they are told: one in this process, one in a process that can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from tests.serving.gateway import wire

ROOT = Path(__file__).parents[3]
VERSION = "2026-11-22-3f9a0c12ab34"


class Fake:
    """An HTTP/1.1 server of asyncio; ``mode`` says what it does to a call of ``infer``.

    ok, hang (no answer), close (no answer, connection closed), cut (half of the answer), garbage (a body that is no
    message), other (vectors of another number of rows), nan, or a status.
    """

    def __init__(self, *versions: str) -> None:
        self.versions = set(versions or (VERSION,))
        self.mode: str | int = "ok"
        self.first: list[str | int] = []
        """Modes of the first calls, before ``mode``."""
        self.live = True
        self.seconds = 0.0
        self.calls: list[dict[str, Any]] = []
        """JSON part of each call of ``infer``."""
        self.headers: list[dict[str, str]] = []
        self.broken_off = 0
        """Calls whose asker went away before the answer."""
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def listen(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Nobody listens any more, and open connections end."""
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = lines[0].split(" ")[1]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if path.endswith("/infer"):
            return await self._infer(path, headers, body, reader, writer)
        version = path.split("/")[5] if "/versions/" in path else ""
        ready = self.live if path == "/v2/health/ready" else version in self.versions
        return await _send(writer, 200 if ready else 503, {}, b"")

    async def _infer(
        self,
        path: str,
        headers: dict[str, str],
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        head, inputs = wire.read_infer_request(headers, body)
        self.calls.append(head)
        self.headers.append(headers)
        mode = self.first.pop(0) if self.first else self.mode
        if mode == "hang" or self.seconds:
            try:
                async with asyncio.timeout(60 if mode == "hang" else self.seconds):
                    self.broken_off += await reader.read(1) == b""
                return False
            except TimeoutError:
                pass
        if isinstance(mode, int) or mode == "close":
            return mode != "close" and await _send(writer, int(mode), {}, b'{"error":"told to"}')
        if path.split("/")[5] not in self.versions:
            return await _send(writer, 404, {}, b"")
        vectors = wire.vectors_of(inputs)
        if mode == "nan":
            vectors[0, 0] = float("nan")
        head_out, out = wire.infer_response(vectors[1:] if mode == "other" else vectors)
        if mode == "garbage":
            out = b"[" + out
        return await _send(writer, 200, head_out, out, cut=mode == "cut")


async def _send(
    writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes, cut: bool = False
) -> bool:
    lines = [f"HTTP/1.1 {status} told", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2 if cut else None])
    await writer.drain()
    return not cut


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """A well-behaved backend for uvicorn, which takes some milliseconds for a call."""
    if scope["type"] != "http":
        return
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    headers: dict[str, str] = {}
    answer = b""
    if scope["path"].endswith("/infer"):
        await asyncio.sleep(0.01)
        asked = {name.decode(): value.decode() for name, value in scope["headers"]}
        headers, answer = wire.infer_response(wire.vectors_of(wire.read_infer_request(asked, body)[1]))
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(answer)).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": pairs})
    await send({"type": "http.response.body", "body": answer})


class Process:
    """``app`` under uvicorn in a process of its own, always at the same port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        words = f"-m uvicorn tests.serving.gateway.fakes:app --port {self.port} --log-level error --lifespan off"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        self._process = subprocess.Popen([sys.executable, *words.split()], cwd=ROOT, env=environment)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        assert self._process.wait(10) == -signal.SIGKILL

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(200):
            try:
                with urllib.request.urlopen(f"{self.url}/v2/health/ready", timeout=1):
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the fake backend does not start")
