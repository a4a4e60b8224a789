"""The gateway's process: put together, served, ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import BinaryIO, Final

from tastetwin.analysis.blas import load_faiss
from tastetwin.config import Config
from tastetwin.serving.door import Limits
from tastetwin.serving.gateway.backends import BackendMetrics, Backends
from tastetwin.serving.gateway.fresh import MemoryLog
from tastetwin.serving.gateway.gateway import Gateway
from tastetwin.serving.gateway.http import STATUSES, Api, policy
from tastetwin.serving.gateway.openapi import pages
from tastetwin.serving.gateway.outputs import CachedVectors, OutputMetrics, open_outputs
from tastetwin.serving.keys import Keys
from tastetwin.serving.server import Guard, Lifespan, Listen, serve
from tastetwin.serving.telemetry import Telemetry
from tastetwin.serving.tracing import tracing_from_environment
from tastetwin.store import Store

SECONDS: Final = 10.0
"""For a whole request."""


def serve_gateway(
    store: Store, config: Config, keys: Path, listen: Listen, tell: Callable[[str], None], log: BinaryIO
) -> None:
    """Serve until the process is told to end; ``tell`` hears the address once requests are answered, ``log`` all else.

    Raises:
        UsageError: SERVE-ADDRESS, NOT-PUBLISHED, BACKEND-ADDRESS and others of the settings.
        StoreError: KEYS-FILE; DAMAGED and others of the store.
    """
    load_faiss().omp_set_num_threads(1)  # requests run side by side; one search is too short to be cut up
    telemetry = Telemetry("gateway", log, config.gateway.log_share, tracing_from_environment("gateway"))
    inner = Lifespan(lambda: _opened(store, config, telemetry))
    limits = Limits(config.gateway.max_body, config.gateway.in_flight, SECONDS)
    guard = Guard(policy(), Keys(keys), limits, STATUSES)
    serve(inner, guard, listen, telemetry, lambda: inner.api is not None and inner.api.ready, tell)


@asynccontextmanager
async def _opened(store: Store, config: Config, telemetry: Telemetry) -> AsyncIterator[Api]:
    settings, registry = config.gateway, telemetry.registry
    metrics = OutputMetrics(registry)
    with closing(open_outputs(settings, metrics)) as outputs:
        async with (
            Backends(settings.backends, settings, BackendMetrics(registry)) as backends,
            Gateway(store, config, backends, CachedVectors(outputs, metrics), MemoryLog()) as gateway,
        ):
            yield Api(gateway, pages())
