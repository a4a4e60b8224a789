"""The gateway's process: put together, served, ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

from tastetwin.analysis.blas import load_faiss
from tastetwin.config import Config, GatewayConfig
from tastetwin.serving.door import Limits
from tastetwin.serving.gateway.backends import BackendMetrics, Backends
from tastetwin.serving.gateway.fresh import FreshMetrics, open_fresh
from tastetwin.serving.gateway.gateway import Gateway
from tastetwin.serving.gateway.http import STATUSES, Api, Shadows, policy
from tastetwin.serving.gateway.metrics import State
from tastetwin.serving.gateway.openapi import pages
from tastetwin.serving.gateway.outputs import CachedVectors, MemoryOutputs, OutputMetrics, Outputs, open_outputs
from tastetwin.serving.keys import Keys
from tastetwin.serving.server import Guard, Lifespan, Listen, serve
from tastetwin.serving.telemetry import Telemetry
from tastetwin.serving.tracing import tracing_from_environment
from tastetwin.store import Store


def serve_gateway(store: Store, config: Config, keys: Path, listen: Listen, tell: Callable[[str], None]) -> None:
    """Serve until the process is told to end; ``tell`` hears the address once requests are answered.

    Raises:
        UsageError: SERVE-ADDRESS, NOT-PUBLISHED, BACKEND-ADDRESS and others of the settings.
        StoreError: KEYS-FILE; DAMAGED and others of the store.
    """
    load_faiss().omp_set_num_threads(1)  # requests run side by side; one search is too short to be cut up
    telemetry = Telemetry("gateway", listen.log, config.serve.log_share, tracing_from_environment("gateway"))
    inner = Lifespan(lambda: _opened(store, config, telemetry))
    limits = Limits(config.gateway.max_body, config.gateway.in_flight, config.serve.request_seconds)
    guard = Guard(policy(), Keys(keys), limits, STATUSES)
    serve(inner, guard, listen, config.serve, telemetry, lambda: inner.api is not None and inner.api.ready, tell)


@asynccontextmanager
async def _opened(store: Store, config: Config, telemetry: Telemetry) -> AsyncIterator[Api]:
    settings, registry = config.gateway, telemetry.registry
    metrics = OutputMetrics(registry)
    with closing(open_outputs(settings, metrics)) as outputs:
        async with Backends(settings.backends, settings, BackendMetrics(registry)) as backends:
            log = open_fresh(settings, FreshMetrics(registry))  # closed by the gateway
            async with Gateway(store, config, backends, CachedVectors(outputs, metrics), log) as gateway:
                State(gateway, registry)
                yield Api(gateway, pages(), answers_of(outputs, settings), Shadows(registry))


def answers_of(outputs: Outputs, settings: GatewayConfig) -> MemoryOutputs:
    """Where whole answers are kept: in memory, for they name users, and nobody could make another store forget them."""
    return outputs if isinstance(outputs, MemoryOutputs) else MemoryOutputs(settings.outputs_mb << 20)
