"""A server behind its door, put together: what gateway and app share from the command line to the socket."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import BinaryIO, Generic, TypeVar

from tastetwin.config import ServeConfig
from tastetwin.serving.door import App, Callers, Door, Limits, Scope
from tastetwin.serving.exchange import Receive, Send
from tastetwin.serving.life import Served, address_of, bind, run
from tastetwin.serving.policy import Policy
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.telemetry import Telemetry


@dataclass(frozen=True)
class Listen:
    """Where a server listens."""

    host: str
    port: int
    metrics_port: int | None
    log: BinaryIO
    """Where a line a request goes."""


A = TypeVar("A", bound=App)


class Lifespan(Generic[A]):
    """An API that exists from the start of the event loop to its end (ASGI lifespan)."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[A]]) -> None:
        self._opened = opened
        self.api: A | None = None
        """While it exists."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; or live."""
        if scope["type"] == "http":
            assert self.api is not None, "started"
            return await self.api(scope, receive, send)
        await receive()
        async with self._opened() as self.api:
            gc.collect()
            gc.freeze()  # what is there now stays: later collections need not walk through it
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self.api = None
        await send({"type": "lifespan.shutdown.complete"})


@dataclass(frozen=True)
class Guard:
    """What the door of a server lets in."""

    policy: Policy
    callers: Callers
    limits: Limits
    statuses: Mapping[str, int]


def serve(
    inner: Lifespan[A],
    guard: Guard,
    listen: Listen,
    config: ServeConfig,
    telemetry: Telemetry,
    is_ready: Callable[[], bool],
    tell: Callable[[str], None],
) -> None:
    """Serve until the process is told to end; ``tell`` hears the address once requests are answered.

    Raises:
        UsageError: SERVE-ADDRESS; whatever the start of ``inner`` raises.
    """
    bound = bind(listen.host, listen.port)
    others = []
    if listen.metrics_port is not None:
        others.append(Served(telemetry.metrics, bind(listen.host, listen.metrics_port)))
    readiness = Readiness(is_ready)
    door = Door(inner, guard.policy, guard.callers, guard.limits, telemetry, readiness, guard.statuses)
    at = address_of(bound)
    run(
        Served(door, bound),
        others,
        readiness,
        config.drain_seconds,
        config.grace_seconds,
        lambda: tell(f"{at}  docs: {at}/docs"),
    )
    telemetry.close()
