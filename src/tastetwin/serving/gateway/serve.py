"""The gateway's process: put together, served, ended."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tastetwin.analysis.blas import load_faiss
from tastetwin.config import Config
from tastetwin.serving.door import Door, Limits, Scope
from tastetwin.serving.exchange import Receive, Send
from tastetwin.serving.gateway.backends import BackendMetrics, Backends
from tastetwin.serving.gateway.fresh import FreshMetrics, open_fresh
from tastetwin.serving.gateway.gateway import Gateway
from tastetwin.serving.gateway.http import STATUSES, Api, Shadows, policy
from tastetwin.serving.gateway.openapi import pages
from tastetwin.serving.gateway.outputs import CachedVectors, MemoryOutputs, OutputMetrics, open_outputs
from tastetwin.serving.keys import Keys
from tastetwin.serving.life import Served, bind, run
from tastetwin.serving.readiness import Readiness
from tastetwin.serving.telemetry import Telemetry
from tastetwin.serving.tracing import tracing_from_environment
from tastetwin.store import Store


@dataclass(frozen=True)
class Listen:
    """Where a server listens."""

    host: str
    port: int
    metrics_port: int | None
    log: BinaryIO
    """Where a line a request goes."""


def serve_gateway(store: Store, config: Config, keys: Path, listen: Listen, tell: Callable[[str], None]) -> None:
    """Serve until the process is told to end; ``tell`` hears the address once requests are answered.

    Raises:
        UsageError: SERVE-ADDRESS, NOT-PUBLISHED, BACKEND-ADDRESS and others of the settings.
        StoreError: KEYS-FILE; DAMAGED and others of the store.
    """
    load_faiss().omp_set_num_threads(1)  # requests run side by side; one search is too short to be cut up
    serve = config.serve
    bound = bind(listen.host, listen.port)
    telemetry = Telemetry("gateway", listen.log, serve.log_share, tracing_from_environment("gateway"))
    inner = _Lifespan(store, config, telemetry)
    readiness = Readiness(inner.is_ready)
    limits = Limits(config.gateway.max_body, config.gateway.in_flight, serve.request_seconds)
    door = Door(inner, policy(), Keys(keys), limits, telemetry, readiness, STATUSES)
    others = []
    if listen.metrics_port is not None:
        others.append(Served(telemetry.metrics, bind(listen.host, listen.metrics_port)))
    at, ending = f"http://{listen.host}:{bound.getsockname()[1]}", (serve.drain_seconds, serve.grace_seconds)
    run(Served(door, bound), others, readiness, *ending, lambda: tell(f"{at}  docs: {at}/docs"))
    telemetry.close()


class _Lifespan:
    """The inner app from the start of the event loop to its end (ASGI lifespan)."""

    def __init__(self, store: Store, config: Config, telemetry: Telemetry) -> None:
        self._store, self._config, self._telemetry = store, config, telemetry
        self._api: Api | None = None
        self._gateway: Gateway | None = None

    def is_ready(self) -> bool:
        return self._gateway is not None and self._gateway.ready

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            assert self._api is not None, "started"
            return await self._api(scope, receive, send)
        await receive()
        async with AsyncExitStack() as stack:
            await self._start(stack)
            gc.collect()
            gc.freeze()  # what is there now stays: later collections need not walk through it
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self._gateway = None
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self, stack: AsyncExitStack) -> None:
        settings, registry = self._config.gateway, self._telemetry.registry
        metrics = OutputMetrics(registry)
        outputs = open_outputs(settings, metrics)
        stack.callback(outputs.close)
        backends = await stack.enter_async_context(Backends(settings.backends, settings, BackendMetrics(registry)))
        log = open_fresh(settings, FreshMetrics(registry))  # closed by the gateway
        gateway = Gateway(self._store, self._config, backends, CachedVectors(outputs, metrics), log)
        self._gateway = await stack.enter_async_context(gateway)
        kept = MemoryOutputs(settings.outputs_mb << 20) if outputs.blocking else outputs
        self._api = Api(gateway, pages(), kept, Shadows(registry))
