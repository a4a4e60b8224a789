"""What the door costs: CPU microseconds a request beyond the app inside, and answers per CPU-second through uvicorn.

    OMP_NUM_THREADS=1 python benchmarks/door.py [--seconds 5]

First the ASGI callable alone in a loop, with an app inside that does nothing but answer. Then a process with uvicorn
as we run it and wrk in front: a bare Starlette route, the same route behind the door, and behind the door an app that
takes the route which the door has found already. All answer the same 8,000 bytes. Limit: 12 microseconds alone.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tastetwin.serving.door import Door, Limits
from tastetwin.serving.keys import Keys, add_key
from tastetwin.serving.life import Served, bind, run
from tastetwin.serving.policy import Policy
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.telemetry import Telemetry

LIMIT_US: Final = 12.0
ROUTE: Final = "/v1/models/{model}/twins"
PATH: Final = "/v1/models/taste/twins"
BODY: Final = os.urandom(4_000).hex().encode()
CALLS: Final = 20_000
CONNECTIONS: Final = 32
KINDS: Final = {
    "bare": "bare Starlette route",
    "behind": "the route behind the door, no line logged",
    "sampled": "the same, one line in a hundred",
    "logged": "the same, a line each",
    "taken": "behind the door, the door's own routing",
}


async def null(scope: Any, receive: Any, send: Any) -> None:
    """An app that only answers."""
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", b"8000")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


async def route(request: Request) -> Response:
    """The same, by Starlette."""
    return Response(BODY, media_type="application/json")


def door(inner: Any, keys: Path, readiness: Readiness, log_share: float) -> Door:
    """As a server has it; the rate is above what is asked here."""
    telemetry = Telemetry("benchmark", io.BytesIO(), log_share)
    return Door(inner, Policy({("GET", ROUTE): "twins"}), Keys(keys), Limits(1 << 20, 64, 5.0), telemetry, readiness)


def headers_of(key: str) -> list[tuple[bytes, bytes]]:
    """What a usual client sends."""
    return [
        (b"host", b"127.0.0.1:8102"),
        (b"user-agent", b"python"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip"),
        (b"authorization", f"Bearer {key}".encode()),
        (b"x-request-id", b"0123456789abcdef"),
    ]


async def microseconds(app: Any, key: str) -> float:
    """CPU time of one call, best of five rounds."""
    headers = headers_of(key)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def once() -> float:
        began = time.process_time()
        for _ in range(CALLS):
            scope = {"type": "http", "method": "GET", "path": PATH, "headers": headers}
            await app(scope, receive, send)
        return (time.process_time() - began) / CALLS * 1e6

    return min([await once() for _ in range(5)])


def serve(kind: str, keys: str) -> None:
    """The server's process: says its port."""
    readiness = Readiness()
    bare = Starlette(routes=[Route(ROUTE, route)])
    inner: Any = null if kind == "taken" else bare
    share = {"logged": 1.0, "sampled": 0.01}.get(kind, 0.0)
    app: Any = bare if kind == "bare" else door(inner, Path(keys), readiness, share)
    bound = bind("127.0.0.1", 0)
    print(bound.getsockname()[1], flush=True)
    run(Served(app, bound), [], readiness, 0.0, 1.0)


def per_cpu_second(kind: str, keys: Path, key: str, seconds: int) -> float:
    """Answers per CPU-second of the server."""
    command = [sys.executable, __file__, "--serve", kind, "--keys", str(keys)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}{PATH}"
        _wrk(url, key, 1)
        before = _cpu(server.pid)
        answers = _wrk(url, key, seconds)
        spent = _cpu(server.pid) - before
        server.terminate()
    return answers / spent


def _wrk(url: str, key: str, seconds: int) -> int:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-H", f"Authorization: Bearer {key}", url]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+) requests in", said)
    assert found is not None and "Non-2xx" not in said, said
    return int(found[1])


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure both and compare with the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--serve", default="")
    parser.add_argument("--keys", default="")
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.keys)
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys.json"
        key = add_key(keys, "benchmark", ["twins"], 1e6, 1_000_000)
        ready = Readiness()
        alone = uvloop.run(microseconds(null, key))
        for share in (0.0, 1.0):
            cost = uvloop.run(microseconds(door(null, keys, ready, share), key)) - alone
            note = f"limit {LIMIT_US:.0f}" if share == 0 else "every request logged"
            print(f"door alone: {cost:.1f} CPU us a request beyond an app of {alone:.1f} ({note})")
        rates: dict[str, list[float]] = {}
        for _ in range(3):
            for kind in KINDS:
                rates.setdefault(kind, []).append(per_cpu_second(kind, keys, key, given.seconds))
        bare = statistics.median(rates["bare"])
        for kind, each in rates.items():
            middle = statistics.median(each)
            more = (1 / middle - 1 / bare) * 1e6
            beside = f"{middle / bare:.2f} of bare; {more:+.1f} us a request"
            print(f"{KINDS[kind]}: {middle:,.0f} answers a CPU-second ({beside})")


if __name__ == "__main__":
    main()
