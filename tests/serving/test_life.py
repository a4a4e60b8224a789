"""Servers as processes: how they start, what they bound, and that nothing accepted is lost when they end."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tastetwin.errors import UsageError
from tastetwin.serving.life import bind
from tests.serving.doors import TWINS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
KEY = {"x-api-key": "key-of-ann"}
HEAD = f"POST {TWINS} HTTP/1.1\r\nhost: x\r\nx-api-key: key-of-ann\r\n"
REST = b"content-length: 1\r\n\r\n0"


class Small:
    """One process of ``small_server``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.port, self.admin = map(int, process.stdout.readline().split())

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        return connection.getresponse().status

    def end(self, *signals: int) -> None:
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
            time.sleep(0.2)

    def rest(self) -> tuple[int, str, str]:
        """Exit code, what was printed after the ports, and the log."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out.strip(), err


@contextmanager
def small(drain: float, grace: float, option: str = "") -> Iterator[Small]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", *sys.path])}
    command = [sys.executable, "-m", "tests.serving.small_server", str(drain), str(grace), option]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    try:
        yield Small(process)
    finally:
        process.kill()
        process.communicate()


class Client:
    """Sends at fixed times whatever the answers do, over connections that are kept; tries nothing twice."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seen: Counter[str] = Counter()
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def load(self, per_second: float, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        began, tasks = loop.time(), []
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))
            tasks.append(asyncio.ensure_future(self._one(b"400" if number % 10 == 0 else b"2")))
        await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()

    async def _one(self, body: bytes) -> None:
        try:
            reader, writer = await self._connection()
        except OSError:
            self.seen["not accepted"] += 1
            return
        try:
            writer.write(f"{HEAD}content-length: {len(body)}\r\n\r\n".encode() + body)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            got = await reader.readexactly(len(body))
        except (OSError, asyncio.IncompleteReadError):
            self.seen["lost"] += 1
            return
        self.seen["answered" if head.startswith(b"http/1.1 200") and got == body else "wrong"] += 1
        if b"connection: close" in head:
            self.seen["closed"] += 1
            writer.close()
        else:
            self._idle.append((reader, writer))

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
        return await asyncio.open_connection("127.0.0.1", self.port)


def under_load(server: Small, signals: list[tuple[float, int]], per_second: float, seconds: float) -> Counter[str]:
    """Send for some seconds, and signals at their times."""

    async def scene() -> Counter[str]:
        client = Client(server.port)
        for at, number in signals:
            asyncio.get_running_loop().call_later(at, server.process.send_signal, number)
        await client.load(per_second, seconds)
        return client.seen

    return asyncio.run(scene())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_nothing_accepted_is_lost_when_the_server_is_told_to_end(number: int) -> None:
    """A deployment replaces every server several times a day, under load."""
    with small(0.7, 10) as server:
        seen = under_load(server, [(0.7, number)], 300, 2.2)
        code, out, err = server.rest()
    assert (seen["lost"], seen["wrong"], code, out, err) == (0, 0, 0, "closed", "")
    assert seen["answered"] > 300 and seen["closed"] > 10
    assert seen["not accepted"] > 50, "the load must go on past the end of accepting"


def test_not_ready_comes_first_and_everything_is_still_answered() -> None:
    """A load balancer needs a while to notice; until then it sends requests here."""
    with small(30, 1) as server:
        assert (server.get("/readyz"), server.get("/healthz")) == (200, 200)
        server.end()
        assert (server.get("/readyz"), server.get("/healthz"), server.get("/docs")) == (503, 200, 200)
        metrics = urllib.request.urlopen(f"http://127.0.0.1:{server.admin}/metrics", timeout=10).read().decode()
        assert 'route="/docs",status="200"} 1.0' in metrics
        server.end()
        assert server.rest()[:2] == (0, "closed")


def test_a_second_signal_ends_the_drain_and_loses_nothing_either() -> None:
    """Somebody at a terminal does not wait for load balancers."""
    with small(60, 10) as server:
        seen = under_load(server, [(0.4, signal.SIGTERM), (0.8, signal.SIGTERM)], 300, 1.6)
        assert server.rest()[:2] == (0, "closed")
    assert (seen["lost"], seen["wrong"]) == (0, 0) and seen["answered"] > 150


def stuck(server: Small) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=15)
    connection.request("POST", TWINS, b"59000", KEY)
    time.sleep(0.2)
    return connection


def test_what_is_not_finished_within_the_grace_is_told_to_try_again() -> None:
    """The end comes, but no caller is left without an answer."""
    with small(0, 0.5) as server:
        connection = stuck(server)
        server.end()
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("retry-after")) == (503, "1")
        code, out, log = server.rest()
    assert (code, out, "HTTP-ENDING" in log, "Traceback" in log) == (0, "closed", True, False)


def test_one_more_signal_ends_the_grace() -> None:
    """Whoever says it three times means it."""
    with small(60, 60) as server:
        connection = stuck(server)
        server.end(signal.SIGTERM, signal.SIGTERM, signal.SIGTERM)
        assert server.rest()[0] == 0
        connection.close()


def test_a_connection_that_was_just_made_may_still_ask() -> None:
    """It was accepted; its first request is on its way."""
    with small(0, 5) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as fresh:
        idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        idle.request("POST", TWINS, b"0", KEY)
        assert idle.getresponse().read() == b"0"
        server.end()
        fresh.sendall(HEAD.encode() + REST)
        answer = fresh.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 200") and b"connection: close" in answer
        assert server.rest()[:2] == (0, "closed")


