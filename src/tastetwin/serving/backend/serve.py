"""The backend's process: sockets first, then the models, then ready; at SIGTERM not ready first, drain, close."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from tastetwin.config import BackendConfig
from tastetwin.errors import MissingExtra
from tastetwin.runs import published_run
from tastetwin.store import Store

try:
    import grpc.aio

    from tastetwin.serving.backend.admin import LIMIT, Admin
    from tastetwin.serving.backend.batcher import Batcher
    from tastetwin.serving.backend.follow import follow
    from tastetwin.serving.backend.grpc_service import grpc_server
    from tastetwin.serving.backend.http import Http, body_limit
    from tastetwin.serving.backend.metrics import Metrics
    from tastetwin.serving.backend.repository import Repository
    from tastetwin.serving.backend.service import LONGEST, Service
    from tastetwin.serving.life import Served, address_of, bind, bracketed, no_address, run
    from tastetwin.serving.readiness import Readiness
    from tastetwin.serving.server import Lifespan
except ImportError as error:
    raise MissingExtra.of(str(error.name), "serve") from None

Tell = Callable[[str], None]
ADMIN_HOST: Final = "127.0.0.1"
"""Nobody is asked for a key there."""


@dataclass(frozen=True)
class Listen:
    """Where to listen; port 0 takes any that is free."""

    host: str = "127.0.0.1"
    port: int = 8101
    grpc_port: int | None = None
    """None = no gRPC."""
    admin_port: int | None = None
    """On ``ADMIN_HOST``; None = versions cannot be changed at run time."""


def serve_backend(store: Store, versions: Sequence[str], config: BackendConfig, listen: Listen, tell: Tell) -> None:
    """Serve bundles until SIGTERM or SIGINT; then what was accepted is answered first.

    Args:
        store: holds the bundles.
        versions: their ids; none = that of the published run, and of whatever run is published later.
        config: how to compute, and the limits.
        listen: addresses.
        tell: hears addresses once they answer, loads and unloads.

    Raises:
        UsageError: SERVE-ADDRESS when an address cannot be listened on; NOT-PUBLISHED, BAD-VERSION, NO-PROVIDER.
        StoreError: NO-GENERATION, DAMAGED, BAD-MODEL.
    """
    _Backend(store, versions, config, listen, tell).serve()


class _Backend:
    """What is there before the event loop, and what lives within it."""

    def __init__(
        self, store: Store, versions: Sequence[str], config: BackendConfig, listen: Listen, tell: Tell
    ) -> None:
        self._store, self._versions, self._config, self._listen, self._tell = store, versions, config, listen, tell
        self._readiness, self._metrics = Readiness(), Metrics()
        self._repository = Repository(store, config, self._metrics, tell)
        self._addresses: list[str] = []

    def serve(self) -> None:
        """Until a signal."""
        listen, config = self._listen, self._config
        main = Served(Lifespan(self._opened), self._bound(listen.host, listen.port))
        others = []
        if listen.admin_port is not None:
            bound = self._bound(ADMIN_HOST, listen.admin_port, "admin ")
            others.append(Served(Admin(self._repository, self._readiness, LIMIT), bound))
        run(main, others, self._readiness, config.drain_seconds, LONGEST, self._ready)

    def _bound(self, host: str, port: int, what: str = "") -> socket.socket:
        bound = bind(host, port)
        self._addresses.append(what + address_of(bound))
        return bound

    def _ready(self) -> None:
        for each in (*self._addresses, "ready"):
            self._tell(each)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Http]:
        batcher = Batcher(self._config, self._config.threads or len(os.sched_getaffinity(0)), self._metrics)
        service = Service(self._repository, batcher, self._metrics, self._config, self._readiness)
        async with AsyncExitStack() as stack:
            stack.callback(batcher.close)
            if self._listen.grpc_port is not None:
                server = grpc_server(service)
                self._addresses.append(await _listen_grpc(stack, server, self._listen.host, self._listen.grpc_port))
            for version in self._versions or [published_run(self._store).generation("train")]:
                await self._repository.load(version)
            if not self._versions:
                following = asyncio.create_task(follow(self._store, self._repository, self._tell))
                stack.callback(following.cancel)
            yield Http(service, body_limit(self._config))


async def _listen_grpc(stack: AsyncExitStack, server: grpc.aio.Server, host: str, port: int) -> str:
    """The address; at the end no more is taken, and what was taken is answered."""
    try:
        taken = server.add_insecure_port(f"{bracketed(host)}:{port}")
    except RuntimeError as error:
        raise no_address(host, port, str(error)) from error
    await server.start()
    stack.push_async_callback(server.stop, LONGEST)
    return f"grpc://{bracketed(host)}:{taken}"
