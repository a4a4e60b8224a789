"""A process with a server as ours are: ``python -m tests.serving.small_server DRAIN GRACE [OPTION]``.

Says its two ports, then ``closed`` once its app was shut down. A body of digits is answered after so many milliseconds.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
from typing import Any

from tastetwin.cli import _stop
from tastetwin.errors import StoreError
from tastetwin.serving import http1
from tastetwin.serving.door import Door
from tastetwin.serving.life import Served, bind, run
from tastetwin.serving.policy import Policy
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.telemetry import Telemetry
from tests.serving.doors import ANN, LIMITS, ROUTES, People

LARGE = 1 << 20
"""Bytes of an answer that needs no key."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    await asyncio.sleep(int(body or b"0") / 1000)
    if scope["path"] == "/docs":
        body = bytes(LARGE)
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    if "fail" in sys.argv:
        raise StoreError("STORE-DAMAGED", place="store", rule="whole")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("closed", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # as the command line does
        signal.signal(number, functools.partial(_stop, []))
    if "slow-heads" in sys.argv:
        http1.HEAD_SECONDS = http1.REST_SECONDS = http1.TAKE_SECONDS = 0.2  # type: ignore[misc]
    telemetry, readiness = Telemetry("test", sys.stderr.buffer, 0.0), Readiness()
    limits = LIMITS.__class__(max_body=1 << 20, in_flight=500, seconds=60)
    door = Door(app, Policy(ROUTES), People(ANN), limits, telemetry, readiness)
    sockets = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
    ports = [bound.getsockname()[1] for bound in sockets]
    run(
        Served(door, sockets[0]),
        [Served(telemetry.metrics, sockets[1])],
        readiness,
        float(sys.argv[1]),
        float(sys.argv[2]),
        lambda: print(*ports, flush=True),
    )


if __name__ == "__main__":
    main()
