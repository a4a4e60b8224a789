"""The process: it starts, changes versions, and ends, and no request that it took is lost."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tastetwin.serving.protocol import infer_request, read_infer_response
from tests.serving.backend.fakes import tensors
from tests.serving.backend.process import SECONDS, Process, backend
from tests.serving.backend.test_repository import another_bundle
from tests.world import Journey

pytestmark = pytest.mark.slow

INFER = "/v2/models/taste/infer"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def send(process: Process, histories: list[list[int]]) -> http.client.HTTPConnection:
    """A connection with a whole request on it."""
    headers, body = infer_request(tensors(histories), ["vector"])
    connection = http.client.HTTPConnection("127.0.0.1", process.ports["http"], timeout=SECONDS)
    connection.request("POST", INFER, body, {**headers, "x-timeout-ms": "60000"})
    return connection


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_before_the_end(journey: Journey, number: signal.Signals) -> None:
    """A restart is no reason for a user to see an error."""
    with backend(journey.store, queue_rows=100_000, threads=1, drain_seconds=1) as process:
        first = process.ask("GET", "/v2/health/ready")
        sent = [send(process, [[5] * 400] * 20) for _ in range(12)]
        process.popen.send_signal(number)
        until(lambda: process.ask("GET", "/v2/health/ready")[0] == 503)
        late = send(process, [[5]])
        answers = [connection.getresponse() for connection in [*sent, late]]
        sizes = [read_infer_response(dict(each.headers), each.read())["vector"].shape for each in answers]
        assert process.popen.wait(SECONDS) == 0
    assert first == (200, {"ready": True})
    assert sizes == [(20, 64)] * 12 + [(1, 64)]
    assert answers[-1].headers["connection"] == "close"


def test_versions_change_under_load_and_no_request_fails(copied: Journey) -> None:
    """A new model every day, and a rollback whenever needed."""
    first = copied.first.generation("train")
    second = another_bundle(copied.store, "2027-01-01-aaaaaaaaaaaa", first)
    headers, body = infer_request(tensors([[5, 6], [7]]), ["vector"])
    done = threading.Event()
    seen: set[str] = set()

    def client() -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", process.ports["http"], timeout=SECONDS)
        statuses = []
        while not done.is_set():
            connection.request("POST", INFER, body, headers)
            answer = connection.getresponse()
            data = answer.read()
            statuses.append(answer.status)
            seen.update(version for version in (first, second) if version.encode() in data)
        return statuses

    options = ["--version", first, "--admin-port", "0"]  # named, or it would follow the published run meanwhile
    with backend(copied.store, *options) as process, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            for _ in range(10):
                assert process.admin("load", second) == (200, {})
                assert process.admin("unload", first) == (200, {})
                assert process.admin("load", first) == (200, {})
                assert process.admin("unload", second) == (200, {})
        finally:
            done.set()  # or the clients go on for ever
        statuses = [status for each in clients for status in each.result()]
    assert seen == {first, second}
    assert len(statuses) > 40
    assert set(statuses) == {200}


def test_a_bundle_that_was_tampered_with_is_refused_and_the_rest_goes_on(copied: Journey) -> None:
    """By the admin listener, whose answer says why; and at the start, which then fails."""
    first = copied.first.generation("train")
    with backend(copied.store, "--admin-port", "0") as process:
        assert process.admin("unload", first) == (200, {})
        model = Path(copied.store.root) / "bundles" / first / "encoder.onnx"
        model.write_bytes(model.read_bytes()[:-1] + b"\x00")
        status, value = process.admin("load", first)
        assert (status, value["problem"]["code"]) == (500, "DAMAGED")
        assert process.ask("GET", "/v2/models/taste")[0] == 404
        assert process.ask("GET", "/v2/health/live") == (200, {"live": True})
        assert process.ask("POST", "/v2/repository/index", where="admin")[1][0]["state"] == "UNAVAILABLE"
        assert process.stop() == 0
    with pytest.raises(AssertionError, match="DAMAGED"), backend(copied.store):
        pass


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2/repository/models/taste/load", b"{}", 400),
        ("/v2/repository/models/taste/load", b"[]", 400),
        ("/v2/repository/models/taste/load", b"{", 400),
        ("/v2/repository/models/taste/load", b'{"parameters":{"version":3}}', 400),
        ("/v2/repository/models/taste/load", b'{"parameters":{"version":"../../x"}}', 400),
        ("/v2/repository/models/taste/load", b'{"parameters":{"version":"2026-01-01-aaaaaaaaaaaa"}}', 404),
        ("/v2/repository/models/other/load", b'{"parameters":{"version":"2026-01-01-aaaaaaaaaaaa"}}', 404),
        ("/v2/repository/models/taste/unload", b'{"parameters":{"version":"2026-01-01-aaaaaaaaaaaa"}}', 404),
        ("/v2/repository/models/taste/delete", b"", 404),
        ("/v2/models/taste/infer", b"", 404),
        ("/v2/repository/index", b'{"ready":true}', 200),
    ],
)
def test_the_admin_listener_takes_nothing_else(administered: Process, path: str, body: bytes, status: int) -> None:
    """It is the one place where a request chooses a file."""
    assert administered.ask("POST", path, body, "admin")[0] == status
    assert administered.ask("GET", path, where="admin")[0] == 405


@pytest.fixture(scope="module")
def administered(journey: Journey) -> Iterator[Process]:
    with backend(journey.store, "--admin-port", "0") as process:
        yield process


def test_a_head_without_an_end_is_not_kept(administered: Process) -> None:
    """The HTTP parser has no limit of its own: one caller could fill the memory."""
    with socket.create_connection(("127.0.0.1", administered.ports["http"]), timeout=SECONDS) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nx: ")
        said = b""
        for _ in range(64):
            try:
                connection.sendall(b"x" * 65_536)
            except OSError:
                break
        with suppress(ConnectionResetError):
            said = connection.recv(100)
        assert not said or said.startswith(b"HTTP/1.1 4")
    assert administered.ask("GET", "/v2/health/live") == (200, {"live": True})


def test_an_address_that_is_taken_is_said_at_once(journey: Journey) -> None:
    """Before a model is read."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for option in ("--port", "--grpc-port", "--admin-port"):
            command = [sys.executable, "-m", "tastetwin", "serve", "backend", "--store", journey.store.root]
            ended = subprocess.run(
                [*command, "--port", "0", option, port], capture_output=True, text=True, timeout=SECONDS
            )
            assert ended.returncode == 2
            assert "SERVE-ADDRESS" in ended.stderr