def test_half_a_head_is_waited_for_at_the_end() -> None:
    """A request that comes in two pieces is one request."""
    with small(0, 5) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as half:
        half.sendall(HEAD.encode() + REST)
        assert half.recv(65_536).startswith(b"HTTP/1.1 200")
        half.sendall(HEAD.encode())
        time.sleep(0.1)
        server.end()
        time.sleep(1.2)  # longer than a connection is given that has sent nothing
        half.sendall(REST)
        assert half.recv(65_536).startswith(b"HTTP/1.1 200")
        assert server.rest()[:2] == (0, "closed")


def test_a_head_without_end_is_cut_off() -> None:
    """The parser would keep gigabytes of it."""
    with small(0, 1) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as flood:
        sent = 0
        flood.sendall(HEAD.encode() + b"x-long: ")
        with pytest.raises(OSError):
            while sent < 64 << 20:
                sent += flood.send(b"x" * 65_536)
        assert sent < 16 << 20  # what the kernel buffers, and the bound
        assert server.get("/healthz") == 200


@pytest.mark.parametrize("start", [b"", b"POST / HTTP/1.1\r\nhost: x\r\n"])
def test_a_connection_that_says_nothing_is_closed(start: bytes) -> None:
    """Ten thousand of them cost an attacker nothing, and us every file handle."""
    with small(0, 1, "slow-heads") as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(start)
        assert slow.recv(100) == b""
        assert server.get("/healthz") == 200


def flooded(server: Small, first: bytes, again: bytes, most: int) -> int:
    """Bytes that were taken until the connection ended; nothing is read."""
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as flood:
        try:
            flood.sendall(first)
            while sent < most:
                sent += flood.send(again)
        except OSError:
            pass
    return sent


def memory(server: Small) -> float:
    """MB of the process's own."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


CHUNKED = b"GET /docs HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def test_trailers_without_end_are_not_kept() -> None:
    """Nobody needs a key for it: 80 MB of them were 1.5 GB of memory."""
    with small(0, 1) as server:
        before = memory(server)
        assert flooded(server, CHUNKED + b"0\r\n", b"a: b\r\n" * 10_000, 16 << 20) >= 16 << 20
        assert memory(server) - before < 16 and server.get("/healthz") == 200


def test_a_pipeline_without_end_is_cut_off() -> None:
    """Each request of it takes kilobytes while it waits for the answers before it to be taken."""
    with small(0, 1) as server:
        before = memory(server)
        for _ in range(5):
            assert flooded(server, b"", b"GET /docs HTTP/1.1\r\n\r\n" * 5_000, 64 << 20) < 64 << 20
        assert memory(server) - before < 32 and server.get("/healthz") == 200


def test_a_few_pipelined_requests_are_answered_in_order() -> None:
    """It is part of the protocol."""
    with small(0, 1) as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as line:
        line.sendall(b"".join(b"GET %s HTTP/1.1\r\n\r\n" % path for path in [b"/healthz", b"/none"] * 8))
        said = b""
        while said.count(b"HTTP/1.1") < 16:
            said += line.recv(65_536)
        assert [part[:3] for part in said.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404"] * 8


def test_an_answer_that_nobody_takes_is_dropped_with_its_connection() -> None:
    """A client that stopped reading would have it kept for ever."""
    with small(0, 1, "slow-heads") as server, socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        line.settimeout(30)
        line.connect(("127.0.0.1", server.port))
        line.sendall(b"GET /docs HTTP/1.1\r\n\r\n" * 20)
        time.sleep(3)
        taken = 0
        while part := line.recv(1 << 20):
            taken += len(part)
        assert taken < 20 << 20, "what the kernel had, and no more"
        assert server.get("/healthz") == 200


def test_the_rest_of_a_request_that_was_answered_is_not_awaited_for_ever() -> None:
    """A byte now and then would hold the connection for good."""
    with small(0, 1, "slow-heads") as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(f"POST {TWINS} HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n".encode())
        assert slow.recv(65_536).startswith(b"HTTP/1.1 401")
        slow.sendall(b"x")
        assert slow.recv(65_536) == b""


def test_an_upload_that_is_too_large_hears_so_before_the_connection_ends() -> None:
    """Closed in the middle of an upload, a client sees a broken pipe and tries the same again."""

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            time.sleep(0.01)  # or all of it is on its way before the answer
            yield b"x" * 65_536

    with small(0, 1) as server:
        for headers in ({}, {"content-length": str(40 * 65_536)}):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request("POST", TWINS, chunks(), KEY | headers, encode_chunked=not headers)
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("connection"), answer.getheader("server")) == (413, "close", None)


def test_a_port_that_is_taken_is_told_at_once() -> None:
    """Before a bundle is loaded for minutes."""
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UsageError, match="SERVE-ADDRESS"):
            bind("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match="SERVE-ADDRESS"):
        bind("192.0.2.1", 0)


def test_before_it_answers_nobody_is_kept_waiting() -> None:
    """Who was restarted a moment ago refuses, so that another is asked; in a queue they would wait for the model."""
    with bind("127.0.0.1", 0) as bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname(), timeout=5)


def test_an_app_that_does_not_start_says_why() -> None:
    """The command line turns our errors into a message and an exit code."""
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": os.pathsep.join(["src", *sys.path])}
    command = [sys.executable, "-m", "tests.serving.small_server", "0", "1", "fail"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=20)
    assert found.returncode == 1 and found.stdout == ""
    assert found.stderr.strip().endswith("STORE-DAMAGED: store. whole")
